"""A printer that dies, or fails, once at a step that a test names, and what runs it.

`python -m tests.support.presses ARGUMENTS` is the command `fhir-imaging` with the kind `fragile` registered.
"""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from fhir_server import config
from fhir_server.app import Server, assemble
from imaging.printer import Capabilities, Job, Outcome, Status
from imaging.printers import printers
from imaging.printers.folder import FolderPrinter

# Where a job can be when something dies, in order.
STEPS = ("reserve", "reserved", "send", "keep", "kept", "sent", "outcome")
SLOW_S = 1.0  # what the kind `slow` takes for a job
SPANS = "spans"  # file beside its folder: start and end of each
PLAN = "plan"  # file in the printer's folder: `die STEP` or `fail STEP`, once, or
MUTE = "mute"  # neither how it is nor what became of a job is told as long as the file is there


@printers.register("fragile")
@dataclass(frozen=True, slots=True)
class Fragile(FolderPrinter):
    """A folder that dies (kill -9) or fails when its plan says so, once."""

    def reserve(self, job: Job) -> str:
        self._at("reserve")
        ticket = FolderPrinter.reserve(self, job)
        self._at("reserved")
        return ticket

    def send(self, ticket: str, job: Job, *, keep: Any, tell: Any = lambda _: None) -> None:
        def kept(newer: str) -> None:
            self._at("keep")
            keep(newer)
            self._at("kept")

        self._at("send")
        FolderPrinter.send(self, ticket, job, keep=kept, tell=tell)
        self._at("sent")

    def outcome(self, ticket: str) -> Outcome:
        self._at("outcome")
        return FolderPrinter.outcome(self, ticket)

    def status(self) -> Status:
        self._at("status")
        return FolderPrinter.status(self)

    def capabilities(self) -> Capabilities:
        return FolderPrinter.capabilities(self)

    def _at(self, step: str) -> None:
        plan = Path(self.folder).parent / PLAN
        if step in ("status", "outcome") and plan.exists() and plan.read_text() == MUTE:
            raise OSError("the printer says nothing")
        if plan.exists() and plan.read_text().split()[-1] == step:
            how = plan.read_text().split()[0]
            plan.unlink()
            if how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError("the printer is gone")


@printers.register("slow")
@dataclass(frozen=True, slots=True)
class Slow(FolderPrinter):
    """A folder that takes a second for each job, one after the other, and notes when it was at work."""

    def send(self, ticket: str, job: Job, *, keep: Any, tell: Any = lambda _: None) -> None:
        started = time.time()
        FolderPrinter.send(self, ticket, job, keep=keep, tell=tell)
        time.sleep(max(0.0, SLOW_S - (time.time() - started)))
        with (Path(self.folder).parent / SPANS).open("a") as file:
            file.write(f"{started} {time.time()}\n")


def plan(folder: Path, what: str) -> None:
    """Have the printer of a folder die or fail at a step."""
    (folder.parent / PLAN).write_text(what)


def printed(folder: Path) -> list[str]:
    """Keys of the jobs that came out, each as often as it did."""
    return sorted(each.parent.name.partition("_")[0] for each in folder.glob("[!.]*/job.json"))


def open_backing(uri: str, name: str, settings: dict[str, str]) -> Server:
    """Return the server on a test database to a child process that does orders."""
    client: MongoClient[dict[str, Any]] = MongoClient(uri, tz_aware=True)
    return assemble(config.load(settings, environment={}), client[name])


if __name__ == "__main__":
    from fhir_server.cli import main

    main()
