"""Blobs in memory: for tools that work on one study, and for tests."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from imaging.blobs import Blob, Part
from imaging.errors import AppError, Category


class MemoryBlobs:
    """A blob store that lives as long as its process."""

    def __init__(self) -> None:
        self._blobs: dict[str, tuple[bytes, datetime]] = {}

    def prepare(self) -> None:
        """Do nothing: a dict needs no index."""

    def put(self, blobs: Sequence[Blob]) -> None:
        """Keep all of `blobs` in memory."""
        for blob in blobs:
            data = b"".join(blob.parts)
            if len(data) != blob.size:
                raise AppError(Category.FAULT, f"{len(data)} bytes given, {blob.size} announced", where=blob.key)
            self._blobs[blob.key] = (data, datetime.now(UTC))

    def read(self, key: str) -> Iterator[bytes]:
        """Yield the one piece that there is."""
        yield self._data(key)

    def read_parts(self, parts: Sequence[Part]) -> list[bytes]:
        """Return slices, checked against the size."""
        return [self._part(part) for part in parts]

    def delete(self, key: str, *, put_before: datetime) -> bool:
        """Forget `key` unless it was put since."""
        if key in self._blobs and self._blobs[key][1] >= put_before:
            return False
        self._blobs.pop(key, None)
        return True

    def _part(self, part: Part) -> bytes:
        data, (key, start, length) = self._data(part.key), part
        if start < 0 or length < 0 or start + length > len(data):
            raise AppError(Category.INVALID, f"bytes {start}+{length} of {len(data)}", where=key)
        return data[start : start + length]

    def _data(self, key: str) -> bytes:
        if key not in self._blobs:
            raise AppError(Category.NOT_FOUND, "no such blob", where=key)
        return self._blobs[key][0]
