"""Bytes that grow: in memory while they are few, in an unnamed file from a limit on, and read as one buffer.

Hides the file. What comes out is bytes or a memory map, whose pages the system can take back when memory is short, so
that large things cost a process their place on disk and no memory of its own.
"""

import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from imaging.errors import AppError, Category
from imaging.layout import Buffer

SPOOL_BYTES = 8 << 20
"""From this size on, files and what is made of them wait on disk."""

_SMALL_BYTES = 4_096  # pieces up to this are cheaper to copy than to keep track of

Spooled = bytes | mmap.mmap


class Spool:
    """Growing bytes. To be used again after `finish` or `discard`.

    limit_bytes  up to this size they are kept in memory
    directory    of the file; None: where temporary files are, `TMPDIR`
    skip         the first so many bytes are dropped
    """

    def __init__(self, limit_bytes: int = SPOOL_BYTES, directory: str | None = None, *, skip: int = 0) -> None:
        self._limit_bytes = max(1, limit_bytes)  # an empty file cannot be mapped
        self._directory = directory
        self._skip = self._to_skip = skip
        self._chunks: list[memoryview | bytearray] = []
        self._file: IO[bytes] | None = None
        self.size = 0

    def write(self, chunk: Buffer) -> None:
        """Add bytes; the chunk itself may be kept until `finish`, so it must not change. Raises BUSY on a full disk."""
        view = memoryview(chunk)
        if self._to_skip:
            dropped = min(self._to_skip, len(view))
            view, self._to_skip = view[dropped:], self._to_skip - dropped
        if not view:
            return
        self.size += len(view)
        if self._file is None:
            self._keep(view)
            if self.size <= self._limit_bytes:
                return
            with _room():
                self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 -- closed by discard
                self._file.writelines(self._chunks)
            self._chunks.clear()
        else:
            with _room():
                self._file.write(view)

    def finish(self) -> Spooled:
        """Return all bytes; a file is gone when the map of it is. Raises BUSY on a full disk."""
        try:
            if self._file is None:
                return b"".join(self._chunks)
            with _room():
                self._file.flush()
                return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        finally:
            self.discard()

    def discard(self) -> None:
        """Drop what was written; its file is gone with it."""
        self._chunks = []
        self.size = 0
        self._to_skip = self._skip
        if self._file is not None:
            self._file.close()
            self._file = None

    def _keep(self, view: memoryview) -> None:
        last = self._chunks[-1] if self._chunks else None
        if len(view) > _SMALL_BYTES:
            self._chunks.append(view)
        elif isinstance(last, bytearray):
            last += view
        else:
            self._chunks.append(bytearray(view))


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"there is no room for temporary files ({type(error).__name__} {error.errno}); try again later"
        raise AppError(Category.BUSY, message, where="TMPDIR") from error
