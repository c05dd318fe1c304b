"""Grayscale softcopy presentation states: how somebody said that images are to be shown.

`presentation_of` reads what one state says of one frame, from its DICOM JSON model: greys, the part that is shown, how
it is turned, shutters, graphics. What is not done here is refused, so that no print lacks what the state has.
Sources: PS3.3 A.33.1, C.7.6.11, C.7.6.15, C.9.2, C.10.4 to C.10.6, C.11.6 to C.11.8, C.11.11;
PS3.4 N.2 (order of the steps).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.display import (
    BulkData,
    DisplayAttributes,
    FrameSource,
    LookupTable,
    VoiFunction,
    Window,
    items_of,
    number_of,
    numbers_of,
    values_of,
)
from imaging.errors import AppError, Category
from imaging.film.marks import POINTS, Bitmap, Drawn, Kind, Mark, Point, Words
from imaging.overlays import GROUPS, Plane, has_plane, plane_of
from imaging.windowing import full_scale

Document = Mapping[str, Any]

GRAYSCALE_STATE = "1.2.840.10008.5.1.4.1.1.11.1"
MOST_MARKS = 2_000  # graphics on one frame
MOST_POINTS = 100_000  # of all of them
MOST_LINES = 50  # of one text
_WHITE = 65_535  # P-Values of a state have 16 bits
_ALIGNED = {"LEFT": 0.0, "CENTER": 0.5, "RIGHT": 1.0}


@dataclass(frozen=True, slots=True)
class Reference:
    """An image that a state, or a selection of images, refers to; frames from 1, none for all of them."""

    series_uid: str
    sop_uid: str
    frames: tuple[int, ...] = ()

    def holds(self, sop_uid: str, frame: int) -> bool:
        """Say whether a frame is meant."""
        return self.sop_uid == sop_uid and (not self.frames or frame in self.frames)


@dataclass(frozen=True, slots=True)
class Area:
    """The part of an image that is shown, in pixels as stored; it may reach beyond the image. Ends are exclusive.

    size_mode     SCALE TO FIT, TRUE SIZE or MAGNIFY
    pixel_shape   height and width of a pixel, where the state says so; only their ratio counts
    """

    left: int
    top: int
    right: int
    bottom: int
    size_mode: str
    pixel_shape: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Shutter:
    """What hides the outside of an image, in pixels as stored. Ends are exclusive.

    rectangle   left, top, right, bottom
    circle      centre x, centre y, radius
    polygon     corners
    bitmap      [row, column] of the image, set where it is hidden
    grey        P-Value of what is hidden, 0 ... 1
    """

    rectangle: tuple[float, float, float, float] | None = None
    circle: tuple[float, float, float] | None = None
    polygon: tuple[Point, ...] = ()
    bitmap: NDArray[np.bool_] | None = field(default=None, compare=False)
    grey: float = 0.0

    def hidden(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Return which pixels [row, column] have their centre in what is hidden. Raises INVALID for another bitmap."""
        y, x = np.indices(shape, dtype=np.float32) + np.float32(0.5)
        found = np.zeros(shape, dtype=np.bool_)
        if self.rectangle:
            left, top, right, bottom = self.rectangle
            found |= (x < left) | (x > right) | (y < top) | (y > bottom)
        if self.circle:
            centre_x, centre_y, radius = self.circle
            found |= (x - centre_x) ** 2 + (y - centre_y) ** 2 > radius**2
        if self.polygon:
            found |= ~_inside(self.polygon, x, y)
        if self.bitmap is not None:
            if self.bitmap.shape != shape:
                raise AppError(Category.INVALID, "the bitmap shutter is not as large as the image", where="(0018,1623)")
            found |= self.bitmap
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Presentation:
    """What a state says of one frame.

    rotation      0, 90, 180 or 270 degrees, clockwise
    is_flipped    left and right are exchanged, after the rotation
    in_pixels     graphics in pixels of the image as stored
    in_display    graphics in fractions of the part that is shown, as it is shown
    """

    slope: float
    intercept: float
    modality_lut: LookupTable | None
    window: Window | None
    voi_lut: LookupTable | None
    presentation_lut: LookupTable | None
    is_inverse: bool
    rotation: int
    is_flipped: bool
    area: Area | None
    shutter: Shutter | None
    in_pixels: tuple[Mark, ...]
    in_display: tuple[Mark, ...]

    def over(self, attributes: DisplayAttributes) -> DisplayAttributes:
        """Return how an image's greys are shown by this state, which has the last word in every step.

        A step that the state does not have is none, whatever the image says.   Source: PS3.4 N.2.1
        """
        changed = replace(
            attributes,
            slope=self.slope,
            intercept=self.intercept,
            modality_lut=self.modality_lut,
            windows=(self.window,) if self.window else (),
            voi_lut=self.voi_lut,
            presentation_lut=self.presentation_lut,
            is_inverse=self.is_inverse,
        )
        return changed if self.window or self.voi_lut else replace(changed, windows=(_whole_range(changed),))


