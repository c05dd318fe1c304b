"""Writes Part 10 files: preamble, File Meta Information and datasets in explicit or implicit VR little endian.

Values are copied, never interpreted: elements that need no change keep their bytes, also where a value breaks a rule.
Group lengths (retired) are left out where they would become wrong. Sources: PS3.10 section 7, PS3.5 section 7.
"""

from array import array
from collections.abc import Iterator, Mapping
from struct import pack
from typing import Final, NamedTuple

from imaging.elements import LONG_VRS, UNDEFINED, Element, Encoding, Item
from imaging.frames import SEQUENCE_DELIMITATION, item_header
from imaging.layout import Buffer, PixelLayout
from imaging.values import NUMBER_FORMATS, SWAP_WIDTHS, Values

IMPLEMENTATION_CLASS_UID: Final = "2.25.237836231302855193658409305205898264928"
"""Identifies this software in the files that it writes: the name-based UUID (version 5) of the DNS name
"fhir-imaging-server", under the root 2.25 (PS3.5 B.2)."""
IMPLEMENTATION_VERSION_NAME: Final = "FHIR_IMAGING_1"
PREAMBLE: Final = bytes(128)
"""Zeros: a preamble can make a file an executable or an image of another kind as well (PS3.10 7.5)."""

_KEPT_META: Final = (0x00020016, 0x00020017, 0x00020018, 0x00020026, 0x00020027, 0x00020028, 0x00020100, 0x00020102)
_NUMBER_WIDTHS: Final = {"US": 2, "SS": 2, "AT": 2, "UL": 4, "SL": 4, "FL": 4, "UV": 8, "SV": 8, "FD": 8}


class Value(NamedTuple):
    """A value field to write in place of, or beside, what was received."""

    vr: str
    value: bytes


Edits = Mapping[int, Value | None]
"""New values by tag; None leaves the element out."""


def text_value(vr: str, text: str) -> Value:
    """Return a text or UID padded to an even length."""
    raw = text.encode("ascii")
    return Value(vr, raw + (b"\0" if vr == "UI" else b" ") * (len(raw) % 2))


def number_value(number: int) -> Value:
    """Return an unsigned 16-bit number."""
    return Value("US", pack("<H", number))


def layout_edits(layout: PixelLayout, before: PixelLayout | None) -> dict[int, Value | None]:
    """Return the attributes by which the encoding of pixels changes from `before` to `layout`."""
    edits: dict[int, Value | None] = {}
    if before is None or layout.photometric_interpretation != before.photometric_interpretation:
        edits[0x00280004] = text_value("CS", layout.photometric_interpretation)
    if layout.samples_per_pixel > 1 and (before is None or before.planar_configuration != layout.planar_configuration):
        edits[0x00280006] = number_value(layout.planar_configuration)
    return edits


def file_start(values: Values, meta: Values, transfer_syntax_uid: str) -> bytes:
    """Return preamble, prefix and File Meta Information for the dataset in `values`.

    meta  File Meta Information as received: who sent it is kept, who wrote it is replaced
    """
    elements = _meta(values.text(0x00080016), values.text(0x00080018), transfer_syntax_uid)
    for tag in _KEPT_META:
        if tag in meta.elements:
            elements[tag] = Value(meta.elements[tag].vr, meta.raw(meta.elements[tag]))
    return _head(elements)


def file_head(sop_class_uid: str, sop_uid: str, transfer_syntax_uid: str) -> bytes:
    """Return preamble, prefix and File Meta Information of a file that is made here.

    Of the UIDs only those of ASCII characters are written: what is none is refused by whoever reads the data set.
    """
    given = (sop_class_uid, sop_uid)
    class_uid, uid = (each if each.isascii() else "" for each in given)
    return _head(_meta(class_uid, uid, transfer_syntax_uid))


def write_elements(
    values: Values,
    source: Encoding,
    *,
    implicit_vr: bool,
    edits: Edits,
    above: int = 0,
    below: int = 0xFFFFFFFF,
) -> Iterator[Buffer]:
    """Yield the elements with above < tag < below, edited, in little endian."""
    unchanged = source == Encoding(implicit_vr=implicit_vr, little_endian=True)
    edited_groups = {tag >> 16 for tag in edits}
    for tag in sorted({tag for tag in (*values.elements, *edits) if above < tag < below}):
        if tag in edits:
            edit = edits[tag]
            if edit is not None:
                yield element_bytes(tag, *edit, implicit_vr=implicit_vr)
            continue
        element = values.elements[tag]
        if tag & 0xFFFF == 0 and (not unchanged or tag >> 16 in edited_groups):
            continue
        if unchanged:
            yield memoryview(values.buffer)[element.header : element.end]
        else:
            yield from _rewritten(values, element, implicit_vr=implicit_vr)


