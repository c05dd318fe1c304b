"""The versioned repository of FHIR resources, opened for one principal's restriction.

A write is one transaction, or a part of one (`together`). Shapes are validated before (`model.validation`); here
versions, restriction and hooks are kept.
"""

import copy
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.write_concern import WriteConcern

from fhir_server.model import json
from fhir_server.model.criteria import Table, check_id
from fhir_server.model.definitions import parameters
from fhir_server.model.query import Query
from fhir_server.model.resources import RESOURCES, ResourceType
from fhir_server.store.documents import BODY_FIELDS, NOBODY, Json, Resource, Stamp, resource_of, stamped, tombstone
from fhir_server.store.filters import Act, Demand, Restriction
from fhir_server.store.reader import Clock, Reader, unknown
from fhir_server.store.session import InSession
from fhir_server.store.writing import Writer
from imaging.errors import AppError, Category

T = TypeVar("T")


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


class Repository(Reader):
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
        super().__init__(database, restriction, clock=clock, base_url=base_url, table=table)
        self._writer = Writer(self._database, base_url=base_url, clock=clock, table=table)
        self._hooks = hooks
        self._internal = internal
        self._client_ids = client_ids
        self._stamp = stamp
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

    def permits(self, resource: Json, act: Act) -> bool:
        """Say whether a resource that has an id lies within what an act is allowed on; nothing is stored.

        Raises FORBIDDEN where the act is not allowed on any resource of the type.
        """
        kind = _type_of(resource)
        mandatory = self._restriction.require(kind.name, act)
        body = json.dumps(resource)
        would_be = Resource(kind.name, resource["id"], 1, self._clock(), body, stamp=self._stamp)
        return bool(self._within([would_be], mandatory))

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

    def match(self, query: Query) -> Resource | None:
        """Return the one resource that the query finds, None without any; to be called within `together`.

        Of two that decide by the same criteria at a time, one begins again. Raises PRECONDITION for several.
        """
        kept = {"$set": {"at": self._clock()}}
        self._database["conditions"].update_one({"_id": query.fingerprint}, kept, upsert=True, session=self._session)
        return self.selected(query)

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

    def _transaction(self, key: str, attempt: Callable[[ClientSession], T]) -> T:
        if self._session:
            return attempt(self._session)
        return self._writer.transaction(key, attempt)


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
        raise unknown(str(kind))
    return RESOURCES[kind]


def _check_changeable(kind: ResourceType) -> None:
    if kind.append_only:
        message = f"{kind.name} resources are only appended by the server itself"
        raise AppError(Category.UNSUPPORTED, message, where="method")


def _check_version(current: Resource | None, key: str, if_match: int | None) -> None:
    if if_match is not None and (current is None or current.version != if_match):
        found = f"is at version {current.version}" if current else "does not exist"
        raise AppError(Category.PRECONDITION, f"{key} {found}, not at version {if_match}", where="If-Match")


def _is_same(current: Resource, new: Json) -> bool:
    return json.dumps(stamped(new, current.id, current.version, current.last_updated)) == current.body
