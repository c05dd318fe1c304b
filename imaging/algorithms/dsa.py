"""Digital subtraction angiography."""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from scipy import ndimage

from imaging.algorithm import Algorithm, Code, Result, Takes
from imaging.algorithms import algorithms
from imaging.errors import AppError, Category
from imaging.geometry import Image
from imaging.parameters import Says


@algorithms.register("dsa")
@dataclass(frozen=True)
class Subtraction(Algorithm):
    """Subtract the mean of mask frames from the frames that follow, the mask shifted by parts of a pixel.

    Result = frame - mask, or ln(frame) - ln(mask) for pixels in proportion to the dose, whose difference is then the
    attenuation of the contrast medium alone. The shift moves the mask down and to the right, by linear interpolation;
    its border is continued. Where a logarithm has no value, the result is 0 and counted as lost.
    """

    mask_first: Annotated[int, Says("first frame of the mask, counted from 1", low=1)] = 1
    mask_last: Annotated[int, Says("last frame of the mask; results start after it", low=1)] = 1
    shift: Annotated[tuple[float, float], Says("of the mask: down, right", unit="{pixels}", low=-100, high=100)] = (
        0.0,
        0.0,
    )
    logarithmic: Annotated[bool, Says("subtract logarithms")] = False

    version = "1"
    title = "Digital subtraction angiography with pixel shift"
    source = "PS3.3 C.7.6.10 (Mask Module: average of mask frames, sub-pixel shift)"
    takes = Takes.IMAGES
    derivation = Code("113062", "DCM", "Pixel by pixel subtraction")

    def __post_init__(self) -> None:
        """Raise INVALID for a mask that ends before it begins."""
        if self.mask_first > self.mask_last:
            raise AppError(Category.INVALID, "is before the first frame of the mask", where="mask_last")

    def __call__(self, images: tuple[Image, ...]) -> Result:
        """Return the subtracted frames after the mask."""
        if self.mask_last >= len(images):
            raise AppError(
                Category.INVALID, f"a mask before the last of {len(images)} frames expected", where="mask_last"
            )
        if len({image.array.shape for image in images}) > 1:
            raise AppError(Category.INVALID, "the frames differ in size")
        frames = np.stack([image.array for image in images]).astype(np.float64)
        mask = ndimage.shift(
            frames[self.mask_first - 1 : self.mask_last].mean(axis=0), self.shift, order=1, mode="nearest"
        )
        after = frames[self.mask_last :]
        lost = 0
        if self.logarithmic:
            valid = (after > 0) & (mask > 0)
            difference = np.log(np.where(valid, after, 1)) - np.log(np.where(valid, mask, 1))
            lost = int(np.count_nonzero(~valid))
        else:
            difference = after - mask
        unit = "1" if self.logarithmic else images[0].unit
        pairs = zip(images[self.mask_last :], difference.astype(np.float32), strict=True)
        return Result(images=tuple(replace(image, array=array, unit=unit) for image, array in pairs), lost=lost)
