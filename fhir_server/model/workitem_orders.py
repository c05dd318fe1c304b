"""From a UPS work item to the FHIR Task that it is: placed, changed, claimed, reported on and ended.

Pure; every function returns a new Task, with the state that the move leads to. Whether the move may be made, and by
whom, is the business of `task_writing`, as for every other Task. The Transaction UID is the lock of whoever performs
it: its digest is kept, so that a reader of the Task cannot act in the performer's name.
Sources: PS3.4 CC.2.1 (change of state), CC.2.5 (attributes, final state requirements), CC.2.6 (update).
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from fhir_server.model.dates import to_instant
from fhir_server.model.task import (
    ANYBODY,
    LOCK,
    MOST_REASON,
    Json,
    Progress,
    Status,
    Task,
    codings_of,
    progress,
    with_extension,
)
from fhir_server.model.task_writing import Actor
from fhir_server.model.workitem import (
    DEFAULT_LABEL,
    OTHER_SCHEME,
    SCHEMES,
    Known,
    State,
    kept,
    task_id_of,
    to_dicom_time,
    was_created_as_workitem,
    with_kept,
)
from imaging.dicomweb import moments
from imaging.dicomweb.json_model import element, items, tag_of, text, values
from imaging.errors import AppError, Category

ORDERED_PRIORITIES = {"HIGH": "stat", "MEDIUM": "routine", "LOW": "routine"}
READINESS = ("READY", "UNAVAILABLE", "INCOMPLETE")
# What whoever creates one has to tell. Source: PS3.4 table CC.2.5-3, type 1 at N-CREATE.
TOLD = (
    "ProcedureStepState", "ScheduledProcedureStepPriority", "ProcedureStepLabel",
    "ScheduledProcedureStepStartDateTime", "InputReadinessState",
)  # fmt: skip
# What an update cannot change: identity, the state, and the lock. Source: the same table, "not allowed" at N-SET.
FIXED = ("SOPClassUID", "SOPInstanceUID", "ProcedureStepState", "ScheduledProcedureStepModificationDateTime")
# What has to be known of the performed procedure when it is completed. Source: the same table, final state P.
PERFORMED = (
    "PerformedStationNameCodeSequence", "PerformedProcedureStepStartDateTime", "PerformedWorkitemCodeSequence",
    "PerformedProcedureStepEndDateTime",
)  # fmt: skip
MOST_NAMED = 10_000  # inputs of a Task; instances beyond are named by their series
MOST_LOOKS = 20  # studies whose patient is looked at
_ACCESSION = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"}]}


def placed(model: Mapping[str, Any], uid: str, known: Known) -> Json:
    """Return the Task that a new work item is. Raises INVALID naming what is missing or wrong."""
    for keyword in TOLD:
        if not text(model, keyword):
            raise AppError(Category.INVALID, "a new work item has to have this attribute", where=keyword)
    if text(model, "ProcedureStepState") != State.SCHEDULED:
        raise AppError(Category.INVALID, "a new work item is SCHEDULED", where="ProcedureStepState")
    if text(model, "TransactionUID"):
        raise AppError(Category.INVALID, "it is empty until the work item is claimed", where="TransactionUID")
    if text(model, "SOPInstanceUID") not in ("", uid):
        raise AppError(Category.INVALID, "it is not the UID of the address", where="SOPInstanceUID")
    told = {**model, **({} if text(model, "WorklistLabel") else element("WorklistLabel", DEFAULT_LABEL))}
    task: Json = {"resourceType": "Task", "id": task_id_of(uid), "status": str(Status.REQUESTED), "intent": "order"}
    return _as_ordered(task, told, known)


def changed(task: Task, model: Mapping[str, Any], known: Known) -> Json:
    """Return a Task that nobody has begun with other attributes. Raises CONFLICT where it was placed by FHIR."""
    before = kept(task)
    if not was_created_as_workitem(before):
        message = "this work item is a Task that was placed by FHIR: what it orders cannot change"
        raise AppError(Category.CONFLICT, message, where="workitem")
    _check_update(model)
    return _as_ordered(task, {**before, **model}, known)


def claimed(task: Task, transaction_uid: str, actor: Actor) -> Json:
    """Return the Task in progress, done by the actor and locked by a Transaction UID."""
    locked = with_extension(task, LOCK, {"url": LOCK, "valueString": _digest(task, transaction_uid)})
    owner = task.get("owner") or {"reference": _performer(task, actor)}
    return {**locked, "status": str(Status.IN_PROGRESS), "owner": owner}


def is_locked_by(task: Task, transaction_uid: str) -> bool:
    """Say whether a Task was claimed under this Transaction UID."""
    digest = _digest(task, transaction_uid)
    return any(each.get("url") == LOCK and each.get("valueString") == digest for each in task.get("extension", []))


def is_locked(task: Task) -> bool:
    """Say whether a Task was claimed as a work item; its performer then goes by a Transaction UID."""
    return any(each.get("url") == LOCK for each in task.get("extension", []))


def reported(task: Task, model: Mapping[str, Any], now: datetime) -> Json:
    """Return a Task in progress with what its performer tells: attributes, and how far it is. Raises INVALID."""
    _check_update(model)
    before = kept(task)
    if tag_of("PatientID") in model and text(model, "PatientID").strip() != text(before, "PatientID").strip():
        message = "whom it is for cannot change once it was begun: cancel it and order it anew"
        raise AppError(Category.CONFLICT, message, where="PatientID")
    written = with_kept(task, {**before, **model})
    for item in items(model, "ProcedureStepProgressInformationSequence")[:1]:
        if told := text(item, "ProcedureStepProgress"):
            percent = _percent(told)
            return progress(written, Progress(percent, text(item, "ProcedureStepProgressDescription")[:200]), now)
    return written


def completed(task: Task) -> Json:
    """Return the Task completed, with the outputs that its performer has told. Raises CONFLICT for what is missing."""
    sequence = "UnifiedProcedureStepPerformedProcedureSequence"
    done = items(kept(task), sequence)[:1]
    missing = [sequence] if not done else [name for name in PERFORMED if not values(done[0], name)]
    if done and tag_of("OutputInformationSequence") not in done[0]:
        missing.append("OutputInformationSequence")
    if missing:
        message = f"to be completed it has to tell {', '.join(missing)}: update it first"
        raise AppError(Category.CONFLICT, message, where="ProcedureStepState")
    outputs = list(_outputs(items(done[0], "OutputInformationSequence")))
    return {**task, "status": str(Status.COMPLETED), **({"output": outputs} if outputs else {})}


def given_up(task: Task, now: datetime) -> Json:
    """Return the Task failed, as its performer cancels the work item, with the reason that was told."""
    model = kept(task)
    item = dict(next(iter(items(model, "ProcedureStepProgressInformationSequence")), {}))
    reason = _reason(item) or "cancelled by its performer"
    if not text(item, "ProcedureStepCancellationDateTime"):
        item |= element("ProcedureStepCancellationDateTime", to_dicom_time(now))
    told = with_kept(task, model | element("ProcedureStepProgressInformationSequence", item))
    return {**told, "status": str(Status.FAILED), "statusReason": {"text": reason[:MOST_REASON]}}


def withdrawn(task: Task, asked: Mapping[str, Any]) -> Json:
    """Return the Task cancelled at the wish of whoever ordered it; `asked` is the request, which may tell a reason."""
    reason = _reason(asked)
    told = {"statusReason": {"text": reason[:MOST_REASON]}} if reason else {}
    return {**task, "status": str(Status.CANCELLED), **told}


# --- what is ordered


def _as_ordered(task: Task, model: Mapping[str, Any], known: Known) -> Json:
    """Return the Task with the elements that say in FHIR what the work item says."""
    priority, readiness = text(model, "ScheduledProcedureStepPriority"), text(model, "InputReadinessState")
    if priority not in ORDERED_PRIORITIES:
        names = ", ".join(ORDERED_PRIORITIES)
        raise AppError(Category.INVALID, f"one of {names} expected", where="ScheduledProcedureStepPriority")
    if readiness not in READINESS:
        raise AppError(Category.INVALID, f"one of {', '.join(READINESS)} expected", where="InputReadinessState")
    sequence = items(model, "InputInformationSequence")
    elements = {
        "priority": ORDERED_PRIORITIES[priority],
        "code": _code(model),
        "description": text(model, "ProcedureStepLabel"),
        "performerType": _performers(model),
        "for": _patient(model, sequence, known),
        "basedOn": list(_requests(model)),
        "restriction": _expiration(model),
        "input": list(_inputs(sequence, known)),
    }
    rest = {name: each for name, each in task.items() if name not in elements}
    kept_whole = {tag: each for tag, each in model.items() if tag not in (tag_of("TransactionUID"),)}
    return with_kept({**rest, **{name: each for name, each in elements.items() if each}}, kept_whole)


def _code(model: Mapping[str, Any]) -> Json:
    codings = [_coding(each) for each in items(model, "ScheduledWorkitemCodeSequence")]
    return {**({"coding": codings} if codings else {}), "text": text(model, "ProcedureStepLabel")}


def _coding(item: Mapping[str, Any]) -> Json:
    codes = (text(item, keyword) for keyword in ("CodeValue", "LongCodeValue", "URNCodeValue"))
    code, designator = next((each for each in codes if each), ""), text(item, "CodingSchemeDesignator")
    if not code:
        raise AppError(Category.INVALID, "an item of a code sequence has a Code Value", where="CodeValue")
    system = text(item, "CodingSchemeURL") or SCHEMES.get(designator) or f"{OTHER_SCHEME}{designator or 'none'}"
    display = text(item, "CodeMeaning")
    return {"system": system, "code": code, **({"display": display} if display else {})}


def _performers(model: Mapping[str, Any]) -> list[Json]:
    """Return who may do it: the stations that are named, else those of the classes, else anybody who may at all."""
    for keyword in ("ScheduledStationNameCodeSequence", "ScheduledStationClassCodeSequence"):
        if named := items(model, keyword):
            return [{"coding": [_coding(each)]} for each in named]
    return [{"coding": [{"system": ANYBODY[0], "code": ANYBODY[1]}]}]


def _patient(model: Mapping[str, Any], sequence: Iterable[Mapping[str, Any]], known: Known) -> Json:
    """Return whom it is for: the Patient of the images where there is one, and the number that was told."""
    uids = dict.fromkeys(uid for each in sequence if (uid := text(each, "StudyInstanceUID")))
    subjects = {
        each.get("subject", {}).get("reference", "") for uid in [*uids][:MOST_LOOKS] for each in _study(uid, known)
    }
    number = text(model, "PatientID").strip()
    # The number stands there in either case: a search by it is answered by the index of such identifiers.
    told = {"type": "Patient", "identifier": {"value": number}} if number else {}
    return {"reference": subjects.pop(), **told} if len(subjects) == 1 and "" not in subjects else told


def _study(uid: str, known: Known) -> list[Json]:
    return known.studies("_id", uid)


def _requests(model: Mapping[str, Any]) -> Iterator[Json]:
    numbers = (text(each, "AccessionNumber").strip() for each in items(model, "ReferencedRequestSequence"))
    for number in dict.fromkeys(each for each in numbers if each):
        yield {"type": "ServiceRequest", "identifier": {"type": _ACCESSION, "value": number}}


def _expiration(model: Mapping[str, Any]) -> Json:
    keyword = "ScheduledProcedureStepExpirationDateTime"
    written = text(model, keyword)
    if not written:
        return {}
    return {"period": {"end": _instant(written, keyword)}}


def _instant(written: str, keyword: str) -> str:
    try:
        _, after = moments.bounds("", written.strip(), 0)
        moment = datetime.strptime(f"{after}+0000", "%Y%m%d%H%M%S.%f%z")
    except (ValueError, OverflowError):
        raise AppError(Category.INVALID, "a date and time as YYYYMMDDHHMMSS&ZZXX expected", where=keyword) from None
    return to_instant(moment)


def _inputs(sequence: Iterable[Mapping[str, Any]], known: Known) -> Iterator[Json]:
    """Yield the inputs of a Task: studies, series, and instances where not all of their series are meant."""
    found: dict[tuple[str, str], None] = {}
    for item in sequence:
        series = text(item, "SeriesInstanceUID")
        instances = [text(each, "ReferencedSOPInstanceUID") for each in items(item, "ReferencedSOPSequence")]
        if series and (not instances or _are_all(series, frozenset(instances), known)):
            found["series", series] = None
        elif instances:
            found.update({("instance", each): None for each in instances if each})
        elif study := text(item, "StudyInstanceUID"):
            found["imaging-study", study] = None
        if len(found) > MOST_NAMED:
            message = f"more than {MOST_NAMED} inputs; name series or studies"
            raise AppError(Category.TOO_LARGE, message, where="InputInformationSequence")
    yield from (_named(name, uid) for name, uid in found)


def _are_all(series_uid: str, instances: frozenset[str], known: Known) -> bool:
    for study in known.studies("series", series_uid):
        for series in study.get("series", []):
            if series.get("uid") == series_uid:
                return instances == {each.get("uid") for each in series.get("instance", [])}
    return False


def _outputs(sequence: Iterable[Mapping[str, Any]]) -> Iterator[Json]:
    """Yield the outputs of a Task: the studies, and the series in them."""
    found: dict[tuple[str, str], None] = {}
    for item in sequence:
        for name, keyword in (("imaging-study", "StudyInstanceUID"), ("series", "SeriesInstanceUID")):
            if uid := text(item, keyword):
                found[name, uid] = None
    yield from (_named(name, uid) for name, uid in found)


def _named(name: str, uid: str) -> Json:
    value = {"valueReference": {"reference": f"ImagingStudy/{uid}"}} if name == "imaging-study" else {"valueId": uid}
    return {"type": {"coding": [{"code": name}]}, **value}


# --- what is done


def _performer(task: Task, actor: Actor) -> str:
    kinds = codings_of(task.get("performerType", []))
    return next((device for device, own in actor.devices().items() if kinds & own), actor.organization)


def _digest(task: Task, transaction_uid: str) -> str:
    return hashlib.sha256(f"{task['id']}\n{transaction_uid}".encode()).hexdigest()


def _check_update(model: Mapping[str, Any]) -> None:
    for keyword in FIXED:
        if tag_of(keyword) in model:
            raise AppError(Category.INVALID, "an update cannot change this attribute", where=keyword)


def _percent(told: str) -> int:
    try:
        percent = round(float(told))
    except (ValueError, OverflowError):
        percent = -1
    if not 0 <= percent <= 100:
        raise AppError(Category.INVALID, "a number from 0 to 100 expected", where="ProcedureStepProgress")
    return percent


def _reason(told: Mapping[str, Any]) -> str:
    codes = items(told, "ProcedureStepDiscontinuationReasonCodeSequence")
    return text(told, "ReasonForCancellation").strip() or next((text(each, "CodeMeaning") for each in codes), "")
