"""Store pipeline: while one batch is written, the next is encoded and a third is being received.

Order of writes, so that a crash between any two leaves something harmless:

1. `garbage` row naming the blobs and studies to come  -> alone: swept away
2. blobs                                                -> alone: nobody refers to them, swept with the garbage row
3. `instances` rows                                     -> complete and readable; the garbage row marks their studies
4. study marks                                          -> now it is acknowledged
5. `garbage` row removed                                -> left over: the sweeper sees that the blobs are in use

Each of 1 to 4 waits for a majority and the journal. To wait once, for the last, would do if only this process could
die: a database that is killed in between forgets the first writes, and the driver sends the last to its successor.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import orjson
from bson import ObjectId
from pymongo import UpdateOne, WriteConcern
from pymongo.database import Database
from pymongo.errors import BulkWriteError
from pymongo.read_concern import ReadConcern

from imaging.archive.attributes import Tables
from imaging.archive.catalogue import INLINE_BYTES, Document, content_sha256, instance_row
from imaging.archive.corrections import Decisions, Known
from imaging.blobs import Blob, BlobStore, Buffer
from imaging.coercion import COERCED, SYSTEM, coerced
from imaging.correction import replaced
from imaging.dataset import InstanceSummary, Limits, Received, read
from imaging.dicom_json import dicom_json
from imaging.errors import AppError, Category
from imaging.transcode import Encoded, encode

BATCH_INSTANCES = 50
WORTH_WRITING = 25  # instances, when the writer has nothing else to do: a batch is eight commands, four of them synced
BATCH_BYTES = 32 << 20  # of stored form
AHEAD_BYTES = 64 << 20  # received and not yet written, for one caller
GROUP_INSTANCES = 8  # looked up together before any of them is encoded; each group may be twice the one before
GROUP_BYTES = 4 << 20  # as received

DUPLICATE_KEY = 11000


@dataclass(frozen=True, slots=True)
class Remark:
    """What is said of an instance that is stored all the same.

    reason     Warning Reason (0008,1196); PS3.18 table I.2-1
    original   attributes that were changed, as they were, in DICOM JSON
    changes    attributes that are to be changed before it is stored, in DICOM JSON
    flag       name of the check that it did not pass, "" for none; the instance keeps it
    """

    reason: int
    text: str
    original: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    flag: str = ""


Admit = Callable[[InstanceSummary], Sequence[Remark] | None]


@dataclass(frozen=True, slots=True)
class Made:
    """A file that was made here of what was sent, and what is to be said of that."""

    data: Buffer
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True, slots=True)
class Stored:
    """An instance that is durably here; sizes in bytes. `created` is False when it was here already."""

    summary: InstanceSummary
    created: bool
    transfer_syntax_uid: str
    kept_reason: str
    size_received: int
    size_stored: int
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """An instance that was not stored, and why; UIDs are empty when they could not be read."""

    error: AppError
    sop_class_uid: str = ""
    sop_instance_uid: str = ""


Outcome = Stored | Refused
Incoming = Buffer | Made | Refused
"""A file, or why what was sent makes none."""


@dataclass(frozen=True, slots=True)
class _Admitted:
    """Read and welcome."""

    received: Received
    remarks: tuple[Remark, ...]


@dataclass(frozen=True, slots=True)
class _Ready:
    """Encoded and waiting for its batch to be written."""

    admitted: _Admitted
    encoded: Encoded
    row: Document
    blobs: list[Blob]


class Ingest:
    """Stores received instances; one object serves any number of callers at once.

    `received` gives the received file of a stored instance, for the rare comparison of contents.
    """

    def __init__(
        self,
        database: Database[Document],
        blobs: BlobStore,
        *,
        codec: str,
        pool: Executor,
        frame_pool: Executor,
        clock: Callable[[], datetime],
        limits: Limits,
        tables: Tables,
        received: Callable[[str], Buffer],
    ) -> None:
        durable = WriteConcern(w="majority", j=True)
        # Read, too, is only what cannot be lost any more: "it is here already" acknowledges as well.
        self._instances = database.get_collection(
            "instances", write_concern=durable, read_concern=ReadConcern("majority")
        )
        self._garbage = database.get_collection("garbage", write_concern=durable)
        self._studies = database.get_collection("studies", write_concern=durable)
        self._decisions = Decisions(database)
        self._blobs = blobs
        self._codec = codec
        self._pool = pool
        self._frame_pool = frame_pool
        self._clock = clock
        self._limits = limits
        self._tables = tables
        self._received = received

    def store_all(
        self, parts: Iterable[Incoming], *, admit: Admit, registered_by: str, brought_by: str
    ) -> Iterator[Outcome]:
        """Yield one outcome for each part, in order; see `Archive.store_all`."""
        origin = {"registered_by": registered_by, "brought_by": brought_by}
        known = Known(self._decisions)
        reader = (_told(_read(part, admit, self._limits, self._clock), known) for part in parts)
        with ThreadPoolExecutor(1, "archive-write") as writer:
            writing: Future[list[Outcome]] | None = None
            batch: list[_Ready | Outcome] = []
            for step in self._encode_ahead(reader, origin):
                batch.append(step)
                if _is_full(batch) or (len(batch) >= WORTH_WRITING and (writing is None or writing.done())):
                    # Named now: `batch` is another list before the writer runs.
                    writing, written = writer.submit(self._write, batch), writing
                    batch = []
                    yield from written.result() if written else ()
            yield from writing.result() if writing else ()
            yield from self._write(batch)

    def _encode_ahead(
        self, reader: Iterator[_Admitted | Refused], origin: dict[str, str]
    ) -> Iterator[_Ready | Outcome]:
        """Encode in the pool, yield in order, and hold at most `AHEAD_BYTES` of received files meanwhile."""
        ahead: deque[tuple[Future[_Ready] | Outcome, int]] = deque()
        held = 0
        for group in _groups(reader):
            for item in self._known(group):
                if isinstance(item, _Admitted):
                    size = len(item.received.data)
                    ahead.append((self._pool.submit(self._encode, item, origin), size))
                    held += size
                else:
                    ahead.append((item, 0))
            while ahead and (held > AHEAD_BYTES or _is_ready(ahead[0][0])):
                step, size = ahead.popleft()
                held -= size
                yield _result(step)
        while ahead:
            yield _result(ahead.popleft()[0])

    def _encode(self, admitted: _Admitted, origin: dict[str, str]) -> _Ready:
        received = admitted.received
        encoded = encode(received, codec=self._codec, pool=self._frame_pool)
        row = instance_row(received, encoded, self._tables, **origin, stored_at=self._clock())
        if flags := [remark.flag for remark in admitted.remarks if remark.flag]:
            row["flags"] = flags
        blobs = [Blob(encoded.sha256, encoded.parts, encoded.size)]
        if encoded.envelope.kind == "file":
            blobs.append(Blob(received.sha256, [received.data], len(received.data)))
        blobs += _move_aside(row)
        return _Ready(admitted, encoded, row, blobs)

    def _known(self, group: list[_Admitted | Refused]) -> list[_Admitted | Outcome]:
        """Answer what is here byte for byte already, before any work is done for it."""
        uids = [item.received.summary.sop_uid for item in group if isinstance(item, _Admitted)]
        here = {row["_id"]: row for row in self._instances.find({"_id": {"$in": uids}}, _COMPARED)} if uids else {}
        answers: list[_Admitted | Outcome] = []
        for item in group:
            row = here.get(item.received.summary.sop_uid) if isinstance(item, _Admitted) else None
            if isinstance(item, _Admitted) and row and row["received"]["sha256"] == item.received.sha256:
                answers.append(_already(item, row))
            else:
                answers.append(item)
        if again := {each.summary.study_uid for each in answers if isinstance(each, Stored)}:
            # Marked again because the first sender may have died before its marks were written.
            self._mark(sorted(again))
        return answers

    def _write(self, batch: list[_Ready | Outcome]) -> list[Outcome]:
        ready = [item for item in batch if isinstance(item, _Ready)]
        if not ready:
            return [item for item in batch if not isinstance(item, _Ready)]
        studies = sorted({item.row["study"] for item in ready})
        token = ObjectId()
        keys = [blob.key for item in ready for blob in item.blobs]
        self._garbage.insert_one({"_id": token, "keys": keys, "studies": studies, "at": self._clock()})
        self._blobs.put([blob for item in ready for blob in item.blobs])
        clashes = self._insert([item.row for item in ready])
        self._mark(studies)
        if not clashes:
            self._garbage.with_options(write_concern=WriteConcern(w=1)).delete_one({"_id": token})
        return [self._outcome(item, clashes) if isinstance(item, _Ready) else item for item in batch]

    def _insert(self, rows: list[Document]) -> set[int]:
        """Insert the rows and return the identities (`id()`) of those whose UID was taken."""
        try:
            self._instances.insert_many(rows, ordered=False)
        except BulkWriteError as error:
            failures = error.details["writeErrors"]
            if any(failure["code"] != DUPLICATE_KEY for failure in failures):
                raise
            return {id(rows[failure["index"]]) for failure in failures}
        return set()

    def _outcome(self, item: _Ready, clashes: set[int]) -> Outcome:
        received = item.admitted.received
        if id(item.row) not in clashes:
            return _stored(item.admitted, item.row, created=True)
        there = self._instances.find_one({"_id": item.row["_id"]}, _COMPARED)
        if there is not None and self._is_same(there, item):
            return _already(item.admitted, there)
        message = "other content is stored under this SOP Instance UID; it stays"
        return _refused(received.summary, AppError(Category.CONFLICT, message, where=item.row["_id"]))

    def _is_same(self, there: Document, item: _Ready) -> bool:
        """Tell whether data set and pixels are equal though the files are not: sent again another way, perhaps."""
        received = item.admitted.received
        if there["received"]["sha256"] == received.sha256:
            return True
        if there["pixels_sha256"] != item.row["pixels_sha256"]:
            return False
        pixels = there["pixels_sha256"] is None
        earlier = read(self._received(there["_id"]), limits=self._limits)
        return content_sha256(earlier, pixels=pixels) == content_sha256(received, pixels=pixels)

    def _mark(self, study_uids: list[str]) -> None:
        mark_arrivals(self._studies, study_uids, self._clock())


_COMPARED = {"received": 1, "pixels_sha256": 1, "stored_syntax": 1, "kept_reason": 1, "size": 1, "series": 1}


def mark_studies(studies: Any, study_uids: Iterable[str], now: datetime) -> None:
    """Say that the summaries and the ImagingStudy of these studies are behind their instances."""
    _mark(studies, study_uids, now, {})


def mark_arrivals(studies: Any, study_uids: Iterable[str], now: datetime) -> None:
    """Say the same, and that images have come at which nobody has looked yet."""
    _mark(studies, study_uids, now, {"arrived_at": now})


def _mark(studies: Any, study_uids: Iterable[str], now: datetime, more: Document) -> None:
    change = {
        "$inc": {"generation": 1},
        "$set": {"behind": True, "marked_at": now, **more},
        "$setOnInsert": {"projected": 0, "first_stored_at": now},
    }
    studies.bulk_write([UpdateOne({"_id": uid}, change, upsert=True) for uid in study_uids], ordered=False)


def _read(part: Incoming, admit: Admit, limits: Limits, clock: Callable[[], datetime]) -> _Admitted | Refused:
    if isinstance(part, Refused):
        return part
    data, remarks = (part.data, part.remarks) if isinstance(part, Made) else (part, ())
    try:
        received = read(data, limits=limits)
    except AppError as error:
        return Refused(error)
    try:
        said = tuple(admit(received.summary) or ())
        admitted = _Admitted(received, (*remarks, *said))
        return _changed(admitted, limits, clock()) if any(remark.changes for remark in said) else admitted
    except AppError as error:
        return _refused(received.summary, error)


def _told(item: _Admitted | Refused, known: Known) -> _Admitted | Refused:
    """Return an instance with a remark on what corrections of its study will have it be given with."""
    if isinstance(item, Refused) or not (corrections := known.in_force(item.received.summary.study_uid)):
        return item
    summary = item.received.summary
    model = orjson.loads(dicom_json(item.received))
    was = replaced(model, corrections, summary.series_uid, summary.sop_uid)
    remark = Remark(COERCED, "attributes of this study were corrected here; so are these", original=was)
    return replace(item, remarks=(*item.remarks, remark)) if was else item


def _changed(admitted: _Admitted, limits: Limits, now: datetime) -> _Admitted:
    """Return the instance with the changes that its remarks ask for, and the remarks with what was before."""
    changes = {tag: element for remark in admitted.remarks for tag, element in remark.changes.items()}
    data, original = coerced(admitted.received, changes, at=now, system=SYSTEM)
    told = (
        replace(remark, original={tag: original[tag] for tag in remark.changes}) if remark.changes else remark
        for remark in admitted.remarks
    )
    return _Admitted(read(data, limits=limits), tuple(told))


def _groups(reader: Iterator[_Admitted | Refused]) -> Iterator[list[_Admitted | Refused]]:
    group: list[_Admitted | Refused] = []
    size, most = 0, GROUP_INSTANCES
    for item in reader:
        group.append(item)
        size += len(item.received.data) if isinstance(item, _Admitted) else 0
        if len(group) >= most or size >= GROUP_BYTES:
            yield group
            # The first is small so that encoding begins soon.
            group, size, most = [], 0, min(2 * most, BATCH_INSTANCES)
    if group:
        yield group


def _is_full(batch: list[_Ready | Outcome]) -> bool:
    stored_bytes = sum(step.encoded.size for step in batch if isinstance(step, _Ready))
    return len(batch) >= BATCH_INSTANCES or stored_bytes >= BATCH_BYTES


def _is_ready(step: Future[_Ready] | Outcome) -> bool:
    return not isinstance(step, Future) or step.done()


def _result(step: Future[_Ready] | Outcome) -> _Ready | Outcome:
    return step.result() if isinstance(step, Future) else step


def _move_aside(row: Document) -> list[Blob]:
    """Move large values of the row into blobs of their own; `aside` names them."""
    blobs: list[Blob] = []
    places = (row, "metadata"), (row, "conditions"), (row["envelope"], "head"), (row["envelope"], "tail")
    for holder, name in places:
        value = holder.get(name)
        if isinstance(value, bytes) and len(value) > INLINE_BYTES:
            key = hashlib.sha256(value).hexdigest()
            blobs.append(Blob(key, [value], len(value)))
            holder[name] = {"blob": key, "size": len(value)}
    if blobs:
        row["aside"] = [blob.key for blob in blobs]
    return blobs


def _stored(admitted: _Admitted, row: Document, *, created: bool) -> Stored:
    summary, syntax, kept_reason = admitted.received.summary, row["stored_syntax"], row["kept_reason"]
    return Stored(summary, created, syntax, kept_reason, row["received"]["size"], row["size"], admitted.remarks)


def _already(admitted: _Admitted, row: Document) -> Stored:
    return _stored(admitted, row, created=False)


def _refused(summary: InstanceSummary, error: AppError) -> Refused:
    return Refused(error, summary.instance.sop_class_uid, summary.sop_uid)
