"""Who is subscribed to which work items, on MongoDB: one row of `watchers` for each title of a subscriber.

An AE title means something within one subscriber only: two that use the same one have a row each. Which events there
are, and how far a watcher has been told, lies with those of Subscriptions, under the id of the row.
Source: PS3.4 CC.2.3 (subscription states of a UPS).
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from bson.codec_options import CodecOptions
from pymongo import ASCENDING, IndexModel
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from fhir_server.store.failures import translated
from fhir_server.store.writing import MAJORITY
from imaging.errors import AppError, Category

PREFIX = "watcher:"  # of an id; those of resources have no colon
MOST_TRIES = 10  # of a change that others are in the way of
MOST_NAMED = 1_000  # work items that one title subscribes to, or is taken off, one by one


@dataclass(frozen=True, slots=True)
class Everything:
    """A subscription to the worklist.

    filter   what a work item has to match, as a search writes it; "" for all
    until    since when new work items are not taken in any more, None while they are
    """

    filter: str = ""
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Watcher:
    """What a title of a subscriber is subscribed to.

    grant     what the token was given for with which it was subscribed, None where the contracts alone limit it
    named     UIDs of work items that were subscribed to one by one
    without   UIDs of work items that were taken off, though the worklist is subscribed to
    """

    owner: str
    title: str
    grant: Mapping[str, Any] | None
    since: datetime
    worklist: Everything | None = None
    named: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    revision: int = 0

    @property
    def id(self) -> str:
        """Under which its events are numbered."""
        return id_of(self.owner, self.title)

    @property
    def is_idle(self) -> bool:
        """Whether it is subscribed to nothing."""
        return self.worklist is None and not self.named


def id_of(owner: str, title: str) -> str:
    """Return the id of the watcher that a title of a subscriber is."""
    return PREFIX + hashlib.sha256(f"{owner}\n{title}".encode()).hexdigest()[:40]


class Watchers:
    """All of them."""

    def __init__(self, database: Database[Any]) -> None:
        """Open them."""
        aware: Database[Any] = database.with_options(CodecOptions(tz_aware=True, tzinfo=UTC), write_concern=MAJORITY)
        self._rows = aware["watchers"]

    def ensure_indexes(self) -> None:
        """Create the index by which those of a subscriber are counted."""
        self._rows.create_indexes([IndexModel([("owner", ASCENDING)], name="owner")])

    def all(self) -> list[Watcher]:
        """Return all, a row for each title."""
        return self._found({})

    def find(self, id: str) -> Watcher | None:
        """Return one, None where it is subscribed to nothing."""
        return next(iter(self._found({"_id": id})), None)

    def count(self, owner: str) -> int:
        """Return how many titles of a subscriber are subscribed."""
        with translated("watchers"):
            return self._rows.count_documents({"owner": owner})

    def change(self, id: str, change: Callable[[Watcher | None], Watcher | None]) -> None:
        """Write what `change` makes of a watcher, None for none, and try again where others are faster.

        Raises TOO_LARGE for more than may be named, BUSY where others go on changing it.
        """
        for _ in range(MOST_TRIES):
            found = self.find(id)
            new = change(found)
            if new is not None and max(len(new.named), len(new.without)) > MOST_NAMED:
                message = f"a title names {MOST_NAMED} work items at most; subscribe to the worklist instead"
                raise AppError(Category.TOO_LARGE, message, where="subscribers")
            if self._write(id, found, new):
                return
        raise AppError(Category.BUSY, "others are changing the same subscriptions: try again", where="subscribers")

    def _write(self, id: str, found: Watcher | None, new: Watcher | None) -> bool:
        """Say whether it was written: nobody else has since it was found."""
        with translated("watchers"):
            if found is None:
                try:
                    if new is not None:
                        self._rows.insert_one({"_id": id, **_row(new)})
                except DuplicateKeyError:
                    return False
                return True
            same = {"_id": id, "revision": found.revision}
            if new is None:
                return self._rows.delete_one(same).deleted_count == 1
            row = _row(replace(new, revision=found.revision + 1))
            return self._rows.replace_one(same, row).matched_count == 1

    def _found(self, wanted: Mapping[str, Any]) -> list[Watcher]:
        with translated("watchers"):
            return [_watcher(row) for row in self._rows.find(wanted)]


def _row(watcher: Watcher) -> dict[str, Any]:
    worklist = watcher.worklist
    return {
        "owner": watcher.owner,
        "title": watcher.title,
        "grant": watcher.grant,
        "since": watcher.since,
        "worklist": {"filter": worklist.filter, "until": worklist.until} if worklist else None,
        "named": sorted(watcher.named),
        "without": sorted(watcher.without),
        "revision": watcher.revision,
    }


def _watcher(row: Mapping[str, Any]) -> Watcher:
    worklist = row["worklist"]
    named, without = (_uids(row[name]) for name in ("named", "without"))
    everything = Everything(worklist["filter"], worklist["until"]) if worklist else None
    return Watcher(row["owner"], row["title"], row["grant"], row["since"], everything, named, without, row["revision"])


def _uids(written: Iterable[str]) -> frozenset[str]:
    return frozenset(written)
