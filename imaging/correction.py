"""Corrected attributes: what was received stays, and corrections are laid over it whenever it is told or given.

Pure. A correction is of a study, a series or an instance; several are laid on in their order, and each leaves what it
replaced in the Original Attributes Sequence. Source: PS3.3 C.12.1 and C.12.1.1.9.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any, Final

from imaging.attributes import TAGS, InstanceSummary
from imaging.coercion import SYSTEM, original_attributes

Model = Mapping[str, Any]

_ANATOMIC_REGION: Final = "00082218"
_NAME_PARTS: Final = ("Alphabetic", "Ideographic", "Phonetic")


@dataclass(frozen=True, slots=True)
class Correction:
    """One correction that holds.

    number      among all that were decided about the study, from 1
    changes     the corrected attributes by tag, DICOM JSON; one without value is emptied
    code        COERCE or CORRECT: Reason for the Attribute Modification (0400,0565)
    series_uid, sop_uid   of what it is; "" for the whole study, or the whole series
    """

    number: int
    changes: Mapping[str, Any]
    code: str
    at: datetime
    series_uid: str = ""
    sop_uid: str = ""

    def is_of(self, series_uid: str, sop_uid: str) -> bool:
        """Tell whether it is laid over an instance."""
        return self.series_uid in ("", series_uid) and self.sop_uid in ("", sop_uid)


Corrections = Sequence[Correction]
"""Those that hold of a study, in order."""


def replaced(model: Model, corrections: Corrections, series_uid: str, sop_uid: str) -> dict[str, Any]:
    """Return what of a data set corrections change, by tag as it is (DICOM JSON); nothing for a right one."""
    changes = {tag: each for one in corrections if one.is_of(series_uid, sop_uid) for tag, each in one.changes.items()}
    return _different(model, changes)


def corrected(model: Model, corrections: Corrections, series_uid: str, sop_uid: str) -> dict[str, Any]:
    """Return a data set (DICOM JSON, tags ascending) with corrections laid over it.

    Each that changes anything adds an item to the Original Attributes Sequence.
    """
    told = dict(model)
    for one in corrections:
        if not one.is_of(series_uid, sop_uid):
            continue
        was = _different(told, one.changes)
        if was:
            told |= {tag: one.changes[tag] for tag in was}
            told |= original_attributes(told, was, at=one.at, system=SYSTEM, reason=one.code)
    return dict(sorted(told.items()))


def corrected_summary(summary: InstanceSummary, corrections: Corrections) -> InstanceSummary:
    """Return the summary of an instance with corrections laid over it."""
    for one in corrections:
        if one.is_of(summary.series_uid, summary.sop_uid):
            levels = {name: _with(getattr(summary, name), one.changes) for name in ("patient", "study", "series")}
            summary = replace(summary, **levels)
    return summary


def _different(model: Model, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return those attributes of the data set that changes would change; an absent one is without value."""
    return {
        tag: model.get(tag, {"vr": change["vr"]})
        for tag, change in changes.items()
        if model.get(tag, {}).get("Value") != change.get("Value")
    }


def _with(level: Any, changes: Mapping[str, Any]) -> Any:
    """Return attributes of one level with the corrected ones among them."""
    texts = {
        field.name: _text(changes[tag])
        for field in fields(level)
        if field.name in TAGS and (tag := f"{TAGS[field.name]:08X}") in changes
    }
    if _ANATOMIC_REGION in changes and hasattr(level, "body_part_code"):
        return replace(level, **texts, body_part_code=None)
    return replace(level, **texts) if texts else level


def _text(element: Mapping[str, Any]) -> str:
    """Return the values of an attribute as the data set has them."""
    return "\\".join(map(_one, element.get("Value", ())))


def _one(value: Any) -> str:
    if isinstance(value, Mapping):
        return "=".join(value.get(part, "") for part in _NAME_PARTS).rstrip("=")
    return "" if value is None else str(value)


def in_force(decisions: Iterable[tuple[Correction, int]]) -> tuple[Correction, ...]:
    """Return the corrections that hold; of each decision the number of the one that it takes back, 0 for none."""
    told = list(decisions)
    gone = {undone for _, undone in told if undone}
    return tuple(one for one, undone in told if not undone and one.number not in gone)
