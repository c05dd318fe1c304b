"""Codecs: what they decode is what other implementations decode; what they cannot do they say."""

from io import BytesIO
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import (
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from imaging.codecs import codecs, htj2k, j2k, native, rle
from imaging.codecs.codestream import read_header
from imaging.codecs.openjpeg import load_glymur
from imaging.dataset import read
from imaging.errors import AppError, Category
from imaging.frames import encapsulated_table
from imaging.layout import PixelLayout
from tests.support.corpus import corpus_file

RNG = np.random.default_rng(20240102)


def layout_of(frame: NDArray[np.integer], **changes: object) -> PixelLayout:
    """Return the layout of a native frame [rows, columns(, 3)] that uses its whole container."""
    bits = 8 * frame.dtype.itemsize
    values = {
        "keyword": "PixelData",
        "value_start": None,
        "value_length": None,
        "encapsulated": True,
        "rows": frame.shape[0],
        "columns": frame.shape[1],
        "samples_per_pixel": 3 if frame.ndim == 3 else 1,
        "bits_allocated": bits,
        "bits_stored": bits,
        "high_bit": bits - 1,
        "pixel_representation": int(frame.dtype.kind == "i"),
        "planar_configuration": 0,
        "photometric_interpretation": "YBR_RCT" if frame.ndim == 3 else "MONOCHROME2",
        "number_of_frames": 1,
    }
    return PixelLayout(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("693_J2KR.dcm", "693_UNCR.dcm"),
        ("MR2_J2KR.dcm", "MR2_UNCR.dcm"),
        ("RG3_J2KR.dcm", "RG3_UNCR.dcm"),
        ("US1_J2KR.dcm", "US1_UNCR.dcm"),
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("emri_small_RLE.dcm", "emri_small.dcm"),
        ("emri_small_jpeg_ls_lossless.dcm", "emri_small.dcm"),
        ("emri_small_jpeg_2k_lossless.dcm", "emri_small.dcm"),
        ("SC_rgb_rle_16bit.dcm", "SC_rgb_16bit.dcm"),
        ("SC_rgb_rle_32bit.dcm", "SC_rgb_32bit.dcm"),
        ("rtdose_rle.dcm", "rtdose.dcm"),
        ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb.dcm"),
    ],
)
def test_a_compressed_file_decodes_to_its_uncompressed_twin(name: str, reference: str) -> None:
    data = corpus_file(name)
    received = read(data)
    layout = received.pixels
    assert layout is not None
    assert layout.value_start is not None
    assert layout.value_length is not None
    table = encapsulated_table(data, layout.value_start, layout.value_length, layout.number_of_frames)
    expected = pydicom.dcmread(BytesIO(corpus_file(reference))).pixel_array
    expected = expected.reshape(-1, *layout.shape)

    decoded = [
        codecs.get(received.transfer_syntax_uid).decode(table.read(data, index), layout, trusted=False).pixels
        for index in range(len(table))
    ]

    assert np.array_equal(np.stack(decoded), expected)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 5), (64, 33), (3, 64, 3), (40, 41, 3)])
@pytest.mark.parametrize("codec", [htj2k.LOSSLESS_RPCL, j2k.LOSSLESS, rle.LOSSLESS, codecs.get(JPEGLSLossless)])
def test_full_range_noise_comes_back_exactly_or_is_not_encoded(codec: Any, shape: tuple[int, ...], dtype: str) -> None:
    info = np.iinfo(dtype)
    frame = RNG.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    layout = layout_of(frame)

    codestream = codec.encode(frame, layout)

    if codestream is None:
        assert frame.dtype.itemsize == 4
    else:
        assert np.array_equal(codec.decode(codestream, layout, trusted=True).pixels, frame)


