"""A UPS work item as a view of a FHIR Task: its identity, its state, and the data set in which it is told.

Pure. A Task that was placed by FHIR is told from its elements. One that was placed as a work item carries that data set
in an extension, whole, so that a retrieve gives back what was created; `workitem_orders` makes such Tasks. What both
sides can change, state, progress and times, is always told from the Task.
Sources: PS3.3 B.26 and C.30 (Unified Procedure Step), PS3.4 annex CC, PS3.5 B.2 (UIDs from UUIDs).
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Protocol

import orjson

from fhir_server.model.dates import interval
from fhir_server.model.task import (
    ANYBODY,
    WORKITEM,
    Json,
    Status,
    Task,
    is_over,
    name_of,
    progress_of,
    status_of,
)
from imaging.dicomweb.json_model import Model, checked, element, items, ordered, tag_of, text, values
from imaging.errors import AppError, Category

UPS_PUSH = "1.2.840.10008.5.1.4.34.6.1"  # SOP class of every work item; PS3.4 CC.3.1
DEFAULT_LABEL = "TASKS"  # Worklist Label of what was placed without one
LARGEST = 1_000_000  # characters of a data set; a FHIR string has at most 1 MiB


class State(StrEnum):
    """Procedure Step State. Source: PS3.4 CC.1.1."""

    SCHEDULED = "SCHEDULED"
    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    CANCELED = "CANCELED"


STATES: Mapping[Status, State] = MappingProxyType(
    {
        # what is not here is no work item: a draft is not ordered yet, an error never was
        Status.REQUESTED: State.SCHEDULED,
        Status.RECEIVED: State.SCHEDULED,
        Status.ACCEPTED: State.SCHEDULED,
        Status.READY: State.SCHEDULED,
        Status.IN_PROGRESS: State.IN_PROGRESS,
        Status.ON_HOLD: State.IN_PROGRESS,
        Status.COMPLETED: State.COMPLETED,
        Status.FAILED: State.CANCELED,
        Status.CANCELLED: State.CANCELED,
        Status.REJECTED: State.CANCELED,
    }
)
FINAL = frozenset({State.COMPLETED, State.CANCELED})
PRIORITIES = {
    # PS3.3 C.30.1: HIGH is an urgent or emergent item, such as a STAT request
    "stat": "HIGH",
    "asap": "HIGH",
    "urgent": "HIGH",
    "routine": "MEDIUM",
}
SCHEMES = {
    # coding scheme designator -> FHIR code system; PS3.16 table 8-1
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "SCT": "http://snomed.info/sct",
    "LN": "http://loinc.org",
    "UCUM": "http://unitsofmeasure.org",
}
OTHER_SCHEME = "urn:fhir-imaging:coding-scheme:"  # code system of a designator that has no other one here
_DESIGNATORS = {system: designator for designator, system in SCHEMES.items()}
_DISCONTINUED = "ProcedureStepDiscontinuationReasonCodeSequence"
# What PS3.4 table CC.2.5-3 wants of one that is CANCELED, where nobody told a code. Source: PS3.16 CID 9300.
_UNSPECIFIED = {"system": SCHEMES["DCM"], "code": "110513", "display": "Discontinued for unspecified reason"}
_OWN_DESIGNATOR = "99FHIR"  # of codes whose system no designator can name


class Known(Protocol):
    """What may be seen of the images and the patient that a Task is about."""

    def studies(self, parameter: str, value: str) -> list[Json]:
        """Return the ImagingStudies that a search parameter finds."""

    def patient(self, reference: str) -> Json | None:
        """Return the Patient that a reference names, None where there is none to be seen."""

    def address(self, study_uid: str, series_uid: str) -> str:
        """Return the URL by which WADO-RS gives a series."""


def is_uuid(text: str) -> bool:
    """Say whether a text is a UUID as ids of resources write them."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def uid_of(task_id: str) -> str | None:
    """Return the SOP Instance UID of the work item that a Task is, None where its id cannot be a UID."""
    uid = f"2.25.{uuid.UUID(task_id).int}" if is_uuid(task_id) else task_id
    return uid if task_id_of(uid) == task_id and _is_uid(uid) else None


def task_id_of(uid: str) -> str:
    """Return the id of the Task that a work item is: the UID itself, or the UUID that it was made of."""
    root, _, number = uid.rpartition(".")
    is_number = root == "2.25" and _is_uid(uid) and int(number) < 1 << 128
    return str(uuid.UUID(int=int(number))) if is_number else uid


def state_of(task: Task) -> State | None:
    """Return the state of the work item that a Task is, None for one that is none."""
    return STATES.get(status_of(task))


def kept(task: Task) -> Model:
    """Return the data set that a Task carries, as far as work items have written it; empty without one."""
    for each in task.get("extension", []):
        if each.get("url") == WORKITEM:
            try:
                return checked(orjson.loads(each.get("valueString", "")))
            except (AppError, orjson.JSONDecodeError):
                return {}  # whoever writes Tasks may write anything there
    return {}


