"""What is burned into a rendered picture where somebody asks for it: who it is, and how the image came about.

Texts are white with a black edge, so that they can be read on anything, and small enough to leave the image visible.
Source: PS3.18 8.3.5.1.1, which leaves the choice of attributes to the server.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from PIL import Image, ImageDraw, ImageFont

from imaging.display import Window, number_of, values_of
from imaging.pictures import Letters

Document = Mapping[str, Any]

PATIENT: Final = "patient"
TECHNIQUE: Final = "technique"
KEYWORDS: Final = (PATIENT, TECHNIQUE)
MOST_CHARS: Final = 64  # of a line
_SMALLEST, _PART = 9, 36  # pixels of a line of text: at least, and as a part of the shorter side

# label, tag, unit; of numbers as many digits as matter
_TECHNIQUE: Final = (
    ("", "00180050", " mm"),  # Slice Thickness
    ("Loc ", "00201041", " mm"),
    ("", "00180060", " kV"),
    ("", "00181151", " mA"),
    ("", "00181152", " mAs"),
    ("TR ", "00180080", " ms"),
    ("TE ", "00180081", " ms"),
    ("TI ", "00180082", " ms"),
)


@dataclass(frozen=True, slots=True)
class Annotation:
    """Lines for the upper left and the upper right corner, and the patient's directions at the four edges."""

    left: tuple[str, ...] = ()
    right: tuple[str, ...] = ()
    letters: Letters = ("", "", "", "")


def annotation_of(
    document: Document, frame: int, frames: int, keywords: frozenset[str], *, letters: Letters, window: Window | None
) -> Annotation:
    """Return what is to be written on a frame (from 1, of so many) for these of the `KEYWORDS`.

    letters   of the patient's directions at the top, right, bottom and left edge of the picture, as it is turned
    window    through which it is seen, None for none
    """
    left = _patient(document) if PATIENT in keywords else ()
    if TECHNIQUE not in keywords:
        return Annotation(left)
    return Annotation(left, _technique(document, frame, frames, window), letters)


def annotated(image: Image.Image, annotation: Annotation) -> Image.Image:
    """Return a copy of an 8-bit grey or RGB image with the texts on it."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    size = max(_SMALLEST, min(image.size) // _PART)
    face = _face(size)
    line, edge = round(size * 1.25), max(1, size // 10)
    width, height = image.size
    white, black = (255, 0) if image.mode == "L" else ((255, 255, 255), (0, 0, 0))

    def write(at: tuple[float, float], text: str, anchor: str) -> None:
        draw.text(at, text, fill=white, font=face, anchor=anchor, stroke_width=edge, stroke_fill=black)

    for number, text in enumerate(annotation.left):
        write((2 * edge, 2 * edge + number * line), text, "la")
    for number, text in enumerate(annotation.right):
        write((width - 2 * edge, 2 * edge + number * line), text, "ra")
    places = (
        (width / 2, 2 * edge),
        (width - 2 * edge, height / 2),
        (width / 2, height - 2 * edge),
        (2 * edge, height / 2),
    )
    for letter, place, anchor in zip(annotation.letters, places, ("ma", "rm", "md", "lm"), strict=True):
        write(place, letter, anchor)
    return image


@lru_cache(maxsize=16)
def _face(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _patient(document: Document) -> tuple[str, ...]:
    name = " ".join(part for part in _text(document, "00100010").split("^") if part)
    born, sex = _date(_text(document, "00100030")), _text(document, "00100040")
    return _lines(name, _text(document, "00100020"), " ".join(filter(None, (born, sex))))


def _technique(document: Document, frame: int, frames: int, window: Window | None) -> tuple[str, ...]:
    when = " ".join(filter(None, (_date(_text(document, "00080020")), _time(_text(document, "00080030")))))
    place = [("Se", _text(document, "00200011")), ("Im", _text(document, "00200013"))]
    place += [("Fr", f"{frame}/{frames}")] if frames > 1 else []
    numbers = " ".join(f"{label} {number}" for label, number in place if number)
    kind = " ".join(filter(None, (_text(document, "00080060"), _text(document, "00180015"))))
    found = [(label, number_of(document, tag), unit) for label, tag, unit in _TECHNIQUE]
    values = [f"{label}{value:.5g}{unit}" for label, value, unit in found if value is not None]
    values += [f"W {window.width:.5g} C {window.center:.5g}"] if window else []
    return _lines(when, numbers, kind, *values)


def _lines(*texts: str) -> tuple[str, ...]:
    printable = ("".join(each if each.isprintable() else " " for each in text)[:MOST_CHARS] for text in texts)
    return tuple(text for text in printable if text.strip())


def _text(document: Document, tag: str) -> str:
    values = values_of(document, tag)
    if not values or values[0] is None:
        return ""
    return str(values[0].get("Alphabetic", "") if isinstance(values[0], Mapping) else values[0]).strip()


def _date(text: str) -> str:
    return f"{text[:4]}-{text[4:6]}-{text[6:8]}" if len(text) == 8 and text.isdigit() else text


def _time(text: str) -> str:
    return f"{text[:2]}:{text[2:4]}" if text[:4].isdigit() and len(text) >= 4 else text
