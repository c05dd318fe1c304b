"""High-throughput JPEG 2000: OpenJPH for what we have made, OpenJPEG for what came from outside.

OpenJPH is several times faster and writes RPCL with a TLM marker as PS3.5 10.18 asks, but gives garbage or hangs on
damaged input, so that it decodes only what is trusted. Source: PS3.5 8.2.15 and A.4.10; ISO/IEC 15444-15.
"""

import imagecodecs
import numpy as np

from imaging.codecs import j2k
from imaging.codecs.codec import Codec, Decoded, bytes_like, conform
from imaging.codecs.codestream import precision_of, read_header
from imaging.errors import AppError, Category
from imaging.layout import Buffer, PixelLayout, Pixels
from imaging.syntaxes import HTJ2K, HTJ2K_LOSSLESS, HTJ2K_LOSSLESS_RPCL

_SSIZ = 42
_ROOMY = 14  # bits in 16: the low pass of the 5/3 wavelet overshoots to less than three times its input's range


def decode(codestream: Buffer, layout: PixelLayout, *, trusted: bool) -> Decoded:
    """Return the decoded frame; RGB where the codestream's colour transform was undone."""
    if not trusted:
        return j2k.decode(codestream, layout, trusted=False)
    try:
        pixels = imagecodecs.htj2k_decode(bytes_like(codestream), planar=False)
    except (imagecodecs.Htj2kError, NotImplementedError, ValueError) as error:
        raise AppError(Category.INVALID, "OpenJPH cannot decode the frame") from error
    return Decoded(conform(pixels, layout, lambda: precision_of(codestream)), j2k.decoded_photometric(layout))


def encode(frame: Pixels, layout: PixelLayout) -> bytes | None:
    """Return the reversibly encoded frame, with the precision of Bits Stored where nothing stands above them."""
    bits = j2k.codestream_precision(frame, layout)
    container = 8 * frame.dtype.itemsize
    if bits < container and not layout.is_signed:
        # OpenJPH is told only the container. A signed codestream has no level shift: shift by hand, and what differs
        # from an unsigned one of fewer bits is the precision byte alone.
        frame = frame.view(f"<i{frame.dtype.itemsize}") - frame.dtype.type(1 << bits - 1).view(
            f"<i{frame.dtype.itemsize}"
        )
    try:
        codestream = imagecodecs.htj2k_encode(
            frame,
            reversible=True,
            tlm=True,
            resolutions=j2k.resolutions(layout),
            rgb=j2k.uses_colour_transform(layout) if frame.ndim == 3 else None,
            planar=False if frame.ndim == 3 else None,
        )
    except (imagecodecs.Htj2kError, ValueError):
        return None
    if bits == container:
        return bytes(codestream)
    ssiz = bits - 1 | (0x80 if layout.is_signed else 0)
    return b"".join((codestream[:_SSIZ], bytes([ssiz]), codestream[_SSIZ + 1 :]))


def decode_reduced(codestream: Buffer, layout: PixelLayout, levels: int, *, trusted: bool) -> Decoded:
    """Return the frame at 1 / 2**levels of its size.

    OpenJPH does it where it can be trusted and the container has room for what overshoots, since it wraps where it
    should clamp; elsewhere OpenJPEG, which takes many times as long.
    """
    precision = precision_of(codestream)
    if precision > 25:
        # More than OpenJPEG takes.
        decoded = decode(codestream, layout, trusted=True)
        return decoded._replace(pixels=np.ascontiguousarray(decoded.pixels[:: 2**levels, :: 2**levels]))
    if trusted and layout.samples_per_pixel == 1 and layout.dtype.itemsize == 2 and precision <= _ROOMY:
        return _reduced(codestream, layout, levels, precision)
    return j2k.decode_reduced(codestream, layout, levels, trusted=trusted)


def _reduced(codestream: Buffer, layout: PixelLayout, levels: int, precision: int) -> Decoded:
    there = min(levels, read_header(codestream).levels)
    try:
        pixels = imagecodecs.htj2k_decode(bytes_like(codestream), planar=False, skipres=(there, there))
    except (imagecodecs.Htj2kError, NotImplementedError, ValueError) as error:
        raise AppError(Category.INVALID, "OpenJPH cannot decode the frame at reduced resolution") from error
    low, high = (-(1 << precision - 1), (1 << precision - 1) - 1) if layout.is_signed else (0, (1 << precision) - 1)
    clamped = np.clip(pixels.view("<i2"), low, high).astype(layout.dtype)
    rest = 2 ** (levels - there)
    return Decoded(np.ascontiguousarray(clamped[::rest, ::rest]), j2k.decoded_photometric(layout))


LOSSLESS = Codec("HTJ2K lossless", HTJ2K_LOSSLESS, True, decode, encode, decode_reduced)
LOSSLESS_RPCL = Codec("HTJ2K lossless RPCL", HTJ2K_LOSSLESS_RPCL, True, decode, encode, decode_reduced)
LOSSY = Codec("HTJ2K", HTJ2K, None, decode, encode, decode_reduced)