def with_kept(task: Task, model: Mapping[str, Any]) -> Json:
    """Return the Task with this data set kept in it. Raises TOO_LARGE."""
    written = orjson.dumps(ordered(model)).decode()
    if len(written) > LARGEST:
        message = f"the work item is larger than {LARGEST} characters; name a series without its instances"
        raise AppError(Category.TOO_LARGE, message, where="body")
    others = [each for each in task.get("extension", []) if each.get("url") != WORKITEM]
    return {**task, "extension": [*others, {"url": WORKITEM, "valueString": written}]}


def was_created_as_workitem(model: Mapping[str, Any]) -> bool:
    """Say whether a kept data set is that of a work item that was created as one: it has a label."""
    return tag_of("ProcedureStepLabel") in model


def dataset_of(task: Task, known: Known) -> Model:
    """Return the work item that a Task is, as DICOM JSON, tags ascending; never with the Transaction UID."""
    state = state_of(task)
    assert state is not None  # noqa: S101 -- the caller has asked
    written = kept(task)
    told = {} if was_created_as_workitem(written) else _ordered_by(task, known)
    model = {**told, **written, **_live(task, state, written)}
    if state is State.COMPLETED and tag_of("UnifiedProcedureStepPerformedProcedureSequence") not in model:
        model |= _performed(task, known)
    model.pop(tag_of("TransactionUID"), None)
    return ordered(model)


def concept_items(concept: Mapping[str, Any]) -> list[Model]:
    """Return a CodeableConcept as items of a code sequence."""
    meaning = str(concept.get("text", ""))
    return [_code_item(each, meaning) for each in concept.get("coding", []) if "code" in each]


def dicom_time(moment: str) -> str:
    """Return a FHIR date, dateTime or instant as DICOM DT, in UTC; a date as it is."""
    if "T" not in moment:
        return moment.replace("-", "")
    at = interval(moment).low.astimezone(UTC)
    return to_dicom_time(at)


def to_dicom_time(at: datetime) -> str:
    """Return an aware moment as DICOM DT in UTC."""
    return f"{at.astimezone(UTC):%Y%m%d%H%M%S}+0000"


# --- what a Task tells that was placed by FHIR


def _ordered_by(task: Task, known: Known) -> Model:
    period = task.get("restriction", {}).get("period", {})
    begins = period.get("start", task.get("authoredOn", task.get("lastModified", "")))
    model = {
        **element("ScheduledProcedureStepPriority", PRIORITIES[task.get("priority", "routine")]),
        **element("ProcedureStepLabel", _label(task)),
        **element("WorklistLabel", DEFAULT_LABEL),
        **element("InputReadinessState", "READY"),
        **element("ScheduledWorkitemCodeSequence", *concept_items(task.get("code", {}))),
        **element("ScheduledStationNameCodeSequence", *_stations(task)),
        **element("InputInformationSequence", *_images(task, "input", known)),
    }
    if begins:
        model |= element("ScheduledProcedureStepStartDateTime", dicom_time(begins))
    if "end" in period:
        model |= element("ScheduledProcedureStepExpirationDateTime", dicom_time(period["end"]))
    if comment := task.get("description"):
        model |= element("CommentsOnTheScheduledProcedureStep", comment)
    return model | _patient(task, known)


def _label(task: Task) -> str:
    code = task.get("code", {})
    coding: Json = next(iter(code.get("coding", [])), {})
    told = code.get("text") or coding.get("display") or coding.get("code") or task.get("description") or "Task"
    return str(told)[:64]


def _stations(task: Task) -> Iterator[Model]:
    for kind in task.get("performerType", []):
        for coding in kind.get("coding", []):
            if "code" in coding and (coding.get("system"), coding["code"]) != ANYBODY:
                yield _code_item(coding, str(kind.get("text", "")))


def _code_item(coding: Mapping[str, Any], meaning: str) -> Model:
    code, system = str(coding["code"]), str(coding.get("system", ""))
    designator = _DESIGNATORS.get(system) or _designator_in(system)
    keyword = "CodeValue" if len(code) <= 16 else "LongCodeValue"
    item = {**element(keyword, code), **element("CodingSchemeDesignator", designator)}
    if designator == _OWN_DESIGNATOR and system:
        item |= element("CodingSchemeURL", system)
    return ordered(item | element("CodeMeaning", str(coding.get("display") or meaning or code)[:64]))


def _designator_in(system: str) -> str:
    return system.removeprefix(OTHER_SCHEME) if system.startswith(OTHER_SCHEME) else _OWN_DESIGNATOR


def _patient(task: Task, known: Known) -> Model:
    subject = task.get("for", {})
    person = known.patient(str(subject.get("reference", ""))) or {"identifier": [subject.get("identifier", {})]}
    number = next((str(each["value"]) for each in person.get("identifier", []) if "value" in each), "")
    model = element("PatientID", number[:64]) if number else {}
    for name in person.get("name", [])[:1]:
        parts = [str(name.get("family", "")), *(str(each) for each in name.get("given", [])[:2])]
        written = "^".join(parts).rstrip("^") or str(name.get("text", ""))
        model |= element("PatientName", {"Alphabetic": written[:64]}) if written else {}
    if born := str(person.get("birthDate", "")).replace("-", ""):
        model |= element("PatientBirthDate", born) if len(born) == 8 else {}
    return model


