"""The attributes that QIDO-RS knows at each level, as DICOM JSON (`{tag: {"vr": ..., "Value": [...]}}`).

An operator may add some to each level; `Tables` are the attributes of one server.
Source: PS3.18 tables 10.6.3-3 to 10.6.3-5 (required return attributes) and 10.6.1-5 (required match attributes).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Attributes = dict[str, dict[str, Any]]

SPECIFIC_CHARACTER_SET = "00080005"
INSTANCE_AVAILABILITY = "00080056"
MODALITIES_IN_STUDY = "00080061"
SOP_CLASSES_IN_STUDY = "00080062"
NUMBER_OF_STUDY_RELATED_SERIES = "00201206"
NUMBER_OF_STUDY_RELATED_INSTANCES = "00201208"
NUMBER_OF_SERIES_RELATED_INSTANCES = "00201209"
AVAILABLE_TRANSFER_SYNTAX_UID = "00083002"
STUDY_INSTANCE_UID = "0020000D"
SERIES_INSTANCE_UID = "0020000E"
SOP_INSTANCE_UID = "00080018"
TIMEZONE_OFFSET_FROM_UTC = "00080201"

STUDY = (
    SPECIFIC_CHARACTER_SET,
    "00080020",  # Study Date
    "00080030",  # Study Time
    "00080050",  # Accession Number
    "00080051",  # Issuer of Accession Number Sequence
    "00080090",  # Referring Physician's Name
    TIMEZONE_OFFSET_FROM_UTC,
    "00081030",  # Study Description
    "00081032",  # Procedure Code Sequence
    "00100010",  # Patient's Name
    "00100020",  # Patient ID
    "00100021",  # Issuer of Patient ID
    "00100024",  # Issuer of Patient ID Qualifiers Sequence
    "00100030",  # Patient's Birth Date
    "00100040",  # Patient's Sex
    "00101002",  # Other Patient IDs Sequence
    "00101010",  # Patient's Age
    STUDY_INSTANCE_UID,
    "00200010",  # Study ID
    "00380010",  # Admission ID
)
SERIES = (
    SPECIFIC_CHARACTER_SET,
    "00080021",  # Series Date
    "00080031",  # Series Time
    "00080060",  # Modality
    "00080070",  # Manufacturer
    "00080080",  # Institution Name
    TIMEZONE_OFFSET_FROM_UTC,
    "0008103E",  # Series Description
    "00081010",  # Station Name
    "00081050",  # Performing Physician's Name
    "00081090",  # Manufacturer's Model Name
    "00180015",  # Body Part Examined
    "00181030",  # Protocol Name
    STUDY_INSTANCE_UID,
    SERIES_INSTANCE_UID,
    "00200011",  # Series Number
    "00200060",  # Laterality
    "00400244",  # Performed Procedure Step Start Date
    "00400245",  # Performed Procedure Step Start Time
    "00400275",  # Request Attributes Sequence
)
INSTANCE = (
    SPECIFIC_CHARACTER_SET,
    "00080008",  # Image Type
    "00080016",  # SOP Class UID
    SOP_INSTANCE_UID,
    "00080022",  # Acquisition Date
    "00080023",  # Content Date
    "00080032",  # Acquisition Time
    "00080033",  # Content Time
    TIMEZONE_OFFSET_FROM_UTC,
    STUDY_INSTANCE_UID,
    SERIES_INSTANCE_UID,
    "00200013",  # Instance Number
    "00280008",  # Number of Frames
    "00280010",  # Rows
    "00280011",  # Columns
    "00280100",  # Bits Allocated
    "0040A043",  # Concept Name Code Sequence
    "0040A491",  # Completion Flag
    "0040A493",  # Verification Flag
    "00420010",  # Document Title
    "00700080",  # Content Label
)


@dataclass(frozen=True, slots=True)
class Tables:
    """The tags of the attributes at each level, besides those that are counted."""

    studies: tuple[str, ...] = STUDY
    series: tuple[str, ...] = SERIES
    instances: tuple[str, ...] = INSTANCE

    def __getitem__(self, level: str) -> tuple[str, ...]:
        """Return the tags of "studies", "series" or "instances"."""
        return {"studies": self.studies, "series": self.series, "instances": self.instances}[level]


STANDARD = Tables()


def with_extra(extra: Mapping[str, Iterable[str]]) -> Tables:
    """Return the standard's tables with further tags by level: "studies", "series", "instances"."""
    return Tables(**{level: tuple(dict.fromkeys((*STANDARD[level], *tags))) for level, tags in extra.items()})


def study(
    told: Attributes,
    table: Iterable[str],
    *,
    modalities: Sequence[str],
    sop_classes: Sequence[str],
    series: int,
    instances: int,
) -> Attributes:
    """Return the study level attributes from one instance's metadata and what was counted."""
    return _sorted(
        {
            **_picked(told, table),
            INSTANCE_AVAILABILITY: _value("CS", ["ONLINE"]),
            MODALITIES_IN_STUDY: _value("CS", modalities),
            SOP_CLASSES_IN_STUDY: _value("UI", sop_classes),
            NUMBER_OF_STUDY_RELATED_SERIES: _value("IS", [series]),
            NUMBER_OF_STUDY_RELATED_INSTANCES: _value("IS", [instances]),
        }
    )


def series(told: Attributes, table: Iterable[str], *, instances: int) -> Attributes:
    """Return the series level attributes from one instance's metadata and the number of its instances."""
    counted = {NUMBER_OF_SERIES_RELATED_INSTANCES: _value("IS", [instances])}
    return _sorted({**_picked(told, table), INSTANCE_AVAILABILITY: _value("CS", ["ONLINE"]), **counted})


def instance(told: Attributes, table: Iterable[str], *, transfer_syntaxes: Sequence[str]) -> Attributes:
    """Return the instance level attributes from its metadata."""
    available = {AVAILABLE_TRANSFER_SYNTAX_UID: _value("UI", transfer_syntaxes)}
    return _sorted({**_picked(told, table), INSTANCE_AVAILABILITY: _value("CS", ["ONLINE"]), **available})


def merged(*levels: Attributes) -> Attributes:
    """Return the attributes of several levels as one data set, tags ascending (PS3.18 F.2.2)."""
    together: Attributes = {}
    for level in levels:
        together.update(level)
    return _sorted(together)


def _picked(told: Attributes, tags: Iterable[str]) -> Attributes:
    return {tag: told[tag] for tag in tags if tag in told}


def _value(vr: str, values: Sequence[Any]) -> dict[str, Any]:
    return {"vr": vr, "Value": list(values)} if values else {"vr": vr}


def _sorted(attributes: Attributes) -> Attributes:
    return dict(sorted(attributes.items()))
