"""A search request as a value: criteria, what comes with the matches, order, page size.

Strict by default: whatever is not understood is refused. With `lenient=True` it is collected in `Query.ignored`
instead. Pure. Source: FHIR R4 search 3.1.1.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import NamedTuple

from fhir_server.model.criteria import DEFAULT_COUNT, MAX_INCLUDES, Clause, Limits, clause
from fhir_server.model.definitions import elements, parameters, resource_types
from fhir_server.model.fhirpath import is_single
from imaging.errors import AppError, Category

CURSOR = "_cursor"
TOTALS = ("none", "estimate", "accurate")
SUMMARIES = ("true", "text", "data", "count", "false")
MAX_SORT_KEYS = 3
NOT_SEARCH = frozenset({"_format", "_pretty"})  # general parameters of the interface; they never change what matches
UNSUPPORTED = frozenset(
    {"_contained", "_containedType", "_content", "_filter", "_has", "_list", "_query", "_score", "_text", "_type"}
)


class Include(NamedTuple):
    """Resources that come with the matches: along `parameter` of `source`, to `target` types ("" for any)."""

    source: str
    parameter: str  # `*` for every reference
    target: str
    is_iterated: bool


class SortKey(NamedTuple):
    """One key of the order; `code` is `_id`, `_lastUpdated` or a date parameter with one value at most."""

    code: str
    is_descending: bool


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of one resource type. No sort means newest created first."""

    type: str
    clauses: tuple[Clause, ...] = ()
    include: tuple[Include, ...] = ()
    revinclude: tuple[Include, ...] = ()
    sort: tuple[SortKey, ...] = ()
    count: int = DEFAULT_COUNT
    total: str | None = None
    summary: str | None = None
    elements: tuple[str, ...] = ()
    cursor: str | None = None
    max_includes: int = MAX_INCLUDES
    used: tuple[tuple[str, str], ...] = field(default=(), compare=False)  # for the self link; without the cursor
    ignored: tuple[str, ...] = field(default=(), compare=False)  # names that lenient handling left out

    @property
    def fingerprint(self) -> str:
        """A short text equal for equal criteria and order: a cursor is only good for the query that made it."""
        content = repr((self.type, self.clauses, self.sort))
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def counts_only(self) -> bool:
        """Whether no resources are wanted, only how many there are."""
        return self.summary == "count" or self.count == 0


def parse(
    resource_type: str,
    params: Iterable[tuple[str, str]],
    *,
    base_url: str = "",
    limits: Limits | None = None,
    lenient: bool = False,
) -> Query:
    """Return the query that the parameters ask. Raises INVALID, naming the first parameter that is not understood."""
    limits = limits or Limits()
    given = [(name, value) for name, value in params if name not in NOT_SEARCH]
    if len(given) > limits.parameters:
        message = f"{len(given)} search parameters, at most {limits.parameters} are accepted"
        raise AppError(Category.INVALID, message, where="search")
    query = Query(resource_type, count=limits.default_count, max_includes=limits.includes)
    seen: set[str] = set()
    for name, value in given:
        try:
            query = _add(query, name, value, seen, base_url, limits)
        except AppError:
            # A cursor that is dropped would silently start again at the first page.
            if not lenient or name == CURSOR:
                raise
            query = replace(query, ignored=(*query.ignored, name))
    return query


def _add(query: Query, name: str, value: str, seen: set[str], base_url: str, limits: Limits) -> Query:
    base, _, modifier = name.partition(":")
    result = _RESULT_PARAMETERS.get(base)
    if result is None:
        if base in UNSUPPORTED:
            raise _refused(name, "this server does not support it")
        found = clause(query.type, name, value, base_url=base_url, limits=limits)
        query = replace(query, clauses=(*query.clauses, found))
    else:
        if base in seen and base not in _REPEATABLE:
            raise _refused(name, "it is given more than once")
        seen.add(base)
        query = result(query, modifier, value, limits)
    return query if name == CURSOR else replace(query, used=(*query.used, (name, value)))


def _refused(name: str, reason: str) -> AppError:
    return AppError(Category.INVALID, f"search parameter {name[:64]}: {reason}", where=name[:64])


def _count(query: Query, modifier: str, value: str, limits: Limits) -> Query:
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise _refused("_count", "the value is a number, 0 or more")
    return replace(query, count=min(int(value), limits.count))


