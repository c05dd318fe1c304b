"""Requests that are answered later: what was asked, by whom, and what came of it. Kept for a day after it was asked.

A row is the only copy of both; it is written once as a request and once as an answer.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bson.binary import Binary
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.write_concern import WriteConcern

from fhir_server.store.failures import translated
from imaging.errors import AppError, Category

Guard = Callable[[ClientSession | None], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request and, once there is one, its answer.

    owner    subscriber that asked, "Organization/..."; `client` is its program
    grant    what its token was given for, None where the contracts alone limit it
    status   of HTTP, 0 while there is no answer
    """

    owner: str
    client: str
    request: bytes = field(repr=False)
    status: int = 0
    answer: bytes = field(default=b"", repr=False)
    grant: Mapping[str, Any] | None = None


class Answers:
    """What is answered later."""

    def __init__(self, database: Database[Any], clock: Callable[[], datetime]) -> None:
        self._rows = database.get_collection("answers", write_concern=WriteConcern("majority", j=True))
        self._clock = clock

    def ask(self, id: str, asked: Asked) -> None:
        """Keep a request."""
        row: dict[str, Any] = {
            "_id": id,
            "owner": asked.owner,
            "client": asked.client,
            "request": _packed(asked.request),
        }
        if asked.grant is not None:
            row["grant"] = dict(asked.grant)
        with translated("request"):
            self._rows.insert_one({**row, "at": self._clock()})

    def find(self, id: str) -> Asked:
        """Return a request and its answer. Raises NOT_FOUND for one that never was, or was forgotten."""
        with translated("request"):
            row = self._rows.find_one({"_id": id})
        if row is None:
            raise AppError(Category.NOT_FOUND, "there is no such request, or it was a day ago", where="request")
        answer = zlib.decompress(row["answer"]) if "answer" in row else b""
        request = zlib.decompress(row["request"])
        return Asked(row["owner"], row["client"], request, row.get("status", 0), answer, row.get("grant"))

    def keeping(self, id: str, status: int, body: bytes) -> Guard:
        """Return what keeps an answer, by itself or within the transaction of what it tells; the first one stays."""
        answer = {"$set": {"status": status, "answer": _packed(body)}}

        def keep(session: ClientSession | None) -> None:
            found = self._rows.update_one({"_id": id, "status": {"$exists": False}}, answer, session=session)
            if not found.matched_count:
                raise AppError(Category.CONFLICT, "the request was answered already, or is forgotten", where="request")

        return keep

    def forget(self, id: str) -> None:
        """Forget a request and its answer."""
        with translated("request"):
            self._rows.delete_one({"_id": id})


def _packed(content: bytes) -> Binary:
    return Binary(zlib.compress(content, 1))
