"""Values of FHIRPath: a node is (data type, value, the `_name` sibling of a primitive), a collection a list of nodes.

How nodes lead to their children, which type is which, and how values are compared. Pure.
Source: FHIRPath 2.0 (N1) 6.1, 6.2; FHIR R4 fhirpath, datatypes.
"""

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import cache
from typing import Any

from fhir_server.model import ucum
from fhir_server.model.definitions import elements, is_known_type, resource_types
from imaging.errors import AppError, Category

Node = tuple[str, Any, Any]
Nodes = list[Node]

_DATES = frozenset({"date", "dateTime", "instant", "time"})
# whose values are equal when their texts are
PLAIN = frozenset({"string", "code", "id", "markdown", "uri", "url", "canonical", "uuid", "oid"})
_PARENTS: Mapping[str, str] = {
    "code": "string",
    "id": "string",
    "markdown": "string",
    "url": "uri",
    "canonical": "uri",
    "uuid": "uri",
    "oid": "uri",
    "positiveInt": "integer",
    "unsignedInt": "integer",
    "Age": "Quantity",
    "Count": "Quantity",
    "Distance": "Quantity",
    "Duration": "Quantity",
    "SimpleQuantity": "Quantity",
    "MoneyQuantity": "Quantity",
}
_NOT_DOMAIN = frozenset({"Binary", "Bundle", "Parameters"})


def node_of(resource: dict[str, Any]) -> Node:
    """Return a resource as a node."""
    return (str(resource.get("resourceType", "")), resource, None)


def primitive(kind: str, value: Any) -> Nodes:
    """Return a value that an expression computed."""
    return [(kind, value, None)]


def boolean(value: bool | None) -> Nodes:
    """Return a truth value; nothing for one that is not known."""
    return [] if value is None else [("boolean", value, None)]


def truth(nodes: Nodes) -> bool | None:
    """Return what a collection means as a criterion: a single value that is no boolean is true."""
    if not nodes:
        return None
    if len(nodes) > 1:
        raise AppError(Category.INVALID, "an expression gives several values where one is wanted", where="expression")
    kind, value, _ = nodes[0]
    return value if kind == "boolean" and isinstance(value, bool) else True


def children(node: Node, name: str) -> Nodes:
    """Return the children of one name, in document order."""
    kind, value, sibling = node
    holder = value if isinstance(value, dict) else sibling
    if not isinstance(holder, dict):
        return []
    if not isinstance(value, dict):
        kind = "Element"
    found: Nodes = []
    for key, child in steps(kind, name):
        item, extra = holder.get(key), holder.get(f"_{key}")
        if isinstance(item, list) or (item is None and isinstance(extra, list)):
            others = extra if isinstance(extra, list) else []
            items = item if isinstance(item, list) else [None] * len(others)
            for position, one in enumerate(items):
                beside = others[position] if position < len(others) else None
                if one is not None or beside is not None:
                    found.append((_actual(child, one), one, beside))
        elif item is not None or extra is not None:
            found.append((_actual(child, item), item, extra))
    return found


def every_child(node: Node) -> Nodes:
    """Return all children of a node."""
    kind, value, sibling = node
    holder = value if isinstance(value, dict) else sibling
    if not isinstance(holder, dict):
        return []
    names = _names(kind if isinstance(value, dict) else "Element")
    present = dict.fromkeys(names.get(key.removeprefix("_"), key.removeprefix("_")) for key in holder)
    return [child for name in present if name != "resourceType" for child in children((kind, value, sibling), name)]


def descendants(nodes: Nodes) -> Iterator[Node]:
    """Yield everything below, level by level within each node."""
    for node in nodes:
        for child in every_child(node):
            yield child
            yield from descendants([child])


@cache
def steps(kind: str, name: str) -> tuple[tuple[str, str], ...]:
    """Return (JSON name, data type) of each way that an element may be there; its name alone for unknown types."""
    known = elements(kind)
    if not known:
        return ((name, ""),)
    if name in known:
        types = known[name].types
        return ((name, types[0] if types else ""),)
    choice = known.get(f"{name}[x]")
    if choice is None:
        return ()
    return tuple((name + one[:1].upper() + one[1:], one) for one in choice.types)


@cache
def _names(kind: str) -> Mapping[str, str]:
    """Return the element name of each JSON name of a choice."""
    choices = (name.removesuffix("[x]") for name in elements(kind) if name.endswith("[x]"))
    return {key: name for name in choices for key, _ in steps(kind, name)}


def _actual(kind: str, value: Any) -> str:
    if kind == "Resource" and isinstance(value, dict):
        return str(value.get("resourceType", kind))
    return kind


@cache
def is_type(kind: str, wanted: str) -> bool:
    """Say whether a data type is the wanted one or a kind of it. Search expressions write some with a capital."""
    name = wanted.removeprefix("FHIR.")
    if name.startswith("System."):
        name = name.removeprefix("System.")
        name = name if name == "Quantity" else name[:1].lower() + name[1:]
    if kind.lower() == name.lower():
        return True
    if kind in _PARENTS:
        return is_type(_PARENTS[kind], name)
    if kind in resource_types():
        return name == "Resource" or (name == "DomainResource" and kind not in _NOT_DOMAIN)
    return name == "Element" or (name == "BackboneElement" and "." in kind)


