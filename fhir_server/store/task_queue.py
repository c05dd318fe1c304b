"""The queue that the Tasks of the database are: which may be worked on now, in which order, and word of changes.

A Task waits while nobody holds a lease `task:<id>`; a lease without worker that ends later is a pause before another
attempt. Tasks that others own, or that are open to others only, are never in this queue.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bson.codec_options import CodecOptions
from pymongo.database import Database

from fhir_server.model.task import ALGORITHM, CODES, KIND, SERVER, WAITING, Status
from fhir_server.store.index import RESTRICTION_PERIOD
from fhir_server.store.lease import COLLECTION

LEASE = "task:"
AT_A_TIME = 500  # orders told in one answer
EACH = 100  # of one requester and priority among them
_PRIORITIES = ("stat", "asap", "urgent", "routine")  # FHIR R4 request-priority, most pressing first


@dataclass(frozen=True, slots=True)
class Waiting:
    """An order that may be claimed.

    urgency  0 for the most pressing priority
    turn     its place among the orders of its requester and priority, from 1
    """

    id: str
    requester: str
    urgency: int
    turn: int


@dataclass(frozen=True, slots=True)
class Look:
    """What waits, best first, and when the next paused or abandoned order may be claimed, if there is one."""

    orders: tuple[Waiting, ...]
    next_at: datetime | None


@dataclass(frozen=True, slots=True)
class Held:
    """A Task that somebody else works on, and when its last version was written."""

    id: str
    heard_at: datetime


@dataclass(frozen=True, slots=True)
class Change:
    """A Task that was made or changed, and its status then."""

    id: str
    status: str


class TaskQueue:
    """Finds Tasks to work on."""

    def __init__(self, database: Database[Any], clock: Callable[[], datetime]) -> None:
        self._database: Database[Any] = database.with_options(CodecOptions(tz_aware=True, tzinfo=UTC))
        self._clock = clock

    def look(self, codes: Collection[str]) -> Look:
        """Return Tasks of these codes that nobody works on: by priority, in turn among requesters, oldest first."""
        names = {"_id": {"$gte": LEASE, "$lt": LEASE[:-1] + chr(ord(LEASE[-1]) + 1)}, "until": {"$gt": self._clock()}}
        held = {row["_id"].removeprefix(LEASE): row["until"] for row in self._database[COLLECTION].find(names)}
        states = [str(each) for each in (*sorted(WAITING), Status.IN_PROGRESS)]
        condition = {
            "type": "Task",
            "_id": {"$nin": [f"Task/{each}" for each in held]},
            "tok": _status(states),
            "$and": [{"tok": {"$elemMatch": {"p": "code", "c": {"$in": sorted(codes)}, "s": {"$in": [None, CODES]}}}}],
            "$or": _FOR_SERVER,
        }
        stages: list[dict[str, Any]] = [
            {"$match": condition},
            {"$project": {"created": 1, "urgency": _URGENCY, "requester": _first("$ref", "requester", "r")}},
            {
                "$setWindowFields": {
                    "partitionBy": {"requester": "$requester", "urgency": "$urgency"},
                    "sortBy": {"created": 1},
                    "output": {"turn": {"$documentNumber": {}}},
                }
            },
            {"$match": {"turn": {"$lte": EACH}}},
            {"$sort": {"urgency": 1, "turn": 1, "created": 1, "_id": 1}},
            {"$limit": AT_A_TIME},
        ]
        found = self._database["resources"].aggregate(stages)
        orders = tuple(Waiting(_id(row), row.get("requester", ""), row["urgency"], row["turn"]) for row in found)
        return Look(orders, min(held.values(), default=None))

    def held_by_others(self) -> tuple[Held, ...]:
        """Return Tasks under way or on hold that others own, those that were not heard of for longest first."""
        states = [str(Status.IN_PROGRESS), str(Status.ON_HOLD)]
        condition = {"type": "Task", "tok": _status(states), "ref": _OWNER, "$nor": _FOR_SERVER}
        found = self._database["resources"].find(
            condition, {"lastUpdated": 1}, sort=[("lastUpdated", 1)], limit=AT_A_TIME
        )
        return tuple(Held(_id(row), row["lastUpdated"]) for row in found)

    def overdue(self) -> tuple[str, ...]:
        """Return ids of Tasks of others whose period is over; workers see to those of this server."""
        over = {"$elemMatch": {"p": RESTRICTION_PERIOD, "h": {"$lte": self._clock()}}}
        states = [str(each) for each in (*sorted(WAITING), Status.IN_PROGRESS, Status.ON_HOLD)]
        condition = {"type": "Task", "dat": over, "tok": _status(states), "$nor": _FOR_SERVER}
        return tuple(_id(row) for row in self._database["resources"].find(condition, {"_id": 1}, limit=AT_A_TIME))

    @contextmanager
    def watch(self, max_await_ms: int) -> Iterator[Callable[[], Change | None]]:
        """Give a function that returns the next change of a Task, None when there was none for so long."""
        wanted = {"operationType": {"$in": ["insert", "replace"]}, "fullDocument.type": "Task"}
        status = _first("$fullDocument.tok", "status", "c")
        stages: list[dict[str, Any]] = [{"$match": wanted}, {"$project": {"documentKey": 1, "status": status}}]
        with self._database["resources"].watch(stages, max_await_time_ms=max_await_ms) as stream:

            def change() -> Change | None:
                row = stream.try_next()
                return Change(row["documentKey"]["_id"].removeprefix("Task/"), row["status"]) if row else None

            yield change


def _id(row: Mapping[str, Any]) -> str:
    return str(row["_id"]).removeprefix("Task/")


def _status(states: Sequence[str]) -> dict[str, Any]:
    return {"$elemMatch": {"p": "status", "c": {"$in": states}}}


def _first(array: str, parameter: str, field: str) -> dict[str, Any]:
    """Return the expression of a field of the first search row of a parameter."""
    rows = {"$filter": {"input": {"$ifNull": [array, []]}, "cond": {"$eq": ["$$this.p", parameter]}}}
    return {"$getField": {"field": field, "input": {"$first": rows}}}


_OWNER = {"$elemMatch": {"p": "owner"}}
# As `is_for_server` says of a Task.
_FOR_SERVER: list[dict[str, Any]] = [
    {"ref": {"$not": _OWNER}, "tok": {"$not": {"$elemMatch": {"p": "performer"}}}},
    {"ref": {"$not": _OWNER}, "tok": {"$elemMatch": {"p": "performer", "s": KIND[0], "c": KIND[1]}}},
    {"ref": {"$elemMatch": {"p": "owner", "r": SERVER}}},
    {"ref": {"$elemMatch": {"p": "owner", "r": {"$gte": ALGORITHM, "$lt": ALGORITHM + "\uffff"}}}},
]

_URGENCY: dict[str, Any] = {
    "$let": {
        "vars": {"at": {"$indexOfArray": [list(_PRIORITIES), _first("$tok", "priority", "c")]}},
        "in": {"$cond": [{"$lt": ["$$at", 0]}, len(_PRIORITIES) - 1, "$$at"]},
    }
}
