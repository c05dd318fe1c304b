"""What a row, or a field that holds one moment, has to satisfy for a value of a search criterion. Pure.

Values never become operators or field names: they are always operands. Conditions are bounds on the fields that are
indexed wherever the meaning allows it. Source: FHIR R4 search 3.1.1.4.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from fhir_server.model import dates
from fhir_server.model.criteria import Composite, Date, Number, Quantity, Reference, Text, Token, Typed, Value
from fhir_server.store.index import CANONICAL, PARTS, base_units, canonical, fold

Filter = dict[str, Any]

DAY = timedelta(days=1)
WIDEST_POINT = timedelta(days=366)  # how much time a partial date such as `2012` may cover
LAST_CHARACTER = "\U0010ffff"


def condition_of(kind: str, modifier: str, value: Value, parts: tuple[str, ...], now: datetime) -> Filter:
    """Return what a row must satisfy. `parts` are the search types of a composite's components."""
    if isinstance(value, Date):
        return date_condition(value, now, modifier, is_point=False)
    if isinstance(value, Text):
        return _uri(value.text, modifier) if kind == "uri" else _text(value, modifier)
    if isinstance(value, Reference) and modifier in _OF_VERSIONS:
        return any_of([_OF_VERSIONS[modifier](text) for text in value.candidates])
    if isinstance(value, Composite):
        found = [condition_of(part, "", item, (), now) for part, item in zip(parts, value.parts, strict=True)]
        return _all([prefixed(name, condition) for name, condition in zip(PARTS, found, strict=False)])
    return _CONDITIONS[type(value)](value)


def _token(value: Token) -> Filter:
    condition: Filter = {}
    if value.code is not None:
        condition["c"] = value.code
    if value.system is not None:
        condition["s"] = value.system or None  # None also matches an absent field
    return condition


def _typed(value: Typed) -> Filter:
    return {"s": value.system, "c": f"{value.code}|{value.value}"}


def _reference(value: Reference) -> Filter:
    return {"r": {"$in": list(value.candidates)}}


def _version_below(text: str) -> Filter:
    """Return the condition on canonical references of this version or one of its parts: `url|1` has `url|1.5`."""
    url, mark, version = text.partition("|")
    if not mark:
        return {"r": {"$in": [url]}}
    return {"$or": [{"r": text}, {"r": {"$gte": f"{url}|{version}.", "$lt": f"{url}|{version}." + LAST_CHARACTER}}]}


def _version_above(text: str) -> Filter:
    url, mark, version = text.partition("|")
    numbers = version.split(".") if mark else []
    return {"r": {"$in": [f"{url}|{'.'.join(numbers[:length])}" for length in range(1, len(numbers) + 1)] or [url]}}


_OF_VERSIONS: Mapping[str, Callable[[str], Filter]] = {"below": _version_below, "above": _version_above}


def _uri(text: str, modifier: str) -> Filter:
    if modifier == "below":
        under = text.rstrip("/") + "/"
        return {"$or": [{"u": text}, {"u": {"$gte": under, "$lt": under + LAST_CHARACTER}}]}
    if modifier == "above":
        scheme, mark, rest = text.partition("://")
        steps = rest.rstrip("/").split("/")
        above = [f"{scheme}{mark}{'/'.join(steps[:length])}" for length in range(1, len(steps) + 1)] if mark else []
        return {"u": {"$in": list(dict.fromkeys([text, *above, *(f"{each}/" for each in above)]))}}
    if modifier == "starts":
        return {"u": {"$gte": text, "$lt": text + LAST_CHARACTER}}
    return {"u": text}


def _text(value: Text, modifier: str) -> Filter:
    folded = fold(value.text)
    if modifier == "exact":
        return {"v": folded, "e": value.text}
    if modifier in {"equals", "differs"}:
        return {"v": folded}
    if modifier in {"contains", "ends"}:
        return {"v": {"$regex": re.escape(folded) + ("$" if modifier == "ends" else "")}}
    return {"v": {"$gte": folded, "$lt": folded + LAST_CHARACTER}}


def _number(value: Number) -> Filter:
    """Return the condition on rows of numbers. A range has a second row with its high end as `l` and without `h`, so
    that `gt` and `ge`, which any part of a range may satisfy, are bounds on `l` too, the field that is indexed.
    """
    exact = value.value
    margin = abs(exact) / 10
    by_prefix: dict[str, Filter] = {
        "eq": {"l": {"$gte": value.low, "$lt": value.high}, "h": {"$lt": value.high}},
        "ne": {"$or": [{"l": {"$lt": value.low}}, {"h": {"$gte": value.high}}]},
        "gt": {"l": {"$gt": exact}},
        "lt": {"l": {"$lt": exact}},
        "ge": {"l": {"$gte": exact}},
        "le": {"l": {"$lte": exact}},
        "sa": {"l": {"$gt": exact}, "h": {"$exists": True}},
        "eb": {"l": {"$lt": exact}, "h": {"$lt": exact}},
        "ap": {"l": {"$lte": max(exact + margin, value.high)}, "h": {"$gte": min(exact - margin, value.low)}},
    }
    return by_prefix[value.prefix]


