"""The Observation that delivers a series' imaging conditions, checked with the R4B model."""

from typing import Any

import pytest
from fhir.resources.R4B.observation import Observation
from pydicom import Dataset, dcmread

from fhir_server.model.conditions_observation import UCUM, observation
from imaging.conditions import conditions, merge
from imaging.conditions_table import DCM, ELEMENTS, SCT
from tests.support.conditions import built, code, enhanced_mr, real

UID = "1.2.840.113619.2.1"


def deliver(*instances: Dataset, **optional: Any) -> dict[str, Any]:
    resource = observation(
        UID,
        study_reference="ImagingStudy/s1",
        patient_reference="Patient/p1",
        conditions=merge(conditions(ds) for ds in instances),
        **optional,
    )
    Observation.model_validate(resource)
    return resource


def components(resource: dict[str, Any], keyword: str) -> list[dict[str, Any]]:
    return [
        component
        for component in resource["component"]
        if {"system": ELEMENTS, "code": keyword}
        in [{"system": coding["system"], "code": coding["code"]} for coding in component["code"]["coding"]]
    ]


def values(resource: dict[str, Any], keyword: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in part.items() if key != "code"} for part in components(resource, keyword)]


def test_it_says_which_series_of_which_patient_it_is_about() -> None:
    resource = deliver(built(KVP="120"), device_reference="Device/d1", started="2024-01-31T09:15:30+01:00")

    assert resource["identifier"] == [{"system": "urn:dicom:uid", "value": f"urn:oid:{UID}"}]
    assert resource["partOf"] == [{"reference": "ImagingStudy/s1"}]
    assert resource["subject"] == {"reference": "Patient/p1"}
    assert resource["device"] == {"reference": "Device/d1"}
    assert resource["effectiveDateTime"] == "2024-01-31T09:15:30+01:00"
    assert resource["status"] == "final"
    assert resource["category"][0]["coding"][0]["code"] == "imaging"
    assert resource["code"]["coding"] == [{"system": DCM, "code": "123016", "display": "Imaging Conditions"}]


def test_a_number_is_a_quantity_with_ucum_unit_and_both_codes() -> None:
    (component,) = deliver(built(KVP="120.0"))["component"]

    assert component == {
        "code": {
            "coding": [
                {"system": DCM, "code": "113733", "display": "KVP"},
                {"system": ELEMENTS, "code": "KVP", "display": "KVP"},
            ],
            "text": "KVP",
        },
        "valueQuantity": {"value": 120, "unit": "kV", "system": UCUM, "code": "kV"},
    }


def test_numbers_that_differ_are_a_range() -> None:
    resource = deliver(built(XRayTubeCurrent=200), built(XRayTubeCurrent=140))

    assert values(resource, "XRayTubeCurrent") == [
        {
            "valueRange": {
                "low": {"value": 140, "unit": "mA", "system": UCUM, "code": "mA"},
                "high": {"value": 200, "unit": "mA", "system": UCUM, "code": "mA"},
            }
        }
    ]


def test_several_values_are_several_components_in_their_order() -> None:
    resource = deliver(built(PixelSpacing=["0.5", "0.75"], ScanOptions=["FS", "PFP"]))

    assert [value["valueQuantity"]["value"] for value in values(resource, "PixelSpacing")] == [0.5, 0.75]
    assert values(resource, "ScanOptions") == [{"valueString": "FS"}, {"valueString": "PFP"}]


def test_codes_are_codeable_concepts_and_times_are_times() -> None:
    tracer = built(
        RadionuclideCodeSequence=[code("77004003", "SCT", "^18^Fluorine")],
        RadiopharmaceuticalCodeSequence=[code("F18-X", "99ACME", "our tracer")],
        RadiopharmaceuticalStartTime="0915",
        RadiopharmaceuticalStartDateTime="20240131091530+0100",
        RadiopharmaceuticalStopDateTime="20240131091540",
    )
    resource = deliver(built(RadiopharmaceuticalInformationSequence=[tracer]))

    assert values(resource, "RadionuclideCodeSequence") == [
        {
            "valueCodeableConcept": {
                "coding": [{"system": SCT, "code": "77004003", "display": "^18^Fluorine"}],
                "text": "^18^Fluorine",
            }
        }
    ]
    assert values(resource, "RadiopharmaceuticalCodeSequence") == [{"valueCodeableConcept": {"text": "our tracer"}}]
    assert values(resource, "RadiopharmaceuticalStartTime") == [{"valueTime": "09:15:00"}]
    assert values(resource, "RadiopharmaceuticalStartDateTime") == [{"valueDateTime": "2024-01-31T09:15:30+01:00"}]
    assert values(resource, "RadiopharmaceuticalStopDateTime") == [{"valueString": "2024-01-31T09:15:40"}]


def test_text_that_looks_like_a_time_stays_text() -> None:
    assert values(deliver(built(FilterType="09:15:00")), "FilterType") == [{"valueString": "09:15:00"}]


def test_enhanced_attributes_are_also_found_by_their_classic_code() -> None:
    resource = deliver(enhanced_mr([0.0]))

    (component,) = components(resource, "EchoTime")
    assert component["valueQuantity"] == {"value": 72.5, "unit": "ms", "system": UCUM, "code": "ms"}
    assert component["code"]["text"] == "Effective Echo Time"


@pytest.mark.parametrize(
    "name",
    ["CT_small.dcm", "MR2_UNCR.dcm", "animals/cat.dcm", "ultrasounds/RGB_IMAGE.dcm", "JPEG2000.dcm", "RG1_UNCR.dcm"],
)
def test_real_series_give_valid_observations(name: str) -> None:
    resource = deliver(dcmread(real(name), stop_before_pixels=True), started="2004-01-19")

    assert resource["component"]


def test_a_series_without_known_conditions_says_so() -> None:
    resource = deliver(built(Modality="US"))

    assert "component" not in resource
    assert resource["dataAbsentReason"]["coding"][0]["code"] == "unknown"


@pytest.mark.parametrize("started", ["2024-01-31T09:15:30", "20240131", "", "yesterday"])
def test_what_is_no_fhir_date_time_is_left_out(started: str) -> None:
    assert "effectiveDateTime" not in deliver(built(KVP="120"), started=started)
