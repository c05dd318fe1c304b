"""De-identified instances hold nobody's name or number, anywhere, and still hang together; real files and made ones."""

import json
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from imaging.dataset import read
from imaging.deidentify import Options, PrivateElement, Rectangle, deidentify, described
from imaging.deidentify_elements import shifted_date
from imaging.deidentify_pixels import strip_comments
from imaging.deidentify_table import RULES
from imaging.dicom_json import dicom_json
from imaging.errors import AppError, Category
from imaging.parameters import build, describe
from tests.support.corpus import corpus
from tests.support.dicom_builder import ROOT, SECONDARY_CAPTURE, instance

KEY = b"a secret of the project"
OTHER_KEY = b"another secret of it"

IDENTIFYING = (
    "PatientID", "OtherPatientIDs", "IssuerOfPatientID", "AccessionNumber", "AdmissionID", "PatientBirthDate",
    "PatientAddress", "PatientTelephoneNumbers", "InstitutionName", "InstitutionAddress", "StudyDate", "SeriesDate",
    "AcquisitionDate", "ContentDate",
)  # fmt: skip
"""Beside names (VR PN) and UIDs: what must be nowhere. Short values, such as a Patient ID of "1", tell nothing."""


DUMMY_DATE = b"19000101"
"""Stands in some real files already, and for removed dates."""


def deidentified(file: bytes, key: bytes = KEY, options: Options | None = None) -> Dataset:
    return dcmread(BytesIO(deidentify(file, key, options or Options())))


def elements(ds: Dataset) -> Iterator[tuple[str, str, str]]:
    """Yield VR, keyword and text of every value, private and nested ones included."""
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                yield from elements(item)
        else:
            values = element.value if element.VM > 1 else [element.value]
            yield from ((element.VR, element.keyword, str(value)) for value in values if value)


def secrets(ds: Dataset) -> set[bytes]:
    found = set()
    for vr, keyword, text in elements(ds):
        if vr == "UI" and not text.startswith("1.2.840.10008.") and not keyword.endswith("SOPClassUID"):
            found.add(text)
        elif vr == "PN":
            found |= {word for word in text.replace("=", "^").split("^") if len(word) > 3}
        elif keyword in IDENTIFYING and len(text) > 5:
            found.add(text)
    return {text.encode() for text in found if text.isascii()} - {DUMMY_DATE}


# Files that are not read, or hold what has to be refused.
REFUSED = frozenset(
    {
        "DICOMDIR", "DICOMDIR-bigEnd", "DICOMDIR-empty.dcm", "DICOMDIR-implicit", "DICOMDIR-nooffset",
        "DICOMDIR-nopatient", "DICOMDIR-reordered", "JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm",
        "MR_truncated.dcm", "SC_rgb_jls_lossy_line.dcm", "SC_rgb_jls_lossy_sample.dcm", "UN_sequence.dcm",
        "bad_sequence.dcm", "chrSQEncoding.dcm", "chrSQEncoding1.dcm", "empty_charset_LEI.dcm",
        "emri_small_jpeg_2k_lossless_too_short.dcm", "fall.dcm", "hotiron.dcm", "hotmetalblue.dcm",
        "meta_missing_tsyntax.dcm", "nested_priv_SQ.dcm", "no_meta.dcm", "no_meta_group_length.dcm",
        "pet.dcm", "pet20step.dcm", "priv_SQ.dcm", "reportsi.dcm", "reportsi_with_empty_number_tags.dcm",
        "rtplan_truncated.dcm", "spring.dcm", "summer.dcm", "test-SR.dcm", "winter.dcm",
    }
)  # fmt: skip
CLEANABLE = [path for path in corpus() if path.name not in REFUSED]


def test_a_real_file_that_cannot_be_cleaned_is_refused() -> None:
    for path in set(corpus()) - set(CLEANABLE):
        with pytest.raises(AppError):
            deidentify(path.read_bytes(), KEY, Options(clean_pixels=True))


