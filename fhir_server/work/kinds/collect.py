"""Collection of what is new at a source: `collect` Tasks, which the collector places when a look found something.

The Task is the record of the round: how much came, of which studies, what was refused and why. It may be cancelled,
which stops the round. While the source fails the Task waits and says for what; what has come by then is kept. A round
that a crash ended goes on where it was, because everything that is here is known by its UID; from the third start on
it is careful, so that an instance of which the process dies is met once more and then left alone for a while. How much
was stored and refused is counted at the end, from the rows of the instances and the notes, so that a crash loses none.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Any

from fhir_server.delivery import value
from fhir_server.model.peer import Peer, name_of_endpoint
from fhir_server.model.task import Json, Kind, Parameter, Progress
from fhir_server.projection import imaging_study_id
from fhir_server.store.collected import MOST_REASONS, MOST_STUDIES, REFUSED, Mark, Tally
from fhir_server.work.backing import Backing
from fhir_server.work.collection import Budget, plan
from fhir_server.work.collection.collector import CODE
from fhir_server.work.collection.opening import admitted, source_of
from fhir_server.work.handlers import Done, Handler, Later, Report, handlers
from imaging.archive import Outcome, Stored
from imaging.errors import AppError, Category

MOST_ITEMS = 1_000  # studies, or groups of files, of one round
CAREFUL_FROM = 3  # which start of a round
FLUSH_S = 2.0  # between two notes of how far a round is
REPORT_S = 5.0  # between two versions of the Task that tell it
OUTPUTS = (
    Parameter("stored", "valueUnsignedInt", least=1),
    Parameter("here", "valueUnsignedInt", least=1),
    Parameter("refused", "valueUnsignedInt", least=1),
    Parameter("failed", "valueUnsignedInt", least=1),
    Parameter("received", "valueQuantity", least=1),
    Parameter("imaging-study", "valueReference", most=MOST_STUDIES),
    Parameter("refusal", "valueString", most=MOST_REASONS),
)


def admit(server: Backing, principal: Any, task: Json) -> None:
    """Refuse: what is collected, and when, is told by the Endpoint."""
    raise AppError(Category.FORBIDDEN, "the server places these Tasks itself, when a source is due", where="Task.code")


def run(task: Json, context: Any, report: Report) -> Done | Later:
    """Collect what is new at the source of the Endpoint in `focus`."""
    server: Backing = context
    peer = server.peers.get(name_of_endpoint(task["focus"]["reference"]))
    mark = server.collected.mark(peer.name)
    if mark.task != task["id"]:
        message = "the endpoint was registered anew, or another Task collects from it"
        raise AppError(Category.INVALID, message, where=peer.name)
    if mark.is_done:  # and only to say so was left
        return Done(_outputs(mark.round))
    is_careful = server.collected.attempt(peer.name) >= CAREFUL_FROM
    counter = _Counter(server, peer.name, report)
    by = f"Task/{task['id']}"
    earlier = _Earlier(by, frozenset(each.sop_uid for each in server.archive.brought(by)))
    try:
        admitted(server, peer)
        with source_of(server, peer, is_careful=is_careful) as source:
            items = list(islice(source.items(), MOST_ITEMS))
            taken = _take(server, peer, source, items, counter, _budget(server, mark), earlier)
            is_all = taken == len(items) < MOST_ITEMS
            dates = source.dates() if is_all else [each.date for each in items[:taken]]
    except AppError as error:
        if error.category is Category.FAULT:
            raise
        failures = server.collected.fail(peer.name, str(error))
        server.collected.change(peer.name, attempts=0)
        return Later(plan.pause_s(min(peer.schedule.every_s, plan.FIRST_PAUSE_S), failures), str(error))
    finally:
        counter.flush()
    return Done(_outputs(_ended(server, peer, list(dates), is_all=is_all)))


@dataclass(frozen=True, slots=True)
class _Earlier:
    """A round, "Task/...", and the SOP Instance UIDs of what earlier starts of it had stored."""

    task: str
    sop_uids: frozenset[str]


def _take(
    server: Backing, peer: Peer, source: Any, items: list[Any], counter: "_Counter", budget: Budget, earlier: _Earlier
) -> int:
    """Take items one after the other; return how many were taken before the budget was spent."""
    counter.total = sum(each.size for each in items)
    for number, item in enumerate(items):
        counter.begin(f"{number + 1} of {len(items)}", item.size)
        if budget.is_spent:
            return number
        principal = admitted(server, server.peers.get(peer.name))
        ingest = partial(_ingest, server, principal, earlier)
        if not source.take(item, ingest, budget, counter.add):
            return number
    return len(items)


def _ingest(server: Backing, principal: Any, earlier: _Earlier, files: Any, study_uid: str | None) -> Iterator[Outcome]:
    """Store files; what an earlier start of this round had stored is new all the same."""
    for outcome in server.studies.ingest(files, principal, study_uid=study_uid, brought_by=earlier.task):
        if isinstance(outcome, Stored) and outcome.summary.sop_uid in earlier.sop_uids:
            yield replace(outcome, created=True)
        else:
            yield outcome


def _budget(server: Backing, mark: Mark) -> Budget:
    config, now = server.config, server.clock()
    instances, size = plan.left_today(config, mark, now)
    return Budget(
        instances=min(config["collect.round_instances"], instances),
        bytes=min(config["collect.round_bytes"], size),
        until=time.monotonic() + min(config["collect.round_s"], 0.8 * config["work.order_wall_s"]),
    )


def _ended(server: Backing, peer: Peer, dates: list[str], *, is_all: bool) -> Tally:
    """Note that the round has ended in order, and how far it came; return what came of it."""
    now, mark = server.clock(), server.collected.mark(peer.name)
    tally = _on_record(server, peer, mark)
    due, reason = now, ""
    if is_all:
        due = now + timedelta(seconds=peer.schedule.every_s)
    elif plan.is_used_up(server.config, mark, now):
        due, reason = plan.next_day(now), plan.USED_UP
    latest = plan.reached(mark.latest, dates, now)
    server.collected.change(
        peer.name, is_done=True, attempts=0, failures=0, told="", reason=reason, looked_at=now, latest=latest, due=due,
        round=asdict(tally),
    )  # fmt: skip
    return tally


def _on_record(server: Backing, peer: Peer, mark: Mark) -> Tally:
    """Return what came of a round, as the rows of what it brought and the notes of what it refused tell."""
    brought = list(server.archive.brought(f"Task/{mark.task}"))
    studies = dict.fromkeys([*mark.round.studies, *(each.study_uid for each in brought)])
    return replace(
        mark.round,
        stored=len(brought),
        refused=server.collected.count(peer.name, REFUSED, mark.begun),
        bytes=max(mark.round.bytes, sum(each.size_received for each in brought)),
        studies=list(islice(studies, MOST_STUDIES)),
    )


def _outputs(tally: Tally) -> list[Json]:
    received = {"value": tally.bytes, "unit": "byte", "system": "http://unitsofmeasure.org", "code": "By"}
    numbers = {name: getattr(tally, name) for name in ("stored", "here", "refused", "failed")}
    return [
        *(value(name, "valueUnsignedInt", number) for name, number in numbers.items()),
        value("received", "valueQuantity", received),
        *(
            value("imaging-study", "valueReference", {"reference": f"ImagingStudy/{imaging_study_id(uid)}"})
            for uid in tally.studies
        ),
        *(value("refusal", "valueString", each) for each in tally.reasons),
    ]


class _Counter:
    """Counts what comes, notes it now and then, and reports progress."""

    def __init__(self, server: Backing, peer: str, report: Report) -> None:
        self._server, self._peer, self._report = server, peer, report
        self._tally = Tally()
        self._stored = 0
        self._place = ""
        self._before = self._in_item = self._of_item = 0  # instances
        self.total = 0
        self._flushed = self._reported = time.monotonic()

    def begin(self, place: str, size: int) -> None:
        """Say that an item of about so many instances is at hand, in words and as a number."""
        self._place = place
        self._before, self._in_item, self._of_item = self._before + self._of_item, 0, size

    def add(self, part: Tally) -> None:
        """Count something more."""
        whole = self._tally
        for name in ("stored", "here", "refused", "failed", "bytes"):
            setattr(whole, name, getattr(whole, name) + getattr(part, name))
        whole.studies += [each for each in part.studies if each not in whole.studies]
        whole.reasons += part.reasons[: MOST_REASONS - len(whole.reasons)]
        self._stored += part.stored
        self._in_item += part.stored + part.here + part.refused + part.failed
        now = time.monotonic()
        if now - self._flushed > FLUSH_S or part.failed:  # of which nothing else is on record
            self.flush()
        if now - self._reported > REPORT_S:
            self._reported = now
            done = self._before + min(self._in_item, self._of_item)
            percent = min(100 * done // max(self.total, 1), 99)
            self._report(Progress(percent, f"{self._place}, {self._stored} images stored"))

    def flush(self) -> None:
        """Note what was counted since the last time."""
        self._flushed = time.monotonic()
        tally, self._tally = self._tally, Tally()
        if tally != Tally():
            self._server.collected.add(self._peer, tally, f"{self._server.clock():%Y%m%d}")


handlers.register(CODE)(Handler(Kind(CODE, (), OUTPUTS), run, admit=admit, is_transfer=True))
