"""Attributes that are changed on the way in: what they were stays in the data set, with who changed them and when.

Source: PS3.3 C.12.1 (Original Attributes Sequence) and C.12.1.1.9.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import orjson

from imaging.dataset import Received
from imaging.dataset_from_model import elements
from imaging.dicom_json import dicom_json
from imaging.errors import AppError, Category
from imaging.layout import Buffer
from imaging.part10 import Value, file_start, write_elements
from imaging.spool import Spool
from imaging.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN

Original = Mapping[str, Any]
SYSTEM: Final = "fhir-imaging-server"  # Modifying System (0400,0563)
COERCED: Final = 0xB000
"""Warning Reason: data elements were changed (PS3.18 table I.2-1)."""
_SEQUENCE_HEADER: Final = 12  # bytes of tag, VR and length in explicit VR
ORIGINAL_ATTRIBUTES: Final = "04000561"
COERCE: Final = "COERCE"  # Reason for the Attribute Modification (0400,0565), defined terms
CORRECT: Final = "CORRECT"


def original_attributes(
    told: Mapping[str, Any], original: Mapping[str, Any], *, at: datetime, system: str, reason: str = COERCE
) -> dict[str, Any]:
    """Return the Original Attributes Sequence with one more item, as DICOM JSON.

    told      the data set, which may have a sequence already: its items stay
    original  what was changed, as it was; an attribute that was absent is without value
    reason    COERCE or CORRECT
    """
    earlier = told.get(ORIGINAL_ATTRIBUTES, {}).get("Value", [])
    item = {
        "04000550": {"vr": "SQ", "Value": [dict(sorted(original.items()))]},  # Modified Attributes Sequence
        "04000562": {"vr": "DT", "Value": [f"{at:%Y%m%d%H%M%S.%f%z}"]},  # Attribute Modification DateTime
        "04000563": {"vr": "LO", "Value": [system[:64]]},  # Modifying System
        "04000564": {"vr": "LO"},  # Source of Previous Values
        "04000565": {"vr": "CS", "Value": [reason]},
    }
    return {ORIGINAL_ATTRIBUTES: {"vr": "SQ", "Value": [*earlier, item]}}


def coerced(received: Received, changes: Mapping[str, Any], *, at: datetime, system: str) -> tuple[Buffer, Original]:
    """Return a received file with other values of some attributes, and what these were (DICOM JSON).

    changes   by tag; their text is ASCII, which is the same in every character set
    The file is in Explicit VR Little Endian where it was in a native syntax, else in the one that it was in. Raises
    UNSUPPORTED for one in big endian: nobody writes it any more, and its pixels would have to be turned.
    """
    if not received.encoding.little_endian:
        raise AppError(Category.UNSUPPORTED, "attributes of a file in big endian cannot be changed; send it otherwise")
    model = orjson.loads(dicom_json(received))
    original = {tag: model.get(tag, {"vr": element["vr"]}) for tag, element in changes.items()}
    told = original_attributes({}, original, at=at, system=system)
    edits = {int(tag, 16): _value(tag, element) for tag, element in {**changes, **told}.items()}
    values, tag = received.values, int(ORIGINAL_ATTRIBUTES, 16)
    earlier = _items(received, tag)
    edits[tag] = Value("SQ", earlier + edits[tag].value)
    encapsulated = received.pixels is not None and received.pixels.encapsulated
    syntax = received.transfer_syntax_uid if encapsulated else EXPLICIT_VR_LITTLE_ENDIAN
    spool = Spool()
    try:
        spool.write(file_start(values, received.meta_values, syntax))
        for piece in write_elements(values, received.encoding, implicit_vr=False, edits=edits):
            spool.write(piece)
        return spool.finish(), original
    finally:
        spool.discard()


def _items(received: Received, tag: int) -> bytes:
    """Return the items of a sequence in Explicit VR Little Endian."""
    element = received.values.elements.get(tag)
    if element is None:
        return b""
    if not received.encoding.implicit_vr:
        return received.values.raw(element)
    written = write_elements(
        received.values, received.encoding, implicit_vr=False, edits={}, above=tag - 1, below=tag + 1
    )
    return b"".join(bytes(piece) for piece in written)[_SEQUENCE_HEADER:]


def _value(tag: str, element: Mapping[str, Any]) -> Value:
    ((_, pieces),) = elements({tag: element}, lambda uri: b"")
    return Value(element["vr"], b"".join(bytes(piece) for piece in pieces[1:]))
