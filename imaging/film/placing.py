"""How large an image is on the sheet, and its pixels at that size.

Hides resampling: enlargement by whole numbers repeats pixels where asked, reduction averages what each printed pixel
covers.
Sources: PS3.3 C.13.5 (Magnification Type, Requested Image Size, Requested Decimate/Crop Behavior), 10.7 and C.7.1.1.1
(which spacing is of the patient).
"""

from dataclasses import dataclass
from enum import StrEnum
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaging.errors import AppError, Category
from imaging.film.scaling import scale_into

Greys = NDArray[np.float32]


class Fit(StrEnum):
    """What decides about the size of an image in its box."""

    FIT = "fit"  # as large as the box allows, all of it
    CROP = "crop"  # fills the box; what does not fit is cut off evenly
    TRUE_SIZE = "true-size"  # one millimetre of the patient is one millimetre of the sheet


class Magnification(StrEnum):
    """Magnification Type (2010,0060)."""

    REPLICATE = "REPLICATE"
    BILINEAR = "BILINEAR"
    CUBIC = "CUBIC"
    NONE = "NONE"


class SpacingOrigin(StrEnum):
    """What pixel spacing is measured at. Source: PS3.3 10.7.1.3."""

    PATIENT = "patient"  # of slices, or calibrated with an object of known size
    DETECTOR = "detector"  # Imager Pixel Spacing: the patient is smaller than it looks by an unknown factor
    UNKNOWN = "unknown"  # a ratio, or of a sheet that was scanned: the shape of pixels, and no size


