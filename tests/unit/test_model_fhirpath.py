from typing import Any

import fhirpathpy
import pytest
from fhirpathpy.models import models

from fhir_server.model.definitions import elements, parameters, resource_types
from fhir_server.model.fhirpath import compile, is_single, leaf_types, reference_type

INTERPRETED = {("Patient", "deceased"), ("QuestionnaireResponse", "item-subject")}  # beyond the translated subset


def test_every_official_search_expression_is_understood() -> None:
    unknown = {
        (kind, code)
        for kind in resource_types()
        for code, parameter in parameters(kind).items()
        if not leaf_types(parameter.expression, kind)
    }

    assert unknown == INTERPRETED


def test_every_resource_type_of_r4_is_there() -> None:
    assert len(resource_types()) == 146  # 148 of the R4 list, less the abstract Resource and DomainResource
    assert all(elements(kind) for kind in resource_types())


OBSERVATION: dict[str, Any] = {
    "resourceType": "Observation",
    "id": "o",
    "status": "final",
    "subject": {"reference": "Patient/1"},
    "code": {"coding": [{"system": "http://loinc.org", "code": "1"}]},
    "valueQuantity": {"value": 120, "unit": "kV"},
    "effectivePeriod": {"start": "2024-01-01"},
    "component": [
        {"code": {"text": "a"}, "valueQuantity": {"value": 1}},
        {"code": {"text": "b"}, "valueString": "x"},
    ],
}
PATIENT: dict[str, Any] = {
    "resourceType": "Patient",
    "telecom": [{"system": "phone", "value": "1"}, {"system": "email", "value": "a@b"}],
    "name": [{"given": ["A", "B"]}, {"given": ["C"]}],
    "deceasedDateTime": "2020",
}


@pytest.mark.parametrize(
    ("resource", "expression"),
    [
        (OBSERVATION, "(Observation.value as Quantity) | (Observation.value as SampledData)"),
        (OBSERVATION, "Observation.subject"),
        (OBSERVATION, "Observation.effective"),
        (OBSERVATION, "Observation.component.value.ofType(Quantity)"),
        (PATIENT, "Patient.telecom.where(system='email')"),
        (PATIENT, "Patient.name.given"),
        (PATIENT, "(Patient.deceased as dateTime)"),
        (PATIENT, "Patient.deceased.exists() and Patient.deceased != false"),
    ],
)
def test_the_values_are_those_of_a_fhirpath_engine(resource: dict[str, Any], expression: str) -> None:
    expected = fhirpathpy.evaluate(resource, expression, {}, models["r4"])

    found = compile(expression, resource["resourceType"])(resource)

    assert [value for _, value in found] == expected


def test_the_data_type_comes_with_the_value() -> None:
    found = compile("Observation.value", "Observation")(OBSERVATION)

    assert found == [("Quantity", {"value": 120, "unit": "kV"})]


def test_resolve_is_answered_by_the_reference_itself() -> None:
    select = compile("Observation.subject.where(resolve() is Patient)", "Observation")

    assert select({"subject": {"reference": "Patient/1"}}) == [("Reference", {"reference": "Patient/1"})]
    assert select({"subject": {"reference": "Group/1"}}) == []


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ({"reference": "Patient/1"}, "Patient"),
        ({"reference": "http://a.b/fhir/Patient/1/_history/2"}, "Patient"),
        ({"reference": "urn:uuid:1", "type": "Device"}, "Device"),
        ({"identifier": {"value": "1"}}, ""),
        ("text", ""),
    ],
)
def test_the_type_of_a_reference_is_read_from_it(reference: Any, expected: str) -> None:
    assert reference_type(reference) == expected


def test_a_value_on_an_extension_is_selected_by_its_address() -> None:
    url = "http://hl7.org/fhir/StructureDefinition/patient-extensions-Patient-mothersMaidenName"
    patient = {"extension": [{"url": "x", "valueString": "no"}, {"url": url, "valueString": "yes"}]}

    assert compile(f"Patient.extension('{url}')", "Patient")(patient) == [("string", "yes")]


def test_only_a_path_without_lists_and_unions_is_single() -> None:
    assert is_single("ImagingStudy.started", "ImagingStudy")
    assert not is_single("ImagingStudy.series.uid", "ImagingStudy")
    assert not is_single("Bundle.type | Bundle.timestamp", "Bundle")
