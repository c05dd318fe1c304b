"""Pixels that come as a media type of the web: in which transfer syntax they are kept, and what they say of themselves.

A row of `MEDIA` for each type. Codestreams that DICOM can hold are taken as they are; PNG and GIF become native pixels.
Sources: PS3.18 tables 8.7.3-4, 8.7.3-5 and 10.5.2-1; PS3.5 section 8 and annex A; PS3.3 C.7.6.3.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final, TypeVar

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence, UnidentifiedImageError

from imaging import mp4
from imaging.codecs import codestream, jpeg
from imaging.codecs.j2k import unwrapped
from imaging.errors import AppError, Category
from imaging.layout import Buffer
from imaging.syntaxes import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    HTJ2K,
    HTJ2K_LOSSLESS,
    HTJ2K_LOSSLESS_RPCL,
    JPEG_2000,
    JPEG_2000_LOSSLESS,
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    JPEG_LS_LOSSLESS,
    JPEG_LS_NEAR_LOSSLESS,
    RLE_LOSSLESS,
)

H = TypeVar("H", jpeg.JpegHeader, codestream.CodestreamHeader)
Array = NDArray[Any]

OCTET_STREAM: Final = "application/octet-stream"
MAX_DECODED_PIXELS: Final = 1 << 26
"""Pixels of an image, all its frames together, that is decoded because DICOM cannot hold its form."""

ROWS, COLUMNS, FRAMES = "00280010", "00280011", "00280008"
SAMPLES, PHOTOMETRIC, PLANAR = "00280002", "00280004", "00280006"
ALLOCATED, STORED, HIGH_BIT, REPRESENTATION = "00280100", "00280101", "00280102", "00280103"

_MPEG4: Final = {
    # codec, profile, most level: PS3.5 8.2.7 to 8.2.11; the first row that fits
    ("avc", 100, 41): "1.2.840.10008.1.2.4.102",
    ("avc", 77, 41): "1.2.840.10008.1.2.4.102",  # what Main can do, High can
    ("avc", 66, 41): "1.2.840.10008.1.2.4.102",
    ("avc", 100, 42): "1.2.840.10008.1.2.4.104",
    ("avc", 128, 42): "1.2.840.10008.1.2.4.106",
    ("hevc", 1, 153): "1.2.840.10008.1.2.4.107",
    ("hevc", 2, 153): "1.2.840.10008.1.2.4.108",
}


@dataclass(frozen=True, slots=True)
class Pixels:
    """Pixel data as they go into an instance.

    frames     codestreams, one each frame (or one for all of a video); of native pixels all bytes in one
    described  attributes of the Image Pixel Description, by tag; empty where nothing can be known
    loss       method of a lossy compression (PS3.3 C.7.6.1.1.5), "" for none
    further    other attributes that the medium tells
    """

    transfer_syntax_uid: str
    frames: tuple[Buffer, ...]
    described: Mapping[str, Any] = field(default_factory=dict)
    loss: str = ""
    further: Mapping[str, Any] = field(default_factory=dict)

    @property
    def encapsulated(self) -> bool:
        """Whether the frames are codestreams."""
        return self.transfer_syntax_uid != EXPLICIT_VR_LITTLE_ENDIAN


@dataclass(frozen=True, slots=True)
class Medium:
    """How pixels of a media type are read.

    is_frame   a part of the request is one frame
    syntaxes   the transfer syntaxes that a `transfer-syntax` parameter may name; None: no such parameter
    """

    read: Callable[[Sequence[Buffer]], Pixels]
    is_frame: bool
    syntaxes: tuple[str, ...]


def pixels(media_type: str, transfer_syntax: str, parts: Sequence[Buffer]) -> Pixels:
    """Return the pixels that parts of a request hold.

    transfer_syntax   as the Content-Type names it, "" where it does not
    Raises UNSUPPORTED for other media types and transfer syntaxes, INVALID for damaged codestreams.
    """
    medium = MEDIA.get(media_type)
    if medium is None:
        raise AppError(Category.UNSUPPORTED, "pixel data of this media type is not taken", where="Content-Type")
    if transfer_syntax and transfer_syntax not in medium.syntaxes:
        message = f"{media_type} does not come in the transfer syntax that is named"
        raise AppError(Category.UNSUPPORTED, message, where="Content-Type")
    found = medium.read(parts)
    if transfer_syntax and transfer_syntax != found.transfer_syntax_uid:
        return _as_named(found, transfer_syntax)
    return found


def _as_named(found: Pixels, named: str) -> Pixels:
    """Return the pixels in the syntax that the request names, where the codestream is of that kind."""
    if named in _WIDER.get(found.transfer_syntax_uid, ()):
        return Pixels(named, found.frames, found.described, found.loss, found.further)
    message = f"the codestream is one of transfer syntax {found.transfer_syntax_uid}, not of the one that is named"
    raise AppError(Category.INVALID, message, where="Content-Type")


_WIDER: Final = {
    # found                 what it may be called as well
    JPEG_2000_LOSSLESS:     (JPEG_2000,),
    HTJ2K_LOSSLESS:         (HTJ2K,),
    HTJ2K_LOSSLESS_RPCL:    (HTJ2K_LOSSLESS, HTJ2K),
    JPEG_BASELINE:          (JPEG_EXTENDED,),
    JPEG_LOSSLESS_SV1:      (JPEG_LOSSLESS,),
    JPEG_LS_LOSSLESS:       (JPEG_LS_NEAR_LOSSLESS,),
}  # fmt: skip


def _octets(parts: Sequence[Buffer]) -> Pixels:
    return Pixels(EXPLICIT_VR_LITTLE_ENDIAN, (parts[0],))


def _rle(parts: Sequence[Buffer]) -> Pixels:
    return Pixels(RLE_LOSSLESS, tuple(parts))


def _jpeg(parts: Sequence[Buffer]) -> Pixels:
    header = _alike([jpeg.read_header(part) for part in parts])
    process = {0xC0: JPEG_BASELINE, 0xC1: JPEG_EXTENDED, 0xC3: JPEG_LOSSLESS}.get(header.process)
    if process is None:
        message = "the JPEG is of a process that DICOM does not take; baseline, extended and lossless are taken"
        raise AppError(Category.UNSUPPORTED, message, where="image/jpeg")
    colours = "MONOCHROME2" if header.components == 1 else "RGB" if _is_rgb(header) else "YBR_FULL_422"
    if process == JPEG_LOSSLESS:
        syntax = JPEG_LOSSLESS_SV1 if _predictor(parts[0]) == 1 else JPEG_LOSSLESS
        return Pixels(syntax, tuple(parts), _described(header, colours), "")
    return Pixels(process, tuple(parts), _described(header, colours), "ISO_10918_1")


def _is_rgb(header: jpeg.JpegHeader) -> bool:
    """Say whether three components are red, green and blue: the file says so, or no colour transform is usual."""
    return header.adobe_transform == 0 or (
        header.process == 0xC3 and header.adobe_transform is None and not header.jfif
    )


def _predictor(data: Buffer) -> int:
    """Return the predictor of a lossless JPEG: Ss of its first scan (ITU-T T.81 B.2.3)."""
    start = bytes(data[: 1 << 20]).find(b"\xff\xda")
    return data[start + 5 + 2 * data[start + 4]] if start >= 0 else 0


def _jpegls(parts: Sequence[Buffer]) -> Pixels:
    header = _alike([jpeg.read_header(part) for part in parts])
    if header.process != 0xF7:
        raise AppError(Category.INVALID, "this is no JPEG-LS codestream", where="image/jls")
    start = bytes(parts[0][: 1 << 20]).find(b"\xff\xda")
    near = parts[0][start + 5 + 2 * parts[0][start + 4]] if start >= 0 else 0  # NEAR of the first scan, T.87 C.2.3
    syntax, loss = (JPEG_LS_NEAR_LOSSLESS, "ISO_14495_1") if near else (JPEG_LS_LOSSLESS, "")
    return Pixels(syntax, tuple(parts), _described(header, "MONOCHROME2" if header.components == 1 else "RGB"), loss)


def _jpeg2000(parts: Sequence[Buffer]) -> Pixels:
    frames = tuple(unwrapped(part) for part in parts)
    header = _alike([codestream.read_header(frame) for frame in frames])
    colours = "MONOCHROME2" if header.components == 1 else "RGB"
    if header.colour_transform:
        colours = "YBR_RCT" if header.reversible else "YBR_ICT"
    described = _sized(header.rows, header.columns, header.components, colours, header.precision)
    described[REPRESENTATION] = _number(int(header.signed))
    lossless, lossy = JPEG_2000_LOSSLESS, JPEG_2000
    if header.high_throughput:
        lossless, lossy = (HTJ2K_LOSSLESS_RPCL if _is_rpcl(frames[0]) else HTJ2K_LOSSLESS), HTJ2K
    # DICOM has no term of its own for the loss of HTJ2K than that of its family.
    loss = "" if header.reversible else "ISO_15444_15" if header.high_throughput else "ISO_15444_1"
    return Pixels(lossless if header.reversible else lossy, frames, described, loss)


def _is_rpcl(data: Buffer) -> bool:
    """Say whether the progression order is resolution first, as .202 wants it (COD, ISO/IEC 15444-1 A.6.1)."""
    start = bytes(data[:4096]).find(b"\xff\x52")
    return start >= 0 and data[start + 5] == 2


def _alike(headers: Sequence[H]) -> H:
    """Return the first of the headers of all frames. Raises INVALID where sizes differ."""
    first = headers[0]
    if any((each.rows, each.columns, each.components) != (first.rows, first.columns, first.components)
           for each in headers):  # fmt: skip
        raise AppError(Category.INVALID, "the frames are not of one size", where="Content-Type")
    return first


def _png(parts: Sequence[Buffer]) -> Pixels:
    """Return a PNG as native pixels: DICOM has no transfer syntax for it."""
    data = bytes(parts[0])
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 33:
        raise AppError(Category.INVALID, "this is no PNG", where="image/png")
    _check_pixels(int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big"))
    try:
        pixels = imagecodecs.png_decode(data)
    except (imagecodecs.PngError, ValueError) as error:
        raise AppError(Category.INVALID, "the PNG cannot be decoded", where="image/png") from error
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):  # grey or colour, and alpha
        if pixels[..., -1].min() < np.iinfo(pixels.dtype).max:
            raise AppError(Category.UNSUPPORTED, "DICOM has no transparent pixels", where="image/png")
        pixels = pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]
    return _native([pixels])


def _gif(parts: Sequence[Buffer]) -> Pixels:
    """Return the frames of a GIF as native pixels."""
    try:
        picture = Image.open(BytesIO(bytes(parts[0])), formats=("GIF",))
        _check_pixels(picture.width * picture.height * getattr(picture, "n_frames", 1))
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)]
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise AppError(Category.INVALID, "the GIF cannot be decoded", where="image/gif") from error
    return _native(frames)


def _check_pixels(count: int) -> None:
    if count > MAX_DECODED_PIXELS:
        message = f"more than {MAX_DECODED_PIXELS} pixels; send it in a form that DICOM has, such as JPEG 2000"
        raise AppError(Category.TOO_LARGE, message, where="Content-Type")


def _native(frames: Sequence[Array]) -> Pixels:
    first = frames[0]
    samples, bits = (3 if first.ndim == 3 else 1), 8 * first.dtype.itemsize
    colours = "RGB" if samples == 3 else "MONOCHROME2"
    described = _sized(first.shape[0], first.shape[1], samples, colours, bits)
    if len(frames) > 1:
        described[FRAMES] = {"vr": "IS", "Value": [len(frames)]}
    native = b"".join(frame.astype(frame.dtype.newbyteorder("<")).tobytes() for frame in frames)
    return Pixels(EXPLICIT_VR_LITTLE_ENDIAN, (native,), described)


def _mp4(parts: Sequence[Buffer]) -> Pixels:
    video = mp4.read(parts[0])
    fits = (uid for (codec, profile, level), uid in _MPEG4.items()
            if (codec, profile) == (video.codec, video.profile) and video.level <= level)  # fmt: skip
    syntax = next(fits, None)
    if syntax is None:
        message = f"DICOM takes no {video.codec} video of profile {video.profile} at level {video.level}"
        raise AppError(Category.UNSUPPORTED, message, where="video/mp4")
    described = _sized(video.rows, video.columns, 3, "YBR_PARTIAL_420", 10 if video.profile == 2 else 8)
    described[FRAMES] = {"vr": "IS", "Value": [video.frames]}
    further = {
        "00181063": {"vr": "DS", "Value": [round(video.frame_time_ms, 6)]},
        "00280009": {"vr": "AT", "Value": ["00181063"]},  # Frame Increment Pointer: Frame Time
    }
    return Pixels(syntax, (parts[0],), described, "ISO_14496_10" if video.codec == "avc" else "ISO_23008_2", further)


def _described(header: jpeg.JpegHeader, colours: str) -> dict[str, Any]:
    return _sized(header.rows, header.columns, header.components, colours, header.precision)


def _sized(rows: int, columns: int, samples: int, colours: str, bits: int) -> dict[str, Any]:
    told = {
        SAMPLES: samples, ROWS: rows, COLUMNS: columns, ALLOCATED: 8 if bits <= 8 else 16, STORED: bits,
        HIGH_BIT: bits - 1, REPRESENTATION: 0, **({PLANAR: 0} if samples > 1 else {}),
    }  # fmt: skip
    return {**{tag: _number(value) for tag, value in told.items()}, PHOTOMETRIC: {"vr": "CS", "Value": [colours]}}


def _number(value: int) -> dict[str, Any]:
    return {"vr": "US", "Value": [value]}


_OF_JPEG = (JPEG_BASELINE, JPEG_EXTENDED, JPEG_LOSSLESS, JPEG_LOSSLESS_SV1)
_OF_JPEG_2000 = (JPEG_2000_LOSSLESS, JPEG_2000)
_OF_HTJ2K = (HTJ2K_LOSSLESS, HTJ2K_LOSSLESS_RPCL, HTJ2K)

MEDIA: Final[Mapping[str, Medium]] = {
    # media type       how it is read   a part is a frame   transfer syntaxes that it can be
    OCTET_STREAM:       Medium(_octets,   False, (EXPLICIT_VR_LITTLE_ENDIAN,)),
    "image/jpeg":       Medium(_jpeg,     True,  _OF_JPEG),
    "image/jls":        Medium(_jpegls,   True,  (JPEG_LS_LOSSLESS, JPEG_LS_NEAR_LOSSLESS)),
    "image/jp2":        Medium(_jpeg2000, True,  _OF_JPEG_2000),
    "image/j2c":        Medium(_jpeg2000, True,  _OF_JPEG_2000),
    "image/jph":        Medium(_jpeg2000, True,  _OF_HTJ2K),
    "image/jphc":       Medium(_jpeg2000, True,  _OF_HTJ2K),
    "image/dicom-rle":  Medium(_rle,      True,  (RLE_LOSSLESS,)),
    "image/png":        Medium(_png,      False, (EXPLICIT_VR_LITTLE_ENDIAN,)),
    "image/gif":        Medium(_gif,      False, (EXPLICIT_VR_LITTLE_ENDIAN,)),
    "video/mp4":        Medium(_mp4,      False, tuple(dict.fromkeys(_MPEG4.values()))),
}  # fmt: skip
