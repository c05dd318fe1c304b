"""Where images lie on a sheet: film sizes, display formats, and the boxes that follow from them.

All lengths in millimetres, from the top left corner of the sheet. Sources: PS3.3 C.13.3 (Film Size ID, Image Display
Format, Film Orientation), C.13.4 (custom formats are the printer's own; here the order brings its boxes).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import floor
from types import MappingProxyType

from imaging.errors import AppError, Category

INCH = 25.4
MOST_BOXES = 400  # on one sheet
SLIDE_MOUNT = 50.8  # 2 by 2 inches; ISO 516
SLIDE, SUPERSLIDE = (36.0, 24.0), (40.0, 40.0)  # picture within its mount, width and height


class Medium(StrEnum):
    """Medium Type (2000,0030). Source: PS3.3 C.13.1."""

    PAPER = "PAPER"
    CLEAR_FILM = "CLEAR FILM"
    BLUE_FILM = "BLUE FILM"
    MAMMO_CLEAR_FILM = "MAMMO CLEAR FILM"
    MAMMO_BLUE_FILM = "MAMMO BLUE FILM"

    @property
    def is_film(self) -> bool:
        """Whether it is looked at before a light box."""
        return self is not Medium.PAPER


class Orientation(StrEnum):
    """Film Orientation (2010,0040)."""

    PORTRAIT = "PORTRAIT"
    LANDSCAPE = "LANDSCAPE"


# Film Size ID (2010,0050) -> width and height, upright. LETTER is the everyday name of 8_5INX11IN.
FILM_SIZES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "8INX10IN": (8 * INCH, 10 * INCH),
        "8_5INX11IN": (8.5 * INCH, 11 * INCH),
        "LETTER": (8.5 * INCH, 11 * INCH),
        "10INX12IN": (10 * INCH, 12 * INCH),
        "10INX14IN": (10 * INCH, 14 * INCH),
        "11INX14IN": (11 * INCH, 14 * INCH),
        "11INX17IN": (11 * INCH, 17 * INCH),
        "14INX14IN": (14 * INCH, 14 * INCH),
        "14INX17IN": (14 * INCH, 17 * INCH),
        "24CMX24CM": (240.0, 240.0),
        "24CMX30CM": (240.0, 300.0),
        "A4": (210.0, 297.0),
        "A3": (297.0, 420.0),
    }
)


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle on the sheet."""

    left: float
    top: float
    width: float
    height: float

    def inner(self, left: float, top: float, right: float, bottom: float) -> "Box":
        """Return what is left inside of margins. Raises INVALID when that is nothing."""
        width, height = self.width - left - right, self.height - top - bottom
        if width <= 0 or height <= 0:
            message = f"nothing is left of {self.width:.1f} x {self.height:.1f} mm inside of the margins"
            raise AppError(Category.INVALID, message, where="layout")
        return Box(self.left + left, self.top + top, width, height)

    def holds(self, other: "Box") -> bool:
        """Say whether another box lies within this one, to a micrometre."""
        near = 1e-3
        return (
            other.left >= self.left - near
            and other.top >= self.top - near
            and other.left + other.width <= self.left + self.width + near
            and other.top + other.height <= self.top + self.height + near
        )


def sheet(film_size: str, orientation: Orientation) -> Box:
    """Return the whole sheet as a box. Raises INVALID for a size that is not known."""
    if film_size not in FILM_SIZES:
        raise AppError(Category.INVALID, f"unknown; there are {', '.join(FILM_SIZES)}", where="film-size")
    width, height = FILM_SIZES[film_size]
    return Box(0, 0, height, width) if orientation is Orientation.LANDSCAPE else Box(0, 0, width, height)


