"""Validation of resources that come from outside: one walk along the official definitions.

Looks at element names, cardinality, JSON types and forms of primitives, codes of required bindings, references and
their targets, contained resources, and the invariants. Messages name elements, never their values.
Source: FHIR R4 json 2.6.2, references 2.3.0, validation.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from fhir_server.model import fhirpath_engine as fhirpath
from fhir_server.model.criteria import ID_FORM
from fhir_server.model.definitions import (
    NOT_DOMAIN_RESOURCES,
    Element,
    constraints,
    elements,
    required_codes,
    resource_types,
)
from fhir_server.model.outcome import InvalidResource, Issue
from fhir_server.model.primitives import is_primitive, problem
from fhir_server.model.properties import Property, choices, properties
from imaging.errors import AppError, Category

Json = dict[str, Any]
Place = tuple[str | int, ...]

MAX_ISSUES = 20
MAX_DEPTH = 64  # levels of nesting
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:\S+")
_EMPTY = "is empty; leave the element out instead"


def validate(resource: Any, resource_type: str) -> None:
    """Raise INVALID (`InvalidResource`, with every finding up to 20) unless this is a valid resource of the type."""
    issues = findings(resource, resource_type)
    if issues:
        raise InvalidResource(tuple(issues), where=resource_type)


def findings(resource: Any, resource_type: str, *, with_advice: bool = False) -> list[Issue]:
    """Return what is wrong with a resource, the first 20 findings, each element once; with advice also warnings.

    Raises INVALID when it is not a resource of the type at all.
    """
    if not isinstance(resource, dict):
        raise AppError(Category.INVALID, "a resource is a JSON object")
    found = resource.get("resourceType")
    if found != resource_type or resource_type not in resource_types():
        message = f"a resource of type {resource_type} is wanted here"
        raise AppError(Category.INVALID, message, where="resourceType")
    walk = _Walk(with_advice)
    with suppress(_Enough):
        walk.resource(resource, (resource_type,), None)
    return list(walk.issues.values())[:MAX_ISSUES]


def expression(place: Place) -> str:
    """Return a place as FHIRPath, such as `ImagingStudy.series[0].uid`."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step[:64]}"
    return text.lstrip(".")


class _Enough(Exception):
    """As many findings as are told."""


