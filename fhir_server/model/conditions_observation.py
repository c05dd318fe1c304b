"""The FHIR Observation that delivers the imaging conditions of one series. Pure.

One component for each value: numbers as Quantity and ranges as Range with UCUM units, codes as CodeableConcept, times
and dates as such where FHIR can hold them, other text as string. Several values of one condition are several components
with the same code. Source: FHIR R4 Observation; the code "Imaging Conditions" is from PS3.16 annex D.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from imaging.conditions import CONDITIONS, Coded, Condition, Range
from imaging.conditions_table import DCM, ELEMENTS, Kind

UCUM = "http://unitsofmeasure.org"
IMAGING_CONDITIONS = {"system": DCM, "code": "123016", "display": "Imaging Conditions"}

_CATEGORY = {
    "system": "http://terminology.hl7.org/CodeSystem/observation-category",
    "code": "imaging",
    "display": "Imaging",
}
_NO_CONDITIONS = {
    "system": "http://terminology.hl7.org/CodeSystem/data-absent-reason",
    "code": "unknown",
    "display": "Unknown",
}
_DATETIME = re.compile(r"\d{4}(-\d\d(-\d\d(T\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d))?)?)?")
_EXACT = 2**53
_KINDS = {row.name: row.kind for row in CONDITIONS}


def observation(
    series_uid: str,
    *,
    study_reference: str,
    patient_reference: str,
    conditions: Iterable[Condition],
    device_reference: str | None = None,
    started: str | None = None,
) -> dict[str, Any]:
    """Return the Observation (R4) of a series' imaging conditions; without id and meta.

    study_reference     "ImagingStudy/...", what it is part of
    patient_reference   "Patient/..."
    device_reference    "Device/...", the modality that made the images
    started             when the series was acquired, FHIR dateTime; left out when it is none

    The Series Instance UID is its identifier. A series without any known condition has a data-absent-reason.
    """
    resource: dict[str, Any] = {
        "resourceType": "Observation",
        "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{series_uid}"}],
        "partOf": [{"reference": study_reference}],
        "status": "final",
        "category": [{"coding": [dict(_CATEGORY)]}],
        "code": {"coding": [dict(IMAGING_CONDITIONS)], "text": "Imaging conditions"},
        "subject": {"reference": patient_reference},
    }
    if started is not None and _DATETIME.fullmatch(started):
        resource["effectiveDateTime"] = started
    if device_reference is not None:
        resource["device"] = {"reference": device_reference}
    components = [component for condition in conditions for component in _components(condition)]
    if components:
        resource["component"] = components
    else:
        resource["dataAbsentReason"] = {"coding": [dict(_NO_CONDITIONS)]}
    return resource


def _components(condition: Condition) -> Iterator[dict[str, Any]]:
    code = {"coding": [_coding(code) for code in condition.codes], "text": _name(condition)}
    for value in condition.value if isinstance(condition.value, tuple) else (condition.value,):
        yield {"code": code} | _value(value, condition)


def _name(condition: Condition) -> str:
    """Return the name of its DICOM data element, which tells apart what one concept stands for."""
    return next((code.display for code in condition.codes if code.system == ELEMENTS), condition.code.display)


def _value(value: int | float | str | Range | Coded, condition: Condition) -> dict[str, Any]:
    unit = condition.unit
    match value:
        case Range():
            return {"valueRange": {"low": _quantity(value.low, unit), "high": _quantity(value.high, unit)}}
        case Coded():
            return {"valueCodeableConcept": _concept(value)}
        case str():
            return _text(value, _KINDS.get(condition.name, Kind.TEXT))
        case _:
            return {"valueQuantity": _quantity(value, unit)}


def _text(text: str, kind: Kind) -> dict[str, Any]:
    if kind is Kind.TIME:
        return {"valueTime": text}
    # A FHIR dateTime with a time of day has a zone; without one it stays the text it is.
    if kind in (Kind.DATE, Kind.DATETIME) and _DATETIME.fullmatch(text):
        return {"valueDateTime": text}
    return {"valueString": text}


def _quantity(value: float, unit: str) -> dict[str, Any]:
    # 120.0 would claim a precision that nobody measured.
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    return {"value": value, "unit": unit, "system": UCUM, "code": unit}


def _concept(code: Coded) -> dict[str, Any]:
    concept: dict[str, Any] = {"coding": [_coding(code)]} if code.system and code.code else {}
    text = code.display or code.code
    return concept | {"text": text}


def _coding(code: Coded) -> dict[str, Any]:
    coding = {"system": code.system, "code": code.code}
    return coding | {"display": code.display} if code.display else coding
