"""Which transfer syntaxes an instance and its frames can be given in, and which one answers a request.

An instance is kept in one form and rebuilt into the one it was received in; others are made by transcoding, as far as
its pixels can be decoded and the target can hold them. Sources: PS3.18 8.7.3, PS3.5 section 8.
"""

from enum import Enum, auto
from functools import lru_cache

from imaging.archive import STORED, Instance
from imaging.codecs import codecs
from imaging.dicomweb import Choice, Offer
from imaging.dicomweb.negotiation import (
    ANY_TRANSFER_SYNTAX,
    MEDIA_TYPE_OF_TRANSFER_SYNTAX,
    OCTET_STREAM,
    frame_offers,
    instance_offers,
)
from imaging.syntaxes import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    RLE_LOSSLESS,
    is_encapsulated,
)

NATIVE = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)


class Pixels(Enum):
    """What can be done with the pixels of an instance."""

    ABSENT = auto()
    OPAQUE = auto()  # no decoder, or frames that cannot be told apart: given as they are
    NATIVE_ONLY = auto()  # floating point or single bits, which no compression takes
    WIDE = auto()  # beyond 16 bits: run lengths only
    USUAL = auto()


def pixels_of(instance: Instance) -> Pixels:
    """Return what can be done with the pixels of an instance."""
    layout = instance.layout
    if layout is None:
        return Pixels.ABSENT
    if layout.encapsulated and (instance.stored_transfer_syntax_uid not in codecs or not instance.frames):
        return Pixels.OPAQUE
    if layout.is_float or layout.bits_allocated == 1 or not instance.frames:
        return Pixels.NATIVE_ONLY
    return Pixels.WIDE if layout.bits_allocated > 16 else Pixels.USUAL


def file_offers(instance: Instance, *, single: bool) -> tuple[Offer, ...]:
    """Return the offers for an instance as a DICOM file; the default is Explicit VR Little Endian where it can be."""
    stored, received = instance.stored_transfer_syntax_uid, instance.received_transfer_syntax_uid
    return _file_offers(pixels_of(instance), stored, received, single)


def file_form(choice: Choice, instance: Instance) -> str:
    """Return the form in which the archive gives the file: STORED or a transfer syntax."""
    syntax = choice.transfer_syntax
    if syntax is None or syntax == ANY_TRANSFER_SYNTAX:
        return STORED
    kept = (instance.stored_transfer_syntax_uid, instance.received_transfer_syntax_uid)
    if instance.layout is None and syntax not in (*NATIVE, *kept):
        # Without pixels there is nothing to compress, and one such instance must not make a study unavailable.
        return EXPLICIT_VR_LITTLE_ENDIAN
    return syntax


def syntax_of(instance: Instance, form: str) -> str:
    """Return the transfer syntax of a file given in `form`."""
    return instance.stored_transfer_syntax_uid if form == STORED else form


def offers_of_frames(instance: Instance, *, single: bool) -> tuple[Offer, ...]:
    """Return the offers for frames of an instance."""
    return frame_offers(_frame_syntaxes(pixels_of(instance), instance.stored_transfer_syntax_uid), single=single)


def frame_syntax(choice: Choice, instance: Instance) -> str:
    """Return the transfer syntax in which a frame is given: the stored one, where the client takes any of the type."""
    stored = instance.stored_transfer_syntax_uid
    if choice.transfer_syntax not in (None, ANY_TRANSFER_SYNTAX):
        return str(choice.transfer_syntax)
    if choice.media_type in (OCTET_STREAM, MEDIA_TYPE_OF_TRANSFER_SYNTAX.get(stored)):
        return stored
    offered = offers_of_frames(instance, single=False)
    return next(offer.transfer_syntaxes[0] for offer in offered if offer.media_type == choice.media_type)


@lru_cache(maxsize=256)
def _file_offers(pixels: Pixels, stored: str, received: str, single: bool) -> tuple[Offer, ...]:
    if pixels is Pixels.OPAQUE:
        syntaxes = [stored, received]
    elif pixels is Pixels.ABSENT:
        # Any is taken for an answer, see `file_form`.
        syntaxes = [*NATIVE, *written_syntaxes(Pixels.USUAL), stored, received]
    else:
        syntaxes = [*NATIVE, *written_syntaxes(pixels), stored, received]
    return instance_offers(dict.fromkeys(syntaxes), single=single)


@lru_cache(maxsize=256)
def _frame_syntaxes(pixels: Pixels, stored: str) -> frozenset[str]:
    if pixels is Pixels.OPAQUE:
        return frozenset({stored})
    kept = {stored} if is_encapsulated(stored) else set()
    return frozenset({EXPLICIT_VR_LITTLE_ENDIAN, *written_syntaxes(pixels), *kept})


def written_syntaxes(pixels: Pixels) -> tuple[str, ...]:
    """Return the compressed transfer syntaxes that pixels can be put into."""
    written = tuple(uid for uid in codecs if codecs.get(uid).encode and is_encapsulated(uid))
    return {Pixels.USUAL: written, Pixels.WIDE: (RLE_LOSSLESS,)}.get(pixels, ())
