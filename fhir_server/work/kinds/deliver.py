"""Delivery of stored images to registered receivers: `deliver` Tasks, placed by clients or following from `process`.

At least once, and single at the receiver, which knows instances by their UIDs: what it acknowledged is noted batch by
batch, so that a worker that dies costs one batch. A receiver that does not answer rests, for all deliveries to it, with
growing pauses; the order waits until its period or the window closes and then fails, saying what the receiver has.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from random import uniform
from typing import Any

from fhir_server.access.audit import Access, Metered, Receiver
from fhir_server.access.policy import require
from fhir_server.access.principals import Principal, Right
from fhir_server.model import json
from fhir_server.model.dates import interval
from fhir_server.model.peer import Peer, Way
from fhir_server.model.task import Json, Kind, Progress
from fhir_server.model.task_values import id_of, relative, values_of
from fhir_server.outbound import webhook
from fhir_server.outbound.remote import Remote, target_of
from fhir_server.store.peers import Delivery, Rest
from fhir_server.work import orders
from fhir_server.work.backing import Backing
from fhir_server.work.handlers import Done, Handler, Later, Report, handlers
from fhir_server.work.notification import CONTENT_TYPE, message
from fhir_server.work.parties import requester_of
from fhir_server.work.receipts import OUTPUTS, outputs
from fhir_server.work.recipients import admit_recipient, is_over, receivers, require_among, require_leave
from fhir_server.work.selection import query_of, within_reach
from fhir_server.work.sending import Push
from imaging.archive import Instance
from imaging.errors import AppError, Category

CODE = "deliver"
TURN_S = 300.0  # after which other orders go first
ASIDE_S = 1.0  # for which one stands aside then
SUSPENDED_S = 60.0  # between two looks at a suspended endpoint
LONGEST_WAIT_S = 3_600.0  # between two looks at an order
_OF_WALL = 0.8  # part of the time of an order after which a batch is given up, so that the order itself is not
# What the other side may answer today and not tomorrow, when its operator has seen to it.
_PASSING = frozenset({Category.BUSY, Category.FORBIDDEN, Category.NOT_FOUND})
# Of images or of the order itself: whatever is tried again, it stays so.
_FINAL = frozenset({
    Category.INVALID, Category.FORBIDDEN, Category.NOT_FOUND, Category.GONE, Category.UNSUPPORTED, Category.TOO_LARGE,
})  # fmt: skip

_OF_IMAGES = {each.name: each for each in orders.INPUTS}
INPUTS = (
    *(_OF_IMAGES[name] for name in ("imaging-study", "series", "instance", "search")),
    replace(_OF_IMAGES["deliver-to"], name="endpoint", least=1, most=1),
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a delivery names; `recipient` is "Endpoint/..." or "Organization/..."."""

    studies: tuple[str, ...]
    series: tuple[str, ...]
    instances: tuple[str, ...]
    search: str
    recipient: str
    restricted_to: tuple[str, ...]


def wanted_of(task: Mapping[str, Any]) -> Wanted:
    """Return what a Task wants delivered to whom."""
    given = values_of(task)
    return Wanted(
        studies=tuple(id_of(each) for each in (*given.get("imaging-study", []), *orders.study_in_focus(task))),
        series=tuple(given.get("series", [])),
        instances=tuple(given.get("instance", [])),
        search=given.get("search", [""])[0].removeprefix("ImagingStudy?"),
        recipient=relative(given["endpoint"][0]),
        # What follows from an order is about its patient; copies that name nobody may be among the results.
        restricted_to=orders.recipients_of({**task, "for": {}} if "partOf" in task else task),
    )


def check(task: Mapping[str, Any]) -> None:
    """Raise INVALID for inputs that do not fit together."""
    wanted = wanted_of(task)
    orders.check_images(wanted)
    orders.check_restriction(task, wanted)


def admit(server: Backing, principal: Principal, task: Json) -> None:
    """Raise what keeps a principal from placing the order. What a search finds is looked at when it is done."""
    require(principal, Right.ORDER_PROCESSING, "have images delivered")
    wanted = wanted_of(task)
    if wanted.search:
        query_of(server, wanted.search)
    found = [] if wanted.search else within_reach(server, principal, wanted)
    admit_recipient(server, principal, wanted.recipient, _studies(found))
    require_among(orders.restriction(wanted, "Organization"), receivers(server, wanted.recipient))


