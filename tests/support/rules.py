"""Builds processing rules as clients write them."""

from typing import Any

DCM = "http://dicom.nema.org/resources/ontology/DCM"
SCT = "http://snomed.info/sct"
URL = "https://radiology.example/rules/mip"


def coded(path: str, *codes: str, system: str = "") -> dict[str, Any]:
    return {"path": path, "code": [{"code": code, **({"system": system} if system else {})} for code in codes]}


def described(*patterns: str) -> dict[str, Any]:
    told = [{"url": "urn:fhir-imaging:extension:pattern", "valueString": each} for each in patterns]
    return {"path": "series.description", "extension": told}


def task_input(name: str, element: str, content: Any) -> dict[str, Any]:
    parts = [{"url": "name", "valueCode": name}, {"url": "value", element: content}]
    return {"url": "urn:fhir-imaging:extension:task-input", "extension": parts}


THICK = task_input("thickness_mm", "valueDecimal", 1000)


def action(
    *filters: dict[str, Any], algorithm: str = "slab", inputs: tuple[Any, ...] = (THICK,), **more: Any
) -> dict[str, Any]:
    required: dict[str, Any] = {"type": "ImagingStudy"}
    if "registered_by" in more:
        told = [{"reference": each} for each in more.pop("registered_by")]
        required["extension"] = [
            {"url": "urn:fhir-imaging:extension:registered-by", "valueReference": each} for each in told
        ]
    if filters:
        required["codeFilter"] = list(filters)
    return {
        **({"extension": list(inputs)} if inputs else {}),
        "trigger": [{"type": "data-added", "data": [required]}],
        "definitionCanonical": f"urn:fhir-imaging:algorithm:{algorithm}",
        **more,
    }


def rule(*actions: dict[str, Any], **more: Any) -> dict[str, Any]:
    kind = {"system": "http://terminology.hl7.org/CodeSystem/plan-definition-type", "code": "eca-rule"}
    return {
        "resourceType": "PlanDefinition",
        "meta": {"profile": ["urn:fhir-imaging:profile:processing-rule"]},
        "url": URL,
        "status": "active",
        "type": {"coding": [kind]},
        "action": list(actions),
    } | more
