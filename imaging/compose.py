"""Composes an instance of metadata and bulk data that come apart: a Part 10 file, as if it had been sent as one.

What the pixels say of themselves is filled in where the metadata leaves it out, and compared where it does not. What
has to be changed is told in the Original Attributes Sequence. Sources: PS3.18 10.5.1.2 and 10.5.2, PS3.3 C.12.1.1.9.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from imaging.bulk_media import (
    ALLOCATED,
    COLUMNS,
    FRAMES,
    MEDIA,
    OCTET_STREAM,
    PHOTOMETRIC,
    ROWS,
    SAMPLES,
    STORED,
    Pixels,
    pixels,
)
from imaging.coercion import original_attributes
from imaging.dataset_from_model import Model, elements, number_of, text_of
from imaging.elements import UNDEFINED
from imaging.errors import AppError, Category
from imaging.frames import SEQUENCE_DELIMITATION, encapsulation, item_header
from imaging.layout import Buffer
from imaging.part10 import element_bytes, element_header, file_head
from imaging.spool import Spool
from imaging.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN

PIXEL_DATA: Final = "7FE00010"
_DOCUMENT, _DOCUMENT_TYPE, _DOCUMENT_LENGTH = "00420011", "00420012", "00420015"
_OFFSETS, _LENGTHS = 0x7FE00001, 0x7FE00002
_LOSSY, _RATIO, _METHOD = "00282110", "00282112", "00282114"
_EQUAL: Final = {
    ROWS: "Rows", COLUMNS: "Columns", SAMPLES: "Samples per Pixel", FRAMES: "Number of Frames",
}  # fmt: skip
"""What the metadata must not say otherwise than the pixels do."""


@dataclass(frozen=True, slots=True)
class BulkValue:
    """A value that came as parts of a request, in order; several are the frames of one image."""

    media_type: str
    transfer_syntax: str
    parts: tuple[Buffer, ...]


@dataclass(frozen=True, slots=True)
class Composed:
    """An instance as a file, and the attributes that were changed, as they were (DICOM JSON)."""

    data: Buffer
    original: Mapping[str, Any]


def frames_of(model: Model) -> int:
    """Return the number of frames that metadata tell, 1 where they tell none. Raises INVALID."""
    return max(1, number_of(model, FRAMES) or 1)


def parts_wanted(frames: int, tag: str, media_type: str) -> int:
    """Return how many parts make up a value: of some media types each frame is one."""
    medium = MEDIA.get(media_type)
    return frames if tag == PIXEL_DATA and medium is not None and medium.is_frame else 1


def compose(model: Model, bulk: Mapping[str, BulkValue], *, at: datetime, system: str) -> Composed:
    """Return the instance that metadata and bulk data, by URI, make up.

    at, system   when and by whom attributes are changed, where some have to be
    Raises INVALID where they contradict each other, UNSUPPORTED for media types that are not taken.
    """
    told = dict(model)
    found, inline = _pixels_of(told, bulk)
    original: dict[str, Any] = {}
    if found is not None:
        original = _describe(told, found)
    if original:
        told |= original_attributes(told, original, at=at, system=system)
    if _DOCUMENT in told:
        _describe_document(told, bulk)
    syntax = found.transfer_syntax_uid if found else EXPLICIT_VR_LITTLE_ENDIAN
    spool = Spool()
    try:
        for piece in _file(told, bulk, found, syntax, inline=inline):
            spool.write(piece)
        return Composed(spool.finish(), original)
    finally:
        spool.discard()


def _pixels_of(told: Model, bulk: Mapping[str, BulkValue]) -> tuple[Pixels | None, bool]:
    """Return the pixels that are bulk data; and whether there are some that are not."""
    element = told.get(PIXEL_DATA)
    if not isinstance(element, Mapping):
        return None, False
    uri = element.get("BulkDataURI")
    if uri is None:
        return None, True
    value = _value(bulk, uri)
    return pixels(value.media_type or OCTET_STREAM, value.transfer_syntax, value.parts), False


def _describe(told: dict[str, Any], found: Pixels) -> dict[str, Any]:
    """Fill in what the pixels say of themselves; return what of the metadata had to be changed, as it was."""
    described = dict(found.described)
    if found.encapsulated and FRAMES not in described and len(found.frames) > 1:
        described[FRAMES] = {"vr": "IS", "Value": [len(found.frames)]}
    for tag, name in _EQUAL.items():
        if tag in described and text_of(told, tag):
            here, there = number_of(told, tag), described[tag]["Value"][0]
            if here != there:
                message = f"{name} is {here} in the metadata and {there} in the bulk data"
                raise AppError(Category.INVALID, message, where=f"({tag[:4]},{tag[4:]})")
    _check_bits(told, described)
    original = {}
    if _contradicts(text_of(told, PHOTOMETRIC), described):
        original[PHOTOMETRIC] = told.pop(PHOTOMETRIC)
    for tag, element in {**described, **found.further}.items():
        if not text_of(told, tag):
            told[tag] = element
    if found.loss:
        _tell_loss(told, found)
    return original


def _check_bits(told: dict[str, Any], described: Mapping[str, Any]) -> None:
    """Check that the metadata leaves room for the samples; what it says of their bits is then taken."""
    if STORED not in described:
        return
    precision = described[STORED]["Value"][0]
    allocated = number_of(told, ALLOCATED)
    if allocated is not None and allocated < precision:
        message = f"Bits Allocated is {allocated} in the metadata, the bulk data has {precision} bits a sample"
        raise AppError(Category.INVALID, message, where="(0028,0100)")
    stored = number_of(told, STORED)
    if stored is not None and not text_of(told, "00280102"):
        told["00280102"] = {"vr": "US", "Value": [stored - 1]}


def _contradicts(photometric: str, described: Mapping[str, Any]) -> bool:
    """Say whether a Photometric Interpretation is of other colours than the codestream's."""
    if not photometric or PHOTOMETRIC not in described:
        return False
    if described[SAMPLES]["Value"][0] == 1:
        return photometric not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    found = described[PHOTOMETRIC]["Value"][0]
    return photometric != found and not (photometric == "YBR_FULL" and found == "YBR_FULL_422")


