"""Results of algorithms as DICOM instances: a new series of the same study that says what was done to what, by whom.

The same task, algorithm and input always make the same UIDs and the same bytes. What all source images agree on is
kept; what describes their pixels, their place or the instance is written anew. Private elements are left out, since
nobody can say whether they still hold. Sources: PS3.3 C.7.6.1 (General Image), C.12.1 (SOP Common).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from typing import Any, Final
from uuid import UUID, uuid5

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from imaging.algorithm import Code, Result
from imaging.errors import AppError, Category
from imaging.geometry import Float32, Image, Matrix, Source, Volume

NAMESPACE: Final = UUID("6d3f6d5e-3f0c-5a0a-9d0e-0f4c1b6f7a52")
"""Namespace of the UUIDs from which UIDs of results are made (PS3.5 B.2)."""
IMPLEMENTATION_CLASS_UID: Final = "2.25.144961536894152410374226571270846216786"

CT_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
MR_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.4"
PET_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.128"
SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"

CLASSES: Final = {
    # SOP class of all sources        of results with a place in the patient
    CT_IMAGE:                       CT_IMAGE,
    "1.2.840.10008.5.1.4.1.1.2.1":  CT_IMAGE,  # enhanced
    MR_IMAGE:                       MR_IMAGE,
    "1.2.840.10008.5.1.4.1.1.4.1":  MR_IMAGE,  # enhanced
    PET_IMAGE:                      PET_IMAGE,
}  # fmt: skip
"""Everything else becomes Secondary Capture, which promises nothing about acquisition or units."""

REQUIRED: Final[dict[str, dict[str, str | None]]] = {
    # SOP class  what it must have though sources may not: empty, or the value that says nothing
    CT_IMAGE: {"KVP": None, "AcquisitionNumber": None},
    MR_IMAGE: {
        "ScanningSequence": "RM", "SequenceVariant": "NONE", "ScanOptions": None, "MRAcquisitionType": None,
        "RepetitionTime": None, "EchoTime": None, "EchoTrainLength": None,
    },
    PET_IMAGE: {},
    SECONDARY_CAPTURE: {"ConversionType": "WSD"},
}  # fmt: skip

RESCALE_TYPES: Final = {"[hnsf'U]": "HU"}
"""UCUM unit to Rescale Type; other units are "US", unspecified (PS3.3 C.11.1.1.2)."""
PET_UNITS: Final = {"Bq/ml": "BQML", "g/ml": "GML", "{counts}": "CNTS", "cm2/ml": "CM2ML", "%": "PCT"}

_KEPT_OF_PIXELS: Final = frozenset({0x00280301, 0x00282110, 0x00282112, 0x00282114})
"""Burned In Annotation and Lossy Image Compression stay true whatever is computed from the pixels."""
_DROPPED: Final = frozenset({
    0x00080008, 0x00080012, 0x00080013, 0x00080014, 0x00080016, 0x00080018, 0x00080023, 0x00080033, 0x0008002A,
    0x0008103E, 0x0008103F, 0x00080021, 0x00080031, 0x00081140, 0x00082111, 0x00082112, 0x00089215, 0x00089124,
    0x00180050, 0x00180088, 0x00181164, 0x0018A001, 0x0020000E, 0x00200011, 0x00200013, 0x00200032, 0x00200037,
    0x00201041, 0x00209222, 0x00209221, 0x00201040,
})  # fmt: skip
_DROPPED_GROUPS: Final = frozenset({0x0028, 0x0088, 0x2050, 0x5200, 0x7FE0})
"""Pixels and their description, icons, presentation, functional groups, pixel data; overlays (60xx) as well."""
_OF_THE_FIRST: Final = frozenset({
    0x00080005, 0x00080020, 0x00080030, 0x00080050, 0x00080051, 0x00080090, 0x00081030, 0x0020000D, 0x00200010,
})  # fmt: skip
"""Identity of the study, and the character set that texts are written in, whatever the others use."""
_EQUIPMENT: Final = (
    "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions", "StationName", "InstitutionName",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Equipment:
    """Who processed: goes into the equipment of the new series."""

    manufacturer: str
    model_name: str
    software_version: str
    serial_number: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """What was done: everything that UIDs follow from, and what is told about it.

    key            of the task; another task makes other objects
    algorithm      name in the registry
    parameters     all of them, as JSON has them
    input_digests  of the instances that were read, in their order
    done_at        aware; must be the same in a second run, so it is the time of the order
    """

    key: str
    algorithm: str
    version: str
    title: str
    code: Code
    parameters: Mapping[str, Any]
    input_digests: tuple[str, ...]
    done_at: datetime
    equipment: Equipment

    def uid(self, *parts: str | int) -> str:
        """Return the UID of a part of the result (PS3.5 B.2): the same for the same work."""
        seed = [self.key, self.algorithm, self.version, dict(self.parameters), list(self.input_digests), list(parts)]
        return f"2.25.{uuid5(NAMESPACE, json.dumps(seed, sort_keys=True, separators=(',', ':'))).int}"

    @property
    def description(self) -> str:
        """What was done, in words for people: title, version, parameters; at most 1024 characters (VR ST)."""
        given = ", ".join(f"{name}={value}" for name, value in sorted(self.parameters.items()))
        return f"{self.title} ({self.algorithm} {self.version}{': ' + given if given else ''})"[:1024]


@dataclass(frozen=True, slots=True)
class Stored:
    """Integers that stand for values: value = slope x stored + intercept, within half a slope."""

    frames: NDArray[Any]
    slope: float
    intercept: float


def derive_images(result: Result, sources: Sequence[Dataset], work: Work, *, series_number: int) -> Iterator[Dataset]:
    """Yield the images and volumes of a result as single-frame instances, each volume and all images one series each.

    sources        datasets of the images that were read, without pixel data; of one patient. Where they are of several
                   studies, results belong to the study of the first one
    series_number  of the first new series; further ones count on

    Raises INVALID for no sources or several patients, and for values that are not finite.
    """
    if len({str(ds.get("PatientID", "")) for ds in sources}) != 1:
        raise AppError(Category.INVALID, "results are derived from images of one patient")
    common = _common(sources)
    groups: list[list[Image]] = [slices_of(volume) for volume in result.volumes]
    groups += [list(result.images)] if result.images else []
    for number, group in enumerate(groups):
        stored = quantise([image.array for image in group], is_pet=_class_of(group, sources) == PET_IMAGE)
        for index, (image, each) in enumerate(zip(group, stored, strict=True), start=1):
            ds = deepcopy(common)
            _add_class(ds, image, _class_of(group, sources), sources, len(group), index)
            _add_identity(ds, work, number, series_number + number, index)
            _add_derivation(ds, image.sources, work, sources)
            _add_place(ds, image)
            _add_pixels(ds, image, each)
            yield ds


def slices_of(volume: Volume) -> list[Image]:
    """Return the slices, each with its place; with one source each where there are as many as slices."""
    one_each = len(volume.sources) == len(volume.array)
    row_mm, column_mm = volume.spacing_mm[1:]
    return [
        Image(
            array=plane,
            unit=volume.unit,
            spacing_mm=(row_mm, column_mm),
            affine=_moved(volume.affine, volume.position_mm((index, 0, 0))),
            modality=volume.modality,
            frame_of_reference_uid=volume.frame_of_reference_uid,
            sources=volume.sources[index : index + 1] if one_each else volume.sources,
        )
        for index, plane in enumerate(volume.array)
    ]


def quantise(arrays: Sequence[Float32], *, is_pet: bool = False) -> list[Stored]:
    """Return values as 16-bit integers with one slope and intercept for all arrays.

    Whole numbers that fit are kept exactly, with slope 1 and intercept 0. Others are spread over the whole range; PET
    images have no intercept (PS3.3 C.8.9.4.1.6). Raises INVALID for values that are not finite.
    """
    low, high = min(float(each.min()) for each in arrays), max(float(each.max()) for each in arrays)
    if not np.isfinite([low, high]).all():
        raise AppError(Category.INVALID, "the result has values that are not finite")
    kind = np.int16 if low < 0 else np.uint16
    info = np.iinfo(kind)
    if info.min <= low and high <= info.max and all(np.array_equal(each, np.rint(each)) for each in arrays):
        return [Stored(each.astype(kind), 1.0, 0.0) for each in arrays]
    if is_pet:
        slope, intercept = _decimal(max(-low, high) / info.max), 0.0
    else:
        kind, info = np.uint16, np.iinfo(np.uint16)
        slope, intercept = _decimal((high - low) / info.max or 1.0), _decimal(low)
    stored = ((each.astype(np.float64) - intercept) / slope for each in arrays)
    return [Stored(np.clip(np.rint(each), info.min, info.max).astype(kind), slope, intercept) for each in stored]


def to_part10(ds: Dataset) -> bytes:
    """Return an instance as a file, Explicit VR Little Endian; the same bytes for the same instance."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    out = BytesIO()
    dcmwrite(out, ds, enforce_file_format=True)
    return out.getvalue()


