"""The attributes that may be corrected once an instance is here, and what a corrected value may look like.

What identifies an instance, what describes its pixels, and what says where they lie in space or how they were measured
is not among them: who changes that makes another image. Sources: PS3.3 C.7.1 to C.7.6, PS3.5 section 6.2.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from pydicom import config as pydicom_config
from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword
from pydicom.valuerep import validate_value

from imaging.dataset_from_model import elements
from imaging.errors import AppError, Category

MOST_CHARACTERS: Final = 10_240  # of one value: the longest that a VR here may have (LT)
_ENUMERATED: Final[Mapping[str, frozenset[str]]] = {
    "PatientSex": frozenset("MFO"),  # PS3.3 C.7.1.1
    "Laterality": frozenset("RL"),  # C.7.3.1
    "ImageLaterality": frozenset("RLUB"),  # C.7.6.16.2.8 and others
}
_NAME_PARTS: Final = ("Alphabetic", "Ideographic", "Phonetic")
_SINGLE_TEXT_VRS: Final = frozenset({"LT", "ST", "UT"})


class Level(StrEnum):
    """To what an attribute belongs, and what is hence corrected as one."""

    STUDY = "study"
    SERIES = "series"
    INSTANCE = "instance"


@dataclass(frozen=True, slots=True)
class Correctable:
    """An attribute that may be corrected; `clears` names what would contradict it and is emptied with it."""

    keyword: str
    level: Level
    clears: str = ""

    @property
    def tag(self) -> str:
        """The tag, "GGGGEEEE"."""
        return _tag(self.keyword)

    @property
    def vr(self) -> str:
        """The value representation."""
        return dictionary_VR(self.keyword)


def _rows(level: Level, keywords: str, clears: Mapping[str, str] | None = None) -> list[Correctable]:
    return [Correctable(keyword, level, (clears or {}).get(keyword, "")) for keyword in keywords.split()]


CORRECTABLE: Final[Mapping[str, Correctable]] = {
    each.keyword: each
    for each in (
        *_rows(
            Level.STUDY,
            "PatientName PatientID IssuerOfPatientID PatientBirthDate PatientBirthTime PatientSex PatientAge"
            " EthnicGroup PatientComments StudyDate StudyTime AccessionNumber StudyID StudyDescription"
            " ReferringPhysicianName NameOfPhysiciansReadingStudy AdmissionID RequestingPhysician",
            {"IssuerOfPatientID": "IssuerOfPatientIDQualifiersSequence"},
        ),
        *_rows(
            Level.SERIES,
            "SeriesDescription SeriesDate SeriesTime BodyPartExamined Laterality ProtocolName"
            " PerformingPhysicianName OperatorsName InstitutionName InstitutionalDepartmentName StationName",
            {"BodyPartExamined": "AnatomicRegionSequence"},
        ),
        *_rows(Level.INSTANCE, "ContentDate ContentTime AcquisitionDate ImageComments ImageLaterality"),
    )
}
"""By keyword. What is of the study is corrected for all of it; the rest for all of it, a series, or an instance."""


def changes_of(values: Mapping[str, Sequence[str]], level: Level) -> dict[str, Any]:
    """Return corrected values as DICOM JSON by tag.

    values   by keyword, as text: none for an empty attribute, several for one with several values
    level    of what is corrected
    Raises INVALID for an attribute that may not be corrected, or not there, and for a value that its VR does not allow;
    neither names a value.
    """
    changes: dict[str, Any] = {}
    for keyword, texts in values.items():
        row = CORRECTABLE.get(keyword)
        if row is None:
            message = f"this attribute cannot be corrected; these can: {', '.join(CORRECTABLE)}"
            raise AppError(Category.INVALID, message, where=keyword[:64])
        if row.level is Level.STUDY and level is not Level.STUDY:
            message = "this attribute is of the whole study: correct it without naming a series or an instance"
            raise AppError(Category.INVALID, message, where=keyword)
        if row.level is Level.INSTANCE or level is not Level.INSTANCE:
            changes[row.tag] = _element(row, texts)
        else:
            message = "this attribute is of a whole series: name the series, and no instance"
            raise AppError(Category.INVALID, message, where=keyword)
    cleared = {_tag(row.clears): "SQ" for row in map(CORRECTABLE.__getitem__, values) if row.clears}
    return {**{tag: {"vr": vr} for tag, vr in cleared.items()}, **changes}


def _element(row: Correctable, texts: Sequence[str]) -> dict[str, Any]:
    several = dictionary_VM(row.keyword) != "1"
    if len(texts) > 1 and not several:
        raise AppError(Category.INVALID, "this attribute has one value", where=row.keyword)
    given = [text.strip(" ") for text in texts]
    for text in given:
        _check(row, text)
    if not any(given):
        return {"vr": row.vr}
    element = {"vr": row.vr, "Value": [_value(row.vr, text) for text in given]}
    list(elements({row.tag: element}, _no_bulk))  # refuses what cannot be written
    return element


def _check(row: Correctable, text: str) -> None:
    """Raise INVALID unless the text may be a value. Source: PS3.5 table 6.2-1, as pydicom knows it."""
    is_plain = text.isprintable() or row.vr in ("LT", "ST", "UT")
    has_separator = "\\" in text and row.vr not in _SINGLE_TEXT_VRS
    try:
        if not is_plain or has_separator or len(text) > MOST_CHARACTERS:
            raise ValueError(row.vr)
        if text and text not in _ENUMERATED.get(row.keyword, {text}):
            raise ValueError(row.vr)
        validate_value(row.vr, text, pydicom_config.RAISE)
    except ValueError:
        message = f"this is no value of {row.keyword}, whose value representation is {row.vr} (PS3.5 6.2)"
        raise AppError(Category.INVALID, message, where=row.keyword) from None


def _value(vr: str, text: str) -> Any:
    if vr != "PN":
        return text or None
    parts = dict(zip(_NAME_PARTS, text.split("="), strict=False))
    return {name: part for name, part in parts.items() if part} or None


def _tag(keyword: str) -> str:
    return f"{tag_for_keyword(keyword):08X}"


def _no_bulk(uri: str) -> bytes:
    raise AppError(Category.INVALID, "no bulk data here", where=uri[:64])


def keywords_of(tags: Iterable[str]) -> list[str]:
    """Return the keywords of those of the tags that may be corrected."""
    by_tag = {row.tag: row.keyword for row in CORRECTABLE.values()}
    return [by_tag[tag] for tag in tags if tag in by_tag]
