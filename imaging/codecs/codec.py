"""What a codec is: how one frame in one transfer syntax becomes an array, and back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import numpy as np

from imaging.errors import AppError, Category
from imaging.layout import Buffer, PixelLayout, Pixels


class Decoded(NamedTuple):
    """One decoded frame, [rows, columns(, samples)] little-endian container words, and what its colours mean.

    photometric_interpretation differs from the layout's where decoding turned luma and chroma into RGB.
    """

    pixels: Pixels
    photometric_interpretation: str


class Decode(Protocol):
    """Decodes one frame; `trusted` when its digest was checked against what we wrote. Raises INVALID, UNSUPPORTED."""

    def __call__(self, codestream: Buffer, layout: PixelLayout, *, trusted: bool) -> Decoded:
        """Return the decoded frame."""


class DecodeReduced(Protocol):
    """Decodes one frame at 1 / 2**levels of its size; see `Decode`."""

    def __call__(self, codestream: Buffer, layout: PixelLayout, levels: int, *, trusted: bool) -> Decoded:
        """Return the smaller frame, sides rounded up."""


@dataclass(frozen=True, slots=True)
class Codec:
    """One transfer syntax.

    lossless    True or False by the syntax; None where the codestream decides
    encode      frame, layout -> codestream; None when this frame cannot be encoded exactly; absent when we only read
    reduced     codestream, layout, levels, trusted -> a frame of ceil(size / 2**levels); absent without levels
    """

    name: str
    uid: str
    lossless: bool | None
    decode: Decode
    encode: Callable[[Pixels, PixelLayout], bytes | None] | None = None
    reduced: DecodeReduced | None = None


def bytes_like(codestream: Buffer) -> bytes:
    """Return `codestream` itself, typed as imagecodecs' signatures want it; they take views as well."""
    return cast(bytes, codestream)


def conform(pixels: Pixels, layout: PixelLayout, precision: Callable[[], int]) -> Pixels:
    """Return what a decoder gave as container words of the layout, [rows, columns(, samples)].

    Codestreams without a sign carry two's complement patterns of `precision` bits (asked only when needed); they are
    sign-extended. Raises INVALID when size, samples or range contradict the dataset.
    """
    if pixels.shape != layout.shape:
        if pixels.size != np.prod(layout.shape) or pixels.shape[:2] != layout.shape[:2]:
            size = " x ".join(map(str, pixels.shape))
            wanted = " x ".join(map(str, layout.shape))
            raise AppError(Category.INVALID, f"the codestream holds {size} samples, the dataset says {wanted}")
        pixels = pixels.reshape(layout.shape)
    target = layout.dtype
    if pixels.dtype == target:
        return pixels
    if target.kind == "i" and pixels.dtype.kind == "u":
        pixels = _sign_extended(pixels, precision(), target)
    elif target.kind == "u" and pixels.dtype.kind == "i":
        pixels = pixels.view(f"<u{pixels.dtype.itemsize}") & ((1 << precision()) - 1)
    if pixels.dtype.itemsize > target.itemsize and not _fits(pixels, target):
        raise AppError(Category.INVALID, f"the codestream has samples that do not fit {layout.bits_allocated} bits")
    return np.ascontiguousarray(pixels, dtype=target)


def _sign_extended(pixels: Pixels, precision: int, target: np.dtype[np.signedinteger]) -> Pixels:
    size = max(pixels.dtype.itemsize, target.itemsize)
    shift = 8 * size - precision
    return (pixels.astype(f"<u{size}") << shift).view(f"<i{size}") >> shift


def _fits(pixels: Pixels, target: np.dtype[np.integer]) -> bool:
    info = np.iinfo(target)
    return bool(pixels.min() >= info.min and pixels.max() <= info.max)
