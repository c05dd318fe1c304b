"""Rigid registration of two volumes."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

import numpy as np
import SimpleITK as sitk

from imaging.algorithm import Algorithm, Code, Result, Takes
from imaging.algorithms import algorithms
from imaging.errors import AppError, Category
from imaging.geometry import Volume
from imaging.itk import to_itk
from imaging.parameters import Says


class Metric(StrEnum):
    """How well two volumes agree."""

    MUTUAL_INFORMATION = "mutual-information"  # also between modalities
    MEAN_SQUARES = "mean-squares"  # equal values for equal tissue


@algorithms.register("rigid-registration")
@dataclass(frozen=True)
class RigidRegistration(Algorithm):
    """Find the rotation and shift that bring a moving volume onto a fixed one, and resample it there.

    Starts with the centres of both grids on each other, then descends at three resolutions. The transform maps
    positions (mm, LPS) of the fixed volume to positions in the moving one. Points without value get the darkest one.
    Refuses fewer than 8 slices, rows or columns.
    """

    metric: Annotated[Metric, Says("how agreement is measured")] = Metric.MUTUAL_INFORMATION
    iterations: Annotated[int, Says("at most, at each resolution", low=1, high=1000)] = 100

    version = "1"
    title = "Rigid registration"
    source = "Mattes et al., IEEE Trans Med Imaging 22(1), 2003; SimpleITK ImageRegistrationMethod"
    takes = Takes.PAIR
    derivation = Code("113085", "DCM", "Spatial resampling")

    def __call__(self, fixed: Volume, moving: Volume) -> Result:
        """Return the moving volume on the grid of the fixed one, and the transform."""
        if min(*fixed.array.shape, *moving.array.shape) < 8:
            raise AppError(Category.UNSUPPORTED, "fewer than 8 slices, rows or columns cannot be registered")
        to, of = to_itk(fixed), to_itk(moving)
        transform = self._registered(to, of)
        aligned = sitk.GetArrayFromImage(sitk.Resample(of, to, transform, sitk.sitkLinear, moving.darkest))
        of_slices = tuple((*moving.sources, *sources) for sources in fixed.slice_sources)
        volume = moving.on_grid(np.asarray(aligned, dtype=np.float32), fixed.affine, of_slices=of_slices)
        return Result(
            volumes=(replace(volume, frame_of_reference_uid=fixed.frame_of_reference_uid),),
            transform=_matrix(transform),
        )

    def _registered(self, fixed: sitk.Image, moving: sitk.Image) -> sitk.Euler3DTransform:
        start = sitk.CenteredTransformInitializer(
            fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
        )
        method = sitk.ImageRegistrationMethod()
        if self.metric is Metric.MUTUAL_INFORMATION:
            method.SetMetricAsMattesMutualInformation(32)
        else:
            method.SetMetricAsMeanSquares()
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, self.iterations, 0.5)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([4, 2, 1] if min(fixed.GetSize()) >= 32 else [1, 1, 1])
        method.SetSmoothingSigmasPerLevel([2, 1, 0])
        method.SetInitialTransform(start, inPlace=False)
        try:
            found = method.Execute(fixed, moving)
        except RuntimeError as error:
            raise AppError(Category.UNSUPPORTED, "the volumes do not overlap enough to be registered") from error
        return sitk.Euler3DTransform(sitk.CompositeTransform(found).GetBackTransform())


def _matrix(transform: sitk.Euler3DTransform) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    matrix[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    return matrix
