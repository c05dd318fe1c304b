"""Sessions of people who signed in, on MongoDB, so that they can be listed and ended from anywhere.

* `sessions`  `_id` SHA-256 of what the browser keeps; login; stamp of the password then; when it began and ends;
              by which second factor
"""

import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, IndexModel, WriteConcern
from pymongo.database import Database

from fhir_server.store.credentials import digest

INDEXES = [
    IndexModel([("login", ASCENDING)], name="login"),
    IndexModel([("expires", ASCENDING)], name="expires", expireAfterSeconds=0),
]
LONGEST_AGENT = 200  # characters of what a browser says of itself


@dataclass(frozen=True, slots=True)
class Session:
    """One browser in which somebody is signed in.

    key      by which the server knows it; nobody gets in with it
    agent    what the browser says of itself, for people to recognise it
    factor   by which second factor somebody came in, "" by the password alone
    """

    key: str
    login: str
    stamp: str
    began: datetime
    expires: datetime
    agent: str
    factor: str = ""


class Sessions:
    """Keeps sessions until they end."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        # The end of a session must never be rolled back.
        self._sessions = database.get_collection("sessions", write_concern=WriteConcern(w="majority", j=True))

    def ensure_indexes(self) -> None:
        """Create the indexes; those that exist are left alone. Sessions vanish when they end."""
        self._sessions.create_indexes(INDEXES)

    def begin(self, login: str, stamp: str, *, now: datetime, expires: datetime, agent: str, factor: str = "") -> str:
        """Begin a session; return what the browser keeps. It is new each time, so none can be planted before."""
        value = secrets.token_urlsafe(32)
        document = {"login": login, "stamp": stamp, "began": now, "expires": expires, "agent": agent[:LONGEST_AGENT]}
        self._sessions.insert_one({"_id": digest(value), **document, "factor": factor})
        return value

    def find(self, value: str, *, now: datetime) -> Session | None:
        """Return the session that a browser keeps, None when it has ended."""
        return self.at(digest(value), now=now) if 0 < len(value) <= 100 else None

    def at(self, key: str, *, now: datetime) -> Session | None:
        """Return the session of a key, None when it has ended."""
        document = self._sessions.find_one({"_id": key, "expires": {"$gt": now}})
        return _session(document) if document else None

    def of(self, login: str, *, now: datetime) -> list[Session]:
        """Return the sessions of a person, newest first."""
        found = self._sessions.find({"login": login, "expires": {"$gt": now}}).sort("began", -1)
        return [_session(document) for document in found]

    def end(self, key: str, *, login: str) -> bool:
        """End a session of a person; say whether there was one."""
        return bool(self._sessions.delete_one({"_id": key, "login": login}).deleted_count)


def _session(document: dict[str, Any]) -> Session:
    return Session(key=document["_id"], **{name: value for name, value in document.items() if name != "_id"})
