"""Looking after what is stored: sweep away what belongs to nothing, make anew what follows from the instances.

The sweeper is driven by `garbage` rows, written before anything that could become an orphan, so its work grows with
crashes and deletions and never with the store.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

import orjson
from pymongo import UpdateOne, WriteConcern
from pymongo.database import Database

from imaging.archive import trash
from imaging.archive.attributes import Tables
from imaging.archive.catalogue import Document, instance_index
from imaging.archive.corrections import Known
from imaging.archive.ingest import mark_arrivals, mark_studies
from imaging.archive.summaries import metadata
from imaging.blobs import BlobStore
from imaging.blobs.gridfs import RENEW_WITHIN

SETTLED = timedelta(minutes=2)  # a batch older than this was left by a crash, or is so slow that marking again is right
ORPHANED = 2 * RENEW_WITHIN  # no put leans on anything this old
INDEXED_TOGETHER = 200  # instances


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did, in numbers of each."""

    studies_marked: int
    blobs_deleted: int


def sweep(database: Database[Document], blobs: BlobStore, now: datetime) -> Swept:
    """Finish what crashes left behind and delete blobs that nothing refers to. Safe to run anywhere, at any time."""
    trash.lapse(database, now)
    studies = database.get_collection("studies", write_concern=WriteConcern(w="majority", j=True))
    marked = deleted = 0
    for row in database.garbage.find({"at": {"$lt": now - SETTLED}}).sort("at"):
        if row["studies"] and not row.get("marked"):
            # A crash before any instance was written must not leave an empty study.
            found = [uid for uid in row["studies"] if database.instances.find_one({"study": uid}, {"_id": 1})]
            emptied = [uid for uid in row["studies"] if uid not in found and database.studies.find_one({"_id": uid})]
            if found:
                mark_arrivals(studies, found, now)
            if emptied:
                mark_studies(studies, emptied, now)
            marked += len(found) + len(emptied)
            database.garbage.update_one({"_id": row["_id"]}, {"$set": {"marked": True}})
        if row["at"] >= now - ORPHANED:
            continue
        orphans = [key for key in row["keys"] if not _in_use(database, key)]
        gone = [blobs.delete(key, put_before=now - ORPHANED) for key in orphans]
        deleted += sum(gone)
        if all(gone):
            database.garbage.delete_one({"_id": row["_id"]})
    return Swept(marked, deleted)


def index_all(
    database: Database[Document], blobs: BlobStore, tables: Tables, known: Known, progress: Callable[[int, int], None]
) -> int:
    """Write anew the attributes by which each instance is found, from its metadata; return how many there are."""
    total, done = database.instances.count_documents({}), 0
    rows = database.instances.find({}, {"stored_syntax": 1, "received.syntax": 1})
    while some := list(islice(rows, INDEXED_TOGETHER)):
        syntaxes = {row["_id"]: list(dict.fromkeys([row["stored_syntax"], row["received"]["syntax"]])) for row in some}
        changes = [
            UpdateOne({"_id": uid}, {"$set": instance_index(orjson.loads(json), tables, syntaxes[uid])})
            for uid, json in metadata(database, blobs, syntaxes, known)
        ]
        database.instances.bulk_write(changes, ordered=False)
        done += len(changes)
        progress(done, max(done, total))
    return done


def _in_use(database: Database[Document], key: str) -> bool:
    # Instances last: what is taken back meanwhile is in them before it leaves the trash.
    if database.trash.find_one({"keys": key}, {"_id": 1}):
        return True
    return any(database.instances.find_one({field: key}, {"_id": 1}) for field in ("blob", "received.blob", "aside"))
