"""DICOMDIR: the directory of the files of one study, written from their DICOM JSON models.

Hides directory records, their keys and offsets. Records are encoded as the files go by, so that a study of thousands of
instances costs a few hundred bytes each. Sources: PS3.3 F.3, F.5; PS3.10 7.3, 8.2, 8.6.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from struct import pack
from typing import Final

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import dcmwrite, write_dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID

from imaging.dataset_from_json import dataset_from_json
from imaging.frames import item_header
from imaging.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, element_bytes
from imaging.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN

NAME: Final = "DICOMDIR"
UTF_8: Final = "ISO_IR 192"
MEDIA_STORAGE_DIRECTORY: Final = "1.2.840.10008.1.3.10"

# record type -> keys that are always there, empty where the instance says nothing; keys where the instance has them
KEYS: Final[dict[str, tuple[str, str]]] = {
    "PATIENT": ("PatientName PatientID", "PatientBirthDate PatientSex"),
    "STUDY": ("StudyDate StudyTime StudyDescription StudyInstanceUID StudyID AccessionNumber", ""),
    "SERIES": ("Modality SeriesInstanceUID SeriesNumber", "SeriesDescription"),
    # What the profiles for images of CT and MR ask for comes along where it is (PS3.11 table D.3-2).
    "IMAGE": (
        "InstanceNumber",
        "ImageType NumberOfFrames FrameOfReferenceUID ImagePositionPatient ImageOrientationPatient Rows Columns "
        "PixelSpacing",
    ),
    "RT DOSE": ("InstanceNumber DoseSummationType", "DoseComment"),
    "RT STRUCTURE SET": ("InstanceNumber StructureSetLabel StructureSetDate StructureSetTime", ""),
    "RT PLAN": ("InstanceNumber RTPlanLabel RTPlanDate RTPlanTime", ""),
    "RT TREAT RECORD": ("InstanceNumber TreatmentDate TreatmentTime", ""),
    "PRESENTATION": (
        "InstanceNumber PresentationCreationDate PresentationCreationTime ContentLabel ContentDescription "
        "ContentCreatorName",
        "ReferencedSeriesSequence BlendingSequence",
    ),
    "WAVEFORM": ("InstanceNumber ContentDate ContentTime", ""),
    "SR DOCUMENT": (
        "InstanceNumber CompletionFlag VerificationFlag ContentDate ContentTime ConceptNameCodeSequence",
        "VerificationDateTime ContentSequence",
    ),
    "KEY OBJECT DOC": ("InstanceNumber ContentDate ContentTime ConceptNameCodeSequence", "ContentSequence"),
    "SPECTROSCOPY": (
        "ImageType ContentDate ContentTime InstanceNumber NumberOfFrames Rows Columns DataPointRows DataPointColumns",
        "ReferencedImageEvidenceSequence",
    ),
    "RAW DATA": ("InstanceNumber ContentDate ContentTime", ""),
    **dict.fromkeys(
        ("REGISTRATION", "FIDUCIAL", "VALUE MAP", "MEASUREMENT", "SURFACE", "TRACT"),
        ("InstanceNumber ContentDate ContentTime ContentLabel ContentDescription ContentCreatorName", ""),
    ),
    "STEREOMETRIC": ("", ""),
    "PLAN": ("", ""),
    "ENCAP DOC": (
        "InstanceNumber ContentDate ContentTime DocumentTitle ConceptNameCodeSequence MIMETypeOfEncapsulatedDocument",
        "HL7InstanceIdentifier",
    ),
    "SURFACE SCAN": ("ContentDate ContentTime", ""),
    "ASSESSMENT": ("InstanceNumber InstanceCreationDate InstanceCreationTime", ""),
    "RADIOTHERAPY": ("InstanceNumber ContentDescription ContentCreatorName", "UserContentLabel UserContentLongLabel"),
    "PRIVATE": ("", "InstanceNumber"),
}

# part of a SOP class's keyword -> record type, the first that fits; PS3.3 table F.4-1
TYPES: Final = (
    ("KeyObjectSelection", "KEY OBJECT DOC"),
    ("SRStorage", "SR DOCUMENT"),
    ("ProcedureLog", "SR DOCUMENT"),
    ("ReportStorage", "SR DOCUMENT"),
    ("PresentationState", "PRESENTATION"),
    ("StructuredDisplay", "PRESENTATION"),
    ("Waveform", "WAVEFORM"),
    ("Encapsulated", "ENCAP DOC"),
    ("RTDose", "RT DOSE"),
    ("RTStructureSet", "RT STRUCTURE SET"),
    ("RTPlan", "RT PLAN"),
    ("RTIonPlan", "RT PLAN"),
    ("TreatmentRecord", "RT TREAT RECORD"),
    ("TreatmentSummaryRecord", "RT TREAT RECORD"),
    ("MRSpectroscopy", "SPECTROSCOPY"),
    ("RawData", "RAW DATA"),
    ("SpatialRegistration", "REGISTRATION"),
    ("SpatialFiducials", "FIDUCIAL"),
    ("RealWorldValueMapping", "VALUE MAP"),
    ("StereometricRelationship", "STEREOMETRIC"),
    ("MeasurementsStorage", "MEASUREMENT"),
    ("SurfaceSegmentation", "SURFACE"),
    ("SurfaceScan", "SURFACE SCAN"),
    ("Tractography", "TRACT"),
    ("ContentAssessment", "ASSESSMENT"),
)
_RADIOTHERAPY: Final = frozenset({"RTINTENT", "RTSEGANN", "RTRAD"})


@dataclass(frozen=True, slots=True)
class File:
    """A file of the set: its path in components of up to eight of A to Z, 0 to 9 and _, and what is in it."""

    path: Sequence[str]
    sop_class_uid: str
    sop_uid: str
    transfer_syntax_uid: str
    has_pixels: bool


@dataclass(slots=True)
class _Record:
    kind: str
    body: bytes  # after the three elements that place it
    below: "list[_Record]" = field(default_factory=list)
    offset: int = 0

    @property
    def size(self) -> int:
        return 8 + _PLACE_BYTES + len(self.body)


_PLACE_BYTES: Final = 12 + 10 + 12


class Directory:
    """The directory of a study, filled file by file."""

    def __init__(self, uid: str) -> None:
        """Begin a directory; `uid` is that of the file-set."""
        self._uid = uid
        self._patients: list[_Record] = []
        self._series: dict[str, _Record] = {}

    def add(self, file: File, document: bytes) -> None:
        """Add a file; `document` is its DICOM JSON. Patient and study are those of the first file.

        A key that the standard demands and the instance has not is empty; numbers are then counted.
        """
        ds = dataset_from_json(document)
        if not document.isascii():
            ds.SpecificCharacterSet = UTF_8
        if not self._patients:
            self._patients = [_Record("PATIENT", _body("PATIENT", ds), [_Record("STUDY", _body("STUDY", ds))])]
        series_uid = str(ds.get("SeriesInstanceUID", ""))
        series = self._series.get(series_uid)
        if series is None:
            _number(ds, "SeriesNumber", len(self._series) + 1)
            series = self._series[series_uid] = _Record("SERIES", _body("SERIES", ds))
            self._patients[0].below[0].below.append(series)
        kind = record_type(file.sop_class_uid, modality=str(ds.get("Modality", "")), has_pixels=file.has_pixels)
        _number(ds, "InstanceNumber", len(series.below) + 1)
        series.below.append(_Record(kind, _body(kind, ds, file)))

    def pieces(self) -> Iterator[bytes]:
        """Yield the DICOMDIR file."""
        head = _head(self._uid)
        records = list(_walk(self._patients))
        # Two offsets and the consistency flag stand before the sequence: 12 + 12 + 10 bytes, and its header of 12.
        position = len(head) + 12 + 12 + 10 + 12
        for record in records:
            record.offset = position
            position += record.size
        first, last = (self._patients[0].offset, self._patients[-1].offset) if self._patients else (0, 0)
        yield head
        yield _element(0x00041200, "UL", pack("<I", first))
        yield _element(0x00041202, "UL", pack("<I", last))
        yield _element(0x00041212, "US", pack("<H", 0))
        yield pack("<HH2sHI", 0x0004, 0x1220, b"SQ", 0, sum(record.size for record in records))
        yield from _placed(self._patients)


def record_type(sop_class_uid: str, *, modality: str, has_pixels: bool) -> str:
    """Return the type of the record for an instance: PRIVATE for a class without pixels that is not known here."""
    if modality in _RADIOTHERAPY:
        return "RADIOTHERAPY"
    if modality == "PLAN":
        return "PLAN"
    keyword = UID(sop_class_uid).keyword
    found = next((kind for part, kind in TYPES if part in keyword), "")
    return found or ("IMAGE" if has_pixels or "ImageStorage" in keyword else "PRIVATE")


def _walk(records: list[_Record]) -> Iterator[_Record]:
    for record in records:
        yield record
        yield from _walk(record.below)


def _placed(records: list[_Record]) -> Iterator[bytes]:
    for record, following in zip_longest(records, records[1:]):
        yield item_header(record.size - 8)
        yield _element(0x00041400, "UL", pack("<I", following.offset if following else 0))
        yield _element(0x00041410, "US", pack("<H", 0xFFFF))
        yield _element(0x00041420, "UL", pack("<I", record.below[0].offset if record.below else 0))
        yield record.body
        yield from _placed(record.below)


def _element(tag: int, vr: str, value: bytes) -> bytes:
    return element_bytes(tag, vr, value, implicit_vr=False)


def _head(uid: str) -> bytes:
    """Return the file up to the offsets."""
    ds = Dataset()
    ds.FileSetID = None
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = UID(MEDIA_STORAGE_DIRECTORY)
    ds.file_meta.MediaStorageSOPInstanceUID = UID(uid)
    ds.file_meta.TransferSyntaxUID = UID(EXPLICIT_VR_LITTLE_ENDIAN)
    ds.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    ds.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    out = io.BytesIO()
    dcmwrite(out, ds, enforce_file_format=True)
    return out.getvalue()


def _body(kind: str, ds: Dataset, file: File | None = None) -> bytes:
    record = Dataset()
    record.DirectoryRecordType = kind
    if file:
        record.ReferencedFileID = list(file.path)
        told = {0x00041510: file.sop_class_uid, 0x00041511: file.sop_uid, 0x00041512: file.transfer_syntax_uid}
        if kind == "PRIVATE":
            told[0x00041432] = file.sop_class_uid
        for tag, uid in told.items():
            # Not checked again: an instance may have come with a UID that breaks the rules.
            record.add(DataElement(tag, "UI", UID(uid), already_converted=True))
    always, if_there = (names.split() for names in KEYS[kind])
    for keyword in (*always, *if_there, "SpecificCharacterSet"):
        element = _key(ds, keyword)
        if element is not None:
            record.add(element)
        elif keyword in always:
            setattr(record, keyword, None)
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = True, False
    write_dataset(out, record)
    return out.getvalue()


def _key(ds: Dataset, keyword: str) -> DataElement | None:
    """Return the element of a key as the instance has it, None where it has no value."""
    if keyword not in ds or ds[keyword].is_empty:
        return None
    element = ds[keyword]
    if keyword != "ContentSequence":
        return None if keyword == "SpecificCharacterSet" and element.value != UTF_8 else element
    # Of the content only what modifies the title of the document (PS3.3 F.5.24).
    items = [item for item in element.value if item.get("RelationshipType") == "HAS CONCEPT MOD"]
    return DataElement(element.tag, "SQ", Items(items)) if items else None


def _number(ds: Dataset, keyword: str, counted: int) -> None:
    if _key(ds, keyword) is None:
        setattr(ds, keyword, counted)
