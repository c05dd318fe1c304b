"""Frames out of stored files, without reading the files: range reads, checked against each frame's checksum."""

import zlib
from collections.abc import Iterator, Sequence
from itertools import islice

from imaging.archive.catalogue import Instance
from imaging.archive.files import STORED
from imaging.blobs import BlobStore, Part
from imaging.codecs import Decoded, codecs
from imaging.errors import AppError, Category
from imaging.layout import PixelLayout
from imaging.transcode import convert_frame, decode_frame

_READ_BYTES = 8 << 20  # of frames that are read together

Frame = tuple[Instance, int]  # numbers are from 1
_Placed = tuple[Frame, PixelLayout, list[Part]]


class Frames:
    """Reads frames out of a blob store."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def frame(self, instance: Instance, number: int, transfer_syntax_uid: str | None) -> bytes:
        """Return a frame as it is stored or in another transfer syntax; see `Archive.frame`."""
        ((stored, layout),) = self._codestreams([(instance, number)])
        from_uid = instance.stored_transfer_syntax_uid
        if transfer_syntax_uid in (None, STORED, from_uid) and (layout.encapsulated or not layout.frame_bits % 8):
            return stored
        to_uid = from_uid if transfer_syntax_uid in (None, STORED) else transfer_syntax_uid
        if layout.encapsulated or not layout.frame_bits % 8:
            return convert_frame(stored, layout, from_uid, str(to_uid), trusted=instance.is_ours)
        # One-bit frames need not begin at a byte; alone, each does.
        codec = codecs.get(str(to_uid))
        (decoded,) = self.pixels([(instance, number)])
        alone = codec.encode(decoded.pixels, layout) if codec.encode else None
        if alone is None:
            message = f"frames of {layout.bits_allocated} bit cannot be made"
            raise AppError(Category.UNSUPPORTED, message, where="Accept")
        return alone

    def pixels(self, frames: Sequence[Frame], *, reduce_levels: int = 0) -> Iterator[Decoded]:
        """Yield frames decoded, in their order; see `Archive.pixels_of`."""
        for (instance, number), (stored, layout) in zip(frames, self._codestreams(frames), strict=True):
            yield decode_frame(
                stored,
                layout,
                instance.stored_transfer_syntax_uid,
                reduce_levels=reduce_levels,
                bit_offset=(number - 1) * layout.frame_bits % 8 if not layout.encapsulated else 0,
                trusted=instance.is_ours,
            )

    def _codestreams(self, frames: Sequence[Frame]) -> Iterator[tuple[bytes, PixelLayout]]:
        """Yield the stored bytes of frames, and what they are of; up to `_READ_BYTES` are read at once."""
        for portion in _portions(frames):
            read = iter(self._blobs.read_parts([part for _, _, parts in portion for part in parts]))
            for (instance, number), layout, parts in portion:
                data = b"".join(islice(read, len(parts)))
                if zlib.crc32(data) != instance.checksum(number):
                    message = f"frame {number} does not match its checksum"
                    raise AppError(Category.FAULT, message, where=instance.sop_uid)
                yield data, layout


def _portions(frames: Sequence[Frame]) -> Iterator[list[_Placed]]:
    """Yield frames with where their bytes lie, in portions of up to `_READ_BYTES`, a larger frame alone."""
    portion: list[_Placed] = []
    size = 0
    for frame in frames:
        layout, parts = _place(*frame)
        length = sum(part.length for part in parts)
        if portion and size + length > _READ_BYTES:
            yield portion
            portion, size = [], 0
        portion.append((frame, layout, parts))
        size += length
    if portion:
        yield portion


def _place(instance: Instance, number: int) -> tuple[PixelLayout, list[Part]]:
    """Return what a frame is of and where its bytes lie. Raises NOT_FOUND for one that the instance does not have."""
    if instance.frames is None or instance.layout is None or not 1 <= number <= len(instance.frames):
        message = f"frame {number} asked, the instance has {instance.number_of_frames}"
        raise AppError(Category.NOT_FOUND, message, where=instance.sop_uid)
    ranges = instance.frames.ranges(number - 1)
    return instance.layout, [Part(instance.sha256_stored, start, length) for start, length in ranges]
