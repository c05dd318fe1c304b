"""Bytes that grow, in memory and in files."""

import mmap
from pathlib import Path

import pytest

from imaging.errors import AppError, Category
from imaging.spool import Spool

CHUNKS = [b"a" * 3, b"b" * 5_000, b"c", b"d" * 20_000]


@pytest.mark.parametrize(("limit_bytes", "kind"), [(0, mmap.mmap), (4_000, mmap.mmap), (1 << 20, bytes)])
def test_what_is_written_comes_back_in_one_piece(limit_bytes: int, kind: type) -> None:
    spool = Spool(limit_bytes)
    for chunk in CHUNKS:
        spool.write(chunk)

    found = spool.finish()

    assert isinstance(found, kind)
    assert found[:] == b"".join(CHUNKS)


@pytest.mark.parametrize("skip", [0, 1, 3, 100])
def test_the_first_bytes_are_dropped_each_time(skip: int) -> None:
    spool = Spool(skip=skip)

    for _ in range(2):
        for chunk in CHUNKS:
            spool.write(chunk)
        assert spool.size == sum(map(len, CHUNKS)) - skip
        assert spool.finish() == b"".join(CHUNKS)[skip:]


def test_a_disk_that_cannot_be_written_is_no_fault_of_the_sender(tmp_path: Path) -> None:
    spool = Spool(10, str(tmp_path / "absent"))

    with pytest.raises(AppError) as caught:
        spool.write(bytes(100))

    assert caught.value.category is Category.BUSY
