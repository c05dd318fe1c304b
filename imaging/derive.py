"""Results of algorithms as DICOM instances: a new series of the same study that says what was done to what, by whom.

The same task, algorithm and input always make the same UIDs and the same bytes. What of the sources is kept is told in
`derive_kept`. Sources: PS3.3 C.7.6.1 (General Image), C.12.1 (SOP Common), 10.7 (which spacing is whose).
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_sequence_item
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag
from pydicom.valuerep import DSfloat

from imaging.algorithm import Code, Result
from imaging.derive_files import to_part10 as to_part10
from imaging.derive_kept import CT_IMAGE, PET_IMAGE, REQUIRED, class_of, kept
from imaging.errors import AppError, Category
from imaging.geometry import Float32, Image, Matrix, Source, Volume, letters_of

NAMESPACE: Final = UUID("6d3f6d5e-3f0c-5a0a-9d0e-0f4c1b6f7a52")
"""Namespace of the UUIDs from which UIDs of results are made (PS3.5 B.2)."""

RESCALE_TYPES: Final = {"[hnsf'U]": "HU"}
"""UCUM unit to Rescale Type; other units are "US", unspecified (PS3.3 C.11.1.1.2)."""
PET_UNITS: Final = {"Bq/ml": "BQML", "g/ml": "GML", "{counts}": "CNTS", "cm2/ml": "CM2ML", "%": "PCT"}

SOURCE_IMAGES: Final = BaseTag(0x00082112)
PIXEL_DATA: Final = BaseTag(0x7FE00010)
_KINDS: Final = ("AXIAL", "LOCALIZER")  # of CT images.   Source: PS3.3 C.8.2.1.1.1
_MOST_KNOWN: Final = 16
_ZONE: Final = re.compile(r"[+-](0\d|1[0-4])[0-5]\d")
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
        return self.uids()(*parts)

    def uids(self) -> Callable[..., str]:
        """Return what `uid` does, for many parts: what they have in common is hashed once. Source: RFC 9562 5.5."""
        seed = [self.key, self.algorithm, self.version, dict(self.parameters), list(self.input_digests)]
        common = hashlib.sha1(NAMESPACE.bytes + _json(seed)[:-1] + b",", usedforsecurity=False)

        def uid(*parts: str | int) -> str:
            whole = common.copy()
            whole.update(_json(parts) + b"]")
            return f"2.25.{UUID(bytes=whole.digest()[:16], version=5).int}"

        return uid

    @property
    def frame_of_reference_uid(self) -> str:
        """UID of the frame of reference of results whose sources name none."""
        return self.uid("frame of reference")

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
    common, used = kept(sources), _References()
    encodings = convert_encodings(common.SpecificCharacterSet) if "SpecificCharacterSet" in common else default_encoding
    modalities = {str(each.get("Modality") or "") for each in sources} - {""}
    groups: list[list[Image]] = [slices_of(volume) for volume in result.volumes]
    groups += [list(result.images)] if result.images else []
    for number, group in enumerate(groups):
        is_placed, is_pet_unit = all(image.affine is not None for image in group), group[0].unit in PET_UNITS
        uid = class_of(sources, is_placed=is_placed, is_pet_unit=is_pet_unit)
        stored = quantise([image.array for image in group], is_pet=uid == PET_IMAGE)
        series = copied(common)
        if not series.get("FrameOfReferenceUID"):
            _put(series, "FrameOfReferenceUID", work.frame_of_reference_uid)
        if any(each.get("BurnedInAnnotation") == "YES" for each in sources):
            _put(series, "BurnedInAnnotation", "YES")
        series.Modality = next(iter(modalities)) if len(modalities) == 1 else group[0].modality
        _add_class(series, group, uid, sources[0])
        _add_series(series, work, number, series_number + number)
        if uid == PET_IMAGE:
            _add_times_of_decay(series, sources)
        _add_derivation(series, work, sources)
        templates, uid_of = _Templates(series, sources), work.uids()
        for index, (image, each) in enumerate(zip(group, stored, strict=True), start=1):
            ds = copied(templates.of(image, each))
            _put(ds, "SOPInstanceUID", uid_of("series", number, "instance", index))
            _put(ds, "InstanceNumber", index)
            if uid == PET_IMAGE:
                _put(ds, "ImageIndex", index)
            ds[SOURCE_IMAGES] = used.element(image.sources)
            if image.affine is not None:
                _put(ds, "ImagePositionPatient", [DSfloat(each, auto_format=True) for each in image.affine[:3, 3]])
            ds.add_new(PIXEL_DATA, "OW", _padded(each.frames))
            # So that pydicom writes the references as they are, and does not read them for that.
            ds.set_original_encoding(False, True, encodings)
            yield ds


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def slices_of(volume: Volume) -> list[Image]:
    """Return the slices, each with its place and its sources, as thick as they are."""
    step_mm, row_mm, column_mm = volume.spacing_mm
    thick = np.ones(4) if volume.thickness_mm is None else np.array([volume.thickness_mm / step_mm, 1, 1, 1])
    return [
        Image(
            array=plane,
            unit=volume.unit,
            spacing_mm=(row_mm, column_mm),
            affine=_moved(volume.affine * thick, volume.position_mm((index, 0, 0))),
            modality=volume.modality,
            frame_of_reference_uid=volume.frame_of_reference_uid,
            sources=sources,
            is_inverse=volume.is_inverse,
        )
        for index, (plane, sources) in enumerate(zip(volume.array, volume.slice_sources, strict=True))
    ]


def quantise(arrays: Sequence[Float32], *, is_pet: bool = False) -> Iterator[Stored]:
    """Return an iterator of values as 16-bit integers, with one slope and intercept for all arrays.

    Whole numbers that fit are kept exactly, with slope 1 and intercept 0. Others are spread over the whole range; PET
    images have no intercept (PS3.3 C.8.9.4.1.6). Raises INVALID for values that are not finite.
    """
    low, high = min(float(each.min()) for each in arrays), max(float(each.max()) for each in arrays)
    if not np.isfinite([low, high]).all():
        raise AppError(Category.INVALID, "the result has values that are not finite")
    kind = np.int16 if low < 0 else np.uint16
    info = np.iinfo(kind)
    if info.min <= low and high <= info.max and all(_are_whole(each) for each in arrays):
        return (Stored(each.astype(kind), 1.0, 0.0) for each in arrays)
    if is_pet:
        slope, intercept = _decimal(max(-low, high) / info.max), 0.0
    else:
        kind, info = np.uint16, np.iinfo(np.uint16)
        slope, intercept = _decimal((high - low) / info.max or 1.0), _decimal(low)
    return (Stored(_scaled(each, slope, intercept, info), slope, intercept) for each in arrays)


def _scaled(values: Float32, slope: float, intercept: float, info: Any) -> NDArray[Any]:
    # In float32, whose error is some thousandths of a step.
    scaled = (values - np.float32(intercept)) * np.float32(1 / slope)
    np.rint(scaled, out=scaled)
    return np.clip(scaled, info.min, info.max, out=scaled).astype(info.dtype)


def _are_whole(values: Float32) -> bool:
    # A few of them tell most of what is not whole.
    return all(bool(np.array_equal(part, np.rint(part))) for part in (values[:1], values))


def _decimal(value: float) -> float:
    """Return the number as a decimal string of 16 characters can write it (PS3.5 6.2, VR DS)."""
    return float(str(DSfloat(value, auto_format=True)))


def _moved(affine: Matrix, position: Matrix) -> Matrix:
    moved = affine.copy()
    moved[:3, 3] = position
    return moved


def copied(ds: Dataset) -> Dataset:
    """Return a dataset with the same elements, of which others can be put in place; deepcopy takes milliseconds."""
    return Dataset(dict(ds.items()))


def _put(ds: Dataset, keyword: str, value: Any) -> None:
    """Put an element in place of one that others may share, whose value an assignment would change for all of them."""
    tag = tag_for_keyword(keyword)
    assert tag is not None  # noqa: S101 -- keywords here are the standard's
    ds.add_new(tag, dictionary_VR(tag), value)


class _Templates:
    """The instances of a series as far as they are alike: most often all of them, but for place and pixels."""

    def __init__(self, series: Dataset, sources: Sequence[Dataset]) -> None:
        self._series, self._sources = series, sources
        self._kind: tuple[Any, ...] | None = None
        self._last = series

    def of(self, image: Image, stored: Stored) -> Dataset:
        """Return what an image has in common with others of its kind, to be copied."""
        axes = None if image.affine is None else image.affine[:3, :3].tobytes()
        pixels = (
            stored.frames.shape,
            stored.frames.dtype,
            stored.slope,
            stored.intercept,
            image.is_inverse,
            image.unit,
        )
        kind = (axes, image.spacing_mm, image.frame_of_reference_uid, *pixels)
        if kind != self._kind:
            self._kind, self._last = kind, copied(self._series)
            _add_place(self._last, image, self._sources)
            _add_pixels(self._last, image, stored)
        return self._last


def _add_class(ds: Dataset, group: Sequence[Image], class_uid: str, first: Dataset) -> None:
    ds.SOPClassUID = class_uid
    for keyword, value in REQUIRED[class_uid].items():
        if keyword not in ds:
            setattr(ds, keyword, value)
    if not {"Laterality", "ImageLaterality", "BodyPartExamined"} & set(ds.dir()):
        ds.Laterality = None  # wanted of what may be a paired structure
    original = [str(each) for each in first.get("ImageType") or []]
    kind = [each for each in original[2:3] if each in _KINDS] if class_uid == CT_IMAGE else original[2:3]
    ds.ImageType = ["DERIVED", "SECONDARY", *(kind or [_KINDS[0] if class_uid == CT_IMAGE else "OTHER"])]
    if class_uid == PET_IMAGE:
        ds.ImageType = ["DERIVED", "PRIMARY"]
        ds.Units, ds.NumberOfSlices = PET_UNITS[group[0].unit], len(group)
        ds.FrameReferenceTime = first.get("FrameReferenceTime") or 0
        if ds.Units == "GML":
            ds.SUVType = "BW"


def _add_series(ds: Dataset, work: Work, series: int, series_number: int) -> None:
    ds.SeriesInstanceUID, ds.SeriesNumber = work.uid("series", series), series_number
    ds.SeriesDescription = work.title[:64]
    _add_times(ds, work)


def _add_times(ds: Dataset, work: Work) -> None:
    """Write when it was done, in the zone that the dataset says its times are of."""
    zone = str(ds.get("TimezoneOffsetFromUTC") or "")
    done_at = work.done_at.astimezone(datetime.strptime(zone, "%z").tzinfo) if _ZONE.fullmatch(zone) else work.done_at
    date, time = done_at.strftime("%Y%m%d"), done_at.strftime("%H%M%S")
    ds.SeriesDate = ds.ContentDate = ds.InstanceCreationDate = date
    ds.SeriesTime = ds.ContentTime = ds.InstanceCreationTime = time


def _add_times_of_decay(ds: Dataset, sources: Sequence[Dataset]) -> None:
    """Keep the times that activities of PET are corrected to, and that a reader checks these by (PS3.3 C.8.9.1)."""
    first = min(sources, key=lambda each: (str(each.get("AcquisitionDate")), str(each.get("AcquisitionTime"))))
    ds.SeriesDate, ds.SeriesTime = sources[0].get("SeriesDate"), sources[0].get("SeriesTime")
    ds.AcquisitionDate, ds.AcquisitionTime = first.get("AcquisitionDate"), first.get("AcquisitionTime")


def _add_derivation(ds: Dataset, work: Work, sources: Sequence[Dataset]) -> None:
    ds.DerivationDescription = work.description
    ds.DerivationCodeSequence = Items([coded(work.code)])
    acquired = Dataset()
    for keyword in _EQUIPMENT:
        if keyword in ds:
            setattr(acquired, keyword, ds[keyword].value)
            delattr(ds, keyword)
    _add_equipment(ds, work.equipment)
    acquired.Manufacturer = acquired.get("Manufacturer") or "unknown"
    acquired.PurposeOfReferenceCodeSequence = Items([coded(Code("109101", "DCM", "Acquisition Equipment"))])
    earlier = list(sources[0].get("ContributingEquipmentSequence") or [acquired])
    ds.ContributingEquipmentSequence = Items([*deepcopy(earlier), _processing(work)])


def _processing(work: Work) -> Dataset:
    """Return who processed, and what was done, as an item of Contributing Equipment Sequence (PS3.3 C.12.1.1.5)."""
    item = Dataset()
    _add_equipment(item, work.equipment)
    item.PurposeOfReferenceCodeSequence = Items([coded(Code("109102", "DCM", "Processing Equipment"))])
    item.ContributionDateTime = work.done_at.strftime("%Y%m%d%H%M%S%z")
    item.ContributionDescription = work.description
    return item


def _add_equipment(ds: Dataset, equipment: Equipment) -> None:
    ds.Manufacturer, ds.ManufacturerModelName = equipment.manufacturer, equipment.model_name
    ds.SoftwareVersions = equipment.software_version
    if equipment.serial_number:
        ds.DeviceSerialNumber = equipment.serial_number


class _References:
    """Source Image Sequences, written once for all images that have the same sources: thousands of both may be."""

    def __init__(self) -> None:
        self._known: dict[tuple[Source, ...], RawDataElement] = {}
        # By identity: the hash of thousands of sources takes as long as an image. They are kept, so it stays theirs.
        self._same: dict[int, tuple[tuple[Source, ...], RawDataElement]] = {}

    def element(self, sources: tuple[Source, ...]) -> RawDataElement:
        """Return the sequence of references in the bytes of a file; pydicom reads it when it is asked for."""
        known = self._same.get(id(sources))
        if known is None:
            if len(self._same) > _MOST_KNOWN:
                self._same.clear()
            known = self._same[id(sources)] = (sources, self._of(sources))
        return known[1]

    def _of(self, sources: tuple[Source, ...]) -> RawDataElement:
        if sources not in self._known:
            if len(self._known) > _MOST_KNOWN:
                self._known.clear()
            out = DicomBytesIO()
            out.is_little_endian, out.is_implicit_VR = True, False
            for source in sources:
                write_sequence_item(out, _reference(source), ["iso8859"])
            value = out.getvalue()
            self._known[sources] = RawDataElement(SOURCE_IMAGES, "SQ", len(value), value, 0, False, True)
        return self._known[sources]


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
    _add_times(ds, work)
    ds.SeriesDescription = work.title[:64]
    ds.ContributingEquipmentSequence = Items([_processing(work)])


def _add_place(ds: Dataset, image: Image, sources: Sequence[Dataset]) -> None:
    """Write how an image lies, but not where."""
    if image.spacing_mm is not None:
        # Distances at the detector are not those in the patient, and stay what they are.
        is_at_detector = "PixelSpacing" not in sources[0] and "ImagerPixelSpacing" in sources[0]
        keyword = "ImagerPixelSpacing" if is_at_detector and image.affine is None else "PixelSpacing"
        _put(ds, keyword, [DSfloat(each, auto_format=True) for each in image.spacing_mm])
    if image.affine is None:
        _put(ds, "PatientOrientation", None)
        for keyword in ("FrameOfReferenceUID", "PositionReferenceIndicator"):
            if keyword in ds:
                delattr(ds, keyword)
        return
    axes = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    normal = np.cross(axes[:, 2], axes[:, 1])
    directions = [DSfloat(each, auto_format=True) for each in (*axes[:, 2], *axes[:, 1])]
    _put(ds, "FrameOfReferenceUID", image.frame_of_reference_uid or ds.get("FrameOfReferenceUID", ""))
    _put(ds, "PositionReferenceIndicator", ds.get("PositionReferenceIndicator") or None)
    _put(ds, "ImageOrientationPatient", directions)
    _put(ds, "PatientOrientation", [letters_of(axes[:, 2]), letters_of(axes[:, 1])])
    _put(ds, "SliceThickness", DSfloat(abs(float(image.affine[:3, 0] @ normal)), auto_format=True))


def _add_pixels(ds: Dataset, image: Image, stored: Stored) -> None:
    """Write what pixels are like, but not the pixels."""
    rows, columns = stored.frames.shape
    told: dict[str, Any] = {
        "Rows": rows,
        "Columns": columns,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME1" if image.is_inverse else "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(stored.frames.dtype.kind == "i"),
        "RescaleSlope": DSfloat(stored.slope, auto_format=True),
        "RescaleIntercept": DSfloat(stored.intercept, auto_format=True),
    }
    if ds.SOPClassUID != PET_IMAGE:
        told["RescaleType"] = RESCALE_TYPES.get(image.unit, "US")
    for keyword, value in told.items():
        _put(ds, keyword, value)


def _padded(frame: NDArray[Any]) -> bytes:
    value = frame.astype(frame.dtype.newbyteorder("<"), copy=False).tobytes()
    return value + b"\0" * (len(value) % 2)