def references(document: Document) -> list[Reference]:
    """Return the images that a state refers to, in its order."""
    return [
        Reference(_text(series, "0020000E"), _text(image, "00081155"), _frames(image))
        for series in items_of(document, "00081115")
        for image in items_of(series, "00081140")
    ]


def presentation_of(
    document: Document,
    sop_uid: str,
    frame: int,
    *,
    bulkdata: BulkData | None = None,
    image: FrameSource | None = None,
) -> Presentation:
    """Return what a state says of a frame, from 1. `image` is the frame itself, whose overlays the state may show.

    Raises UNSUPPORTED for another class of state and for what is not done here, INVALID for what cannot be read.
    """
    _refuse_what_is_not_done(document)
    here: Callable[[Document], bool] = lambda item: _applies(item, sop_uid, frame)  # noqa: E731 -- one for all
    source = FrameSource(document, frame, bulkdata)
    voi = next((FrameSource(each, 1, bulkdata) for each in items_of(document, "00283110") if here(each)), None)
    windows = list(voi.windows()) if voi else []
    in_pixels, in_display = _marks(document, here, _overlays(document, source, image))
    rotation = int(number_of(document, "00700042") or 0) % 360
    if rotation % 90:
        raise AppError(Category.INVALID, f"images are turned by quarters, not by {rotation} degrees", where=_STATE)
    return Presentation(
        slope=number_of(document, "00281053") or 1.0,
        intercept=number_of(document, "00281052") or 0.0,
        modality_lut=source.sequence_table("00283000"),
        window=windows[0] if windows else None,
        voi_lut=voi.sequence_table("00283010") if voi and not windows else None,
        presentation_lut=source.sequence_table("20500010"),
        is_inverse=_text(document, "20500020") == "INVERSE",
        rotation=rotation,
        is_flipped=_text(document, "00700041") == "Y",
        area=next((_area(each) for each in items_of(document, "0070005A") if here(each)), None),
        shutter=shutter_of(document, frame, bulkdata=bulkdata),
        in_pixels=in_pixels,
        in_display=in_display,
    )


def shutter_of(document: Document, frame: int = 1, *, bulkdata: BulkData | None = None) -> Shutter | None:
    """Return the display shutter of a frame or a state. Raises UNSUPPORTED for an unknown shape, INVALID for none.

    Source: PS3.3 C.7.6.11, C.7.6.15; edges, centres and corners are pixels counted from 1.
    """
    shapes = {str(each).strip() for each in values_of(document, "00181600")}
    if not shapes:
        return None
    if shapes - {"RECTANGULAR", "CIRCULAR", "POLYGONAL", "BITMAP"}:
        raise AppError(Category.UNSUPPORTED, "a shutter of this shape is not applied here", where="(0018,1600)")
    edges = [number_of(document, tag) for tag in ("00181602", "00181606", "00181604", "00181608")]
    centre, radius = numbers_of(document, "00181610", 2), number_of(document, "00181612")
    corners = [float(each) for each in values_of(document, "00181620")]
    plane = plane_of(FrameSource(document, frame, bulkdata), _shutter_group(document)) if "BITMAP" in shapes else None
    wanted = {
        "RECTANGULAR": None not in edges, "CIRCULAR": None not in (centre, radius), "POLYGONAL": len(corners) > 5,
        "BITMAP": plane is not None,
    }  # fmt: skip
    if not all(wanted[each] for each in shapes) or len(corners) % 2:
        raise AppError(Category.INVALID, "the shutter does not say where it is", where="(0018,1600)")
    left, top, right, bottom = (each or 0.0 for each in edges)
    pairs = zip(corners[1::2], corners[::2], strict=True)  # row, column -> x, y
    return Shutter(
        rectangle=(left - 1, top - 1, right, bottom) if "RECTANGULAR" in shapes else None,
        circle=(centre[1] - 0.5, centre[0] - 0.5, radius or 0.0) if "CIRCULAR" in shapes and centre else None,
        polygon=tuple((x - 0.5, y - 0.5) for x, y in pairs) if "POLYGONAL" in shapes else (),
        bitmap=plane.bits if plane else None,
        grey=_p_value(document, "00181622", 0.0),
    )


