"""Notifications by rest-hook: each Subscription is told in order, one process at a time, until its endpoint has heard.

What was told is noted after the endpoint said so: whoever dies before tells it again. After a failure all later events
wait, with growing pauses; after so many in a row the Subscription has the status error until its subscriber asks for it
again, and goes on where it stopped. Sources: FHIR R4 subscription; Subscriptions R5 Backport 1.1.0, channels, errors.
"""

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from random import uniform

from fhir_server.model.subscription import Status, Subscription
from fhir_server.outbound.remote import Remote, require_good
from fhir_server.rest.notices import Kind, Told
from fhir_server.rest.subscriptions import Backing, Teller, asked_for, rules_of, set_status
from fhir_server.store.lease import Lease, Leases
from fhir_server.store.subscriptions import State
from fhir_server.work.events import Dispatcher
from imaging.errors import AppError, Category

log = logging.getLogger(__name__)

LEASE = "subscription:"
MARGIN_S = 15.0  # how much longer than an attempt a lease is: no other begins while one is under way
TURN = 100  # notifications after which other Subscriptions go first
MOST_ANSWER_BYTES = 1 << 20
AWAIT_MS = 500  # how long the engine holds an idle question for changes; bounds how long a stop takes
GATHER_S = 0.02  # after news, so that a burst is one round
HELD_S = 2.0  # before a Subscription that another process is at is looked at again
REOPEN_S = 1.0  # before a broken change stream is opened again, and before what failed is tried again
AT_A_TIME = 100  # Subscriptions due that are looked at together
_LOST = frozenset({Category.NOT_FOUND, Category.GONE})


class _UnheardError(Exception):
    """The endpoint did not take a notification; `reason` says why."""

    def __init__(self, reason: AppError) -> None:
        super().__init__(str(reason))
        self.reason = str(reason)


class _ChangedError(Exception):
    """The Subscription was changed while something was done for it, or another process is at it now: look again."""


