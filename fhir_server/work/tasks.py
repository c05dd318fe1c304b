"""The worker of Tasks: claims an order under a lease, has a child process do it, and publishes the result once.

Hides leases, heartbeats, retries and cancellation. Work is done at least once; what becomes visible is one transaction
that also ends the lease, so a worker that slept through its lease publishes nothing. It is woken by its `crew`; an idle
worker does nothing between the rounds that are far apart.
"""

import logging
import math
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fhir_server.model import task as tasks
from fhir_server.model.dates import interval
from fhir_server.model.task import WAITING, Json, Progress, Role, Status
from fhir_server.store.documents import Resource
from fhir_server.store.lease import Lease, Leases
from fhir_server.store.repository import Repository
from fhir_server.store.task_queue import LEASE, Change, Look, TaskQueue, Waiting
from fhir_server.work.child import Child, Opening
from fhir_server.work.handlers import TREATMENT, Done, Handler, Later, Treatment
from fhir_server.work.upkeep import CANCELLED, PERIOD_OVER, with_its_whole
from imaging.errors import AppError, Category

log = logging.getLogger(__name__)

LISTEN_S = 0.2  # how long a running order may go without a look at its lease, its limits and its cancellation
AGAIN_S = 1.0  # before a round that failed is tried again
FRESH_S = 1.0  # how old a list of waiting orders may become while it is worked on
MOST_AHEAD = 50  # orders of a list that a worker looks at
PROGRESS_S = 1.0  # between two written versions of progress


@dataclass(frozen=True, slots=True)
class Pace:
    """Times of a worker, in seconds.

    lease_s   how long a claim holds without a heartbeat; three beats fit in
    poll_s    between two looks at the queue that nothing asked for
    first_s   pause before a second attempt; it doubles up to `longest_s`
    later_s   pause before an order whose surroundings were busy is tried again
    """

    lease_s: float = 60.0
    poll_s: float = 300.0
    first_s: float = 1.0
    longest_s: float = 300.0
    later_s: float = 30.0

    def pause_s(self, attempt: int) -> float:
        """Return the pause after an attempt that failed, counted from 1, with up to a quarter of chance in it."""
        return float(min(self.first_s * 2 ** min(attempt - 1, 30), self.longest_s) * random.uniform(1, 1.25))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a worker needs of the server; `own` is the server's own repository."""

    own: Repository
    leases: Leases
    queue: TaskQueue
    clock: Callable[[], datetime]


class _LostError(Exception):
    """The order is no longer this worker's: cancelled, changed by others, or its lease is gone."""


class _StoppedError(Exception):
    """The worker was told to stop."""


class _CancelledError(Exception):
    """What the order is a part of was cancelled; the argument is the id of that Task."""


