"""Results as files, Explicit VR Little Endian: the same bytes for the same instance, quickly for a series of them.

Instances of a series share most of their elements, as the same objects. Each is encoded by pydicom once; what pydicom
takes for a header of a hundred elements is several times what decoding an image takes.
"""

from collections.abc import Iterator
from struct import pack
from typing import Any, Final

from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import correct_ambiguous_vr_element, write_data_element
from pydicom.valuerep import AMBIGUOUS_VR

from imaging.part10 import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    PREAMBLE,
    Value,
    element_bytes,
    text_value,
)
from imaging.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN

_MOST_KNOWN: Final = 1_000  # encoded elements that are kept
_LONGEST_KNOWN: Final = 1 << 18  # bytes of one of them
_PREFIX: Final = PREAMBLE + b"DICM"
_GROUP_LENGTH: Final = 0xFFFF  # of the low half of a tag: nothing else than a group length has none of these bits

_Element = DataElement | RawDataElement


def to_part10(ds: Dataset) -> bytes:
    """Return an instance as a file; see `Writer`."""
    return Writer().part10(ds)


class Writer:
    """Writes instances that share elements."""

    def __init__(self) -> None:
        # By the identity of the element, which is kept so that no other can have it, with the value that was encoded.
        self._known: dict[int, tuple[_Element, Any, bytes]] = {}
        self._encodings: list[str] = []

    def part10(self, ds: Dataset) -> bytes:
        """Return an instance as a file."""
        told = ds.get("SpecificCharacterSet")
        encodings = convert_encodings(told) if told else [default_encoding]
        if encodings != self._encodings:
            self._known, self._encodings = {}, encodings
        return b"".join((_PREFIX, _file_meta(ds), *self._elements(ds)))

    def _elements(self, ds: Dataset) -> Iterator[bytes]:
        found = {int(tag): element for tag, element in ds.items()}
        for tag in sorted(found):
            if tag & _GROUP_LENGTH:  # retired (PS3.5 7.2)
                element = found[tag]
                known = self._known.get(id(element))
                yield known[2] if known and _is_same(known[1], element.value) else self._encoded(ds, tag, element)

    def _encoded(self, ds: Dataset, tag: int, element: _Element) -> bytes:
        plain = element
        if plain.VR is None or plain.VR in AMBIGUOUS_VR:
            plain = correct_ambiguous_vr_element(ds[tag], ds, True)
        out = DicomBytesIO()
        out.is_little_endian, out.is_implicit_VR = True, False
        write_data_element(out, plain, self._encodings)
        value = bytes(out.getvalue())
        if len(value) <= _LONGEST_KNOWN:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[id(element)] = (element, element.value, value)
        return value


def _is_same(before: Any, now: Any) -> bool:
    """Say whether nobody gave an element another value since."""
    return before is now or (type(before) is type(now) and isinstance(now, int | str) and before == now)


def _file_meta(ds: Dataset) -> bytes:
    meta = {
        0x00020001: Value("OB", b"\0\1"),
        0x00020002: text_value("UI", ds.SOPClassUID),
        0x00020003: text_value("UI", ds.SOPInstanceUID),
        0x00020010: text_value("UI", EXPLICIT_VR_LITTLE_ENDIAN),
        0x00020012: text_value("UI", IMPLEMENTATION_CLASS_UID),
        0x00020013: text_value("SH", IMPLEMENTATION_VERSION_NAME),
    }
    body = b"".join(element_bytes(tag, *told, implicit_vr=False) for tag, told in meta.items())
    return element_bytes(0x00020000, "UL", pack("<I", len(body)), implicit_vr=False) + body
