"""Graphics over an image: lines, circles, points and words, as coverage of the printed part of the image.

Positions are in pixels of the image, x to the right and y downwards; 0, 0 is the upper left corner of its first pixel.
Lines are as wide as they are on paper, however large the image is printed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import atan2, cos, hypot, pi, sin
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from imaging.film import lettering
from imaging.film.lettering import Coverage

Point = tuple[float, float]
_STEPS = 24  # pieces of a curve between two points
_TURN = 180  # pieces of a whole ellipse


class Kind(StrEnum):
    """Graphic Type (0070,0023). Source: PS3.3 C.10.5.2."""

    POINT = "POINT"
    POLYLINE = "POLYLINE"
    INTERPOLATED = "INTERPOLATED"  # a smooth curve through the points
    CIRCLE = "CIRCLE"  # centre, a point on it
    ELLIPSE = "ELLIPSE"  # ends of the major axis, ends of the minor one


# kind -> how many points it has at least, and at most
POINTS = {
    Kind.POINT: (1, 1),
    Kind.POLYLINE: (2, 100_000),
    Kind.INTERPOLATED: (2, 10_000),
    Kind.CIRCLE: (2, 2),
    Kind.ELLIPSE: (4, 4),
}


@dataclass(frozen=True, slots=True)
class Drawn:
    """Lines over an image. `grey` is a P-Value, 0 black ... 1 white."""

    kind: Kind
    points: tuple[Point, ...]
    is_filled: bool = False
    grey: float = 1.0


@dataclass(frozen=True, slots=True)
class Words:
    """Text over an image: in a box, from its corner `at`, or beside the point `at`.

    end       the opposite corner of the box, None beside a point
    pointed   what the text is about, to which a line is drawn; None for no line
    aligned   0 left, 0.5 centred, 1 right
    """

    lines: tuple[str, ...]
    at: Point
    end: Point | None = None
    pointed: Point | None = None
    aligned: float = 0.0
    grey: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Bitmap:
    """Bits over an image, such as an overlay; those that are set are inked.

    bits           [row, column]
    at             the outer corner of the first one
    across, down   the outer corners at the end of the first row, and of the first column; the sides are those of a page
    """

    bits: NDArray[np.bool_]
    at: Point
    across: Point
    down: Point
    grey: float = 1.0


Mark = Drawn | Words | Bitmap


def coverage(
    marks: Sequence[Mark], size: tuple[int, int], place: Callable[[Point], Point], *, pen: int, line: int,
    font: Path | None = None,
) -> Coverage:  # fmt: skip
    """Return the marks on an area of `size` (width, height) in printed pixels; what lies beyond it is cut off.

    place      from pixels of the image to printed pixels of the area
    pen, line  width of lines, height of a line of text, in printed pixels
    """
    canvas = Image.new("L", size, 0)
    draw = ImageDraw.Draw(canvas)
    for mark in marks:
        if isinstance(mark, Drawn):
            _draw(draw, mark, place, pen)
        elif isinstance(mark, Bitmap):
            _stamp(canvas, mark, place)
        else:
            _write(canvas, draw, mark, place, pen, line, font)
    return np.asarray(canvas, dtype=np.float32) / np.float32(255)


def _draw(draw: ImageDraw.ImageDraw, mark: Drawn, place: Callable[[Point], Point], pen: int) -> None:
    if mark.kind is Kind.POINT:
        x, y = place(mark.points[0])
        draw.ellipse((x - 2 * pen, y - 2 * pen, x + 2 * pen, y + 2 * pen), fill=255)
        return
    outline = [place(each) for each in _outline(mark.kind, mark.points)]
    if mark.is_filled and len(outline) > 2:
        draw.polygon(outline, fill=255)
    draw.line(outline, fill=255, width=pen, joint="curve")


def _write(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, mark: Words, place: Callable[[Point], Point], pen: int, line: int,
    font: Path | None,
) -> None:  # fmt: skip
    x, y = place(mark.at)
    if mark.pointed is not None:
        draw.line([(x, y), place(mark.pointed)], fill=255, width=pen)
    end = None if mark.end is None else place(mark.end)
    if end is not None:
        x, y = min(x, end[0]), min(y, end[1])  # of an image that was turned it is another corner
    room = None if end is None else max(place(mark.at)[0], end[0]) - x
    for n, words in enumerate(mark.lines):
        wide = lettering.text_width(words, height=line, font=font)
        left = x + pen * 2 if room is None else x + max(0.0, room - wide) * mark.aligned
        ink = lettering.text(words, height=line, width=wide, font=font)
        tile = Image.fromarray((ink * 255).astype(np.uint8))
        canvas.paste(255, (round(left), round(y + n * line)), tile)


def _stamp(canvas: Image.Image, mark: Bitmap, place: Callable[[Point], Point]) -> None:
    """Ink a bitmap: a pixel that a bit covers in part is inked in part, so that thin lines do not get lost."""
    bits, at, across, down = mark.bits, place(mark.at), place(mark.across), place(mark.down)
    if abs(across[0] - at[0]) < abs(across[1] - at[1]):  # turned by a quarter: its rows run down the page
        bits, across, down = bits.T, down, across
    bits = bits[:: 1 if down[1] > at[1] else -1, :: 1 if across[0] > at[0] else -1]
    left, right = sorted((at[0], across[0]))
    top, bottom = sorted((at[1], down[1]))
    # Only what is on the canvas is made, however large the rest of it would be.
    x, y = max(0, round(left)), max(0, round(top))
    width, height = min(canvas.width, round(right)) - x, min(canvas.height, round(bottom)) - y
    if width < 1 or height < 1:
        return
    rows, columns = bits.shape
    over, under = columns / (right - left), rows / (bottom - top)
    box = (
        max(0.0, (x - left) * over), max(0.0, (y - top) * under),
        min(columns, (x + width - left) * over), min(rows, (y + height - top) * under),
    )  # fmt: skip
    tile = Image.fromarray(np.ascontiguousarray(bits, dtype=np.uint8) * np.uint8(255))
    canvas.paste(255, (x, y), tile.resize((width, height), Image.Resampling.BOX, box=box))


def _outline(kind: Kind, points: tuple[Point, ...]) -> list[Point]:
    if kind is Kind.CIRCLE:
        (x, y), (px, py) = points
        radius = hypot(px - x, py - y)
        return _ellipse((x, y), radius, radius, 0.0)
    if kind is Kind.ELLIPSE:
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = points
        centre = ((ax + bx) / 2, (ay + by) / 2)
        return _ellipse(centre, hypot(bx - ax, by - ay) / 2, hypot(dx - cx, dy - cy) / 2, atan2(by - ay, bx - ax))
    return _curve(points) if kind is Kind.INTERPOLATED else list(points)


def _ellipse(centre: Point, major: float, minor: float, angle: float) -> list[Point]:
    turns = (2 * pi * n / _TURN for n in range(_TURN + 1))
    return [
        (
            centre[0] + major * cos(turn) * cos(angle) - minor * sin(turn) * sin(angle),
            centre[1] + major * cos(turn) * sin(angle) + minor * sin(turn) * cos(angle),
        )
        for turn in turns
    ]


def _curve(points: tuple[Point, ...]) -> list[Point]:
    """Return a Catmull-Rom spline through the points, closed where the last is the first."""
    is_closed = points[0] == points[-1] and len(points) > 3
    before = points[-2] if is_closed else points[0]
    after = points[1] if is_closed else points[-1]
    along = np.array([before, *points, after], dtype=np.float64)
    t = np.linspace(0, 1, _STEPS, endpoint=False)[:, None]
    found: list[Point] = []
    for p0, p1, p2, p3 in zip(along, along[1:], along[2:], along[3:], strict=False):
        piece = p1 + t / 2 * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
        found += [(float(x), float(y)) for x, y in piece]
    return [*found, points[-1]]
