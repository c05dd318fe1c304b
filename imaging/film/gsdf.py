"""The Grayscale Standard Display Function: equal steps of a P-Value look equally large, on film as on a screen.

Luminances in cd/m2, optical densities without unit. Source: PS3.14, 7.1 (function), annex B (table of the function) and
D.2.1 (films before a light box).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from imaging.errors import AppError, Category

Real = NDArray[np.float64]

# Coefficients of log10 L(j) over ln(j), numerators a, c, e, g, m and denominators b, d, f, h, k. Source: PS3.14 7.1.
_A, _C, _E, _G, _M = -1.3011877, 8.0242636e-2, 1.3646699e-1, -2.5468404e-2, 1.3635334e-3
_B, _D, _F, _H, _K = -2.5840191e-2, -1.0320229e-1, 2.8745620e-2, -3.1978977e-3, 1.2992634e-4

MOST_INDEX = 1023  # just noticeable differences from 0.05 to 3993 cd/m2

LIGHT_BOX = 2_000.0  # cd/m2, Illumination (2010,015E) where an order names none. Source: PS3.3 C.13.3
ROOM = 10.0  # cd/m2, Reflected Ambient Light (2010,0160) where an order names none. Source: PS3.3 C.13.3


def luminance(index: float | Real) -> Real:
    """Return the luminance of just noticeable differences, 1 to 1023 and between."""
    ln = np.log(np.asarray(index, dtype=np.float64))
    above = _A + ln * (_C + ln * (_E + ln * (_G + ln * _M)))
    below = 1 + ln * (_B + ln * (_D + ln * (_F + ln * (_H + ln * _K))))
    return np.asarray(10 ** (above / below))


def index(luminances: float | Real) -> Real:
    """Return the just noticeable difference of luminances, not rounded; the ends are those of the function.

    Inverts `luminance` by its table, to within 1e-4 of an index.
    """
    indices, logarithms = _table()
    return np.interp(np.log10(np.asarray(luminances, dtype=np.float64)), logarithms, indices)


@lru_cache(maxsize=1)
def _table() -> tuple[Real, Real]:
    indices = np.linspace(1, MOST_INDEX, 64 * (MOST_INDEX - 1) + 1)
    return indices, np.log10(luminance(indices))


@dataclass(frozen=True, slots=True)
class Densities:
    """What a film can show before its light box.

    lowest, highest  optical densities of its lightest and its darkest point; base and fog included
    illumination     of the light box without film, cd/m2
    ambient          room light that the film reflects, cd/m2
    """

    lowest: float = 0.2
    highest: float = 3.0
    illumination: float = LIGHT_BOX
    ambient: float = ROOM

    def __post_init__(self) -> None:
        """Raise INVALID for densities that no film has, or light that no eye sees."""
        if not 0 <= self.lowest < self.highest <= 5:
            raise AppError(Category.INVALID, "0 <= lowest < highest <= 5 expected of densities", where="density")
        if not (1 <= self.illumination <= 20_000 and 0 <= self.ambient <= 1_000):
            message = "illumination of 1 to 20000 and ambient light of 0 to 1000 cd/m2 expected"
            raise AppError(Category.INVALID, message, where="illumination")


def densities(p_values: Real, film: Densities) -> Real:
    """Return the optical density of each P-Value from 0 (darkest) to 1 (lightest). Source: PS3.14 D.2.1.

    The luminance of a film is ambient + illumination * 10**-density.
    """
    darkest, lightest = (film.ambient + film.illumination * 10**-density for density in (film.highest, film.lowest))
    ends = index(np.array([darkest, lightest]))
    wanted = luminance(ends[0] + np.asarray(p_values) * (ends[1] - ends[0]))
    density = np.log10(film.illumination) - np.log10(np.maximum(wanted - film.ambient, 1e-12))
    within: Real = np.clip(density, film.lowest, film.highest)
    return within


def p_values(optical: Real, film: Densities) -> Real:
    """Return the P-Value, 0 to 1, that is printed as each optical density: the inverse of `densities`."""
    darkest, lightest, wanted = (
        index(film.ambient + film.illumination * 10 ** -np.clip(each, film.lowest, film.highest))
        for each in (np.asarray(film.highest), np.asarray(film.lowest), np.asarray(optical, dtype=np.float64))
    )
    return (wanted - darkest) / (lightest - darkest)


def paper_greys(p_values: Real, *, black: float = 2.0, white: float = 150.0) -> Real:
    """Return how much light paper has to reflect, 0 to 1 of its white, so that P-Values look evenly spaced.

    black, white   luminances of the printed black and of the paper where it is looked at, cd/m2
    """
    if not 0.05 <= black < white <= 3_900:
        raise AppError(Category.INVALID, "0.05 <= black < white <= 3900 cd/m2 expected", where="luminance")
    ends = index(np.array([black, white]))
    return (luminance(ends[0] + np.asarray(p_values) * (ends[1] - ends[0])) - black) / (white - black)
