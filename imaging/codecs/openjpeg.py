"""glymur with the OpenJPEG library that there is: the system's, or the one inside Pillow's wheel.

glymur finds only a library that the system's loader finds, which would need root to install, and decides while it is
imported how the library's structures look. So it is imported here, and nowhere else.
"""

import ctypes.util
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from imaging.errors import AppError, Category

_BUNDLED = ("../pillow.libs/libopenjp2*", ".dylibs/libopenjp2*")
"""Where Pillow's wheels carry the library, from the package's folder: Linux, macOS."""

_importing = Lock()


@cache
def load_glymur() -> Any:
    """Return the glymur module, ready to decode. Raises UNSUPPORTED when there is no OpenJPEG library."""
    with _importing:
        find_library = ctypes.util.find_library
        ctypes.util.find_library = lambda name: find_library(name) or _bundled(name)
        try:
            import glymur  # slow, so only when first needed
        finally:
            ctypes.util.find_library = find_library
    if glymur.lib.openjp2.OPENJP2 is None:
        raise AppError(Category.UNSUPPORTED, "no OpenJPEG library: install libopenjp2, or Pillow from its wheel")
    return glymur


def _bundled(name: str) -> str | None:
    import PIL

    if name != "openjp2":
        return None
    folder = Path(PIL.__file__).parent
    return next((str(path) for pattern in _BUNDLED for path in folder.glob(pattern)), None)
