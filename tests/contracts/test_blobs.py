"""What every blob store promises; a new one passes by subclassing `BlobStoreContract` in three lines."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from gridfs import GridFSBucket
from pymongo.database import Database

from imaging.blobs import Blob, BlobStore, Part, pieces
from imaging.blobs.gridfs import CHUNK_BYTES, GridFsBlobs
from imaging.blobs.memory import MemoryBlobs
from imaging.errors import AppError, Category

SOON = timedelta(hours=1)


def blob(*parts: bytes) -> Blob:
    data = b"".join(parts)
    return Blob(hashlib.sha256(data).hexdigest(), parts, len(data))


def patterned(size: int) -> bytes:
    return bytes(range(251)) * (size // 251) + b"x" * (size % 251)


class BlobStoreContract:
    @pytest.fixture
    def blobs(self) -> BlobStore:
        raise NotImplementedError

    @pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7])
    def test_what_was_put_is_read_back(self, blobs: BlobStore, size: int) -> None:
        data = patterned(size)
        put = blob(data[: size // 3], data[size // 3 :])

        blobs.put([put])

        assert b"".join(blobs.read(put.key)) == data

    @pytest.mark.parametrize(
        ("start", "length"),
        [(0, 1), (0, 5 * CHUNK_BYTES), (CHUNK_BYTES - 1, 2), (CHUNK_BYTES, 10), (7, 3 * CHUNK_BYTES)],
    )
    def test_a_range_is_exactly_its_bytes(self, blobs: BlobStore, start: int, length: int) -> None:
        data = patterned(5 * CHUNK_BYTES)
        put = blob(data)
        blobs.put([put])

        assert blobs.read_parts([Part(put.key, start, length)]) == [data[start : start + length]]

    def test_parts_of_several_are_read_in_the_order_asked(self, blobs: BlobStore) -> None:
        data = patterned(3 * CHUNK_BYTES)
        long, short = blob(data), blob(b"short")
        blobs.put([long, short])
        asked = [(2 * CHUNK_BYTES - 1, 5), (0, 3), (2 * CHUNK_BYTES - 1, 5), (CHUNK_BYTES, 2 * CHUNK_BYTES)]

        found = blobs.read_parts([Part(short.key, 1, 4), *(Part(long.key, *each) for each in asked)])

        assert found == [b"hort", *(data[start : start + length] for start, length in asked)]
        assert blobs.read_parts([]) == []

    def test_a_part_that_is_not_there_is_not_made_up_of_others(self, blobs: BlobStore) -> None:
        there = blob(patterned(2 * CHUNK_BYTES))
        blobs.put([there])

        with pytest.raises(AppError) as caught:
            blobs.read_parts([Part(there.key, 0, 5), Part("absent", CHUNK_BYTES, 5)])

        assert (caught.value.category, caught.value.where) == (Category.NOT_FOUND, "absent")

    @pytest.mark.parametrize(("start", "length"), [(0, 101), (100, 1), (-1, 5), (50, 10**9)])
    def test_a_range_beyond_the_end_is_invalid(self, blobs: BlobStore, start: int, length: int) -> None:
        put = blob(bytes(100))
        blobs.put([put])

        with pytest.raises(AppError) as caught:
            blobs.read_parts([Part(put.key, start, length)])

        assert caught.value.category is Category.INVALID

    def test_an_absent_key_is_not_found(self, blobs: BlobStore) -> None:
        for action in (lambda: b"".join(blobs.read("absent")), lambda: blobs.read_parts([Part("absent", 0, 1)])):
            with pytest.raises(AppError) as caught:
                action()
            assert caught.value.category is Category.NOT_FOUND

    def test_putting_again_is_a_no_op(self, blobs: BlobStore) -> None:
        put = blob(patterned(2 * CHUNK_BYTES))

        blobs.put([put])
        blobs.put([put, put])

        assert b"".join(blobs.read(put.key)) == b"".join(put.parts)

    def test_a_wrong_size_is_refused(self, blobs: BlobStore) -> None:
        with pytest.raises(AppError) as caught:
            blobs.put([Blob("key", [b"abc"], 4)])

        assert caught.value.category is Category.FAULT
        with pytest.raises(AppError):
            b"".join(blobs.read("key"))

    def test_a_deleted_key_is_gone_and_deleting_it_again_is_a_no_op(self, blobs: BlobStore) -> None:
        put = blob(patterned(CHUNK_BYTES + 1))
        blobs.put([put])

        assert blobs.delete(put.key, put_before=datetime.now(UTC) + SOON)
        assert blobs.delete(put.key, put_before=datetime.now(UTC) + SOON)
        with pytest.raises(AppError):
            blobs.read_parts([Part(put.key, 0, 1)])

    def test_what_was_put_since_is_not_deleted(self, blobs: BlobStore) -> None:
        put = blob(b"young")
        blobs.put([put])

        assert not blobs.delete(put.key, put_before=datetime.now(UTC) - SOON)
        assert b"".join(blobs.read(put.key)) == b"young"


class TestMemoryBlobs(BlobStoreContract):
    @pytest.fixture
    def blobs(self) -> BlobStore:
        return MemoryBlobs()


class TestGridFsBlobs(BlobStoreContract):
    @pytest.fixture
    def blobs(self, db: Database[dict[str, Any]]) -> BlobStore:
        store = GridFsBlobs(db)
        store.prepare()
        return store

    def test_any_gridfs_tool_reads_what_was_written(self, blobs: BlobStore, db: Database[dict[str, Any]]) -> None:
        put = blob(patterned(2 * CHUNK_BYTES + 5))

        blobs.put([put])

        assert GridFSBucket(db, "blobs").open_download_stream(put.key).read() == b"".join(put.parts)

    def test_chunks_of_a_crashed_put_are_completed(self, blobs: BlobStore, db: Database[dict[str, Any]]) -> None:
        put = blob(patterned(3 * CHUNK_BYTES))
        old = ObjectId.from_datetime(datetime.now(UTC) - timedelta(days=1))
        db["blobs.chunks"].insert_one(
            {"_id": old, "files_id": put.key, "n": 1, "data": put.parts[0][CHUNK_BYTES:][:CHUNK_BYTES]}
        )

        blobs.put([put])
        blobs.delete(put.key, put_before=datetime.now(UTC) - timedelta(hours=2))

        assert b"".join(blobs.read(put.key)) == b"".join(put.parts)

    def test_a_missing_chunk_is_a_fault_not_a_shorter_file(
        self, blobs: BlobStore, db: Database[dict[str, Any]]
    ) -> None:
        put = blob(patterned(3 * CHUNK_BYTES))
        blobs.put([put])
        db["blobs.chunks"].delete_one({"files_id": put.key, "n": 1})

        for action in (
            lambda: b"".join(blobs.read(put.key)),
            lambda: blobs.read_parts([Part(put.key, 0, 3 * CHUNK_BYTES)]),
        ):
            with pytest.raises(AppError) as caught:
                action()
            assert caught.value.category is Category.FAULT


@pytest.mark.parametrize("piece_bytes", [1, 3, 7, 100])
@pytest.mark.parametrize("parts", [[], [b""], [b"abcdefg"], [b"ab", b"", b"cdefghijkl", b"m"]])
def test_pieces_are_the_parts_cut_anew(parts: Sequence[bytes], piece_bytes: int) -> None:
    cut = list(pieces(parts, piece_bytes))

    assert b"".join(cut) == b"".join(parts)
    assert all(len(each) == piece_bytes for each in cut[:-1])