def _total(query: Query, modifier: str, value: str, limits: Limits) -> Query:
    return replace(query, total=_one_of("_total", value, TOTALS))


def _summary(query: Query, modifier: str, value: str, limits: Limits) -> Query:
    if query.elements:
        raise _refused("_summary", "it cannot be combined with _elements")
    return replace(query, summary=_one_of("_summary", value, SUMMARIES))


def _elements(query: Query, modifier: str, value: str, limits: Limits) -> Query:
    if query.summary:
        raise _refused("_elements", "it cannot be combined with _summary")
    names = tuple(name.strip() for name in value.split(","))
    known = {name.removesuffix("[x]") for name in elements(query.type)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise _refused("_elements", f"{query.type} has no top element {unknown[0][:64]!r}")
    return replace(query, elements=names)


def _sort(query: Query, modifier: str, value: str, limits: Limits) -> Query:
    texts = [text.strip() for text in value.split(",")]
    if len(texts) > MAX_SORT_KEYS:
        raise _refused("_sort", f"at most {MAX_SORT_KEYS} keys are accepted")
    return replace(query, sort=tuple(_sort_key(query.type, text) for text in texts))


def _sort_key(resource_type: str, text: str) -> SortKey:
    code = text.removeprefix("-")
    if code not in sortable(resource_type):
        offered = ", ".join(sorted(sortable(resource_type)))
        raise _refused("_sort", f"{resource_type} cannot be sorted by {code[:64]!r}; it can by: {offered}")
    return SortKey(code, text.startswith("-"))


@cache
def sortable(resource_type: str) -> frozenset[str]:
    """Return what a type can be sorted by: `_id`, `_lastUpdated`, and date parameters with one value at most."""
    return frozenset(
        {code for code in parameters(resource_type) if is_scalar_date(resource_type, code)} | {"_id", "_lastUpdated"}
    )


def is_scalar_date(resource_type: str, code: str) -> bool:
    """Say whether a parameter is a date that a resource has once at most."""
    parameter = parameters(resource_type).get(code)
    if parameter is None or parameter.type != "date" or code == "_lastUpdated":
        return False
    return is_single(parameter.expression, resource_type)


def _include(query: Query, modifier: str, value: str, limits: Limits) -> Query:
    found = _include_of("_include", modifier, f"{query.type}:*" if value == "*" else value)
    if found.source != query.type and not found.is_iterated:
        raise _refused("_include", f"it starts at {found.source}, but {query.type} is searched")
    return replace(query, include=(*query.include, found))


def _revinclude(query: Query, modifier: str, value: str, limits: Limits) -> Query:
    found = _include_of("_revinclude", modifier, value)
    if found.parameter == "*":
        raise _refused("_revinclude", "name the parameter; the wildcard is only supported for _include")
    return replace(query, revinclude=(*query.revinclude, found))


def _include_of(name: str, modifier: str, value: str) -> Include:
    parts = value.split(":")
    if modifier not in {"", "iterate", "recurse"} or not 2 <= len(parts) <= 3:
        raise _refused(name, "it is written Type:parameter or Type:parameter:Type; the only modifier is :iterate")
    source, code, target = (*parts, "")[:3]
    if source not in resource_types() or (target and target not in resource_types()):
        raise _refused(name, "it names an unknown resource type")
    parameter = parameters(source).get(code)
    if code != "*" and (parameter is None or parameter.type != "reference"):
        raise _refused(name, f"{source} has no reference parameter {code[:64]!r}")
    return Include(source, code, target, bool(modifier))


def _cursor(query: Query, modifier: str, value: str, limits: Limits) -> Query:
    if not value or len(value) > limits.value_length:
        raise _refused(CURSOR, "it is not one of this server's")
    return replace(query, cursor=value)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise _refused(name, f"the value is one of: {', '.join(allowed)}")
    return value


_RESULT_PARAMETERS: dict[str, Callable[[Query, str, str, Limits], Query]] = {
    "_count": _count,
    "_total": _total,
    "_summary": _summary,
    "_elements": _elements,
    "_sort": _sort,
    "_include": _include,
    "_revinclude": _revinclude,
    CURSOR: _cursor,
}
_REPEATABLE = frozenset({"_include", "_revinclude"})
