"""Test patterns after SMPTE and TG18, made from their descriptions: P-Values 0 ... 1, [rows, columns], float32.

Sources: SMPTE RP 133-1991; AAPM On-line Report 03 (TG18, 2005), appendix III: TG18-QC (its luminance patches, bars and
line pairs), TG18-LN8-01 to -18. Values there are 8-bit, 0 to 255; here they are divided by 255. Lettering is left out.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Pattern = NDArray[np.float32]

SIDE = 1_024  # pixels
LN_STEPS = 18
LN_SURROUND = 153 / 255  # a fifth of the greatest luminance of a calibrated display
_QC_STEPS = tuple(8 + 16 * n for n in range(16))
_QC_PATCH, _QC_CORNER, _QC_CONTRAST = 102, 10, 4
_MIDDLE = SIDE // 2


def smpte() -> Pattern:
    """Return a pattern after SMPTE RP 133: a grid on grey, eleven steps, 0/5% and 95/100% patches, line pairs.

    Steps of 10% run around the middle, from black at the lower left, clockwise. Line pairs of 1, 2 and 3 pixels, down
    and across, stand in the middle and the corners, at full contrast.
    """
    made = np.full((SIDE, SIDE), 0.5, np.float32)
    made[::64] = made[:, ::64] = 0.75
    for number, (row, column) in enumerate(_around()):
        _patch(made, row, column, 96, number / 10)
    _patch(made, _MIDDLE - 64, 300, 96, 0.0)
    _patch(made, _MIDDLE - 64, 300, 48, 0.05)
    _patch(made, _MIDDLE - 64, SIDE - 300, 96, 1.0)
    _patch(made, _MIDDLE - 64, SIDE - 300, 48, 0.95)
    for row, column in [(_MIDDLE, _MIDDLE), *((y, x) for y in (80, SIDE - 80) for x in (80, SIDE - 80))]:
        _pairs(made, row, column, (1, 2, 3), 48)
    return made


def tg18_qc() -> Pattern:
    """Return a pattern after TG18-QC: sixteen patches whose corners differ by 4 of 255, bars, line pairs.

    Patches from 8 to 248 in steps of 16 stand around the middle; two more, of 0 and 255, hold 13 and 242.
    """
    made = np.full((SIDE, SIDE), 128 / 255, np.float32)
    made[::102] = made[:, ::102] = 191 / 255
    places = [(204 + 102 * (n // 4), 153 + 204 * (n % 4)) for n in range(16)]
    for value, (top, left) in zip(_QC_STEPS, places, strict=True):
        _qc_patch(made, top, left, value)
    for value, inner, left in ((0, 13, 305), (255, 242, 617)):
        _patch(made, 714 + _QC_PATCH // 2, left + _QC_PATCH // 2, _QC_PATCH, value / 255)
        _patch(made, 714 + _QC_PATCH // 2, left + _QC_PATCH // 2, _QC_PATCH // 2, inner / 255)
    made[880:920, 102:922], made[840:880, 102:922] = 1.0, 0.0
    for row, column in [(_MIDDLE + 220, _MIDDLE), *((y, x) for y in (90, SIDE - 60) for x in (90, SIDE - 90))]:
        _pairs(made, row, column, (1, 2), 40)
    return made


def tg18_ln(step: int) -> Pattern:
    """Return TG18-LN8 of a step from 1, black, to 18, white: a middle of a tenth of the area in a fixed surround."""
    made = np.full((SIDE, SIDE), LN_SURROUND, np.float32)
    _patch(made, _MIDDLE, _MIDDLE, 324, (step - 1) / (LN_STEPS - 1))
    return made


PATTERNS: Mapping[str, Callable[[], Pattern]] = MappingProxyType(
    {
        "smpte": smpte,
        "tg18-qc": tg18_qc,
        **{f"tg18-ln{step}": partial(tg18_ln, step) for step in range(1, LN_STEPS + 1)},
    }
)


def _around() -> list[tuple[int, int]]:
    """Return the middles of eleven patches around the middle, from the lower left clockwise."""
    left = [(_MIDDLE + 240, 220), (_MIDDLE + 120, 180), (_MIDDLE - 190, 180)]
    top = [(200, 220 + 144 * n) for n in range(5)]
    return [*left, *top, *((row, SIDE - column) for row, column in reversed(left))]


def _patch(made: Pattern, row: int, column: int, side: int, value: float) -> None:
    """Fill a square around a middle."""
    top, left = row - side // 2, column - side // 2
    made[top : top + side, left : left + side] = value


def _qc_patch(made: Pattern, top: int, left: int, value: int) -> None:
    """Fill a patch, the upper left and lower right corner lighter, the others darker."""
    patch = made[top : top + _QC_PATCH, left : left + _QC_PATCH]
    patch[...] = value / 255
    near, far = slice(0, _QC_CORNER), slice(_QC_PATCH - _QC_CORNER, _QC_PATCH)
    patch[near, near] = patch[far, far] = (value + _QC_CONTRAST) / 255
    patch[near, far] = patch[far, near] = (value - _QC_CONTRAST) / 255


def _pairs(made: Pattern, row: int, column: int, widths: tuple[int, ...], side: int) -> None:
    """Draw groups of lines around a middle: those that stand above those that lie, one column for each width."""
    top, left = row - side, column - side * len(widths) // 2
    for number, width in enumerate(widths):
        on = ((np.arange(side) // width) % 2).astype(np.float32)
        at = left + number * side
        made[top : top + side, at : at + side] = on[None, :]
        made[top + side : top + 2 * side, at : at + side] = on[:, None]
