"""Window level: modality units to display values."""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from imaging.algorithm import Algorithm, Code, Result, Takes
from imaging.algorithms import algorithms
from imaging.geometry import Image
from imaging.parameters import Says


@algorithms.register("window-level")
@dataclass(frozen=True)
class WindowLevel(Algorithm):
    """Map modality units to display values from 0 (black) to 1 (white) with a linear window.

    y = (x - (c - 0.5)) / (w - 1) + 0.5, clipped to 0 ... 1; for w = 1 a step at c - 0.5. Where the images show low
    values white, it is 1 - y. What was clipped is counted.
    """

    center: Annotated[float, Says("middle of the window, in the units of the image, e.g. HU", unit="")]
    width: Annotated[float, Says("width of the window, in the units of the image, e.g. HU", unit="", low=1)]

    version = "1"
    title = "Window and level"
    source = "PS3.3 C.11.2.1.2.1"
    takes = Takes.IMAGE
    derivation = Code("window-level", "99FHIRIMG", "Window and level applied")

    def __call__(self, image: Image) -> Result:
        """Return the image in display values."""
        above = image.array.astype(np.float64) - (self.center - 0.5)
        y = above / (self.width - 1) + 0.5 if self.width > 1 else (above > 0).astype(np.float64)
        lost = int(np.count_nonzero((y < 0) | (y > 1)))
        shown = np.clip(1 - y if image.is_inverse else y, 0, 1).astype(np.float32)
        return Result(images=(replace(image, array=shown, unit="1", is_inverse=False),), lost=lost)
