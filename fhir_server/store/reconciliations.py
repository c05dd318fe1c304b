"""What was decided about whose images are: Patients that are one person, and studies that are another's.

The subjects of the log `reconciliations` are references of Patients and ImagingStudies; beside the decisions stands
whose the images are now. The Patients, the studies and the Provenance follow from a decision.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from pymongo.database import Database

from fhir_server.store.failures import translated
from imaging.archive.decisions import DecisionLog
from imaging.errors import AppError, Category

COLLECTION = "reconciliations"
MOST_DECISIONS = 500  # about one subject; each is kept for ever
_LONGEST_WAY = 50  # from a Patient to the one that it was merged into at last


class Kind(StrEnum):
    """What was decided."""

    MERGE = "merge"
    UNMERGE = "unmerge"
    MOVE = "move"


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision: `to` is the other Patient, `by` the subscriber, `reason` in the words of who decided.

    before      the versions that it found, "Patient/1/_history/2": the subject's, then that of `to`
    was_active  of a Patient that was merged, what it said of that
    result      the Patient that somebody wants `to` to become, b"" where nobody said
    """

    kind: Kind
    to: str
    by: str
    at: datetime
    reason: str
    before: tuple[str, ...]
    was_active: bool | None = None
    result: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What holds of a subject: `to`, whose its images are, "" for its own; `is_open` while something has to follow."""

    subject: str
    to: str
    decisions: tuple[Decision, ...]
    is_open: bool

    @property
    def last(self) -> Decision:
        """The decision that holds."""
        return self.decisions[-1]


class Reconciliations(DecisionLog[Reconciled]):
    """The decisions of one database."""

    def __init__(self, database: Database[Any]) -> None:
        super().__init__(database, COLLECTION, _read)

    def add(self, subject: str, decision: Decision, *, number: int) -> Reconciled:
        """Keep a decision, the `number`th about its subject, from 0, and return what holds now; from now on it does.

        Raises CONFLICT where somebody else decided meanwhile, TOO_LARGE after `MOST_DECISIONS`.
        """
        if number >= MOST_DECISIONS:
            message = f"{MOST_DECISIONS} decisions about one resource are the most that can be kept"
            raise AppError(Category.TOO_LARGE, message, where=subject)
        to = "" if decision.kind is Kind.UNMERGE else decision.to
        return self._append(subject, _document(decision), count=number, to=to)

    def whose(self, study: str, patient: str) -> str:
        """Return whose a study is that would be a patient's by its images; both are references."""
        with translated(study):
            to = self._to(study) or patient
            for _ in range(_LONGEST_WAY):
                if not (following := self._to(to)):
                    break
                to = following
        return to

    def _to(self, subject: str) -> str:
        row = self._rows.find_one({"_id": subject}, {"to": 1})
        return str(row["to"]) if row else ""


def _document(decision: Decision) -> dict[str, Any]:
    names = ("to", "by", "at", "reason", "was_active", "result")
    told = {name: getattr(decision, name) for name in names}
    return {"kind": decision.kind.value, "before": [*decision.before], **told}


def _read(row: Mapping[str, Any]) -> Reconciled:
    return Reconciled(row["_id"], row["to"], tuple(_decisions(row["decisions"])), row.get("open", False))


def _decisions(rows: Iterable[dict[str, Any]]) -> Iterable[Decision]:
    for row in rows:
        yield Decision(**{**row, "kind": Kind(row["kind"]), "before": tuple(row["before"])})