def _decimal(value: float) -> float:
    """Return the number as a decimal string of 16 characters can write it (PS3.5 6.2, VR DS)."""
    return float(str(DSfloat(value, auto_format=True)))


def _moved(affine: Matrix, position: Matrix) -> Matrix:
    moved = affine.copy()
    moved[:3, 3] = position
    return moved


def _common(sources: Sequence[Dataset]) -> Dataset:
    """Return a copy of what all sources agree on and that stays true of results."""
    first, common = sources[0], Dataset()
    for element in first:
        tag = int(element.tag)
        group = tag >> 16
        is_dropped = tag in _DROPPED or group in _DROPPED_GROUPS or group % 2 or 0x6000 <= group <= 0x60FF
        if is_dropped and tag not in _KEPT_OF_PIXELS:
            continue
        if tag in _OF_THE_FIRST or all(tag in ds and ds[tag] == element for ds in sources[1:]):
            common[tag] = deepcopy(element)
    return common


def _class_of(group: Sequence[Image], sources: Sequence[Dataset]) -> str:
    """Return the SOP class: that of the sources where its promises still hold, else Secondary Capture."""
    uids = {str(ds.get("SOPClassUID", "")) for ds in sources}
    uid = CLASSES.get(uids.pop(), SECONDARY_CAPTURE) if len(uids) == 1 else SECONDARY_CAPTURE
    is_placed = all(image.affine is not None for image in group)
    if not is_placed or (uid == PET_IMAGE and group[0].unit not in PET_UNITS):
        return SECONDARY_CAPTURE
    return uid


