"""Slabs: several slices projected into one."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import numpy as np

from imaging import threads
from imaging.algorithm import Algorithm, Code, Result, Takes
from imaging.algorithms import algorithms
from imaging.errors import AppError, Category
from imaging.geometry import Float32, Volume
from imaging.parameters import Says


class Projection(StrEnum):
    """What is taken from the slices of a slab."""

    MAXIMUM = "maximum"
    MINIMUM = "minimum"
    MEAN = "mean"


_REDUCTIONS: dict[Projection, tuple[Callable[..., Any], Code]] = {
    Projection.MAXIMUM: (np.max, Code("113078", "DCM", "Maximum intensity projection")),
    Projection.MINIMUM: (np.min, Code("113079", "DCM", "Minimum intensity projection")),
    Projection.MEAN: (np.mean, Code("113049", "DCM", "Pixel by pixel mean")),
}


@algorithms.register("slab")
@dataclass(frozen=True)
class Slab(Algorithm):
    """Project slabs of slices to their maximum (MIP), minimum (MinIP) or mean, along the normal of the slices.

    A slab has the number of slices nearest to its thickness, at least one and at most all; slabs start the number of
    slices nearest to the step apart. Only whole slabs are made. A result lies in the middle of its slab. Padding does
    not count, except where there is nothing else.
    """

    projection: Annotated[Projection, Says("what is taken from the slices of a slab")] = Projection.MAXIMUM
    thickness_mm: Annotated[
        float, Says("thickness of a slab; more than the volume means all of it", unit="mm", low=0.05)
    ] = 10.0
    step_mm: Annotated[float, Says("from one slab to the next", unit="mm", low=0.05)] = 10.0

    version = "1"
    title = "Slab projection (MIP, MinIP, mean)"
    source = "maximum, minimum or mean along the slice axis"
    takes = Takes.VOLUME
    derivation = Code("113078", "DCM", "Maximum intensity projection")

    def __call__(self, volume: Volume) -> Result:
        """Return one slice for each slab."""
        if volume.is_sheared:
            raise AppError(Category.UNSUPPORTED, "slices are shifted against each other (gantry tilt); resample first")
        count, spacing = len(volume.array), volume.spacing_mm[0]
        thick = min(max(1, round(self.thickness_mm / spacing)), count)
        step = max(1, round(self.step_mm / spacing))
        slabs = [slice(start, start + thick) for start in range(0, count - thick + 1, step)]
        array = np.empty((len(slabs), *volume.array.shape[1:]), dtype=np.float32)

        def project(place: int) -> None:
            array[place] = self._projected(volume, slabs[place])

        deque(threads.each(project, range(len(slabs))), maxlen=0)
        affine = volume.affine.copy()
        affine[:3, 3] = volume.position_mm(((thick - 1) / 2, 0, 0))
        affine[:3, 0] *= step
        of_slices = tuple(tuple(source for one in volume.slice_sources[slab] for source in one) for slab in slabs)
        made = volume.on_grid(array, affine, of_slices=of_slices, thickness_mm=thick * spacing)
        return Result(volumes=(made,))

    def _projected(self, volume: Volume, slab: slice) -> Float32:
        reduce, _ = _REDUCTIONS[self.projection]
        values = volume.array[slab]
        # What is darkest anyway does not show.
        darkest = Projection.MINIMUM if volume.is_inverse else Projection.MAXIMUM
        if self.projection is darkest or volume.padding is None or not volume.padding[slab].any():
            return np.asarray(reduce(values, axis=0), dtype=np.float32)
        hidden = np.ma.masked_array(values, volume.padding[slab])
        return np.asarray(reduce(hidden, axis=0).filled(values.min()), dtype=np.float32)

    def performed(self) -> Code:
        """Return the code of the projection."""
        return _REDUCTIONS[self.projection][1]
