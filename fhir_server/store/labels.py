"""Labels of resources: which profiles, tags and security labels are in use. Source: FHIR R4 operation Resource-meta."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pymongo.collection import Collection

from fhir_server.store.conditions import Filter
from fhir_server.store.filters import Act, Restriction, restricted
from fhir_server.store.joins import MAX_TIME_MS, Joins
from imaging.errors import AppError, Category

MOST = 1_000  # of each kind
# element of Meta -> rows that it becomes, their parameter
_ROWS = {"profile": ("uri", "_profile"), "security": ("tok", "_security"), "tag": ("tok", "_tag")}


def labels(
    resources: Collection[Any], restriction: Restriction, types: Sequence[str], now: datetime
) -> dict[str, list[Any]]:
    """Return the labels that resources of the types have, as a Meta. Costs a look at each resource with a label."""
    joins = Joins(resources, restriction, now)
    reach = {kind: demands for kind in types if (demands := joins.reach(kind)) is not None}
    if not reach:
        restriction.require(types[0] if len(types) == 1 else "Patient", Act.SEARCH)
        raise AppError(Category.FORBIDDEN, "you may not look for resources of these types", where="$meta")
    free = [kind for kind, demands in reach.items() if not demands]
    within: list[Filter] = [{"type": {"$in": free}}] if free else []
    within += [restricted(kind, demands, [], now) for kind, demands in reach.items() if demands]
    found = {name: _of(resources, within, *rows) for name, rows in _ROWS.items()}
    return {name: some for name, some in found.items() if some}


def _of(resources: Collection[Any], within: list[Filter], array: str, code: str) -> list[Any]:
    steps: list[Filter] = [
        {"$match": {"$and": [{"$or": within}, {array: {"$exists": True, "$elemMatch": {"p": code}}}]}},
        {"$unwind": f"${array}"},
        {"$match": {f"{array}.p": code}},
        {"$group": {"_id": f"${array}"}},
        {"$sort": {"_id": 1}},
        {"$limit": MOST + 1},
    ]
    rows = [each["_id"] for each in resources.aggregate(steps, maxTimeMS=MAX_TIME_MS)]
    if len(rows) > MOST:
        raise AppError(Category.TOO_LARGE, f"there are more than {MOST} labels: ask for one type", where="$meta")
    if array == "uri":
        return [row["u"] for row in rows]
    return [{name: row[key] for name, key in (("system", "s"), ("code", "c")) if key in row} for row in rows]
