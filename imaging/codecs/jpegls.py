"""JPEG-LS through CharLS. Source: PS3.5 8.2.3 and A.4.3; ITU-T T.87."""

import imagecodecs
import numpy as np

from imaging.codecs.codec import Codec, Decoded, bytes_like, conform
from imaging.codecs.jpeg import check_size, read_header
from imaging.errors import AppError, Category
from imaging.layout import Buffer, PixelLayout, Pixels
from imaging.syntaxes import JPEG_LS_LOSSLESS, JPEG_LS_NEAR_LOSSLESS


def decode(codestream: Buffer, layout: PixelLayout, *, trusted: bool) -> Decoded:
    """Return the decoded frame; JPEG-LS converts no colours and has no sign."""
    header = read_header(codestream)
    check_size(header, layout)
    try:
        pixels = imagecodecs.jpegls_decode(bytes_like(codestream))
    except (imagecodecs.JpeglsError, ValueError) as error:
        raise AppError(Category.INVALID, "CharLS cannot decode the frame") from error
    return Decoded(conform(pixels, layout, lambda: header.precision), layout.photometric_interpretation)


def encode(frame: Pixels, layout: PixelLayout) -> bytes | None:
    """Return the losslessly encoded frame; the whole container, so that nothing in high bits is lost."""
    if frame.dtype.itemsize > 2:
        return None
    samples = np.ascontiguousarray(frame).view(f"<u{frame.dtype.itemsize}")
    try:
        return bytes(imagecodecs.jpegls_encode(samples, out=2 * samples.nbytes + 1024))
    except (imagecodecs.JpeglsError, ValueError):
        return None


LOSSLESS = Codec("JPEG-LS lossless", JPEG_LS_LOSSLESS, True, decode, encode)
NEAR_LOSSLESS = Codec("JPEG-LS near-lossless", JPEG_LS_NEAR_LOSSLESS, False, decode)
