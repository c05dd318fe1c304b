"""The second reader of `$validate`: other models, whose objections are warnings without values."""

import pytest
from fhir.resources.R4B import get_fhir_model_class

from fhir_server.model import definitions
from fhir_server.model.second_reader import MOST_BYTES, SAME_IN_R4B, objections

PATIENT = {"resourceType": "Patient", "birthDate": "2020-13-45", "name": [{"text": 3}]}


def test_an_objection_names_the_element_and_no_value():
    found = objections(PATIENT, 100)

    assert {issue.expression for issue in found} == {"Patient.birthDate", "Patient.name[0].text"}
    assert {issue.severity for issue in found} == {"warning"}
    assert not any("2020" in issue.text for issue in found)


def test_a_valid_resource_has_no_objection():
    assert objections({"resourceType": "Patient", "birthDate": "2020-12-31"}, 100) == []


@pytest.mark.parametrize("resource", [None, [], 3, {}, {"resourceType": ["Patient"]}])
def test_what_is_no_resource_is_not_shown(resource):
    assert objections(resource, 100) == []


@pytest.mark.parametrize(
    "resource",
    [
        {"resourceType": "ImagingStudy", "status": "registered", "subject": {"display": "x"}, "_started": "1e400"},
        {"resourceType": "AuditEvent", "contained": [{"resourceType": "Nonsense"}]},
    ],
)
def test_what_the_models_stumble_over_has_no_objection(resource):
    assert objections(resource, 100) == []


@pytest.mark.parametrize(("resource", "size"), [(PATIENT, MOST_BYTES + 1), ({"resourceType": "Evidence"}, 100)])
def test_large_resources_and_types_that_differ_are_not_shown(resource, size):
    assert objections(resource, size) == []


@pytest.mark.parametrize("name", sorted(SAME_IN_R4B))
def test_the_types_that_are_shown_have_the_elements_of_r4(name):
    theirs = set(get_fhir_model_class(name).elements_sequence())

    ours = set()
    for element in definitions.elements(name).values():
        stem = element.name.removesuffix("[x]")
        kinds = element.types if element.name.endswith("[x]") else ("",)
        ours |= {stem + kind[:1].upper() + kind[1:] for kind in kinds}

    common = {"id", "meta", "implicitRules", "language", "text", "contained", "extension", "modifierExtension"}
    assert theirs - common == ours - common
