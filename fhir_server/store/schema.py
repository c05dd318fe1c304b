"""Collections, indexes and numbered migrations of the FHIR side of the database.

`ensure_schema` may be called by many processes at once: the numbered steps run under a lease, once each.
An array index may hold one array only (MongoDB's rule for multikey indexes), so every kind of search row has its own,
type first; it is partial, so that resources without such rows cost nothing. Order lies behind the matched value.
"""

import os
import socket
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from pymongo import ASCENDING, DESCENDING, IndexModel, UpdateOne
from pymongo.database import Database
from pymongo.errors import CollectionInvalid, OperationFailure
from pymongo.write_concern import WriteConcern

from fhir_server.model.resources import RESOURCES
from fhir_server.store.lease import FORGET_AFTER_S, Leases
from imaging.errors import AppError, Category

COLLECTIONS = ("resources", "history", "leases", "secrets", "schema", "conditions", "answers")
ANSWERS_KEPT_S = 86_400
CONDITIONS_KEPT_S = 86_400  # criteria by which somebody decided; needed while the transaction lasts
AT_A_TIME = 10_000  # documents changed by one step of a migration
LEASE_S = 30.0
WAIT_S = 120.0

Step = Callable[[Database[Any]], None]


def resource_indexes() -> list[IndexModel]:
    """Return the indexes of `resources`; a row of `RESOURCES` with `sorts` adds its own."""
    indexes = [
        _index("newest", [("type", 1), ("created", -1), ("_id", 1)]),
        _index("updated", [("type", 1), ("lastUpdated", -1), ("_id", 1)]),
        _rows("token", "tok", ["p", "c"]),
        _rows("reference", "ref", ["p", "r"]),
        _rows("uri", "uri", ["p", "u"]),
        _rows("string", "str", ["p", "v"], is_ordered=False),
        _rows("date", "dat", ["p", "l", "h"], is_ordered=False),
        _rows("number", "num", ["p", "l"], is_ordered=False),
        _rows("quantity", "qty", ["p", "l", "c"], is_ordered=False),
        _rows("composite", "com", ["p", "a.c", "b.l"], is_ordered=False),
        IndexModel(
            [("type", 1), ("near", "2dsphere")], name="near", partialFilterExpression={"near": {"$exists": True}}
        ),
        _index("inside", [("inside.t", 1), ("created", -1), ("_id", 1)], "inside"),
        _index("owner", [("type", 1), ("owner", 1), ("created", -1), ("_id", 1)], "owner"),
        _index("compartment", [("type", 1), ("compartments", 1), ("created", -1), ("_id", 1)], "compartments"),
    ]
    for row in RESOURCES.values():
        for code in row.sorts:
            order = [(f"sort.{code}.l", DESCENDING), (f"sort.{code}.h", DESCENDING), ("_id", ASCENDING)]
            name = f"{row.name}.{code}"
            only = {"type": row.name}
            indexes.append(IndexModel([("type", 1), *order], name=name, partialFilterExpression=only))
            by_token = [("type", 1), ("tok.p", 1), ("tok.c", 1), *order]
            indexes.append(IndexModel(by_token, name=f"{name}.token", partialFilterExpression=only))
    return indexes


