"""What happened to a work item between two versions of its Task, as the Event Reports of the UPS Event SOP class.

Pure. Source: PS3.4 CC.2.4, table CC.2.4-1.
"""

from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import orjson

from fhir_server.model.task import CANCEL_REQUEST, Json, Task
from fhir_server.model.workitem import UPS_PUSH, State, dataset_of, state_of
from imaging.dicomweb.json_model import Model, checked, element, items, ordered, tag_of, text
from imaging.errors import AppError, Category

WORKLIST = "1.2.840.10008.5.1.4.34.5"  # the well-known UID of all work items; PS3.4 CC.3.1
FILTERED_WORKLIST = "1.2.840.10008.5.1.4.34.5.1"  # and of those that match something
LONGEST_REQUEST = 10_000  # characters of what a request for cancellation tells


class Kind(IntEnum):
    """Event Type ID."""

    STATE = 1
    CANCEL_REQUESTED = 2
    PROGRESS = 3
    SCP_STATUS = 4
    ASSIGNED = 5


_STATE = ("ProcedureStepState", "InputReadinessState")
_PROGRESS = "ProcedureStepProgressInformationSequence"
_CODES = "ProcedureStepDiscontinuationReasonCodeSequence"
_ASSIGNED = ("ScheduledStationNameCodeSequence", "ScheduledHumanPerformersSequence")
_REQUEST = ("ReasonForCancellation", _CODES, "ContactURI", "ContactDisplayName")


def report(kind: Kind, uid: str, number: int, content: Model) -> Model:
    """Return an Event Report about a work item; `number` tells it from others."""
    return ordered(
        element("AffectedSOPClassUID", UPS_PUSH)
        | element("MessageID", number % 65_536)
        | element("AffectedSOPInstanceUID", uid)
        | element("EventTypeID", int(kind))
        | content
    )


def state_report(task: Task) -> Model:
    """Return what a UPS State Report tells of a work item."""
    return _state(dataset_of(task, _Nobody()))


def going_down() -> Model:
    """Return what is told when the server stops: it keeps the worklist and who is subscribed to it."""
    return (
        element("SCPStatus", "GOING DOWN")
        | element("SubscriptionListStatus", "WARM START")
        | element("UnifiedProcedureStepListStatus", "WARM START")
    )


def happened(before: Task | None, after: Task) -> Iterator[tuple[Kind, Model]]:
    """Yield what became of a work item from one version of its Task to the next; None where there was none before."""
    if state_of(after) is None:
        return
    now = dataset_of(after, _Nobody())
    was = dataset_of(before, _Nobody()) if before is not None and state_of(before) is not None else {}
    if not was or _differs(was, now, *_STATE):
        yield Kind.STATE, _state(now)
    if (asked := _request(after)) and asked != _request(before or {}):
        yield Kind.CANCEL_REQUESTED, _requested(asked)
    if items(now, _PROGRESS) and _differs(was, now, _PROGRESS):
        yield Kind.PROGRESS, {tag_of(_PROGRESS): now[tag_of(_PROGRESS)]}
    if any(items(now, each) for each in (_ASSIGNED if not was else ())) or (was and _differs(was, now, *_ASSIGNED)):
        yield Kind.ASSIGNED, _assigned(now)


def cancel_request(asked: Model, requester: str, moment: str) -> Json:
    """Return the extension of a Task by which its cancellation is asked for. Raises TOO_LARGE.

    requester   the name of whoever asks
    moment      when, as an instant
    """
    told = {tag_of(each): asked[tag_of(each)] for each in _REQUEST if tag_of(each) in asked}
    written = orjson.dumps(ordered(told | element("RequestingAE", _title(requester)))).decode()
    if len(written) > LONGEST_REQUEST:
        raise AppError(Category.TOO_LARGE, f"a request of more than {LONGEST_REQUEST} characters", where="body")
    parts = [{"url": "at", "valueInstant": moment}, {"url": "request", "valueString": written}]
    return {"url": CANCEL_REQUEST, "extension": parts}


def _title(name: str) -> str:
    """Return a name as an AE title. Source: PS3.5 6.2, AE."""
    written = "".join(each if " " <= each <= "~" and each != "\\" else "_" for each in name)[:16].strip()
    return written or "UNKNOWN"


def _state(model: Model) -> Model:
    found = {tag_of(each): model[tag_of(each)] for each in _STATE if tag_of(each) in model}
    found = element("InputReadinessState", "READY") | found
    if text(model, "ProcedureStepState") == State.CANCELED:
        for item in items(model, _PROGRESS)[:1]:
            found |= {tag_of(each): item[tag_of(each)] for each in _REQUEST[:2] if tag_of(each) in item}
    return found


def _assigned(model: Model) -> Model:
    stations, people = _ASSIGNED
    humans = items(model, people)
    codes = [each for human in humans for each in items(human, "HumanPerformerCodeSequence")]
    organization = next((each for human in humans if (each := text(human, "HumanPerformerOrganization"))), "")
    return (
        element(stations, *items(model, stations))
        | element("HumanPerformerCodeSequence", *codes)
        | element("HumanPerformerOrganization", *([organization] if organization else []))
    )


def _request(task: Task) -> dict[str, Any]:
    """Return the request for cancellation that a Task holds, by the names of its parts."""
    for each in task.get("extension", []):
        if each.get("url") == CANCEL_REQUEST:
            return {
                str(part.get("url")): next((value for name, value in part.items() if name != "url"), "")
                for part in each.get("extension", [])
            }
    return {}


def _requested(asked: dict[str, Any]) -> Model:
    try:
        return checked(orjson.loads(str(asked.get("request", ""))))
    except (AppError, orjson.JSONDecodeError):
        return element("RequestingAE", "UNKNOWN")  # whoever writes Tasks may write anything there


def _differs(was: Model, now: Model, *keywords: str) -> bool:
    return any(was.get(tag_of(each)) != now.get(tag_of(each)) for each in keywords)


class _Nobody:
    """Who sees no images and no patients: none are told of."""

    def studies(self, parameter: str, value: str) -> list[Json]:
        return []

    def patient(self, reference: str) -> Json | None:
        return None

    def address(self, study_uid: str, series_uid: str) -> str:
        return ""
