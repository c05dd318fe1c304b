"""Values of scanned elements: texts in their character set, numbers in their byte order, nested items.

Hides character repertoires (inherited by items), padding and byte order. Text comes back without its padding.
Source: PS3.5 sections 6.1 and 6.2.
"""

from collections.abc import Iterator
from struct import error as StructError
from struct import unpack_from
from typing import Final

from pydicom.charset import convert_encodings, decode_bytes, default_encoding

from imaging.elements import Element, Elements, Item
from imaging.layout import Buffer

TEXT_DELIMITERS: Final = {0x0A, 0x0C, 0x0D, 0x09, 0x5C}
"""Bytes after which an escape sequence ends in texts (PS3.5 6.1.2.5.3); in person names also "^" and "="."""
NAME_DELIMITERS: Final = {0x0A, 0x0C, 0x0D, 0x09, 0x5C, 0x5E, 0x3D}

WIDE_TEXT_VRS: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
"""VRs that Specific Character Set applies to."""
NUMBER_FORMATS: Final = {
    "US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q", "FL": "f", "FD": "d", "AT": "HH",
}  # fmt: skip
BINARY_VRS: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
SWAP_WIDTHS: Final = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
"""Bytes of one word of those binary VRs whose bytes are swapped in big endian."""

_SPECIFIC_CHARACTER_SET: Final = 0x00080005
_PIXEL_REPRESENTATION: Final = 0x00280103


class Values:
    """Reads the values of one dataset, or of one item of a sequence."""

    def __init__(
        self, buffer: Buffer, elements: Elements, *, little_endian: bool, parent: "Values | None" = None
    ) -> None:
        self.buffer = buffer
        self.elements = elements
        self.little_endian = little_endian
        self._signed = parent.signed if parent else False
        self._encodings: list[str] = parent.encodings if parent else [default_encoding]
        if _SPECIFIC_CHARACTER_SET in elements:
            self._encodings = self._read_encodings(elements[_SPECIFIC_CHARACTER_SET])

    @property
    def encodings(self) -> list[str]:
        """Names of the Python codecs that decode text here."""
        return self._encodings

    @property
    def signed(self) -> bool:
        """Whether "US or SS" means SS here: by the Pixel Representation of this or the nearest enclosing dataset."""
        if _PIXEL_REPRESENTATION in self.elements:
            return bool(self.integer(_PIXEL_REPRESENTATION))
        return self._signed

    def raw(self, element: Element) -> bytes:
        """Return the bytes of a value field as written."""
        return bytes(self.buffer[element.start : element.start + element.length])

    def vr(self, element: Element) -> str:
        """Return the VR, "US or SS" decided."""
        if element.vr != "US or SS":
            return element.vr
        return "SS" if self.signed else "US"

    def text(self, tag: int) -> str:
        """Return the text of an element, several values joined by backslashes; "" when absent or empty."""
        element = self.elements.get(tag)
        if element is None or element.items is not None:
            return ""
        return self.decode(element).strip(" \0")

    def decode(self, element: Element) -> str:
        """Return the text of a value field with its padding."""
        raw = self.raw(element)
        if raw.isascii() and b"\x1b" not in raw:
            return raw.decode("ascii")
        if element.vr not in WIDE_TEXT_VRS:
            return raw.decode("latin-1")
        delimiters = NAME_DELIMITERS if element.vr == "PN" else TEXT_DELIMITERS
        return decode_bytes(raw, self._encodings, delimiters)

    def numbers(self, element: Element) -> tuple[int | float, ...]:
        """Return the numbers of a binary number VR; bytes that do not make a whole number are left out."""
        code = NUMBER_FORMATS[self.vr(element)]
        width = {"H": 2, "h": 2, "I": 4, "i": 4, "Q": 8, "q": 8, "f": 4, "d": 8, "HH": 4}[code]
        order = "<" if self.little_endian else ">"
        count = element.length // width * len(code)
        return unpack_from(f"{order}{count}{code[0]}", self.buffer, element.start)

    def integer(self, tag: int) -> int | None:
        """Return the first value of an element as an integer; None when absent, empty or no integer."""
        element = self.elements.get(tag)
        if element is None:
            return None
        try:
            if self.vr(element) in NUMBER_FORMATS:
                numbers = self.numbers(element)
                return int(numbers[0]) if numbers else None
            return int(self.text(tag).split("\\")[0])
        except (ValueError, OverflowError, StructError):
            return None

    def items(self, tag: int) -> Iterator["Values"]:
        """Yield the items of a sequence."""
        element = self.elements.get(tag)
        for item in (element.items or ()) if element else ():
            yield self.item(item)

    def item(self, item: Item) -> "Values":
        """Return a reader of one item."""
        return Values(self.buffer, item.elements, little_endian=self.little_endian, parent=self)

    def _read_encodings(self, element: Element) -> list[str]:
        names = [name.strip(" \0") for name in self.raw(element).decode("latin-1").split("\\")]
        try:
            return [str(name) for name in convert_encodings(names)]
        except (LookupError, ValueError):
            return [default_encoding]
