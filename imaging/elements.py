"""Finds every element of an encoded dataset without copying a value.

Hides the four ways in which datasets are written (explicit and implicit VR, little and big endian), defined and
undefined lengths, and senders who mix them. pydicom reads the same bytes, but neither bounds depth and count, nor
tells a truncated value from a short one, nor where things lie; values themselves are still decoded with its tables.
Byte positions are counted from the first byte of the buffer. Source: PS3.5 section 7.
"""

from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

from pydicom.datadict import dictionary_VR, private_dictionary_VR
from pydicom.tag import BaseTag

from imaging.errors import AppError, Category
from imaging.layout import PIXEL_KEYWORDS, Buffer, Limits

UNDEFINED: Final = 0xFFFFFFFF
LONG, _LONGEST = 1 << 14, 1 << 20  # bytes of sequences that are remembered
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD

LONG_VRS: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
"""VRs with a 32-bit length in explicit VR (PS3.5 7.1.2)."""
SHORT_VRS: Final = frozenset(
    "AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()  # noqa: SIM905
)
_VRS: Final = {vr.encode(): vr for vr in LONG_VRS | SHORT_VRS}


class Element(NamedTuple):
    """One data element: where it is, and the items of a sequence.

    header  position of the tag;  start, length  the value field (without the delimiter when undefined)
    end     position after the element, delimiter included
    vr      two letters; as written, or from the dictionaries when not written or unknown
    """

    tag: int
    vr: str
    header: int
    start: int
    length: int
    end: int
    undefined: bool = False
    items: "tuple[Item, ...] | None" = None


class Item(NamedTuple):
    """One item of a sequence: its dataset and how that is written."""

    elements: "Elements"
    implicit_vr: bool


Elements = dict[int, Element]


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the elements of a dataset are written."""

    implicit_vr: bool = False
    little_endian: bool = True


class Scanned(NamedTuple):
    """The elements of a dataset and the position after the last one."""

    elements: Elements
    end: int


def scan(
    buffer: Buffer, start: int, end: int, encoding: Encoding, limits: Limits, *, meta_only: bool = False, below: int = 0
) -> Scanned:
    """Return the elements of the dataset in `buffer[start:end]`.

    With `meta_only` it stops before the first element outside of group 0002, with `below` before the first whose tag
    is not below it. Zeros after the last element are taken
    as padding and left alone. Raises INVALID naming the element and the byte for truncated or malformed data,
    TOO_LARGE for too many elements or too deep nesting.
    """
    scanner = _Scanner(buffer, encoding.little_endian, limits, meta_only=meta_only, below=below)
    return scanner.dataset(start, end, encoding.implicit_vr, 0, delimited=False)


def tag_name(tag: int) -> str:
    """Return a tag as (gggg,eeee)."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


@lru_cache(maxsize=8)
def items_of(
    value: bytes, start: int, little_endian: bool, implicit_vr: bool, depth: int, limits: Limits
) -> tuple[tuple[Item, ...], int] | None:
    """Return the items of a sequence whose value lies at `start`, and how many elements they have; None for damage.

    Each slice of a reformatted volume names the same thousand images that it was made from: read once for all.
    """
    scanner = _Scanner(value, little_endian, limits, meta_only=False)
    try:
        items, _ = scanner.sequence(0, len(value), implicit_vr, depth, delimited=False)
    except (AppError, StructError):
        return None
    return _moved(items, start), scanner.count


def _moved(items: tuple[Item, ...], by: int) -> tuple[Item, ...]:
    return tuple(
        Item({tag: _element_moved(element, by) for tag, element in elements.items()}, implicit_vr)
        for elements, implicit_vr in items
    )


def _element_moved(element: Element, by: int) -> Element:
    header, start, end = element.header + by, element.start + by, element.end + by
    items = None if element.items is None else _moved(element.items, by)
    return element._replace(header=header, start=start, end=end, items=items)


