"""A query and a restriction become one MongoDB filter.

The restriction's demands are mandatory: they are compiled by the same code as the user's, kept apart from them, and
`compile_query` refuses to answer (FORBIDDEN) when one of them is not in the result.
One `$elemMatch` per clause keeps the index bounds tight. Values never become operators or field names: parameter codes
come from the official definitions, values are always operands.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from types import MappingProxyType
from typing import Any

from fhir_server.model import dates
from fhir_server.model.criteria import (
    Clause,
    Composite,
    Date,
    Missing,
    Near,
    Number,
    Quantity,
    Reference,
    Text,
    Token,
    Typed,
    Value,
)
from fhir_server.model.fhirpath import leaf_types
from fhir_server.model.query import Query, is_scalar_date
from fhir_server.model.resources import RESOURCES
from fhir_server.store.index import ARRAYS, CANONICAL, PARTS, PHONETIC, base_units, canonical, fold, sound
from imaging.errors import AppError, Category

Filter = dict[str, Any]

DAY = timedelta(days=1)
WIDEST_POINT = timedelta(days=366)  # how much time a partial date such as `2012` may cover
POINT_TYPES = frozenset({"date", "dateTime", "instant"})
LAST_CHARACTER = "\U0010ffff"
NOTHING: Filter = {"_id": {"$in": []}}


class Verdict(Enum):
    """Access that needs no look at the resource."""

    ALLOW = "allow"
    DENY = "deny"


ALLOW, DENY = Verdict.ALLOW, Verdict.DENY


@dataclass(frozen=True, slots=True)
class OneOf:
    """A demand that holds where all demands of one of its alternatives hold; without alternatives it never does."""

    alternatives: "tuple[tuple[Demand, ...], ...]"


@dataclass(frozen=True, slots=True)
class Within:
    """A demand that holds of what is in one of these compartments, `Patient/1`."""

    compartments: tuple[str, ...]


Demand = Clause | OneOf | Within
NEVER = OneOf(())
Access = Verdict | tuple[Demand, ...]  # demands: allowed where all of them hold


def both(*accesses: Access) -> Access:
    """Return what all of them allow."""
    if DENY in accesses:
        return DENY
    demands = [demand for access in accesses if isinstance(access, tuple) for demand in access or (NEVER,)]
    return tuple(dict.fromkeys(demands)) or ALLOW


def either(*accesses: Access) -> Access:
    """Return what any of them allows."""
    if ALLOW in accesses:
        return ALLOW
    alternatives = tuple(dict.fromkeys(access for access in accesses if isinstance(access, tuple) and access))
    if len(alternatives) < 2:
        return alternatives[0] if alternatives else DENY
    return (OneOf(alternatives),)


class Act(Enum):
    """What a restriction is asked about.

    READ     one resource whose id is known: its versions, and what comes along with others or is referred to
    SEARCH   to look for resources, to have them decide about others, to see what happened to a type
    """

    READ = "read"
    SEARCH = "search"
    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Rule:
    """What may be done with one resource type; `search` None: what may be read may be searched for."""

    read: Access = DENY
    create: Access = DENY
    update: Access = DENY
    delete: Access = DENY
    search: Access | None = None


@dataclass(frozen=True, slots=True)
class Restriction:
    """What one principal may do, by resource type; what is not named falls under `default`."""

    rules: Mapping[str, Rule] = field(default_factory=lambda: MappingProxyType({}))
    default: Rule = Rule()

    def access(self, resource_type: str, act: Act) -> Access:
        """Return the access of an act on a type. An empty tuple of demands counts as DENY: it would allow all."""
        rule = self.rules.get(resource_type, self.default)
        found: Access | None = getattr(rule, act.value)
        if found is None:
            found = rule.read
        return found or DENY

    def require(self, resource_type: str, act: Act) -> tuple[Demand, ...]:
        """Return the mandatory demands, none for ALLOW. Raises FORBIDDEN for DENY."""
        found = self.access(resource_type, act)
        if isinstance(found, tuple):
            return found
        if found is DENY:
            raise AppError(Category.FORBIDDEN, f"you may not {act.value} {resource_type} resources")
        return ()


UNRESTRICTED = Restriction(default=Rule(ALLOW, ALLOW, ALLOW, ALLOW))


def compile_query(query: Query, mandatory: tuple[Demand, ...], now: datetime) -> Filter:
    """Return the filter of a query of one type, none of whose criteria leads to other resources."""
    wanted = [compile_clause(query.type, clause, now) for clause in query.clauses if isinstance(clause, Clause)]
    return restricted(query.type, mandatory, wanted, now)


def restricted(resource_type: str, mandatory: tuple[Demand, ...], wanted: list[Filter], now: datetime) -> Filter:
    """Return one filter of what is wanted within mandatory clauses. Raises FORBIDDEN when one of those is lost."""
    required = [compile_demand(resource_type, demand, now) for demand in mandatory]
    compiled: Filter = {"$and": [{"type": resource_type}, *required, *wanted]}
    check_mandatory(compiled, resource_type, mandatory, now)
    return compiled


def check_mandatory(compiled: Filter, resource_type: str, mandatory: tuple[Demand, ...], now: datetime) -> None:
    """Raise FORBIDDEN unless the filter demands the type and every mandatory clause at its top."""
    demands = compiled.get("$and", [])
    wanted = [{"type": resource_type}, *(compile_demand(resource_type, demand, now) for demand in mandatory)]
    if any(demand not in demands for demand in wanted):
        raise AppError(Category.FORBIDDEN, "the search would leave what you may see", where=resource_type)


def contained(resource_type: str, wanted: list[Filter]) -> Filter:
    """Return the filter of resources that contain one of the type for which all of the filters hold."""
    return {"inside": {"$exists": True, "$elemMatch": {"$and": [{"t": resource_type}, *map(of_contained, wanted)]}}}


def of_contained(wanted: Filter) -> Filter:
    """Return a filter of resources as one of the rows of a contained resource, which has an id and no `_id`."""
    found: Filter = {}
    for name, item in wanted.items():
        if name == "_id":
            found["i"] = {"$in": [key.partition("/")[2] for key in item["$in"]]}
        else:
            found[name] = [of_contained(part) for part in item] if name in {"$and", "$or", "$nor"} else item
    return found


def compile_demand(resource_type: str, demand: Demand, now: datetime) -> Filter:
    """Return the filter of one mandatory demand. Raises FORBIDDEN for an alternative that demands nothing."""
    if isinstance(demand, Clause):
        return compile_clause(resource_type, demand, now)
    if isinstance(demand, Within):
        return {"compartments": {"$in": list(demand.compartments)}}
    if not all(demand.alternatives):
        raise AppError(Category.FORBIDDEN, "what you may see is not known", where=resource_type)
    either = [[compile_demand(resource_type, part, now) for part in parts] for parts in demand.alternatives]
    return {"$or": [parts[0] if len(parts) == 1 else {"$and": parts} for parts in either]} if either else NOTHING


def compile_clause(resource_type: str, clause: Clause, now: datetime) -> Filter:
    """Return the filter of one clause. `now` is what `ap` measures the distance of dates from."""
    values = clause.values
    if clause.code == "_id":
        return {"_id": {"$in": [f"{resource_type}/{value.code}" for value in values if isinstance(value, Token)]}}
    if clause.code == "_lastUpdated":
        return _any([_moment("lastUpdated", value, now) for value in values if isinstance(value, Date)])
    if isinstance(values[0], Missing):
        return _any([_missing(clause, value) for value in values if isinstance(value, Missing)])
    if isinstance(values[0], Near):
        return _any([_near(value) for value in values if isinstance(value, Near)])
    if clause.type == "date" and clause.code in _scalars(resource_type):
        is_point = leaf_types(clause.definition(resource_type).expression, resource_type) <= POINT_TYPES
        found = [_date(value, now, clause.modifier, is_point=is_point) for value in values if isinstance(value, Date)]
        return _any([_prefixed(f"sort.{clause.code}", condition) for condition in found])
    return _elements(resource_type, clause, now)


def _near(value: Near) -> Filter:
    return {"near": {"$geoWithin": {"$centerSphere": [[value.longitude, value.latitude], value.radius]}}}


def _elements(resource_type: str, clause: Clause, now: datetime) -> Filter:
    kind, code = clause.type, clause.code
    if clause.modifier in _SIDE_ROWS:
        kind, code = _SIDE_ROWS[clause.modifier], f"{code}:{clause.modifier}"
    parts = clause.definition(resource_type).component_types
    if code == PHONETIC:
        conditions: list[Filter] = [
            {"v": {"$in": [sound(word) for word in value.text.split()]}}
            for value in clause.values
            if isinstance(value, Text)
        ]
    else:
        conditions = [_condition(kind, clause.modifier, value, parts, now) for value in clause.values]
    if _has_implied_system(resource_type, clause):
        conditions = [{name: item for name, item in condition.items() if name != "s"} for condition in conditions]
    if kind == "quantity":
        conditions = [_apart(code, condition) for condition in conditions]
    if clause.modifier == "differs":
        conditions = [{"$nor": [condition]} for condition in conditions]
    else:  # alternatives within one element would hide the bounds of an index scan
        conditions = [part for condition in conditions for part in _alternatives(condition)]
    # `$exists` lets the planner use the index, which holds only documents that have the array.
    matches: list[Filter] = [
        {ARRAYS[kind]: {"$exists": True, "$elemMatch": {"p": code, **condition}}} for condition in _merged(conditions)
    ]
    return {"$nor": matches} if clause.modifier == "not" else _any(matches)


def _alternatives(condition: Filter) -> list[Filter]:
    found: list[Filter] = condition["$or"] if condition.keys() == {"$or"} else [condition]
    return found


def _apart(code: str, condition: Filter) -> Filter:
    """Return the condition on a quantity where rows in base units lie apart from those in the units as they came."""
    system = condition.get("s")
    rest = {name: item for name, item in condition.items() if name != "s"}
    if system == CANONICAL:
        return {**rest, "p": f"{code}:{CANONICAL}"}
    return rest if isinstance(system, dict) else condition


# modifier -> search type of the rows that were made for it, under the code `parameter:modifier`
_SIDE_ROWS = {"text": "string", "identifier": "token", "of-type": "token"}


def _condition(kind: str, modifier: str, value: Value, parts: tuple[str, ...], now: datetime) -> Filter:
    """Return what a row must satisfy. `parts` are the search types of a composite's components."""
    if isinstance(value, Date):
        return _date(value, now, modifier, is_point=False)
    if isinstance(value, Text):
        return _uri(value.text, modifier) if kind == "uri" else _text(value, modifier)
    if isinstance(value, Reference) and modifier in _OF_VERSIONS:
        return _any([_OF_VERSIONS[modifier](text) for text in value.candidates])
    if isinstance(value, Composite):
        found = [_condition(part, "", item, (), now) for part, item in zip(parts, value.parts, strict=True)]
        return _all([_prefixed(name, condition) for name, condition in zip(PARTS, found, strict=False)])
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


