"""The words on a page: whose images these are, on every page, and which image is which. Pure."""

from collections.abc import Mapping
from typing import Any

from fhir_server.dicom_values import clean, fhir_date
from imaging.display import FrameSource, Window, number_of, values_of
from imaging.errors import AppError, Category

Document = Mapping[str, Any]

IDENTITY = ("00100010", "00100020", "00100021")  # name, ID, issuer of the ID


def require_one_patient(documents: Mapping[str, Document]) -> None:
    """Return when all images are of one patient. Raises INVALID: a page with two is read as one.

    documents   by SOP Instance UID
    """
    seen: tuple[str, ...] | None = None
    for uid, document in documents.items():
        identity = tuple(_text(document, tag) for tag in IDENTITY)
        if seen is not None and identity != seen:
            message = "the images are not all of one patient; order each patient's by themselves"
            raise AppError(Category.INVALID, message, where=uid)
        seen = identity


def banner(document: Document) -> tuple[str, ...]:
    """Return the lines that tell whose image this is and of which study."""
    born, sex = fhir_date(_text(document, "00100030")), _text(document, "00100040")
    who = [_name(document) or "no name", _text(document, "00100020") or "no patient ID"]
    who += [f"born {born}"] if born else []
    who += [sex] if sex else []
    study = [
        fhir_date(_text(document, "00080020")) or "",
        _text(document, "00081030"),
        f"no. {number}" if (number := _text(document, "00080050")) else "",
        _text(document, "00080080"),
    ]
    lines = ["   ".join(who), "   ".join(each for each in study if each)]
    return tuple(each for each in lines if each)


def caption(document: Document, frame: int, window: Window | None, frames: int) -> tuple[str, ...]:
    """Return the line under an image: numbers of series, image and frame, place of the slice, the window.

    window   with which it is shown, None where that is not said in numbers
    """
    series, number = _text(document, "00200011"), _text(document, "00200013")
    words = [f"Se {series}" if series else "", f"Im {number}" if number else ""]
    words += [f"Fr {frame}/{frames}"] if frames > 1 else []
    place = number_of(document, "00201041")
    words += [f"{place:.1f} mm"] if place is not None else []
    words += [f"C {window.center:g} W {window.width:g}"] if window else []
    return ("  ".join(each for each in words if each),)


def window_of(document: Document, frame: int) -> Window | None:
    """Return the window that a frame says of itself."""
    return next(FrameSource(document, frame, None).windows(), None)


def _name(document: Document) -> str:
    """Return the patient's name as people write it: family, given middle; the first of its writings."""
    value = next(iter(values_of(document, "00100010")), None)
    if not isinstance(value, Mapping):
        return ""
    text = next((str(value[each]) for each in ("Alphabetic", "Ideographic", "Phonetic") if value.get(each)), "")
    family, *given = [clean(each) for each in text.split("^")[:3]]
    rest = " ".join(each for each in given if each)
    return f"{family}, {rest}" if family and rest else family or rest


def _text(document: Document, tag: str) -> str:
    value = next(iter(values_of(document, tag)), None)
    if isinstance(value, Mapping):
        return "=".join(str(value[each]) for each in sorted(value))
    return clean(str(value)) if value is not None else ""
