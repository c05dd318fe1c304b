"""The register of peers on MongoDB, and what was sent to them, so that nothing is sent twice.

* `peers`      `_id` name; the peer with its credentials, which are nowhere else
* `delivered`  `_id` id of the delivery's Task and name of the peer; what the receiver has, refused, and how it ended
* `rests`      `_id` name; until when nothing is sent to a peer that did not answer, and how often that was

What `delivered` says only saves work: an instance that is sent again is recognised by its UID. What was collected from
peers is remembered in `collected`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, IndexModel, ReturnDocument
from pymongo.database import Database
from pymongo.write_concern import WriteConcern

from fhir_server.model.peer import Peer, from_document, to_document
from imaging.errors import AppError, Category

AFTER = ReturnDocument.AFTER
KEPT_S = 400 * 86_400  # a note of a delivery or a collection is forgotten after this
INDEXES: dict[str, list[IndexModel]] = {
    "peers": [IndexModel([("subscriber", ASCENDING)], name="subscriber")],
    "delivered": [IndexModel([("at", ASCENDING)], name="forget", expireAfterSeconds=KEPT_S)],
}


@dataclass(frozen=True, slots=True)
class Delivery:
    """What is known of one delivery to one peer.

    subscriber
             whose the peer was when it began
    since    when it was first tried
    had      SOP Instance UIDs that the receiver has
    refused  SOP Instance UID -> why the receiver will not have it
    ended    when it ended, None before
    reason   why it failed, "" where it did not
    """

    key: str
    subscriber: str
    since: datetime
    had: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    tries: int = 0
    ended: datetime | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Rest:
    """Why nothing is sent to a peer before `until`, and how many tries in a row failed."""

    until: datetime
    reason: str
    failures: int


class Peers:
    """The register and the notes of deliveries."""

    def __init__(self, database: Database[Any]) -> None:
        durable = WriteConcern("majority", j=True)
        self._peers = database.get_collection("peers", write_concern=durable)
        self._delivered = database.get_collection("delivered", write_concern=durable)
        self._rests = database.get_collection("rests", write_concern=durable)
        self._collected = database.get_collection("collected", write_concern=durable)
        self._marks = database.get_collection("collection_marks", write_concern=durable)

    def ensure_indexes(self) -> None:
        """Create the indexes; those that exist are left alone."""
        for name, indexes in INDEXES.items():
            self._peers.database[name].create_indexes(indexes)

    def put(self, peer: Peer) -> None:
        """Register a peer, or replace the one of the same name."""
        document = to_document(peer)
        self._peers.replace_one({"_id": peer.name}, document, upsert=True)
        # A source may have been put right: it is looked at anew at once.
        self._marks.update_one({"_id": peer.name}, {"$set": {"due": None, "failures": 0, "reason": "", "told": ""}})

    def get(self, name: str) -> Peer:
        """Return a peer. Raises NOT_FOUND."""
        found = self._peers.find_one({"_id": name})
        if found is None:
            message = f"no endpoint {name[:64]!r} was registered; `fhir-imaging endpoint list` shows all"
            raise AppError(Category.NOT_FOUND, message, where="endpoint")
        return from_document(found)

    def all(self, subscriber: str | None = None) -> list[Peer]:
        """Return the peers of one subscriber, or all of them, by name."""
        found = self._peers.find({"subscriber": subscriber} if subscriber else {}).sort("_id")
        return [from_document(each) for each in found]

    def remove(self, name: str) -> None:
        """Forget a peer, its credentials and what is known of it; one that is not there is forgotten already."""
        self._peers.delete_one({"_id": name})
        self._collected.delete_many({"peer": name})
        self._marks.delete_one({"_id": name})
        self._rests.delete_one({"_id": name})

    # ---- deliveries

    def begin(self, key: str, subscriber: str, at: datetime) -> Delivery:
        """Return what is known of a delivery; it began at the first call, for the subscriber that was named there."""
        change = {"$setOnInsert": {"subscriber": subscriber, "since": at, "at": at}}
        row = self._delivered.find_one_and_update({"_id": key}, change, upsert=True, return_document=AFTER)
        assert row is not None  # noqa: S101 -- an upsert always has a document
        return _delivery(row)

    def acknowledge(self, key: str, had: Iterable[str], refused: Mapping[str, str], at: datetime) -> None:
        """Note what a receiver said of some instances."""
        told = [{"uid": uid, "reason": reason} for uid, reason in refused.items()]
        more = {"had": {"$each": sorted(had)}, "refused": {"$each": told}}
        self._delivered.update_one({"_id": key}, {"$addToSet": more, "$set": {"at": at}})

    def tried(self, key: str) -> int:
        """Count a try; return how many there were."""
        row = self._delivered.find_one_and_update({"_id": key}, {"$inc": {"tries": 1}}, return_document=AFTER)
        return int(row["tries"]) if row else 1

    def end(self, key: str, reason: str, at: datetime) -> None:
        """Note how a delivery ended, for good: `reason` says why it failed, "" where it did not."""
        change = {"$set": {"reason": reason, "ended": at, "at": at}}
        self._delivered.update_one({"_id": key, "ended": {"$exists": False}}, change)

    def rest(self, name: str) -> Rest | None:
        """Return why a peer rests; None for one that answered the last time."""
        row = self._rests.find_one({"_id": name})
        return Rest(row["until"], row["reason"], row["failures"]) if row else None

    def let_rest(self, name: str, rest: Rest) -> None:
        """Have nothing sent to a peer for a while."""
        values = {"until": rest.until, "reason": rest.reason, "failures": rest.failures}
        self._rests.update_one({"_id": name}, {"$set": values}, upsert=True)

    def wake(self, name: str) -> None:
        """End the rest of a peer, if it has one."""
        self._rests.delete_one({"_id": name})


def _delivery(row: Mapping[str, Any]) -> Delivery:
    return Delivery(
        key=row["_id"],
        subscriber=row["subscriber"],
        since=row["since"],
        had=frozenset(row.get("had", ())),
        refused={each["uid"]: each["reason"] for each in row.get("refused", ())},
        tries=row.get("tries", 0),
        ended=row.get("ended"),
        reason=row.get("reason", ""),
    )
