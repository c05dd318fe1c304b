"""Non-local means."""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from skimage.restoration import denoise_nl_means

from imaging.algorithm import Algorithm, Code, Result, Takes
from imaging.algorithms import algorithms
from imaging.geometry import Image
from imaging.parameters import Says


@algorithms.register("nonlocal-means")
@dataclass(frozen=True)
class NonlocalMeans(Algorithm):
    """Replace every pixel by the mean of pixels whose surroundings look alike; removes noise, keeps texture."""

    strength: Annotated[
        float, Says("differences of patches that are smoothed, in the units of the image", unit="", low=1e-6)
    ]
    noise: Annotated[
        float, Says("standard deviation of the noise, in the units of the image; 0 if unknown", unit="", low=0)
    ] = 0.0
    patch: Annotated[int, Says("edge of a patch", unit="{pixels}", low=3, high=21)] = 5
    reach: Annotated[int, Says("how far patches are looked for", unit="{pixels}", low=1, high=30)] = 6

    version = "1"
    title = "Non-local means"
    source = "Buades, Coll and Morel, CVPR 2005; Darbon et al., ISBI 2008; skimage.restoration.denoise_nl_means"
    takes = Takes.IMAGE
    derivation = Code("113087", "DCM", "Smoothing")

    def __call__(self, image: Image) -> Result:
        """Return the filtered image."""
        # The fast method sums squares over the whole image: values far from 0 would lose their digits.
        middle = float(image.array.mean(dtype=np.float64))
        filtered = denoise_nl_means(
            image.array.astype(np.float64) - middle,
            patch_size=self.patch,
            patch_distance=self.reach,
            h=self.strength,
            sigma=self.noise,
            fast_mode=True,
        )
        # The method drops an axis of one pixel.
        array = np.asarray(filtered + middle, dtype=np.float32).reshape(image.array.shape)
        return Result(images=(replace(image, array=array),))
