"""From a received instance to the file we store: lossless JPEG 2000 wherever that gives every pixel back.

Each frame is encoded, decoded again and compared before it counts. What cannot be encoded so is stored as received,
with the reason. Either way it is settled here how the received bytes are given back.
Sources: PS3.5 8.2.4, 8.2.15, A.4; PS3.3 C.7.6.3.1.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from imaging import envelope as envelopes
from imaging.codecs import Codec, Decoded, codecs, htj2k, j2k, native
from imaging.codecs.codestream import check_header, read_header
from imaging.conversion import convert, convert_frame, decode_frame
from imaging.dataset import PREAMBLE_LENGTH, Received
from imaging.envelope import Envelope, rebuild, rebuild_same, without_position
from imaging.errors import AppError, Category
from imaging.frames import (
    SEQUENCE_DELIMITATION,
    FrameTable,
    encapsulated_table,
    encapsulation,
    item_header,
    native_table,
)
from imaging.layout import Buffer, PixelLayout, Pixels
from imaging.parallel import in_order
from imaging.part10 import (
    PREAMBLE,
    Edits,
    Value,
    element_header,
    file_start,
    layout_edits,
    write_elements,
)
from imaging.spool import Spool
from imaging.syntaxes import JPEG_2000_FAMILY
from imaging.values import Values

__all__ = [
    "TARGETS", "Encoded", "Envelope", "convert", "convert_frame", "decode_frame", "encode", "rebuild", "rebuild_same",
]  # fmt: skip

TARGETS: Final = {"htj2k": htj2k.LOSSLESS_RPCL, "j2k": j2k.LOSSLESS}
"""Codecs that instances can be stored with, by the name in the settings."""

_UNSETTLED: Final = frozenset({"lossy", "unknown-transfer-syntax"})
"""Reasons with which the pixels depend on the decoder, or are not known to us."""

MAX_ENVELOPE_BYTES: Final = 1 << 20
"""An envelope beyond this would burden the index: then the received file is kept as a blob of its own."""

MAX_AROUND_BYTES: Final = 32 << 20
"""What is not pixels is compressed for the envelope only up to this size; beyond it would not come below the other."""

_PIXEL_DATA: Final = 0x7FE00010
_PIXEL_GROUP_LENGTH: Final = 0x7FE00000


@dataclass(frozen=True, slots=True)
class Encoded:
    """The file to store and everything that the index keeps about it.

    parts           the stored Part 10 file as buffers in order; its preamble is zero
    sha256          of the stored bytes
    layout, frames  of the stored file; frames is None when they cannot be told apart
    pixels_sha256   of all decoded frames in order, little-endian words, samples of a pixel together; None when the
                    pixels depend on the decoder (lossy) or cannot be decoded
    kept_reason     "" when re-encoded, else why the file is stored as received
    """

    parts: list[Buffer]
    size: int
    sha256: str
    transfer_syntax_uid: str
    layout: PixelLayout | None
    frames: FrameTable | None
    pixels_sha256: str | None
    kept_reason: str
    envelope: Envelope


class _Kept(Exception):
    """This instance is to be stored as received; the argument is the reason."""


def encode(received: Received, *, codec: str = "htj2k", pool: Executor | None = None) -> Encoded:
    """Return the file to store for `received`.

    pool  encodes the frames of a multi-frame instance; without it they are encoded by the caller's thread. The caller
          must not itself run in this pool: it waits for the frames

    Raises UNSUPPORTED for an unknown `codec`.
    """
    if codec not in TARGETS:
        raise AppError(Category.UNSUPPORTED, f"codec {codec!r} is unknown; available: {', '.join(sorted(TARGETS))}")
    try:
        return _encode(received, TARGETS[codec], pool)
    except _Kept as kept:
        return _keep(received, str(kept), pool)


class ReceivedFrames:
    """The frames of a received instance, decoded to arrays."""

    def __init__(self, received: Received) -> None:
        layout, element = received.pixels, received.pixel_element
        if layout is None or element is None:
            raise _Kept("no-pixel-data")
        self.layout = layout
        self.body = received.body
        self.start, self.length = element.start, element.length
        self.little_endian = received.encoding.little_endian
        self.swaps_bytes = not self.little_endian and element.vr == "OW" and layout.bits_allocated == 8
        self.uid = received.transfer_syntax_uid
        self.table = self._frame_table(received.values)

    def __call__(self, index: int) -> Pixels:
        """Return frame `index`. Raises INVALID or UNSUPPORTED when it cannot be decoded."""
        return self.decoded(index).pixels

    def decoded(self, index: int) -> Decoded:
        """Return frame `index`, from 0, with what its colours mean. Raises INVALID or UNSUPPORTED."""
        if self.layout.encapsulated:
            return codecs.get(self.uid).decode(self.table.read(self.body, index), self.layout, trusted=False)
        return native.decode_at(
            self.native_bytes(index),
            self.layout,
            index * self.layout.frame_bits % 8,
            little_endian=self.little_endian,
        )

    def native_bytes(self, index: int) -> memoryview:
        """Return the bytes of a native frame."""
        start, length = self.table.ranges(index)[0]
        return memoryview(self.body)[start : start + length]

    def gives_back(self, index: int, frame: Pixels) -> bool:
        """Tell whether laying out the decoded frame natively gives its received bytes."""
        return native.encode_frame(frame, self.layout, little_endian=self.little_endian) == self.native_bytes(index)

    def _frame_table(self, values: Values) -> FrameTable:
        layout = self.layout
        if layout.encapsulated:
            try:
                return encapsulated_table(
                    self.body, self.start, self.length, layout.number_of_frames, extended_offsets(values)
                )
            except AppError as error:
                raise _Kept("unclear-frames") from error
        if not layout.number_of_frames or not layout.frame_bits:
            raise _Kept("no-pixel-data")
        if layout.number_of_frames * layout.frame_bits > 8 * self.length:
            raise _Kept("pixel-data-too-short")
        ranges = [native.frame_range(layout, index) for index in range(layout.number_of_frames)]
        return native_table(self.start, ranges)


def frames_of(received: Received) -> ReceivedFrames:
    """Return the frames of a file, decoded one by one. Raises UNSUPPORTED where it has none that can be told apart."""
    try:
        return ReceivedFrames(received)
    except _Kept as kept:
        message = f"the frames cannot be read: {str(kept).replace('-', ' ')}"
        raise AppError(Category.UNSUPPORTED, message, where=received.summary.sop_uid) from None


def extended_offsets(values: Values) -> tuple[list[int], list[int]] | None:
    """Return Extended Offset Table and its lengths (PS3.3 C.7.6.3.1.8); None when they are absent."""
    elements = [values.elements.get(tag) for tag in (0x7FE00001, 0x7FE00002)]
    if elements[0] is None or elements[1] is None:
        return None
    offsets, lengths = (np.frombuffer(values.raw(element), "<u8").tolist() for element in elements if element)
    return (offsets, lengths) if len(offsets) == len(lengths) else None


def _encode(received: Received, target: Codec, pool: Executor | None) -> Encoded:
    source = ReceivedFrames(received)
    _check_encodable(received, source)
    layout = _stored_layout(source.layout)
    codestreams = Spool()
    lengths: list[int] = []
    digest = hashlib.sha256()
    is_native = not source.layout.encapsulated and not received.is_deflated
    proven = not is_native or native.is_plain(source.layout, little_endian=source.little_endian)

    def work(index: int) -> tuple[bytes, Pixels]:
        frame = _decoded(source, index)
        codestream = _verified(frame, layout, target)
        if not proven and not source.gives_back(index, frame):
            raise _Kept("verification-failed")
        return codestream, frame

    several = pool if len(source.table) > 1 else None
    with closing(in_order(work, range(len(source.table)), several, item_bytes=layout.frame_bits // 8)) as done:
        for codestream, frame in done:
            lengths.append(len(codestream))
            pad = len(codestream) % 2
            codestreams.write(item_header(len(codestream) + pad))
            codestreams.write(codestream + b"\0" if pad else codestream)
            digest.update(np.ascontiguousarray(frame).data)
    parts, layout, frames = _assemble(received, layout, target.uid, codestreams.finish(), lengths)
    envelope = Envelope(envelopes.FILE, len(received.data))
    native_end = sum(source.table.frames[-1][0])
    around = source.start + len(received.data) - native_end  # bytes before and after the pixels
    if is_native and not source.swaps_bytes and around <= MAX_AROUND_BYTES:
        envelope = envelopes.native_file(
            len(received.data),
            memoryview(received.data)[: source.start],
            memoryview(received.data)[native_end:],
            bytes(parts[0]),
            transfer_syntax_uid=target.uid,
            layout=without_position(source.layout),
            little_endian=source.little_endian,
        )
        if len(envelope.head) + len(envelope.tail) > MAX_ENVELOPE_BYTES:
            envelope = Envelope(envelopes.FILE, len(received.data))
    size, stored_digest = _measure(parts)
    return Encoded(parts, size, stored_digest, target.uid, layout, frames, digest.hexdigest(), "", envelope)


def _check_encodable(received: Received, source: ReceivedFrames) -> None:
    """Raise _Kept with the reason for what is stored as received."""
    layout, uid = source.layout, received.transfer_syntax_uid
    if layout.is_float:
        raise _Kept("float-pixels")
    if uid not in codecs:
        raise _Kept("unknown-transfer-syntax")
    if codecs.get(uid).lossless is False:
        raise _Kept("lossy")
    if uid in JPEG_2000_FAMILY:
        raise _Kept("already-jpeg-2000" if _is_reversible(received, source) else "lossy")
    if layout.bits_allocated == 1:
        # IODs that have one-bit pixels demand Bits Allocated 1, which no JPEG 2000 syntax allows (PS3.5 8.2.4).
        raise _Kept("one-bit-pixels")
    if layout.bits_allocated not in (8, 16, 32) or layout.samples_per_pixel not in (1, 3):
        raise _Kept("cannot-encode")


def _is_reversible(received: Received, source: ReceivedFrames) -> bool:
    """Tell whether a received JPEG 2000 instance is lossless, by its syntax or else by its codestream."""
    if codecs.get(source.uid).lossless:
        return True
    if received.summary.instance.lossy_image_compression == "01":
        return False
    try:
        return read_header(j2k.unwrapped(source.table.read(source.body, 0))).reversible
    except AppError:
        return False


def _decoded(source: ReceivedFrames, index: int) -> Pixels:
    try:
        return source(index)
    except AppError as error:
        raise _Kept("cannot-decode") from error


def _verified(frame: Pixels, layout: PixelLayout, target: Codec) -> bytes:
    """Return the codestream of a frame after it was decoded and compared. Raises _Kept."""
    codestream = target.encode(frame, layout) if target.encode else None
    if codestream is None:
        raise _Kept("cannot-encode")
    try:
        check_header(read_header(codestream), layout)
        decoded = target.decode(codestream, layout, trusted=True).pixels
    except AppError as error:
        raise _Kept("verification-failed") from error
    if decoded.dtype != frame.dtype or not np.array_equal(decoded, frame):
        raise _Kept("verification-failed")
    return codestream


def _stored_layout(layout: PixelLayout) -> PixelLayout:
    """Return the layout of the frames as they will be stored; positions are not known yet."""
    photometric = layout.photometric_interpretation
    if layout.is_subsampled:
        photometric = photometric.replace("_422", "")
    elif layout.samples_per_pixel == 3 and photometric == "RGB":
        photometric = "YBR_RCT"
    return replace(
        layout,
        value_start=None,
        value_length=None,
        encapsulated=True,
        photometric_interpretation=photometric,
        planar_configuration=0 if layout.samples_per_pixel > 1 else layout.planar_configuration,
    )


def _assemble(
    received: Received, layout: PixelLayout, uid: str, items: Buffer, frame_lengths: Sequence[int]
) -> tuple[list[Buffer], PixelLayout, FrameTable]:
    """Return the stored file, its layout with positions, and its frame table; `items` holds the frames' items."""
    table, offsets, lengths = encapsulation(frame_lengths)
    edits: dict[int, Value | None] = layout_edits(layout, received.pixels)
    edits |= {tag: None for tag in (_PIXEL_GROUP_LENGTH, 0x7FE00001, 0x7FE00002) if tag in received.elements}
    if offsets:
        edits |= {0x7FE00001: Value("OV", offsets), 0x7FE00002: Value("OV", lengths)}
    head = _head(received, uid, edits)
    before = head + element_header(_PIXEL_DATA, "OB", 0xFFFFFFFF, implicit_vr=False) + table
    start = len(before) - len(table)
    ranges, position = [], len(before)
    for length in frame_lengths:
        ranges.append(((position + 8, length),))
        position += 8 + length + length % 2
    tail = write_elements(received.values, received.encoding, implicit_vr=False, edits={}, above=_PIXEL_DATA)
    parts: list[Buffer] = [before, items, SEQUENCE_DELIMITATION, *tail]
    return parts, replace(layout, value_start=start, value_length=position - start), FrameTable(tuple(ranges))


