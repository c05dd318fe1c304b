"""Typed parameters: a frozen dataclass declares them once; they are described, checked and built from named values.

A field is `name: Annotated[type, Says(...)]`, its type one of float, int, bool, str, a StrEnum, or a tuple of one of
them: `tuple[float, float]` has a fixed length, `tuple[str, ...]` up to MOST_VALUES. Values come from outside, as JSON
has them; an error names the parameter.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from imaging.errors import AppError, Category

T = TypeVar("T")

MOST_VALUES = 100  # in a list without fixed length
MOST_TEXT = 1_000  # characters of a text for which no highest length is said


@dataclass(frozen=True, slots=True)
class Says:
    """What a parameter means, its unit and its range, ends included.

    unit       UCUM code; "1" for a ratio or a count, "" for the unit of the image
    low, high  of a text, its length in characters
    is_secret  it is never shown again
    is_stated  whether images may state it, so that it need not be given
    """

    help: str
    unit: str = "1"
    low: float | None = None
    high: float | None = None
    is_secret: bool = False
    is_stated: bool = False


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter as it is told to others.

    kind      "number", "integer", "boolean", "choice" or "text"
    length    how many values it has; None for a single one that is not in a list, 0 for a list of any length
    default   None when it is required: it must be given, unless it `is_stated` by the images
    """

    name: str
    kind: str
    help: str
    unit: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    length: int | None
    is_required: bool
    default: Any
    is_secret: bool = False
    is_stated: bool = False

    def range_in_words(self) -> str:
        """Return the range, `0.05 ... 50` or `from 0.05`; "" without one."""
        low, high = self.low, self.high
        if low is None:
            return "" if high is None else f"to {high:g}"
        return f"from {low:g}" if high is None else f"{low:g} ... {high:g}"

    def default_in_words(self) -> str:
        """Return the default as one writes it, "" when the parameter is required."""
        return "" if self.is_required else _plain(self.default)


def describe(declaring: type[Any]) -> tuple[Parameter, ...]:
    """Return the parameters that a frozen dataclass declares, in its order."""
    hints = get_type_hints(declaring, include_extras=True)
    return tuple(_parameter(field.name, hints[field.name], field.default) for field in fields(declaring) if field.init)


def build(declaring: type[T], values: Mapping[str, Any]) -> T:
    """Return `declaring` made of named values. Raises INVALID, naming the parameter, and for names that it has not."""
    return declaring(**_arguments(declaring, values, absent=()))


def check(declaring: type[Any], values: Mapping[str, Any]) -> None:
    """Raise INVALID as `build` does, but not for the absence of what images may state."""
    absent = [each.name for each in describe(declaring) if each.is_stated and each.name not in values]
    arguments = _arguments(declaring, values, absent=absent)
    if not absent:
        declaring(**arguments)


def _arguments(declaring: type[Any], values: Mapping[str, Any], *, absent: Sequence[str]) -> dict[str, Any]:
    hints = get_type_hints(declaring, include_extras=True)
    known = {parameter.name: parameter for parameter in describe(declaring)}
    for name in values:
        if name not in known:
            raise AppError(
                Category.INVALID, f"there is no such parameter; known: {', '.join(known) or 'none'}", where=name
            )
    arguments = {}
    for name, parameter in known.items():
        if name in values:
            arguments[name] = _converted(values[name], parameter, get_args(hints[name])[0])
        elif parameter.is_required and name not in absent:
            raise AppError(Category.INVALID, f"is required: {parameter.help}", where=name)
    return arguments


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def value_from_text(text: str, parameter: Parameter) -> Any:
    """Return a value as `build` wants it from what somebody typed; a list has commas between. Raises INVALID."""
    if parameter.length is not None:
        return [_from_text(each.strip(), parameter) for each in text.split(",")] if text.strip() else []
    return _from_text(text, parameter)


def _from_text(text: str, parameter: Parameter) -> Any:
    if parameter.kind in ("choice", "text"):
        return text
    words = {"yes": True, "true": True, "no": False, "false": False}
    try:
        return words[text.lower()] if parameter.kind == "boolean" else float(text)
    except (KeyError, ValueError):
        wanted = "yes or no" if parameter.kind == "boolean" else "a number"
        raise AppError(Category.INVALID, f"{wanted} expected", where=parameter.name) from None


_KINDS = {float: "number", int: "integer", bool: "boolean", str: "text"}


def _parameter(name: str, hint: Any, default: Any) -> Parameter:
    if get_origin(hint) is not Annotated:
        raise TypeError(f"parameter {name} is not Annotated[type, Says(...)]")
    kind, says = get_args(hint)[:2]
    is_list = get_origin(kind) is tuple
    element = get_args(kind)[0] if is_list else kind
    is_choice = isinstance(element, type) and issubclass(element, StrEnum)
    return Parameter(
        name=name,
        kind="choice" if is_choice else _KINDS[element],
        help=says.help,
        unit="" if is_choice or element in (bool, str) else says.unit,
        low=says.low,
        high=says.high,
        choices=tuple(str(each) for each in element) if is_choice else (),
        length=(0 if Ellipsis in get_args(kind) else len(get_args(kind))) if is_list else None,
        is_required=default is MISSING,
        default=None if default is MISSING else default,
        is_secret=says.is_secret,
        is_stated=says.is_stated,
    )


def _converted(value: Any, parameter: Parameter, kind: Any) -> Any:
    if parameter.length is None:
        return _one(value, parameter, kind)
    is_list = isinstance(value, list | tuple)
    if parameter.length == 0:
        if not is_list or len(value) > MOST_VALUES:
            raise AppError(Category.INVALID, f"a list of at most {MOST_VALUES} values expected", where=parameter.name)
    elif not is_list or len(value) != parameter.length:
        raise AppError(Category.INVALID, f"{parameter.length} values expected", where=parameter.name)
    return tuple(_one(each, parameter, get_args(kind)[0]) for each in value)


def _one(value: Any, parameter: Parameter, kind: Any) -> Any:
    if parameter.kind == "boolean":
        if not isinstance(value, bool):
            raise AppError(Category.INVALID, "true or false expected", where=parameter.name)
        return value
    if parameter.kind == "choice":
        if value not in parameter.choices:
            raise AppError(Category.INVALID, f"one of {', '.join(parameter.choices)} expected", where=parameter.name)
        return kind(value)
    if parameter.kind == "text":
        return _text(value, parameter)
    return _number(value, parameter)


def _text(value: Any, parameter: Parameter) -> str:
    low, high = int(parameter.low or 0), int(parameter.high or MOST_TEXT)
    if not isinstance(value, str) or not low <= len(value) <= high or not value.isprintable():
        raise AppError(Category.INVALID, f"a line of {low} to {high} characters expected", where=parameter.name)
    return value


def _number(value: Any, parameter: Parameter) -> float | int:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if not is_number or (parameter.kind == "integer" and value != int(value)):
        raise AppError(Category.INVALID, f"{_article(parameter.kind)} expected", where=parameter.name)
    low, high = parameter.low, parameter.high
    if (low is not None and value < low) or (high is not None and value > high):
        limits = (
            f"from {low:g} to {high:g}"
            if None not in (low, high)
            else f"at least {low:g}"
            if high is None
            else f"at most {high:g}"
        )
        unit = "" if parameter.unit in ("", "1") else f" {parameter.unit}"
        raise AppError(Category.INVALID, f"a value {limits}{unit} expected", where=parameter.name)
    return int(value) if parameter.kind == "integer" else float(value)


def _article(kind: str) -> str:
    return "a whole number" if kind == "integer" else "a finite number"
