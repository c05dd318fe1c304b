"""A folder in which jobs appear whole or not at all, once each: what printers that write files have in common.

A reserved job is a file or folder with a hidden name, its *part*. It is filled, made durable, and renamed, which is
the one step that counts. While there is a part, nothing has appeared, whoever died when. Without it, the ticket says
whether it was about to. Whoever fetches what appeared may move it away at once.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from imaging.errors import AppError, Category
from imaging.printer import MOST_KEY, Outcome, Progress, State, Status

ABANDONED_DAYS = 30  # after which a part that nobody filled is swept away
LEAST_FREE = 256 << 20  # bytes; below this, nothing more is begun
_RANDOM = 12  # characters that tell two reservations of one job apart


@dataclass(frozen=True, slots=True)
class _Ticket:
    """The name under which a job appears, and from when it is about to, its number of pages."""

    name: str
    pages: int | None = None

    def __str__(self) -> str:
        return self.name if self.pages is None else f"{self.name} {self.pages}"

    @classmethod
    def read(cls, text: str) -> "_Ticket":
        """Return a ticket from its text. Raises INVALID for what was never one, also for paths out of the folder."""
        name, _, pages = text.partition(" ")
        key, _, made = name.rpartition("_")
        is_name = name.isascii() and 0 < len(key) <= MOST_KEY and len(made) == _RANDOM and made.isalnum()
        if not is_name or key[0] == "." or set(name) & set("/\\\0") or not (pages == "" or pages.isdecimal()):
            raise AppError(Category.INVALID, "no ticket of this printer", where="ticket")
        return cls(name, int(pages) if pages else None)


@dataclass(frozen=True, slots=True)
class Drop:
    """The folder. What appears in it is a file whose name ends in `suffix`, or a folder where that is empty."""

    folder: Path
    suffix: str = ""

    def reserve(self, key: str) -> str:
        """Return a ticket. Raises BUSY when the folder is not there, cannot be written to, or the disk is full."""
        status = self.status()
        if status.state is not State.NORMAL:
            raise AppError(Category.BUSY, status.detail, where="printer")
        self._sweep()
        ticket = _Ticket(f"{key}_{uuid4().hex[:_RANDOM]}")
        with _os_errors_as_busy():
            self._empty(self._part(ticket))
        return str(ticket)

    def place(self, text: str, fill: Callable[[Path], int], keep: Callable[[str], None]) -> None:
        """Have a part filled and let it appear.

        fill  is given an empty file or folder; returns how many pages it wrote to it

        Raises CONFLICT for a job that is not pending.
        """
        ticket = _Ticket.read(text)
        if self.outcome(text).progress is not Progress.PENDING:
            raise AppError(Category.CONFLICT, "this job was sent or given up before", where="ticket")
        part = self._part(ticket)
        with _os_errors_as_busy():
            self._empty(part)
            pages = fill(part)
            _make_durable(part)
        keep(str(_Ticket(ticket.name, pages)))
        with _os_errors_as_busy():
            part.rename(self.folder / f"{ticket.name}{self.suffix}")
            _make_durable(self.folder, within=False)

    def outcome(self, text: str) -> Outcome:
        """Return what became of a job. Raises BUSY when the folder is not there."""
        ticket = _Ticket.read(text)
        if not self.folder.is_dir():
            raise AppError(Category.BUSY, "the folder is not there", where="printer")
        if self._cancelled(ticket).exists():
            return Outcome(Progress.FAILED, detail="it was given up", may_repeat=True)
        if self._part(ticket).exists():
            return Outcome(Progress.PENDING)
        if ticket.pages is None:
            return Outcome(Progress.FAILED, detail="the reservation is not there any more", may_repeat=True)
        return Outcome(Progress.DONE, pages=ticket.pages)

    def cancel(self, text: str) -> None:
        """Remove a part that has not appeared."""
        ticket = _Ticket.read(text)
        if self.outcome(text).progress is Progress.PENDING:
            with _os_errors_as_busy():
                # The mark goes first: with neither part nor mark, a job that was about to appear would pass for done.
                self._cancelled(ticket).touch()
                _remove(self._part(ticket))

    def status(self) -> Status:
        """Return OFFLINE for a folder that is not there, FAILURE for one that takes nothing."""
        if not self.folder.is_dir():
            return Status(State.OFFLINE, detail="the folder is not there")
        if not os.access(self.folder, os.W_OK | os.X_OK):
            return Status(State.FAILURE, ("CHECK PRINTER",), "the folder cannot be written to")
        if shutil.disk_usage(self.folder).free < LEAST_FREE:
            return Status(State.FAILURE, ("PRINT BUFF FULL",), f"less than {LEAST_FREE >> 20} MiB are free")
        return Status(State.NORMAL)

    def _part(self, ticket: _Ticket) -> Path:
        return self.folder / f".{ticket.name}.part"

    def _cancelled(self, ticket: _Ticket) -> Path:
        return self.folder / f".{ticket.name}.cancelled"

    def _empty(self, part: Path) -> None:
        """Make an empty part, also from one that a sender left who died."""
        if self.suffix:
            part.write_bytes(b"")
            return
        part.mkdir(exist_ok=True)
        for each in part.iterdir():
            _remove(each)

    def _sweep(self) -> None:
        latest = time.time() - ABANDONED_DAYS * 86_400
        for each in (*self.folder.glob(".*.part"), *self.folder.glob(".*.cancelled")):
            with contextlib.suppress(OSError):  # another sweeper was here first
                if each.stat().st_mtime < latest:
                    _remove(each)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _make_durable(path: Path, *, within: bool = True) -> None:
    for each in (*(path.rglob("*") if within else ()), path):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _os_errors_as_busy() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"the folder does not take it: {error.strerror or type(error).__name__}"
        raise AppError(Category.BUSY, message, where="printer") from error
