"""Median filter."""

from dataclasses import dataclass, replace
from typing import Annotated

from scipy import ndimage

from imaging.algorithm import Algorithm, Code, Result, Takes
from imaging.algorithms import algorithms
from imaging.geometry import Image
from imaging.parameters import Says


@algorithms.register("median")
@dataclass(frozen=True)
class Median(Algorithm):
    """Replace every pixel by the median of the square around it; removes specks, keeps straight edges.

    Beyond the border the image is mirrored.
    """

    radius: Annotated[int, Says("pixels on each side of the middle one", unit="{pixels}", low=1, high=15)] = 1

    version = "1"
    title = "Median filter"
    source = "scipy.ndimage.median_filter"
    takes = Takes.IMAGE
    derivation = Code("113087", "DCM", "Smoothing")

    def __call__(self, image: Image) -> Result:
        """Return the filtered image."""
        filtered = ndimage.median_filter(image.array, size=2 * self.radius + 1, mode="reflect")
        return Result(images=(replace(image, array=filtered),))