def _tell_loss(told: dict[str, Any], found: Pixels) -> None:
    """Say that the pixels were compressed with loss: whoever looks at them has to know (PS3.3 C.7.6.1.1.5)."""
    if text_of(told, _LOSSY) == "01":
        return
    rows, columns, samples, allocated = (number_of(told, tag) or 1 for tag in (ROWS, COLUMNS, SAMPLES, ALLOCATED))
    native = rows * columns * samples * allocated // 8 * max(1, number_of(told, FRAMES) or 1)
    ratio = native / max(1, sum(map(len, found.frames)))
    told[_LOSSY] = {"vr": "CS", "Value": ["01"]}
    told.setdefault(_RATIO, {"vr": "DS", "Value": [round(ratio, 2)]})
    told.setdefault(_METHOD, {"vr": "CS", "Value": [found.loss]})


def _describe_document(told: dict[str, Any], bulk: Mapping[str, BulkValue]) -> None:
    """Fill in what an encapsulated document says of itself (PS3.3 C.24.2)."""
    uri = told[_DOCUMENT].get("BulkDataURI") if isinstance(told[_DOCUMENT], Mapping) else None
    if uri is None:
        return
    value = _value(bulk, uri)
    if value.media_type not in ("", OCTET_STREAM) and not text_of(told, _DOCUMENT_TYPE):
        told[_DOCUMENT_TYPE] = {"vr": "LO", "Value": [value.media_type]}
    told.setdefault(_DOCUMENT_LENGTH, {"vr": "UL", "Value": [len(value.parts[0])]})


def _file(
    told: Model, bulk: Mapping[str, BulkValue], found: Pixels | None, syntax: str, *, inline: bool
) -> Iterator[Buffer]:
    yield file_head(text_of(told, "00080016"), text_of(told, "00080018"), syntax)
    pixel_tag = int(PIXEL_DATA, 16)
    written = found is None
    without = frozenset() if inline else frozenset({PIXEL_DATA})
    for tag, pieces in elements(told, lambda uri: _value(bulk, uri).parts[0], without=without):
        if not written and found is not None and tag > pixel_tag:
            yield from _pixel_data(told, found)
            written = True
        yield from pieces
    if not written and found is not None:
        yield from _pixel_data(told, found)


def _pixel_data(told: Model, found: Pixels) -> Iterator[Buffer]:
    tag = int(PIXEL_DATA, 16)
    if not found.encapsulated:
        value, vr = found.frames[0], told[PIXEL_DATA].get("vr")
        if vr not in ("OB", "OW"):
            vr = "OW" if (number_of(told, ALLOCATED) or 8) > 8 else "OB"
        _check_length(told, value)
        yield element_header(tag, vr, len(value) + len(value) % 2, implicit_vr=False)
        yield value
        yield b"\0" * (len(value) % 2)
        return
    # A video is one codestream for all frames; its fragments have no table (PS3.5 8.2.7).
    table, offsets, lengths = encapsulation([len(frame) for frame in found.frames])
    if offsets:
        yield element_bytes(_OFFSETS, "OV", offsets, implicit_vr=False)
        yield element_bytes(_LENGTHS, "OV", lengths, implicit_vr=False)
    yield element_header(tag, "OB", UNDEFINED, implicit_vr=False)
    yield table if len(found.frames) > 1 else item_header(0)
    for frame in found.frames:
        if len(frame) >= UNDEFINED - 1:
            raise AppError(Category.TOO_LARGE, "a frame beyond 4 GiB has no form in DICOM", where="(7FE0,0010)")
        yield item_header(len(frame) + len(frame) % 2)
        yield frame
        yield b"\0" * (len(frame) % 2)
    yield SEQUENCE_DELIMITATION


def _check_length(told: Model, value: Buffer) -> None:
    """Check that native pixels are as many as the metadata says; of subsampled ones there are fewer."""
    if text_of(told, PHOTOMETRIC) in ("YBR_FULL_422", "YBR_PARTIAL_422"):
        return
    rows, columns, samples, bits = (number_of(told, tag) or 0 for tag in (ROWS, COLUMNS, SAMPLES, ALLOCATED))
    expected = (rows * columns * samples * bits * max(1, number_of(told, FRAMES) or 1) + 7) // 8
    if len(value) not in (expected, expected + expected % 2):
        message = f"the bulk data has {len(value)} bytes, the metadata describes {expected} bytes of pixels"
        raise AppError(Category.INVALID, message, where="(7FE0,0010)")


def _value(bulk: Mapping[str, BulkValue], uri: Any) -> BulkValue:
    value = bulk.get(uri) if isinstance(uri, str) else None
    if value is None:
        raise AppError(Category.INVALID, "no part of the request has the bulk data that the metadata refers to")
    return value
