"""JPEG: baseline and extended (lossy), and lossless processes 14 and 14 SV1, through libjpeg-turbo. Decoding only.

Source: PS3.5 8.2.1 and A.4.1 - A.4.2; ITU-T T.81.
"""

from typing import NamedTuple

import imagecodecs

from imaging.codecs.codec import Codec, Decoded, conform
from imaging.errors import AppError, Category
from imaging.layout import Buffer, PixelLayout
from imaging.syntaxes import JPEG_BASELINE, JPEG_EXTENDED, JPEG_LOSSLESS, JPEG_LOSSLESS_SV1

_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_APP0, _APP14, _START_OF_SCAN = 0xE0, 0xEE, 0xDA


class JpegHeader(NamedTuple):
    """What comes before the first scan: process (SOF marker), size, and who says what the colours are.

    adobe_transform  the transform byte of an Adobe APP14 marker, None without one
    """

    process: int
    precision: int
    rows: int
    columns: int
    components: int
    jfif: bool
    adobe_transform: int | None


def read_header(codestream: Buffer) -> JpegHeader:
    """Return the header of a JPEG or JPEG-LS codestream. Raises INVALID for what is none."""
    jfif, adobe, frame = False, None, None
    pos = 2
    while pos + 4 <= len(codestream) and codestream[0] == 0xFF and codestream[1] == 0xD8:
        if codestream[pos] != 0xFF:
            break
        marker = codestream[pos + 1]
        if marker == 0xFF:
            pos += 1
            continue
        length = codestream[pos + 2] << 8 | codestream[pos + 3]
        segment = bytes(codestream[pos + 4 : pos + 2 + length])
        if marker in _START_OF_FRAME and len(segment) >= 6:
            frame = (marker, segment[0], segment[1] << 8 | segment[2], segment[3] << 8 | segment[4], segment[5])
        elif marker == _APP0:
            jfif = jfif or segment.startswith(b"JFIF")
        elif marker == _APP14 and segment.startswith(b"Adobe") and len(segment) >= 12:
            adobe = segment[11]
        elif marker == _START_OF_SCAN:
            break
        pos += 2 + length
    if frame is None:
        raise AppError(Category.INVALID, "this is no JPEG codestream: it has no frame header")
    return JpegHeader(*frame, jfif=jfif, adobe_transform=adobe)


def decode(codestream: Buffer, layout: PixelLayout, *, trusted: bool) -> Decoded:
    """Return the decoded frame; luma and chroma come back as RGB."""
    header = read_header(codestream)
    check_size(header, layout)
    photometric = layout.photometric_interpretation
    colorspace = None
    if header.components == 3 and photometric == "RGB" and not header.jfif and header.adobe_transform is None:
        # Nothing in the codestream says what the colours are, and libjpeg would guess luma and chroma.
        colorspace = "RGB"
    try:
        pixels = imagecodecs.jpeg8_decode(bytes(codestream), colorspace=colorspace, outcolorspace=colorspace)
    except (imagecodecs.Jpeg8Error, ValueError) as error:
        raise AppError(Category.INVALID, "libjpeg cannot decode the frame") from error
    pixels = conform(pixels, layout, lambda: header.precision)
    return Decoded(pixels, "RGB" if header.components == 3 and photometric.startswith("YBR") else photometric)


def decode_lossless(codestream: Buffer, layout: PixelLayout, *, trusted: bool) -> Decoded:
    """Return the decoded frame with its samples as they were encoded: no colour is converted."""
    header = read_header(codestream)
    check_size(header, layout)
    colorspace = "RGB" if header.components == 3 else None
    # libjpeg-turbo and not liblj92 or jpegsof3, which crash on damaged input.
    try:
        pixels = imagecodecs.jpeg8_decode(bytes(codestream), colorspace=colorspace, outcolorspace=colorspace)
    except (imagecodecs.Jpeg8Error, ValueError) as error:
        raise AppError(Category.INVALID, "libjpeg cannot decode the frame") from error
    return Decoded(conform(pixels, layout, lambda: header.precision), layout.photometric_interpretation)


def check_size(header: JpegHeader, layout: PixelLayout) -> None:
    """Raise INVALID when a codestream contradicts the dataset's size or samples."""
    if (header.rows, header.columns, header.components) != (layout.rows, layout.columns, layout.samples_per_pixel):
        raise AppError(
            Category.INVALID,
            f"the codestream has {header.rows} x {header.columns} pixels of {header.components} samples, "
            f"the dataset says {layout.rows} x {layout.columns} of {layout.samples_per_pixel}",
        )


BASELINE = Codec("JPEG baseline", JPEG_BASELINE, False, decode)
EXTENDED = Codec("JPEG extended", JPEG_EXTENDED, False, decode)
LOSSLESS = Codec("JPEG lossless", JPEG_LOSSLESS, True, decode_lossless)
LOSSLESS_SV1 = Codec("JPEG lossless SV1", JPEG_LOSSLESS_SV1, True, decode_lossless)
