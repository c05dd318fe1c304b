"""Montage: many images on one."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from imaging.algorithm import Algorithm, Code, Result, Takes
from imaging.algorithms import algorithms
from imaging.errors import AppError, Category
from imaging.geometry import Image
from imaging.parameters import Says

MAX_PIXELS = 1 << 28


@algorithms.register("montage")
@dataclass(frozen=True)
class Montage(Algorithm):
    """Lay images of one size side by side, row after row, with a number of columns; empty places get the darkest value.

    The result has no place in the patient. Refuses images that differ in size, unit, or in what is shown white.
    """

    columns: Annotated[int, Says("images in a row", low=1, high=100)] = 4
    every: Annotated[int, Says("take every n-th image", low=1, high=10_000)] = 1

    version = "1"
    title = "Montage"
    source = "images in reading order"
    takes = Takes.IMAGES
    derivation = Code("113091", "DCM", "Spatially-related frames extracted from the volume")

    def __call__(self, images: tuple[Image, ...]) -> Result:
        """Return the one image."""
        chosen = images[:: self.every]
        if len({(image.array.shape, image.unit, image.is_inverse) for image in chosen}) != 1:
            raise AppError(Category.INVALID, "images of one size and unit, alike in what is shown white, are needed")
        rows, columns = chosen[0].array.shape
        down = -(-len(chosen) // self.columns)
        if down * rows * self.columns * columns > MAX_PIXELS:
            raise AppError(Category.TOO_LARGE, f"more than {MAX_PIXELS} pixels; take every n-th image", where="every")
        darkest = max if chosen[0].is_inverse else min
        empty = darkest(float(darkest(image.array.min(), image.array.max())) for image in chosen)
        sheet = np.full((down * rows, self.columns * columns), empty, dtype=np.float32)
        for place, image in enumerate(chosen):
            row, column = divmod(place, self.columns)
            sheet[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns] = image.array
        sources = tuple(source for image in chosen for source in image.sources)
        first = chosen[0]
        one = Image(sheet, first.unit, first.spacing_mm, None, first.modality, "", sources, first.is_inverse)
        return Result(images=(one,))