def _head(received: Received, uid: str, edits: Edits) -> bytes:
    """Return the stored file up to the pixel data."""
    start = file_start(received.values, received.meta_values, uid)
    elements = write_elements(received.values, received.encoding, implicit_vr=False, edits=edits, below=_PIXEL_DATA)
    return b"".join((start, *elements))


def _keep(received: Received, reason: str, pool: Executor | None) -> Encoded:
    """Return the file as received, its preamble zeroed and File Meta Information made good where it is missing."""
    data = memoryview(received.data)
    if received.has_preamble and 0x00020010 in received.meta:
        parts: list[Buffer] = [PREAMBLE, data[PREAMBLE_LENGTH:]]
        envelope = envelopes.same(len(data), data[:PREAMBLE_LENGTH], PREAMBLE_LENGTH)
        moved = 0
    else:
        body_start = received.file_body_start
        start = file_start(received.values, received.meta_values, received.transfer_syntax_uid)
        parts = [start, data[body_start:]]
        envelope = envelopes.same(len(data), data[:body_start], len(start))
        moved = len(start) - body_start
    layout, frames, digest = _kept_pixels(received, moved, pool, reason)
    size, stored_digest = _measure(parts)
    return Encoded(parts, size, stored_digest, received.transfer_syntax_uid, layout, frames, digest, reason, envelope)