def element_bytes(tag: int, vr: str, value: bytes, *, implicit_vr: bool) -> bytes:
    """Return one element of defined length."""
    return value_header(tag, vr, len(value), implicit_vr=implicit_vr) + value


def value_header(tag: int, vr: str, length: int, *, implicit_vr: bool) -> bytes:
    """Return the header of a value of `length` bytes; one too long for its VR is written as UN (PS3.5 6.2.2)."""
    if not implicit_vr and vr not in LONG_VRS and length > 0xFFFF:
        vr = "UN"
    return element_header(tag, vr, length, implicit_vr=implicit_vr)


def element_header(tag: int, vr: str, length: int, *, implicit_vr: bool) -> bytes:
    """Return tag, VR and length of an element."""
    group, number = tag >> 16, tag & 0xFFFF
    if implicit_vr:
        return pack("<HHI", group, number, length)
    if vr in LONG_VRS:
        return pack("<HH2sHI", group, number, vr.encode(), 0, length)
    return pack("<HH2sH", group, number, vr.encode(), length)


def swapped(data: Buffer, width: int) -> bytes:
    """Return the bytes of every word of `width` bytes reversed; bytes that fill no word stay."""
    code = {2: "H", 4: "I", 8: "Q"}[width]
    whole = len(data) // width * width
    words = array(code, bytes(data[:whole]))
    words.byteswap()
    return words.tobytes() + bytes(data[whole:])


def little_endian_value(values: Values, element: Element) -> bytes:
    """Return the bytes of a value field in little endian."""
    raw = values.raw(element)
    if values.little_endian:
        return raw
    vr = values.vr(element)
    width = SWAP_WIDTHS.get(vr) or (_NUMBER_WIDTHS[vr] if vr in NUMBER_FORMATS else 1)
    return swapped(raw, width) if width > 1 else raw


def _meta(sop_class_uid: str, sop_uid: str, transfer_syntax_uid: str) -> dict[int, Value]:
    return {
        0x00020001: Value("OB", b"\0\1"),
        0x00020002: text_value("UI", sop_class_uid),
        0x00020003: text_value("UI", sop_uid),
        0x00020010: text_value("UI", transfer_syntax_uid),
        0x00020012: text_value("UI", IMPLEMENTATION_CLASS_UID),
        0x00020013: text_value("SH", IMPLEMENTATION_VERSION_NAME),
    }


def _head(elements: Mapping[int, Value]) -> bytes:
    body = b"".join(element_bytes(tag, *elements[tag], implicit_vr=False) for tag in sorted(elements))
    length = element_bytes(0x00020000, "UL", pack("<I", len(body)), implicit_vr=False)
    return PREAMBLE + b"DICM" + length + body


def _rewritten(values: Values, element: Element, *, implicit_vr: bool) -> Iterator[Buffer]:
    """Yield an element in another encoding, its items too; values that stay as they are, as views."""
    if element.items is not None:
        body = b"".join(_rewritten_items(values, element.items, implicit_vr=implicit_vr))
        yield element_bytes(element.tag, "SQ", body, implicit_vr=implicit_vr)
        return
    view = memoryview(values.buffer)[element.start : element.start + element.length]
    if element.undefined:
        yield element_header(element.tag, element.vr, UNDEFINED, implicit_vr=implicit_vr)
        yield view
        yield SEQUENCE_DELIMITATION
        return
    value = view if values.little_endian else little_endian_value(values, element)
    yield value_header(element.tag, values.vr(element), len(value), implicit_vr=implicit_vr)
    yield value


def _rewritten_items(values: Values, items: tuple[Item, ...], *, implicit_vr: bool) -> Iterator[bytes]:
    for item in items:
        inner = values.item(item)
        told = [
            piece
            for tag in sorted(inner.elements)
            if tag & 0xFFFF
            for piece in _rewritten(inner, inner.elements[tag], implicit_vr=implicit_vr)
        ]
        body = b"".join(told)
        yield item_header(len(body)) + body