def _shutter_group(document: Document) -> str:
    """Return the group of the overlay that is the shutter, and is not shown as an overlay; "" for none."""
    return f"{int(number_of(document, '00181623') or 0):04X}"


_STATE = "presentation-state"
# tag -> what it would show, and is not done here
_NOT_DONE = {
    "00286100": "subtraction of a mask",
    "00700209": "compound graphics",
}


def _refuse_what_is_not_done(document: Document) -> None:
    if _text(document, "00080016") != GRAYSCALE_STATE:
        message = "only grayscale softcopy presentation states are applied"
        raise AppError(Category.UNSUPPORTED, message, where=_STATE)
    lacking = [words for tag, words in _NOT_DONE.items() if items_of(document, tag)]
    lacking += ["curves" for tag in document if tag[:2] == "50" and tag[4:] == "1001" and values_of(document, tag)][:1]
    lacking += ["compound graphics" for each in items_of(document, "00700001") if items_of(each, "00700209")][:1]
    if lacking:
        raise AppError(Category.UNSUPPORTED, f"the presentation state has {lacking[0]}, not done here", where=_STATE)


def _applies(item: Document, sop_uid: str, frame: int) -> bool:
    """Say whether an item holds for a frame: where it names no images it holds for all of them."""
    named = items_of(item, "00081140")
    meant = (Reference("", _text(each, "00081155"), _frames(each)) for each in named)
    return not named or any(each.holds(sop_uid, frame) for each in meant)


def _frames(item: Document) -> tuple[int, ...]:
    return tuple(int(each) for each in values_of(item, "00081160"))


def _whole_range(attributes: DisplayAttributes) -> Window:
    """Return the window of all values that the modality step can give."""
    if attributes.modality_lut is not None:
        low, high = 0.0, float(full_scale(attributes.modality_lut))
    else:
        first = -(1 << (attributes.bits_stored - 1)) if attributes.is_signed else 0
        stored = (first, first + (1 << attributes.bits_stored) - 1)
        low, high = sorted(each * attributes.slope + attributes.intercept for each in stored)
    return Window((low + high) / 2, (high - low) or 1.0, VoiFunction.LINEAR_EXACT)


def _area(item: Document) -> Area:
    corners = [numbers_of(item, tag, 2) for tag in ("00700052", "00700053")]
    if None in corners:
        raise AppError(Category.INVALID, "the displayed area has no corners", where="(0070,005A)")
    # Upper left and lower right as shown: of a turned image they are other corners of what is stored.
    xs, ys = zip(*(each for each in corners if each), strict=True)
    mode = _text(item, "00700100")
    shape = numbers_of(item, "00700101", 2) or numbers_of(item, "00700102", 2)
    if shape and min(shape) <= 0:
        raise AppError(Category.INVALID, "pixels have a height and a width", where="(0070,0101)")
    return Area(
        int(min(xs)) - 1, int(min(ys)) - 1, int(max(xs)), int(max(ys)), mode, (shape[0], shape[1]) if shape else None
    )


# --- graphics


def _marks(
    document: Document, here: Callable[[Document], bool], overlays: Sequence[tuple[str, Plane]]
) -> tuple[tuple[Mark, ...], tuple[Mark, ...]]:
    """Return the graphics in pixels and those in fractions of the display, lowest layer first.

    overlays   each with the name of its layer
    """
    layers = {_text(each, "00700002"): each for each in items_of(document, "00700060")}
    annotations = [(_text(each, "00700002"), each) for each in items_of(document, "00700001") if here(each)]
    shown: list[tuple[str, Plane | Document]] = [*overlays, *annotations]
    shown.sort(key=lambda each: number_of(layers.get(each[0], {}), "00700062") or 0)
    found: dict[str, list[Mark]] = {"PIXEL": [], "DISPLAY": []}
    for layer, each in shown:
        grey = _p_value(layers.get(layer, {}), "00700066", 1.0)
        if isinstance(each, Plane):
            found["PIXEL"].append(_bitmap(each, grey))
            continue
        for units, mark in (*_drawn(each, grey), *_written(each, grey)):
            if units not in found:
                raise AppError(Category.UNSUPPORTED, "graphics in these units are not drawn", where="(0070,0005)")
            found[units].append(mark)
    every = [*found["PIXEL"], *found["DISPLAY"]]
    points = sum(len(each.points) for each in every if isinstance(each, Drawn))
    if len(every) > MOST_MARKS or points > MOST_POINTS:
        message = f"{len(every)} graphics of {points} points; at most {MOST_MARKS} of {MOST_POINTS} are drawn"
        raise AppError(Category.TOO_LARGE, message, where=_STATE)
    return tuple(found["PIXEL"]), tuple(found["DISPLAY"])