@pytest.mark.parametrize("path", CLEANABLE, ids=lambda path: path.name)
def test_a_real_file_holds_no_identifying_value_afterwards_in_any_element(path: Path) -> None:
    original = dcmread(path, force=True)

    file = deidentify(path.read_bytes(), KEY, Options(clean_pixels=True))

    ds = dcmread(BytesIO(file))
    without_pixels = file.replace(ds.PixelData, b"") if "PixelData" in ds else file
    assert {
        secret for secret in secrets(original) if re.search(rb"(?<![A-Za-z])" + re.escape(secret), without_pixels)
    } == set()
    assert not [tag for tag in ds.keys() if tag.is_private or tag.group >> 8 in (0x50, 0x60)]  # noqa: SIM118
    received = read(file)
    assert received.summary.instance.sop_instance_uid == ds.SOPInstanceUID
    assert (ds.PatientIdentityRemoved, ds.LongitudinalTemporalInformationModified) == ("YES", "REMOVED")


@pytest.mark.parametrize("path", CLEANABLE[::3], ids=lambda path: path.name)
def test_metadata_of_a_real_file_says_what_its_cleaned_file_says(path: Path) -> None:
    received, options = read(path.read_bytes()), Options(clean_pixels=True)

    told = described(dicom_json(received), KEY, options)

    expected = json.loads(dicom_json(read(deidentify(path.read_bytes(), KEY, options))))
    model = json.loads(told)
    differing = {tag for tag in {*model, *expected} if model.get(tag) != expected.get(tag)}
    assert differing == set()
    assert {
        secret
        for secret in secrets(dcmread(path, force=True))
        if re.search(rb"(?<![A-Za-z])" + re.escape(secret), told)
    } == set()


def test_most_real_files_can_be_cleaned() -> None:
    assert len(CLEANABLE) > 150


@pytest.mark.parametrize("path", CLEANABLE[::7], ids=lambda path: path.name)
def test_pixels_stay_as_they_are(path: Path) -> None:
    before = read(path.read_bytes())

    after = read(deidentify(path.read_bytes(), KEY, Options(clean_pixels=True)))

    assert (before.pixels is None) == (after.pixels is None)
    if before.pixels is not None and after.pixels is not None:
        assert (before.pixels.shape, before.pixels.number_of_frames) == (
            after.pixels.shape,
            after.pixels.number_of_frames,
        )


def _named(ds: Dataset) -> None:
    """Put the patient's name where no table would look for it."""
    ds.PatientName, ds.PatientID = "Ångström^Wilhelmina", "HX-998877"
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.BodyPartExamined = "WILHELMINA"
    ds.SeriesDescription = "knee of Wilhelmina"
    ds.KVP, ds.Manufacturer, ds.ManufacturerModelName = 120, "Scanners", "bought for HX-998877"
    ds.PatientWeight, ds.DeviceSerialNumber, ds.PatientSex = 77, "SN-4711", "F"
    block = ds.private_block(0x0043, "VENDOR 1", create=True)
    block.add_new(0x39, "DS", "1000")
    block.add_new(0x40, "LO", "Wilhelmina")
    step = Dataset()
    step.RequestedProcedureDescription, step.ScheduledProcedureStepID = "Wilhelmina's knee", "HX-998877"
    step.private_block(0x0043, "VENDOR 1", create=True).add_new(0x40, "LO", "HX-998877")
    ds.RequestAttributesSequence = Items([step])
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = ds.SOPClassUID, f"{ROOT}.1.1.2"
    ds.SourceImageSequence = Items([source])
    ds.add_new(0x60003000, "OW", b"\1\2" * 8)
    ds.add_new(0x50003000, "OW", b"\1\2" * 8)
    ds.add_new(0x00189999, "UN", b"Wilhelmina")
    ds.StudyDate, ds.SeriesDate, ds.StudyTime = "20240229", "20240301", "101112"
    ds.AcquisitionDateTime = "20240229101112.5+0100"


