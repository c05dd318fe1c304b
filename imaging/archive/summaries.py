"""Summaries of series and studies, derived from instance rows and never the only copy of anything.

`summarise` reads a study's rows once, refreshes its `series` and `studies` documents (what QIDO-RS searches) and
returns the facts that a projection needs. It is called for one study at a time under the caller's lease.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from pymongo import ReplaceOne, UpdateOne
from pymongo.database import Database

from imaging.archive import attributes, keys
from imaging.archive.attributes import Tables
from imaging.archive.catalogue import Document, instance_index
from imaging.archive.contents import KIND_FIELDS, rows_of, samples
from imaging.archive.corrections import Decisions, Known
from imaging.blobs import BlobStore
from imaging.conditions import Condition, conditions_from_document, merge
from imaging.correction import Corrections, corrected, corrected_summary
from imaging.dataset import InstanceAttributes, InstanceSummary, Patient, SeriesAttributes, StudyAttributes

METADATA_FIELDS = {"metadata": 1, "study": 1, "series": 1}
_ROW_FIELDS = KIND_FIELDS | dict.fromkeys(
    ("common", "instance", "conditions", "class", "registered_by", "stored_at", "flags", "corrected"), 1
)
_INDEXED = 200  # instances whose search fields are written anew together


@dataclass(frozen=True, slots=True)
class SeriesFacts:
    """A series: what its first instance says of it, its instances in order, its imaging conditions merged."""

    series: SeriesAttributes
    instances: tuple[InstanceAttributes, ...]
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """A study at one generation. Patient and study attributes are those of its first instance in reading order.

    registered_by   references of the subscribers that sent its instances, who came first first
    flagged         instances that were let in with remarks, each with the names of these
    patients        all who are named by instances that were flagged or by the others, each once
    """

    patient: Patient
    study: StudyAttributes
    series: tuple[SeriesFacts, ...]
    generation: int
    registered_by: tuple[str, ...]
    flagged: tuple[tuple[InstanceSummary, tuple[str, ...]], ...] = ()
    patients: tuple[Patient, ...] = ()


@dataclass(frozen=True, slots=True)
class _Row:
    summary: InstanceSummary
    conditions: bytes
    sop_class_uid: str
    registered_by: str
    stored_at: datetime
    kind: Document  # the fields that make its kind
    flags: tuple[str, ...] = ()
    shows: str = ""  # the version of the study's corrections that its search fields show


class Summaries:
    """Reads rows, writes `series` and `studies`."""

    def __init__(self, database: Database[Document], blobs: BlobStore, tables: Tables) -> None:
        self._database = database
        self._blobs = blobs
        self._tables = tables

    def summarise(self, study_uid: str) -> StudyFacts | None:
        """Refresh the study's summaries and return its facts; None (and no summaries) when no instance is left."""
        study = self._database.studies.find_one({"_id": study_uid}, {"generation": 1})
        generation = study["generation"] if study else 0
        known = Known(Decisions(self._database))
        version = known.version(study_uid)
        rows = self._rows(study_uid, known.in_force(study_uid))
        if not rows:
            self._database.series.delete_many({"study": study_uid})
            self._database.studies.update_one(
                {"_id": study_uid}, {"$unset": dict.fromkeys((*keys.FIELDS, "attributes"), "")}
            )
            return None
        by_series: dict[str, list[_Row]] = {}
        for row in rows:
            by_series.setdefault(row.summary.series_uid, []).append(row)
        series = list(by_series.values())
        self._write_instances([row for row in rows if row.shows != version], known, version)
        self._write_series(study_uid, series, known)
        self._write_study(study_uid, rows, len(series), generation, known)
        first = rows[0].summary
        facts = tuple(_series_facts(group, self._conditions(group)) for group in series)
        registered_by = tuple(dict.fromkeys(row.registered_by for row in sorted(rows, key=lambda row: row.stored_at)))
        flagged = tuple((row.summary, row.flags) for row in rows if row.flags)
        patients = tuple(dict.fromkeys(row.summary.patient for row in rows))
        return StudyFacts(first.patient, first.study, facts, generation, registered_by, flagged, patients)

    def _rows(self, study_uid: str, corrections: Corrections) -> list[_Row]:
        commons: dict[bytes, Document] = {}
        rows = []
        for row in self._database.instances.find({"study": study_uid}, _ROW_FIELDS):
            common = commons.get(row["common"])
            if common is None:
                common = commons[row["common"]] = orjson.loads(row["common"])
            summary = InstanceSummary.from_document({**common, "instance": orjson.loads(row["instance"])})
            summary = corrected_summary(summary, corrections) if corrections else summary
            conditions = row["conditions"]
            aside = b"".join(self._blobs.read(conditions["blob"])) if isinstance(conditions, dict) else conditions
            kind = {name: row.get(name) for name in ("_id", "stored_syntax", "received", "layout", "has_frames")}
            told = tuple(row.get("flags", ())), row.get("corrected", "")
            rows.append(_Row(summary, aside, row["class"], row["registered_by"], row["stored_at"], kind, *told))
        return sorted(rows, key=_order)

    def _conditions(self, group: Sequence[_Row]) -> tuple[Condition, ...]:
        distinct = dict.fromkeys(row.conditions for row in group)
        return merge(conditions_from_document(orjson.loads(each)) for each in distinct)

    def _write_instances(self, rows: list[_Row], known: Known, version: str) -> None:
        """Have rows be found by their corrected attributes."""
        for start in range(0, len(rows), _INDEXED):
            some = {row.summary.sop_uid: row.kind for row in rows[start : start + _INDEXED]}
            changes = []
            for uid, json in metadata(self._database, self._blobs, some, known):
                kind = some[uid]
                syntaxes = list(dict.fromkeys((kind["stored_syntax"], kind["received"]["syntax"])))
                found = instance_index(orjson.loads(json), self._tables, syntaxes)
                changes.append(UpdateOne({"_id": uid}, {"$set": {**found, "corrected": version}}))
            self._database.instances.bulk_write(changes, ordered=False)

    def _write_series(self, study_uid: str, series: list[list[_Row]], known: Known) -> None:
        changes = []
        for group in series:
            told = self._metadata(group[0], known)
            found = attributes.series(told, self._tables.series, instances=len(group))
            uid = group[0].summary.series_uid
            document = {
                "_id": uid,
                "study": study_uid,
                "number": group[0].summary.series.series_number,
                "first": group[0].summary.sop_uid,
                "samples": samples(row.kind for row in group),
                "attributes": orjson.dumps(found),
                **keys.searchable(found, self._tables.series),
            }
            changes.append(ReplaceOne({"_id": uid}, document, upsert=True))
        self._database.series.bulk_write(changes, ordered=False)
        kept = [group[0].summary.series_uid for group in series]
        self._database.series.delete_many({"study": study_uid, "_id": {"$nin": kept}})

    def _write_study(self, study_uid: str, rows: list[_Row], series: int, generation: int, known: Known) -> None:
        told = self._metadata(rows[0], known)
        modalities = sorted({row.summary.series.modality for row in rows if row.summary.series.modality})
        classes = sorted({row.sop_class_uid for row in rows})
        table = self._tables.studies
        found = attributes.study(
            told, table, modalities=modalities, sop_classes=classes, series=series, instances=len(rows)
        )
        searched = keys.searchable(found, table)
        told = {"first": rows[0].summary.sop_uid, "sampled": generation}
        change = {"$set": {"attributes": orjson.dumps(found), **searched, **told}}
        self._database.studies.update_one({"_id": study_uid}, change)

    def _metadata(self, row: _Row, known: Known) -> Document:
        ((_, json),) = metadata(self._database, self._blobs, [row.summary.sop_uid], known)
        return orjson.loads(json)  # type: ignore[no-any-return]


