"""The institution's sign for the top of every page, from an image file."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from imaging.errors import AppError, Category
from imaging.film.placing import Greys

MOST_BYTES = 4 << 20
MOST_PIXELS = 4_000_000


@lru_cache(maxsize=4)
def logo_from(path: Path | None) -> Greys | None:
    """Return the P-Values of an image file, transparent parts white; None without a path.

    Raises INVALID for what is no image, or too large.
    """
    if path is None:
        return None
    try:
        if path.stat().st_size > MOST_BYTES:
            raise AppError(Category.INVALID, f"a file of at most {MOST_BYTES >> 20} MiB expected", where="logo")
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise AppError(Category.INVALID, f"at most {MOST_PIXELS:,} pixels expected", where="logo")
            coloured = image.convert("RGBA")
    except (OSError, Image.DecompressionBombError):
        raise AppError(Category.INVALID, f"the logo {path.name} is no image that can be read", where="logo") from None
    white = Image.new("RGBA", coloured.size, "white")
    flat = Image.alpha_composite(white, coloured).convert("L")
    greys: Greys = np.asarray(flat, dtype=np.float32) / np.float32(255)
    return greys
