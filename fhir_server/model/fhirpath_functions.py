"""The functions of FHIRPath, by name. Source: FHIRPath 2.0 (N1) 5, 6.5; FHIR R4 fhirpath.

Each is `(env, focus, arguments) -> nodes`; an argument is evaluated by `argument(env, nodes)`. What an expression may
cost is bounded by `env.spend`. `matches` runs regular expressions of the official definitions only.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

from fhir_server.model.fhirpath_values import (
    PLAIN,
    Node,
    Nodes,
    boolean,
    children,
    descendants,
    equal,
    equivalent,
    every_child,
    is_type,
    node_of,
    primitive,
    truth,
)
from imaging.errors import AppError, Category

MOST_STEPS = 200_000  # nodes that the functions of one evaluation may look at

Json = dict[str, Any]
Argument = Callable[["Env", Nodes], Nodes]
Function = Callable[["Env", Nodes, Sequence[Argument]], Nodes]


@dataclass(slots=True)
class Env:
    """What an expression is evaluated in.

    resource   %resource: the resource that holds what is looked at; `root` holds that
    resolve    reference text -> resource, None where it is not at hand
    member     (value set, node) -> whether it is a member, None where that cannot be told
    """

    resource: Node
    root: Node
    resolve: Callable[[str], Json | None] = lambda reference: None
    member: Callable[[str, Node], bool | None] = lambda value_set, node: None
    variables: Mapping[str, Nodes] = field(default_factory=dict)
    this: Nodes = field(default_factory=list)
    index: int = 0
    total: Nodes = field(default_factory=list)
    steps: int = 0

    def spend(self, nodes: int) -> None:
        """Count what is looked at. Raises TOO_LARGE beyond the bound."""
        self.steps += nodes + 1
        if self.steps > MOST_STEPS:
            message = f"an expression looks at more than {MOST_STEPS} elements"
            raise AppError(Category.TOO_LARGE, message, where="expression")


def each(env: Env, nodes: Nodes, argument: Argument) -> Nodes:
    """Return the value of an argument for one of the focus after another, joined."""
    found: Nodes = []
    for node, values in _values(env, nodes, argument):
        del node
        found += values
    return found


def _values(env: Env, nodes: Nodes, argument: Argument) -> list[tuple[Node, Nodes]]:
    env.spend(len(nodes))
    before = env.this, env.index
    found = []
    for position, node in enumerate(nodes):
        env.this, env.index = [node], position
        found.append((node, argument(env, [node])))
    env.this, env.index = before
    return found


def _where(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
    return [node for node, values in _values(env, focus, arguments[0]) if truth(values) is True]


def _exists(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
    return boolean(bool(_where(env, focus, arguments) if arguments else focus))


def _all(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
    return boolean(all(truth(values) is True for _, values in _values(env, focus, arguments[0])))


def _not(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
    found = truth(focus)
    return boolean(None if found is None else not found)


def _iif(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
    if truth(arguments[0](env, focus)) is True:
        return arguments[1](env, focus)
    return arguments[2](env, focus) if len(arguments) > 2 else []


def _repeat(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
    found: Nodes = []
    waiting = list(focus)
    while waiting:
        fresh = [node for node in distinct(env, each(env, waiting, arguments[0])) if not _among(env, node, found)]
        found += fresh
        waiting = fresh
    return found


def _extension(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
    url = _text(arguments[0](env, focus))
    extensions = [child for node in focus for child in children(node, "extension")]
    return [node for node in extensions if isinstance(node[1], dict) and node[1].get("url") == url]


def _resolve(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
    found: Nodes = []
    for _, value, _ in focus:
        text = value.get("reference") if isinstance(value, dict) else value
        if not isinstance(text, str):
            continue
        if text.startswith("#"):
            contained = env.root[1].get("contained", ())
            found += [node_of(item) for item in contained if isinstance(item, dict) and f"#{item.get('id')}" == text]
            found += [env.root] if text == "#" else []
        else:
            resource = env.resolve(text)
            found += [node_of(resource)] if resource else [_unread(value, text)]
    return [node for node in found if node[0]]


def _unread(value: Any, text: str) -> Node:
    """Return what is known of a resource that is not at hand: its type, as far as the reference tells."""
    parts = text.partition("/_history/")[0].split("/")
    kind = parts[-2] if len(parts) > 1 else ""
    if not kind[:1].isupper() and isinstance(value, dict):
        kind = str(value.get("type", ""))
    return (kind, {"resourceType": kind}, None)


def _member_of(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
    url = _text(arguments[0](env, focus))
    return boolean(env.member(url, focus[0])) if len(focus) == 1 and url else []


def distinct(env: Env, focus: Nodes, arguments: Sequence[Argument] = ()) -> Nodes:
    """Return every value once, in order."""
    env.spend(len(focus))
    found: Nodes = []
    plain: set[str] = set()
    for node in focus:
        if isinstance(node[1], str) and node[0] in PLAIN:  # the usual case: texts are compared by their hash
            if node[1] not in plain:
                plain.add(node[1])
                found.append(node)
        elif not _among(env, node, found):
            found.append(node)
    return found


def _among(env: Env, node: Node, nodes: Nodes) -> bool:
    env.spend(len(nodes))
    return any(equal(node, other) for other in nodes)


def _subset(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
    others = arguments[0](env, env.this or focus)
    return boolean(all(_among(env, node, others) for node in focus))


def _superset(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
    return boolean(all(_among(env, node, focus) for node in arguments[0](env, env.this or focus)))


def _intersect(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
    others = arguments[0](env, env.this or focus)
    return distinct(env, [node for node in focus if _among(env, node, others)], ())


def _exclude(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
    others = arguments[0](env, env.this or focus)
    return [node for node in focus if not _among(env, node, others)]


def _of_type(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
    name = _type_name(env, arguments)
    return [node for node in focus if is_type(node[0], name)]


def _is(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
    return boolean(is_type(focus[0][0], _type_name(env, arguments))) if focus else []


def _type_name(env: Env, arguments: Sequence[Argument]) -> str:
    name: str = arguments[0](env, [])[0][1]  # the compiler makes a text of it
    return name


def _single(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
    if len(focus) > 1:
        raise AppError(Category.INVALID, "an expression gives several values where one is wanted", where="expression")
    return focus


def _aggregate(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
    before = env.total
    env.total = arguments[1](env, focus) if len(arguments) > 1 else []
    for node in focus:
        env.spend(1)
        this, env.this = env.this, [node]
        env.total = arguments[0](env, [node])
        env.this = this
    result, env.total = env.total, before
    return result


# --- text


def _text(nodes: Nodes) -> str | None:
    if not nodes:
        return None
    value = nodes[0][1]
    return value if isinstance(value, str) else None


def _of_text(work: Callable[..., Any], kind: str = "string") -> Function:
    """A function of a single text and of arguments, all of which have to be there."""

    def function(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
        text = _text(focus)
        values = [argument(env, env.this or focus) for argument in arguments]
        if text is None or any(not nodes for nodes in values):
            return []
        env.spend(len(text) // 16)
        found = work(text, *(nodes[0][1] for nodes in values))
        return [] if found is None else primitive(kind, found)

    return function


def _substring(text: str, start: int, length: int | None = None) -> str | None:
    if not 0 <= start < len(text):
        return None
    return text[start:] if length is None else text[start : start + max(0, length)]


def _matches(text: str, pattern: str) -> bool:
    return _compiled(pattern).search(text) is not None


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error:
        raise AppError(Category.INVALID, "an expression has a wrong regular expression", where="expression") from None


# --- conversion


def _to_string(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
    if not focus or isinstance(focus[0][1], dict) or focus[0][1] is None:
        return []
    value = focus[0][1]
    return primitive("string", str(value).lower() if isinstance(value, bool) else str(value))


def _to_number(work: Callable[[str], Any], kind: str) -> Function:
    def function(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
        if not focus or isinstance(focus[0][1], dict):
            return []
        value = focus[0][1]
        try:
            return primitive(kind, work(str(int(value) if isinstance(value, bool) else value)))
        except (ValueError, InvalidOperation):
            return []

    return function


def _to_boolean(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
    text = str(focus[0][1]).lower() if focus else ""
    return boolean({"true": True, "1": True, "t": True, "y": True, "false": False, "0": False}.get(text))


def _number(work: Callable[[Any], Any]) -> Function:
    def function(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
        if not focus or isinstance(focus[0][1], str | dict):
            return []
        value = work(focus[0][1])
        return primitive("integer" if isinstance(value, int) else "decimal", value)

    return function


def _now(kind: str, form: str) -> Function:
    return lambda env, focus, arguments: primitive(kind, datetime.now(UTC).strftime(form))


def _count(env: Env, focus: Nodes, arguments: Sequence[Argument]) -> Nodes:
    return primitive("integer", len(focus))


def _truths(wanted: bool, how: Callable[[Any], bool]) -> Function:
    return lambda env, focus, arguments: boolean(how(node[1] is wanted for node in focus))


def _number_of(env: Env, argument: Argument) -> int:
    nodes = argument(env, [])
    return int(nodes[0][1]) if nodes and isinstance(nodes[0][1], int) else 0


FUNCTIONS: Mapping[str, tuple[Function, int, int]] = {
    # name: (function, least and most arguments)
    "where": (_where, 1, 1),
    "select": (lambda env, focus, arguments: each(env, focus, arguments[0]), 1, 1),
    "exists": (_exists, 0, 1),
    "all": (_all, 1, 1),
    "empty": (lambda env, focus, _: boolean(not focus), 0, 0),
    "not": (_not, 0, 0),
    "iif": (_iif, 2, 3),
    "repeat": (_repeat, 1, 1),
    "aggregate": (_aggregate, 1, 2),
    "extension": (_extension, 1, 1),
    "hasExtension": (lambda env, focus, arguments: boolean(bool(_extension(env, focus, arguments))), 1, 1),
    "hasValue": (lambda env, focus, _: boolean(len(focus) == 1 and focus[0][1] is not None), 0, 0),
    "getValue": (lambda env, focus, _: focus if len(focus) == 1 and focus[0][1] is not None else [], 0, 0),
    "resolve": (_resolve, 0, 0),
    "memberOf": (_member_of, 1, 1),
    "htmlChecks": (lambda env, focus, _: boolean(True), 0, 0),  # narrative is checked by the door
    "ofType": (_of_type, 1, 1),
    "as": (_of_type, 1, 1),
    "is": (_is, 1, 1),
    "first": (lambda env, focus, _: focus[:1], 0, 0),
    "last": (lambda env, focus, _: focus[-1:], 0, 0),
    "tail": (lambda env, focus, _: focus[1:], 0, 0),
    "single": (_single, 0, 0),
    "skip": (lambda env, focus, arguments: focus[max(0, _number_of(env, arguments[0])) :], 1, 1),
    "take": (lambda env, focus, arguments: focus[: max(0, _number_of(env, arguments[0]))], 1, 1),
    "count": (_count, 0, 0),
    "distinct": (distinct, 0, 0),
    "isDistinct": (lambda env, focus, _: boolean(len(distinct(env, focus, ())) == len(focus)), 0, 0),
    "subsetOf": (_subset, 1, 1),
    "supersetOf": (_superset, 1, 1),
    "intersect": (_intersect, 1, 1),
    "exclude": (_exclude, 1, 1),
    "combine": (lambda env, focus, arguments: [*focus, *arguments[0](env, env.this or focus)], 1, 1),
    "union": (lambda env, focus, arguments: distinct(env, [*focus, *arguments[0](env, env.this or focus)], ()), 1, 1),
    "children": (lambda env, focus, _: [child for node in focus for child in every_child(node)], 0, 0),
    "descendants": (lambda env, focus, _: _spent(env, list(descendants(focus))), 0, 0),
    "trace": (lambda env, focus, _: focus, 1, 2),
    "allTrue": (_truths(True, all), 0, 0),
    "anyTrue": (_truths(True, any), 0, 0),
    "allFalse": (_truths(False, all), 0, 0),
    "anyFalse": (_truths(False, any), 0, 0),
    "startsWith": (_of_text(str.startswith, "boolean"), 1, 1),
    "endsWith": (_of_text(str.endswith, "boolean"), 1, 1),
    "contains": (_of_text(lambda text, part: part in text, "boolean"), 1, 1),
    "matches": (_of_text(_matches, "boolean"), 1, 1),
    "replaceMatches": (_of_text(lambda text, one, other: _compiled(one).sub(other, text)), 2, 2),
    "indexOf": (_of_text(str.find, "integer"), 1, 1),
    "length": (_of_text(len, "integer"), 0, 0),
    "substring": (_of_text(_substring), 1, 2),
    "upper": (_of_text(str.upper), 0, 0),
    "lower": (_of_text(str.lower), 0, 0),
    "replace": (_of_text(lambda text, one, other: text.replace(one, other)), 2, 2),
    "toString": (_to_string, 0, 0),
    "toInteger": (_to_number(int, "integer"), 0, 0),
    "toDecimal": (_to_number(Decimal, "decimal"), 0, 0),
    "toBoolean": (_to_boolean, 0, 0),
    "abs": (_number(abs), 0, 0),
    "ceiling": (_number(lambda value: -int(-value // 1)), 0, 0),
    "floor": (_number(lambda value: int(value // 1)), 0, 0),
    "truncate": (_number(int), 0, 0),
    "round": (_number(round), 0, 0),
    "now": (_now("dateTime", "%Y-%m-%dT%H:%M:%S+00:00"), 0, 0),
    "today": (_now("date", "%Y-%m-%d"), 0, 0),
}
REGULAR = frozenset({"matches", "replaceMatches"})  # functions that run a regular expression


def _spent(env: Env, nodes: Nodes) -> Nodes:
    env.spend(len(nodes))
    return nodes


def same(left: Nodes, right: Nodes, how: str) -> bool | None:
    """Say whether two collections are equal (`=`) or equivalent (`~`); None for `=` with an empty one."""
    if how == "~":
        if len(left) != len(right):
            return False
        return all(any(equivalent(node, other) for other in right) for node in left)
    if not left or not right:
        return None
    if len(left) != len(right):
        return False
    found = [equal(node, other) for node, other in zip(left, right, strict=True)]
    return False if False in found else None if None in found else True
