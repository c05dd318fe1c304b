"""What comes with the matches of a page: `_include` and `_revinclude`, round by round, each resource once.

Everything goes through the restriction. Source: FHIR R4 search 3.1.1.5.3.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pymongo.collection import Collection

from fhir_server.model.definitions import parameters
from fhir_server.model.query import Include, Query
from fhir_server.store.conditions import Filter
from fhir_server.store.documents import BODY_FIELDS, Document
from fhir_server.store.filters import Act
from fhir_server.store.joins import Joins
from imaging.errors import AppError, Category

MAX_ROUNDS = 5  # of includes that iterate


class Includes:
    """Collects what comes with one page."""

    def __init__(self, collection: Collection[Any], query: Query, joins: Joins) -> None:
        self._collection = collection
        self._query = query
        self._joins = joins
        self._found: dict[str, Document] = {}

    def of(self, matches: list[Document]) -> list[Document]:
        """Return what comes with the matches, without them. Raises TOO_LARGE beyond the query's bound."""
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
        urls: dict[str, set[str]] = {}
        for document in documents:
            kind = document["_id"].partition("/")[0]
            for include in includes:
                if include.source == kind:
                    for target, reference in _targets(document, include):
                        wanted.setdefault(target, set()).add(reference)
                    for target, url in _canonicals(document, include):
                        urls.setdefault(target, set()).add(url)
        for target in sorted(wanted):
            keys = sorted(wanted[target] - seen)
            # What is referred to may be read by its id, without any search.
            yield from self._find(target, {"_id": {"$in": keys}}, Act.READ) if keys else ()
        for target in sorted(urls):
            rows = {"$exists": True, "$elemMatch": {"p": "url", "u": {"$in": sorted(urls[target])}}}
            yield from self._find(target, {"uri": rows})

    def _referring(self, documents: list[Document], reverse: list[Include]) -> Iterable[Document]:
        for include in reverse:
            keys = [one["_id"] for one in documents if include.target in {"", one["_id"].partition("/")[0]}]
            codes = _reference_codes(include.source) if include.parameter == "*" else [include.parameter]
            code = codes[0] if len(codes) == 1 else {"$in": codes}
            rows = {"$exists": True, "$elemMatch": {"p": code, "r": {"$in": keys}}}
            yield from self._find(include.source, {"ref": rows}) if keys else ()

    def _find(self, kind: str, condition: Filter, act: Act = Act.SEARCH) -> Iterable[Document]:
        return self._joins.find(kind, [condition], {**BODY_FIELDS, "ref": 1}, self._query.max_includes + 1, act)


def _reference_codes(kind: str) -> list[str]:
    return sorted(each.code for each in parameters(kind).values() if each.type == "reference")


def _targets(document: Mapping[str, Any], include: Include) -> Iterator[tuple[str, str]]:
    for row in document.get("ref", ()):
        kind, _, identifier = row["r"].partition("/")
        is_local = identifier and ":" not in kind and "/" not in identifier
        if is_local and include.parameter in {"*", row["p"]} and include.target in {"", kind}:
            yield kind, row["r"]


def _canonicals(document: Mapping[str, Any], include: Include) -> Iterator[tuple[str, str]]:
    """Yield types and URLs of what is referred to by canonical URL, where the parameter says of which type it is."""
    known = parameters(include.source)
    for row in document.get("ref", ()):
        if ":" in row["r"] and "|" not in row["r"] and include.parameter in {"*", row["p"]} and row["p"] in known:
            for target in known[row["p"]].targets:
                if include.target in {"", target}:
                    yield target, row["r"]
