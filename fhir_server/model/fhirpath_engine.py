"""FHIRPath: an expression becomes a function, once; then it is as quick as Python is.

An expression from outside costs no more than its bounds (`fhirpath_functions.MOST_STEPS`) and runs no regular
expressions. Source: FHIRPath 2.0 (N1), FHIR R4 fhirpath.
"""

import operator
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache
from typing import Any

from fhir_server.model import fhirpath_grammar
from fhir_server.model.definitions import resource_types
from fhir_server.model.fhirpath_functions import FUNCTIONS, REGULAR, Argument, Env, distinct, same
from fhir_server.model.fhirpath_values import (
    Node,
    Nodes,
    boolean,
    check_type,
    children,
    compare,
    equal,
    is_type,
    node_of,
    primitive,
    truth,
)
from imaging.errors import AppError, Category

__all__ = ["Env", "Node", "Nodes", "compile", "evaluate", "node_of", "truth"]

_ABSTRACT = frozenset({"Resource", "DomainResource", "Element", "BackboneElement"})
_TYPED = frozenset({"ofType", "as", "is"})


# More than the official definitions have; an expression from outside does not stay for ever.
@lru_cache(maxsize=8192)
def compile(expression: str, *, is_trusted: bool = False) -> Argument:
    """Return the function `(env, nodes) -> nodes` of an expression. Raises INVALID, saying what cannot be read.

    is_trusted   of the official definitions: it may run regular expressions
    """
    return _Compiler(is_trusted).of(fhirpath_grammar.parse(expression))


def evaluate(expression: str, resource: dict[str, Any], *, is_trusted: bool = False) -> list[Any]:
    """Return the values of an expression on a resource."""
    node = node_of(resource)
    env = Env(node, node, this=[node])
    return [value for _, value, _ in compile(expression, is_trusted=is_trusted)(env, [node])]


class _Compiler:
    """One method for each kind of node of the grammar; each returns a function."""

    def __init__(self, is_trusted: bool) -> None:
        self._is_trusted = is_trusted

    def of(self, tree: fhirpath_grammar.Node) -> Argument:
        found: Argument = getattr(self, f"_{tree[0]}")(*tree[1:])
        return found

    def _literal(self, kind: str, value: Any) -> Argument:
        nodes: Nodes = [] if value is None else [(kind, value, None)]
        return lambda env, focus: nodes

    def _this(self) -> Argument:
        return lambda env, focus: env.this or focus

    def _index(self) -> Argument:
        return lambda env, focus: primitive("integer", env.index)

    def _total(self) -> Argument:
        return lambda env, focus: env.total

    def _variable(self, name: str) -> Argument:
        known = {
            "resource": lambda env, focus: [env.resource],
            "rootResource": lambda env, focus: [env.root],
            "context": lambda env, focus: env.variables.get("context", [env.resource]),
            "ucum": lambda env, focus: primitive("string", "http://unitsofmeasure.org"),
            "sct": lambda env, focus: primitive("string", "http://snomed.info/sct"),
            "loinc": lambda env, focus: primitive("string", "http://loinc.org"),
        }
        if name in known:
            return known[name]
        if name.startswith("vs-"):
            return self._literal("string", f"http://hl7.org/fhir/ValueSet/{name.removeprefix('vs-')}")
        if name.startswith("ext-"):
            return self._literal("string", f"http://hl7.org/fhir/StructureDefinition/{name.removeprefix('ext-')}")
        raise AppError(Category.INVALID, f"an expression names the unknown %{name[:40]}", where="expression")

    def _name(self, name: str) -> Argument:
        is_root = name in resource_types() or name in _ABSTRACT

        def named(env: Env, focus: Nodes) -> Nodes:
            if is_root:
                # A type's name at the beginning means the focus, if it is of the type.
                found = [node for node in focus if is_type(node[0], name)]
                if found:
                    return found
            if len(focus) == 1:
                return children(focus[0], name)
            return [child for node in focus for child in children(node, name)]

        return named

    def _member(self, left: fhirpath_grammar.Node, right: fhirpath_grammar.Node) -> Argument:
        first, second = self.of(left), self.of(right)
        return lambda env, focus: second(env, first(env, focus))

    def _item(self, left: fhirpath_grammar.Node, right: fhirpath_grammar.Node) -> Argument:
        first, second = self.of(left), self.of(right)

        def item(env: Env, focus: Nodes) -> Nodes:
            position = second(env, focus)
            at = position[0][1] if position else -1
            return first(env, focus)[at : at + 1] if isinstance(at, int) and at >= 0 else []

        return item

    def _negative(self, inner: fhirpath_grammar.Node) -> Argument:
        value = self.of(inner)
        return lambda env, focus: [(kind, -number, None) for kind, number, _ in value(env, focus)]

    def _type(self, sign: str, left: fhirpath_grammar.Node, name: str) -> Argument:
        first, wanted = self.of(left), check_type(name)
        if sign == "as":
            return lambda env, focus: [node for node in first(env, focus) if is_type(node[0], wanted)]

        def typed(env: Env, focus: Nodes) -> Nodes:
            nodes = first(env, focus)
            return boolean(is_type(nodes[0][0], wanted)) if nodes else []

        return typed

    def _call(self, name: str, arguments: tuple[fhirpath_grammar.Node, ...]) -> Argument:
        if name not in FUNCTIONS:
            raise AppError(Category.INVALID, f"the function {name[:40]}() is not known here", where="expression")
        if name in REGULAR and not self._is_trusted:
            message = f"{name}() is not run here, because its regular expression may never end"
            raise AppError(Category.UNSUPPORTED, message, where="expression")
        function, least, most = FUNCTIONS[name]
        if not least <= len(arguments) <= most:
            raise AppError(Category.INVALID, f"{name}() has {least} to {most} arguments", where="expression")
        if name in _TYPED:
            wanted = check_type(_type_of(arguments[0]))
            inner: tuple[Argument, ...] = (self._literal("string", wanted),)
        else:
            inner = tuple(self.of(each) for each in arguments)
        return lambda env, focus: function(env, focus, inner)

    def _operation(self, sign: str, left: fhirpath_grammar.Node, right: fhirpath_grammar.Node) -> Argument:
        first, second = self.of(left), self.of(right)
        if sign in _LOGIC:
            return _logic(sign, first, second)
        work = _OPERATIONS[sign]
        return lambda env, focus: work(env, first(env, focus), second(env, focus))