class Notifier:
    """Does for one Subscription what is due."""

    def __init__(self, server: Backing, leases: Leases) -> None:
        self._server, self._leases = server, leases
        self._store, self._clock = server.subscriptions, server.clock
        self._worker = str(uuid.uuid4())
        config = server.config
        self._rules = rules_of(config)
        self._attempts: int = config["subscriptions.attempts"]
        self._timeout_s: float = config["subscriptions.timeout_s"]
        self._pause_s: float = config["outbound.pause_s"]
        self._longest_pause_s: float = config["outbound.longest_pause_s"]

    def look(self, name: str) -> bool:
        """Do what is due for a Subscription; False where another process is at it."""
        lease = self._leases.claim(f"{LEASE}{name}", self._worker, MARGIN_S)
        if lease is None:
            return False
        try:
            seen = self._store.state(name)
            if seen is not None:
                self._store.plan(name, self._done(name, seen, lease), seen)
        finally:
            self._leases.finish(lease)
        return True

    def _done(self, name: str, seen: State, lease: Lease) -> datetime | None:
        """Do it; return when something is to be done next."""
        try:
            asked = asked_for(self._server.own.read("Subscription", name))
        except AppError as error:
            if error.category not in _LOST:
                raise
            return None  # the next look at changes ends it
        try:
            return self._attempt(asked, seen, lease)
        except _ChangedError:
            return self._clock()

    def _attempt(self, asked: Subscription, seen: State, lease: Lease) -> datetime | None:
        if asked.status not in (Status.REQUESTED, Status.ACTIVE):
            return None
        if asked.is_over(self._clock()):
            self._set(asked, Status.OFF)
            return None
        try:
            teller = Teller(self._server, asked)
        except AppError as error:
            if error.category is not Category.FORBIDDEN:
                raise
            return self._failed(asked, str(error), is_final=True)
        try:
            if asked.status is Status.REQUESTED:
                self._store.again(asked.id)
                teller = teller.of(self._activated(teller, seen, lease))
            return self._told(teller, seen, lease) if asked.is_pushed else asked.end
        except _UnheardError as error:
            # Subscriptions R5 Backport, channels: any error in the handshake ends in the status error.
            return self._failed(asked, error.reason, is_final=teller.subscription.status is Status.REQUESTED)

    def _activated(self, teller: Teller, seen: State, lease: Lease) -> Subscription:
        """Say hello where that is the custom, and have the Subscription active."""
        asked = teller.subscription
        if asked.topic and asked.is_pushed:
            with self._remote(asked, lease) as remote:
                self._send(remote, asked, teller.bundle(Kind.HANDSHAKE, replace(seen, reason="")))
            self._store.told(asked.id, number=None, at=self._clock())
        return self._set(asked, Status.ACTIVE)

    def _told(self, teller: Teller, seen: State, lease: Lease) -> datetime | None:
        """Tell what is pending, or that there was nothing for a while; return when something is to be done next."""
        state = replace(self._store.state(seen.id) or seen, reason="")
        if state.told >= seen.number:
            return self._rested(teller, state, lease)
        with self._remote(teller.subscription, lease) as remote:
            for _ in range(TURN):
                self._hold(lease, teller.subscription)
                batch = teller.pending(state.told, seen.number)
                # None where the rest was kept for too long.
                last = batch.last if batch else seen.number
                if batch:
                    self._tell(remote, teller, batch.told, replace(state, number=last))
                    teller.record(batch.told)
                self._store.told(seen.id, number=last, at=self._clock())
                state = replace(state, told=last, last=self._clock())
                if last == seen.number:
                    return self._rested(teller, state, lease)
        return self._clock()

    def _rested(self, teller: Teller, state: State, lease: Lease) -> datetime | None:
        """Send a heartbeat where one is due; return when the next is, or when the Subscription ends."""
        asked, now = teller.subscription, self._clock()
        if not asked.topic or not asked.channel.heartbeat_s:
            return asked.end
        period = timedelta(seconds=asked.channel.heartbeat_s)
        last = state.last or state.since
        if last + period <= now:
            with self._remote(asked, lease) as remote:
                self._send(remote, asked, teller.bundle(Kind.HEARTBEAT, state))
            self._store.told(asked.id, number=None, at=now)
            last = now
        return min(last + period, asked.end) if asked.end else last + period

    # ---- the wire

    def _tell(self, remote: Remote, teller: Teller, told: Sequence[Told], state: State) -> None:
        asked = teller.subscription
        if asked.topic:
            self._send(remote, asked, teller.bundle(Kind.EVENT, state, told))
            return
        for each in told:
            if each.version is None:
                continue  # it may not be read any more
            if asked.channel.payload:
                body = teller.resource(each.version)
                self._send(remote, asked, body, method="PUT", path=f"/{each.event.key}")
            else:
                self._send(remote, asked, b"")

    def _send(self, remote: Remote, asked: Subscription, body: bytes, *, method: str = "POST", path: str = "") -> None:
        headers = dict(asked.channel.headers)
        if body:
            headers["Content-Type"] = asked.channel.payload
        with _heard():
            answer = remote.exchange(
                method, path, headers=headers, body=body, most_bytes=MOST_ANSWER_BYTES, within_s=self._within_s(asked)
            )
            require_good(answer.status, remote.name)

    @contextmanager
    def _remote(self, asked: Subscription, lease: Lease) -> Iterator[Remote]:
        within_s = self._within_s(asked)
        self._hold(lease, asked)
        rules = replace(
            self._rules,
            connect_s=min(self._rules.connect_s, within_s),
            silence_s=min(self._rules.silence_s, within_s),
        )
        with _heard():
            remote = Remote(asked.channel.endpoint, rules, name="Subscription.channel.endpoint")
        with remote:
            yield remote

    def _hold(self, lease: Lease, asked: Subscription) -> None:
        """Keep others away for as long as an attempt may take."""
        # To connect and to be answered may each take so long.
        if not self._leases.renew(lease, 2 * self._within_s(asked) + MARGIN_S):
            raise _ChangedError

    def _within_s(self, asked: Subscription) -> float:
        return asked.channel.timeout_s or self._timeout_s

    # ---- how it went

    def _failed(self, asked: Subscription, reason: str, *, is_final: bool) -> datetime | None:
        """Note a failure; return when to try again, None where that is left to the subscriber."""
        failures = self._store.failed(asked.id, reason)
        if is_final or failures >= self._attempts:
            log.warning("a Subscription fails", extra={"subscription": asked.id, "reason": reason})
            self._set(asked, Status.ERROR, reason)
            return None
        pause_s = min(self._pause_s * 2 ** min(failures - 1, 30), self._longest_pause_s)
        return self._clock() + timedelta(seconds=pause_s * uniform(0.9, 1.1))

    def _set(self, asked: Subscription, status: Status, reason: str = "") -> Subscription:
        """Write another status, unless the Subscription was changed meanwhile."""
        try:
            return set_status(self._server, asked, status, reason)
        except AppError as error:
            if error.category in (Category.PRECONDITION, *_LOST):
                raise _ChangedError from error
            raise


