"""The DICOM JSON model of a received dataset, straight from its bytes, and the bulk data that it points to.

Large binary values and pixel data become a BulkDataURI that starts with "@/"; whoever sends the JSON puts the address
of the instance there. Values that break the rules of their VR are given as text rather than lost.
Source: PS3.18 annex F.
"""

import math
import re
from base64 import b64encode
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final

import orjson

from imaging.dataset import Received
from imaging.elements import LONG, Element, items_of
from imaging.errors import AppError, Category
from imaging.layout import PIXEL_KEYWORDS, Buffer, Limits
from imaging.part10 import little_endian_value
from imaging.values import BINARY_VRS, NUMBER_FORMATS, Values

INLINE_BYTES: Final = 1024
"""Binary values up to this size are given inline."""

BULKDATA: Final = "@/bulkdata/"
"""What the addresses of bulk data begin with."""
_NAME_PARTS: Final = ("Alphabetic", "Ideographic", "Phonetic")
_SINGLE_TEXT_VRS: Final = frozenset({"LT", "ST", "UT", "UR"})
"""VRs in which a backslash is text (PS3.5 6.2)."""
_PLAIN: Final = frozenset({"AS", "CS", "DA", "DS", "IS", "TM", "UI", "UL", "US"})
"""VRs whose values depend on nothing around them, such as the character set."""
_TAG: Final = re.compile(r"[0-9A-Fa-f]{8}")


def dicom_json(received: Received) -> bytes:
    """Return the dataset as one DICOM JSON object, UTF-8, without File Meta Information and group lengths."""
    return dicom_json_of(received, ())[0]


def dicom_json_of(received: Received, tags: Iterable[str]) -> tuple[bytes, dict[str, Any]]:
    """Return what `dicom_json` does, and of it these attributes, "GGGGEEEE", read back; the rest may be long."""
    model = _dataset(received.values, BULKDATA)
    some = {tag: model[tag] for tag in tags if tag in model}
    return orjson.dumps(model), orjson.loads(orjson.dumps(some))


def attributes_of(received: Received, tags: Iterable[int]) -> dict[str, Any]:
    """Return some attributes of the dataset, those that are there, as DICOM JSON."""
    elements = received.values.elements
    return {f"{tag:08X}": _element(received.values, elements[tag], BULKDATA) for tag in tags if tag in elements}


def inserted(document: bytes, tag: str, attribute: bytes) -> bytes:
    """Return a DICOM JSON data set, tags ascending, with one more attribute; one that has its tag gives way to it.

    document   with an attribute at least, as orjson writes it; it is taken apart only where a sequence before the
               place may hold later tags
    """
    name = f'"{tag}":'.encode()
    found = _behind(tag).search(document)
    end = found.start() if found else len(document) - 1
    if name in document or document.find(b'"vr":"SQ"', 0, end) >= 0:
        parsed = {**orjson.loads(document), tag: orjson.loads(attribute)}
        return orjson.dumps(dict(sorted(parsed.items())))
    return b"%b,%b%b%b" % (document[:end], name, attribute, document[end:])


@lru_cache
def _behind(tag: str) -> re.Pattern[bytes]:
    """Return the pattern of how an attribute of a later tag begins; in a text each quotation mark is escaped."""
    later = (
        f"{tag[:n]}[{_DIGITS[_DIGITS.index(digit) + 1 :]}][{_DIGITS}]{{{7 - n}}}"
        for n, digit in enumerate(tag)
        if digit != "F"
    )
    return re.compile(f',"(?:{"|".join(later)})":{{"vr":"'.encode())


_DIGITS: Final = "0123456789ABCDEF"


def bulkdata(received: Received, path: str) -> tuple[Buffer, str]:
    """Return the bytes (little endian, a view where they can be) and the VR of a value that `dicom_json` pointed to.

    path  as in the BulkDataURI after "@/": "bulkdata/" and tags and item numbers (from 0) in turn. Encapsulated pixel
          data comes with its items; frames are better asked for as frames

    Raises INVALID for a malformed path, NOT_FOUND when there is no such value.
    """
    steps = path.removeprefix("bulkdata/").split("/")
    if len(steps) % 2 == 0 or not all(_TAG.fullmatch(step) for step in steps[::2]):
        raise AppError(Category.INVALID, "a bulk data path is tags and item numbers in turn", where=path[:200])
    values = received.values
    for tag, number in zip(steps[:-1:2], steps[1::2], strict=True):
        items = list(values.items(int(tag, 16)))
        if not number.isdecimal() or int(number) >= len(items):
            raise AppError(Category.NOT_FOUND, "there is no such item", where=path[:200])
        values = items[int(number)]
    element = values.elements.get(int(steps[-1], 16))
    if element is None or element.items is not None:
        raise AppError(Category.NOT_FOUND, "there is no such value", where=path[:200])
    if values.little_endian:
        return memoryview(values.buffer)[element.start : element.start + element.length], values.vr(element)
    return little_endian_value(values, element), values.vr(element)


