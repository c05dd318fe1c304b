"""Tickets on MongoDB: secrets that are good once and for a while, and what they stand for.

Authorization codes, refresh tokens, launches, the ids of client assertions and challenges to security keys are all of
this kind. Only the SHA-256 of
a secret is stored. A ticket that was used is remembered until it would have ended, so that a second use is seen for
what it is: somebody else has a copy.

* `tickets`  `_id` kind and SHA-256; what it stands for; its family; when it ends; when it was used
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pymongo import ASCENDING, IndexModel, WriteConcern
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from fhir_server.store.credentials import digest

INDEXES = [
    IndexModel([("family", ASCENDING)], name="family"),
    IndexModel(
        [("content.login", ASCENDING)], name="login", partialFilterExpression={"content.login": {"$exists": True}}
    ),
    IndexModel([("expires", ASCENDING)], name="expires", expireAfterSeconds=0),
]


class Kind(StrEnum):
    """What a ticket is for."""

    CODE = "code"
    REFRESH = "refresh"
    LAUNCH = "launch"
    ASSERTION = "assertion"
    CHALLENGE = "challenge"


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a ticket stands for; `is_used` when this is not its first use."""

    content: dict[str, Any]
    family: str
    is_used: bool


class Tickets:
    """Keeps tickets until they end."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        # A use that was answered must never be rolled back.
        self._tickets = database.get_collection("tickets", write_concern=WriteConcern(w="majority", j=True))

    def ensure_indexes(self) -> None:
        """Create the indexes; those that exist are left alone. Tickets vanish when they end."""
        self._tickets.create_indexes(INDEXES)

    def put(self, kind: Kind, secret: str, content: dict[str, Any], *, expires: datetime, family: str = "") -> bool:
        """Keep a ticket; say whether it was new. One that was there stays as it is."""
        document = {"_id": _key(kind, secret), "content": content, "family": family, "expires": expires}
        try:
            self._tickets.insert_one(document)
        except DuplicateKeyError:
            return False
        return True

    def find(self, kind: Kind, secret: str, *, now: datetime) -> Ticket | None:
        """Return the ticket without using it, None when there is none or it has ended."""
        return _ticket(self._tickets.find_one({"_id": _key(kind, secret), "expires": {"$gt": now}}))

    def use(self, kind: Kind, secret: str, *, now: datetime) -> Ticket | None:
        """Return the ticket and mark it as used, in one step; None when there is none or it has ended.

        Of several that try at once, one finds it unused.
        """
        matching = {"_id": _key(kind, secret), "expires": {"$gt": now}}
        return _ticket(self._tickets.find_one_and_update(matching, {"$min": {"used": now}}))

    def families_of(self, login: str) -> list[str]:
        """Return the authorisations that a person gave and that may not have ended."""
        found = self._tickets.distinct("family", {"content.login": login})
        return [str(each) for each in found if each]

    def end_family(self, family: str) -> int:
        """Forget all tickets of a family; return how many there were."""
        return self._tickets.delete_many({"family": family}).deleted_count if family else 0


def _key(kind: Kind, secret: str) -> str:
    return f"{kind}:{digest(secret)}"


def _ticket(document: dict[str, Any] | None) -> Ticket | None:
    return Ticket(document["content"], document["family"], "used" in document) if document else None
