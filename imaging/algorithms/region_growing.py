"""Segmentation by region growing."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from scipy import ndimage

from imaging.algorithm import Algorithm, Code, Measurement, Result, Segmentation, Takes
from imaging.algorithms import algorithms
from imaging.errors import AppError, Category
from imaging.geometry import Volume
from imaging.parameters import Says


@algorithms.register("region-growing")
@dataclass(frozen=True)
class RegionGrowing(Algorithm):
    """Segment the voxels between two bounds that hang together with a seed, and measure their volume in ml.

    Voxels hang together by their faces (6 neighbours). Padding is left out. Refuses a seed outside the volume or
    outside the bounds.
    """

    seed_mm: Annotated[tuple[float, float, float], Says("a point inside: x, y, z in the patient (LPS)", unit="mm")]
    low: Annotated[float, Says("lowest value, in the units of the image, e.g. HU", unit="")]
    high: Annotated[float, Says("highest value, in the units of the image, e.g. HU", unit="")] = 1e9

    version = "1"
    title = "Region growing"
    source = "connected component of low <= x <= high with 6 neighbours; scipy.ndimage.label"
    takes = Takes.VOLUME
    takes_tilted = True
    derivation = Code("113076", "DCM", "Segmentation")

    def __post_init__(self) -> None:
        """Raise INVALID for bounds that hold no value."""
        if self.low > self.high:
            raise AppError(Category.INVALID, "is above the highest value", where="low")

    def __call__(self, volume: Volume) -> Result:
        """Return the segmentation and its volume."""
        place = np.round(volume.index_at(self.seed_mm)).astype(int)
        if (place < 0).any() or (place >= volume.array.shape).any():
            raise AppError(Category.INVALID, "lies outside the volume", where="seed_mm")
        seed = (int(place[0]), int(place[1]), int(place[2]))
        within = volume.without_padding((volume.array >= self.low) & (volume.array <= self.high))
        if not within[seed]:
            raise AppError(Category.INVALID, "the value there lies outside of low ... high", where="seed_mm")
        labels, _ = ndimage.label(within)
        mask = labels == labels[seed]
        ml = int(np.count_nonzero(mask)) * volume.voxel_ml
        segment = Segmentation(mask, volume.affine, "region", volume.frame_of_reference_uid, volume.sources)
        measured = Measurement("volume", ml, "ml", Code("118565006", "SCT", "Volume"))
        return Result(segmentations=(segment,), measurements=(measured,))
