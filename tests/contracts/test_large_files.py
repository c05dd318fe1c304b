"""What the archive promises for files that are too large to be held: bounded memory, and no damaged file as a whole."""

import hashlib
import io
import tracemalloc
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pymongo.database import Database

from imaging.archive import RECEIVED, STORED, Archive, Instance, Stored
from imaging.archive.files import WHOLE_BYTES
from imaging.blobs.gridfs import GridFsBlobs
from imaging.errors import AppError, Category
from imaging.spool import Spool
from tests.support.dicomweb import EXPLICIT_LE, IMPLICIT_LE, ct

FRAME_BYTES = 512 * 512 * 2
STUDY, SERIES, SOP = "1.2.3", "1.2.3.1", "1.2.3.1.1"


@pytest.fixture
def archive(db: Database[dict[str, Any]]) -> Iterator[Archive]:
    made = Archive(db, GridFsBlobs(db), clock=lambda: datetime.now(UTC), encode_threads=2)
    made.ensure_indexes()
    yield made
    made.close()


def multi_frame(frames: int) -> Iterator[bytes]:
    """A file of smooth frames under noise, which compress to about a third, in pieces."""
    alone = ct(side=512, NumberOfFrames=frames)
    element = frames * FRAME_BYTES
    yield alone[: -FRAME_BYTES - 4] + element.to_bytes(4, "little")
    noise = np.random.default_rng(1).normal(0, 6, (512, 512))
    rows, columns = np.mgrid[:512, :512]
    for number in range(frames):
        plane = 600 + 400 * np.sin(columns / 40 + number / 20) * np.cos(rows / 50) + np.roll(noise, number)
        yield plane.astype("<u2").tobytes()


def spooled(pieces: Iterable[bytes]) -> Any:
    spool = Spool()
    for piece in pieces:
        spool.write(piece)
    return spool.finish()


def store(archive: Archive, received: Any) -> Instance:
    (outcome,) = archive.store_all([received], admit=lambda _: None, registered_by="Organization/x")
    assert isinstance(outcome, Stored)
    return archive.instance(STUDY, SERIES, SOP)


def test_the_multi_frame_file_of_these_tests_is_one() -> None:
    ds = dcmread(io.BytesIO(b"".join(multi_frame(3))))

    assert ds.pixel_array.shape == (3, 512, 512)


def test_a_large_file_goes_in_and_out_without_being_held(archive: Archive) -> None:
    received = spooled(multi_frame(320))  # 168 MB
    most_bytes = 100 << 20

    tracemalloc.start()
    try:
        instance = store(archive, received)
        peaks = {"in": tracemalloc.get_traced_memory()[1]}
        digests = {}
        for form in (RECEIVED, STORED, EXPLICIT_LE, IMPLICIT_LE):
            tracemalloc.reset_peak()
            digest = hashlib.sha256()
            for piece in archive.file(instance, form):
                digest.update(piece)
            digests[form] = digest.hexdigest()
            peaks[form] = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert max(peaks.values()) < most_bytes, peaks
    assert digests[RECEIVED] == digests[EXPLICIT_LE] == hashlib.sha256(received).hexdigest()
    assert digests[STORED] == instance.sha256_stored


def test_a_large_file_that_is_damaged_never_comes_out_whole(archive: Archive, db: Database[dict[str, Any]]) -> None:
    instance = store(archive, spooled(multi_frame(WHOLE_BYTES // FRAME_BYTES + 1)))
    last = db["blobs.chunks"].find_one({"files_id": instance.sha256_stored}, sort=[("n", -1)])
    db["blobs.chunks"].update_one({"_id": last["_id"]}, {"$set": {"data": last["data"][:-1] + b"\1"}})

    taken = []
    with pytest.raises(AppError) as caught:
        taken.extend(archive.file(instance, STORED))

    assert caught.value.category is Category.FAULT
    assert sum(map(len, taken)) < instance.size_stored


def test_large_and_small_files_of_a_study_come_in_order(archive: Archive) -> None:
    small = [ct(number) for number in (2, 3)]
    list(archive.store_all(small, admit=lambda _: None, registered_by="Organization/x"))
    large = spooled(multi_frame(WHOLE_BYTES // FRAME_BYTES + 1))
    store(archive, large)

    given = [hashlib.sha256(b"".join(pieces)) for _, pieces in archive.files(archive.instances(STUDY), RECEIVED)]

    assert [each.digest() for each in given] == [hashlib.sha256(data).digest() for data in (large, *small)]
