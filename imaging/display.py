"""What a dataset says about how a frame of it is to be displayed, read from its DICOM JSON model.

Hides where the attributes lie (top level, shared or per-frame functional groups), the encodings of lookup tables and
values that senders write wrongly. Sources: PS3.3 C.7.6.3, C.7.6.16.2, C.7.9, C.11.1, C.11.2, C.11.6; PS3.18 F.2.
"""

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.errors import AppError, Category

BulkData = Callable[[str], bytes]
MAX_LUT_ENTRIES = 65_536


class VoiFunction(StrEnum):
    """VOI LUT Function (0028,1056). Source: PS3.3 C.11.2.1.2, C.11.2.1.3."""

    LINEAR = "LINEAR"
    LINEAR_EXACT = "LINEAR_EXACT"
    SIGMOID = "SIGMOID"


@dataclass(frozen=True, slots=True)
class Window:
    """A window in the units that the modality LUT or rescale gives, e.g. Hounsfield units; width > 0."""

    center: float
    width: float
    function: VoiFunction = VoiFunction.LINEAR

    @classmethod
    def from_text(cls, text: str) -> "Window":
        """Read `center,width[,function]` as in a URL, function being linear, linear-exact or sigmoid. Raises INVALID.

        Source: PS3.18 8.3.5.1.4.
        """
        pieces = [piece.strip() for piece in text.split(",")]
        name = pieces[2].upper().replace("-", "_") if len(pieces) == 3 else "LINEAR"
        numbers = [_finite(piece) for piece in pieces[:2]]
        if len(pieces) not in (2, 3) or name not in VoiFunction.__members__ or None in numbers:
            message = "center,width or center,width,function (linear, linear-exact, sigmoid) expected"
            raise AppError(Category.INVALID, message, where="window")
        center, width = (number or 0.0 for number in numbers)
        if (width < 1 and name == "LINEAR") or width <= 0:
            raise AppError(Category.INVALID, "width of at least 1 (linear) or more than 0 expected", where="window")
        return cls(center, width, VoiFunction[name])


@dataclass(frozen=True, slots=True, eq=False)
class LookupTable:
    """A table from integers to integers: values below `first` have its first entry, those beyond the last the last.

    entries   [n] uint16
    bits      how many bits of an entry count; full scale is 2**bits - 1
    """

    first: int
    bits: int
    entries: NDArray[np.uint16]


@dataclass(frozen=True, slots=True, eq=False)
class DisplayAttributes:
    """All that rendering one frame needs besides its pixels.

    high_bit      None where pixels start at bit 0
    pixel_size    height and width of a pixel, in one unit (mm where known); only their ratio counts
    padding       stored values from low to high (inclusive) that are no image, or None
    """

    rows: int
    columns: int
    photometric_interpretation: str = "MONOCHROME2"
    bits_stored: int = 16
    high_bit: int | None = None
    is_signed: bool = False
    slope: float = 1.0
    intercept: float = 0.0
    modality_lut: LookupTable | None = None
    windows: tuple[Window, ...] = ()
    voi_lut: LookupTable | None = None
    presentation_lut: LookupTable | None = None
    is_inverse: bool = False
    palette: tuple[LookupTable, LookupTable, LookupTable] | None = None
    pixel_size: tuple[float, float] = (1.0, 1.0)
    padding: tuple[int, int] | None = None

    @property
    def is_palette(self) -> bool:
        """Whether pixels are indices into a colour palette."""
        return self.photometric_interpretation == "PALETTE COLOR"

    @classmethod
    def from_json(
        cls, document: Mapping[str, Any], frame: int = 1, *, bulkdata: BulkData | None = None
    ) -> "DisplayAttributes":
        """Read the attributes for `frame` (from 1) of a DICOM JSON object.

        A table that is a BulkDataURI is fetched with `bulkdata(uri)`, and only if rendering needs it. Nonsense, such as
        a window of width 0, counts as absent. Raises INVALID when rows, columns or a needed table are broken.
        """
        source = FrameSource(document, frame, bulkdata)
        rows, columns = source.integer("00280010"), source.integer("00280011")
        if not rows or not columns or rows < 0 or columns < 0:
            raise AppError(Category.INVALID, "the instance has no Rows and Columns", where="(0028,0010)")
        photometric = source.text("00280004") or "MONOCHROME2"
        bits_stored = min(max(source.integer("00280101") or source.integer("00280100") or 16, 1), 32)
        windows = tuple(source.windows())
        is_signed = source.integer("00280103") == 1
        return cls(
            rows=rows,
            columns=columns,
            photometric_interpretation=photometric,
            bits_stored=bits_stored,
            high_bit=min(max(_or(source.integer("00280102"), 0), bits_stored - 1), 63),
            is_signed=is_signed,
            slope=_or(source.grouped_number("00289145", "00281053"), 1.0) or 1.0,
            intercept=_or(source.grouped_number("00289145", "00281052"), 0.0),
            modality_lut=source.sequence_table("00283000"),
            windows=windows,
            voi_lut=None if windows else source.sequence_table("00283010", "00289132"),
            is_inverse=photometric == "MONOCHROME1" or source.text("20500020") == "INVERSE",
            palette=source.palette() if photometric == "PALETTE COLOR" else None,
            pixel_size=source.pixel_size(),
            padding=source.padding(is_signed),
        )


