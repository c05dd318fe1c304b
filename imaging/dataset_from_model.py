"""From the DICOM JSON model to the bytes of a data set, each value checked: the other way round from `dicom_json`.

The data set is written in Explicit VR Little Endian, its text in UTF-8 where it is more than ASCII. Binary values may
stand apart, as bulk data under a URI. Sources: PS3.18 annex F, PS3.5 section 6.2 and 7.1.
"""

import binascii
import math
import re
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from struct import error as StructError
from struct import pack
from typing import Any, Final

from pydicom.valuerep import format_number_as_ds

from imaging.elements import LONG_VRS, SHORT_VRS
from imaging.errors import AppError, Category
from imaging.frames import item_header
from imaging.layout import Buffer
from imaging.part10 import value_header
from imaging.values import BINARY_VRS, NUMBER_FORMATS

Model = Mapping[str, Any]
FindBulk = Callable[[str], Buffer]
"""The value that a BulkDataURI stands for, in little endian."""

UTF_8: Final = "ISO_IR 192"
SPECIFIC_CHARACTER_SET: Final = "00080005"
MAX_DEPTH: Final = 64
_NOT_OF_THE_DATASET: Final = frozenset({"00083002", "00081190"})
"""What answers of DICOMweb add: Available Transfer Syntax UID and Retrieve URL."""
_TAG: Final = re.compile(r"[0-9A-F]{8}")
_VRS: Final = LONG_VRS | SHORT_VRS
_HOLDERS: Final = ("Value", "InlineBinary", "BulkDataURI")
_SINGLE_TEXT_VRS: Final = frozenset({"LT", "ST", "UT", "UR"})
_PARTS: Final = ("Alphabetic", "Ideographic", "Phonetic")
_FLOATS: Final = {"NaN": math.nan, "inf": math.inf, "-inf": -math.inf, "Infinity": math.inf, "-Infinity": -math.inf}


def elements(
    model: Model, bulk: FindBulk, *, without: frozenset[str] = frozenset()
) -> Iterator[tuple[int, list[Buffer]]]:
    """Yield the tag and the bytes of each element, in order, but for those of groups 0000 and 0002 and of `without`.

    Raises INVALID for what is no DICOM JSON, naming the attribute and never its value.
    """
    told = _in_utf_8(model)
    for name in sorted(told):
        tag = _tag(name)
        if tag >> 16 > 2 and tag & 0xFFFF and name not in without | _NOT_OF_THE_DATASET:
            yield tag, _element(tag, told[name], bulk, 0)


def text_of(model: Model, tag: str) -> str:
    """Return the first value of an attribute as text; "" when there is none."""
    values = _holder(model, tag).get("Value")
    return str(values[0]).strip() if isinstance(values, list) and values and values[0] is not None else ""


def number_of(model: Model, tag: str) -> int | None:
    """Return the first value of an attribute as an integer; None when there is none. Raises INVALID for no integer."""
    text = text_of(model, tag)
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise _invalid(int(tag, 16), "is no integer") from None


