"""A search request as a value: criteria, what comes with the matches, order, page size.

Strict by default: whatever is not understood is refused. With `lenient=True` it is collected in `Query.ignored`
instead. Pure. Source: FHIR R4 search 3.1.1.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from fhir_server.model import filter_language
from fhir_server.model.chains import Criterion, Reading, criterion, refused
from fhir_server.model.criteria import DEFAULT_COUNT, MAX_INCLUDES, Limits, Table
from fhir_server.model.definitions import Parameter, compartments, elements, parameters, resource_types
from fhir_server.model.fhirpath import is_single
from fhir_server.model.resources import RESOURCES
from imaging.errors import AppError, Category

CURSOR = "_cursor"
TOTALS = ("none", "estimate", "accurate")
SUMMARIES = ("true", "text", "data", "count", "false")
CONTAINED = ("false", "true", "both")
CONTAINED_TYPES = ("container", "contained")
MAX_SORT_KEYS = 5
NOT_SEARCH = frozenset({"_format", "_pretty"})  # general parameters of the interface; they never change what matches
UNSUPPORTED = frozenset({"_content", "_query", "_score", "_text"})
OWN_FIELDS = frozenset({"_id", "_lastUpdated"})  # fields of a document itself
_UNSORTED = frozenset({"composite", "special"})


class Include(NamedTuple):
    """Resources that come with the matches: along `parameter` of `source`, to `target` types ("" for any)."""

    source: str
    parameter: str  # `*` for every reference
    target: str
    is_iterated: bool


class SortKey(NamedTuple):
    """One key of the order; `type` is that of the search parameter."""

    code: str
    is_descending: bool
    type: str = "date"


class Branch(NamedTuple):
    """What is asked of one of several resource types."""

    type: str
    clauses: tuple[Criterion, ...]


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of one resource type, or of several. No sort means newest created first."""

    type: str  # "" for several, which `branches` name
    clauses: tuple[Criterion, ...] = ()
    include: tuple[Include, ...] = ()
    revinclude: tuple[Include, ...] = ()
    sort: tuple[SortKey, ...] = ()
    count: int = DEFAULT_COUNT
    total: str | None = None
    summary: str | None = None
    elements: tuple[str, ...] = ()
    cursor: str | None = None
    max_includes: int = MAX_INCLUDES
    branches: tuple[Branch, ...] = ()
    compartment: str = ""  # such as `Patient/1`
    address: str = ""  # below the base, where it is not that of a search
    contained: str = "false"  # whether contained resources match: false, true (they alone), both
    contained_type: str = "container"  # what is told of a contained match
    used: tuple[tuple[str, str], ...] = field(default=(), compare=False)  # for the self link; without the cursor
    ignored: tuple[str, ...] = field(default=(), compare=False)  # names that lenient handling left out

    @property
    def fingerprint(self) -> str:
        """A short text equal for equal criteria and order: a cursor is only good for the query that made it."""
        asked = (self.type, self.clauses, self.sort, self.branches, self.compartment, self.contained)
        return hashlib.sha256(repr(asked).encode()).hexdigest()[:16]

    @property
    def counts_only(self) -> bool:
        """Whether no resources are wanted, only how many there are."""
        return self.summary == "count" or self.count == 0

    @property
    def asked(self) -> tuple[Branch, ...]:
        """What is asked of each type."""
        return self.branches if not self.type else (Branch(self.type, self.clauses),)

    @property
    def path(self) -> str:
        """The address of the search below the base, such as `Patient/1/ImagingStudy`."""
        kind = self.type or ("*" if self.compartment else "")
        return self.address or "/".join(part for part in (self.compartment, kind) if part)


