"""One criterion on one parameter: `name:modifier=value,value` becomes a `Clause` of typed values, which are or-ed.

Pure. Knows the grammar of every search parameter type (FHIR R4 search 3.1.1.4-3.1.1.5), not how anything is stored.
Criteria that lead to other resources are in `chains`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from fhir_server.model import dates
from fhir_server.model.definitions import Parameter, parameters, resource_types
from imaging.errors import AppError, Category

ID_FORM = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffd]")  # U+FFFD is what a door makes of broken UTF-8
DEFAULT_COUNT = 50
MAX_INCLUDES = 10_000
PREFIXES = ("eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap")


class Token(NamedTuple):
    """A coded value: `None` stands for any; a system of "" for none at all."""

    system: str | None
    code: str | None


class Reference(NamedTuple):
    """A reference, as every text that may stand for it (`23` may mean Patient/23 or Group/23)."""

    candidates: tuple[str, ...]


class Typed(NamedTuple):
    """A token with the type of its identifier: system and code of the type, and the value."""

    system: str
    code: str
    value: str


class Near(NamedTuple):
    """A place and how far around it, in radians as seen from the middle of the earth."""

    latitude: float
    longitude: float
    radius: float


class Date(NamedTuple):
    """A date with its prefix."""

    prefix: str
    interval: dates.Interval


class Number(NamedTuple):
    """A number with its prefix and the interval its written digits stand for: `100` is 99.5 to 100.5."""

    prefix: str
    value: float
    low: float
    high: float


class Quantity(NamedTuple):
    """A number with a unit: `system` and `code`, or any system and `code` as code or unit."""

    number: Number
    system: str | None
    code: str | None


class Text(NamedTuple):
    """A string or a uri."""

    text: str


class Missing(NamedTuple):
    """Whether the parameter is to be absent."""

    is_missing: bool


class Composite(NamedTuple):
    """One value per component, which must hold of the same element."""

    parts: "tuple[Value, ...]"


Value = Token | Reference | Date | Number | Quantity | Text | Missing | Composite | Typed | Near


@dataclass(frozen=True, slots=True)
class Clause:
    """One criterion on one parameter; it holds when any of its values does (none of them, for the modifier `not`)."""

    code: str
    type: str  # search parameter type
    modifier: str
    values: tuple[Value, ...]
    parameter: Parameter | None = field(default=None, compare=False)  # where it is not one of the official ones

    def definition(self, resource_type: str) -> Parameter:
        """Return the parameter that this is about."""
        return self.parameter or parameters(resource_type)[self.code]


Table = Callable[[str], Mapping[str, Parameter]]  # resource type -> its search parameters by code
_OFFICIAL: Table = parameters


@dataclass(frozen=True, slots=True)
class Limits:
    """What a search may ask: bounds, and which parameters there are."""

    parameters: int = 100
    values: int = 200  # of one parameter; MongoDB merges at most 200 index scans in order
    value_length: int = 1024  # characters
    count: int = 1000  # matches on a page; a larger wish is cut to this
    default_count: int = DEFAULT_COUNT
    includes: int = MAX_INCLUDES  # resources that come with a page
    depth: int = 8  # links of a chain, in either direction
    branches: int = 200  # criteria that one parameter may come to, where a chain may lead to many types
    terms: int = 50  # of one `_filter`
    table: Table = _OFFICIAL


def clause(resource_type: str, name: str, value: str, *, base_url: str = "", limits: Limits | None = None) -> Clause:
    """Parse one criterion, such as `("ImagingStudy", "patient:missing", "true")`.

    `base_url` makes absolute references to this server equal to relative ones. Raises INVALID, naming the parameter.
    """
    limits = limits or Limits()
    code, _, modifier = name.partition(":")
    parameter = _parameter(resource_type, code, limits.table)
    kind = _value_kind(parameter, modifier)
    texts = split(value, ",")
    if len(texts) > limits.values:
        raise _invalid(name, f"{len(texts)} values, at most {limits.values} are accepted")
    if any(len(text) > limits.value_length for text in texts):
        raise _invalid(name, f"a value is longer than {limits.value_length} characters")
    if _NOT_TEXT.search(value):
        raise _invalid(name, "a value holds broken UTF-8 or control characters")
    if any(not text.strip() for text in texts):
        raise _invalid(name, "a value is empty")
    context = _Context(parameter, modifier, base_url, name)
    try:
        values = tuple(_PARSERS[kind](text, context) for text in texts)
    except AppError as error:
        raise error if error.where else _invalid(name, error.message) from None
    kept = modifier if modifier in MODIFIERS[parameter.type] else ""  # `:Patient` is in the values now
    own = None if parameters(resource_type).get(code) is parameter else parameter
    return Clause(code, parameter.type, kept, values, own)


def split(text: str, separator: str) -> list[str]:
    """Split at separators that no backslash precedes; the parts keep their escapes."""
    parts: list[str] = []
    current: list[str] = []
    position = 0
    while position < len(text):
        character = text[position]
        step = 2 if character == "\\" else 1
        if character == separator:
            parts.append("".join(current))
            current = []
        else:
            current.append(text[position : position + step])
        position += step
    return [*parts, "".join(current)]


def unescape(text: str) -> str:
    r"""Resolve the escapes `\,` `\|` `\$` and `\\`. Source: FHIR R4 search 3.1.1.4.0.1."""
    return re.sub(r"\\([,|$\\])", r"\1", text)


def check_id(text: str, *, where: str) -> str:
    """Return the text when it has the form of a resource id, else raise INVALID."""
    if not ID_FORM.fullmatch(text):
        raise AppError(Category.INVALID, "a resource id is 1 to 64 of A-Z a-z 0-9 - .", where=where)
    return text


class _Context(NamedTuple):
    parameter: Parameter
    modifier: str
    base_url: str
    name: str


# by parameter, else by type of parameter; for references a resource type is a modifier too
MODIFIERS: dict[str, frozenset[str]] = {
    "_id": frozenset({""}),
    "_lastUpdated": frozenset({""}),
    "token": frozenset({"", "not", "text", "in", "not-in", "above", "below", "of-type", "missing"}),
    "reference": frozenset({"", "identifier", "above", "below", "missing"}),
    "string": frozenset({"", "exact", "contains", "missing"}),
    "date": frozenset({"", "missing"}),
    "number": frozenset({"", "missing"}),
    "quantity": frozenset({"", "missing"}),
    "uri": frozenset({"", "above", "below", "missing"}),
    "composite": frozenset({""}),
    "special": frozenset({""}),
}
_KINDS = {
    # modifier -> how its value is written, where that is not the parameter's own way
    "missing": "missing",
    "text": "string",
    "identifier": "token",
    "in": "uri",
    "not-in": "uri",
    "of-type": "typed",
}


def modifiers(parameter: Parameter) -> frozenset[str]:
    """Return the modifiers that a parameter takes, "" for none; a reference takes resource types besides."""
    return MODIFIERS.get(parameter.code, MODIFIERS[parameter.type])


def _parameter(resource_type: str, code: str, table: Table) -> Parameter:
    known = table(resource_type)
    parameter = known.get(code)
    if parameter is None:
        raise _invalid(code[:64], f"unknown for {resource_type}, which has: {', '.join(sorted(known))}")
    return parameter


def _value_kind(parameter: Parameter, modifier: str) -> str:
    allowed = modifiers(parameter)
    is_type = parameter.type == "reference" and modifier in resource_types()
    if is_type and parameter.targets and modifier not in parameter.targets:
        raise _invalid(parameter.code, f"it never refers to a {modifier}")
    if modifier not in allowed and not is_type:
        offered = ", ".join(f":{name}" for name in sorted(allowed) if name) or "none"
        raise _invalid(parameter.code, f"the modifier :{modifier[:32]} is not supported here; supported: {offered}")
    if modifier in {"above", "below"} and parameter.type == "token":
        return "token"
    return _KINDS.get(modifier, parameter.type)


def _invalid(name: str, reason: str) -> AppError:
    return AppError(Category.INVALID, f"search parameter {name}: {reason}", where=name)


def _token(text: str, context: _Context) -> Token:
    parts = split(text, "|")
    if context.parameter.code == "_id":
        return Token(None, check_id(text, where="_id"))
    if len(parts) > 2:
        raise _invalid(context.name, r"more than one | in a value; write \| for a literal one")
    if len(parts) == 1:
        return Token(None, unescape(parts[0]))
    system, code = unescape(parts[0]), unescape(parts[1])
    if not system and not code:
        raise _invalid(context.name, "neither system nor code is given")
    return Token(system, code or None)


def _reference(text: str, context: _Context) -> Reference:
    value = unescape(text)
    if context.base_url:
        value = value.removeprefix(context.base_url.rstrip("/") + "/")
    if context.modifier in resource_types():
        value = value.removeprefix(f"{context.modifier}/")
        return Reference((f"{context.modifier}/{check_id(value, where=context.name)}",))
    if "/" in value or ":" in value:
        return Reference((value,))
    check_id(value, where=context.name)
    targets = context.parameter.targets or tuple(sorted(resource_types()))
    return Reference(tuple(f"{target}/{value}" for target in targets))


def _date(text: str, context: _Context) -> Date:
    prefix, rest = _prefix(text)
    return Date(prefix, dates.interval(rest.replace(" ", "+")))  # a `+` that nobody escaped arrives as a space


# The exponent is bounded so that no arithmetic on it can overflow.
_NUMBER = re.compile(r"-?[0-9]{1,40}(?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,2})?")


def _number(text: str, context: _Context) -> Number:
    prefix, rest = _prefix(text)
    if not _NUMBER.fullmatch(rest):
        raise _invalid(context.name, "the value is not a number")
    value = Decimal(rest)
    exponent = value.as_tuple().exponent
    half = Decimal((0, (5,), int(exponent) - 1))
    return Number(prefix, float(value), float(value - half), float(value + half))


def _quantity(text: str, context: _Context) -> Quantity:
    parts = split(text, "|")
    if len(parts) not in {1, 3}:
        raise _invalid(context.name, "a quantity is written number or number|system|code")
    number = _number(parts[0], context)
    system, code = (unescape(part) or None for part in (*parts[1:], "", "")[:2])
    return Quantity(number, system, code)


def _text(text: str, context: _Context) -> Text:
    return Text(unescape(text))


def _typed(text: str, context: _Context) -> Typed:
    parts = [unescape(part) for part in split(text, "|")]
    if len(parts) != 3 or not parts[1] or not parts[2]:
        raise _invalid(context.name, "the value of :of-type is written system|code|value")
    return Typed(*parts)


# Source: FHIR R4 location, near: latitude|longitude|distance|units; kilometres where none are given
_DISTANCES = {"km": 1.0, "m": 0.001, "[mi_us]": 1.609347219, "[mi_i]": 1.609344, "mi": 1.609344, "ft": 0.0003048}
_DEFAULT_KM = "50"
_EARTH_KM = 6378.1


def _near(text: str, context: _Context) -> Near:
    latitude, longitude, distance, unit = ([unescape(part) for part in split(text, "|")] + [""] * 4)[:4]
    numbers = [latitude, longitude, distance or _DEFAULT_KM]
    if not all(_NUMBER.fullmatch(each) for each in numbers) or unit not in {"", *_DISTANCES}:
        known = ", ".join(_DISTANCES)
        raise _invalid(context.name, f"it is written latitude|longitude|distance|unit, with a unit of {known}")
    north, east, far = (float(each) for each in numbers)
    if abs(north) > 90 or abs(east) > 180 or not 0 <= far * _DISTANCES[unit or "km"] <= 20_000:
        raise _invalid(context.name, "latitude is -90 to 90, longitude -180 to 180, distance up to 20,000 km")
    return Near(north, east, far * _DISTANCES[unit or "km"] / _EARTH_KM)


def _missing(text: str, context: _Context) -> Missing:
    if text not in {"true", "false"}:
        raise _invalid(context.name, "the value of :missing is true or false")
    return Missing(text == "true")


def _composite(text: str, context: _Context) -> Composite:
    texts = split(text, "$")
    parameter = context.parameter
    if len(texts) != len(parameter.components):
        wanted = "$".join(code for code, _ in parameter.components)
        raise _invalid(context.name, f"a value is written {wanted}")
    parts = []
    for part, (code, expression), kind in zip(texts, parameter.components, parameter.component_types, strict=True):
        inner = Parameter(code, kind, "", expression)
        parts.append(_PARSERS[kind](part, context._replace(parameter=inner)))
    return Composite(tuple(parts))


def _prefix(text: str) -> tuple[str, str]:
    return (text[:2], text[2:]) if text[:2] in PREFIXES else ("eq", text)


_PARSERS: dict[str, Callable[[str, _Context], Value]] = {
    "token": _token,
    "reference": _reference,
    "date": _date,
    "number": _number,
    "quantity": _quantity,
    "string": _text,
    "uri": _text,
    "typed": _typed,
    "special": _near,
    "missing": _missing,
    "composite": _composite,
}


def escaped(text: str) -> str:
    """Return a value of a search that means this very text. Source: FHIR R4 search, escaping search parameters."""
    return re.sub(r"([\\,$|])", r"\\\1", text)
