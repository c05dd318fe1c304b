"""Chains of documents that are only ever added: what was changed, taken out or slipped in later is seen.

Each process has a chain of its own, so that nobody waits for anybody else. A document carries the name of its chain,
its number in it, and a MAC (HMAC-SHA-256) over both, over its id and bytes, and over the MAC before it. The head of
each chain is written down before its first entry and every second, so that the end of a chain cannot be cut off and
every chain is found by the moment of its last head. Whoever can change the database
and has the key can make a chain anew; so the key may be kept outside of the database (`audit.key`).

* `resources`  field `chain`: `c` name, `n` number from 1, `mac`
* `chains`     `_id` name of a chain; number and MAC of its head, 0 before the first entry; when it was written down
"""

import hmac
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from bson.binary import Binary
from pymongo import ASCENDING, IndexModel, WriteConcern
from pymongo.database import Database
from pymongo.errors import PyMongoError

Json = dict[str, Any]

log = logging.getLogger(__name__)

HEAD_EVERY_S = 1.0
FIELD = "chain"


class Chain:
    """The chain of one process."""

    def __init__(self, database: Database[Any], key: bytes, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._heads = database.get_collection("chains", write_concern=WriteConcern("majority"))
        self._resources = database["resources"]
        self._key = key
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._before = b""  # MAC of the last entry
        self._written = 0  # since the head was written down
        self._begin()

    def ensure_indexes(self) -> None:
        """Create the index by which chains are walked; one that exists is left alone."""
        only = {f"{FIELD}.c": {"$exists": True}}
        order = [(f"{FIELD}.c", ASCENDING), (f"{FIELD}.n", ASCENDING)]
        self._resources.create_indexes([IndexModel(order, name="chain", partialFilterExpression=only)])
        self._heads.create_indexes([IndexModel([("at", ASCENDING)], name="at")])

    def add(self, documents: Sequence[Json], insert: Callable[[], object]) -> None:
        """Link documents to the chain and insert them by `insert`. After a failure, which may have been none, the
        chain ends, and another begins."""
        with self._lock:
            try:
                if not self._number:
                    self._write_head()
                for document in documents:
                    self._number += 1
                    self._before = _mac(self._key, self._name, self._number, document, self._before)
                    document[FIELD] = {"c": self._name, "n": self._number, "mac": Binary(self._before)}
                insert()
            except BaseException:
                self._begin()
                raise
            self._written += len(documents)
            if self._clock_s() >= self._next_head:
                self._write_head()

    def close(self) -> None:
        """Write the head down; where the database is gone, a process ends without it."""
        with self._lock:
            if self._written:
                try:
                    self._write_head()
                except PyMongoError as error:
                    log.warning("the head of the chain is not written down", extra={"kind": type(error).__name__})

    def _begin(self) -> None:
        self._name, self._number, self._before, self._written = uuid.uuid4().hex, 0, b"", 0
        self._next_head = self._clock_s()

    def _write_head(self) -> None:
        head = {"n": self._number, "mac": Binary(self._before)}
        self._heads.update_one({"_id": self._name}, {"$set": head, "$currentDate": {"at": True}}, upsert=True)
        self._next_head = self._clock_s() + HEAD_EVERY_S
        self._written = 0


def verify(database: Database[Any], key: bytes, progress: Callable[[int, int], None]) -> Iterator[str]:
    """Yield what is wrong with the chains, one sentence each; documents are read in order, and none is kept."""
    heads = {each["_id"]: each for each in database["chains"].find()}
    matching = {f"{FIELD}.c": {"$exists": True}}
    total = database["resources"].count_documents(matching, hint="chain")
    order = [(f"{FIELD}.c", ASCENDING), (f"{FIELD}.n", ASCENDING)]
    found = database["resources"].find(matching, {FIELD: 1, "body": 1}).sort(order).hint("chain")
    done = 0

    def counted() -> Iterator[Json]:
        nonlocal done
        for document in found:
            done += 1
            progress(done, total)
            yield document

    for name, documents in groupby(counted(), key=lambda each: each[FIELD]["c"]):
        yield from _verify_chain(name, documents, heads.pop(name, None), key)
    for name in (name for name, head in heads.items() if head["n"]):
        yield f"chain {name}: all of its entries are missing"


def _verify_chain(name: str, documents: Iterator[Json], head: Json | None, key: bytes) -> Iterator[str]:
    number, mac = 0, b""
    for document in documents:
        link = document[FIELD]
        if link["n"] != number + 1:
            yield f"chain {name}: {_missing(number + 1, link['n'] - 1)}"
        elif not hmac.compare_digest(_mac(key, name, link["n"], document, mac), link["mac"]):
            yield f"{document['_id']}: it was changed, or is no entry of its chain"
        number, mac = link["n"], bytes(link["mac"])
        if head and head["n"] == number and head["mac"] != mac:
            yield f"{document['_id']}: it is not the entry that stood at the head of its chain"
    if head and head["n"] > number:
        yield f"chain {name}: {_missing(number + 1, head['n'])}"


def _missing(first: int, last: int) -> str:
    if last < first:
        return f"entry {first - 1} is there twice"
    return f"entry {first} is missing" if first == last else f"entries {first} to {last} are missing"


def _mac(key: bytes, name: str, number: int, document: Json, before: bytes) -> bytes:
    text = f"{name}\n{number}\n{document['_id']}\n".encode()
    return hmac.digest(key, text + before + b"\n" + bytes(document["body"]), "sha256")
