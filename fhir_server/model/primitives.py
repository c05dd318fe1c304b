"""Values of FHIR's primitive types: what is wrong with one, in words that do not repeat it.

Source: FHIR R4 datatypes, primitive types. The published regular expressions are used where they are linear.
"""

import re
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from typing import Any

from fhir_server.model import dates, narrative
from fhir_server.model.definitions import primitives
from imaging.errors import AppError

MAX_STRING = 1024 * 1024  # characters. Source: FHIR R4 datatypes, string
WRONG_TYPE = "has the wrong JSON type"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # "SHALL NOT contain", FHIR R4 datatypes, string
_BASE64 = re.compile(r"[0-9A-Za-z+/]*={0,2}")
_WHITE = re.compile(r"[ \t\r\n]+")
_UNBOUNDED = frozenset({"base64Binary", "xhtml"})
_MOST_INTEGER = 2**31 - 1
_LEAST = {"positiveInt": 1, "unsignedInt": 0, "integer": -(2**31)}


def problem(kind: str, value: Any) -> str:
    """Return what is wrong with a value of a primitive type, "" when nothing is."""
    return _CHECKS[kind](kind, value)


def is_primitive(kind: str) -> bool:
    """Say whether a type is a primitive one."""
    return kind in _CHECKS


def _boolean(kind: str, value: Any) -> str:
    return "" if isinstance(value, bool) else WRONG_TYPE


def _integer(kind: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or value != int(value) or "." in str(value):
        return WRONG_TYPE
    if value < _LEAST[kind]:
        return "is too small"
    return "is too large" if value > _MOST_INTEGER else ""


def _decimal(kind: str, value: Any) -> str:
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    return "" if is_number else WRONG_TYPE


def _string(kind: str, value: Any) -> str:
    if not isinstance(value, str):
        return WRONG_TYPE
    if value == "":
        return "is empty; leave the element out instead"
    if not value.isprintable() and _CONTROL.search(value):
        return "holds control characters"
    if len(value) > MAX_STRING and kind not in _UNBOUNDED:
        return f"is longer than {MAX_STRING} characters"
    return ""


def _xhtml(kind: str, value: Any) -> str:
    return _string(kind, value) or narrative.problem(value)


def _formed(kind: str, value: Any) -> str:
    wrong = _string(kind, value)
    return wrong or ("" if _form(kind).fullmatch(value) else f"does not have the form of a FHIR {kind}")


@cache
def _form(kind: str) -> re.Pattern[str]:
    return re.compile(primitives()[kind])


def _moment(kind: str, value: Any) -> str:
    wrong = _formed(kind, value)
    if wrong:
        return wrong
    try:
        dates.interval(value)
    except AppError:
        return "is not a date of the calendar"
    return ""


def _base64(kind: str, value: Any) -> str:
    wrong = _string(kind, value)
    plain = _WHITE.sub("", value) if not wrong else ""
    is_whole = len(plain) % 4 == 0 and _BASE64.fullmatch(plain)
    return wrong or ("" if is_whole else "does not have the form of a FHIR base64Binary")


_CHECKS: dict[str, Callable[[str, Any], str]] = {
    "boolean": _boolean,
    "integer": _integer,
    "positiveInt": _integer,
    "unsignedInt": _integer,
    "decimal": _decimal,
    "string": _string,
    "markdown": _string,
    "xhtml": _xhtml,
    "date": _moment,
    "dateTime": _moment,
    "instant": _moment,
    "base64Binary": _base64,
    **dict.fromkeys(("code", "id", "oid", "uuid", "uri", "url", "canonical", "time"), _formed),
}
