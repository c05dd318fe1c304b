import json as stdlib_json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhir_server.model import json
from fhir_server.model.outcome import InvalidResource
from fhir_server.model.validation import validate
from imaging.errors import AppError, Category

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
        _patient(contained=[{"resourceType": "Organization", "id": "o"}], managingOrganization={"reference": "#o"}),
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
