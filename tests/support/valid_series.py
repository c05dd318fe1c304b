"""Series of small images that conform to their object definitions, so that what is derived of them can be judged.

Pixels follow a formula: a warm ball on a slope, so that every algorithm finds something in them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from imaging.derive_kept import CT_IMAGE, MR_IMAGE, PET_IMAGE
from tests.support.dicom_builder import ROOT

SIZE, SLICES = 24, 12
SPACING_MM = (2.0, 1.5, 1.25)  # between slices, rows, columns

_PATIENT: Mapping[str, Any] = {
    "PatientName": "Test^Person", "PatientID": "P1", "PatientBirthDate": "19700101", "PatientSex": "O",
    "StudyDate": "20260102", "StudyTime": "101500", "StudyID": "1", "AccessionNumber": "A1",
    "ReferringPhysicianName": "", "Laterality": "", "Manufacturer": "Nobody", "ManufacturerModelName": "Model",
    "DeviceSerialNumber": "1", "SoftwareVersions": "1", "PatientPosition": "HFS", "PositionReferenceIndicator": "",
    "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 16,
    "HighBit": 15,
}  # fmt: skip


def phantom(slices: int = SLICES, size: int = SIZE) -> NDArray[np.int16]:
    """Return [slice, row, column]: 10 per slice and 5 per column, and 400 more in a ball in the middle."""
    z, y, x = np.indices((slices, size, size))
    ball = ((z - (slices - 1) / 2) / (slices / 3)) ** 2 + sum(((i - (size - 1) / 2) / (size / 3)) ** 2 for i in (y, x))
    return np.asarray(10 * z + 5 * x + np.where(ball <= 1, 400, 0), np.int16)


def ct_series(pixels: NDArray[np.int16] | None = None, **changes: Any) -> list[Dataset]:
    """Return axial CT slices from the feet up, with pixel data, in HU - 1000."""
    attributes = {
        "SOPClassUID": CT_IMAGE, "Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "KVP": 120,
        "RescaleSlope": 1, "RescaleIntercept": -1000, "RescaleType": "HU", "PixelRepresentation": 1,
        "AcquisitionNumber": 1,
    }  # fmt: skip
    return _series(1, attributes | changes, phantom() if pixels is None else pixels)


def mr_series(pixels: NDArray[np.int16] | None = None, **changes: Any) -> list[Dataset]:
    """Return axial MR slices from the feet up, with pixel data."""
    attributes = {
        "SOPClassUID": MR_IMAGE, "Modality": "MR", "ImageType": ["ORIGINAL", "PRIMARY", "M", "SE"],
        "ScanningSequence": "SE", "SequenceVariant": "NONE", "ScanOptions": "", "MRAcquisitionType": "2D",
        "RepetitionTime": 500, "EchoTime": 10, "EchoTrainLength": 1, "PixelRepresentation": 0,
    }  # fmt: skip
    return _series(2, attributes | changes, phantom() if pixels is None else pixels)


def pet_series(pixels: NDArray[np.int16] | None = None, **changes: Any) -> list[Dataset]:
    """Return axial PET slices from the feet up, with pixel data; slice n is rescaled by 1 + n / 10."""
    tracer = Dataset()
    for keyword, value in {
        "RadionuclideCodeSequence": Items([_code("77004003", "SCT", "^18^Fluorine")]),
        "RadiopharmaceuticalStartTime": "090000", "RadiopharmaceuticalStartDateTime": "20260102090000",
        "RadionuclideTotalDose": 3.5e8, "RadionuclideHalfLife": 6586.2, "RadionuclidePositronFraction": 0.97,
    }.items():  # fmt: skip
        setattr(tracer, keyword, value)
    attributes = {
        "SOPClassUID": PET_IMAGE, "Modality": "PT", "ImageType": ["ORIGINAL", "PRIMARY"], "Units": "BQML",
        "CountsSource": "EMISSION", "SeriesType": ["STATIC", "IMAGE"], "CorrectedImage": ["DECY", "ATTN"],
        "DecayCorrection": "START", "CollimatorType": "", "PixelRepresentation": 1, "RescaleIntercept": 0,
        "NumberOfSlices": SLICES, "FrameReferenceTime": 0, "ActualFrameDuration": 120_000, "DecayFactor": 1,
        "PatientWeight": 70, "PatientSize": 1.75, "RadiopharmaceuticalInformationSequence": Items([tracer]),
        "PatientOrientationCodeSequence": Items([_code("102538003", "SCT", "recumbent")]),
        "PatientGantryRelationshipCodeSequence": Items([_code("102540008", "SCT", "headfirst")]),
        "SeriesDate": "20260102", "SeriesTime": "100000",
    }  # fmt: skip
    made = _series(3, attributes | changes, phantom() if pixels is None else pixels)
    for number, ds in enumerate(made):
        del ds.PatientPosition  # told by the two sequences
        ds.RescaleSlope, ds.ImageIndex = 1 + number / 10, number + 1
        ds.PatientOrientationCodeSequence[0].PatientOrientationModifierCodeSequence = Items(
            [_code("40199007", "SCT", "supine")]
        )
    return made


def without_pixels(datasets: list[Dataset]) -> tuple[list[Dataset], list[NDArray[Any]]]:
    """Return data sets and frames, as the archive gives them."""
    kept, frames = [], []
    for ds in datasets:
        frames.append(np.frombuffer(ds.PixelData, "<i2" if ds.PixelRepresentation else "<u2").reshape(ds.Rows, -1))
        plain = Dataset({tag: ds[tag] for tag in ds.keys() if tag != 0x7FE00010})  # noqa: SIM118
        kept.append(plain)
    return kept, frames


def _series(number: int, attributes: Mapping[str, Any], pixels: NDArray[np.int16]) -> list[Dataset]:
    made = []
    uid = f"{ROOT}.77.{number}"
    for index, plane in enumerate(pixels):
        ds = Dataset()
        fixed = {
            "StudyInstanceUID": f"{ROOT}.77", "SeriesInstanceUID": uid, "SeriesNumber": number,
            "SOPInstanceUID": f"{uid}.{index + 1}", "InstanceNumber": index + 1, "FrameOfReferenceUID": f"{ROOT}.77.9",
            "Rows": plane.shape[0], "Columns": plane.shape[1], "PixelSpacing": list(SPACING_MM[1:]),
            "SliceThickness": SPACING_MM[0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [-20.0, -30.0, 40 + SPACING_MM[0] * index],
            "SliceLocation": 40 + SPACING_MM[0] * index, "SeriesDate": "20260102", "SeriesTime": "101600",
            "AcquisitionDate": "20260102", "AcquisitionTime": "101600", "ContentDate": "20260102",
            "ContentTime": "101600",
        }  # fmt: skip
        for keyword, value in ({**_PATIENT, **fixed} | attributes).items():
            setattr(ds, keyword, value)
        ds.PixelData = plane.astype("<i2").tobytes()
        ds["PixelData"].VR = "OW"
        made.append(ds)
    return made


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
