"""Validation by profiles. Expected findings: the rules of FHIR R4 profiling and elementdefinition."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import orjson
import pytest

from fhir_server.model import definitions
from fhir_server.model.definitions import load
from fhir_server.model.profiles import check
from fhir_server.model.terminology import Terminology
from fhir_server.model.validation import validate
from imaging.errors import AppError, Category

Json = dict[str, Any]
SHIPPED: list[Json] = orjson.loads(files(definitions).joinpath("profiles.json").read_bytes())
SMART = "http://fhir.org/argonaut/smart-imaging/StructureDefinition"
WADO = {"system": "http://terminology.hl7.org/CodeSystem/endpoint-connection-type", "code": "dicom-wado-rs"}
RIGHT = {"url": f"{SMART}/requires-access-token", "valueBoolean": True}
STUDY: Json = {
    "resourceType": "ImagingStudy",
    "contained": [{"resourceType": "Endpoint", "id": "e", "extension": [RIGHT], "connectionType": WADO}],
    "identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:1.2"}],
    "status": "available",
    "modality": [{"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "CT"}],
    "subject": {"reference": "Patient/1"},
    "endpoint": [{"reference": "#e"}],
}


@pytest.fixture(scope="module")
def terminology() -> Terminology:
    return Terminology(load("terminology"))


def _profile(*elements: Json, **more: Any) -> Json:
    rows = [{"id": each["id"], "path": each["id"].split(":")[0], **each} for each in elements]
    return {
        "resourceType": "StructureDefinition",
        "url": "http://p",
        "type": "Patient",
        "baseDefinition": "http://hl7.org/fhir/StructureDefinition/Patient",
        "differential": {"element": [{"id": "Patient", "path": "Patient"}, *rows]},
        **more,
    }


def _found(resource: Json, terminology: Terminology, *known: Json, url: str = "http://p") -> list[tuple[str, str, str]]:
    table: Mapping[str, Json] = {each["url"]: each for each in (*SHIPPED, *known)}
    return [(each.severity, each.expression, each.text) for each in check(resource, [url], table.get, terminology)]


def test_the_shipped_profiles_are_valid_definitions() -> None:
    for each in SHIPPED:
        validate(each, "StructureDefinition")


def test_a_study_as_smart_imaging_access_wants_it_conforms(terminology: Terminology) -> None:
    assert _found(STUDY, terminology, url=f"{SMART}/smart-imaging-study") == []


def test_what_is_referred_to_elsewhere_is_told_as_not_looked_at(terminology: Terminology) -> None:
    elsewhere = {**STUDY, "endpoint": [{"reference": "Endpoint/1"}]}

    [(severity, where, _)] = _found(elsewhere, terminology, url=f"{SMART}/smart-imaging-study")

    assert (severity, where) == ("information", "ImagingStudy.endpoint[0].reference")


@pytest.mark.parametrize(
    ("changes", "expression"),
    [
        ({"identifier": [{"system": "http://x", "value": "1"}]}, "ImagingStudy.identifier"),
        ({"identifier": STUDY["identifier"] * 2}, "ImagingStudy.identifier"),
        ({"identifier": [{"system": "urn:dicom:uid", "value": "1.2"}]}, "ImagingStudy.identifier[0]"),
        ({"modality": []}, "ImagingStudy.modality"),
        ({"endpoint": []}, "ImagingStudy.endpoint"),
        ({"subject": {"reference": "Group/1"}}, "ImagingStudy.subject.reference"),
    ],
)
def test_what_smart_imaging_access_forbids_is_named(terminology: Terminology, changes: Json, expression: str) -> None:
    found = _found({**STUDY, **changes}, terminology, url=f"{SMART}/smart-imaging-study")

    assert [(severity, where) for severity, where, _ in found] == [("error", expression)]


def test_an_extension_is_told_apart_by_its_profile(terminology: Terminology) -> None:
    endpoint: Json = {"resourceType": "Endpoint", "connectionType": WADO}
    wrong = {"url": f"{SMART}/requires-access-token", "valueString": "yes"}

    def of(*extension: Json) -> list[tuple[str, str, str]]:
        return _found({**endpoint, "extension": [*extension]}, terminology, url=f"{SMART}/smart-wado-endpoint")

    assert of(RIGHT) == []
    assert [where for _, where, _ in of()] == ["Endpoint.extension", "Endpoint.extension"]
    assert [where for _, where, _ in of(wrong)] == ["Endpoint.extension[0].value"]


GENDERS = "http://hl7.org/fhir/ValueSet/administrative-gender"


@pytest.mark.parametrize(
    ("element", "resource", "expected"),
    [
        ({"id": "Patient.name", "min": 1}, {}, [("error", "Patient.name")]),
        ({"id": "Patient.name", "max": "1"}, {"name": [{"text": "a"}, {"text": "b"}]}, [("error", "Patient.name")]),
        ({"id": "Patient.photo", "max": "0"}, {"photo": [{"url": "x"}]}, [("error", "Patient.photo")]),
        ({"id": "Patient.active", "fixedBoolean": True}, {"active": False}, [("error", "Patient.active")]),
        ({"id": "Patient.active", "fixedBoolean": True}, {"active": True}, []),
        ({"id": "Patient.gender", "fixedCode": "male"}, {"gender": "female"}, [("error", "Patient.gender")]),
        ({"id": "Patient.maritalStatus", "patternCodeableConcept": {"coding": [{"code": "M"}]}},
         {"maritalStatus": {"coding": [{"code": "M", "display": "x"}, {"code": "y"}]}}, []),
        ({"id": "Patient.maritalStatus", "patternCodeableConcept": {"coding": [{"code": "M"}]}},
         {"maritalStatus": {"coding": [{"code": "S"}]}}, [("error", "Patient.maritalStatus")]),
        ({"id": "Patient.deceased[x]", "type": [{"code": "boolean"}]}, {"deceasedDateTime": "2020"},
         [("error", "Patient.deceased")]),
        ({"id": "Patient.maritalStatus", "binding": {"strength": "required", "valueSet": GENDERS}},
         {"maritalStatus": {"coding": [{"system": "http://hl7.org/fhir/administrative-gender", "code": "male"}]}}, []),
        ({"id": "Patient.maritalStatus", "binding": {"strength": "required", "valueSet": GENDERS}},
         {"maritalStatus": {"coding": [{"code": "x"}]}}, [("error", "Patient.maritalStatus")]),
        ({"id": "Patient.maritalStatus", "binding": {"strength": "required", "valueSet": "http://none"}},
         {"maritalStatus": {"coding": [{"code": "x"}]}}, [("information", "Patient.maritalStatus")]),
        ({"id": "Patient.name.family", "maxLength": 3}, {"name": [{"family": "abc"}, {"family": "abcd"}]},
         [("error", "Patient.name[1].family")]),
        ({"id": "Patient.name", "constraint": [{"key": "k", "human": "h", "expression": "family.exists()"}]},
         {"name": [{"text": "a"}]}, [("error", "Patient.name[0]")]),
        ({"id": "Patient.name", "constraint": [{"key": "k", "human": "h", "expression": "family.matches('(a+)+')"}]},
         {"name": [{"family": "a"}]}, [("information", "Patient.name[0]")]),
        ({"id": "Patient.managingOrganization",
          "type": [{"code": "Reference", "targetProfile": ["http://elsewhere/StructureDefinition/x"]}]},
         {"managingOrganization": {"reference": "Organization/1"}},
         [("information", "Patient.managingOrganization.reference")]),
        ({"id": "Patient.name", "type": [{"code": "HumanName", "profile": ["http://unknown"]}]},
         {"name": [{"text": "a"}]}, [("information", "Patient.name[0]")]),
    ],
)  # fmt: skip
def test_demands_on_an_element(terminology: Terminology, element: Json, resource: Json, expected: Any) -> None:
    found = _found({"resourceType": "Patient", **resource}, terminology, _profile(element))

    assert [(severity, where) for severity, where, _ in found] == expected


@pytest.mark.parametrize(
    ("discriminator", "rules", "expected"),
    [
        ({"type": "pattern", "path": "$this"}, "open", ["Patient.telecom[1].value"]),
        ({"type": "value", "path": "system"}, "open", ["Patient.telecom[1].value"]),
        ({"type": "value", "path": "system"}, "closed", ["Patient.telecom[1].value", "Patient.telecom"]),
        ({"type": "profile", "path": "$this"}, "open", ["Patient.telecom"]),
    ],
)
def test_slices(terminology: Terminology, discriminator: Json, rules: str, expected: list[str]) -> None:
    profile = _profile(
        {"id": "Patient.telecom", "slicing": {"discriminator": [discriminator], "rules": rules}},
        {"id": "Patient.telecom:mail", "sliceName": "mail", "patternContactPoint": {"system": "email"}},
        {"id": "Patient.telecom:mail.system", "patternCode": "email"},
        {"id": "Patient.telecom:mail.value", "maxLength": 3},
    )
    telecom = [{"system": "phone", "value": "12345"}, {"system": "email", "value": "a@bcd"}]

    found = _found({"resourceType": "Patient", "telecom": telecom}, terminology, profile)

    assert [where for _, where, _ in found] == expected


def test_a_profile_has_the_demands_of_those_that_it_derives_from(terminology: Terminology) -> None:
    base = {**_profile({"id": "Patient.name", "min": 1}), "url": "http://base"}
    derived = {**_profile({"id": "Patient.gender", "min": 1}), "baseDefinition": "http://base"}

    found = _found({"resourceType": "Patient"}, terminology, base, derived)

    assert {where for _, where, _ in found} == {"Patient.name", "Patient.gender"}


@pytest.mark.parametrize("url", ["http://nowhere", "http://loop"])
def test_what_cannot_be_used_is_refused(terminology: Terminology, url: str) -> None:
    loop = {**_profile(), "url": "http://loop", "baseDefinition": "http://loop"}

    with pytest.raises(AppError) as raised:
        _found({"resourceType": "Patient"}, terminology, loop, url=url)

    assert raised.value.category in {Category.NOT_FOUND, Category.INVALID}


def test_a_profile_of_another_type_is_told(terminology: Terminology) -> None:
    assert [text for _, _, text in _found({"resourceType": "Group"}, terminology, _profile())] == [
        "is no Patient, which the profile http://p is for"
    ]
