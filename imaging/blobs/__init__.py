"""Opaque bytes under content keys: what an archive asks of whatever holds its files."""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

Buffer = bytes | bytearray | memoryview | mmap.mmap


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes to be kept: `parts` one after the other are `size` bytes whose SHA-256 (hex) is `key`."""

    key: str
    parts: Sequence[Buffer]
    size: int


class Part(NamedTuple):
    """Some of the bytes of a blob."""

    key: str
    start: int
    length: int


class BlobStore(Protocol):
    """Bytes under a key. Keys are content hashes, so a key's bytes never change.

    Readers never see a blob before all of its bytes are there.
    """

    def prepare(self) -> None:
        """Create what the store needs, such as indexes; may be called again at any time."""

    def put(self, blobs: Sequence[Blob]) -> None:
        """Keep all of `blobs` durably; one whose key is there already is only marked as put again, now.

        Raises FAULT when `parts` are not `size` bytes.
        """

    def read(self, key: str) -> Iterator[bytes]:
        """Yield the bytes of `key` in order. Raises NOT_FOUND when absent."""

    def read_parts(self, parts: Sequence[Part]) -> list[bytes]:
        """Return exactly the bytes of each part, read together. Raises NOT_FOUND when absent, INVALID out of range."""

    def delete(self, key: str, *, put_before: datetime) -> bool:
        """Remove `key` unless it was put (again) at or after `put_before`; tell whether it is gone.

        Deleting an absent key is a no-op that answers True.
        """


def pieces(parts: Sequence[Buffer], piece_bytes: int) -> Iterator[bytes]:
    """Yield the bytes of `parts`, joined, in pieces of exactly `piece_bytes` (the last may be shorter)."""
    pending: list[memoryview] = []
    size = 0
    for part in parts:
        view = memoryview(part)
        while size + len(view) >= piece_bytes:
            take = piece_bytes - size
            yield b"".join([*pending, view[:take]])
            view, pending, size = view[take:], [], 0
        if len(view):
            pending.append(view)
            size += len(view)
    if size:
        yield b"".join(pending)
