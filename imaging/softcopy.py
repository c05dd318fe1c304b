"""A frame as a presentation state shows it, as a picture for a screen.

The greys, the part that is shown, turning, shutters and graphics are those of `imaging.pictures`, which print them too.
Source: PS3.4 N.2, PS3.18 10.4.1.1.3.
"""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaging.display import BulkData
from imaging.film.lettering import LINE
from imaging.film.marks import coverage
from imaging.pictures import Letters, Look, picture_of
from imaging.presentation import Presentation
from imaging.render import Viewport, fitting

_LETTERS = 48  # lines of text that fit the height of a picture
_PEN = 512  # pixels of the shorter side for each pixel of a line's width


def softcopy(
    pixels: NDArray[Any],
    document: Mapping[str, Any],
    frame: int,
    presentation: Presentation,
    *,
    photometric: str,
    viewport: Viewport | None,
    bulkdata: BulkData | None = None,
) -> tuple[Image.Image, Letters]:
    """Return the 8-bit grey image of a decoded frame (from 1) under a state, and the patient's directions at its edges.

    It is as large as fits the viewport; without one it has a pixel for each pixel that is shown.
    Raises UNSUPPORTED for colour images.
    """
    look = Look(presentation=presentation)
    picture = picture_of(pixels, document, frame, look, photometric=photometric, bulkdata=bulkdata)
    image = Image.fromarray((picture.greys * np.float32(255) + np.float32(0.5)).astype(np.uint8))
    if viewport is not None:
        spacing = picture.spacing
        down, across = (spacing.down, spacing.across) if spacing else (1.0, 1.0)
        size = fitting((image.width * across, image.height * down), viewport)
        image = image.resize(size, Image.Resampling.BICUBIC)
    rows, columns = picture.greys.shape[:2]
    across, down = image.width / columns, image.height / rows
    pen, line = max(1, min(image.size) // _PEN), max(8, round(image.height / _LETTERS * LINE))
    for grey, marks in groupby(picture.marks, key=lambda each: each.grey):
        ink = coverage(list(marks), image.size, lambda at: (at[0] * across, at[1] * down), pen=pen, line=line)
        image.paste(round(grey * 255), (0, 0), Image.fromarray((ink * 255).astype(np.uint8)))
    return image, picture.letters
