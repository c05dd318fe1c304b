"""What is remembered of sources that images are collected from: where a look begins, what was settled, how it goes.

* `collected`         `_id` peer, kind and study, series, instance or file; what was found there when it was looked at
* `collection_marks`  `_id` name of the peer; the high-water mark, the round under way, when the next look is due

It saves work, and says when there is some: an instance that is fetched again all the same is recognised by its UID.
What was settled stays settled, so that an image that was deleted here does not come back.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from pymongo import ASCENDING, DESCENDING, IndexModel, ReplaceOne, ReturnDocument
from pymongo.database import Database
from pymongo.write_concern import WriteConcern

from fhir_server.store.peers import KEPT_S

INDEXES: dict[str, list[IndexModel]] = {
    "collected": [
        IndexModel([("at", ASCENDING)], name="forget", expireAfterSeconds=KEPT_S),
        IndexModel([("peer", ASCENDING), ("kind", ASCENDING), ("due", ASCENDING), ("at", DESCENDING)], name="peer"),
    ],
}
STUDY, SERIES, FILE, TRIED, REFUSED = "study", "series", "file", "tried", "refused"
MOST_REASONS = 20  # told of one round
MOST_STUDIES = 1_000  # named of one round


@dataclass(frozen=True, slots=True)
class Note:
    """What is remembered of one thing at a source.

    kind    STUDY or FILE, which are looked at again when they have changed; SERIES; TRIED: an instance that could not
            be fetched; REFUSED: one that is not to be fetched again
    key     its UID or relative path
    value   what it looked like: numbers of series and instances, size and time of change; of a SERIES the SOP Instance
            UIDs that are settled; of an instance how often it was tried, or the reason
    due     when to look again though nothing changed, None: not
    """

    kind: str
    key: str
    value: str
    due: datetime | None = None


@dataclass(slots=True)
class Tally:
    """What came of a round, or of a part of it.

    stored, here   instances that are new, and that were here already
    bytes          of what was received
    studies        Study Instance UIDs that instances are of
    reasons        why instances were refused, without values of patients
    """

    stored: int = 0
    here: int = 0
    refused: int = 0
    failed: int = 0
    bytes: int = 0
    studies: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the collection from a source is.

    latest      study date up to which everything was dealt with, YYYYMMDD
    due         when it is looked at next; None: at once
    failures    tries in a row that failed, and `reason`: why; `told` is the one of which a Task was made
    task        id of the Task that collects, or did when `is_done`; `number` counts them, `attempts` unfinished starts
    begun       when that was placed
    looked_at   when it was last looked at with success
    day         YYYYMMDD (UTC) of `day_instances` and `day_bytes`, which the daily quotas bound
    round       what the Task at hand has collected, or the last one
    """

    latest: str = ""
    due: datetime | None = None
    failures: int = 0
    reason: str = ""
    told: str = ""
    task: str = ""
    begun: datetime | None = None
    is_done: bool = True
    number: int = 0
    attempts: int = 0
    looked_at: datetime | None = None
    day: str = ""
    day_instances: int = 0
    day_bytes: int = 0
    round: Tally = field(default_factory=Tally)


