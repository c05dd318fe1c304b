"""Small data sets as DICOM JSON objects: made, read by keyword, and checked where a client sends them whole.

A work item is such a data set: it has no pixels and no bulk data, so it is kept as the object that it is.
Sources: PS3.18 annex F, PS3.6 (keywords, value representations).
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NoReturn

from pydicom.datadict import dictionary_VR, tag_for_keyword

from imaging.errors import AppError, Category

Model = dict[str, Any]

MOST_LEVELS = 16  # of sequences in sequences
MOST_ELEMENTS = 100_000  # in all
_TAG = re.compile(r"[0-9A-F]{8}")
_PLAIN = re.compile(r"[+-]?\d{1,15}(?:\.\d{1,20})?(?:[eE][+-]?\d{1,2})?", re.ASCII)  # what a double and 64 bits hold
_UID = re.compile(r"[0-9.]{1,64}")
_NUMBERS = frozenset({"DS", "IS", "FL", "FD", "SL", "SS", "SV", "UL", "US", "UV"})
_WRITTEN = frozenset({"DS", "IS", "SV", "UV"})  # numbers that may come, and stay, as text
_PLAIN_NUMBERS = _NUMBERS - _WRITTEN
_TEXTS = frozenset({"AE", "AS", "AT", "CS", "DA", "DT", "LO", "LT", "SH", "ST", "TM", "UC", "UI", "UR", "UT"})
_BINARY = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_NAME_GROUPS = frozenset({"Alphabetic", "Ideographic", "Phonetic"})


@cache
def tag_of(keyword: str) -> str:
    """Return the tag of a keyword as DICOM JSON writes it."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword  # noqa: S101 -- keywords are ours
    return f"{tag:08X}"


def element(keyword: str, *values: Any) -> Model:
    """Return `{tag: element}` with these values; without any it is there and empty."""
    tag = tag_of(keyword)
    vr = dictionary_VR(int(tag, 16))
    return {tag: {"vr": vr, "Value": list(values)} if values else {"vr": vr}}


def values(model: Mapping[str, Any], keyword: str) -> list[Any]:
    """Return the values of an attribute that are not empty."""
    return [each for each in model.get(tag_of(keyword), {}).get("Value", []) if each not in (None, "")]


def text(model: Mapping[str, Any], keyword: str) -> str:
    """Return the first value of an attribute, "" without any."""
    return str(next(iter(values(model, keyword)), ""))


def items(model: Mapping[str, Any], keyword: str) -> list[Model]:
    """Return the items of a sequence that are not empty."""
    return [each for each in values(model, keyword) if each]


def ordered(model: Mapping[str, Any]) -> Model:
    """Return the data set with its tags ascending, as PS3.18 F.2.2 wants it."""
    return dict(sorted(model.items()))


def checked(given: Any) -> Model:
    """Return a data set that a client sends, tags in upper case. Raises INVALID naming the attribute, never its value.

    TOO_LARGE for sequences that are too deep, or more attributes than a work item can have.
    """
    count = [0]
    return _object(given, "", count, 0)


def _object(given: Any, where: str, count: list[int], level: int) -> Model:
    if not isinstance(given, dict):
        _refuse(where or "body", "a DICOM JSON object expected")
    if level > MOST_LEVELS:
        raise AppError(Category.TOO_LARGE, f"sequences deeper than {MOST_LEVELS} levels", where=where)
    found: Model = {}
    for name, each in given.items():
        count[0] += 1
        if count[0] > MOST_ELEMENTS:
            raise AppError(Category.TOO_LARGE, f"more than {MOST_ELEMENTS} attributes", where="body")
        tag = str(name).upper()
        if not _TAG.fullmatch(tag):
            _refuse(where or "body", "an attribute is named by a tag of eight hexadecimal digits")
        if tag in found:
            _refuse(f"{where}{tag}", "an attribute is there twice")
        found[tag] = _element(tag, each, f"{where}{tag}", count, level)
    return found


def _element(tag: str, given: Any, where: str, count: list[int], level: int) -> Model:
    if not isinstance(given, dict) or not given.keys() <= {"vr", "Value", "InlineBinary"}:
        _refuse(where, "an attribute has a vr and, where it is not empty, Value or InlineBinary")
    vr = given.get("vr")
    if vr not in _NUMBERS | _TEXTS | _BINARY | {"PN", "SQ"} or not _fits(tag, str(vr)):
        _refuse(where, "the vr is not one that this attribute has")
    if "InlineBinary" in given:
        if vr not in _BINARY or not isinstance(given["InlineBinary"], str) or "Value" in given:
            _refuse(where, "InlineBinary is text in base64, of a binary value")
        return dict(given)
    inside = given.get("Value", [])
    if not isinstance(inside, list) or (inside and vr in _BINARY):
        _refuse(where, "Value is an array of values")
    if vr == "SQ":
        return {"vr": vr, "Value": [_object(each or {}, f"{where}.", count, level + 1) for each in inside]}
    count[0] += len(inside)
    inside = [_number(each) if vr in _PLAIN_NUMBERS else each for each in inside]
    if not all(_is_value(str(vr), each) for each in inside):
        _refuse(where, f"a value is not one of VR {vr}")
    return {"vr": vr, "Value": inside} if inside else {"vr": vr}


@cache
def _fits(tag: str, vr: str) -> bool:
    try:
        return vr == "UN" or vr in dictionary_VR(int(tag, 16)).split(" or ")
    except KeyError:
        return bool(int(tag[3], 16) % 2)  # a private attribute; others are in the dictionary


def _number(value: Any) -> Any:
    """Return a number that XML has as text as the number that it is."""
    if isinstance(value, str) and _PLAIN.fullmatch(value.strip()):
        return float(value) if "." in value or "e" in value.lower() else int(value)
    return value


def _is_value(vr: str, value: Any) -> bool:
    if value is None:
        return True
    if vr == "PN":
        return isinstance(value, dict) and value.keys() <= _NAME_GROUPS and _are_texts(value.values())
    if vr in _NUMBERS:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number or (vr in _WRITTEN and isinstance(value, str))
    return isinstance(value, str) and (vr != "UI" or value == "" or _UID.fullmatch(value) is not None)


def _are_texts(given: Iterable[Any]) -> bool:
    return all(isinstance(each, str) for each in given)


def _refuse(where: str, message: str) -> NoReturn:
    raise AppError(Category.INVALID, message, where=where[:200])
