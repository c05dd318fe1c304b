"""Builds series of slices as pydicom datasets and frames, with geometry that is known in closed form."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from imaging.derive import to_part10
from imaging.geometry import Image, Volume
from tests.support.dicom_builder import CT_IMAGE, ROOT

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"


def slice_dataset(position: Sequence[float], number: int = 1, **attributes: Any) -> Dataset:
    """Return a CT slice of 4 rows and 5 columns, 0.5 mm between rows, 0.25 mm between columns."""
    ds = Dataset()
    ds.SOPClassUID, ds.Modality = CT_IMAGE, "CT"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{ROOT}.1", f"{ROOT}.1.1"
    ds.SOPInstanceUID, ds.FrameOfReferenceUID = f"{ROOT}.1.1.{number}", f"{ROOT}.7"
    ds.PatientID, ds.PatientName, ds.InstanceNumber = "P1", "Test^Person", number
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 4, 5, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept = 2, -1000
    ds.PixelSpacing, ds.ImageOrientationPatient = [0.5, 0.25], list(AXIAL)
    ds.ImagePositionPatient, ds.SliceThickness = [float(value) for value in position], 3.0
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def ct_files(count: int = 6, study: str = "1.2.3.4", series: str = "1.2.3.4.5", **attributes: Any) -> list[bytes]:
    """Return the files of slices 2 mm apart; slice n, from 0, is -1000 + 20 n HU everywhere."""
    files = []
    for n in range(count):
        ds = slice_dataset(
            (0, 0, 2.0 * n), n + 1, StudyInstanceUID=study, SeriesInstanceUID=series, SeriesNumber=3,
            SOPInstanceUID=f"{series}.{n + 1}", **attributes,
        )  # fmt: skip
        ds.PixelData = np.full((4, 5), 10 * n, np.int16).tobytes()
        ds["PixelData"].VR = "OW"
        files.append(to_part10(ds))
    return files


def frame(value: int) -> NDArray[np.int16]:
    return np.full((4, 5), value, dtype=np.int16)


def axial_series(places_mm: Sequence[float]) -> tuple[list[Dataset], list[NDArray[np.int16]]]:
    """Return slices at these z, each filled with ten times its number."""
    datasets = [slice_dataset((1, 2, z), number) for number, z in enumerate(places_mm)]
    return datasets, [frame(10 * number) for number in range(len(places_mm))]


def enhanced(positions: Sequence[Sequence[float]]) -> Dataset:
    """Return an enhanced CT whose frames lie at these positions; slope 3, intercept -5."""
    ds = slice_dataset((0, 0, 0), SOPClassUID=ENHANCED_CT, NumberOfFrames=len(positions))
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(ds, keyword)
    measures, plane, transform = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.25], 3.0
    plane.ImageOrientationPatient = list(AXIAL)
    transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = 3, -5, "HU"
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Items([measures]), Items([plane])
    shared.PixelValueTransformationSequence = Items([transform])
    ds.SharedFunctionalGroupsSequence = Items([shared])
    ds.PerFrameFunctionalGroupsSequence = Items([_group(position) for position in positions])
    return ds


def _group(position: Sequence[float]) -> Dataset:
    place, group = Dataset(), Dataset()
    place.ImagePositionPatient = [float(value) for value in position]
    group.PlanePositionSequence = Items([place])
    return group


def volume_of(array: NDArray[Any], spacing: tuple[float, float, float] = (1.0, 1.0, 1.0), **fields: Any) -> Volume:
    """Return an axial volume with its first voxel at the origin."""
    affine = np.array(
        [[0, 0, spacing[2], 0], [0, spacing[1], 0, 0], [spacing[0], 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64
    )
    return Volume(np.asarray(array, dtype=np.float32), affine, **fields)


def image_of(array: NDArray[Any], **fields: Any) -> Image:
    return Image(np.asarray(array, dtype=np.float32), **fields)
