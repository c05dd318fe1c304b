"""Contrast limited adaptive histogram equalisation."""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from skimage.exposure import equalize_adapthist

from imaging.algorithm import Algorithm, Code, Result, Takes
from imaging.algorithms import algorithms
from imaging.geometry import Image
from imaging.parameters import Says


@algorithms.register("clahe")
@dataclass(frozen=True)
class Clahe(Algorithm):
    """Spread the grey values of each part of an image, limited so that noise is not blown up; display values 0 ... 1.

    Modality units are lost. An image of one value becomes 0. Where the images show low values white, they are turned
    round first.
    """

    tiles: Annotated[int, Says("parts along each side of the image", low=1, high=64)] = 8
    clip_limit: Annotated[
        float, Says("share of a part's pixels in one grey value; 1 does not limit", low=1e-4, high=1)
    ] = 0.01

    version = "1"
    title = "Adaptive histogram equalisation (CLAHE)"
    source = "Zuiderveld, Graphics Gems IV, 1994, VIII.5; skimage.exposure.equalize_adapthist"
    takes = Takes.IMAGE
    derivation = Code("clahe", "99FHIRIMG", "Contrast limited adaptive histogram equalisation")

    def __call__(self, image: Image) -> Result:
        """Return the equalised image."""
        low, high = float(image.array.min()), float(image.array.max())
        made = replace(image, unit="1", is_inverse=False)
        if high <= low:
            return Result(images=(replace(made, array=np.zeros_like(image.array)),))
        tile = [max(1, -(-edge // self.tiles)) for edge in image.array.shape]
        grey = (high - image.array if image.is_inverse else image.array - low) / (high - low)
        equal = equalize_adapthist(grey, kernel_size=tile, clip_limit=self.clip_limit)
        return Result(images=(replace(made, array=np.asarray(equal, dtype=np.float32)),))
