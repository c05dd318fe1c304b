"""What each subscriber used, under which of its Contracts, by the day (UTC), so that a service can be accounted for.

A process gathers counts and writes them down after `WRITE_AFTER_S`, all of a day in one step; who is killed before
loses so much of the count and nothing else. What was gathered is one batch, written in one transaction with a row that
says so: where the database went away and it is not known whether a batch was written, it is tried again under its
name, and counts once.

* `usage`          `_id` day, subscriber and Contract; how much of what
* `usage_batches`  `_id` a batch that was written; kept for `KNOWN_FOR`
"""

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import IntEnum
from typing import Any, NamedTuple

from pymongo import ASCENDING, IndexModel, UpdateOne
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError, PyMongoError
from pymongo.write_concern import WriteConcern

WRITE_AFTER_S = 5.0
# what is counted      its unit (UCUM)
COUNTED = {
    "requests": "{request}",
    "instances-in": "{instance}",
    "instances-out": "{instance}",
    "bytes-in": "By",
    "bytes-out": "By",
    "tasks": "{task}",
    "pages": "{page}",
    "downloads": "{download}",
}
KNOWN_FOR = timedelta(days=7)  # a batch of which it is not known whether it was written
MOST_WAITING = 1_000  # batches that wait for the database; an hour and more


class Per(IntEnum):
    """For how long each sum is; the value is how much of a date tells it."""

    DAY = len("2027-01-31")
    MONTH = len("2027-01")
    ALL = 0


@dataclass(frozen=True, slots=True)
class Used:
    """How much a subscriber, "Organization/...", used of each that is counted.

    contract   "Contract/..." that allowed it, "" where none was needed or asked about
    period     the day or month it is about, "" for all of the time
    """

    subscriber: str
    counts: Mapping[str, int]
    contract: str = ""
    period: str = ""


class _Key(NamedTuple):
    day: str
    subscriber: str
    contract: str


@dataclass(frozen=True, slots=True)
class _Batch:
    name: str
    counts: Mapping[_Key, Counter[str]]


class Usage:
    """Counts, and tells what was counted."""

    def __init__(self, database: Database[Any], clock: Callable[[], datetime]) -> None:
        self._client = database.client
        self._usage = database["usage"]
        self._batches = database["usage_batches"]
        self._clock = clock
        self._gathered: dict[_Key, Counter[str]] = {}
        self._waiting: list[_Batch] = []
        self._lock = threading.Lock()
        self._writing = threading.Lock()

    def ensure_indexes(self) -> None:
        """Create the indexes; one that exists is left alone."""
        self._usage.create_indexes([IndexModel([("day", ASCENDING)], name="day")])
        kept = IndexModel([("at", ASCENDING)], name="at", expireAfterSeconds=int(KNOWN_FOR.total_seconds()))
        self._batches.create_indexes([kept])

    def add(self, subscriber: str, contract: str = "", **counts: int) -> None:
        """Count for a subscriber under a Contract; names with `_` for `-`."""
        key = _Key(self._clock().date().isoformat(), subscriber, contract)
        with self._lock:
            is_first = not self._gathered
            self._gathered.setdefault(key, Counter()).update({n.replace("_", "-"): c for n, c in counts.items()})
        if is_first:
            timer = threading.Timer(WRITE_AFTER_S, self.write)
            timer.daemon = True
            timer.start()

    def write(self) -> None:
        """Write down what was gathered; where the database is away it is kept for the next time."""
        with self._writing:
            with self._lock:
                if self._gathered:
                    self._waiting.append(_Batch(uuid.uuid4().hex, self._gathered))
                    self._gathered = {}
                    del self._waiting[:-MOST_WAITING]
            try:
                while self._waiting:
                    self._write(self._waiting[0])
                    del self._waiting[0]
            except PyMongoError:
                return

    def _write(self, batch: _Batch) -> None:
        changes = [
            UpdateOne(
                {"_id": f"{key.day} {key.subscriber} {key.contract}".rstrip()},
                {"$inc": dict(counts), "$setOnInsert": key._asdict()},
                upsert=True,
            )
            for key, counts in batch.counts.items()
        ]

        def attempt(session: ClientSession) -> None:
            self._batches.insert_one({"_id": batch.name, "at": self._clock()}, session=session)
            self._usage.bulk_write(changes, ordered=False, session=session)

        with self._client.start_session() as session:
            try:
                session.with_transaction(attempt, write_concern=WriteConcern("majority"))
            except DuplicateKeyError:
                return  # it was written, and the answer was lost

    def between(
        self, first: date, last: date, *, subscriber: str = "", by_contract: bool = False, per: Per = Per.ALL
    ) -> list[Used]:
        """Return what every subscriber used from the first to the last day, in order of time and subscriber.

        subscriber    the only one that is asked about, "" for all
        by_contract   told apart by Contract
        """
        wanted: dict[str, Any] = {"day": {"$gte": first.isoformat(), "$lte": last.isoformat()}}
        if subscriber:
            wanted["subscriber"] = subscriber
        key = {
            "period": {"$substrBytes": ["$day", 0, int(per)]},
            "subscriber": "$subscriber",
            "contract": {"$ifNull": ["$contract", ""]} if by_contract else "",
        }
        sums = {name: {"$sum": f"${name}"} for name in COUNTED}
        steps: list[dict[str, Any]] = [{"$match": wanted}, {"$group": {"_id": key, **sums}}]
        found = sorted(self._usage.aggregate(steps), key=lambda each: tuple(each["_id"].values()))
        return [
            Used(
                each["_id"]["subscriber"],
                {name: int(each[name]) for name in COUNTED},
                each["_id"]["contract"],
                each["_id"]["period"],
            )
            for each in found
        ]
