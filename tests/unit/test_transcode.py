"""From received to stored and back, and into other transfer syntaxes."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from imaging.codecs import codecs
from imaging.codecs.codestream import read_header
from imaging.conversion import decode_frame
from imaging.dataset import read
from imaging.errors import AppError, Category
from imaging.part10 import IMPLEMENTATION_CLASS_UID
from imaging.syntaxes import ENCAPSULATED_UNCOMPRESSED
from imaging.transcode import Encoded, Envelope, convert, convert_frame, encode, rebuild
from tests.support.corpus import corpus_file
from tests.support.dicom_builder import SECONDARY_CAPTURE, instance

RNG = np.random.default_rng(7)
MONO = RNG.integers(0, 4096, (3, 20, 30)).astype("u2")
COLOUR = RNG.integers(0, 256, (2, 10, 12, 3)).astype("u1")
TARGETS = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLSLossless,
    JPEG2000Lossless,
    JPEG2000,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    HTJ2K,
]


def _stored(encoded: Encoded) -> bytes:
    return b"".join(encoded.parts)


def _rebuilt(encoded: Encoded) -> bytes:
    return b"".join(rebuild(encoded.envelope, _stored(encoded), encoded.layout, encoded.frames))


def _decoded(encoded: Encoded) -> NDArray[Any]:
    """Return all frames of a stored file, [frames, rows, columns(, 3)]."""
    assert encoded.frames is not None
    assert encoded.layout is not None
    stored = _stored(encoded)
    return np.stack(
        [
            decode_frame(
                encoded.frames.read(stored, i), encoded.layout, encoded.transfer_syntax_uid, trusted=True
            ).pixels
            for i in range(len(encoded.frames))
        ]
    )


@pytest.mark.parametrize(
    "data",
    [
        instance(MONO[0], bits_stored=12),
        instance(MONO, bits_stored=12),
        instance(MONO, bits_stored=12, transfer_syntax_uid=ImplicitVRLittleEndian),
        instance(MONO, bits_stored=12, transfer_syntax_uid=ExplicitVRBigEndian),
        instance((MONO - 2048).astype("i2")),
        instance(MONO | 0x8000, bits_stored=12),
        instance(MONO << 4, bits_stored=12, high_bit=15),
        instance((MONO & 0xFF).astype("u1")[:, :3, :5]),
        instance(MONO.astype("u4") * 1_000_003),
        instance(MONO.astype("u4") * 1_000_003, transfer_syntax_uid=ExplicitVRBigEndian),
        instance(COLOUR),
        instance(COLOUR, planar=1),
        instance(COLOUR, photometric="YBR_FULL"),
        instance(COLOUR.astype("u2") * 257, transfer_syntax_uid=ExplicitVRBigEndian, planar=1),
        instance(MONO[0], preamble=bytes(range(128))),
    ],
    ids=lambda data: hashlib.sha256(data).hexdigest()[:6],
)
@pytest.mark.parametrize("codec", ["htj2k", "j2k"])
def test_native_pixels_are_encoded_and_the_file_is_rebuilt(codec: str, data: bytes) -> None:
    received = read(data)

    encoded = encode(received, codec=codec)

    too_deep = codec == "j2k" and received.pixels is not None and received.pixels.bits_allocated == 32
    assert encoded.kept_reason == ("cannot-encode" if too_deep else "")
    assert _rebuilt(encoded) == data


@pytest.mark.parametrize("codec", ["htj2k", "j2k"])
def test_the_stored_file_decodes_to_the_received_pixels(codec: str) -> None:
    encoded = encode(read(instance(MONO, bits_stored=12)), codec=codec)

    assert np.array_equal(_decoded(encoded), MONO)
    assert encoded.pixels_sha256 == hashlib.sha256(MONO.tobytes()).hexdigest()


def test_pydicom_reads_the_stored_file() -> None:
    stored = _stored(encode(read(instance(COLOUR, planar=1)), codec="j2k"))

    ds = pydicom.dcmread(BytesIO(stored))

    assert np.array_equal(ds.pixel_array, COLOUR)
    assert ds.file_meta.TransferSyntaxUID == JPEG2000Lossless
    assert ds.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID


def test_colour_is_stored_as_ybr_rct_with_its_samples_together() -> None:
    encoded = encode(read(instance(COLOUR, planar=1)))

    ds = pydicom.dcmread(BytesIO(_stored(encoded)))

    assert (ds.PhotometricInterpretation, ds.PlanarConfiguration) == ("YBR_RCT", 0)
    assert np.array_equal(_decoded(encoded), COLOUR)


def test_elements_that_need_no_change_keep_their_bytes() -> None:
    def change(ds: Dataset) -> None:
        ds.add_new(0x00091001, "UN", b"\x01\x02\x03\x04")
        ds.add_new(0x00090010, "LO", "A CREATOR")
        ds.ReferencedStudySequence = Sequence([Dataset()])
        ds["ReferencedStudySequence"].is_undefined_length = True

    data = instance(MONO, change=change)
    stored = _stored(encode(read(data)))
    received = read(data)

    start, end = received.body_start, received.elements[0x7FE00010].header

    assert data[start:end] in stored


def test_group_lengths_of_changed_groups_are_left_out_and_others_stay() -> None:
    # pydicom leaves group lengths out, so they are put into the bytes by hand.
    data = instance(COLOUR)
    received = read(data)
    for tag in (0x7FE00010, 0x00280002, 0x00080016):
        at = received.elements[tag].header
        data = data[:at] + (tag & 0xFFFF0000 | 0).to_bytes(4, "big")[1::-1] + b"\0\0UL\4\0\1\0\0\0" + data[at:]

    encoded = encode(read(data))

    tags = set(read(_stored(encoded)).elements)
    assert tags & {0x00080000, 0x00280000, 0x7FE00000} == {0x00080000}
    assert _rebuilt(encoded) == data


def test_what_follows_the_pixels_is_kept() -> None:
    def change(ds: Dataset) -> None:
        ds.DataSetTrailingPadding = bytes(20)

    data = instance(MONO, change=change)
    encoded = encode(read(data))

    assert pydicom.dcmread(BytesIO(_stored(encoded))).DataSetTrailingPadding == bytes(20)
    assert _rebuilt(encoded) == data


def test_bytes_beyond_the_last_frame_come_back() -> None:
    def change(ds: Dataset) -> None:
        ds.PixelData = ds.PixelData + b"\x07\x08\x09\x0a"

    data = instance(MONO, change=change)

    assert _rebuilt(encode(read(data))) == data


def test_subsampled_chroma_is_stored_in_full_and_given_back_subsampled() -> None:
    data = corpus_file("SC_ybr_full_422_uncompressed.dcm")

    encoded = encode(read(data))

    assert encoded.layout is not None
    assert (encoded.kept_reason, encoded.layout.photometric_interpretation) == ("", "YBR_FULL")
    assert _rebuilt(encoded) == data


def test_the_envelope_is_small_because_headers_are_alike() -> None:
    encoded = encode(read(corpus_file("693_UNCR.dcm")))

    assert len(encoded.envelope.head) + len(encoded.envelope.tail) < 300


@pytest.mark.parametrize("uid", [RLELossless, JPEGLSLossless, JPEGLosslessSV1, ENCAPSULATED_UNCOMPRESSED])
def test_lossless_input_is_encoded_again_and_the_received_file_is_kept_beside_it(uid: str) -> None:
    encoded = encode(read(instance(MONO, transfer_syntax_uid=uid)))

    assert (encoded.kept_reason, encoded.envelope.kind) == ("", "file")
    assert encoded.transfer_syntax_uid == HTJ2KLosslessRPCL
    assert np.array_equal(_decoded(encoded), MONO)
    with pytest.raises(AppError, match="kept beside"):
        _rebuilt(encoded)


def test_deflated_input_is_encoded_again_and_kept_beside() -> None:
    encoded = encode(read(instance(MONO, transfer_syntax_uid=DeflatedExplicitVRLittleEndian)))

    assert (encoded.kept_reason, encoded.envelope.kind) == ("", "file")
    assert np.array_equal(_decoded(encoded), MONO)


def _float_pixels(ds: Dataset) -> None:
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.SamplesPerPixel = 2, 2, 32, 1
    ds.FloatPixelData = np.arange(4, dtype="<f4").tobytes()


def _one_bit(ds: Dataset) -> None:
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 1, 1, 0
    ds.PixelData = bytes(-(-MONO.size // 8) + 1)


def _short(ds: Dataset) -> None:
    ds.PixelData = ds.PixelData[:-4]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (instance(), "no-pixel-data"),
        (instance(change=_float_pixels), "float-pixels"),
        (instance(MONO, change=_one_bit), "one-bit-pixels"),
        (instance(MONO, change=_short), "pixel-data-too-short"),
        (instance(MONO, attributes={"BitsAllocated": 24}), "pixel-data-too-short"),
        (instance(COLOUR, transfer_syntax_uid=JPEGBaseline8Bit, photometric="YBR_FULL_422"), "lossy"),
        (instance(MONO, transfer_syntax_uid=JPEG2000Lossless), "already-jpeg-2000"),
        (instance(MONO, transfer_syntax_uid=JPEG2000), "already-jpeg-2000"),
        (instance(MONO, transfer_syntax_uid=HTJ2K, attributes={"LossyImageCompression": "01"}), "lossy"),
        (instance(MONO, transfer_syntax_uid=HTJ2KLossless), "already-jpeg-2000"),
        (instance(COLOUR, transfer_syntax_uid=MPEG2MPML), "unknown-transfer-syntax"),
        (instance(MONO, transfer_syntax_uid="1.2.3.4.5.6"), "unknown-transfer-syntax"),
        (
            instance(MONO, transfer_syntax_uid=ImplicitVRLittleEndian).replace(
                b"1.2.840.10008.1.2\0", b"1.2.840.113619.5.2"
            ),
            "unknown-transfer-syntax",
        ),
        (instance(MONO, transfer_syntax_uid=JPEGLSLossless, attributes={"Rows": 21}), "cannot-decode"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_encoded_is_stored_as_received_with_the_reason(data: bytes, reason: str) -> None:
    encoded = encode(read(data))

    assert encoded.kept_reason == reason
    assert _stored(encoded) == bytes(128) + data[128:]
    assert _rebuilt(encoded) == data


def test_a_hostile_preamble_is_zeroed_in_the_stored_file_and_given_back_with_the_received_one() -> None:
    data = instance(preamble=b"MZ" + bytes(126))

    encoded = encode(read(data))

    assert _stored(encoded)[:128] == bytes(128)
    assert _rebuilt(encoded) == data


@pytest.mark.parametrize("frames", [None, MONO])
@pytest.mark.parametrize("cut", [128, 132, "body"])
def test_a_file_without_preamble_or_meta_is_stored_as_a_whole_part_10_file(cut: int | str, frames: Any) -> None:
    whole = instance(frames)
    data = whole[cut if isinstance(cut, int) else read(whole).body_start :]

    encoded = encode(read(data))
    ds = pydicom.dcmread(BytesIO(_stored(encoded)))

    assert ds.file_meta.MediaStorageSOPClassUID == ds.SOPClassUID
    assert _rebuilt(encoded) == data


def test_pixels_of_a_kept_file_are_found_after_its_meta_was_added() -> None:
    whole = instance(MONO, transfer_syntax_uid=RLELossless, attributes={"BitsAllocated": 24})
    data = whole[128:]

    encoded = encode(read(data))

    assert encoded.frames is not None
    assert encoded.layout == read(_stored(encoded)).pixels
    assert bytes(encoded.frames.read(_stored(encoded), 2)) == bytes(
        encode(read(whole)).frames.read(whole, 2)  # type: ignore[union-attr]
    )


def test_frames_are_encoded_in_a_pool_in_order() -> None:
    data = instance(RNG.integers(0, 4096, (40, 20, 30)).astype("u2"))

    with ThreadPoolExecutor(2) as pool:
        pooled = encode(read(data), pool=pool)
        again = b"".join(rebuild(pooled.envelope, _stored(pooled), pooled.layout, pooled.frames, pool))

    assert pooled.sha256 == encode(read(data)).sha256
    assert again == data


def test_every_codestream_says_what_the_dataset_says() -> None:
    encoded = encode(read(instance(MONO, bits_stored=12)))
    assert encoded.frames is not None

    headers = [read_header(encoded.frames.read(_stored(encoded), index)) for index in range(3)]

    assert {(h.rows, h.columns, h.precision, h.signed, h.reversible) for h in headers} == {(20, 30, 12, False, True)}


def test_an_encoder_that_errs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = imagecodecs.htj2k_encode

    def err(frame: NDArray[Any], **options: Any) -> bytes:
        wrong = frame.copy()
        wrong.flat[0] ^= 1
        return bytes(real(wrong, **options))

    monkeypatch.setattr("imagecodecs.htj2k_encode", err)
    data = instance(MONO)

    encoded = encode(read(data))

    assert encoded.kept_reason == "verification-failed"
    assert _rebuilt(encoded) == data


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(AppError, match="available: htj2k, j2k"):
        encode(read(instance(MONO)), codec="jpeg")


def test_the_envelope_survives_a_document() -> None:
    envelope = encode(read(instance(MONO))).envelope

    assert Envelope.from_document(envelope.to_document()) == envelope


@pytest.mark.parametrize("to_uid", TARGETS)
@pytest.mark.parametrize("data", [instance(MONO, bits_stored=12), instance(COLOUR, planar=1)], ids=["mono", "colour"])
def test_a_stored_file_is_converted_to_every_syntax_with_its_pixels(data: bytes, to_uid: str) -> None:
    encoded = encode(read(data))
    pixels = _decoded(encoded)

    converted = b"".join(convert(_stored(encoded), encoded.layout, encoded.frames, to_uid, trusted=True))

    again = encode(read(converted))
    assert read(converted).transfer_syntax_uid == to_uid
    assert again.pixels_sha256 == hashlib.sha256(pixels.tobytes()).hexdigest()


@pytest.mark.parametrize("to_uid", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("data", [instance(MONO, bits_stored=12), instance(COLOUR, planar=1)], ids=["mono", "colour"])
def test_pydicom_sees_the_same_image_in_a_converted_file(data: bytes, to_uid: str) -> None:
    encoded = encode(read(data))

    converted = b"".join(convert(_stored(encoded), encoded.layout, encoded.frames, to_uid, trusted=True))

    found, expected = (pydicom.dcmread(BytesIO(each)) for each in (converted, data))
    assert np.array_equal(found.pixel_array, expected.pixel_array)
    assert found.PatientName == expected.PatientName
    family = {"YBR_RCT": "RGB"}
    assert family.get(found.PhotometricInterpretation, found.PhotometricInterpretation) == (
        expected.PhotometricInterpretation
    )


def test_lossy_pixels_are_given_natively_as_rgb_and_stay_marked_lossy() -> None:
    data = instance(
        COLOUR,
        transfer_syntax_uid=JPEGBaseline8Bit,
        photometric="YBR_FULL_422",
        sop_class_uid=SECONDARY_CAPTURE,
        attributes={"LossyImageCompression": "01", "LossyImageCompressionRatio": "10"},
    )
    encoded = encode(read(data))

    converted = b"".join(convert(_stored(encoded), encoded.layout, encoded.frames, ExplicitVRLittleEndian))

    ds = pydicom.dcmread(BytesIO(converted))
    assert (ds.PhotometricInterpretation, ds.PlanarConfiguration, ds.LossyImageCompression) == ("RGB", 0, "01")
    assert ds.pixel_array.shape == COLOUR.shape


@pytest.mark.parametrize("to_uid", [JPEGLSNearLossless, JPEGBaseline8Bit, MPEG2MPML, "1.2.3"])
def test_a_syntax_without_encoder_is_unsupported(to_uid: str) -> None:
    encoded = encode(read(instance(MONO)))

    with pytest.raises(AppError) as caught:
        convert(_stored(encoded), encoded.layout, encoded.frames, to_uid, trusted=True)

    assert caught.value.category is Category.UNSUPPORTED


def test_instances_without_pixels_are_converted_between_native_syntaxes_only() -> None:
    encoded = encode(read(instance()))

    implicit = b"".join(convert(_stored(encoded), None, None, ImplicitVRLittleEndian))

    assert pydicom.dcmread(BytesIO(implicit)).PatientID == "P1"
    with pytest.raises(AppError, match="without pixel data"):
        convert(_stored(encoded), None, None, RLELossless)


@pytest.mark.parametrize("name", ["liver.dcm", "liver_expb_1frame.dcm"])
def test_kept_native_pixels_are_copied_into_other_native_syntaxes(name: str) -> None:
    data = corpus_file(name)
    encoded = encode(read(data))

    converted = b"".join(convert(_stored(encoded), encoded.layout, encoded.frames, ImplicitVRLittleEndian))

    found, expected = (pydicom.dcmread(BytesIO(each)) for each in (converted, data))
    assert np.array_equal(found.pixel_array, expected.pixel_array)


def test_float_pixels_are_decoded_and_copied() -> None:
    encoded = encode(read(instance(change=_float_pixels)))

    converted = b"".join(convert(_stored(encoded), encoded.layout, encoded.frames, ImplicitVRLittleEndian))

    assert _decoded(encoded).tolist() == [[[0.0, 1.0], [2.0, 3.0]]]
    assert pydicom.dcmread(BytesIO(converted)).FloatPixelData == np.arange(4, dtype="<f4").tobytes()


@pytest.mark.parametrize("index", [0, 1, 2])
def test_frames_of_one_bit_pixels_are_decoded_where_they_start(index: int) -> None:
    data = corpus_file("liver.dcm")
    encoded = encode(read(data))
    assert encoded.layout is not None
    assert encoded.frames is not None

    frame = decode_frame(
        encoded.frames.read(data, index),
        encoded.layout,
        encoded.transfer_syntax_uid,
        bit_offset=index * encoded.layout.frame_bits % 8,
    )

    assert np.array_equal(frame.pixels, pydicom.dcmread(BytesIO(data)).pixel_array[index])


@pytest.mark.parametrize("to_uid", TARGETS)
def test_single_frames_are_converted(to_uid: str) -> None:
    encoded = encode(read(instance(COLOUR)))
    assert encoded.layout is not None
    assert encoded.frames is not None
    codestream = encoded.frames.read(_stored(encoded), 1)

    frame = convert_frame(codestream, encoded.layout, HTJ2KLosslessRPCL, to_uid, trusted=True)

    assert np.array_equal(codecs.get(to_uid).decode(frame, encoded.layout, trusted=True).pixels, COLOUR[1])