def _kept_pixels(
    received: Received, moved: int, pool: Executor | None, reason: str
) -> tuple[PixelLayout | None, FrameTable | None, str | None]:
    """Return layout and frame table as they are in the stored file, and the digest of the decoded pixels."""
    layout = received.pixels
    if layout is None:
        return None, None, None
    if layout.value_start is not None:
        layout = replace(layout, value_start=layout.value_start + moved)
    try:
        source = ReceivedFrames(received)
    except _Kept:
        return layout, None, None
    frames = None
    if not received.is_deflated:
        frames = FrameTable(tuple(tuple((a + moved, b) for a, b in ranges) for ranges in source.table.frames))
    return layout, frames, None if reason in _UNSETTLED else _pixels_digest(source, pool)


def _pixels_digest(source: ReceivedFrames, pool: Executor | None) -> str | None:
    digest = hashlib.sha256()
    frame_bytes = source.layout.frame_bits // 8
    try:
        several = pool if len(source.table) > 1 else None
        with closing(in_order(source, range(len(source.table)), several, item_bytes=frame_bytes)) as frames:
            for frame in frames:
                digest.update(np.ascontiguousarray(frame).data)
    except AppError:
        return None
    return digest.hexdigest()


def _measure(parts: list[Buffer]) -> tuple[int, str]:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return sum(len(part) for part in parts), digest.hexdigest()