@dataclass(frozen=True, slots=True)
class Spacing:
    """Distance of pixel centres, down and across, in mm."""

    down: float
    across: float
    origin: SpacingOrigin


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an image lies in its box and what of it is shown.

    left, top       of the shown part, in printed pixels from the box's corner
    width, height   of the shown part in printed pixels
    region          left, top, right, bottom of the shown part in pixels of the image
    across, down    printed pixels for a pixel of the image
    """

    left: int
    top: int
    width: int
    height: int
    region: tuple[float, float, float, float]
    across: float
    down: float


def place(
    shape: tuple[int, int], spacing: Spacing | None, box: tuple[int, int], *, fit: Fit, magnification: Magnification,
    pixels_per_mm: float,
) -> Placement:  # fmt: skip
    """Return where an image of `shape` (rows, columns) goes in a box (width, height in printed pixels), centred.

    Pixels that are not square are drawn in their true shape. NONE prints one pixel for one pixel; REPLICATE with FIT
    enlarges by whole numbers only. Raises INVALID where a true size cannot be had: no spacing, spacing at the detector,
    or a box that is too small.
    """
    rows, columns = shape
    across, down = _scale(shape, spacing, box, fit, magnification, pixels_per_mm)
    width, height = columns * across, rows * down
    slack = 0.5 if fit is Fit.TRUE_SIZE else 1e-6
    if fit is not Fit.CROP and (width > box[0] + slack or height > box[1] + slack):
        needed = f"{width / pixels_per_mm:.1f} x {height / pixels_per_mm:.1f} mm"
        given = f"{box[0] / pixels_per_mm:.1f} x {box[1] / pixels_per_mm:.1f} mm"
        raise AppError(Category.INVALID, f"the image is {needed} large and its box {given}", where="fit")
    shown_width, shown_height = min(box[0], max(1, round(width))), min(box[1], max(1, round(height)))
    cut_across = max(0.0, columns - shown_width / across) / 2 if width > box[0] else 0.0
    cut_down = max(0.0, rows - shown_height / down) / 2 if height > box[1] else 0.0
    return Placement(
        left=(box[0] - shown_width) // 2,
        top=(box[1] - shown_height) // 2,
        width=shown_width,
        height=shown_height,
        region=(cut_across, cut_down, columns - cut_across, rows - cut_down),
        across=across,
        down=down,
    )


def _scale(
    shape: tuple[int, int], spacing: Spacing | None, box: tuple[int, int], fit: Fit, magnification: Magnification,
    pixels_per_mm: float,
) -> tuple[float, float]:  # fmt: skip
    rows, columns = shape
    if fit is Fit.TRUE_SIZE:
        if spacing is None or spacing.origin is not SpacingOrigin.PATIENT:
            is_detector = spacing is not None and spacing.origin is SpacingOrigin.DETECTOR
            why = "has its spacing at the detector, not the patient" if is_detector else "says no pixel spacing"
            raise AppError(Category.INVALID, f"the image {why}; it cannot be printed in true size", where="fit")
        return spacing.across * pixels_per_mm, spacing.down * pixels_per_mm
    if magnification is Magnification.NONE:
        return 1.0, 1.0
    # Only the shape of a pixel counts here, and 1 is its shorter side.
    across, down = (spacing.across, spacing.down) if spacing else (1.0, 1.0)
    shorter = min(across, down)
    across, down = across / shorter, down / shorter
    ratios = box[0] / (columns * across), box[1] / (rows * down)
    scale = max(ratios) if fit is Fit.CROP else min(ratios)
    if magnification is Magnification.REPLICATE and fit is Fit.FIT and scale >= 1:
        scale = float(floor(scale + 1e-9))
    return across * scale, down * scale


def resample(greys: Greys, placement: Placement, magnification: Magnification) -> Greys:
    """Return the shown part of an image [rows, columns] or [rows, columns, 3] at its printed size, same value range."""
    printed: Greys = np.empty((placement.height, placement.width, *greys.shape[2:]), dtype=np.float32)
    resample_into(printed, greys, placement, magnification)
    return printed


def resample_into(
    printed: NDArray[Any], greys: Greys, placement: Placement, magnification: Magnification
) -> None:  # fmt: skip
    """Fill `printed`, as large as placed and as deep as the image, with the shown part; integers cut fractions off."""
    if greys.ndim == 3:
        for n in range(greys.shape[2]):
            resample_into(printed[:, :, n], greys[:, :, n], placement, magnification)
        return
    whole = _whole_factors(greys.shape, placement)
    if whole and magnification in (Magnification.REPLICATE, Magnification.NONE):
        printed[...] = np.repeat(np.repeat(greys.astype(printed.dtype), whole[1], axis=0), whole[0], axis=1)
        return
    left, top, right, bottom = placement.region
    # Cut out first, so that nothing from beyond the region is mixed in.
    cut = np.ascontiguousarray(greys[floor(top) : ceil(bottom), floor(left) : ceil(right)], dtype=np.float32)
    box = (left - floor(left), top - floor(top), right - floor(left), bottom - floor(top))
    filtering = _FILTERS[placement.across < 1 or placement.down < 1, magnification]
    if filtering is Image.Resampling.NEAREST:
        nearest = Image.fromarray(cut).resize((placement.width, placement.height), filtering, box=box)
        np.copyto(printed, np.asarray(nearest), casting="unsafe")
    else:
        scale_into(printed, cut, box, filtering)


def _whole_factors(shape: tuple[int, ...], placement: Placement) -> tuple[int, int] | None:
    across, down = round(placement.across), round(placement.down)
    rows, columns = shape[:2]
    is_whole = (placement.width, placement.height) == (columns * across, rows * down)
    return (across, down) if is_whole and across >= 1 and down >= 1 else None


# Each printed pixel of a reduced image is the mean of what it covers; a wider filter would blur, a narrower one alias.
_FILTERS = {
    (True, Magnification.REPLICATE): Image.Resampling.BOX,
    (True, Magnification.BILINEAR): Image.Resampling.BILINEAR,
    (True, Magnification.CUBIC): Image.Resampling.BICUBIC,
    (True, Magnification.NONE): Image.Resampling.BOX,
    (False, Magnification.REPLICATE): Image.Resampling.NEAREST,
    (False, Magnification.BILINEAR): Image.Resampling.BILINEAR,
    (False, Magnification.CUBIC): Image.Resampling.BICUBIC,
    (False, Magnification.NONE): Image.Resampling.NEAREST,
}
