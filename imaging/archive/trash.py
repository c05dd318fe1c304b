"""Instances that were deleted and can still be taken back: their rows stand aside for a while, and their blobs stay.

Order of writes, so that a crash between any two leaves something harmless: a row is put aside before it leaves
`instances`, and comes back before it leaves `trash`. What is in both is an instance; its second row lapses.

* `trash`  `row` as it was in `instances`, `keys` of its blobs, when and by whom it was deleted, and `until` when it
  can be taken back
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from bson import ObjectId
from pymongo import WriteConcern
from pymongo.database import Database
from pymongo.errors import BulkWriteError

Document = dict[str, Any]

_BATCH = 500  # rows moved together
_LAPSED = 1_000  # rows that one sweep lets go at a time
_DUPLICATE_KEY = 11000


@dataclass(frozen=True, slots=True)
class Deleted:
    """What of a study was deleted and can be taken back: how many instances, by whom, and until when."""

    study_uid: str
    instances: int
    deleted_by: str
    until: datetime


def where(study_uid: str, series_uid: str | None = None, sop_uid: str | None = None) -> Document:
    """Return the filter of the rows of a study, a series or one instance that were put aside."""
    series = {"row.series": series_uid} if series_uid else {}
    return {"row.study": study_uid, **series, **({"row._id": sop_uid} if sop_uid else {})}


def put_aside(
    database: Database[Document], wanted: Document, *, now: datetime, until: datetime, deleted_by: str
) -> int:
    """Take instances out of the archive for a while; return how many there were."""
    trash, instances = _durable(database, "trash"), _durable(database, "instances")
    rows = database.instances.find(wanted)
    gone = 0
    while some := list(islice(rows, _BATCH)):
        told = {"deleted_at": now, "deleted_by": deleted_by, "until": until}
        trash.insert_many({"_id": ObjectId(), "row": row, "keys": blob_keys(row), **told} for row in some)
        gone += instances.delete_many({"_id": {"$in": [row["_id"] for row in some]}}).deleted_count
    return gone


def take_back(database: Database[Document], wanted: Document) -> tuple[int, int]:
    """Put instances back; return how many came back, and how many could not since others are there by now."""
    trash, instances = _durable(database, "trash"), _durable(database, "instances")
    back = taken = 0
    for some in _batches(database, wanted):
        # Of an instance that was deleted more than once, the last is the one.
        latest = {each["row"]["_id"]: each["row"] for each in some}
        clashes = _insert(instances, list(latest.values()))
        back += len(latest) - clashes
        taken += clashes
        trash.delete_many({"_id": {"$in": [each["_id"] for each in some]}})
    return back, taken


def kept(database: Database[Document], wanted: Document) -> list[Deleted]:
    """Return what can be taken back, by study, what lapses first before the others."""
    grouped = database.trash.aggregate(
        [
            {"$match": wanted},
            {
                "$group": {
                    "_id": {"study": "$row.study", "by": "$deleted_by"},
                    "uids": {"$addToSet": "$row._id"},
                    "until": {"$min": "$until"},
                }
            },
            {"$project": {"count": {"$size": "$uids"}, "until": 1}},
            {"$sort": {"until": 1, "_id": 1}},
        ]
    )
    return [Deleted(each["_id"]["study"], each["count"], each["_id"]["by"], each["until"]) for each in grouped]


def owners(database: Database[Document], wanted: Document) -> set[str]:
    """Return who registered the instances that were put aside."""
    return set(database.trash.distinct("row.registered_by", wanted))


def lapse(database: Database[Document], now: datetime) -> int:
    """Let go of what can no longer be taken back: its blobs become garbage; return how many instances there were."""
    garbage, trash = _durable(database, "garbage"), _durable(database, "trash")
    done = 0
    while some := list(database.trash.find({"until": {"$lte": now}}, {"keys": 1}).limit(_LAPSED)):
        # First the garbage row: until the others are gone, it finds their blobs in use.
        garbage.insert_one({"keys": sorted({key for each in some for key in each["keys"]}), "studies": [], "at": now})
        trash.delete_many({"_id": {"$in": [each["_id"] for each in some]}})
        done += len(some)
    return done


def blob_keys(row: Document) -> list[str]:
    """Return the keys of the blobs that a row refers to."""
    received = row.get("received", {}).get("blob")
    return [row["blob"], *([received] if received else []), *row.get("aside", [])]


def _batches(database: Database[Document], wanted: Document) -> Iterator[Sequence[Document]]:
    rows = database.trash.find(wanted).sort([("row._id", 1), ("deleted_at", 1)])
    while some := list(islice(rows, _BATCH)):
        yield some


def _insert(instances: Any, rows: list[Document]) -> int:
    """Insert rows; return how many could not be, because their UID is taken."""
    try:
        instances.insert_many(rows, ordered=False)
    except BulkWriteError as error:
        failures = error.details["writeErrors"]
        if any(failure["code"] != _DUPLICATE_KEY for failure in failures):
            raise
        return len(failures)
    return 0


def _durable(database: Database[Document], name: str) -> Any:
    return database.get_collection(name, write_concern=WriteConcern(w="majority", j=True))
