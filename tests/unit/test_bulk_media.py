"""Media types of pixels. Expected transfer syntaxes: PS3.18 tables 8.7.3-5 and 10.5.2-1."""

import imagecodecs
import numpy as np
import pytest

from imaging.bulk_media import MAX_DECODED_PIXELS, pixels
from imaging.errors import AppError, Category

GREY = np.arange(96, dtype="u1").reshape(8, 12)
JPEG_LS, HTJ2K = imagecodecs.jpegls_encode(GREY), imagecodecs.htj2k_encode(GREY, reversible=True)


def test_run_lengths_come_as_they_are() -> None:
    found = pixels("image/dicom-rle", "", [b"segments"])

    assert (found.transfer_syntax_uid, found.frames, dict(found.described)) == (
        "1.2.840.10008.1.2.5",
        (b"segments",),
        {},
    )


@pytest.mark.parametrize(
    ("media_type", "named", "data", "expected"),
    [
        ("image/jls", "1.2.840.10008.1.2.4.80", JPEG_LS, "1.2.840.10008.1.2.4.80"),
        ("image/jls", "1.2.840.10008.1.2.4.81", JPEG_LS, "1.2.840.10008.1.2.4.81"),
        ("image/jpeg", "1.2.840.10008.1.2.4.51", imagecodecs.jpeg8_encode(GREY), "1.2.840.10008.1.2.4.51"),
        ("image/jphc", "1.2.840.10008.1.2.4.203", HTJ2K, "1.2.840.10008.1.2.4.203"),
    ],
)  # fmt: skip
def test_a_named_transfer_syntax_that_allows_for_more_is_kept(
    media_type: str, named: str, data: bytes, expected: str
) -> None:
    assert pixels(media_type, named, [data]).transfer_syntax_uid == expected


def test_frames_of_different_sizes_are_no_image() -> None:
    with pytest.raises(AppError) as caught:
        pixels("image/jls", "", [JPEG_LS, imagecodecs.jpegls_encode(GREY.T.copy())])

    assert caught.value.category is Category.INVALID


def test_a_picture_is_measured_before_it_is_decoded() -> None:
    png = bytearray(imagecodecs.png_encode(GREY))
    png[16:24] = (MAX_DECODED_PIXELS).to_bytes(4, "big") + (2).to_bytes(4, "big")

    with pytest.raises(AppError) as caught:
        pixels("image/png", "", [bytes(png)])

    assert caught.value.category is Category.TOO_LARGE


@pytest.mark.parametrize("cut", [10, 100, 600])
def test_a_truncated_film_is_invalid(cut: int) -> None:
    boxes = (24).to_bytes(4, "big") + b"ftypisom" + bytes(12) + (2000).to_bytes(4, "big") + b"moov" + bytes(900)

    with pytest.raises(AppError) as caught:
        pixels("video/mp4", "", [boxes[:cut]])

    assert caught.value.category is Category.INVALID