def parse(
    resource_type: str,
    params: Iterable[tuple[str, str]],
    *,
    base_url: str = "",
    limits: Limits | None = None,
    lenient: bool = False,
    compartment: str = "",
) -> Query:
    """Return the query that the parameters ask. Raises INVALID, naming the first parameter that is not understood.

    resource_type   "" for what `_type` names, or for every type
    compartment     within which is searched, such as `Patient/1`
    """
    limits = limits or Limits()
    given = [(name, value) for name, value in params if name not in NOT_SEARCH]
    if len(given) > limits.parameters:
        message = f"{len(given)} search parameters, at most {limits.parameters} are accepted"
        raise AppError(Category.INVALID, message, where="search")
    parser = _Parser(Reading(base_url, limits))
    query = Query(resource_type, count=limits.default_count, max_includes=limits.includes, compartment=compartment)
    if not resource_type:
        query = replace(query, branches=tuple(Branch(kind, ()) for kind in _types(given, compartment)))
    for name, value in given:
        try:
            query = parser.add(query, name, value)
        except AppError:
            # A cursor that is dropped would silently start again at the first page.
            if not lenient or name == CURSOR:
                raise
            query = replace(query, ignored=(*query.ignored, name))
    return query


def _types(given: list[tuple[str, str]], compartment: str) -> list[str]:
    """Return the types that `_type` names; all that there can be, where it is not given."""
    named = [kind.strip() for name, value in given if name == "_type" for kind in value.split(",")]
    unknown = [kind for kind in named if kind not in RESOURCES]
    if unknown:
        raise refused("_type", f"this server keeps no {unknown[0][:64]!r} resources")
    owner = compartment.partition("/")[0]
    within = [kind for kind in named or RESOURCES if not owner or owner in compartments(kind)]
    if not within:
        raise refused("_type", f"no resource of these types is in the compartment of a {owner}")
    return list(dict.fromkeys(within))


