"""What happened, for whom it counts as an event, and how far each Subscription has been told, on MongoDB.

* `history`               versions that nobody has looked at yet have `unseen`: when they were written, and a number
* `subscriptions`         `_id` id of a Subscription; how many events it has had and which was told last, when something
                          is to be done for it next, and how tries went. A row `_id` "" counts changes of Subscriptions
* `subscription_events`   `s` Subscription, `n` number of the event; which version of which resource it is about
* `subscription_tokens`   `_id` digest of a token by which a socket is bound to Subscriptions

A version loses `unseen` in the transaction that makes events of it: whatever dies in between, it is one or the other.
Rows lie beside Subscriptions, so that an event or a failed try makes no FHIR version.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from bson.codec_options import CodecOptions
from pymongo import ASCENDING, IndexModel, ReturnDocument
from pymongo.client_session import ClientSession
from pymongo.cursor import Cursor
from pymongo.database import Database
from pymongo.read_concern import ReadConcern

from fhir_server.store.credentials import digest
from fhir_server.store.documents import Resource, resource_of
from fhir_server.store.failures import translated
from fhir_server.store.writing import MAJORITY

AT_A_TIME = 500  # changes looked at together
TOKEN_BYTES = 32
_META = ""  # `_id` of the row that counts changes of Subscriptions
INDEXES: dict[str, list[IndexModel]] = {
    "subscriptions": [IndexModel([("due", ASCENDING)], name="due", partialFilterExpression={"due": {"$exists": True}})],
    "subscription_events": [
        IndexModel([("s", ASCENDING), ("n", ASCENDING)], name="number", unique=True),
        IndexModel([("until", ASCENDING)], name="forget", expireAfterSeconds=0),
    ],
    "subscription_tokens": [IndexModel([("until", ASCENDING)], name="forget", expireAfterSeconds=0)],
}

Guard = Callable[[ClientSession], None]


@dataclass(frozen=True, slots=True)
class Change:
    """A write to a resource that nobody has looked at yet."""

    key: str
    version: int
    method: str
    at: datetime

    @property
    def type(self) -> str:
        """The type of the resource."""
        return self.key.partition("/")[0]

    @property
    def name(self) -> str:
        """The version, as the history names it."""
        return f"{self.key}/{self.version}"


@dataclass(frozen=True, slots=True)
class Event:
    """A change that a Subscription is to be told of, under its number there, from 1."""

    number: int
    key: str
    version: int
    method: str
    at: datetime


@dataclass(frozen=True, slots=True)
class State:
    """How far a Subscription is.

    since     from when on changes count
    number    of the last event
    told      number of the last event that was told
    failures  tries in a row that failed; `reason` says why the last one did
    is_pushed  whether this server goes to the subscriber
    last      when a notification went out last
    woken     how often somebody asked to look at it at once
    """

    id: str
    since: datetime
    number: int = 0
    told: int = 0
    failures: int = 0
    reason: str = ""
    is_pushed: bool = False
    last: datetime | None = None
    woken: int = 0


class Subscriptions:
    """The bookkeeping of all Subscriptions."""

    def __init__(self, database: Database[Any], clock: Callable[[], datetime], *, kept_s: float) -> None:
        """Open it; events are kept for `kept_s`."""
        plain: Database[Any] = database.with_options(CodecOptions(tz_aware=True, tzinfo=UTC), write_concern=MAJORITY)
        self._database = plain
        self._history = plain["history"].with_options(read_concern=ReadConcern("majority"))
        self._states = plain["subscriptions"]
        self._events = plain["subscription_events"]
        self._tokens = plain["subscription_tokens"]
        self._clock = clock
        self._kept = timedelta(seconds=kept_s)

    def ensure_indexes(self) -> None:
        """Create the indexes; those that exist are left alone."""
        for name, indexes in INDEXES.items():
            self._database[name].create_indexes(indexes)

    # ---- changes

    def changes(self, since: datetime) -> list[Change]:
        """Return changes from then on that nobody has looked at, oldest first, those of one resource in their order."""
        with translated("history"):
            rows = list(self._unseen({"$gte": since}).limit(AT_A_TIME))
            if len(rows) == AT_A_TIME:
                # Of the same moment all come together, or versions of one resource could change places.
                last = _at(rows[-1])
                rows = [row for row in rows if _at(row) < last] or list(self._unseen(last))
        rows.sort(key=lambda row: (_at(row), row["version"], row["unseen"]["number"]))
        return [Change(row["_id"].rpartition("/")[0], row["version"], row["method"], _at(row)) for row in rows]

    def _unseen(self, at: Any) -> Cursor[Any]:
        return self._history.find({"unseen.at": at}, {"version": 1, "method": 1, "unseen": 1}).sort("unseen.at")

    def versions(self, names: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Resource]:
        """Return those of the versions, (key, number), that exist."""
        wanted = [f"{key}/{number}" for key, number in names]
        with translated("history"):
            rows = self._history.find({"_id": {"$in": wanted}})
            found = [resource_of(row["_id"].rpartition("/")[0], row) for row in rows]
        return {(each.key, each.version): each for each in found}

    def pass_on(self, changes: Sequence[Change], events: Mapping[str, Sequence[Change]], guard: Guard) -> None:
        """Note that changes were looked at, and the events that they are, by Subscription; all of it or nothing.

        `guard` raises in the same transaction where somebody else is at it.
        """
        touches = any(each.type == "Subscription" for each in changes)

        def attempt(session: ClientSession) -> None:
            guard(session)
            seen = {"_id": {"$in": [each.name for each in changes]}}
            self._history.update_many(seen, {"$unset": {"unseen": ""}}, session=session)
            if touches:
                self._states.update_one({"_id": _META}, {"$inc": {"number": 1}}, upsert=True, session=session)
            rows: list[dict[str, Any]] = []
            for name, mine in events.items():
                rows += self._numbered(name, mine, session)
            if rows:
                self._events.insert_many(rows, session=session)

        with translated("history"), self._database.client.start_session() as session:
            session.with_transaction(attempt, read_concern=ReadConcern("snapshot"), write_concern=MAJORITY)

    def note(self, name: str, changes: Sequence[Change]) -> None:
        """Number what is an event for one Subscription alone, beside what is written to resources."""

        def attempt(session: ClientSession) -> None:
            if rows := self._numbered(name, changes, session):
                self._events.insert_many(rows, session=session)

        with translated("subscriptions"), self._database.client.start_session() as session:
            session.with_transaction(attempt, read_concern=ReadConcern("snapshot"), write_concern=MAJORITY)

    def announce(self) -> None:
        """Have it noticed that there is something else to be told of than before, by changes that come later."""
        with translated("subscriptions"):
            self._states.update_one({"_id": _META}, {"$inc": {"number": 1}}, upsert=True)

    def _numbered(self, name: str, changes: Sequence[Change], session: ClientSession) -> list[dict[str, Any]]:
        now = self._clock()
        is_waiting = {"$and": [{"$eq": ["$is_pushed", True]}, {"$eq": [{"$ifNull": ["$failures", 0]}, 0]}]}
        change = {
            "number": {"$add": ["$number", len(changes)]},
            # After a failure the pause goes on, whatever happens meanwhile.
            "due": {"$cond": [is_waiting, now, "$due"]},
        }
        row = self._states.find_one_and_update(
            {"_id": name}, [{"$set": change}], session=session, return_document=ReturnDocument.AFTER
        )
        if row is None:
            return []  # deleted meanwhile
        first = row["number"] - len(changes) + 1
        until = now + self._kept
        return [
            {"s": name, "n": number, "key": c.key, "version": c.version, "method": c.method, "at": c.at, "until": until}
            for number, c in enumerate(changes, first)
        ]

    def generation(self) -> int:
        """Return how often changes of Subscriptions were passed on or announced."""
        with translated("subscriptions"):
            row = self._states.find_one({"_id": _META})
        return row["number"] if row else 0

    # ---- states

    def begin(self, name: str, since: datetime, *, is_pushed: bool) -> bool:
        """Have changes count for a Subscription from now on, if they do not yet; whether that is so only now."""
        begun = {"since": since, "number": 0, "told": 0, "failures": 0, "reason": "", "woken": 0}
        with translated("subscriptions"):
            done = self._states.update_one(
                {"_id": name}, {"$setOnInsert": begun, "$set": {"is_pushed": is_pushed}}, upsert=True
            )
        return done.upserted_id is not None

    def state(self, name: str) -> State | None:
        """Return how far a Subscription is, None where nothing is known of it."""
        return self.states([name]).get(name)

    def states(self, names: Iterable[str] | None = None) -> dict[str, State]:
        """Return how far Subscriptions are; None for all."""
        wanted = {"_id": {"$ne": _META}} if names is None else {"_id": {"$in": list(names)}}
        with translated("subscriptions"):
            return {row["_id"]: _state(row) for row in self._states.find(wanted)}

    def due(self, now: datetime, limit: int) -> list[str]:
        """Return Subscriptions for which something is to be done by now, the longest due first."""
        with translated("subscriptions"):
            rows = self._states.find({"due": {"$lte": now}}, {"_id": 1}).sort("due", ASCENDING).limit(limit)
            return [row["_id"] for row in rows]

    def next_due(self, now: datetime) -> datetime | None:
        """Return when something is to be done next, after now; None for never."""
        with translated("subscriptions"):
            row = self._states.find_one({"due": {"$gt": now}}, {"due": 1}, sort=[("due", ASCENDING)])
        return row["due"] if row else None

    def told(self, name: str, *, number: int | None, at: datetime) -> None:
        """Note that a notification went out, with events up to this number, if with any."""
        change: dict[str, Any] = {"$set": {"failures": 0, "reason": "", "last": at}}
        if number is not None:
            change["$max"] = {"told": number}
        with translated("subscriptions"):
            self._states.update_one({"_id": name}, change)

    def failed(self, name: str, reason: str) -> int:
        """Note that a try failed; return how many did in a row."""
        change = {"$inc": {"failures": 1}, "$set": {"reason": reason}}
        with translated("subscriptions"):
            row = self._states.find_one_and_update({"_id": name}, change, return_document=ReturnDocument.AFTER)
        return row["failures"] if row else 0

    def again(self, name: str) -> None:
        """Forget failures: somebody has seen to them."""
        with translated("subscriptions"):
            self._states.update_one({"_id": name}, {"$set": {"failures": 0, "reason": ""}})

    def wake(self, name: str) -> None:
        """Have somebody look at a Subscription at once."""
        with translated("subscriptions"):
            self._states.update_one({"_id": name}, {"$set": {"due": self._clock()}, "$inc": {"woken": 1}})

    def plan(self, name: str, due: datetime | None, seen: State) -> None:
        """Say when something is to be done for a Subscription next, None for nothing; at once where more happened."""
        change = {"$set": {"due": due}} if due else {"$unset": {"due": ""}}
        with translated("subscriptions"):
            done = self._states.update_one({"_id": name, "number": seen.number, "woken": seen.woken}, change)
        if not done.matched_count:
            self.wake(name)

    def end(self, name: str) -> None:
        """Forget a Subscription that is off or deleted, and what it was not told."""
        with translated("subscriptions"):
            self._states.delete_one({"_id": name})
            self._events.delete_many({"s": name})

    # ---- events

    def events(self, name: str, first: int, last: int, limit: int) -> list[Event]:
        """Return events of a Subscription between two numbers, both included, that are still kept."""
        with translated("subscriptions"):
            rows = self._events.find({"s": name, "n": {"$gte": first, "$lte": last}}).sort("n", ASCENDING).limit(limit)
            return [Event(row["n"], row["key"], row["version"], row["method"], row["at"]) for row in rows]

    # ---- sockets

    def token(self, owner: str, names: Sequence[str], until: datetime) -> str:
        """Return a new token that binds a socket to Subscriptions of a subscriber, until a moment."""
        made = secrets.token_urlsafe(TOKEN_BYTES)
        with translated("subscriptions"):
            self._tokens.insert_one({"_id": digest(made), "owner": owner, "names": list(names), "until": until})
        return made

    def bound_by(self, token: str) -> tuple[str, tuple[str, ...], datetime] | None:
        """Return owner, Subscriptions and end of a token; None for one that is unknown or over."""
        with translated("subscriptions"):
            row = self._tokens.find_one({"_id": digest(token), "until": {"$gt": self._clock()}})
        return (row["owner"], tuple(row["names"]), row["until"]) if row else None

    # ---- news

    @contextmanager
    def watch(self, max_await_ms: int) -> Iterator[Callable[[], str | None]]:
        """Give a function that waits for news, so long at most, and returns of what there was some, if any.

        News is the type of a resource that was written, or "" where a Subscription is to be looked at.
        """
        is_due = {"ns.coll": "subscriptions", "updateDescription.updatedFields.due": {"$exists": True}}
        is_announced = {"ns.coll": "subscriptions", "documentKey._id": _META}
        is_new = {"ns.coll": "history", "operationType": "insert"}
        stages: list[dict[str, Any]] = [
            {"$match": {"$or": [is_due, is_announced, is_new]}},
            {"$project": {"coll": "$ns.coll", "name": "$documentKey._id"}},
        ]
        with self._database.watch(stages, max_await_time_ms=max_await_ms) as stream:

            def news() -> str | None:
                row = stream.try_next()
                if row is None or row["coll"] == "history":
                    return row and row["name"].partition("/")[0]
                return "Subscription" if row["name"] == _META else ""

            yield news

    @contextmanager
    def watch_events(self, max_await_ms: int) -> Iterator[Callable[[], str | None]]:
        """Give a function that waits for an event and returns whose it is, None where there was none for so long."""
        stages: list[dict[str, Any]] = [
            {"$match": {"operationType": "insert"}},
            {"$project": {"s": "$fullDocument.s"}},
        ]
        with self._events.watch(stages, max_await_time_ms=max_await_ms) as stream:

            def news() -> str | None:
                row = stream.try_next()
                return row["s"] if row else None

            yield news


def _at(row: Mapping[str, Any]) -> datetime:
    at: datetime = row["unseen"]["at"]
    return at


def _state(row: Mapping[str, Any]) -> State:
    return State(
        row["_id"],
        row["since"],
        row["number"],
        row["told"],
        row["failures"],
        row["reason"],
        row["is_pushed"],
        row.get("last"),
        row["woken"],
    )
