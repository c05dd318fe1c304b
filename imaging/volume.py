"""From the instances of a series to an image or a volume in patient coordinates, or the reason why not.

Hides the order of slices, and all that makes a stack of slices no regular grid. What is not a regular grid is refused,
never resampled in silence. Source: PS3.3 C.7.6.2 (plane).
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import starmap
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from imaging import threads
from imaging.errors import AppError, Category
from imaging.frame_values import Padding, Pixels, Slice, frames_told, slices_of
from imaging.geometry import (
    ORTHOGONALITY,
    Float32,
    Image,
    Matrix,
    Volume,
    affine_from_attributes,
    normal_of,
)

Read = Callable[[Sequence[tuple[int, int]]], Iterable[Pixels]]
"""From (index of the instance, frame from 1) of each to [row, column] of each, container words."""

SPACING_TOLERANCE: Final = 0.02
"""Distances between slices may differ from their median by this part of it; scanners round positions to 0.01 mm."""
DUPLICATE_MM: Final = 1e-3
"""Slices nearer than this to each other lie at one place."""
TOGETHER: Final = 16
"""Frames that are read at once."""
MAX_VOXELS: Final = 1 << 31

_TELLING_APART: Final = (
    # what may tell several slices at one place apart
    "AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "TriggerTime", "DiffusionBValue", "ImageType",
)  # fmt: skip


class Tilt(StrEnum):
    """What to do with slices that are shifted against each other (CT with a tilted gantry)."""

    REFUSE = "refuse"
    KEEP = "keep"  # the affine matrix is sheared: right, but few algorithms can work on it


def image_from(ds: Dataset, pixels: Pixels, *, frame: int = 1) -> Image:
    """Return one frame in modality units, with its place in the patient where the instance says it.

    pixels  [row, column] of that frame, or [frame, row, column] of all, as decoded (container words)
    frame   counted from 1

    Padding gets the darkest of the other values. Raises INVALID for a frame or shape that the dataset does not have;
    UNSUPPORTED for colour and for a modality LUT that is a table.
    """
    count = frames_told(ds)
    if not 1 <= frame <= count:
        raise AppError(Category.INVALID, f"frame {frame} asked, the instance has {count}")
    (one,) = slices_of(ds, 0, [frame])
    if pixels.ndim == 3 and len(pixels) != count:
        message = f"pixels {pixels.shape} do not fit {count} frames"
        raise AppError(Category.INVALID, message, where=one.source.sop_instance_uid)
    affine = None
    if one.position_mm is not None and one.orientation is not None and one.spacing_mm is not None:
        step = normal_of(one.orientation) * (one.thickness_mm or 1.0)
        affine = affine_from_attributes(one.position_mm, one.orientation, one.spacing_mm, step)
    array = np.empty(one.shape, dtype=np.float32)
    padding = one.write(pixels if pixels.ndim == 2 else pixels[frame - 1], array)
    if padding is not None and np.isfinite(padding.darkest):
        np.copyto(array, padding.darkest, where=padding.mask)
    return Image(
        array=array,
        unit=one.unit,
        spacing_mm=one.spacing_mm,
        affine=affine,
        modality=str(ds.get("Modality", "OT")),
        frame_of_reference_uid=str(ds.get("FrameOfReferenceUID", "")),
        sources=(one.source,),
        is_inverse=one.is_inverse,
    )


def volume_from(datasets: Sequence[Dataset], frames: Sequence[Pixels], *, tilt: Tilt = Tilt.REFUSE) -> Volume:
    """Return the volume that instances and their frames, [row, column] or [frame, row, column], make; see `volume_of`.

    Raises what that raises, and INVALID for arrays that do not fit the instances.
    """
    if not datasets or len(datasets) != len(frames):
        raise AppError(
            Category.INVALID, f"{len(datasets)} instances and {len(frames)} arrays of pixels do not make a volume"
        )

    def frame(index: int, number: int) -> Pixels:
        stack = frames[index] if frames[index].ndim == 3 else frames[index][None]
        if len(stack) != frames_told(datasets[index]):
            message = f"pixels {frames[index].shape} do not fit the frames of the instance"
            raise AppError(Category.INVALID, message, where=str(datasets[index].get("SOPInstanceUID", "")))
        return np.asarray(stack[number - 1])

    return volume_of(datasets, lambda places: starmap(frame, places), tilt=tilt)


def volume_of(
    datasets: Sequence[Dataset], read: Read, *, frames: Sequence[int] = (), tilt: Tilt = Tilt.REFUSE
) -> Volume:
    """Return the volume that the instances of a series make, slices in the order of their normal.

    datasets  without pixel data, in any order; single-frame or enhanced multi-frame
    read      called for some frames at once when all else is known to be right, by as many threads as there are
              processors
    frames    of every instance, from 1; none for all

    The normal is row direction x column direction (PS3.3 C.7.6.2.1.1). A single slice is a volume as thick as its Slice
    Thickness. Takes 4 bytes for each voxel, and one more where padding is stated. Raises INVALID when slices are
    missing, doubled, unevenly spaced, or differ in size, direction, pixel distance, units or frame of reference;
    UNSUPPORTED for a tilted gantry (unless kept), colour, and instances without a place in the patient.
    """
    slices = [each for index, ds in enumerate(datasets) for each in slices_of(ds, index, frames)]
    _check_alike(slices)
    orientation = _common_orientation(slices)
    slices, step = _in_order(slices, orientation, tilt)
    first = slices[0]
    assert first.position_mm is not None  # noqa: S101 - _check_alike has refused it
    assert first.spacing_mm is not None  # noqa: S101
    array, padding = _filled(slices, read)
    thicknesses = {each.thickness_mm for each in slices}
    return Volume(
        array=array,
        affine=affine_from_attributes(first.position_mm, orientation, first.spacing_mm, step),
        unit=first.unit,
        modality=str(first.ds.get("Modality", "OT")),
        frame_of_reference_uid=str(first.ds.get("FrameOfReferenceUID", "")),
        sources=tuple(each.source for each in slices),
        thickness_mm=thicknesses.pop() if len(thicknesses) == 1 else None,
        is_inverse=first.is_inverse,
        padding=padding,
    )


def _filled(slices: Sequence[Slice], read: Read) -> tuple[Float32, NDArray[np.bool_] | None]:
    """Return values and padding [slice, row, column]."""
    array = np.empty((len(slices), *slices[0].shape), dtype=np.float32)

    def fill(places: Sequence[int]) -> list[Padding | None]:
        frames = read([(slices[place].index, slices[place].number) for place in places])
        return [slices[place].write(frame, array[place]) for place, frame in zip(places, frames, strict=True)]

    found = threads.together(fill, range(len(slices)), TOGETHER)
    padded = {place: each for place, each in enumerate(found) if each is not None}
    if not padded:
        return array, None
    darkest = (max if slices[0].is_inverse else min)(_darkest(array, place, padded) for place in range(len(slices)))
    padding = np.zeros(array.shape, dtype=np.bool_)

    def darken(place: int) -> None:
        padding[place] = padded[place].mask
        if np.isfinite(darkest):
            np.copyto(array[place], darkest, where=padding[place])

    deque(threads.each(darken, padded), maxlen=0)
    return array, padding


def _darkest(array: Float32, place: int, padded: Mapping[int, Padding]) -> float:
    """Return the darkest value of a slice that is no padding; beyond all numbers where all is padding."""
    if place in padded:
        return padded[place].darkest
    is_inverse = any(each.is_inverse for each in padded.values())
    return float(array[place].max() if is_inverse else array[place].min())


def _check_alike(slices: Sequence[Slice]) -> None:
    if not slices:
        raise AppError(Category.INVALID, "no images make no volume")
    first = slices[0]
    for each in slices:
        if each.position_mm is None or each.orientation is None or each.spacing_mm is None:
            message = "an image without position, orientation or pixel spacing has no place in a volume"
            raise AppError(Category.UNSUPPORTED, message, where=each.source.sop_instance_uid)
    checks: dict[str, set[Any]] = {
        "rows and columns": {each.shape for each in slices},
        "frames of reference": {str(each.ds.get("FrameOfReferenceUID", "")) for each in slices},
        "series": {str(each.ds.get("SeriesInstanceUID", "")) for each in slices},
        "units": {each.unit for each in slices},
        "photometric interpretations": {each.is_inverse for each in slices},
    }
    for what, found in checks.items():
        if len(found) > 1:
            raise AppError(
                Category.INVALID, f"the images have {len(found)} different {what}; give one series of one kind"
            )
    spacings = np.array([each.spacing_mm for each in slices])
    if np.abs(spacings - spacings[0]).max() > 1e-3 * spacings[0].min():
        raise AppError(Category.INVALID, "the images differ in pixel spacing", where="(0028,0030)")
    if len(slices) * first.shape[0] * first.shape[1] > MAX_VOXELS:
        raise AppError(Category.TOO_LARGE, f"more than {MAX_VOXELS} voxels; give fewer images")


def _common_orientation(slices: Sequence[Slice]) -> Matrix:
    orientations = np.array([each.orientation for each in slices])
    if np.abs(orientations - orientations[0]).max() > ORTHOGONALITY:
        kinds = len(np.unique(np.round(orientations, 2), axis=0))
        message = (
            f"the images lie in {max(kinds, 2)} directions (localizers among them?); give one stack of parallel slices"
        )
        raise AppError(Category.INVALID, message, where="(0020,0037)")
    common: Matrix = orientations[0]
    return common


def _in_order(slices: list[Slice], orientation: Matrix, tilt: Tilt) -> tuple[list[Slice], Matrix]:
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


def _check_distances(slices: Sequence[Slice], places_mm: Matrix) -> None:
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


def _doubled(slices: Sequence[Slice], index: int, count: int) -> str:
    one, other = slices[index], slices[index + 1]
    if one.index == other.index and one.number != other.number:
        numbers = f"frames {min(one.number, other.number)} and {max(one.number, other.number)} of one instance"
        return f"{count} slices lie where another one is, the first two are {numbers}: choose frames of one acquisition"
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
