"""Frame tables: offset tables, fragments, and what to do without them (PS3.5 A.4)."""

from struct import pack

import numpy as np
import pytest
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames

from imaging.errors import AppError, Category
from imaging.frames import (
    SEQUENCE_DELIMITATION,
    FrameTable,
    encapsulated_table,
    encapsulation,
    item_header,
    read_fragments,
)

FRAMES = [b"\xff\xd8\xff first", b"\xff\xd8\xff second frame", b"\xff\xd8\xff third one!"]


def _value(data: bytes) -> bytes:
    """Return an encapsulated value field without its delimiter."""
    return data.removesuffix(SEQUENCE_DELIMITATION)


def _frames(table: FrameTable, data: bytes) -> list[bytes]:
    return [bytes(table.read(data, index)) for index in range(len(table))]


@pytest.mark.parametrize("fragments", [1, 2, 3])
@pytest.mark.parametrize("has_bot", [True, False])
def test_frames_are_found_as_pydicom_wrote_them(fragments: int, has_bot: bool) -> None:
    value = _value(encapsulate(FRAMES, fragments_per_frame=fragments, has_bot=has_bot))

    table = encapsulated_table(value, 0, len(value), 3)

    # Odd frames have been padded.
    assert [frame.rstrip(b"\0") for frame in _frames(table, value)] == FRAMES


def test_positions_count_from_the_start_of_the_file() -> None:
    value = b"before" + _value(encapsulate(FRAMES))

    table = encapsulated_table(value, 6, len(value) - 6, 3)

    assert bytes(table.read(value, 1)).rstrip(b"\0") == FRAMES[1]


def test_the_extended_offset_table_gives_true_lengths() -> None:
    data, offsets, _ = encapsulate_extended(FRAMES)
    value = _value(data)
    extended = (np.frombuffer(offsets, "<u8").tolist(), [len(frame) for frame in FRAMES])

    table = encapsulated_table(value, 0, len(value), 3, extended)

    assert _frames(table, value) == FRAMES


def test_a_wrong_basic_offset_table_is_ignored() -> None:
    good = _value(encapsulate(FRAMES))
    value = item_header(12) + pack("<3I", 0, 5, 7) + good[20:]

    table = encapsulated_table(value, 0, len(value), 3)

    assert [frame.rstrip(b"\0") for frame in _frames(table, value)] == FRAMES


def test_all_fragments_belong_to_the_only_frame() -> None:
    value = item_header(0) + item_header(2) + b"ab" + item_header(4) + b"cdef"

    table = encapsulated_table(value, 0, len(value), 1)

    assert table.ranges(0) == ((16, 2), (26, 4))
    assert _frames(table, value) == [b"abcdef"]


def test_frames_that_cannot_be_told_apart_are_refused() -> None:
    value = item_header(0) + b"".join(item_header(2) + b"ab" for _ in range(5))

    with pytest.raises(AppError, match="5 fragments without a sound offset table"):
        encapsulated_table(value, 0, len(value), 2)


@pytest.mark.parametrize("value", [b"", b"\xfe\xff\x00\xe0\xff\xff\xff\x7f", b"12345678"])
def test_malformed_fragments_are_refused(value: bytes) -> None:
    with pytest.raises(AppError) as caught:
        read_fragments(value, 0, len(value))

    assert caught.value.category is Category.INVALID


def test_a_frame_beyond_the_table_is_not_found() -> None:
    with pytest.raises(AppError, match="frame 2 asked, the instance has 1") as caught:
        FrameTable((((0, 1),),)).ranges(1)

    assert caught.value.category is Category.NOT_FOUND


@pytest.mark.parametrize(
    "frames",
    [
        (),
        (((10, 3),),),
        (((5_000_000_000, 7),), ((6_000_000_001, 9),)),
        (((10, 3), (21, 4)), (), ((1, 2),)),
        tuple(((128 + 1000 * index, 990),) for index in range(5000)),
    ],
)
def test_a_table_survives_its_compact_form(frames: tuple[tuple[tuple[int, int], ...], ...]) -> None:
    assert FrameTable.from_bytes(FrameTable(frames).to_bytes()) == FrameTable(frames)


def test_a_regular_table_is_compact() -> None:
    frames = tuple(((128 + 1000 * index, 990),) for index in range(5000))

    assert len(FrameTable(frames).to_bytes()) < 1000


@pytest.mark.parametrize("data", [b"", b"\1", b"\2" + bytes(8), FrameTable((((1, 2),),)).to_bytes()[:-3]])
def test_a_damaged_table_is_refused(data: bytes) -> None:
    with pytest.raises(AppError):
        FrameTable.from_bytes(data)


def test_the_basic_offset_table_is_what_pydicom_reads() -> None:
    first, offsets, lengths = encapsulation([len(frame) for frame in FRAMES])
    items = [item_header(len(f) + len(f) % 2) + f + b"\0" * (len(f) % 2) for f in FRAMES]

    read = list(generate_frames(b"".join([first, *items, SEQUENCE_DELIMITATION]), number_of_frames=3))

    assert [frame.rstrip(b"\0") for frame in read] == FRAMES
    assert (offsets, lengths) == (b"", b"")


def test_beyond_four_gibibytes_there_is_an_extended_offset_table() -> None:
    first, offsets, lengths = encapsulation([0xFFFFFFF0, 11, 12])

    assert first == item_header(0)
    assert np.frombuffer(offsets, "<u8").tolist() == [0, 0xFFFFFFF8, 0xFFFFFFF8 + 20]
    assert np.frombuffer(lengths, "<u8").tolist() == [0xFFFFFFF0, 11, 12]
