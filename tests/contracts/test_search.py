"""Searching on a real database: every kind of parameter, paging, includes, totals, and the indexes behind them."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.database import Database

from fhir_server.model.criteria import Limits
from fhir_server.model.query import parse
from fhir_server.store import cursor
from fhir_server.store.filters import UNRESTRICTED
from fhir_server.store.repository import Repository
from fhir_server.store.schema import ensure_schema
from imaging.errors import AppError, Category
from tests.support.filters import compile_query

Json = dict[str, Any]
DCM = "http://dicom.nema.org/resources/ontology/DCM"
UCUM = "http://unitsofmeasure.org"
BASE = "http://here/fhir"


@pytest.fixture
def repo(db: Database[Json]) -> Repository:
    ensure_schema(db)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    ticks = iter(range(1_000_000))
    return Repository(db, UNRESTRICTED, clock=lambda: start + timedelta(seconds=next(ticks)), base_url=BASE)


Find = Callable[..., list[str]]


@pytest.fixture
def find(repo: Repository) -> Find:
    """Ids of what a search finds, in order of id."""

    def find(kind: str, *params: tuple[str, str]) -> list[str]:
        page = repo.search(parse(kind, params, base_url=BASE))
        return sorted(one.id for one in page.matches)

    return find


def _study(**changes: Any) -> Json:
    return {"resourceType": "ImagingStudy", "status": "available", "subject": {"reference": "Patient/1"}, **changes}


def _coded(system: str | None, code: str, **more: str) -> Json:
    return {"coding": [{**({"system": system} if system else {}), "code": code, **more}]}


class TestTokens:
    @pytest.fixture(autouse=True)
    def studies(self, repo: Repository) -> None:
        for name, modality in {
            "ct": {"system": DCM, "code": "CT", "display": "Computed Tomography"},
            "mr": {"system": DCM, "code": "MR"},
            "other": {"system": "http://other", "code": "CT"},
            "bare": {"code": "CT"},
        }.items():
            repo.create(_study(series=[{"uid": f"1.2.{len(name)}", "modality": modality}]), id=name)
        repo.create(_study(status="registered", reasonCode=[{"text": "Kopfschmerz"}]), id="empty")

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("modality", "CT", ["bare", "ct", "other"]),
            ("modality", "ct", []),
            ("modality", f"{DCM}|CT", ["ct"]),
            ("modality", "|CT", ["bare"]),
            ("modality", f"{DCM}|", ["ct", "mr"]),
            ("modality", f"{DCM}|CT,MR", ["ct", "mr"]),
            ("modality", "CT,MR", ["bare", "ct", "mr", "other"]),
            ("modality:not", "CT", ["empty", "mr"]),
            ("modality:not", "CT,MR", ["empty"]),
            ("modality:missing", "true", ["empty"]),
            ("modality:missing", "false", ["bare", "ct", "mr", "other"]),
            ("modality:text", "computed", ["ct"]),
            ("reason:text", "KOPF", ["empty"]),
            ("status", "registered", ["empty"]),
            ("status", "http://hl7.org/fhir/imagingstudy-status|registered", ["empty"]),
            ("status:not", "available", ["empty"]),
            ("_id", "ct,mr,none", ["ct", "mr"]),
        ],
    )
    def test_tokens(self, find: Find, name: str, value: str, expected: list[str]) -> None:
        assert find("ImagingStudy", (name, value)) == expected

    def test_parameters_are_and_values_are_or(self, find: Find) -> None:
        assert find("ImagingStudy", ("modality", "CT,MR"), ("modality", f"{DCM}|")) == ["ct", "mr"]
        assert find("ImagingStudy", ("modality", "CT"), ("modality", "MR")) == []


def test_tags_security_and_profile(repo: Repository, find: Find) -> None:
    meta = {"tag": [{"system": "s", "code": "t"}], "security": [{"code": "R"}], "profile": ["http://p|1"]}
    repo.create({"resourceType": "Patient", "meta": meta}, id="p")

    assert find("Patient", ("_tag", "s|t"), ("_security", "R"), ("_profile", "http://p|1")) == ["p"]
    assert find("Patient", ("_tag", "s|u")) == []


def test_booleans_and_contact_points_are_tokens(repo: Repository, find: Find) -> None:
    telecom = [{"system": "phone", "value": "123"}, {"system": "email", "value": "a@b.c"}]
    repo.create({"resourceType": "Patient", "active": True, "telecom": telecom, "deceasedBoolean": True}, id="p")

    assert find("Patient", ("active", "true"), ("email", "a@b.c"), ("phone", "123"), ("telecom", "123")) == ["p"]
    assert find("Patient", ("email", "123")) == []
    assert find("Patient", ("deceased", "true")) == ["p"]


class TestReferences:
    @pytest.fixture(autouse=True)
    def studies(self, repo: Repository) -> None:
        for name, subject in {
            "patient": {"reference": "Patient/1"},
            "group": {"reference": "Group/1"},
            "own": {"reference": f"{BASE}/Patient/2"},
            "foreign": {"reference": "http://there/fhir/Patient/1"},
            "version": {"reference": "Patient/3/_history/2"},
            "logical": {"identifier": {"system": "s", "value": "v"}, "type": "Patient"},
        }.items():
            repo.create(_study(subject=subject), id=name)

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("subject", "1", ["group", "patient"]),
            ("subject", "Patient/1", ["patient"]),
            ("patient", "1", ["patient"]),
            ("patient", "Patient/1,Patient/2", ["own", "patient"]),
            ("subject", f"{BASE}/Patient/1", ["patient"]),
            ("subject", "http://there/fhir/Patient/1", ["foreign"]),
            ("patient", "http://there/fhir/Patient/1", ["foreign"]),
            ("patient", "Patient/3", ["version"]),
            ("subject:Group", "1", ["group"]),
            ("subject:identifier", "s|v", ["logical"]),
            ("patient:identifier", "v", ["logical"]),
            ("subject:missing", "true", ["logical"]),
        ],
    )
    def test_references(self, find: Find, name: str, value: str, expected: list[str]) -> None:
        assert find("ImagingStudy", (name, value)) == expected


class TestStrings:
    @pytest.fixture(autouse=True)
    def patients(self, repo: Repository) -> None:
        for name, family in {
            "a": "Müller",
            "b": "MULLER-Lüdenscheidt",
            "c": "van  der Mull",
            "d": "O'Neill, a|b",
        }.items():
            repo.create({"resourceType": "Patient", "name": [{"family": family}]}, id=name)

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("family", "mull", ["a", "b"]),
            ("family", "MÜLLER", ["a", "b"]),
            ("family", "van der", ["c"]),
            ("family:contains", "lud", ["b"]),
            ("family:contains", ".*", []),
            ("family:exact", "Müller", ["a"]),
            ("family:exact", "Muller", []),
            ("family", r"O'Neill\, a\|b", ["d"]),
            ("name", "x,mul", ["a", "b"]),
            ("family", "$regex", []),
            ("name:missing", "true", []),
        ],
    )
    def test_strings(self, find: Find, name: str, value: str, expected: list[str]) -> None:
        assert find("Patient", (name, value)) == expected


class TestQuantities:
    @pytest.fixture(autouse=True)
    def observations(self, repo: Repository) -> None:
        def component(code: str, value: float, unit: str) -> Json:
            quantity = {"value": value, "unit": unit, "system": UCUM, "code": unit}
            return {"code": _coded("http://c", code), "valueQuantity": quantity}

        for name, parts in {
            "low": [component("kvp", 80, "kV"), component("ma", 120, "mA")],
            "high": [component("kvp", 120, "kV"), component("ma", 80, "mA")],
        }.items():
            observation = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}, "component": parts}
            repo.create(observation, id=name)

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("component-value-quantity", "120", ["high", "low"]),
            ("component-value-quantity", f"120|{UCUM}|kV", ["high"]),
            ("component-value-quantity", "120||kV", ["high"]),
            ("component-value-quantity", "gt100||mA", ["low"]),
            ("component-code-value-quantity", "kvp$120", ["high"]),
            ("component-code-value-quantity", "http://c|kvp$ge100||kV", ["high"]),
            ("component-code-value-quantity", "http://c|kvp$lt100,http://c|kvp$120", ["high", "low"]),
            ("component-code-value-quantity", "http://d|kvp$120", []),
            ("component-code", "kvp", ["high", "low"]),
        ],
    )
    def test_quantities_and_composites(self, find: Find, name: str, value: str, expected: list[str]) -> None:
        assert find("Observation", (name, value)) == expected


class TestPaging:
    def _pages(self, repo: Repository, params: list[tuple[str, str]], between: Callable[[], Any]) -> list[str]:
        seen: list[str] = []
        token: list[tuple[str, str]] = []
        while True:
            page = repo.search(parse("Patient", [*params, *token]))
            seen += [one.id for one in page.matches]
            if page.next_cursor is None:
                return seen
            token = [("_cursor", page.next_cursor)]
            between()

    def test_newest_comes_first(self, repo: Repository) -> None:
        ids = [repo.create({"resourceType": "Patient"}).id for _ in range(7)]

        assert self._pages(repo, [("_count", "3")], lambda: None) == ids[::-1]

    @pytest.mark.parametrize("sort", [[], [("_sort", "_id")], [("_sort", "-_id")], [("_sort", "birthdate")]])
    def test_writes_between_pages_lose_and_repeat_nothing(self, repo: Repository, sort: list[tuple[str, str]]) -> None:
        patient = {"resourceType": "Patient", "birthDate": "1970"}
        ids = [repo.create(patient).id for _ in range(12)]
        turns = iter(range(100))

        def write() -> None:
            repo.create(patient)
            repo.update({**patient, "id": ids[next(turns) % 12]})
            repo.update({**patient, "id": ids[-1 - next(turns) % 12]})

        seen = self._pages(repo, [("_count", "2"), *sort], write)

        assert set(ids) <= set(seen)
        assert len(seen) == len(set(seen))

    @pytest.mark.parametrize("sort", ["birthdate", "-birthdate", "-birthdate,_id", "death-date,-birthdate"])
    def test_an_absent_key_has_its_place_in_the_order(self, repo: Repository, sort: str) -> None:
        births = ["1970", None, "1970-05", None, "1960-01-02", "1970"]
        for number, birth in enumerate(births):
            patient = {"resourceType": "Patient", **({"birthDate": birth} if birth else {})}
            repo.create(patient, id=f"p{number}")
        whole = [one.id for one in repo.search(parse("Patient", [("_sort", sort)])).matches]

        for size in ("1", "2", "4"):
            assert self._pages(repo, [("_sort", sort), ("_count", size)], lambda: None) == whole

    def test_dates_sort_by_time(self, repo: Repository) -> None:
        for name, birth in {"b": "1970-05", "a": "1960-01-02", "c": "1980"}.items():
            repo.create({"resourceType": "Patient", "birthDate": birth}, id=name)

        assert self._pages(repo, [("_sort", "birthdate")], lambda: None) == ["a", "b", "c"]
        assert self._pages(repo, [("_sort", "-birthdate")], lambda: None) == ["c", "b", "a"]

    def test_a_cursor_is_good_for_its_own_search_only(self, repo: Repository) -> None:
        for _ in range(3):
            repo.create({"resourceType": "Patient", "active": True})
        token = repo.search(parse("Patient", [("_count", "1")])).next_cursor or ""

        for params in ([("active", "true"), ("_cursor", token)], [("_cursor", token[:-2] + "AA")], [("_cursor", "é")]):
            with pytest.raises(AppError) as raised:
                repo.search(parse("Patient", params))
            assert raised.value.category is Category.INVALID

    def test_another_process_continues_a_page(self, repo: Repository, db: Database[Json]) -> None:
        for _ in range(3):
            repo.create({"resourceType": "Patient"})
        token = repo.search(parse("Patient", [("_count", "1")])).next_cursor or ""
        other = Repository(db, UNRESTRICTED, clock=lambda: datetime.now(UTC))

        assert len(other.search(parse("Patient", [("_cursor", token)])).matches) == 2


class TestTotals:
    @pytest.mark.parametrize(
        ("params", "total", "matches"),
        [
            ([], 3, 3),
            ([("_count", "2")], None, 2),
            ([("_count", "2"), ("_total", "accurate")], 3, 2),
            ([("_count", "2"), ("_total", "estimate")], 3, 2),
            ([("_total", "none")], None, 3),
            ([("_summary", "count")], 3, 0),
            ([("_count", "0")], 3, 0),
        ],
    )
    def test_totals(self, repo: Repository, params: list[tuple[str, str]], total: int | None, matches: int) -> None:
        for _ in range(3):
            repo.create({"resourceType": "Patient"})

        page = repo.search(parse("Patient", params))

        assert (page.total, len(page.matches)) == (total, matches)


class TestIncludes:
    @pytest.fixture(autouse=True)
    def resources(self, repo: Repository) -> None:
        repo.create({"resourceType": "Organization"}, id="o")
        repo.create({"resourceType": "Patient", "managingOrganization": {"reference": "Organization/o"}}, id="p")
        for name in "ab":
            repo.create(
                _study(subject={"reference": "Patient/p"}, endpoint=[{"reference": f"Endpoint/{name}"}]), id=name
            )
            repo.create({"resourceType": "Endpoint", "status": "active"}, id=name)
        repo.create(_study(subject={"reference": "Patient/gone"}), id="c")

    def _keys(self, repo: Repository, kind: str, *params: tuple[str, str]) -> list[str]:
        return sorted(one.key for one in repo.search(parse(kind, params)).includes)

    def test_each_referenced_resource_comes_once(self, repo: Repository) -> None:
        assert self._keys(repo, "ImagingStudy", ("_include", "ImagingStudy:patient")) == ["Patient/p"]

    def test_several_includes_and_wildcards(self, repo: Repository) -> None:
        expected = ["Endpoint/a", "Endpoint/b", "Patient/p"]

        both = [("_include", "ImagingStudy:patient"), ("_include", "ImagingStudy:endpoint")]
        assert self._keys(repo, "ImagingStudy", *both) == expected
        assert self._keys(repo, "ImagingStudy", ("_include", "ImagingStudy:*")) == expected
        assert self._keys(repo, "ImagingStudy", ("_include", "*")) == expected

    def test_iteration_follows_what_came_along(self, repo: Repository) -> None:
        first = ("_include", "ImagingStudy:patient")

        assert self._keys(repo, "ImagingStudy", first, ("_include:iterate", "Patient:organization")) == [
            "Organization/o",
            "Patient/p",
        ]

    def test_a_target_type_narrows(self, repo: Repository) -> None:
        assert self._keys(repo, "ImagingStudy", ("_include", "ImagingStudy:subject:Group")) == []
        assert self._keys(repo, "ImagingStudy", ("_include", "ImagingStudy:subject:Patient")) == ["Patient/p"]

    def test_reverse_includes(self, repo: Repository) -> None:
        assert self._keys(repo, "Patient", ("_revinclude", "ImagingStudy:patient")) == [
            "ImagingStudy/a",
            "ImagingStudy/b",
        ]

    def test_too_many_are_refused(self, repo: Repository) -> None:
        query = parse("Patient", [("_revinclude", "ImagingStudy:patient")], limits=Limits(includes=1))

        with pytest.raises(AppError) as raised:
            repo.search(query)

        assert raised.value.category is Category.TOO_LARGE


def test_a_match_can_be_asked_in_part(repo: Repository) -> None:
    repo.create({"resourceType": "Patient", "active": True, "gender": "other"}, id="p")

    match = repo.search(parse("Patient", [("_elements", "gender")])).matches[0].json()

    assert ("active" in match, match["gender"], match["meta"]["tag"][0]["code"]) == (False, "other", "SUBSETTED")


def test_compartments_are_named(repo: Repository, db: Database[Json]) -> None:
    made = repo.create(_study(subject={"reference": "Patient/9"}))
    patient = repo.create({"resourceType": "Patient"}, id="9")

    names = [(db["resources"].find_one({"_id": one.key}) or {})["compartments"] for one in (made, patient)]
    assert names == [["Patient/9"], ["Patient/9"]]


CASES = [
    # type, parameters, index
    ("ImagingStudy", [], "newest"),
    ("ImagingStudy", [("patient", "Patient/1")], "reference"),
    ("ImagingStudy", [("patient", "1")], "reference"),
    ("ImagingStudy", [("subject:identifier", "s|1")], "token"),
    ("ImagingStudy", [("identifier", "urn:dicom:uid|urn:oid:1.2.7")], "token"),
    ("ImagingStudy", [("modality", "CT")], "token"),
    ("ImagingStudy", [("modality", "CT,MR")], "token"),
    ("ImagingStudy", [("modality:text", "comp7")], "string"),
    ("ImagingStudy", [("endpoint:missing", "false")], "reference"),
    ("ImagingStudy", [("started", "2020-03")], "ImagingStudy.started"),
    ("ImagingStudy", [("started", "ge2020-03"), ("started", "lt2020-04")], "ImagingStudy.started"),
    ("ImagingStudy", [("_sort", "-started")], "ImagingStudy.started"),
    ("ImagingStudy", [("_sort", "started")], "ImagingStudy.started"),
    ("ImagingStudy", [("modality", "CT"), ("_sort", "-started")], "ImagingStudy.started.token"),
    ("ImagingStudy", [("modality", "CT"), ("started", "ge2003"), ("_sort", "started")], "ImagingStudy.started.token"),
    ("ImagingStudy", [("_lastUpdated", "gt2030")], "updated"),
    ("ImagingStudy", [("_sort", "-_lastUpdated")], "updated"),
    ("Patient", [("family", "muller39")], "string"),
    ("Patient", [("family:exact", "Muller7")], "string"),
    ("Patient", [("birthdate", "1970")], "Patient.birthdate"),
    ("Patient", [("death-date", "2020")], "date"),
    ("Patient", [("_profile", "http://p")], "uri"),
    ("Observation", [("value-quantity", "gt395||kV")], "quantity"),
    ("Observation", [("code-value-quantity", "kvp7$gt5")], "composite"),
    ("Observation", [("component-code-value-quantity", "kvp7$ge100||kV")], "composite"),
    ("Observation", [("date", "ge2024")], "Observation.date"),
    ("Encounter", [("date", "2024")], "date"),
    # a search of work items by Patient ID: as it was told, and by the Patients that have it
    ("Task", [("status", "requested,ready"), ("subject:identifier", "s|41")], "token"),
    ("Task", [("status", "requested,ready"), ("subject", "Patient/41")], "reference"),
]


class TestIndexes:
    @pytest.fixture
    def filled(self, repo: Repository, db: Database[Json]) -> Repository:
        quantity = {"value": 100, "unit": "kV", "system": UCUM, "code": "kV"}
        documents = []
        for number in range(400):
            kvp = {"code": _coded("http://c", f"kvp{number % 40}"), "valueQuantity": {**quantity, "value": number}}
            day = f"20{number % 30:02d}-{number % 12 + 1:02d}-03"
            series = [
                {
                    "uid": "1.2",
                    "modality": {"code": ("CT", "MR", "US", "CR", "DX")[number % 5], "display": f"comp{number}"},
                }
            ]
            identifier = [{"system": "urn:dicom:uid", "value": f"urn:oid:1.2.{number}"}]
            patient = {"resourceType": "Patient", "name": [{"family": f"Muller{number}"}], "birthDate": day}
            encounter = {"resourceType": "Encounter", "period": {"start": day, "end": day}}
            subject = {"reference": f"Patient/{number}", "identifier": {"system": "s", "value": str(number)}}
            study = _study(series=series, identifier=identifier, started=day, subject=subject)
            study |= {"endpoint": [{"reference": "Endpoint/1"}]} if number % 50 == 0 else {}
            patient |= {"meta": {"profile": ["http://p"]}, "deceasedDateTime": "2020-01-01"} if number % 50 == 0 else {}
            observation = {"resourceType": "Observation", "component": [kvp], "effectiveDateTime": day, **kvp}
            task = {"resourceType": "Task", "status": "requested", "for": subject}
            for one in (study, patient, observation, encounter, task):
                key = f"{one['resourceType']}/{number}"
                documents.append(repo._writer.document(key, one, "POST"))
        db["resources"].insert_many(documents)
        return repo

    def test_every_kind_of_clause_uses_its_index(self, filled: Repository, db: Database[Json]) -> None:
        used = {}
        for kind, params, _ in CASES:
            query = parse(kind, params)
            condition = compile_query(query, (), datetime(2026, 1, 1, tzinfo=UTC))
            found = db["resources"].find(condition).sort(list(cursor.order_of(query))).limit(51).explain()
            used[kind, str(params)] = _indexes(found["queryPlanner"]["winningPlan"])

        assert used == {(kind, str(params)): {name} for kind, params, name in CASES}

    def test_the_order_of_a_page_comes_from_the_index(self, filled: Repository, db: Database[Json]) -> None:
        for params in ([], [("modality", "CT")], [("modality", "CT"), ("_sort", "-started")], [("_sort", "started")]):
            first = parse("ImagingStudy", [*params, ("_count", "5")])
            token = filled.search(first).next_cursor or ""
            place = cursor.verify(first, token, filled._cursor_key())
            condition = compile_query(first, (), datetime(2026, 1, 1, tzinfo=UTC))
            order = cursor.order_of(first)
            paged = {"$and": [*condition["$and"], cursor.beyond(order, place.values)]}
            for wanted in (condition, paged):
                found = db["resources"].find(wanted).sort(list(order)).limit(6).explain()
                assert "SORT" not in _stages(found["queryPlanner"]["winningPlan"])
                assert found["executionStats"]["totalDocsExamined"] <= 12


def _nodes(plan: Any) -> list[Json]:
    if isinstance(plan, list):
        return [node for part in plan for node in _nodes(part)]
    if isinstance(plan, dict):
        return [plan, *(node for part in plan.values() for node in _nodes(part))]
    return []


def _indexes(plan: Any) -> set[str]:
    return {str(node["indexName"]) for node in _nodes(plan) if "indexName" in node}


def _stages(plan: Any) -> set[str]:
    return {str(node["stage"]) for node in _nodes(plan) if "stage" in node}
