"""The transform of a registration as a Spatial Registration object, and back.

Its matrices map positions of a frame of reference to the registered one, which here is that of the fixed images: the
identity for these, and for the moving images the inverse of `Result.transform`, which leads the other way. Where both
lie in one frame of reference, items name images only, since the frame cannot be shifted against itself.
Sources: PS3.3 A.39.1 (IOD), C.20.2 (module), C.20.2.1.1 (matrix), C.12.2 (common instance reference), CID 7100.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.valuerep import DSfloat

from imaging.algorithm import Code, Result
from imaging.derive import Work, add_work, coded
from imaging.errors import AppError, Category
from imaging.geometry import ORTHOGONALITY, Matrix

SPATIAL_REGISTRATION: Final = "1.2.840.10008.5.1.4.1.1.66.1"

_BY_CONTENT: Final = Code("125024", "DCM", "Image Content-based Alignment")
_KEPT: Final = (
    # type 1 and 2 of patient and study, and what tells them apart; empty where the images lack them
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber",
    "ReferringPhysicianName",
)  # fmt: skip
_OPTIONAL: Final = frozenset({"SpecificCharacterSet", "IssuerOfPatientID", "StudyDescription"})


def derive_registration(
    result: Result, fixed: Sequence[Dataset], moving: Sequence[Dataset], work: Work, *, series_number: int
) -> Dataset:
    """Return the registration of the moving images to the fixed ones, in a new series of the study of the fixed ones.

    fixed, moving  datasets of the images that were read, without pixel data; of one patient

    Raises INVALID without a transform, for one that is not rigid, and for images of two patients; UNSUPPORTED for fixed
    images without frame of reference.
    """
    if result.transform is None:
        raise AppError(Category.INVALID, "a registration object needs a transform; this result has none")
    if len({str(ds.get("PatientID", "")) for ds in (*fixed, *moving)}) != 1:
        raise AppError(Category.INVALID, "the fixed and the moving images are of two patients")
    frame_uid = _frame_of(fixed)
    if not frame_uid:
        raise AppError(Category.UNSUPPORTED, "the fixed images have no frame of reference", where="(0020,0052)")
    ds = _started(fixed[0], work, series_number)
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = frame_uid, fixed[0].get("PositionReferenceIndicator")
    moving_uid = _frame_of(moving)
    is_one_frame = moving_uid == frame_uid
    ds.RegistrationSequence = Items([
        _item(fixed, "" if is_one_frame else frame_uid, np.eye(4)),
        _item(moving, "" if is_one_frame else moving_uid, _inverse(result.transform)),
    ])  # fmt: skip
    _add_references(ds, (*fixed, *moving))
    add_work(ds, work)
    return ds


def _started(first: Dataset, work: Work, series_number: int) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.Modality, ds.Laterality = SPATIAL_REGISTRATION, "REG", None
    for keyword in _KEPT:
        if keyword in first or keyword not in _OPTIONAL:
            setattr(ds, keyword, first.get(keyword))
    ds.SeriesInstanceUID, ds.SOPInstanceUID = work.uid("registration"), work.uid("registration", "instance", 1)
    ds.SeriesNumber, ds.InstanceNumber = series_number, 1
    ds.ContentLabel, ds.ContentDescription, ds.ContentCreatorName = "REGISTRATION", work.title[:64], None
    ds.Manufacturer, ds.ManufacturerModelName = work.equipment.manufacturer, work.equipment.model_name
    ds.SoftwareVersions = work.equipment.software_version
    ds.DeviceSerialNumber = work.equipment.serial_number or "none"
    return ds


def _frame_of(images: Sequence[Dataset]) -> str:
    uids = {str(ds.get("FrameOfReferenceUID") or "") for ds in images}
    if len(uids) != 1:
        raise AppError(Category.INVALID, f"{len(uids)} frames of reference where one is needed", where="(0020,0052)")
    return uids.pop()


def _inverse(transform: Matrix) -> Matrix:
    """Return the inverse of a rotation with a shift. Raises INVALID for anything else."""
    rotation = transform[:3, :3]
    is_orthonormal = np.abs(rotation @ rotation.T - np.eye(3)).max() <= ORTHOGONALITY
    if not is_orthonormal or np.linalg.det(rotation) < 0 or not np.array_equal(transform[3], [0, 0, 0, 1]):
        raise AppError(Category.INVALID, "the transform is not a rotation with a shift", where="(3006,00C6)")
    inverse = np.eye(4)
    inverse[:3, :3] = rotation.T
    inverse[:3, 3] = -rotation.T @ transform[:3, 3]
    return inverse


def _item(images: Sequence[Dataset], frame_uid: str, matrix: Matrix) -> Dataset:
    one = Dataset()
    one.FrameOfReferenceTransformationMatrixType = "RIGID"
    one.FrameOfReferenceTransformationMatrix = [DSfloat(each, auto_format=True) for each in matrix.ravel()]
    registration = Dataset()
    registration.RegistrationTypeCodeSequence = Items([coded(_BY_CONTENT)])
    registration.MatrixSequence = Items([one])
    item = Dataset()
    if frame_uid:
        item.FrameOfReferenceUID = frame_uid
    item.ReferencedImageSequence = Items([_reference(ds) for ds in images])
    item.MatrixRegistrationSequence = Items([registration])
    return item


def _reference(ds: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    return item


def _add_references(ds: Dataset, images: Sequence[Dataset]) -> None:
    """Write in which series, and in which other studies, the images are."""
    studies: dict[str, dict[str, list[Dataset]]] = {}
    for image in images:
        series = studies.setdefault(str(image.StudyInstanceUID), {})
        series.setdefault(str(image.SeriesInstanceUID), []).append(image)
    here = studies.pop(str(ds.StudyInstanceUID))
    ds.ReferencedSeriesSequence = _series(here)
    if studies:
        others = []
        for uid, series in studies.items():
            other = Dataset()
            other.StudyInstanceUID, other.ReferencedSeriesSequence = uid, _series(series)
            others.append(other)
        ds.StudiesContainingOtherReferencedInstancesSequence = Items(others)


def _series(series: dict[str, list[Dataset]]) -> Items:
    items = []
    for uid, images in series.items():
        item = Dataset()
        item.SeriesInstanceUID = uid
        item.ReferencedInstanceSequence = Items([_reference(ds) for ds in images])
        items.append(item)
    return Items(items)
