"""What one principal may see of the resources: reads, histories and searches, each within its restriction."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from bson.codec_options import CodecOptions
from pymongo.client_session import ClientSession
from pymongo.database import Database

from fhir_server.model.criteria import Clause, Table, check_id, clause
from fhir_server.model.definitions import parameters
from fhir_server.model.query import Query
from fhir_server.model.resources import RESOURCES
from fhir_server.store import index
from fhir_server.store.documents import (
    BODY_FIELDS,
    REACH_FIELDS,
    Document,
    Json,
    Reach,
    Resource,
    reach_of,
    resource_of,
)
from fhir_server.store.failures import translated
from fhir_server.store.filters import DENY, UNRESTRICTED, Act, Demand, Restriction
from fhir_server.store.history import MAX_HISTORY, MAX_TIME_MS, History, Period, Versions
from fhir_server.store.joins import Joins
from fhir_server.store.labels import labels
from fhir_server.store.matching import Selection, selection
from fhir_server.store.search import Page, search
from fhir_server.store.secrets import secret
from fhir_server.store.snapshot import Snapshot
from imaging.errors import AppError, Category

Clock = Callable[[], datetime]

ALWAYS = Period()
_UNREADABLE = frozenset({Category.NOT_FOUND, Category.GONE, Category.FORBIDDEN, Category.INVALID})


class Reader:
    """Resources as one principal may see them, whether alone or within a transaction."""

    def __init__(
        self,
        database: Database[Any],
        restriction: Restriction,
        *,
        clock: Clock,
        base_url: str = "",
        table: Table = parameters,
    ) -> None:
        """Open it; `table` has the search parameters by which resources of each type are indexed."""
        self._database: Database[Any] = database.with_options(CodecOptions(tz_aware=True, tzinfo=UTC))
        self._resources = self._database["resources"]
        self._past = History(self._database, base_url=base_url, clock=clock, table=table)
        self._restriction = restriction
        self._clock = clock
        self._base_url = base_url
        self._table = table
        self._cursor_keys: list[bytes] = []
        self._session: ClientSession | None = None  # within whose transaction it reads

    def require(self, type: str, act: Act) -> None:
        """Return when the act is allowed on resources of the type, on some at least. Raises FORBIDDEN."""
        self._restriction.require(type, act)

    def has(self, type: str, id: str, act: Act = Act.READ) -> bool:
        """Say whether a resource is there within reach of an act; it does not travel, however large it is.

        Raises FORBIDDEN where the act is not allowed on any resource of the type.
        """
        return self._glance(type, id, act, {"_id": 1}) is not None

    def reach(self, type: str, id: str, act: Act = Act.READ) -> Reach | None:
        """Return what limits of contracts go by, where `has` would say that the resource is there, else None."""
        found = self._glance(type, id, act, REACH_FIELDS)
        return None if found is None else reach_of(found)

    def _glance(self, type: str, id: str, act: Act, fields: Mapping[str, int]) -> Document | None:
        key, mandatory = self._opened(type, id, act)
        wanted = {"$and": [{"_id": key}, self._past.demand(type, mandatory)]}
        with self._translated(key):
            found: Document | None = self._resources.find_one(wanted, fields)
            return found

    def ids(
        self, type: str, act: Act, *, by: Sequence[Clause] = (), among: Sequence[str] | None = None, limit: int = 0
    ) -> list[str]:
        """Return the ids of up to `limit` resources (0: all) within reach of an act, of those named where some are.

        by   clauses that they meet
        Raises FORBIDDEN where the act is not allowed on any resource of the type.
        """
        wanted = [self._past.demand(type, (*self._restriction.require(type, act), *by))]
        if among is not None:
            wanted.append({"_id": {"$in": [f"{type}/{each}" for each in among]}})
        with self._translated(type):
            found = self._resources.find({"$and": wanted}, {"_id": 1}).limit(limit).max_time_ms(MAX_TIME_MS)
            return [document["_id"].removeprefix(f"{type}/") for document in found]

    def read(self, type: str, id: str) -> Resource:
        """Return the current version. Raises NOT_FOUND, and GONE for one that was deleted."""
        key, mandatory = self._opened(type, id, Act.READ)
        return self._visible(key, mandatory)

    def with_referrers(self, type: str, id: str, by: Clause, of: str) -> tuple[Resource | None, list[Resource]]:
        """Return a resource, None where there is none, and all of type `of` that the clause finds, read together.

        Raises FORBIDDEN where one of the types may not be read.
        """
        key, mandatory = self._opened(type, id, Act.READ)
        found = self._past.demand(of, (*self._restriction.require(of, Act.SEARCH), by))
        wanted = {"$or": [{"$and": [{"_id": key}, self._past.demand(type, mandatory)]}, found]}
        with self._translated(key):
            every = [resource_of(each["_id"], each) for each in self._resources.find(wanted, BODY_FIELDS)]
        return next((each for each in every if each.key == key), None), [each for each in every if each.key != key]

    def vread(self, type: str, id: str, version: int) -> Resource:
        """Return one version. Raises NOT_FOUND, and GONE where the version is the deletion."""
        key, mandatory = self._opened(type, id, Act.READ)
        found = self._within(self._versions(key, [version]), mandatory)
        if not found:
            raise AppError(Category.NOT_FOUND, f"{key} has no version {version}", where=key)
        if found[0].deleted:
            raise AppError(Category.GONE, f"version {version} of {key} is its deletion", where=key)
        self._check_context(found[0])
        return found[0]

    def history(
        self,
        type: str,
        id: str,
        *,
        count: int = 50,
        before: int | None = None,
        period: Period = ALWAYS,
        listed: str = "",
    ) -> list[Resource]:
        """Return versions, latest first, deletions included; `before` continues below a version.

        listed   as of `changes`
        Raises NOT_FOUND for a resource that never was.
        """
        key, mandatory = self._opened(type, id, Act.READ)
        try:
            latest = self._visible(key, mandatory).version
        except AppError as error:
            if error.category is not Category.GONE:
                raise
            latest = self._current(key).version
        top = latest if before is None else min(latest, before - 1)
        most = min(count, MAX_HISTORY)
        among = frozenset(self._listed(listed)) if listed else None
        with self._translated(key):
            if (period is ALWAYS and among is None) or RESOURCES[type].append_only:
                wanted = list(range(top, max(0, top - most), -1))
            else:
                numbers = (number for number in self._past.numbers(key, period) if number <= top)
                wanted = [each for each in numbers if among is None or f"{key}/{each}" in among][:most]
        return self._within(self._versions(key, wanted), mandatory)

    def changes(
        self, types: Sequence[str], *, count: int, place: str = "", period: Period = ALWAYS, listed: str = ""
    ) -> Versions:
        """Return versions of resources of these types, latest first, deletions included; `place` continues there.

        listed   id of a List: only versions that its entries refer to; without a version, to every one of a resource
        Types that may not be read are left out. Raises FORBIDDEN where none is left, INVALID for a place that is none.
        """
        among = self._listed(listed) if listed else None
        reach = {}
        for name in types:
            access = self._restriction.access(name, Act.SEARCH)
            if access is not DENY:
                reach[name] = access if isinstance(access, tuple) else ()
        if not reach:
            raise AppError(Category.FORBIDDEN, "you may not read resources of these types", where="_history")
        with self._translated("_history"):
            return self._past.changes(reach, period, count=min(count, MAX_HISTORY), place=place, among=among)

    def search(self, query: Query) -> Page:
        """Return one page of matches with what comes along. Raises FORBIDDEN, INVALID, TOO_LARGE, BUSY."""
        for branch in query.asked:
            if branch.type not in RESOURCES:
                raise unknown(branch.type)
        with self._translated(query.type or "search"):
            return search(
                self._resources,
                query,
                self._restriction,
                now=self._clock(),
                key=self._cursor_key,
                rows=partial(index.rows, base_url=self._base_url, table=self._table),
            )

    def labels(self, types: Sequence[str]) -> Json:
        """Return the profiles, security labels and tags that resources of these types have, as a Meta.

        Types that may not be looked for are left out. Raises FORBIDDEN where none is left, TOO_LARGE beyond 1,000.
        """
        with self._translated("$meta"):
            return labels(self._resources, self._restriction, types, self._clock())

    def as_of(self, moment: datetime) -> Snapshot:
        """Return the resources as they were at a moment, before which nothing is written any more."""
        return Snapshot(self._database, self._restriction, self._past, moment, clock=self._clock)

    def selection(self, query: Query) -> Selection:
        """Return what the query of one type selects among versions, within the restriction. Raises FORBIDDEN."""
        now = self._clock()
        with self._translated(query.type):
            joins = Joins(self._database["resources"], self._restriction, now)
            return selection(joins, query, self._restriction, now)

    def selected_by(
        self, versions: Sequence[Resource], selections: Mapping[str, Selection]
    ) -> dict[str, set[tuple[str, int]]]:
        """Return for each name which versions of one type, (key, number), it selects; never a deletion."""
        conditions = {name: each.condition for name, each in selections.items()}
        with self._translated("criteria"):
            met = self._past.meeting_each([each for each in versions if not each.deleted], conditions)
            chosen = {name: selections[name].verified(found) for name, found in met.items()}
        return {name: {(each.key, each.version) for each in found} for name, found in chosen.items()}

    def find_one(self, type: str, param: str, value: str) -> Resource | None:
        """Return the resource that one search criterion finds, None without any. Raises CONFLICT for several."""
        found = self.search(Query(type, (clause(type, param, value, base_url=self._base_url),), count=2)).matches
        if len(found) > 1:
            raise AppError(Category.CONFLICT, f"several {type} resources have this {param}", where=type)
        return found[0] if found else None

    def selected(self, query: Query) -> Resource | None:
        """Return the one resource that the query finds, None without any. Raises PRECONDITION for several."""
        found = self.search(replace(query, count=2, total="none")).matches
        if len(found) > 1:
            message = f"several {query.type} resources meet the criteria: they have to select one"
            raise AppError(Category.PRECONDITION, message, where=query.type)
        return found[0] if found else None

    def _listed(self, identifier: str) -> list[str]:
        """Return the names of versions that a List refers to. Raises NOT_FOUND."""
        entries = self.read("List", identifier).json().get("entry", ())
        items = (each.get("item", {}).get("reference", "") for each in entries if not each.get("deleted"))
        local = [item.removeprefix(f"{self._base_url}/") for item in items]
        with self._translated("_list"):
            return self._past.named(each for each in local if each)

    def _opened(self, kind: str, identifier: str, act: Act) -> tuple[str, tuple[Demand, ...]]:
        if kind not in RESOURCES:
            raise unknown(kind)
        check_id(identifier, where=f"{kind}.id")
        return f"{kind}/{identifier}", self._restriction.require(kind, act)

    def _visible(self, key: str, mandatory: tuple[Demand, ...]) -> Resource:
        if mandatory:
            wanted = {"$and": [{"_id": key}, self._past.demand(key.partition("/")[0], mandatory)]}
            with self._translated(key):
                document = self._resources.find_one(wanted, BODY_FIELDS)
            if document is not None:
                found = resource_of(key, document)
                self._check_context(found)
                return found
        found = self._current(key)
        if not mandatory and not found.deleted:
            self._check_context(found)
            return found
        if not found.deleted:
            raise AppError(Category.NOT_FOUND, f"{key} is not known", where=key)
        last = next(iter(self._versions(key, [found.version - 1])), found)
        if not self._within([last], mandatory):
            raise AppError(Category.NOT_FOUND, f"{key} is not known", where=key)
        self._check_context(last)
        raise AppError(Category.GONE, f"{key} was deleted", where=key)

    def _check_context(self, binary: Resource) -> None:
        """Raise NOT_FOUND for a Binary whose security context may not be read, or cannot be looked at here.

        Source: FHIR R4 Binary.securityContext.
        """
        if binary.type != "Binary" or binary.deleted or self._restriction is UNRESTRICTED:
            return
        context = binary.json().get("securityContext")
        if context is None:
            return
        reference = str(context.get("reference", "")).removeprefix(f"{self._base_url}/").partition("/_history/")[0]
        kind, _, identifier = reference.partition("/")
        try:
            if kind == "Binary":  # might lead round in a circle
                raise AppError(Category.FORBIDDEN, "a Binary is no security context", where=binary.key)
            self.read(kind, identifier)
        except AppError as error:
            if error.category not in _UNREADABLE:
                raise
            raise AppError(Category.NOT_FOUND, f"{binary.key} is not known", where=binary.key) from None

    def _current(self, key: str) -> Resource:
        with self._translated(key):
            document = self._resources.find_one({"_id": key}, BODY_FIELDS)
        if document is None:
            raise AppError(Category.NOT_FOUND, f"{key} is not known", where=key)
        return resource_of(key, document)

    def _versions(self, key: str, versions: list[int]) -> list[Resource]:
        """Return the versions that exist, in the order asked."""
        if RESOURCES[key.partition("/")[0]].append_only:
            return [found for found in [self._current(key)] if found.version in versions]
        with self._translated(key):
            return self._past.versions(key, versions)

    def _within(self, versions: list[Resource], mandatory: tuple[Demand, ...]) -> list[Resource]:
        with self._translated("history"):
            return self._past.within(versions, mandatory)

    def _translated(self, where: str) -> AbstractContextManager[None]:
        """What the driver raises becomes AppError where nobody above has to see it as it is, to try again."""
        return nullcontext() if self._session else translated(where)

    def _cursor_key(self) -> bytes:
        if not self._cursor_keys:
            self._cursor_keys.append(secret(self._database, "cursor"))
        return self._cursor_keys[0]


def unknown(kind: str) -> AppError:
    """Return the error of a type that is not kept here."""
    return AppError(Category.NOT_FOUND, f"this server keeps no {kind[:64]} resources", where="resourceType")
