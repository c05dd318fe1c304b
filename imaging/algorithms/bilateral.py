"""Bilateral filter."""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import SimpleITK as sitk

from imaging.algorithm import Algorithm, Code, Result, Takes
from imaging.algorithms import algorithms
from imaging.geometry import Image
from imaging.parameters import Says


@algorithms.register("bilateral")
@dataclass(frozen=True)
class Bilateral(Algorithm):
    """Smooth an image by the mean of near pixels of similar value, so that strong edges stay.

    Weights are Gaussian in the distance and in the difference of values.
    """

    sigma_values: Annotated[
        float, Says("differences of values that are smoothed, in the units of the image", unit="", low=1e-6)
    ]
    sigma: Annotated[float, Says("standard deviation of the distance", unit="{pixels}", low=0.3, high=20)] = 2.0

    version = "1"
    title = "Bilateral filter"
    source = "Tomasi and Manduchi, ICCV 1998; SimpleITK BilateralImageFilter"
    takes = Takes.IMAGE
    derivation = Code("113087", "DCM", "Smoothing")

    def __call__(self, image: Image) -> Result:
        """Return the filtered image."""
        filtered = sitk.Bilateral(sitk.GetImageFromArray(image.array), self.sigma, self.sigma_values, 100)
        return Result(images=(replace(image, array=np.asarray(sitk.GetArrayFromImage(filtered))),))
