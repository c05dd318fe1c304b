"""Validation by profiles: what a StructureDefinition demands beyond the base, by its snapshot or its differential.

Looks at cardinality, fixed values and patterns, types, targets, bindings, invariants, and slices told apart by value,
pattern, type or existence. What cannot be looked at is said as information, never passed over.
Source: FHIR R4 profiling, elementdefinition.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from fhir_server.model import fhirpath_engine as fhirpath
from fhir_server.model import json
from fhir_server.model.definitions import constraints, elements, resource_types
from fhir_server.model.fhirpath_values import Node, children, is_type
from fhir_server.model.outcome import Issue
from fhir_server.model.terminology import Terminology
from fhir_server.model.validation import Place, expression, relative_type
from imaging.errors import AppError, Category

Json = dict[str, Any]
Find = Callable[[str], Mapping[str, Any] | None]  # canonical, `url` or `url|version` -> StructureDefinition

CORE = "http://hl7.org/fhir/StructureDefinition/"
MAX_BASES = 10  # profiles that derive from one another
MAX_PROFILES = 50  # that one validation looks at
MOST_ISSUES = 100
_CHECKED_BY = frozenset({"value", "pattern", "type", "exists"})


@dataclass
class _Rule:
    """What is demanded of one element, or of one slice of it."""

    rows: list[Mapping[str, Any]] = field(default_factory=list)
    children: "dict[str, _Rule]" = field(default_factory=dict)
    slices: "dict[str, _Rule]" = field(default_factory=dict)

    def told(self, name: str) -> Any:
        """Return what the latest of the definitions says of something, None where none does."""
        return next((row[name] for row in reversed(self.rows) if name in row), None)

    def value(self, kind: str) -> Any:
        """Return the value of a choice such as `fixed[x]`, None without one."""
        found = (item for row in reversed(self.rows) for name, item in row.items() if _is_choice(name, kind))
        return next(found, None)


def _is_choice(name: str, kind: str) -> bool:
    return name.startswith(kind) and name[len(kind) : len(kind) + 1].isupper()


def check(resource: Json, urls: Iterable[str], find: Find, terminology: Terminology) -> list[Issue]:
    """Return what keeps a resource from conforming to profiles, and what could not be looked at.

    Raises NOT_FOUND for a profile that is not known, INVALID for one that is of another type or cannot be used.
    """
    looked = _Look(resource, find, terminology)
    for url in urls:
        looked.profile(url, fhirpath.node_of(resource), (str(resource["resourceType"]),))
    return looked.issues[:MOST_ISSUES]


def rule_of(url: str, find: Find) -> tuple[str, _Rule]:
    """Return the type that a profile is for, and its rule with those of the profiles that it derives from."""
    chain: list[Mapping[str, Any]] = []
    while True:
        found = find(url)
        if found is None:
            raise AppError(Category.NOT_FOUND, f"the profile {url[:200]} is not known here", where="profile")
        chain.insert(0, found)
        base = str(found.get("baseDefinition", ""))
        if "snapshot" in found or not base or base.removeprefix(CORE) == found.get("type"):
            break
        if len(chain) > MAX_BASES:
            message = f"the profile {url[:200]} derives from more than {MAX_BASES} others"
            raise AppError(Category.INVALID, message, where="profile")
        url = base
    rule = _Rule()
    for definition in chain:
        for row in (definition.get("snapshot") or definition.get("differential") or {}).get("element", ()):
            _place(rule, row)
    return str(chain[-1].get("type", "")), rule


def _place(root: _Rule, row: Mapping[str, Any]) -> None:
    """Put an ElementDefinition where its id, or its path, says that it belongs."""
    rule = root
    for step in str(row.get("id", row.get("path", ""))).split(".")[1:]:
        name, _, part = step.partition(":")
        rule = rule.children.setdefault(name.removesuffix("[x]"), _Rule())
        for slice_name in part.split("/") if part else ():
            rule = rule.slices.setdefault(slice_name, _Rule())
    if "id" not in row and "sliceName" in row:
        rule = rule.slices.setdefault(str(row["sliceName"]), _Rule())
    rule.rows.append(row)


class _Look:
    """One look at one resource."""

    def __init__(self, resource: Json, find: Find, terminology: Terminology) -> None:
        node = fhirpath.node_of(resource)
        self.env = fhirpath.Env(node, node)
        self.issues: list[Issue] = []
        self.find = find
        self.terminology = terminology
        self.seen = 0
        self.rule_of = lru_cache(maxsize=MAX_PROFILES)(lambda url: rule_of(url, find))

    def profile(self, url: str, node: Node, place: Place) -> None:
        self.seen += 1
        if self.seen > MAX_PROFILES * 10:
            raise AppError(Category.TOO_LARGE, "the profiles name one another without end", where="profile")
        kind, rule = self.rule_of(url)
        if not is_type(node[0], kind):
            self.say("invalid", f"is no {kind}, which the profile {url[:200]} is for", place)
            return
        self.value(rule, node, place)

    def say(self, code: str, text: str, place: Place, severity: str = "error") -> None:
        issue = Issue(code, text, expression(place), severity)
        if issue not in self.issues and len(self.issues) < MOST_ISSUES:
            self.issues.append(issue)

    def unchecked(self, what: str, place: Place) -> None:
        self.say("informational", f"{what} could not be checked", place, "information")

    def value(self, rule: _Rule, node: Node, place: Place) -> None:
        """Look at one value, then at what is within it."""
        self.fixed(rule, node, place)
        self.types(rule, node, place)
        self.bound(rule, node, place)
        self.invariants(rule, node, place)
        limit = rule.told("maxLength")
        if limit is not None and isinstance(node[1], str) and len(node[1]) > limit:
            self.say("value", f"is longer than {limit} characters", place)
        for name, inner in rule.children.items():
            found = [(each, (*place, name, *index)) for each, index in _numbered(node, name)]
            self.element(inner, found, (*place, name))

    def element(self, rule: _Rule, found: list[tuple[Node, Place]], place: Place) -> None:
        """Look at all values of an element of one parent."""
        self.count(rule, len(found), place)
        for node, where in found:
            self.value(rule, node, where)
        if rule.slices:
            self.slices(rule, found, place)

    def count(self, rule: _Rule, number: int, place: Place, what: str = "") -> None:
        least, most = rule.told("min"), str(rule.told("max") or "*")
        if least is not None and number < least:
            self.say("required", f"{what or 'it'} has to come {least} times at least, and comes {number} times", place)
        if most.isdecimal() and number > int(most):
            self.say("structure", f"{what or 'it'} may come {most} times, and comes {number} times", place)

    def fixed(self, rule: _Rule, node: Node, place: Place) -> None:
        fixed, pattern = rule.value("fixed"), rule.value("pattern")
        if fixed is not None and not _same(fixed, node[1]):
            self.say("value", "is not the value that the profile fixes", place)
        if pattern is not None and not _within(pattern, node[1]):
            self.say("value", "does not have what the pattern of the profile demands", place)

    def types(self, rule: _Rule, node: Node, place: Place) -> None:
        allowed = rule.told("type") or ()
        codes = [str(each.get("code", "")) for each in allowed]
        if codes and "." not in node[0] and not any(is_type(node[0], code) for code in codes if code[:1] != "h"):
            if not any(code.startswith("http:") for code in codes):
                self.say("structure", f"is a {node[0]}; the profile allows: {', '.join(codes)}", place)
            return
        meant = [each for each in allowed if is_type(node[0], str(each.get("code", "")))]
        targets = [url for each in meant for url in each.get("targetProfile", ())]
        if targets and isinstance(node[1], dict) and "reference" in node[1]:
            self.target(targets, str(node[1]["reference"]), place)
        profiles = [url for each in meant for url in each.get("profile", ())]
        if len(profiles) == 1:
            self.inner(profiles[0], node, place)
        elif profiles:
            self.unchecked("conformance to one of several profiles", place)

    def inner(self, url: str, node: Node, place: Place) -> None:
        if url.startswith(CORE) and url.removeprefix(CORE) == node[0]:
            return
        try:
            self.profile(url, node, place)
        except AppError as error:
            if error.category is not Category.NOT_FOUND:
                raise
            self.unchecked(f"conformance to {url[:200]}", place)

    def target(self, targets: list[str], reference: str, place: Place) -> None:
        types = {url.removeprefix(CORE) for url in targets if url.removeprefix(CORE) in resource_types()}
        inside = self.contained(reference)
        found = inside[0][0] if inside else relative_type(reference)
        if len(types) < len(targets) and found not in types:
            if inside and len(targets) == 1:
                self.inner(targets[0], *inside)
            else:
                self.unchecked("whether what is referred to conforms to a profile", (*place, "reference"))
        elif found and found not in types:
            wanted = ", ".join(sorted(types))
            self.say("value", f"refers to a {found}; the profile allows: {wanted}", (*place, "reference"))

    def contained(self, reference: str) -> tuple[Node, Place] | None:
        """Return the contained resource that a reference leads to, and its place; None for any other reference."""
        root = self.env.root[1]
        for position, each in enumerate(root.get("contained", ()) if isinstance(root, dict) else ()):
            if isinstance(each, dict) and reference == f"#{each.get('id')}":
                return fhirpath.node_of(each), (str(root["resourceType"]), "contained", position)
        return None

    def bound(self, rule: _Rule, node: Node, place: Place) -> None:
        binding = rule.told("binding") or {}
        if binding.get("strength") != "required" or "valueSet" not in binding:
            return
        codings = _codings(node)
        try:
            found = [self.terminology.member(binding["valueSet"], system, code) for system, code in codings]
        except AppError:
            self.unchecked(f"membership in {binding['valueSet'][:200]}", place)
            return
        if codings and not any(found):
            self.say("code-invalid", "has no code of the value set that the profile demands", place)

    def invariants(self, rule: _Rule, node: Node, place: Place) -> None:
        own = {each.key for each in (*constraints(node[0]), *constraints("DomainResource"), *constraints("Element"))}
        for row in rule.rows:
            for each in row.get("constraint", ()):
                if each.get("key") in own or str(each.get("source", "")).startswith(CORE) or "expression" not in each:
                    continue
                self.invariant(each, node, place)

    def invariant(self, constraint: Mapping[str, Any], node: Node, place: Place) -> None:
        self.env.this, self.env.steps = [node], 0
        try:
            holds = fhirpath.truth(fhirpath.compile(str(constraint["expression"]))(self.env, [node]))
        except AppError:
            self.unchecked(f"the invariant {str(constraint.get('key', ''))[:64]}", place)
            return
        if holds is False:
            severity = "warning" if constraint.get("severity") == "warning" else "error"
            told = f"{str(constraint.get('human', ''))[:300]} ({str(constraint.get('key', ''))[:64]})"
            self.say("invariant", told, place, severity)

    # ---- slices

    def slices(self, rule: _Rule, found: list[tuple[Node, Place]], place: Place) -> None:
        slicing = rule.told("slicing") or {"discriminator": [{"type": "value", "path": "url"}]}
        discriminators = slicing.get("discriminator", ())
        if not discriminators or any(each.get("type") not in _CHECKED_BY for each in discriminators):
            self.unchecked("the slices", place)
            return
        left = list(found)
        for name, part in rule.slices.items():
            members = [each for each in found if all(self.belongs(part, each[0], by) for by in discriminators)]
            left = [each for each in left if each not in members]
            self.count(part, len(members), place, f"the slice {name[:64]}")
            for node, where in members:
                self.value(part, node, where)
        if left and slicing.get("rules") == "closed":
            self.say("structure", "has entries of no slice, and the profile allows no others", place)

    def belongs(self, part: _Rule, node: Node, by: Mapping[str, Any]) -> bool:
        path = str(by.get("path", "$this"))
        rules, nodes = [part], [node]
        for step in [] if path == "$this" else path.split("."):
            name = step.partition("(")[0]
            if name in {"resolve", "extension", "ofType"}:
                return False
            rules = [each.children[name] for each in rules if name in each.children]
            nodes = [child for each in nodes for child in children(each, name)]
        if by["type"] == "exists":
            wanted = next((rule.told("max") != "0" for rule in rules), True)
            return bool(nodes) == wanted
        if by["type"] == "type":
            codes = [str(each.get("code")) for rule in rules for each in rule.told("type") or ()]
            return any(is_type(each[0], code) for each in nodes for code in codes)
        return self.has_value(part, rules, nodes, path)

    def has_value(self, part: _Rule, rules: list[_Rule], nodes: list[Node], path: str) -> bool:
        for rule in rules:
            fixed, pattern = rule.value("fixed"), rule.value("pattern")
            if fixed is not None:
                return any(_same(fixed, node[1]) for node in nodes)
            if pattern is not None:
                return any(_within(pattern, node[1]) for node in nodes)
            binding = rule.told("binding") or {}
            if binding.get("strength") == "required" and nodes:
                return any(self.is_member(str(binding.get("valueSet", "")), node) for node in nodes)
        if path == "url":  # an extension is known by the profile that it has to conform to
            profiles = [url for each in part.told("type") or () for url in each.get("profile", ())]
            return any(node[1] in profiles for node in nodes)
        return False

    def is_member(self, url: str, node: Node) -> bool:
        try:
            return any(self.terminology.member(url, system, code) for system, code in _codings(node))
        except AppError:
            return False


def _numbered(node: Node, name: str) -> Iterator[tuple[Node, tuple[int, ...]]]:
    """Yield the children of a name, with their places in the list where it is one."""
    found = children(node, name)
    element = elements(node[0]).get(name)
    is_list = element.is_array if element else isinstance(node[1], dict) and isinstance(node[1].get(name), list)
    for position, child in enumerate(found):
        yield child, (position,) if is_list else ()


def _codings(node: Node) -> list[tuple[str | None, str]]:
    value = node[1]
    if isinstance(value, str):
        return [(None, value)]
    if not isinstance(value, dict):
        return []
    items = value.get("coding", [value])
    return [(each.get("system"), each["code"]) for each in items if isinstance(each, dict) and "code" in each]


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one) == json.dumps(other) or one == other


def _within(pattern: Any, value: Any) -> bool:
    """Say whether a value has everything that a pattern has; of a list, each entry of the pattern somewhere."""
    if isinstance(pattern, dict):
        return isinstance(value, dict) and all(
            name in value and _within(each, value[name]) for name, each in pattern.items()
        )
    if isinstance(pattern, list):
        return isinstance(value, list) and all(any(_within(each, item) for item in value) for each in pattern)
    return _same(pattern, value)
