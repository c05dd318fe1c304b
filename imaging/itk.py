"""Volumes as SimpleITK images and back. SimpleITK counts axes (column, row, slice); positions are LPS there as well.

Whoever imports this makes SimpleITK work with one thread: it adds up in the order in which threads finish, so that
mutual information, and all that follows from it, would come out differently in each run. Setting the number of threads
of the registration itself does not reach its metric. Several processes use several cores instead.
"""

from dataclasses import replace

import numpy as np
import SimpleITK as sitk

from imaging.errors import AppError, Category
from imaging.geometry import Volume

sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def to_itk(volume: Volume) -> sitk.Image:
    """Return a float32 image. Raises UNSUPPORTED for a sheared volume, which such an image cannot express."""
    if volume.is_sheared:
        message = "slices are shifted against each other (gantry tilt); resample to an isotropic volume first"
        raise AppError(Category.UNSUPPORTED, message)
    image = sitk.GetImageFromArray(volume.array)
    image.SetSpacing(volume.spacing_mm[::-1])
    image.SetOrigin(tuple(float(each) for each in volume.affine[:3, 3]))
    image.SetDirection(tuple(float(each) for each in volume.directions[:, ::-1].ravel()))
    return image


def from_itk(image: sitk.Image, like: Volume) -> Volume:
    """Return the image on the grid of `like`, from which it was made."""
    return replace(like, array=np.asarray(sitk.GetArrayFromImage(image), dtype=np.float32))
