"""Searching: one page of matches, what comes with them, and how many there are.

Everything read here goes through the restriction, resources that decide a chain or come along as well as matches.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import Any

from pymongo.collection import Collection

from fhir_server.model import json
from fhir_server.model.dates import whole_milliseconds
from fhir_server.model.query import Branch, Query
from fhir_server.model.resources import RESOURCES
from fhir_server.model.summary import subset
from fhir_server.store import cursor, index
from fhir_server.store.conditions import Filter
from fhir_server.store.documents import BODY_FIELDS, Document, Resource, resource_of
from fhir_server.store.filters import Act, Restriction, contained, of_contained, restricted
from fhir_server.store.includes import Includes
from fhir_server.store.joins import BATCH, FEW, MANY, MAX_TIME_MS, PATIENCE, Joins, Plan
from fhir_server.store.steady import Moved, Rows, unchanged
from imaging.errors import AppError, Category

ESTIMATE_BOUND = 10_000  # `_total=estimate` counts no further than this


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a search result."""

    total: int | None  # of all pages; None when it is not known
    matches: list[Resource] = field(default_factory=list)
    includes: list[Resource] = field(default_factory=list)
    next_cursor: str | None = None


def search(
    collection: Collection[Any],
    query: Query,
    restriction: Restriction,
    *,
    now: datetime,
    key: Callable[[], bytes],
    rows: Rows = index.rows,
    few: int = FEW,
) -> Page:
    """Return the page that the query asks for.

    key    signs cursors
    rows   makes the search fields of a resource
    few    resources may decide a criterion as a filter; said by tests only
    Raises FORBIDDEN when the type may not be read, INVALID for a foreign cursor, TOO_LARGE for too many includes.
    """
    place = cursor.verify(query, query.cursor, key()) if query.cursor else None
    return _Search(collection, query, restriction, now, few, rows).page(place, key)


