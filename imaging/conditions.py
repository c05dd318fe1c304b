"""Imaging conditions of an instance or a series: kVp, CTDIvol, TR, tracer, frequency ... with units and codes.

Hides where DICOM keeps them (top level, functional groups, nested modules), its units, and how the values of frames or
instances become one: equal values stay one value, different numbers become their range, different texts a list.
What is malformed is left out; reading never fails. The known conditions are the table in `imaging.conditions_table`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from pydicom.dataset import Dataset

from imaging.conditions_reading import (
    MALFORMED,
    MAX_VALUES,
    DatasetReader,
    Reader,
    ScannedReader,
    check_number,
    code_from_item,
    date_from_text,
    datetime_from_text,
    texts_from_text,
    time_from_text,
)
from imaging.conditions_table import CONDITIONS, CONTAINERS, Coded, Kind, Row
from imaging.values import Values

__all__ = [
    "CONDITIONS",
    "Coded",
    "Condition",
    "Range",
    "Value",
    "conditions",
    "conditions_from_document",
    "conditions_to_document",
    "merge",
]

MAX_DEPTH: Final = 6
"""Deepest nesting of sequences that is looked into: functional groups > macro > code sequence needs three."""

_BY_TAG: Final = {row.tag: row for row in CONDITIONS}
_BY_NAME: Final = {row.name: row for row in CONDITIONS}
_MODALITY, _TIMEZONE_OFFSET_FROM_UTC = 0x00080060, 0x00080201

MBQ_LIMIT: Final = 1e5
"""100 GBq: no dose given for imaging is larger, so a larger number cannot be in MBq."""


@dataclass(frozen=True, slots=True)
class Range:
    """The lowest and the highest of several numbers, in the unit of their condition."""

    low: float
    high: float


Single = int | float | str | Range | Coded
Value = Single | tuple[Single, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """One imaging condition.

    name    DICOM keyword in snake case
    value   a number, text, code, range of numbers, or a tuple of these where DICOM has several values; dates and times
            are ISO 8601 text
    unit    UCUM code; "1" for pure numbers, "" for what is not a number
    codes   what it means: a DICOM controlled term or LOINC where there is one, then the DICOM data element
    source  "(0018,0060) KVP"; for nested ones the sequences first
    """

    name: str
    value: Value
    unit: str
    codes: tuple[Coded, ...]
    source: str

    @property
    def code(self) -> Coded:
        """The code that says best what it is."""
        return self.codes[0]


def conditions(source: Dataset | Values) -> tuple[Condition, ...]:
    """Return the imaging conditions of one instance, in the order of the table; never raises on malformed values.

    Values of the frames of a multi-frame object are merged as `merge` does. Takes 0.1 ms for a CT image.
    """
    reader: Reader = ScannedReader(source) if isinstance(source, Values) else DatasetReader(source)
    walk = _Walk(reader)
    walk.into(reader, 0)
    return _in_order({name: _condition(_BY_NAME[name], value) for name, value in walk.found.items()})


def merge(series: Iterable[Iterable[Condition]]) -> tuple[Condition, ...]:
    """Return one set of conditions for many: equal values stay, numbers become their range, texts a sorted list.

    A list keeps the first 16 values of their order. Merging is associative, commutative and idempotent, so a merged
    set can be merged with that of the next instance, in any order and more than once. (Lists of equal length are merged
    place by place: pixel spacings stay row and column.)
    """
    merged: dict[str, Condition] = {}
    for group in series:
        for condition in group:
            known = merged.get(condition.name)
            if known is None:
                merged[condition.name] = condition
            elif known.value != condition.value:
                value = _combined(known.value, condition.value)
                merged[condition.name] = Condition(known.name, value, known.unit, known.codes, known.source)
    return _in_order(merged)


def conditions_to_document(conditions: Iterable[Condition]) -> list[dict[str, Any]]:
    """Return plain dicts: {"name": "kvp", "value": 120, "unit": "kV"}; codes and source follow from the name."""
    entries = []
    for condition in conditions:
        entry = {"name": condition.name, "value": _plain(condition.value)}
        entries.append(entry | {"unit": condition.unit} if condition.unit else entry)
    return entries


def conditions_from_document(document: Iterable[Mapping[str, Any]]) -> tuple[Condition, ...]:
    """Return what `conditions_to_document` was called on.

    What today's table does not know, or has in another unit, is left out: it comes back when the instance is read
    again.
    """
    found = {}
    for entry in document:
        row = _BY_NAME.get(entry["name"])
        if row is not None and row.unit == entry.get("unit", ""):
            found[row.name] = _condition(row, _value_from_plain(entry["value"]))
    return _in_order(found)


class _Walk:
    """Collects the values of one instance by name."""

    def __init__(self, root: Reader) -> None:
        self.found: dict[str, Value] = {}
        self._root = root

    def into(self, reader: Reader, depth: int) -> None:
        for tag in reader.tags():
            row = _BY_TAG.get(tag)
            if row is not None:
                self._read(row, reader)
            if tag in CONTAINERS and depth < MAX_DEPTH:
                self._descend(reader, tag, depth)

    def _descend(self, reader: Reader, tag: int, depth: int) -> None:
        try:
            items = list(reader.items(tag))
        except MALFORMED:
            return
        for item in items:
            self.into(item, depth + 1)

    def _read(self, row: Row, reader: Reader) -> None:
        try:
            value = self._value(row, reader)
        except MALFORMED:
            return
        if value is None:
            return
        known = self.found.get(row.name)
        if known is None:
            self.found[row.name] = value
        elif row.listed:
            self.found[row.name] = (*_several(known), *_several(value))[:MAX_VALUES]
        elif known != value:
            self.found[row.name] = _combined(known, value)

    def _value(self, row: Row, reader: Reader) -> Value | None:
        match row.kind:
            case Kind.NUMBER:
                numbers = tuple(self._number(row, number) for number in reader.numbers(row.tag))
                return Range(min(numbers), max(numbers)) if len(numbers) > MAX_VALUES else _one_or_all(numbers)
            case Kind.TEXT:
                return _one_or_all(texts_from_text(reader.text(row.tag)))
            case Kind.CODE:
                codes = (code_from_item(item) for item in reader.items(row.tag))
                return _one_or_all(tuple(dict.fromkeys(code for code in codes if code))[:MAX_VALUES])
            case _:
                return self._moment(row.kind, reader.text(row.tag))

    def _moment(self, kind: Kind, text: str) -> str | None:
        if not text:
            return None
        if kind is Kind.DATE:
            return date_from_text(text)
        if kind is Kind.TIME:
            return time_from_text(text)
        return datetime_from_text(text, self._root.text(_TIMEZONE_OFFSET_FROM_UTC))

    def _number(self, row: Row, number: int | float) -> int | float:
        factor = row.factor
        # PS3.3 C.8.4.10.1.7: MBq in Nuclear Medicine, Bq elsewhere; some scanners write Bq there too.
        if row.keyword == "RadionuclideTotalDose" and number <= MBQ_LIMIT and self._root.text(_MODALITY) == "NM":
            factor = 1e6
        # Twelve digits: more than a DS holds beside its sign and exponent, less than the noise of the multiplication.
        return check_number(number if factor == 1 else float(f"{number * factor:.12g}"))


def _condition(row: Row, value: Value) -> Condition:
    return Condition(row.name, value, row.unit, row.codes, row.source)


def _in_order(found: Mapping[str, Condition]) -> tuple[Condition, ...]:
    return tuple(found[row.name] for row in CONDITIONS if row.name in found)


def _one_or_all(values: tuple[Single, ...]) -> Value | None:
    if not values:
        return None
    return values[0] if len(values) == 1 else values


def _several(value: Value) -> tuple[Single, ...]:
    return value if isinstance(value, tuple) else (value,)


def _combined(a: Value, b: Value) -> Value:
    """Return what two different values have in common: a range, or the distinct texts and codes in order."""
    values = (*_several(a), *_several(b))
    if any(isinstance(value, str | Coded) for value in values):
        return tuple(sorted(set(values), key=_sort_key)[:MAX_VALUES])
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        return tuple(x if x == y else _span((x, y)) for x, y in zip(a, b, strict=True))
    return _span(values)


def _span(values: tuple[Single, ...]) -> Range:
    bounds = [value if isinstance(value, Range) else Range(value, value) for value in values if _is_numeric(value)]
    return Range(min(bound.low for bound in bounds), max(bound.high for bound in bounds))


def _is_numeric(value: Single) -> TypeGuard[int | float | Range]:
    return isinstance(value, int | float | Range)


def _sort_key(value: Single) -> tuple[str, str, str]:
    return (value.display, value.code, value.system) if isinstance(value, Coded) else (str(value), "", "")


def _plain(value: Value) -> Any:
    match value:
        case tuple():
            return [_plain(single) for single in value]
        case Range():
            return {"low": value.low, "high": value.high}
        case Coded():
            return {"system": value.system, "code": value.code, "display": value.display}
        case _:
            return value


def _value_from_plain(plain: Any) -> Value:
    match plain:
        case list():
            return tuple(_single_from_plain(single) for single in plain)
        case _:
            return _single_from_plain(plain)


def _single_from_plain(plain: Any) -> Single:
    match plain:
        case {"low": low, "high": high}:
            return Range(low, high)
        case {"system": system, "code": code, "display": display}:
            return Coded(system, code, display)
        case int() | float() | str():
            return plain
        case _:
            raise ValueError("no stored value of a condition")
