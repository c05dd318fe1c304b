"""Named random secrets that all processes of one deployment share: made once, by whoever asks first."""

import secrets
from typing import Any

from bson.binary import Binary
from pymongo import ReturnDocument
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError
from pymongo.write_concern import WriteConcern

COLLECTION = "secrets"


def secret(database: Database[Any], name: str, *, size_bytes: int = 32) -> bytes:
    """Return the secret of this name, making it durably on first use."""
    collection = database.get_collection(COLLECTION, write_concern=WriteConcern("majority", j=True))
    made = {"$setOnInsert": {"value": Binary(secrets.token_bytes(size_bytes))}}
    try:
        found = collection.find_one_and_update({"_id": name}, made, upsert=True, return_document=ReturnDocument.AFTER)
    except DuplicateKeyError:  # another process made it in the same moment
        found = collection.find_one({"_id": name})
    assert found is not None  # noqa: S101 -- it was just made, by us or by somebody else
    return bytes(found["value"])
