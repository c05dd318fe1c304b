"""Segmentation by threshold."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from imaging.algorithm import Algorithm, Code, Measurement, Result, Segmentation, Takes
from imaging.algorithms import algorithms
from imaging.errors import AppError, Category
from imaging.geometry import Volume
from imaging.parameters import Says


@algorithms.register("threshold")
@dataclass(frozen=True)
class Threshold(Algorithm):
    """Segment the voxels whose value lies between two bounds, both included, and measure their volume in ml.

    Padding is left out.
    """

    low: Annotated[float, Says("lowest value, in the units of the image, e.g. HU", unit="")]
    high: Annotated[float, Says("highest value, in the units of the image, e.g. HU", unit="")] = 1e9

    version = "1"
    title = "Threshold segmentation"
    source = "low <= x <= high; volume = voxels x volume of a voxel"
    takes = Takes.VOLUME
    takes_tilted = True
    derivation = Code("113076", "DCM", "Segmentation")

    def __post_init__(self) -> None:
        """Raise INVALID for bounds that hold no value."""
        if self.low > self.high:
            raise AppError(Category.INVALID, "is above the highest value", where="low")

    def __call__(self, volume: Volume) -> Result:
        """Return the segmentation and its volume."""
        mask = volume.without_padding((volume.array >= self.low) & (volume.array <= self.high))
        ml = int(np.count_nonzero(mask)) * volume.voxel_ml
        segment = Segmentation(mask, volume.affine, "threshold", volume.frame_of_reference_uid, volume.sources)
        measured = Measurement("volume", ml, "ml", Code("118565006", "SCT", "Volume"))
        return Result(segmentations=(segment,), measurements=(measured,))
