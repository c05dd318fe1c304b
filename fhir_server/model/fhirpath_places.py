"""Where a FHIRPath leads within a resource: not the values but the places that hold them, so that they can be changed.

Source: FHIRPath 2.0, the part that FHIR R4 fhirpatch needs.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fhir_server.model import fhirpath_engine as fhirpath
from fhir_server.model.definitions import Element, elements
from imaging.errors import AppError, Category

Json = dict[str, Any]

LONGEST = 1000  # characters of a path
MOST_JUDGED = 10_000  # elements that criteria of one patch may look at

_TOKEN = re.compile(
    r"\s*(?:(?P<name>[A-Za-z_]\w*)|`(?P<quoted>[^`]+)`|\[\s*(?P<index>\d{1,6})\s*\]|(?P<sign>[.()]))", re.ASCII
)
_STRING = re.compile(r"'((?:[^'\\]|\\.)*)'")
_EQUALITY = r"([A-Za-z]\w*)\s*=\s*'([^'\\]*)'"
_EQUALITIES = re.compile(rf"{_EQUALITY}(?:\s+and\s+{_EQUALITY})*", re.ASCII)
_LAST = re.compile(r"(.+)\.\s*`?([A-Za-z][A-Za-z0-9]*)`?", re.S)


@dataclass(frozen=True, slots=True)
class Place:
    """One place: `holder[key]` is its value. `above` is the place that it is a part of; None: the resource itself.

    siblings   where the holder is a list of primitives: the list of their ids and extensions, and who holds both
    """

    holder: Any
    key: str | int
    kind: str
    element: Element | None = None
    above: "Place | None" = None
    siblings: tuple[Json, str] | None = None

    @property
    def is_root(self) -> bool:
        """Whether this is the resource itself."""
        return self.above is None

    @property
    def value(self) -> Any:
        """What lies here; None where a primitive has extensions only."""
        if isinstance(self.key, int):
            return self.holder[self.key] if self.key < len(self.holder) else None
        return self.holder.get(self.key)

    def content(self, where: str) -> Json:
        """Return the elements of what lies here; of a primitive those that JSON keeps beside it. Raises CONFLICT."""
        value = self.value
        if isinstance(value, dict):
            return value
        if elements(self.kind) or self.kind == "xhtml":
            raise AppError(Category.CONFLICT, "there is nothing at this place", where=where)
        found: Json
        if self.siblings is None:
            found = self.holder.setdefault(f"_{self.key}", {})
            return found
        holder, name = self.siblings
        beside = holder.setdefault(f"_{name}", [])
        beside += [None] * (int(self.key) + 1 - len(beside))
        beside[self.key] = beside[self.key] or {}
        found = beside[self.key]
        return found

    def extra(self) -> Json | None:
        """Return the id and extensions of a primitive, None without any."""
        if self.siblings is not None:
            holder, name = self.siblings
            beside = holder.get(f"_{name}", [])
            return beside[self.key] if int(self.key) < len(beside) else None
        found = self.holder.get(f"_{self.key}") if isinstance(self.holder, dict) else None
        return found if isinstance(found, dict) else None

    def put(self, value: Any, sibling: Any) -> None:
        """Put a value into a list in place of what lies here."""
        self.holder[self.key] = value
        if self.siblings is not None:
            holder, name = self.siblings
            if sibling is not None or f"_{name}" in holder:
                self.content("")
                holder[f"_{name}"][self.key] = sibling
                _drop_empty(holder, f"_{name}")

    def remove(self) -> None:
        """Take away what lies here, and what holds nothing any more without it."""
        if isinstance(self.key, int):
            if self.siblings is None:
                del self.holder[self.key]
            else:
                holder, name = self.siblings
                for each in (holder.get(name), holder.get(f"_{name}")):
                    if isinstance(each, list) and self.key < len(each):
                        del each[self.key]
                _drop_empty(holder, name)
                _drop_empty(holder, f"_{name}")
        else:
            self.holder.pop(self.key, None)
            self.holder.pop(f"_{self.key}", None)
        if self.above is not None:
            self.above.tidy()

    def tidy(self) -> None:
        """Leave out lists and elements that have become empty: FHIR has none."""
        content = self.value if isinstance(self.value, dict) else self.extra()
        if content is None:
            return
        for name in [name for name, item in content.items() if item in ([], {})]:
            del content[name]
        if content or self.is_root:
            return
        if content is self.value:
            self.remove()
        elif self.siblings is None:
            del self.holder[f"_{self.key}"]
        else:
            holder, name = self.siblings
            holder[f"_{name}"][self.key] = None
            _drop_empty(holder, f"_{name}")


@dataclass(slots=True)
class Effort:
    """How much the criteria of one patch have looked at: elements, and steps of the evaluator, which bounds those."""

    judged: int = 0
    steps: int = 0

    def take(self, steps: int) -> None:
        """Count one element, and the steps up to now. Raises TOO_LARGE."""
        self.judged, self.steps = self.judged + 1, steps
        if self.judged > MOST_JUDGED:
            raise AppError(Category.TOO_LARGE, f"the criteria look at more than {MOST_JUDGED} elements")


def places(resource: Json, path: str, effort: Effort) -> list[Place]:
    """Return the places that a path leads to, in document order. Raises INVALID for a path that is not understood."""
    if len(path) > LONGEST:
        raise AppError(Category.INVALID, f"the path is longer than {LONGEST} characters")
    walk = _Walk(path, effort)
    root = Place({"": resource}, "", resource["resourceType"])
    found = walk.expression([root])
    walk.expect_end()
    return found


def split_last(path: str) -> tuple[str, str] | None:
    """Return the path of what holds a list and the name of the list; None for a path that does not end in a name."""
    match = _LAST.fullmatch(path.strip())
    return (match[1], match[2]) if match else None


class _Walk:
    """Reads a path and walks it at the same time."""

    def __init__(self, text: str, effort: Effort) -> None:
        self._text = text
        self._effort = effort
        self._at = 0

    def expression(self, context: list[Place]) -> list[Place]:
        found = self._term(context)
        while self._word("as"):
            found = _of_type(found, self._name())
        return found

    def expect_end(self) -> None:
        if self._text[self._at :].strip():
            raise self._wrong()

    def _term(self, context: list[Place]) -> list[Place]:
        if self._sign("("):
            found = self.expression(context)
            self._expect(")")
        else:
            name = self._name()
            if self._is_next("("):
                found = self._call(context, name)
            else:
                is_type = name in {context[0].kind, "Resource", "DomainResource"} if context else True
                found = context if is_type else _children(context, name)
        while True:
            if self._sign("."):
                name = self._name()
                found = self._call(found, name) if self._is_next("(") else _children(found, name)
            elif (index := self._index()) is not None:
                found = found[index : index + 1]
            else:
                return found

    def _call(self, found: list[Place], name: str) -> list[Place]:
        argument = self._argument()
        if name == "where":
            criterion = _criterion(argument, self._effort)
            return [each for each in found if criterion(each)]
        if name == "extension":
            match = _STRING.fullmatch(argument)
            if match is None:
                raise self._wrong()
            return [each for each in _children(found, "extension") if _url(each) == match[1]]
        if name in {"ofType", "as"}:
            return _of_type(found, argument)
        if argument:
            raise self._wrong()
        if name == "first":
            return found[:1]
        if name == "last":
            return found[-1:]
        if name == "single":
            if len(found) > 1:
                raise AppError(Category.CONFLICT, "single() finds several elements")
            return found
        raise self._wrong()

    def _argument(self) -> str:
        """Return the text between the parenthesis here and its partner."""
        self._expect("(")
        start, depth = self._at, 1
        while self._at < len(self._text):
            text = _STRING.match(self._text, self._at)
            if text:
                self._at = text.end()
                continue
            depth += {"(": 1, ")": -1}.get(self._text[self._at], 0)
            self._at += 1
            if depth == 0:
                return self._text[start : self._at - 1].strip()
        raise self._wrong()

    def _match(self, group: str, wanted: str = "") -> str | None:
        match = _TOKEN.match(self._text, self._at)
        if match is None or match[group] is None or (wanted and match[group] != wanted):
            return None
        self._at = match.end()
        return match[group]

    def _name(self) -> str:
        found = self._match("name") or self._match("quoted")
        if found is None:
            raise self._wrong()
        return found

    def _index(self) -> int | None:
        found = self._match("index")
        return None if found is None else int(found)

    def _word(self, word: str) -> bool:
        return self._match("name", word) is not None

    def _sign(self, sign: str) -> bool:
        return self._match("sign", sign) is not None

    def _is_next(self, sign: str) -> bool:
        match = _TOKEN.match(self._text, self._at)
        return match is not None and match["sign"] == sign

    def _expect(self, sign: str) -> None:
        if not self._sign(sign):
            raise self._wrong()

    def _wrong(self) -> AppError:
        return AppError(Category.INVALID, f"the path is not understood at character {self._at}")


def _children(found: list[Place], name: str) -> list[Place]:
    result: list[Place] = []
    for place in found:
        value = place.value
        content = value if isinstance(value, dict) else place.extra()
        kind = place.kind if elements(place.kind) else "Element"
        known = elements(kind)
        element = known.get(name) or known.get(f"{name}[x]")
        if element is None:
            raise AppError(Category.INVALID, f"{kind} has no element {name[:64]!r}")
        for key, item_kind in _keys(element, name):
            if content is not None and (key in content or f"_{key}" in content):
                result += _items(content, key, item_kind, element, place)
    return result


def _url(extension: Place) -> Any:
    return extension.value.get("url") if isinstance(extension.value, dict) else None


def _keys(element: Element, name: str) -> list[tuple[str, str]]:
    if not element.name.endswith("[x]"):
        return [(name, element.types[0])]
    return [(name + kind[:1].upper() + kind[1:], kind) for kind in element.types]


def _items(content: Json, key: str, kind: str, element: Element, above: Place) -> list[Place]:
    value, extra = content.get(key), content.get(f"_{key}")
    if not element.is_array:
        return [Place(content, key, _actual(kind, value), element, above)]
    items = value if isinstance(value, list) else []
    length = max(len(items), len(extra) if isinstance(extra, list) else 0)
    is_primitive = not elements(kind) and kind != "Resource"
    if is_primitive and key not in content:
        items = content[key] = [None] * length
    siblings = (content, key) if is_primitive else None
    return [
        Place(items, position, _actual(kind, item), element, above, siblings)
        for position, item in enumerate([*items, *[None] * (length - len(items))])
    ]


def _actual(kind: str, value: Any) -> str:
    """Return the data type; a contained resource says itself which it is."""
    return str(value.get("resourceType", kind)) if kind == "Resource" and isinstance(value, dict) else kind


def _of_type(found: list[Place], name: str) -> list[Place]:
    wanted = name.strip().removeprefix("FHIR.").removeprefix("System.").lower()
    return [each for each in found if each.kind.lower() == wanted]


def _criterion(text: str, effort: Effort) -> Callable[[Place], bool]:
    if _EQUALITIES.fullmatch(text):
        wanted = re.findall(_EQUALITY, text)
        return lambda place: isinstance(place.value, dict) and all(place.value.get(name) == it for name, it in wanted)
    expression = fhirpath.compile(text)

    def holds(place: Place) -> bool:
        if place.value is None:
            return False
        node = (place.kind, place.value, place.extra())
        env = fhirpath.Env(node, node, this=[node], steps=effort.steps)
        try:
            return fhirpath.truth(expression(env, [node])) is True
        finally:
            effort.take(env.steps)

    return holds


def _drop_empty(holder: Json, name: str) -> None:
    if all(each is None for each in holder.get(name, [None])):
        holder.pop(name, None)