@pytest.mark.parametrize("bits_stored", range(2, 16))
@pytest.mark.parametrize("dtype", ["u2", "i2"])
@pytest.mark.parametrize("codec", [htj2k.LOSSLESS, j2k.LOSSLESS])
def test_the_codestream_has_the_precision_of_bits_stored(codec: Any, dtype: str, bits_stored: int) -> None:
    low, high = (0, 2**bits_stored) if dtype == "u2" else (-(2 ** (bits_stored - 1)), 2 ** (bits_stored - 1))
    frame = RNG.integers(low, high, (30, 50)).astype(dtype)
    layout = layout_of(frame, bits_stored=bits_stored, high_bit=bits_stored - 1)

    codestream = codec.encode(frame, layout)

    header = read_header(codestream)
    assert (header.precision, header.signed, header.reversible) == (bits_stored, dtype == "i2", True)
    assert np.array_equal(codec.decode(codestream, layout, trusted=True).pixels, frame)
    assert np.array_equal(codec.decode(codestream, layout, trusted=False).pixels, frame)


@pytest.mark.parametrize("codec", [htj2k.LOSSLESS, j2k.LOSSLESS])
def test_bits_above_bits_stored_survive(codec: Any) -> None:
    frame = RNG.integers(0, 1 << 12, (30, 50)).astype("u2") | np.uint16(0x8000)
    layout = layout_of(frame, bits_stored=12, high_bit=11)

    codestream = codec.encode(frame, layout)

    assert read_header(codestream).precision == 16
    assert np.array_equal(codec.decode(codestream, layout, trusted=True).pixels, frame)


@pytest.mark.parametrize("codec", [htj2k.LOSSLESS, j2k.LOSSLESS])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2"])
def test_headers_say_what_glymur_reads_in_them(codec: Any, dtype: str) -> None:
    frame = RNG.integers(0, 100, (65, 300)).astype(dtype)
    codestream = codec.encode(frame, layout_of(frame))
    segments = load_glymur().codestream.Codestream(BytesIO(codestream), len(codestream)).segment
    told = {type(segment).__name__: segment for segment in segments}

    header = read_header(codestream)

    siz, cod = told["SIZsegment"], told["CODsegment"]
    assert (header.rows, header.columns, header.components) == (siz.ysiz, siz.xsiz, len(siz.bitdepth))
    assert (header.precision, header.signed) == (siz.bitdepth[0], siz.signed[0])
    assert (header.levels, header.reversible) == (cod.num_res, cod.xform == 1)
    assert header.high_throughput is ("CAPsegment" in told)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 0),  # SOC
        (4, 0),  # Lsiz, which says how long the segment is
        (24, 0),  # XTsiz: no tile
        (40, 0),  # Csiz: no component
    ],
)  # ISO/IEC 15444-1 A.5.1
def test_a_header_that_cannot_be_is_refused(place: int, value: int) -> None:
    frame = RNG.integers(0, 100, (65, 300)).astype("u1")
    codestream = bytearray(htj2k.encode(frame, layout_of(frame)) or b"")
    size = 4 if place == 24 else 2
    codestream[place : place + size] = value.to_bytes(size, "big")

    with pytest.raises(AppError) as raised:
        read_header(bytes(codestream))

    assert raised.value.category is Category.INVALID


@pytest.mark.parametrize("size", [10, *range(4_020, 4_060), 60_000])
def test_long_tables_in_a_header_do_not_keep_it_from_being_read(size: int) -> None:
    """Of an image of many tiles, say (TLM, ISO/IEC 15444-1 A.7.1); here a comment (A.9.2) before the first tile."""
    frame = RNG.integers(0, 100, (65, 300)).astype("u1")
    codestream = j2k.LOSSLESS.encode(frame, layout_of(frame))
    end = codestream.index(b"\xff\x90")
    comment = b"\xff\x64" + (4 + size).to_bytes(2, "big") + b"\0\0" + bytes(size)

    assert read_header(codestream[:end] + comment + codestream[end:]) == read_header(codestream)