def made(number: int = 1, **options: object) -> bytes:
    return instance(np.arange(64, dtype=np.uint16).reshape(8, 8), number=number, change=_named, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [Options(), Options(modified_dates=True, patient_characteristics=True, device_identity=True, uids=True)],
    ids=["profile", "all options"],
)
def test_a_name_is_found_wherever_it_was_put(options: Options) -> None:
    file = deidentify(made(), KEY, options).lower()

    assert not [word for word in ("wilhelmina", "ångström", "hx-998877") if word.encode() in file]


def test_the_same_input_and_key_make_the_same_bytes() -> None:
    assert deidentify(made(), KEY, Options()) == deidentify(made(), KEY, Options())


def test_another_key_makes_other_pseudonyms() -> None:
    one, other = deidentified(made()), deidentified(made(), OTHER_KEY)

    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "PatientName"):
        assert one[keyword].value != other[keyword].value
    with pytest.raises(AppError, match="at least 16 bytes"):
        deidentify(made(), b"short", Options())


def test_references_stay_whole_between_instances_and_studies() -> None:
    first, second = deidentified(made(1)), deidentified(made(2))
    elsewhere = deidentified(made(1, study=2))

    assert first.SourceImageSequence[0].ReferencedSOPInstanceUID == second.SOPInstanceUID
    assert first.SourceImageSequence[0].ReferencedSOPClassUID == second.SOPClassUID
    assert (first.StudyInstanceUID, first.SeriesInstanceUID) == (second.StudyInstanceUID, second.SeriesInstanceUID)
    assert first.PatientID == elsewhere.PatientID
    assert first.StudyInstanceUID != elsewhere.StudyInstanceUID
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in (first.SOPInstanceUID, first.StudyInstanceUID))


def test_equal_numbers_of_two_issuers_are_two_patients() -> None:
    one = deidentified(made(attributes={"IssuerOfPatientID": "North"}))
    other = deidentified(made(attributes={"IssuerOfPatientID": "South"}))

    assert one.PatientID != other.PatientID


def test_dates_go_or_are_shifted_alike_within_a_patient() -> None:
    plain, shifted = deidentified(made()), deidentified(made(), options=Options(modified_dates=True))
    later = deidentified(made(2, study=2), options=Options(modified_dates=True))

    assert (plain.StudyDate, plain.StudyTime) == ("", "")
    assert shifted.StudyTime == "101112"
    assert shifted.StudyDate != "20240229"
    study, series = (np.datetime64(f"{d[:4]}-{d[4:6]}-{d[6:]}") for d in (shifted.StudyDate, shifted.SeriesDate))
    assert series - study == np.timedelta64(1, "D")
    assert shifted.AcquisitionDateTime == f"{shifted.StudyDate}101112.5"
    assert later.StudyDate == shifted.StudyDate
    assert shifted.LongitudinalTemporalInformationModified == "MODIFIED"
    assert shifted.PatientBirthDate == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20240301", "20240229"),
        ("2024.03.01", "20240229"),
        ("202403", "202402"),
        ("2024", "2023"),
        ("20240301235959.25-0500", "20240229235959.25"),
        ("20241399", None),
        ("yesterday", None),
    ],
)
def test_a_date_is_moved_by_whole_days_and_stays_as_precise(text: str, expected: str | None) -> None:
    assert shifted_date(text, -np.timedelta64(1, "D").astype(object)) == expected


def test_options_keep_what_they_name_and_say_so() -> None:
    plain = deidentified(made())
    kept = deidentified(made(), options=Options(patient_characteristics=True, device_identity=True, uids=True))

    assert (plain.get("PatientWeight"), plain.get("PatientSex"), plain.DeviceSerialNumber) == (None, "", "REMOVED")
    assert (kept.PatientWeight, kept.PatientSex, kept.DeviceSerialNumber) == (77, "F", "SN-4711")
    assert kept.SOPInstanceUID == f"{ROOT}.1.1.1"
    assert [item.CodeValue for item in plain.DeidentificationMethodCodeSequence] == ["113100"]
    assert [item.CodeValue for item in kept.DeidentificationMethodCodeSequence] == [
        "113100",
        "113108",
        "113109",
        "113110",
    ]


