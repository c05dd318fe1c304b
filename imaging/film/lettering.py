"""Text, scale bars and codes for a sheet, as coverage from 0 (nothing) to 1 (ink), ready to be laid on it.

Nothing here knows about pages; what is drawn is as large as it says in printed pixels. Sources: PS3.3 C.7.6.1.1.1
(orientation letters), ISO/IEC 18004 (QR code) through the library segno.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import segno
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from imaging.errors import AppError, Category
from imaging.geometry import letters_of

Coverage = NDArray[np.float32]

LINE = 1.25  # height of a line of text in font sizes
MOST_LINE = 200  # characters; what is longer ends in an ellipsis
_ELLIPSIS = "\u2026"
_QUIET = 4  # modules around a QR code. Source: ISO/IEC 18004, 9.1


def text(line: str, *, height: int, width: int, font: Path | None = None) -> Coverage:
    """Return one line of text in a strip of `height` x `width`, cut with an ellipsis where it is too long.

    Control characters become spaces. Raises UNSUPPORTED for a font file that cannot be read.
    """
    face = _face(max(1, int(height / LINE)), font)
    words = "".join(each if each.isprintable() else " " for each in line)
    shown = words[:MOST_LINE]
    while shown and face.getlength(shown + (_ELLIPSIS if len(shown) < len(words) else "")) > width:
        shown = shown[:-1]
    if len(shown) < len(words):
        shown += _ELLIPSIS
    strip = Image.new("L", (width, height), 0)
    ImageDraw.Draw(strip).text((0, height / 2), shown, fill=255, font=face, anchor="lm")
    return np.asarray(strip, dtype=np.float32) / np.float32(255)


def text_width(line: str, *, height: int, font: Path | None = None) -> int:
    """Return how many pixels wide a line of text is, set in a strip of `height`."""
    return int(_face(max(1, int(height / LINE)), font).getlength(line)) + 1


def scale_bar(length_mm: float, *, pixels_per_mm: float, height: int) -> Coverage:
    """Return a bar of `length_mm`, to the nearest printed pixel, with a tick at its ends and each of ten parts."""
    width = max(2, round(length_mm * pixels_per_mm))
    bar = np.zeros((height, width), dtype=np.float32)
    stroke = max(1, height // 12)
    bar[-stroke:] = 1
    for part in range(11):
        at = min(width - stroke, round(part * width / 10))
        reach = height if part in (0, 5, 10) else height // 2
        bar[height - reach :, at : at + stroke] = 1
    return bar


def bar_length(room_mm: float) -> float:
    """Return the longest of 1, 2, 5, 10, 20, 50, 100 and 200 mm that fits, 0 where none does."""
    return max((each for each in (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0) if each <= room_mm), default=0.0)


def qr(content: str, *, side: int) -> Coverage:
    """Return a QR code with its quiet zone, dark modules 1, as large as whole modules allow within `side` pixels.

    Error correction M. Raises INVALID for content that is too long, or where a module would be less than two pixels.
    """
    modules = np.array([list(row) for row in _code(content).matrix_iter(border=_QUIET)], dtype=np.float32)
    factor = side // modules.shape[0]
    if factor < 2:
        raise AppError(Category.INVALID, f"a QR code in {side} pixels cannot be read", where="code")
    return np.repeat(np.repeat(modules, factor, axis=0), factor, axis=1)


def qr_side(content: str) -> int:
    """Return how many pixels the side of a QR code needs at least. Raises INVALID for content that is too long."""
    return 2 * (int(_code(content).symbol_size(border=_QUIET)[0]))


@lru_cache(maxsize=4)  # the pages of an order have the same
def _code(content: str) -> segno.QRCode:
    try:
        return segno.make_qr(content, error="m")
    except segno.DataOverflowError:
        raise AppError(Category.INVALID, "this is too long for a QR code", where="code") from None


def orientation_letters(row_and_column: Sequence[float]) -> tuple[str, str, str, str]:
    """Return the letters at the top, right, bottom and left edge, from Image Orientation (Patient).

    The larger component comes first, as in "AL"; components beyond 85 degrees from the edge's direction are left out.
    Raises INVALID unless six numbers are given.
    """
    if len(row_and_column) != 6:
        raise AppError(Category.INVALID, "six direction cosines expected", where="ImageOrientationPatient")
    right, bottom = (letters_of(row_and_column[:3]), letters_of(row_and_column[3:]))
    left = letters_of([-each for each in row_and_column[:3]])
    top = letters_of([-each for each in row_and_column[3:]])
    return top, right, bottom, left


@lru_cache(maxsize=16)
def _face(size: int, font: Path | None) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if font is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(str(font), size)
    except OSError:
        raise AppError(Category.UNSUPPORTED, "the font file cannot be read", where=font.name) from None
