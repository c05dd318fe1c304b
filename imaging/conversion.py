"""From a stored file to the same instance in another transfer syntax, and single frames.

Pixels are decoded and encoded frame by frame; attributes that describe their encoding follow. Lossy pixels stay what
they are: Lossy Image Compression is never touched. Source: PS3.5 section 8 and annex A.
"""

import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from imaging.codecs import Codec, Decoded, codecs, native
from imaging.dataset import Received, read
from imaging.errors import AppError, Category
from imaging.frames import SEQUENCE_DELIMITATION, FrameTable, item_header
from imaging.layout import PIXEL_KEYWORDS, SUBSAMPLED, Buffer, PixelLayout
from imaging.part10 import Value, element_header, file_start, layout_edits, swapped, write_elements
from imaging.syntaxes import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    JPEG_2000_FAMILY,
    is_encapsulated,
)

_MAX_NATIVE: Final = 0xFFFFFFFE
_OFFSET_TABLES: Final = (0x7FE00001, 0x7FE00002)


def decode_frame(
    codestream: Buffer,
    layout: PixelLayout,
    from_uid: str,
    *,
    reduce_levels: int = 0,
    bit_offset: int = 0,
    trusted: bool = False,
) -> Decoded:
    """Return one frame of a stored file, [rows, columns(, samples)], and its photometric interpretation.

    reduce_levels  halves rows and columns so many times, rounding up
    bit_offset     first bit of a one-bit native frame in `codestream`: `index * layout.frame_bits % 8`
    trusted        the codestream is our own and its digest was checked

    Raises INVALID for damaged data, UNSUPPORTED for a transfer syntax without decoder.
    """
    if not layout.encapsulated:
        decoded = native.decode_at(codestream, layout, bit_offset, little_endian=from_uid != EXPLICIT_VR_BIG_ENDIAN)
    else:
        codec = codecs.get(from_uid)
        if reduce_levels and codec.reduced is not None:
            return codec.reduced(codestream, layout, reduce_levels, trusted=trusted)
        decoded = codec.decode(codestream, layout, trusted=trusted)
    step = 2**reduce_levels
    return decoded if step == 1 else decoded._replace(pixels=np.ascontiguousarray(decoded.pixels[::step, ::step]))


def convert_frame(
    codestream: Buffer,
    layout: PixelLayout,
    from_uid: str,
    to_uid: str,
    *,
    bit_offset: int = 0,
    trusted: bool = False,
) -> bytes:
    """Return one frame of a stored file in another transfer syntax.

    Raises UNSUPPORTED when there is no encoder, or none for such pixels.
    """
    if from_uid == to_uid and not bit_offset:
        return bytes(codestream)
    return encode_frame(
        decode_frame(codestream, layout, from_uid, bit_offset=bit_offset, trusted=trusted), layout, to_uid
    )


def encode_frame(decoded: Decoded, layout: PixelLayout, to_uid: str) -> bytes:
    """Return a decoded frame of a file with this layout in another transfer syntax; see `convert_frame`."""
    return _encoded(_target(to_uid), decoded, target_layout(layout, decoded.photometric_interpretation, to_uid))


def convert(
    stored: Buffer,
    layout: PixelLayout | None,
    frames: FrameTable | None,
    to_transfer_syntax_uid: str,
    *,
    trusted: bool = False,
) -> Iterator[bytes]:
    """Yield the stored instance as a Part 10 file in another transfer syntax.

    layout, frames  of the stored file, None for an instance without pixel data
    trusted         its codestreams are our own and the file's digest was checked

    Raises UNSUPPORTED when there is no encoder, or none for such pixels; before the first bytes wherever that can be
    known then.
    """
    received, uid = read(stored), to_transfer_syntax_uid
    codec = _target(uid)
    if uid == received.transfer_syntax_uid:
        return iter([bytes(stored)])
    start = file_start(received.values, received.meta_values, uid)
    if layout is None:
        if is_encapsulated(uid):
            raise AppError(Category.UNSUPPORTED, f"an instance without pixel data cannot be given in {codec.name}")
        body = _elements(received, uid, {})
    elif layout.encapsulated or is_encapsulated(uid):
        body = _transcoded(received, layout, frames, codec, trusted=trusted)
    else:
        body = _native_copy(received, layout, uid)
    return file_of(start, body, deflated=uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)


def file_with_frames(
    head: Received, described: PixelLayout, frames: PixelLayout, to_uid: str, codestreams: Iterator[bytes]
) -> Iterator[bytes]:
    """Yield a Part 10 file of the elements of `head`, which has no pixel data, and of frames that are encoded already.

    described   the layout that the elements of `head` tell of
    frames      the layout of the frames in `to_uid`, see `target_layout`
    codestreams every one of them, in order

    Raises UNSUPPORTED for more native pixel data than DICOM can write.
    """
    _check_native(described.number_of_frames, frames)
    start = file_start(head.values, head.meta_values, to_uid)
    body = _with_frames(head, described, frames, to_uid, codestreams)
    return file_of(start, body, deflated=to_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)


