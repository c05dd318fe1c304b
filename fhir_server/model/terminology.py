"""Code systems and value sets: what a code means, which codes a value set has, what lies above and below a code.

Pure: resources are handed in, those that ship and a function that finds others by canonical URL.
No regular expression from outside is run. Source: FHIR R4 valueset, codesystem.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from imaging.errors import AppError, Category

Json = Mapping[str, Any]
Find = Callable[[str, str], Json | None]  # (resource type, canonical URL without version) -> resource

MOST_CODES = 10_000  # in an expansion
MAX_DEPTH = 10  # of value sets within value sets
SEPARATOR = "|"  # between canonical URL and version


class Coding(NamedTuple):
    """A code of a system, with the words for it."""

    system: str
    code: str
    display: str


class Concept(NamedTuple):
    """One concept of a code system."""

    code: str
    display: str
    definition: str
    properties: tuple[tuple[str, Any], ...]  # of uploaded code systems, and which further children it has
    designations: tuple[Json, ...] = ()  # other words, of uploaded code systems


@dataclass(frozen=True)
class CodeSystem:
    """A code system: its concepts in order, and how they lie above one another."""

    url: str
    name: str
    version: str
    content: str  # complete, fragment, example, not-present, supplement
    folds_case: bool
    concepts: Mapping[str, Concept]
    parents: Mapping[str, tuple[str, ...]]
    children: Mapping[str, tuple[str, ...]] = field(repr=False)

    def key(self, code: str) -> str:
        """Return under what a code stands in `concepts`, `parents` and `children`."""
        return code.lower() if self.folds_case else code

    def find(self, code: str) -> Concept | None:
        """Return the concept of a code, None for an unknown one."""
        return self.concepts.get(self.key(code))

    def below(self, code: str) -> list[str]:
        """Return the keys of the code and of everything below it."""
        return _closure(self.key(code), self.children)

    def above(self, code: str) -> list[str]:
        """Return the keys of the code and of everything above it."""
        return _closure(self.key(code), self.parents)


class Terminology:
    """All code systems and value sets at hand."""

    def __init__(self, shipped: Iterable[Json], find: Find = lambda kind, url: None) -> None:
        """Take resources that ship with the server; `find` is asked for what they do not have."""
        self._shipped = {(item["resourceType"], item["url"]): item for item in shipped}
        self._implicit = {item["valueSet"]: item["url"] for item in self._shipped.values() if "valueSet" in item}
        self._find = find
        self._parsed = lru_cache(maxsize=256)(lambda url: _code_system(self._shipped["CodeSystem", url]))

    def using(self, find: Find) -> "Terminology":
        """Return the same with another way to find what does not ship."""
        other = Terminology((), find)
        other._shipped, other._implicit, other._parsed = self._shipped, self._implicit, self._parsed
        return other

    def resources(self, kind: str) -> Iterator[Json]:
        """Yield the resources of a type that ship."""
        return (item for (found, _), item in self._shipped.items() if found == kind)

    def code_system(self, url: str) -> CodeSystem:
        """Return a code system by canonical URL. Raises NOT_FOUND."""
        base, _, version = url.partition(SEPARATOR)
        if ("CodeSystem", base) in self._shipped:
            found = self._parsed(base)
        else:
            item = self._find("CodeSystem", base)
            if item is None:
                raise AppError(Category.NOT_FOUND, f"the code system {base[:200]} is not known here", where="system")
            found = _code_system(item)
        if version and found.version != version:
            raise AppError(Category.NOT_FOUND, f"the code system {base[:200]} is not known in this version")
        return found

    def value_set(self, url: str) -> Json:
        """Return a value set by canonical URL; a code system's own is made of it. Raises NOT_FOUND."""
        base, _, version = url.partition(SEPARATOR)
        item = self._shipped.get(("ValueSet", base)) or self._find("ValueSet", base)
        if item is None and base in self._implicit:
            include = [{"system": self._implicit[base]}]
            return {"resourceType": "ValueSet", "url": base, "status": "active", "compose": {"include": include}}
        if item is None or (version and item.get("version") != version):
            raise AppError(Category.NOT_FOUND, f"the value set {url[:200]} is not known here", where="url")
        return item

    def expand(self, value_set: str | Json, *, limit: int = MOST_CODES) -> list[Coding]:
        """Return the codes of a value set, each once.

        Raises NOT_FOUND, UNSUPPORTED where it depends on what is not at hand, TOO_LARGE beyond the limit.
        """
        found: dict[tuple[str, str], Coding] = {}
        for coding in self._codes(value_set, 0):
            found.setdefault((coding.system, coding.code), coding)
            if len(found) > limit:
                message = f"the value set has more than {limit} codes"
                raise AppError(Category.TOO_LARGE, message, where="ValueSet.compose")
        return list(found.values())

    def member(self, value_set: str | Json, system: str | None, code: str) -> Coding | None:
        """Return the coding of a value set that has this code (of any system for None), None when it has none.

        Raises as `expand` does, but a value set may be larger, and of a system of which there are no codes here every
        code is a member where the whole system is included.
        """
        item = self.value_set(value_set) if isinstance(value_set, str) else value_set
        return self._member(item, system, code, 0)

    def _member(self, item: Json, system: str | None, code: str, depth: int) -> Coding | None:
        compose = self._compose(item, depth)
        if compose is None:
            return next((each for each in _listed(item) if each.code == code and system in {None, each.system}), None)
        for exclude in compose.get("exclude", ()):
            if self._included(exclude, system, code, depth):
                return None
        found = (self._included(include, system, code, depth) for include in compose.get("include", ()))
        return next((each for each in found if each is not None), None)

    def _included(self, include: Json, system: str | None, code: str, depth: int) -> Coding | None:
        coding: Coding | None = None
        if "system" in include:
            coding = self._of_system(include, system, code)
            if coding is None:
                return None
            system = coding.system
        for url in include.get("valueSet", ()):
            inner = self._member(self.value_set(url), system, code, depth + 1)
            if inner is None:
                return None
            coding = coding or inner
        return coding

    def _of_system(self, include: Json, system: str | None, code: str) -> Coding | None:
        url = include["system"]
        if system not in {None, url}:
            return None
        if "concept" in include:
            return next((each for each in self._named(include) if each.code == code), None)
        try:
            known = self.code_system(url)
        except AppError:
            known = None
        if known is None or known.content in {"not-present", "example"}:
            if "filter" in include:
                raise _absent(url)
            return Coding(url, code, "") if system else None
        key, concept = known.key(code), known.find(code)
        if concept is None or not all(key in _filtered(known, rule) for rule in include.get("filter", ())):
            return None
        return Coding(url, concept.code, concept.display)

    def _codes(self, value_set: str | Json, depth: int) -> Iterator[Coding]:
        item = self.value_set(value_set) if isinstance(value_set, str) else value_set
        compose = self._compose(item, depth)
        if compose is None:
            yield from _listed(item)
            return
        excluded = {
            (each.system, each.code)
            for exclude in compose.get("exclude", ())
            for each in self._of_include(exclude, depth)
        }
        for include in compose.get("include", ()):
            for coding in self._of_include(include, depth):
                if (coding.system, coding.code) not in excluded:
                    yield coding

    def _of_include(self, include: Json, depth: int) -> Iterator[Coding]:
        inner = [list(self._codes(url, depth + 1)) for url in include.get("valueSet", ())]
        if "system" in include:
            inner.insert(0, list(self._of_whole(include)))
        if not inner:
            raise AppError(Category.INVALID, "an include names neither system nor value set", where="ValueSet.compose")
        sets = [{(each.system, each.code) for each in codings} for codings in inner[1:]]
        yield from (each for each in inner[0] if all((each.system, each.code) in others for others in sets))

    def _of_whole(self, include: Json) -> Iterator[Coding]:
        if "concept" in include:
            yield from self._named(include)
            return
        try:
            known = self.code_system(include["system"])
        except AppError as error:
            raise _absent(include["system"]) from error
        if known.content != "complete":
            raise _absent(include["system"])
        kept = [_filtered(known, rule) for rule in include.get("filter", ())]
        for key, concept in known.concepts.items():
            if all(key in codes for codes in kept):
                yield Coding(known.url, concept.code, concept.display)

    def _named(self, include: Json) -> Iterator[Coding]:
        """Yield the concepts that an include lists, in the words of their system where it has none of its own."""
        try:
            known: CodeSystem | None = self.code_system(include["system"])
        except AppError:
            known = None
        for each in include["concept"]:
            concept = known.find(each["code"]) if known else None
            yield Coding(include["system"], each["code"], each.get("display") or (concept.display if concept else ""))

    def _compose(self, item: Json, depth: int) -> Json | None:
        if depth > MAX_DEPTH:
            message = f"value sets refer to one another deeper than {MAX_DEPTH} levels"
            raise AppError(Category.INVALID, message, where="ValueSet.compose")
        if "compose" not in item and "expansion" not in item:
            raise AppError(Category.INVALID, "the value set has neither compose nor expansion", where="ValueSet")
        compose: Json | None = item.get("compose")
        return compose


