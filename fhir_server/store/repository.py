"""The versioned repository of FHIR resources, opened for one principal's restriction.

A write is one transaction: history, current version, outbox. The insert of the history document is what decides between
concurrent writers. Shapes are validated before (`model.validation`); here versions, restriction and hooks are kept.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from bson.codec_options import CodecOptions
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from fhir_server.model import json
from fhir_server.model.criteria import Clause, check_id, clause
from fhir_server.model.dates import whole_milliseconds
from fhir_server.model.query import Query
from fhir_server.model.resources import RESOURCES, ResourceType
from fhir_server.store import index
from fhir_server.store.documents import (
    BODY_FIELDS,
    Document,
    Json,
    Resource,
    resource_of,
    stamped,
    tombstone,
    version_document,
)
from fhir_server.store.failures import translated
from fhir_server.store.filters import Act, Restriction, compile_clause
from fhir_server.store.search import Page, search
from fhir_server.store.secrets import secret
from imaging.errors import AppError, Category

Clock = Callable[[], datetime]

MAX_ATTEMPTS = 20  # of one write against concurrent writers
MAX_HISTORY = 1000  # versions in one answer
MAJORITY = WriteConcern("majority", j=True)


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the owner of a resource type does at its writes; every hook returns new values and may raise AppError."""

    # (resource) -> (resource, id or None): an id makes the resource's id follow from its content
    before_create: Callable[[Json], tuple[Json, str | None]] | None = None
    # (current, new, whether the server itself writes) -> what is written
    before_update: Callable[[Json, Json, bool], Json] | None = None
    # (current, whether the server itself deletes)
    before_delete: Callable[[Json, bool], None] | None = None


