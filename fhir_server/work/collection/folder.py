"""A folder as a source: files that somebody copies there are taken when they have become quiet.

Hides what can be wrong with a folder that others write to. It is walked by open directories, never by paths, and no
link is followed, so that nothing outside is read or moved, whatever is exchanged meanwhile. A file counts as quiet by
the time of its last change that the file system keeps, which no sender can set. Files are read, or copied where they
are large, before anything looks at them: what is cut short under a reader would end the process.

What was stored is moved to done/, what is refused to refused/ with the reason in a text beside it; of a folder that
keeps its files it is noted instead. A crash in between has a file stored once more, which is recognised.
"""

import errno
import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from urllib.parse import quote

from fhir_server.model.peer import Peer
from fhir_server.store import collected
from fhir_server.store.collected import FILE, Collected, Note, Tally
from fhir_server.work.collection import Budget, Expected, Ingest, is_final
from imaging.archive import Outcome, Refused
from imaging.blobs import Buffer
from imaging.dataset import Limits, read
from imaging.dicomweb import read_body
from imaging.errors import AppError, Category

DONE, REFUSED = "done", "refused"
AT_A_TIME = 50  # files in one item
DEEPEST = 32  # folders within one another
LONGEST_KEY = 1_000  # characters
MOST_SAME_NAME = 10_000
MOST_REASON = 500  # characters
REST = timedelta(minutes=5)  # of a file in the middle of whose storing the process died
UNREADABLE = timedelta(hours=1)  # until a file that this server may not read is tried again
PARTIAL = (".part", ".partial", ".tmp", ".filepart", ".crdownload")  # how programs name what they are still copying
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe would be waited for


@dataclass(frozen=True, slots=True)
class File:
    """A quiet file. `place` are the names of the folders above it; `looks` changes whenever the file does."""

    place: tuple[str, ...]
    name: str
    size: int
    looks: str

    @property
    def key(self) -> str:
        """Its relative path, as text whatever bytes the names are of; the digest of one that is very long."""
        path = os.fsencode("/".join((*self.place, self.name)))
        text = quote(path, safe="/ ")
        return text if len(text) <= LONGEST_KEY else hashlib.sha256(path).hexdigest()


@dataclass(frozen=True, slots=True)
class Files:
    """Some files; a folder has no mark to move."""

    files: tuple[File, ...]
    date: str = ""

    @property
    def size(self) -> int:
        """How many files they are."""
        return len(self.files)


