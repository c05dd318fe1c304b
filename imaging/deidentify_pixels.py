"""Pixels after de-identification: rectangles burned out, overlays in unused bits and comments in codestreams gone.

Blackened pixels are black in native pixel data; the instance is written without compression then. What lossy
compression did before stays told. Sources: PS3.15 E.3.1, PS3.3 C.7.6.3, ISO/IEC 10918-1 B.2.4, ISO/IEC 15444-1 A.9.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import unpack_from
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames

from imaging.errors import AppError, Category
from imaging.layout import PixelLayout, Pixels

_BITS_IN_BYTE: Final = 8
_JPEG_COMMENT: Final = 0xFE
_JPEG_APPLICATION: Final = {
    # segments that decoders need: colour of JFIF and Adobe, JPEG-LS colour
    0xE0: b"JFIF", 0xEE: b"Adobe", 0xE8: b"mrfx",
}  # fmt: skip
_JPEG_2000_COMMENT: Final = 0x64
_SCANS: Final = frozenset({0xDA, 0x90, 0x93, 0xD9})
"""Markers after which the header of a codestream has ended: SOS, SOT, SOD, EOI."""


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A part of an image that is burned out, in pixels counted from 0 at the top left.

    frames      counted from 1; all when empty
    series_uid  of the images as they were; every series when empty
    """

    left: int
    top: int
    width: int
    height: int
    frames: frozenset[int] = frozenset()
    series_uid: str = ""

    @classmethod
    def from_text(cls, text: str) -> "Rectangle":
        """Read `left,top,width,height`, then, if wanted, `;frames=1,3-5` and `;series=<UID>`. Raises INVALID."""
        found = re.fullmatch(
            r"(\d{1,6}),(\d{1,6}),(\d{1,6}),(\d{1,6})(?:;frames=([\d,-]{1,1000}))?(?:;series=([\d.]{1,64}))?", text
        )
        if not found or 0 in (int(found[3]), int(found[4])):
            message = "left,top,width,height expected, as in 0,0,512,40;frames=1,3-5;series=1.2.3"
            raise AppError(Category.INVALID, message, where="rectangle")
        left, top, width, height = (int(found[number]) for number in range(1, 5))
        return cls(left, top, width, height, frozenset(_frames(found[5] or "")), found[6] or "")


def burn_out(ds: Dataset, rectangles: Sequence[Rectangle]) -> None:
    """Blacken rectangles in the native pixel data of an instance, in place.

    Raises INVALID for a rectangle that touches no pixel or names a frame that is not there; UNSUPPORTED for pixels
    whose layout is not dealt with.
    """
    frames = _native_frames(ds)
    for rectangle in rectangles:
        rows, columns = int(ds.Rows), int(ds.Columns)
        if rectangle.left >= columns or rectangle.top >= rows:
            raise AppError(Category.INVALID, f"outside of {columns} x {rows} pixels", where="rectangle")
        if any(not 1 <= number <= len(frames) for number in rectangle.frames):
            raise AppError(Category.INVALID, f"a frame from 1 to {len(frames)} expected", where="rectangle")
    is_signed, photometric = bool(ds.get("PixelRepresentation", 0)), str(ds.PhotometricInterpretation)
    for number, frame in enumerate(frames, start=1):
        _blacken(frame, rectangles, number, _black(photometric, int(ds.BitsStored), is_signed, frames.dtype))
    _write(ds, frames)


def blackened(
    frame: Pixels, layout: PixelLayout, photometric: str, rectangles: Sequence[Rectangle], number: int
) -> Pixels:
    """Return a decoded frame, its number counted from 1, with rectangles black; what lies beyond its edges is nothing.

    photometric   Photometric Interpretation of the decoded samples
    """
    words = frame.view(f"<u{frame.dtype.itemsize}").reshape(layout.rows, layout.columns, -1).copy()
    _blacken(words, rectangles, number, _black(photometric, layout.bits_stored, layout.is_signed, words.dtype))
    return words.view(frame.dtype).reshape(frame.shape)


def clear_unused_bits(ds: Dataset) -> None:
    """Set the bits of native pixel data that no sample uses to 0: old overlays lie there (PS3.5 8.1.2)."""
    allocated, stored = int(ds.BitsAllocated), int(ds.BitsStored)
    mask = used_bits(allocated, stored, int(ds.get("HighBit", stored - 1)))
    if mask is not None:
        words = np.frombuffer(ds.PixelData, f"<u{allocated // 8}")
        ds.PixelData = (words & np.array(mask, words.dtype)).tobytes()


def used_bits(allocated: int, stored: int, high: int) -> int | None:
    """Return the bits of a word that a sample uses; None where that is all of them, or cannot be said."""
    low = high + 1 - stored
    return None if allocated not in (8, 16, 32) or stored >= allocated or low < 0 else ((1 << stored) - 1) << low


def only_used_bits(frame: Pixels, mask: int) -> Pixels:
    """Return a decoded frame without the bits that are not in `mask`."""
    words = frame.view(f"<u{frame.dtype.itemsize}")
    used: Pixels = words & np.array(mask, words.dtype)
    return used.view(frame.dtype)


