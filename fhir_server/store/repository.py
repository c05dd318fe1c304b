"""The versioned repository of FHIR resources, opened for one principal's restriction.

A write is one transaction, or a part of one (`together`). Shapes are validated before (`model.validation`); here
versions, restriction and hooks are kept.
"""

import copy
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from bson.codec_options import CodecOptions
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.write_concern import WriteConcern

from fhir_server.model import json
from fhir_server.model.criteria import Table, check_id, clause
from fhir_server.model.definitions import parameters
from fhir_server.model.query import Query
from fhir_server.model.resources import RESOURCES, ResourceType
from fhir_server.store import index
from fhir_server.store.documents import BODY_FIELDS, NOBODY, Json, Resource, Stamp, resource_of, stamped, tombstone
from fhir_server.store.failures import translated
from fhir_server.store.filters import DENY, UNRESTRICTED, Act, Demand, Restriction
from fhir_server.store.history import MAX_HISTORY, MAX_TIME_MS, History, Period, Versions
from fhir_server.store.joins import Joins
from fhir_server.store.labels import labels
from fhir_server.store.matching import Selection, selection
from fhir_server.store.search import Page, search
from fhir_server.store.secrets import secret
from fhir_server.store.session import InSession
from fhir_server.store.snapshot import Snapshot
from fhir_server.store.writing import Writer
from imaging.errors import AppError, Category

T = TypeVar("T")
Clock = Callable[[], datetime]

