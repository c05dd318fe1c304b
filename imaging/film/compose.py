"""From images and a layout to the pages that a device prints, one page in memory at a time.

A page holds P-Values: 0 is the darkest that the device can do, the highest the lightest, evenly spaced to the eye.
`imaging.film.gsdf` says which densities or inks that means. Text stands in strips of its own, over an image only where
an order asks for it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imaging.errors import AppError, Category
from imaging.film import lettering
from imaging.film.layout import Box, Medium, Orientation, boxes, custom, sheet
from imaging.film.marks import Mark, coverage
from imaging.film.placing import (
    Fit,
    Greys,
    Magnification,
    Placement,
    Spacing,
    SpacingOrigin,
    place,
    resample,
    resample_into,
)
from imaging.parallel import in_order

MOST_PIXELS = 200_000_000  # of a page: 14 x 17 inch at 600 dpi is 86 million
MOST_PAGES = 500
DOTS_PER_INCH = (72, 1_200)
PEN = 0.25  # mm, width of a trim line and of graphics
WIDEST_LOGO = 3.0  # times its height
_STEP = 1e-3
_PICTURE_BYTES = 64 << 20  # of a large mammogram; so that one is loaded while another is drawn, and no more


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One frame as it is to be printed.

    greys      P-Values 0 ... 1, [rows, columns] or RGB [rows, columns, 3], before the order's polarity
    caption    lines under the image
    letters    of the patient's directions at the top, right, bottom and left edge; "" for none
    marks      graphics that belong on the image
    fit        in place of what the sheets say
    """

    greys: Greys
    spacing: Spacing | None = None
    caption: tuple[str, ...] = ()
    letters: tuple[str, str, str, str] = ("", "", "", "")
    marks: tuple[Mark, ...] = ()
    fit: Fit | None = None

    @property
    def outline(self) -> "Outline":
        """What decides about its place."""
        rows, columns = self.greys.shape[:2]
        return Outline((rows, columns), self.spacing, self.caption, self.letters, self.fit)


@dataclass(frozen=True, slots=True)
class Outline:
    """What decides about the place of a picture, without its pixels. `shape` is its rows and columns."""

    shape: tuple[int, int]
    spacing: Spacing | None = None
    caption: tuple[str, ...] = ()
    letters: tuple[str, str, str, str] = ("", "", "", "")
    fit: Fit | None = None


