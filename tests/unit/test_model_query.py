from typing import Any

import pytest

from fhir_server.model.criteria import (
    Composite,
    Date,
    Limits,
    Missing,
    Number,
    Quantity,
    Reference,
    Text,
    Token,
    clause,
)
from fhir_server.model.dates import interval
from fhir_server.model.query import Include, SortKey, parse
from imaging.errors import AppError, Category


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("CT", Token(None, "CT")),
        ("http://s|CT", Token("http://s", "CT")),
        ("|CT", Token("", "CT")),
        ("http://s|", Token("http://s", None)),
        (r"a\|b", Token(None, "a|b")),
        (r"s\,t|a\\b", Token("s,t", r"a\b")),
        (r"a\$b", Token(None, "a$b")),
        ("a\\", Token(None, "a\\")),
    ],
)
def test_token_forms(value: str, expected: Token) -> None:
    assert clause("ImagingStudy", "modality", value).values == (expected,)


def test_commas_are_or_unless_escaped() -> None:
    found = clause("ImagingStudy", "modality", r"CT,M\,R,US")

    assert found.values == (Token(None, "CT"), Token(None, "M,R"), Token(None, "US"))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("subject", "Patient/1", ("Patient/1",)),
        ("subject", "http://here/fhir/Patient/1", ("Patient/1",)),
        ("subject", "http://there/fhir/Patient/1", ("http://there/fhir/Patient/1",)),
        ("subject", "Patient/1/_history/3", ("Patient/1/_history/3",)),
        ("subject", "1", ("Group/1", "Device/1", "Patient/1")),
        ("subject:Patient", "1", ("Patient/1",)),
        ("subject:Patient", "Patient/1", ("Patient/1",)),
        (
            "subject",
            "urn:uuid:c757873d-ec9a-4326-a141-556f43239520",
            ("urn:uuid:c757873d-ec9a-4326-a141-556f43239520",),
        ),
    ],
)
def test_reference_forms(name: str, value: str, expected: tuple[str, ...]) -> None:
    found = clause("ImagingStudy", name, value, base_url="http://here/fhir")

    assert found.values == (Reference(expected),)


@pytest.mark.parametrize("prefix", ["", "eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap"])
def test_date_prefixes(prefix: str) -> None:
    found = clause("ImagingStudy", "started", f"{prefix}2012-03")

    assert found.values == (Date(prefix or "eq", interval("2012-03")),)


def test_a_plus_that_arrives_as_a_space_is_a_plus() -> None:
    found = clause("ImagingStudy", "started", "2012-03-01T10:00:00 01:00")

    assert found.values == (Date("eq", interval("2012-03-01T09:00:00Z")),)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("100", 99.5, 100.5), ("100.00", 99.995, 100.005), ("1e2", 50.0, 150.0), ("-2.5", -2.55, -2.45)],
)
def test_a_number_stands_for_the_interval_of_its_precision(text: str, low: float, high: float) -> None:
    # Source: FHIR R4 search 3.1.1.4.6
    found = clause("RiskAssessment", "probability", text)

    assert found.values == (Number("eq", float(text), low, high),)


def test_quantity_forms() -> None:
    number = Number("ge", 5.4, 5.35, 5.45)

    assert clause("Observation", "value-quantity", "ge5.4").values == (Quantity(number, None, None),)
    assert clause("Observation", "value-quantity", "ge5.4|http://u|mg").values == (Quantity(number, "http://u", "mg"),)
    assert clause("Observation", "value-quantity", "ge5.4||mg").values == (Quantity(number, None, "mg"),)


def test_a_composite_has_one_value_per_component() -> None:
    found = clause("Observation", "component-code-value-quantity", "http://s|c$gt5||kV")

    expected = Composite((Token("http://s", "c"), Quantity(Number("gt", 5.0, 4.5, 5.5), None, "kV")))
    assert found.values == (expected,)