def _listed(item: Json) -> Iterator[Coding]:
    """Yield the codes of a value set that has nothing but an expansion."""
    waiting = [*item["expansion"].get("contains", ())]
    while waiting:
        each = waiting.pop(0)
        waiting = [*each.get("contains", ()), *waiting]
        if "code" in each and not each.get("abstract"):
            yield Coding(each.get("system", ""), each["code"], each.get("display", ""))


def _filtered(known: CodeSystem, rule: Json) -> set[str]:
    name, operation, value = (str(rule.get(part, "")) for part in ("property", "op", "value"))
    if name in {"concept", "code", "parent"} and operation in _BY_PLACE:
        return _BY_PLACE[operation](known, value)
    if operation in {"in", "not-in"} and name in {"concept", "code"}:
        codes = {each.strip() for each in value.split(",")}
        return {code for code in known.concepts if (code in codes) == (operation == "in")}
    if name == "parent" and operation == "=":
        return set(known.children.get(known.key(value), ()))
    if operation == "=":
        return {code for code, concept in known.concepts.items() if (name, value) in _texts(concept)}
    message = f"the filter {name[:40]} {operation[:20]} is not supported"
    raise AppError(Category.UNSUPPORTED, message, where="ValueSet.compose.include.filter")


_BY_PLACE: dict[str, Callable[[CodeSystem, str], set[str]]] = {
    "is-a": lambda known, code: set(known.below(code)),
    "descendent-of": lambda known, code: set(known.below(code)) - {known.key(code)},
    "is-not-a": lambda known, code: set(known.concepts) - set(known.below(code)),
    "generalizes": lambda known, code: set(known.above(code)),
}