def boxes(display_format: str, area: Box, gap: float = 2.0) -> tuple[Box, ...]:
    r"""Return the boxes of an Image Display Format (2010,0010) in the order in which images fill them.

    STANDARD\C,R   C columns of R rows, row by row
    ROW\R1,R2,..   rows of equal height with R1, R2, .. images, from the top
    COL\C1,C2,..   columns of equal width with C1, C2, .. images, from the left, each from the top
    SLIDE, SUPERSLIDE   as many mounts as fit

    Raises INVALID, also where boxes would be too many or too small.
    """
    name, _, numbers = display_format.strip().upper().partition("\\")
    if name in ("SLIDE", "SUPERSLIDE") and not numbers:
        return _slides(area, SLIDE if name == "SLIDE" else SUPERSLIDE)
    counts = [int(each) for each in numbers.split(",")] if re.fullmatch(r"\d{1,3}(,\d{1,3})*", numbers) else []
    if name == "STANDARD" and len(counts) == 2:
        shape = (counts[0],) * counts[1]
    elif name in ("ROW", "COL") and counts:
        shape = tuple(counts)
    else:
        raise AppError(
            Category.INVALID,
            r"STANDARD\columns,rows, ROW\n,n,.., COL\n,n,.., SLIDE or SUPERSLIDE expected",
            where="layout",
        )
    if not all(shape) or sum(shape) > MOST_BOXES:
        raise AppError(Category.INVALID, f"1 to {MOST_BOXES} images on a sheet expected", where="layout")
    return _columns(shape, area, gap) if name == "COL" else _rows(shape, area, gap)


def custom(wanted: tuple[Box, ...], area: Box) -> tuple[Box, ...]:
    """Return the boxes that an order brings. Raises INVALID when one is empty, outside or over another."""
    if not 1 <= len(wanted) <= MOST_BOXES:
        raise AppError(Category.INVALID, f"1 to {MOST_BOXES} boxes expected", where="layout")
    for number, each in enumerate(wanted, 1):
        if each.width <= 0 or each.height <= 0 or not area.holds(each):
            message = f"box {number} is empty or not within {area.width:.1f} x {area.height:.1f} mm"
            raise AppError(Category.INVALID, message, where="layout")
        for other_number, other in enumerate(wanted[: number - 1], 1):
            if _overlap(each, other):
                raise AppError(Category.INVALID, f"boxes {other_number} and {number} overlap", where="layout")
    return wanted


def _overlap(one: Box, other: Box) -> bool:
    across = min(one.left + one.width, other.left + other.width) - max(one.left, other.left)
    down = min(one.top + one.height, other.top + other.height) - max(one.top, other.top)
    return across > 1e-3 and down > 1e-3


def _rows(shape: tuple[int, ...], area: Box, gap: float) -> tuple[Box, ...]:
    tops = _split(area.height, len(shape), gap)
    return tuple(
        Box(area.left + left, area.top + top, width, height)
        for (top, height), count in zip(tops, shape, strict=True)
        for left, width in _split(area.width, count, gap)
    )


def _columns(shape: tuple[int, ...], area: Box, gap: float) -> tuple[Box, ...]:
    lefts = _split(area.width, len(shape), gap)
    return tuple(
        Box(area.left + left, area.top + top, width, height)
        for (left, width), count in zip(lefts, shape, strict=True)
        for top, height in _split(area.height, count, gap)
    )


def _split(length: float, count: int, gap: float) -> list[tuple[float, float]]:
    """Return offset and length of `count` equal pieces with gaps between."""
    piece = (length - gap * (count - 1)) / count
    if piece < 1:
        raise AppError(Category.INVALID, f"{count} images of less than 1 mm side by side", where="layout")
    return [(n * (piece + gap), piece) for n in range(count)]


def _slides(area: Box, picture: tuple[float, float]) -> tuple[Box, ...]:
    across, down = floor(area.width / SLIDE_MOUNT), floor(area.height / SLIDE_MOUNT)
    if not across or not down:
        raise AppError(Category.INVALID, f"no slide of {SLIDE_MOUNT} mm fits on the sheet", where="layout")
    width, height = picture
    left, top = (SLIDE_MOUNT - width) / 2, (SLIDE_MOUNT - height) / 2
    return tuple(
        Box(area.left + column * SLIDE_MOUNT + left, area.top + row * SLIDE_MOUNT + top, width, height)
        for row in range(down)
        for column in range(across)
    )