def _add_class(ds: Dataset, image: Image, class_uid: str, sources: Sequence[Dataset], count: int, index: int) -> None:
    ds.SOPClassUID = class_uid
    modalities = {str(each.get("Modality") or "") for each in sources} - {""}
    ds.Modality = modalities.pop() if len(modalities) == 1 else image.modality
    for keyword, value in REQUIRED[class_uid].items():
        if keyword not in ds:
            setattr(ds, keyword, value)
    original = [str(each) for each in sources[0].get("ImageType") or []]
    ds.ImageType = ["DERIVED", "SECONDARY", *(original[2:3] or ["OTHER"])]
    if class_uid == PET_IMAGE:
        ds.Units, ds.NumberOfSlices, ds.ImageIndex = PET_UNITS[image.unit], count, index
        ds.FrameReferenceTime = sources[0].get("FrameReferenceTime") or 0
        if ds.Units == "GML":
            ds.SUVType = "BW"


def _add_identity(ds: Dataset, work: Work, series: int, series_number: int, index: int) -> None:
    ds.SeriesInstanceUID = work.uid("series", series)
    ds.SOPInstanceUID = work.uid("series", series, "instance", index)
    ds.SeriesNumber, ds.InstanceNumber = series_number, index
    ds.SeriesDescription = work.title[:64]
    date, time = work.done_at.strftime("%Y%m%d"), work.done_at.strftime("%H%M%S")
    ds.SeriesDate = ds.ContentDate = ds.InstanceCreationDate = date
    ds.SeriesTime = ds.ContentTime = ds.InstanceCreationTime = time


