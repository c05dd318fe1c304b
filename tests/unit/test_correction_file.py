"""Corrections laid over a file as it streams by. Source: PS3.3 C.12.1, PS3.5 6.1."""

import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, Sequence, dcmread
from pydicom.data import get_charset_files, get_testdata_file
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from imaging.correctable import CORRECTABLE, Level, changes_of
from imaging.correction import Correction
from imaging.correction_file import corrected_file
from imaging.errors import AppError, Category
from tests.support.dicom_builder import instance

AT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def correction(**values: str) -> Correction:
    return Correction(1, changes_of({name: [text] for name, text in values.items()}, Level.STUDY), "CORRECT", AT)


def corrected(data: bytes, *corrections: Correction, size: int = 1 << 30) -> bytes:
    return b"".join(corrected_file((data[at : at + size] for at in range(0, len(data), size)), corrections))


def read(data: bytes) -> Dataset:
    return dcmread(io.BytesIO(data))


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "MR_small_implicit.dcm", "emri_small_jpeg_2k_lossless.dcm", "rtplan.dcm"]
)
def test_it_does_not_matter_how_the_file_comes_in_pieces(name: str) -> None:
    data = Path(str(get_testdata_file(name))).read_bytes()
    one = correction(PatientName="Right^Name")

    made = corrected(data, one)

    assert {corrected(data, one, size=size) for size in (977, 65_536, 65_537)} == {made}
    ds, before = read(made), read(data)
    assert ds.PatientName == "Right^Name"
    assert ds.get("PixelData") == before.get("PixelData")
    assert [each.tag for each in ds if each != before.get(each.tag)] == [0x00100010, 0x04000561]


def test_a_header_longer_than_the_first_look_is_found() -> None:
    def lengthen(ds: Dataset) -> None:
        ds.private_block(0x0009, "A MAKER", create=True).add_new(1, "OB", bytes(300_000))

    data = instance(change=lengthen, frames=np.arange(64, dtype="uint16").reshape(8, 8))

    ds = read(corrected(data, correction(PatientID="right"), size=10_000))

    assert (ds.PatientID, ds.PixelData) == ("right", read(data).PixelData)
    assert len(ds[0x0009, 0x1001].value) == 300_000


def test_what_was_changed_before_stays_on_record() -> None:
    def add(ds: Dataset) -> None:
        was = Dataset()
        was.PatientID = "first"
        item = Dataset()
        item.ModifiedAttributesSequence = Sequence([was])
        item.AttributeModificationDateTime, item.ModifyingSystem = "20200101", "ELSEWHERE"
        item.SourceOfPreviousValues, item.ReasonForTheAttributeModification = "", "COERCE"
        ds.OriginalAttributesSequence = Sequence([item])

    ds = read(corrected(instance(change=add), correction(PatientID="third")))

    told = [
        (each.ModifyingSystem, each.ModifiedAttributesSequence[0].PatientID) for each in ds.OriginalAttributesSequence
    ]
    assert told == [("ELSEWHERE", "first"), ("fhir-imaging-server", "P1")]
    assert ds.OriginalAttributesSequence[1].AttributeModificationDateTime == "20260304050607.000000+0000"


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, None])
def test_text_beyond_ascii_makes_all_text_utf_8(syntax: str | None) -> None:
    def name(ds: Dataset) -> None:
        ds.SpecificCharacterSet = "ISO_IR 100"
        ds.InstitutionName = "Spital Zürich"
        code = Dataset()
        code.CodeMeaning = "Schädel"
        ds.ProcedureCodeSequence = Sequence([code])

    more = {"transfer_syntax_uid": syntax} if syntax else {}
    ds = read(corrected(instance(change=name, **more), correction(PatientName="Πέτρος^Άννα")))

    assert (ds.SpecificCharacterSet, ds.InstitutionName) == ("ISO_IR 192", "Spital Zürich")
    assert (ds.PatientName, ds.ProcedureCodeSequence[0].CodeMeaning) == ("Πέτρος^Άννα", "Schädel")


@pytest.mark.parametrize("name", ["chrH31.dcm", "chrRuss.dcm", "chrX1.dcm", "chrKoreanMulti.dcm"])
def test_names_in_every_character_set_are_told_as_they_were(name: str) -> None:
    path = get_charset_files(name)[0]
    ds = read(corrected(Path(path).read_bytes(), correction(PatientName="Right^Name")))

    assert ds.OriginalAttributesSequence[0].ModifiedAttributesSequence[0].PatientName == dcmread(path).PatientName


def test_what_has_the_right_values_stays_byte_for_byte() -> None:
    data = instance()

    assert corrected(data, correction(PatientID="P1", PatientName="Test^Person")) == data


def test_big_endian_is_refused() -> None:
    with pytest.raises(AppError) as refused:
        corrected(instance(transfer_syntax_uid=ExplicitVRBigEndian), correction(PatientID="right"))

    assert refused.value.category is Category.UNSUPPORTED


def test_nothing_that_makes_another_image_can_be_corrected() -> None:
    # PS3.5 6.2: UI are identifiers; groups 0018 and 0028 tell acquisition and pixels, but for the two named
    texts = {"PN", "LO", "SH", "DA", "TM", "CS", "AS", "LT"}

    assert {row.vr for row in CORRECTABLE.values()} <= texts
    assert {name for name, row in CORRECTABLE.items() if row.tag[:4] in ("0018", "0028", "3006", "7FE0")} == {
        "BodyPartExamined", "ProtocolName",
    }  # fmt: skip
    assert not [name for name in CORRECTABLE if "Position" in name or "Orientation" in name or name.endswith("UID")]
