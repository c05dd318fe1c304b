"""Visits and studies of a patient as people pick them for an app: newest first, through the repository of who looks."""

from collections.abc import Callable, Mapping
from typing import Any

from fhir_server.model.query import parse
from fhir_server.store.documents import Resource
from fhir_server.store.repository import Repository

MOST_SHOWN = 20
LONGEST = 120  # characters of a description
_ORDER = {"Encounter": "-date", "ImagingStudy": "-started"}
# What people call Encounter.class, where the resource has no words for it. Source: HL7 v3 ActEncounterCode.
_CLASSES = {"AMB": "outpatient visit", "EMER": "emergency", "IMP": "inpatient stay", "ACUTE": "inpatient stay",
            "HH": "visit at home", "VR": "virtual visit", "SS": "day surgery", "OBSENC": "observation"}  # fmt: skip

Json = Mapping[str, Any]


def find(repository: Repository, resource_type: str, patient: str) -> list[dict[str, str]]:
    """Return id and words of up to `MOST_SHOWN` resources of a type that are about a patient, `Patient/...`."""
    asked = [("patient", patient), ("_sort", _ORDER[resource_type]), ("_count", str(MOST_SHOWN))]
    found = repository.search(parse(resource_type, asked)).matches
    return [_row(each, _WORDS[resource_type]) for each in found]


def _row(resource: Resource, words: Callable[[Json], list[str]]) -> dict[str, str]:
    said = [each[:LONGEST] for each in words(resource.json()) if each]
    return {"id": resource.id, "name": ", ".join(said) or f"{resource.type} {resource.id}"}


def _of_visit(visit: Json) -> list[str]:
    period = visit.get("period", {})
    first, last = (str(period.get(name, ""))[:10] for name in ("start", "end"))
    days = f"{first} to {last}" if first and last and first != last else first or last
    coding = visit.get("class", {})
    kind = coding.get("display") or _CLASSES.get(coding.get("code", ""), "")
    reasons = [_text(each) for each in visit.get("reasonCode", [])]
    return [days, *map(_text, visit.get("type", [])[:1]), kind, *reasons[:1]]


def _of_study(study: Json) -> list[str]:
    kinds = " and ".join(str(each.get("code", "")) for each in study.get("modality", [])[:5])
    count = study.get("numberOfInstances")
    images = f"{count} image{'' if count == 1 else 's'}" if count else ""
    return [str(study.get("started", ""))[:10], kinds, str(study.get("description", "")), images]


def _text(concept: Json) -> str:
    displays = (str(each["display"]) for each in concept.get("coding", []) if "display" in each)
    return str(concept.get("text") or next(displays, ""))


_WORDS: Mapping[str, Callable[[Json], list[str]]] = {"Encounter": _of_visit, "ImagingStudy": _of_study}
