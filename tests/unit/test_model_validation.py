import json as stdlib_json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhir_server.model import json
from fhir_server.model.outcome import InvalidResource
from fhir_server.model.resources import RESOURCES
from fhir_server.model.validation import findings, validate
from imaging.errors import AppError, Category
from tests.support.least import least

Json = dict[str, Any]


def _study(**changes: Any) -> Json:
    study = {"resourceType": "ImagingStudy", "status": "available", "subject": {"reference": "Patient/1"}}
    return study | changes


def _patient(**changes: Any) -> Json:
    return {"resourceType": "Patient"} | changes


def _findings(resource: Json) -> dict[str, str]:
    with pytest.raises(InvalidResource) as raised:
        validate(resource, resource["resourceType"])
    return {issue.expression: issue.text for issue in raised.value.issues}


GIVEN_WITH_EXTENSION = [None, {"extension": [{"url": "http://x", "valueString": "s"}]}]


@pytest.mark.parametrize(
    "resource",
    [
        _study(),
        _study(started="2024-02", extension=[{"url": "http://x", "valueDecimal": 1.5}]),
        _patient(
            contained=[{"resourceType": "Organization", "id": "o", "name": "x"}],
            managingOrganization={"reference": "#o"},
        ),
        _patient(generalPractitioner=[{"reference": "urn:uuid:1"}, {"display": "somebody"}]),
        _patient(name=[{"given": ["a", None], "_given": GIVEN_WITH_EXTENSION}]),
        _patient(_birthDate={"extension": [{"url": "http://x", "valueString": "unknown"}]}),
        {"resourceType": "EffectEvidenceSynthesis", "status": "draft"}
        | {name: {"reference": f"{name}/1"} for name in ()}
        | {"population": {"display": "a"}, "exposure": {"display": "b"}, "exposureAlternative": {"display": "c"}}
        | {"outcome": {"display": "d"}},
    ],
)
def test_valid_resources_pass(resource: Json) -> None:
    validate(resource, resource["resourceType"])


@pytest.mark.parametrize("kind", RESOURCES)
def test_the_least_resource_of_every_type_is_valid_and_lacks_nothing(kind: str) -> None:
    resource = least(kind)

    validate(resource, kind)
    for name in resource.keys() - {"resourceType"}:
        without = {key: value for key, value in resource.items() if key != name}
        assert findings(without, kind), name


# Source: the invariants of the R4 definitions, by key
@pytest.mark.parametrize(
    ("resource", "key"),
    [
        (_patient(contact=[{"gender": "male"}]), "pat-1"),
        (_patient(extension=[{"url": "http://x"}]), "ext-1"),
        (_patient(identifier=[{"period": {"start": "2020-02", "end": "2019"}}]), "per-1"),
        (_patient(contained=[{"resourceType": "Patient", "meta": {"versionId": "1"}}]), "dom-4"),
        (_patient(contained=[{"resourceType": "Patient", "id": "p"}]), "dom-3"),
        (_patient(telecom=[{"value": "1"}]), "cpt-2"),
        (_patient(photo=[{"data": "AAAA"}]), "att-1"),
        ({**least("Observation"), "valueString": "x", "dataAbsentReason": {"text": "x"}}, "obs-6"),
        ({**least("Observation"), "referenceRange": [{"type": {"text": "x"}}]}, "obs-3"),
        ({**least("Observation"), "valueQuantity": {"value": 1, "code": "mg"}}, "qty-3"),
        ({**least("Observation"), "valueRange": {"low": {"value": 2}, "high": {"value": 1}}}, "rng-2"),
        ({**least("Task"), "lastModified": "2019", "authoredOn": "2020"}, "inv-1"),
        ({**least("ServiceRequest"), "orderDetail": [{"text": "x"}]}, "prr-1"),
        ({**least("Bundle"), "type": "searchset", "entry": [{"request": {"method": "GET", "url": "x"}}]}, "bdl-3"),
        ({**least("Provenance"), "agent": [{}]}, ""),
        ({**least("SearchParameter"), "expression": "x", "type": "composite", "chain": ["x"], "base": []}, ""),
    ],
)
def test_invariants_hold(resource: Json, key: str) -> None:
    texts = " ".join(_findings(resource).values())

    assert f"({key})" in texts if key else texts


def test_codes_of_required_bindings_are_looked_at_in_concepts_too() -> None:
    # Source: AllergyIntolerance.clinicalStatus, required binding to allergyintolerance-clinical
    system = "http://terminology.hl7.org/CodeSystem/allergyintolerance-clinical"

    def allergy(code: str, system: str = system) -> Json:
        return {**least("AllergyIntolerance"), "clinicalStatus": {"coding": [{"system": system, "code": code}]}}

    validate(allergy("resolved"), "AllergyIntolerance")
    assert "AllergyIntolerance.clinicalStatus" in _findings(allergy("nonsense"))
    assert "AllergyIntolerance.clinicalStatus" in _findings(allergy("resolved", "http://other"))


