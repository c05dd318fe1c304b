"""FHIRPath for search parameters: an expression becomes a list of plain element paths, walked without interpretation.

The subset is what the official search parameters use: paths, unions, `as`, `ofType`, `extension('url')`, `[n]`,
`where(element='value')` and `where(resolve() is Type)`. `resolve()` never reads anything: the type is taken from the
reference itself. Any other expression is given to `fhirpath_engine`, which is slower.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from fhir_server.model import fhirpath_engine
from fhir_server.model.definitions import elements, resource_types

Step = str | int | Callable[[Any], bool]  # element name, position in the list so far, or filter
Typed = tuple[str, Any]  # data type ("" when unknown) and value

_TOKEN = re.compile(r"\s*(?:(?P<word>[A-Za-z_]\w*)|(?P<number>\d+)|'(?P<text>[^']*)'|(?P<sign>[.()|=\[\]]))")


@dataclass(frozen=True, slots=True)
class Path:
    """One way through a resource: steps, the data type at its end, and whether it can give more than one value."""

    steps: tuple[Step, ...]
    type: str
    is_single: bool

    def values(self, resource: dict[str, Any]) -> list[Any]:
        """Return what lies at the end of the path, in document order."""
        found: list[Any] = [resource]
        for step in self.steps:
            found = _walk(found, step)
        return found


class _Untranslatable(Exception):
    """The expression is beyond the subset."""


class _NoSuchElement(_Untranslatable):
    """The expression names an element that there is not."""


@cache
def compile(expression: str, context: str) -> Callable[[dict[str, Any]], list[Typed]]:
    """Return a function from a value of the context type to the typed values that the expression selects."""
    try:
        found = paths(expression, context)
    except _Untranslatable:
        return _interpreted(expression, context)
    return lambda resource: [(path.type, value) for path in found for value in path.values(resource)]


@cache
def is_single(expression: str, context: str) -> bool:
    """Say whether an expression without unions can give at most one value."""
    try:
        return "|" not in expression and all(path.is_single for path in paths(expression, context))
    except _Untranslatable:
        return False


@cache
def leaf_types(expression: str, context: str) -> frozenset[str]:
    """Return the data types that an expression can give; empty when they are unknown."""
    try:
        return frozenset(path.type for path in paths(expression, context))
    except _Untranslatable:
        return frozenset()


@cache
def paths(expression: str, context: str) -> tuple[Path, ...]:
    """Return the paths of a search expression that apply to the context type."""
    parser = _Parser(expression, context)
    found = parser.union()
    parser.expect_end()
    return tuple(found)


def reference_type(reference: Any) -> str:
    """Return the resource type a Reference points to, from its text or its `type`; "" when it does not tell."""
    if not isinstance(reference, dict):
        return ""
    parts = str(reference.get("reference", "")).partition("/_history/")[0].split("/")
    if len(parts) >= 2 and parts[-2] in resource_types():
        return parts[-2]
    return str(reference.get("type", ""))


def may_give(expression: str, context: str) -> bool:
    """Say whether an expression can give anything of a context type, as far as that is known."""
    try:
        return bool(paths(expression, context))
    except _NoSuchElement:
        return False
    except _Untranslatable:
        return True


def _walk(values: list[Any], step: Step) -> list[Any]:
    if isinstance(step, int):
        return values[step : step + 1]
    if not isinstance(step, str):
        return [value for value in values if step(value)]
    found: list[Any] = []
    for value in values:
        child = value.get(step) if isinstance(value, dict) else None
        if isinstance(child, list):
            found += [item for item in child if item is not None]
        elif child is not None:
            found.append(child)
    return found


class _Parser:
    """Recursive descent over the subset; every rule returns paths."""

    def __init__(self, expression: str, context: str) -> None:
        self.tokens = list(_tokens(expression))
        self.position = 0
        self.context = context

    def union(self) -> list[Path]:
        found = self.typed_term()
        while self.accept("|"):
            found += self.typed_term()
        return found

    def typed_term(self) -> list[Path]:
        found = self.term()
        if self.accept_word("as"):
            found = _of_type(found, self.word())
        return found

    def term(self) -> list[Path]:
        if self.accept("("):
            found = self.union()
            self.expect(")")
        else:
            found = self.root(self.word())
        while True:
            if self.accept("."):
                found = self.member(found, self.word())
            elif self.accept("["):
                index = int(self.take("number"))
                self.expect("]")
                found = [Path((*path.steps, index), path.type, True) for path in found]
            else:
                return found

    def root(self, name: str) -> list[Path]:
        start = [Path((), self.context, True)]
        is_type = name == self.context or name in {"Resource", "DomainResource"}
        return start if is_type else _child(start, name)

    def member(self, found: list[Path], name: str) -> list[Path]:
        if not self.accept("("):
            return _child(found, name)
        if name in {"as", "ofType"}:
            result = _of_type(found, self.word())
        elif name == "where":
            condition = self.condition()
            result = [Path((*path.steps, condition), path.type, path.is_single) for path in found]
        elif name == "extension":
            url = self.take("text")
            is_meant = _equals("url", url)
            found = [Path((*path.steps, "extension", is_meant), "Extension", False) for path in found]
            self.expect(")")
            # A search parameter on an extension means its value, said or not.
            is_said = self.tokens[self.position : self.position + 2] == [("sign", "."), ("word", "value")]
            return found if is_said else _child(found, "value")
        else:
            raise _Untranslatable(name)
        self.expect(")")
        return result

    def condition(self) -> Callable[[Any], bool]:
        name = self.word()
        if name == "resolve":
            for sign in "()":
                self.expect(sign)
            if not self.accept_word("is"):
                raise _Untranslatable(name)
            wanted = self.word()
            return lambda value: reference_type(value) == wanted
        self.expect("=")
        return _equals(name, self.take("text"))

    def accept(self, sign: str) -> bool:
        return self.advance(("sign", sign))

    def accept_word(self, word: str) -> bool:
        return self.advance(("word", word))

    def advance(self, token: tuple[str, str]) -> bool:
        is_next = self.position < len(self.tokens) and self.tokens[self.position] == token
        self.position += is_next
        return is_next

    def expect(self, sign: str) -> None:
        if not self.accept(sign):
            raise _Untranslatable(sign)

    def expect_end(self) -> None:
        if self.position != len(self.tokens):
            raise _Untranslatable("end")

    def word(self) -> str:
        return self.take("word")

    def take(self, kind: str) -> str:
        if self.position >= len(self.tokens) or self.tokens[self.position][0] != kind:
            raise _Untranslatable(kind)
        self.position += 1
        return self.tokens[self.position - 1][1]


def _tokens(expression: str) -> Iterator[tuple[str, str]]:
    position = 0
    text = expression.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise _Untranslatable(text[position:])
        yield match.lastgroup, match.group(match.lastgroup)
        position = match.end()


def _child(found: list[Path], name: str) -> list[Path]:
    result: list[Path] = []
    for path in found:
        known = elements(path.type)
        element = known.get(name) or known.get(f"{name}[x]")
        if element is None:
            raise _NoSuchElement(name)
        for kind in element.types:
            key = name + kind[:1].upper() + kind[1:] if element.name.endswith("[x]") else name
            result.append(Path((*path.steps, key), kind, path.is_single and not element.is_array))
    return result


def _of_type(found: list[Path], wanted: str) -> list[Path]:
    # Official expressions write some primitive types with a capital letter (`DateTime`).
    return [path for path in found if path.type.lower() == wanted.lower()]


def _equals(name: str, text: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and value.get(name) == text


def _interpreted(expression: str, context: str) -> Callable[[dict[str, Any]], list[Typed]]:
    evaluate = fhirpath_engine.compile(expression)

    def interpret(value: dict[str, Any]) -> list[Typed]:
        node = (context, value, None)
        env = fhirpath_engine.Env(node, node, this=[node])
        return [(kind, found) for kind, found, _ in evaluate(env, [node]) if found is not None]

    return interpret
