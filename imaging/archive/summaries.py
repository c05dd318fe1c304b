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
from pymongo import ReplaceOne
from pymongo.database import Database

from imaging.archive import attributes, keys
from imaging.archive.attributes import Tables
from imaging.archive.catalogue import Document
from imaging.archive.contents import KIND_FIELDS, rows_of, samples
from imaging.blobs import BlobStore
from imaging.conditions import Condition, conditions_from_document, merge
from imaging.dataset import InstanceAttributes, InstanceSummary, Patient, SeriesAttributes, StudyAttributes


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
    """

    patient: Patient
    study: StudyAttributes
    series: tuple[SeriesFacts, ...]
    generation: int
    registered_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    summary: InstanceSummary
    conditions: bytes
    sop_class_uid: str
    registered_by: str
    stored_at: datetime
    kind: Document  # the fields that make its kind


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
        rows = self._rows(study_uid)
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
        self._write_series(study_uid, series)
        self._write_study(study_uid, rows, len(series), generation)
        first = rows[0].summary
        facts = tuple(_series_facts(group, self._conditions(group)) for group in series)
        registered_by = tuple(dict.fromkeys(row.registered_by for row in sorted(rows, key=lambda row: row.stored_at)))
        return StudyFacts(first.patient, first.study, facts, generation, registered_by)

    def _rows(self, study_uid: str) -> list[_Row]:
        fields = {"common": 1, "instance": 1, "conditions": 1, "class": 1, "registered_by": 1, "stored_at": 1}
        fields |= KIND_FIELDS
        commons: dict[bytes, Document] = {}
        rows = []
        for row in self._database.instances.find({"study": study_uid}, fields):
            common = commons.get(row["common"])
            if common is None:
                common = commons[row["common"]] = orjson.loads(row["common"])
            summary = InstanceSummary.from_document({**common, "instance": orjson.loads(row["instance"])})
            conditions = row["conditions"]
            aside = b"".join(self._blobs.read(conditions["blob"])) if isinstance(conditions, dict) else conditions
            kind = {name: row.get(name) for name in ("_id", "stored_syntax", "received", "layout", "has_frames")}
            rows.append(_Row(summary, aside, row["class"], row["registered_by"], row["stored_at"], kind))
        return sorted(rows, key=_order)

    def _conditions(self, group: Sequence[_Row]) -> tuple[Condition, ...]:
        distinct = dict.fromkeys(row.conditions for row in group)
        return merge(conditions_from_document(orjson.loads(each)) for each in distinct)

    def _write_series(self, study_uid: str, series: list[list[_Row]]) -> None:
        changes = []
        for group in series:
            told = self._metadata(group[0])
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

    def _write_study(self, study_uid: str, rows: list[_Row], series: int, generation: int) -> None:
        told = self._metadata(rows[0])
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

    def _metadata(self, row: _Row) -> Document:
        return orjson.loads(next(metadata(self._database, self._blobs, [row.summary.sop_uid]))[1])  # type: ignore[no-any-return]


def metadata(database: Database[Any], blobs: BlobStore, sop_uids: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (SOP Instance UID, DICOM JSON) of each, in the order asked. Raises NOT_FOUND for one that is gone."""
    for row in rows_of(database, list(sop_uids), {"metadata": 1}):
        yield row["_id"], metadata_from_row(row, blobs)


def metadata_from_row(row: Mapping[str, Any], blobs: BlobStore) -> bytes:
    """Return the DICOM JSON that a row holds, or refers to where it is large."""
    value = row["metadata"]
    return zlib.decompress(b"".join(blobs.read(value["blob"])) if isinstance(value, dict) else value)


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