@dataclass(slots=True)
class _Walk:
    """One walk through one resource."""

    with_advice: bool
    issues: dict[str, Issue] = field(default_factory=dict)
    contained: frozenset[str] = frozenset()
    env: fhirpath.Env | None = None

    def say(self, code: str, text: str, place: Place, severity: str = "error") -> None:
        where = expression(place)
        self.issues.setdefault(where, Issue(code, text, where, severity))
        if len(self.issues) >= MAX_ISSUES:
            raise _Enough

    def resource(self, resource: Json, place: Place, root: fhirpath.Node | None) -> None:
        kind = resource.get("resourceType")
        if not isinstance(kind, str) or kind not in resource_types():
            self.say("structure", "is not a resource of a known type", place)
            return
        node = fhirpath.node_of(resource)
        before = self.env, self.contained
        self.env = fhirpath.Env(node, root or node)
        if root is None:
            items = (item.get("id") for item in _list(resource.get("contained")) if isinstance(item, dict))
            self.contained = frozenset(each for each in items if isinstance(each, str))
        self.object(resource, kind, place, (kind,) if kind in NOT_DOMAIN_RESOURCES else (kind, "DomainResource"))
        self.env, self.contained = before

    def object(self, value: Json, kind: str, place: Place, paths: tuple[str, ...]) -> None:
        if len(place) > MAX_DEPTH:
            self.say("too-long", f"is nested deeper than {MAX_DEPTH} levels", place[:3])
            return
        rules = properties(kind)
        before = len(self.issues)
        for name, item in value.items():
            rule = rules.get(name)
            if rule is None:
                self.unknown(name, item, kind, place)
            elif item is None or item in ("", [], {}):
                text = "is null; leave the element out instead" if item is None else _EMPTY
                self.say("structure", text, (*place, name))
            elif isinstance(item, list) is not rule.element.is_array:
                self.say("structure", "has the wrong JSON type", (*place, name))
            elif isinstance(item, list):
                self.items(value, name, item, rule, (*place, name), kind)
            else:
                self.one(item, rule, (*place, name), kind)
        self.required(value, kind, place)
        if kind == "Reference":
            self.reference(value, place)
        if len(self.issues) == before:  # invariants only mean something of what is well formed
            self.invariants((kind, value, None), place, paths)

    def unknown(self, name: str, item: Any, kind: str, place: Place) -> None:
        if name == "resourceType" and kind in resource_types():
            return
        if item is None:
            self.say("structure", "is null; leave the element out instead", (*place, name))
        else:
            self.say("structure", f"has elements that FHIR R4 does not define: {name[:64]}", place)

    def items(self, value: Json, name: str, items: list[Any], rule: Property, place: Place, parent: str) -> None:
        beside = value.get(name[1:] if name.startswith("_") else f"_{name}")
        for position, item in enumerate(items):
            where = (*place, position)
            if item is None:
                # A null in a list of primitives stands for one that has an extension only, and the other way round.
                other = beside[position] if isinstance(beside, list) and position < len(beside) else None
                if other is None:
                    self.say("structure", "is null; leave the element out instead", where)
            else:
                self.one(item, rule, where, parent)

    def one(self, item: Any, rule: Property, place: Place, parent: str) -> None:
        element, kind = rule
        path = f"{parent}.{element.name}"
        if is_primitive(kind):
            wrong = problem(kind, item)
            if wrong:
                self.say("structure" if "empty" in wrong or "JSON" in wrong else "value", wrong, place)
            elif element.binding and not _is_allowed(element.binding, None, item):
                self.say("code-invalid", "is not a code of the value set that is required here", place)
            elif _invariants(path):
                self.invariants((kind, item, None), place, (path,))
            return
        if not isinstance(item, dict):
            self.say("structure", "has the wrong JSON type", place)
        elif not item:
            self.say("structure", _EMPTY, place)
        elif kind == "Resource":
            assert self.env is not None  # noqa: S101 -- a resource begins the walk
            self.resource(item, place, self.env.root if element.name == "contained" else None)
        else:
            self.object(item, kind, place, (kind,) if kind == path else (kind, path))
            self.bound(item, element, place)
            if kind == "Reference":
                self.target(item, element, place)

    def bound(self, item: Json, element: Element, place: Place) -> None:
        if not element.binding:
            return
        codings = _list(item.get("coding")) if "CodeableConcept" in element.types else iter([item])
        pairs = [(each.get("system"), each.get("code")) for each in codings if isinstance(each, dict)]
        # Of other values it is said already that they have the wrong type.
        codes = [(system, code) for system, code in pairs if isinstance(code, str) and isinstance(system, str | None)]
        if codes and not any(_is_allowed(element.binding, system, code) for system, code in codes):
            self.say("code-invalid", "has no code of the value set that is required here", place)

    def required(self, value: Json, kind: str, place: Place) -> None:
        for name, keys, is_required in _wanted(kind):
            present = [key for key in keys if key in value or f"_{key}" in value]
            if len(present) > 1:
                self.say("structure", f"has several values: {', '.join(present)}", (*place, name))
            elif is_required and not present:
                self.say("required", "is required", (*place, name))

    def reference(self, value: Json, place: Place) -> None:
        text = value.get("reference")
        if text is None:
            if not {"identifier", "display", "extension", "_reference"} & value.keys():
                self.say("structure", "has neither reference nor identifier nor display", place)
        elif not isinstance(text, str):
            return  # said already
        elif text.startswith("#"):
            if text != "#" and text[1:] not in self.contained:
                self.say("not-found", "points to a contained resource that is not there", (*place, "reference"))
        elif not _ABSOLUTE.fullmatch(text) and relative_type(text) is None:
            self.say("value", "is neither Type/id nor an absolute URL nor #id", (*place, "reference"))

    def target(self, value: Json, element: Element, place: Place) -> None:
        text = value.get("reference")
        found = self.referenced(text) if isinstance(text, str) else ""
        if found and element.targets and found not in element.targets and "Resource" not in element.targets:
            wanted = ", ".join(element.targets)
            self.say("value", f"refers to a {found}; allowed: {wanted}", (*place, "reference"))

    def referenced(self, text: str) -> str:
        """Return the type of what a relative reference, or one to a contained resource, points to."""
        if text.startswith("#") and self.env is not None:
            items = _list(self.env.root[1].get("contained"))
            found = [item for item in items if isinstance(item, dict) and f"#{item.get('id')}" == text]
            return str(found[0].get("resourceType", "")) if found else ""
        return relative_type(text) or ""

    def invariants(self, node: fhirpath.Node, place: Place, paths: tuple[str, ...]) -> None:
        for path in paths:
            for key, severity, text, holds in _invariants(path):
                if (severity == "error" or self.with_advice) and not self.holds(holds, node):
                    self.say("invariant", f"{text} ({key})", place, severity)

    def holds(self, invariant: Callable[[fhirpath.Env, fhirpath.Nodes], fhirpath.Nodes], node: fhirpath.Node) -> bool:
        assert self.env is not None  # noqa: S101 -- a resource begins the walk
        self.env.this, self.env.steps = [node], 0
        try:
            return fhirpath.truth(invariant(self.env, [node])) is not False
        except AppError:
            return True  # cannot be said of values like these, or of so many


@cache
def _wanted(kind: str) -> tuple[tuple[str, tuple[str, ...], bool], ...]:
    """Return (element, its JSON names, whether it is required) of what has to be looked for: required or a choice."""
    rows = elements(kind).values()
    return tuple(
        (each.name.removesuffix("[x]"), tuple(key for key, _ in choices(each)), each.minimum > 0)
        for each in rows
        if each.minimum or each.name.endswith("[x]")
    )


@cache
def _invariants(path: str) -> tuple[tuple[str, str, str, Any], ...]:
    return tuple(
        (each.key, each.severity, each.text, fhirpath.compile(each.expression, is_trusted=True))
        for each in constraints(path)
    )


def _is_allowed(value_set: str, system: str | None, code: str) -> bool:
    """Say whether a code may be there; a value set that is a grammar, such as media types, has no list of codes."""
    codes = required_codes(value_set)
    if codes is None:
        return True
    return any(code in each for each in codes.values()) if system is None else code in codes.get(system, ())


def relative_type(text: str) -> str | None:
    """Return the type of a relative reference, None when it is not one."""
    kind, _, rest = text.partition("/")
    identifier, _, version = rest.partition("/_history/")
    is_reference = kind in resource_types() and ID_FORM.fullmatch(identifier)
    return kind if is_reference and (not version or ID_FORM.fullmatch(version)) else None


def _list(value: Any) -> Iterator[Any]:
    return iter(value if isinstance(value, list) else () if value is None else (value,))
