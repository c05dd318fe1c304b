"""DICOMDIR files. pydicom's reader of file-sets and its table of record types are the second opinion."""

import io

import pytest
from pydicom import dcmread, fileset

from imaging.dataset import read
from imaging.dicom_json import dicom_json
from imaging.dicomdir import KEYS, Directory, File, record_type
from tests.support.dicomweb import ct, sample

EXPLICIT_LE = "1.2.840.10008.1.2.1"
UID = "2.25.5"


def directory_of(*files: bytes) -> fileset.Dataset:
    """Return the DICOMDIR of files, read back."""
    made = Directory(UID)
    for number, data in enumerate(files, start=1):
        received = read(data)
        file = File(
            ("DICOM", "S0000001", f"I{number:07d}"), received.summary.instance.sop_class_uid, received.summary.sop_uid,
            received.transfer_syntax_uid, has_pixels=received.pixels is not None,
        )  # fmt: skip
        made.add(file, dicom_json(received))
    return dcmread(io.BytesIO(b"".join(made.pieces())))


def test_records_stand_where_their_offsets_say() -> None:
    files = [ct(1), ct(2), ct(1, series=2), ct(3)]
    made = Directory(UID)
    for data in files:
        received = read(data)
        made.add(File(("A",), "1.2.840.10008.5.1.4.1.1.2", "1.2", EXPLICIT_LE, has_pixels=True), dicom_json(received))
    raw = b"".join(made.pieces())

    found = dcmread(io.BytesIO(raw))
    records = {item.seq_item_tell: item for item in found.DirectoryRecordSequence}

    def kinds(offset: int) -> list[object]:
        told: list[object] = []
        while offset:
            record = records[offset]
            below = kinds(record.OffsetOfReferencedLowerLevelDirectoryEntity)
            told.append((record.DirectoryRecordType, below) if below else record.DirectoryRecordType)
            offset = record.OffsetOfTheNextDirectoryRecord
        return told

    root = found.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity
    assert found.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity == root
    assert kinds(root) == [("PATIENT", [("STUDY", [("SERIES", ["IMAGE"] * 3), ("SERIES", ["IMAGE"])])])]
    assert found.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.1.3.10"


def test_records_have_the_keys_of_the_standard() -> None:
    patient, study, series, image = directory_of(ct(1)).DirectoryRecordSequence

    assert (patient.PatientID, patient.PatientName, patient.PatientSex) == ("PAT-1", "Test^Patient", "O")
    assert (study.StudyInstanceUID, study.StudyDate, study.StudyID) == ("1.2.3", "20260102", "1")
    assert (study.AccessionNumber, study.StudyDescription) == ("ACC-1", "")
    assert (series.SeriesInstanceUID, series.Modality, series.SeriesNumber) == ("1.2.3.1", "CT", 1)
    assert (image.InstanceNumber, image.Rows, list(image.PixelSpacing)) == (1, 32, [0.5, 0.5])
    assert list(image.ReferencedFileID) == ["DICOM", "S0000001", "I0000001"]
    assert image.ReferencedSOPInstanceUIDInFile == "1.2.3.1.1"
    assert image.ReferencedTransferSyntaxUIDInFile == EXPLICIT_LE


def test_a_name_in_another_script_is_written_in_utf_8() -> None:
    data = ct(1, SpecificCharacterSet="ISO_IR 192", PatientName="Yamada^Tarou=山田^太郎")

    patient = directory_of(data).DirectoryRecordSequence[0]

    assert patient.SpecificCharacterSet == "ISO_IR 192"
    assert patient.PatientName.ideographic == "山田^太郎"


def test_numbers_that_are_missing_are_counted_and_texts_are_empty() -> None:
    data = ct(1, InstanceNumber=None, SeriesNumber=None, StudyID="", StudyDate="")

    _, study, series, image = directory_of(data, data).DirectoryRecordSequence[:4]

    assert (study.StudyID, study.StudyDate) == ("", "")
    assert (series.SeriesNumber, image.InstanceNumber) == (1, 1)


@pytest.mark.parametrize("name", ["test-SR.dcm", "rtplan.dcm", "rtdose.dcm", "rtstruct.dcm"])
def test_documents_and_plans_have_records_of_their_own(name: str) -> None:
    ds = dcmread(io.BytesIO(sample(name)), force=True)

    leaf = directory_of(sample(name)).DirectoryRecordSequence[-1]

    assert leaf.DirectoryRecordType == fileset._four_level_record_type(ds)
    always = KEYS[leaf.DirectoryRecordType][0].split()
    told = [each for each in always if each not in ("InstanceNumber", "ConceptNameCodeSequence")]
    assert [str(leaf[each].value or "") for each in told] == [str(ds.get(each) or "") for each in told]


@pytest.mark.parametrize(("uid", "kind"), fileset._FOUR_LEVEL_SOP_CLASSES.items())
def test_record_types_are_those_of_the_standard(uid: str, kind: str) -> None:
    assert record_type(uid, modality="", has_pixels=False) == kind


def test_an_unknown_class_without_pixels_has_a_private_record() -> None:
    assert record_type("1.2.840.99999.1", modality="OT", has_pixels=False) == "PRIVATE"
    assert record_type("1.2.840.99999.1", modality="OT", has_pixels=True) == "IMAGE"