ALWAYS = Period()
_UNREADABLE = frozenset({Category.NOT_FOUND, Category.GONE, Category.FORBIDDEN, Category.INVALID})


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the owner of a resource type does at its writes; every hook returns new values and may raise AppError."""

    # (resource) -> what is written
    before_create: Callable[[Json], Json] | None = None
    # (current, new, whether the server itself writes) -> what is written
    before_update: Callable[[Json, Json, bool], Json] | None = None
    # (current, whether the server itself deletes)
    before_delete: Callable[[Json, bool], None] | None = None
    # (resource) -> the id that follows from its content, None where none does
    identify: Callable[[Json], str | None] = lambda _: None
    # (id) -> whether only the server itself gives it
    reserves: Callable[[str], bool] = lambda _: False
    # (current, new), of a client that does not say which version it read: raises where it has to
    unmatched: Callable[[Json, Json], None] | None = None
    # (current, what is written) -> what the server makes in the same transaction, with ids, where it is not there
    following: Callable[[Json, Json], Sequence[Json]] | None = None


NO_HOOKS: Mapping[str, Hooks] = MappingProxyType({})
Guard = Callable[[ClientSession], None]
Decision = Callable[[Resource | None], Json | None]  # current version -> what to write; None: leave it
Change = Callable[[Json], Json]
Through = Callable[[Sequence[Json], Callable[[], object]], None]


class Repository:
    """Resources as one principal may see and change them."""

    def __init__(
        self,
        database: Database[Any],
        restriction: Restriction,
        *,
        clock: Clock,
        hooks: Mapping[str, Hooks] = NO_HOOKS,
        base_url: str = "",
        internal: bool = False,
        client_ids: bool = False,
        table: Table = parameters,
        stamp: Stamp = NOBODY,
    ) -> None:
        """Open the repository.

        internal     tells the hooks that the server itself writes
        client_ids   an update of an absent id creates it, whatever the type's table row says
        table        the search parameters by which resources of each type are indexed
        stamp        who brings what is written
        """
        self._database: Database[Any] = database.with_options(CodecOptions(tz_aware=True, tzinfo=UTC))
        self._resources = self._database["resources"]
        self._writer = Writer(self._database, base_url=base_url, clock=clock, table=table)
        self._past = History(self._database, base_url=base_url, clock=clock, table=table)
        self._restriction = restriction
        self._clock = clock
        self._hooks = hooks
        self._base_url = base_url
        self._internal = internal
        self._client_ids = client_ids
        self._table = table
        self._stamp = stamp
        self._cursor_keys: list[bytes] = []
        self._session: ClientSession | None = None
        self._expected: dict[str, Json | None] = {}
        self._owners: dict[str, str] = {}  # whose Patients and ImagingStudies are that were looked up or written

    def opened_for(
        self,
        restriction: Restriction,
        *,
        hooks: Mapping[str, Hooks] | None = None,
        internal: bool = False,
        stamp: Stamp = NOBODY,
    ) -> "Repository":
        """Return the same repository for another restriction, with other hooks where given; cheaper than a new one."""
        other = Repository(
            self._database,
            restriction,
            clock=self._clock,
            hooks=self._hooks if hooks is None else hooks,
            base_url=self._base_url,
            internal=internal,
            client_ids=self._client_ids,
            table=self._table,
            stamp=stamp,
        )
        other._cursor_keys = self._cursor_keys
        return other

    def together(self, work: Callable[["Repository"], T], *, where: str) -> T:
        """Return what `work` makes of this repository within one transaction: all of its writes are kept, or none.

        `work` runs again where other writers were in the way; what it raises undoes everything. `where` names it.
        """

        def attempt(session: ClientSession) -> T:
            part = self if self._session else self._part_of(session)
            done = work(part)
            part._writer.flush()
            return done

        return self._transaction(where, attempt)

    def also(self, guard: Guard) -> None:
        """Run a guard within the transaction that this is a part of; what it raises undoes the whole."""
        assert self._session is not None  # noqa: S101 -- `together` gave it
        guard(self._session)

    def expect(self, keys: Sequence[str]) -> None:
        """Fetch together the resources, `Type/id`, that are going to be written one after another, once each."""
        with self._translated("resources"):
            found = self._resources.find({"_id": {"$in": list(keys)}}, BODY_FIELDS)
            self._expected = {**dict.fromkeys(keys), **{document["_id"]: document for document in found}}

    @property
    def stamp(self) -> Stamp:
        """Who brings what is written by it."""
        return self._stamp

    @property
    def is_shared(self) -> bool:
        """Whether this is a part of a transaction with other work in it."""
        return self._session is not None

    def require(self, type: str, act: Act) -> None:
        """Return when the act is allowed on resources of the type, on some at least. Raises FORBIDDEN."""
        self._restriction.require(type, act)

    def create(self, resource: Json, *, id: str | None = None) -> Resource:
        """Store a new resource under a new id, or under the given one, or under the one its hook derives.

        Raises CONFLICT when a resource of this id exists, FORBIDDEN when the restriction does not let it be created.
        """
        kind = _type_of(resource)
        _check_changeable(kind)
        mandatory = self._restriction.require(kind.name, Act.CREATE)
        identifier = self._identified(resource, id)
        resource = self._before_create(resource)
        key = f"{kind.name}/{identifier or uuid.uuid4()}"
        is_new = identifier is None  # nobody else can have a random id: no need to look

        def decide(current: Resource | None) -> Json:
            if current is not None and not current.deleted:
                raise AppError(Category.CONFLICT, f"{key} exists already", where=key)
            return resource

        return self._write(key, "POST", decide, (), mandatory, is_new=is_new)

    def creating(self, resources: Sequence[Json]) -> Guard:
        """Return what creates resources, each under the id that it names, within the transaction of another write.

        Of one that exists nothing is changed: whoever made it was here before.
        """

        def guard(session: ClientSession) -> None:
            for resource in resources:
                self._restriction.require(_type_of(resource).name, Act.CREATE)
            self._put_absent(session, resources, self._stamp)

        return guard

    def append(self, resource: Json) -> Resource:
        """Store a resource of an append-only type in one insert: no version history, not waiting for the disk."""
        return self.append_all([resource])[0]

    def append_all(self, resources: Sequence[Json], *, through: Through | None = None) -> list[Resource]:
        """Store resources of append-only types like `append`, many at a time.

        through   is given the documents and what inserts them, and may add to them before it does
        """
        documents = []
        for resource in resources:
            kind = _type_of(resource)
            if not kind.append_only:
                raise AppError(Category.INVALID, f"{kind.name} is not append-only", where=kind.name)
            self._restriction.require(kind.name, Act.CREATE)
            documents.append(self._writer.document(f"{kind.name}/{uuid.uuid4()}", resource, "POST"))
        if documents:
            insert = partial(self._resources.with_options(write_concern=WriteConcern(1)).insert_many, documents)
            with self._translated("append"):
                through(documents, insert) if through else insert()
        return [resource_of(document["_id"], document) for document in documents]

    def has(self, type: str, id: str, act: Act = Act.READ) -> bool:
        """Say whether a resource is there within reach of an act; it does not travel, however large it is.

        Raises FORBIDDEN where the act is not allowed on any resource of the type.
        """
        key, mandatory = self._opened(type, id, act)
        wanted = {"$and": [{"_id": key}, self._past.demand(type, mandatory)]}
        with self._translated(key):
            return self._resources.find_one(wanted, {"_id": 1}) is not None

    def ids(self, type: str, act: Act, *, among: Sequence[str] | None = None, limit: int = 0) -> list[str]:
        """Return the ids of up to `limit` resources within reach of an act, of those named where some are.

        Raises FORBIDDEN where the act is not allowed on any resource of the type.
        """
        wanted = [self._past.demand(type, self._restriction.require(type, act))]
        if among is not None:
            wanted.append({"_id": {"$in": [f"{type}/{each}" for each in among]}})
        with self._translated(type):
            found = self._resources.find({"$and": wanted}, {"_id": 1}).limit(limit).max_time_ms(MAX_TIME_MS)
            return [document["_id"].removeprefix(f"{type}/") for document in found]

    def permits(self, resource: Json, act: Act) -> bool:
        """Say whether a resource that has an id lies within what an act is allowed on; nothing is stored.

        Raises FORBIDDEN where the act is not allowed on any resource of the type.
        """
        kind = _type_of(resource)
        mandatory = self._restriction.require(kind.name, act)
        body = json.dumps(resource)
        would_be = Resource(kind.name, resource["id"], 1, self._clock(), body, stamp=self._stamp)
        return bool(self._within([would_be], mandatory))

    def read(self, type: str, id: str) -> Resource:
        """Return the current version. Raises NOT_FOUND, and GONE for one that was deleted."""
        key, mandatory = self._opened(type, id, Act.READ)
        return self._visible(key, mandatory)

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

    def _listed(self, identifier: str) -> list[str]:
        """Return the names of versions that a List refers to. Raises NOT_FOUND."""
        entries = self.read("List", identifier).json().get("entry", ())
        items = (each.get("item", {}).get("reference", "") for each in entries if not each.get("deleted"))
        local = [item.removeprefix(f"{self._base_url}/") for item in items]
        with self._translated("_list"):
            return self._past.named(each for each in local if each)

    def update(
        self,
        resource: Json,
        *,
        if_match: int | None = None,
        must_be_new: bool = False,
        create: bool = False,
        if_changed: bool = False,
        guard: Guard | None = None,
        owner: str | None = None,
    ) -> Resource:
        """Store a new version of the resource that has this type and id.

        must_be_new  one that exists is not changed
        create       an absent or deleted one is created, also where the type's table row does not allow it to clients
        if_changed   content equal to the current version's makes no new version; that one is returned
        guard        runs in the same transaction, before the write; what it raises undoes the whole
        owner        subscriber whose it is from now on, None for whose it was, or for whom this repository is
        Raises UNSUPPORTED for an id that is not known and may not be chosen, NOT_FOUND for one that may not be seen,
        PRECONDITION when `if_match` is not the current version or `must_be_new` does not hold, CONFLICT when concurrent
        writers never let it through.
        """
        kind = _type_of(resource)
        key, mandatory = self._opened(kind.name, str(resource.get("id", "")), Act.UPDATE)
        _check_changeable(kind)
        may_create = create or kind.update_create or self._client_ids

        def decide(current: Resource | None) -> Json | None:
            _check_version(current, key, if_match)
            if current is None or current.deleted:
                return self._created_by_update(resource, key, mandatory, may_create=may_create)
            if must_be_new:
                raise AppError(Category.PRECONDITION, f"{key} exists already", where="If-None-Match")
            new = self._before_update(current, resource, is_matched=if_match is not None)
            is_theirs = owner in (None, current.stamp.owner)
            return None if if_changed and is_theirs and _is_same(current, new) else new

        return self._write(key, "PUT", decide, mandatory, mandatory, guard=guard, may_create=True, owner=owner)

    def patch(self, type: str, id: str, change: Change, *, if_match: int | None = None) -> Resource:
        """Store what `change` makes of the current version, which has to be readable; it may be called several times.

        Raises NOT_FOUND, GONE, PRECONDITION when `if_match` is not the current version.
        """
        key, mandatory = self._opened(type, id, Act.UPDATE)
        _check_changeable(RESOURCES[type])
        seen = (*mandatory, *self._restriction.require(type, Act.READ))

        def decide(current: Resource | None) -> Json:
            _check_version(current, key, if_match)
            if current is None:
                raise AppError(Category.NOT_FOUND, f"{key} is not known", where=key)
            if current.deleted:
                raise AppError(Category.GONE, f"{key} was deleted", where=key)
            return self._before_update(current, change(current.json()), is_matched=if_match is not None)

        return self._write(key, "PATCH", decide, seen, mandatory)

    def delete(self, type: str, id: str, *, if_match: int | None = None) -> Resource:
        """Delete a resource, keeping its history; deleting a deleted one changes nothing. Raises NOT_FOUND."""
        key, mandatory = self._opened(type, id, Act.DELETE)
        _check_changeable(RESOURCES[type])

        def attempt(session: ClientSession) -> Resource:
            current = self._locked(session, key, mandatory)
            _check_version(current, key, if_match)
            if current is None:
                raise AppError(Category.NOT_FOUND, f"{key} is not known", where=key)
            if current.deleted:
                return current
            hooks = self._hooks.get(current.type, Hooks())
            if hooks.before_delete:
                hooks.before_delete(current.json(), self._internal)
            return self._writer.put(
                session, {"_id": key, **tombstone(current.version + 1, self._writer.moment(current))}
            )

        return self._transaction(key, attempt)

    def search(self, query: Query) -> Page:
        """Return one page of matches with what comes along. Raises FORBIDDEN, INVALID, TOO_LARGE, BUSY."""
        for branch in query.asked:
            if branch.type not in RESOURCES:
                raise _unknown(branch.type)
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

    def match(self, query: Query) -> Resource | None:
        """Return the one resource that the query finds, None without any; to be called within `together`.

        Of two that decide by the same criteria at a time, one begins again. Raises PRECONDITION for several.
        """
        kept = {"$set": {"at": self._clock()}}
        self._database["conditions"].update_one({"_id": query.fingerprint}, kept, upsert=True, session=self._session)
        return self.selected(query)

    def selected(self, query: Query) -> Resource | None:
        """Return the one resource that the query finds, None without any. Raises PRECONDITION for several."""
        found = self.search(replace(query, count=2, total="none")).matches
        if len(found) > 1:
            message = f"several {query.type} resources meet the criteria: they have to select one"
            raise AppError(Category.PRECONDITION, message, where=query.type)
        return found[0] if found else None

    def _opened(self, kind: str, identifier: str, act: Act) -> tuple[str, tuple[Demand, ...]]:
        if kind not in RESOURCES:
            raise _unknown(kind)
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

    def identity(self, resource: Json) -> str:
        """Return the id that a new resource is going to have: one that follows from its content, or a random one."""
        return self._identified(resource, None) or str(uuid.uuid4())

    def _identified(self, resource: Json, wanted: str | None) -> str | None:
        derived = self._hooks.get(resource["resourceType"], Hooks()).identify(resource)
        if derived and wanted not in {None, derived}:
            raise AppError(Category.INVALID, f"the id of this resource can only be {derived}", where="id")
        identifier = derived or wanted
        return check_id(identifier, where="id") if identifier else None

    def _before_create(self, resource: Json) -> Json:
        hooks = self._hooks.get(resource["resourceType"], Hooks())
        return hooks.before_create(resource) if hooks.before_create else resource

    def _before_update(self, current: Resource, resource: Json, *, is_matched: bool) -> Json:
        hooks = self._hooks.get(current.type, Hooks())
        if hooks.unmatched and not is_matched and not self._internal:
            hooks.unmatched(current.json(), resource)
        return hooks.before_update(current.json(), resource, self._internal) if hooks.before_update else resource

    def _created_by_update(self, resource: Json, key: str, mandatory: tuple[Demand, ...], *, may_create: bool) -> Json:
        kind, _, identifier = key.partition("/")
        if not may_create and mandatory:  # as one that exists and may not be seen
            raise AppError(Category.NOT_FOUND, f"{key} is not known", where=key)
        if not may_create:
            # FHIR R4 http 3.1.0.4.2: 405 where "the server does not allow client defined ids".
            message = f"{key} is not known, and this server chooses the ids of {kind} resources: create it"
            raise AppError(Category.UNSUPPORTED, message, where="method")
        if not self._internal and self._hooks.get(kind, Hooks()).reserves(identifier):
            raise AppError(Category.CONFLICT, f"only the server itself gives {kind} resources such an id", where="id")
        self._restriction.require(kind, Act.CREATE)
        self._identified(resource, identifier)
        return self._before_create(resource)

    def _write(
        self,
        key: str,
        method: str,
        decide: Decision,
        seen: tuple[Demand, ...],
        demanded: tuple[Demand, ...],
        *,
        is_new: bool = False,
        guard: Guard | None = None,
        may_create: bool = False,
        owner: str | None = None,
    ) -> Resource:
        """Write what `decide` makes of the current version; `seen` must hold before, `demanded` after.

        may_create   what comes into being by it has to satisfy what is demanded of a create as well
        """

        def attempt(session: ClientSession) -> Resource:
            if guard:
                guard(session)
            current = None if is_new else self._locked(session, key, seen)
            resource = decide(current)
            if resource is None:
                assert current is not None  # noqa: S101 -- `decide` leaves only what it was shown
                return current
            stamp = self._stamp.after(current.stamp) if current and not current.deleted else self._stamp
            document = self._writer.document(key, resource, method, current, stamp=stamp)
            is_new_here = current is None or current.deleted
            if whose := owner or (self._owner_among(session, document) if is_new_here else None):
                document["owner"] = whose
            if document["type"] in _TELLING:
                self._owners[key] = document.get("owner", "")
            written = self._writer.put(session, document)
            self._check_demanded(session, key, demanded)
            if may_create and written.is_first:
                self._check_demanded(session, key, self._restriction.require(written.type, Act.CREATE))
            following = self._hooks.get(written.type, Hooks()).following
            if following and current:
                self._put_absent(session, following(current.json(), resource), written.stamp)
            return written

        return self._transaction(key, attempt)

    def _put_absent(self, session: ClientSession, resources: Sequence[Json], stamp: Stamp) -> None:
        for resource in resources:
            key = f"{_type_of(resource).name}/{check_id(str(resource.get('id', '')), where='id')}"
            if self._resources.find_one({"_id": key}, {"_id": 1}, session=session) is None:
                self._writer.put(session, self._writer.document(key, resource, "POST", stamp=stamp))

    def _locked(self, session: ClientSession, key: str, mandatory: tuple[Demand, ...]) -> Resource | None:
        """Return the current version within a transaction. Raises NOT_FOUND when it lies outside the clauses."""
        if key in self._expected:
            document = self._expected.pop(key)
        else:
            document = self._resources.find_one({"_id": key}, BODY_FIELDS, session=session)
        found = resource_of(key, document) if document else None
        if found and not self._is_within(session, key, mandatory):
            raise AppError(Category.NOT_FOUND, f"{key} is not known", where=key)
        if found:
            self._check_context(found)
        return found

    def _is_within(self, session: ClientSession, key: str, mandatory: tuple[Demand, ...]) -> bool:
        wanted = {"$and": [{"_id": key}, self._past.demand(key.partition("/")[0], mandatory)]}
        return not mandatory or self._resources.find_one(wanted, {"_id": 1}, session=session) is not None

    def _check_demanded(self, session: ClientSession, key: str, mandatory: tuple[Demand, ...]) -> None:
        if not self._is_within(session, key, mandatory):
            kind = key.partition("/")[0]
            raise AppError(Category.FORBIDDEN, f"you may not write this {kind}: it would leave your reach")

    def _owner_among(self, session: ClientSession, document: Json) -> str | None:
        """Return whose a new resource is, where not its writer's: whose patient it is about, if that is allowed."""
        stamp = self._stamp
        if not stamp.owner or stamp.among == frozenset() or document["type"] == "Task":
            return None
        for name in _about(document):
            if name not in self._owners:
                found = self._resources.find_one({"_id": name}, {"owner": 1}, session=session)
                self._owners[name] = (found or {}).get("owner", "")
            if owner := self._owners[name]:
                return owner if stamp.among is None or owner in stamp.among else None
        return None

    def _part_of(self, session: ClientSession) -> "Repository":
        """Return this repository as a part of a session's transaction."""
        other = copy.copy(self)
        other._session = session
        other._expected = {}
        other._owners = {}
        other._writer = self._writer.gathering(session)
        other._resources = InSession(self._resources, session, other._writer.flush)  # type: ignore[assignment]
        other._past = self._past.part_of(session, other._writer.flush)
        return other

    def _translated(self, where: str) -> AbstractContextManager[None]:
        """What the driver raises becomes AppError where nobody above has to see it as it is, to try again."""
        return nullcontext() if self._session else translated(where)

    def _transaction(self, key: str, attempt: Callable[[ClientSession], T]) -> T:
        if self._session:
            return attempt(self._session)
        return self._writer.transaction(key, attempt)

    def _cursor_key(self) -> bytes:
        if not self._cursor_keys:
            self._cursor_keys.append(secret(self._database, "cursor"))
        return self._cursor_keys[0]


