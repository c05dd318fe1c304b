"""Laws of pixels: what goes in comes out, whatever the image; and no bytes make us fail other than by refusal."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from imaging.codecs import htj2k, j2k, jpegls, native, rle
from imaging.codecs.codec import Codec
from imaging.dataset import Limits, read
from imaging.dicom_json import dicom_json
from imaging.errors import AppError
from imaging.frames import FrameTable
from imaging.layout import PixelLayout
from imaging.transcode import encode, rebuild
from tests.support.corpus import corpus_file
from tests.support.dicom_builder import instance

DTYPES = st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4"])
SHAPES = st.one_of(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)),
)
RANGES = st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**33)), max_size=3).map(tuple)


@st.composite
def images(draw: st.DrawFn) -> tuple[NDArray[Any], PixelLayout]:
    """Draw one frame and a layout, honest or not about Bits Stored."""
    frame = draw(hnp.arrays(draw(DTYPES), draw(SHAPES)))
    container = 8 * frame.dtype.itemsize
    bits = draw(st.integers(1, container))
    colour = frame.ndim == 3
    return frame, PixelLayout(
        keyword="PixelData",
        value_start=None,
        value_length=None,
        encapsulated=True,
        rows=frame.shape[0],
        columns=frame.shape[1],
        samples_per_pixel=3 if colour else 1,
        bits_allocated=container,
        bits_stored=bits,
        high_bit=draw(st.integers(bits - 1, container - 1)),
        pixel_representation=int(frame.dtype.kind == "i"),
        planar_configuration=draw(st.integers(0, 1)) if colour else 0,
        photometric_interpretation=draw(st.sampled_from(["YBR_RCT", "YBR_FULL"])) if colour else "MONOCHROME2",
        number_of_frames=1,
    )


@pytest.mark.parametrize(
    "codec", [htj2k.LOSSLESS_RPCL, j2k.LOSSLESS, jpegls.LOSSLESS, rle.LOSSLESS], ids=lambda c: c.name
)
@settings(max_examples=60, deadline=None)
@given(image=images())
def test_encoding_is_exact_or_refused(codec: Codec, image: tuple[NDArray[Any], PixelLayout]) -> None:
    frame, layout = image
    assert codec.encode is not None

    codestream = codec.encode(frame, layout)

    if codestream is None:
        assert frame.dtype.itemsize == 4
    else:
        assert np.array_equal(codec.decode(codestream, layout, trusted=True).pixels, frame)


@settings(max_examples=100, deadline=None)
@given(image=images(), little_endian=st.booleans())
def test_native_layouts_are_inverted_exactly(image: tuple[NDArray[Any], PixelLayout], little_endian: bool) -> None:
    frame, layout = image

    data = native.encode_frame(frame, layout, little_endian=little_endian)

    assert np.array_equal(native.decode_at(data, layout, 0, little_endian=little_endian).pixels, frame)


@settings(max_examples=60, deadline=None)
@given(
    frames=hnp.arrays(DTYPES, st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20))),
    bits_stored=st.integers(1, 8),
    uid=st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]),
    codec=st.sampled_from(["htj2k", "j2k"]),
)
def test_a_received_file_is_rebuilt_whatever_its_pixels(
    frames: NDArray[Any], bits_stored: int, uid: str, codec: str
) -> None:
    data = instance(frames, bits_stored=bits_stored, transfer_syntax_uid=uid)

    encoded = encode(read(data), codec=codec)

    assert encoded.envelope.kind in ("native", "same")
    assert b"".join(rebuild(encoded.envelope, b"".join(encoded.parts), encoded.layout, encoded.frames)) == data


@given(st.lists(RANGES, max_size=20).map(tuple))
def test_frame_tables_survive_their_compact_form(frames: tuple[tuple[tuple[int, int], ...], ...]) -> None:
    assert FrameTable.from_bytes(FrameTable(frames).to_bytes()) == FrameTable(frames)


@given(st.binary(max_size=60))
def test_no_bytes_are_a_frame_table_by_accident(data: bytes) -> None:
    try:
        table = FrameTable.from_bytes(data)
    except AppError:
        return
    assert FrameTable.from_bytes(table.to_bytes()) == table


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "data",
    [
        instance(np.arange(64, dtype="u2").reshape(8, 8), transfer_syntax_uid=uid)
        for uid in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, JPEG2000Lossless)
    ]
    + [corpus_file(name) for name in ("chrX2.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm", "MR_small_jpeg_ls_lossless.dcm")],
    ids=lambda data: str(len(data)),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    keep=st.floats(0, 1),
)
def test_damaged_files_are_refused_or_stored_and_rebuilt(
    data: bytes, changes: list[tuple[float, int]], keep: float
) -> None:
    damaged = bytearray(data if keep > 0.3 else data[: int(len(data) * keep * 3)])
    for where, value in changes:
        damaged[int(where * len(damaged)) : int(where * len(damaged)) + 1] = bytes([value])

    try:
        received = read(damaged, limits=Limits(max_pixels_per_frame=1 << 22))
    except AppError:
        return

    encoded = encode(received)
    assert dicom_json(received)
    if encoded.envelope.kind != "file":
        stored = b"".join(encoded.parts)
        assert b"".join(rebuild(encoded.envelope, stored, encoded.layout, encoded.frames)) == damaged
