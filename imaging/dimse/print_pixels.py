"""What the pixels of an image box mean: P-Values from 0, black, to 1, white.

Sources: PS3.3 C.13.5 (Polarity), C.11.4 (presentation LUT; LIN OD: pixels are optical densities).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from imaging.errors import AppError, Category
from imaging.film.gsdf import Densities, index
from imaging.film.placing import Greys

_USUAL = Densities()


def p_values(image_box: Dataset, lut: Dataset | None, film_box: Dataset) -> Greys:
    """Return [rows, columns], or RGB [rows, columns, 3], float32.

    An image is inverted before its presentation LUT for MONOCHROME1, and after it for REVERSE. Raises INVALID for
    densities that no film has.
    """
    (image,) = image_box.get("BasicGrayscaleImageSequence") or image_box.BasicColorImageSequence
    samples = _samples(image)
    highest = (1 << int(image.BitsStored)) - 1
    if image.PhotometricInterpretation == "MONOCHROME1":
        samples = (highest - samples).astype(samples.dtype)
    greys = _through(lut, samples, highest, film_box) if samples.ndim == 2 else _plain(samples, highest)
    return np.float32(1) - greys if image_box.get("Polarity") == "REVERSE" else greys


def _samples(image: Dataset) -> NDArray[Any]:
    rows, columns, samples = int(image.Rows), int(image.Columns), int(image.SamplesPerPixel)
    dtype = np.dtype("u1" if image.BitsAllocated == 8 else "<u2")
    flat = np.frombuffer(image.PixelData, dtype=dtype, count=rows * columns * samples)
    kept: NDArray[Any] = flat & dtype.type((1 << int(image.BitsStored)) - 1)
    if samples == 1:
        return kept.reshape(rows, columns)
    if image.PlanarConfiguration == 1:
        return np.moveaxis(kept.reshape(samples, rows, columns), 0, 2)
    return kept.reshape(rows, columns, samples)


def _plain(samples: NDArray[Any], highest: int) -> Greys:
    return samples.astype(np.float32) / np.float32(highest)


def _through(lut: Dataset | None, samples: NDArray[Any], highest: int, film_box: Dataset) -> Greys:
    if lut is None or lut.get("PresentationLUTShape") == "IDENTITY":
        return _plain(samples, highest)
    if lut.get("PresentationLUTShape") == "LIN OD":
        return _from_densities(_plain(samples, highest), film_box)
    (item,) = lut.PresentationLUTSequence
    entries, _, bits = (int(each) for each in item.LUTDescriptor)
    data = item.LUTData
    table = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data, dtype=np.uint16)
    inputs = np.minimum(samples, entries - 1)
    return np.asarray(table[inputs] / np.float32((1 << bits) - 1), dtype=np.float32)


def _from_densities(share: Greys, film_box: Dataset) -> Greys:
    """Return P-Values of pixels that are evenly spaced in optical density, the lowest pixel being the darkest."""
    low, high = (film_box.get(keyword) for keyword in ("MinDensity", "MaxDensity"))
    film = Densities(
        lowest=_USUAL.lowest if low is None else low / 100,
        highest=_USUAL.highest if high is None else high / 100,
        illumination=float(film_box.get("Illumination") or _USUAL.illumination),
        ambient=float(
            _USUAL.ambient if film_box.get("ReflectedAmbientLight") is None else film_box.ReflectedAmbientLight
        ),
    )
    density = film.highest - share.astype(np.float64) * (film.highest - film.lowest)
    seen = index(film.ambient + film.illumination * 10**-density)
    ends = index(film.ambient + film.illumination * 10 ** -np.array([film.highest, film.lowest]))
    if ends[0] == ends[1]:
        raise AppError(Category.INVALID, "the film shows no greys under this light", where="illumination")
    return np.asarray((seen - ends[0]) / (ends[1] - ends[0]), dtype=np.float32)
