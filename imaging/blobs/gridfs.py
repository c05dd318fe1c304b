"""Blobs in GridFS, written in bulk.

Hides the GridFS layout (collections `.files` and `.chunks`), which stays the standard's so that any GridFS tool reads
it. Chunks go before the `.files` row, so a reader never sees half a blob. Every write waits for a majority and the
journal before the next: to a primary that is killed between two, and restarted, the driver sends the second alone.

A sweeper may delete a key while another process puts it again. Both are safe because a delete removes only rows that
are older than its `put_before`, and a put never leans on rows that are old enough to be deleted (`RENEW_WITHIN`).
Source: GridFS specification, https://github.com/mongodb/specifications/blob/master/source/gridfs/gridfs-spec.md
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from bson import ObjectId
from pymongo import ASCENDING, WriteConcern
from pymongo.database import Database
from pymongo.errors import BulkWriteError

from imaging.blobs import Blob, Part, pieces
from imaging.errors import AppError, Category

CHUNK_BYTES = 510 * 1024  # a range read fetches whole chunks; measured best between 255 KiB and 1 MiB for both ways
RENEW_WITHIN = timedelta(minutes=30)  # a younger row may be leaned on; sweepers leave anything younger than twice this
INSERT_BYTES = 32 << 20  # bytes of chunks sent in one insert_many

DUPLICATE_KEY = 11000
Document = dict[str, Any]


class GridFsBlobs:
    """The blob store of a MongoDB database, in the GridFS bucket `bucket`."""

    def __init__(self, database: Database[Document], bucket: str = "blobs") -> None:
        durable = WriteConcern(w="majority", j=True)
        self._files = database.get_collection(f"{bucket}.files", write_concern=durable)
        self._chunks = database.get_collection(f"{bucket}.chunks", write_concern=durable)

    def prepare(self) -> None:
        """Create the index that the GridFS specification asks for."""
        self._chunks.create_index([("files_id", ASCENDING), ("n", ASCENDING)], unique=True, name="files_id_n")

    def put(self, blobs: Sequence[Blob]) -> None:
        """Write all chunks in a few bulk inserts, then all `.files` rows in one."""
        now = datetime.now(UTC)
        there = self._renewed(blobs, now)
        new = [blob for blob in blobs if (blob.key, blob.size) not in there]
        batch: list[Document] = []
        batch_bytes = 0
        for chunk in (chunk for blob in new for chunk in _chunks(blob)):
            batch.append(chunk)
            batch_bytes += len(chunk["data"])
            if batch_bytes >= INSERT_BYTES:
                self._insert_chunks(batch, now)
                batch, batch_bytes = [], 0
        if batch:
            self._insert_chunks(batch, now)
        if new:
            self._insert_files(new, now)

    def read(self, key: str) -> Iterator[bytes]:
        """Yield the chunks of `key`; a missing one raises FAULT instead of giving a shorter file."""
        row = self._row(key)
        seen = 0
        for chunk in self._chunks.find({"files_id": key}, {"_id": 0, "data": 1}).sort("n", ASCENDING):
            seen += len(chunk["data"])
            yield chunk["data"]
        if seen != row["length"]:
            raise AppError(Category.FAULT, f"{seen} of {row['length']} bytes are stored", where=key)

    def read_parts(self, parts: Sequence[Part]) -> list[bytes]:
        """Fetch the chunks that hold the parts, each once; the `.files` row is read only to explain a failure.

        Parts of different files best lie in the same places: of each file, all chunks with these numbers are fetched.
        """
        keys, numbers = {part.key for part in parts}, {n for part in parts for n in _places(part)}
        wanted = {"files_id": {"$in": list(keys)}, "n": {"$in": sorted(numbers)}}
        rows = self._chunks.find(wanted, {"_id": 0})
        chunks = {(row["files_id"], row["n"]): row["data"] for row in rows}
        return [self._part(part, chunks) for part in parts]

    def _part(self, part: Part, chunks: Mapping[tuple[str, int], bytes]) -> bytes:
        key, start, length = part
        found = [chunks.get((key, n), b"") for n in _places(part)]
        offset = start % CHUNK_BYTES
        data = bytes((found[0] if len(found) == 1 else b"".join(found))[offset : offset + length])
        if len(data) != length or start < 0:
            total = self._row(key)["length"]
            fault = Category.FAULT if 0 <= start <= start + length <= total else Category.INVALID
            raise AppError(fault, f"bytes {start}+{length} of {total} could not be read", where=key)
        return data

    def delete(self, key: str, *, put_before: datetime) -> bool:
        """Remove the `.files` row if it is old enough, then the chunks that are."""
        self._files.delete_one({"_id": key, "uploadDate": {"$lt": put_before}})
        if self._files.find_one({"_id": key}, {"_id": 1}):
            return False
        self._chunks.delete_many({"files_id": key, "_id": {"$lt": ObjectId.from_datetime(put_before)}})
        return True

    def _row(self, key: str) -> Document:
        row = self._files.find_one({"_id": key}, {"length": 1})
        if row is None:
            raise AppError(Category.NOT_FOUND, "no such blob", where=key)
        return row

    def _renewed(self, blobs: Sequence[Blob], now: datetime) -> set[tuple[str, int]]:
        """Mark blobs that are here, and too young to be deleted, as put now; return their keys and sizes."""
        young = {"_id": {"$in": [blob.key for blob in blobs]}, "uploadDate": {"$gt": now - RENEW_WITHIN}}
        there = {row["_id"]: row["length"] for row in self._files.find(young, {"length": 1})}
        if there:
            young["_id"] = {"$in": list(there)}
            if self._files.update_many(young, {"$set": {"uploadDate": now}}).matched_count != len(there):
                return self._renewed(blobs, now)  # one of them was deleted in between
        return set(there.items())

    def _insert_chunks(self, chunks: list[Document], now: datetime) -> None:
        try:
            self._chunks.insert_many(chunks, ordered=False)
        except BulkWriteError as error:
            self._replace_old([chunks[failure["index"]] for failure in _duplicates(error)], now)

    def _replace_old(self, chunks: list[Document], now: datetime) -> None:
        # A chunk that a crashed or deleted put left behind has the same bytes, but a sweeper may be about to remove it.
        old = ObjectId.from_datetime(now - RENEW_WITHIN)
        for chunk in chunks:
            place = {"files_id": chunk["files_id"], "n": chunk["n"]}
            if self._chunks.delete_one({**place, "_id": {"$lt": old}}).deleted_count:
                self._chunks.replace_one(place, {**place, "data": chunk["data"]}, upsert=True)

    def _insert_files(self, blobs: Sequence[Blob], now: datetime) -> None:
        rows = [{"_id": b.key, "length": b.size, "chunkSize": CHUNK_BYTES, "uploadDate": now} for b in blobs]
        try:
            self._files.insert_many(rows, ordered=False)
        except BulkWriteError as error:
            for failure in _duplicates(error):
                row = rows[failure["index"]]
                self._files.replace_one({"_id": row["_id"]}, row, upsert=True)


def _places(part: Part) -> range:
    """Return the numbers of the chunks that hold a part, one even of nothing."""
    return range(part.start // CHUNK_BYTES, max(part.start, part.start + part.length - 1) // CHUNK_BYTES + 1)


def _chunks(blob: Blob) -> Iterator[Document]:
    written = 0
    for n, piece in enumerate(pieces(blob.parts, CHUNK_BYTES)):
        written += len(piece)
        yield {"_id": ObjectId(), "files_id": blob.key, "n": n, "data": piece}
    if written != blob.size:
        raise AppError(Category.FAULT, f"{written} bytes given, {blob.size} announced", where=blob.key)


def _duplicates(error: BulkWriteError) -> list[Document]:
    failures: list[Document] = error.details["writeErrors"]
    if any(failure["code"] != DUPLICATE_KEY for failure in failures) or error.details.get("writeConcernErrors"):
        raise error
    return failures
