"""Reads one received DICOM file: checks it, says what it is and where its pixels are, and copies nothing large.

Takes Part 10 files in every transfer syntax, also without preamble or without File Meta Information where the dataset
can be recognised safely. What is damaged, truncated or lacks its UIDs is refused with the place of the fault.
Sources: PS3.10 section 7 (file), PS3.5 sections 7 and 9 (elements, UIDs).
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from struct import error as StructError
from typing import Final

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from imaging.attributes import (
    InstanceAttributes,
    InstanceSummary,
    Patient,
    SeriesAttributes,
    StudyAttributes,
    summarise,
)
from imaging.elements import UNDEFINED, Element, Elements, Encoding, Scanned, looks_explicit, scan
from imaging.errors import AppError, Category
from imaging.layout import PIXEL_KEYWORDS, Buffer, Limits, PixelLayout
from imaging.spool import Spool
from imaging.syntaxes import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR,
    IMPLICIT_VR_LITTLE_ENDIAN,
    is_encapsulated,
)
from imaging.values import Values

__all__ = [
    "Buffer",
    "InstanceAttributes",
    "InstanceSummary",
    "Limits",
    "Patient",
    "PixelLayout",
    "Received",
    "SeriesAttributes",
    "StudyAttributes",
    "check_uid",
    "read",
]

PREAMBLE_LENGTH: Final = 128
_INFLATE_BYTES: Final = 256 << 10  # inflated at a time
_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)+")

_UIDS: Final = {
    # tag         name
    0x00080016: "SOP Class UID",
    0x00080018: "SOP Instance UID",
    0x0020000D: "Study Instance UID",
    0x0020000E: "Series Instance UID",
}


_PIXEL_GROUP: Final = 0x7FE00000
_NOT_IN_DATASETS: Final = frozenset({0x0000, 0x0002})
"""Groups of commands and of File Meta Information (PS3.5 7.1)."""


@dataclass(frozen=True)
class Received:
    """One received file and what was found in it.

    data        the whole file as received
    body        the bytes that `elements` point into: `data`, or the inflated dataset of a deflated file
    meta        elements of the File Meta Information, positions in `data`
    body_start  position in `body` of the first element of the dataset
    body_end    position in `body` after the last element; zeros may follow
    file_body_start  position in `data` where the dataset starts, deflated or not
    """

    data: Buffer
    transfer_syntax_uid: str
    pixels: PixelLayout | None
    summary: InstanceSummary
    body: Buffer
    meta: Elements
    elements: Elements
    encoding: Encoding
    body_start: int
    body_end: int
    file_body_start: int
    has_preamble: bool

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the whole file as received, in hexadecimal."""
        return sha256(self.data).hexdigest()

    @property
    def is_deflated(self) -> bool:
        """Whether positions of elements are those of the inflated dataset, not of the file."""
        return self.body is not self.data

    @property
    def values(self) -> Values:
        """Reader of the dataset's values."""
        return Values(self.body, self.elements, little_endian=self.encoding.little_endian)

    @property
    def meta_values(self) -> Values:
        """Reader of the File Meta Information's values."""
        return Values(self.data, self.meta, little_endian=True)

    @property
    def pixel_element(self) -> Element | None:
        """The element that carries the pixels, positions in `body`."""
        return _pixel_element(self.elements)

    @cached_property
    def ds(self) -> Dataset:
        """The dataset for pydicom: everything but the pixel data; values are decoded when first used."""
        values = self.values
        raw: dict[BaseTag, DataElement | RawDataElement] = {
            BaseTag(element.tag): _raw(values, element, self.encoding)
            for tag, element in self.elements.items()
            if tag not in PIXEL_KEYWORDS
        }
        ds = Dataset(raw, parent_encoding=values.encodings)
        ds.set_original_encoding(self.encoding.implicit_vr, self.encoding.little_endian, values.encodings)
        return ds


def read(data: Buffer, *, limits: Limits | None = None) -> Received:
    """Return what `data`, one whole DICOM file, holds.

    Raises INVALID for what is no DICOM file, is damaged, truncated, or has missing or malformed UIDs; TOO_LARGE
    beyond `limits`; UNSUPPORTED for a DICOMDIR, which is no composite instance.
    """
    limits = limits or Limits()
    if len(data) > limits.max_file_bytes:
        raise AppError(Category.TOO_LARGE, f"the file has {len(data)} bytes, at most {limits.max_file_bytes} are taken")
    try:
        return _read(data, limits)
    except StructError as error:
        raise AppError(Category.INVALID, "the data ends inside an element; the file is truncated") from error


