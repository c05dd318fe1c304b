"""A query and a restriction become one MongoDB filter.

The restriction's demands are mandatory: they are compiled by the same code as the user's, kept apart from them, and
`restricted` refuses to answer (FORBIDDEN) when one of them is not in the result. One `$elemMatch`
per clause keeps the index bounds tight. Parameter codes come from the official definitions; what a value means is told
in `conditions`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from types import MappingProxyType
from typing import Any

from fhir_server.model.criteria import Clause, Date, Missing, Near, Text, Token
from fhir_server.model.fhirpath import leaf_types
from fhir_server.model.query import is_scalar_date
from fhir_server.model.resources import RESOURCES
from fhir_server.store.conditions import Filter, any_of, condition_of, date_condition, moment_condition, prefixed
from fhir_server.store.index import ARRAYS, CANONICAL, PHONETIC, sound
from imaging.errors import AppError, Category

POINT_TYPES = frozenset({"date", "dateTime", "instant"})
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


@dataclass(frozen=True, slots=True)
class Owned:
    """A demand that holds of what one of these subscribers brought.

    or_nobodys   also of what is the server's own, or came before it was kept who brought it
    """

    owners: tuple[str, ...]
    or_nobodys: bool = False


Demand = Clause | OneOf | Within | Owned
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
    if isinstance(demand, Owned):
        return {"owner": {"$in": [*demand.owners, *([None] if demand.or_nobodys else [])]}}
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
        return any_of([moment_condition("lastUpdated", value, now) for value in values if isinstance(value, Date)])
    if isinstance(values[0], Missing):
        return any_of([_missing(clause, value) for value in values if isinstance(value, Missing)])
    if isinstance(values[0], Near):
        return any_of([_near(value) for value in values if isinstance(value, Near)])
    if clause.type == "date" and clause.code in _scalars(resource_type):
        is_point = leaf_types(clause.definition(resource_type).expression, resource_type) <= POINT_TYPES
        found = [
            date_condition(value, now, clause.modifier, is_point=is_point)
            for value in values
            if isinstance(value, Date)
        ]
        return any_of([prefixed(f"sort.{clause.code}", condition) for condition in found])
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
        conditions = [condition_of(kind, clause.modifier, value, parts, now) for value in clause.values]
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
    return {"$nor": matches} if clause.modifier == "not" else any_of(matches)


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