def test_modifiers_change_the_kind_of_value() -> None:
    assert clause("ImagingStudy", "endpoint:missing", "true").values == (Missing(True),)
    assert clause("ImagingStudy", "modality:text", "head").values == (Text("head"),)
    assert clause("ImagingStudy", "subject:identifier", "s|1").values == (Token("s", "1"),)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nonsense", "1"),
        ("modality:exact", "CT"),
        ("status:exact", "available"),
        ("started:below", "2012"),
        ("subject:Endpoint", "1"),
        ("patient.nonsense", "x"),
        ("started.name", "x"),
        ("patient:Group.name", "x"),
        ("_has:Observation", "x"),
        ("_has:Observation:code:status", "x"),
        ("_has:Nonsense:patient:status", "x"),
        ("_has:Encounter:patient:status", "x"),
        ("_list", "$current-problems"),
        ("_type", "Patient"),
        ("modality", "a|b|c"),
        ("modality", "|"),
        ("modality", "CT,"),
        ("modality", ""),
        ("started", "yesterday"),
        ("subject", "not an id"),
        ("_id", "a/b"),
        ("_id:not", "a"),
        ("endpoint:missing", "perhaps"),
        ("_lastUpdated:missing", "true"),
        ("$where", "1"),
        ("modality", "x" * 1025),
        ("modality", ",".join(["x"] * 201)),
    ],
)
def test_what_is_not_understood_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(AppError) as raised:
        parse("ImagingStudy", [(name, value)])

    assert raised.value.category is Category.INVALID
    assert raised.value.where is not None
    assert raised.value.where.startswith(name.partition(":")[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_count", "-1"),
        ("_count", "x"),
        ("_count", "٣"),
        ("_sort", "nonsense"),
        ("_sort", "_id,_lastUpdated,started,_id,modality,status"),
        ("_total", "some"),
        ("_summary", "most"),
        ("_elements", "nonsense"),
        ("_include", "ImagingStudy"),
        ("_include", "ImagingStudy:started"),
        ("_include", "Patient:link"),
        ("_include:all", "ImagingStudy:patient"),
        ("_revinclude", "*"),
        ("_contained", "perhaps"),
        ("_containedType", "perhaps"),
        ("_revinclude", "Nonsense:subject"),
        ("_text", "x"),
        ("_content", "x"),
        ("_filter", "x eq 1"),
        ("_cursor", ""),
    ],
)
def test_result_parameters_are_checked(name: str, value: str) -> None:
    with pytest.raises(AppError) as raised:
        parse("ImagingStudy", [(name, value)])

    assert raised.value.category is Category.INVALID


def test_a_result_parameter_is_given_once() -> None:
    with pytest.raises(AppError, match="more than once"):
        parse("ImagingStudy", [("_count", "1"), ("_count", "2")])


def test_too_many_parameters_are_refused() -> None:
    with pytest.raises(AppError, match="at most 100"):
        parse("ImagingStudy", [("modality", "CT")] * 101)


def test_the_parts_of_a_search() -> None:
    query = parse(
        "ImagingStudy",
        [
            ("_sort", "-started,_id"),
            ("_count", "7"),
            ("_include", "ImagingStudy:patient:Patient"),
            ("_include:iterate", "Patient:organization"),
            ("_revinclude", "Observation:subject"),
            ("_total", "accurate"),
            ("_elements", "id,started"),
            ("_format", "json"),
        ],
    )

    assert query.sort == (SortKey("started", True), SortKey("_id", False, "token"))
    assert (query.count, query.total, query.elements) == (7, "accurate", ("id", "started"))
    assert query.include == (
        Include("ImagingStudy", "patient", "Patient", False),
        Include("Patient", "organization", "", True),
    )
    assert query.revinclude == (Include("Observation", "subject", "", False),)


def test_a_page_is_never_larger_than_the_limit() -> None:
    assert parse("Patient", [("_count", "999999")], limits=Limits(count=200)).count == 200


def test_lenient_handling_collects_what_it_leaves_out() -> None:
    params = [("modality", "CT"), ("nonsense", "1"), ("_sort", "nonsense")]

    query = parse("ImagingStudy", params, lenient=True)

    assert query.ignored == ("nonsense", "_sort")
    assert query.used == (("modality", "CT"),)


def test_lenient_handling_never_drops_the_cursor() -> None:
    with pytest.raises(AppError):
        parse("ImagingStudy", [("_cursor", "")], lenient=True)


def test_each_repeated_parameter_is_its_own_clause() -> None:
    query = parse("ImagingStudy", [("started", "ge2012"), ("started", "lt2013")])

    assert [value.prefix for one in query.clauses for value in one.values if isinstance(value, Date)] == ["ge", "lt"]


def test_the_fingerprint_is_that_of_the_criteria() -> None:
    def fingerprint(*params: tuple[str, str]) -> Any:
        return parse("ImagingStudy", params).fingerprint

    assert fingerprint(("modality", "CT")) == fingerprint(("modality", "CT"), ("_count", "3"))
    assert fingerprint(("modality", "CT")) != fingerprint(("modality", "MR"))
    assert fingerprint(("modality", "CT")) != fingerprint(("modality", "CT"), ("_sort", "_id"))
