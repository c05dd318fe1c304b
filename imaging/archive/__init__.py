"""The archive: keeps DICOM instances as standard JPEG 2000 Part 10 files and hands back instances and frames.

One class hides parsing, lossless encoding and its proof, blobs, rows, summaries, search and upkeep. Instances are the
facts; series and study summaries follow from them. Who may see a study is the caller's business.
"""

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo.database import Database

from imaging.archive import catalogue, contents, query, trash, upkeep, verification
from imaging.archive.attributes import STANDARD, Tables, with_extra
from imaging.archive.catalogue import (
    FILE_FIELDS,
    INSTANCE_FIELDS,
    Arrival,
    Brought,
    Document,
    Instance,
    instance_from_row,
)
from imaging.archive.contents import Contents
from imaging.archive.corrections import Decisions, Known
from imaging.archive.files import RECEIVED, STORED, Files, size_of_file
from imaging.archive.frames import Frames
from imaging.archive.ingest import (
    Admit,
    Incoming,
    Ingest,
    Made,
    Outcome,
    Refused,
    Remark,
    Stored,
    mark_arrivals,
    mark_studies,
)
from imaging.archive.query import Result
from imaging.archive.summaries import (
    METADATA_FIELDS,
    SeriesFacts,
    StudyFacts,
    Summaries,
    metadata,
    metadata_from_row,
    order,
)
from imaging.archive.trash import Deleted
from imaging.archive.upkeep import Swept
from imaging.archive.verification import Finding
from imaging.blobs import BlobStore, Buffer
from imaging.codecs import Decoded
from imaging.correction import corrected_summary
from imaging.dataset import InstanceSummary, Limits, Patient, read
from imaging.dicom_json import bulkdata
from imaging.dicomweb import Matching
from imaging.errors import AppError, Category

__all__ = [
    "RECEIVED", "STORED", "Archive", "Arrival", "Brought", "Contents", "Deleted", "Finding", "Incoming", "Instance",
    "Made", "Outcome", "Refused", "Remark", "Result", "SeriesFacts", "Stored", "StudyFacts", "Swept",
    "size_of_file", "with_extra",
]  # fmt: skip

_LOOKED_UP = 10_000  # UIDs in one question