def _type_of(tree: fhirpath_grammar.Node) -> str:
    if tree[0] == "name":
        return str(tree[1])
    if tree[0] == "member" and tree[1][0] == tree[2][0] == "name":
        return f"{tree[1][1]}.{tree[2][1]}"
    raise AppError(Category.INVALID, "an expression names no type where one is wanted", where="expression")


_LOGIC = frozenset({"and", "or", "xor", "implies"})


def _logic(sign: str, first: Argument, second: Argument) -> Argument:
    """Three-valued logic; the second side is left alone where the first decides. Source: FHIRPath 6.5."""

    def both(env: Env, focus: Nodes) -> Nodes:
        one = truth(first(env, focus))
        if (sign == "and" and one is False) or (sign == "or" and one is True) or (sign == "implies" and one is False):
            return boolean(sign != "and")
        other = truth(second(env, focus))
        if sign == "and":
            return boolean(False if other is False else None if None in {one, other} else True)
        if sign == "or":
            return boolean(True if other is True else None if None in {one, other} else False)
        if sign == "xor":
            return boolean(None if one is None or other is None else one is not other)
        return boolean(True if other is True else other if one is True else None)

    return both


def _compared(holds: Callable[[int], bool]) -> Callable[[Env, Nodes, Nodes], Nodes]:
    def compared(env: Env, left: Nodes, right: Nodes) -> Nodes:
        if not left or not right:
            return []
        found = compare(_only(left), _only(right))
        return boolean(None if found is None else holds(found))

    return compared


def _only(nodes: Nodes) -> Node:
    if len(nodes) > 1:
        raise AppError(Category.INVALID, "an expression gives several values where one is wanted", where="expression")
    return nodes[0]


def _within(env: Env, left: Nodes, right: Nodes) -> Nodes:
    env.spend(len(right))
    return boolean(any(equal(_only(left), other) for other in right)) if left else []


def _union(env: Env, left: Nodes, right: Nodes) -> Nodes:
    return distinct(env, [*left, *right])


def _computed(work: Callable[[Any, Any], Any]) -> Callable[[Env, Nodes, Nodes], Nodes]:
    def computed(env: Env, left: Nodes, right: Nodes) -> Nodes:
        if not left or not right:
            return []
        one, other = _only(left)[1], _only(right)[1]
        if isinstance(one, str) and isinstance(other, str) and work is operator.add:
            return primitive("string", one + other)
        if not all(isinstance(each, int | float | Decimal) for each in (one, other)):
            raise AppError(Category.INVALID, "an expression computes with what is no number", where="expression")
        try:
            value = work(Decimal(str(one)), Decimal(str(other)))
        except (ZeroDivisionError, ArithmeticError):
            return []
        is_whole = isinstance(one, int) and isinstance(other, int) and work is not operator.truediv
        return primitive("integer", int(value)) if is_whole else primitive("decimal", value)

    return computed


def _joined(env: Env, left: Nodes, right: Nodes) -> Nodes:
    return primitive("string", "".join(str(_only(nodes)[1]) for nodes in (left, right) if nodes))


def _same(how: str, *, is_negated: bool) -> Callable[[Env, Nodes, Nodes], Nodes]:
    def compared(env: Env, left: Nodes, right: Nodes) -> Nodes:
        found = same(left, right, how)
        return boolean(None if found is None else found is not is_negated)

    return compared


_OPERATIONS: dict[str, Callable[[Env, Nodes, Nodes], Nodes]] = {
    "=": _same("=", is_negated=False),
    "!=": _same("=", is_negated=True),
    "~": _same("~", is_negated=False),
    "!~": _same("~", is_negated=True),
    "<": _compared(lambda found: found < 0),
    "<=": _compared(lambda found: found <= 0),
    ">": _compared(lambda found: found > 0),
    ">=": _compared(lambda found: found >= 0),
    "|": _union,
    "in": _within,
    "contains": lambda env, left, right: _within(env, right, left),
    "+": _computed(operator.add),
    "-": _computed(operator.sub),
    "*": _computed(operator.mul),
    "/": _computed(operator.truediv),
    "div": _computed(operator.floordiv),
    "mod": _computed(operator.mod),
    "&": _joined,
}
