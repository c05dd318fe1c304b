"""What somebody has seen of the images of a device: where text is burned in, and that nothing else in them identifies.

Read from a TOML file with a table for each kind of images. An image is of the kind when all the attributes that the
table names are equal; its rectangles are then blackened wherever it is given without names.

    [[mask]]
    about = "LOGIQ E9, top bar with name and date; looked at by K. Weber, 2 November 2026"
    Modality = "US"
    Manufacturer = "GE Healthcare"
    ManufacturerModelName = "LOGIQ E9"
    Rows = 600
    Columns = 800
    burn-out = ["0,0,800,60"]

Source of what it says of the result: PS3.15 E.3.1 (Clean Pixel Data Option).
"""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydicom.datadict import dictionary_VR, tag_for_keyword

from imaging.deidentify_pixels import Rectangle
from imaging.errors import AppError, Category
from imaging.layout import PixelLayout

NEEDED: Final = ("Modality", "Manufacturer", "ManufacturerModelName", "Rows", "Columns")
"""Attributes without which a table would be of images that nobody has seen."""
MOST_BYTES: Final = 1 << 20
MOST_MASKS: Final = 1_000
MOST_RECTANGLES: Final = 100
MOST_SIDE: Final = 65_535
_COMPARED: Final = frozenset({"CS", "LO", "SH", "UI", "US", "IS", "DS"})
_ABOUT, _BURN_OUT = "about", "burn-out"

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Mask:
    """One kind of images, and which parts of them are burned out; none, where somebody has seen that nothing is there.

    attributes   (tag in eight hexadecimal digits, value as text), all of which an image has
    """

    attributes: tuple[tuple[str, str], ...]
    rectangles: tuple[Rectangle, ...]

    def fits(self, document: Document) -> bool:
        """Tell whether an image, as DICOM JSON, is of this kind. Of several values of an attribute the first counts."""
        return all(_text(document.get(tag)) == value for tag, value in self.attributes)


def masks_from_file(path: Path | None) -> tuple[Mask, ...]:
    """Read masks from a file, none where there is no file to read. Raises as `masks_from_toml`."""
    if path is None:
        return ()
    try:
        return masks_from_toml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise AppError(Category.INVALID, f"{path} cannot be read: {error}", where="masks") from None


def masks_from_toml(text: str) -> tuple[Mask, ...]:
    """Read masks. Raises INVALID, naming the table and what is wrong there, and TOO_LARGE."""
    if len(text) > MOST_BYTES:
        raise AppError(Category.TOO_LARGE, f"more than {MOST_BYTES} characters", where="masks")
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise AppError(Category.INVALID, f"this is no TOML: {error}", where="masks") from None
    tables = found.pop("mask", [])
    if found or not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise AppError(Category.INVALID, "tables [[mask]] are expected, and nothing else", where="masks")
    if len(tables) > MOST_MASKS:
        raise AppError(Category.TOO_LARGE, f"more than {MOST_MASKS} masks", where="masks")
    return tuple(_mask(table, f"mask {number}") for number, table in enumerate(tables, start=1))


def mask_for(document: Document, layout: PixelLayout | None, masks: Iterable[Mask]) -> Mask | None:
    """Return the mask of an image, as DICOM JSON; None where there is none, or pixels that cannot be blackened.

    What several masks say of it is done together.
    """
    if layout is None or layout.is_float or layout.bits_allocated not in (8, 16, 32):
        return None
    fitting = [each for each in masks if each.fits(document)]
    if not fitting:
        return None
    return Mask((), tuple(dict.fromkeys(rectangle for each in fitting for rectangle in each.rectangles)))


def _mask(table: dict[str, Any], where: str) -> Mask:
    missing = [name for name in (*NEEDED, _BURN_OUT) if name not in table]
    if missing:
        raise AppError(Category.INVALID, f"{missing[0]} is missing", where=where)
    attributes = tuple(_attribute(name, each, where) for name, each in table.items() if name not in (_ABOUT, _BURN_OUT))
    return Mask(attributes, tuple(_rectangles(table, where)))


def _attribute(name: str, value: Any, where: str) -> tuple[str, str]:
    tag = tag_for_keyword(name)
    if tag is None or dictionary_VR(tag) not in _COMPARED:
        raise AppError(
            Category.INVALID, "no attribute by which images can be told apart", where=f"{where}, {name[:64]}"
        )
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise AppError(Category.INVALID, "a text or a whole number is expected", where=f"{where}, {name}")
    return f"{tag:08X}", str(value)


def _rectangles(table: dict[str, Any], where: str) -> Iterator[Rectangle]:
    given, rows, columns = table[_BURN_OUT], table["Rows"], table["Columns"]
    if not all(isinstance(side, int) and 1 <= side <= MOST_SIDE for side in (rows, columns)):
        raise AppError(Category.INVALID, f"Rows and Columns from 1 to {MOST_SIDE} expected", where=where)
    if not isinstance(given, list) or len(given) > MOST_RECTANGLES or not all(isinstance(each, str) for each in given):
        message = f"a list of at most {MOST_RECTANGLES} rectangles expected, as in 0,0,800,60"
        raise AppError(Category.INVALID, message, where=f"{where}, {_BURN_OUT}")
    for text in given:
        rectangle = Rectangle.from_text(text)
        if rectangle.series_uid or rectangle.frames:
            raise AppError(Category.INVALID, "series and frames cannot be named here", where=f"{where}, {_BURN_OUT}")
        if rectangle.left + rectangle.width > columns or rectangle.top + rectangle.height > rows:
            message = f"{text} is outside of {columns} x {rows} pixels"
            raise AppError(Category.INVALID, message, where=f"{where}, {_BURN_OUT}")
        yield rectangle


def _text(element: Mapping[str, Any] | None) -> str:
    values = (element or {}).get("Value") or [""]
    return str(values[0])
