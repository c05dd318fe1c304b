"""Every DICOM file that we can lay hands on goes in, and comes back byte for byte."""

import hashlib
from collections import Counter
from pathlib import Path

import pydicom
import pytest

from imaging.dataset import read
from imaging.errors import AppError, Category
from imaging.transcode import Envelope, encode, rebuild
from tests.support.corpus import corpus

REFUSED = {
    # file: why
    "MR_truncated.dcm": "truncated",
    "rtplan_truncated.dcm": "truncated",
    "emri_small_jpeg_2k_lossless_too_short.dcm": "truncated",
    "no_meta.dcm": "no DICOM file",
    "winter.dcm": "occurs twice",
    "DICOMDIR-nooffset": "longer than its sequence",
    "bad_sequence.dcm": "is no UID",
}
"""What is refused for damage; color palettes, directories and fragments without UIDs are recognised by that."""


def _refusal(path: Path) -> AppError | None:
    try:
        read(path.read_bytes())
    except AppError as error:
        return error
    return None


REFUSALS = {path: error for path in corpus() if (error := _refusal(path)) is not None}
READABLE = [path for path in corpus() if path not in REFUSALS]


@pytest.mark.parametrize("path", READABLE, ids=lambda path: path.name)
def test_a_real_file_is_stored_as_a_part_10_file_and_rebuilt_byte_for_byte(path: Path) -> None:
    data = path.read_bytes()

    encoded = encode(read(data))
    stored = b"".join(encoded.parts)

    assert (len(stored), hashlib.sha256(stored).hexdigest()) == (encoded.size, encoded.sha256)
    assert stored[:132] == bytes(128) + b"DICM"
    assert read(stored).pixels == encoded.layout
    assert read(stored).transfer_syntax_uid == encoded.transfer_syntax_uid
    envelope = Envelope.from_document(encoded.envelope.to_document())
    if envelope.kind != "file":
        assert b"".join(rebuild(envelope, stored, encoded.layout, encoded.frames)) == data


def test_reasons_for_keeping_are_those_that_the_files_explain() -> None:
    reasons = Counter(encode(read(path.read_bytes())).kept_reason for path in READABLE)

    assert set(reasons) == {"", "no-pixel-data", "lossy", "already-jpeg-2000", "one-bit-pixels"}


@pytest.mark.parametrize("path", [path for path in corpus() if path.name in REFUSED], ids=lambda path: path.name)
def test_a_damaged_file_is_refused_with_the_reason(path: Path) -> None:
    with pytest.raises(AppError, match=REFUSED[path.name]) as caught:
        read(path.read_bytes())

    assert caught.value.category is Category.INVALID


def test_whatever_else_is_refused_is_a_directory_or_lacks_its_uids() -> None:
    messages = [str(error) for path, error in REFUSALS.items() if path.name not in REFUSED]

    assert [text for text in messages if "UID" not in text and "DICOMDIR" not in text] == []


@pytest.mark.parametrize("path", READABLE, ids=lambda path: path.name)
def test_the_dataset_is_the_one_that_pydicom_reads(path: Path) -> None:
    expected = pydicom.dcmread(path, force=True, stop_before_pixels=False)
    for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
        expected.pop(keyword, None)

    ds = read(path.read_bytes()).ds

    assert list(ds.keys()) == list(expected.keys())
    assert all(ds[tag] == expected[tag] for tag in expected.keys())  # noqa: SIM118  (keys, not elements)
