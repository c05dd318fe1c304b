"""Capability URLs on MongoDB: what the secret in an address opens. Of the secret there is only the SHA-256.

* `capability_urls`  `_id` SHA-256 of the secret; the study and the end; SHA-256 of the bearer token that it was given
                     out for, and that token sealed with a key that is made of the secret

So neither the database alone nor an address alone gives the token. A row vanishes when its time is over; to lose one
costs its holder a new search.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, IndexModel, WriteConcern
from pymongo.database import Database

INDEXES = [
    IndexModel([("token", ASCENDING)], name="token"),
    IndexModel([("expires", ASCENDING)], name="expires", expireAfterSeconds=0),
]


@dataclass(frozen=True, slots=True)
class Row:
    """One capability URL; both digests are SHA-256 in hex."""

    digest: str
    study_uid: str
    expires: datetime
    token: str
    sealed: bytes = field(repr=False)


class CapabilityUrls:
    """The register of capability URLs that were given out."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        self._rows = database.get_collection("capability_urls", write_concern=WriteConcern("majority"))

    def ensure_indexes(self) -> None:
        """Create the indexes; those that exist are left alone."""
        self._rows.create_indexes(INDEXES)

    def add(self, rows: Iterable[Row]) -> None:
        """Keep some."""
        self._rows.insert_many([_document(each) for each in rows])

    def find(self, digest: str) -> Row | None:
        """Return the one of this digest, None where there is none. Time is not judged."""
        found = self._rows.find_one({"_id": digest})
        return _row(found) if found else None

    def count(self, token: str, *, now: datetime, most: int) -> int:
        """Return how many there are of a token that have not ended, `most` for more."""
        return self._rows.count_documents({"token": token, "expires": {"$gt": now}}, limit=most)


def _document(row: Row) -> dict[str, Any]:
    named = {"study": row.study_uid, "expires": row.expires, "token": row.token, "sealed": row.sealed}
    return {"_id": row.digest, **named}


def _row(found: Mapping[str, Any]) -> Row:
    return Row(found["_id"], found["study"], found["expires"], found["token"], bytes(found["sealed"]))
