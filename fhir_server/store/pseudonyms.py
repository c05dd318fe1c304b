"""Which study is meant by the pseudonym that a recipient of de-identified images was told.

Pseudonyms follow from a key and cannot be turned back, so what was told is written down before it is told. A row that
nobody asks for does no harm; one that is lost is written again by the next search.

* `pseudonyms`  `_id` recipient and replaced UID; the Study Instance UID that it stands for
"""

from collections.abc import Collection, Mapping
from typing import Any

from pymongo import UpdateOne
from pymongo.database import Database
from pymongo.write_concern import WriteConcern


class PseudonymRows:
    """Replaced Study Instance UIDs of all recipients."""

    def __init__(self, database: Database[Any]) -> None:
        self._rows = database.get_collection("pseudonyms", write_concern=WriteConcern("majority", j=True))

    def note(self, recipient: str, told: Mapping[str, str]) -> None:
        """Write down what replaced UIDs stand for; those that are there are left alone, at the cost of a look."""
        known = self.originals(recipient, told)
        new = [
            UpdateOne({"_id": f"{recipient} {uid}"}, {"$setOnInsert": {"study": study}}, upsert=True)
            for uid, study in told.items()
            if uid not in known
        ]
        if new:
            self._rows.bulk_write(new, ordered=False)

    def originals(self, recipient: str, uids: Collection[str]) -> dict[str, str]:
        """Return replaced UID -> Study Instance UID, of those that the recipient was told."""
        asked = {f"{recipient} {uid}": uid for uid in uids}
        return {asked[row["_id"]]: row["study"] for row in self._rows.find({"_id": {"$in": list(asked)}})}
