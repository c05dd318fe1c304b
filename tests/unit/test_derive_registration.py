"""A registration becomes a Spatial Registration object whose matrices lead where the transform does."""

import math
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from imaging.algorithm import Result
from imaging.dataset import read
from imaging.derive import to_part10
from imaging.derive_registration import derive_registration
from imaging.errors import AppError, Category
from tests.support.dicom_builder import ROOT
from tests.support.volumes import axial_series
from tests.unit.test_derive import work

DONE = work(algorithm="rigid-registration", title="Rigid registration")
POINTS = ((0.0, 0.0, 0.0), (10.0, -20.0, 30.0), (1.5, 2.5, -3.5))


def transform_to(ds: Dataset, sop_instance_uid: str) -> np.ndarray:
    """Return where positions of the registered frame lie in an image: the inverse of what is told of that."""
    (item,) = (
        each
        for each in ds.RegistrationSequence
        if sop_instance_uid in [image.ReferencedSOPInstanceUID for image in each.ReferencedImageSequence]
    )
    return np.linalg.inv(matrix(item))


def quarter_turn() -> np.ndarray:
    """Fixed to moving: (x, y, z) -> (5 - y, x - 7, z + 11), a quarter turn about z with a shift, in mm."""
    return np.array([[0, -1, 0, 5], [1, 0, 0, -7], [0, 0, 1, 11], [0, 0, 0, 1.0]])


def images(**moving_attributes: Any) -> tuple[list[Dataset], list[Dataset]]:
    fixed, _ = axial_series([0, 2])
    moving, _ = axial_series([0, 2])
    for number, ds in enumerate(moving):
        ds.SeriesInstanceUID, ds.SOPInstanceUID = f"{ROOT}.1.2", f"{ROOT}.1.2.{number}"
        ds.FrameOfReferenceUID = f"{ROOT}.8"
        for keyword, value in moving_attributes.items():
            setattr(ds, keyword, value)
    return fixed, moving


def written(transform: np.ndarray | None, fixed: list[Dataset], moving: list[Dataset]) -> Dataset:
    ds = derive_registration(Result(transform=transform), fixed, moving, DONE, series_number=9)
    return dcmread(BytesIO(to_part10(ds)))


def matrix(item: Dataset) -> np.ndarray:
    stored = item.MatrixRegistrationSequence[0].MatrixSequence[0].FrameOfReferenceTransformationMatrix
    return np.array(stored, dtype=float).reshape(4, 4)


def test_the_matrix_of_moving_images_leads_into_the_frame_of_the_fixed_ones():
    fixed, moving = images()

    ds = written(quarter_turn(), fixed, moving)

    first, second = ds.RegistrationSequence
    assert ds.FrameOfReferenceUID == first.FrameOfReferenceUID == f"{ROOT}.7"
    assert second.FrameOfReferenceUID == f"{ROOT}.8"
    assert np.array_equal(matrix(first), np.eye(4))
    for x, y, z in POINTS:
        # where fixed (x, y, z) lies in the moving images
        in_moving = (5 - y, x - 7, z + 11, 1)
        assert np.allclose(matrix(second) @ in_moving, (x, y, z, 1), atol=1e-9)


def test_it_reads_back_as_the_transform_of_both_sides():
    fixed, moving = images()
    angle = math.radians(7)
    transform = np.eye(4)
    transform[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    transform[:3, 3] = 1.25, -2.5, 1 / 3

    ds = written(transform, fixed, moving)

    assert np.allclose(transform_to(ds, moving[1].SOPInstanceUID), transform, atol=1e-11)
    assert np.array_equal(transform_to(ds, fixed[1].SOPInstanceUID), np.eye(4))


def test_images_of_one_frame_of_reference_are_named_without_it():
    fixed, moving = images(FrameOfReferenceUID=f"{ROOT}.7")

    ds = written(quarter_turn(), fixed, moving)

    assert ds.FrameOfReferenceUID == f"{ROOT}.7"
    assert ["FrameOfReferenceUID" in item for item in ds.RegistrationSequence] == [False, False]


def test_it_says_which_images_of_which_series_and_study_were_registered():
    fixed, moving = images(StudyInstanceUID=f"{ROOT}.2")

    ds = written(quarter_turn(), fixed, moving)

    assert [item.ReferencedSOPInstanceUID for item in ds.RegistrationSequence[1].ReferencedImageSequence] == [
        image.SOPInstanceUID for image in moving
    ]
    (here,), (other,) = ds.ReferencedSeriesSequence, ds.StudiesContainingOtherReferencedInstancesSequence
    assert here.SeriesInstanceUID == fixed[0].SeriesInstanceUID
    assert (other.StudyInstanceUID, other.ReferencedSeriesSequence[0].SeriesInstanceUID) == (
        f"{ROOT}.2",
        f"{ROOT}.1.2",
    )
    assert (ds.StudyInstanceUID, ds.Modality, ds.SeriesNumber) == (fixed[0].StudyInstanceUID, "REG", 9)
    assert ds.ContributingEquipmentSequence[0].ContributionDescription.startswith("Rigid registration")


def test_it_is_accepted_as_received_files_are_and_the_same_in_a_second_run():
    fixed, moving = images()
    result = Result(transform=quarter_turn())

    one, other = (to_part10(derive_registration(result, fixed, moving, DONE, series_number=9)) for _ in range(2))

    assert one == other
    assert read(one).summary.instance.sop_class_uid == "1.2.840.10008.5.1.4.1.1.66.1"


def test_what_is_no_rigid_transform_of_one_patient_is_refused():
    fixed, moving = images()
    _, stranger = images(PatientID="P2")
    nowhere, _ = axial_series([0, 2])
    for ds in nowhere:
        del ds.FrameOfReferenceUID
    scaled = np.diag([1.1, 1, 1, 1])

    for arguments, words in (
        ((None, fixed, moving), "none"),
        ((scaled, fixed, moving), "rotation with a shift"),
        ((np.diag([-1.0, 1, 1, 1]), fixed, moving), "rotation with a shift"),
        ((quarter_turn(), fixed, stranger), "two patients"),
        ((quarter_turn(), nowhere, moving), "no frame of reference"),
    ):
        with pytest.raises(AppError, match=words) as caught:
            written(*arguments)
        assert caught.value.category in (Category.INVALID, Category.UNSUPPORTED)