# --- what is always the Task's


def _live(task: Task, state: State, written: Mapping[str, Any]) -> Model:
    changed = task.get("meta", {}).get("lastUpdated") or task.get("lastModified")
    model = {
        **element("SOPClassUID", UPS_PUSH),
        **element("SOPInstanceUID", str(uid_of(str(task["id"])))),
        **element("ProcedureStepState", str(state)),
    }
    if changed:
        model |= element("ScheduledProcedureStepModificationDateTime", dicom_time(changed))
    return model | _progress(task, state, written)


def _progress(task: Task, state: State, written: Mapping[str, Any]) -> Model:
    item = dict(next(iter(items(written, "ProcedureStepProgressInformationSequence")), {}))
    if (done := progress_of(task)) is not None:
        item |= element("ProcedureStepProgress", done.percent)
        item |= element("ProcedureStepProgressDescription", done.step) if done.step else {}
    ended = task.get("executionPeriod", {}).get("end") or task.get("lastModified")
    if state is State.CANCELED:
        if ended and not text(item, "ProcedureStepCancellationDateTime"):
            item |= element("ProcedureStepCancellationDateTime", dicom_time(ended))
        if reason := task.get("statusReason", {}).get("text"):
            item |= element("ReasonForCancellation", str(reason))
        if not values(item, _DISCONTINUED):
            item |= element(_DISCONTINUED, _code_item(_UNSPECIFIED, ""))
    return element("ProcedureStepProgressInformationSequence", ordered(item)) if item else {}


def _performed(task: Task, known: Known) -> Model:
    """Return what was done, where whoever did it has told that by FHIR."""
    assert is_over(task)  # noqa: S101
    period = task.get("executionPeriod", {})
    item: Model = {
        **element("PerformedWorkitemCodeSequence", *concept_items(task.get("code", {}))),
        **element("PerformedStationNameCodeSequence", *_stations(task)),
        **element("OutputInformationSequence", *_images(task, "output", known)),
    }
    for keyword, end in (
        ("PerformedProcedureStepStartDateTime", "start"),
        ("PerformedProcedureStepEndDateTime", "end"),
    ):
        item |= element(keyword, *([dicom_time(period[end])] if end in period else []))
    return element("UnifiedProcedureStepPerformedProcedureSequence", ordered(item))


# --- images


def _images(task: Task, which: str, known: Known) -> Iterator[Model]:
    """Yield an item for each series that the inputs or outputs name, alone or as a part of a study."""
    for parameter, named in _named(task, which):
        found = known.studies(parameter, named)
        if not found and parameter == "_id":
            yield ordered(element("TypeOfInstances", "DICOM") | element("StudyInstanceUID", named))
        for study in found:
            yield from _of_study(study, parameter, named, known)


def _named(task: Task, which: str) -> Iterable[tuple[str, str]]:
    """Return (search parameter of ImagingStudy, UID) of the images that are named; each series once, series alone."""
    parameters = {"imaging-study": "_id", "series": "series", "instance": "instance"}
    found: dict[tuple[str, str], None] = {}
    focus = task.get("focus", {}).get("reference", "") if which == "input" else ""
    if "ImagingStudy/" in focus:
        found["_id", focus.rpartition("/")[2]] = None
    for entry in task.get(which, []):
        if (name := name_of(entry)) in parameters:
            value = next((each for key, each in entry.items() if key.startswith("value")), "")
            uid = value.get("reference", "") if isinstance(value, Mapping) else str(value)
            found[parameters[name], uid.rpartition("/")[2]] = None
    return found


def _of_study(study: Json, parameter: str, named: str, known: Known) -> Iterator[Model]:
    study_uid = str(study["id"])
    for series in study.get("series", []):
        instances = series.get("instance", [])
        if parameter == "series" and series.get("uid") != named:
            continue
        if parameter == "instance":
            instances = [each for each in instances if each.get("uid") == named]
            if not instances:
                continue
        references = [
            element("ReferencedSOPClassUID", str(each.get("sopClass", {}).get("code", "")).removeprefix("urn:oid:"))
            | element("ReferencedSOPInstanceUID", each["uid"])
            for each in instances
        ]
        retrieval = element("RetrieveURL", known.address(study_uid, series["uid"]))
        yield ordered(
            element("TypeOfInstances", "DICOM")
            | element("StudyInstanceUID", study_uid)
            | element("SeriesInstanceUID", series["uid"])
            | element("ReferencedSOPSequence", *references)
            | element("WADORSRetrievalSequence", retrieval)
        )


def _is_uid(uid: str) -> bool:
    parts = uid.split(".")
    return (
        len(uid) <= 64
        and len(parts) > 1
        and all(each.isascii() and each.isdecimal() and (each == "0" or each[0] != "0") for each in parts)
    )