class _Search:
    """One search."""

    def __init__(
        self,
        collection: Collection[Any],
        query: Query,
        restriction: Restriction,
        now: datetime,
        few: int,
        rows: Rows,
    ) -> None:
        self._collection = collection
        self._query = query
        self._restriction = restriction
        self._now = now
        self._joins = Joins(collection, restriction, now, few=few)
        self._order = cursor.order_of(query)
        self._moved = Moved(collection, self._order, rows)
        self._rows = rows
        self._condition, self._plans = self._compiled()

    def page(self, place: cursor.Place | None, key: Callable[[], bytes]) -> Page:
        query = self._query
        if query.counts_only:
            return Page(self._count())
        documents = list(islice(self._matches(place), query.count + 1))
        has_more, documents = len(documents) > query.count, documents[: query.count]
        following = None
        if has_more:
            following = cursor.sign(query, self._place(documents[-1], place), key())
        included = Includes(self._collection, query, self._joins).of(documents)
        return Page(
            total=self._total(None if has_more else len(documents)),
            matches=[self._trimmed(each) for each in self._told(documents)],
            includes=[_resource(document) for document in included],
            next_cursor=following,
        )

    # ---- what is asked, as filters

    def _compiled(self) -> tuple[Filter, dict[str, Plan]]:
        plans: dict[str, Plan] = {}
        groups: dict[str, tuple[list[str], Filter]] = {}
        refused: AppError | None = None
        for branch in self._query.asked:
            mandatory = self._joins.reach(branch.type)
            if mandatory is None:
                try:
                    self._restriction.require(branch.type, Act.SEARCH)
                except AppError as error:
                    refused = error
                continue
            plan = plans[branch.type] = self._joins.plan(branch.type, branch.clauses)
            compiled = restricted(branch.type, mandatory, [*self._within(), *plan.filters], self._now)
            demands = compiled["$and"][1:]
            groups.setdefault(repr(demands), ([], {"$and": demands}))[0].append(branch.type)
        if not groups:
            raise refused or AppError(Category.FORBIDDEN, "you may not read resources of these types", where="search")
        if self._query.contained != "false":
            return self._of_contained(self._query.asked[0], plans), plans
        return _either([_typed(types, demands) for types, demands in groups.values()]), plans

    def _within(self) -> list[Filter]:
        return [{"compartments": self._query.compartment}] if self._query.compartment else []

    def _of_contained(self, branch: Branch, plans: dict[str, Plan]) -> Filter:
        """Return the filter of resources that may be read and contain what matches, or match where both are asked."""
        plan = plans[branch.type]
        if plan.checks:
            message = "too many resources decide this search for contained ones: narrow it by further criteria"
            raise AppError(Category.TOO_LARGE, message, where="_contained")
        wanted = contained(branch.type, self._demands_inside(branch, plan))
        holders = []
        for kind in RESOURCES:
            mandatory = self._joins.reach(kind)
            if mandatory is not None:
                holders.append((kind, restricted(kind, mandatory, [*self._within(), wanted], self._now)["$and"][1:]))
        free = [kind for kind, demands in holders if len(demands) == 1 + len(self._within())]
        found = [_typed(free, {"$and": [*self._within(), wanted]})] if free else []
        found += [_typed([kind], {"$and": demands}) for kind, demands in holders if kind not in free]
        if self._query.contained == "both":
            mandatory = self._joins.reach(branch.type) or ()
            found.append(restricted(branch.type, mandatory, [*self._within(), *plan.filters], self._now))
        return _either(found)

    def _demands_inside(self, branch: Branch, plan: Plan) -> list[Filter]:
        mandatory = self._joins.reach(branch.type) or ()
        return [*restricted(branch.type, mandatory, [], self._now)["$and"][1:], *plan.filters]

    # ---- matches in order

    def _matches(self, place: cursor.Place | None) -> Iterator[Document]:
        """Yield the matches behind a place, in order."""
        if not self._verifies:
            yield from self._candidates(place, self._query.count + 1)
            return
        looked_at = 0
        while True:
            candidates = self._candidates(place, BATCH)
            met = self._met([document["_id"] for document in candidates])
            yield from (document for document in candidates if document["_id"] in met)
            if len(candidates) < BATCH:
                return
            place = self._place(candidates[-1], place)
            looked_at += BATCH
            if looked_at == PATIENCE and not (wider := self._by_filter(self._query))._verifies:
                yield from wider._matches(place)
                return

    @property
    def _verifies(self) -> bool:
        return any(plan.checks for plan in self._plans.values())

    def _by_filter(self, query: Query) -> "_Search":
        """Return the search as one that verifies only what very many resources decide."""
        few = self._joins.few and MANY  # 0: everything is verified
        return _Search(self._collection, query, self._restriction, self._now, few, self._rows)

    def _place(self, document: Document, before: cursor.Place | None) -> cursor.Place:
        """Return the place of a document, with the moment of the first page where writing may move resources."""
        moment = None
        if not cursor.is_steady(self._query):
            moment = before.moment if before else self._latest()
        return cursor.Place(self._moved.key(document), moment)

    def _latest(self) -> datetime:
        """Return the time of the latest change that there was, or now: clocks of several machines differ."""
        types = [branch.type for branch in self._query.asked]
        last = self._collection.find_one({"type": {"$in": types}}, {"lastUpdated": 1}, sort=[("lastUpdated", -1)])
        moment: datetime = last["lastUpdated"] if last else self._now
        return max(moment, whole_milliseconds(self._now))

    def _met(self, keys: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for kind, plan in self._plans.items():
            own = [key for key in keys if key.startswith(f"{kind}/")]
            found |= self._joins.verified(kind, own, plan.checks) if own else set()
        return found

    def _candidates(self, place: cursor.Place | None, count: int) -> list[Document]:
        query, order = self._query, self._order
        fields = {**BODY_FIELDS, **{name: 1 for name, _ in order if not name.startswith(cursor.COMPUTED)}}
        if query.include or query.revinclude:
            fields["ref"] = 1
        if place is None:
            return self._sorted(self._condition, [], count, fields)
        beyond = [cursor.beyond(order, place.values)]
        if place.moment is None:
            return self._sorted(self._condition, beyond, count, fields)
        still = {"$and": [self._condition, unchanged(place.moment)]}
        moved = self._moved.behind(place, self._condition, fields)
        return self._moved.merged(self._sorted(still, beyond, count, fields), moved)[:count]

    def _sorted(self, condition: Filter, beyond: list[Filter], count: int, fields: dict[str, int]) -> list[Document]:
        computed = cursor.computed(self._query)
        if computed:
            return self._computed(computed, condition, beyond, count, fields)
        whole = {"$and": [condition, *beyond]} if beyond else condition
        found = self._collection.find(whole, fields).sort(list(self._order)).limit(count).max_time_ms(MAX_TIME_MS)
        return found.batch_size(count).to_list()

    def _computed(
        self, keys: Filter, condition: Filter, beyond: list[Filter], count: int, fields: dict[str, int]
    ) -> list[Document]:
        """Sort by what no document has; bodies are fetched for those of the page only."""
        steps: list[Filter] = [
            {"$match": condition},
            {"$project": {**{name: 1 for name, _ in self._order if name not in keys}, **keys}},
            *({"$match": each} for each in beyond),
            {"$sort": dict(self._order)},
            {"$limit": count},
        ]
        places = {each["_id"]: each for each in self._collection.aggregate(steps, maxTimeMS=MAX_TIME_MS)}
        wanted = {"$and": [{"_id": {"$in": list(places)}}, condition]}
        bodies = {each["_id"]: each for each in self._collection.find(wanted, fields).max_time_ms(MAX_TIME_MS)}
        return [{**bodies[key], "key": place.get("key", {})} for key, place in places.items() if key in bodies]

    # ---- how many

    def _total(self, on_page: int | None) -> int | None:
        if self._query.total == "none":
            return None
        if on_page is not None and self._query.cursor is None:
            return on_page
        if self._query.total == "accurate":
            return self._count()
        return self._count(limit=ESTIMATE_BOUND) if self._query.total == "estimate" else None

    def _count(self, **bound: Any) -> int:
        if not self._verifies:
            return self._collection.count_documents(self._condition, maxTimeMS=MAX_TIME_MS, **bound)
        counted = self._by_filter(replace(self._query, sort=(), cursor=None, count=BATCH, include=(), revinclude=()))
        if not counted._verifies:
            return counted._count(**bound)
        return sum(1 for _ in islice(counted._matches(None), bound.get("limit")))

    # ---- what is told

    def _told(self, documents: list[Document]) -> list[Resource]:
        query = self._query
        if query.contained == "false" or query.contained_type == "container":
            return [_resource(document) for document in documents]
        branch = query.asked[0]
        wanted = [of_contained(each) for each in self._demands_inside(branch, self._plans[branch.type])]
        steps: list[Filter] = [
            {"$match": {"_id": {"$in": [document["_id"] for document in documents]}}},
            {"$unwind": "$inside"},
            {"$replaceRoot": {"newRoot": {"$mergeObjects": [{"holder": "$_id"}, "$inside"]}}},
            {"$match": {"$and": [{"t": branch.type}, *wanted]}},
            {"$project": {"holder": 1, "i": 1, "_id": 0}},
        ]
        inside: dict[str, set[str]] = {}
        for row in self._collection.aggregate(steps, maxTimeMS=MAX_TIME_MS):
            inside.setdefault(row["holder"], set()).add(row["i"])
        found: list[Resource] = []
        for document in documents:
            resource = _resource(document)
            if document["_id"] not in inside:
                found.append(resource)  # matches by itself
                continue
            items = json.loads_trusted(resource.body).get("contained", ())
            found += [_part(resource, item) for item in items if item.get("id", "") in inside[document["_id"]]]
        return found

    def _trimmed(self, resource: Resource) -> Resource:
        query = self._query
        if query.summary in {None, "false"} and not query.elements:
            return resource
        part = subset(json.loads_trusted(resource.body), summary=query.summary, names=query.elements)
        return replace(resource, body=json.dumps(part))


def _typed(types: list[str], demands: Filter) -> Filter:
    kind: Filter = {"type": types[0] if len(types) == 1 else {"$in": types}}
    return {"$and": [kind, *demands["$and"]]}


def _either(found: list[Filter]) -> Filter:
    return found[0] if len(found) == 1 else {"$or": found}


def _part(holder: Resource, item: dict[str, Any]) -> Resource:
    """Return a contained resource; its id is that of the whole, a number sign and its own."""
    return replace(holder, id=f"{holder.id}#{item.get('id', '')}", body=json.dumps(item))


def _resource(document: Document) -> Resource:
    return resource_of(document["_id"], document)
