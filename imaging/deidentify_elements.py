"""The attributes of an instance after de-identification: removed, emptied, dummied, shifted, or under a pseudonym.

Hides how one action of PS3.15 table E.1-1 is chosen and carried out for each VR, nested items included. The IOD is not
consulted where the table leaves a choice: an empty or dummy value stands wherever one could be required, so that an
instance which was valid stays so; only sequences go as soon as they may.

Stricter than the table, since nobody can say what is in there: attributes that are in no dictionary, opaque bytes
outside of pixels, look-up tables and waveforms, URLs, and long texts (LT, ST, UT) that the table does not name. At the
end every text that is left is searched for the patient's and everybody else's names and numbers.
"""

import hmac
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from hashlib import sha256
from typing import Annotated, Any, Final

from pydicom.datadict import dictionary_has_tag, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from imaging.deidentify_table import RULES, Action, Rule
from imaging.errors import AppError, Category
from imaging.parameters import Says

REMOVED: Final = "REMOVED"
DUMMIES: Final[dict[str, Any]] = {
    # VR    a value that says nothing
    "AS": "000Y", "DA": "19000101", "DT": "19000101000000", "TM": "000000",
    "DS": "0", "IS": "0", "FL": 0.0, "FD": 0.0, "SL": 0, "SS": 0, "SV": 0, "UL": 0, "US": 0, "UV": 0, "AT": 0,
    "OB": b"\0\0", "OW": b"\0\0", "OF": bytes(4), "OL": bytes(4), "OD": bytes(8), "OV": bytes(8), "UN": b"\0\0",
    "UR": "about:blank",
}  # fmt: skip
"""All other VRs are texts that take `REMOVED`."""

_TEXTS: Final = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
_LONG_TEXTS: Final = frozenset({"LT", "ST", "UT"})
_BINARY_GROUPS: Final = frozenset({0x0028, 0x0070, 0x5400, 0x7FE0})
"""Where bytes (OB) are look-up tables, fill patterns, waveforms and pixels."""
_NAMING: Final = re.compile(
    r"SOPClass|TransferSyntax|^(CodingScheme|Context|ContextGroupExtensionCreator)UID$|^Mapping"
)
"""Keywords of UIDs that name kinds of things, not instances."""
_WELL_KNOWN: Final = "1.2.840.10008."
_IDENTIFIERS: Final = frozenset(
    "PatientID OtherPatientIDs IssuerOfPatientID AccessionNumber AdmissionID ServiceEpisodeID PatientBirthDate"  # noqa: SIM905
    " PatientAddress PatientTelephoneNumbers PatientMotherBirthName MedicalRecordLocator InsurancePlanIdentification"
    " InstitutionName InstitutionAddress RequestingService FillerOrderNumberImagingServiceRequest"
    " PlacerOrderNumberImagingServiceRequest".split()
)
_MAX_SHIFT_DAYS: Final = 3650
_TIME_FORM: Final = re.compile(r"(\d{4})[.:-]?(\d\d)?[.:-]?(\d\d)?(\d*(?:\.\d+)?)(?:[+-]\d{4})?")


@dataclass(frozen=True)
class Options:
    """Options of the profile; each of them keeps something, or changes the pixels. Source: PS3.15 E.3."""

    clean_pixels: Annotated[
        bool, Says("burn out the rectangles given; somebody has looked, and nothing else in the pixels identifies")
    ] = False
    modified_dates: Annotated[bool, Says("shift dates by a number of days of each patient's own, not remove them")] = (
        False
    )
    patient_characteristics: Annotated[bool, Says("keep sex, age, size, weight and the like")] = False
    device_identity: Annotated[bool, Says("keep serial numbers and names of devices")] = False
    uids: Annotated[bool, Says("keep all UIDs")] = False


@dataclass(frozen=True, slots=True)
class PrivateElement:
    """A private attribute that somebody has stated to be safe: group (odd), creator, last two digits of the element."""

    group: int
    creator: str
    offset: int

    @classmethod
    def from_text(cls, text: str) -> "PrivateElement":
        """Read `0043,39,GEMS_PARM_01`: group and offset in hexadecimal, creator. Raises INVALID."""
        found = re.fullmatch(r"([0-9A-Fa-f]{3}[13579BDFbdf]),([0-9A-Fa-f]{2}),(.{1,64})", text)
        if not found:
            raise AppError(Category.INVALID, "group,offset,creator expected, as in 0043,39,GEMS_PARM_01")
        return cls(int(found[1], 16), found[3].strip(), int(found[2], 16))