class FrameSource:
    """Reads values of a DICOM JSON object, of functional groups first where the attribute lives in one.

    What is absent is None, an empty text or nothing; so is nonsense. A table that is broken raises INVALID.
    """

    def __init__(self, document: Mapping[str, Any], frame: int, bulkdata: BulkData | None) -> None:
        self.frame = frame
        self._document = document
        self._bulkdata = bulkdata
        per_frame = items_of(document, "52009230")
        self._groups = [*per_frame[frame - 1 : frame], *items_of(document, "52009229")[:1]]

    def integer(self, tag: str) -> int | None:
        """Return a whole number of the top level."""
        number = number_of(self._document, tag)
        return None if number is None else int(number)

    def text(self, tag: str) -> str:
        """Return the first value of the top level as text."""
        values = values_of(self._document, tag)
        return str(values[0]).strip() if values and values[0] is not None else ""

    def numbers(self, tag: str, count: int) -> tuple[float, ...] | None:
        """Return the numbers of an element of the top level that has so many."""
        return numbers_of(self._document, tag, count)

    def data(self, tag: str) -> bytes:
        """Return the binary value of an element of the top level, b"" where it is absent."""
        return self._bytes(self._document.get(tag, {}))

    def grouped_number(self, group: str, tag: str) -> float | None:
        """Return a number of a functional group, else of the top level."""
        found = (number_of(item, tag) for item in self.items_of_group(group))
        return next((number for number in found if number is not None), None)

    def windows(self) -> Iterator[Window]:
        """Yield the windows of the frame."""
        for item in self.items_of_group("00289132"):
            name = "".join(str(value).strip() for value in values_of(item, "00281056")[:1])
            function = VoiFunction.__members__.get(name, VoiFunction.LINEAR)
            pairs = zip(values_of(item, "00281050"), values_of(item, "00281051"), strict=False)
            found = [(_finite(center), _finite(width)) for center, width in pairs]
            usable = [Window(c, w, function) for c, w in found if c is not None and w is not None and w > 0]
            if usable:
                yield from usable
                return

    def grouped_numbers(self, group: str, tag: str, count: int) -> tuple[float, ...] | None:
        """Return so many numbers of a functional group, else of the top level."""
        for item in self.items_of_group(group):
            if (found := numbers_of(item, tag, count)) is not None:
                return found
        return None

    def pixel_size(self) -> tuple[float, float]:
        """Return height and width of a pixel in one unit, 1 and 1 where nothing is said."""
        spacings = [(item, "00280030") for item in self.items_of_group("00289110")]  # Pixel Spacing
        more = ("00181164", "00182010", "00280034")  # Imager Pixel, Nominal Scanned Pixel Spacing, Pixel Aspect Ratio
        for item, tag in spacings + [(self._document, tag) for tag in more]:
            numbers = [_finite(value) for value in values_of(item, tag)]
            if len(numbers) == 2 and all(number and 1e-6 < number < 1e6 for number in numbers):
                return numbers[0] or 1.0, numbers[1] or 1.0
        return 1.0, 1.0

    def padding(self, is_signed: bool) -> tuple[int, int] | None:
        """Return the lowest and highest stored value that is padding."""
        first, last = self.integer("00280120"), self.integer("00280121")
        if first is None:
            return None
        bounds = [_signed16(value, is_signed) for value in (first, first if last is None else last)]
        return min(bounds), max(bounds)

    def sequence_table(self, sequence: str, group: str | None = None) -> LookupTable | None:
        """Return the table in the first item of a sequence, which may lie in a functional group."""
        for holder in self.items_of_group(group) if group else [self._document]:
            for item in items_of(holder, sequence)[:1]:
                return self._table(item, "00283002", "00283006")
        return None

    def palette(self) -> tuple[LookupTable, LookupTable, LookupTable]:
        """Return the tables of red, green and blue."""
        red, green, blue = (self._palette_table(number) for number in (1, 2, 3))
        return red, green, blue

    def _palette_table(self, number: int) -> LookupTable:
        descriptor, segmented = f"0028110{number}", f"0028122{number}"
        if segmented in self._document:
            first, bits, count = self._descriptor(self._document, descriptor)
            words = self._words(self._document[segmented], bits, count)
            return LookupTable(first, bits, expand_segments(words, count))
        return self._table(self._document, descriptor, f"0028120{number}")

    def _table(self, item: Mapping[str, Any], descriptor: str, data: str) -> LookupTable:
        first, bits, count = self._descriptor(item, descriptor)
        entries = self._words(item.get(data, {}), bits, count)
        if not len(entries):
            raise AppError(Category.INVALID, "a lookup table has no data", where=_shown(data))
        return LookupTable(first, bits, entries[:count])

    def _descriptor(self, item: Mapping[str, Any], tag: str) -> tuple[int, int, int]:
        """Return the first value mapped, the bits of an entry and the number of entries. Source: PS3.3 C.11.1.1."""
        numbers = [_finite(value) for value in values_of(item, tag)]
        if len(numbers) != 3 or None in numbers:
            raise AppError(Category.INVALID, "a lookup table has no descriptor", where=_shown(tag))
        count, first, bits = (int(number or 0) for number in numbers)
        # A signed first value comes as unsigned where the writer did not look at Pixel Representation.
        is_signed = self.integer("00280103") == 1
        return _signed16(first, is_signed), min(max(bits, 1), 16), (count % MAX_LUT_ENTRIES) or MAX_LUT_ENTRIES

    def _words(self, element: Mapping[str, Any], bits: int, count: int) -> NDArray[np.uint16]:
        """Return table data as words. Entries of 8 bits may be packed two in a word, or not: their number tells."""
        if "Value" in element:
            numbers = [int(_finite(value) or 0) & 0xFFFF for value in element["Value"]]
            raw = np.array(numbers, dtype="<u2").tobytes()
        else:
            raw = self._bytes(element)
        if len(raw) > 2 * MAX_LUT_ENTRIES * 4:
            raise AppError(Category.INVALID, "a lookup table has too much data", where="LUT data")
        if bits <= 8 and len(raw) < 2 * count:
            return np.frombuffer(raw, dtype=np.uint8).astype(np.uint16)
        return np.frombuffer(raw[: len(raw) // 2 * 2], dtype="<u2").astype(np.uint16)

    def _bytes(self, element: Mapping[str, Any]) -> bytes:
        if "InlineBinary" in element:
            try:
                return base64.b64decode(element["InlineBinary"], validate=True)
            except (binascii.Error, ValueError, TypeError):
                raise AppError(Category.INVALID, "binary data is not base64", where="InlineBinary") from None
        uri = element.get("BulkDataURI")
        return self._bulkdata(str(uri)) if uri and self._bulkdata else b""

    def items_of_group(self, group: str) -> list[Mapping[str, Any]]:
        """Return where an attribute of a group may stand: for the frame, for all frames, at the top level."""
        return [item for holder in self._groups for item in items_of(holder, group)[:1]] + [self._document]


def expand_segments(words: NDArray[np.uint16], count: int) -> NDArray[np.uint16]:
    """Return the table of up to `count` entries that segmented palette data describes. Source: PS3.3 C.7.9.2.

    Raises INVALID when an opcode is unknown, a segment is cut short or one refers to what lies not before it.
    """
    table = np.zeros(0, np.uint16)
    at = 0
    while at + 1 < len(words) and len(table) < count:
        if words[at] == _INDIRECT:
            if at + 4 > len(words):
                raise _broken_segments()
            start = (int(words[at + 2]) | int(words[at + 3]) << 16) // 2  # bytes to words
            table = _append_segments(table, words[:at], start, int(words[at + 1]), count)[0]
            at += 4
        else:
            table, at = _append_segments(table, words, at, 1, count)
    if not len(table):
        raise _broken_segments()
    return table[:count]


_DISCRETE, _LINEAR, _INDIRECT = 0, 1, 2


def _append_segments(
    table: NDArray[np.uint16], words: NDArray[np.uint16], at: int, segments: int, count: int
) -> tuple[NDArray[np.uint16], int]:
    """Return the table with discrete and linear segments from word `at` on added, and where the next one starts."""
    parts = [table]
    total = len(table)
    for _ in range(segments):
        if total >= count:
            break
        if at + 1 >= len(words) or words[at] not in (_DISCRETE, _LINEAR):
            raise _broken_segments()
        length = int(words[at + 1])
        end = at + (2 + length if words[at] == _DISCRETE else 3)
        if end > len(words):
            raise _broken_segments()
        if words[at] == _DISCRETE:
            parts.append(words[at + 2 : end])
        else:
            before = next((int(part[-1]) for part in reversed(parts) if len(part)), 0)
            steps = np.arange(1, length + 1) / max(length, 1)
            parts.append(np.rint(before + (int(words[at + 2]) - before) * steps).astype(np.uint16))
        total += length
        at = end
    return np.concatenate(parts), at


def _broken_segments() -> AppError:
    return AppError(Category.INVALID, "segmented palette data is empty or broken", where="(0028,1221)")


def items_of(document: Mapping[str, Any], tag: str) -> list[Mapping[str, Any]]:
    """Return the items of a sequence, none where it is absent."""
    return [item for item in values_of(document, tag) if isinstance(item, Mapping)]


def values_of(document: Mapping[str, Any], tag: str) -> list[Any]:
    """Return the values of an element, none where it is absent."""
    values = document.get(tag, {}).get("Value", [])
    return values if isinstance(values, list) else []


def numbers_of(document: Mapping[str, Any], tag: str, count: int) -> tuple[float, ...] | None:
    """Return the numbers of an element that has so many and nothing else, else None."""
    found = [_finite(value) for value in values_of(document, tag)]
    if len(found) != count or None in found:
        return None
    return tuple(number for number in found if number is not None)


def number_of(document: Mapping[str, Any], tag: str) -> float | None:
    """Return the first value of an element as a number, None where that is none."""
    values = values_of(document, tag)
    return _finite(values[0]) if values else None


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < 1e300 else None


def _or(number: Any, default: Any) -> Any:
    return default if number is None else number


def _signed16(value: int, is_signed: bool) -> int:
    return value - 65_536 if is_signed and value > 32_767 else value


def _shown(tag: str) -> str:
    return f"({tag[:4]},{tag[4:]})"
