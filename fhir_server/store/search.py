"""Searching: one page of matches, what comes with them, and how many there are.

Everything read here goes through the restriction, included resources as well as matches.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pymongo.collection import Collection

from fhir_server.model import json
from fhir_server.model.query import Include, Query
from fhir_server.model.summary import subset
from fhir_server.store import cursor
from fhir_server.store.documents import BODY_FIELDS, Document, Resource, resource_of
from fhir_server.store.filters import DENY, Act, Restriction, compile_clause, compile_query
from imaging.errors import AppError, Category

MAX_TIME_MS = 20_000  # of one query to the database
ESTIMATE_BOUND = 10_000  # `_total=estimate` counts no further than this
MAX_ROUNDS = 5  # of includes that iterate


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a search result."""

    total: int | None  # of all pages; None when it is not known
    matches: list[Resource] = field(default_factory=list)
    includes: list[Resource] = field(default_factory=list)
    next_cursor: str | None = None


def search(
    collection: Collection[Any], query: Query, restriction: Restriction, *, now: datetime, key: Callable[[], bytes]
) -> Page:
    """Return the page that the query asks for. `key` signs cursors.

    Raises FORBIDDEN when the type may not be read, INVALID for a foreign cursor, TOO_LARGE for too many includes.
    """
    mandatory = restriction.require(query.type, Act.READ)
    condition = compile_query(query, mandatory, now)
    if query.counts_only:
        return Page(_count(collection, condition))
    documents, has_more = _page(collection, query, condition, key)
    following = None
    if has_more:
        following = cursor.sign(query, cursor.place(documents[-1], cursor.order_of(query)), key())
    included = _Includes(collection, query, restriction, now).of(documents)
    return Page(
        total=_total(collection, query, condition, None if has_more else len(documents)),
        matches=[_trimmed(_resource(document), query) for document in documents],
        includes=[_resource(document) for document in included],
        next_cursor=following,
    )


def _page(
    collection: Collection[Any], query: Query, condition: dict[str, Any], key: Callable[[], bytes]
) -> tuple[list[Document], bool]:
    order = cursor.order_of(query)
    if query.cursor:
        place = cursor.verify(query, query.cursor, key())
        condition = {"$and": [*condition["$and"], cursor.beyond(order, place)]}
    fields = {**BODY_FIELDS, **{name: 1 for name, _ in order}}
    if query.include or query.revinclude:
        fields["ref"] = 1
    found = collection.find(condition, fields).sort(list(order)).limit(query.count + 1).max_time_ms(MAX_TIME_MS)
    documents = list(found.batch_size(query.count + 1))
    return documents[: query.count], len(documents) > query.count


def _total(collection: Collection[Any], query: Query, condition: dict[str, Any], on_page: int | None) -> int | None:
    if query.total == "none":
        return None
    if on_page is not None and query.cursor is None:
        return on_page
    if query.total == "accurate":
        return _count(collection, condition)
    return _count(collection, condition, limit=ESTIMATE_BOUND) if query.total == "estimate" else None


def _count(collection: Collection[Any], condition: dict[str, Any], **bound: Any) -> int:
    return collection.count_documents(condition, maxTimeMS=MAX_TIME_MS, **bound)


def _trimmed(resource: Resource, query: Query) -> Resource:
    if query.summary in {None, "false"} and not query.elements:
        return resource
    part = subset(json.loads_trusted(resource.body), summary=query.summary, names=query.elements)
    return Resource(resource.type, resource.id, resource.version, resource.last_updated, json.dumps(part))


def _resource(document: Document) -> Resource:
    return resource_of(document["_id"], document)


class _Includes:
    """Collects what comes with a page, round by round, each resource once."""

    def __init__(self, collection: Collection[Any], query: Query, restriction: Restriction, now: datetime) -> None:
        self._collection = collection
        self._query = query
        self._restriction = restriction
        self._now = now
        self._found: dict[str, Document] = {}

    def of(self, matches: list[Document]) -> list[Document]:
        if not (self._query.include or self._query.revinclude):
            return []
        seen = {document["_id"] for document in matches}
        latest: list[Document] = matches
        for turn in range(MAX_ROUNDS):
            includes = [one for one in self._query.include if turn == 0 or one.is_iterated]
            reverse = [one for one in self._query.revinclude if turn == 0 or one.is_iterated]
            latest = self._round(latest, includes, reverse, seen) if latest else []
        return list(self._found.values())

    def _round(
        self, documents: list[Document], includes: list[Include], reverse: list[Include], seen: set[str]
    ) -> list[Document]:
        found = [*self._referenced(documents, includes, seen), *self._referring(documents, reverse)]
        fresh = {document["_id"]: document for document in found if document["_id"] not in seen}
        seen.update(fresh)
        self._found.update(fresh)
        if len(self._found) > self._query.max_includes:
            message = f"more than {self._query.max_includes} resources would come with the page: ask for a smaller one"
            raise AppError(Category.TOO_LARGE, message, where="_include")
        return list(fresh.values())

    def _referenced(self, documents: list[Document], includes: list[Include], seen: set[str]) -> Iterable[Document]:
        wanted: dict[str, set[str]] = {}
        for document in documents:
            kind = document["_id"].partition("/")[0]
            for include in includes:
                if include.source == kind:
                    for target, reference in _targets(document, include):
                        wanted.setdefault(target, set()).add(reference)
        for target in sorted(wanted):
            keys = sorted(wanted[target] - seen)
            yield from self._find(target, {"_id": {"$in": keys}}) if keys else ()

    def _referring(self, documents: list[Document], reverse: list[Include]) -> Iterable[Document]:
        for include in reverse:
            keys = [one["_id"] for one in documents if include.target in {"", one["_id"].partition("/")[0]}]
            rows = {"$exists": True, "$elemMatch": {"p": include.parameter, "r": {"$in": keys}}}
            yield from self._find(include.source, {"ref": rows}) if keys else ()

    def _find(self, kind: str, condition: dict[str, Any]) -> Iterable[Document]:
        access = self._restriction.access(kind, Act.READ)
        if access is DENY:
            return []
        mandatory = access if isinstance(access, tuple) else ()
        clauses = [compile_clause(kind, clause, self._now) for clause in mandatory]
        found = self._collection.find({"$and": [{"type": kind}, *clauses, condition]}, {**BODY_FIELDS, "ref": 1})
        return found.limit(self._query.max_includes + 1).max_time_ms(MAX_TIME_MS)


def _targets(document: Mapping[str, Any], include: Include) -> Iterable[tuple[str, str]]:
    for row in document.get("ref", ()):
        kind, _, identifier = row["r"].partition("/")
        is_local = identifier and ":" not in kind and "/" not in identifier
        if is_local and include.parameter in {"*", row["p"]} and include.target in {"", kind}:
            yield kind, row["r"]
