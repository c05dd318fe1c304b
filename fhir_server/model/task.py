"""The state machine of the FHIR Task: which moves are legal, who may make them, and what a move makes of a Task.

Pure; every function returns a new Task. Terminal states are final: what went wrong is ordered again, as a new Task.
Source: FHIR R4 Task, 12.1.3 state machine; where it leaves room, `MOVES` is the narrower.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from fhir_server.model.dates import to_instant
from imaging.errors import AppError, Category

Json = dict[str, Any]
Task = Mapping[str, Any]

PROGRESS = "urn:fhir-imaging:extension:progress"  # on Task: percent, step and estimate of the work
CLAIM = "urn:fhir-imaging:extension:claim"  # on Task: whether its owner came by itself, and how many claims lapsed
BUSINESS_STATUS = "urn:fhir-imaging:code:business-status"
WAITS = "waits"  # businessStatus: the order waits for something outside, which its text names
LAPSED = "lapsed"  # businessStatus: who had claimed the order was not heard of any more
CODES = "urn:fhir-imaging:code:task"  # code system of Task.code
SERVER = "Device/fhir-imaging-server"  # this server as owner of a Task
ALGORITHM = "Device/algorithm-"  # and what it runs
KIND = ("urn:fhir-imaging:code:performer", "imaging-server")  # Task.performerType that means such a server as well
ANYBODY = ("urn:fhir-imaging:code:performer", "any")  # Task.performerType that means whoever may claim orders at all
WORKITEM = "urn:fhir-imaging:extension:workitem"  # on Task: the UPS work item that it is, as DICOM JSON in a string
CANCEL_REQUEST = "urn:fhir-imaging:extension:workitem-cancel-request"  # on Task: its performer is asked to cancel it
LOCK = "urn:fhir-imaging:extension:workitem-lock"  # on Task: SHA-256 of the Transaction UID under which it was claimed
MOST_REASON = 500  # characters of a statusReason


class Status(StrEnum):
    """Where a Task stands. Source: FHIR R4 value set task-status."""

    DRAFT = "draft"
    REQUESTED = "requested"
    RECEIVED = "received"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    READY = "ready"
    IN_PROGRESS = "in-progress"
    ON_HOLD = "on-hold"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    ENTERED_IN_ERROR = "entered-in-error"


class Role(StrEnum):
    """Who makes a move: whoever ordered, does the work, may claim it, or this server, which does what is left."""

    REQUESTER = "requester"
    OWNER = "owner"
    CLAIMANT = "claimant"
    SERVER = "server"


TERMINAL = frozenset(
    {Status.REJECTED, Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.ENTERED_IN_ERROR}
)  # fmt: skip
INITIAL = frozenset({Status.DRAFT, Status.REQUESTED, Status.READY})  # in which a Task may be made
WAITING = frozenset({Status.REQUESTED, Status.RECEIVED, Status.ACCEPTED, Status.READY})  # from which work may start

_WORKERS = frozenset({Role.OWNER, Role.SERVER})
_STARTERS = _WORKERS | {Role.CLAIMANT}
_REQUESTER = frozenset({Role.REQUESTER})
_CANCELLERS = frozenset({Role.REQUESTER, Role.SERVER})


def _moves() -> Iterable[tuple[tuple[Status, Status], frozenset[Role]]]:
    s = Status
    # The requester's way to place an order.
    yield from (((s.DRAFT, to), _REQUESTER) for to in (s.REQUESTED, s.READY, s.ENTERED_IN_ERROR))
    # The owner's answer to an order; steps may be left out (12.1.3: not all states are needed by every workflow).
    yield (s.REQUESTED, s.RECEIVED), _WORKERS
    for source in (s.REQUESTED, s.RECEIVED):
        yield from (((source, to), _WORKERS) for to in (s.ACCEPTED, s.REJECTED))
    for source in (s.REQUESTED, s.RECEIVED, s.ACCEPTED):
        yield (source, s.READY), _WORKERS
    yield (s.READY, s.REJECTED), _WORKERS
    # The work.
    for source in WAITING:
        yield (source, s.IN_PROGRESS), _STARTERS
        yield (source, s.FAILED), _WORKERS
    # Back to ready: given back undone, or left by an owner that was not heard of any more.
    yield from (((s.IN_PROGRESS, to), _WORKERS) for to in (s.ON_HOLD, s.READY, s.COMPLETED, s.FAILED))
    yield from (((s.ON_HOLD, to), _WORKERS) for to in (s.IN_PROGRESS, s.READY, s.FAILED))
    # Withdrawal, at any time before the end.
    for source in (s.DRAFT, *WAITING, s.IN_PROGRESS, s.ON_HOLD):
        yield (source, s.CANCELLED), _CANCELLERS
    for source in (s.REQUESTED, s.RECEIVED):
        yield (source, s.ENTERED_IN_ERROR), _REQUESTER


# (from, to) -> who may; what is not here is illegal
MOVES: Mapping[tuple[Status, Status], frozenset[Role]] = MappingProxyType(dict(_moves()))


@dataclass(frozen=True, slots=True)
class Parameter:
    """One typed input or output of a kind of Task: `type.coding.code` or `type.text` is its name.

    value     the element that holds it, such as `valueString`; `valueDecimal|valueQuantity` where either may
    most      how often it may come; `least` how often it has to
    check     returns what is wrong with a value, "" when nothing is
    """

    name: str
    value: str
    least: int = 0
    most: int = 1
    check: Callable[[Any], str] = lambda _: ""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of Task: the code that names it, and what goes in and comes out.

    further   inputs that this order may have besides, such as the parameters of the algorithm that it names
    check     raises INVALID for inputs that are right one by one and wrong together
    """

    code: str
    inputs: tuple[Parameter, ...] = ()
    outputs: tuple[Parameter, ...] = ()
    further: Callable[[Task], tuple[Parameter, ...]] = lambda _: ()
    check: Callable[[Task], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the work is: 0 to 100 percent, the step at hand, and seconds still to go (None: not known)."""

    percent: int
    step: str = ""
    estimate_s: int | None = None

    def estimated(self, elapsed_s: float) -> "Progress":
        """Return the progress with what is still to go if the rest takes as long for each percent as what was done."""
        if not 0 < self.percent <= 100:
            return self
        return replace(self, estimate_s=round(elapsed_s * (100 - self.percent) / self.percent))


def status_of(task: Task) -> Status:
    """Return where a Task stands. Raises INVALID for a status that FHIR does not know."""
    try:
        return Status(task["status"])
    except (KeyError, ValueError):
        raise AppError(
            Category.INVALID, "the status of a Task has to be one of task-status", where="Task.status"
        ) from None


def is_over(task: Task) -> bool:
    """Say whether a Task has ended for good."""
    return status_of(task) in TERMINAL


def code_of(task: Task) -> str:
    """Return the first code that names a kind of Task of this server, "" without any; codes of others are theirs."""
    codings = task.get("code", {}).get("coding", [])
    return next((str(each["code"]) for each in codings if "code" in each and each.get("system", CODES) == CODES), "")


def codings_of(concepts: Iterable[Task]) -> frozenset[tuple[str, str]]:
    """Return (system, code) of all codings of CodeableConcepts; "" for a system that is not given."""
    codings = (each for concept in concepts for each in concept.get("coding", []))
    return frozenset((str(each.get("system", "")), str(each["code"])) for each in codings if "code" in each)


def is_open(task: Task) -> bool:
    """Say whether a Task waits for any performer of the kinds that it names."""
    return status_of(task) in WAITING and "owner" not in task and bool(codings_of(task.get("performerType", [])))


def is_for_server(task: Task) -> bool:
    """Say whether this server does a Task: one that is addressed to it, or to nobody else."""
    owner = task.get("owner", {}).get("reference")
    if owner is not None:
        return bool(owner == SERVER or owner.startswith(ALGORITHM))
    kinds = codings_of(task.get("performerType", []))
    return not kinds or KIND in kinds


def is_for_server_alone(task: Task) -> bool:
    """Say whether nobody but this server may do a Task."""
    return is_for_server(task) and ("owner" in task or codings_of(task.get("performerType", [])) <= {KIND})


def is_changeable_workitem(task: Task) -> bool:
    """Say whether a Task was placed as a work item for others than this server, and nobody has begun or accepted it.

    Its requester may still change what it orders (PS3.4 CC.2.6.3); whoever claims it names the version that was read.
    """
    is_workitem = any(each.get("url") == WORKITEM for each in task.get("extension", []))
    return is_workitem and status_of(task) in (Status.REQUESTED, Status.READY) and not is_for_server(task)


def move(task: Task, to: Status, role: Role, now: datetime) -> Json:
    """Return the Task in another state. Raises CONFLICT for an illegal move, FORBIDDEN where the role may not."""
    check_move(status_of(task), to, frozenset({role}))
    return {**task, "status": str(to), "lastModified": to_instant(now)}


def check_move(source: Status, to: Status, roles: frozenset[Role]) -> None:
    """Return when one of the roles may make the move. Raises CONFLICT or FORBIDDEN, saying what may follow."""
    allowed = MOVES.get((source, to))
    if allowed is None:
        following = ", ".join(sorted(end for start, end in MOVES if start is source)) or "nothing: it is over"
        message = f"a Task that is {source} cannot become {to}; what may follow is {following}"
        raise AppError(Category.CONFLICT, message, where="Task.status")
    if not roles & allowed:
        who = " or ".join(sorted(allowed))
        raise AppError(Category.FORBIDDEN, f"only the {who} may make a {source} Task {to}", where="Task.status")


def accept(task: Task, role: Role, now: datetime) -> Json:
    """Return the Task as accepted by whoever will do it."""
    return move(task, Status.ACCEPTED, role, now)


def start(task: Task, role: Role, now: datetime) -> Json:
    """Return the Task in progress; one that was already, left by a worker that died, starts again from nothing."""
    moment = to_instant(now)
    if status_of(task) is Status.IN_PROGRESS:
        started = {**task, "lastModified": moment}
    else:
        started = move(task, Status.IN_PROGRESS, role, now)
        started["executionPeriod"] = {"start": moment}
    return _without_progress(started)


def progress(task: Task, done: Progress, now: datetime) -> Json:
    """Return the Task with how far it is. Raises CONFLICT unless it is in progress, INVALID beyond 0 to 100 percent."""
    if status_of(task) is not Status.IN_PROGRESS:
        raise AppError(Category.CONFLICT, "only a Task in progress has progress", where="Task.status")
    if not 0 <= done.percent <= 100:
        raise AppError(Category.INVALID, f"{done.percent} is not between 0 and 100 percent", where="Task.extension")
    parts: list[Json] = [{"url": "percent", "valueUnsignedInt": done.percent}]
    if done.step:
        parts.append({"url": "step", "valueString": done.step})
    if done.estimate_s is not None:
        parts.append({"url": "estimate", "valueDuration": _seconds(done.estimate_s)})
    told = with_extension(task, PROGRESS, {"url": PROGRESS, "extension": parts})
    status = {"businessStatus": {"text": done.step}} if done.step else {}
    return {**told, **status, "lastModified": to_instant(now)}


def progress_of(task: Task) -> Progress | None:
    """Return how far a Task says that it is, None where it does not."""
    told = next((each["extension"] for each in task.get("extension", []) if each.get("url") == PROGRESS), None)
    if told is None:
        return None
    parts = {each["url"]: each for each in told}
    return Progress(
        parts["percent"]["valueUnsignedInt"],
        parts.get("step", {}).get("valueString", ""),
        parts.get("estimate", {}).get("valueDuration", {}).get("value"),
    )


def complete(task: Task, kind: Kind, outputs: Sequence[Json], role: Role, now: datetime) -> Json:
    """Return the Task as completed, with outputs that its kind knows. Raises INVALID naming a wrong output."""
    _check_values(outputs, kind.outputs, "output")
    done = _ended(_without_progress(move(task, Status.COMPLETED, role, now)), now)
    return {**done, "output": [dict(each) for each in outputs]} if outputs else done


def is_under_way(task: Task) -> bool:
    """Say whether work on a Task was begun and has left nothing behind that a new start would clear."""
    marks = any(each.get("url") == PROGRESS for each in task.get("extension", []))
    return status_of(task) is Status.IN_PROGRESS and not marks


def waiting_for(task: Task, reason: str, now: datetime) -> Json:
    """Return a Task in progress that waits for something outside; its businessStatus says for what."""
    status = {"coding": [{"system": BUSINESS_STATUS, "code": WAITS}], "text": reason[:MOST_REASON]}
    return {**_without_progress(task), "businessStatus": status, "lastModified": to_instant(now)}


def claimed(task: Task) -> Json:
    """Return a Task whose owner came by itself, as any of a kind, with a note of that."""
    return with_extension(task, CLAIM, _claim(is_open=True, lapsed=_claim_of(task)[1]))


def given_back(task: Task) -> Json:
    """Return a Task that is ready again, without signs of work; one that was open is open again."""
    was_open, _ = _claim_of(task)
    gone = {"executionPeriod", "output", *({"owner"} if was_open else ())}
    rest = without_extension(without_extension(_without_progress(task), LOCK), CANCEL_REQUEST)
    return {name: value for name, value in rest.items() if name not in gone}


def lapsed(task: Task, now: datetime, *, most: int) -> Json:
    """Return a Task whose owner was not heard of any more: ready again, or failed where that happened `most` times."""
    was_open, before = _claim_of(task)
    owner = task.get("owner", {}).get("reference", "its owner")
    count = before + 1
    left = with_extension(task, CLAIM, _claim(is_open=was_open, lapsed=count))
    reason = f"{owner} was not heard of any more"
    if count >= most:
        return fail(left, f"claimed and left {count} times, at last because {reason}", Role.SERVER, now)
    status = {"coding": [{"system": BUSINESS_STATUS, "code": LAPSED}], "text": reason}
    return {**given_back(move(left, Status.READY, Role.SERVER, now)), "businessStatus": status}


def waits_for(task: Task) -> str:
    """Return what a Task waits for outside of this server, "" when nobody said that it does."""
    status = task.get("businessStatus", {})
    return str(status.get("text", "")) if any(each.get("code") == WAITS for each in status.get("coding", [])) else ""


def as_failed(completed: Task, reason: str) -> Json:
    """Return a Task that was about to be completed as failed; its outputs tell what was done of it."""
    return {**completed, "status": str(Status.FAILED), "statusReason": {"text": reason[:MOST_REASON]}}


def fail(task: Task, reason: str, role: Role, now: datetime) -> Json:
    """Return the Task as failed, with the reason in words."""
    failed = _ended(move(task, Status.FAILED, role, now), now)
    return {**failed, "statusReason": {"text": reason[:MOST_REASON]}}


def cancel(task: Task, reason: str, role: Role, now: datetime) -> Json:
    """Return the Task as cancelled; whoever works on it stops."""
    cancelled = _ended(move(task, Status.CANCELLED, role, now), now)
    return {**cancelled, "statusReason": {"text": reason[:MOST_REASON]}} if reason else cancelled


def check_outputs(task: Task, kind: Kind) -> None:
    """Return when the outputs are what the kind gives. Raises INVALID naming the output by position and type."""
    _check_values(task.get("output", []), kind.outputs, "output")


def check_inputs(task: Task, kind: Kind) -> None:
    """Return when the inputs are what the kind wants. Raises INVALID naming the input by position and type."""
    _check_values(task.get("input", []), (*kind.inputs, *kind.further(task)), "input")
    kind.check(task)


def _check_values(given: Sequence[Task], wanted: Sequence[Parameter], what: str) -> None:
    known, counts = {each.name: each for each in wanted}, dict.fromkeys((each.name for each in wanted), 0)
    for position, entry in enumerate(given):
        name, where = name_of(entry), f"Task.{what}[{position}]"
        parameter = known.get(name)
        if parameter is None:
            names = ", ".join(known) or "none"
            raise AppError(Category.INVALID, f"{what} {name!r} is not known; there are: {names}", where=where)
        element = next((each for each in parameter.value.split("|") if each in entry), "")
        if not element:
            wanted_as = parameter.value.replace("|", " or a ")
            raise AppError(Category.INVALID, f"{what} {name!r} has to be a {wanted_as}", where=where)
        if wrong := parameter.check(entry[element]):
            raise AppError(Category.INVALID, f"{what} {name!r}: {wrong}", where=where)
        counts[name] += 1
    for each in wanted:
        if not each.least <= counts[each.name] <= each.most:
            message = f"{what} {each.name!r} comes {counts[each.name]} times, not {each.least} to {each.most} times"
            raise AppError(Category.INVALID, message, where=f"Task.{what}")


def name_of(entry: Task) -> str:
    """Return the name of an input or output: its first code, else its text."""
    kind = entry.get("type", {})
    coded = next((each["code"] for each in kind.get("coding", []) if "code" in each), None)
    return str(coded or kind.get("text", ""))[:64]


def without_extension(task: Task, url: str) -> Json:
    """Return the Task without its extensions of this URL."""
    kept = [each for each in task.get("extension", []) if each.get("url") != url]
    rest = {name: value for name, value in task.items() if name != "extension"}
    return {**rest, "extension": kept} if kept else rest


def with_extension(task: Task, url: str, extension: Task | None) -> Json:
    """Return the Task with this extension in place of others of its URL; without any for None."""
    rest = without_extension(task, url)
    return {**rest, "extension": [*rest.get("extension", []), dict(extension)]} if extension else rest


def _without_progress(task: Task) -> Json:
    return without_extension(task, PROGRESS)


def _claim(*, is_open: bool, lapsed: int) -> Json:
    parts = [{"url": "open", "valueBoolean": is_open}, {"url": "lapsed", "valueUnsignedInt": lapsed}]
    return {"url": CLAIM, "extension": parts}


def _claim_of(task: Task) -> tuple[bool, int]:
    """Return whether the owner of a Task came by itself, and how many claims have lapsed."""
    for each in task.get("extension", []):
        if each.get("url") == CLAIM:
            parts = {part["url"]: part for part in each["extension"]}
            return bool(parts["open"]["valueBoolean"]), int(parts["lapsed"]["valueUnsignedInt"])
    return False, 0


def _ended(task: Task, now: datetime) -> Json:
    over = {name: value for name, value in task.items() if name != "businessStatus"}
    if "executionPeriod" not in over:
        return over
    return {**over, "executionPeriod": {**over["executionPeriod"], "end": to_instant(now)}}


def _seconds(value: int) -> Json:
    return {"value": value, "unit": "s", "system": "http://unitsofmeasure.org", "code": "s"}
