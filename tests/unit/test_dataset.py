"""Reading one received file: what is taken, what is refused, and where things are."""

import mmap
import zlib
from io import BytesIO
from pathlib import Path
from struct import pack

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from imaging.dataset import InstanceSummary, Limits, PixelLayout, read
from imaging.errors import AppError, Category
from tests.support.corpus import corpus_file
from tests.support.dicom_builder import CT_IMAGE, ROOT, instance

FRAME = np.arange(12, dtype=np.uint16).reshape(3, 4)


def _refused(data: bytes, category: Category = Category.INVALID, limits: Limits | None = None) -> str:
    with pytest.raises(AppError) as caught:
        read(data, limits=limits)
    assert caught.value.category is category
    return str(caught.value)


@pytest.mark.parametrize(
    "uid", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_every_native_syntax_is_read(uid: str) -> None:
    received = read(instance(FRAME, transfer_syntax_uid=uid))

    assert received.transfer_syntax_uid == uid
    assert (received.summary.sop_uid, received.summary.study.accession_number) == (f"{ROOT}.1.1.1", "A1")
    assert received.pixels is not None
    assert (received.pixels.rows, received.pixels.columns, received.pixels.bits_allocated) == (3, 4, 16)


def test_the_layout_says_where_native_pixels_lie() -> None:
    data = instance(FRAME)

    layout = read(data).pixels

    assert layout is not None
    assert layout.value_start is not None
    assert data[layout.value_start :][: layout.value_length] == FRAME.tobytes()


def test_a_deflated_dataset_has_no_position_for_its_pixels() -> None:
    layout = read(instance(FRAME, transfer_syntax_uid=DeflatedExplicitVRLittleEndian)).pixels

    assert layout is not None
    assert (layout.value_start, layout.value_length) == (None, None)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_read(kind: type) -> None:
    data = instance(FRAME)

    assert read(kind(data)).sha256 == read(data).sha256


def test_a_mapped_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(instance(FRAME))

    with (tmp_path / "a.dcm").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        summary = read(data).summary

    assert summary.sop_uid == f"{ROOT}.1.1.1"


def test_a_file_without_preamble_is_read() -> None:
    data = instance(FRAME)

    assert read(data[132:]).summary == read(data[128:]).summary == read(data).summary


@pytest.mark.parametrize("uid", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_bare_dataset_is_recognised_by_its_first_element(uid: str) -> None:
    data = instance(FRAME, transfer_syntax_uid=uid)

    received = read(data[read(data).body_start :])

    assert received.transfer_syntax_uid == uid
    assert received.summary == read(data).summary


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n" + bytes(200), b"\x08\x00", bytes(200), b"%PDF-1.7" * 40])
def test_what_is_no_dicom_file_is_refused(data: bytes) -> None:
    assert "no DICOM" in _refused(data) or "truncated" in _refused(data)


@pytest.mark.parametrize("uid", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless])
def test_every_truncation_of_a_file_is_refused(uid: str) -> None:
    data = instance(FRAME, transfer_syntax_uid=uid)
    whole = {len(data)}
    ends = {element.end for element in read(data).elements.values()}

    taken = {length for length in range(len(data) + 1) if _is_read(data[:length])}

    # Cut exactly between two elements it is a dataset still, only a shorter one.
    assert taken <= whole | ends


def _is_read(data: bytes) -> bool:
    try:
        read(data)
    except AppError:
        return False
    return True


def test_zeros_after_the_dataset_are_padding_and_anything_else_is_damage() -> None:
    data = instance(FRAME)

    assert read(data + bytes(7)).summary == read(data + bytes(64)).summary == read(data).summary
    assert "truncated" in _refused(data + b"\1\2\3")


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("StudyInstanceUID", "", r"Study Instance UID \(0020,000D\) is missing"),
        ("SeriesInstanceUID", "1.2.x", r"Series Instance UID .* is no UID"),
        ("StudyInstanceUID", "1." * 32 + "1", r"Study Instance UID .* at most 64"),
        ("StudyInstanceUID", "1.2/../3", r"Study Instance UID .* is no UID"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_uids_are_checked(keyword: str, value: str, message: str) -> None:
    def change(ds: Dataset) -> None:
        setattr(ds, keyword, value)

    with pytest.raises(AppError, match=message):
        read(instance(change=change))


def test_messages_hold_no_values() -> None:
    message = _refused(
        instance(attributes={"PatientID": "SECRET-1"}).replace(b"1.2.826.0.1.3680043.10.1498.1.1.1", b"x" * 33)
    )

    assert "SECRET" not in message
    assert "xxx" not in message


def test_a_directory_is_no_instance() -> None:
    assert "DICOMDIR" in _refused(corpus_file("DICOMDIR"), Category.UNSUPPORTED)


def test_an_element_that_occurs_twice_is_refused() -> None:
    data = instance()
    patient_id = read(data).elements[0x00100020]
    twice = data[: patient_id.end] + data[patient_id.header : patient_id.end] + data[patient_id.end :]

    assert "(0010,0020) occurs twice" in _refused(twice)


def test_deep_nesting_is_refused_before_it_costs_much() -> None:
    nested = b"".join(
        pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
        for _ in range(5000)
    )

    assert "nest deeper than 64" in _refused(instance() + nested, Category.TOO_LARGE)


def test_a_deflate_bomb_is_refused() -> None:
    bare = instance(transfer_syntax_uid=DeflatedExplicitVRLittleEndian)
    start = read(bare).file_body_start
    packer = zlib.compressobj(9, wbits=-15)
    bomb = bare[:start] + packer.compress(bytes(50_000_000)) + packer.flush()

    assert "inflates to more than" in _refused(bomb, Category.TOO_LARGE, Limits(max_inflated_bytes=1_000_000))


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_file_bytes=100),
        Limits(max_elements=5),
        Limits(max_header_bytes=100),
        Limits(max_pixels_per_frame=11),
        Limits(max_frames=1),
    ],
)
def test_each_limit_is_kept(limits: Limits) -> None:
    _refused(instance(np.stack([FRAME, FRAME])), Category.TOO_LARGE, limits)


