"""RLE Lossless: byte planes of each sample, most significant first, run-length encoded row by row.

Source: PS3.5 annex G.
"""

from itertools import pairwise
from struct import pack, unpack_from

import imagecodecs
import numpy as np

from imaging.codecs.codec import Codec, Decoded
from imaging.errors import AppError, Category
from imaging.layout import Buffer, PixelLayout, Pixels
from imaging.syntaxes import RLE_LOSSLESS

_MAX_SEGMENTS = 15


def decode(codestream: Buffer, layout: PixelLayout, *, trusted: bool) -> Decoded:
    """Return the decoded frame."""
    width = layout.dtype.itemsize
    if layout.bits_allocated == 1:
        raise AppError(Category.UNSUPPORTED, "RLE of one-bit pixels is not decoded")
    octets = np.empty((layout.rows * layout.columns, layout.samples_per_pixel, width), np.uint8)
    segments = iter(_segments(codestream, layout.samples_per_pixel * width))
    for sample in range(layout.samples_per_pixel):
        for octet in reversed(range(width)):
            octets[:, sample, octet] = _plane(next(segments), len(octets))
    return Decoded(octets.view(layout.dtype).reshape(layout.shape), layout.photometric_interpretation)


def encode(frame: Pixels, layout: PixelLayout) -> bytes | None:
    """Return the encoded frame; None when it would need more than 15 segments."""
    width = frame.dtype.itemsize
    if layout.samples_per_pixel * width > _MAX_SEGMENTS or layout.bits_allocated == 1:
        return None
    octets = np.ascontiguousarray(frame).view(np.uint8).reshape(layout.rows, layout.columns, -1, width)
    segments = []
    for sample in range(layout.samples_per_pixel):
        for octet in reversed(range(width)):
            plane = octets[:, :, sample, octet].tobytes()
            rows = range(0, len(plane), layout.columns)
            segment = b"".join(imagecodecs.packbits_encode(plane[row : row + layout.columns]) for row in rows)
            segments.append(segment + b"\0" * (len(segment) % 2))
    offsets = np.cumsum([64, *(len(segment) for segment in segments[:-1])]).tolist()
    header = [len(segments), *offsets]
    return pack("<16I", *header, *[0] * (16 - len(header))) + b"".join(segments)


def _segments(codestream: Buffer, expected: int) -> list[bytes]:
    """Return the encoded byte planes. Raises INVALID when the header is not that of `expected` segments."""
    header = unpack_from("<16I", codestream) if len(codestream) >= 64 else (0,)
    if header[0] != expected:
        raise AppError(Category.INVALID, f"the RLE header announces {header[0]} segments, {expected} are needed")
    bounds = [*header[1 : expected + 1], len(codestream)]
    if bounds[0] < 64 or any(start > end for start, end in pairwise(bounds)):
        raise AppError(Category.INVALID, "the offsets in the RLE header are out of order")
    return [bytes(codestream[start:end]) for start, end in pairwise(bounds)]


def _plane(segment: bytes, pixels: int) -> Pixels:
    """Return one byte of every pixel; what follows is padding."""
    try:
        plane = np.frombuffer(imagecodecs.packbits_decode(segment), np.uint8)
    except (imagecodecs.PackbitsError, ValueError) as error:
        raise AppError(Category.INVALID, "an RLE segment is damaged") from error
    if len(plane) < pixels:
        raise AppError(Category.INVALID, f"an RLE segment holds {len(plane)} bytes, {pixels} are needed")
    return plane[:pixels]


LOSSLESS = Codec("RLE lossless", RLE_LOSSLESS, True, decode, encode)