def _quantity(value: Quantity) -> Filter:
    unit = base_units(value.system, value.code)
    if unit is not None:
        return {**_number(canonical(value.number, unit)), "s": CANONICAL, "c": unit.dimension}
    condition = _number(value.number)
    if value.system is not None:
        return {**condition, "s": value.system, **({} if value.code is None else {"c": value.code})}
    condition = {**condition, "s": {"$ne": CANONICAL}}
    return condition if value.code is None else _all([condition, {"$or": [{"c": value.code}, {"u": value.code}]}])


_CONDITIONS: dict[type, Callable[[Any], Filter]] = {
    Token: _token,
    Reference: _reference,
    Typed: _typed,
    Number: _number,
    Quantity: _quantity,
}


def date_condition(value: Date, now: datetime, modifier: str, *, is_point: bool) -> Filter:
    """Return the condition on `l` and `h` of a stored interval. Source: FHIR R4 search 3.1.1.4.5.

    is_point    stored intervals are those of single dates, so that a bound on `h` is nearly one on `l`
    """
    low, high = value.interval
    if modifier == "overlaps":
        return {"l": {"$lt": high}, "h": {"$gt": low}}
    beyond: Filter = {"h": {"$gt": high}}
    by_prefix: dict[str, Filter] = {
        "eq": {"l": {"$gte": low, "$lt": high}, "h": {"$lte": high}},
        "ne": {"$or": [{"l": {"$lt": low}}, beyond]},
        "gt": _reaching(high, beyond, beyond) if is_point else beyond,
        "lt": {"l": {"$lt": low}},
        "ge": {"h": {"$gt": low}, "$or": [beyond, {"l": {"$gte": low}}]},
        "le": {"l": {"$lt": high}, "$or": [{"l": {"$lt": low}}, {"h": {"$lte": high}}]},
        "sa": {"l": {"$gte": high}},
        "eb": {"l": {"$lt": low}, "h": {"$lte": low}},
        "ap": _around(low, high, abs(now - low) / 10),
    }
    if value.prefix == "ge" and is_point:
        return _reaching(low, {"$or": [beyond, {"l": {"$gte": low}}]}, beyond)
    return by_prefix[value.prefix]


def _reaching(bound: datetime, fine: Filter, coarse: Filter) -> Filter:
    """Return the condition on dates that end behind a bound, with tight bounds on where they begin.

    A date with a day is at most a day long; a coarser one begins with a month, so its possible beginnings are few.
    """
    earliest = _shift(bound, -WIDEST_POINT)
    first = earliest.year * 12 + earliest.month - 1  # months since the year 0
    months = [divmod(number, 12) for number in range(first, first + 14)]
    starts = [datetime(year, month + 1, 1, tzinfo=UTC) for year, month in months if year <= dates.LATEST.year]
    return {"$or": [{"l": {"$gte": _shift(bound, -DAY)}, **fine}, {"l": {"$in": starts}, **coarse}]}


def _around(low: datetime, high: datetime, margin: timedelta) -> Filter:
    return {"l": {"$lt": _shift(high, margin)}, "h": {"$gt": _shift(low, -margin)}}


def moment_condition(name: str, value: Date, now: datetime) -> Filter:
    """Return the condition on a field that holds one moment, of which every precision is known."""
    low, high = value.interval
    margin = abs(now - low) / 10
    by_prefix: dict[str, Filter] = {
        "eq": {name: {"$gte": low, "$lt": high}},
        "ne": {"$or": [{name: {"$lt": low}}, {name: {"$gte": high}}]},
        "gt": {name: {"$gte": high}},
        "lt": {name: {"$lt": low}},
        "ge": {name: {"$gte": low}},
        "le": {name: {"$lt": high}},
        "sa": {name: {"$gte": high}},
        "eb": {name: {"$lt": low}},
        "ap": {name: {"$gte": _shift(low, -margin), "$lt": _shift(high, margin)}},
    }
    return by_prefix[value.prefix]


def prefixed(prefix: str, condition: Filter) -> Filter:
    """Return the condition with its field names under a prefix."""
    return {
        (key if key.startswith("$") else f"{prefix}.{key}"): (
            [prefixed(prefix, part) for part in item] if key.startswith("$") else item
        )
        for key, item in condition.items()
    }


def _all(conditions: list[Filter]) -> Filter:
    """Return one condition that demands all; plain fields stay on top, where they bound an index scan."""
    plain = {name: item for condition in conditions for name, item in condition.items() if not name.startswith("$")}
    rest = [{name: item} for condition in conditions for name, item in condition.items() if name.startswith("$")]
    return {**plain, "$and": rest} if rest else plain


def any_of(filters: list[Filter]) -> Filter:
    """Return one filter, or condition, that demands one of several."""
    return filters[0] if len(filters) == 1 else {"$or": filters}


def _shift(moment: datetime, step: timedelta) -> datetime:
    try:
        return moment + step
    except OverflowError:
        return dates.LATEST if step > timedelta(0) else dates.EARLIEST
