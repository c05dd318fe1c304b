"""What clients may write of a Task: who is what to it, and what each may make of it.

Pure. A Task is addressed to one owner (an Organization, or a Device that belongs to one), or it is open: it has no
owner and names kinds of performers, of which any may claim it. Every other Task is this server's. The server keeps the
times and the record of claims; what a client writes there is not taken.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fhir_server.model.dates import to_instant
from fhir_server.model.task import (
    ANYBODY,
    CANCEL_REQUEST,
    CLAIM,
    INITIAL,
    LOCK,
    PROGRESS,
    TERMINAL,
    WAITING,
    WORKITEM,
    Json,
    Kind,
    Role,
    Status,
    Task,
    check_inputs,
    check_move,
    check_outputs,
    claimed,
    code_of,
    codings_of,
    given_back,
    is_changeable_workitem,
    is_open,
    status_of,
    with_extension,
    without_extension,
)
from imaging.errors import AppError, Category

# What a role may change of a Task besides its status; a draft is its requester's altogether.
_OF_OWNER = frozenset({"businessStatus", "statusReason", "output", "note", "extension", "executionPeriod"})
_OF_REQUESTER = frozenset({"statusReason", "note"})
_ALWAYS = frozenset({"meta", "text", "status", "lastModified"})
_NO_ORDERS = frozenset({"proposal", "plan", "option"})  # intents that authorise nobody to act (FHIR R4 request-intent)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who writes Tasks through a door.

    organization  "Organization/..."
    devices       "Device/..." that belong to it, with the codes of their types; looked up where a Task asks for it
    may_claim     whether a contract lets it do what is open to any of a kind
    """

    organization: str
    devices: Callable[[], Mapping[str, frozenset[tuple[str, str]]]]
    may_claim: bool

    def is_meant_by(self, reference: str) -> bool:
        """Say whether a reference names the organisation or one of its devices."""
        return reference == self.organization or (reference.startswith("Device/") and reference in self.devices())

    def is_of(self, kinds: frozenset[tuple[str, str]]) -> bool:
        """Say whether one of its devices is of one of these kinds."""
        return any(kinds & own for own in self.devices().values())


def created_by(task: Task, actor: Actor, kinds: Mapping[str, Kind], now: datetime) -> Json:
    """Return a Task as a client may make it: ordered by the actor, and not yet begun.

    Raises FORBIDDEN for another's name as requester, CONFLICT for a status beyond the beginning, INVALID for inputs.
    """
    requester = actor.organization
    if task.get("requester", {}).get("reference", requester) != requester:
        raise AppError(Category.FORBIDDEN, f"you order as {requester}, not for others", where="Task.requester")
    if status_of(task) not in INITIAL:
        allowed = ", ".join(sorted(INITIAL))
        message = f"a Task begins as one of {allowed}, not as {task['status']}"
        raise AppError(Category.CONFLICT, message, where="Task.status")
    if "output" in task:
        raise AppError(Category.CONFLICT, "a Task that has not begun has no output", where="Task.output")
    kind = kinds.get(code_of(task))
    _check_intent(task, kinds)
    if kind is not None:
        check_inputs(task, kind)
    made = {**without_extension(task, CLAIM), "requester": {**task.get("requester", {}), "reference": requester}}
    return {"authoredOn": to_instant(now), **made, "lastModified": to_instant(now)}


def updated_by(current: Task, new: Task, actor: Actor, kinds: Mapping[str, Kind], now: datetime) -> Json:
    """Return a Task as a client may change it, being its requester, its owner, or whoever claims an open one.

    Raises FORBIDDEN for anybody else, for a move or an element that is not theirs, CONFLICT for an illegal move.
    """
    roles = roles_of(current, actor)
    if not roles:
        message = "only the requester or the owner of a Task may change it, or whoever may claim an open one"
        raise AppError(Category.FORBIDDEN, message, where="Task")
    source, to = status_of(current), status_of(new)
    if source in TERMINAL:
        if dict(_content(current)) != dict(_content(new)):
            message = f"a Task that is {source} is over and cannot change"
            raise AppError(Category.CONFLICT, message, where="Task.status")
        return dict(new)
    if source is not to:
        check_move(source, to, roles)
    if is_open_to_change(current, new, roles):
        _check_intent(new, kinds)
        checked = created_by({**new, "status": str(Status.DRAFT)}, actor, kinds, now)
        return {**checked, "status": str(to)}
    is_claim = to is Status.IN_PROGRESS and Role.CLAIMANT in roles
    _check_elements(current, new, roles, may_change=frozenset({"owner"}) if is_claim else frozenset())
    if not is_claim and Role.OWNER not in roles and _workitem(current) != _workitem(new):
        message = "the work item that a Task is can be changed by its requester before it is begun, and by its owner"
        raise AppError(Category.FORBIDDEN, message, where="Task.extension")
    if is_claim and not actor.is_meant_by(new.get("owner", {}).get("reference", "")):
        message = "to claim a Task, write your Organization or the Device that does it as its owner"
        raise AppError(Category.INVALID, message, where="Task.owner")
    _check_progress(new)
    kind = kinds.get(code_of(current))
    if kind is not None and to is Status.COMPLETED:
        check_outputs(new, kind)
    return _kept(current, new, now, is_claim=is_claim)


