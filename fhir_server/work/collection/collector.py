"""The collector: looks at each source when it is due, and orders a `collect` Task where there is something to fetch.

A look asks and fetches nothing, so a source where nothing is new costs one or two requests and no Task. A lease lets
one worker at a time look at a source; while a Task collects from it nobody looks. Sources that fail are left alone for
a while that doubles. Between looks it sleeps until the next one is due or a change stream tells of a change.
"""

import logging
import random
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from fhir_server.model import task as tasks
from fhir_server.model.dates import to_instant
from fhir_server.model.peer import SOURCES, Peer
from fhir_server.model.task import CODES, Json, Status
from fhir_server.store.collected import Mark
from fhir_server.store.lease import Lease, Leases
from fhir_server.work.backing import Backing
from fhir_server.work.collection import plan
from fhir_server.work.collection.opening import admitted, source_of
from imaging.errors import AppError, Category

log = logging.getLogger(__name__)

CODE = "collect"  # of the Tasks
LEASE = "collect:"
AT_ONCE = 3  # sources that one process looks at at a time: one that is silent keeps no other waiting
LEASE_S = 180.0  # longer than a silent source is waited for
AT_WORK_S = 60.0  # between two questions whether a Task that collects has ended, in case nobody tells
AWAIT_MS = 500  # how long the engine holds an idle question for changes; bounds how long a stop takes
REOPEN_S = 1.0  # before a broken change stream is opened again
POLL_S = 300.0  # longest sleep
TOLD_AFTER = 3  # looks in a row that may get no answer before a Task tells of it


class _StoppedError(Exception):
    """The collector was told to stop, or lost its lease."""