@pytest.mark.parametrize(
    ("concept", "place"),
    [
        ({"coding": 10**30}, ".coding"),
        ({"coding": {"code": "active"}}, ".coding"),
        ({"coding": [3]}, ".coding[0]"),
        ({"coding": [{"system": [], "code": "active"}]}, ".coding[0].system"),
        ({"coding": [{"system": {"a": 1}, "code": "active"}]}, ".coding[0].system"),
        ({"coding": [{"code": ["active"]}]}, ".coding[0].code"),
    ],
)
def test_a_bound_concept_of_wrong_json_types_is_told_as_that(concept: Json, place: str) -> None:
    found = _findings({**least("Condition"), "clinicalStatus": concept})

    assert f"Condition.clinicalStatus{place}" in found


def test_what_a_contained_resource_is_counts_for_a_reference_to_it() -> None:
    device = {**least("Device"), "id": "d"}

    found = _findings(_patient(contained=[device], generalPractitioner=[{"reference": "#d"}]))

    assert "refers to a Device" in found["Patient.generalPractitioner[0].reference"]


def test_advice_is_given_on_demand() -> None:
    # Source: invariant dom-6, a warning: a resource should have narrative
    assert findings(_patient(), "Patient") == []
    assert [issue.severity for issue in findings(_patient(), "Patient", with_advice=True)] == ["warning"]


def test_decimals_pass_with_their_digits() -> None:
    body = b'{"resourceType":"Observation","status":"final","code":{"text":"x"},"valueQuantity":{"value":1.50}}'

    validate(json.loads(body), "Observation")


@pytest.mark.parametrize(
    ("resource", "expression", "text"),
    [
        ({"resourceType": "ImagingStudy", "status": "available"}, "ImagingStudy.subject", "required"),
        ({"resourceType": "ImagingStudy", "subject": {"reference": "Patient/1"}}, "ImagingStudy.status", "required"),
        (_study(series=[{"modality": {"code": "CT"}}]), "ImagingStudy.series[0].uid", "required"),
        (_study(status="nonsense"), "ImagingStudy.status", "value set"),
        (_study(nonsense=1), "ImagingStudy", "nonsense"),
        (_study(started="yesterday"), "ImagingStudy.started", "form"),
        (_study(started=None), "ImagingStudy.started", "null"),
        (_study(series=[]), "ImagingStudy.series", "empty"),
        (_study(description=""), "ImagingStudy.description", "empty"),
        (_study(note=[{}]), "ImagingStudy.note[0]", "empty"),
        (_study(numberOfSeries=-1), "ImagingStudy.numberOfSeries", "too small"),
        (_study(numberOfSeries="1"), "ImagingStudy.numberOfSeries", "JSON type"),
        (_study(subject={"reference": "Endpoint/1"}), "ImagingStudy.subject.reference", "allowed: Device, Group"),
        (_study(subject={"reference": "Nonsense/1"}), "ImagingStudy.subject.reference", "neither"),
        (_study(subject={"reference": "#gone"}), "ImagingStudy.subject.reference", "contained"),
        (_study(subject={"type": "Patient"}), "ImagingStudy.subject", "neither"),
        (_patient(birthDate="2023-02-29"), "Patient.birthDate", "calendar"),
        (_patient(deceasedBoolean=True, deceasedDateTime="2020"), "Patient.deceased", "several"),
        (_patient(name=[{"given": ["a", None]}]), "Patient.name[0].given[1]", ""),
        (_patient(contained=[{"resourceType": "Device", "status": "x"}]), "Patient.contained[0].status", "value set"),
        (_patient(contained=[{"id": "a"}]), "Patient.contained[0]", "known type"),
    ],
)
def test_a_finding_names_the_element(resource: Json, expression: str, text: str) -> None:
    findings = _findings(resource)

    assert text in findings[expression]


def test_a_finding_never_repeats_a_value() -> None:
    secret = "Secret^Name"

    findings = _findings(_patient(birthDate=secret, gender=secret, name=secret, telecom=[{"system": secret}]))

    assert len(findings) == 4
    assert secret not in str(findings)


def test_the_number_of_findings_is_bounded() -> None:
    assert len(_findings(_patient(name=[{"given": [""]}] * 100))) == 20


def test_endless_nesting_is_refused() -> None:
    extension: Json = {"url": "http://x"}
    for _ in range(80):
        extension = {"url": "http://x", "extension": [extension]}

    assert any("nested" in text for text in _findings(_patient(extension=[extension])).values())


@pytest.mark.parametrize("resource", [None, [], "x", 1, {}, {"resourceType": "Device"}, {"resourceType": ["Patient"]}])
def test_another_type_is_refused(resource: Any) -> None:
    with pytest.raises(AppError) as raised:
        validate(resource, "Patient")

    assert raised.value.category is Category.INVALID


NAMES = st.sampled_from(
    [
        *("resourceType", "id", "meta", "contained", "extension", "url", "reference", "subject", "name", "given"),
        *(
            "_given",
            "identifier",
            "value",
            "system",
            "coding",
            "code",
            "valueString",
            "deceasedBoolean",
            "text",
            "link",
        ),
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_any_json_is_valid_or_an_error_of_ours(content: Json) -> None:
    body = stdlib_json.dumps({**content, "resourceType": "Patient"})

    with suppress(AppError):
        validate(json.loads(body), "Patient")
