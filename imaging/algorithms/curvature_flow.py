"""Curvature flow."""

from dataclasses import dataclass
from typing import Annotated

import SimpleITK as sitk

from imaging.algorithm import Algorithm, Code, Result, Takes
from imaging.algorithms import algorithms
from imaging.geometry import Volume
from imaging.itk import from_itk, to_itk
from imaging.parameters import Says


@algorithms.register("curvature-flow")
@dataclass(frozen=True)
class CurvatureFlow(Algorithm):
    """Smooth a volume by moving its surfaces of equal value with their curvature; flat edges stay where they are.

    A cylinder of radius r shrinks to sqrt(r^2 - 2 t) in the time t = iterations x time step, in mm^2. Refuses slices
    that are shifted against each other.
    """

    iterations: Annotated[int, Says("number of steps", low=1, high=200)] = 5
    time_step: Annotated[
        float,
        Says(
            "time of a step; above 0.0625 of a squared voxel edge it grows unstable", unit="mm2", low=1e-4, high=0.0625
        ),
    ] = 0.0625

    version = "1"
    title = "Curvature flow"
    source = "Sethian, Level Set Methods, 1996, chapter 16; SimpleITK CurvatureFlowImageFilter"
    takes = Takes.VOLUME
    derivation = Code("113087", "DCM", "Smoothing")

    def __call__(self, volume: Volume) -> Result:
        """Return the smoothed volume."""
        smooth = sitk.CurvatureFlow(to_itk(volume), timeStep=self.time_step, numberOfIterations=self.iterations)
        return Result(volumes=(from_itk(smooth, volume),))