class Collector:
    """Looks at the sources of all subscribers."""

    def __init__(self, server: Backing, leases: Leases) -> None:
        self._server, self._leases = server, leases
        self._collected, self._clock = server.collected, server.clock
        self._name = str(uuid.uuid4())
        self._sleepers = [_Sleeper() for _ in range(AT_ONCE)]

    def run(self, stopping: threading.Event) -> None:
        """Look until `stopping` is set; return within about a second of that. A look that waits is left behind."""
        log.info("collection starts")
        threads = [
            threading.Thread(target=self._work, args=(stopping, sleeper), name="collect", daemon=True)
            for sleeper in self._sleepers
        ]
        for each in threads:
            each.start()
        self._watch(stopping)
        for each in threads:
            each.join(0.2)
        log.info("collection ends")

    def look_now(self, peer: Peer) -> str:
        """Look at a source, as `look` does, also where a Task waits for it: another one takes its place."""
        mark = self._collected.mark(peer.name)
        if mark.task and not mark.is_done:
            self._supersede(peer, mark)
        return self.look(peer)

    def look(self, peer: Peer, renew: Callable[[], None] = lambda: None) -> str:
        """Look at a source; return the id of the Task that collects from it, "" when there is nothing to fetch.

        `renew` is called now and then. Raises what keeps the source from being looked at, which is noted before.
        """
        mark, now = self._collected.mark(peer.name), self._clock()
        if mark.task and not mark.is_done:
            if self._is_at_work(peer, mark):
                self._collected.change(peer.name, due=now + timedelta(seconds=AT_WORK_S))
                return mark.task
            mark = self._collected.mark(peer.name)
        try:
            admitted(self._server, peer)
        except AppError as error:
            pause_s = min(peer.schedule.every_s, POLL_S)  # to ask costs nothing, and a new contract is soon noticed
            self._collected.change(peer.name, reason=str(error), due=now + timedelta(seconds=pause_s))
            self._tell(peer, mark, error, failures=1 if peer.in_use(now) else 0)
            raise
        if plan.is_used_up(self._server.config, mark, now):
            self._collected.change(peer.name, reason=plan.USED_UP, due=plan.next_day(now))
            return ""
        try:
            is_news = self._is_news(peer, mark, renew)
        except AppError as error:
            failures = self._collected.fail(peer.name, str(error))
            pause = plan.pause_s(peer.schedule.every_s, failures)
            self._collected.change(peer.name, due=now + timedelta(seconds=pause))
            self._tell(peer, mark, error, failures)
            raise
        return self._order(peer, mark) if is_news else ""

    # ---- one look

    def _is_news(self, peer: Peer, mark: Mark, renew: Callable[[], None]) -> bool:
        with source_of(self._server, peer) as source:
            for item in source.items():
                renew()
                if source.is_news(item):
                    return True
            now = self._clock()
            latest = plan.reached(mark.latest, source.dates(), now)
        due = now + timedelta(seconds=peer.schedule.every_s)
        self._collected.change(peer.name, failures=0, reason="", told="", looked_at=now, latest=latest, due=due)
        return False

    def _order(self, peer: Peer, mark: Mark) -> str:
        """Order a Task that collects; a crash before it is made leaves a mark of a Task that is not there."""
        task, now = str(uuid.uuid4()), self._clock()
        due = now + timedelta(seconds=AT_WORK_S)
        if not self._collected.begin(peer.name, mark.number, task, due, begun=now):
            return self._collected.mark(peer.name).task  # somebody else did
        self._server.own.update({**self._task(peer), "id": task, "status": str(Status.REQUESTED)}, create=True)
        return task

    def _is_at_work(self, peer: Peer, mark: Mark) -> bool:
        """Say whether a Task that has not told its end may still work; one that ended otherwise counts as a failure."""
        try:
            task = self._server.own.read("Task", mark.task).json()
        except AppError as error:
            if error.category not in (Category.NOT_FOUND, Category.GONE):
                raise
            self._collected.change(peer.name, is_done=True)
            return False
        if not tasks.is_over(task):
            # Where the endpoint was changed while a Task waited for it, what it waits for may be over.
            return not (mark.failures == 0 and self._supersede(peer, mark))
        self._collected.change(peer.name, is_done=True)
        status = tasks.status_of(task)
        reason = task.get("statusReason", {}).get("text", f"the last round was {status}")
        failures = self._collected.fail(peer.name, reason)
        # A poison instance ends rounds; a person who cancels one wants a pause.
        pause_s = plan.pause_s(peer.schedule.every_s, failures)
        self._collected.change(peer.name, due=self._clock() + timedelta(seconds=pause_s))
        raise AppError(Category.BUSY, reason, where=peer.name)

    def _supersede(self, peer: Peer, mark: Mark) -> bool:
        """Cancel a Task that waits for its source, so that another can be ordered; say whether it did wait."""
        own = self._server.own
        try:
            found = own.read("Task", mark.task)
            if tasks.is_over(found.json()) or not tasks.waits_for(found.json()):
                return False
            reason = "another look takes its place"
            cancelled = tasks.cancel(found.json(), reason, tasks.Role.SERVER, self._clock())
            own.update(cancelled, if_match=found.version)
        except AppError as error:
            if error.category not in (Category.NOT_FOUND, Category.GONE, Category.PRECONDITION):
                raise
            return False
        self._collected.change(peer.name, is_done=True)
        return True

    def _tell(self, peer: Peer, mark: Mark, error: AppError, failures: int) -> None:
        """Make a failed Task of what keeps a source from being looked at: once, and not of a moment's silence."""
        reason = str(error)
        if failures < (TOLD_AFTER if error.category is Category.BUSY else 1) or mark.told == reason:
            return
        log.warning("a source cannot be collected from", extra={"peer": peer.name, "reason": reason})
        requested = {**self._task(peer), "status": str(Status.REQUESTED)}
        self._server.own.create(tasks.fail(requested, reason, tasks.Role.SERVER, self._clock()))
        self._collected.change(peer.name, told=reason)

    def _task(self, peer: Peer) -> Json:
        return {
            "resourceType": "Task",
            "intent": "order",
            "priority": "routine",
            "code": {"coding": [{"system": CODES, "code": CODE}]},
            "description": f"collect from {peer.name}",
            "focus": {"reference": peer.endpoint},
            "requester": {"reference": peer.subscriber},
            "authoredOn": to_instant(self._clock()),
        }

    # ---- one look after another

    def _work(self, stopping: threading.Event, sleeper: "_Sleeper") -> None:
        while not stopping.is_set():
            sleeper.begin()
            try:
                pause_s = self._next(stopping)
            except _StoppedError:
                continue
            # The outermost door of this thread: whatever went wrong (a failover, say), the next look tries again.
            except Exception:
                if stopping.is_set():
                    return
                log.exception("looking for images to collect failed")
                stopping.wait(REOPEN_S)
                continue
            if pause_s > 0:
                sleeper.sleep(self._clock(), pause_s)

    def _next(self, stopping: threading.Event) -> float:
        """Look at one source that is due; return 0, or after how many seconds one will be."""
        now, marks = self._clock(), self._collected.marks()
        pauses_s = [POLL_S]
        sources = [each for each in self._server.peers.all() if each.way in SOURCES]
        random.shuffle(sources)
        for peer in sources:
            due = marks.get(peer.name, Mark()).due
            if due is not None and due > now:
                pauses_s.append((due - now).total_seconds())
            elif (lease := self._leases.claim(f"{LEASE}{peer.name}", self._name, LEASE_S)) is None:
                pauses_s.append(LEASE_S / 3)  # somebody looks already; should they die at it, nobody tells
            else:
                self._look_under(lease, peer, stopping)
                return 0.0
        return min(pauses_s)

    def _look_under(self, lease: Lease, peer: Peer, stopping: threading.Event) -> None:
        beat = time.monotonic()

        def renew() -> None:
            nonlocal beat
            if stopping.is_set():
                raise _StoppedError
            if time.monotonic() - beat > LEASE_S / 3:
                beat = time.monotonic()
                if self._leases.renew(lease, LEASE_S) is None:
                    raise _StoppedError

        try:
            due = self._collected.mark(peer.name).due
            if due is None or due <= self._clock():  # nobody looked between the list and the lease
                self.look(peer, renew)
        except AppError as error:
            log.info("a source was not looked at", extra={"peer": peer.name, "reason": str(error)})
        finally:
            self._leases.finish(lease)

    def _watch(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                with self._collected.watch(AWAIT_MS) as news:
                    self._wake(_NOW)  # what came before is found by a look
                    while not stopping.is_set():
                        due = news()
                        if due is not None:
                            self._wake(due)
            except Exception:
                log.exception("the change stream broke; it is opened again")
                stopping.wait(REOPEN_S)
        self._wake(_NOW)

    def _wake(self, due: datetime) -> None:
        for each in self._sleepers:
            each.wake(due)


_NOW = datetime.min.replace(tzinfo=UTC)
_EVER = datetime.max.replace(tzinfo=UTC)


class _Sleeper:
    """One who looks at the list of sources and then sleeps until one is due, or becomes due earlier than it knew."""

    def __init__(self) -> None:
        self._woken = threading.Event()
        self._until = _EVER

    def begin(self) -> None:
        """Look at the list from here on: what changes now may be missed by it."""
        self._until = _EVER
        self._woken.clear()

    def sleep(self, now: datetime, seconds: float) -> None:
        """Sleep, unless something changed since `begin`."""
        self._until = now + timedelta(seconds=seconds)
        self._woken.wait(seconds)

    def wake(self, due: datetime) -> None:
        """End the sleep if a source is due before its end."""
        if due < self._until:
            self._woken.set()