def without_comments(ds: Dataset) -> None:
    """Remove comments and application data from the codestreams of encapsulated pixel data, in place."""
    count = _number_of_frames(ds)
    frames = list(generate_frames(ds.PixelData, number_of_frames=count))
    stripped = [strip_comments(frame) for frame in frames]
    if any(len(one) != len(other) for one, other in zip(frames, stripped, strict=True)):
        for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
            if keyword in ds:
                delattr(ds, keyword)
        ds.PixelData = encapsulate([frame + b"\0" * (len(frame) % 2) for frame in stripped])


def strip_comments(codestream: bytes) -> bytes:
    """Return a JPEG, JPEG-LS or JPEG 2000 codestream without comments in its header; anything else as it is.

    Comments of JPEG 2000 in headers of tiles, and whatever another codec may carry, are not looked for.
    """
    is_jpeg_2000 = codestream[:4] == b"\xff\x4f\xff\x51"
    if not is_jpeg_2000 and codestream[:3] != b"\xff\xd8\xff":
        return codestream
    kept, pos = [codestream[:2]], 2
    while pos + 4 <= len(codestream):
        marker = codestream[pos + 1]
        if codestream[pos] != 0xFF or marker in _SCANS:
            break
        end = pos + 2 + int(unpack_from(">H", codestream, pos + 2)[0])
        segment = codestream[pos:end]
        is_comment = marker == _JPEG_2000_COMMENT if is_jpeg_2000 else _is_jpeg_comment(marker, segment[4:])
        if not is_comment:
            kept.append(segment)
        pos = end
    return b"".join((*kept, codestream[pos:]))


def _is_jpeg_comment(marker: int, data: bytes) -> bool:
    if marker == _JPEG_COMMENT:
        return True
    return 0xE0 <= marker <= 0xEF and not (marker in _JPEG_APPLICATION and data.startswith(_JPEG_APPLICATION[marker]))


def _number_of_frames(ds: Dataset) -> int:
    """Return how many frames there are; one, where that cannot be read, as when the file comes in."""
    try:
        return int(ds.get("NumberOfFrames") or 1)
    except (TypeError, ValueError):
        return 1


def _frames(text: str) -> Iterator[int]:
    for part in text.split(",") if text else ():
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or int(last or first) - int(first) > 1_000_000:
            raise AppError(Category.INVALID, "frames are numbers and ranges, as in 1,3-5", where="rectangle")
        yield from range(int(first), int(last or first) + 1)


def _native_frames(ds: Dataset) -> NDArray[Any]:
    """Return [frame, row, column, sample] of interleaved samples, writable. Raises UNSUPPORTED, INVALID."""
    samples, allocated = int(ds.get("SamplesPerPixel", 1)), int(ds.BitsAllocated)
    is_planar = samples > 1 and int(ds.get("PlanarConfiguration", 0) or 0) == 1
    if allocated not in (8, 16, 32) or "PixelData" not in ds or str(ds.PhotometricInterpretation).endswith("_422"):
        message = f"rectangles are not burned into pixels of {allocated} bits, {ds.get('PhotometricInterpretation')}"
        raise AppError(Category.UNSUPPORTED, message, where="rectangle")
    count, rows, columns = _number_of_frames(ds), int(ds.Rows), int(ds.Columns)
    words = np.frombuffer(ds.PixelData, f"<u{allocated // _BITS_IN_BYTE}")
    if len(words) < count * rows * columns * samples:
        raise AppError(Category.INVALID, "the pixel data is too short for its frames", where="(7FE0,0010)")
    words = words[: count * rows * columns * samples]
    if is_planar:
        return words.reshape(count, samples, rows, columns).transpose(0, 2, 3, 1).copy()
    return words.reshape(count, rows, columns, samples).copy()


def _blacken(frame: NDArray[Any], rectangles: Sequence[Rectangle], number: int, black: NDArray[Any]) -> None:
    """Blacken a frame of unsigned words, [row, column, sample], in place."""
    for each in rectangles:
        if not each.frames or number in each.frames:
            frame[each.top : each.top + each.height, each.left : each.left + each.width] = black


def _black(photometric: str, stored: int, is_signed: bool, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the sample values of black as unsigned words, one for each sample."""
    if photometric.startswith("YBR"):
        # Chroma of half the range is no colour. What JPEG 2000 transforms is decoded to RGB before.
        return np.array([0, 1 << (stored - 1), 1 << (stored - 1)], dtype)
    if photometric == "MONOCHROME1":
        return np.array([(1 << (stored - is_signed)) - 1], dtype)
    lowest = -(1 << (stored - 1)) if is_signed and photometric == "MONOCHROME2" else 0
    return np.array([lowest % (1 << (8 * dtype.itemsize))], dtype)


def _write(ds: Dataset, frames: NDArray[Any]) -> None:
    if "PlanarConfiguration" in ds:
        ds.PlanarConfiguration = 0
    value = frames.tobytes()
    ds.PixelData = value + b"\0" * (len(value) % 2)