def read_head(data: bytes, *, is_whole: bool, limits: Limits) -> Received | None:
    """Return what comes before group 7FE0 in the beginning of a file, nothing of it checked; None where it ends sooner.

    is_whole   the beginning is all there is
    Raises INVALID, or struct.error, where it ends inside of an element.
    """
    meta_start, has_preamble = _find_start(data)
    meta, start = _read_meta(data, meta_start, limits)
    uid = _transfer_syntax(data, meta, start)
    encoding = _encoding(uid, data, start)
    elements, end = scan(data, start, len(data), encoding, limits, below=_PIXEL_GROUP)
    # Where the beginning is used up exactly at an element's end, more may follow.
    if not is_whole and not any(data[end : end + 8]):
        return None
    summary = summarise(Values(data, elements, little_endian=encoding.little_endian))
    return Received(
        data=data, transfer_syntax_uid=uid, pixels=None, summary=summary, body=data, meta=meta, elements=elements,
        encoding=encoding, body_start=start, body_end=end, file_body_start=start, has_preamble=has_preamble,
    )  # fmt: skip


def check_uid(uid: str, what: str) -> None:
    """Raise INVALID unless `uid` is a UID: digits and dots, at most 64 characters (PS3.5 9.1).

    Components with leading zeros are let through: real senders make them and they identify as well.
    """
    if not uid:
        raise AppError(Category.INVALID, f"{what} is missing")
    if len(uid) > 64 or not _UID.fullmatch(uid):
        raise AppError(Category.INVALID, f"{what} is no UID: digits and dots, at most 64 characters")


def _read(data: Buffer, limits: Limits) -> Received:
    meta_start, has_preamble = _find_start(data)
    meta, body_start = _read_meta(data, meta_start, limits)
    uid = _transfer_syntax(data, meta, body_start)
    body: Buffer = data
    file_body_start = body_start
    if uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        body, body_start = _inflate(data, body_start, limits), 0
    encoding = _encoding(uid, body, body_start)
    elements, body_end = scan(body, body_start, len(body), encoding, limits)
    values = Values(body, elements, little_endian=encoding.little_endian)
    _check(values, meta, limits)
    summary = summarise(values)
    pixels = _pixel_layout(values, limits, encapsulated=is_encapsulated(uid), deflated=body is not data)
    return Received(
        data=data,
        transfer_syntax_uid=uid,
        pixels=pixels,
        summary=summary,
        body=body,
        meta=meta,
        elements=elements,
        encoding=encoding,
        body_start=body_start,
        body_end=body_end,
        file_body_start=file_body_start,
        has_preamble=has_preamble,
    )


def _find_start(data: Buffer) -> tuple[int, bool]:
    """Return where File Meta Information or, without it, the dataset starts, and whether a preamble precedes it."""
    if bytes(data[PREAMBLE_LENGTH : PREAMBLE_LENGTH + 4]) == b"DICM":
        return PREAMBLE_LENGTH + 4, True
    if bytes(data[:4]) == b"DICM":
        return 4, False
    # Group 0002 or 0008 first, element numbers below 0100: nothing else that is common starts like this.
    if len(data) >= 8 and bytes(data[:2]) in (b"\x02\x00", b"\x08\x00", b"\x00\x08") and 0 in data[2:4]:
        return 0, False
    raise AppError(Category.INVALID, "this is no DICOM file: no 'DICM' at byte 128, no DICOM elements at byte 0")


def _read_meta(data: Buffer, start: int, limits: Limits) -> Scanned:
    if len(data) < start + 8 or bytes(data[start : start + 2]) != b"\x02\x00":
        return Scanned({}, start)
    implicit = not looks_explicit(data, start)
    return scan(data, start, len(data), Encoding(implicit_vr=implicit), limits, meta_only=True)


def _transfer_syntax(data: Buffer, meta: Elements, body_start: int) -> str:
    """Return the Transfer Syntax UID: as written, or recognised from the first element."""
    uid = Values(data, meta, little_endian=True).text(0x00020010)
    if uid:
        check_uid(uid, "Transfer Syntax UID (0002,0010)")
        return uid
    if len(data) < body_start + 8:
        raise AppError(Category.INVALID, "the file holds no dataset")
    if looks_explicit(data, body_start):
        return EXPLICIT_VR_LITTLE_ENDIAN
    big = bytes(data[body_start : body_start + 2]) == b"\x00\x08"
    return EXPLICIT_VR_BIG_ENDIAN if big else IMPLICIT_VR_LITTLE_ENDIAN


def _encoding(uid: str, body: Buffer, start: int) -> Encoding:
    """Return how the dataset is written; what the first element shows beats what the transfer syntax says."""
    if uid == EXPLICIT_VR_BIG_ENDIAN:
        return Encoding(little_endian=False)
    if uid in IMPLICIT_VR and len(body) >= start + 8:
        return Encoding(implicit_vr=not looks_explicit(body, start))
    return Encoding()