def check_type(name: str) -> str:
    """Return the name of a type that exists. Raises INVALID."""
    plain = name.removeprefix("FHIR.").removeprefix("System.")
    if not any(is_known_type(each) for each in (plain, plain[:1].lower() + plain[1:])):
        raise AppError(Category.INVALID, f"an expression names the unknown type {plain[:40]}", where="expression")
    return name


# --- comparison


def equal(left: Node, right: Node) -> bool | None:
    """Say whether two values are the same; None when their precision leaves it open."""
    (kind, one, _), (other_kind, other, _) = left, right
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if _is_number(one) and _is_number(other):
        return bool(one == other)
    if isinstance(one, str) and isinstance(other, str):
        if kind in _DATES or other_kind in _DATES:
            compared = _compared_dates(one, other)
            return None if compared is None else compared == 0
        return one == other
    if isinstance(one, dict) and isinstance(other, dict):
        if is_type(kind, "Quantity") and is_type(other_kind, "Quantity"):
            converted = _quantities(one, other)
            return converted is not None and abs(converted[0] - converted[1]) <= 1e-9 * abs(converted[0])
        return one == other
    return False


def equivalent(left: Node, right: Node) -> bool:
    """Say whether two values mean the same: strings without case and white space, numbers as equal."""
    (_, one, _), (_, other, _) = left, right
    if isinstance(one, str) and isinstance(other, str):
        return " ".join(one.lower().split()) == " ".join(other.lower().split())
    return equal(left, right) is True


def compare(left: Node, right: Node) -> int | None:
    """Return -1, 0 or 1; None when it cannot be said. Raises INVALID for values that have no order."""
    (kind, one, _), (other_kind, other, _) = left, right
    if one is None or other is None:
        return None
    if _is_number(one) and _is_number(other):
        return bool(one > other) - bool(one < other)
    if isinstance(one, str) and isinstance(other, str):
        if kind in _DATES or other_kind in _DATES:
            return _compared_dates(one, other)
        return bool(one > other) - bool(one < other)
    if isinstance(one, dict) and isinstance(other, dict):
        converted = _quantities(one, other)
        return None if converted is None else bool(converted[0] > converted[1]) - bool(converted[0] < converted[1])
    raise AppError(Category.INVALID, "an expression compares values that have no order", where="expression")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _quantities(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, float] | None:
    """Return both values in one unit, None when they have none in common."""
    left, right = one.get("value"), other.get("value")
    if left is None or right is None:
        return None
    codes = [_code(each) for each in (one, other)]
    if codes[0] == codes[1]:
        return float(left), float(right)
    try:
        units = [ucum.parse(code) for code in codes]
    except AppError:
        return None
    if units[0].dimension != units[1].dimension:
        return None
    return units[0].measured(left), units[1].measured(right)


def _code(quantity: dict[str, Any]) -> str:
    code = str(quantity.get("code", quantity.get("unit", "1")))
    return _CALENDAR.get(code.removesuffix("s"), code)


_CALENDAR = {
    "year": "a",
    "month": "mo",
    "week": "wk",
    "day": "d",
    "hour": "h",
    "minute": "min",
    "second": "s",
    "millisecond": "ms",
}
_PARTS = re.compile(
    r"(?:(\d{4})(?:-(\d\d)(?:-(\d\d))?)?)?(?:T?(\d\d)(?::(\d\d)(?::(\d\d(?:\.\d+)?))?)?)?(Z|[+-]\d\d:\d\d)?"
)


def _compared_dates(one: str, other: str) -> int | None:
    """Compare part by part; where one has a part that the other lacks, nothing can be said."""
    left, right = _PARTS.fullmatch(one), _PARTS.fullmatch(other)
    if left is None or right is None:
        return bool(one > other) - bool(one < other)
    first, second = _shifted(left), _shifted(right)
    for mine, theirs in zip(first, second, strict=True):
        if mine is None and theirs is None:
            return 0
        if mine is None or theirs is None:
            return None
        if mine != theirs:
            return 1 if mine > theirs else -1
    return 0


def _shifted(match: re.Match[str]) -> list[float | None]:
    """Return year to second, in UTC where a zone is written."""
    parts = [float(part) if part is not None else None for part in match.groups()[:6]]
    zone = match[7]
    if zone in {None, "Z"} or parts[3] is None or parts[0] is None:
        return parts
    from datetime import datetime, timedelta

    whole = [int(part or 0) for part in parts]
    offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[4:6]))
    try:
        moment = datetime(whole[0], whole[1], whole[2], whole[3], whole[4])
        moment = moment - offset if zone.startswith("+") else moment + offset
    except (ValueError, OverflowError):
        return parts
    fine = [moment.year, moment.month, moment.day, moment.hour, moment.minute]
    return [*(float(part) for part in fine), parts[5]]
