"""The queue that the Tasks of the database are: which may be worked on now, in which order, and word of changes.

A Task waits while nobody holds a lease `task:<id>`; a lease without worker that ends later is a pause before another
attempt. Tasks with an owner are that owner's and never in this queue.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bson.codec_options import CodecOptions
from pymongo.database import Database

from fhir_server.model.task import WAITING, Status
from fhir_server.store.lease import COLLECTION

LEASE = "task:"
AT_A_TIME = 50  # orders told in one answer
EACH = 10  # of one requester and priority among them
_PRIORITIES = ("stat", "asap", "urgent", "routine")  # FHIR R4 request-priority, most pressing first


@dataclass(frozen=True, slots=True)
class Waiting:
    """Ids of Tasks that may be claimed, best first, and when the next paused or abandoned one may be, if any."""

    ids: tuple[str, ...]
    next_at: datetime | None


class TaskQueue:
    """Finds Tasks to work on."""

    def __init__(self, database: Database[Any], clock: Callable[[], datetime]) -> None:
        self._database: Database[Any] = database.with_options(CodecOptions(tz_aware=True, tzinfo=UTC))
        self._clock = clock

    def waiting(self, codes: Collection[str]) -> Waiting:
        """Return Tasks of these codes that nobody works on: by priority, in turn among requesters, oldest first."""
        names = {"_id": {"$gte": LEASE, "$lt": LEASE[:-1] + chr(ord(LEASE[-1]) + 1)}, "until": {"$gt": self._clock()}}
        held = {row["_id"].removeprefix(LEASE): row["until"] for row in self._database[COLLECTION].find(names)}
        states = [str(each) for each in (*sorted(WAITING), Status.IN_PROGRESS)]
        condition = {
            "type": "Task",
            "_id": {"$nin": [f"Task/{each}" for each in held]},
            "tok": {"$elemMatch": {"p": "status", "c": {"$in": states}}},
            "$and": [{"tok": {"$elemMatch": {"p": "code", "c": {"$in": sorted(codes)}}}}],
            "ref": {"$not": {"$elemMatch": {"p": "owner"}}},
        }
        order = {"urgency": 1, "turn": 1, "created": 1, "_id": 1}
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
            {"$sort": order},
            {"$limit": AT_A_TIME},
        ]
        found = self._database["resources"].aggregate(stages)
        ids = tuple(row["_id"].removeprefix("Task/") for row in found)
        return Waiting(ids, min(held.values(), default=None))

    def watch(self, max_await_ms: int) -> Any:
        """Return a change stream of the ids (`documentKey._id`, "Task/...") of Tasks that were made or changed."""
        wanted = {"operationType": {"$in": ["insert", "replace"]}, "fullDocument.type": "Task"}
        stages: list[dict[str, Any]] = [{"$match": wanted}, {"$project": {"documentKey": 1}}]
        return self._database["resources"].watch(stages, max_await_time_ms=max_await_ms)


def _first(array: str, parameter: str, field: str) -> dict[str, Any]:
    """Return the expression of a field of the first search row of a parameter."""
    rows = {"$filter": {"input": {"$ifNull": [array, []]}, "cond": {"$eq": ["$$this.p", parameter]}}}
    return {"$getField": {"field": field, "input": {"$first": rows}}}


_URGENCY: dict[str, Any] = {
    "$let": {
        "vars": {"at": {"$indexOfArray": [list(_PRIORITIES), _first("$tok", "priority", "c")]}},
        "in": {"$cond": [{"$lt": ["$$at", 0]}, len(_PRIORITIES) - 1, "$$at"]},
    }
}
