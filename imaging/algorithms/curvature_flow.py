"""Curvature flow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import SimpleITK as sitk
from pydicom.dataset import Dataset

from imaging.algorithm import Algorithm, Code, Result, Takes
from imaging.algorithms import algorithms
from imaging.errors import AppError, Category
from imaging.geometry import Volume
from imaging.itk import from_itk, to_itk
from imaging.parameters import Says

_DEFAULT = 0.0625


@algorithms.register("curvature-flow")
@dataclass(frozen=True)
class CurvatureFlow(Algorithm):
    """Smooth a volume by moving its surfaces of equal value with their curvature; flat edges stay where they are.

    A cylinder of radius r shrinks to sqrt(r^2 - 2 t) in the time t = iterations x time step, in mm^2. Refuses slices
    that are shifted against each other, and a time step of more than 1/6 of the square of the shortest voxel edge,
    beyond which it is unstable.
    """

    iterations: Annotated[int, Says("number of steps", low=1, high=200)] = 5
    time_step: Annotated[
        float,
        Says("time of a step", unit="mm2", low=1e-4, high=1),
    ] = _DEFAULT

    version = "1"
    title = "Curvature flow"
    source = "Sethian, Level Set Methods, 1996, chapter 16; SimpleITK CurvatureFlowImageFilter"
    takes = Takes.VOLUME
    derivation = Code("113087", "DCM", "Smoothing")

    @classmethod
    def presets(cls, datasets: Sequence[Dataset]) -> dict[str, Any]:
        """Return a shorter step for pixels that the default is too long for."""
        spacing = datasets[0].get("PixelSpacing")
        shortest = min(float(each) for each in spacing) if spacing else 1.0
        return {"time_step": shortest**2 / 8} if shortest**2 / 8 < _DEFAULT else {}

    def __call__(self, volume: Volume) -> Result:
        """Return the smoothed volume."""
        longest = min(volume.spacing_mm) ** 2 / 6
        if self.time_step > longest:
            message = f"at most {longest:.3g} mm2 for voxels of {min(volume.spacing_mm):.3g} mm, or it is unstable"
            raise AppError(Category.INVALID, message, where="time_step")
        smooth = sitk.CurvatureFlow(to_itk(volume), timeStep=self.time_step, numberOfIterations=self.iterations)
        return Result(volumes=(from_itk(smooth, volume),))