def test_pixel_data_that_contradicts_the_transfer_syntax_is_refused() -> None:
    data = instance(FRAME).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")

    assert "not encapsulated" in _refused(data)


def test_explicit_vr_in_a_file_that_says_implicit_is_read_as_it_is() -> None:
    received = read(instance(FRAME).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0"))

    assert received.transfer_syntax_uid == ImplicitVRLittleEndian
    assert not received.encoding.implicit_vr


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("uid", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_nested_sequences_are_read_with_and_without_lengths(uid: str, undefined: bool) -> None:
    code, outer = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "T-D4000", "SRT", "Abdomen"
    outer.AnatomicRegionModifierSequence = Sequence([Dataset(), code])
    outer.CodeValue, outer.CodingSchemeDesignator, outer.CodeMeaning = "51185008", "SCT", "Thorax"

    def change(ds: Dataset) -> None:
        ds.AnatomicRegionSequence = Sequence([outer])
        ds["AnatomicRegionSequence"].is_undefined_length = undefined
        outer["AnatomicRegionModifierSequence"].is_undefined_length = undefined

    received = read(instance(FRAME, transfer_syntax_uid=uid, change=change))

    assert received.summary.series.body_part_code == ("51185008", "SCT", "Thorax")
    assert received.ds.AnatomicRegionSequence[0].AnatomicRegionModifierSequence[1].CodeMeaning == "Abdomen"


def test_text_is_decoded_by_its_character_set() -> None:
    data = instance(attributes={"SpecificCharacterSet": "ISO_IR 144", "PatientName": "Люкceмбypг"})

    assert read(data).summary.patient.patient_name == "Люкceмбypг"


def test_an_unknown_character_set_is_no_reason_to_refuse() -> None:
    data = instance(attributes={"SpecificCharacterSet": "ISO_IR 100"}).replace(b"ISO_IR 100", b"I\0O_IR 1\0\xff")

    assert read(data).summary.sop_uid == f"{ROOT}.1.1.1"


def test_the_summary_survives_a_document() -> None:
    summary = read(corpus_file("CT_small.dcm")).summary

    assert InstanceSummary.from_document(summary.to_document()) == summary
    assert (summary.series.modality, summary.instance.sop_class_uid) == ("CT", CT_IMAGE)
    assert summary.instance.image_type == ("ORIGINAL", "PRIMARY", "AXIAL")


def test_the_layout_survives_a_document() -> None:
    layout = read(instance(FRAME)).pixels

    assert layout is not None
    assert PixelLayout.from_document(layout.to_document()) == layout


def test_the_dataset_keeps_what_follows_the_pixels_and_leaves_the_pixels_out() -> None:
    def change(ds: Dataset) -> None:
        ds.DataSetTrailingPadding = bytes(10)

    ds = read(instance(FRAME, change=change)).ds

    assert "PixelData" not in ds
    assert ds.DataSetTrailingPadding == bytes(10)


def test_reading_agrees_with_pydicom_on_un_values_of_known_elements() -> None:
    data = corpus_file("explicit_VR-UN.dcm")

    assert read(data).ds.PatientID == pydicom.dcmread(BytesIO(data)).PatientID
