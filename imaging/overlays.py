"""Overlay planes: maps of single bits that belong to an image, or to a presentation state for it.

Hides repeating groups, packing and which plane is whose frame's. Sources: PS3.3 C.9.2, C.9.3; PS3.5 8.1.2.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imaging.display import FrameSource
from imaging.errors import AppError, Category

GROUPS = tuple(f"60{n:02X}" for n in range(0, 0x20, 2))
MOST_PIXELS = 100_000_000  # of a plane


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """A map of bits. `left`, `top` is where its first one lies, in pixels of the image; bits [row, column]."""

    bits: NDArray[np.bool_]
    left: int
    top: int


def has_plane(source: FrameSource, group: str) -> bool:
    """Say whether there is an overlay of a group, "60xx"."""
    return source.integer(f"{group}0010") is not None


def plane_of(source: FrameSource, group: str) -> Plane | None:
    """Return the overlay of a group for the frame of a source; None where it has none.

    Raises INVALID for what is none, UNSUPPORTED for bits in pixel data (retired), TOO_LARGE.
    """
    if not has_plane(source, group):
        return None
    where = f"({group},3000)"
    rows, columns = source.integer(f"{group}0010") or 0, source.integer(f"{group}0011") or 0
    origin = source.numbers(f"{group}0050", 2) or (1.0, 1.0)
    if rows < 1 or columns < 1 or max(map(abs, origin)) > 1 << 15:
        raise AppError(Category.INVALID, "the overlay does not say where it is", where=where)
    if rows * columns > MOST_PIXELS:
        message = f"an overlay of {rows} x {columns} pixels; at most {MOST_PIXELS:,} are shown"
        raise AppError(Category.TOO_LARGE, message, where=where)
    if (source.integer(f"{group}0100") or 1) != 1:
        raise AppError(Category.UNSUPPORTED, "overlays in unused bits of pixel data are not shown", where=where)
    frames, first = source.integer(f"{group}0015"), source.integer(f"{group}0051") or 1
    index = 0 if frames is None else source.frame - first
    if frames is not None and not 0 <= index < frames:
        return None
    start, end = index * rows * columns, (index + 1) * rows * columns
    packed = np.frombuffer(source.data(f"{group}3000")[start // 8 : -(-end // 8)], dtype=np.uint8)
    bits = np.unpackbits(packed, bitorder="little")[start % 8 :][: rows * columns]
    if len(bits) < rows * columns:
        raise AppError(
            Category.INVALID, f"{len(bits):,} of the overlay's {rows * columns:,} bits are here", where=where
        )
    return Plane(bits.reshape(rows, columns).astype(np.bool_), int(origin[1]) - 1, int(origin[0]) - 1)
