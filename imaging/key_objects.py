"""Key object selections: the images that somebody picked, for printing, say.

Reads the content tree of the document from its DICOM JSON model. Sources: PS3.3 A.35.4, C.17.6; PS3.16 TID 2010.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from imaging.display import items_of, values_of
from imaging.errors import AppError, Category

Document = Mapping[str, Any]

KEY_OBJECT_SELECTION = "1.2.840.10008.5.1.4.1.1.88.59"
MOST_DEPTH = 10  # of the content tree; TID 2010 has two levels


@dataclass(frozen=True, slots=True)
class Picked:
    """An image of a selection.

    frames  from 1, none for all of them
    state   SOP Instance UID of the presentation state that it was seen with, "" for none
    """

    sop_uid: str
    frames: tuple[int, ...] = ()
    state: str = ""


def selected(document: Document) -> list[Picked]:
    """Return the images that a key object selection names, in its order.

    Raises UNSUPPORTED for another kind of document, INVALID for one that names no image.
    """
    if _text(document, "00080016") != KEY_OBJECT_SELECTION:
        raise AppError(Category.UNSUPPORTED, "this is not a key object selection", where="key-object")
    found = list(_images(document, MOST_DEPTH))
    if not found:
        raise AppError(Category.INVALID, "the key object selection names no image", where="key-object")
    return found


def _images(item: Document, depth: int) -> Iterator[Picked]:
    for each in items_of(item, "0040A730"):
        if _text(each, "0040A040") == "IMAGE":
            for named in items_of(each, "00081199")[:1]:
                state = next((_text(inner, "00081155") for inner in items_of(named, "00081199")), "")
                frames = tuple(int(number) for number in values_of(named, "00081160"))
                yield Picked(_text(named, "00081155"), frames, state)
        elif depth:
            yield from _images(each, depth - 1)


def _text(item: Document, tag: str) -> str:
    values = values_of(item, tag)
    return str(values[0]).strip() if values and values[0] is not None else ""