def metadata(
    database: Database[Any], blobs: BlobStore, sop_uids: Iterable[str], known: Known
) -> Iterator[tuple[str, bytes]]:
    """Yield (SOP Instance UID, DICOM JSON) of each as corrected, in the order asked. Raises NOT_FOUND for one gone."""
    for row in rows_of(database, list(sop_uids), METADATA_FIELDS):
        yield row["_id"], metadata_from_row(row, blobs, known)


def metadata_from_row(row: Mapping[str, Any], blobs: BlobStore, known: Known) -> bytes:
    """Return the DICOM JSON that a row holds, or refers to where it is large, as corrected."""
    value = row["metadata"]
    told = zlib.decompress(b"".join(blobs.read(value["blob"])) if isinstance(value, dict) else value)
    if not (corrections := known.in_force(row["study"])):
        return told
    return orjson.dumps(corrected(orjson.loads(told), corrections, row["series"], row["_id"]))


def order(series_number: int | None, series_uid: str, instance_number: int | None, sop_uid: str) -> tuple[Any, ...]:
    """Return the key that puts instances in reading order: by number, those without one first, UIDs breaking ties."""
    return (
        series_number is not None, series_number or 0, series_uid,
        instance_number is not None, instance_number or 0, sop_uid,
    )  # fmt: skip


def _order(row: _Row) -> tuple[Any, ...]:
    summary = row.summary
    series, instance = summary.series, summary.instance
    return order(series.series_number, summary.series_uid, instance.instance_number, summary.sop_uid)


def _series_facts(group: Sequence[_Row], conditions: tuple[Condition, ...]) -> SeriesFacts:
    return SeriesFacts(group[0].summary.series, tuple(row.summary.instance for row in group), conditions)
