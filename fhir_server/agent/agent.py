"""The print agent at work: fetches ahead, prints, reports; each in a thread of its own, so that none waits for another.

What it has on disk (`state`) is what it knows: an order is printed by the ticket there and nothing else. While the
server is away, it prints what it has fetched and keeps what it has to report; while the printer is away, it fetches
ahead and waits. An order that it claimed and does not remember is never printed on a guess: it is reported as failed.
"""

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fhir_server.agent.server import ImagingServer
from fhir_server.agent.state import Held, State
from fhir_server.hardcopy.composing import Copying
from fhir_server.hardcopy.images import Chosen
from fhir_server.hardcopy.logo import logo_from
from fhir_server.hardcopy.orders import order_of
from fhir_server.hardcopy.outputs import MOST_DETAIL, printed, why
from fhir_server.hardcopy.press import abandon, press
from fhir_server.model import json
from fhir_server.model.task import PROGRESS, WAITING, Json, Status, is_over, status_of
from imaging.errors import AppError, Category
from imaging.printer import Attachment, Capabilities, Job, Outcome, Printer, Progress, begun
from imaging.printer import State as PrinterState
from imaging.printer import Status as PrinterStatus

log = logging.getLogger(__name__)

MOST_CLAIMS = 5  # attempts on one order, against others who write it meanwhile
MOST_FAULTS = 5  # of ours, with one order, before it is reported as failed
_LOST = "the agent has no memory of this order, and pages may have been printed: look at the printer, then order again"


# What is wrong with an order or its images, and will not pass.
_FINAL = frozenset(
    {Category.INVALID, Category.UNSUPPORTED, Category.NOT_FOUND, Category.GONE, Category.TOO_LARGE, Category.CONFLICT}
)


@dataclass(frozen=True, slots=True)
class Pace:
    """How the agent works.

    ahead         orders that are fetched before the printer is free for them; the next one is decoded, too
    in_flight     jobs that the printer has at a time
    poll_s        between two looks for orders; doubles up to `longest_s` while the server is away
    ask_s         between two questions what became of a job
    beat_s        between two signs of life to the server for an order, well below its `work.claim_s`
    """

    ahead: int = 3
    in_flight: int = 2
    poll_s: float = 5.0
    longest_s: float = 60.0
    ask_s: float = 2.0
    beat_s: float = 120.0