@dataclass(frozen=True, slots=True)
class Sheets:
    """What a hard copy is to look like. Lengths in mm.

    display_format   as DICOM's Image Display Format; `custom_boxes` replace it where given
    border, empty    P-Values around the images and of boxes without one: 0 black ... 1 white
    banner           lines at the top of every page; identity of the patient belongs here
    footer           at the bottom left of every page; page n of m is added at its right
    code             content of a QR code at the top right of every page, "" for none
    logo             P-Values [rows, columns] of an institution's sign at its left, as high as the code
    over_images      letters and scale bars lie on the image instead of beside it
    """

    film_size: str = "14INX17IN"
    orientation: Orientation = Orientation.PORTRAIT
    medium: Medium = Medium.BLUE_FILM
    display_format: str = "STANDARD\\1,1"
    custom_boxes: tuple[Box, ...] = ()
    dots_per_inch: int = 300
    bits: int = 8
    fit: Fit = Fit.FIT
    magnification: Magnification = Magnification.CUBIC
    reversed: bool = False
    border: float = 0.0
    empty: float = 0.0
    trim: bool = False
    colour: bool = False
    margin: float = 6.0
    gap: float = 2.0
    letter_height: float = 3.5
    banner: tuple[str, ...] = ()
    footer: str = ""
    code: str = ""
    code_side: float = 18.0
    letters: bool = True
    scale_bar: bool = True
    over_images: bool = False
    logo: Greys | None = field(default=None, compare=False)
    font: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Raise INVALID for what no page can be made of."""
        low, high = DOTS_PER_INCH
        checks = (
            (low <= self.dots_per_inch <= high, f"{low} to {high} dots per inch expected", "resolution"),
            (self.bits in (8, 12, 16), "8, 12 or 16 bits expected", "bits"),
            (0 <= self.border <= 1 and 0 <= self.empty <= 1, "0 (black) to 1 (white) expected", "border"),
            (0 <= self.margin <= 100 and 0 <= self.gap <= 50, "margins of 0 to 100, gaps of 0 to 50 mm", "layout"),
            (1 <= self.letter_height <= 30, "letters of 1 to 30 mm expected", "annotation"),
            (len(self.banner) <= 12, "at most 12 lines expected", "banner"),
            (not (self.colour and self.medium.is_film and self.bits > 8), "colour has 8 bits", "bits"),
        )
        for holds, message, where in checks:
            if not holds:
                raise AppError(Category.INVALID, message, where=where)
        across, down = self.page_size
        if across * down > MOST_PIXELS:
            message = f"a page of {across} x {down} pixels; at most {MOST_PIXELS:,} are allowed"
            raise AppError(Category.TOO_LARGE, message, where="resolution")

    @property
    def pixels_per_mm(self) -> float:
        """Printed pixels in a millimetre."""
        return self.dots_per_inch / 25.4

    @property
    def page_size(self) -> tuple[int, int]:
        """Width and height of a page in pixels."""
        whole = sheet(self.film_size, self.orientation)
        return round(whole.width * self.pixels_per_mm), round(whole.height * self.pixels_per_mm)

    @property
    def white(self) -> int:
        """The highest P-Value."""
        return int((1 << self.bits) - 1)

    def image_boxes(self) -> tuple[Box, ...]:
        """Return the boxes of images on a page, in mm. Raises INVALID where nothing is left for them."""
        area = self._area()
        return custom(self.custom_boxes, area) if self.custom_boxes else boxes(self.display_format, area, self.gap)

    def _area(self) -> Box:
        line = self.letter_height * lettering.LINE
        top = len(self.banner) * line
        if self.code or self.logo is not None:
            top = max(top, self.code_side)
        bottom = line
        inside = sheet(self.film_size, self.orientation).inner(self.margin, self.margin, self.margin, self.margin)
        return inside.inner(0, top + (self.gap if top else 0), 0, bottom + self.gap)


@dataclass(frozen=True, slots=True)
class Words:
    """Text that was drawn on a page, whole even where it was cut, and the strip of printed pixels that it lies in."""

    text: str
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """A finished page.

    pixels      P-Values [rows, columns] or RGB [rows, columns, 3]; uint8 for 8 bits, else uint16
    placements  of its images, and where their boxes begin (left, top), in printed pixels
    words       that are drawn on it, for formats that keep text as text
    """

    number: int
    of: int
    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    bits: int
    placements: tuple[tuple[int, int, Placement], ...]
    words: tuple[Words, ...] = ()

    @property
    def samples(self) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """P-Values for files that know 8 or 16 bits: 12 become 16, the highest the highest; `>> 4` gives them back."""
        if self.bits != 12:
            return self.pixels
        return np.asarray((self.pixels << 4) | (self.pixels >> 8), dtype=np.uint16)


def page_count(sheets: Sheets, pictures: int) -> int:
    """Return how many pages that many pictures fill. Raises INVALID for none, TOO_LARGE for too many pages."""
    if not pictures:
        raise AppError(Category.INVALID, "there is nothing to print", where="images")
    of = -(-pictures // len(sheets.image_boxes()))
    if of > MOST_PAGES:
        raise AppError(Category.TOO_LARGE, f"{of} pages; at most {MOST_PAGES} are allowed", where="images")
    return of


def pages(sheets: Sheets, pictures: Sequence[Callable[[], Picture]], *, first: int = 1) -> Iterator[Page]:
    """Yield the pages from number `first` on; each picture is let go after it was drawn.

    Another thread, always the same, loads a page's next picture while one is drawn.
    Raises INVALID for no pictures and what cannot be placed, TOO_LARGE for too many pages.
    """
    of = page_count(sheets, len(pictures))
    places = sheets.image_boxes()
    with ThreadPoolExecutor(1, "pictures") as pool:
        for number in range(first, of + 1):
            there = pictures[(number - 1) * len(places) : number * len(places)]
            with closing(in_order(lambda load: load(), there, pool, item_bytes=_PICTURE_BYTES)) as loaded:
                page = _Drawing(sheets, number, of).page(places, loaded)
            yield page


def placed(sheets: Sheets, box: Box, outline: Outline) -> tuple[int, int, Placement]:
    """Return where a picture lies in its box: left and top of what text leaves of it, and the placement there.

    Raises INVALID where it cannot be placed as asked.
    """
    line = sheets.letter_height * lettering.LINE
    side = line if sheets.letters and any(outline.letters) and not sheets.over_images else 0.0
    bar_line = line if sheets.scale_bar and _has_scale(outline.spacing) and not sheets.over_images else 0.0
    below = len(outline.caption) * line + bar_line
    inner = box.inner(side, side, side, side + below) if side or below else box
    left, top, width, height = _pixels(inner, sheets.pixels_per_mm)
    placement = place(
        outline.shape, outline.spacing, (width, height), fit=outline.fit or sheets.fit,
        magnification=sheets.magnification, pixels_per_mm=sheets.pixels_per_mm,
    )  # fmt: skip
    return left, top, placement


class _Drawing:
    """A page that is being drawn, in P-Values 0 ... 1 (float32)."""

    def __init__(self, sheets: Sheets, number: int, of: int) -> None:
        self._sheets = sheets
        self._number, self._of = number, of
        across, down = sheets.page_size
        shape = (down, across, 3) if sheets.colour else (down, across)
        dtype = np.uint8 if sheets.bits == 8 else np.uint16
        self._canvas = np.full(shape, self._value(sheets.border), dtype=dtype)
        self._ink = self._value(0.0 if sheets.border > 0.5 else 1.0)
        self._placements: list[tuple[int, int, Placement]] = []
        self._words: list[Words] = []
        self._drawn: dict[tuple[str, int, int], lettering.Coverage] = {}

    def page(self, places: Sequence[Box], pictures: Iterable[Picture]) -> Page:
        self._margins()
        for box, picture in zip(places, pictures, strict=False):
            self._image(box, picture)
        for box in places[len(self._placements) :]:
            left, top, width, height = self._pixels(box)
            self._canvas[top : top + height, left : left + width] = self._value(self._sheets.empty)
        if self._sheets.trim:
            for box in places:
                self._frame(box)
        return Page(
            self._number, self._of, self._canvas, self._sheets.bits, tuple(self._placements), tuple(self._words)
        )

    # --- what surrounds the images

    def _margins(self) -> None:
        sheets = self._sheets
        inside = sheet(sheets.film_size, sheets.orientation).inner(*(sheets.margin,) * 4)
        line = sheets.letter_height * lettering.LINE
        room = inside.width
        if sheets.code:
            room -= sheets.code_side + sheets.gap
            self._code(
                Box(inside.left + inside.width - sheets.code_side, inside.top, sheets.code_side, sheets.code_side)
            )
        if sheets.logo is not None:
            width = sheets.code_side * min(sheets.logo.shape[1] / sheets.logo.shape[0], WIDEST_LOGO)
            room -= width + sheets.gap
            self._logo(sheets.logo, Box(inside.left + room + sheets.gap, inside.top, width, sheets.code_side))
        for n, words in enumerate(sheets.banner):
            self._text(words, Box(inside.left, inside.top + n * line, room, line))
        count = f"{self._number} / {self._of}"
        wide = lettering.text_width(count, height=self._length(line), font=sheets.font) / sheets.pixels_per_mm + _STEP
        bottom = inside.top + inside.height - line
        self._text(count, Box(inside.left + inside.width - wide, bottom, wide, line))
        if sheets.footer:
            self._text(sheets.footer, Box(inside.left, bottom, inside.width - wide - sheets.gap, line))

    def _code(self, box: Box) -> None:
        left, top, width, _ = self._pixels(box)
        dark = lettering.qr(self._sheets.code, side=width)
        # Dark on light whatever surrounds it: that is what readers expect.
        grey = ((1 - dark) * self._sheets.white).astype(self._canvas.dtype)
        left += width - grey.shape[1]
        part = self._canvas[top : top + grey.shape[0], left : left + grey.shape[1]]
        part[...] = grey[..., None] if self._sheets.colour else grey

    def _logo(self, logo: Greys, box: Box) -> None:
        left, top, width, height = self._pixels(box)
        placement = place(
            logo.shape[:2], None, (width, height), fit=Fit.FIT, magnification=Magnification.CUBIC,
            pixels_per_mm=self._sheets.pixels_per_mm,
        )  # fmt: skip
        grey = resample(logo, placement, Magnification.CUBIC)
        values = np.clip(grey * self._sheets.white + 0.5, 0, self._sheets.white).astype(self._canvas.dtype)
        left, top = left + placement.left, top + placement.top
        part = self._canvas[top : top + values.shape[0], left : left + values.shape[1]]
        part[...] = values[..., None] if self._sheets.colour else values

    def _frame(self, box: Box) -> None:
        left, top, width, height = self._pixels(box)
        pen = max(1, self._length(PEN))
        area = self._canvas[max(0, top - pen) : top + height + pen, max(0, left - pen) : left + width + pen]
        for line in (area[:pen], area[-pen:], area[:, :pen], area[:, -pen:]):
            line[...] = self._ink

    # --- an image in its box

    def _image(self, box: Box, picture: Picture) -> None:
        sheets = self._sheets
        if picture.greys.ndim == 3 and not sheets.colour:
            raise AppError(Category.INVALID, "a colour image needs a colour device; order it in grey", where="colour")
        line = sheets.letter_height * lettering.LINE
        left, top, placement = placed(sheets, box, picture.outline)
        self._paste(picture.greys, left, top, placement)
        self._placements.append((left, top, placement))
        self._marks(picture, left, top, placement)
        if sheets.letters:
            self._letters(picture, left, top, placement)
        if picture.spacing and _has_scale(picture.spacing) and sheets.scale_bar:
            self._bar(picture.spacing, left, top, placement)
        bottom = box.top + box.height - len(picture.caption) * line
        for n, words in enumerate(picture.caption):
            self._text(words, Box(box.left, bottom + n * line, box.width, line))

    def _paste(self, greys: Greys, left: int, top: int, placement: Placement) -> None:
        sheets = self._sheets
        # Scaled, and raised so that cutting off rounds, while the image is small: resampling keeps both.
        values = np.clip(greys, 0, 1, dtype=np.float32)
        if sheets.reversed:
            np.subtract(1, values, out=values)
        values *= sheets.white
        values += 0.5
        top, left = top + placement.top, left + placement.left
        part = self._canvas[top : top + placement.height, left : left + placement.width]
        if part.ndim > values.ndim:
            resample_into(part[:, :, 0], values, placement, sheets.magnification)
            part[:, :, 1:] = part[:, :, :1]
        else:
            resample_into(part, values, placement, sheets.magnification)

    def _marks(self, picture: Picture, left: int, top: int, placement: Placement) -> None:
        first_x, first_y, last_x, last_y = placement.region
        across, down = placement.width / (last_x - first_x), placement.height / (last_y - first_y)
        size = placement.width, placement.height
        pen, line = max(1, self._length(PEN)), self._length(self._sheets.letter_height * lettering.LINE)
        for grey, marks in groupby(picture.marks, key=lambda each: each.grey):
            ink = coverage(
                list(marks), size, lambda at: ((at[0] - first_x) * across, (at[1] - first_y) * down),
                pen=pen, line=line, font=self._sheets.font,
            )  # fmt: skip
            value = self._value(1 - grey if self._sheets.reversed else grey)
            self._lay(ink, left + placement.left, top + placement.top, value)

    def _letters(self, picture: Picture, left: int, top: int, placement: Placement) -> None:
        line = self._length(self._sheets.letter_height * lettering.LINE)
        x, y = left + placement.left, top + placement.top
        over = self._sheets.over_images
        for n, letter in enumerate(picture.letters):
            if not letter:
                continue
            wide = lettering.text_width(letter, height=line, font=self._sheets.font)
            middle_x, middle_y = x + (placement.width - wide) // 2, y + (placement.height - line) // 2
            at_x = (middle_x, x + placement.width - (wide if over else 0), middle_x, x - (0 if over else wide))[n]
            at_y = (y - (0 if over else line), middle_y, y + placement.height - (line if over else 0), middle_y)[n]
            self._write(letter, at_x, at_y, wide, line)

    def _bar(self, spacing: Spacing, left: int, top: int, placement: Placement) -> None:
        """Draw a scale bar of the image's own millimetres, under the image's lower left corner or on it."""
        printed = placement.across / spacing.across  # printed pixels for a millimetre at which spacing is measured
        length = lettering.bar_length(placement.width / printed / 2)
        if not length:
            return
        line = self._length(self._sheets.letter_height * lettering.LINE)
        bar = lettering.scale_bar(length, pixels_per_mm=printed, height=max(3, line // 2))
        label = f"{length:g} mm" + ("" if spacing.origin == "patient" else " (at the detector)")
        wide = lettering.text_width(label, height=line, font=self._sheets.font)
        lift = -line if self._sheets.over_images else line * bool(self._sheets.letters)
        x, y = left + placement.left, top + placement.top + placement.height + lift
        self._lay(bar, x, y + line - bar.shape[0] - line // 4)
        self._write(label, x + bar.shape[1] + line // 2, y, wide, line)

    # --- ink

    def _text(self, words: str, box: Box) -> None:
        self._write(words, *self._pixels(box))

    def _write(self, words: str, left: int, top: int, width: int, height: int) -> None:
        # Letters and captions come again with every image. Only as wide as they are, so that little has to be laid.
        key = words, height, width
        if key not in self._drawn:
            needed = lettering.text_width(words[: lettering.MOST_LINE + 1], height=height, font=self._sheets.font)
            self._drawn[key] = lettering.text(
                words, height=height, width=min(width, needed + height // 2), font=self._sheets.font
            )
        self._lay(self._drawn[key], left, top)
        self._words.append(Words(words, left, top, width, height))

    def _lay(self, ink: lettering.Coverage, left: int, top: int, value: int | None = None) -> None:
        """Lay ink over what is there; what would lie beyond the page is cut off."""
        down, across = self._canvas.shape[:2]
        x0, y0 = max(0, -left), max(0, -top)
        ink = ink[y0 : max(y0, down - top), x0 : max(x0, across - left)]
        if not ink.size:
            return
        left, top = left + x0, top + y0
        part = self._canvas[top : top + ink.shape[0], left : left + ink.shape[1]]
        weight = ink[..., None] if self._sheets.colour else ink
        part[...] = (part * (1 - weight) + (self._ink if value is None else value) * weight + 0.5).astype(part.dtype)

    def _value(self, p_value: float) -> int:
        return round(p_value * self._sheets.white)

    def _length(self, mm: float) -> int:
        return max(1, round(mm * self._sheets.pixels_per_mm))

    def _pixels(self, box: Box) -> tuple[int, int, int, int]:
        """Return left, top, width and height; edges are rounded, so that boxes that touch still do."""
        return _pixels(box, self._sheets.pixels_per_mm)


def _has_scale(spacing: Spacing | None) -> bool:
    """Say whether millimetres can be shown: not where only the shape of a pixel is known."""
    return spacing is not None and spacing.origin is not SpacingOrigin.UNKNOWN


def _pixels(box: Box, scale: float) -> tuple[int, int, int, int]:
    left, top = round(box.left * scale), round(box.top * scale)
    return left, top, round((box.left + box.width) * scale) - left, round((box.top + box.height) * scale) - top
