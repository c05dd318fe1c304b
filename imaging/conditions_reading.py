"""Reads what imaging conditions need from a dataset: texts, numbers, code items and the items of sequences.

Two kinds of dataset come in: one that was scanned here (`imaging.values`), and one of pydicom. Of the latter, elements
that are not decoded yet are read from their bytes: faster than pydicom's conversion, and the dataset stays as it was.
"""

import re
import struct
from collections.abc import Iterable, Iterator
from datetime import date, time
from functools import lru_cache
from math import isfinite
from typing import Any, Final, Protocol

import numpy as np
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.tag import BaseTag

from imaging.conditions_table import DCM, LOINC, SCT, Coded
from imaging.values import NUMBER_FORMATS, TEXT_DELIMITERS, Values

MAX_VALUES: Final = 16
"""Most values that one condition lists."""
MAX_TEXT: Final = 256
"""Most characters of one text value; longer ones end in an ellipsis."""
MAX_BYTES: Final = 65_536
"""Longest value field that is looked at."""

MALFORMED: Final = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    OSError,
    EOFError,
    struct.error,
    NotImplementedError,
    AssertionError,
    RecursionError,
    BytesLengthException,
    InvalidDicomError,
)
"""What reading a malformed element raises, here or in pydicom."""

_SYSTEMS: Final = {
    # designator  system; sources: PS3.16 table 8-1, FHIR R4 terminologies-systems
    "DCM": DCM,
    "SCT": SCT,
    "LN": LOINC,
    "UCUM": "http://unitsofmeasure.org",
    "NCIt": "http://ncicb.nci.nih.gov/xml/owl/EVS/Thesaurus.owl",
    "RADLEX": "http://www.radlex.org",
    "RXNORM": "http://www.nlm.nih.gov/research/umls/rxnorm",
    "UMLS": "http://www.nlm.nih.gov/research/umls",
    "I10": "http://hl7.org/fhir/sid/icd-10",
    "FMA": "urn:oid:2.16.840.1.113883.6.119",
}
_SNOMED_RT: Final = frozenset({"SRT", "SNM3", "99SDM"})
_CODE_VALUES: Final = (0x00080100, 0x00080119, 0x00080120)  # Code Value, Long Code Value, URN Code Value
_CODING_SCHEME_DESIGNATOR, _CODE_MEANING = 0x00080102, 0x00080104
_SPECIFIC_CHARACTER_SET = BaseTag(0x00080005)
_INT64 = 1 << 63

_TIME = re.compile(r"(\d\d)(\d\d)?(\d\d)?(?:\.(\d{1,6}))?")
_DATE = re.compile(r"(\d{4})\.?(\d\d)\.?(\d\d)")
_DATETIME = re.compile(r"(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?(?:\.(\d{1,6}))?([+-]\d{4})?")
_ZONE = re.compile(r"[+-](?:0\d|1[0-4])[0-5]\d")


class Reader(Protocol):
    """A dataset, or an item of a sequence. Methods may raise anything of `MALFORMED`."""

    def tags(self) -> Iterable[int]:
        """Return the tags that are there."""

    def text(self, tag: int) -> str:
        """Return text, several values joined by backslashes; "" when absent or empty."""

    def numbers(self, tag: int) -> tuple[int | float, ...]:
        """Return the numbers of an element of any number VR, written as text or in binary."""

    def items(self, tag: int) -> Iterable["Reader"]:
        """Return the items of a sequence."""