def test_only_private_elements_that_are_stated_to_be_safe_stay() -> None:
    safe = [PrivateElement.from_text("0043,39,VENDOR 1")]

    ds = dcmread(BytesIO(deidentify(made(), KEY, Options(), safe_private=safe)))

    assert [f"{tag:08X}" for tag in ds.keys() if tag.is_private] == ["00430010", "00431039"]  # noqa: SIM118
    assert ds[0x00431039].value == 1000
    assert ds.DeidentificationMethodCodeSequence[-1].CodeValue == "113111"
    with pytest.raises(AppError, match="0043,39,GEMS_PARM_01"):
        PrivateElement.from_text("0042,39,VENDOR 1")


def test_what_was_de_identified_before_keeps_its_methods() -> None:
    once = deidentify(made(), KEY, Options())

    twice = deidentified(once, OTHER_KEY, Options(clean_pixels=True))

    assert [item.CodeValue for item in twice.DeidentificationMethodCodeSequence] == ["113100", "113101"]


FRAMES = np.full((2, 6, 8), 100, np.uint8)
COLOUR = np.full((2, 6, 8, 3), 100, np.uint8)


@pytest.mark.parametrize(
    ("frames", "syntax"),
    [
        (FRAMES, ExplicitVRLittleEndian),
        (FRAMES.astype(np.uint16), ExplicitVRBigEndian),
        (FRAMES.astype(np.int16), ExplicitVRLittleEndian),
        (FRAMES.astype(np.uint16), JPEGLSLossless),
        (COLOUR, ExplicitVRLittleEndian),
        (COLOUR, RLELossless),
    ],
)
def test_rectangles_are_burned_out_of_the_frames_and_series_named(frames: np.ndarray, syntax: str) -> None:
    file = instance(frames, sop_class_uid=SECONDARY_CAPTURE, modality="OT", transfer_syntax_uid=syntax)
    rectangles = [
        Rectangle.from_text("1,2,3,2;frames=2"),
        Rectangle.from_text(f"0,0,1,1;series={ROOT}.1.1"),
        Rectangle.from_text("7,5,1,1;series=1.2.3"),
    ]
    lowest = -32768 if frames.dtype.kind == "i" else 0
    expected = frames.copy()
    expected[1, 2:4, 1:4], expected[:, 0, 0] = lowest, lowest

    ds = dcmread(BytesIO(deidentify(file, KEY, Options(clean_pixels=True), rectangles=rectangles)))

    assert np.array_equal(ds.pixel_array, expected)
    assert ds.BurnedInAnnotation == "NO"
    assert [item.CodeValue for item in ds.DeidentificationMethodCodeSequence] == ["113100", "113101"]


def test_black_is_the_highest_value_where_low_values_are_white() -> None:
    file = instance(np.zeros((4, 4), np.uint16), photometric="MONOCHROME1", bits_stored=12)

    file = deidentify(file, KEY, Options(clean_pixels=True), rectangles=[Rectangle.from_text("0,0,2,1")])

    assert dcmread(BytesIO(file)).pixel_array[0].tolist() == [4095, 4095, 0, 0]


def test_overlays_in_unused_bits_go_with_the_overlays() -> None:
    pixels = np.full((4, 4), 0x8123, np.uint16)

    file = instance(pixels, bits_stored=12, change=lambda ds: ds.add_new(0x60000100, "US", 1))

    assert deidentified(file).PixelData == np.full((4, 4), 0x0123, "<u2").tobytes()


