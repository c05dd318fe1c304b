"""The order of a search as it was at its first page, while others write.

Where writing moves resources within the order, those that were changed since are put where their version of that
moment stood: it is in the history. So a page neither repeats nor loses what matches all the time, however late it is
asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cmp_to_key
from typing import Any

from pymongo.collection import Collection

from fhir_server.store import cursor
from fhir_server.store.conditions import Filter
from fhir_server.store.documents import BODY_FIELDS, Document, resource_of
from imaging.errors import AppError, Category

Rows = Callable[[dict[str, Any]], dict[str, Any]]  # resource -> its search fields

MOST_CHANGED = 1_000  # matches that were changed since the first page
MOST_VERSIONS = 1_000  # of one of them


def unchanged(moment: datetime) -> Filter:
    """Return the filter of what has not been changed since."""
    return {"lastUpdated": {"$lte": moment}}


class Moved:
    """Resources that were changed since a moment, each with the sort key that it had then."""

    def __init__(self, resources: Collection[Any], order: cursor.Order, rows: Rows) -> None:
        self._resources = resources
        self._order = order
        self._rows = rows

    def behind(self, place: cursor.Place, condition: Filter, fields: Mapping[str, int]) -> list[Document]:
        """Return those that meet the condition now and stood behind the place then, with the sort keys of then.

        Raises TOO_LARGE when too many were changed.
        """
        since = {"lastUpdated": {"$gt": place.moment}, "created": {"$lte": place.moment}}
        found = list(self._resources.find({"$and": [condition, since]}, fields).limit(MOST_CHANGED + 1))
        if len(found) > MOST_CHANGED:
            message = f"more than {MOST_CHANGED} of the matches were changed since the first page: search again"
            raise AppError(Category.TOO_LARGE, message, where="_cursor")
        then = self._versions([(each["_id"], each["version"]) for each in found], place.moment)
        moved = [{**each, **then[each["_id"]]} for each in found if each["_id"] in then]
        return [each for each in moved if self.compare(self.key(each), place.values) > 0]

    def merged(self, documents: Sequence[Document], moved: Sequence[Document]) -> list[Document]:
        """Return both in order."""

        def order(one: Document, other: Document) -> int:
            return self.compare(self.key(one), self.key(other))

        return sorted([*documents, *moved], key=cmp_to_key(order))

    def key(self, document: Document) -> list[Any]:
        """Return the sort key of a document."""
        return cursor.place(document, self._order)

    def compare(self, one: Sequence[Any], other: Sequence[Any]) -> int:
        """Compare sort keys as the database does: what is absent comes before everything else."""
        for (_, direction), mine, theirs in zip(self._order, one, other, strict=True):
            if mine != theirs:
                is_less = mine is None or (theirs is not None and mine < theirs)
                return -direction if is_less else direction
        return 0

    def _versions(self, keys: Sequence[tuple[str, int]], moment: datetime | None) -> dict[str, dict[str, Any]]:
        """Return the search fields of the versions that were current at the moment; none for what was deleted then."""
        history = self._resources.database["history"]
        wanted = [
            f"{key}/{number}"
            for key, version in keys
            for number in range(version - 1, max(0, version - MOST_VERSIONS), -1)
        ]
        numbers: dict[str, tuple[int, str]] = {}
        times = history.find({"_id": {"$in": wanted}, "lastUpdated": {"$lte": moment}}, {"version": 1})
        for each in times:
            key = each["_id"].rpartition("/")[0]
            numbers[key] = max(numbers.get(key, (0, "")), (each["version"], each["_id"]))
        found: dict[str, dict[str, Any]] = {}
        for each in history.find({"_id": {"$in": [name for _, name in numbers.values()]}}, dict(BODY_FIELDS)):
            key = each["_id"].rpartition("/")[0]
            if not each.get("deleted"):
                rows = self._rows(resource_of(key, each).json())
                found[key] = {**cursor.keys_of(rows, self._order), "lastUpdated": each["lastUpdated"]}
        return found