def _check_native(count: int, frames: PixelLayout) -> None:
    total = count * -(-frames.frame_bits // 8)
    if not frames.encapsulated and total > _MAX_NATIVE:
        raise AppError(Category.UNSUPPORTED, f"{total} bytes of native pixel data are more than DICOM can write")


def _target(uid: str) -> Codec:
    codec = codecs.get(uid)
    if codec.encode is None:
        raise AppError(Category.UNSUPPORTED, f"there is no encoder for {codec.name}")
    return codec


def target_layout(layout: PixelLayout, photometric: str, to_uid: str) -> PixelLayout:
    """Return the layout of frames that were decoded to `photometric` and are encoded in `to_uid`."""
    if photometric in SUBSAMPLED:
        photometric = photometric.replace("_422", "")
    if layout.samples_per_pixel == 3 and photometric == "RGB" and to_uid in JPEG_2000_FAMILY:
        photometric = "YBR_RCT"
    return replace(
        layout,
        value_start=None,
        value_length=None,
        encapsulated=is_encapsulated(to_uid),
        planar_configuration=0 if layout.samples_per_pixel > 1 else layout.planar_configuration,
        photometric_interpretation=photometric,
    )


def _encoded(codec: Codec, decoded: Decoded, layout: PixelLayout) -> bytes:
    representable = not layout.encapsulated or not (layout.is_float or layout.bits_allocated == 1)
    codestream = codec.encode(decoded.pixels, layout) if codec.encode and representable else None
    if codestream is None:
        raise AppError(Category.UNSUPPORTED, f"pixels of {layout.bits_allocated} bits cannot be given in {codec.name}")
    return codestream


def _elements(
    received: Received, uid: str, edits: dict[int, Value | None], *, above: int = 0, below: int = 1 << 32
) -> Iterator[Buffer]:
    implicit = uid == IMPLICIT_VR_LITTLE_ENDIAN
    return write_elements(
        received.values, received.encoding, implicit_vr=implicit, edits=edits, above=above, below=below
    )


def _native_copy(received: Received, layout: PixelLayout, uid: str) -> Iterator[Buffer]:
    """Yield the dataset with native pixel data as it is, in the byte order of the target."""
    element = received.pixel_element
    if element is None:
        raise AppError(Category.INVALID, "the layout speaks of pixel data, the file has none")
    implicit = uid == IMPLICIT_VR_LITTLE_ENDIAN
    yield from _elements(received, uid, {}, below=element.tag)
    value: Buffer = memoryview(received.body)[element.start : element.start + element.length]
    width = 2 if element.vr == "OW" and layout.bits_allocated <= 16 else layout.bits_allocated // 8
    if not received.encoding.little_endian and width > 1 and element.vr != "OB":
        value = swapped(value, width)
    yield element_header(element.tag, element.vr, element.length, implicit_vr=implicit)
    yield value
    yield from _elements(received, uid, {}, above=element.tag)


def _transcoded(
    received: Received, layout: PixelLayout, frames: FrameTable | None, codec: Codec, *, trusted: bool
) -> Iterator[Buffer]:
    """Return the dataset with its frames decoded and encoded again."""
    if frames is None or not len(frames):
        raise AppError(Category.UNSUPPORTED, "the frames of this instance cannot be told apart; take it as stored")
    stored, uid = received.data, received.transfer_syntax_uid

    def decoded(index: int) -> Decoded:
        bit = 0 if layout.encapsulated else index * layout.frame_bits % 8
        return decode_frame(frames.read(stored, index), layout, uid, bit_offset=bit, trusted=trusted)

    first = decoded(0)
    target = target_layout(layout, first.photometric_interpretation, codec.uid)
    codestream = _encoded(codec, first, target)

    def codestreams() -> Iterator[bytes]:
        yield codestream
        for index in range(1, len(frames)):
            yield _encoded(codec, decoded(index), target)

    _check_native(len(frames), target)
    return _with_frames(received, layout, target, codec.uid, codestreams())


def _with_frames(
    received: Received, layout: PixelLayout, target: PixelLayout, uid: str, codestreams: Iterator[bytes]
) -> Iterator[Buffer]:
    tag = next(tag for tag, keyword in PIXEL_KEYWORDS.items() if keyword == layout.keyword)
    edits = layout_edits(target, layout)
    edits |= {table: None for table in (tag & 0xFFFF0000, *_OFFSET_TABLES) if table in received.elements}
    yield from _elements(received, uid, edits, below=tag)
    if target.encapsulated:
        yield element_header(tag, "OB", 0xFFFFFFFF, implicit_vr=False) + item_header(0)
        for codestream in codestreams:
            pad = len(codestream) % 2
            yield item_header(len(codestream) + pad) + codestream + b"\0" * pad
        yield SEQUENCE_DELIMITATION
    else:
        length = int(received.summary.instance.number_of_frames) * -(-target.frame_bits // 8)
        vr = "OB" if target.bits_allocated <= 8 and uid != IMPLICIT_VR_LITTLE_ENDIAN else "OW"
        yield element_header(tag, vr, length + length % 2, implicit_vr=uid == IMPLICIT_VR_LITTLE_ENDIAN)
        yield from codestreams
        yield b"\0" * (length % 2)
    yield from _elements(received, uid, {}, above=tag)


def file_of(start: bytes, body: Iterator[Buffer], *, deflated: bool) -> Iterator[bytes]:
    """Yield a file: preamble and File Meta Information in `start`, then the dataset, deflated or as it is."""
    yield start
    if not deflated:
        yield from map(bytes, body)
        return
    packer = zlib.compressobj(6, wbits=-zlib.MAX_WBITS)
    size = 0
    for part in body:
        packed = packer.compress(part)
        size += len(packed)
        yield packed
    packed = packer.flush()
    # PS3.5 A.5: the deflated stream is padded to an even length.
    yield packed + b"\0" * ((size + len(packed)) % 2)
