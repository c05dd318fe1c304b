"""JPEG 2000 Part 1 through OpenJPEG, which also reads HTJ2K and decodes at reduced resolution.

Source: PS3.5 8.2.4 and A.4.4; ISO/IEC 15444-1.
"""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np

from imaging.codecs.codec import Codec, Decoded, bytes_like, conform
from imaging.codecs.codestream import check_header, precision_of, read_header
from imaging.codecs.openjpeg import load_glymur
from imaging.errors import AppError, Category
from imaging.layout import Buffer, PixelLayout, Pixels
from imaging.syntaxes import JPEG_2000, JPEG_2000_LOSSLESS


def decode(codestream: Buffer, layout: PixelLayout, *, trusted: bool) -> Decoded:
    """Return the decoded frame; RGB where the codestream's colour transform was undone."""
    if not trusted:
        codestream = unwrapped(codestream)
        check_header(read_header(codestream), layout)
    try:
        pixels = imagecodecs.jpeg2k_decode(bytes_like(codestream), planar=False, numthreads=1)
    except (imagecodecs.Jpeg2kError, NotImplementedError, ValueError) as error:
        raise AppError(Category.INVALID, "OpenJPEG cannot decode the frame") from error
    return Decoded(conform(pixels, layout, lambda: precision_of(codestream)), decoded_photometric(layout))


def encode(frame: Pixels, layout: PixelLayout) -> bytes | None:
    """Return the reversibly encoded frame: RPCL is not asked for in Part 1; None beyond 25 bits a sample."""
    bits = codestream_precision(frame, layout)
    if bits > 25:
        return None
    # The encoder heeds a precision only in the smallest container that holds it.
    container = 1 if bits <= 8 else 2 if bits <= 16 else 4
    try:
        return bytes(
            imagecodecs.jpeg2k_encode(
                frame.astype(f"<{frame.dtype.kind}{container}", copy=False),
                codecformat="J2K",
                bitspersample=None if bits == 8 * container else bits,
                reversible=True,
                planar=False if frame.ndim == 3 else None,
                mct=uses_colour_transform(layout),
                resolutions=resolutions(layout) + 1,
                numthreads=1,
            )
        )
    except (imagecodecs.Jpeg2kError, NotImplementedError, ValueError):
        return None


def decode_reduced(codestream: Buffer, layout: PixelLayout, levels: int, *, trusted: bool) -> Decoded:
    """Return the frame at 1 / 2**levels of its size, decoding no more than that needs.

    Levels beyond those in the codestream are made up for by taking every second pixel.
    """
    glymur = load_glymur()
    codestream = unwrapped(codestream)
    header = read_header(codestream)
    check_header(header, layout)
    there = min(levels, header.levels)
    descriptor, path = _file_of(codestream)
    try:
        step = 2**there
        pixels = glymur.Jp2k(path)[::step, ::step] if there else glymur.Jp2k(path)[:]
    except (OSError, RuntimeError, ValueError, glymur.jp2k.InvalidJp2kError) as error:
        raise AppError(Category.INVALID, "OpenJPEG cannot decode the frame at reduced resolution") from error
    finally:
        os.close(descriptor)
        if not path.startswith("/proc/"):
            Path(path).unlink()
    rest = 2 ** (levels - there)
    pixels = np.ascontiguousarray(pixels[::rest, ::rest])
    smaller = replace(layout, rows=pixels.shape[0], columns=pixels.shape[1])
    return Decoded(conform(pixels, smaller, lambda: header.precision), decoded_photometric(layout))


def unwrapped(codestream: Buffer) -> Buffer:
    """Return the codestream of a frame that wrongly is a whole JP2 file, as some senders make them."""
    if bytes(codestream[4:8]) != b"jP  ":
        return codestream
    start = bytes(codestream[:4096]).find(b"jp2c")
    return memoryview(codestream)[start + 4 :] if start > 0 else codestream


def codestream_precision(frame: Pixels, layout: PixelLayout) -> int:
    """Return the bits to write: Bits Stored, or the whole container when anything stands above them.

    Overlays in high bits and samples that are not sign-extended must come back too.
    """
    container = 8 * frame.dtype.itemsize
    bits = layout.bits_stored
    if layout.samples_per_pixel != 1 or layout.high_bit != bits - 1 or not 1 < bits < container or not frame.size:
        return container
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if layout.is_signed else (0, (1 << bits) - 1)
    if frame.max() > high or (layout.is_signed and frame.min() < low):
        return container
    return bits


def uses_colour_transform(layout: PixelLayout) -> bool:
    """Tell whether three samples are red, green and blue, which the reversible transform decorrelates."""
    return layout.samples_per_pixel == 3 and layout.photometric_interpretation in ("RGB", "YBR_RCT")


def resolutions(layout: PixelLayout) -> int:
    """Return how many times the frame is halved: until its shorter side is about 64 pixels (PS3.5 10.18)."""
    return max(1, (max(1, min(layout.rows, layout.columns)) - 1).bit_length() - 6)


def decoded_photometric(layout: PixelLayout) -> str:
    """Return what colours mean after decoding."""
    transformed = layout.photometric_interpretation in ("YBR_RCT", "YBR_ICT")
    return "RGB" if transformed else layout.photometric_interpretation


def _file_of(codestream: Buffer) -> tuple[int, str]:
    """Return an open descriptor and the path of a file with these bytes, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("frame.j2k")
        path = f"/proc/self/fd/{descriptor}"
    else:
        descriptor, path = tempfile.mkstemp(suffix=".j2k")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(codestream)
    return descriptor, path


LOSSLESS = Codec("JPEG 2000 lossless", JPEG_2000_LOSSLESS, True, decode, encode, decode_reduced)
LOSSY = Codec("JPEG 2000", JPEG_2000, None, decode, encode, decode_reduced)
