"""Frame table: where each frame lies inside a stored DICOM file.

Hides the encapsulated pixel-data layout (basic and extended offset tables, fragments).
Byte positions are counted from the first byte of the file. Source: PS3.5 A.4.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from struct import Struct, pack, unpack_from
from struct import error as StructError
from typing import Final

import numpy as np

from imaging.elements import ITEM, SEQUENCE_END
from imaging.errors import AppError, Category
from imaging.layout import Buffer

Range = tuple[int, int]
"""First byte and number of bytes."""

ITEM_HEADER: Final = Struct("<HHI")
SEQUENCE_DELIMITATION: Final = pack("<HHI", SEQUENCE_END >> 16, SEQUENCE_END & 0xFFFF, 0)
MAX_BASIC_OFFSET: Final = 0xFFFFFFFF
_VERSION: Final = 1
_ONE: Final = Struct("<Iqq")  # the body of a table of one range: how many, its gap from the start, its length


@dataclass(frozen=True, slots=True)
class FrameTable:
    """Byte ranges of every frame, in order. A frame of several fragments has several ranges."""

    frames: tuple[tuple[Range, ...], ...]

    def __len__(self) -> int:
        return len(self.frames)

    def ranges(self, index: int) -> tuple[Range, ...]:
        """Return the ranges of frame `index`, from 0. Raises NOT_FOUND beyond the table."""
        if not 0 <= index < len(self.frames):
            raise AppError(Category.NOT_FOUND, f"frame {index + 1} asked, the instance has {len(self.frames)}")
        return self.frames[index]

    def read(self, stored: Buffer, index: int) -> Buffer:
        """Return the bytes of frame `index` out of the whole file; a view of it when they lie together."""
        parts = [memoryview(stored)[start : start + length] for start, length in self.ranges(index)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def to_bytes(self) -> bytes:
        """Return a compact form: gaps and lengths rather than positions, compressed."""
        counts = np.array([len(ranges) for ranges in self.frames], "<u4")
        flat = np.array([r for ranges in self.frames for r in ranges], "<i8").reshape(-1, 2)
        gaps = flat[:, 0] - np.concatenate([[0], flat.sum(axis=1)[:-1]]) if len(flat) else flat[:, 0]
        body = counts.tobytes() + gaps.astype("<i8").tobytes() + flat[:, 1].tobytes()
        return pack("<BII", _VERSION, len(counts), len(flat)) + zlib.compress(body, 6)

    @classmethod
    def from_bytes(cls, data: bytes) -> "FrameTable":
        """Return what `to_bytes` was called on. Raises INVALID for anything else."""
        try:
            version, frames, ranges = unpack_from("<BII", data)
            unpacker = zlib.decompressobj()
            body = unpacker.decompress(data[9:], 4 * frames + 16 * ranges + 1)
            if version == _VERSION and frames == ranges == 1 and unpacker.eof:
                # Most instances have one frame of one piece, and streams of thousands of them have no time.
                count, start, length = _ONE.unpack(body)
                if count == 1:
                    return cls((((start, length),),))
            counts = np.frombuffer(body, "<u4", frames)
            gaps = np.frombuffer(body, "<i8", ranges, 4 * frames)
            lengths = np.frombuffer(body, "<i8", ranges, 4 * frames + 8 * ranges)
        except (ValueError, zlib.error, OverflowError, StructError) as error:
            raise AppError(Category.INVALID, "the frame table is damaged") from error
        if version != _VERSION or counts.sum() != ranges or not unpacker.eof:
            raise AppError(Category.INVALID, "the frame table is damaged")
        starts = np.cumsum(gaps + np.concatenate([[0], lengths[:-1]])) if ranges else gaps
        flat = list(zip(starts.tolist(), lengths.tolist(), strict=True))
        ends = np.cumsum(counts).tolist()
        return cls(tuple(tuple(flat[end - count : end]) for count, end in zip(counts.tolist(), ends, strict=True)))


def native_table(start: int, ranges: Iterable[Range]) -> FrameTable:
    """Return the table of native frames whose ranges are given relative to `start`."""
    return FrameTable(tuple(((start + first, length),) for first, length in ranges))


def read_fragments(buffer: Buffer, start: int, length: int) -> tuple[list[int], list[Range]]:
    """Return the basic offset table and the ranges of all fragments of an encapsulated value field.

    The field is `buffer[start : start + length]`, without the Sequence Delimitation Item. Raises INVALID.
    """
    pos, end = start, start + length
    items: list[Range] = []
    while pos + 8 <= end:
        group, number, size = ITEM_HEADER.unpack_from(buffer, pos)
        if group << 16 | number != ITEM or pos + 8 + size > end:
            raise AppError(Category.INVALID, "a fragment of pixel data is malformed", where=f"byte {pos}")
        items.append((pos + 8, size))
        pos += 8 + size
    if not items:
        raise AppError(Category.INVALID, "encapsulated pixel data has no basic offset table", where=f"byte {start}")
    table_start, table_length = items[0]
    offsets = list(unpack_from(f"<{table_length // 4}I", buffer, table_start))
    return offsets, items[1:]


def encapsulated_table(
    buffer: Buffer,
    start: int,
    length: int,
    number_of_frames: int,
    extended: tuple[Sequence[int], Sequence[int]] | None = None,
) -> FrameTable:
    """Return the table of encapsulated frames.

    By the extended offset table (offsets, lengths) where there is one, then the basic one where it is sound, then one
    fragment a frame, then by where codestreams start. Raises INVALID when frames cannot be told apart.
    """
    offsets, fragments = read_fragments(buffer, start, length)
    if extended is not None and len(extended[0]) == number_of_frames:
        table = _by_offsets(fragments, extended[0])
        if table is not None:
            return _trim(table, extended[1])
    if len(offsets) == number_of_frames:
        table = _by_offsets(fragments, offsets)
        if table is not None:
            return table
    if number_of_frames == 1 and fragments:
        return FrameTable((tuple(fragments),))
    if len(fragments) == number_of_frames:
        return FrameTable(tuple((fragment,) for fragment in fragments))
    table = _by_codestreams(buffer, fragments)
    if len(table) == number_of_frames:
        return table
    raise AppError(
        Category.INVALID,
        f"{len(fragments)} fragments without a sound offset table cannot be divided into {number_of_frames} frames",
        where=f"byte {start}",
    )


def encapsulation(lengths: Sequence[int]) -> tuple[bytes, bytes, bytes]:
    """Return the first item and, when it must stay empty, the extended offset table and lengths (PS3.5 A.4).

    lengths  bytes of each frame's codestream; each becomes one fragment, padded to an even length.
    """
    padded = np.array(lengths, dtype=np.int64)
    padded += padded % 2
    offsets = np.concatenate([[0], np.cumsum(padded + 8)[:-1]]) if len(padded) else padded
    if not len(padded) or offsets[-1] <= MAX_BASIC_OFFSET:
        return item_header(4 * len(offsets)) + offsets.astype("<u4").tobytes(), b"", b""
    return item_header(0), offsets.astype("<u8").tobytes(), np.array(lengths, "<u8").tobytes()


def item_header(length: int) -> bytes:
    """Return the header of an item of `length` bytes."""
    return ITEM_HEADER.pack(ITEM >> 16, ITEM & 0xFFFF, length)


def _by_offsets(fragments: Sequence[Range], offsets: Sequence[int]) -> FrameTable | None:
    """Divide fragments where offsets say; None when an offset does not point at the start of a fragment."""
    if not fragments:
        return None
    base = fragments[0][0] - 8
    index_at = {start - 8 - base: index for index, (start, _) in enumerate(fragments)}
    firsts = [index_at.get(int(offset), -1) for offset in offsets]
    if not firsts or firsts[0] != 0 or any(a >= b for a, b in pairwise(firsts)):
        return None
    ends = [*firsts[1:], len(fragments)]
    return FrameTable(tuple(tuple(fragments[a:b]) for a, b in zip(firsts, ends, strict=True)))


def _trim(table: FrameTable, lengths: Sequence[int]) -> FrameTable:
    """Leave out the padding byte of frames of one fragment, whose true lengths the extended table gives."""
    return FrameTable(
        tuple(
            ((ranges[0][0], int(length)),) if len(ranges) == 1 and 0 <= ranges[0][1] - length <= 1 else ranges
            for ranges, length in zip(table.frames, lengths, strict=True)
        )
    )


def _by_codestreams(buffer: Buffer, fragments: Sequence[Range]) -> FrameTable:
    """Let a frame begin with each fragment that begins with a JPEG or JPEG 2000 start marker."""
    frames: list[list[Range]] = []
    for start, length in fragments:
        if not frames or bytes(buffer[start : start + 3]) in (b"\xff\xd8\xff", b"\xff\x4f\xff"):
            frames.append([])
        frames[-1].append((start, length))
    return FrameTable(tuple(tuple(ranges) for ranges in frames))
