"""Laws of searching: what the database finds is what the specification's sentences say, whatever the values."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo.database import Database

from fhir_server.model.criteria import clause, split, unescape
from fhir_server.model.dates import Interval, interval
from fhir_server.model.query import parse
from fhir_server.store import cursor, filters
from fhir_server.store.filters import UNRESTRICTED, Restriction, Rule
from fhir_server.store.index import rows
from fhir_server.store.repository import Repository
from fhir_server.store.schema import ensure_schema
from fhir_server.store.search import search
from imaging.errors import AppError, Category
from tests.support.filters import compile_query

Json = dict[str, Any]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ON_DATABASE = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Few values, so that equal ones, neighbours and containments are common.
DATES = st.sampled_from(
    [
        *("2019", "2020", "2021", "2020-01", "2020-02", "2020-12", "2020-02-01", "2020-02-29", "2019-12-31"),
        *("2020-12-31T23:59:59Z", "2020-02-01T00:00:00Z", "2020-02-01T00:00:00.5Z", "2020-02-29T12:00Z"),
        "2020-01-31T23:30:00-01:00",
    ]
)
# Source: FHIR R4 search 3.1.1.4.5, each sentence as an inequality of half-open intervals (value of resource, of search)
SENTENCES: dict[str, Callable[[Interval, Interval], bool]] = {
    "eq": lambda value, search: search.low <= value.low and value.high <= search.high,
    "ne": lambda value, search: not (search.low <= value.low and value.high <= search.high),
    "gt": lambda value, search: value.high > search.high,
    "lt": lambda value, search: value.low < search.low,
    "ge": lambda value, search: value.high > search.high or (search.low <= value.low and value.high <= search.high),
    "le": lambda value, search: value.low < search.low or (search.low <= value.low and value.high <= search.high),
    "sa": lambda value, search: value.low >= search.high,
    "eb": lambda value, search: value.high <= search.low,
}


@pytest.fixture
def repo(db: Database[Json]) -> Repository:
    ensure_schema(db)
    return Repository(db, UNRESTRICTED, clock=lambda: NOW)


@pytest.fixture
def matches(db: Database[Json]) -> Callable[[Json, str, str], bool]:
    """Say whether the database finds a resource by one criterion."""

    def matches(resource: Json, name: str, value: str) -> bool:
        kind = resource["resourceType"]
        condition = filters.compile_clause(kind, clause(kind, name, value), NOW)
        document = {"_id": "x", "type": kind, **rows(resource)}
        found = db.aggregate([{"$documents": [{"$literal": document}]}, {"$match": condition}])
        return next(iter(found), None) is not None

    return matches


@ON_DATABASE
@given(value=DATES, search=DATES, prefix=st.sampled_from(sorted(SENTENCES)))
def test_a_date_is_compared_as_the_specification_says(matches: Any, value: str, search: str, prefix: str) -> None:
    expected = SENTENCES[prefix](interval(value), interval(search))
    study = {"resourceType": "ImagingStudy", "started": value}  # a scalar with an index of its own
    encounter = {"resourceType": "Patient", "deceasedDateTime": value}  # a row

    assert matches(study, "started", prefix + search) == expected
    assert matches(encounter, "death-date", prefix + search) == expected


@pytest.mark.parametrize("prefix", [*SENTENCES, "ap"])
@pytest.mark.parametrize("search", ["0001", "0001-01-01T00:00:00Z", "9999", "9999-12-31T23:59:59Z"])
def test_the_ends_of_the_calendar_can_be_asked(matches: Any, search: str, prefix: str) -> None:
    found = matches({"resourceType": "ImagingStudy", "started": "2020"}, "started", prefix + search)

    assert found is (prefix in {"ne", *(("gt", "ge", "sa") if search < "2020" else ("lt", "le", "eb"))})


@ON_DATABASE
@given(start=DATES, end=DATES, search=DATES, prefix=st.sampled_from(sorted(SENTENCES)))
def test_a_period_is_compared_as_a_whole(matches: Any, start: str, end: str, search: str, prefix: str) -> None:
    start, end = sorted((start, end), key=lambda text: interval(text).low)
    value = Interval(interval(start).low, interval(end).high)

    found = matches({"resourceType": "Encounter", "period": {"start": start, "end": end}}, "date", prefix + search)

    assert found == SENTENCES[prefix](value, interval(search))


@pytest.mark.parametrize(("period", "value"), [({"start": "2020"}, "gt2500"), ({"end": "2020"}, "lt1500")])
def test_a_period_that_is_open_reaches_on(matches: Any, period: Json, value: str) -> None:
    assert matches({"resourceType": "Encounter", "period": period}, "date", value)


NUMBERS = st.sampled_from(["-1", "0", "0.5", "1", "1.0", "1.4", "1.5", "1.50", "2", "10", "95", "100", "1e2"])


@ON_DATABASE
@given(
    low=NUMBERS, high=NUMBERS, search=NUMBERS, prefix=st.sampled_from(["eq", "ne", "gt", "lt", "ge", "le", "sa", "eb"])
)
def test_a_range_is_compared_as_the_specification_says(
    matches: Any, low: str, high: str, search: str, prefix: str
) -> None:
    first, last = sorted((float(low), float(high)))
    exact, half = float(search), _half_of_last_digit(search)
    is_equal = exact - half <= first and last < exact + half
    expected = {
        "eq": is_equal,
        "ne": not is_equal,
        "gt": last > exact,
        "lt": first < exact,
        "ge": last >= exact,
        "le": first <= exact,
        "sa": first > exact,
        "eb": last < exact,
    }
    prediction = {"probabilityRange": {"low": {"value": first}, "high": {"value": last}}}
    risk = {"resourceType": "RiskAssessment", "prediction": [prediction]}
    observation = {"resourceType": "Observation", "valueQuantity": {"value": first, "code": "kV"}}

    assert matches(risk, "probability", prefix + search) == expected[prefix]
    if first == last:
        assert matches(observation, "value-quantity", f"{prefix}{search}||kV") == expected[prefix]


def _half_of_last_digit(text: str) -> float:
    if text == "1e2":
        return 50.0
    return 0.5 * 10.0 ** -len(text.partition(".")[2])


TEXTS = st.text(alphabet="aÄß|,$\\ .*^\u0301", min_size=1, max_size=6).filter(str.strip)


def _escaped(text: str) -> str:
    for sign in ("\\", "|", ",", "$"):
        text = text.replace(sign, f"\\{sign}")
    return text


@given(st.lists(TEXTS, min_size=1))
def test_escaped_values_come_back_as_they_were(values: list[str]) -> None:
    joined = ",".join(_escaped(value) for value in values)

    assert [unescape(part) for part in split(joined, ",")] == values


@ON_DATABASE
@given(value=TEXTS)
def test_a_value_finds_itself(matches: Any, value: str) -> None:
    patient = {
        "resourceType": "Patient",
        "name": [{"family": value}],
        "identifier": [{"system": value, "value": value}],
    }

    assert matches(patient, "family", _escaped(value))
    assert matches(patient, "family:exact", _escaped(value))
    assert matches(patient, "family:contains", _escaped(value))
    assert matches(patient, "identifier", f"{_escaped(value)}|{_escaped(value)}")


CLAUSES = st.sampled_from(
    [
        *(("patient", f"Patient/{number}") for number in range(3)),
        *(("modality", code) for code in ("CT", "MR", "CT,MR")),
        *(("modality:not", code) for code in ("CT", "MR")),
        *(("started", value) for value in ("ge2020", "lt2020", "2020")),
        ("started:missing", "true"),
    ]
)


@pytest.fixture
def studies(repo: Repository) -> Repository:
    for number in range(18):
        repo.create(
            {
                "resourceType": "ImagingStudy",
                "status": "available",
                "subject": {"reference": f"Patient/{number % 3}"},
                "series": [{"uid": "1.2", "modality": {"code": ("CT", "MR")[number % 2]}}],
                **({"started": str(2019 + number % 3)} if number % 4 else {}),
            }
        )
    return repo


@settings(ON_DATABASE, max_examples=60)
@given(mandatory=st.lists(CLAUSES, min_size=1, max_size=2), more=CLAUSES, asked=st.lists(CLAUSES, max_size=3))
def test_a_narrower_restriction_never_sees_more(studies: Repository, mandatory: Any, more: Any, asked: Any) -> None:
    def ids(*clauses: tuple[str, str]) -> set[str]:
        access = tuple(clause("ImagingStudy", *one) for one in clauses)
        opened = studies.opened_for(Restriction({"ImagingStudy": Rule(read=access)}))
        return {one.id for one in opened.search(parse("ImagingStudy", asked)).matches}

    everything = {one.id for one in studies.search(parse("ImagingStudy", asked)).matches}
    inside = {one.id for one in studies.search(parse("ImagingStudy", mandatory)).matches}

    assert ids(*mandatory, more) <= ids(*mandatory) == everything & inside


@given(st.lists(CLAUSES, min_size=1, max_size=3), st.integers(0, 9))
def test_a_filter_that_lost_a_mandatory_clause_is_refused(names: list[tuple[str, str]], position: int) -> None:
    mandatory = tuple(clause("ImagingStudy", *one) for one in names)
    compiled = compile_query(parse("ImagingStudy", [("status", "available")]), mandatory, NOW)
    lost = compiled["$and"][position % (len(mandatory) + 1)]
    compiled["$and"] = [part for part in compiled["$and"] if part != lost]

    with pytest.raises(AppError) as raised:
        filters.check_mandatory(compiled, "ImagingStudy", mandatory, NOW)

    assert raised.value.category is Category.FORBIDDEN


MOMENTS = st.none() | st.integers(0, 10**13).map(
    lambda number: datetime(1970, 1, 1, tzinfo=UTC) + number * timedelta(milliseconds=1)
)


@given(st.tuples(MOMENTS, MOMENTS, st.text(max_size=64)), st.binary(min_size=32, max_size=32))
def test_a_cursor_gives_back_the_place_it_was_made_of(place: tuple[Any, ...], key: bytes) -> None:
    query = parse("ImagingStudy", [("modality", "CT")])

    made = cursor.Place(list(place), place[0])
    assert cursor.verify(query, cursor.sign(query, made, key), key) == made


@given(st.text(max_size=80), st.binary(min_size=32, max_size=32))
def test_a_made_up_cursor_is_refused(text: str, key: bytes) -> None:
    with pytest.raises(AppError) as raised:
        cursor.verify(parse("ImagingStudy", []), text, key)

    assert raised.value.category is Category.INVALID


@given(st.text(max_size=30), st.text(max_size=60), st.sampled_from(["ImagingStudy", "Patient", "Observation"]))
def test_any_parameter_is_understood_or_refused(name: str, value: str, kind: str) -> None:
    _understand(kind, name, value)


NAMES = st.sampled_from(
    [
        *("_id", "_lastUpdated", "_sort", "_include", "_count", "identifier", "patient", "subject:identifier", "date"),
        *("value-quantity", "code-value-quantity", "component-code-value-quantity", "code:text", "value-string:exact"),
    ]
)


@given(NAMES, st.text(alphabet="gelt20-12|,$\\:.TZé'{}+ ", max_size=30))
def test_any_value_is_understood_or_refused(name: str, value: str) -> None:
    _understand("Observation", name, value)


def _understand(kind: str, name: str, value: str) -> None:
    try:
        query = parse(kind, [(name, value)])
    except AppError as error:
        refused = error.category
        assert refused is Category.INVALID
    else:
        compile_query(query, (), NOW)


# Everything that leads to other resources, comes from them or counts them.
ELSEWHERE = st.sampled_from(
    [
        [("patient.gender", "male")],
        [("patient.gender:not", "male")],
        [("patient.gender:missing", "true")],
        [("patient.organization.name", "o1")],
        [("_has:Observation:derived-from:status", "final")],
        [("patient._has:Observation:patient:status:not", "final")],
        [("_filter", "patient.gender eq male or status eq registered")],
        [("_filter", "patient[not (gender eq male)].gender pr true")],
        [("_list", "l")],
        [("_sort", "patient"), ("patient.gender", "male,female")],
        [],
    ]
)
COMING_ALONG = st.lists(
    st.sampled_from(
        [
            ("_include", "ImagingStudy:*"),
            ("_include:iterate", "Patient:organization"),
            ("_revinclude", "Observation:*"),
            ("_revinclude:iterate", "Observation:patient"),
        ]
    ),
    unique=True,
)
# type -> mandatory clauses that may be laid on reading it
REINS = {
    "ImagingStudy": [("patient", "Patient/0,Patient/1"), ("status", "available"), ("started:missing", "false")],
    "Patient": [("gender", "male"), ("_id", "0,1,2"), ("organization", "Organization/o1")],
    "Observation": [("status", "final"), ("patient", "Patient/1")],
    "Organization": [("name", "o1")],
    "List": [("status", "retired")],
}
RESTRICTIONS = st.fixed_dictionaries(
    {kind: st.none() | st.lists(st.sampled_from(clauses), max_size=2, unique=True) for kind, clauses in REINS.items()}
)


def _opened(reins: dict[str, list[tuple[str, str]] | None]) -> Restriction:
    """None: the type may not be read; no clauses: all of it may."""
    access = {
        kind: filters.DENY if clauses is None else tuple(clause(kind, *one) for one in clauses) or filters.ALLOW
        for kind, clauses in reins.items()
    }
    return Restriction({kind: Rule(read=one) for kind, one in access.items()})


@pytest.fixture
def ward(repo: Repository) -> Repository:
    for number in range(2):
        repo.create({"resourceType": "Organization", "name": f"o{number}"}, id=f"o{number}")
    for number in range(4):
        gender = {"gender": ("male", "female")[number % 2]} if number < 3 else {}
        organization = {"managingOrganization": {"reference": f"Organization/o{number // 2}"}}
        repo.create({"resourceType": "Patient", **gender, **organization}, id=str(number))
    for number in range(8):
        study = {"resourceType": "ImagingStudy", "status": ("available", "registered")[number % 3 == 0]}
        study |= {"subject": {"reference": f"Patient/{number % 4}"}, **({"started": "2020"} if number % 2 else {})}
        repo.create(study, id=str(number))
        observation = {"resourceType": "Observation", "status": ("final", "amended")[number % 2]}
        observation |= {"subject": {"reference": f"Patient/{number // 2}"}}
        repo.create({**observation, "derivedFrom": [{"reference": f"ImagingStudy/{number}"}]}, id=str(number))
    entries = [{"item": {"reference": f"ImagingStudy/{number}"}} for number in (1, 2, 5)]
    repo.create({"resourceType": "List", "status": "current", "mode": "working", "entry": entries}, id="l")
    return repo


def _seen(
    repo: Repository, db: Database[Json], asked: Any, to: Restriction, few: int, within: str
) -> tuple[set[str], int]:
    """Keys of matches and what comes along, and the exact number of matches; nothing where a type is forbidden."""
    query = parse("ImagingStudy", [*asked, ("_total", "accurate"), ("_count", "3")], compartment=within)
    keys: set[str] = set()
    try:
        while True:
            page = search(db["resources"], query, to, now=NOW, key=lambda: b"k" * 32, few=few)
            keys |= {one.key for one in (*page.matches, *page.includes)}
            if page.next_cursor is None:
                total = search(db["resources"], replace(query, cursor=None, count=0), to, now=NOW, key=bytes, few=few)
                return keys, total.total or 0
            query = replace(query, cursor=page.next_cursor)
    except AppError as error:
        if error.category is not Category.FORBIDDEN:
            raise
        return set(), 0


@settings(ON_DATABASE, max_examples=120)
@given(
    wide=RESTRICTIONS,
    more=RESTRICTIONS,
    asked=ELSEWHERE,
    along=COMING_ALONG,
    few=st.sampled_from([0, 1000]),
    within=st.sampled_from(["", "Patient/1"]),
)
def test_a_narrower_restriction_never_sees_more_along_any_path(
    ward: Repository, db: Database[Json], wide: Any, more: Any, asked: Any, along: Any, few: int, within: str
) -> None:
    narrow = {
        kind: None if clauses is None or more[kind] is None else [*dict.fromkeys([*clauses, *more[kind]])]
        for kind, clauses in wide.items()
    }

    less, fewer = _seen(ward, db, [*asked, *along], _opened(narrow), few, within)
    seen, total = _seen(ward, db, [*asked, *along], _opened(wide), few, within)

    assert less <= seen
    assert fewer <= total
    for kind, clauses in wide.items():
        own = {key for key in seen if key.startswith(f"{kind}/")}
        allowed = {one.key for one in ward.search(parse(kind, [*(clauses or ()), ("_count", "100")])).matches}
        assert own <= (set() if clauses is None else allowed)


TICKS = count()  # time goes on from one example to the next, which share a database


@settings(ON_DATABASE, max_examples=25)
@given(
    sort=st.sampled_from(
        ["_lastUpdated", "-_lastUpdated", "gender", "-family,_lastUpdated", "birthdate", "-birthdate"]
    ),
    size=st.integers(1, 4),
    changes=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["", "male", "female"])), min_size=3, max_size=12),
)
def test_pages_in_any_order_lose_and_repeat_nothing_while_others_write(
    repo: Repository, db: Database[Json], sort: str, size: int, changes: list[tuple[int, str]]
) -> None:
    repo = Repository(db, UNRESTRICTED, clock=lambda: NOW + timedelta(milliseconds=next(TICKS)))

    def patient(number: int, gender: str) -> Json:
        family = [{"family": "AbCd"[number % 4]}]
        person = {"resourceType": "Patient", "birthDate": str(1970 + number % 3), "name": family}
        return {**person, "gender": gender} if gender else person

    ids = [repo.create(patient(number, ("", "male")[number % 2])).id for number in range(10)]
    waiting, seen, token = iter(changes), list[str](), list[tuple[str, str]]()
    while True:
        page = repo.search(parse("Patient", [("_id", ",".join(ids)), ("_sort", sort), ("_count", str(size)), *token]))
        seen += [one.id for one in page.matches]
        if page.next_cursor is None:
            break
        token = [("_cursor", page.next_cursor)]
        for number, gender in [next(waiting, (0, "male")) for _ in range(2)]:
            repo.update({**patient(number + len(seen), gender), "id": ids[number]})

    assert sorted(seen) == sorted(ids)
