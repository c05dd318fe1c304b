"""What a study or a series holds, told by an index and by the summaries: cheap however large it is.

A request that streams thousands of instances has to know before the first byte which there are, in which order, and
of which kinds, since what can be given of an instance depends on its kind alone. Rows are read while others go out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pymongo.database import Database
from pymongo.errors import AutoReconnect, CursorNotFound

from imaging.archive.catalogue import (
    FILE_FIELDS,
    INSTANCE_FIELDS,
    READING_ORDER,
    Document,
    Instance,
    instance_from_row,
)
from imaging.archive.corrections import Decisions, Known
from imaging.errors import AppError, Category

KIND_FIELDS: Document = {
    "stored_syntax": 1, "received.syntax": 1, "layout.keyword": 1, "layout.encapsulated": 1, "layout.bits_allocated": 1,
    "has_frames": {"$ne": ["$frames", None]},
}  # fmt: skip
_FIRST, _MOST = 8, 200  # rows in one question: few at first, so that nothing waits for many
_MOST_FILES = 50  # rows that hold what files are made of, up to 256 kB each
_TOGETHER = 1000  # rows in one answer of the database, of up to 16 MB


@dataclass(frozen=True, slots=True)
class Contents:
    """The instances of a study or of one of its series.

    version   changes with every change of the study's instances, and with every correction
    members   (Series, SOP Instance UID) in reading order
    samples   one instance of every kind there is
    """

    version: str
    members: tuple[tuple[str, str], ...]
    samples: tuple[Instance, ...]

    @property
    def sop_uids(self) -> list[str]:
        """SOP Instance UIDs in reading order."""
        return [uid for _, uid in self.members]


def contents(
    database: Database[Any], decisions: Decisions | Known, study_uid: str, series_uid: str | None = None
) -> Contents:
    """Return what is there. Raises NOT_FOUND for nothing."""
    # Before the rows: what is newer than its version is only looked at again.
    study = database.studies.find_one({"_id": study_uid}, {"generation": 1, "marked_at": 1, "sampled": 1}) or {}
    decided = Known(decisions).version(study_uid)
    found = members(database, study_uid, series_uid)
    wanted = {"study": study_uid, **({"_id": series_uid} if series_uid else {})}
    uids: set[str] = set()
    if study and study["generation"] == study.get("sampled"):
        uids = {uid for row in database.series.find(wanted, {"samples": 1}) for uid in row["samples"]}
    if not uids.intersection(uid for _, uid in found):  # images have just come or gone
        uids = set(_samples_of_rows(database, study_uid, series_uid))
    version = f"{study_uid} {study.get('generation', 0)} {study.get('marked_at', '')} {decided}"
    here = [uid for _, uid in found if uid in uids]
    samples = (instance_from_row(row) for row in rows_of(database, here, INSTANCE_FIELDS))
    return Contents(version, tuple(found), tuple(samples))


def members(database: Database[Any], study_uid: str, series_uid: str | None = None) -> list[tuple[str, str]]:
    """Return (Series, SOP Instance UID) in reading order, from the index alone. Raises NOT_FOUND for none."""
    wanted = _of(study_uid, series_uid)
    rows = database.instances.find(wanted, {"series": 1}, sort=READING_ORDER, hint="reading_order", batch_size=10_000)
    found = [(row["series"], row["_id"]) for row in rows]
    if not found:
        raise AppError(Category.NOT_FOUND, "no instances", where=series_uid or study_uid)
    return found


def instances(database: Database[Any], sop_uids: Sequence[str]) -> Iterator[Instance]:
    """Yield the instances with what their files are made of, in the order asked, read as they are taken.

    Raises NOT_FOUND for one that is gone.
    """
    return (instance_from_row(row) for row in rows_of(database, sop_uids, FILE_FIELDS, most=_MOST_FILES))


def rows(database: Database[Any], study_uid: str, series_uid: str | None, fields: Document) -> Iterator[Document]:
    """Yield the rows of a study or series in reading order, read as they are taken. Raises NOT_FOUND for none."""
    wanted = _of(study_uid, series_uid)
    found = database.instances.find(wanted, fields, sort=READING_ORDER, hint="reading_order", batch_size=_TOGETHER)
    first = next(found, None)
    if first is None:
        raise AppError(Category.NOT_FOUND, "no instances", where=series_uid or study_uid)

    def all_rows() -> Iterator[Document]:
        given = {first["_id"]}
        yield first
        try:
            for row in found:
                given.add(row["_id"])
                yield row
        except (CursorNotFound, AutoReconnect):  # whoever takes the rows was slow, or there is another primary
            rest = [uid for _, uid in members(database, study_uid, series_uid) if uid not in given]
            yield from rows_of(database, rest, fields)

    return all_rows()


def rows_of(
    database: Database[Any], sop_uids: Sequence[str], fields: Document, *, most: int = _MOST
) -> Iterator[Document]:
    """Yield rows in the order asked, a growing number at a time. Raises NOT_FOUND for one that is gone."""
    start, size = 0, _FIRST
    while start < len(sop_uids):
        some = sop_uids[start : start + size]
        asked = database.instances.find({"_id": {"$in": list(some)}}, fields, batch_size=len(some) + 1)
        found = {row["_id"]: row for row in asked}
        for uid in some:
            if uid not in found:
                raise AppError(Category.NOT_FOUND, "the instance is not here any more", where=uid)
            yield found[uid]
        start, size = start + size, min(2 * size, most)


def samples(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return one SOP Instance UID for every kind among rows that have `KIND_FIELDS`."""
    found: dict[tuple[Any, ...], str] = {}
    for row in rows:
        layout = row.get("layout") or {}
        pixels = (layout.get("keyword"), layout.get("encapsulated"), layout.get("bits_allocated"), row["has_frames"])
        found.setdefault((row["stored_syntax"], row["received"]["syntax"], *pixels), row["_id"])
    return list(found.values())


def kind_of(instance: Instance) -> tuple[object, ...]:
    """Return what tells the kinds of `samples` apart, of an instance that was read."""
    layout = instance.layout
    pixels = (layout.keyword, layout.encapsulated, layout.bits_allocated) if layout else ()
    syntaxes = instance.stored_transfer_syntax_uid, instance.received_transfer_syntax_uid
    return *syntaxes, *pixels, bool(instance.frames)


def _samples_of_rows(database: Database[Any], study_uid: str, series_uid: str | None) -> list[str]:
    wanted = _of(study_uid, series_uid)
    return samples(database.instances.find(wanted, KIND_FIELDS))


def _of(study_uid: str, series_uid: str | None) -> Document:
    return {"study": study_uid, **({"series": series_uid} if series_uid else {})}