class FolderSource:
    """The folder of a peer, as a context manager."""

    def __init__(
        self,
        peer: Peer,
        notes: Collected,
        *,
        clock: Callable[[], datetime],
        most_bytes: int,
        is_careful: bool = False,
    ) -> None:
        """`most_bytes` is the size of the largest file that is taken; for a careful source see `DicomwebSource`."""
        if peer.schedule.filters:
            raise AppError(Category.UNSUPPORTED, "a folder knows no filters: all of it is collected", where=peer.name)
        self._peer, self._collected, self._clock, self._most_bytes = peer, notes, clock, most_bytes
        self._keeps = peer.schedule.keeps
        self._at_a_time = 1 if is_careful else AT_A_TIME
        self._is_careful = is_careful

    def __enter__(self) -> "FolderSource":
        try:
            self._root = os.open(self._peer.address, _DIRECTORY & ~os.O_NOFOLLOW)
        except OSError as error:
            raise self._broken("cannot be opened here", error) from None
        if not self._keeps and not os.access(".", os.W_OK | os.X_OK, dir_fd=self._root, effective_ids=True):
            os.close(self._root)
            message = "files cannot be moved out of the folder: let this server write there, or have it keep them"
            raise AppError(Category.FORBIDDEN, message, where=self._peer.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._root)

    def items(self) -> Iterator[Files]:
        """Yield quiet files that were not dealt with, some at a time, in no order."""
        group: list[File] = []
        try:
            for file in self._walk(self._root, ()):
                group.append(file)
                if len(group) == AT_A_TIME:
                    yield from self._new(group)
                    group = []
        except OSError as error:
            raise self._broken("cannot be read", error) from None
        yield from self._new(group)

    def dates(self) -> Iterable[str]:
        """Return nothing: files come when they come."""
        return ()

    def is_news(self, item: Files) -> bool:
        """Say that there are files."""
        return bool(item.files)

    def expected(self, item: Files) -> Iterator[Expected]:
        """Yield what the files are, by study; they are read for it."""
        studies: dict[tuple[str, str, str, str], int] = {}
        for file in item.files:
            try:
                body = self._read(file)
                if body is None:
                    continue
                summary = read(body, limits=Limits(max_file_bytes=self._most_bytes)).summary
            except AppError as error:
                found = ("", "", "", f"would be refused: {error.message}")
            else:
                found = (summary.study_uid, summary.study.study_date, summary.series.modality, "")
            studies[found] = studies.get(found, 0) + 1
        for (study_uid, date, modality, note), count in studies.items():
            yield Expected(study_uid, date, modality, count, count, note)

    def take(self, item: Files, ingest: Ingest, budget: Budget, told: Callable[[Tally], None]) -> bool:
        """Store files and move them away, or note them."""
        for start in range(0, len(item.files), self._at_a_time):
            some = item.files[start : start + self._at_a_time]
            if budget.is_spent:
                return False
            if self._is_careful:
                rest = self._clock() + REST
                self._note(*(Note(FILE, each.key, each.looks, rest) for each in some))
            self._take(some, ingest, budget, told)
        return not budget.is_spent

    def _take(self, files: Iterable[File], ingest: Ingest, budget: Budget, told: Callable[[Tally], None]) -> None:
        under_way: deque[File] = deque()

        def bodies() -> Iterator[Buffer]:
            for file in files:
                try:
                    body = None if budget.is_spent else self._read(file)
                except AppError as error:
                    told(self._settle(file, Refused(error)))
                    continue
                if body is not None:
                    budget.spend(len(body))
                    under_way.append(file)
                    yield body

        for outcome in ingest(bodies(), None):
            file = under_way.popleft()
            told(self._settle(file, outcome))

    def _settle(self, file: File, outcome: Outcome) -> Tally:
        if isinstance(outcome, Refused):
            uid = outcome.sop_instance_uid or "a file"  # whose name may say who is on it
            reason = f"{uid}: {outcome.error.message}"[:MOST_REASON]
            if outcome.error.category is Category.FORBIDDEN:  # to read it; somebody may put that right
                self._note(Note(FILE, file.key, file.looks, self._clock() + UNREADABLE))
                return Tally(failed=1, reasons=[reason])
            if not is_final(outcome.error):
                raise outcome.error
            self._put_away(file, REFUSED, outcome.error.message)
            self._note(Note(collected.REFUSED, file.key, reason))
            return Tally(refused=1, reasons=[reason])
        self._put_away(file, DONE, "")
        new = int(outcome.created)
        return Tally(stored=new, here=1 - new, bytes=outcome.size_received, studies=[outcome.summary.study_uid])

    # ---- the folder

    def _walk(self, directory: int, place: tuple[str, ...]) -> Iterator[File]:
        below: list[str] = []
        now_ns = int(self._clock().timestamp() * 1e9)
        with os.scandir(directory) as entries:
            for entry in entries:
                if self._is_skipped(entry.name, place):
                    continue
                with suppress(FileNotFoundError):  # somebody took it away meanwhile
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(found.st_mode):
                        below.append(entry.name)
                    elif stat.S_ISREG(found.st_mode) and self._is_quiet(found, now_ns):
                        yield File(place, entry.name, found.st_size, _looks(found))
        for name in below if len(place) < DEEPEST else ():
            try:
                inner = os.open(name, _DIRECTORY, dir_fd=directory)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # it was exchanged meanwhile
                    continue
                raise
            try:
                yield from self._walk(inner, (*place, name))
            finally:
                os.close(inner)

    def _is_skipped(self, name: str, place: tuple[str, ...]) -> bool:
        is_ours = not place and not self._keeps and name in (DONE, REFUSED)
        return is_ours or name.startswith(".") or name == "DICOMDIR" or name.lower().endswith(PARTIAL)

    def _is_quiet(self, found: os.stat_result, now_ns: int) -> bool:
        changed = max(found.st_ctime_ns, found.st_mtime_ns if found.st_mtime_ns <= now_ns else 0)
        return now_ns - changed >= self._peer.schedule.quiet_s * 1e9

    def _new(self, group: list[File]) -> Iterator[Files]:
        notes = self._collected.notes(self._peer.name, FILE, [each.key for each in group])
        now = self._clock()
        new = [each for each in group if _is_open(notes.get(each.key), each, now)]
        if new:
            yield Files(tuple(new))

    def _read(self, file: File) -> Buffer | None:
        """Return what a file holds; None when it is gone or has changed since it was seen.

        Raises FORBIDDEN where it cannot be read, TOO_LARGE beyond the limit.
        """
        try:
            with self._opened(file.place) as directory:
                handle = os.open(file.name, _FILE, dir_fd=directory)
            with os.fdopen(handle, "rb", buffering=0) as stream:
                if _looks(os.fstat(handle)) != file.looks:
                    return None
                body = read_body(stream.read, self._most_bytes)
                return body if _looks(os.fstat(handle)) == file.looks else None
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            reason = os.strerror(error.errno) if error.errno else type(error).__name__
            raise AppError(Category.FORBIDDEN, f"it cannot be read: {reason}", where=self._peer.name) from None

    @contextmanager
    def _opened(self, place: tuple[str, ...], *, made: bool = False) -> Iterator[int]:
        """Give the open directory of a place, made if need be, without following a link."""
        current = os.dup(self._root)
        try:
            for name in place:
                if made:
                    with suppress(FileExistsError):
                        os.mkdir(name, dir_fd=current)
                inner = os.open(name, _DIRECTORY, dir_fd=current)
                os.close(current)
                current = inner
            yield current
        finally:
            os.close(current)

    def _put_away(self, file: File, to: str, reason: str) -> None:
        if self._keeps:
            self._note(Note(FILE, file.key, file.looks))
            return
        try:
            with self._opened(file.place) as source, self._opened((to, *file.place), made=True) as target:
                name = _free_name(file.name, target)
                os.rename(file.name, name, src_dir_fd=source, dst_dir_fd=target)
                if reason:
                    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                    with os.fdopen(os.open(f"{name}.txt", flags, 0o644, dir_fd=target), "w") as text:
                        text.write(f"{reason}\n")
        except FileNotFoundError:
            return  # somebody took it away meanwhile
        except OSError as error:
            # It stays where it is, and is not taken again.
            self._note(Note(FILE, file.key, file.looks))
            raise self._broken("does not let a file be moved", error) from None

    def _note(self, *notes: Note) -> None:
        self._collected.note(self._peer.name, notes, self._clock())

    def _broken(self, what: str, error: OSError) -> AppError:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        return AppError(Category.BUSY, f"the folder {what}: {reason}", where=self._peer.name)


def _looks(found: os.stat_result) -> str:
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"


def _is_open(note: Note | None, file: File, now: datetime) -> bool:
    return note is None or note.value != file.looks or (note.due is not None and note.due <= now)


def _free_name(name: str, directory: int) -> str:
    """Return the name, with a number behind where there is one of this name already."""
    for number in range(MOST_SAME_NAME):
        free = name if number == 0 else f"{name}.{number}"
        try:
            os.stat(free, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return free
    raise OSError(errno.EEXIST, "too many files of one name")
