"""How a version is written: into the history and as the current one, in one transaction.

The insert of the history document is what decides between concurrent writers. Its `unseen` says that nobody has looked
yet whom this change concerns (see `store.subscriptions`): so the history is the outbox too.
"""

import copy
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from bson import ObjectId
from pymongo import InsertOne, ReplaceOne
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from fhir_server.model.criteria import Table
from fhir_server.model.dates import whole_milliseconds
from fhir_server.model.definitions import parameters
from fhir_server.store import index
from fhir_server.store.documents import (
    BODY_FIELDS,
    NOBODY,
    Document,
    Json,
    Resource,
    Stamp,
    resource_of,
    stamped,
    version_document,
)
from fhir_server.store.failures import translated
from imaging.errors import AppError, Category

T = TypeVar("T")

MAX_ATTEMPTS = 20  # of one transaction against concurrent writers
TICK = timedelta(milliseconds=1)  # the least that the database tells apart
MAJORITY = WriteConcern("majority", j=True)


class Writer:
    """Writes versions of resources."""

    def __init__(
        self, database: Database[Any], *, base_url: str, clock: Callable[[], datetime], table: Table = parameters
    ) -> None:
        self._database = database
        self._history = database["history"]
        self._resources = database["resources"]
        self._base_url = base_url
        self._table = table
        self._clock = clock
        self._waiting: list[Document] | None = None  # None: what is put is written at once
        self._session: ClientSession | None = None

    def gathering(self, session: ClientSession) -> "Writer":
        """Return a writer for many versions in one transaction: they wait, and `flush` writes them together."""
        other = copy.copy(self)
        other._waiting, other._session = [], session
        return other

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting and self._session:
            waiting, self._waiting = self._waiting, []
            self._write_all(waiting, self._session)

    def document(
        self, key: str, resource: Json, method: str, current: Resource | None = None, *, stamp: Stamp = NOBODY
    ) -> Json:
        """Return the document of the version that follows `current`; time goes on from version to version."""
        kind, _, identifier = key.partition("/")
        moment = self.moment(current)
        version = current.version + 1 if current else 1
        created = current.created if current and not current.deleted else None
        content = stamped(resource, identifier, version, moment)
        rows = index.rows(content, base_url=self._base_url, table=self._table)
        fields = version_document(content, version, moment, method)
        return {"_id": key, "type": kind, "created": created or moment, **stamp.fields(), **fields, **rows}

    def moment(self, current: Resource | None = None) -> datetime:
        """Return the time of a version that is written now, after `current`."""
        now = whole_milliseconds(self._clock())
        return max(now, current.last_updated + TICK) if current else now

    def put(self, session: ClientSession, document: Document) -> Resource:
        """Write a version within a transaction and return it."""
        if self._waiting is not None:
            self._waiting.append(document)
            return resource_of(document["_id"], document)
        key = document["_id"]
        self._history.insert_one(_past(document), session=session)
        if document["version"] == 1:
            self._resources.insert_one(dict(document), session=session)
        else:
            self._resources.replace_one({"_id": key}, document, session=session)
        return resource_of(key, document)

    def _write_all(self, documents: Sequence[Document], session: ClientSession) -> None:
        """Write versions of different resources; each kind of write goes once, whatever their number."""
        self._history.insert_many(map(_past, documents), session=session)
        current = [
            InsertOne(dict(each)) if each["version"] == 1 else ReplaceOne({"_id": each["_id"]}, each)
            for each in documents
        ]
        self._resources.bulk_write(current, ordered=False, session=session)

    def transaction(self, where: str, attempt: Callable[[ClientSession], T]) -> T:
        """Return what `attempt` does within a transaction. Raises CONFLICT when others never let it through."""
        attempts = 0

        def bounded(session: ClientSession) -> T:
            nonlocal attempts
            attempts += 1
            if attempts > MAX_ATTEMPTS:
                message = f"{where} is being changed by others: read it and try again"
                raise AppError(Category.CONFLICT, message, where=where)
            return attempt(session)

        with translated(where), self._database.client.start_session() as session:
            return session.with_transaction(bounded, read_concern=ReadConcern("snapshot"), write_concern=MAJORITY)


def _past(document: Document) -> Json:
    key = document["_id"]
    kept = {name: document[name] for name in BODY_FIELDS if name in document}
    kind = key.partition("/")[0]
    # Of the same moment the number tells what came first, in one process.
    unseen = {"at": document["lastUpdated"], "number": ObjectId()}
    return {"_id": f"{key}/{document['version']}", "type": kind, **kept, "unseen": unseen}
