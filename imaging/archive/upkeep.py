"""Looking after what is stored: verify everything, sweep away what belongs to nothing.

The sweeper is driven by `garbage` rows, written before anything that could become an orphan, so its work grows with
crashes and deletions and never with the store.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from pymongo import WriteConcern
from pymongo.database import Database

from imaging.archive import trash
from imaging.archive.catalogue import Document
from imaging.archive.ingest import mark_arrivals, mark_studies
from imaging.blobs import BlobStore
from imaging.blobs.gridfs import RENEW_WITHIN

SETTLED = timedelta(minutes=2)  # a batch older than this was left by a crash, or is so slow that marking again is right
ORPHANED = 2 * RENEW_WITHIN  # no put leans on anything this old


@dataclass(frozen=True, slots=True)
class Finding:
    """What `verify` saw wrong with one instance."""

    sop_uid: str
    problem: str

    def __str__(self) -> str:
        return f"{self.sop_uid}: {self.problem}"


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


def _in_use(database: Database[Document], key: str) -> bool:
    # Instances last: what is taken back meanwhile is in them before it leaves the trash.
    if database.trash.find_one({"keys": key}, {"_id": 1}):
        return True
    return any(database.instances.find_one({field: key}, {"_id": 1}) for field in ("blob", "received.blob", "aside"))