@dataclass(frozen=True)
class Pseudonyms:
    """What takes the place of identities: the same for the same key, unlinkable without it (HMAC-SHA256).

    patient  what tells the patient from all others, see `Pseudonyms.of`
    """

    key: bytes
    patient: str

    @classmethod
    def of(cls, ds: Dataset, key: bytes) -> "Pseudonyms":
        """Return those for an instance. Its patient is known by Issuer and Patient ID, else by the study alone."""
        issuer, number = (str(ds.get(keyword) or "").strip() for keyword in ("IssuerOfPatientID", "PatientID"))
        return cls(key, f"{issuer}\n{number}" if number else f"study\n{ds.get('StudyInstanceUID', '')}")

    def uid(self, original: str) -> str:
        """Return the UID that stands for another one in all instances (PS3.5 B.2)."""
        number = int.from_bytes(self._digest("uid", original)[:16])
        # Version 8 and variant of RFC 9562: a UUID made by rules of our own.
        number = number & ~(0xF << 76) & ~(0x3 << 62) | 8 << 76 | 2 << 62
        return f"2.25.{number}"

    @cached_property
    def patient_id(self) -> str:
        """Patient ID and name of the patient: 16 hexadecimal digits."""
        return self._digest("patient", self.patient)[:8].hex().upper()

    @cached_property
    def shift(self) -> timedelta:
        """By how much dates of this patient go back: from 1 to 3650 whole days, so that times of day stay."""
        return timedelta(days=-1 - int.from_bytes(self._digest("shift", self.patient)[:8]) % _MAX_SHIFT_DAYS)

    def _digest(self, purpose: str, value: str) -> bytes:
        return hmac.digest(self.key, f"{purpose}\n{value}".encode(), sha256)


class Cleaner:
    """Cleans one dataset, items and all, in place."""

    def __init__(
        self, ds: Dataset, pseudonyms: Pseudonyms, options: Options, safe_private: Sequence[PrivateElement]
    ) -> None:
        self._ds = ds
        self._pseudonyms = pseudonyms
        self._options = options
        self._safe = frozenset(safe_private)
        self._identities = _pattern(set(_identities(ds)))

    def clean(self) -> None:
        """Carry out the table, then replace the texts that still hold an identity."""
        self._clean(self._ds, is_dummy=False)
        self._ds.PatientID = self._ds.PatientName = self._pseudonyms.patient_id
        if self._identities is not None:
            self._replace_identities(self._ds, self._identities)

    def _clean(self, ds: Dataset, *, is_dummy: bool) -> None:
        safe = self._safe_tags(ds)
        for tag in list(ds.keys()):
            if tag in safe:
                continue
            if tag.is_private or not tag.element or _is_repeating(tag) or not dictionary_has_tag(tag):
                del ds[tag]
                continue
            element = ds[tag]
            rule = _rule(tag, element.VR)
            if rule is None or self._is_kept(rule):
                self._keep(ds, element, is_dummy=is_dummy)
            else:
                self._apply(ds, element, rule)

    def _safe_tags(self, ds: Dataset) -> set[BaseTag]:
        """Return the private elements that are stated to be safe, with their creators; sequences never are."""
        safe = set()
        for tag in [tag for tag in ds.keys() if tag.is_private and 0x10 <= tag.element <= 0xFF] if self._safe else ():  # noqa: SIM118
            creator = str(ds[tag].value).strip()
            for each in self._safe:
                at = BaseTag(tag.group << 16 | tag.element << 8 | each.offset)
                if (each.group, each.creator) == (tag.group, creator) and at in ds and ds[at].VR not in ("SQ", "UN"):
                    safe |= {tag, at}
        return safe

    def _is_kept(self, rule: Rule) -> bool:
        options = self._options
        return (
            (rule.is_patient and options.patient_characteristics)
            or (rule.is_device and options.device_identity)
            or (rule.is_uid and options.uids)
        )

    def _keep(self, ds: Dataset, element: DataElement, *, is_dummy: bool) -> None:
        """Keep an element that is not in the table, or spared; of dummy items nothing is kept but their form."""
        if element.VR == "SQ":
            for item in element.value:
                self._clean(item, is_dummy=is_dummy)
        elif is_dummy and element.VR != "CS" and not _is_naming(element):
            self._dummy(element)

    def _apply(self, ds: Dataset, element: DataElement, rule: Rule) -> None:
        if element.VR == "SQ":
            self._apply_to_items(ds, element, rule.action)
        elif rule.action is Action.UID:
            self._replace_uids(element)
        elif rule.is_time and self._options.modified_dates and self._shifted(element):
            pass
        elif rule.action is Action.REMOVE:
            del ds[element.tag]
        elif rule.action in (Action.EMPTY, Action.REMOVE_OR_EMPTY):
            element.value = None
        else:
            self._dummy(element)

    def _apply_to_items(self, ds: Dataset, element: DataElement, action: Action) -> None:
        if action in (Action.REMOVE, Action.REMOVE_OR_DUMMY, Action.REMOVE_OR_EMPTY_OR_DUMMY):
            del ds[element.tag]
        elif action in (Action.EMPTY, Action.REMOVE_OR_EMPTY):
            element.value = []
        else:
            for item in element.value:
                self._clean(item, is_dummy=action is Action.DUMMY)

    def _replace_uids(self, element: DataElement) -> None:
        values = [value if value.startswith(_WELL_KNOWN) else self._pseudonyms.uid(value) for value in _texts(element)]
        element.value = values[0] if len(values) == 1 else values or None

    def _dummy(self, element: DataElement) -> None:
        if element.is_empty:
            return
        if element.VR == "UI":
            self._replace_uids(element)
            return
        value = DUMMIES.get(element.VR, REMOVED)
        element.value = [value] * element.VM if element.VM > 1 and not isinstance(value, bytes) else value

    def _shifted(self, element: DataElement) -> bool:
        """Shift dates and times; False where that cannot be done."""
        if element.VR == "TM":
            return True
        if element.VR not in ("DA", "DT"):
            return False
        shifted = [shifted_date(text, self._pseudonyms.shift) for text in _texts(element)]
        if None in shifted:
            return False
        element.value = shifted[0] if len(shifted) == 1 else shifted or None
        return True

    def _replace_identities(self, ds: Dataset, pattern: re.Pattern[str]) -> None:
        for element in ds:
            if element.VR == "SQ":
                for item in element.value:
                    self._replace_identities(item, pattern)
            elif element.VR in _TEXTS and any(pattern.search(text) for text in _texts(element)):
                self._dummy(element)


