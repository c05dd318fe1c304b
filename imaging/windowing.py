"""Stored grey values -> display values: modality LUT, VOI LUT or window, inversion.

Integer pixels of up to 16 bits go through one table of all values that occur; others are computed pixel by pixel.
Display values are uint8, 0 = black ... 255 = white, or levels from 0 to 1. Sources: PS3.3 C.7.5.1.1.2, C.11.1, C.11.2,
C.11.6.

Default where neither a window nor a VOI LUT is given: data of up to 8 bits and the output of a modality LUT over their
whole range, all else from the 0.5th to the 99.5th percentile of the frame without padding.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.display import DisplayAttributes, LookupTable, VoiFunction, Window

WHITE = 255
DEFAULT_PERCENTILES = (0.5, 99.5)
SAMPLE_PIXELS = 250_000  # percentiles are taken of about so many pixels, evenly spread

Real = NDArray[np.float64]


def grey_values(
    pixels: NDArray[Any], attributes: DisplayAttributes, *, window: Window | None = None
) -> NDArray[np.uint8]:
    """Return the display values of stored pixels [rows, columns], integer or float; `window` goes before the file's.

    A frame smaller than Rows x Columns was decoded at reduced resolution: its values may overshoot what Bits Stored can
    say and are clipped to it, whereas of a full frame the bits above High Bit are taken to be no pixel data.
    """
    shades: NDArray[np.uint8] = _mapped(pixels, attributes, window, _as_bytes)
    return shades


def grey_levels(
    pixels: NDArray[Any], attributes: DisplayAttributes, *, window: Window | None = None
) -> NDArray[np.float32]:
    """Return what `grey_values` does as levels from 0 (black) to 1 (white), as finely as the pixels have them."""
    levels: NDArray[np.float32] = _mapped(pixels, attributes, window, _as_levels)
    return levels


def _mapped(
    pixels: NDArray[Any], attributes: DisplayAttributes, window: Window | None, finish: Callable[[Real], NDArray[Any]]
) -> NDArray[Any]:
    chosen = window or next(iter(attributes.windows), None)
    is_reduced = pixels.shape[:2] != (attributes.rows, attributes.columns)
    if chosen is None and attributes.voi_lut is None:
        chosen = _default_window(pixels, attributes, is_reduced)
    if pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 2:
        native = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
        unsigned = np.dtype(f"u{native.dtype.itemsize}")
        lowest, highest = native.min(), native.max()
        table = finish(_levels(np.arange(int(lowest), int(highest) + 1), attributes, chosen, is_reduced))
        # The difference is right modulo 2**16 also where it does not fit into a signed word.
        mapped: NDArray[Any] = np.take(table, (native - lowest).view(unsigned), mode="clip")  # nothing is beyond
        return mapped
    return finish(_levels(pixels, attributes, chosen, is_reduced))


def _as_bytes(levels: Real) -> NDArray[np.uint8]:
    return (levels * WHITE + 0.5).astype(np.uint8)


def _as_levels(levels: Real) -> NDArray[np.float32]:
    return levels.astype(np.float32)


def apply_window(values: Real, window: Window) -> Real:
    """Return values mapped to 0 ... 1. Source: PS3.3 C.11.2.1.2 (linear), C.11.2.1.3.2 (exact), C.11.2.1.3.1 (sigmoid).

    A linear window narrower than 1, which the standard does not allow but senders of small units write, is exact.
    """
    center, width = window.center, window.width
    if window.function is VoiFunction.SIGMOID:
        shaded: Real = 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
        return shaded
    if window.function is VoiFunction.LINEAR and width >= 1:
        center, width = center - 0.5, width - 1
    if width == 0:
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0, 1)


def apply_table(values: NDArray[Any], table: LookupTable) -> Real:
    """Return the entries for values, rounded to integers, as they stand in the table."""
    index = np.clip(np.rint(values) - table.first, 0, len(table.entries) - 1).astype(np.intp)
    entries: Real = table.entries[index].astype(np.float64)
    return entries


def full_scale(table: LookupTable) -> int:
    """Return the largest value of a table's entries: what its bits say, or more where an entry is larger."""
    bits = max(table.bits, int(table.entries.max(initial=0)).bit_length())
    return int((1 << bits) - 1)


def _levels(stored: NDArray[Any], attributes: DisplayAttributes, window: Window | None, is_reduced: bool) -> Real:
    values = _modality_values(_sample_values(stored, attributes, is_reduced), attributes)
    if window is not None:
        grey = apply_window(values, window)
    else:
        assert attributes.voi_lut is not None  # noqa: S101 -- grey_values finds a window where there is no table
        grey = apply_table(values, attributes.voi_lut) / full_scale(attributes.voi_lut)
    if attributes.presentation_lut is not None:
        # Its input is the output of the stage before, over the whole of its range.   Source: PS3.3 C.11.6.1.1
        table = attributes.presentation_lut
        grey = apply_table(grey * (len(table.entries) - 1) + table.first, table) / full_scale(table)
    if attributes.is_inverse:
        grey = 1 - grey
    if attributes.padding:
        low, high = attributes.padding
        grey = np.where((stored >= low) & (stored <= high), 0, grey)
    return grey


def _sample_values(stored: NDArray[Any], attributes: DisplayAttributes, is_reduced: bool) -> NDArray[Any]:
    """Return pixel sample values without what else a container word holds (PS3.5 8.1.1)."""
    if stored.dtype.kind == "f":
        return np.nan_to_num(stored.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    wide = stored.astype(np.int64)
    bits = attributes.bits_stored
    if is_reduced:
        return np.clip(wide, *_stored_range(attributes))
    shift = 0 if attributes.high_bit is None else max(0, attributes.high_bit + 1 - bits)
    wide = (wide >> shift) & ((1 << bits) - 1)
    return wide - ((wide >> (bits - 1)) << bits) if attributes.is_signed else wide


def _modality_values(values: NDArray[Any], attributes: DisplayAttributes) -> Real:
    if attributes.modality_lut is not None:
        return apply_table(values, attributes.modality_lut)
    return values * attributes.slope + attributes.intercept


def _stored_range(attributes: DisplayAttributes) -> tuple[int, int]:
    bits = attributes.bits_stored
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if attributes.is_signed else (0, (1 << bits) - 1)


def _default_window(pixels: NDArray[Any], attributes: DisplayAttributes, is_reduced: bool) -> Window:
    if attributes.modality_lut is not None:
        low, high = 0.0, float(full_scale(attributes.modality_lut))
    elif pixels.dtype.kind in "iu" and attributes.bits_stored <= 8:
        low, high = sorted(_modality_values(np.array(_stored_range(attributes)), attributes).tolist())
    else:
        step = max(1, int((pixels.size / SAMPLE_PIXELS) ** 0.5))
        sample = pixels[::step, ::step].ravel()
        if attributes.padding:
            first, last = attributes.padding
            sample = sample[(sample < first) | (sample > last)]
        sample = sample[np.isfinite(sample)]
        values = _modality_values(_sample_values(sample, attributes, is_reduced), attributes)
        low, high = np.percentile(values, DEFAULT_PERCENTILES).tolist() if len(values) else (0.0, 0.0)
    return Window((low + high) / 2, (high - low) or 1.0, VoiFunction.LINEAR_EXACT)