def _texts(concept: Concept) -> set[tuple[str, str]]:
    return {(name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in concept.properties}


def _code_system(item: Json) -> CodeSystem:
    folds_case = item.get("caseSensitive") is False
    concepts: dict[str, Concept] = {}
    children: dict[str, dict[str, None]] = {}
    waiting: list[tuple[str, Json]] = [("", each) for each in reversed(item.get("concept", ()))]
    while waiting:
        parent, each = waiting.pop()
        code = each["code"].lower() if folds_case else each["code"]
        properties = tuple((one["code"], _value(one)) for one in each.get("property", ()))
        words = each.get("display", ""), each.get("definition", "")
        concepts[code] = Concept(each["code"], *words, properties, tuple(each.get("designation", ())))
        if parent:
            children.setdefault(parent, {})[code] = None
        for name, value in properties:
            if name == "child":
                children.setdefault(code, {})[str(value)] = None
            elif name == "subsumedBy":
                children.setdefault(str(value), {})[code] = None
        waiting += [(code, inner) for inner in reversed(each.get("concept", ()))]
    parents: dict[str, list[str]] = {}
    for parent, codes in children.items():
        for code in codes:
            parents.setdefault(code, []).append(parent)
    return CodeSystem(
        url=item["url"],
        name=item.get("title") or item.get("name", ""),
        version=item.get("version", ""),
        content=item.get("content", "complete"),
        folds_case=folds_case,
        concepts=concepts,
        parents={code: tuple(found) for code, found in parents.items()},
        children={code: tuple(found) for code, found in children.items()},
    )


def _value(item: Json) -> Any:
    return next((value for name, value in item.items() if name.startswith("value")), None)


def _closure(code: str, neighbours: Mapping[str, tuple[str, ...]]) -> list[str]:
    found: dict[str, None] = {code: None}
    waiting = [code]
    while waiting:
        for each in neighbours.get(waiting.pop(), ()):
            if each not in found:
                found[each] = None
                waiting.append(each)
    return list(found)


def _absent(system: str) -> AppError:
    message = f"the code system {system[:200]} is not kept here, so its codes cannot be listed"
    return AppError(Category.UNSUPPORTED, message, where="system")
