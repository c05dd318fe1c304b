"""An image at its printed size, made band by band and written straight to where it is printed.

Hides how that is quick: a filter is separable, and what it does to a band of rows or columns is one small matrix, so
that the library that numpy multiplies matrices with does the work, in blocks that stay in the processor's cache. The
matrices are what Pillow's own filters do to single pixels; a result is Pillow's, but for the rounding of float32.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_BAND = 32  # printed pixels; fewer cost calls, more cost multiplications by 0
_BLOCK = 8 * _BAND  # rows or columns in one multiplication: so few that BLAS leaves it to this thread
_REACH = {Image.Resampling.BOX: 0.5, Image.Resampling.BILINEAR: 1.0, Image.Resampling.BICUBIC: 2.0}


@dataclass(frozen=True, slots=True, eq=False)
class _Band:
    """Printed pixels `first` to `last` are the pixels `start` to `stop` of the image times `weights`.

    weights   [stop - start, last - first]
    """

    first: int
    last: int
    start: int
    stop: int
    weights: NDArray[np.float32]


def scale_into(
    printed: NDArray[Any],
    greys: NDArray[np.float32],
    box: tuple[float, float, float, float],
    filtering: Image.Resampling,
) -> None:
    """Fill `printed` [height, width] with the part `box` (left, top, right, bottom) of an image [rows, columns].

    No grey comes out that did not go in, though a cubic filter overshoots beside edges. Fractions are cut off where
    `printed` is of integers. `filtering` is BOX, BILINEAR or BICUBIC, wider by the scale where the image is reduced.
    """
    lowest, highest = greys.min(), greys.max()
    height, width = printed.shape
    down = _bands(greys.shape[0], height, box[1], box[3], filtering)
    across = _bands(greys.shape[1], width, box[0], box[2], filtering)
    tall = np.empty((_BLOCK, greys.shape[1]), dtype=np.float32)
    whole = np.empty((_BLOCK, width), dtype=np.float32)
    for top in range(0, height, _BLOCK):
        rows = min(_BLOCK, height - top)
        for band in down[top // _BAND : (top + rows - 1) // _BAND + 1]:
            for left in range(0, greys.shape[1], _BLOCK):
                part = slice(left, left + _BLOCK)
                into = tall[band.first - top : band.last - top, part]
                np.matmul(band.weights.T, greys[band.start : band.stop, part], out=into)
        for band in across:
            np.matmul(tall[:rows, band.start : band.stop], band.weights, out=whole[:rows, band.first : band.last])
        np.clip(whole[:rows], lowest, highest, out=whole[:rows])
        np.copyto(printed[top : top + rows], whole[:rows], casting="unsafe")


@lru_cache(maxsize=16)  # the images of a film are mostly of one size
def _bands(length: int, printed: int, start: float, stop: float, filtering: Image.Resampling) -> tuple[_Band, ...]:
    """Return the bands of `printed` pixels that show `start` to `stop` of a row or column of `length` pixels."""
    scale = (stop - start) / printed
    reach = _REACH[filtering] * max(scale, 1) + 1
    bands = []
    for first in range(0, printed, _BAND):
        last = min(first + _BAND, printed)
        left, right = start + first * scale, start + last * scale
        low, high = max(0, floor(left - reach)), min(length, ceil(right + reach))
        single = Image.fromarray(np.eye(high - low, dtype=np.float32))
        edges = (max(0.0, left - low), 0.0, min(right - low, float(high - low)), float(high - low))
        weights = np.array(single.resize((last - first, high - low), filtering, box=edges), dtype=np.float32)
        weights.flags.writeable = False
        bands.append(_Band(first, last, low, high, weights))
    return tuple(bands)
