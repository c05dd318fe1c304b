"""Measurements in a region of interest."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import numpy as np

from imaging.algorithm import Algorithm, Code, Measurement, Result, Segmentation, Takes
from imaging.algorithms import algorithms
from imaging.errors import AppError, Category
from imaging.geometry import Volume
from imaging.parameters import Says


class Shape(StrEnum):
    """The form of the region."""

    BOX = "box"
    ELLIPSOID = "ellipsoid"


@algorithms.register("roi-measure")
@dataclass(frozen=True)
class RoiMeasure(Algorithm):
    """Measure mean, standard deviation, extremes and volume of a box or an ellipsoid in patient coordinates.

    A voxel belongs to the region if its centre does; the border belongs to it, padding does not. The standard deviation
    is that of a sample (n - 1), 0 for one voxel. Refuses a region that holds no voxel.
    """

    center_mm: Annotated[tuple[float, float, float], Says("middle of the region: x, y, z (LPS)", unit="mm")]
    half_size_mm: Annotated[
        tuple[float, float, float], Says("from the middle to the border along x, y, z", unit="mm", low=1e-3)
    ]
    shape: Annotated[Shape, Says("form of the region")] = Shape.ELLIPSOID

    version = "1"
    title = "Region of interest: mean, deviation, volume"
    source = "PS3.16 CID 7464 (ROI measurements); sample statistics"
    takes = Takes.VOLUME
    takes_tilted = True
    derivation = Code("113076", "DCM", "Segmentation")

    def __call__(self, volume: Volume) -> Result:
        """Return the region and its measurements."""
        mask = volume.without_padding(self._mask(volume))
        values = volume.array[mask].astype(np.float64)
        if not values.size:
            raise AppError(Category.INVALID, "the region holds no voxel of the volume", where="center_mm")
        deviation = float(values.std(ddof=1)) if values.size > 1 else 0.0
        unit = volume.unit or "1"
        measured = (
            Measurement("mean", float(values.mean()), unit, Code("373098007", "SCT", "Mean")),
            Measurement("standard_deviation", deviation, unit, Code("386136009", "SCT", "Standard Deviation")),
            Measurement("minimum", float(values.min()), unit, Code("255605001", "SCT", "Minimum")),
            Measurement("maximum", float(values.max()), unit, Code("56851009", "SCT", "Maximum")),
            Measurement("volume", values.size * volume.voxel_ml, "ml", Code("118565006", "SCT", "Volume")),
        )
        segment = Segmentation(mask, volume.affine, "region of interest", volume.frame_of_reference_uid, volume.sources)
        return Result(segmentations=(segment,), measurements=measured)

    def _mask(self, volume: Volume) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Return [slice, row, column]: which voxels' centres lie in the region; one slice at a time."""
        mask = np.zeros(volume.array.shape, dtype=np.bool_)
        rows, columns = np.meshgrid(*(np.arange(n) for n in volume.array.shape[1:]), indexing="ij")
        for index in range(len(mask)):
            indices = np.stack([np.full(rows.shape, index), rows, columns]).astype(np.float64)
            places = np.tensordot(volume.affine[:3, :3], indices, axes=1) + volume.affine[:3, 3].reshape(3, 1, 1)
            scaled = np.abs(places - np.reshape(self.center_mm, (3, 1, 1))) / np.reshape(self.half_size_mm, (3, 1, 1))
            far = scaled.max(axis=0) if self.shape is Shape.BOX else np.linalg.norm(scaled, axis=0)
            mask[index] = far <= 1 + 1e-9
        return mask
