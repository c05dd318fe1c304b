"""Unsharp masking."""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from scipy import ndimage

from imaging.algorithm import Algorithm, Code, Result, Takes
from imaging.algorithms import algorithms
from imaging.geometry import Image
from imaging.parameters import Says


@algorithms.register("unsharp")
@dataclass(frozen=True)
class Unsharp(Algorithm):
    """Sharpen an image by adding what a Gaussian blur takes away: y = x + amount (x - blurred x).

    A wave of w radians per pixel is amplified by 1 + amount (1 - exp(-(sigma w)^2 / 2)). The border is continued by its
    last value.
    """

    sigma: Annotated[float, Says("standard deviation of the blur", unit="{pixels}", low=0.2, high=50)] = 2.0
    amount: Annotated[float, Says("share of the difference that is added", low=0, high=20)] = 1.0

    version = "1"
    title = "Unsharp masking"
    source = "y = x + amount (x - G x); scipy.ndimage.gaussian_filter"
    takes = Takes.IMAGE
    derivation = Code("113089", "DCM", "Unsharp mask")

    def __call__(self, image: Image) -> Result:
        """Return the sharpened image."""
        x = image.array.astype(np.float64)
        y = x + self.amount * (x - ndimage.gaussian_filter(x, self.sigma, mode="nearest"))
        return Result(images=(replace(image, array=y.astype(np.float32)),))
