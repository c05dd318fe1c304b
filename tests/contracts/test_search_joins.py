"""Searches that other resources decide, over several types, in compartments, in contained resources; every sort.

Names follow the sections of FHIR R4 search. What few resources decide is a filter, what many decide is verified match
by match: each test here runs both ways.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from pymongo.database import Database

from fhir_server.model.criteria import Clause, Limits, Reference, Token
from fhir_server.model.query import parse
from fhir_server.store.cursor import NEWEST_FIRST
from fhir_server.store.filters import ALLOW, UNRESTRICTED, Restriction, Rule
from fhir_server.store.index import rows
from fhir_server.store.joins import BATCH, FEW
from fhir_server.store.repository import Repository
from fhir_server.store.schema import ensure_schema
from fhir_server.store.search import Page, _Search, search
from imaging.errors import AppError, Category

Json = dict[str, Any]
UCUM = "http://unitsofmeasure.org"
ACT = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
BASE = "http://here/fhir"


@pytest.fixture(scope="module")
def shared(module_db: Database[Json]) -> Repository:
    """The repository of all tests here, with the resources that all of them have."""
    ensure_schema(module_db)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    ticks = iter(range(1_000_000))
    repository = Repository(
        module_db, UNRESTRICTED, clock=lambda: start + timedelta(seconds=next(ticks)), base_url=BASE
    )
    for one in RESOURCES:
        repository.create(one, id=one["id"])
    return repository


@pytest.fixture
def repo(shared: Repository) -> Iterator[Repository]:
    """The repository; what a test creates is gone after it."""
    yield shared
    kept = [f"{one['resourceType']}/{one['id']}/1" for one in RESOURCES]
    history = shared._database["history"]
    if made := [each["_id"] for each in history.find({"_id": {"$nin": kept}}, {"_id": 1})]:
        shared._resources.delete_many({"_id": {"$in": [each.rpartition("/")[0] for each in made]}})
        history.delete_many({"_id": {"$in": made}})


Find = Callable[..., list[str]]


@pytest.fixture(params=[FEW, 0], ids=["as a filter", "match by match"])
def page_of(repo: Repository, request: pytest.FixtureRequest) -> Callable[..., Page]:
    def page_of(kind: str, *params: tuple[str, str], to: Restriction = UNRESTRICTED, within: str = "") -> Page:
        query = parse(kind, params, base_url=BASE, compartment=within)
        now = datetime(2026, 1, 1, tzinfo=UTC)
        return search(repo._resources, query, to, now=now, key=lambda: b"k" * 32, few=request.param)

    return page_of


@pytest.fixture
def find(page_of: Callable[..., Page]) -> Find:
    return lambda *asked, **more: [one.key.partition("/")[2] for one in page_of(*asked, **more).matches]


def _study(id: str, **changes: Any) -> Json:
    return {"resourceType": "ImagingStudy", "id": id, "status": "available", **changes}


def _many(numbers: Iterable[int], repository: Repository) -> None:
    """Create studies of nobody who is known."""
    for number in numbers:
        repository.create(_study("x", subject=_to("Patient/nobody")), id=f"many{number}")


def _to(reference: str) -> Json:
    return {"reference": reference}


RESOURCES: list[Json] = [
    {"resourceType": "Organization", "id": "o", "name": "Acme", "partOf": _to("Organization/top")},
    {"resourceType": "Organization", "id": "top", "name": "Holding"},
    {"resourceType": "Organization", "id": "low", "name": "Ward", "partOf": _to("Organization/o")},
    {"resourceType": "Patient", "id": "p", "name": [{"family": "Smith"}], "gender": "male", "birthDate": "1970",
     "managingOrganization": _to("Organization/o")},
    {"resourceType": "Patient", "id": "q", "name": [{"family": "Jones"}], "gender": "female", "birthDate": "1980",
     "managingOrganization": _to("Organization/low")},
    {"resourceType": "Group", "id": "g", "type": "person", "actual": True, "member": [{"entity": _to("Patient/p")}]},
    {"resourceType": "Endpoint", "id": "e", "status": "active"},
    _study("s1", subject=_to("Patient/p"), endpoint=[_to("Endpoint/e")], basedOn=[_to("ServiceRequest/r")]),
    _study("s2", subject=_to("Patient/q"), started="2020"),
    _study("s3", subject=_to("Group/g"), started="2021"),
    {"resourceType": "ServiceRequest", "id": "r", "status": "active", "intent": "order", "subject": _to("Patient/p"),
     "requester": _to("Organization/top")},
    {"resourceType": "Observation", "id": "ob1", "status": "final", "code": {"coding": [{"code": "kvp"}]},
     "subject": _to("Patient/p"), "derivedFrom": [_to("ImagingStudy/s1")]},
    {"resourceType": "Observation", "id": "ob2", "status": "amended", "code": {"coding": [{"code": "ma"}]},
     "subject": _to("Patient/q")},
    {"resourceType": "Provenance", "id": "pr", "target": [_to("Observation/ob1")], "recorded": "2020-01-01T00:00:00Z",
     "agent": [{"who": _to("Organization/o")}]},
    {"resourceType": "List", "id": "l", "status": "current", "mode": "working",
     "entry": [{"item": _to("Patient/q")}, {"item": _to("ImagingStudy/s1")},
               {"item": _to("Patient/p"), "deleted": True}]},
]  # fmt: skip


class TestChainedParameters:
    """FHIR R4 search 3.1.1.4.7."""

    @pytest.mark.parametrize(
        ("kind", "name", "value", "expected"),
        [
            ("ImagingStudy", "patient.family", "smi", "s1"),
            ("ImagingStudy", "subject:Patient.family", "smi", "s1"),
            ("ImagingStudy", "subject:Group.member.family", "smi", "s3"),
            ("ImagingStudy", "subject.member", "Patient/p", "s3"),
            ("ImagingStudy", "patient.gender", "male,female", "s2 s1"),
            ("ImagingStudy", "patient.gender:not", "male", "s2"),
            ("ImagingStudy", "patient.organization.name", "acme", "s1"),
            ("ImagingStudy", "patient.organization.partof.name", "holding,acme", "s2 s1"),
            ("ImagingStudy", "patient.organization.name:exact", "acme", ""),
            ("ImagingStudy", "patient.birthdate", "ge1975", "s2"),
            ("ImagingStudy", "patient._id", "p", "s1"),
            ("ImagingStudy", "basedon:ServiceRequest.requester:Organization.name", "holding", "s1"),
            ("ImagingStudy", "patient._has:Observation:subject:code", "ma", "s2"),
            ("ImagingStudy", "patient.family", "nobody", ""),
        ],
    )
    def test_chains(self, find: Find, kind: str, name: str, value: str, expected: str) -> None:
        assert find(kind, (name, value)) == expected.split()

    def test_chains_are_anded_each_by_itself(self, find: Find) -> None:
        assert find("ImagingStudy", ("patient.family", "smith"), ("patient.gender", "female")) == []
        assert find("ImagingStudy", ("patient.family", "smith"), ("patient.gender", "male"), ("started", "2020")) == []

    def test_pages_and_totals_of_what_is_verified(self, page_of: Callable[..., Page], repo: Repository) -> None:
        for number in range(12):
            repo.create(_study("x", subject=_to("Patient/p" if number % 3 else "Patient/q")), id=f"more{number}")
        asked = [("patient.gender", "male"), ("_count", "2"), ("_total", "accurate")]

        first = page_of("ImagingStudy", *asked)
        second = page_of("ImagingStudy", *asked, ("_cursor", first.next_cursor or ""))

        assert first.total == second.total == 9
        assert [one.id for one in (*first.matches, *second.matches)] == ["more11", "more10", "more8", "more7"]

    def test_a_page_that_verifying_does_not_fill_is_found_by_a_filter(
        self, repo: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fhir_server.store.joins.MOST_VERIFIED", BATCH)
        monkeypatch.setattr("fhir_server.store.search.PATIENCE", BATCH)
        for start in range(0, 2 * BATCH, 100):
            repo.together(partial(_many, range(start, start + 100)), where="studies")
        asked = [("patient.gender", "male,female"), ("_total", "accurate"), ("_count", "1")]

        def page(*cursor: tuple[str, str], few: int = 1) -> Page:
            query, now = parse("ImagingStudy", [*asked, *cursor]), datetime(2026, 1, 1, tzinfo=UTC)
            return search(repo._resources, query, UNRESTRICTED, now=now, key=lambda: b"k" * 32, few=few)

        first = page()
        second = page(("_cursor", first.next_cursor or ""))

        assert [(each.total, *(one.id for one in each.matches)) for each in (first, second)] == [(2, "s2"), (2, "s1")]
        with pytest.raises(AppError, match="more than 500 resources"):
            page(few=0)

    def test_a_chain_is_bounded(self) -> None:
        with pytest.raises(AppError, match="at most 8 links"):
            parse("Organization", [("partof." * 9 + "name", "x")])
        with pytest.raises(AppError, match="too many types"):
            parse("Provenance", [("target._has:Provenance:target:target._id", "x")], limits=Limits(branches=100))


class TestReverseChaining:
    """FHIR R4 search 3.1.1.4.8."""

    @pytest.mark.parametrize(
        ("kind", "name", "value", "expected"),
        [
            ("Patient", "_has:Observation:patient:code", "kvp", "p"),
            ("Patient", "_has:Observation:patient:code", "kvp,ma", "q p"),
            ("Patient", "_has:Observation:patient:status:not", "final", "q"),
            ("Patient", "_has:Group:member:type", "person", "p"),
            ("Patient", "_has:Observation:patient:_has:Provenance:target:agent", "Organization/o", "p"),
            ("ImagingStudy", "_has:Observation:derived-from:subject:Patient.family", "smith", "s1"),
            ("Patient", "_has:Observation:patient:code", "nothing", ""),
        ],
    )
    def test_has(self, find: Find, kind: str, name: str, value: str, expected: str) -> None:
        assert find(kind, (name, value)) == expected.split()

    def test_has_over_all_types(self, page_of: Callable[..., Page]) -> None:
        found = page_of("", ("_has:Provenance:target:agent", "Organization/o"))

        assert [one.key for one in found.matches] == ["Observation/ob1"]


class TestLists:
    """FHIR R4 search 3.1.1.5.4."""

    def test_what_a_list_names_is_found_by_type(self, find: Find) -> None:
        assert find("Patient", ("_list", "l")) == ["q"]
        assert find("ImagingStudy", ("_list", "List/l")) == ["s1"]
        assert find("Patient", ("_list", "none")) == []

    def test_a_list_that_may_not_be_seen_names_nothing(self, find: Find) -> None:
        mandatory = (Clause("status", "token", "", (Token(None, "retired"),)),)
        to = Restriction({"Patient": Rule(read=ALLOW), "List": Rule(read=mandatory)})

        assert find("Patient", ("_list", "l"), to=to) == []


class TestFilter:
    """FHIR R4 search_filter."""

    @pytest.mark.parametrize(
        ("kind", "text", "expected"),
        [
            ("Patient", "family eq smith", "p"),
            ("Patient", 'family eq "smi"', ""),
            ("Patient", "family sw smi", "p"),
            ("Patient", "family ew ith", "p"),
            ("Patient", "family co mit", "p"),
            ("Patient", "family ne smith", "q"),
            ("Patient", "gender eq male or gender eq female", "q p"),
            ("Patient", "gender eq male and birthdate lt 1975", "p"),
            ("Patient", "gender eq female or gender eq male and birthdate gt 1975", "q"),
            ("Patient", "(gender eq female or gender eq male) and birthdate gt 1975", "q"),
            ("Patient", "not (gender eq male)", "q"),
            ("Patient", "not(gender eq male or family sw jo)", ""),
            ("Patient", "birthdate po 1980-05", "q"),
            ("Patient", "gender pr true", "q p"),
            ("Patient", "death-date pr false", "q p"),
            ("Patient", "organization re Organization/o", "p"),
            ("ImagingStudy", "patient.family eq smith", "s1"),
            ("ImagingStudy", "patient.family eq smith or started ge 2020", "s3 s2 s1"),
            ("ImagingStudy", "patient[gender eq female and birthdate gt 1975].organization.name eq ward", "s2"),
            ("ImagingStudy", "patient[not (gender eq male)].birthdate pr true", "s2"),
            ("ImagingStudy", "subject:Group.member.family eq smith", "s3"),
        ],
    )
    def test_expressions(self, find: Find, kind: str, text: str, expected: str) -> None:
        assert find(kind, ("_filter", text)) == expected.split()

    @pytest.mark.parametrize(
        "text",
        [
            *(
                "family",
                "family eq",
                "family is x",
                "(family eq x",
                "family eq x)",
                "and",
                "nonsense eq x",
                "family gt x",
            ),
            *("not (patient.family eq x)", "gender pr maybe", "x" * 5000, " or ".join(["family eq x"] * 51)),
            *("(" * 11 + "family eq x" + ")" * 11, "managing.family eq x", 'family eq "open'),
        ],
    )
    def test_what_cannot_be_read_is_refused(self, text: str) -> None:
        with pytest.raises(AppError) as raised:
            parse("ImagingStudy" if "patient" in text else "Patient", [("_filter", text)])

        assert raised.value.category is Category.INVALID


class TestModifiersThatLookSomethingUp:
    """FHIR R4 search 3.1.1.4.2: in, not-in, above, below of codes; hierarchies of references."""

    @pytest.fixture(autouse=True)
    def encounters(self, repo: Repository) -> None:
        for code in ("IMP", "ACUTE", "AMB"):
            repo.create(
                {"resourceType": "Encounter", "status": "finished", "class": {"system": ACT, "code": code}}, id=code
            )
        include = [{"system": ACT, "concept": [{"code": "AMB"}]}]
        value_set = {
            "resourceType": "ValueSet",
            "url": "http://mine",
            "status": "active",
            "compose": {"include": include},
        }
        repo.create(value_set, id="mine")

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("class:below", f"{ACT}|IMP", "ACUTE IMP"),
            ("class:above", f"{ACT}|ACUTE", "ACUTE IMP"),
            ("class:in", "http://terminology.hl7.org/ValueSet/v3-ActEncounterCode", "AMB ACUTE IMP"),
            ("class:in", "http://mine", "AMB"),
            ("class:in", "ValueSet/mine", "AMB"),
            ("class:not-in", "http://mine", "ACUTE IMP"),
            ("class:not-in", "http://mine,http://terminology.hl7.org/ValueSet/v3-ActEncounterCode", ""),
        ],
    )
    def test_codes(self, find: Find, name: str, value: str, expected: str) -> None:
        assert find("Encounter", (name, value)) == expected.split()

    @pytest.mark.parametrize(("name", "value"), [("class:in", "http://none"), ("class:below", "IMP")])
    def test_what_is_not_known_is_refused(self, find: Find, name: str, value: str) -> None:
        with pytest.raises(AppError) as raised:
            find("Encounter", (name, value))

        assert (raised.value.category, raised.value.where) == (Category.INVALID, "class")

    def test_a_value_set_that_may_not_be_seen_is_not_known(self, find: Find) -> None:
        with pytest.raises(AppError):
            find("Encounter", ("class:in", "http://mine"), to=Restriction({"Encounter": Rule(read=ALLOW)}))

    def test_hierarchies_of_references(self, find: Find) -> None:
        assert find("Patient", ("organization:below", "Organization/top")) == ["q", "p"]
        assert find("Patient", ("organization:below", "Organization/low")) == ["q"]
        assert find("Patient", ("organization:above", "Organization/low")) == ["q", "p"]


class TestCompartmentsAndTheWhole:
    """FHIR R4 http 3.1.0.9, search 3.1.1.2."""

    def test_a_compartment_has_what_refers_to_its_owner(self, page_of: Callable[..., Page]) -> None:
        found = page_of("ImagingStudy", within="Patient/p")
        everything = page_of("", within="Patient/p")

        assert [one.key for one in found.matches] == ["ImagingStudy/s1"]
        assert [one.key for one in everything.matches] == [
            "List/l", "Provenance/pr", "Observation/ob1", "ServiceRequest/r", "ImagingStudy/s1", "Group/g", "Patient/p",
        ][2:]  # fmt: skip

    def test_types_are_named_or_all_are_meant(self, page_of: Callable[..., Page]) -> None:
        assert [one.id for one in page_of("", ("_type", "Patient,Group")).matches] == ["g", "q", "p"]
        assert len(page_of("", ("_count", "100")).matches) == len(RESOURCES)
        assert [one.key for one in page_of("", ("_id", "s1")).matches] == ["ImagingStudy/s1"]

    def test_common_parameters_pages_and_totals(self, page_of: Callable[..., Page]) -> None:
        asked = [("_type", "Patient,ImagingStudy"), ("_count", "3"), ("_total", "accurate"), ("_sort", "_id")]

        first = page_of("", *asked)
        second = page_of("", *asked, ("_cursor", first.next_cursor or ""))

        assert first.total == 5
        found = [one.key for one in (*first.matches, *second.matches)]
        assert found == ["ImagingStudy/s1", "ImagingStudy/s2", "ImagingStudy/s3", "Patient/p", "Patient/q"]

    def test_what_not_all_types_know_is_refused(self) -> None:
        with pytest.raises(AppError):
            parse("", [("_type", "Patient,ImagingStudy"), ("family", "x")])
        with pytest.raises(AppError):
            parse("", [("_type", "Nonsense")])

    def test_types_that_may_not_be_read_are_left_out(self, page_of: Callable[..., Page]) -> None:
        to = Restriction({"Group": Rule(read=ALLOW)})

        assert [one.key for one in page_of("", to=to).matches] == ["Group/g"]
        with pytest.raises(AppError) as raised:
            page_of("", ("_type", "Patient"), to=to)
        assert raised.value.category is Category.FORBIDDEN


class TestContained:
    """FHIR R4 search 3.1.1.5.5."""

    @pytest.fixture(autouse=True)
    def holder(self, repo: Repository) -> None:
        inside = [
            {"resourceType": "Patient", "id": "c1", "name": [{"family": "Inside"}], "gender": "male"},
            {"resourceType": "Patient", "id": "c2", "name": [{"family": "Inside"}], "gender": "female"},
        ]
        repo.create(_study("s4", contained=inside, subject=_to("#c1")), id="s4")
        repo.create({"resourceType": "Patient", "name": [{"family": "Inside"}]}, id="out")

    @pytest.mark.parametrize(
        ("params", "expected"),
        [
            ([("family", "inside")], ["Patient/out"]),
            ([("family", "inside"), ("_contained", "false")], ["Patient/out"]),
            ([("family", "inside"), ("_contained", "true")], ["ImagingStudy/s4"]),
            ([("family", "inside"), ("_contained", "both")], ["Patient/out", "ImagingStudy/s4"]),
            ([("_id", "c2"), ("_contained", "true")], ["ImagingStudy/s4"]),
            ([("gender", "male"), ("gender", "female"), ("_contained", "true")], []),
            (
                [("family", "inside"), ("_contained", "true"), ("_containedType", "contained")],
                ["ImagingStudy/s4#c1", "ImagingStudy/s4#c2"],
            ),
            (
                [("gender", "female"), ("family", "inside"), ("_contained", "both"), ("_containedType", "contained")],
                ["ImagingStudy/s4#c2"],
            ),
        ],
    )
    def test_contained_resources(self, page_of: Callable[..., Page], params: Any, expected: list[str]) -> None:
        assert [one.key for one in page_of("Patient", *params).matches] == expected

    def test_both_sides_have_to_be_in_reach(self, find: Find) -> None:
        asked = ("Patient", ("family", "inside"), ("_contained", "true"))
        elsewhere = (Clause("subject", "reference", "", (Reference(("Patient/q",)),)),)
        women = (Clause("gender", "token", "", (Token(None, "nobody"),)),)

        assert find(*asked, to=Restriction({"Patient": Rule(read=ALLOW), "Group": Rule(read=ALLOW)})) == []
        assert find(*asked, to=Restriction({"Patient": Rule(read=ALLOW), "ImagingStudy": Rule(read=elsewhere)})) == []
        assert find(*asked, to=Restriction({"Patient": Rule(read=women), "ImagingStudy": Rule(read=ALLOW)})) == []


class TestSorting:
    """FHIR R4 search 3.1.1.5.1."""

    @pytest.mark.parametrize(
        ("sort", "expected"),
        [
            ("family", "q p"),
            ("-family", "p q"),
            ("gender", "q p"),
            ("-birthdate", "q p"),
            ("organization", "q p"),
            ("-gender,birthdate", "p q"),
            ("deceased,-family", "p q"),
        ],
    )
    def test_any_parameter_and_direction(self, find: Find, sort: str, expected: str) -> None:
        assert find("Patient", ("_sort", sort)) == expected.split()

    def test_the_lowest_value_counts_upwards_and_the_highest_downwards(self, repo: Repository, find: Find) -> None:
        repo.create({"resourceType": "Patient", "name": [{"family": "Aaa"}, {"family": "Zzz"}]}, id="both")

        assert find("Patient", ("_sort", "family")) == ["both", "q", "p"]
        assert find("Patient", ("_sort", "-family")) == ["both", "p", "q"]

    @pytest.mark.parametrize("sort", ["family", "-family", "gender,-family", "-_lastUpdated", "birthdate,family"])
    def test_pages_follow_each_other(self, page_of: Callable[..., Page], repo: Repository, sort: str) -> None:
        for number in range(9):
            family = [{"family": "AbC"[number % 3]}] if number % 4 else []
            repo.create({"resourceType": "Patient", "name": family, "gender": ["male", "female"][number % 2]})

        whole = [one.id for one in page_of("Patient", ("_sort", sort)).matches]
        paged = list(_ids(page_of, ("_sort", sort), ("_count", "2")))

        assert paged == whole
        assert len(whole) == 11


def _ids(page_of: Callable[..., Page], *params: tuple[str, str]) -> Iterator[str]:
    token: list[tuple[str, str]] = []
    while True:
        page = page_of("Patient", *params, *token)
        yield from (one.id for one in page.matches)
        if page.next_cursor is None:
            return
        token = [("_cursor", page.next_cursor)]


class TestIncludesAlongEveryPath:
    """FHIR R4 search 3.1.1.5.3."""

    def _keys(self, page: Page) -> list[str]:
        return sorted(one.key for one in page.includes)

    def test_reverse_wildcards(self, page_of: Callable[..., Page]) -> None:
        found = page_of("Patient", ("_id", "p"), ("_revinclude", "Observation:*"), ("_revinclude", "Group:*"))

        assert self._keys(found) == ["Group/g", "Observation/ob1"]

    def test_iteration_in_both_directions(self, page_of: Callable[..., Page]) -> None:
        found = page_of(
            "Patient",
            ("_id", "p"),
            ("_revinclude", "Observation:patient"),
            ("_revinclude:iterate", "Provenance:target"),
            ("_include:iterate", "Provenance:agent"),
        )

        assert self._keys(found) == ["Observation/ob1", "Organization/o", "Provenance/pr"]

    def test_canonical_references_lead_by_url(self, page_of: Callable[..., Page], repo: Repository) -> None:
        repo.create({"resourceType": "Questionnaire", "url": "http://q", "status": "active"}, id="qu")
        answer = {"resourceType": "QuestionnaireResponse", "status": "completed", "questionnaire": "http://q|1"}
        repo.create(answer, id="qr")

        include = page_of("QuestionnaireResponse", ("_include", "QuestionnaireResponse:questionnaire"))
        chained = page_of("QuestionnaireResponse", ("questionnaire.url", "http://q"))
        reverse = page_of("Questionnaire", ("_has:QuestionnaireResponse:questionnaire:status", "completed"))

        assert self._keys(include) == ["Questionnaire/qu"]
        assert [one.id for one in chained.matches] == ["qr"]
        assert [one.id for one in reverse.matches] == ["qu"]


class TestParameterTypes:
    """FHIR R4 search 3.1.1.4: what the other tests of parameter types leave out."""

    def test_quantities_are_compared_in_any_unit(self, repo: Repository, find: Find) -> None:
        for name, value, unit in (("a", 185, "[lb_av]"), ("b", 80, "kg"), ("c", 80, "nonsense"), ("d", 80_000, "g")):
            quantity = {"value": value, "unit": "shown", "system": UCUM, "code": unit}
            least = {"resourceType": "Observation", "status": "final", "code": {"coding": [{"code": "w"}]}}
            repo.create({**least, "valueQuantity": quantity}, id=name)

        assert find("Observation", ("value-quantity", f"80|{UCUM}|kg")) == ["d", "b"]
        assert find("Observation", ("value-quantity", f"gt83.5|{UCUM}|kg")) == ["a"]
        assert find("Observation", ("value-quantity", f"lt84000|{UCUM}|g")) == ["d", "b", "a"]
        assert find("Observation", ("value-quantity", f"ap83|{UCUM}|kg")) == ["d", "b", "a"]
        assert find("Observation", ("value-quantity", f"80|{UCUM}|nonsense")) == ["c"]
        assert find("Observation", ("value-quantity", f"80|{UCUM}|m")) == []
        assert find("Observation", ("value-quantity", "80")) == ["c", "b"]
        assert find("Observation", ("value-quantity", "80||kg")) == ["b"]
        assert find("Observation", ("value-quantity", "80||shown")) == ["c", "b"]
        assert find("Observation", ("code-value-quantity", f"w$gt0.083|{UCUM}|t")) == ["a"]

    def test_near(self, repo: Repository, find: Find) -> None:
        for name, latitude, longitude in (("berlin", 52.52, 13.405), ("potsdam", 52.39, 13.06), ("paris", 48.86, 2.35)):
            position = {"latitude": latitude, "longitude": longitude}
            repo.create({"resourceType": "Location", "position": position}, id=name)

        assert find("Location", ("near", "52.5|13.4|10|km")) == ["berlin"]
        assert find("Location", ("near", "52.5|13.4")) == ["potsdam", "berlin"]
        assert find("Location", ("near", "52.5|13.4|600|[mi_us]")) == ["paris", "potsdam", "berlin"]
        for wrong in ("52.5", "91|0", "0|181", "a|b", "1|1|1|parsec", "1|1|999999|km"):
            with pytest.raises(AppError):
                parse("Location", [("near", wrong)])

    def test_identifiers_by_type(self, repo: Repository, find: Find) -> None:
        system = "http://terminology.hl7.org/CodeSystem/v2-0203"
        coding = {"coding": [{"system": system, "code": "MR"}]}
        repo.create({"resourceType": "Patient", "identifier": [{"type": coding, "value": "1"}]}, id="mr")
        repo.create({"resourceType": "Patient", "identifier": [{"value": "1"}]}, id="bare")

        assert find("Patient", ("identifier:of-type", f"{system}|MR|1")) == ["mr"]
        assert find("Patient", ("identifier:of-type", f"{system}|SS|1")) == []
        for wrong in ("MR|1", f"{system}||1", f"{system}|MR|"):
            with pytest.raises(AppError):
                parse("Patient", [("identifier:of-type", wrong)])

    def test_uris_above_and_below(self, repo: Repository, find: Find) -> None:
        for name, url in (("a", "http://x.org/fhir"), ("b", "http://x.org/fhir/vs/1"), ("c", "http://x.org/fhirs")):
            repo.create({"resourceType": "ValueSet", "url": url, "status": "draft"}, id=name)

        assert find("ValueSet", ("url:below", "http://x.org/fhir")) == ["b", "a"]
        assert find("ValueSet", ("url:above", "http://x.org/fhir/vs/1/2")) == ["b", "a"]
        assert find("ValueSet", ("url", "http://x.org/fhir")) == ["a"]

    def test_versions_of_references_and_canonicals(self, repo: Repository, find: Find) -> None:
        repo.create(_study("v", subject=_to("Patient/p/_history/2")), id="v")
        for name, version in (("m1", "|1"), ("m15", "|1.5"), ("m2", "|2"), ("m", "")):
            canonical = {"resourceType": "MeasureReport", "status": "complete", "measure": f"http://m{version}"}
            repo.create(canonical, id=name)

        assert find("ImagingStudy", ("patient", "Patient/p/_history/2")) == ["v"]
        assert find("ImagingStudy", ("patient", "Patient/p/_history/3")) == []
        assert find("ImagingStudy", ("patient", "Patient/p")) == ["v", "s1"]
        assert find("MeasureReport", ("measure", "http://m")) == ["m", "m2", "m15", "m1"]
        assert find("MeasureReport", ("measure", "http://m|1")) == ["m1"]
        assert find("MeasureReport", ("measure:below", "http://m|1")) == ["m15", "m1"]
        assert find("MeasureReport", ("measure:above", "http://m|1.5")) == ["m15", "m1"]

    def test_names_that_sound_alike(self, repo: Repository, find: Find) -> None:
        # Source: the Soundex rules of the US National Archives; Robert and Rupert are R163, Rubin is R150
        for family in ("Robert", "Rupert", "Rubin", "Ashcraft"):
            repo.create({"resourceType": "Patient", "name": [{"family": family}]}, id=family)

        assert find("Patient", ("phonetic", "rupert")) == ["Rupert", "Robert"]
        assert find("Patient", ("phonetic", "Ashcroft")) == ["Ashcraft"]
        assert find("Patient", ("phonetic", "1")) == []


def test_only_what_may_be_seen_decides(find: Find) -> None:
    men = (Clause("gender", "token", "", (Token(None, "male"),)),)
    to = Restriction({"ImagingStudy": Rule(read=ALLOW), "Patient": Rule(read=men), "Observation": Rule(read=ALLOW)})

    assert find("ImagingStudy", ("patient.birthdate", "ge1900"), to=to) == ["s1"]
    assert find("Patient", ("_has:Observation:patient:code", "kvp,ma"), to=to) == ["p"]
    assert find("Observation", ("patient._has:ImagingStudy:patient:status", "available"), to=to) == ["ob1"]
    for name in ("patient.organization.name", "_has:Provenance:target:agent:Organization.name"):
        with pytest.raises(AppError) as raised:
            find("ImagingStudy", (name, "x"), to=to)
        assert raised.value.category is Category.FORBIDDEN


@pytest.fixture(scope="class")
def filled(shared: Repository) -> Iterator[Repository]:
    """The repository with many resources more."""
    documents = []
    for number in range(300):
        position = {"latitude": number % 90, "longitude": number % 180}
        quantity = {"value": number, "unit": "x", "system": UCUM, "code": "kV"}
        coding = {"coding": [{"system": "http://t", "code": "MR"}]}
        inside = [{"resourceType": "Patient", "id": "c", "name": [{"family": f"Inner{number}"}]}]
        rows = (
            {"resourceType": "Location", "position": position},
            {"resourceType": "Observation", "valueQuantity": quantity, "subject": _to(f"Patient/{number}")},
            {"resourceType": "Patient", "identifier": [{"type": coding, "value": str(number)}]},
            {"resourceType": "ValueSet", "url": f"http://x.org/{number}/a"},
            {"resourceType": "Basic", **({"contained": inside} if number % 50 == 0 else {})},
        )
        documents += [shared._writer.document(f"{one['resourceType']}/n{number}", one, "POST") for one in rows]
    shared._resources.insert_many(documents)
    yield shared
    shared._resources.delete_many({"_id": {"$in": [each["_id"] for each in documents]}})


class TestIndexesBehindWhatIsAskedInOtherWays:
    """Every kind of row that the plain parameters do not have, and filters of chains, are read by an index."""

    @pytest.mark.parametrize(
        ("kind", "params", "index"),
        [
            ("Location", [("near", "52.5|13.4|10|km")], "near"),
            ("Observation", [("value-quantity", f"gt298500|{UCUM}|V")], "quantity"),
            ("Patient", [("identifier:of-type", "http://t|MR|7")], "token"),
            ("ValueSet", [("url:below", "http://x.org/7")], "uri"),
            ("ValueSet", [("url:above", "http://x.org/7/a/b")], "uri"),
            ("Patient", [("family", "inner50"), ("_contained", "true")], "inside"),
            ("Observation", [("patient.identifier", "7")], "reference"),
            ("Patient", [("_has:Observation:patient:value-quantity", f"7|{UCUM}|kV")], "_id_"),
            ("", [("_type", "Patient,Observation"), ("_lastUpdated", "gt2030")], "updated"),
        ],
    )
    def test_its_index_is_used(self, filled: Repository, kind: str, params: Any, index: str) -> None:
        query = parse(kind, params)
        now = datetime(2027, 1, 1, tzinfo=UTC)
        asked = _Search(filled._resources, query, UNRESTRICTED, now, FEW, rows)

        plan = filled._resources.find(asked._condition).sort(list(NEWEST_FIRST)).limit(51).explain()

        assert _indexes(plan["queryPlanner"]["winningPlan"]) == {index}

    def test_a_compartment_is_read_by_its_index(self, filled: Repository) -> None:
        query = parse("Observation", [], compartment="Patient/7")
        asked = _Search(filled._resources, query, UNRESTRICTED, datetime(2027, 1, 1, tzinfo=UTC), FEW, rows)

        plan = filled._resources.find(asked._condition).sort(list(NEWEST_FIRST)).limit(51).explain()

        assert _indexes(plan["queryPlanner"]["winningPlan"]) == {"compartment"}


def _indexes(plan: Any) -> set[str]:
    if isinstance(plan, list):
        return set().union(*map(_indexes, plan)) if plan else set()
    if not isinstance(plan, dict):
        return set()
    own = {str(plan["indexName"])} if "indexName" in plan else set()
    return own.union(*map(_indexes, plan.values()))
