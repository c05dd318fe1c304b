"""From a stored frame to a picture for a sheet: greys, true spacing, directions, and what a presentation state adds.

`outline_of` says without pixels how large the picture is and what stands around it; `picture_of` makes it. Both take
the DICOM JSON model of the instance. Sources: PS3.3 C.7.6.1.1.1 (Patient Orientation), C.7.6.2, C.7.6.16.2, C.8.5.5
(ultrasound regions), 10.7 (which spacing is whose), C.8.7.1.1.8 (radiographic magnification); PS3.4 N.2.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.display import (
    BulkData,
    DisplayAttributes,
    FrameSource,
    Window,
    items_of,
    number_of,
    numbers_of,
    values_of,
)
from imaging.errors import AppError, Category
from imaging.film import Fit, Outline, Picture, Spacing, SpacingOrigin
from imaging.film.lettering import orientation_letters
from imaging.film.marks import Bitmap, Drawn, Mark, Point
from imaging.film.placing import Greys
from imaging.presentation import Area, Presentation, shutter_of
from imaging.render import display_values
from imaging.windowing import grey_levels

Document = Mapping[str, Any]
Letters = tuple[str, str, str, str]

MOST_BEYOND = 4  # times the image's own sides that a displayed area may be long
_NEAR = 1e-3  # relative; spacings that differ by less are the same
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of R, G, B.   Source: ITU-R BT.601, as YBR_FULL has it
_CM = 3  # Physical Units (0018,6024): centimetres


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """How a frame is to look, besides what it says itself.

    window        in place of its own, and of the state's
    presentation  a state that applies to the frame
    is_coloured   colour stays; else it becomes grey
    tone          from greys 0 ... 1 to P-Values, where greys are something else
    fit           of the order, None where it leaves that to the presentation state
    caption       lines under the picture
    """

    window: Window | None = None
    presentation: Presentation | None = None
    is_coloured: bool = False
    tone: Callable[[Greys], Greys] | None = None
    fit: Fit | None = None
    caption: tuple[str, ...] = ()


def outline_of(document: Document, frame: int, look: Look) -> Outline:
    """Return what decides about the place of a picture. Raises INVALID and UNSUPPORTED for what cannot be printed."""
    source = FrameSource(document, frame, None)
    rows, columns = source.integer("00280010"), source.integer("00280011")
    if not rows or not columns or rows < 0 or columns < 0:
        raise AppError(Category.INVALID, "the instance has no Rows and Columns", where="(0028,0010)")
    state = look.presentation
    spacing, letters = _shape(document, frame, state), letters_of(document, frame)
    fit = look.fit
    if state is None:
        return Outline((rows, columns), spacing, look.caption, letters, fit)
    left, top, right, bottom = _shown(state, rows, columns)
    shape = bottom - top, right - left
    if state.rotation % 180:
        shape = shape[1], shape[0]
        spacing = replace(spacing, down=spacing.across, across=spacing.down) if spacing else None
    return Outline(shape, spacing, look.caption, _turned_letters(letters, state), fit or _fit(state.area))


def picture_of(
    pixels: NDArray[Any], document: Document, frame: int, look: Look, *, photometric: str = "",
    bulkdata: BulkData | None = None,
) -> Picture:  # fmt: skip
    """Return the picture of a decoded frame, [rows, columns] or [rows, columns, samples] as stored.

    photometric   Photometric Interpretation of these pixels, where decoding changed it
    """
    outline = outline_of(document, frame, look)
    attributes = DisplayAttributes.from_json(document, frame, bulkdata=bulkdata)
    if photometric:
        attributes = replace(attributes, photometric_interpretation=photometric)
    greys = _greys(pixels, attributes, look)
    state = look.presentation
    shutter = state.shutter if state else shutter_of(document, frame, bulkdata=bulkdata)
    if shutter:
        greys[shutter.hidden((greys.shape[0], greys.shape[1]))] = shutter.grey
    marks: tuple[Mark, ...] = ()
    if state:
        part = _shown(state, greys.shape[0], greys.shape[1])
        greys = _turned(_cut(greys, part), state)
        marks = _placed(state, part, outline.shape)
    return Picture(greys, outline.spacing, outline.caption, outline.letters, marks, outline.fit)


def spacing_of(document: Document, frame: int) -> Spacing | None:
    """Return the distance of pixel centres of a frame and what it is measured at; None where nothing is said.

    Imager Pixel Spacing is the patient's where the magnification of the geometry is known too.
    """
    source = FrameSource(document, frame, None)
    own = _lengths(source.grouped_numbers("00289110", "00280030", 2))
    detector = _lengths(numbers_of(document, "00181164", 2))
    if own and not (detector and _is_same(own, detector) and not _text(document, "00280A02")):
        return Spacing(*own, SpacingOrigin.PATIENT)
    if detector:
        magnification = number_of(document, "00181114")
        if magnification and 1 <= magnification <= 20:
            down, across = detector
            return Spacing(down / magnification, across / magnification, SpacingOrigin.PATIENT)
        return Spacing(*detector, SpacingOrigin.DETECTOR)
    regions = _of_regions(document)
    if regions:
        return Spacing(*regions, SpacingOrigin.PATIENT)
    ratio = _lengths(numbers_of(document, "00182010", 2)) or _lengths(numbers_of(document, "00280034", 2))
    return Spacing(*ratio, SpacingOrigin.UNKNOWN) if ratio else None


def letters_of(document: Document, frame: int) -> Letters:
    """Return the patient's directions at the top, right, bottom and left edge as stored, "" where nothing is said."""
    cosines = FrameSource(document, frame, None).grouped_numbers("00209116", "00200037", 6)
    if cosines and all(0.9 < sum(each**2 for each in part) < 1.1 for part in (cosines[:3], cosines[3:])):
        return orientation_letters(cosines)
    told = [str(each).strip() for each in values_of(document, "00200020")]
    if len(told) != 2 or not all(each and set(each) <= _OPPOSITE.keys() for each in told):
        return "", "", "", ""
    right, bottom = told
    return _opposite(bottom), right, bottom, _opposite(right)


_OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "H": "F", "F": "H"}


def _opposite(letters: str) -> str:
    return "".join(_OPPOSITE[each] for each in letters)


def _greys(pixels: NDArray[Any], attributes: DisplayAttributes, look: Look) -> Greys:
    """Return P-Values of a frame, a new array: [rows, columns], or RGB [rows, columns, 3] where colour stays."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim == 2 and not attributes.is_palette:
        shown = look.presentation.over(attributes) if look.presentation else attributes
        levels = grey_levels(pixels, shown, window=look.window)
    elif look.presentation:
        message = "a grayscale presentation state does not apply to a colour image"
        raise AppError(Category.UNSUPPORTED, message, where="presentation-state")
    else:
        levels = display_values(pixels, attributes).astype(np.float32) / np.float32(255)
        if not look.is_coloured:
            levels = levels @ _LUMA
    return look.tone(levels) if look.tone else levels


def _shape(document: Document, frame: int, state: Presentation | None) -> Spacing | None:
    """Return the image's spacing, or at least the shape of its pixels as a state tells it."""
    found = spacing_of(document, frame)
    told = state.area.pixel_shape if state and state.area else None
    if told and (found is None or found.origin is SpacingOrigin.UNKNOWN):
        return Spacing(told[0], told[1], SpacingOrigin.UNKNOWN)
    return found


def _fit(area: Area | None) -> Fit | None:
    if area is None or area.size_mode in ("SCALE TO FIT", ""):
        return None
    if area.size_mode == "TRUE SIZE":
        return Fit.TRUE_SIZE
    message = "a presentation state that magnifies for a screen says nothing of a sheet: order a size"
    raise AppError(Category.UNSUPPORTED, message, where="fit")


