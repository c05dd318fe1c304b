"""What each subscriber used, counted by the day (UTC), so that a service can be accounted for.

A process gathers counts and writes them down after `WRITE_AFTER_S`, all of a day in one step; who is killed before
loses so much of the count and nothing else.

* `usage`  `_id` day and subscriber; how much of what
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from pymongo import ASCENDING, IndexModel, UpdateOne
from pymongo.database import Database
from pymongo.errors import PyMongoError

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
}


@dataclass(frozen=True, slots=True)
class Used:
    """How much a subscriber, "Organization/...", used of each that is counted."""

    subscriber: str
    counts: Mapping[str, int]


class Usage:
    """Counts, and tells what was counted."""

    def __init__(self, database: Database[Any], clock: Callable[[], datetime]) -> None:
        self._usage = database["usage"]
        self._clock = clock
        self._gathered: dict[tuple[str, str], Counter[str]] = {}
        self._lock = threading.Lock()

    def ensure_indexes(self) -> None:
        """Create the index; one that exists is left alone."""
        self._usage.create_indexes([IndexModel([("day", ASCENDING)], name="day")])

    def add(self, subscriber: str, **counts: int) -> None:
        """Count for a subscriber; names with `_` for `-`."""
        key = self._clock().date().isoformat(), subscriber
        with self._lock:
            is_first = not self._gathered
            self._gathered.setdefault(key, Counter()).update({n.replace("_", "-"): c for n, c in counts.items()})
        if is_first:
            timer = threading.Timer(WRITE_AFTER_S, self.write)
            timer.daemon = True
            timer.start()

    def write(self) -> None:
        """Write down what was gathered; where the database is away it is kept for the next time."""
        with self._lock:
            gathered, self._gathered = self._gathered, {}
        changes = [
            UpdateOne(
                {"_id": f"{day} {subscriber}"},
                {"$inc": dict(counts), "$setOnInsert": {"day": day, "subscriber": subscriber}},
                upsert=True,
            )
            for (day, subscriber), counts in gathered.items()
        ]
        try:
            if changes:
                self._usage.bulk_write(changes, ordered=False)
        except PyMongoError:
            with self._lock:
                for key, counts in gathered.items():
                    self._gathered.setdefault(key, Counter()).update(counts)

    def between(self, first: date, last: date) -> list[Used]:
        """Return what every subscriber used from the first to the last day, by subscriber."""
        sums = {name: {"$sum": f"${name}"} for name in COUNTED}
        steps: list[dict[str, Any]] = [
            {"$match": {"day": {"$gte": first.isoformat(), "$lte": last.isoformat()}}},
            {"$group": {"_id": "$subscriber", **sums}},
            {"$sort": {"_id": 1}},
        ]
        return [Used(each["_id"], {name: int(each[name]) for name in COUNTED}) for each in self._usage.aggregate(steps)]
