"""What the pixels of one instance look like, and how much of everything we accept.

Plain frozen values, shared by reading, codecs and transcoding. Names are the keywords of PS3.3 C.7.6.3 in snake case.
"""

from dataclasses import asdict, dataclass
from mmap import mmap
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from imaging.errors import AppError, Category

Buffer = bytes | bytearray | memoryview | mmap

Pixels = NDArray[Any]
"""One frame: [rows, columns] or [rows, columns, samples], container words as they stand in native pixel data."""

PIXEL_KEYWORDS: Final = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
"""Tags that carry the pixels of an instance at the top level of its dataset (PS3.3 C.7.6.3, C.7.6.24, C.7.6.25)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what one received file may ask of us. Sizes in bytes."""

    max_file_bytes: int = 16 << 30
    max_header_bytes: int = 1 << 30
    """Everything but pixel data, after inflating."""
    max_inflated_bytes: int = 1 << 30
    max_elements: int = 5_000_000
    max_sequence_depth: int = 64
    max_frames: int = 1_000_000
    max_pixels_per_frame: int = 1 << 28


@dataclass(frozen=True, slots=True)
class PixelLayout:
    """Where the pixel data lies in a file and how one frame of it is laid out.

    value_start, value_length   bytes of the value field, counted from the first byte of the file, both None when the
                                dataset is deflated; when encapsulated, from the first item (the basic offset
                                table) up to, not including, the Sequence Delimitation Item
    """

    keyword: str
    value_start: int | None
    value_length: int | None
    encapsulated: bool
    rows: int
    columns: int
    samples_per_pixel: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    pixel_representation: int
    planar_configuration: int
    photometric_interpretation: str
    number_of_frames: int

    @property
    def is_float(self) -> bool:
        """Whether samples are IEEE floating point numbers."""
        return self.keyword != "PixelData"

    @property
    def is_signed(self) -> bool:
        """Whether samples are two's complement integers."""
        return self.pixel_representation == 1

    @property
    def is_subsampled(self) -> bool:
        """Whether native pixel data holds two chroma samples for four luma samples (PS3.3 C.7.6.3.1.2)."""
        return (
            self.photometric_interpretation in SUBSAMPLED and self.samples_per_pixel == 3 and self.bits_allocated >= 8
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Little-endian type of one sample's container; unsigned byte for one-bit pixels (one byte a pixel).

        Raises UNSUPPORTED for depths that no array has.
        """
        if self.bits_allocated not in ((32, 64) if self.is_float else BIT_DEPTHS):
            raise AppError(Category.UNSUPPORTED, f"pixel data of {self.bits_allocated} bits allocated is not decoded")
        if self.is_float:
            return np.dtype(f"<f{self.bits_allocated // 8}")
        return np.dtype(f"<{'i' if self.is_signed else 'u'}{max(1, self.bits_allocated // 8)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one decoded frame: (rows, columns), or (rows, columns, samples) for colour."""
        if self.samples_per_pixel == 1:
            return self.rows, self.columns
        return self.rows, self.columns, self.samples_per_pixel

    @property
    def frame_bits(self) -> int:
        """Bits of one native frame; with two chroma samples per four luma samples where subsampled."""
        samples = 2 if self.is_subsampled else self.samples_per_pixel
        return self.rows * self.columns * samples * self.bits_allocated

    def to_document(self) -> dict[str, Any]:
        """Return a plain dict of numbers and text."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "PixelLayout":
        """Return what `to_document` was called on."""
        return cls(**document)


BIT_DEPTHS: Final = (1, 8, 16, 32, 64)
"""Bits Allocated that we decode."""

SUBSAMPLED: Final = frozenset({"YBR_FULL_422", "YBR_PARTIAL_422"})
