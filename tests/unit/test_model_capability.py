from datetime import UTC, datetime
from typing import Any

import pytest

from fhir_server.model.capability import capability_statement
from fhir_server.model.criteria import MODIFIERS, clause
from fhir_server.model.definitions import parameters, resource_types
from fhir_server.model.outcome import ISSUE_CODES, InvalidResource, Issue, outcome
from fhir_server.model.query import is_scalar_date, parse
from fhir_server.model.resources import RESOURCES
from fhir_server.model.summary import SUBSETTED, subset
from fhir_server.model.validation import validate
from imaging.errors import AppError, Category


@pytest.fixture(scope="module")
def statement() -> dict[str, Any]:
    date = datetime(2026, 1, 1, tzinfo=UTC)
    return capability_statement(RESOURCES.values(), base_url="http://here/fhir", version="1.0", date=date)


def test_the_statement_is_a_valid_resource(statement: dict[str, Any]) -> None:
    validate(statement, "CapabilityStatement")

    assert statement["fhirVersion"] == "4.0.1"


def test_every_search_parameter_it_names_is_understood(statement: dict[str, Any]) -> None:
    values = {
        "date": "2024",
        "number": "1",
        "quantity": "1",
        "reference": "urn:uuid:1",
        "composite": "",
        "special": "52.5|13.4",
    }
    for row in statement["rest"][0]["resource"]:
        for parameter in row.get("searchParam", ()):
            parts = parameters(row["type"])[parameter["name"]].component_types
            value = "$".join(values.get(part, "x") for part in parts) or values.get(parameter["type"], "x")
            assert clause(row["type"], parameter["name"], value)


def test_every_include_it_names_is_understood(statement: dict[str, Any]) -> None:
    for row in statement["rest"][0]["resource"]:
        for value in row.get("searchInclude", ()):
            assert parse(row["type"], [("_include", value)]).include
        for value in row.get("searchRevInclude", ()):
            assert parse(row["type"], [("_revinclude", value)]).revinclude


def test_every_parameter_type_has_its_modifiers() -> None:
    types = {parameter.type for kind in resource_types() for parameter in parameters(kind).values()}

    assert types <= MODIFIERS.keys()


def test_sorts_of_the_table_are_dates_that_occur_once() -> None:
    assert all(is_scalar_date(row.name, code) for row in RESOURCES.values() for code in row.sorts)


def test_every_category_has_an_issue_code() -> None:
    assert set(ISSUE_CODES) == set(Category)


def test_an_error_becomes_an_operation_outcome() -> None:
    made = outcome(AppError(Category.NOT_FOUND, "Patient/1 is not known", where="Patient/1"))

    validate(made, "OperationOutcome")
    assert made["issue"][0]["code"] == "not-found"


def test_every_finding_becomes_an_issue_with_its_element() -> None:
    findings = tuple(Issue("structure", "is empty", f"Patient.name[{number}]") for number in range(5))

    made = outcome(InvalidResource(findings, where="Patient"))

    validate(made, "OperationOutcome")
    assert [issue["expression"] for issue in made["issue"]] == [[f"Patient.name[{number}]"] for number in range(5)]


STUDY: dict[str, Any] = {
    "resourceType": "ImagingStudy",
    "id": "s",
    "meta": {"versionId": "1"},
    "text": {"status": "generated", "div": "<div/>"},
    "status": "available",
    "subject": {"reference": "Patient/1"},
    "numberOfSeries": 1,
    "procedureCode": [{"text": "x"}],
    "language": "de",
    "series": [{"uid": "1.2", "modality": {"code": "CT"}, "performer": [{"actor": {"display": "x"}}], "instance": []}],
}


def test_a_summary_has_the_elements_that_the_definitions_mark() -> None:
    # Source: StructureDefinition ImagingStudy 4.0.1: language, text and series.instance carry no summary mark
    part = subset(STUDY, summary="true")

    assert list(part) == [
        "resourceType",
        "id",
        "meta",
        "status",
        "subject",
        "numberOfSeries",
        "procedureCode",
        "series",
    ]
    assert part["series"] == [{"uid": "1.2", "modality": {"code": "CT"}, "performer": [{"actor": {"display": "x"}}]}]


def test_a_part_is_tagged() -> None:
    part = subset(STUDY, names=("numberOfSeries",))

    assert part["meta"] == {"versionId": "1", "tag": [SUBSETTED]}
    assert list(part) == ["resourceType", "id", "meta", "status", "subject", "numberOfSeries"]


def test_text_and_data_divide_a_resource() -> None:
    assert "text" not in subset(STUDY, summary="data")
    kept = ["resourceType", "id", "meta", "text", "status", "subject", "language"]
    assert list(subset(STUDY, summary="text")) == kept