def _date(value: Date, now: datetime, modifier: str, *, is_point: bool) -> Filter:
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


def _moment(name: str, value: Date, now: datetime) -> Filter:
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


def _missing(clause: Clause, value: Missing) -> Filter:
    array = ARRAYS[clause.type]
    found = {array: {"$exists": True, "$elemMatch": {"p": clause.code}}}
    return {"$nor": [found]} if value.is_missing else found


def _merged(conditions: list[Filter]) -> list[Filter]:
    """Merge conditions that differ only in a plain `c`, `r` or `u` into one with `$in`."""
    groups: dict[tuple[Any, ...], tuple[Filter, str, list[Any]]] = {}
    rest: list[Filter] = []
    for condition in conditions:
        name = next((name for name in "cru" if name in condition), None)
        others = {key: item for key, item in condition.items() if key != name}
        operand = condition.get(name or "")
        is_range = isinstance(operand, dict) and "$in" not in operand
        if name is None or is_range or any(isinstance(item, dict | list) for item in others.values()):
            rest.append(condition)
            continue
        values = operand["$in"] if isinstance(operand, dict) else [operand]
        group = groups.setdefault((name, *sorted(others.items(), key=repr)), (others, name, []))
        group[2].extend(values)
    merged = [
        {name: values[0] if len(values) == 1 else {"$in": values}, **others} for others, name, values in groups.values()
    ]
    return merged + rest


