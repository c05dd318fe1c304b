"""From the instances of a series to an image or a volume in patient coordinates, or the reason why not.

Hides where attributes lie (classic instances, functional groups of enhanced ones), rescaling, the order of slices, and
all that makes a stack of slices no regular grid. What is not a regular grid is refused, never resampled in silence.
Sources: PS3.3 C.7.6.2 (plane), C.7.6.16.2 (functional groups), C.11.1 (modality LUT), C.8.9.1 (PET units).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from imaging.errors import AppError, Category
from imaging.geometry import (
    ORTHOGONALITY,
    Float32,
    Image,
    Matrix,
    Source,
    Volume,
    affine_from_attributes,
    normal_of,
)

Pixels = NDArray[Any]

SPACING_TOLERANCE: Final = 0.02
"""Distances between slices may differ from their median by this part of it; scanners round positions to 0.01 mm."""
DUPLICATE_MM: Final = 1e-3
"""Slices nearer than this to each other lie at one place."""
MAX_VOXELS: Final = 1 << 31

UNITS: Final = {
    # Rescale Type or Units  UCUM          source
    "HU": "[hnsf'U]",      # PS3.3 C.11.1.1.2
    "BQML": "Bq/ml",       # PS3.3 C.8.9.1.1.3, as are the next
    "CNTS": "{counts}",
    "PROPCNTS": "{counts}",
    "GML": "g/ml",
    "CM2ML": "cm2/ml",
    "OD": "m[OD]",         # thousandths of optical density
    "MGML": "mg/ml",
    "PCT": "%",
}  # fmt: skip

_TELLING_APART: Final = (
    # what may tell several slices at one place apart
    "AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "TriggerTime", "DiffusionBValue", "ImageType",
)  # fmt: skip


class Tilt(StrEnum):
    """What to do with slices that are shifted against each other (CT with a tilted gantry)."""

    REFUSE = "refuse"
    KEEP = "keep"  # the affine matrix is sheared: right, but few algorithms can work on it


@dataclass(frozen=True, slots=True, eq=False)
class _Slice:
    ds: Dataset
    source: Source
    pixels: Pixels
    slope: float
    intercept: float
    unit: str
    spacing_mm: tuple[float, float] | None
    position_mm: Matrix | None
    orientation: Matrix | None
    thickness_mm: float | None

    def values(self) -> Float32:
        """Return [row, column] in modality units."""
        stored = _stored_values(self.pixels, self.ds)
        return np.asarray(stored * np.float64(self.slope) + self.intercept, dtype=np.float32)


def image_from(ds: Dataset, pixels: Pixels, *, frame: int = 1) -> Image:
    """Return one frame in modality units, with its place in the patient where the instance says it.

    pixels  [row, column] of that frame, or [frame, row, column] of all, as decoded (container words)
    frame   counted from 1

    Raises INVALID for a frame or shape that the dataset does not have; UNSUPPORTED for colour and for a modality LUT
    that is a table.
    """
    slices = list(_slices(ds, pixels if pixels.ndim == 3 else pixels[None], first=1 if pixels.ndim == 3 else frame))
    found = [each for each in slices if (each.source.frame or 1) == frame]
    if not found:
        raise AppError(Category.INVALID, f"frame {frame} asked, the instance has {len(slices)}")
    (one,) = found
    affine = None
    if one.position_mm is not None and one.orientation is not None and one.spacing_mm is not None:
        step = normal_of(one.orientation) * (one.thickness_mm or 1.0)
        affine = affine_from_attributes(one.position_mm, one.orientation, one.spacing_mm, step)
    return Image(
        array=one.values(),
        unit=one.unit,
        spacing_mm=one.spacing_mm,
        affine=affine,
        modality=str(ds.get("Modality", "OT")),
        frame_of_reference_uid=str(ds.get("FrameOfReferenceUID", "")),
        sources=(one.source,),
    )


def volume_from(datasets: Sequence[Dataset], frames: Sequence[Pixels], *, tilt: Tilt = Tilt.REFUSE) -> Volume:
    """Return the volume that the instances of a series make, slices in the order of their normal.

    datasets  without pixel data, in any order; single-frame or enhanced multi-frame
    frames    for each dataset [row, column] or [frame, row, column], as decoded (container words)

    The normal is row direction x column direction (PS3.3 C.7.6.2.1.1). A single slice is a volume as thick as its Slice
    Thickness. Raises INVALID when slices are missing, doubled, unevenly spaced, or differ in size, direction, pixel
    distance, units or frame of reference; UNSUPPORTED for a tilted gantry (unless kept), colour, and instances without
    a place in the patient.
    """
    if not datasets or len(datasets) != len(frames):
        raise AppError(
            Category.INVALID, f"{len(datasets)} instances and {len(frames)} arrays of pixels do not make a volume"
        )
    slices = [each for ds, pixels in zip(datasets, frames, strict=True) for each in _slices(ds, pixels, first=1)]
    _check_alike(slices)
    orientation = _common_orientation(slices)
    slices, step = _in_order(slices, orientation, tilt)
    first = slices[0]
    assert first.position_mm is not None  # noqa: S101 - _check_alike has refused it
    assert first.spacing_mm is not None  # noqa: S101
    array = np.empty((len(slices), *first.pixels.shape), dtype=np.float32)
    for index, each in enumerate(slices):
        array[index] = each.values()
    return Volume(
        array=array,
        affine=affine_from_attributes(first.position_mm, orientation, first.spacing_mm, step),
        unit=first.unit,
        modality=str(first.ds.get("Modality", "OT")),
        frame_of_reference_uid=str(first.ds.get("FrameOfReferenceUID", "")),
        sources=tuple(each.source for each in slices),
    )


def _slices(ds: Dataset, pixels: Pixels, *, first: int) -> Iterator[_Slice]:
    """Yield the frames of one instance."""
    uid = str(ds.get("SOPInstanceUID", ""))
    if int(ds.get("SamplesPerPixel", 1) or 1) != 1 or ds.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise AppError(Category.UNSUPPORTED, "colour images have no modality units", where=uid)
    count = int(ds.get("NumberOfFrames", 1) or 1)
    stack = pixels if pixels.ndim == 3 else pixels[None]
    expected = (int(ds.get("Rows", 0)), int(ds.get("Columns", 0)))
    if stack.shape[1:] != expected or first - 1 + len(stack) > count:
        raise AppError(
            Category.INVALID, f"pixels {pixels.shape} do not fit {count} frames of {expected} pixels", where=uid
        )
    is_multi_frame = "NumberOfFrames" in ds
    for number, frame in enumerate(stack, start=first):
        groups = _Groups(ds, number)
        slope, intercept, unit = groups.rescale()
        yield _Slice(
            ds=ds,
            source=Source(str(ds.get("SOPClassUID", "")), uid, number if is_multi_frame else None),
            pixels=frame,
            slope=slope,
            intercept=intercept,
            unit=unit,
            spacing_mm=groups.spacing(),
            # One position at the top level, as in RT Dose and nuclear medicine, is not that of every frame.
            position_mm=groups.position() if groups.is_own or count == 1 else None,
            orientation=groups.numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6),
            thickness_mm=groups.thickness(),
        )


class _Groups:
    """Attributes of one frame: of its functional group, of the shared one, or of the top level."""

    def __init__(self, ds: Dataset, number: int) -> None:
        per_frame = ds.get("PerFrameFunctionalGroupsSequence") or []
        shared = ds.get("SharedFunctionalGroupsSequence") or []
        self._ds = ds
        self._items = [*per_frame[number - 1 : number], *shared[:1]]

    def item(self, sequence: str) -> Dataset:
        for group in self._items:
            if group.get(sequence):
                return Dataset(group[sequence].value[0])
        return self._ds

    @property
    def is_own(self) -> bool:
        """Whether the frame has a functional group of its own."""
        return bool(self._ds.get("PerFrameFunctionalGroupsSequence"))

    def position(self) -> Matrix | None:
        return self.numbers("PlanePositionSequence", "ImagePositionPatient", 3)

    def numbers(self, sequence: str, keyword: str, count: int) -> Matrix | None:
        value = self.item(sequence).get(keyword)
        if value is None or value == "":
            return None
        found = np.atleast_1d(np.asarray(value, dtype=np.float64))
        return found if len(found) == count and np.isfinite(found).all() else None

    def spacing(self) -> tuple[float, float] | None:
        for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
            found = self.numbers("PixelMeasuresSequence", keyword, 2)
            if found is not None and found.min() > 0:
                return float(found[0]), float(found[1])
        return None

    def thickness(self) -> float | None:
        found = self.numbers("PixelMeasuresSequence", "SliceThickness", 1)
        return float(found[0]) if found is not None and found[0] > 0 else None

    def rescale(self) -> tuple[float, float, str]:
        if self._ds.get("ModalityLUTSequence"):
            raise AppError(Category.UNSUPPORTED, "a modality LUT that is a table is not applied", where="(0028,3000)")
        item = self.item("PixelValueTransformationSequence")
        slope, intercept = float(item.get("RescaleSlope", 1) or 1), float(item.get("RescaleIntercept", 0) or 0)
        kind = str(item.get("RescaleType") or self._ds.get("Units") or "")
        if not kind and self._ds.get("Modality") == "CT" and "RescaleSlope" in item:
            kind = "HU"  # PS3.3 C.8.2.1: the default of original CT images
        return slope, intercept, UNITS.get(kind, "")


def _stored_values(pixels: Pixels, ds: Dataset) -> Pixels:
    """Return the sample values of container words: without the bits around them, sign extended."""
    if pixels.dtype.kind == "f":
        return pixels
    allocated = 8 * pixels.dtype.itemsize
    stored = int(ds.get("BitsStored", allocated) or allocated)
    high = int(ds.get("HighBit", stored - 1))
    if stored == allocated or not stored <= high + 1 <= allocated:
        return pixels
    # Left then right: drops what lies above the sample, and extends its sign where the type has one.
    return np.right_shift(np.left_shift(pixels, allocated - 1 - high), allocated - stored)


def _check_alike(slices: Sequence[_Slice]) -> None:
    first = slices[0]
    for each in slices:
        if each.position_mm is None or each.orientation is None or each.spacing_mm is None:
            message = "an image without position, orientation or pixel spacing has no place in a volume"
            raise AppError(Category.UNSUPPORTED, message, where=each.source.sop_instance_uid)
    checks: dict[str, set[Any]] = {
        "rows and columns": {each.pixels.shape for each in slices},
        "frames of reference": {str(each.ds.get("FrameOfReferenceUID", "")) for each in slices},
        "series": {str(each.ds.get("SeriesInstanceUID", "")) for each in slices},
        "units": {each.unit for each in slices},
    }
    for what, found in checks.items():
        if len(found) > 1:
            raise AppError(
                Category.INVALID, f"the images have {len(found)} different {what}; give one series of one kind"
            )
    spacings = np.array([each.spacing_mm for each in slices])
    if np.abs(spacings - spacings[0]).max() > 1e-3 * spacings[0].min():
        raise AppError(Category.INVALID, "the images differ in pixel spacing", where="(0028,0030)")
    if len(slices) * first.pixels.size > MAX_VOXELS:
        raise AppError(Category.TOO_LARGE, f"more than {MAX_VOXELS} voxels; give fewer images")


def _common_orientation(slices: Sequence[_Slice]) -> Matrix:
    orientations = np.array([each.orientation for each in slices])
    if np.abs(orientations - orientations[0]).max() > ORTHOGONALITY:
        kinds = len(np.unique(np.round(orientations, 2), axis=0))
        message = (
            f"the images lie in {max(kinds, 2)} directions (localizers among them?); give one stack of parallel slices"
        )
        raise AppError(Category.INVALID, message, where="(0020,0037)")
    common: Matrix = orientations[0]
    return common


def _in_order(slices: list[_Slice], orientation: Matrix, tilt: Tilt) -> tuple[list[_Slice], Matrix]:
    """Return slices by their place on the normal, and the step (3,) in mm from one to the next."""
    normal = normal_of(orientation)
    positions = np.array([each.position_mm for each in slices])
    order = np.argsort(positions @ normal, kind="stable")
    slices, positions = [slices[index] for index in order], positions[order]
    if len(slices) == 1:
        thickness = slices[0].thickness_mm
        if thickness is None:
            raise AppError(
                Category.UNSUPPORTED, "one slice without Slice Thickness makes no volume", where="(0018,0050)"
            )
        return slices, normal * thickness
    _check_distances(slices, positions @ normal)
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    _check_line(positions, step, normal, tilt)
    along: Matrix = normal * (step @ normal) if _tilt_of(step, normal) <= ORTHOGONALITY else step
    return slices, along


def _check_distances(slices: Sequence[_Slice], places_mm: Matrix) -> None:
    gaps = np.diff(places_mm)
    doubled = np.flatnonzero(gaps < DUPLICATE_MM)
    if doubled.size:
        raise AppError(Category.INVALID, _doubled(slices, int(doubled[0]), doubled.size))
    median = float(np.median(gaps))
    # The smallest gap, not the median, is the step where many slices are missing.
    step = float(gaps.min()) if gaps.max() > 1.5 * gaps.min() else median
    uneven = np.flatnonzero(np.abs(gaps - step) > SPACING_TOLERANCE * step)
    if not uneven.size:
        return
    counts = gaps[uneven] / step
    if (np.abs(counts - np.round(counts)) <= SPACING_TOLERANCE * counts).all() and (np.round(counts) > 1).all():
        missing = int(np.sum(np.round(counts) - 1))
        message = f"{missing} of {len(slices) + missing} slices are missing, the first after slice {int(uneven[0]) + 1}"
    else:
        message = f"distances between slices run from {gaps.min():.4g} to {gaps.max():.4g} mm; at most 2% are tolerated"
    raise AppError(Category.INVALID, message, where="(0020,0032)")


def _doubled(slices: Sequence[_Slice], index: int, count: int) -> str:
    one, other = slices[index], slices[index + 1]
    groups = [keyword for keyword in _TELLING_APART if one.ds.get(keyword) != other.ds.get(keyword)]
    hint = (
        f"; they differ in {', '.join(groups)}: give one acquisition" if groups else "; the same slice was given twice?"
    )
    return f"{count} slices lie where another one is, the first two at slice {index + 1}{hint}"


def _tilt_of(step: Matrix, normal: Matrix) -> float:
    """Return the part of the step that lies in the plane, as a part of the step."""
    return float(np.linalg.norm(step - normal * (step @ normal)) / np.linalg.norm(step))


def _check_line(positions: Matrix, step: Matrix, normal: Matrix, tilt: Tilt) -> None:
    on_line = positions[0] + np.arange(len(positions))[:, None] * step
    off_mm = float(np.linalg.norm(positions - on_line, axis=1).max())
    if off_mm > 0.1 * float(np.linalg.norm(step)):
        raise AppError(Category.INVALID, f"the slices do not lie on a straight line: {off_mm:.3g} mm off")
    if tilt is Tilt.REFUSE and _tilt_of(step, normal) > ORTHOGONALITY:
        degrees = np.degrees(np.arcsin(min(1.0, _tilt_of(step, normal))))
        message = f"the slices are shifted against each other (gantry tilt of {degrees:.1f} degrees)"
        raise AppError(Category.UNSUPPORTED, message, where="(0020,0032)")
