"""Keeps an eye on printers: their Devices say how they are, and what was cancelled is not printed any more.

One process at a time asks a printer, however many workers there are. Where no printer is registered nothing is done but
one look at the register now and then.
"""

import logging
import threading

from fhir_server.hardcopy.press import abandon
from fhir_server.model.task import Json, is_over
from fhir_server.printers import build
from fhir_server.store.printers import Registered
from fhir_server.work.backing import Backing
from fhir_server.work.kinds.hard_copy import account
from imaging.errors import AppError, Category
from imaging.printer import Progress

log = logging.getLogger(__name__)

AT_A_TIME = 1_000  # jobs looked at in one round


def run(server: Backing, stopping: threading.Event) -> None:
    """Watch until `stopping` is set."""
    every_s: float = server.config["hardcopy.poll_s"]
    while not stopping.wait(every_s):
        # The outermost door of this thread: whatever went wrong (a failover, say), the next round tries again.
        try:
            look(server, every_s)
        except Exception:
            log.exception("a look at the printers failed")


def look(server: Backing, every_s: float) -> None:
    """Ask every printer whose turn it is, and end the jobs of orders that are over."""
    printers = {each.name: each for each in server.printers.all()}
    for printer in printers.values():
        if not printer.is_elsewhere and server.printers.jobs.turn(printer.name, every_s * 0.9):
            server.printers.refresh(printer)
    for task, name in server.printers.jobs.open(AT_A_TIME).items():
        if name in printers and (last := _ended(server, task)) is not None:
            _end(server, printers[name], last)


def _ended(server: Backing, task: str) -> Json | None:
    """Return the last version of a Task that is over, deleted ones included; None for one that is not."""
    try:
        found = server.own.read("Task", task).json()
    except AppError as error:
        if error.category is Category.NOT_FOUND:
            return None
        if error.category is not Category.GONE:
            raise
        return next(each.json() for each in server.own.history("Task", task) if not each.deleted)
    return found if is_over(found) else None


def _end(server: Backing, printer: Registered, task: Json) -> None:
    """Stop what can be stopped of a job that nobody wants any more, and account for what came out."""
    try:
        with server.printers.jobs.job(task["id"]) as notes:
            outcome = abandon(build(printer), notes)
        if outcome.progress not in (Progress.PRINTING, Progress.PENDING):
            principal = server.principals.acting_for(task["requester"]["reference"])
            account(server, principal, task, outcome.pages, is_complete=outcome.progress is Progress.DONE)
    except AppError as error:
        if error.category is not Category.BUSY:
            log.warning("a job could not be ended", extra={"task": task["id"], "reason": str(error)})