def test_htj2k_is_rpcl_with_tile_part_lengths() -> None:
    frame = RNG.integers(0, 255, (200, 300)).astype("u1")

    codestream = htj2k.encode(frame, layout_of(frame))

    # COD: progression order 2 is RPCL (ISO/IEC 15444-1 table A.16); TLM is marker FF55; CAP, FF50, announces part 15.
    assert codestream is not None
    assert codestream[codestream.index(b"\xff\x52") + 5] == 2
    assert b"\xff\x55" in codestream[:200]
    assert read_header(codestream).high_throughput


@pytest.mark.parametrize("size", [(1, 1), (63, 500), (65, 65), (129, 300), (500, 512), (2614, 3072)])
def test_frames_are_halved_until_their_shorter_side_is_64_at_most(size: tuple[int, int]) -> None:
    # PS3.5 10.18; at least one level
    layout = layout_of(np.zeros(size, "u1"))

    expected = max(1, int(np.ceil(np.log2(max(1, min(size)) / 64))))

    assert j2k.resolutions(layout) == expected


def test_colour_is_encoded_with_the_reversible_transform_and_luma_and_chroma_without() -> None:
    frame = RNG.integers(0, 255, (20, 20, 3)).astype("u1")
    found = {
        (codec.name, photometric): read_header(
            codec.encode(frame, layout_of(frame, photometric_interpretation=photometric)) or b""
        ).colour_transform
        for codec in (htj2k.LOSSLESS, j2k.LOSSLESS)
        for photometric in ("YBR_RCT", "YBR_FULL")
    }

    assert [found[name, "YBR_RCT"] for name, _ in found] == [True] * 4
    assert [found[name, "YBR_FULL"] for name, _ in found] == [False] * 4


