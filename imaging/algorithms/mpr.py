"""Multiplanar reformatting: slices of any direction."""

from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import Annotated

import numpy as np

from imaging.algorithm import Algorithm, Code, Result, Takes
from imaging.algorithms import algorithms
from imaging.errors import AppError, Category
from imaging.geometry import ORTHOGONALITY, Volume, normal_of
from imaging.parameters import Says
from imaging.resampling import sample, sources_of


class Plane(StrEnum):
    """The plane of the slices in the patient."""

    AXIAL = "axial"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"
    OBLIQUE = "oblique"


_ORIENTATIONS = {
    # row direction, then column direction, LPS; read as radiologists look: from the feet, the front, the left
    Plane.AXIAL: (1, 0, 0, 0, 1, 0),
    Plane.CORONAL: (1, 0, 0, 0, 0, -1),
    Plane.SAGITTAL: (0, 1, 0, 0, 0, -1),
}

_Vector = tuple[float, float, float]


@algorithms.register("mpr")
@dataclass(frozen=True)
class MultiplanarReformatting(Algorithm):
    """Cut a volume into axial, coronal, sagittal or oblique slices by linear interpolation.

    Slices follow each other along row direction x column direction and cover the centres of all voxels. Points outside
    the volume get its darkest value and are counted. For oblique slices both directions count, otherwise neither does.
    """

    plane: Annotated[Plane, Says("plane of the slices in the patient")] = Plane.CORONAL
    spacing_mm: Annotated[float, Says("between rows and between columns", unit="mm", low=0.05, high=50)] = 1.0
    step_mm: Annotated[float, Says("between slices", unit="mm", low=0.05, high=500)] = 1.0
    row_direction: Annotated[_Vector, Says("oblique: along a row, in x y z (LPS)", low=-1, high=1)] = (1.0, 0.0, 0.0)
    column_direction: Annotated[_Vector, Says("oblique: along a column, in x y z (LPS)", low=-1, high=1)] = (
        0.0,
        1.0,
        0.0,
    )

    version = "2"
    title = "Multiplanar reformatting"
    source = "PS3.3 C.7.6.2.1.1 (geometry); linear interpolation; scipy.ndimage.map_coordinates"
    takes = Takes.VOLUME
    takes_tilted = True
    derivation = Code("113072", "DCM", "Multiplanar reformatting")

    def __post_init__(self) -> None:
        """Raise INVALID for directions that make no plane."""
        self._orientation()

    def __call__(self, volume: Volume) -> Result:
        """Return the slices as a volume."""
        orientation = self._orientation()
        axes = np.stack([normal_of(orientation), orientation[3:], orientation[:3]], axis=1)
        corners = [volume.position_mm((k, j, i)) for k, j, i in product(*((0, n - 1) for n in volume.array.shape))]
        along = np.array(corners) @ axes
        spacing = np.array([self.step_mm, self.spacing_mm, self.spacing_mm])
        counts = np.floor(np.ptp(along, axis=0) / spacing + 1e-6).astype(int) + 1
        affine = np.eye(4)
        affine[:3, :3] = axes * spacing
        affine[:3, 3] = axes @ along.min(axis=0)
        shape = (int(counts[0]), int(counts[1]), int(counts[2]))
        array, lost = sample(volume, affine, shape, outside=volume.darkest)
        made = volume.on_grid(array, affine, of_slices=sources_of(volume, affine, shape))
        return Result(volumes=(made,), lost=lost)

    def _orientation(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        if self.plane is not Plane.OBLIQUE:
            return np.array(_ORIENTATIONS[self.plane], dtype=np.float64)
        row, column = np.array(self.row_direction), np.array(self.column_direction)
        if min(np.linalg.norm(row), np.linalg.norm(column)) < ORTHOGONALITY:
            raise AppError(Category.INVALID, "has no length", where="row_direction, column_direction")
        row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
        if abs(row @ column) > ORTHOGONALITY:
            raise AppError(Category.INVALID, "are not at right angles", where="row_direction, column_direction")
        column = column - row * (row @ column)
        return np.concatenate([row, column / np.linalg.norm(column)])