def _inflate(data: Buffer, start: int, limits: Limits) -> Buffer:
    """Return the inflated dataset (PS3.5 A.5), in a file when it is large; refuse more than the limit."""
    spool = Spool()
    try:
        for piece in _inflated(data, start):
            spool.write(piece)
            if spool.size > limits.max_inflated_bytes:
                message = f"the dataset inflates to more than {limits.max_inflated_bytes} bytes"
                raise AppError(Category.TOO_LARGE, message)
        return spool.finish()
    except zlib.error as error:
        raise AppError(Category.INVALID, "the deflated dataset is damaged", where=f"byte {start}") from error
    finally:
        spool.discard()


def _inflated(data: Buffer, start: int) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    for position in range(start, len(data), _INFLATE_BYTES):
        rest = bytes(data[position : position + _INFLATE_BYTES])
        piece = b""
        # A full piece may have left more behind, also when all of the input is consumed.
        while (rest or len(piece) == _INFLATE_BYTES) and not inflater.eof:
            piece = inflater.decompress(rest, _INFLATE_BYTES)
            rest = inflater.unconsumed_tail
            yield piece
    if not inflater.eof:
        raise AppError(Category.INVALID, "the data ends inside the deflated dataset; the file is truncated")


def _check(values: Values, meta: Elements, limits: Limits) -> None:
    """Check what identifies the instance, and the size of everything but its pixels."""
    if 0x00041220 in values.elements:
        raise AppError(Category.UNSUPPORTED, "a DICOMDIR is a directory of files, not an instance to store")
    if any(tag >> 16 in _NOT_IN_DATASETS for tag in values.elements):
        raise AppError(Category.INVALID, "elements of groups 0000 or 0002 stand in the dataset; the file is damaged")
    for tag, name in _UIDS.items():
        check_uid(values.text(tag), f"{name} ({tag >> 16:04X},{tag & 0xFFFF:04X})")
    pixel_element = _pixel_element(values.elements)
    header_bytes = len(values.buffer) - (pixel_element.length if pixel_element else 0)
    if header_bytes > limits.max_header_bytes:
        raise AppError(
            Category.TOO_LARGE, f"{header_bytes} bytes beside the pixels, at most {limits.max_header_bytes} are taken"
        )


def _pixel_element(elements: Elements) -> Element | None:
    return next((elements[tag] for tag in PIXEL_KEYWORDS if tag in elements), None)


def _pixel_layout(values: Values, limits: Limits, *, encapsulated: bool, deflated: bool) -> PixelLayout | None:
    """Return the layout of the pixel data; None without pixel data. Raises INVALID, TOO_LARGE."""
    element = _pixel_element(values.elements)
    if element is None:
        return None
    if element.undefined != encapsulated:
        raise AppError(
            Category.INVALID,
            "pixel data is " + ("" if element.undefined else "not ") + "encapsulated, against the transfer syntax",
            where=f"byte {element.header}",
        )
    allocated = values.integer(0x00280100) or {0x7FE00008: 32, 0x7FE00009: 64}.get(element.tag, 0)
    stored = values.integer(0x00280101) or allocated
    high_bit = values.integer(0x00280102)
    frames = values.integer(0x00280008)
    layout = PixelLayout(
        keyword=PIXEL_KEYWORDS[element.tag],
        value_start=None if deflated else element.start,
        value_length=None if deflated else element.length,
        encapsulated=encapsulated,
        rows=values.integer(0x00280010) or 0,
        columns=values.integer(0x00280011) or 0,
        samples_per_pixel=values.integer(0x00280002) or 1,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=stored - 1 if high_bit is None else high_bit,
        pixel_representation=values.integer(0x00280103) or 0,
        planar_configuration=values.integer(0x00280006) or 0,
        photometric_interpretation=values.text(0x00280004),
        number_of_frames=1 if frames is None else frames,
    )
    _check_layout(layout, limits)
    return layout


def _check_layout(layout: PixelLayout, limits: Limits) -> None:
    if layout.number_of_frames < 0 or layout.number_of_frames > limits.max_frames:
        raise AppError(Category.TOO_LARGE, f"{layout.number_of_frames} frames, from 0 to {limits.max_frames} are taken")
    if layout.rows * layout.columns > limits.max_pixels_per_frame:
        raise AppError(
            Category.TOO_LARGE,
            f"{layout.rows} x {layout.columns} pixels in a frame, at most {limits.max_pixels_per_frame} are taken",
        )


def _raw(values: Values, element: Element, encoding: Encoding) -> RawDataElement:
    """Return an element for pydicom, which decodes it when it is first used."""
    vr = element.vr if element.vr != "US or SS" else values.vr(element)
    return RawDataElement(
        BaseTag(element.tag),
        vr,
        UNDEFINED if element.undefined and element.length else element.length,
        values.raw(element) or None,
        element.start,
        encoding.implicit_vr,
        encoding.little_endian,
    )