NO_HOOKS: Mapping[str, Hooks] = MappingProxyType({})
Guard = Callable[[ClientSession], None]
Decision = Callable[[Resource | None], Json | None]  # current version -> what to write; None: leave it


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
    ) -> None:
        """Open the repository. `internal` tells the hooks that the server itself writes."""
        self._database: Database[Any] = database.with_options(CodecOptions(tz_aware=True, tzinfo=UTC))
        self._resources = self._database["resources"]
        self._history = self._database["history"]
        self._restriction = restriction
        self._clock = clock
        self._hooks = hooks
        self._base_url = base_url
        self._internal = internal
        self._cursor_keys: list[bytes] = []

    def opened_for(
        self, restriction: Restriction, *, hooks: Mapping[str, Hooks] | None = None, internal: bool = False
    ) -> "Repository":
        """Return the same repository for another restriction, with other hooks where given; cheaper than a new one."""
        other = Repository(
            self._database,
            restriction,
            clock=self._clock,
            hooks=self._hooks if hooks is None else hooks,
            base_url=self._base_url,
            internal=internal,
        )
        other._cursor_keys = self._cursor_keys
        return other

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
        resource, identifier = self._before_create(resource, id)
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
            now = whole_milliseconds(self._clock())
            for resource in resources:
                kind, identifier = _type_of(resource), check_id(str(resource.get("id", "")), where="id")
                self._restriction.require(kind.name, Act.CREATE)
                key = f"{kind.name}/{identifier}"
                if self._resources.find_one({"_id": key}, {"_id": 1}, session=session) is None:
                    self._put(session, self._document(key, resource, 1, now, now, "POST"), key)

        return guard

    def append(self, resource: Json) -> Resource:
        """Store a resource of an append-only type in one insert: no version history, not waiting for the disk."""
        kind = _type_of(resource)
        if not kind.append_only:
            raise AppError(Category.INVALID, f"{kind.name} is not append-only", where=kind.name)
        self._restriction.require(kind.name, Act.CREATE)
        key, now = f"{kind.name}/{uuid.uuid4()}", whole_milliseconds(self._clock())
        document = self._document(key, resource, 1, now, now, "POST")
        with translated(key):
            self._resources.with_options(write_concern=WriteConcern(1)).insert_one(document)
        return resource_of(key, document)

    def read(self, type: str, id: str) -> Resource:
        """Return the current version. Raises NOT_FOUND, and GONE for one that was deleted."""
        key, mandatory = self._opened(type, id, Act.READ)
        return self._visible(key, mandatory)

    def vread(self, type: str, id: str, version: int) -> Resource:
        """Return one version. Raises NOT_FOUND, and GONE where the version is the deletion."""
        key, mandatory = self._opened(type, id, Act.READ)
        found = [one for one in self._versions(key, [version]) if self._is_within(one, mandatory)]
        if not found:
            raise AppError(Category.NOT_FOUND, f"{key} has no version {version}", where=key)
        if found[0].deleted:
            raise AppError(Category.GONE, f"version {version} of {key} is its deletion", where=key)
        return found[0]

    def history(self, type: str, id: str, *, count: int = 50, before: int | None = None) -> list[Resource]:
        """Return versions, latest first, deletions included; `before` continues below a version.

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
        wanted = list(range(top, max(0, top - min(count, MAX_HISTORY)), -1))
        return [one for one in self._versions(key, wanted) if self._is_within(one, mandatory)]

    def update(
        self,
        resource: Json,
        *,
        if_match: int | None = None,
        create: bool = False,
        if_changed: bool = False,
        guard: Guard | None = None,
    ) -> Resource:
        """Store a new version of the resource that has this type and id.

        create      an absent or deleted one is created, also where the type's table row does not allow it to clients
        if_changed  content equal to the current version's makes no new version; that one is returned
        guard       runs in the same transaction, before the write; what it raises undoes the whole
        Raises UNSUPPORTED for an id that is not known and may not be chosen, NOT_FOUND for one that may not be seen,
        PRECONDITION when `if_match` is not the current version, CONFLICT when concurrent writers never let it through.
        """
        kind = _type_of(resource)
        key, mandatory = self._opened(kind.name, str(resource.get("id", "")), Act.UPDATE)
        _check_changeable(kind)
        may_create = create or kind.update_create

        def decide(current: Resource | None) -> Json | None:
            _check_version(current, key, if_match)
            if current is None or current.deleted:
                return self._created_by_update(resource, key, mandatory, may_create=may_create)
            new = self._before_update(current, resource)
            return None if if_changed and _is_same(current, new) else new

        return self._write(key, "PUT", decide, mandatory, mandatory, guard=guard)

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
            now = max(whole_milliseconds(self._clock()), current.last_updated)
            document = {"_id": key, **tombstone(current.version + 1, now)}
            return self._put(session, document, key)

        return self._transaction(key, attempt)

    def search(self, query: Query) -> Page:
        """Return one page of matches with what comes along. Raises FORBIDDEN, INVALID, TOO_LARGE, BUSY."""
        if query.type not in RESOURCES:
            raise _unknown(query.type)
        with translated(query.type):
            return search(self._resources, query, self._restriction, now=self._clock(), key=self._cursor_key)

    def find_one(self, type: str, param: str, value: str) -> Resource | None:
        """Return the resource that one search criterion finds, None without any. Raises CONFLICT for several."""
        found = self.search(Query(type, (clause(type, param, value, base_url=self._base_url),), count=2)).matches
        if len(found) > 1:
            raise AppError(Category.CONFLICT, f"several {type} resources have this {param}", where=type)
        return found[0] if found else None

    def _opened(self, kind: str, identifier: str, act: Act) -> tuple[str, tuple[Clause, ...]]:
        if kind not in RESOURCES:
            raise _unknown(kind)
        check_id(identifier, where=f"{kind}.id")
        return f"{kind}/{identifier}", self._restriction.require(kind, act)

    def _visible(self, key: str, mandatory: tuple[Clause, ...]) -> Resource:
        found = self._current(key)
        if not mandatory and not found.deleted:
            return found
        last = found if not found.deleted else next(iter(self._versions(key, [found.version - 1])), found)
        if not self._is_within(last, mandatory):
            raise AppError(Category.NOT_FOUND, f"{key} is not known", where=key)
        if found.deleted:
            raise AppError(Category.GONE, f"{key} was deleted", where=key)
        return found

    def _current(self, key: str) -> Resource:
        with translated(key):
            document = self._resources.find_one({"_id": key}, BODY_FIELDS)
        if document is None:
            raise AppError(Category.NOT_FOUND, f"{key} is not known", where=key)
        return resource_of(key, document)

    def _versions(self, key: str, versions: list[int]) -> list[Resource]:
        """Return the versions that exist, in the order asked."""
        if RESOURCES[key.partition("/")[0]].append_only:
            found = [self._current(key)]
        else:
            with translated(key):
                documents = self._history.find({"_id": {"$in": [f"{key}/{version}" for version in versions]}})
                found = [resource_of(key, document) for document in documents]
        by_version = {one.version: one for one in found}
        return [by_version[version] for version in versions if version in by_version]

    def _is_within(self, resource: Resource, mandatory: tuple[Clause, ...]) -> bool:
        """Say whether a version satisfies all clauses, as the database itself judges it; a deletion has no content."""
        if not mandatory or resource.deleted:
            return not mandatory
        rows = index.rows(resource.json(), base_url=self._base_url)
        document = {"_id": resource.key, "type": resource.type, "lastUpdated": resource.last_updated, **rows}
        with translated(resource.key):
            pipeline: list[Json] = [
                {"$documents": [{"$literal": document}]},
                {"$match": self._demand(resource.type, mandatory)},
            ]
            return next(iter(self._database.aggregate(pipeline)), None) is not None

    def _demand(self, kind: str, mandatory: tuple[Clause, ...]) -> dict[str, Any]:
        now = self._clock()
        return {"$and": [{"type": kind}, *(compile_clause(kind, clause, now) for clause in mandatory)]}

    def _before_create(self, resource: Json, identifier: str | None) -> tuple[Json, str | None]:
        hooks = self._hooks.get(resource["resourceType"], Hooks())
        if hooks.before_create:
            resource, derived = hooks.before_create(resource)
            if derived and identifier not in {None, derived}:
                raise AppError(Category.INVALID, f"the id of this resource can only be {derived}", where="id")
            identifier = derived or identifier
        return resource, check_id(identifier, where="id") if identifier else None

    def _before_update(self, current: Resource, resource: Json) -> Json:
        hooks = self._hooks.get(current.type, Hooks())
        return hooks.before_update(current.json(), resource, self._internal) if hooks.before_update else resource

    def _created_by_update(self, resource: Json, key: str, mandatory: tuple[Clause, ...], *, may_create: bool) -> Json:
        kind, _, identifier = key.partition("/")
        if not may_create and mandatory:  # as one that exists and may not be seen
            raise AppError(Category.NOT_FOUND, f"{key} is not known", where=key)
        if not may_create:
            # FHIR R4 http 3.1.0.4.2: 405 where "the server does not allow client defined ids".
            message = f"{key} is not known, and this server chooses the ids of {kind} resources: create it"
            raise AppError(Category.UNSUPPORTED, message, where="method")
        self._restriction.require(kind, Act.CREATE)
        return self._before_create(resource, identifier)[0]

    def _write(
        self,
        key: str,
        method: str,
        decide: Decision,
        seen: tuple[Clause, ...],
        demanded: tuple[Clause, ...],
        *,
        is_new: bool = False,
        guard: Guard | None = None,
    ) -> Resource:
        """Write what `decide` makes of the current version; `seen` must hold before, `demanded` after."""

        def attempt(session: ClientSession) -> Resource:
            if guard:
                guard(session)
            current = None if is_new else self._locked(session, key, seen)
            resource = decide(current)
            if resource is None:
                assert current is not None  # noqa: S101 -- `decide` leaves only what it was shown
                return current
            now = whole_milliseconds(self._clock())
            moment = max(now, current.last_updated) if current else now
            version = current.version + 1 if current else 1
            created = current.created if current and not current.deleted else None
            document = self._document(key, resource, version, moment, created or moment, method)
            written = self._put(session, document, key)
            self._check_demanded(session, key, demanded)
            return written

        return self._transaction(key, attempt)

    def _locked(self, session: ClientSession, key: str, mandatory: tuple[Clause, ...]) -> Resource | None:
        """Return the current version within a transaction. Raises NOT_FOUND when it lies outside the clauses."""
        document = self._resources.find_one({"_id": key}, BODY_FIELDS, session=session)
        found = resource_of(key, document) if document else None
        if found and mandatory and not self._is_within(found, mandatory):
            raise AppError(Category.NOT_FOUND, f"{key} is not known", where=key)
        return found

    def _check_demanded(self, session: ClientSession, key: str, mandatory: tuple[Clause, ...]) -> None:
        kind = key.partition("/")[0]
        if mandatory:
            wanted = {"$and": [{"_id": key}, self._demand(kind, mandatory)]}
            if self._resources.find_one(wanted, {"_id": 1}, session=session) is None:
                raise AppError(Category.FORBIDDEN, f"you may not write this {kind}: it would leave your reach")

    def _document(
        self, key: str, resource: Json, version: int, moment: datetime, created: datetime, method: str
    ) -> Json:
        kind, _, identifier = key.partition("/")
        content = stamped(resource, identifier, version, moment)
        rows = index.rows(content, base_url=self._base_url)
        fields = version_document(content, version, moment, method)
        return {"_id": key, "type": kind, "created": created, **fields, **rows}

    def _put(self, session: ClientSession, document: Document, key: str) -> Resource:
        version = document["version"]
        kept = {name: document[name] for name in BODY_FIELDS if name in document}
        outbox = {"key": key, "version": version, "method": document["method"], "at": document["lastUpdated"]}
        self._history.insert_one({"_id": f"{key}/{version}", **kept}, session=session)
        if version == 1:
            self._resources.insert_one(dict(document), session=session)
        else:
            self._resources.replace_one({"_id": key}, document, session=session)
        self._database["outbox"].insert_one(outbox, session=session)
        return resource_of(key, document)

    def _transaction(self, key: str, attempt: Callable[[ClientSession], Resource]) -> Resource:
        attempts = 0

        def bounded(session: ClientSession) -> Resource:
            nonlocal attempts
            attempts += 1
            if attempts > MAX_ATTEMPTS:
                raise AppError(Category.CONFLICT, f"{key} is being changed by others: read it and try again", where=key)
            return attempt(session)

        with translated(key), self._database.client.start_session() as session:
            return session.with_transaction(bounded, read_concern=ReadConcern("snapshot"), write_concern=MAJORITY)

    def _cursor_key(self) -> bytes:
        if not self._cursor_keys:
            self._cursor_keys.append(secret(self._database, "cursor"))
        return self._cursor_keys[0]


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
