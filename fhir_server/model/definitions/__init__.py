"""The official FHIR R4 (4.0.1) definitions, compacted: structure, search parameters, compartments, terminology.

Read from the package on first use and kept; everything here is immutable to its callers.
"""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import orjson

FHIR_VERSION = "4.0.1"
ANCESTORS = ("Resource", "DomainResource")
NOT_DOMAIN_RESOURCES = frozenset({"Binary", "Bundle", "Parameters"})


@dataclass(frozen=True, slots=True)
class Parameter:
    """One search parameter as it applies to one resource type."""

    code: str
    type: str  # token, reference, string, date, number, quantity, uri, composite
    url: str
    expression: str  # FHIRPath; only the branches that apply to the resource type
    targets: tuple[str, ...] = ()  # resource types a reference may point to; empty: any
    components: tuple[tuple[str, str], ...] = ()  # (code, expression) of the parts of a composite
    component_types: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a type: its data types, and how it may occur."""

    name: str  # ends in `[x]` for a choice of types
    types: tuple[str, ...]  # a backbone element's type is its own path
    is_array: bool
    in_summary: bool
    targets: tuple[str, ...]  # resource types its references may point to
    minimum: int
    binding: str = ""  # the value set whose codes alone are allowed


@dataclass(frozen=True, slots=True)
class Constraint:
    """An invariant: an expression that has to hold, and what it means in words."""

    key: str
    severity: str  # error or warning
    text: str
    expression: str


def load(name: str) -> Any:
    """Return the parsed content of one definition file, such as `structure`."""
    packed = files(__name__).joinpath(f"{name}.json.gz").read_bytes()
    return orjson.loads(gzip.decompress(packed))


@cache
def elements(type_or_path: str) -> Mapping[str, Element]:
    """Return the elements of a data type, resource type or backbone path; empty for primitives and unknown ones."""
    rows = _structure()["elements"].get(type_or_path, {})
    return {
        name: Element(name, tuple(types), is_array, in_summary, tuple(targets), minimum, binding)
        for name, (types, is_array, in_summary, targets, minimum, binding) in rows.items()
    }


@cache
def constraints(type_or_path: str) -> tuple[Constraint, ...]:
    """Return the invariants of the values of a type, or of one element."""
    return tuple(Constraint(*row) for row in _structure()["constraints"].get(type_or_path, ()))


@cache
def primitives() -> Mapping[str, str]:
    """Return the regular expressions of the primitive types that have one."""
    found: Mapping[str, str] = _structure()["forms"]
    return found


@cache
def is_known_type(name: str) -> bool:
    """Say whether this is a data type or a resource type, abstract ones included."""
    return "." not in name and name in _structure()["elements"]


@cache
def required_codes(value_set: str) -> Mapping[str, frozenset[str]] | None:
    """Return the codes of a value set that some element requires, by system; None for one that has no list of codes."""
    found = _bindings().get(value_set)
    return None if found is None else {system: frozenset(codes) for system, codes in found.items()}


@cache
def resource_types() -> frozenset[str]:
    """Return the names of all R4 resource types that can be instantiated."""
    return frozenset(_structure()["resources"])


@cache
def parameters(resource_type: str) -> Mapping[str, Parameter]:
    """Return the search parameters of a resource type by code, those of all resources included."""
    bases: tuple[str, ...] = (resource_type, "Resource")
    if resource_type not in NOT_DOMAIN_RESOURCES:
        bases += ("DomainResource",)
    rows = (row for base in bases for row in _parameters_by_base().get(base, ()))
    return {row["code"]: _parameter(row, resource_type) for row in rows}


@cache
def compartments(resource_type: str) -> Mapping[str, tuple[str, ...]]:
    """Return `{compartment type: search parameters that put this resource type into it}`."""
    found = {code: tuple(rows.get(resource_type, ())) for code, rows in load("compartments").items()}
    return {code: params for code, params in found.items() if params or code == resource_type}


@cache
def compartments_known() -> frozenset[str]:
    """Return the types that have a compartment, such as Patient."""
    return frozenset(load("compartments"))


@cache
def _structure() -> Mapping[str, Any]:
    found: Mapping[str, Any] = load("structure")
    return found


@cache
def _bindings() -> Mapping[str, Any]:
    found: Mapping[str, Any] = load("bindings")
    return found


@cache
def _parameters_by_base() -> Mapping[str, list[dict[str, Any]]]:
    table: dict[str, list[dict[str, Any]]] = {}
    for row in load("parameters"):
        for base in row["base"]:
            table.setdefault(base, []).append(row)
    return table


@cache
def _parameters_by_url() -> Mapping[str, dict[str, Any]]:
    return {row["url"]: row for row in load("parameters")}


def _parameter(row: dict[str, Any], resource_type: str) -> Parameter:
    parts = [(_parameters_by_url()[url], expression) for url, expression in row.get("component", ())]
    return Parameter(
        code=row["code"],
        type=row["type"],
        url=row["url"],
        expression=_applicable(row["expression"], resource_type),
        targets=tuple(row.get("target", ())),
        components=tuple((part["code"], expression) for part, expression in parts),
        component_types=tuple(part["type"] for part, _ in parts),
    )


def _applicable(expression: str, resource_type: str) -> str:
    """Return the branches of a union that start at the resource type; all of them when none names a type."""
    branches = [branch.strip() for branch in expression.split(" | ")]
    starts = (f"{resource_type}.", f"({resource_type}.", *(f"{name}." for name in ANCESTORS))
    kept = [branch for branch in branches if branch.startswith(starts) or branch == resource_type]
    return " | ".join(kept or branches)