class ScannedReader:
    """Reads a dataset that was scanned by us."""

    def __init__(self, values: Values) -> None:
        self._values = values

    def tags(self) -> Iterable[int]:
        """Return the tags that are there."""
        return self._values.elements

    def text(self, tag: int) -> str:
        """Return text, several values joined by backslashes; "" when absent or empty."""
        return self._values.text(tag)

    def numbers(self, tag: int) -> tuple[int | float, ...]:
        """Return the numbers of an element."""
        element = self._values.elements[tag]
        if element.length > MAX_BYTES or element.items is not None:
            return ()
        if element.vr not in NUMBER_FORMATS:
            return numbers_from_text(self._values.decode(element))
        return _plain(element.vr, self._values.numbers(element))

    def items(self, tag: int) -> Iterator["ScannedReader"]:
        """Yield the items of a sequence."""
        return map(ScannedReader, self._values.items(tag))


class DatasetReader:
    """Reads a dataset of pydicom; what is not decoded yet is read from its bytes."""

    def __init__(self, ds: Dataset, parent: "DatasetReader | None" = None) -> None:
        self._ds = ds
        self._parent = parent

    def tags(self) -> Iterable[int]:
        """Return the tags that are there."""
        return self._ds.keys()

    def text(self, tag: int) -> str:
        """Return text, several values joined by backslashes; "" when absent or empty."""
        if BaseTag(tag) not in self._ds:
            return ""
        element: Any = self._ds.get_item(tag)
        if isinstance(element, RawDataElement):
            raw = element.value or b""
            return self._decode(raw).strip(" \0") if len(raw) <= MAX_BYTES else ""
        value = element.value
        parts = value if isinstance(value, list | tuple) or hasattr(value, "append") else [value]
        return "\\".join("" if part is None else str(part) for part in parts).strip(" \0")

    def numbers(self, tag: int) -> tuple[int | float, ...]:
        """Return the numbers of an element."""
        element: Any = self._ds.get_item(tag)
        if not isinstance(element, RawDataElement):
            value = element.value
            parts: Iterable[Any] = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
            return _plain(element.VR, tuple(_number(str(part)) for part in parts if part not in (None, "")))
        raw, vr = element.value or b"", element.VR
        if len(raw) > MAX_BYTES:
            return ()
        vr = dictionary_VR(tag) if vr in (None, "UN") else vr
        if vr not in NUMBER_FORMATS:
            return numbers_from_text(raw.decode("latin-1"))
        code = NUMBER_FORMATS[vr]
        order = "<" if element.is_little_endian else ">"
        return _plain(vr, struct.unpack(f"{order}{len(raw) // struct.calcsize(code)}{code}", raw))

    def items(self, tag: int) -> Iterator["DatasetReader"]:
        """Yield the items of a sequence."""
        # Decoding anything else would make pydicom warn, with the value in the warning.
        if self._ds.get_item(tag).VR in ("SQ", "UN", None):
            for item in self._ds[tag].value or ():
                if isinstance(item, Dataset):  # bytes when a sender wrote the sequence as UN
                    yield DatasetReader(item, self)

    def _decode(self, raw: bytes) -> str:
        # Escape sequences of ISO 2022 are ASCII bytes that say otherwise.
        if raw.isascii() and b"\x1b" not in raw:
            return raw.decode("ascii")
        return decode_bytes(raw, self._encodings(), TEXT_DELIMITERS)

    def _encodings(self) -> list[str]:
        if _SPECIFIC_CHARACTER_SET in self._ds:
            return list(convert_encodings(self._ds[_SPECIFIC_CHARACTER_SET].value))
        return self._parent._encodings() if self._parent else ["iso8859"]


def numbers_from_text(text: str) -> tuple[int | float, ...]:
    """Return the numbers of a DS or IS value field; empty values are left out. Raises ValueError."""
    return tuple(_number(part) for value in text.split("\\") if (part := value.strip(" \0")))


def texts_from_text(text: str) -> tuple[str, ...]:
    """Return the values of a text: trimmed, printable, bounded in number and length; empty ones are left out."""
    values = (_printable(value.strip(" \0")) for value in text.split("\\"))
    return tuple(value for value in values if value)[:MAX_VALUES]