def run(task: Json, context: Any, report: Report) -> Done | Later:
    """Deliver what is not delivered yet to every receiver that is named."""
    server: Backing = context
    wanted = wanted_of(task)
    begun = [
        (peer, server.peers.begin(f"{task['id']}/{peer.name}", peer.subscriber, server.clock()))
        for peer in receivers(server, wanted.recipient)
    ]
    try:
        principal = requester_of(server, task)
        require(principal, Right.ORDER_PROCESSING, "have images delivered")
        require_among(orders.restriction(wanted, "Organization"), (peer for peer, _ in begun))
        instances = within_reach(server, principal, wanted)
    except AppError as error:
        if error.category not in _FINAL:
            raise
        for _, known in begun:
            server.peers.end(known.key, str(error), server.clock())
        return _done(server, task, begun, [])
    waits = []
    for peer, known in begun:
        if known.ended is not None:
            continue
        outcome = _Attempt(server, principal, task, peer, known, instances, report).make()
        if isinstance(outcome, Ended):
            server.peers.end(known.key, outcome.reason, server.clock())
        else:
            waits.append(outcome)
    return min(waits, key=lambda each: each.seconds) if waits else _done(server, task, begun, instances)


@dataclass(frozen=True, slots=True)
class Ended:
    """A delivery that is over: `reason` says why it failed, "" where it did not."""

    reason: str


