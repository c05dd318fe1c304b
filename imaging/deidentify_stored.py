"""A stored instance as it is given without names: its frames, and its file in any transfer syntax.

Hides that codestreams stay as they are where nothing in the pixels has to go, and are made anew where something has
to: rectangles, and old overlays in unused bits. Every form is made of the same frames, so that what is gone from one is
gone from all. Sources: PS3.15 E.1 and E.3.1, PS3.5 8.1.2.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from imaging.codecs import Decoded
from imaging.conversion import convert, decode_frame, encode_frame, file_with_frames, target_layout
from imaging.dataset import Received, read
from imaging.deidentify import Options, deidentify, head_of
from imaging.deidentify_pixels import Rectangle, blackened, only_used_bits, strip_comments, used_bits
from imaging.layout import Buffer, PixelLayout
from imaging.transcode import frames_of


def clears_bits(document: Mapping[str, Any], layout: PixelLayout) -> bool:
    """Tell whether overlays may lie in bits of the pixels that no sample uses; `document` is DICOM JSON."""
    mask = used_bits(layout.bits_allocated, layout.bits_stored, layout.high_bit)
    return mask is not None and not layout.is_float and any(tag.startswith("60") for tag in document)


@dataclass(frozen=True)
class StoredFrames:
    """How the frames of a stored instance are cleaned.

    layout               of the stored frames
    transfer_syntax_uid  that they are stored in
    trusted              the codestreams are our own
    clears_bits          bits that no sample uses are set to 0
    rectangles           are burned out
    """

    layout: PixelLayout
    transfer_syntax_uid: str
    trusted: bool
    clears_bits: bool = False
    rectangles: tuple[Rectangle, ...] = ()

    @property
    def changes_pixels(self) -> bool:
        """Whether no codestream can be given as it is stored."""
        return self.clears_bits or bool(self.rectangles)

    def frame(self, codestream: Buffer, number: int, to_uid: str) -> bytes:
        """Return frame `number`, from 1, of which the stored bytes are given. Raises UNSUPPORTED as `convert_frame`."""
        return self._encoded(codestream, number, to_uid)[0]

    def decoded(self, codestream: Buffer, number: int, *, reduce_levels: int = 0) -> Decoded:
        """Return frame `number` decoded, sides halved `reduce_levels` times; see `decode_frame`."""
        finer = 0 if self.changes_pixels else reduce_levels
        found = decode_frame(
            codestream, self.layout, self.transfer_syntax_uid, reduce_levels=finer, trusted=self.trusted
        )
        return self.cleaned(found, number, step=2 ** (reduce_levels - finer))

    def cleaned(self, found: Decoded, number: int, *, step: int = 1) -> Decoded:
        """Return a decoded frame without what has to go from its pixels, every `step`-th of them."""
        layout, pixels = self.layout, found.pixels
        mask = used_bits(layout.bits_allocated, layout.bits_stored, layout.high_bit)
        if self.clears_bits and mask is not None:
            pixels = only_used_bits(pixels, mask)
        if self.rectangles:
            pixels = blackened(pixels, layout, found.photometric_interpretation, self.rectangles, number)
        return found._replace(pixels=np.ascontiguousarray(pixels[::step, ::step]) if step > 1 else pixels)

    def file(self, stored: Received, to_uid: str, key: bytes, options: Options) -> Iterator[bytes]:
        """Yield the cleaned file in a transfer syntax, of the stored one with encapsulated frames.

        Raises what `frame` and `deidentify` do, for the first frame before the first bytes.
        """
        frames = frames_of(stored).table

        def encoded(number: int) -> tuple[bytes, PixelLayout]:
            return self._encoded(frames.read(stored.data, number - 1), number, to_uid)

        first, target = encoded(1)
        head = read(head_of(stored.ds, key, options, has_pixels=True))

        def codestreams() -> Iterator[bytes]:
            yield first
            for number in range(2, len(frames) + 1):
                yield encoded(number)[0]

        return file_with_frames(head, self.layout, target, to_uid, codestreams())

    def _encoded(self, codestream: Buffer, number: int, to_uid: str) -> tuple[bytes, PixelLayout]:
        """Return a frame, and the layout of such frames."""
        if to_uid == self.transfer_syntax_uid and not self.changes_pixels and self.layout.encapsulated:
            # In what was encoded here there is no comment but the encoder's own.
            kept = bytes(codestream) if self.trusted else strip_comments(bytes(codestream))
            return kept, replace(self.layout, value_start=None, value_length=None)
        found = self.decoded(codestream, number)
        target = target_layout(self.layout, found.photometric_interpretation, to_uid)
        return encode_frame(found, self.layout, to_uid), target


def whole_file(
    file: bytes, to_uid: str, key: bytes, options: Options, rectangles: tuple[Rectangle, ...] = ()
) -> Iterator[bytes]:
    """Yield a cleaned file: in the transfer syntax in which `deidentify` gives it, or a native one. Raises as both."""
    cleaned = read(deidentify(file, key, options, rectangles=rectangles))
    if to_uid == cleaned.transfer_syntax_uid:
        return iter([bytes(cleaned.data)])
    frames = frames_of(cleaned) if cleaned.pixels else None
    return convert(cleaned.data, cleaned.pixels, frames.table if frames else None, to_uid)


def head(stored: Received, key: bytes, options: Options) -> Received:
    """Return the cleaned file without its pixels: for the values in it."""
    return read(head_of(stored.ds, key, options, has_pixels=stored.pixels is not None))
