"""The keys with which this server signs what it says about people who signed in, and their rotation.

* `signing_keys`  `_id` key id; the private key; when it was made

The newest key signs. A new one is published before it is used only by as much as a cache of a reader may lag: readers
fetch a key set again when they meet a key id that they do not know. An older key stays published until nothing that it
signed is valid any more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
from joserfc.jwk import RSAKey
from pymongo import DESCENDING, WriteConcern
from pymongo.database import Database

ALGORITHM = "RS256"
KEY_BITS = 2048


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key pair as JSON Web Keys."""

    key_id: str
    made: datetime
    private: dict[str, Any]

    @property
    def public(self) -> dict[str, Any]:
        """The public half, as it is published."""
        return {name: self.private[name] for name in ("kty", "kid", "n", "e")} | {"use": "sig", "alg": ALGORITHM}


class SigningKeys:
    """Keeps keys, and makes a new one when the newest is older than `rotated_after`."""

    def __init__(
        self, database: Database[dict[str, Any]], *, rotated_after: timedelta, clock: Callable[[], datetime]
    ) -> None:
        # What was signed must stay verifiable.
        self._keys = database.get_collection("signing_keys", write_concern=WriteConcern(w="majority", j=True))
        self._rotated_after = rotated_after
        self._clock = clock

    def current(self) -> SigningKey:
        """Return the key that signs now."""
        newest = self._keys.find_one(sort=[("made", DESCENDING)])
        if newest and newest["made"] + self._rotated_after > self._clock():
            return _key(newest)
        return self.rotate()

    def rotate(self) -> SigningKey:
        """Make a new key, with which is signed from now on, and forget those that nothing valid was signed with."""
        now = self._clock()
        key = RSAKey.generate_key(KEY_BITS, auto_kid=True)
        # As text: a database that shows its documents shows no part of a key by accident.
        document = {"_id": key.kid, "private": orjson.dumps(key.as_dict(private=True)).decode(), "made": now}
        self._keys.insert_one(document)
        self._keys.delete_many({"made": {"$lt": now - 2 * self._rotated_after}})
        return _key(document)

    def published(self) -> list[dict[str, Any]]:
        """Return the public keys with which something valid may be signed, newest first."""
        self.current()
        return [_key(each).public for each in self._keys.find().sort("made", DESCENDING)]


def _key(document: dict[str, Any]) -> SigningKey:
    return SigningKey(document["_id"], document["made"], orjson.loads(document["private"]))
