"""Builders of what the archive knows about a study; every attribute not given is absent, as in a bare DICOM file."""

from dataclasses import fields
from typing import Any, TypeVar

from imaging.archive import SeriesFacts, StudyFacts
from imaging.dataset import InstanceAttributes, Patient, SeriesAttributes, StudyAttributes

CT = "1.2.840.10008.5.1.4.1.1.2"
T = TypeVar("T")
_BARE: dict[str, Any] = {
    "body_part_code": None,
    "image_type": (),
    "instance_number": None,
    "number_of_frames": 1,
    "rows": 512,
    "columns": 512,
    "series_number": None,
}


def filled(kind: type[T], **given: Any) -> T:
    """Return `kind` with the given fields, the others absent."""
    return kind(**{each.name: _BARE.get(each.name, "") for each in fields(kind)} | given)  # type: ignore[arg-type]


def patient(**given: Any) -> Patient:
    return filled(Patient, **given)


def instance(uid: str, **given: Any) -> InstanceAttributes:
    return filled(InstanceAttributes, **{"sop_instance_uid": uid, "sop_class_uid": CT} | given)


def series(uid: str = "1.2.3.1", *, count: int = 1, conditions: tuple[Any, ...] = (), **given: Any) -> SeriesFacts:
    attributes = filled(SeriesAttributes, **{"series_instance_uid": uid, "modality": "CT"} | given)
    instances = tuple(instance(f"{uid}.{number}", instance_number=number) for number in range(1, count + 1))
    return SeriesFacts(attributes, instances, conditions)


def study(
    *series_of_study: SeriesFacts,
    uid: str = "1.2.3",
    of: Patient | None = None,
    generation: int = 1,
    registered_by: tuple[str, ...] = ("Organization/a",),
    **given: Any,
) -> StudyFacts:
    attributes = filled(StudyAttributes, **{"study_instance_uid": uid} | given)
    return StudyFacts(of or patient(), attributes, series_of_study or (series(),), generation, registered_by)