_TELLING = frozenset({"Patient", "ImagingStudy"})  # types that say whose the resources are that are about them


def _about(document: Json) -> list[str]:
    """Return the Patient and the studies that a resource is about."""
    key = document["_id"]
    names = [each for each in document.get("compartments", ()) if each.startswith("Patient/")]
    names += [row["r"] for row in document.get("ref", ()) if row["r"].startswith("ImagingStudy/")]
    return [each for each in dict.fromkeys(names) if each != key]


def _type_of(resource: Json) -> ResourceType:
    kind = resource.get("resourceType")
    if not isinstance(kind, str) or kind not in RESOURCES:
        raise _unknown(str(kind))
    return RESOURCES[kind]


def _check_changeable(kind: ResourceType) -> None:
    if kind.append_only:
        message = f"{kind.name} resources are only appended by the server itself"
        raise AppError(Category.UNSUPPORTED, message, where="method")


def _unknown(kind: str) -> AppError:
    return AppError(Category.NOT_FOUND, f"this server keeps no {kind[:64]} resources", where="resourceType")


def _check_version(current: Resource | None, key: str, if_match: int | None) -> None:
    if if_match is not None and (current is None or current.version != if_match):
        found = f"is at version {current.version}" if current else "does not exist"
        raise AppError(Category.PRECONDITION, f"{key} {found}, not at version {if_match}", where="If-Match")


def _is_same(current: Resource, new: Json) -> bool:
    return json.dumps(stamped(new, current.id, current.version, current.last_updated)) == current.body