def ensure_schema(
    database: Database[Any], *, others: Sequence[Step] = (), clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> int:
    """Bring collections and indexes to this version and return its number.

    others    steps of other parts (the archive's indexes), run under the same lease each time; they must be repeatable
    Raises BUSY when another process holds the lease for two minutes, CONFLICT for a database of a later version.
    """
    leases = Leases(database, clock)
    worker = f"{socket.gethostname()}:{os.getpid()}"
    deadline = time.monotonic() + WAIT_S
    while (lease := leases.claim("schema", worker, LEASE_S)) is None:
        if time.monotonic() > deadline:
            raise AppError(Category.BUSY, "another process is changing the database's schema", where="schema")
        time.sleep(0.05)
    try:
        return _migrate(database, others)
    finally:
        leases.finish(lease)


def _migrate(database: Database[Any], others: Sequence[Step]) -> int:
    versions = database.get_collection("schema", write_concern=WriteConcern("majority", j=True))
    found = versions.find_one({"_id": "version"}) or {"number": 0}
    latest = MIGRATIONS[-1][0]
    if found["number"] > latest:
        message = f"the database has schema {found['number']}, this program knows {latest}: use a newer program"
        raise AppError(Category.CONFLICT, message, where="schema")
    for number, step in MIGRATIONS:
        if number > found["number"]:
            step(database)
            versions.update_one({"_id": "version"}, {"$set": {"number": number}}, upsert=True)
    _create_indexes(database)  # a new row in `RESOURCES` needs no migration
    for other in others:
        other(database)
    return latest


def _create_collections(database: Database[Any]) -> None:
    for name in COLLECTIONS:
        try:
            database.create_collection(name)
        except CollectionInvalid:
            continue


def _create_indexes(database: Database[Any]) -> None:
    leases = IndexModel([("until", 1)], name="forget", expireAfterSeconds=FORGET_AFTER_S)
    conditions = IndexModel([("at", 1)], name="forget", expireAfterSeconds=CONDITIONS_KEPT_S)
    changes = IndexModel([("type", 1), ("lastUpdated", -1), ("version", -1), ("_id", -1)], name="changes")
    wanted = {
        "resources": resource_indexes(),
        "history": [changes, _index("unseen", [("unseen.at", 1)], "unseen")],
        "leases": [leases],
        "conditions": [conditions],
        "answers": [IndexModel([("at", 1)], name="forget", expireAfterSeconds=ANSWERS_KEPT_S)],
    }
    for name, indexes in wanted.items():
        try:
            database[name].create_indexes(indexes)
        except OperationFailure as error:
            message = f"an index of {name} differs from this program's: {error.details and error.details.get('errmsg')}"
            raise AppError(Category.CONFLICT, message, where="schema") from error


def _name_types_in_history(database: Database[Any]) -> None:
    """Give every version the type of its resource, by which the history of a type is found."""
    kind = {"$arrayElemAt": [{"$split": ["$_id", "/"]}, 0]}
    database["history"].update_many({"type": {"$exists": False}}, [{"$set": {"type": kind}}])


def _keep_the_outbox_in_history(database: Database[Any]) -> None:
    """Mark the versions that nobody has looked at where they are, instead of naming them in a collection beside."""
    rows = database["outbox"].find({"version": {"$gt": 0}})
    marks = (_mark(f"{row['key']}/{row['version']}", {"at": row["at"], "number": row["_id"]}) for row in rows)
    while some := list(islice(marks, AT_A_TIME)):
        database["history"].bulk_write(some, ordered=False)
    database["outbox"].drop()


def _mark(version: str, unseen: dict[str, Any]) -> UpdateOne:
    return UpdateOne({"_id": version}, {"$set": {"unseen": unseen}})


# (number, step): never change one that was released, add the next
MIGRATIONS: tuple[tuple[int, Step], ...] = (
    (1, _create_collections),
    (2, _create_collections),
    (3, _name_types_in_history),
    (4, _create_collections),
    (5, _keep_the_outbox_in_history),
)


def _index(name: str, keys: list[tuple[str, int]], present: str = "") -> IndexModel:
    options: dict[str, Any] = {"partialFilterExpression": {present: {"$exists": True}}} if present else {}
    return IndexModel(keys, name=name, **options)


def _rows(name: str, array: str, fields: list[str], *, is_ordered: bool = True) -> IndexModel:
    """Return the index of one kind of rows. After a range there is no order to keep, so none is appended."""
    keys = [("type", 1), *((f"{array}.{field}", 1) for field in fields)]
    return _index(name, keys + ([("created", -1), ("_id", 1)] if is_ordered else []), array)