@pytest.mark.parametrize("codec", [htj2k.LOSSLESS, j2k.LOSSLESS])
@pytest.mark.parametrize("levels", [1, 2, 3, 7])
def test_a_reduced_frame_has_its_sides_halved_rounding_up(codec: Any, levels: int) -> None:
    frame = np.add.outer(np.arange(301), np.arange(203)).astype("u2")
    layout = layout_of(frame, bits_stored=12, high_bit=11)

    reduced = codec.reduced(codec.encode(frame, layout), layout, levels, trusted=True).pixels

    assert reduced.shape == (-(-301 // 2**levels), -(-203 // 2**levels))
    assert reduced.dtype == np.uint16
    # A ramp stays the ramp: low-pass filtering shifts it by less than a pixel of the reduced frame.
    assert abs(float(reduced.mean()) - float(frame.mean())) < 2 * 2**levels


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("bits", "is_signed"), [(10, False), (12, False), (12, True), (14, False), (14, True), (16, False)]
)
def test_a_reduced_frame_of_our_own_is_what_openjpeg_makes_of_it(bits: int, is_signed: bool, levels: int) -> None:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed else (0, (1 << bits) - 1)
    # Nothing overshoots as much as blacks and whites side by side.
    frame = np.where(RNG.random((512, 300)) < 0.5, low, high).astype("<i2" if is_signed else "<u2")
    layout = layout_of(frame, bits_stored=bits, high_bit=bits - 1, pixel_representation=int(is_signed))
    codestream = htj2k.encode(frame, layout) or b""

    ours, theirs = (each.decode_reduced(codestream, layout, levels, trusted=True).pixels for each in (htj2k, j2k))

    assert ours.dtype == layout.dtype
    assert np.array_equal(np.clip(ours, low, high), np.clip(theirs, low, high))


def test_32_bit_htj2k_is_reduced_too() -> None:
    frame = RNG.integers(0, 2**32, (100, 90), dtype="u4")
    layout = layout_of(frame)
    codestream = htj2k.encode(frame, layout)
    assert codestream is not None

    assert np.array_equal(htj2k.decode_reduced(codestream, layout, 2, trusted=True).pixels, frame[::4, ::4])


@pytest.mark.parametrize("uid", [JPEG2000Lossless, HTJ2KLossless, JPEGLSLossless, RLELossless, JPEGLosslessSV1])
@pytest.mark.parametrize("garbage", [b"", b"\0" * 200, b"\xff\xd8\xff\xc0\0\3", b"\xff\x4f\xff\x51" + b"\xff" * 300])
def test_garbage_is_refused_by_every_decoder(uid: str, garbage: bytes) -> None:
    layout = layout_of(np.zeros((8, 8), "u1"))

    with pytest.raises(AppError) as caught:
        codecs.get(uid).decode(garbage, layout, trusted=False)

    assert caught.value.category is Category.INVALID


@pytest.mark.parametrize("codec", [htj2k.LOSSLESS, j2k.LOSSLESS, codecs.get(JPEGLSLossless), rle.LOSSLESS])
def test_a_codestream_of_another_size_is_refused(codec: Any) -> None:
    frame = np.zeros((8, 8), "u1")
    codestream = codec.encode(frame, layout_of(frame))

    with pytest.raises(AppError):
        codec.decode(codestream, layout_of(np.zeros((9, 8), "u1")), trusted=False)


def test_rle_offsets_out_of_order_are_refused() -> None:
    frame = RNG.integers(0, 255, (8, 8)).astype("u2")
    layout = layout_of(frame)
    codestream = bytearray(rle.encode(frame, layout) or b"")
    codestream[8:12] = b"\xff\xff\xff\x7f"

    with pytest.raises(AppError, match="out of order"):
        rle.decode(codestream, layout, trusted=False)


def test_subsampled_luma_and_chroma_are_spread_over_their_pixels() -> None:
    # PS3.3 C.7.6.3.1.2: Y1 Y2 Cb Cr for every two pixels of a row
    layout = layout_of(np.zeros((1, 4, 3), "u1"), photometric_interpretation="YBR_FULL_422", encapsulated=False)
    data = bytes([1, 2, 50, 60, 3, 4, 70, 80])

    decoded = native.decode(data, layout, trusted=False)

    assert decoded.pixels.tolist() == [[[1, 50, 60], [2, 50, 60], [3, 70, 80], [4, 70, 80]]]
    assert decoded.photometric_interpretation == "YBR_FULL"
    assert native.encode(decoded.pixels, layout) == data


def test_one_bit_pixels_start_at_the_lowest_bit_and_frames_may_share_a_byte() -> None:
    # PS3.5 8.1.1: the first pixel is the least significant bit
    layout = layout_of(np.zeros((1, 5), "u1"), bits_allocated=1, bits_stored=1, high_bit=0, encapsulated=False)
    data = bytes([0b10100001, 0b00000011])

    first = native.decode_at(data, layout, 0).pixels
    second = native.decode_at(data, layout, 5).pixels

    assert (first.tolist(), second.tolist()) == ([[1, 0, 0, 0, 0]], [[1, 0, 1, 1, 1]])
    assert [native.frame_range(layout, index) for index in (0, 1)] == [(0, 1), (0, 2)]


def test_a_sign_less_codestream_of_signed_pixels_is_sign_extended() -> None:
    frame = np.array([[-1, 5], [-2048, 2047]], "i2")
    layout = layout_of(frame, bits_stored=12, high_bit=11)
    codestream = j2k.encode((frame & 0x0FFF).view("u2"), layout_of(frame.view("u2"), bits_stored=12, high_bit=11))
    assert codestream is not None

    assert np.array_equal(j2k.decode(codestream, layout, trusted=False).pixels, frame)


@pytest.mark.parametrize("bits", [2, 12, 24, 128, 65535])
def test_depths_that_no_array_has_are_unsupported(bits: int) -> None:
    layout = layout_of(np.zeros((2, 2), "u1"), bits_allocated=bits, encapsulated=False)

    with pytest.raises(AppError) as caught:
        native.decode(bytes(100_000), layout, trusted=False)

    assert caught.value.category is Category.UNSUPPORTED
