"""Upkeep of Tasks that others do: claims that lapse, periods that end, and parts of what was cancelled.

Nobody tells this server that a processor elsewhere has died. Its claim therefore lasts a while after its last update of
the Task, which may tell progress; then the Task is ready for the next claim. Any number of processes may look after the
same Tasks: the version that was read decides between them.
"""

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from fhir_server.model import task as tasks
from fhir_server.model.criteria import Clause, Reference
from fhir_server.model.dates import interval
from fhir_server.model.query import Query
from fhir_server.model.task import TERMINAL, Json, Role, Status
from fhir_server.store.repository import Repository
from fhir_server.store.task_queue import Change, TaskQueue
from imaging.errors import AppError, Category

log = logging.getLogger(__name__)

LOOK_S = 60.0  # between two looks at least, so that a period's end is noticed within a minute
SOONEST_S = 0.2  # between two looks at most
MOST_PARTS = 1_000  # of one Task that are cancelled with it
CANCELLED = frozenset({Status.CANCELLED, Status.ENTERED_IN_ERROR})
PERIOD_OVER = "the period of the order is over"


class Upkeep:
    """Looks after the Tasks of others. `claim_s`: how long a claim holds; `most_claims` that lapse end an order."""

    def __init__(
        self, own: Repository, queue: TaskQueue, clock: Callable[[], datetime], *, claim_s: float, most_claims: int
    ) -> None:
        self._own, self._queue, self._clock = own, queue, clock
        self._claim = timedelta(seconds=claim_s)
        self._most_claims = most_claims
        self._woken = threading.Event()
        self._cancelled: set[str] = set()

    def run(self, stopping: threading.Event) -> None:
        """Work until `stopping` is set, which needs a `wake` to be noticed at once."""
        while True:
            self._woken.clear()
            # Not before: a wake that comes in between would be forgotten, and with it that this is to end.
            if stopping.is_set():
                return
            try:
                pause_s = self.round()
            # The outermost door of this thread: whatever went wrong (a failover, say), the next round tries again.
            except Exception:
                log.exception("a round of upkeep failed; it is tried again")
                pause_s = LOOK_S
            stopping.wait(SOONEST_S)
            self._woken.wait(pause_s)

    def wake(self) -> None:
        """Have the next round begin."""
        self._woken.set()

    def hear(self, change: Change) -> None:
        """Take note of a Task that was made or changed."""
        if change.status in CANCELLED:
            self._cancelled.add(change.id)
            self._woken.set()

    def round(self) -> float:
        """Do what is due; return after how many seconds something may be due again."""
        while self._cancelled:
            self._cancel_parts(self._cancelled.pop())
        now = self._clock()
        for identifier in self._queue.overdue():
            self._change(identifier, self._overdue)
        held = self._queue.held_by_others()
        for each in held:
            if each.heard_at + self._claim <= now:
                self._change(each.id, self._lapsed)
        due = [
            (each.heard_at + self._claim - now).total_seconds() for each in held if each.heard_at + self._claim > now
        ]
        return max(min([LOOK_S, *due]), 0.0)

    def _lapsed(self, task: Json) -> Json | None:
        heard_at = interval(task["meta"]["lastUpdated"]).low
        is_held = tasks.status_of(task) in (Status.IN_PROGRESS, Status.ON_HOLD) and not tasks.is_for_server(task)
        if not is_held or heard_at + self._claim > self._clock():
            return None
        return tasks.lapsed(task, self._clock(), most=self._most_claims)

    def _overdue(self, task: Json) -> Json | None:
        if tasks.is_over(task):
            return None
        return tasks.fail(task, f"{PERIOD_OVER} (at Task.restriction.period)", Role.SERVER, self._clock())

    def _cancel_parts(self, whole: str) -> None:
        clause = Clause("part-of", "reference", "", (Reference((f"Task/{whole}",)),))
        for part in self._own.search(Query("Task", (clause,), count=MOST_PARTS)).matches:
            self._change(part.id, lambda task: with_its_whole(task, whole, self._clock()))

    def _change(self, identifier: str, change: Callable[[Json], Json | None]) -> None:
        """Write a change of a Task as it is now, unless somebody else writes at the same time."""
        try:
            found = self._own.read("Task", identifier)
            changed = change(found.json())
            if changed is not None:
                self._own.update(changed, if_match=found.version)
        except AppError as error:
            if error.category not in (Category.NOT_FOUND, Category.GONE, Category.PRECONDITION, Category.CONFLICT):
                raise


def with_its_whole(task: Json, whole: str, now: datetime) -> Json | None:
    """Return a Task as cancelled since what it is a part of was; None for one that is over."""
    if tasks.status_of(task) in TERMINAL:
        return None
    return tasks.cancel(task, f"Task/{whole}, which this is a part of, was cancelled", Role.SERVER, now)
