"""Resampling to cubic voxels."""

from dataclasses import dataclass
from itertools import product
from typing import Annotated

import numpy as np

from imaging.algorithm import Algorithm, Code, Result, Takes
from imaging.algorithms import algorithms
from imaging.geometry import Volume
from imaging.parameters import Says
from imaging.resampling import sample, sources_of


@algorithms.register("resample-isotropic")
@dataclass(frozen=True)
class ResampleIsotropic(Algorithm):
    """Resample a volume to cubic voxels by linear interpolation, and set slices of a tilted gantry upright.

    Rows and columns keep their directions; slices follow the normal. The grid covers the centres of all voxels; its
    first point is the lowest corner. Points outside get the darkest value of the volume and are counted. There is no
    low-pass filter: choose no voxels much larger than those of the input.
    """

    spacing_mm: Annotated[float, Says("edge of a voxel", unit="mm", low=0.05, high=50)] = 1.0

    version = "2"
    title = "Isotropic resampling"
    source = "linear interpolation; scipy.ndimage.map_coordinates"
    takes = Takes.VOLUME
    takes_tilted = True
    derivation = Code("113085", "DCM", "Spatial resampling")

    def __call__(self, volume: Volume) -> Result:
        """Return the volume with cubic voxels."""
        axes = volume.directions
        axes[:, 0] = np.cross(axes[:, 2], axes[:, 1])
        corners = [volume.position_mm((k, j, i)) for k, j, i in product(*((0, n - 1) for n in volume.array.shape))]
        along = np.array(corners) @ axes
        counts = np.floor(np.ptp(along, axis=0) / self.spacing_mm + 1e-6).astype(int) + 1
        affine = np.eye(4)
        affine[:3, :3] = axes * self.spacing_mm
        affine[:3, 3] = axes @ along.min(axis=0)
        shape = (int(counts[0]), int(counts[1]), int(counts[2]))
        array, lost = sample(volume, affine, shape, outside=volume.darkest)
        made = volume.on_grid(array, affine, of_slices=sources_of(volume, affine, shape))
        return Result(volumes=(made,), lost=lost)
