"""Samples of a volume at the points of another grid, both in patient coordinates; sheared grids included.

Linear interpolation between voxel centres. Points farther than half a voxel outside the outermost centres are outside.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from imaging import threads
from imaging.errors import AppError, Category
from imaging.geometry import Float32, Matrix, Source, Volume

MAX_SAMPLES = 1 << 30
_ROUNDING = 1e-6
_BLOCK = 16  # slices that are sampled together: the same on every machine, so that the values are


def sample(volume: Volume, affine: Matrix, shape: tuple[int, int, int], *, outside: float) -> tuple[Float32, int]:
    """Return values [slice, row, column] of `volume` on a grid, and how many of its points lie outside.

    affine   4x4, from the grid's (slice, row, column, 1) to the patient's (x, y, z, 1) in mm
    outside  what is written where the volume has nothing

    Within half a voxel beyond the outermost centres the nearest value is taken. Raises TOO_LARGE for a grid of more
    than 2**30 points.
    """
    if np.prod(shape, dtype=np.float64) > MAX_SAMPLES:
        raise AppError(Category.TOO_LARGE, f"a grid of {shape} points; at most {MAX_SAMPLES} in all")
    to_index = np.linalg.inv(volume.affine) @ affine
    values = np.empty(shape, dtype=np.float32)
    last = np.array(volume.array.shape) - 1

    def fill(first: int) -> int:
        block = values[first : first + _BLOCK]
        start = to_index[:3, 0] * first + to_index[:3, 3]
        ndimage.affine_transform(volume.array, to_index[:3, :3], start, output=block, order=1, mode="nearest")
        lost = 0
        for index, plane in enumerate(block):
            at = to_index[:3, 0] * index + start
            # The inside is convex: where all corners are inside, so is the rest.
            if _is_outside(to_index, at, last, np.array([0, shape[1] - 1]), np.array([0, shape[2] - 1])).any():
                is_outside = _is_outside(to_index, at, last, np.arange(shape[1]), np.arange(shape[2]))
                plane[is_outside] = outside
                lost += int(np.count_nonzero(is_outside))
        return lost

    return values, sum(threads.each(fill, range(0, shape[0], _BLOCK)))


def sources_of(volume: Volume, affine: Matrix, shape: tuple[int, int, int]) -> tuple[tuple[Source, ...], ...]:
    """Return for each slice of another grid the sources of those slices of the volume that its values come from."""
    to_index = np.linalg.inv(volume.affine) @ affine
    ends = np.array([[0, j, i, 1] for j in (0, shape[1] - 1) for i in (0, shape[2] - 1)], dtype=np.float64)
    told = volume.slice_sources
    known: dict[tuple[int, int], tuple[Source, ...]] = {}
    found = []
    for index in range(shape[0]):
        ends[:, 0] = index
        places = (ends @ to_index.T)[:, 0]
        first, last = max(0, int(np.floor(places.min() + _ROUNDING))), int(np.ceil(places.max() - _ROUNDING))
        span = min(first, len(told) - 1), max(last, 0) + 1
        if span not in known:
            known[span] = tuple(dict.fromkeys(source for one in told[slice(*span)] for source in one))
        found.append(known[span])
    return tuple(found)


def _is_outside(
    to_index: Matrix, at: Matrix, last: NDArray[np.int_], rows: NDArray[np.int_], columns: NDArray[np.int_]
) -> NDArray[np.bool_]:
    """Return [row, column] of one slice that starts at the index `at`: which points lie outside."""
    found = np.zeros((len(rows), len(columns)), dtype=np.bool_)
    for axis in range(3):
        place = at[axis] + to_index[axis, 1] * rows[:, None] + to_index[axis, 2] * columns
        found |= (place < -0.5 - _ROUNDING) | (place > last[axis] + 0.5 + _ROUNDING)
    return found
