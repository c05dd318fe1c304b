"""Stored instances without names: their frames and files. The oracle is `deidentify`, which works on received files."""

from pathlib import Path

import pytest

from imaging.dataset import Received, read
from imaging.deidentify import Options, Rectangle, deidentify
from imaging.deidentify_stored import StoredFrames
from imaging.dicom_json import dicom_json
from imaging.errors import AppError
from imaging.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN
from imaging.transcode import Encoded, encode
from tests.support.corpus import corpus

KEY = b"a secret of the project"
MOST_BYTES = 150_000  # of a file, so that all of them take seconds
CORNER = Rectangle(1, 0, 2, 2)
OPTIONS = Options(clean_pixels=True)


def stored_of(path: Path) -> Encoded | None:
    """Return the file as it is stored, None where that is not frame by frame."""
    try:
        encoded = encode(read(path.read_bytes()))
    except AppError:
        return None
    return encoded if encoded.layout and encoded.layout.encapsulated and encoded.frames else None


SMALL = [path for path in corpus() if path.stat().st_size < MOST_BYTES]
STORED = {path: encoded for path in SMALL[::2] if (encoded := stored_of(path))}


def test_there_are_many() -> None:
    assert len(STORED) > 40


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.name)
def test_frames_and_file_are_those_of_the_cleaned_received_file(path: Path) -> None:
    encoded = STORED[path]
    stored = read(b"".join(map(bytes, encoded.parts)))
    assert encoded.layout is not None
    assert encoded.frames is not None
    frames = StoredFrames(encoded.layout, encoded.transfer_syntax_uid, not encoded.kept_reason, rectangles=(CORNER,))
    try:
        expected = read(deidentify(path.read_bytes(), KEY, OPTIONS, rectangles=[CORNER]))
    except AppError as refused:
        with pytest.raises(AppError, match=refused.message[:20]):
            list(frames.file(stored, EXPLICIT_VR_LITTLE_ENDIAN, KEY, OPTIONS))
        return

    file = read(b"".join(frames.file(stored, EXPLICIT_VR_LITTLE_ENDIAN, KEY, OPTIONS)))
    each = [
        frames.frame(encoded.frames.read(stored.data, number), number + 1, EXPLICIT_VR_LITTLE_ENDIAN)
        for number in range(len(encoded.frames))
    ]

    assert dicom_json(file) == dicom_json(expected)
    assert pixels_of(file) == pixels_of(expected)
    assert b"".join(each) == pixels_of(file)[: sum(map(len, each))]


def pixels_of(file: Received) -> bytes:
    assert file.pixel_element is not None
    return file.values.raw(file.pixel_element)