@contextmanager
def _heard() -> Iterator[None]:
    """What goes wrong inside is the endpoint's failure, and not the database's."""
    try:
        yield
    except AppError as error:
        raise _UnheardError(error) from error


class Notifications:
    """The part of a worker process that serves Subscriptions: one thread watches and looks at changes, some deliver."""

    def __init__(self, dispatcher: Dispatcher, notifier: Notifier, server: Backing, *, threads: int) -> None:
        self._dispatcher, self._notifier = dispatcher, notifier
        self._store, self._clock = server.subscriptions, server.clock
        self._threads = threads
        self._changed, self._is_due = threading.Event(), threading.Event()
        self._waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._taken: dict[str, float] = {}  # Subscription -> monotonic s until which it is left alone
        self._lock = threading.Lock()

    def run(self, stopping: threading.Event) -> None:
        """Work until `stopping` is set; return within about a second of that. A delivery that waits is left behind."""
        if not self._threads:
            return
        loops: list[Callable[[threading.Event], None]] = [self._dispatch, self._plan]
        loops += [self._deliver] * self._threads
        threads = [threading.Thread(target=loop, args=(stopping,), name="notify", daemon=True) for loop in loops]
        for each in threads:
            each.start()
        self._watch(stopping)
        self._wake()
        for _ in range(self._threads):
            self._waiting.put("")
        for each in threads:
            each.join(0.2)

    def _watch(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                with self._store.watch(AWAIT_MS) as news:
                    # What came before the stream was open is found by a look.
                    self._dispatcher.concerns("Subscription")
                    self._wake()
                    while not stopping.is_set():
                        self._hear(news())
            except Exception:
                log.exception("the change stream broke; it is opened again")
                stopping.wait(REOPEN_S)

    def _hear(self, news: str | None) -> None:
        if news == "":
            self._is_due.set()
        elif news is not None and self._dispatcher.concerns(news):
            self._changed.set()

    def _wake(self) -> None:
        self._changed.set()
        self._is_due.set()

    def _dispatch(self, stopping: threading.Event) -> None:
        pause_s: float | None = None
        while not stopping.is_set():
            self._changed.wait(pause_s)
            stopping.wait(GATHER_S)
            self._changed.clear()
            # The outermost door of this thread: whatever went wrong (a failover, say), the next round tries again.
            try:
                pause_s = self._dispatcher.round()
            except Exception:
                log.exception("changes could not be looked at for Subscriptions; it is tried again")
                pause_s = REOPEN_S

    def _plan(self, stopping: threading.Event) -> None:
        pause_s: float | None = None
        while not stopping.is_set():
            self._is_due.wait(pause_s)
            self._is_due.clear()
            try:
                pause_s = self._hand_out()
            except Exception:
                log.exception("what is due for Subscriptions could not be found; it is tried again")
                pause_s = REOPEN_S

    def _hand_out(self) -> float | None:
        """Have done what is due; return in how many seconds something is due again, None for when somebody says so."""
        now, at = self._clock(), time.monotonic()
        names = self._store.due(now, AT_A_TIME)
        with self._lock:
            self._taken = {name: until for name, until in self._taken.items() if until > at}
            free = [name for name in names if name not in self._taken]
            self._taken |= dict.fromkeys(free, float("inf"))
            resting = min((until - at for until in self._taken.values()), default=float("inf"))
        for name in free:
            self._waiting.put(name)
        following = self._store.next_due(now)
        pause_s = min(resting, max((following - now).total_seconds(), 0.0) if following else float("inf"))
        return None if pause_s == float("inf") else pause_s

    def _deliver(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            name = self._waiting.get()
            if not name:
                return
            rest_s = 0.0
            try:
                rest_s = 0.0 if self._notifier.look(name) else HELD_S
            except Exception:
                log.exception("a Subscription could not be served; it is tried again", extra={"subscription": name})
                rest_s = REOPEN_S
            with self._lock:
                self._taken[name] = time.monotonic() + rest_s
            self._is_due.set()
