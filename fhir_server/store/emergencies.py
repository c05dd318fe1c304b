"""Emergency accesses on MongoDB: who opened whose records, why, and what became of it.

* `emergencies`     `_id` of the access; who, which patient, why, by which app; until when it is good; who reviewed it
                    with which verdict. Kept for good: what nobody has reviewed is an alarm
* `emergency_days`  `_id` login and day (UTC); how often the person asked
"""

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from pymongo import ASCENDING, DESCENDING, IndexModel, ReturnDocument, WriteConcern
from pymongo.database import Database

INDEXES = {
    "emergencies": [
        IndexModel([("asked", DESCENDING)], name="asked"),
        IndexModel([("verdict", ASCENDING), ("asked", DESCENDING)], name="verdict"),
    ],
    "emergency_days": [IndexModel([("expires", ASCENDING)], name="expires", expireAfterSeconds=0)],
}


@dataclass(frozen=True, slots=True)
class Emergency:
    """One emergency access.

    login, user    who asked, and the resource that represents the person
    organization   the subscriber of the person, "Organization/..."
    owner          the subscriber whose patient it is, "" for nobody's
    until          when it ends: first the time to go on with it, then the life of its token
    is_taken       whether a code was given out for it
    """

    id: str
    login: str
    user: str
    organization: str
    patient: str
    owner: str
    client_id: str
    reason: str
    asked: datetime
    until: datetime
    is_taken: bool = False
    ended: datetime | None = None
    verdict: str = ""
    reviewer: str = ""
    reviewed: datetime | None = None
    note: str = ""


class Emergencies:
    """The register of them."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        # An alarm must never be rolled back.
        durable = WriteConcern(w="majority", j=True)
        self._emergencies = database.get_collection("emergencies", write_concern=durable)
        self._days = database.get_collection("emergency_days", write_concern=durable)

    def ensure_indexes(self) -> None:
        """Create the indexes; those that exist are left alone."""
        self._emergencies.create_indexes(INDEXES["emergencies"])
        self._days.create_indexes(INDEXES["emergency_days"])

    def count(self, login: str, *, now: datetime) -> int:
        """Count that a person asks; return how often the person did today (UTC)."""
        counted = self._days.find_one_and_update(
            {"_id": f"{now:%Y-%m-%d} {login}"},
            {"$inc": {"asked": 1}, "$setOnInsert": {"expires": now + timedelta(days=2)}},
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        assert counted is not None  # noqa: S101 -- an upsert
        return int(counted["asked"])

    def add(self, emergency: Emergency) -> None:
        """Keep an emergency access."""
        document = asdict(emergency)
        self._emergencies.insert_one({"_id": document.pop("id"), **document})

    def find(self, identifier: str) -> Emergency | None:
        """Return an emergency access, None when there is none of this id."""
        return _emergency(self._emergencies.find_one({"_id": identifier}))

    def take(self, identifier: str, *, now: datetime, until: datetime) -> bool:
        """Note that a code is given out for it, once and in time; say whether it may be."""
        waiting = {"_id": identifier, "is_taken": False, "ended": None, "until": {"$gt": now}}
        changed = self._emergencies.update_one(waiting, {"$set": {"is_taken": True, "until": until}})
        return bool(changed.modified_count)

    def end(self, identifier: str, *, now: datetime) -> Emergency | None:
        """Note that it was ended before its time; return it, None when there is none of this id."""
        end = {"$min": {"until": now}, "$set": {"ended": now}}
        return _emergency(
            self._emergencies.find_one_and_update({"_id": identifier}, end, return_document=ReturnDocument.AFTER)
        )

    def review(self, identifier: str, *, verdict: str, reviewer: str, note: str, now: datetime) -> Emergency | None:
        """Keep the verdict on it; return it, None when there is none of this id or it was reviewed before."""
        said = {"verdict": verdict, "reviewer": reviewer, "note": note, "reviewed": now}
        return _emergency(
            self._emergencies.find_one_and_update(
                {"_id": identifier, "verdict": ""}, {"$set": said}, return_document=ReturnDocument.AFTER
            )
        )

    def listed(self, *, all_of_them: bool, most: int, concerning: str = "") -> list[Emergency]:
        """Return those that nobody has reviewed, or all of them; newest first.

        concerning   a subscriber whose people or patients they are about, "" for everybody's
        """
        matching: dict[str, Any] = {} if all_of_them else {"verdict": ""}
        if concerning:
            matching["$or"] = [{"organization": concerning}, {"owner": concerning}]
        found = self._emergencies.find(matching).sort("asked", DESCENDING).limit(most)
        return [each for document in found if (each := _emergency(document))]


def _emergency(document: dict[str, Any] | None) -> Emergency | None:
    if document is None:
        return None
    return Emergency(id=document["_id"], **{name: value for name, value in document.items() if name != "_id"})
