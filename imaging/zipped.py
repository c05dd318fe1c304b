"""A ZIP archive that is written while it is sent, with nothing of it held.

Hides Python's writer, which wants a file. Every entry is "deflated", also where nothing is compressed, so that readers
that take the archive as it comes find its end. Source: PKWARE APPNOTE 6.3, 4.3.9 and 4.4.3 (ZIP64 from version 4.5 on).
"""

import io
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

FAST, NONE = 1, 0  # levels of compression
_LARGE = 1 << 31  # bytes from which on an entry is announced with 64-bit sizes


@dataclass(frozen=True, slots=True)
class Entry:
    """A file to write: name with slashes, about its size in bytes, content, and whether that is dense already."""

    name: str
    size_bytes: int
    content: Iterable[bytes]
    is_dense: bool = False


def zipped(entries: Iterable[Entry]) -> Iterator[bytes]:
    """Yield the archive; the content of an entry is taken before the next entry is asked for."""
    outbox = _Outbox()
    with zipfile.ZipFile(outbox, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in entries:
            archive.compresslevel = NONE if entry.is_dense else FAST
            with archive.open(entry.name, "w", force_zip64=entry.size_bytes >= _LARGE) as file:
                for piece in entry.content:
                    file.write(piece)
                    yield from outbox.taken()
            yield from outbox.taken()
    yield from outbox.taken()


class _Outbox(io.RawIOBase):
    """What was written since it was last taken."""

    def __init__(self) -> None:
        self._held: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self._held.append(bytes(memoryview(data)))  # type: ignore[arg-type]
        return len(self._held[-1])

    def taken(self) -> Iterator[bytes]:
        held, self._held = self._held, []
        yield from held
