"""What was decided about attributes of a study: corrections, and that one does not hold any more.

The subjects of the log `corrections` are Study Instance UIDs. A decision holds for all images of the study, those that
come later too. Decisions outlive images: a study that was deleted and sent again is corrected as before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from pymongo.database import Database

from imaging.archive.decisions import DecisionLog
from imaging.correction import Correction, Corrections, in_force
from imaging.errors import AppError, Category

COLLECTION: Final = "corrections"
MOST_DECISIONS: Final = 200  # about one study; each is kept for ever
MOST_BYTES: Final = 1 << 20  # of all corrected values of a study


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision about a study's attributes.

    correction   what it corrects; nothing, where it takes another one back
    undoes       number of the correction that it takes back, 0 for none
    by, reason   who decided, as a reference, and why, in their words
    note         of whoever decides: what was there before, say
    """

    correction: Correction
    undoes: int
    by: str
    reason: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class History:
    """All decisions about a study; `is_open` while something has to follow from the last."""

    study_uid: str
    decisions: tuple[Decided, ...]
    is_open: bool

    @property
    def last(self) -> Decided:
        """The latest decision."""
        return self.decisions[-1]

    @property
    def in_force(self) -> Corrections:
        """The corrections that hold, in order."""
        return in_force((each.correction, each.undoes) for each in self.decisions)


class Decisions(DecisionLog[History]):
    """The decisions of one database."""

    def __init__(self, database: Database[Any]) -> None:
        super().__init__(database, COLLECTION, _read)

    def in_force(self, study_uid: str) -> Corrections:
        """Return the corrections that hold of a study, in order."""
        found = self.of(study_uid)
        return found.in_force if found else ()

    def add(self, study_uid: str, decided: Decided) -> History:
        """Keep a decision, whose number is the next; from now on it holds.

        Raises CONFLICT where somebody else decided meanwhile, TOO_LARGE beyond the bounds.
        """
        row, number = _document(decided), decided.correction.number
        here = self.of(study_uid)
        size = sum(len(orjson.dumps(each.correction.changes)) for each in (here.decisions if here else ()))
        if number > MOST_DECISIONS or size + len(row["changes"]) > MOST_BYTES:
            message = f"at most {MOST_DECISIONS} corrections of at most {MOST_BYTES} bytes are kept of a study"
            raise AppError(Category.TOO_LARGE, message, where=study_uid)
        return self._append(study_uid, row, count=number - 1)


class Known:
    """What is decided about the studies that one answer touches: each is looked up once, and holds throughout."""

    def __init__(self, decisions: "Decisions | Known") -> None:
        self._decisions = decisions
        self._found: dict[str, History | None] = {}

    def of(self, study_uid: str) -> History | None:
        """Return what was decided about a study, None where nothing was."""
        if study_uid not in self._found:
            self._found[study_uid] = self._decisions.of(study_uid)
        return self._found[study_uid]

    def in_force(self, study_uid: str) -> Corrections:
        """Return the corrections that hold of a study, in order."""
        found = self.of(study_uid)
        return found.in_force if found else ()

    def version(self, study_uid: str) -> str:
        """Return what changes with every decision about a study, "" where there was none."""
        found = self.of(study_uid)
        return str(len(found.decisions)) if found else ""


def _document(decided: Decided) -> dict[str, Any]:
    one = decided.correction
    return {
        "number": one.number,
        "changes": orjson.dumps(one.changes),
        "code": one.code,
        "at": one.at,
        "series": one.series_uid,
        "sop": one.sop_uid,
        **{name: getattr(decided, name) for name in ("undoes", "by", "reason", "note")},
    }


def _read(row: Mapping[str, Any]) -> History:
    return History(row["_id"], tuple(map(_decided, row["decisions"])), row.get("open", False))


def _decided(row: Mapping[str, Any]) -> Decided:
    at: datetime = row["at"]
    one = Correction(
        row["number"],
        orjson.loads(row["changes"]),
        row["code"],
        at if at.tzinfo else at.replace(tzinfo=UTC),
        row["series"],
        row["sop"],
    )
    return Decided(one, row["undoes"], row["by"], row["reason"], row["note"])