def _done(server: Backing, task: Json, begun: Sequence[tuple[Peer, Delivery]], instances: Sequence[Instance]) -> Done:
    ended = [(peer, server.peers.begin(known.key, known.subscriber, server.clock())) for peer, known in begun]
    failures = [f"{peer.endpoint}: {known.reason}" for peer, known in ended if known.reason]
    return Done(outputs(server, task, ended, instances), failure="; ".join(failures))


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One try to bring to one peer what it has not got."""

    server: Backing
    principal: Principal
    task: Json
    peer: Peer
    known: Delivery
    instances: Sequence[Instance]
    report: Report

    def make(self) -> Later | Ended:
        """Return when to go on, or how the delivery has ended."""
        server, peer, now = self.server, self.peer, self.server.clock()
        if peer.way is Way.STOW and not self._wanting():
            return self._finished(self.known.refused)
        closes, rest = self._closes(), server.peers.rest(peer.name)
        if closes <= now:
            last = f"; the last try: {rest.reason}" if rest else ""
            return Ended(f"the time for it is over{last}")
        try:
            require_leave(server, self.principal, peer, _studies(self.instances))
        except AppError as error:
            if error.category is not Category.FORBIDDEN:
                raise
            return Ended(str(error))
        if peer.subscriber != self.known.subscriber:
            return Ended("the endpoint is another subscriber's now")
        if is_over(peer, now):
            return Ended("the time of this endpoint is over")
        if not peer.in_use(now):
            return self._later(now + timedelta(seconds=SUSPENDED_S), f"{peer.endpoint} is suspended")
        if rest and rest.until > now:
            return self._later(rest.until, rest.reason)
        return self._attempted(rest)

    def _attempted(self, rest: Rest | None) -> Later | Ended:
        server, peer, asked_s = self.server, self.peer, 0.0
        try:
            with Remote(peer.address, server.outbound, name=peer.endpoint, authorization=peer.authorization) as remote:
                try:
                    later = self._told(remote) if peer.way is Way.WEBHOOK else self._sent(remote)
                finally:
                    asked_s = remote.retry_after_s
        except AppError as error:
            is_theirs = error.where == peer.endpoint
            if is_theirs and error.category in _PASSING:
                return self._put_off(error, rest, asked_s)
            if not is_theirs and error.category not in _FINAL:
                raise
            return Ended(str(error))
        if rest:
            server.peers.wake(peer.name)
        return later

    def _told(self, remote: Remote) -> Ended:
        server, peer = self.server, self.peer
        for study_uid in _studies(self.instances):
            server.studies.refresh(study_uid)
        repository = server.repository_for(server.principals.acting_for(peer.subscriber))
        now = server.clock()
        body = json.dumps(message(repository, self.task, peer, self.instances, fhir_url=server.fhir_url, now=now))
        identifier = self.known.key.replace("/", "-")
        webhook.send(remote, identifier, body, secrets=peer.secrets(now), content_type=CONTENT_TYPE, now=now)
        server.peers.acknowledge(self.known.key, (each.sop_uid for each in self.instances), {}, server.clock())
        self._record(Access.NOTIFY, self.instances)
        return Ended("")

    def _sent(self, remote: Remote) -> Later | Ended:
        """Send what the receiver has neither acknowledged nor refused."""
        had, refused, wanting = set(self.known.had), dict(self.known.refused), self._wanting()
        pieces: list[int] = []

        def note(now_had: Iterable[str], now_refused: Mapping[str, str]) -> None:
            self.server.peers.acknowledge(self.known.key, now_had, now_refused, self.server.clock())
            had.update(now_had)
            refused.update(now_refused)

        tries = self.server.peers.tried(self.known.key)
        most_s = _OF_WALL * self.server.config["work.order_wall_s"]
        push = Push(remote, self.server.archive, self.peer.form, note, pieces.append, tries, most_s)
        self._record(Access.BEGIN_SENDING, wanting)
        problem = "the sending was interrupted"
        try:
            problem = self._pushed(push, wanting, had)
        except AppError as error:
            problem = str(error)
            raise
        finally:
            came = [each for each in wanting if each.sop_uid in had]
            self._record(Access.SEND, came, problem, sum(pieces))
        if problem:
            return Later(ASIDE_S, problem)
        return self._finished(refused)

    def _wanting(self) -> list[Instance]:
        known = self.known
        return [each for each in self.instances if each.sop_uid not in known.had and each.sop_uid not in known.refused]

    def _finished(self, refused: Mapping[str, str]) -> Ended:
        if not refused:
            return Ended("")
        uid, reason = next(iter(refused.items()))
        words = f"{len(refused)} of {len(self.instances)} instances were refused, the first: {uid}: {reason}"
        return Ended(words)

    def _pushed(self, push: Push, wanting: Sequence[Instance], had: set[str]) -> str:
        """Send until all is sent or the turn is over; return why not all of it was, "" where it was."""
        total, end = len(self.instances), time.monotonic() + TURN_S
        for _ in push.batches(wanting):
            step = f"{len(had)} of {total} instances at {self.peer.endpoint}"
            self.report(Progress(100 * len(had) // total, step))
            if time.monotonic() > end and len(had) < total:
                return f"other orders go first; {self.peer.endpoint} gets the rest after that"
        return ""

    def _record(self, access: Access, instances: Sequence[Instance], failure: str = "", size: int = 0) -> None:
        to = Receiver(self.peer.subscriber, self.peer.name, target_of(self.peer.address).host)
        studies = dict(Counter(each.study_uid for each in instances))
        metered = Metered(bytes_out=size)
        self.server.audit.sent(self.principal, access, studies, to=to, failure=failure, metered=metered)

    def _put_off(self, error: AppError, rest: Rest | None, asked_s: float) -> Later:
        """Let the peer rest, longer after each failure in a row, and as long as it asks within the longest pause."""
        config, failures = self.server.config, rest.failures + 1 if rest else 1
        grown_s = config["outbound.pause_s"] * 2 ** min(failures - 1, 30)
        pause_s = min(max(grown_s, asked_s), config["outbound.longest_pause_s"])
        until = self.server.clock() + timedelta(seconds=pause_s * uniform(1, 1.25))
        self.server.peers.let_rest(self.peer.name, Rest(until, str(error), failures))
        return self._later(until, str(error))

    def _later(self, until: datetime, reason: str) -> Later:
        seconds = (min(until, self._closes()) - self.server.clock()).total_seconds()
        return Later(min(max(seconds, 0.0), LONGEST_WAIT_S), reason)

    def _closes(self) -> datetime:
        """Return when nothing is tried any more."""
        window = self.known.since + timedelta(hours=self.server.config["outbound.window_hours"])
        period = self.task.get("restriction", {}).get("period", {})
        return min(window, interval(period["end"]).high) if "end" in period else window


def _studies(instances: Iterable[Instance]) -> list[str]:
    return list(dict.fromkeys(each.study_uid for each in instances))


handlers.register(CODE)(
    Handler(Kind(CODE, INPUTS, OUTPUTS, check=check), run, admit=admit, ends_late=True, is_transfer=True)
)
