"""The audit record in order, and how far it was forwarded.

Entries are forwarded chain by chain, of several chains the older entry first. A position is kept for each chain and
only ever grows; it is written after what lies before it has arrived, so nothing is left out, and what was sent when a
process died is sent again. A chain is looked at for as long as it is young: it was written down lately, by the clock of
the database, or not looked at to its end since.

* `forwarding`  `_id` a chain, and `n` the number of its last entry that has arrived; `_id` `looked`, and `at` until
  when all chains were looked at to their ends; `_id` `state`: when something last arrived, and why nothing does
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo import ASCENDING, UpdateOne
from pymongo.database import Database
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from fhir_server.store.chain import FIELD
from fhir_server.store.failures import translated

MARGIN = timedelta(minutes=10)  # between a head of a chain and entries behind it; a head is written every second
NOTED_EVERY = timedelta(minutes=1)
COUNTED = 1_000_000  # entries that wait, at most


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the record: its chain and number in it, when it was recorded, the AuditEvent as JSON."""

    chain: str
    number: int
    recorded: datetime
    body: bytes


@dataclass(frozen=True, slots=True)
class State:
    """How forwarding goes.

    waiting   entries that have not arrived, up to `COUNTED`
    oldest    when the first of them was recorded, None without any
    arrived   when something last arrived, None: never
    failure   why nothing arrives, "" where that is not so; since when
    """

    waiting: int
    oldest: datetime | None
    arrived: datetime | None
    failure: str
    since: datetime | None


class Trail:
    """The record of one database, as who forwards it reads it. One process at a time does."""

    def __init__(self, database: Database[Any], clock: Callable[[], datetime]) -> None:
        self._database, self._clock = database, clock
        majority = ReadConcern("majority")
        self._entries = database.get_collection("resources", read_concern=majority)
        self._chains = database.get_collection("chains", read_concern=majority)
        self._kept = database.get_collection("forwarding", write_concern=WriteConcern("majority", j=True))
        self._looked = datetime.min.replace(tzinfo=UTC)
        self._is_new = True  # chains of older versions have no time: they are looked at once

    def next(self, most: int) -> list[Entry]:
        """Return the oldest entries that have not arrived, up to `most` of each chain; none when there are no more."""
        with translated("forwarding"):
            now = self._database.command("hello")["localTime"]
            places = self._places(self._all() if self._is_new else self._young())
            found = [entries for chain, number in places.items() if (entries := self._behind(chain, number, most))]
            if not found and (self._is_new or now - self._looked > NOTED_EVERY):
                self._kept.update_one({"_id": "looked"}, {"$set": {"at": now}}, upsert=True)
                self._is_new, self._looked = False, now
        # Of a chain that has more, entries up to its last one here: what others have after that comes later.
        end = min((each[-1].recorded for each in found if len(each) == most), default=None)
        merged = heapq.merge(*found, key=lambda entry: entry.recorded)
        return [entry for entry in merged if end is None or entry.recorded <= end]

    def arrived(self, entries: Sequence[Entry]) -> None:
        """Keep that entries have arrived, given in order."""
        last = {each.chain: each.number for each in entries}
        moves = [UpdateOne({"_id": chain}, {"$max": {"n": number}}, upsert=True) for chain, number in last.items()]
        state = {"$set": {"arrived": self._clock(), "failure": ""}, "$unset": {"since": ""}}
        with translated("forwarding"):
            self._kept.bulk_write([*moves, UpdateOne({"_id": "state"}, state, upsert=True)])

    def failed(self, why: str) -> None:
        """Keep why nothing arrives, and since when."""
        with translated("forwarding"):
            changed = self._kept.update_one({"_id": "state", "since": {"$exists": True}}, {"$set": {"failure": why}})
            if not changed.matched_count:
                told = {"failure": why, "since": self._clock()}
                self._kept.update_one({"_id": "state"}, {"$set": told}, upsert=True)

    def state(self) -> State:
        """Return how forwarding goes. Reads what waits from the index."""
        waiting, oldest = 0, None
        with translated("forwarding"):
            for chain, number in self._places(self._all()).items():
                behind = {f"{FIELD}.c": chain, f"{FIELD}.n": {"$gt": number}}
                waiting += self._entries.count_documents(behind, hint="chain", limit=COUNTED)
                first = self._behind(chain, number, 1)
                oldest = min(filter(None, [oldest, *(each.recorded for each in first)]), default=None)
            kept = self._kept.find_one({"_id": "state"}) or {}
        return State(min(waiting, COUNTED), oldest, kept.get("arrived"), kept.get("failure", ""), kept.get("since"))

    def _all(self) -> Iterator[str]:
        name = ""
        only, order = {f"{FIELD}.c": 1}, [(f"{FIELD}.c", ASCENDING), (f"{FIELD}.n", ASCENDING)]
        while found := self._entries.find_one({f"{FIELD}.c": {"$gt": name}}, only, sort=order, hint="chain"):
            name = found[FIELD]["c"]
            yield name

    def _young(self) -> Iterator[str]:
        looked = self._kept.find_one({"_id": "looked"})
        since = {"at": {"$gt": looked["at"] - MARGIN}} if looked else {}
        return (each["_id"] for each in self._chains.find(since, {"_id": 1}))

    def _places(self, chains: Iterator[str]) -> dict[str, int]:
        places = dict.fromkeys(chains, 0)
        places.update((each["_id"], each["n"]) for each in self._kept.find({"_id": {"$in": list(places)}}))
        return places

    def _behind(self, chain: str, number: int, most: int) -> list[Entry]:
        found = self._entries.find(
            {f"{FIELD}.c": chain, f"{FIELD}.n": {"$gt": number}}, {FIELD: 1, "body": 1, "lastUpdated": 1}
        )
        ordered = found.sort(f"{FIELD}.n", ASCENDING).limit(most).hint("chain")
        return [Entry(chain, each[FIELD]["n"], each["lastUpdated"], bytes(each["body"])) for each in ordered]