class Agent:
    """One printer's agent."""

    def __init__(
        self,
        server: ImagingServer,
        printer: Printer,
        state: State,
        *,
        pace: Pace | None = None,
        logo: Path | None = None,
    ) -> None:
        self._server, self._printer, self._state = server, printer, state
        self._pace = pace or Pace()
        self._logo = logo_from(logo)
        self._has: Capabilities | None = None
        self._base = ""
        self._is_suspended = False
        self._stopping = threading.Event()
        self._to_print, self._to_fetch, self._to_report = (threading.Event() for _ in range(3))
        self._claiming = threading.Lock()
        self._beaten: dict[str, float] = {}  # id -> monotonic s of the last sign of life
        self._prepared: tuple[str, Job | None] = "", None  # the next order, while another one is printed

    def run(self, stopping: threading.Event) -> None:
        """Work until `stopping` is set; return when what is being done at that moment is done."""
        loops = (
            (self._fetch_round, self._to_fetch, "fetching"),
            (self._print_round, self._to_print, "printing"),
            (self._report_round, self._to_report, "reporting"),
        )
        threads = [threading.Thread(target=self._loop, args=loop, name=loop[2]) for loop in loops]
        for thread in threads:
            thread.start()
        stopping.wait()
        self._stopping.set()
        for event in (self._to_fetch, self._to_print, self._to_report):
            event.set()
        for thread in threads:
            thread.join()

    def _loop(self, work: Callable[[], float], woken: threading.Event, name: str) -> None:
        pause = 0.0
        while True:
            woken.clear()
            # Not before: a wake that comes in between would be forgotten, and with it that this is to end.
            if self._stopping.is_set():
                return
            try:
                rest = work()
                pause = 0.0
            # The outermost door of this thread. What is said may quote patient data where it is not ours.
            except Exception as error:  # noqa: BLE001
                pause = min(max(pause * 2, self._pace.poll_s), self._pace.longest_s) * random.uniform(0.8, 1.2)
                rest = pause
                reason = str(error) if isinstance(error, AppError) else type(error).__name__
                log.warning("it is tried again", extra={"what": name, "reason": reason, "pause_s": round(pause, 1)})
            woken.wait(rest)

    # ---- fetching

    def _fetch_round(self) -> float:
        """Take orders and fetch their images, as many as are to lie ahead."""
        for held in self._state.orders():
            self._fetch(held)
        self._capabilities()
        self._prepare()
        for task in self._server.orders():
            if self._stopping.is_set() or self._lying() >= self._pace.ahead:
                break
            if not self._state.holds(task["id"]):
                self._take(task)
                self._prepare()
        self._prepare()
        return self._pace.poll_s

    def _take(self, task: Json) -> None:
        """Take an order. It is noted here before it is claimed there, so that none is claimed and then forgotten."""
        known = self._state.became(task["id"])
        if known is None and _was_begun(task):
            known = Outcome(Progress.UNKNOWN, detail=_LOST)
        held = self._state.take(task)
        log.info("an order was taken", extra={"task": held.id})
        if known is not None:
            held.end(known)
            self._to_report.set()
        else:
            self._fetch(held)

    def _fetch(self, held: Held) -> None:
        """Have all here that is needed to print an order. What can never be printed ends it."""
        if held.is_fetched or held.outcome is not None or held.is_unwanted:
            return
        task = self._current(held)
        if task is None:
            self._state.close_order(held, None)
            return
        held.save_task(task)
        self._beaten[held.id] = time.monotonic()
        self._base = self._base or self._server.base()
        try:
            images = held.images(self._server.images_of(held.id))
            chosen = Chosen(images, order_of(task), reach=lambda found: None)
            images.fetch(chosen.instances())
        except AppError as error:
            if error.category not in _FINAL:
                raise
            held.end(Outcome(Progress.FAILED, detail=f"nothing was printed: {error}"))
            self._to_report.set()
            return
        held.fetched(self._base)
        self._to_print.set()

    def _prepare(self) -> None:
        """Make the job of the next order, so that the printer need not wait for it; of one, as it takes memory."""
        following = next(iter(self._ready()), None)
        if following is None or self._prepared[0] == following.id:
            return
        self._prepared = following.id, None  # tried once: what is wrong with it is said when its turn comes
        with suppress(AppError):
            self._prepared = following.id, begun(self._job(following))

    def _ready(self) -> list[Held]:
        """Return the orders that can be given to the printer, the next one first."""
        ready = [
            each for each in self._state.orders()
            if each.is_fetched and each.outcome is None and not each.ticket() and not each.is_unwanted
        ]  # fmt: skip
        return sorted(ready, key=lambda each: order_of(each.task).priority != "HIGH")

    def _lying(self) -> int:
        """Return how many orders lie here that were not given to the printer."""
        return sum(held.outcome is None and not held.ticket() for held in self._state.orders())

    def _capabilities(self) -> Capabilities:
        if self._has is None:
            self._has = self._printer.capabilities()
        return self._has

    # ---- printing

    def _print_round(self) -> float:
        """Ask what became of jobs, and give the printer the next where it has room."""
        open_ones = [each for each in self._state.orders() if each.outcome is None]
        for held in open_ones:
            if held.ticket():
                self._advance(held)
            elif held.is_unwanted:
                self._state.close_order(held, None)
        if self._is_suspended:
            return self._pace.ask_s
        flying = sum(bool(each.ticket()) for each in open_ones if each.folder.exists() and each.outcome is None)
        for held in self._ready():
            if self._stopping.is_set() or flying >= self._pace.in_flight:
                break
            self._advance(held)
            flying += bool(held.ticket()) and held.outcome is None
            self._to_fetch.set()
        return self._pace.ask_s

    def _advance(self, held: Held) -> None:
        """Bring one order on as far as it goes now."""
        if held.is_unwanted:
            self._give_up(held)
            return
        try:
            outcome = press(self._printer, lambda: self._prepared_job(held), held, hear=lambda _: self._to_report.set())
        except AppError as error:
            if error.category is Category.BUSY:
                log.info("the printer is waited for", extra={"task": held.id, "reason": error.message})
                return
            self._refused(held, error)
            return
        except Exception as error:
            log.exception("an order could not be printed by a fault of ours", extra={"task": held.id})
            if held.faults() >= MOST_FAULTS:
                self._refused(held, AppError(Category.FAULT, f"a fault of the agent ({type(error).__name__})"))
            return
        if outcome.progress in (Progress.PRINTING, Progress.PENDING) or outcome.may_repeat:
            return
        held.end(outcome)
        log.info("an order is over", extra={"task": held.id, "progress": str(outcome.progress), "pages": outcome.pages})
        self._to_report.set()

    def _refused(self, held: Held, error: AppError) -> None:
        """End an order that cannot be printed. Once there is a ticket, only the printer knows what came out."""
        outcome = Outcome(Progress.FAILED, detail=str(error))
        if held.ticket():
            asked = self._printer.outcome(held.ticket())
            outcome = Outcome(Progress.UNKNOWN, asked.pages, asked.reasons, str(error))
        held.end(outcome)
        self._to_report.set()

    def _give_up(self, held: Held) -> None:
        outcome = abandon(self._printer, held)
        if outcome.progress not in (Progress.PRINTING, Progress.PENDING):
            held.end(outcome)
            self._to_report.set()

    def _prepared_job(self, held: Held) -> Job:
        identifier, job = self._prepared
        if identifier != held.id or job is None:
            return self._job(held)
        self._prepared = held.id, None
        return job

    def _job(self, held: Held) -> Job:
        task = held.task
        order = order_of(task)
        images = held.images(None)
        copying = Copying(
            order=order,
            chosen=Chosen(images, order, reach=lambda found: None),
            capabilities=self._capabilities(),
            key=held.id,
            address=f"{held.base}/Task/{held.id}",
            logo=self._logo,
        )
        copying.check()
        return copying.job(
            [Attachment("order.json", "application/fhir+json", json.dumps(task), "The order, a FHIR Task")]
        )

    # ---- reporting

    def _report_round(self) -> float:
        """Tell the server what became of orders and how the printer is; hear what was cancelled.

        Orders come first, each by itself: neither a printer that does not say how it is nor trouble with one order may
        let the claims of others lapse.
        """
        troubles = [error for held in self._state.orders() if (error := self._told(held))]
        self._tell_status()
        if troubles:
            raise troubles[0]
        return min(self._pace.beat_s / 4, self._pace.longest_s)

    def _told(self, held: Held) -> AppError | None:
        """Report the end of an order, or give a sign of life for it; return what was in the way."""
        outcome = held.outcome
        try:
            if outcome is not None:
                self._report(held, outcome)
            elif time.monotonic() - self._beaten.get(held.id, -math.inf) > self._pace.beat_s:
                self._beat(held)
        except AppError as error:
            return error
        return None

    def _tell_status(self) -> None:
        status = self._printer.status()
        capabilities = None
        if status.state is not PrinterState.OFFLINE:
            try:
                self._has = capabilities = self._printer.capabilities()
            except AppError as error:
                status = PrinterStatus(PrinterState.OFFLINE, (), error.message)
        self._is_suspended = not self._server.tell(capabilities, status)

    def _report(self, held: Held, outcome: Outcome) -> None:
        task = self._current(held)
        if task is not None:
            order = order_of(task)
            told = printed(outcome.pages, order.copies, order.device, outcome.detail)
            if outcome.progress is Progress.DONE:
                self._write(held, task, status=str(Status.COMPLETED), output=told)
            else:
                reason = {"text": why(outcome)[:MOST_DETAIL]}
                self._write(held, task, status=str(Status.FAILED), statusReason=reason, output=told)
        log.info("an order was reported", extra={"task": held.id, "progress": str(outcome.progress)})
        self._state.close_order(held, outcome)
        self._beaten.pop(held.id, None)

    def _beat(self, held: Held) -> None:
        """Give a sign of life for an order; hear whether it is still wanted."""
        task = self._current(held)
        if task is None:
            log.info("an order is not wanted any more", extra={"task": held.id})
            held.unwanted()
            self._to_print.set()
            return
        step = "the printer has it" if held.ticket() else "it waits for the printer"
        extension = [each for each in task.get("extension", []) if each.get("url") != PROGRESS]
        parts = [
            {"url": "percent", "valueUnsignedInt": 50 if held.ticket() else 0},
            {"url": "step", "valueString": step},
        ]
        self._write(held, task, extension=[*extension, {"url": PROGRESS, "extension": parts}])
        self._beaten[held.id] = time.monotonic()

    def _current(self, held: Held) -> Json | None:
        """Return the Task, claimed (anew, where the claim had lapsed); None where it is over without us."""
        # Two threads of ours that claim one order would see each other as somebody else.
        with self._claiming:
            task = self._read(held.id)
            for _ in range(MOST_CLAIMS):
                if task is None or status_of(task) not in WAITING:
                    break
                try:
                    task = self._server.write(task, status=str(Status.IN_PROGRESS))
                except AppError as error:
                    if error.category is not Category.CONFLICT:
                        raise
                    task = self._read(held.id)  # somebody wrote meanwhile: whoever ordered it, say
            if task is not None and status_of(task) in WAITING:
                raise AppError(Category.BUSY, "the order is being changed again and again", where=held.id)
            return None if task is None or is_over(task) else task

    def _read(self, identifier: str) -> Json | None:
        try:
            return self._server.order(identifier)
        except AppError as error:
            if error.category is Category.CONFLICT:
                return None
            raise

    def _write(self, held: Held, task: Json, **changes: object) -> None:
        held.save_task(self._server.write(task, **changes))


def _was_begun(task: Json) -> bool:
    """Say whether some agent had claimed a Task before: this one, which does not remember it."""
    return status_of(task) is Status.IN_PROGRESS or "executionPeriod" in task
