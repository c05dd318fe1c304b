"""What the print agent knows, on its own disk: the orders that it has, their images, tickets and outcomes.

One process has a state directory at a time; the lock is the kernel's, so it ends with the process however that dies.
What is saved survives a crash: a file is written, synced and renamed, and its folder is synced. An order that is over
leaves a note, so that one that comes again is not printed again.
"""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fhir_server.hardcopy.filed import FiledImages, Source
from fhir_server.model import json
from fhir_server.model.task import Json
from imaging.errors import AppError, Category
from imaging.printer import Outcome, Progress

REMEMBERED_DAYS = 90  # an order that is over
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}")
_TASK, _NOTES, _OUTCOME, _FETCHED, _UNWANTED = "task.json", "notes.json", "outcome.json", "fetched", "unwanted"


@dataclass(frozen=True, slots=True)
class Held:
    """One order that is here. It is the `Notes` of its job."""

    folder: Path

    @property
    def id(self) -> str:
        """Id of the Task."""
        return self.folder.name

    @property
    def task(self) -> Json:
        """The Task as it was read last."""
        found: Json = json.loads_trusted((self.folder / _TASK).read_bytes())
        return found

    def save_task(self, task: Json) -> None:
        """Keep a newer version of the Task."""
        save(self.folder / _TASK, task)

    def images(self, source: Source | None) -> FiledImages:
        """Return its images; without a source those that are here."""
        return FiledImages(self.folder / "images", source)

    @property
    def is_fetched(self) -> bool:
        """Whether all that is needed to print it is here."""
        return (self.folder / _FETCHED).exists()

    def fetched(self, base: str) -> None:
        """Note that all is here. `base` is the FHIR door as the server calls itself."""
        save(self.folder / _FETCHED, {"base": base})

    @property
    def base(self) -> str:
        """What `fetched` noted."""
        return str(json.loads_trusted((self.folder / _FETCHED).read_bytes())["base"])

    @property
    def is_unwanted(self) -> bool:
        """Whether it was cancelled, or is over for another reason, at the server."""
        return (self.folder / _UNWANTED).exists()

    def unwanted(self) -> None:
        """Note that nobody wants it any more."""
        save(self.folder / _UNWANTED, {})

    # ---- notes of the job

    def ticket(self) -> str:
        """Return the ticket that was saved last, "" before the first."""
        return str(self._notes().get("ticket", ""))

    def keep(self, ticket: str) -> None:
        """Save a ticket; returns when it survives a crash."""
        save(self.folder / _NOTES, {**self._notes(), "ticket": ticket})

    def tries(self) -> int:
        """Count a reservation and return how many there were."""
        return self._count("tries")

    def faults(self) -> int:
        """Count a fault of ours and return how many there were."""
        return self._count("faults")

    @property
    def outcome(self) -> Outcome | None:
        """What became of it, None while that is open."""
        path = self.folder / _OUTCOME
        if not path.exists():
            return None
        told = json.loads_trusted(path.read_bytes())
        return Outcome(Progress(told["progress"]), told["pages"], tuple(told["reasons"]), told["detail"])

    def end(self, outcome: Outcome) -> None:
        """Save what became of it."""
        save(self.folder / _OUTCOME, _told(outcome))

    def _notes(self) -> dict[str, Any]:
        path = self.folder / _NOTES
        found: dict[str, Any] = json.loads_trusted(path.read_bytes()) if path.exists() else {}
        return found

    def _count(self, what: str) -> int:
        count = int(self._notes().get(what, 0)) + 1
        save(self.folder / _NOTES, {**self._notes(), what: count})
        return count


class State:
    """The state directory of one agent."""

    def __init__(self, folder: Path) -> None:
        """Take it. Raises CONFLICT while another process has it."""
        self._orders, self._over = folder / "orders", folder / "over"
        for each in (self._orders, self._over):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            message = "another agent works with this directory; give each agent one of its own"
            raise AppError(Category.CONFLICT, message, where=str(folder)) from None
        self._sweep()

    def close(self) -> None:
        """Let another process have it."""
        self._lock.close()

    def orders(self) -> Iterator[Held]:
        """Yield the orders that are here, those taken first first."""
        folders = [each for each in self._orders.iterdir() if (each / _TASK).exists()]
        yield from (Held(each) for each in sorted(folders, key=lambda each: (each / _TASK).parent.stat().st_ctime_ns))

    def holds(self, identifier: str) -> bool:
        """Say whether an order is here."""
        return (self._orders / identifier / _TASK).exists()

    def take(self, task: Json) -> Held:
        """Keep an order. Raises INVALID for an id that is none."""
        identifier = str(task.get("id", ""))
        if not _ID.fullmatch(identifier):
            raise AppError(Category.INVALID, "the id of the Task is not one that FHIR allows", where="Task.id")
        held = Held(self._orders / identifier)
        held.folder.mkdir(mode=0o700, exist_ok=True)
        held.save_task(task)
        _sync(self._orders)
        return held

    def close_order(self, held: Held, outcome: Outcome | None) -> None:
        """Forget an order that is over, but not that it is."""
        if outcome is not None:
            save(self._over / f"{held.id}.json", _told(outcome))
        shutil.rmtree(held.folder)

    def became(self, identifier: str) -> Outcome | None:
        """Return what became of an order that is over, None for one that was never here or is still."""
        path = self._over / f"{identifier}.json"
        if not _ID.fullmatch(identifier) or not path.exists():
            return None
        told = json.loads_trusted(path.read_bytes())
        return Outcome(Progress(told["progress"]), told["pages"], tuple(told["reasons"]), told["detail"])

    def _sweep(self) -> None:
        old = time.time() - REMEMBERED_DAYS * 86_400
        for each in self._over.glob("*.json"):
            if each.stat().st_mtime < old:
                each.unlink()


def save(path: Path, content: Any) -> None:
    """Write JSON so that after a crash there is the old or the new file, and after this the new one."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(json.dumps(content))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _told(outcome: Outcome) -> dict[str, Any]:
    return {
        "progress": str(outcome.progress),
        "pages": outcome.pages,
        "reasons": list(outcome.reasons),
        "detail": outcome.detail,
    }
