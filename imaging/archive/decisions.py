"""A log of decisions about subjects: numbered, kept for ever, and open until what follows from the last is done.

A row has the subject (`_id`), all `decisions` in order, `open` while something has still to follow, and what a kind of
log keeps beside them. A decision is one write and holds from then on; what follows from it can be written again.
"""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from pymongo import ASCENDING, IndexModel
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError
from pymongo.write_concern import WriteConcern

from imaging.errors import AppError, Category

Holding = TypeVar("Holding")


class DecisionLog(Generic[Holding]):
    """The log in one collection; `read` makes of a row what holds of its subject."""

    def __init__(self, database: Database[Any], collection: str, read: Callable[[Mapping[str, Any]], Holding]) -> None:
        self._rows = database.get_collection(collection, write_concern=WriteConcern("majority", j=True))
        self._read = read

    def ensure_indexes(self) -> None:
        """Create the index; one that exists is left alone."""
        only = {"open": True}
        self._rows.create_indexes([IndexModel([("open", ASCENDING)], name="open", partialFilterExpression=only)])

    def of(self, subject: str) -> Holding | None:
        """Return what holds of a subject, None where nothing was decided."""
        row = self._rows.find_one({"_id": subject})
        return self._read(row) if row else None

    def done(self, subject: str, count: int) -> None:
        """Keep that everything was written that follows from `count` decisions, unless somebody decided again."""
        self._rows.update_one({"_id": subject, f"decisions.{count}": {"$exists": False}}, {"$unset": {"open": ""}})

    def open(self, limit: int) -> list[Holding]:
        """Return what holds of those subjects where something has still to follow."""
        return [self._read(row) for row in self._rows.find({"open": True}).limit(limit)]

    def _append(self, subject: str, decision: Mapping[str, Any], *, count: int, **beside: Any) -> Holding:
        """Keep a decision after `count` others, and what is `beside`. Raises CONFLICT where somebody else was first."""
        wanted: dict[str, Any] = {"_id": subject, f"decisions.{count}": {"$exists": False}}
        if count:
            wanted[f"decisions.{count - 1}"] = {"$exists": True}
        change = {"$push": {"decisions": decision}, "$set": {**beside, "open": True}}
        try:
            done = self._rows.update_one(wanted, change, upsert=not count)
            is_first = bool(done.matched_count or done.upserted_id)
        except DuplicateKeyError:
            is_first = False
        found = self.of(subject)
        if found is None or not is_first:
            raise AppError(Category.CONFLICT, "somebody else decided first; look again, and decide anew", where=subject)
        return found