def time_from_text(text: str) -> str:
    """Return a DICOM time as "hh:mm:ss[.ffffff]"; ValueError when it is none or ends at the hour."""
    match = _TIME.fullmatch(text.strip().replace(":", ""))
    if match is None or match[2] is None:
        raise ValueError("no time of the form hhmm[ss[.ffffff]]")
    hours, minutes, seconds, fraction = match.groups()
    time(int(hours), int(minutes), min(int(seconds or 0), 59))  # 60 is a leap second, in DICOM as in FHIR
    return f"{hours}:{minutes}:{seconds or '00'}" + (f".{fraction}" if fraction and seconds else "")


def date_from_text(text: str) -> str:
    """Return a DICOM date as "YYYY-MM-DD"; ValueError when it is none."""
    match = _DATE.fullmatch(text.strip())
    if match is None:
        raise ValueError("no date of the form YYYYMMDD")
    return date(int(match[1]), int(match[2]), int(match[3])).isoformat()


def datetime_from_text(text: str, zone: str = "") -> str:
    """Return a DICOM date-time in ISO 8601, as exact as given; `zone` ("+0100") is used where it names none itself.

    Without minutes it is a date. Raises ValueError when it is no date-time.
    """
    match = _DATETIME.fullmatch(text.strip())
    if match is None:
        raise ValueError("no date-time of the form YYYY[MM[DD[hh[mm[ss[.ffffff]]]]]][+hhmm]")
    year, month, day, hours, minutes, seconds, fraction, own_zone = match.groups()
    date(int(year), int(month or 1), int(day or 1))
    parts = "-".join(part for part in (year, month, day) if part)
    if minutes is None:
        return parts
    clock = time_from_text(hours + minutes + (seconds or "") + (f".{fraction}" if fraction else ""))
    zone = own_zone or zone
    return f"{parts}T{clock}" + (f"{zone[:3]}:{zone[3:]}" if _ZONE.fullmatch(zone) else "")


def code_from_item(item: Reader) -> Coded | None:
    """Return the code of an item of a code sequence (PS3.3 8.8); None when it has neither code nor meaning.

    SNOMED-RT codes come back as the SNOMED CT codes that PS3.16 replaced them with.
    """
    code = next((text for tag in _CODE_VALUES if (text := item.text(tag))), "")
    designator = item.text(_CODING_SCHEME_DESIGNATOR)
    meaning = _printable(item.text(_CODE_MEANING))
    if not (code or meaning):
        return None
    if designator in _SNOMED_RT and (concept := _snomed_ct().get(code)):
        return Coded(SCT, concept, meaning)
    return Coded(_SYSTEMS.get(designator, ""), " ".join(_printable(code).split()), meaning)


@lru_cache(maxsize=1)
def _snomed_ct() -> dict[str, str]:
    # Imported late: 20,000 lines of tables that few processes need.
    from pydicom.sr._snomed_dict import mapping

    return mapping["SRT"]


def _number(text: str) -> int | float:
    """Return a number; whole numbers of text without point or exponent are int. ValueError unless it is finite."""
    if "_" in text:  # Python would read 1_000
        raise ValueError("no number")
    try:
        value: int | float = int(text)
    except ValueError:
        value = float(text)
    return value


def _plain(vr: str, numbers: tuple[int | float, ...]) -> tuple[int | float, ...]:
    """Return the decimals that were meant: single precision as its shortest decimal, double precision in 15 digits."""
    if vr == "FL":
        return tuple(float(str(np.float32(number))) for number in numbers)
    if vr == "FD":
        return tuple(float(f"{number:.15g}") for number in numbers)
    return numbers


def check_number(number: int | float) -> int | float:
    """Return the number; ValueError unless it is finite and, if whole, of 64 bits."""
    if not isfinite(number) or (isinstance(number, int) and not -_INT64 <= number < _INT64):
        raise ValueError("not a finite number of 64 bits")
    return number


def _printable(text: str) -> str:
    if not text.isprintable():
        text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
