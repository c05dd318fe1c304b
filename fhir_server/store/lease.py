"""Leases: one worker at a time does a named thing, and a worker that dies is replaced when its time is up.

A lease lies beside the thing it guards, so a heartbeat changes nothing but the lease. Its fencing token grows with
every claim: who writes a result compares it, so that a worker that slept through its lease cannot overwrite the next
one's work. Clocks of several machines must agree to well below the lease time.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo import ReturnDocument
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError, ExecutionTimeout
from pymongo.write_concern import WriteConcern

from imaging.errors import AppError, Category

COLLECTION = "leases"
LOCKED_MS = 1_000  # how long a claim waits for somebody's transaction
FORGET_AFTER_S = 86_400  # an ended lease is removed by the database after a day


@dataclass(frozen=True, slots=True)
class Lease:
    """A claim that was granted. `attempt` counts claims since the thing was last finished, from 1."""

    name: str
    worker: str
    until: datetime
    token: int
    attempt: int


class Leases:
    """The leases of one database."""

    def __init__(self, database: Database[Any], clock: Callable[[], datetime]) -> None:
        majority = WriteConcern("majority", j=True)
        self._collection = database.get_collection(COLLECTION, write_concern=majority)
        self._clock = clock

    def claim(self, name: str, worker: str, lease_s: float) -> Lease | None:
        """Return the lease when nobody else holds it, else None.

        Who dies in the middle of a transaction leaves it locked until the database gives that up, after a minute.
        """
        now = self._clock()
        until = now + timedelta(seconds=lease_s)
        # Never below the time in milliseconds: tokens keep growing even after the database forgot an old lease.
        token = {"$max": [{"$add": [{"$ifNull": ["$token", 0]}, 1]}, int(now.timestamp() * 1000)]}
        attempt = {"$add": [{"$ifNull": ["$attempt", 0]}, 1]}
        change = {"worker": {"$literal": worker}, "until": until, "token": token, "attempt": attempt}
        try:
            found = self._collection.find_one_and_update(
                {"_id": name, "until": {"$lte": now}},
                [{"$set": change}],
                upsert=True,
                return_document=ReturnDocument.AFTER,
                maxTimeMS=LOCKED_MS,
            )
        except (DuplicateKeyError, ExecutionTimeout):
            # It exists and is not over: the upsert tried to insert a second one. Or it is locked.
            return None
        assert found is not None  # noqa: S101 -- an upsert always has a document
        return Lease(name, worker, found["until"].replace(tzinfo=UTC), found["token"], found["attempt"])

    def renew(self, lease: Lease, lease_s: float) -> Lease | None:
        """Return the lease with a later end, or None when somebody else has claimed it or it was finished."""
        until = self._clock() + timedelta(seconds=lease_s)
        held = {"_id": lease.name, "token": lease.token}
        changed = self._collection.update_one({**held, "worker": lease.worker}, {"$set": {"until": until}})
        return replace(lease, until=until) if changed.matched_count else None

    def holds(self, lease: Lease) -> bool:
        """Say whether the lease is still this worker's and not over."""
        wanted = {"_id": lease.name, "token": lease.token, "worker": lease.worker, "until": {"$gt": self._clock()}}
        return self._collection.find_one(wanted, {"_id": 1}) is not None

    def finish(self, lease: Lease) -> bool:
        """End the lease, its work being done; False when it had been lost. The next claim is attempt 1 again."""
        return self._end(lease, {"attempt": 0})

    def give_back(self, lease: Lease) -> bool:
        """End the lease with its work undone; the next claim counts as a further attempt."""
        return self._end(lease, {})

    def postpone(self, lease: Lease, seconds: float, attempt: int) -> bool:
        """End the lease with its work undone; it can be claimed after `seconds`, as attempt `attempt` + 1."""
        until = self._clock() + timedelta(seconds=seconds)
        return self._end(lease, {"until": until, "attempt": attempt})

    def renewing(self, lease: Lease, lease_s: float) -> Callable[[ClientSession], None]:
        """Return what renews the lease within a transaction. It raises CONFLICT when the lease was lost."""
        return self._guard(lease, lambda now: {"until": now + timedelta(seconds=lease_s)})

    def finishing(self, lease: Lease) -> Callable[[ClientSession], None]:
        """Return what finishes the lease within the transaction of its result. It raises CONFLICT when it was lost."""
        return self._guard(lease, lambda now: {"until": now, "worker": "", "attempt": 0})

    def _guard(self, lease: Lease, change: Callable[[datetime], dict[str, Any]]) -> Callable[[ClientSession], None]:
        def guard(session: ClientSession) -> None:
            now = self._clock()
            held = {"_id": lease.name, "token": lease.token, "worker": lease.worker, "until": {"$gt": now}}
            # A write, not a read: a claim at the same moment conflicts with it, so that only one of the two happens.
            if not self._collection.update_one(held, {"$set": change(now)}, session=session).matched_count:
                raise AppError(Category.CONFLICT, "the lease was lost; another worker may hold it", where=lease.name)

        return guard

    def _end(self, lease: Lease, change: dict[str, Any]) -> bool:
        held = {"_id": lease.name, "token": lease.token, "worker": lease.worker}
        ended = {"$set": {"until": self._clock(), "worker": "", **change}}
        return self._collection.update_one(held, ended).matched_count == 1
