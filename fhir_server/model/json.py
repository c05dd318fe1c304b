"""JSON that keeps what FHIR wants kept: the digits of decimals and the order of keys.

Decimals become `ExactDecimal` and are written back as they came (`1.50` stays `1.50`, `1e2` stays `1e2`). What is not
JSON in the strict sense (NaN, duplicate keys, lone surrogates, broken UTF-8) is refused.
Source: FHIR R4 datatypes, decimal: "the precision of the decimal value has significance".
"""

import json
import re
from decimal import Decimal
from typing import Any, Self

import orjson

from imaging.errors import AppError, Category

MOST_DIGITS = 18  # an integer of fewer characters fits 64 bits
MOST_EXPONENT = 400  # what a double can hold ends at 308 above and 324 below

# A number that a double might not keep: after a name, a bracket or a comma, with a point, an exponent or many digits.
# Strings can match too, which only costs the slower parser.
_MAY_LOSE_DIGITS = re.compile(rb'(?:":|\[|,)\s*-?(?:\d+[.eE]|\d{16})')


class ExactDecimal(Decimal):
    """A decimal number that remembers how it was written."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> Self:
        """Return the number that the text says; `text` keeps the text itself."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __deepcopy__(self, memo: Any) -> Self:
        return self


def exact(text: str) -> ExactDecimal:
    """Return the decimal that a text of digits says. Raises ValueError where arithmetic on it could not end."""
    exponent = text.lower().partition("e")[2]
    if exponent and (len(exponent) > 6 or abs(int(exponent)) > MOST_EXPONENT):
        raise ValueError("the exponent is out of range")
    return ExactDecimal(text)


def loads(data: bytes | str) -> Any:
    """Parse JSON that came from outside. Raises INVALID, saying where, without repeating the content."""
    raw = data.encode() if isinstance(data, str) else data
    try:
        orjson.loads(raw)
        return json.loads(raw, parse_float=exact, parse_int=_integer, object_pairs_hook=_object)
    except orjson.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise AppError(Category.INVALID, f"the body is not valid JSON: {error.msg}", where=where) from None
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else "a number is out of range"
        raise AppError(Category.INVALID, f"the body is not acceptable JSON: {reason}") from None


def loads_trusted(data: bytes) -> Any:
    """Parse JSON that this server wrote; several times faster where no decimal is in it."""
    if _MAY_LOSE_DIGITS.search(data):
        return json.loads(data, parse_float=ExactDecimal, parse_int=_integer)
    return orjson.loads(data)


def dumps(value: Any) -> bytes:
    """Return compact UTF-8 JSON; a `Decimal` is written with its own digits."""
    return orjson.dumps(value, default=_fragment)


def check_depth(value: Any, most: int) -> None:
    """Return when containers are nested no deeper than `most` levels. Raises INVALID. Needs no recursion."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > most:
            raise AppError(Category.INVALID, f"the JSON is nested deeper than {most} levels", where="body")
        holders = (each.values() if isinstance(each, dict) else each for each in level)
        level = [inner for holder in holders for inner in holder if isinstance(inner, dict | list)]


def _integer(text: str) -> int | ExactDecimal:
    return int(text) if len(text) < MOST_DIGITS else ExactDecimal(text)


def _fragment(value: Any) -> orjson.Fragment:
    if isinstance(value, ExactDecimal):
        return orjson.Fragment(value.text.encode())
    if isinstance(value, Decimal) and value.is_finite():
        return orjson.Fragment(str(value).encode())
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise AppError(Category.INVALID, f"the name {repeated[:64]!r} occurs twice in one JSON object")
    return found
