"""One frame -> a picture that anyone can look at.

Hides colour models, palettes and viewports. Pillow sees 8-bit display values only; it resizes them and is no part of
any lossless path. Sources: PS3.3 C.7.6.3.1.2 and C.7.9, PS3.18 8.3.5.1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaging.display import DisplayAttributes, LookupTable, VoiFunction, Window
from imaging.errors import AppError, Category
from imaging.image_files import DEFAULT_QUALITY, encode, kind_of
from imaging.windowing import full_scale, grey_values

__all__ = [
    "DisplayAttributes", "Viewport", "VoiFunction", "Window",
    "display_values", "fitting", "picture", "quality_from_text", "reduce_levels", "render",
]  # fmt: skip

MAX_SIDE = 16_384  # pixels of a viewport
MOST_PIXELS = 64_000_000  # of a picture that is scaled
MAX_LEVELS = 5  # of reduced-resolution decoding; 2**5 is what any encoder's default offers


@dataclass(frozen=True, slots=True)
class Viewport:
    """The space that an image is scaled to fit, and the region of the source to show, both in pixels.

    x, y            top left corner of the region, in pixels of the full-size source
    region_width,   its size; None reaches to the right or bottom edge; negative flips the image that way
    region_height
    """

    width: int
    height: int
    x: float = 0.0
    y: float = 0.0
    region_width: float | None = None
    region_height: float | None = None

    @property
    def has_region(self) -> bool:
        """Whether a part of the source is asked for."""
        return bool(self.x or self.y or self.region_width is not None or self.region_height is not None)

    @classmethod
    def from_text(cls, text: str) -> "Viewport":
        """Read `width,height[,x[,y[,region width[,region height]]]]`; any of the last four may be empty.

        Raises INVALID. Source: PS3.18 8.3.5.1.3.
        """
        pieces = [piece.strip() for piece in text.split(",")]
        try:
            width, height = int(pieces[0]), int(pieces[1])
            numbers = [float(piece) if piece else None for piece in pieces[2:]]
        except (ValueError, IndexError):
            width, height, numbers = 0, 0, []
        is_finite = all(number is None or abs(number) < 1e9 for number in numbers)
        if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and len(numbers) <= 4 and is_finite):
            message = f"width,height (1 to {MAX_SIDE}) and optionally x,y,width,height of a region expected"
            raise AppError(Category.INVALID, message, where="viewport")
        x, y, region_width, region_height = [*numbers, None, None, None, None][:4]
        if (x or 0) < 0 or (y or 0) < 0 or region_width == 0 or region_height == 0:
            raise AppError(Category.INVALID, "a region lies inside the image and is not empty", where="viewport")
        return cls(width, height, x or 0.0, y or 0.0, region_width, region_height)

    def region(self, attributes: DisplayAttributes) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of what is shown of the full-size source, cut to its edges.

        Raises INVALID when nothing is left.
        """
        right, bottom = float(attributes.columns), float(attributes.rows)
        if self.region_width is not None:
            right = min(right, self.x + abs(self.region_width))
        if self.region_height is not None:
            bottom = min(bottom, self.y + abs(self.region_height))
        if right - self.x <= 0 or bottom - self.y <= 0:
            raise AppError(Category.INVALID, "the region lies outside the image", where="viewport")
        return self.x, self.y, right, bottom

    def size(self, attributes: DisplayAttributes) -> tuple[int, int]:
        """Return (width, height) of the largest image of the region's true shape that fits."""
        left, top, right, bottom = self.region(attributes)
        pixel_height, pixel_width = attributes.pixel_size
        return fitting(((right - left) * pixel_width, (bottom - top) * pixel_height), self)