class Worker:
    """Does Tasks of the codes in `handlers`, one at a time."""

    def __init__(
        self, around: Surroundings, handlers: Mapping[str, Handler], opening: Opening, pace: Pace | None = None
    ) -> None:
        self._own, self._leases, self._queue, self._clock = around.own, around.leases, around.queue, around.clock
        self._handlers = handlers
        self._pace = pace or Pace()
        self._child = Child(opening)
        self._name = str(uuid.uuid4())
        self._woken = threading.Event()
        self._changed = threading.Event()
        self._at_work = ""  # id of the Task at hand
        self._taken: set[str] = set()  # Tasks that somebody started since the last look
        self._served: dict[str, float] = {}  # requester -> when this worker last did an order of it, monotonic s
        self._ahead = 1

    def run(self, stopping: threading.Event) -> None:
        """Work until `stopping` is set; return within about a second of that, giving back the order at hand."""
        try:
            while not stopping.is_set():
                self._woken.clear()
                self._woken.wait(self._round(stopping))
        finally:
            self._child.kill()

    def wake(self) -> None:
        """Have the worker look at the queue, or at `stopping`, if it is idle."""
        self._woken.set()

    def hear(self, change: Change) -> None:
        """Take note of a Task that was made or changed."""
        if change.status in WAITING:
            self._woken.set()
        else:
            self._taken.add(change.id)
        # What makes it be in progress is what this worker wrote itself.
        if change.id == self._at_work and change.status != Status.IN_PROGRESS:
            self._changed.set()

    def _round(self, stopping: threading.Event) -> float:
        """Do what waits; return after how many seconds something may be due again."""
        try:
            while not stopping.is_set():
                self._taken.clear()
                look = self._queue.look(self._handlers)
                if not self._do_some(self._next_of(look), stopping):
                    return self._idle_s(look)
        # The outermost door of this process: whatever went wrong (a failover, say), the next round tries again.
        except Exception:
            log.exception("a round of tasks failed")
            stopping.wait(AGAIN_S)
            return AGAIN_S
        return 0.0

    def _next_of(self, look: Look) -> list[Waiting]:
        """Return the orders that this worker tries next, about as many as it does within a second.

        Among requesters of one priority the one whose turn was longest ago comes first. Workers see the same list, so
        each goes through the orders of the next second in an order of its own.
        """
        fair = sorted(look.orders, key=lambda each: (each.urgency, each.turn, self._served.get(each.requester, 0.0)))
        return sorted(fair[: self._ahead], key=lambda each: (each.urgency, random.random()))

    def _do_some(self, orders: Sequence[Waiting], stopping: threading.Event) -> int:
        """Do orders until the list is old, since more pressing ones may have come; return how many were claimed."""
        claimed, end = 0, time.monotonic() + FRESH_S
        for place, each in enumerate(orders, start=1):
            if each.id in self._taken:
                continue
            if self._attempt(each.id, stopping):
                claimed += 1
                self._served[each.requester] = time.monotonic()
            # Of the second half of a long list others have done the most by now.
            is_stale = time.monotonic() > end or place > max(len(orders) // 2, 4)
            if stopping.is_set() or (claimed and is_stale):
                break
        is_quick = time.monotonic() <= end
        self._ahead = min(max(2 * self._ahead if is_quick else claimed, 1), MOST_AHEAD)
        return claimed

    def _idle_s(self, look: Look) -> float:
        """Return when to look again though nothing changed: when a pause or somebody's lease ends."""
        pauses_s = [self._pace.poll_s]
        if look.next_at:
            pauses_s.append(max((look.next_at - self._clock()).total_seconds(), 0.01))
        if look.orders:  # others took them all; should they die at once, nobody tells
            pauses_s.append(self._pace.lease_s)
        return min(pauses_s)

    def _attempt(self, identifier: str, stopping: threading.Event) -> bool:
        """Do an order unless somebody else has it; say whether it was claimed."""
        lease = self._leases.claim(f"{LEASE}{identifier}", self._name, self._pace.lease_s)
        if lease is None:
            return False
        self._at_work = identifier
        self._changed.clear()
        handler: Handler | None = None
        try:
            current = self._read(identifier)
            task = current.json()
            handler = self._handlers.get(tasks.code_of(task))
            if handler is None:
                raise AppError(Category.UNSUPPORTED, "its first code has to say what is to be done", where="Task.code")
            self._check_wholes(task)
            if self._is_early(task, lease, handler):
                return True
            self._begin(current, handler, lease)
            done = self._outcome(handler, task, lease, stopping)
            if isinstance(done, Later):
                self._put_off(lease, done, task)
            else:
                self._publish(lease, lambda now_is: self._ended(now_is, handler.kind, done), then=done.then)
        except _LostError:
            self._leases.finish(lease)
        except _StoppedError:
            self._leases.postpone(lease, 0, lease.attempt - 1)
        except _CancelledError as error:
            whole = str(error)
            self._end(lease, lambda now_is: with_its_whole(now_is, whole, self._clock()) or now_is)
        except AppError as error:
            self._fail_or_retry(error, lease, handler)
        return True

    def _check_wholes(self, task: Json) -> None:
        """Raise _CancelledError where a Task that this one is a part of was cancelled."""
        for whole in task.get("partOf", []):
            kind, _, identifier = whole.get("reference", "").partition("/")
            try:
                found = self._own.read(kind, identifier).json()
            except AppError as error:
                if error.category not in (Category.NOT_FOUND, Category.GONE, Category.INVALID):
                    raise
            else:
                if tasks.status_of(found) in CANCELLED:
                    raise _CancelledError(identifier)

    def _is_early(self, task: Json, lease: Lease, handler: Handler) -> bool:
        """Put an order aside whose period has not come. Raises INVALID when the period is over."""
        self._check_period(task, handler)
        start = task.get("restriction", {}).get("period", {}).get("start")
        early_s = (interval(start).low - self._clock()).total_seconds() if start else 0.0
        return early_s > 0 and self._leases.postpone(lease, early_s, 0)

    def _check_period(self, task: Json, handler: Handler) -> None:
        if self._left_s(task) <= 0 and not handler.ends_late:
            waited_for = f"; it waited for this: {reason}" if (reason := tasks.waits_for(task)) else ""
            raise AppError(Category.INVALID, f"{PERIOD_OVER}{waited_for}", where="Task.restriction.period")

    def _left_s(self, task: Json) -> float:
        """Return the time until the period of an order ends."""
        end = task.get("restriction", {}).get("period", {}).get("end")
        return (interval(end).high - self._clock()).total_seconds() if end else math.inf

    def _begin(self, current: Resource, handler: Handler, lease: Lease) -> None:
        # A worker that died in the middle counts as an attempt: what kills workers is set aside.
        if lease.attempt > handler.limits.attempts:
            raise AppError(Category.TOO_LARGE, f"given up after {handler.limits.attempts} attempts")
        task = current.json()
        tasks.check_inputs(task, handler.kind)
        if not tasks.is_under_way(task):
            self._write(lease, lambda now_is: tasks.start(now_is, Role.SERVER, self._clock()), current)

    def _ended(self, task: Json, kind: tasks.Kind, done: Done) -> Json:
        completed = tasks.complete(task, kind, done.outputs, Role.SERVER, self._clock())
        return tasks.as_failed(completed, done.failure) if done.failure else completed

    def _put_off(self, lease: Lease, later: Later, task: Json) -> None:
        """Leave an order that waits for something outside, without a version of the Task while its reason stays."""
        if tasks.waits_for(self._read(_id_of(lease)).json()) != later.reason:
            self._write(lease, lambda now_is: tasks.waiting_for(now_is, later.reason, self._clock()))
        self._leases.postpone(lease, max(min(later.seconds, self._left_s(task)), 0.0), 0)

    def _outcome(self, handler: Handler, task: Json, lease: Lease, stopping: threading.Event) -> Done | Later:
        """Return what was done. Kills the child where the order is lost, too slow, or the worker stops."""
        self._child.begin(handler, task)
        started = beat = written = time.monotonic()
        unsaid: Progress | None = None
        try:
            while True:
                said = self._child.listen(LISTEN_S)
                now = time.monotonic()
                if isinstance(said, Done | Later):
                    return said
                if now - started > handler.limits.wall_s:
                    raise AppError(Category.TOO_LARGE, f"the order took longer than {handler.limits.wall_s:g} s")
                self._check_period(task, handler)
                if stopping.is_set():
                    raise _StoppedError
                unsaid = said or unsaid
                if unsaid and now - written > PROGRESS_S:
                    self._report(lease, unsaid, now - started)
                    written, unsaid = now, None
                if now - beat > self._pace.lease_s / 3 or self._changed.is_set():
                    beat = now
                    self._check(lease)
        finally:
            if self._child.is_busy:
                self._child.kill()

    def _report(self, lease: Lease, said: Progress, elapsed_s: float) -> None:
        told = said if said.estimate_s is not None else said.estimated(elapsed_s)
        self._write(lease, lambda now_is: tasks.progress(now_is, told, self._clock()))

    def _check(self, lease: Lease) -> None:
        """Renew the lease. Raises _LostError when it, or the order, is gone."""
        self._changed.clear()
        if self._leases.renew(lease, self._pace.lease_s) is None:
            raise _LostError
        if tasks.status_of(self._read(_id_of(lease)).json()) is not Status.IN_PROGRESS:
            raise _LostError

    def _publish(self, lease: Lease, change: Callable[[Json], Json], then: Sequence[Json] = ()) -> None:
        """Write what ends the Task, make the Tasks that follow, and end the lease, in one transaction."""
        finishing, following = self._leases.finishing(lease), self._own.creating(then)

        def guard(session: Any) -> None:
            finishing(session)
            following(session)

        self._change(lease, change, guard)

    def _write(self, lease: Lease, change: Callable[[Json], Json], current: Resource | None = None) -> None:
        self._change(lease, change, self._leases.renewing(lease, self._pace.lease_s), current)

    def _change(
        self,
        lease: Lease,
        change: Callable[[Json], Json],
        guard: Callable[[Any], None],
        current: Resource | None = None,
    ) -> None:
        """Write a change of the Task, of which `current` may have been read before, while the lease is held."""
        while True:
            found = current or self._read(_id_of(lease))
            changed = change(found.json())
            try:
                self._own.update(changed, if_match=found.version, guard=guard)
            except AppError as error:
                # Somebody wrote meanwhile, or took the lease: look again, which tells.
                if error.category not in (Category.PRECONDITION, Category.CONFLICT):
                    raise
            else:
                return
            if not self._leases.holds(lease):
                raise _LostError
            current = None

    def _read(self, identifier: str) -> Resource:
        """Return the Task. Raises _LostError where there is nothing to do any more."""
        try:
            found = self._own.read("Task", identifier)
        except AppError as error:
            if error.category in (Category.NOT_FOUND, Category.GONE):
                raise _LostError from error
            raise
        task = found.json()
        if tasks.is_over(task) or not tasks.is_for_server(task):
            raise _LostError
        return found

    def _end(self, lease: Lease, change: Callable[[Json], Json]) -> None:
        """Publish an end without result, unless the order is somebody else's by now."""
        try:
            self._publish(lease, change)
        except _LostError:
            self._leases.finish(lease)

    def _fail_or_retry(self, error: AppError, lease: Lease, handler: Handler | None) -> None:
        treatment = TREATMENT[error.category]
        most = handler.limits.attempts if handler else 1
        if treatment is Treatment.RETRY and lease.attempt >= most:
            treatment = Treatment.FAIL
        log.warning(
            "an order failed", extra={"task": lease.name, "category": str(error.category), "then": treatment.name}
        )
        if treatment is Treatment.FAIL:
            self._end(lease, lambda now_is: tasks.fail(now_is, str(error), Role.SERVER, self._clock()))
            return
        if treatment is Treatment.LATER:
            self._leases.postpone(lease, self._pace.later_s, lease.attempt - 1)
        else:
            self._leases.postpone(lease, self._pace.pause_s(lease.attempt), lease.attempt)


def _id_of(lease: Lease) -> str:
    return lease.name.removeprefix(LEASE)