def _add_derivation(ds: Dataset, used: Sequence[Source], work: Work, sources: Sequence[Dataset]) -> None:
    ds.DerivationDescription = work.description
    ds.DerivationCodeSequence = Items([coded(work.code)])
    ds.SourceImageSequence = Items([_reference(source) for source in used])
    acquired = Dataset()
    for keyword in _EQUIPMENT:
        if keyword in ds:
            setattr(acquired, keyword, ds[keyword].value)
            delattr(ds, keyword)
    processed = Dataset()
    for equipment in (ds, processed):
        equipment.Manufacturer, equipment.ManufacturerModelName = work.equipment.manufacturer, work.equipment.model_name
        equipment.SoftwareVersions = work.equipment.software_version
        if work.equipment.serial_number:
            equipment.DeviceSerialNumber = work.equipment.serial_number
    acquired.Manufacturer = acquired.get("Manufacturer") or ""
    acquired.PurposeOfReferenceCodeSequence = Items([coded(Code("109101", "DCM", "Acquisition Equipment"))])
    processed.PurposeOfReferenceCodeSequence = Items([coded(Code("109102", "DCM", "Processing Equipment"))])
    processed.ContributionDateTime = work.done_at.strftime("%Y%m%d%H%M%S%z")
    processed.ContributionDescription = work.description
    earlier = list(sources[0].get("ContributingEquipmentSequence") or [acquired])
    ds.ContributingEquipmentSequence = Items([*deepcopy(earlier), processed])


def _reference(source: Source) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.sop_class_uid, source.sop_instance_uid
    if source.frame is not None:
        item.ReferencedFrameNumber = source.frame
    return item


def coded(code: Code) -> Dataset:
    """Return a code as an item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning[:64]
    return item


def add_work(ds: Dataset, work: Work) -> None:
    """Write what was done and when, in place of the time of this run, into an object that is no image."""
    date, time = work.done_at.strftime("%Y%m%d"), work.done_at.strftime("%H%M%S")
    ds.ContentDate = ds.InstanceCreationDate = ds.SeriesDate = date
    ds.ContentTime = ds.InstanceCreationTime = ds.SeriesTime = time
    ds.SeriesDescription = work.title[:64]
    processed = Dataset()
    processed.Manufacturer, processed.ManufacturerModelName = work.equipment.manufacturer, work.equipment.model_name
    processed.SoftwareVersions = work.equipment.software_version
    processed.PurposeOfReferenceCodeSequence = Items([coded(Code("109102", "DCM", "Processing Equipment"))])
    processed.ContributionDateTime = work.done_at.strftime("%Y%m%d%H%M%S%z")
    processed.ContributionDescription = work.description
    ds.ContributingEquipmentSequence = Items([processed])


def _add_place(ds: Dataset, image: Image) -> None:
    if image.spacing_mm is not None:
        ds.PixelSpacing = [DSfloat(each, auto_format=True) for each in image.spacing_mm]
    if image.affine is None:
        for keyword in ("FrameOfReferenceUID", "PositionReferenceIndicator"):
            if keyword in ds:
                delattr(ds, keyword)
        return
    axes = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    normal = np.cross(axes[:, 2], axes[:, 1])
    ds.FrameOfReferenceUID = image.frame_of_reference_uid or ds.get("FrameOfReferenceUID", "")
    ds.PositionReferenceIndicator = ds.get("PositionReferenceIndicator") or None
    ds.ImagePositionPatient = [DSfloat(each, auto_format=True) for each in image.affine[:3, 3]]
    ds.ImageOrientationPatient = [DSfloat(each, auto_format=True) for each in (*axes[:, 2], *axes[:, 1])]
    ds.SliceThickness = DSfloat(abs(float(image.affine[:3, 0] @ normal)), auto_format=True)


def _add_pixels(ds: Dataset, image: Image, stored: Stored) -> None:
    ds.Rows, ds.Columns = stored.frames.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(stored.frames.dtype.kind == "i")
    ds.RescaleSlope = DSfloat(stored.slope, auto_format=True)
    ds.RescaleIntercept = DSfloat(stored.intercept, auto_format=True)
    if ds.SOPClassUID != PET_IMAGE:
        ds.RescaleType = RESCALE_TYPES.get(image.unit, "US")
    ds.BurnedInAnnotation = ds.get("BurnedInAnnotation") or "NO"
    value = stored.frames.astype(stored.frames.dtype.newbyteorder("<")).tobytes()
    ds.PixelData = value + b"\0" * (len(value) % 2)
    ds["PixelData"].VR = "OW"