def fitting(shape: tuple[float, float], viewport: Viewport) -> tuple[int, int]:
    """Return (width, height) in pixels of the largest image of the shape (width, height in any unit) that fits.

    Raises TOO_LARGE beyond `MOST_PIXELS`.
    """
    width, height = shape
    scale = min(viewport.width / width, viewport.height / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size[0] * size[1] > MOST_PIXELS:
        message = f"a picture of {size[0]} x {size[1]} pixels; at most {MOST_PIXELS} are made"
        raise AppError(Category.TOO_LARGE, message, where="viewport")
    return size


def render(
    pixels: NDArray[Any],
    attributes: DisplayAttributes,
    *,
    window: Window | None = None,
    viewport: Viewport | None = None,
    quality: int = DEFAULT_QUALITY,
    media_type: str = "image/jpeg",
) -> bytes:
    """Return one frame as an image file.

    pixels     [rows, columns] or [rows, columns, samples], whole or decoded at reduced resolution
    viewport   None leaves pixels as they are, whatever their shape in space
    quality    1 ... 100, for JPEG

    Colour images take no window. Raises UNSUPPORTED for other media types, retired colour models and images beyond what
    the format can hold, INVALID when pixels and attributes do not fit together.
    """
    kind_of(media_type)
    return encode(picture(pixels, attributes, window=window, viewport=viewport), media_type, quality=quality)


def picture(
    pixels: NDArray[Any],
    attributes: DisplayAttributes,
    *,
    window: Window | None = None,
    viewport: Viewport | None = None,
) -> Image.Image:
    """Return one frame as an 8-bit grey or RGB image; see `render`."""
    image = Image.fromarray(display_values(pixels, attributes, window=window))
    return image if viewport is None else _fitted(image, attributes, viewport)


def reduce_levels(attributes: DisplayAttributes, viewport: Viewport | None) -> int:
    """Return by how many powers of two a frame may be decoded smaller without the viewport showing it.

    Of palette indices, whose mean means nothing, none.
    """
    if viewport is None or attributes.is_palette:
        return 0
    left, top, right, bottom = viewport.region(attributes)
    width, height = viewport.size(attributes)
    factor = min((right - left) / width, (bottom - top) / height)
    return max(0, min(MAX_LEVELS, int(factor).bit_length() - 1))


def quality_from_text(text: str) -> int:
    """Read the quality of a URL, 1 to 100. Raises INVALID. Source: PS3.18 8.3.5.1.2."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:4]) <= 100):
        raise AppError(Category.INVALID, "a number from 1 to 100 expected", where="quality")
    return int(text)


def display_values(
    pixels: NDArray[Any], attributes: DisplayAttributes, *, window: Window | None = None
) -> NDArray[np.uint8]:
    """Return uint8 grey values [rows, columns] or RGB [rows, columns, 3]; see `imaging.windowing` for the grey ones."""
    if pixels.size == 0 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise AppError(Category.INVALID, "one frame of one or three samples a pixel expected", where="pixels")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim == 2:
        if attributes.palette is not None:
            return _palette_colours(pixels, attributes.palette)
        return grey_values(pixels, attributes, window=window)
    model = attributes.photometric_interpretation
    if model not in _COLOUR_MODELS:
        raise AppError(Category.UNSUPPORTED, "this colour model cannot be rendered", where="(0028,0004)")
    return _COLOUR_MODELS[model](_eight_bits(pixels, attributes))


def _palette_colours(pixels: NDArray[Any], palette: tuple[LookupTable, LookupTable, LookupTable]) -> NDArray[np.uint8]:
    indices = pixels.astype(np.int64)
    channels = []
    for table in palette:
        shades = (table.entries * (255 / full_scale(table)) + 0.5).astype(np.uint8)
        channels.append(shades[np.clip(indices - table.first, 0, len(shades) - 1)])
    return np.stack(channels, axis=-1)


def _eight_bits(samples: NDArray[Any], attributes: DisplayAttributes) -> NDArray[np.uint8]:
    """Return colour samples scaled to 0 ... 255; what reduced-resolution decoding overshot is clipped."""
    if samples.dtype == np.uint8 and attributes.bits_stored == 8:
        return samples
    if samples.dtype.kind == "f":
        raise AppError(Category.UNSUPPORTED, "colour of floating point cannot be rendered", where="(0028,0004)")
    top = (1 << attributes.bits_stored) - 1
    return (np.clip(samples.astype(np.int64), 0, top) * (255 / top) + 0.5).astype(np.uint8)


def _rgb(samples: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return samples


def _rgb_from_ybr_full(samples: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return _matrixed(samples, _FULL, np.array([0, 128, 128], np.float32))


def _rgb_from_ybr_partial(samples: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return _matrixed(samples, _PARTIAL, np.array([16, 128, 128], np.float32))


def _matrixed(samples: NDArray[np.uint8], matrix: NDArray[np.float32], zero: NDArray[np.float32]) -> NDArray[np.uint8]:
    rgb = (samples - zero) @ matrix.T
    return np.clip(rgb + 0.5, 0, 255).astype(np.uint8)


# The inverse of the equations of PS3.3 C.7.6.3.1.2, which are those of ITU-R BT.601 (JFIF for the full range).
_FULL = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]], np.float32)
_PARTIAL = np.array([[1.164384, 0, 1.596027], [1.164384, -0.391762, -0.812968], [1.164384, 2.017232, 0]], np.float32)

_COLOUR_MODELS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "RGB": _rgb,
    "YBR_RCT": _rgb,  # JPEG 2000 decoders undo these two
    "YBR_ICT": _rgb,
    "YBR_FULL": _rgb_from_ybr_full,
    "YBR_FULL_422": _rgb_from_ybr_full,  # with the chroma samples repeated for each pixel, as decoders give them
    "YBR_PARTIAL": _rgb_from_ybr_partial,
    "YBR_PARTIAL_420": _rgb_from_ybr_partial,
    "YBR_PARTIAL_422": _rgb_from_ybr_partial,
}


def _fitted(image: Image.Image, attributes: DisplayAttributes, viewport: Viewport) -> Image.Image:
    """Return the viewport's region of an image, which may be smaller than the source it stands for, scaled to fit."""
    across, down = image.width / attributes.columns, image.height / attributes.rows
    left, top, right, bottom = viewport.region(attributes)
    box = (left * across, top * down, right * across, bottom * down)
    # Cut out first, so that the filter sees nothing from beyond the region.
    cut = image.crop((floor(box[0]), floor(box[1]), ceil(box[2]), ceil(box[3])))
    within = (box[0] - floor(box[0]), box[1] - floor(box[1]), box[2] - floor(box[0]), box[3] - floor(box[1]))
    size = viewport.size(attributes)
    is_smaller = size[0] <= within[2] - within[0] and size[1] <= within[3] - within[1]
    filtering = Image.Resampling.HAMMING if is_smaller else Image.Resampling.BICUBIC
    fitted = cut.resize(size, filtering, box=within)
    if viewport.region_width is not None and viewport.region_width < 0:
        fitted = fitted.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if viewport.region_height is not None and viewport.region_height < 0:
        fitted = fitted.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return fitted
