"""A page that shows what a printer makes of greys, lines and millimetres: for the eye, a densitometer and a ruler.

Eleven steps from the darkest to the lightest P-Value, each with a patch that is five hundredths lighter in its lower
left quarter, as in the SMPTE pattern (RP 133); groups of line pairs; a grid whose lines are 10 mm apart; a bar of
100 mm.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from imaging.errors import AppError, Category
from imaging.film.compose import Picture, Sheets
from imaging.film.patterns import PATTERNS
from imaging.film.placing import Fit, Magnification, Spacing, SpacingOrigin

PIXEL = 0.1  # mm
WIDTH, HEIGHT = 160, 200  # mm, less than any sheet has
STEPS = 11
_SCALE = round(1 / PIXEL)
_CONTRAST = 0.05
_PAIRS = (1, 2, 3, 4, 5, 8)  # pixels of a line


def pictures(pattern: str = "") -> tuple[Callable[[], Picture], ...]:
    """Return the picture of the page, of which a millimetre is one of the sheet, or a pattern of PATTERNS.

    Raises NOT_FOUND for a pattern that there is not.
    """
    if pattern:
        if pattern not in PATTERNS:
            raise AppError(Category.NOT_FOUND, f"there are {', '.join(PATTERNS)}", where="pattern")
        return (lambda: Picture(PATTERNS[pattern](), caption=(pattern,)),)
    return (lambda: Picture(greys(), Spacing(PIXEL, PIXEL, SpacingOrigin.PATIENT), fit=Fit.TRUE_SIZE),)


def sheets(plain: Sheets) -> Sheets:
    """Return sheets of one picture, whatever else `plain` says."""
    return replace(plain, display_format="STANDARD\\1,1", custom_boxes=(), magnification=Magnification.REPLICATE)


def greys() -> NDArray[np.float32]:
    """Return the P-Values of the pattern, [rows, columns], 0.1 mm a pixel."""
    made = np.full((HEIGHT * _SCALE, WIDTH * _SCALE), 0.5, np.float32)
    made[:: 10 * _SCALE] = made[:, :: 10 * _SCALE] = 1.0
    _wedge(made)
    _lines(made)
    _bar(made)
    return made


def _wedge(made: NDArray[np.float32]) -> None:
    """Two rows of steps, 24 mm wide and 30 mm high, from the upper left."""
    for step in range(STEPS):
        row, column = divmod(step, 6)
        top, left = (12 + 34 * row) * _SCALE, (5 + 25 * column) * _SCALE
        value = step / (STEPS - 1)
        patch = made[top : top + 30 * _SCALE, left : left + 24 * _SCALE]
        patch[...] = value
        lighter = value + _CONTRAST if value < 1 else value - _CONTRAST
        patch[15 * _SCALE :, : 12 * _SCALE] = lighter


def _lines(made: NDArray[np.float32]) -> None:
    """Groups of lines, down and across."""
    for number, width in enumerate(_PAIRS):
        left = (5 + 25 * number) * _SCALE
        on = (np.arange(22 * _SCALE) // width) % 2
        made[90 * _SCALE : 112 * _SCALE, left : left + 22 * _SCALE] = on[None, :]
        made[116 * _SCALE : 138 * _SCALE, left : left + 22 * _SCALE] = on[:, None]


def _bar(made: NDArray[np.float32]) -> None:
    top, left = 160 * _SCALE, 30 * _SCALE
    made[top : top + 20 * _SCALE, left - 5 * _SCALE : left + 105 * _SCALE] = 0.0
    made[top + 8 * _SCALE : top + 9 * _SCALE, left : left + 100 * _SCALE] = 1.0
    for mm in range(0, 101):
        height = (8 if mm % 10 == 0 else 5 if mm % 5 == 0 else 3) * _SCALE
        at = min(left + mm * _SCALE, left + 100 * _SCALE - 1)
        made[top + 8 * _SCALE - height + _SCALE : top + 9 * _SCALE, at] = 1.0