@pytest.mark.parametrize(
    ("attributes", "sop_class_uid", "words"),
    [
        ({"BurnedInAnnotation": "YES"}, "1.2.840.10008.5.1.4.1.1.2", "says that text is burned in"),
        ({}, SECONDARY_CAPTURE, "often has text burned in"),
        ({}, "1.2.840.10008.5.1.4.1.1.6.1", "often has text burned in"),
        ({"ContentSequence": Items([Dataset()])}, "1.2.840.10008.5.1.4.1.1.88.22", "structured report"),
        ({"EncapsulatedDocument": b"%PDF"}, "1.2.840.10008.5.1.4.1.1.104.1", "encapsulated document"),
        ({}, "1.2.840.10008.5.1.4.1.1.9.4.1", "recording of sound"),
    ],
)
def test_what_cannot_be_cleaned_is_refused_with_the_reason(
    attributes: dict[str, object], sop_class_uid: str, words: str
) -> None:
    file = instance(np.zeros((4, 4), np.uint8), sop_class_uid=sop_class_uid, attributes=attributes)

    with pytest.raises(AppError, match=words) as caught:
        deidentify(file, KEY, Options())

    assert caught.value.category is Category.UNSUPPORTED


def test_what_is_said_of_burned_in_text_stays_unless_somebody_looked() -> None:
    file = instance(np.zeros((4, 4), np.uint8), attributes={"BurnedInAnnotation": "NO"})

    assert deidentified(file).BurnedInAnnotation == "NO"
    assert "BurnedInAnnotation" not in deidentified(made())


@pytest.mark.parametrize(
    "text", ["", "1,2,3", "0,0,0,5", "a,b,c,d", "0,0,9,9;frames=x", "0,0,9,9;frames=1-", "0,0,9,9;series=x"]
)
def test_a_rectangle_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(AppError):
        Rectangle.from_text(text)


def test_rectangles_outside_or_unordered_are_refused() -> None:
    outside, beyond = Rectangle.from_text("8,0,1,1"), Rectangle.from_text("0,0,1,1;frames=2")

    with pytest.raises(AppError, match="outside of 8 x 8"):
        deidentify(made(), KEY, Options(clean_pixels=True), rectangles=[outside])
    with pytest.raises(AppError, match="a frame from 1 to 1"):
        deidentify(made(), KEY, Options(clean_pixels=True), rectangles=[beyond])
    with pytest.raises(AppError, match="clean_pixels only"):
        deidentify(made(), KEY, Options(), rectangles=[outside])


def test_comments_of_codestreams_are_taken_out() -> None:
    jpeg = (
        b"\xff\xd8" + b"\xff\xe0\x00\x07JFIF\0" + b"\xff\xe1\x00\x06Exif" + b"\xff\xfe\x00\x06Name" + b"\xff\xda\0\4ab"
    )
    jpeg_2000 = b"\xff\x4f\xff\x51\x00\x04ab" + b"\xff\x64\x00\x08\0\1Name" + b"\xff\x90\x00\x02cd"

    assert strip_comments(jpeg) == b"\xff\xd8" + b"\xff\xe0\x00\x07JFIF\0" + b"\xff\xda\0\4ab"
    assert strip_comments(jpeg_2000) == b"\xff\x4f\xff\x51\x00\x04ab" + b"\xff\x90\x00\x02cd"
    assert strip_comments(b"no codestream") == b"no codestream"


def test_options_are_described_and_built_as_parameters_are() -> None:
    assert {parameter.name: parameter.default for parameter in describe(Options)} == {
        "clean_pixels": False,
        "modified_dates": False,
        "patient_characteristics": False,
        "device_identity": False,
        "uids": False,
    }
    assert build(Options, {"modified_dates": True}) == Options(modified_dates=True)


@pytest.mark.parametrize(
    ("keyword", "action"),
    [
        # as PS3.15 table E.1-1 prints them
        ("PatientName", "Z"),
        ("AccessionNumber", "Z"),
        ("AcquisitionDate", "X/Z"),
        ("AcquisitionDateTime", "X/Z/D"),
        ("ContentDate", "Z/D"),
        ("DetectorID", "X/D"),
        ("DerivationDescription", "X"),
        ("ContentSequence", "D"),
        ("SourceImageSequence", "X/Z/U*"),
        ("FrameOfReferenceUID", "U"),
    ],
)
def test_the_table_is_that_of_the_standard(keyword: str, action: str) -> None:
    assert [rule.action.value for rule in RULES.values() if rule.keyword == keyword] == [action]