class _Parser:
    """Adds one parameter after another to a query."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.seen: set[str] = set()

    def add(self, query: Query, name: str, value: str) -> Query:
        base, _, modifier = name.partition(":")
        result = _RESULT_PARAMETERS.get(base)
        if result is None:
            if base in UNSUPPORTED:
                raise refused(name, "this server does not support it")
            query = self.with_criterion(query, name, value)
        else:
            if base in self.seen and base not in _REPEATABLE:
                raise refused(name, "it is given more than once")
            self.seen.add(base)
            query = result(query, modifier, value, self.reading)
        return query if name == CURSOR else replace(query, used=(*query.used, (name, value)))

    def with_criterion(self, query: Query, name: str, value: str) -> Query:
        if query.type:
            return replace(query, clauses=(*query.clauses, self.criterion(query.type, name, value)))
        branches: list[Branch] = []
        for branch in query.branches:
            try:
                found = self.criterion(branch.type, name, value)
            except AppError:
                # Of the types that nothing can refer to in this way, nothing is found; others have to know the name.
                if not name.startswith("_has:") or (branch is query.branches[-1] and not branches):
                    raise
                continue
            branches.append(branch._replace(clauses=(*branch.clauses, found)))
        return replace(query, branches=tuple(branches))

    def criterion(self, kind: str, name: str, value: str) -> Criterion:
        if name == filter_language.NAME:
            return filter_language.parse(kind, value, self.reading)
        return criterion(kind, name, value, self.reading)


def _count(query: Query, modifier: str, value: str, reading: Reading) -> Query:
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise refused("_count", "the value is a number, 0 or more")
    return replace(query, count=min(int(value), reading.limits.count))


def _type(query: Query, modifier: str, value: str, reading: Reading) -> Query:
    if query.type:
        raise refused("_type", f"{query.type} alone is searched here")
    return query  # was looked at first


def _total(query: Query, modifier: str, value: str, reading: Reading) -> Query:
    return replace(query, total=_one_of("_total", value, TOTALS))


def _contained(query: Query, modifier: str, value: str, reading: Reading) -> Query:
    if not query.type:
        raise refused("_contained", "name the type of the contained resources in the address")
    return replace(query, contained=_one_of("_contained", value, CONTAINED))


def _contained_type(query: Query, modifier: str, value: str, reading: Reading) -> Query:
    return replace(query, contained_type=_one_of("_containedType", value, CONTAINED_TYPES))


def _summary(query: Query, modifier: str, value: str, reading: Reading) -> Query:
    if query.elements:
        raise refused("_summary", "it cannot be combined with _elements")
    return replace(query, summary=_one_of("_summary", value, SUMMARIES))


def _elements(query: Query, modifier: str, value: str, reading: Reading) -> Query:
    if query.summary:
        raise refused("_elements", "it cannot be combined with _summary")
    names = tuple(name.strip() for name in value.split(","))
    known = {name.removesuffix("[x]") for branch in query.asked for name in elements(branch.type)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise refused("_elements", f"{query.type or 'no such type'} has no top element {unknown[0][:64]!r}")
    return replace(query, elements=names)


def _sort(query: Query, modifier: str, value: str, reading: Reading) -> Query:
    texts = [text.strip() for text in value.split(",")]
    if len(texts) > MAX_SORT_KEYS:
        raise refused("_sort", f"at most {MAX_SORT_KEYS} keys are accepted")
    return replace(query, sort=tuple(_sort_key(query.type, text, reading.table) for text in texts))


def _sort_key(resource_type: str, text: str, table: Table) -> SortKey:
    code = text.removeprefix("-")
    offered = sorts(table(resource_type).values()) if resource_type else dict.fromkeys(OWN_FIELDS, "token")
    if code not in offered:
        known = ", ".join(sorted(offered))
        what = resource_type or "what is of several types"
        raise refused("_sort", f"{what} cannot be sorted by {code[:64]!r}; it can by: {known}")
    return SortKey(code, text.startswith("-"), offered[code])


def sorts(known: Iterable[Parameter]) -> dict[str, str]:
    """Return by which of the parameters one can sort, with their types."""
    return {each.code: each.type for each in known if each.type not in _UNSORTED and each.code not in UNSUPPORTED}


def is_scalar_date(resource_type: str, code: str) -> bool:
    """Say whether an official parameter is a date that a resource has once at most."""
    parameter = parameters(resource_type).get(code)
    if parameter is None or parameter.type != "date" or code == "_lastUpdated":
        return False
    return is_single(parameter.expression, resource_type)


def _include(query: Query, modifier: str, value: str, reading: Reading) -> Query:
    kinds = {branch.type for branch in query.asked}
    if value == "*" and query.type:
        value = f"{query.type}:*"
    elif value == "*":
        raise refused("_include", "name the type: Type:*")
    found = _include_of("_include", modifier, value, reading)
    if found.source not in kinds and not found.is_iterated:
        raise refused("_include", f"it starts at {found.source}, but {query.type or 'other types'} is searched")
    return replace(query, include=(*query.include, found))


def _revinclude(query: Query, modifier: str, value: str, reading: Reading) -> Query:
    if value == "*":
        raise refused("_revinclude", "name the type that refers to the matches: Type:* or Type:parameter")
    found = _include_of("_revinclude", modifier, value, reading)
    return replace(query, revinclude=(*query.revinclude, found))


def _include_of(name: str, modifier: str, value: str, reading: Reading) -> Include:
    parts = value.split(":")
    if modifier not in {"", "iterate", "recurse"} or not 2 <= len(parts) <= 3:
        raise refused(name, "it is written Type:parameter or Type:parameter:Type; the only modifier is :iterate")
    source, code, target = (*parts, "")[:3]
    if source not in resource_types() or (target and target not in resource_types()):
        raise refused(name, "it names an unknown resource type")
    parameter = reading.table(source).get(code)
    if code != "*" and (parameter is None or parameter.type != "reference"):
        raise refused(name, f"{source} has no reference parameter {code[:64]!r}")
    return Include(source, code, target, bool(modifier))


def _cursor(query: Query, modifier: str, value: str, reading: Reading) -> Query:
    if not value or len(value) > reading.limits.value_length:
        raise refused(CURSOR, "it is not one of this server's")
    return replace(query, cursor=value)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise refused(name, f"the value is one of: {', '.join(allowed)}")
    return value


_RESULT_PARAMETERS: dict[str, Callable[[Query, str, str, Reading], Query]] = {
    "_contained": _contained,
    "_containedType": _contained_type,
    "_count": _count,
    "_total": _total,
    "_type": _type,
    "_summary": _summary,
    "_elements": _elements,
    "_sort": _sort,
    "_include": _include,
    "_revinclude": _revinclude,
    CURSOR: _cursor,
}
_REPEATABLE = frozenset({"_include", "_revinclude", "_type"})
