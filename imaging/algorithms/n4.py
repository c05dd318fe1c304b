"""N4 bias field correction."""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import SimpleITK as sitk

from imaging.algorithm import Algorithm, Code, Result, Takes
from imaging.algorithms import algorithms
from imaging.errors import AppError, Category
from imaging.geometry import Volume
from imaging.itk import to_itk
from imaging.parameters import Says


@algorithms.register("n4")
@dataclass(frozen=True)
class N4(Algorithm):
    """Remove the slow shading that coils leave in MR: divide by a smooth field estimated from the histogram.

    The field is estimated where values are above Otsu's threshold, without padding, on every n-th voxel along rows and
    columns. Refuses negative values and slices that are shifted against each other.
    """

    iterations: Annotated[int, Says("at most, at each of the levels", low=1, high=200)] = 50
    levels: Annotated[int, Says("resolutions of the field, each twice as fine", low=1, high=6)] = 3
    shrink: Annotated[int, Says("estimate on every n-th voxel of rows and columns", low=1, high=8)] = 2

    version = "1"
    title = "N4 bias field correction"
    source = "Tustison et al., IEEE Trans Med Imaging 29(6), 2010; SimpleITK N4BiasFieldCorrectionImageFilter"
    takes = Takes.VOLUME
    derivation = Code("n4", "99FHIRIMG", "N4 bias field correction")

    def __call__(self, volume: Volume) -> Result:
        """Return the corrected volume."""
        if float(volume.array.min()) < 0:
            raise AppError(Category.UNSUPPORTED, "negative values: N4 works on logarithms of MR magnitudes")
        if min(volume.array.shape) < 4:
            raise AppError(Category.UNSUPPORTED, "fewer than 4 slices, rows or columns do not define a field")
        image = to_itk(volume)
        by = [self.shrink, self.shrink, 1]
        mask = sitk.OtsuThreshold(image, 0, 1)
        if volume.padding is not None:
            kept = sitk.GetImageFromArray((~volume.padding).astype(np.uint8))
            kept.CopyInformation(image)
            mask = sitk.And(mask, kept)
        small, mask = sitk.Shrink(image, by), sitk.Shrink(mask, by)
        corrector = sitk.N4BiasFieldCorrectionImageFilter()
        corrector.SetMaximumNumberOfIterations([self.iterations] * self.levels)
        corrector.Execute(small, mask)
        field = np.exp(sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image)))
        return Result(volumes=(replace(volume, array=np.asarray(volume.array / field, dtype=np.float32)),))