def _has_implied_system(resource_type: str, clause: Clause) -> bool:
    """Say whether the parameter's element is a `code`, whose system its definition implies; then any is accepted."""
    if clause.type != "token" or clause.modifier not in {"", "not"}:
        return False
    types = leaf_types(clause.definition(resource_type).expression, resource_type)
    return bool(types) and types <= {"code", "boolean"}


def _scalars(resource_type: str) -> frozenset[str]:
    row = RESOURCES.get(resource_type)
    return frozenset(code for code in (row.sorts if row else ()) if is_scalar_date(resource_type, code))


def _prefixed(prefix: str, condition: Filter) -> Filter:
    """Return the condition with its field names under a prefix."""
    return {
        (key if key.startswith("$") else f"{prefix}.{key}"): (
            [_prefixed(prefix, part) for part in item] if key.startswith("$") else item
        )
        for key, item in condition.items()
    }


def _all(conditions: list[Filter]) -> Filter:
    """Return one condition that demands all; plain fields stay on top, where they bound an index scan."""
    plain = {name: item for condition in conditions for name, item in condition.items() if not name.startswith("$")}
    rest = [{name: item} for condition in conditions for name, item in condition.items() if name.startswith("$")]
    return {**plain, "$and": rest} if rest else plain


def _any(filters: list[Filter]) -> Filter:
    return filters[0] if len(filters) == 1 else {"$or": filters}


def _shift(moment: datetime, step: timedelta) -> datetime:
    try:
        return moment + step
    except OverflowError:
        return dates.LATEST if step > timedelta(0) else dates.EARLIEST