def _shown(state: Presentation, rows: int, columns: int) -> tuple[int, int, int, int]:
    area = state.area
    if area is None:
        return 0, 0, columns, rows
    if area.right - area.left > MOST_BEYOND * columns or area.bottom - area.top > MOST_BEYOND * rows:
        message = f"the displayed area is more than {MOST_BEYOND} times as large as the image"
        raise AppError(Category.TOO_LARGE, message, where="presentation-state")
    if area.right <= 0 or area.bottom <= 0 or area.left >= columns or area.top >= rows:
        raise AppError(Category.INVALID, "the displayed area lies beside the image", where="presentation-state")
    return area.left, area.top, area.right, area.bottom


def _cut(greys: Greys, part: tuple[int, int, int, int]) -> Greys:
    """Return a part of an image; what lies beyond the image is black."""
    rows, columns = greys.shape[:2]
    left, top, right, bottom = part
    inside = greys[max(top, 0) : min(bottom, rows), max(left, 0) : min(right, columns)]
    beyond = ((max(-top, 0), max(bottom - rows, 0)), (max(-left, 0), max(right - columns, 0)))
    return np.pad(inside, [*beyond, *[(0, 0)] * (greys.ndim - 2)]) if any(map(any, beyond)) else inside


def _turned(greys: Greys, state: Presentation) -> Greys:
    turned = np.rot90(greys, -(state.rotation // 90))
    return np.ascontiguousarray(turned[:, ::-1] if state.is_flipped else turned)


def _turned_letters(letters: Letters, state: Presentation) -> Letters:
    steps = state.rotation // 90
    top, right, bottom, left = (letters[(n - steps) % 4] for n in range(4))
    return (top, left, bottom, right) if state.is_flipped else (top, right, bottom, left)


def _placed(state: Presentation, part: tuple[int, int, int, int], shape: tuple[int, int]) -> tuple[Mark, ...]:
    """Return the graphics of a state in pixels of the picture, whose `shape` is rows and columns."""
    rows, columns = shape

    def from_pixels(at: Point) -> Point:
        x, y = at[0] - part[0], at[1] - part[1]
        width, height = part[2] - part[0], part[3] - part[1]
        for _ in range(state.rotation // 90):
            x, y, width, height = height - y, x, height, width
        return (width - x if state.is_flipped else x), y

    def from_display(at: Point) -> Point:
        return at[0] * columns, at[1] * rows

    moved = [_moved(each, from_pixels) for each in state.in_pixels]
    return (*moved, *(_moved(each, from_display) for each in state.in_display))


def _moved(mark: Mark, move: Callable[[Point], Point]) -> Mark:
    if isinstance(mark, Drawn):
        return replace(mark, points=tuple(move(each) for each in mark.points))
    if isinstance(mark, Bitmap):
        return replace(mark, at=move(mark.at), across=move(mark.across), down=move(mark.down))
    return replace(
        mark, at=move(mark.at), end=move(mark.end) if mark.end else None,
        pointed=move(mark.pointed) if mark.pointed else None,
    )  # fmt: skip


def _of_regions(document: Document) -> tuple[float, float] | None:
    """Return the spacing in mm that all ultrasound regions of tissue agree on; None where they differ."""
    found = set()
    for region in items_of(document, "00186011"):
        if number_of(region, "00186024") != _CM or number_of(region, "00186026") != _CM:
            continue
        across, down = number_of(region, "0018602C"), number_of(region, "0018602E")
        lengths = _lengths((abs(down or 0) * 10, abs(across or 0) * 10))
        if lengths:
            found.add(lengths)
    return found.pop() if len(found) == 1 else None


def _lengths(pair: tuple[float, ...] | None) -> tuple[float, float] | None:
    return (pair[0], pair[1]) if pair and all(1e-6 < each < 1e6 for each in pair) else None


def _is_same(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return all(abs(a - b) <= _NEAR * b for a, b in zip(one, other, strict=True))


def _text(document: Document, tag: str) -> str:
    values = values_of(document, tag)
    return str(values[0]).strip() if values and values[0] is not None else ""
