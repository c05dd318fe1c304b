"""Native pixel data: uncompressed samples in all the orders that DICOM allows.

Arrays are [rows, columns(, samples)], little-endian container words, samples of a pixel together; one byte a pixel for
one-bit data. Source: PS3.5 8.1, 8.2.1 and annex D; PS3.3 C.7.6.3.1.
"""

import numpy as np

from imaging.codecs.codec import Codec, Decoded
from imaging.errors import AppError, Category
from imaging.layout import Buffer, PixelLayout, Pixels
from imaging.syntaxes import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    ENCAPSULATED_UNCOMPRESSED,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)


def frame_range(layout: PixelLayout, index: int) -> tuple[int, int]:
    """Return the first byte and the number of bytes that hold frame `index`, from the start of the pixel data.

    One-bit frames may share bytes with their neighbours: the first pixel is bit `index * frame_bits % 8`.
    """
    first = index * layout.frame_bits
    start, end = first // 8, -(-(first + layout.frame_bits) // 8)
    return start, end - start


def decode(codestream: Buffer, layout: PixelLayout, *, trusted: bool) -> Decoded:
    """Return one little-endian frame; subsampled chroma is repeated, so that YBR_FULL_422 becomes YBR_FULL."""
    return decode_at(codestream, layout, 0)


def decode_big_endian(codestream: Buffer, layout: PixelLayout, *, trusted: bool) -> Decoded:
    """Return one big-endian frame."""
    return decode_at(codestream, layout, 0, little_endian=False)


def decode_at(data: Buffer, layout: PixelLayout, bit: int, *, little_endian: bool = True) -> Decoded:
    """Return one frame whose first sample is at bit `bit` of `data`; other depths than one bit start at 0."""
    photometric = layout.photometric_interpretation
    dtype = layout.dtype
    if len(data) * 8 < bit + layout.frame_bits:
        raise AppError(Category.INVALID, f"a frame has {len(data)} bytes, {-(-layout.frame_bits // 8)} are needed")
    if layout.bits_allocated == 1:
        return Decoded(_unpack_bits(data, layout, bit), photometric)
    count = layout.frame_bits // layout.bits_allocated
    order = dtype if little_endian else dtype.newbyteorder(">")
    samples = np.frombuffer(data, order, count).astype(dtype, copy=False)
    if layout.is_subsampled:
        return Decoded(_upsample(samples, layout), photometric.replace("_422", ""))
    if layout.samples_per_pixel > 1 and layout.planar_configuration == 1:
        planes = samples.reshape(layout.samples_per_pixel, layout.rows, layout.columns)
        return Decoded(np.ascontiguousarray(planes.transpose(1, 2, 0)), photometric)
    return Decoded(samples.reshape(layout.shape), photometric)


def encode(frame: Pixels, layout: PixelLayout) -> bytes | None:
    """Return the frame as native little-endian bytes in the order that `layout` says; the inverse of `decode`."""
    return encode_frame(frame, layout)


def encode_frame(frame: Pixels, layout: PixelLayout, *, little_endian: bool = True) -> bytes:
    """Return the frame as native bytes. A one-bit frame is packed by itself, from the lowest bit of its first byte."""
    if layout.bits_allocated == 1:
        return np.packbits(frame.reshape(-1), bitorder="little").tobytes()
    samples = frame
    if layout.is_subsampled:
        samples = _subsample(frame, layout)
    elif layout.samples_per_pixel > 1 and layout.planar_configuration == 1:
        samples = frame.transpose(2, 0, 1)
    return samples.astype(layout.dtype if little_endian else layout.dtype.newbyteorder(">"), copy=False).tobytes()


def is_plain(layout: PixelLayout, *, little_endian: bool) -> bool:
    """Tell whether a decoded frame is a view of its native bytes, so that encoding it gives them back."""
    interleaved = layout.samples_per_pixel == 1 or layout.planar_configuration == 0
    return little_endian and interleaved and not layout.is_subsampled and layout.bits_allocated > 1


def _unpack_bits(data: Buffer, layout: PixelLayout, bit: int) -> Pixels:
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    return bits[bit : bit + layout.frame_bits].reshape(layout.shape)


def _upsample(samples: Pixels, layout: PixelLayout) -> Pixels:
    """Y1 Y2 Cb Cr for every two pixels of a row -> Y Cb Cr for each (PS3.3 C.7.6.3.1.2)."""
    if layout.columns % 2:
        raise AppError(Category.UNSUPPORTED, "subsampled chroma with an odd number of columns is not decoded")
    pairs = samples.reshape(layout.rows, layout.columns // 2, 4)
    pixels = np.empty((layout.rows, layout.columns, 3), samples.dtype)
    pixels[:, 0::2, 0], pixels[:, 1::2, 0] = pairs[..., 0], pairs[..., 1]
    pixels[..., 1] = pairs[..., 2].repeat(2, axis=1)
    pixels[..., 2] = pairs[..., 3].repeat(2, axis=1)
    return pixels


def _subsample(pixels: Pixels, layout: PixelLayout) -> Pixels:
    """Take luma of both and chroma of the first of every two pixels: the inverse of `_upsample`."""
    pairs = np.empty((layout.rows, layout.columns // 2, 4), pixels.dtype)
    pairs[..., 0], pairs[..., 1] = pixels[:, 0::2, 0], pixels[:, 1::2, 0]
    pairs[..., 2], pairs[..., 3] = pixels[:, 0::2, 1], pixels[:, 0::2, 2]
    return pairs


CODECS = (
    Codec("implicit VR little endian", IMPLICIT_VR_LITTLE_ENDIAN, True, decode, encode),
    Codec("explicit VR little endian", EXPLICIT_VR_LITTLE_ENDIAN, True, decode, encode),
    Codec("deflated explicit VR little endian", DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, True, decode, encode),
    Codec("explicit VR big endian", EXPLICIT_VR_BIG_ENDIAN, True, decode_big_endian),
    Codec("encapsulated uncompressed", ENCAPSULATED_UNCOMPRESSED, True, decode, encode),
)
