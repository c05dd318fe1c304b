"""How to get the received bytes back out of the stored file.

The header as received is kept, compressed against the stored header, so that it costs a few hundred bytes.
"""

import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, Final

from imaging.codecs import codecs, native
from imaging.errors import AppError, Category
from imaging.frames import FrameTable
from imaging.layout import Buffer, PixelLayout
from imaging.parallel import in_order

SAME, NATIVE, FILE = "same", "native", "file"
_WINDOW: Final = 32768  # what deflate looks back at most


@dataclass(frozen=True, slots=True)
class Envelope:
    """How to rebuild the received file.

    kind    same: head + stored[offset:];  native: head + frames, decoded and laid out as `layout` says + tail;
            file: not at all, the received file is kept as it came
    head, tail    compressed, with the first `dictionary_length` bytes of the stored file as dictionary
    offset        first byte of the stored file that is as received
    size          bytes of the received file
    """

    kind: str
    size: int
    head: bytes = b""
    tail: bytes = b""
    offset: int = 0
    dictionary_length: int = 0
    transfer_syntax_uid: str = ""
    layout: PixelLayout | None = None
    little_endian: bool = True

    def to_document(self) -> dict[str, Any]:
        """Return a plain dict of numbers, text and bytes."""
        document = {name: getattr(self, name) for name in self.__slots__ if name != "layout"}
        document["layout"] = self.layout.to_document() if self.layout else None
        return document

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "Envelope":
        """Return what `to_document` was called on."""
        layout = document["layout"]
        fields = {**document, "head": bytes(document["head"]), "tail": bytes(document["tail"])}
        return cls(**{**fields, "layout": PixelLayout.from_document(layout) if layout else None})


def same(size: int, head: Buffer, offset: int) -> Envelope:
    """Return the envelope of a file stored as received from byte `offset` on."""
    return Envelope(SAME, size, head=_packed(bytes(head), b""), offset=offset)


def native_file(
    size: int,
    head: Buffer,
    tail: Buffer,
    stored_start: bytes,
    *,
    transfer_syntax_uid: str,
    layout: PixelLayout,
    little_endian: bool,
) -> Envelope:
    """Return the envelope of a file of native pixels that is stored in `transfer_syntax_uid`."""
    dictionary = stored_start[:_WINDOW]
    return Envelope(
        NATIVE,
        size,
        head=_packed(bytes(head), dictionary),
        tail=_packed(bytes(tail), b""),
        dictionary_length=len(dictionary),
        transfer_syntax_uid=transfer_syntax_uid,
        layout=layout,
        little_endian=little_endian,
    )


def rebuild(
    envelope: Envelope,
    stored: Buffer,
    layout_stored: PixelLayout | None,
    frames: FrameTable | None,
    pool: Executor | None = None,
) -> Iterator[bytes]:
    """Yield the received file. Raises INVALID for kind "file", whose received file is a blob of its own.

    stored  the whole stored file, its digest checked: codestreams are decoded as trusted
    pool    decodes frames of a multi-frame instance; without it, they are decoded by the caller's thread. The caller
            must not itself run in this pool
    """
    if envelope.kind == SAME:
        yield from rebuild_same(envelope, _chunks(memoryview(stored)))
        return
    layout = envelope.layout
    if envelope.kind != NATIVE or layout is None or layout_stored is None or frames is None:
        raise AppError(Category.INVALID, "the received file is not rebuilt from the stored one, it is kept beside it")
    yield _unpacked(envelope.head, bytes(memoryview(stored)[: envelope.dictionary_length]))
    decode = codecs.get(envelope.transfer_syntax_uid).decode

    def frame(index: int) -> bytes:
        pixels = decode(frames.read(stored, index), layout_stored, trusted=True).pixels
        return native.encode_frame(pixels, layout, little_endian=envelope.little_endian)

    several = pool if len(frames) > 1 else None
    yield from in_order(frame, range(len(frames)), several, item_bytes=layout.frame_bits // 8)
    yield _unpacked(envelope.tail, b"")


def rebuild_same(envelope: Envelope, stored: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the received file of kind "same" from the pieces of the stored one, as they come."""
    yield _unpacked(envelope.head, b"")
    to_skip = envelope.offset
    for piece in stored:
        yield piece[to_skip:] if to_skip else piece
        to_skip = max(0, to_skip - len(piece))


def without_position(layout: PixelLayout) -> PixelLayout:
    """Return a layout that says how frames are laid out, not where."""
    return replace(layout, value_start=None, value_length=None)


def _packed(data: bytes, dictionary: bytes) -> bytes:
    if not data.strip(b"\0"):
        return b"\0" + len(data).to_bytes(8, "little")
    packer = zlib.compressobj(6, zdict=dictionary) if dictionary else zlib.compressobj(6)
    return b"\1" + packer.compress(data) + packer.flush()


def _unpacked(data: bytes, dictionary: bytes) -> bytes:
    if data[:1] == b"\0":
        return bytes(int.from_bytes(data[1:], "little"))
    unpacker = zlib.decompressobj(zdict=dictionary) if dictionary else zlib.decompressobj()
    return unpacker.decompress(data[1:])


def _chunks(data: memoryview, size: int = 1 << 20) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield bytes(data[start : start + size])