class Archive:
    """The instances of one database.

    `codec` is "htj2k" or "j2k"; `encode_threads` bounds the processors that encoding and decoding may take; `tables`
    are the attributes by which studies, series and instances are found.
    """

    def __init__(
        self,
        database: Database[Document],
        blobs: BlobStore,
        *,
        clock: Callable[[], datetime],
        codec: str = "htj2k",
        encode_threads: int | None = None,
        limits: Limits | None = None,
        tables: Tables = STANDARD,
    ) -> None:
        self._database = database
        self.decisions = Decisions(database)
        """What was decided about attributes; everything that is told or given is as corrected, but received files."""
        self._blobs = blobs
        self._clock = clock
        self._limits = limits or Limits()
        self._tables = tables
        threads = encode_threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(threads, "archive-file")
        # Its own pool: a file's thread waits for its frames, and must not wait for itself.
        self._frame_pool = ThreadPoolExecutor(threads, "archive-frame")
        self._told: Decisions | Known = self.decisions
        self._files = Files(database, blobs, self._told, pool=self._pool, frame_pool=self._frame_pool)
        self._frames = Frames(blobs)
        self._ingest = Ingest(
            database,
            blobs,
            codec=codec,
            pool=self._pool,
            frame_pool=self._frame_pool,
            clock=clock,
            limits=self._limits,
            tables=tables,
            received=self._files.received,
        )
        self._summaries = Summaries(database, blobs, tables)

    def ensure_indexes(self) -> None:
        """Create what collections and indexes are missing."""
        catalogue.ensure_indexes(self._database)
        self.decisions.ensure_indexes()
        self._blobs.prepare()

    def for_one_answer(self) -> "Archive":
        """Return the same archive, which looks up once what is decided about each study: so that holds throughout."""
        other = copy.copy(self)
        known = other._told = Known(self.decisions)
        other._files = self._files.knowing(known)
        return other

    def close(self) -> None:
        """Wait for running codec work and end its threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._frame_pool.shutdown(wait=True, cancel_futures=True)

    # ---- in

    def store_all(
        self, parts: Iterable[Incoming], *, admit: Admit, registered_by: str, brought_by: str = ""
    ) -> Iterator[Outcome]:
        """Yield one outcome for each received file, in order; what is yielded as Stored is durable and verified.

        `admit` sees the summary of each before any work is done; it raises AppError to refuse it, and returns what is
        to be said of it otherwise. The same content
        again is a success that stores nothing; other content under the same SOP Instance UID is a CONFLICT and the
        first stays. `parts` is read as fast as encoding and writing allow, with bounded memory. `brought_by` names the
        order that fetched the parts, "" where they were sent; `brought` tells what came of it.
        """
        return self._ingest.store_all(parts, admit=admit, registered_by=registered_by, brought_by=brought_by)

    def brought(self, by: str) -> Iterator[Brought]:
        """Yield the instances here that an order, `brought_by`, has fetched."""
        for row in self._database.instances.find({"brought_by": by}, {"study": 1, "received.size": 1}):
            yield Brought(row["_id"], row["study"], row["received"]["size"])

    # ---- what is here

    def instance(self, study_uid: str, series_uid: str, sop_uid: str) -> Instance:
        """Return one instance. Raises NOT_FOUND, also when it is of another series or study."""
        return instance_from_row(self._row(study_uid, series_uid, sop_uid, INSTANCE_FIELDS))

    def described(self, study_uid: str, series_uid: str, sop_uid: str) -> tuple[Instance, bytes]:
        """Return one instance and its DICOM JSON; see `instance` and `metadata`."""
        row = self._row(study_uid, series_uid, sop_uid, {**INSTANCE_FIELDS, **METADATA_FIELDS})
        return instance_from_row(row), metadata_from_row(row, self._blobs, Known(self._told))

    def with_file(self, study_uid: str, series_uid: str, sop_uid: str) -> Instance:
        """Return one instance with what its file is made of, which is going to be given; see `instance`."""
        return instance_from_row(self._row(study_uid, series_uid, sop_uid, FILE_FIELDS))

    def instances(self, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None) -> list[Instance]:
        """Return the instances of a study, series or just one, in reading order. Raises NOT_FOUND for none."""
        if series_uid and sop_uid:
            return [self.instance(study_uid, series_uid, sop_uid)]
        rows = self._ordered(study_uid, series_uid, INSTANCE_FIELDS)
        return [instance_from_row(row) for row in rows]

    def chosen(self, *, series: Sequence[str] = (), instances: Sequence[str] = (), limit: int) -> list[Instance]:
        """Return the instances of series, and single ones, in reading order; what is not here is left out.

        Raises TOO_LARGE beyond `limit`.
        """
        wanted = {"$or": [{"series": {"$in": list(series)}}, {"_id": {"$in": list(instances)}}]}
        fields = {**INSTANCE_FIELDS, "number": 1, "series_number": 1}
        rows = list(self._database.instances.find(wanted, fields).limit(limit + 1))
        if len(rows) > limit:
            raise AppError(Category.TOO_LARGE, f"more than {limit} instances; choose fewer", where="images")
        rows.sort(
            key=lambda row: (row["study"], *order(row["series_number"], row["series"], row["number"], row["_id"]))
        )
        return [instance_from_row(row) for row in rows]

    def patient_of(self, study_uid: str) -> Patient | None:
        """Return the patient of a study as an instance of it tells, corrected; None when nothing of it is here."""
        first = self.first(study_uid)
        return self.corrector()(first).patient if first else None

    def first(self, study_uid: str) -> InstanceSummary | None:
        """Return the summary of the study's first instance in reading order as received; None for no instance."""
        fields = {"common": 1, "instance": 1}
        row = self._database.instances.find_one({"study": study_uid}, fields, sort=catalogue.READING_ORDER)
        return catalogue.common_from_row(row) if row else None

    def corrector(self) -> Callable[[InstanceSummary], InstanceSummary]:
        """Return what lays the corrections of its study over the summary of an instance; each study is asked once."""
        known = Known(self._told)
        return lambda summary: corrected_summary(summary, known.in_force(summary.study_uid))

    def present(self, sop_uids: Iterable[str]) -> set[str]:
        """Return those of the SOP Instance UIDs whose instances are here."""
        wanted = sorted(sop_uids)
        return {
            row["_id"]
            for start in range(0, len(wanted), _LOOKED_UP)
            for row in self._database.instances.find({"_id": {"$in": wanted[start : start + _LOOKED_UP]}}, {"_id": 1})
        }

    def metadata(
        self, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None
    ) -> Iterator[tuple[tuple[str, str, str], bytes]]:
        """Yield ((study, series, SOP instance UID), DICOM JSON) in reading order, from rows alone.

        Bulk data are URIs that begin with "@/", to be replaced by the instance's address.
        """
        if series_uid and sop_uid:
            rows = iter([self._row(study_uid, series_uid, sop_uid, METADATA_FIELDS)])
        else:
            rows = contents.rows(self._database, study_uid, series_uid, METADATA_FIELDS)
        known = Known(self._told)
        return (((study_uid, row["series"], row["_id"]), metadata_from_row(row, self._blobs, known)) for row in rows)

    def contents(self, study_uid: str, series_uid: str | None = None) -> Contents:
        """Return which instances a study or a series holds, in reading order. Raises NOT_FOUND for none."""
        return contents.contents(self._database, self._told, study_uid, series_uid)

    def each(self, sop_uids: Sequence[str]) -> Iterator[Instance]:
        """Yield instances in the order asked, read as they are taken. Raises NOT_FOUND for one that is gone."""
        return contents.instances(self._database, sop_uids)

    def documents(self, sop_uids: Sequence[str]) -> Iterator[bytes]:
        """Yield the DICOM JSON of instances in the order asked, read as it is taken; see `metadata`."""
        return (json for _, json in metadata(self._database, self._blobs, sop_uids, Known(self._told)))

    def query(
        self, matching: Matching, allowed: query.Allowed | None = None, studies: Sequence[str] | None = None
    ) -> list[Result]:
        """Return matching studies, series or instances, stably ordered; see `imaging.archive.query`."""
        return query.run(self._database, self._blobs, matching, self._tables, Known(self._told), allowed, studies)

    # ---- out

    def files(self, instances: Iterable[Instance], form: str) -> Iterator[tuple[Instance, Iterable[bytes]]]:
        """Yield each instance with the pieces of its file in `form`: STORED, RECEIVED or a transfer syntax UID.

        All but RECEIVED have the corrections of their study laid over them; without any, the syntax in which a file was
        received gives the received file. The next few files are prepared while one is being sent; one beyond 32 MiB is
        made while it is taken, before the next is asked for. Raises UNSUPPORTED when a syntax cannot be made, FAULT
        when a digest does not match: for a large file before its last piece.
        """
        return self._files.all(instances, form)

    def file(self, instance: Instance, form: str) -> Iterable[bytes]:
        """Return the pieces of one file in `form`; see `files`."""
        return self._files.one(instance, form)

    def buffer(self, instance: Instance, form: str) -> Buffer:
        """Return one file in `form` as one buffer, a large one as a map of a temporary file; see `files`."""
        return self._files.buffer(instance, form)

    def decided(self, study_uid: str) -> str:
        """Return what changes with every decision about attributes of a study, "" where there was none."""
        return Known(self._told).version(study_uid)

    def length(self, instance: Instance, form: str) -> int | None:
        """Return the bytes of a file in `form`; None when it has to be made to be known."""
        if form == RECEIVED:
            return instance.size_received
        if self._told.in_force(instance.study_uid):
            return None
        if form == instance.received_transfer_syntax_uid:
            return instance.size_received
        return instance.size_stored if form in (STORED, instance.stored_transfer_syntax_uid) else None

    def frame(self, instance: Instance, number: int, transfer_syntax_uid: str | None = None) -> bytes:
        """Return frame `number` (from 1): as it is stored, or in another transfer syntax.

        One range read, checked against the frame's checksum. Raises NOT_FOUND beyond the last frame, UNSUPPORTED when
        the syntax cannot be made.
        """
        return self._frames.frame(instance, number, transfer_syntax_uid)

    def pixels(self, instance: Instance, number: int, *, reduce_levels: int = 0) -> Decoded:
        """Return frame `number` decoded, [rows, columns(, samples)], sides halved `reduce_levels` times."""
        return next(self.pixels_of([(instance, number)], reduce_levels=reduce_levels))

    def pixels_of(self, frames: Sequence[tuple[Instance, int]], *, reduce_levels: int = 0) -> Iterator[Decoded]:
        """Yield what `pixels` returns, for (instance, number) in their order, in less time: they are read together."""
        return self._frames.pixels(frames, reduce_levels=reduce_levels)

    def bulkdata(self, instance: Instance, path: str) -> Buffer:
        """Return the value that a bulk data URI of the metadata stands for. Raises NOT_FOUND for any other path."""
        received = read(self._files.buffer(instance, RECEIVED), limits=self._limits)
        return bulkdata(received, path)[0]

    # ---- summaries and projection

    def summarise(self, study_uid: str) -> StudyFacts | None:
        """Refresh the study's summaries and return its facts; None when it has no instance (left)."""
        return self._summaries.summarise(study_uid)

    def behind(self, limit: int, *, marked_before: datetime | None = None) -> list[str]:
        """Return up to `limit` studies whose summaries are older than their instances, longest waiting first."""
        wanted: Document = {"behind": True}
        if marked_before:
            wanted["marked_at"] = {"$lt": marked_before}
        return [row["_id"] for row in self._database.studies.find(wanted, {"_id": 1}).sort("marked_at").limit(limit)]

    def is_behind(self, study_uid: str) -> bool:
        """Tell whether the study changed since it was last projected."""
        return self._database.studies.find_one({"_id": study_uid, "behind": True}, {"_id": 1}) is not None

    def mark_projected(self, study_uid: str, generation: int) -> bool:
        """Say that the projection shows `generation`; False (and still behind) when the study has changed since."""
        here = {"_id": study_uid, "generation": generation}
        changed = {"$set": {"projected": generation}, "$unset": {"behind": ""}}
        return self._database.studies.update_one(here, changed).matched_count == 1

    def arrivals(self, limit: int) -> list[Arrival]:
        """Return up to `limit` studies to which images have come since they were looked at, longest quiet first."""
        found = self._database.studies.find({"arrived_at": {"$exists": True}}, {"arrived_at": 1, "generation": 1})
        rows = found.sort("arrived_at").limit(limit)
        return [Arrival(row["_id"], row["arrived_at"].replace(tzinfo=UTC), row["generation"]) for row in rows]

    def looked_at(self, arrival: Arrival) -> bool:
        """Say that somebody has looked at these images; False (and still to be looked at) when more came since."""
        here = {"_id": arrival.study_uid, "generation": arrival.generation}
        return self._database.studies.update_one(here, {"$unset": {"arrived_at": ""}}).matched_count == 1

    def mark(self, *study_uids: str) -> None:
        """Put studies behind, so that their projections are made anew, also those that are being made now."""
        if study_uids:
            mark_studies(self._database.studies, study_uids, self._clock())

    def mark_all(self) -> int:
        """Put every study behind, so that all projections are made anew; return how many."""
        uids = self._database.instances.distinct("study")
        for start in range(0, len(uids), 1000):
            mark_studies(self._database.studies, uids[start : start + 1000], self._clock())
        return len(uids)

    def index_all(self, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
        """Write anew the attributes by which each instance is found, from its metadata; return how many there are."""
        return upkeep.index_all(self._database, self._blobs, self._tables, Known(self.decisions), progress)

    def watch(self, max_await_ms: int) -> Any:
        """Return a change stream that speaks whenever a study is marked behind."""
        wanted = {"operationType": {"$in": ["insert", "update"]}}
        return self._database.studies.watch(
            [{"$match": wanted}, {"$project": {"_id": 1}}], max_await_time_ms=max_await_ms
        )

    # ---- upkeep

    def delete(self, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None) -> int:
        """Remove instances at once and their blobs with a later sweep; return how many there were (0 is no error)."""
        wanted = _named(study_uid, series_uid, sop_uid)
        rows = list(self._database.instances.find(wanted, {"blob": 1, "received.blob": 1, "aside": 1}))
        keys = [key for row in rows for key in trash.blob_keys(row)]
        # The garbage row goes first: a crash before the rows are gone leaves blobs that are seen to be in use.
        for start in range(0, len(keys), 10_000):
            self._database.garbage.insert_one(
                {"keys": keys[start : start + 10_000], "studies": [], "at": self._clock()}
            )
        with self._marked_anyhow(study_uid):
            gone = self._database.instances.delete_many({"_id": {"$in": [row["_id"] for row in rows]}})
            if rows:
                mark_studies(self._database.studies, [study_uid], self._clock())
        return gone.deleted_count

    def put_aside(
        self,
        study_uid: str,
        series_uid: str | None = None,
        sop_uid: str | None = None,
        *,
        keep_for: timedelta,
        deleted_by: str,
    ) -> int:
        """Remove instances so that they can be taken back for a while; return how many there were (0 is no error)."""
        now = self._clock()
        wanted = _named(study_uid, series_uid, sop_uid)
        until = now + keep_for
        with self._marked_anyhow(study_uid):
            gone = trash.put_aside(self._database, wanted, now=now, until=until, deleted_by=deleted_by)
            if gone:
                mark_studies(self._database.studies, [study_uid], now)
        return gone

    def take_back(self, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None) -> tuple[int, int]:
        """Put back what was put aside; return how many instances came back, and how many others have taken over."""
        with self._marked_anyhow(study_uid):
            found = trash.take_back(self._database, trash.where(study_uid, series_uid, sop_uid))
            if any(found):
                mark_arrivals(self._database.studies, [study_uid], self._clock())
        return found

    def put_aside_by(self, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None) -> set[str]:
        """Return who registered what can be taken back of a study, a series or one instance; nobody for nothing."""
        return trash.owners(self._database, trash.where(study_uid, series_uid, sop_uid))

    def aside(self) -> list[Deleted]:
        """Return everything that can be taken back, by study."""
        return trash.kept(self._database, {})

    def stored_at(self, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None) -> datetime | None:
        """Return when the youngest of some instances came; None for none."""
        newest = self._database.instances.find(_named(study_uid, series_uid, sop_uid), {"stored_at": 1})
        found = next(iter(newest.sort("stored_at", -1).limit(1)), None)
        return found["stored_at"].replace(tzinfo=UTC) if found else None

    def forget(self, study_uid: str) -> None:
        """Drop the study's own summary once nothing is left of it."""
        if not self._database.instances.find_one({"study": study_uid}, {"_id": 1}):
            self._database.studies.delete_one({"_id": study_uid})

    def sweep(self) -> Swept:
        """Finish what crashes left behind and delete blobs that belong to nothing."""
        return upkeep.sweep(self._database, self._blobs, self._clock())

    def sizes(self) -> tuple[int, int]:
        """Return the bytes of all received files and of what is stored for them. Reads every row."""
        kept = {"$cond": [{"$gt": ["$received.blob", None]}, "$received.size", 0]}
        total = {
            "$group": {
                "_id": None,
                "received": {"$sum": "$received.size"},
                "stored": {"$sum": {"$add": ["$size", kept]}},
            }
        }
        found = next(iter(self._database.instances.aggregate([total])), {"received": 0, "stored": 0})
        return found["received"], found["stored"]

    def count(self) -> int:
        """Return the number of instances."""
        return self._database.instances.count_documents({})

    def verify(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Iterator[Finding]:
        """Read, hash and decode everything again, and yield what is wrong; nothing is changed.

        `progress` is told how many of how many instances were checked.
        """
        return verification.verify(self._database, self._files, self._frames, progress)

    # ---- inside

    @contextmanager
    def _marked_anyhow(self, study_uid: str) -> Iterator[None]:
        """Change rows of a study and mark it; should this process die in between, the sweeper marks it."""
        row = {"keys": [], "studies": [study_uid], "at": self._clock()}
        token = self._database.garbage.insert_one(row).inserted_id
        yield
        self._database.garbage.delete_one({"_id": token})

    def _row(self, study_uid: str, series_uid: str, sop_uid: str, fields: Document) -> Document:
        row = self._database.instances.find_one({"_id": sop_uid}, fields)
        if row is None or row["study"] != study_uid or row["series"] != series_uid:
            raise AppError(Category.NOT_FOUND, "no such instance", where=sop_uid)
        return row

    def _ordered(self, study_uid: str, series_uid: str | None, fields: Document) -> list[Document]:
        wanted = {"study": study_uid, "series": series_uid} if series_uid else {"study": study_uid}
        rows = list(self._database.instances.find(wanted, {**fields, "series": 1, "number": 1, "series_number": 1}))
        if not rows:
            raise AppError(Category.NOT_FOUND, "no instances", where=series_uid or study_uid)
        rows.sort(key=lambda row: order(row["series_number"], row["series"], row["number"], row["_id"]))
        return rows


def _named(study_uid: str, series_uid: str | None, sop_uid: str | None) -> Document:
    series = {"series": series_uid} if series_uid else {}
    return {"study": study_uid, **series, **({"_id": sop_uid} if sop_uid else {})}
