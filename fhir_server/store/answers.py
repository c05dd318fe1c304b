"""Requests that are answered later: what was asked, by whom, and what came of it. Kept for a day after the answer.

A row is the only copy of both; it is written once as a request and once as an answer. What is done in parts has a row
for each part that is done.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from bson.binary import Binary
from pymongo import ReturnDocument
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
    at       when it was asked, or last worked on, or answered: it is kept for a day from then on
    """

    owner: str
    client: str
    request: bytes = field(repr=False)
    status: int = 0
    answer: bytes = field(default=b"", repr=False)
    grant: Mapping[str, Any] | None = None
    at: datetime | None = None


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
        return Asked(row["owner"], row["client"], request, row.get("status", 0), answer, row.get("grant"), row["at"])

    def renew(self, id: str) -> None:
        """Keep a request for a day from now on."""
        with translated("request"):
            self._rows.update_one({"_id": id}, {"$set": {"at": self._clock()}})

    def is_kept(self, id: str) -> bool:
        """Say whether a request is known still."""
        with translated("request"):
            return self._rows.find_one({"_id": id}, {"_id": 1}) is not None

    def polled(self, id: str, window_s: float) -> int:
        """Count that somebody asks for an answer; return how often that was since the window of time began."""
        now = self._clock()
        more = {"from": "$polls.from", "count": {"$add": ["$polls.count", 1]}}
        is_within = {"$gt": ["$polls.from", now - timedelta(seconds=window_s)]}
        step = {"$set": {"polls": {"$cond": [is_within, more, {"from": now, "count": 1}]}}}
        rows = self._rows.with_options(write_concern=WriteConcern(1))
        with translated("request"):
            row = rows.find_one_and_update({"_id": id}, [step], {"polls": 1}, return_document=ReturnDocument.AFTER)
        return int(row["polls"]["count"]) if row else 0

    def keeping(self, id: str, status: int, body: bytes) -> Guard:
        """Return what keeps an answer, by itself or within the transaction of what it tells; the first one stays."""
        answer = {"$set": {"status": status, "answer": _packed(body), "at": self._clock()}}

        def keep(session: ClientSession | None) -> None:
            found = self._rows.update_one({"_id": id, "status": {"$exists": False}}, answer, session=session)
            if not found.matched_count:
                raise AppError(Category.CONFLICT, "the request was answered already, or is forgotten", where="request")

        return keep

    def forget(self, id: str) -> None:
        """Forget a request and its answer."""
        with translated("request"):
            self._rows.delete_one({"_id": id})
            self._rows.delete_many(_parts(id))

    def journal(self, id: str) -> "Journal":
        """Return the journal of a request."""
        return Journal(self, id)


class Journal:
    """What is done of a request: each part's answer, kept in the very transaction that it tells of.

    So a request that is done again, by whomever, finds what was written, and writes the rest. Parts lie beside the
    request under its id and their number.
    """

    def __init__(self, answers: Answers, id: str) -> None:
        self._answers = answers
        self._id = id

    def whole(self, status: int, body: bytes) -> Guard:
        """Return what keeps the answer to the whole request, by itself or within a transaction; the first one stays."""
        return self._answers.keeping(self._id, status, body)

    def part(self, number: int, body: bytes) -> Guard:
        """Return what keeps the answer to a part within the transaction of what it tells.

        It raises CONFLICT where one is kept, NOT_FOUND where the request was given up.
        """
        answers = self._answers

        def keep(session: ClientSession | None) -> None:
            answers.find(self._id)
            row = {"_id": f"{self._id}/{number}", "part": _packed(body), "at": answers._clock()}
            answers._rows.insert_one(row, session=session)

        return keep

    def parts(self) -> dict[int, bytes]:
        """Return the answers to the parts that are done."""
        with translated("request"):
            found = self._answers._rows.find(_parts(self._id))
            return {int(each["_id"].rpartition("/")[2]): zlib.decompress(each["part"]) for each in found}


def _parts(id: str) -> dict[str, Any]:
    return {"_id": {"$gt": f"{id}/", "$lt": f"{id}0"}}  # "0" is the character behind "/"


def _packed(content: bytes) -> Binary:
    return Binary(zlib.compress(content, 1))