def is_open_to_change(current: Task, new: Task, roles: frozenset[Role]) -> bool:
    """Say whether what is ordered may be another: a draft, and by its requester a work item that nobody has begun."""
    if status_of(current) is Status.DRAFT:
        return True
    is_same = status_of(current) is status_of(new)
    return Role.REQUESTER in roles and is_same and is_changeable_workitem(current)


def check_unmatched(current: Task, new: Task, actor: Actor) -> None:
    """Return when an update may come without If-Match. Raises INVALID for a move that only who does the work may make.

    Of two processes that do the work of one organisation, one would else overwrite the other's claim or result.
    """
    source, to = status_of(current), status_of(new)
    if source is to:
        return
    try:
        check_move(source, to, roles_of(current, actor) & {Role.REQUESTER})
    except AppError as error:
        if error.category is Category.FORBIDDEN and roles_of(current, actor) & {Role.OWNER, Role.CLAIMANT}:
            message = f"to make a Task {to}, say which version you have read"
            raise AppError(Category.INVALID, message, where="If-Match") from None


def check_deletable(current: Task, actor: Actor) -> None:
    """Return when a client may delete a Task: its requester, before the work began or after it ended."""
    if Role.REQUESTER not in roles_of(current, actor):
        raise AppError(Category.FORBIDDEN, "only the requester of a Task may delete it", where="Task")
    if status_of(current) in (Status.IN_PROGRESS, Status.ON_HOLD):
        raise AppError(Category.CONFLICT, "the Task is being worked on: cancel it first", where="Task.status")


def roles_of(task: Task, actor: Actor) -> frozenset[Role]:
    """Return what an actor is to a Task."""
    found = set()
    if task.get("requester", {}).get("reference") == actor.organization:
        found.add(Role.REQUESTER)
    if actor.is_meant_by(task.get("owner", {}).get("reference", "")):
        found.add(Role.OWNER)
    kinds = codings_of(task.get("performerType", []))
    if is_open(task) and actor.may_claim and (ANYBODY in kinds or actor.is_of(kinds)):
        found.add(Role.CLAIMANT)
    return frozenset(found)


def _check_intent(task: Task, kinds: Mapping[str, Kind]) -> None:
    """Return when this server may do what it has a kind for. Raises INVALID for a plan, which stays a draft."""
    if code_of(task) in kinds and task.get("intent") in _NO_ORDERS and status_of(task) in WAITING:
        message = f"what has the intent {task['intent']} is not to be done; an order, or a draft, is expected"
        raise AppError(Category.INVALID, message, where="Task.intent")


def _content(task: Task) -> Iterable[tuple[str, Any]]:
    return ((name, value) for name, value in task.items() if name not in ("id", "meta"))


def _workitem(task: Task) -> list[Any]:
    return [each for each in task.get("extension", []) if each.get("url") in (WORKITEM, LOCK)]


def _check_elements(current: Task, new: Task, roles: frozenset[Role], *, may_change: frozenset[str]) -> None:
    allowed = _ALWAYS | may_change
    allowed |= _OF_OWNER if roles & {Role.OWNER, Role.CLAIMANT} else frozenset()
    allowed |= _OF_REQUESTER if Role.REQUESTER in roles else frozenset()
    names = [*current, *(name for name in new if name not in current)]
    if Role.REQUESTER in roles:  # who ordered it may ask for its cancellation
        current, new = (without_extension(each, CANCEL_REQUEST) for each in (current, new))
    for name in names:
        if name not in allowed and current.get(name) != new.get(name):
            message = f"Task.{name} cannot be changed by the {' and '.join(sorted(roles))} once it was ordered"
            raise AppError(Category.FORBIDDEN, message, where=f"Task.{name}")


def _check_progress(task: Task) -> None:
    for number, extension in enumerate(task.get("extension", [])):
        if extension.get("url") == PROGRESS:
            percents = [
                each.get("valueUnsignedInt") for each in extension.get("extension", []) if each["url"] == "percent"
            ]
            if len(percents) != 1 or percents[0] is None or not 0 <= percents[0] <= 100:
                message = "progress has one percent, a valueUnsignedInt from 0 to 100"
                raise AppError(Category.INVALID, message, where=f"Task.extension[{number}]")


def _kept(current: Task, new: Task, now: datetime, *, is_claim: bool) -> Json:
    """Return what is written, with what the server keeps itself: times, and the record of claims."""
    source, to, moment = status_of(current), status_of(new), to_instant(now)
    record = next((each for each in current.get("extension", []) if each.get("url") == CLAIM), None)
    kept = {**with_extension(new, CLAIM, record), "lastModified": moment}
    if is_claim:
        kept = claimed(kept)
    if to is Status.READY and source not in WAITING:
        return given_back(kept)
    if to is Status.IN_PROGRESS and source in WAITING:
        kept["executionPeriod"] = {"start": moment}
    elif to in TERMINAL and "executionPeriod" in current:
        kept = without_extension(kept, PROGRESS)
        kept["executionPeriod"] = {**current["executionPeriod"], "end": moment}
    elif "executionPeriod" in current:
        kept["executionPeriod"] = current["executionPeriod"]
    return kept