def _dataset(values: Values, path: str) -> dict[str, Any]:
    elements = values.elements
    return {f"{tag:08X}": _element(values, elements[tag], path) for tag in sorted(elements) if tag & 0xFFFF}


def _element(values: Values, element: Element, path: str) -> dict[str, Any]:
    vr = element.vr if element.vr != "US or SS" else values.vr(element)
    if element.items is not None:
        prefix = f"{path}{element.tag:08X}/"
        items = _references(values, element) or [
            _dataset(values.item(item), f"{prefix}{index}/") for index, item in enumerate(element.items)
        ]
        return {"vr": vr, "Value": items} if items else {"vr": vr}
    if vr in BINARY_VRS:
        return _binary(values, element, vr, path)
    if not element.length:
        return {"vr": vr}
    found = _READERS[vr](values, element)
    return {"vr": vr, "Value": found} if found else {"vr": vr}


def _references(values: Values, element: Element) -> list[dict[str, Any]]:
    """Return the items of a long sequence that mean the same wherever they stand; none where they may not."""
    if element.length < LONG or not element.items or element.undefined:
        return []
    return _plain_items(values.raw(element), values.little_endian, element.items[0].implicit_vr)


@lru_cache(maxsize=8)
def _plain_items(raw: bytes, little_endian: bool, implicit_vr: bool) -> list[dict[str, Any]]:
    """Return the items of a sequence, made once for all instances that refer to the same thousand others."""
    found = items_of(raw, 0, little_endian, implicit_vr, 0, Limits())
    if found is None or any(each.vr not in _PLAIN for item in found[0] for each in item.elements.values()):
        return []
    values = Values(raw, {}, little_endian=little_endian)
    return [_dataset(values.item(item), "") for item in found[0]]


def _binary(values: Values, element: Element, vr: str, path: str) -> dict[str, Any]:
    if element.length > INLINE_BYTES or element.undefined or element.tag in PIXEL_KEYWORDS:
        return {"vr": vr, "BulkDataURI": f"{path}{element.tag:08X}"}
    if not element.length:
        return {"vr": vr}
    return {"vr": vr, "InlineBinary": b64encode(little_endian_value(values, element)).decode("ascii")}


def _texts(values: Values, element: Element) -> list[str | None]:
    """Several texts; an empty one between others is null, all empty is no value (PS3.18 F.2.5)."""
    return _nulls([text.strip(" \0") for text in values.decode(element).rstrip("\0").split("\\")])


def _trailing_texts(values: Values, element: Element) -> list[str | None]:
    """Several texts whose leading spaces matter."""
    return _nulls([text.rstrip(" \0") for text in values.decode(element).split("\\")])


def _single_text(values: Values, element: Element) -> list[str | None]:
    return _nulls([values.decode(element).rstrip(" \0")])


def _names(values: Values, element: Element) -> list[dict[str, str] | None]:
    names: list[dict[str, str] | None] = []
    for name in values.decode(element).split("\\"):
        parts = dict(zip(_NAME_PARTS, (part.rstrip(" \0") for part in name.split("=")), strict=False))
        names.append({key: part for key, part in parts.items() if part} or None)
    return names if any(names) else []


def _integers(values: Values, element: Element) -> list[int | str | None]:
    return [_number(text, int) for text in _texts(values, element)]


def _decimals(values: Values, element: Element) -> list[float | str | None]:
    return [_number(text, float) for text in _texts(values, element)]


def _number(text: str | None, kind: Callable[[str], Any]) -> Any:
    """Return a number; the text itself when it is none, or none that JSON has."""
    if text is None:
        return None
    try:
        number = kind(text)
    except ValueError:
        return text
    return number if math.isfinite(number) and abs(number) < 1 << 63 else text


def _numbers(values: Values, element: Element) -> list[int | float]:
    return list(values.numbers(element))


def _floats(values: Values, element: Element) -> list[float | str]:
    return [number if math.isfinite(number) else _NOT_FINITE[str(number)] for number in values.numbers(element)]


def _tags(values: Values, element: Element) -> list[str]:
    numbers = values.numbers(element)
    return [f"{group:04X}{number:04X}" for group, number in zip(numbers[::2], numbers[1::2], strict=True)]


def _nulls(texts: list[str]) -> list[str | None]:
    return [text or None for text in texts] if any(texts) else []


_NOT_FINITE: Final = {"nan": "NaN", "inf": "inf", "-inf": "-inf"}

_READERS: Final[dict[str, Callable[[Values, Element], list[Any]]]] = {
    **dict.fromkeys(("AE", "AS", "CS", "DA", "DT", "LO", "SH", "TM", "UI"), _texts),
    "UC": _trailing_texts,
    **dict.fromkeys(_SINGLE_TEXT_VRS, _single_text),
    "PN": _names,
    "IS": _integers,
    "DS": _decimals,
    **dict.fromkeys(NUMBER_FORMATS, _numbers),
    "FL": _floats,
    "FD": _floats,
    "AT": _tags,
}
