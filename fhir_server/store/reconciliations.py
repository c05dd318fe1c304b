"""What was decided about whose images are: Patients that are one person, and studies that are another's.

* `reconciliations`  `_id` reference of the Patient or ImagingStudy; whose its images are now; all decisions, in order;
                     whether what follows from the last one is still to be done

A decision is one write. The Patients, the studies and the Provenance follow from it and can be written again.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from pymongo import ASCENDING, IndexModel
from pymongo.database import Database
from pymongo.write_concern import WriteConcern

from fhir_server.store.failures import translated
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


class Reconciliations:
    """The decisions of one database."""

    def __init__(self, database: Database[Any]) -> None:
        self._rows = database.get_collection(COLLECTION, write_concern=WriteConcern("majority", j=True))

    def ensure_indexes(self) -> None:
        """Create the indexes; those that exist are left alone."""
        only = {"open": True}
        self._rows.create_indexes([IndexModel([("open", ASCENDING)], name="open", partialFilterExpression=only)])

    def of(self, subject: str) -> Reconciled | None:
        """Return what was decided about `Patient/...` or `ImagingStudy/...`, None where nothing was."""
        with translated(subject):
            row = self._rows.find_one({"_id": subject})
        return _read(row) if row else None

    def add(self, subject: str, decision: Decision, *, number: int) -> Reconciled:
        """Keep a decision, the `number`th about its subject, from 0, and return what holds now; from now on it does.

        Raises CONFLICT where somebody else decided meanwhile, TOO_LARGE after `MOST_DECISIONS`.
        """
        if number >= MOST_DECISIONS:
            message = f"{MOST_DECISIONS} decisions about one resource are the most that can be kept"
            raise AppError(Category.TOO_LARGE, message, where=subject)
        to = "" if decision.kind is Kind.UNMERGE else decision.to
        change = {"$push": {"decisions": _document(decision)}, "$set": {"to": to, "open": True}}
        wanted = {"_id": subject, f"decisions.{number}": {"$exists": False}}
        if number:
            wanted[f"decisions.{number - 1}"] = {"$exists": True}
        with translated(subject):
            done = self._rows.update_one(wanted, change, upsert=not number)
        if not (done.matched_count or done.upserted_id):
            raise AppError(Category.CONFLICT, "another writer was first", where=subject)
        found = self.of(subject)
        assert found is not None  # noqa: S101 -- it was just written, and nothing takes it away
        return found

    def done(self, reconciled: Reconciled) -> None:
        """Keep that everything was written that follows, unless somebody decided again."""
        wanted = {"_id": reconciled.subject, f"decisions.{len(reconciled.decisions)}": {"$exists": False}}
        with translated(reconciled.subject):
            self._rows.update_one(wanted, {"$unset": {"open": ""}})

    def open(self, limit: int) -> list[Reconciled]:
        """Return those from which something has still to follow."""
        with translated(COLLECTION):
            return [_read(row) for row in self._rows.find({"open": True}).limit(limit)]

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


def _read(row: dict[str, Any]) -> Reconciled:
    return Reconciled(row["_id"], row["to"], tuple(_decisions(row["decisions"])), row.get("open", False))


def _decisions(rows: Iterable[dict[str, Any]]) -> Iterable[Decision]:
    for row in rows:
        yield Decision(**{**row, "kind": Kind(row["kind"]), "before": tuple(row["before"])})