class Collected:
    """Notes and marks of all sources."""

    def __init__(self, database: Database[Any]) -> None:
        durable = WriteConcern("majority", j=True)
        self._database = database
        self._notes = database.get_collection("collected", write_concern=durable)
        self._marks = database.get_collection("collection_marks", write_concern=durable)

    def ensure_indexes(self) -> None:
        """Create the indexes; those that exist are left alone."""
        for name, indexes in INDEXES.items():
            self._database[name].create_indexes(indexes)

    # ---- notes

    def notes(self, peer: str, kind: str, keys: Sequence[str]) -> dict[str, Note]:
        """Return what is remembered of these things, by key."""
        wanted = [_key(peer, kind, each) for each in keys]
        return {row["key"]: _note(row) for row in self._notes.find({"_id": {"$in": wanted}})}

    def due(self, peer: str, kind: str, now: datetime, limit: int) -> list[Note]:
        """Return notes of things that are to be looked at again by now, the longest due first."""
        found = self._notes.find({"peer": peer, "kind": kind, "due": {"$lte": now}}).sort("due").limit(limit)
        return [_note(row) for row in found]

    def latest(self, peer: str, kind: str, limit: int) -> list[Note]:
        """Return the notes of one kind that were written last."""
        return [
            _note(row) for row in self._notes.find({"peer": peer, "kind": kind}).sort("at", DESCENDING).limit(limit)
        ]

    def count(self, peer: str, kind: str, since: datetime | None = None) -> int:
        """Return how many things of one kind are remembered, noted since a moment where one is given."""
        wanted = {"peer": peer, "kind": kind, **({"at": {"$gte": since}} if since else {})}
        return self._notes.count_documents(wanted)

    def note(self, peer: str, notes: Iterable[Note], at: datetime) -> None:
        """Remember things; later words replace earlier ones."""
        rows = [{"_id": _key(peer, each.kind, each.key), "peer": peer, **asdict(each), "at": at} for each in notes]
        if rows:
            self._notes.bulk_write([ReplaceOne({"_id": row["_id"]}, row, upsert=True) for row in rows], ordered=False)

    def forget(self, peer: str) -> None:
        """Forget what was settled and how far it was, so that everything is looked at as if for the first time."""
        self._notes.delete_many({"peer": peer})
        self._marks.update_one({"_id": peer}, {"$set": {"latest": ""}})

    # ---- marks

    def mark(self, peer: str) -> Mark:
        """Return how far the collection from a source is."""
        return _mark(self._marks.find_one({"_id": peer}) or {})

    def marks(self) -> dict[str, Mark]:
        """Return the marks of all sources, by name, without what their rounds brought."""
        return {row["_id"]: _mark(row) for row in self._marks.find({}, {"round": 0})}

    def change(self, peer: str, **values: Any) -> None:
        """Change fields of a mark."""
        self._marks.update_one({"_id": peer}, {"$set": values}, upsert=True)

    def fail(self, peer: str, reason: str) -> int:
        """Note that a try failed; return how many did in a row."""
        return self._counted(peer, {"$inc": {"failures": 1}, "$set": {"reason": reason}}, "failures")

    def begin(self, peer: str, number: int, task: str, due: datetime, *, begun: datetime) -> bool:
        """Say that a Task is going to collect, unless somebody said so meanwhile; `number` is that of the mark read."""
        self._marks.update_one({"_id": peer}, {"$setOnInsert": {"number": 0}}, upsert=True)
        wanted = {"_id": peer, "number": number or {"$in": [0, None]}}
        place = {"task": task, "begun": begun, "is_done": False, "number": number + 1}
        values = {**place, "round": asdict(Tally()), "due": due}
        return self._marks.update_one(wanted, {"$set": values}).matched_count == 1

    def attempt(self, peer: str) -> int:
        """Count a start of the Task at hand and return which it is since one ended in order."""
        return self._counted(peer, {"$inc": {"attempts": 1}}, "attempts")

    def add(self, peer: str, tally: Tally, day: str) -> None:
        """Add what was collected to the round at hand and to the day, YYYYMMDD."""
        numbers = {each.name: getattr(tally, each.name) for each in fields(tally) if each.name not in _LISTS}
        sums: dict[str, Any] = {
            f"round.{name}": {"$add": [{"$ifNull": [f"$round.{name}", 0]}, number]} for name, number in numbers.items()
        }
        for name, most in _LISTS.items():
            joined = {"$setUnion": [{"$ifNull": [f"$round.{name}", []]}, {"$literal": getattr(tally, name)}]}
            sums[f"round.{name}"] = {"$slice": [joined, most]}
        is_today = {"$eq": ["$day", {"$literal": day}]}
        for name, number in (("day_instances", tally.stored + tally.here + tally.refused), ("day_bytes", tally.bytes)):
            sums[name] = {"$add": [{"$cond": [is_today, {"$ifNull": [f"${name}", 0]}, 0]}, number]}
        self._marks.update_one({"_id": peer}, [{"$set": {**sums, "day": {"$literal": day}}}], upsert=True)

    @contextmanager
    def watch(self, max_await_ms: int) -> Iterator[Callable[[], datetime | None]]:
        """Give what waits for news and returns when a source is due by it, None without any.

        A peer that was registered, changed or removed is due at once, at the beginning of time.
        """
        due = {"ns.coll": "collection_marks", "updateDescription.updatedFields.due": {"$exists": True}}
        stages: list[dict[str, Any]] = [
            {"$match": {"$or": [{"ns.coll": "peers"}, due]}},
            {"$project": {"due": "$updateDescription.updatedFields.due"}},
        ]
        with self._database.watch(stages, max_await_time_ms=max_await_ms) as stream:

            def news() -> datetime | None:
                change = stream.try_next()
                return None if change is None else change.get("due") or _AT_ONCE

            yield news

    def _counted(self, peer: str, change: dict[str, Any], name: str) -> int:
        row = self._marks.find_one_and_update({"_id": peer}, change, upsert=True, return_document=ReturnDocument.AFTER)
        assert row is not None  # noqa: S101 -- an upsert always has a document
        return int(row[name])


_AT_ONCE = datetime.min.replace(tzinfo=UTC)
_LISTS = {"studies": MOST_STUDIES, "reasons": MOST_REASONS}
_FIELDS = frozenset(each.name for each in fields(Mark))


def _key(peer: str, kind: str, key: str) -> dict[str, str]:
    return {"peer": peer, "kind": kind, "key": key}


def _note(row: dict[str, Any]) -> Note:
    return Note(row["kind"], row["key"], row["value"], row.get("due"))


def _mark(row: dict[str, Any]) -> Mark:
    known = {name: value for name, value in row.items() if name in _FIELDS}
    return Mark(**{**known, "round": Tally(**known.get("round", {}))})