class _Scanner:
    """State of one scan: the buffer, the byte order, and how much has been read."""

    def __init__(self, buffer: Buffer, little_endian: bool, limits: Limits, *, meta_only: bool, below: int = 0) -> None:
        order = "<" if little_endian else ">"
        self.buffer = buffer
        self.little_endian = little_endian
        self.limits = limits
        self.meta_only = meta_only
        self.below = below or 1 << 32
        self.count = 0
        self.explicit = Struct(order + "HH2sH").unpack_from
        self.implicit = Struct(order + "HHL").unpack_from
        self.long = Struct(order + "L").unpack_from

    def dataset(self, pos: int, end: int, implicit_vr: bool, depth: int, *, delimited: bool) -> Scanned:
        """Read elements from `pos`; up to the Item Delimitation Item when `delimited`, else exactly up to `end`."""
        elements: Elements = {}
        while pos + 8 <= end:
            tag, vr, length, start = self.header(pos, end, implicit_vr)
            if tag == ITEM_END and delimited:
                return Scanned(elements, start)
            if self.ends_here(tag, depth):
                return Scanned(elements, pos)
            if tag >> 16 == 0xFFFE:
                raise AppError(Category.INVALID, f"{tag_name(tag)} where an element should be", where=f"byte {pos}")
            element = self.element(elements, Element(tag, vr, pos, start, length, start + length), end, depth)
            if tag in elements:
                raise AppError(
                    Category.INVALID, f"element {tag_name(tag)} occurs twice in a dataset", where=f"byte {pos}"
                )
            elements[tag] = element
            pos = element.end
        if delimited or (pos < end and any(self.buffer[pos:end])):
            raise AppError(
                Category.INVALID, "the data ends inside a dataset; the file is truncated", where=f"byte {pos}"
            )
        return Scanned(elements, pos)

    def ends_here(self, tag: int, depth: int) -> bool:
        """Tell whether top-level reading stops before `tag`, and count the element otherwise."""
        self.count += 1
        if self.count > self.limits.max_elements:
            raise AppError(Category.TOO_LARGE, f"more than {self.limits.max_elements} elements")
        return depth == 0 and (tag == 0 or tag >= self.below or (self.meta_only and tag >> 16 != 2))

    def header(self, pos: int, end: int, implicit_vr: bool) -> tuple[int, str, int, int]:
        """Return tag, VR ("" when not written), length and start of the value of the element at `pos`."""
        if not implicit_vr:
            group, number, code, length = self.explicit(self.buffer, pos)
            if group == 0xFFFE:
                return group << 16 | number, "", self.long(self.buffer, pos + 4)[0], pos + 8
            vr = _VRS.get(code)
            if vr in SHORT_VRS:
                return group << 16 | number, vr, length, pos + 8
            # PS3.5 6.2: VRs of future editions have 32-bit lengths after two reserved bytes of zero.
            if vr is not None or (code.isalpha() and code.isupper() and length == 0):
                if pos + 12 > end:
                    raise AppError(Category.INVALID, "the data ends inside an element header", where=f"byte {pos}")
                return group << 16 | number, vr or "UN", self.long(self.buffer, pos + 8)[0], pos + 12
            if code.isalpha() and code.isupper():
                return group << 16 | number, "UN", length, pos + 8
        # Some senders switch to implicit VR inside of an explicit VR dataset; two bytes that are no letters tell.
        group, number, length = self.implicit(self.buffer, pos)
        return group << 16 | number, "", length, pos + 8

    def element(self, elements: Elements, element: Element, end: int, depth: int) -> Element:
        """Resolve the VR, read the items of a sequence and check that the value lies inside of `end`."""
        tag, vr, _, start, length, _, _, _ = element
        if vr in ("", "UN"):
            vr = self.known_vr(elements, tag, vr, length)
        if length == UNDEFINED:
            return self.undefined(element, vr, end, depth)
        if start + length > end:
            message = f"element {tag_name(tag)} is {length} bytes long, {end - start} are left; the file is truncated"
            raise AppError(Category.INVALID, message, where=f"byte {element.header}")
        if vr != "SQ":
            return element if vr == element.vr else element._replace(vr=vr)
        # What a sender wrote as UN is in implicit VR, little endian (PS3.5 6.2.2).
        implicit_vr = element.vr in ("", "UN")
        try:
            items = self.known_items(element, implicit_vr, depth)
            if items is None:
                items, _ = self.sequence(start, start + length, implicit_vr, depth, delimited=False)
        except AppError as error:
            if element.vr == "UN" and error.category is Category.INVALID:
                return element  # written as UN, and not what the dictionary expects: opaque bytes
            raise
        return element._replace(vr=vr, items=items)

    def known_items(self, element: Element, implicit_vr: bool, depth: int) -> tuple[Item, ...] | None:
        """Return the items of a long sequence that an instance before had at the same place; None for others."""
        start, length = element.start, element.length
        if not LONG <= length <= _LONGEST:
            return None
        value = bytes(self.buffer[start : start + length])
        found = items_of(value, start, self.little_endian, implicit_vr, depth, self.limits)
        if found is None:
            return None  # damaged: read in its place, where it can be said where
        items, count = found
        self.count += count
        return items

    def undefined(self, element: Element, vr: str, end: int, depth: int) -> Element:
        """Read an element of undefined length: a sequence, or fragments of encapsulated pixel data."""
        start = element.start
        implicit_vr = element.vr in ("", "UN")
        if vr in ("OB", "OW") and (element.tag in PIXEL_KEYWORDS or not implicit_vr):
            end = self.fragments(start, end)
            return element._replace(vr=vr, length=end - 8 - start, end=end, undefined=True)
        items, end = self.sequence(start, end, implicit_vr, depth, delimited=True)
        return element._replace(vr="SQ", length=end - 8 - start, end=end, undefined=True, items=items)

    def sequence(
        self, pos: int, end: int, implicit_vr: bool, depth: int, *, delimited: bool
    ) -> tuple[tuple[Item, ...], int]:
        """Read items from `pos`, up to the delimiter or exactly up to `end`; return them and the position after."""
        if depth >= self.limits.max_sequence_depth:
            raise AppError(Category.TOO_LARGE, f"sequences nest deeper than {self.limits.max_sequence_depth}")
        items: list[Item] = []
        while pos + 8 <= end:
            tag, length = self.item_header(pos)
            pos += 8
            if tag == SEQUENCE_END:
                return tuple(items), pos
            if tag != ITEM:
                raise AppError(Category.INVALID, f"{tag_name(tag)} where an item should be", where=f"byte {pos - 8}")
            item_end = end if length == UNDEFINED else pos + length
            if item_end > end:
                raise AppError(Category.INVALID, "an item is longer than its sequence", where=f"byte {pos - 8}")
            implicit_here = self.looks_implicit(pos, item_end, implicit_vr)
            elements, pos = self.dataset(pos, item_end, implicit_here, depth + 1, delimited=length == UNDEFINED)
            items.append(Item(elements, implicit_here))
            pos = pos if length == UNDEFINED else item_end
        if delimited or pos != end:
            raise AppError(
                Category.INVALID, "the data ends inside a sequence; the file is truncated", where=f"byte {pos}"
            )
        return tuple(items), pos

    def fragments(self, pos: int, end: int) -> int:
        """Walk over fragments from `pos` and return the position after the Sequence Delimitation Item."""
        while pos + 8 <= end:
            tag, length = self.item_header(pos)
            pos += 8 + length
            if tag == SEQUENCE_END:
                return pos - length
            if tag != ITEM or length == UNDEFINED or pos > end:
                raise AppError(Category.INVALID, "a fragment of pixel data is malformed", where=f"byte {pos}")
        raise AppError(Category.INVALID, "the data ends inside pixel data; the file is truncated", where=f"byte {pos}")

    def item_header(self, pos: int) -> tuple[int, int]:
        group, number, length = self.implicit(self.buffer, pos)
        return group << 16 | number, length

    def looks_implicit(self, pos: int, end: int, implicit_vr: bool) -> bool:
        """Tell how an item is written: senders mix, so that its first element decides."""
        if pos + 8 > end:
            return implicit_vr
        group, number, code, _ = self.explicit(self.buffer, pos)
        vr = _VRS.get(code)
        if vr is None:
            return implicit_vr or not (code.isalpha() and code.isupper())
        if not implicit_vr:
            return False
        # Two length bytes of implicit VR may happen to be letters: believe them only when they are the right ones.
        return not is_known_as(group << 16 | number, vr)

    def known_vr(self, elements: Elements, tag: int, written: str, length: int) -> str:
        """Return the VR of an element written without one, or as UN, from the dictionaries."""
        try:
            if not (tag >> 16) & 1:
                return plain_vr(dictionary_VR(tag) if tag & 0xFFFF else "UL")
            if 0x10 <= tag & 0xFFFF <= 0xFF:
                return "LO"
            creator = elements.get(tag & 0xFFFF0000 | (tag & 0xFF00) >> 8)
            if creator is None:
                return "UN" if tag & 0xFFFF else "UL"
            name = bytes(self.buffer[creator.start : creator.start + creator.length]).decode("latin-1").strip(" \0")
            return plain_vr(private_dictionary_VR(BaseTag(tag), name))
        except KeyError:
            return "UN"


def looks_explicit(buffer: Buffer, start: int) -> bool:
    """Tell whether the element at `start`, in group 0002 or 0008, carries the VR that it has to have."""
    group, number, code = Struct("<HH2s").unpack_from(buffer, start)
    return code in _VRS and is_known_as(group << 16 | number, _VRS[code])


def is_known_as(tag: int, vr: str) -> bool:
    """Tell whether the dictionary gives `tag` this VR."""
    try:
        return (vr in dictionary_VR(tag).split(" or ")) if tag & 0xFFFF else vr == "UL"
    except KeyError:
        return False


def plain_vr(vr: str) -> str:
    """Return the one VR that implicit VR little endian uses where the dictionary names several (PS3.5 A.1).

    "US or SS" stays to be decided by Pixel Representation.
    """
    return "OW" if vr in ("OB or OW", "US or OW", "US or SS or OW") else vr
