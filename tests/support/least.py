"""The least resource of a type that the R4 definitions allow: every element that is required, and nothing else."""

from typing import Any

from fhir_server.model.definitions import Element, elements, required_codes

VALUES: dict[str, Any] = {
    "base64Binary": "AAAA",
    "boolean": True,
    "canonical": "http://example.org/x",
    "code": "x",
    "date": "2026-01-01",
    "dateTime": "2026-01-01T00:00:00Z",
    "decimal": 1.5,
    "id": "x",
    "instant": "2026-01-01T00:00:00Z",
    "integer": 1,
    "markdown": "x",
    "oid": "urn:oid:1.2.3",
    "positiveInt": 1,
    "string": "x",
    "unsignedInt": 1,
    "uri": "http://example.org/x",
    "url": "http://example.org/x",
    "uuid": "urn:uuid:c757873d-ec9a-4326-a141-556f43239520",
    "xhtml": '<div xmlns="http://www.w3.org/1999/xhtml">x</div>',
    "Attachment": {"url": "http://example.org/x"},
    "CodeableConcept": {"text": "x"},
    "Coding": {"system": "http://example.org/x", "code": "x"},
    "Expression": {"language": "text/fhirpath", "expression": "true"},
    "Identifier": {"value": "x"},
    "Money": {"value": 1, "currency": "EUR"},
    "Period": {"start": "2026-01-01"},
    "ProdCharacteristic": {"color": ["x"]},
    "Quantity": {"value": 1},
    "Reference": {"display": "x"},
    "Resource": {"resourceType": "Basic", "code": {"text": "x"}},
}
# What an invariant demands, which no cardinality tells.
FURTHER: dict[str, dict[str, Any]] = {
    "AllergyIntolerance": {
        "clinicalStatus": {
            "coding": [
                {"system": "http://terminology.hl7.org/CodeSystem/allergyintolerance-clinical", "code": "active"}
            ]
        }
    },
    "Appointment": {"status": "proposed", "participant": [{"status": "accepted", "actor": {"display": "x"}}]},
    "AppointmentResponse": {"actor": {"display": "x"}},
    "CapabilityStatement": {
        "document": [{"mode": "producer", "profile": "http://example.org/x"}],
        "description": "x",
        "kind": "requirements",
    },
    "Consent": {"policyRule": {"text": "x"}},
    "EventDefinition": {"trigger": [{"type": "named-event", "name": "x"}]},
    "ImmunizationRecommendation": {
        "recommendation": [{"forecastStatus": {"text": "x"}, "targetDisease": {"text": "x"}}]
    },
    "InsurancePlan": {"name": "x"},
    "Linkage": {"item": [{"type": "source", "resource": {"display": "x"}}] * 2},
    "Organization": {"name": "x"},
    "Subscription": {"criteria": "Patient?", "channel": {"type": "websocket"}, "status": "requested"},
    "SearchParameter": {"status": "draft"},  # what is used has to be what can be indexed
    "StructureDefinition": {"differential": {"element": [{"path": "Patient", "id": "Patient"}]}, "type": "Patient"},
    "TerminologyCapabilities": {"description": "x", "kind": "requirements"},
}


def least(kind: str) -> dict[str, Any]:
    """Return the least valid resource of a type."""
    return {"resourceType": kind, **_object(kind), **FURTHER.get(kind, {})}


def _object(path: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for element in elements(path).values():
        if element.minimum:
            kind = element.types[0]
            name = element.name
            if name.endswith("[x]"):
                name = name.removesuffix("[x]") + kind[:1].upper() + kind[1:]
            value = _value(element, kind)
            made[name] = [value] if element.is_array else value
    return made


def _value(element: Element, kind: str) -> Any:
    codes = required_codes(element.binding) if element.binding else None
    if kind == "code" and codes:
        return min(code for each in codes.values() for code in each)
    return VALUES[kind] if kind in VALUES else _object(kind)
