"""Clients and their bearer tokens on MongoDB. Only the SHA-256 of a token is ever stored.

* `clients`  `_id` client id; the subscriber's Organization it acts for; `suspended` stops all of its tokens
* `tokens`   `_id` SHA-256 of the token; its client, when it was made and when it ends; of one of an authorization
             server what it was given for (`grant`) and from which authorisation it descends (`family`)

A token is 256 bits from the operating system, so a plain digest is enough: there is nothing to guess by trying words.
"""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, IndexModel, WriteConcern
from pymongo.database import Database

from imaging.errors import AppError, Category

TOKEN_PREFIX = "fis_"  # lets secret scanners recognise a leaked token  # noqa: S105
TOKEN_BYTES = 32
LONGEST_TOKEN = 256  # characters; longer ones are not even hashed

INDEXES: dict[str, list[IndexModel]] = {
    "clients": [IndexModel([("organization", ASCENDING)], name="organization")],
    "tokens": [
        IndexModel([("client", ASCENDING)], name="client"),
        IndexModel([("family", ASCENDING)], name="family", partialFilterExpression={"family": {"$exists": True}}),
        IndexModel([("expires", ASCENDING)], name="expires", expireAfterSeconds=30 * 86_400),
    ],
}


@dataclass(frozen=True, slots=True)
class Client:
    """A program that acts for a subscriber."""

    client_id: str
    organization: str  # reference, "Organization/..."
    name: str
    suspended: bool
    is_app: bool = False  # obtains its tokens by OAuth; the operator's command makes none for it


@dataclass(frozen=True, slots=True)
class Credential:
    """What a valid token says: whose it is and until when.

    grant    what it was given for, as the access layer wrote it; None for a token of the operator's commands
    family   name of the authorisation that it descends from, "" for none
    """

    client: Client
    expires: datetime
    grant: Mapping[str, Any] | None = None
    family: str = ""


class Credentials:
    """The register of clients and tokens."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        # A token that was printed must survive, and a suspension must never be rolled back.
        durable = WriteConcern(w="majority", j=True)
        self._clients = database.get_collection("clients", write_concern=durable)
        self._tokens = database.get_collection("tokens", write_concern=durable)

    def ensure_indexes(self) -> None:
        """Create the indexes; those that exist are left alone. Tokens vanish 30 days after their end."""
        self._clients.create_indexes(INDEXES["clients"])
        self._tokens.create_indexes(INDEXES["tokens"])

    def add_client(self, client: Client) -> None:
        """Register a client, or replace the one of the same id."""
        document = {"organization": client.organization, "name": client.name, "suspended": client.suspended}
        document |= {"app": True} if client.is_app else {}
        self._clients.replace_one({"_id": client.client_id}, document, upsert=True)

    def remove_client(self, client_id: str) -> None:
        """Forget a client; its tokens are nobody's from then on."""
        self._clients.delete_one({"_id": client_id})
        self._tokens.delete_many({"client": client_id})

    def clients(self, organization: str | None = None) -> list[Client]:
        """Return the clients of one subscriber, or all of them, by id."""
        found = self._clients.find({"organization": organization} if organization else {}).sort("_id")
        return [_client(document) for document in found]

    def suspend(self, organization: str, *, suspended: bool = True) -> int:
        """Suspend (or let in again) every client of a subscriber; return how many there are."""
        change = {"$set": {"suspended": suspended}}
        return self._clients.update_many({"organization": organization}, change).matched_count

    def client(self, client_id: str) -> Client | None:
        """Return one client, None where there is none."""
        document = self._clients.find_one({"_id": client_id})
        return _client(document) if document else None

    def mint(
        self,
        client_id: str,
        *,
        now: datetime,
        expires: datetime,
        grant: Mapping[str, Any] | None = None,
        family: str = "",
    ) -> str:
        """Return a new token of a client: shown once, never readable again. Raises NOT_FOUND for an unknown client."""
        if self._clients.find_one({"_id": client_id}, {"_id": 1}) is None:
            raise AppError(Category.NOT_FOUND, "no such client", where=client_id)
        token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        document = {"_id": digest(token), "client": client_id, "created": now, "expires": expires}
        if grant is not None:
            document["grant"] = dict(grant)
        if family:
            document["family"] = family
        self._tokens.insert_one(document)
        return token

    def find(self, token_sha256: str) -> Credential | None:
        """Return what the token of this digest says, None when there is none. Time and suspension are not judged."""
        whose = {"from": "clients", "localField": "client", "foreignField": "_id", "as": "clients"}
        for token in self._tokens.aggregate([{"$match": {"_id": token_sha256}}, {"$lookup": whose}]):
            for document in token["clients"]:
                return Credential(_client(document), token["expires"], token.get("grant"), token.get("family", ""))
        return None

    def revoke(self, token_sha256: str) -> None:
        """Withdraw a token; an unknown one is withdrawn already."""
        self._tokens.delete_one({"_id": token_sha256})

    def revoke_family(self, family: str) -> list[str]:
        """Withdraw every token of an authorisation; return their digests."""
        found = [document["_id"] for document in self._tokens.find({"family": family}, {"_id": 1})] if family else []
        self._tokens.delete_many({"_id": {"$in": found}})
        return found


def digest(token: str) -> str:
    """Return the SHA-256 of a token in hex, under which it is stored."""
    return hashlib.sha256(token.encode()).hexdigest()


def _client(document: dict[str, Any]) -> Client:
    suspended, is_app = bool(document["suspended"]), bool(document.get("app"))
    return Client(document["_id"], document["organization"], document["name"], suspended, is_app)
