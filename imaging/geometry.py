"""Images and volumes with their place in the patient: plain frozen values that algorithms take and give.

Positions are millimetres in the patient's coordinate system: x to the left, y to the back, z to the head (LPS).
Voxel indices count centres: (0, 0, 0) is the centre of the first pixel of the first slice. Source: PS3.3 C.7.6.2.1.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imaging.errors import AppError, Category

_AXES: Final = ("LR", "PA", "HF")  # towards, and away from: left, posterior, head
_OBLIQUE: Final = 0.087  # cosine of 85 degrees

Float32 = NDArray[np.float32]
Matrix = NDArray[np.float64]

ORTHOGONALITY: Final = 1e-3
"""How far the cosine between two axes may be from 0; attributes are written in 6 decimals, often in 4."""


@dataclass(frozen=True, slots=True)
class Source:
    """The instance, and the frame of it counted from 1 if it has several, that pixels came from."""

    sop_class_uid: str
    sop_instance_uid: str
    frame: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """One frame.

    array       [row, column], float32, modality units
    unit        UCUM code of the values; "" where the images do not say
    spacing_mm  between rows, between columns; None where unknown
    affine      4x4, from (0, row, column) to the patient's (x, y, z) in mm; None without a place in the patient
    is_inverse  whether low values are shown white (MONOCHROME1)
    """

    array: Float32
    unit: str = ""
    spacing_mm: tuple[float, float] | None = None
    affine: Matrix | None = None
    modality: str = "OT"
    frame_of_reference_uid: str = ""
    sources: tuple[Source, ...] = ()
    is_inverse: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """Parallel slices at equal distances.

    array         [slice, row, column], float32, modality units
    affine        4x4, from (slice, row, column, 1) to the patient's (x, y, z, 1) in mm
    unit          UCUM code of the values; "" where the images do not say
    of_slices     the sources of each slice, where that is not one for each, or all for all of them
    thickness_mm  of a slice where it is not the distance between slices, as with overlapping ones
    is_inverse    whether low values are shown white (MONOCHROME1)
    padding       [slice, row, column], bool: voxels that are no image, whose values are the darkest of the others;
                  None without any
    """

    array: Float32
    affine: Matrix
    unit: str = ""
    modality: str = "OT"
    frame_of_reference_uid: str = ""
    sources: tuple[Source, ...] = ()
    of_slices: tuple[tuple[Source, ...], ...] | None = None
    thickness_mm: float | None = None
    is_inverse: bool = False
    padding: NDArray[np.bool_] | None = None

    def on_grid(
        self,
        array: Float32,
        affine: Matrix,
        *,
        of_slices: tuple[tuple[Source, ...], ...] | None = None,
        thickness_mm: float | None = None,
    ) -> "Volume":
        """Return values on another grid; what was known of each voxel or slice of this one is not true of them."""
        return replace(self, array=array, affine=affine, of_slices=of_slices, thickness_mm=thickness_mm, padding=None)

    def without_padding(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return those voxels of a mask that are part of the image."""
        return mask if self.padding is None else mask & ~self.padding

    @property
    def darkest(self) -> float:
        """The value that is shown darkest."""
        return float(self.array.max() if self.is_inverse else self.array.min())

    @property
    def slice_sources(self) -> tuple[tuple[Source, ...], ...]:
        """The sources of each slice."""
        if self.of_slices is not None:
            return self.of_slices
        if len(self.sources) == len(self.array):
            return tuple((source,) for source in self.sources)
        return (self.sources,) * len(self.array)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distances between neighbours along slices, rows and columns; along the slice axis, not its normal."""
        k, j, i = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(k), float(j), float(i)

    @property
    def directions(self) -> Matrix:
        """3x3 unit vectors in columns: towards the next slice, the next row, the next column."""
        axes = self.affine[:3, :3]
        return np.asarray(axes / np.linalg.norm(axes, axis=0), dtype=np.float64)

    @property
    def is_sheared(self) -> bool:
        """Whether slices do not follow each other along their normal, as with a tilted gantry."""
        axes = self.directions
        return bool(max(abs(axes[:, 0] @ axes[:, 1]), abs(axes[:, 0] @ axes[:, 2])) > ORTHOGONALITY)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    def position_mm(self, index: tuple[float, float, float]) -> Matrix:
        """Return the (x, y, z) of a voxel (slice, row, column)."""
        position: Matrix = self.affine[:3, :3] @ np.asarray(index, dtype=np.float64) + self.affine[:3, 3]
        return position

    def index_at(self, position_mm: tuple[float, float, float]) -> Matrix:
        """Return the (slice, row, column), fractions included, at an (x, y, z)."""
        offset = np.asarray(position_mm) - self.affine[:3, 3]
        return np.asarray(np.linalg.solve(self.affine[:3, :3], offset), dtype=np.float64)


def affine_from_attributes(
    position_mm: Matrix, orientation: Matrix, spacing_mm: tuple[float, float], slice_step_mm: Matrix
) -> Matrix:
    """Return the 4x4 matrix from voxel index (slice, row, column) to patient position (x, y, z) in mm, LPS.

    position_mm    (3,)  Image Position (Patient)
    orientation    (6,)  row direction, then column direction; orthonormal within 1e-3
    spacing_mm     between rows, between columns, as in Pixel Spacing
    slice_step_mm  (3,)  from one slice's first pixel to the next one's

    Source: PS3.3 equation C.7.6.2.1-1. Raises INVALID when the directions are not orthonormal or spacings not positive.
    """
    along_row, along_column = orientation[:3], orientation[3:]
    lengths = np.array([np.linalg.norm(along_row), np.linalg.norm(along_column)])
    if np.abs(lengths - 1).max() > ORTHOGONALITY or abs(along_row @ along_column) > ORTHOGONALITY:
        raise AppError(
            Category.INVALID, "the directions of rows and columns are not at right angles, or not of length 1"
        )
    if min(spacing_mm) <= 0:
        raise AppError(Category.INVALID, "the distance between pixels is not positive", where="(0028,0030)")
    affine = np.eye(4)
    affine[:3, 0] = slice_step_mm
    affine[:3, 1] = along_column * spacing_mm[0]
    affine[:3, 2] = along_row * spacing_mm[1]
    affine[:3, 3] = position_mm
    return affine


def letters_of(direction: Sequence[float] | Matrix) -> str:
    """Return where a direction leads, as Patient Orientation says it: "L", "AL"; the larger component comes first.

    Components beyond 85 degrees from the direction are left out. Source: PS3.3 C.7.6.1.1.1.
    """
    seen = sorted(((abs(value), axis, value) for axis, value in enumerate(direction)), reverse=True)
    return "".join(_AXES[axis][int(value < 0)] for size, axis, value in seen if size > _OBLIQUE)


def normal_of(orientation: Matrix) -> Matrix:
    """Return the unit normal (3,) of a plane: row direction x column direction."""
    normal = np.cross(orientation[:3], orientation[3:])
    return np.asarray(normal / np.linalg.norm(normal), dtype=np.float64)