def shifted_date(text: str, shift: timedelta) -> str | None:
    """Return a DA or DT value moved by whole days, as precise as it was, without its zone; None for what is no date.

    A year or month alone is moved from its first day.
    """
    found = _TIME_FORM.fullmatch(text.strip())
    if not found:
        return None
    year, month, day, rest = found.groups()
    try:
        moved = date(int(year), int(month or 1), int(day or 1)) + shift
    except (ValueError, OverflowError):
        return None
    return moved.strftime("%Y%m%d")[: 8 if day else 6 if month else 4].zfill(4) + rest


def _rule(tag: BaseTag, vr: str) -> Rule | None:
    """Return the row of the table, or what holds for attributes that it does not name; None to keep."""
    rule = RULES.get(tag)
    if rule is not None:
        return rule
    keyword = keyword_for_tag(tag)
    action, is_time = None, vr in ("DA", "DT", "TM")
    if is_time or vr == "PN":
        action = Action.EMPTY
    elif vr == "UI" and not _NAMING.search(keyword):
        return Rule(Action.UID, False, False, False, True, keyword)
    elif vr == "UN" or vr == "UR" or (vr == "OB" and tag.group not in _BINARY_GROUPS):
        action = Action.REMOVE
    elif vr in _LONG_TEXTS:
        action = Action.DUMMY
    return None if action is None else Rule(action, is_time, False, False, False, keyword)


def _is_repeating(tag: BaseTag) -> bool:
    """Tell whether a tag belongs to curves (50xx) or overlays (60xx), which are removed as a whole."""
    return tag.group >> 8 in (0x50, 0x60)


def _is_naming(element: DataElement) -> bool:
    return element.VR == "UI" and bool(_NAMING.search(element.keyword))


def _texts(element: DataElement) -> list[str]:
    values = element.value if element.VM > 1 else [element.value]
    return [str(value) for value in values if value is not None and str(value)]


def _identities(ds: Dataset) -> Iterator[str]:
    """Yield words and numbers that name somebody: of names three letters or more, of numbers four characters."""
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                yield from _identities(item)
        elif element.VR == "PN":
            for text in _texts(element):
                yield from (word for word in re.split(r"[\^=\s,]+", text) if len(word) > 2 or not word.isascii())
        elif element.keyword in _IDENTIFIERS:
            yield from (text.strip() for text in _texts(element) if len(text.strip()) > 3)


def _pattern(identities: set[str]) -> re.Pattern[str] | None:
    """Return what finds any of them: short ones as whole words, others anywhere; in capitals or not."""
    words = (
        re.escape(word) if len(word) > 5 else rf"(?<!\w){re.escape(word)}(?!\w)" for word in sorted(identities) if word
    )
    joined = "|".join(words)
    return re.compile(joined, re.IGNORECASE) if joined else None
