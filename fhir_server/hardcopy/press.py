"""Printing a job once, whatever dies in between: the order of asking, reserving, saving and sending.

The same for the server's worker and for the agent; they differ in where they keep the notes. Source of the protocol:
`imaging.printer`.
"""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from imaging.film import Medium, Sheets, test_page
from imaging.printer import Job, Outcome, Printer, Progress, Status

_LOOKS_S = 1.0  # between two looks at a test page
MOST_TRIES = 10  # reservations of one job, each after a failure of which the printer says that it may pass


class Notes(Protocol):
    """What is kept of one job, durably, by one process at a time."""

    def ticket(self) -> str:
        """Return the ticket that was saved last, "" before the first."""

    def keep(self, ticket: str) -> None:
        """Save a ticket; returns when it survives a crash. Raises where the job is not this process' any more."""

    def tries(self) -> int:
        """Count a reservation and return how many there were."""


def press(printer: Printer, job: Callable[[], Job], notes: Notes, *, hear: Callable[[Status], None]) -> Outcome:
    """Bring a job on as far as it goes now, and return where it is: PRINTING, DONE, FAILED or UNKNOWN.

    job    makes the job; called only where something has to be sent
    hear   is told how the printer is while it is sent to
    Raises BUSY when the printer cannot be reached or has no room: call again later, with the same notes.
    """
    ticket = notes.ticket()
    if ticket:
        found = printer.outcome(ticket)
        if found.progress is Progress.FAILED and found.may_repeat:
            ticket = ""
        elif found.progress is not Progress.PENDING:
            return found
    made = job()
    if not ticket:
        if notes.tries() > MOST_TRIES:
            return Outcome(Progress.FAILED, detail=f"given up after {MOST_TRIES} tries")
        ticket = printer.reserve(made)
        notes.keep(ticket)
    newest = [ticket]

    def keep(newer: str) -> None:
        notes.keep(newer)
        newest.append(newer)

    printer.send(ticket, made, keep=keep, tell=hear)
    return printer.outcome(newest[-1])


class _Unkept:
    """Notes of a job that is nobody's order."""

    def __init__(self) -> None:
        self._ticket = ""

    def ticket(self) -> str:
        return self._ticket

    def keep(self, ticket: str) -> None:
        self._ticket = ticket

    def tries(self) -> int:
        return 1


def try_out(printer: Printer, now: datetime, wait_s: float, pattern: str = "") -> Outcome:
    """Print a test page, or a test pattern, and return what became of it after at most `wait_s` seconds."""
    has = printer.capabilities()
    plain = Sheets(
        film_size=next(iter(has.film_sizes), "A4"),
        medium=next(iter(has.media), Medium.PAPER),
        dots_per_inch=next(iter(has.dots_per_inch), 300),
        bits=next(iter(has.bits), 8) if has.grey else 8,
        colour=not has.grey,
        margin=max(6.0, has.least_margin),
        banner=("Test page", f"{now:%Y-%m-%d %H:%M} UTC"),
    )
    job = Job(f"test-page-{now:%Y%m%d%H%M%S}", test_page.sheets(plain), test_page.pictures(pattern))
    notes, end = _Unkept(), time.monotonic() + wait_s
    while (outcome := press(printer, lambda: job, notes, hear=lambda _: None)).progress is Progress.PRINTING:
        if time.monotonic() > end:
            break
        time.sleep(_LOOKS_S)
    return outcome


def abandon(printer: Printer, notes: Notes) -> Outcome:
    """Stop what can still be stopped of a job that nobody wants any more, and return what became of it."""
    ticket = notes.ticket()
    if not ticket:
        return Outcome(Progress.FAILED, detail="nothing was sent")
    ticket = printer.cancel(ticket)
    notes.keep(ticket)
    return printer.outcome(ticket)
