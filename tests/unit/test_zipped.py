"""ZIP archives that are written while they are sent. Python's own reader is the second opinion."""

import io
import zipfile
from collections.abc import Iterator

import pytest

from imaging.zipped import Entry, zipped


def archive_of(*entries: Entry) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(b"".join(zipped(entries))))


@pytest.mark.parametrize("is_dense", [True, False])
def test_what_goes_in_comes_out(is_dense: bool) -> None:
    pieces = [bytes(range(256)) * 100, b"", b"end"]

    archive = archive_of(Entry("A/B", 0, pieces, is_dense), Entry("C", 0, [], is_dense))

    assert archive.testzip() is None
    assert (archive.read("A/B"), archive.read("C")) == (b"".join(pieces), b"")
    assert (archive.getinfo("A/B").compress_size < 20_000) == (not is_dense)


def test_every_entry_ends_by_itself_for_those_who_read_while_it_comes() -> None:
    archive = archive_of(Entry("A", 0, [b"x"], is_dense=True))

    # Method 8: only deflated entries may leave their size to what follows them (APPNOTE 4.4.4, bit 3).
    assert archive.getinfo("A").compress_type == zipfile.ZIP_DEFLATED
    assert archive.getinfo("A").flag_bits & 8


def test_a_file_of_more_than_two_gibibytes_has_sizes_of_64_bits() -> None:
    small, large = (b"".join(zipped([Entry("A", size, [b"x"])])) for size in (1, 1 << 31))

    # The version that is needed to extract, at byte 4: 4.5 is ZIP64 (APPNOTE 4.4.3.2).
    assert (small[4], large[4]) == (20, 45)
    assert zipfile.ZipFile(io.BytesIO(large)).read("A") == b"x"


def test_more_files_than_16_bits_can_count_are_listed() -> None:
    archive = archive_of(*(Entry(f"I{number}", 1, [b"x"], is_dense=True) for number in range(66_000)))

    assert len(archive.namelist()) == 66_000


def test_nothing_is_read_before_it_is_asked_for_and_nothing_is_held() -> None:
    taken = []

    def content(number: int) -> Iterator[bytes]:
        taken.append(number)
        yield bytes(1000)

    archive = zipped(Entry(f"I{number}", 1000, content(number), is_dense=True) for number in range(100))
    next(archive)

    assert len(taken) <= 1