def _overlays(document: Document, state: FrameSource, image: FrameSource | None) -> list[tuple[str, Plane]]:
    """Return the overlays that a state shows of a frame, each with its layer: its own, else those of the image.

    Source: PS3.3 C.11.7.
    """
    found = []
    for group in GROUPS:
        layer = _text(document, f"{group}1001")
        if not layer or group == _shutter_group(document):
            continue
        source = state if has_plane(state, group) else image
        if source is None:
            message = "the presentation state shows an overlay of the image, which is not at hand"
            raise AppError(Category.UNSUPPORTED, message, where=_STATE)
        plane = plane_of(source, group)
        if plane is not None:
            found.append((layer, plane))
    return found


def _bitmap(plane: Plane, grey: float) -> Bitmap:
    rows, columns = plane.bits.shape
    left, top = float(plane.left), float(plane.top)
    return Bitmap(plane.bits, (left, top), (left + columns, top), (left, top + rows), grey)


def _drawn(annotation: Document, grey: float) -> Iterator[tuple[str, Mark]]:
    for item in items_of(annotation, "00700009"):
        name, numbers = _text(item, "00700023"), [float(each) for each in values_of(item, "00700022")]
        if name not in Kind.__members__.values() or (number_of(item, "00700020") or 2) != 2:
            raise AppError(Category.UNSUPPORTED, "graphics of this type are not drawn", where="(0070,0023)")
        kind, points = Kind(name), tuple(zip(numbers[::2], numbers[1::2], strict=False))
        least, most = POINTS[kind]
        if not least <= len(points) <= most or not np.isfinite(numbers).all():
            message = f"{len(points)} points make no {kind}; it has {least} to {most}"
            raise AppError(Category.INVALID, message, where="(0070,0022)")
        yield _text(item, "00700005"), Drawn(kind, points, _text(item, "00700024") == "Y", grey)


def _written(annotation: Document, grey: float) -> Iterator[tuple[str, Mark]]:
    for item in items_of(annotation, "00700008"):
        lines = tuple(_words(item, "00700006").splitlines()[:MOST_LINES])
        first, last = numbers_of(item, "00700010", 2), numbers_of(item, "00700011", 2)
        anchor = numbers_of(item, "00700014", 2)
        if first and last:
            aligned = _ALIGNED.get(_text(item, "00700012"), 0.0)
            pointed = (anchor[0], anchor[1]) if anchor and _text(item, "00700015") == "Y" else None
            if pointed and _text(item, "00700004") != _text(item, "00700003"):
                pointed = None
            box = Words(lines, (first[0], first[1]), (last[0], last[1]), pointed, aligned, grey)
            yield _text(item, "00700003"), box
        elif anchor:
            yield _text(item, "00700004"), Words(lines, (anchor[0], anchor[1]), grey=grey)
        else:
            raise AppError(Category.INVALID, "a text has neither a box nor an anchor", where="(0070,0008)")


def _p_value(item: Document, tag: str, default: float) -> float:
    number = number_of(item, tag)
    return default if number is None else min(max(number / _WHITE, 0.0), 1.0)


def _inside(polygon: tuple[Point, ...], x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.bool_]:
    found = np.zeros(x.shape, dtype=np.bool_)
    for (x0, y0), (x1, y1) in zip(polygon, (*polygon[1:], polygon[0]), strict=True):
        if y0 != y1:
            crosses = ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
            found ^= crosses
    return found


def _text(item: Document, tag: str) -> str:
    return _words(item, tag).strip()


def _words(item: Document, tag: str) -> str:
    values = values_of(item, tag)
    return str(values[0]) if values and values[0] is not None else ""
