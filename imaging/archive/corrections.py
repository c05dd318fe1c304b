"""What was decided about attributes of a study: corrections, and that one does not hold any more.

* `corrections`  `_id` Study Instance UID; all decisions, in order; whether what follows from the last one is still to
                 be done

A decision is one write, and from then on it holds for all images of the study, those that come later too. They outlive
the images: a study that was deleted and sent again is corrected as before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from pymongo import ASCENDING, IndexModel
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError
from pymongo.write_concern import WriteConcern

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


class Decisions:
    """The decisions of one database."""

    def __init__(self, database: Database[Any]) -> None:
        self._rows = database.get_collection(COLLECTION, write_concern=WriteConcern("majority", j=True))

    def ensure_indexes(self) -> None:
        """Create the index; one that exists is left alone."""
        only = {"open": True}
        self._rows.create_indexes([IndexModel([("open", ASCENDING)], name="open", partialFilterExpression=only)])

    def of(self, study_uid: str) -> History | None:
        """Return what was decided about a study, None where nothing was."""
        row = self._rows.find_one({"_id": study_uid})
        return _read(row) if row else None

    def in_force(self, study_uid: str) -> Corrections:
        """Return the corrections that hold of a study, in order."""
        found = self.of(study_uid)
        return found.in_force if found else ()

    def version(self, study_uid: str) -> str:
        """Return what changes with every decision about a study, "" where there was none."""
        row = self._rows.find_one({"_id": study_uid}, {"version": {"$size": "$decisions"}})
        return str(row["version"]) if row else ""

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
        wanted: dict[str, Any] = {"_id": study_uid, f"decisions.{number - 1}": {"$exists": False}}
        if number > 1:
            wanted[f"decisions.{number - 2}"] = {"$exists": True}
        change = {"$push": {"decisions": row}, "$set": {"open": True}}
        try:
            done = self._rows.update_one(wanted, change, upsert=number == 1)
            is_first = bool(done.matched_count or done.upserted_id)
        except DuplicateKeyError:
            is_first = False
        found = self.of(study_uid)
        if found is None or not is_first:
            raise AppError(Category.CONFLICT, "another correction was first; look at the study again", where=study_uid)
        return found

    def done(self, history: History) -> None:
        """Keep that everything was written that follows, unless somebody decided again."""
        wanted = {"_id": history.study_uid, f"decisions.{len(history.decisions)}": {"$exists": False}}
        self._rows.update_one(wanted, {"$unset": {"open": ""}})

    def open(self, limit: int) -> list[History]:
        """Return those from which something has still to follow."""
        return [_read(row) for row in self._rows.find({"open": True}).limit(limit)]


class Known:
    """The corrections of the studies that one request touches, each study looked up once."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions
        self._found: dict[str, Corrections] = {}

    def of(self, study_uid: str) -> Corrections:
        """Return the corrections that hold of a study."""
        if study_uid not in self._found:
            self._found[study_uid] = self._decisions.in_force(study_uid)
        return self._found[study_uid]


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