def uris(model: Model, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield (tag, URI) of all bulk data that a data set refers to, also inside of sequences."""
    for name, element in model.items():
        if not isinstance(element, Mapping) or depth > MAX_DEPTH:
            continue
        if isinstance(element.get("BulkDataURI"), str):
            yield name, element["BulkDataURI"]
        elif element.get("vr") == "SQ" and isinstance(element.get("Value"), list):
            for item in element["Value"]:
                if isinstance(item, Mapping):
                    yield from uris(item, depth + 1)


def _in_utf_8(model: Model) -> Model:
    """Return the data set with a character set that its text has: JSON is UTF-8 whatever it says of another form."""
    if SPECIFIC_CHARACTER_SET not in model and is_ascii(model):
        return model
    return {**model, SPECIFIC_CHARACTER_SET: {"vr": "CS", "Value": [UTF_8]}}


def is_ascii(value: Any) -> bool:
    """Tell whether all text in a part of a DICOM JSON data set is ASCII, which every character set has."""
    if isinstance(value, str):
        return value.isascii()
    if isinstance(value, Mapping):
        return all(map(is_ascii, value.values()))
    return not isinstance(value, list) or all(map(is_ascii, value))


def _element(tag: int, element: Any, bulk: FindBulk, depth: int) -> list[Buffer]:
    vr = element.get("vr") if isinstance(element, Mapping) else None
    if vr not in _VRS:
        raise _invalid(tag, "has no value representation")
    if sum(name in element for name in _HOLDERS) > 1:
        raise _invalid(tag, "has its value more than once")
    value = _value(tag, vr, element, bulk, depth)
    length = sum(map(len, value))
    if length % 2:
        value = [*value, b"\0" if vr in BINARY_VRS or vr == "UI" else b" "]
    return [value_header(tag, vr, length + length % 2, implicit_vr=False), *value]


def _value(tag: int, vr: str, element: Mapping[str, Any], bulk: FindBulk, depth: int) -> list[Buffer]:
    if "BulkDataURI" in element:
        if vr == "SQ":
            raise _invalid(tag, "is a sequence, which cannot be bulk data")
        return [bulk(_text(tag, element["BulkDataURI"]))]
    if "InlineBinary" in element:
        return [_inline(tag, vr, element["InlineBinary"])]
    values = element.get("Value", [])
    if not isinstance(values, list):
        raise _invalid(tag, "has a Value that is no array")
    if vr == "SQ":
        return _items(tag, values, bulk, depth)
    if vr in BINARY_VRS:
        if values:
            raise _invalid(tag, f"is {vr}: InlineBinary or BulkDataURI expected")
        return []
    return [_encoded(tag, vr, values)] if values else []


def _inline(tag: int, vr: str, text: Any) -> bytes:
    if vr not in BINARY_VRS:
        raise _invalid(tag, f"is {vr}, which has no InlineBinary")
    try:
        return b64decode(_text(tag, text), validate=True)
    except (binascii.Error, ValueError):
        raise _invalid(tag, "has an InlineBinary that is no base64") from None


def _items(tag: int, items: Sequence[Any], bulk: FindBulk, depth: int) -> list[Buffer]:
    if depth >= MAX_DEPTH:
        raise AppError(Category.TOO_LARGE, f"sequences nest deeper than {MAX_DEPTH}", where=_shown(tag))
    pieces: list[Buffer] = []
    for item in items:
        held = {} if item is None else item
        if not isinstance(held, Mapping):
            raise _invalid(tag, "has an item that is no object")
        inside: list[Buffer] = []
        # Text is in the one character set of the data set.
        for name in sorted(set(held) - {SPECIFIC_CHARACTER_SET}):
            inside += _element(_tag(name), held[name], bulk, depth + 1)
        pieces += [item_header(sum(map(len, inside))), *inside]
    return pieces


def _encoded(tag: int, vr: str, values: Sequence[Any]) -> bytes:
    try:
        if vr == "AT":
            return b"".join(_attribute_tag(tag, value) for value in values)
        if vr in NUMBER_FORMATS:
            read = _float if vr in ("FL", "FD") else _whole
            return pack(f"<{len(values)}{NUMBER_FORMATS[vr]}", *(read(value) for value in values))
        texts = [_written(tag, vr, value) for value in values]
    except (ValueError, TypeError, StructError, OverflowError):
        raise _invalid(tag, f"has a value that is no {vr}") from None
    if vr in _SINGLE_TEXT_VRS and len(texts) > 1:
        raise _invalid(tag, f"is {vr}, which has one value")
    return "\\".join(texts).encode("utf-8", "strict")


def _written(tag: int, vr: str, value: Any) -> str:
    if value is None:
        return ""
    if vr == "PN":
        named = value if isinstance(value, Mapping) else {_PARTS[0]: value}
        if not set(named) <= set(_PARTS):
            raise ValueError(vr)
        return "=".join(_text(tag, named.get(part, "")) for part in _PARTS).rstrip("=")
    if vr in ("IS", "DS") and isinstance(value, int | float) and not isinstance(value, bool):
        return str(_whole(value)) if vr == "IS" else _decimal(value)
    text = _text(tag, value)
    if vr in ("IS", "DS") and text.strip():
        float(text)
    if "\\" in text and vr not in _SINGLE_TEXT_VRS:
        raise ValueError(vr)
    return text


def _decimal(value: float) -> str:
    text = str(value)
    return text if len(text) <= 16 else format_number_as_ds(float(value))


def _whole(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError("no integer")
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError("no number")
    return _FLOATS[value] if value in _FLOATS else float(value)


def _attribute_tag(tag: int, value: Any) -> bytes:
    number = _tag(_text(tag, value).upper())
    return pack("<HH", number >> 16, number & 0xFFFF)


def _text(tag: int, value: Any) -> str:
    if not isinstance(value, str):
        raise _invalid(tag, "has a value that is no text")
    return value


def _tag(name: Any) -> int:
    if not isinstance(name, str) or not _TAG.fullmatch(name.upper()):
        raise AppError(Category.INVALID, "an attribute is not named by its tag, eight hexadecimal digits")
    return int(name, 16)


def _holder(model: Model, tag: str) -> Mapping[str, Any]:
    found = model.get(tag)
    return found if isinstance(found, Mapping) else {}


def _invalid(tag: int, message: str) -> AppError:
    return AppError(Category.INVALID, f"{_shown(tag)} {message}", where=_shown(tag))


def _shown(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
