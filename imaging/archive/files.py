"""Gives files back: as they are stored, as they were received, or in another transfer syntax.

Hides how much is held meanwhile. A file up to `WHOLE_BYTES` is made and checked before any of it is given. A larger one
is given while it is made, frame by frame; its last piece is held back until its digest has proved right, so that nobody
takes a damaged file for a whole one. Every form but the received file has the study's corrections laid over it.
"""

import copy
import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from pymongo.database import Database

from imaging.archive.catalogue import FILE_FIELDS, Document, Instance, instance_from_row
from imaging.archive.corrections import Decisions, Known
from imaging.blobs import BlobStore, Buffer, Part
from imaging.correction_file import corrected_file
from imaging.envelope import FILE, SAME
from imaging.errors import AppError, Category
from imaging.spool import Spool
from imaging.syntaxes import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN
from imaging.transcode import Envelope, convert, rebuild, rebuild_same

STORED = "*"  # the form in which an instance is kept, whatever its transfer syntax, as corrected
RECEIVED = "received"  # the file as it came, byte for byte
WHOLE_BYTES = 32 << 20
ONE_READ_BYTES = 16 << 20  # up to this size a blob is fetched in one round trip
AHEAD_FILES = 4  # made while one is being sent
AHEAD_BYTES = 64 << 20


class Files:
    """Files of stored instances. `pool` makes whole ones, `frame_pool` frames; none of its threads may wait here."""

    def __init__(
        self,
        database: Database[Document],
        blobs: BlobStore,
        decisions: Decisions | Known,
        *,
        pool: Executor,
        frame_pool: Executor,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._decisions = decisions
        self._pool = pool
        self._frame_pool = frame_pool

    def knowing(self, known: Known) -> "Files":
        """Return the same for one answer, which knows what is decided about its studies."""
        other = copy.copy(self)
        other._decisions = known
        return other

    def all(self, instances: Iterable[Instance], form: str) -> Iterator[tuple[Instance, Iterable[bytes]]]:
        """Yield each instance with its file; a large one is to be taken before the next is asked for."""
        ahead: deque[tuple[Instance, Future[Sequence[bytes]] | None]] = deque()
        known = Known(self._decisions)  # a study is asked about once, and given as it was corrected then
        try:
            for instance in instances:
                is_whole = size_of_file(instance) <= WHOLE_BYTES
                ahead.append((instance, self._pool.submit(self._made, instance, form, known) if is_whole else None))
                while len(ahead) > AHEAD_FILES or _held(ahead) > AHEAD_BYTES:
                    yield self._next(ahead, form, known)
            while ahead:
                yield self._next(ahead, form, known)
        finally:
            for _, future in ahead:
                if future:
                    future.cancel()

    def one(self, instance: Instance, form: str) -> Iterable[bytes]:
        """Return the pieces of one file, all of them checked when it is small."""
        known = Known(self._decisions)
        if size_of_file(instance) <= WHOLE_BYTES:
            return self._made(instance, form, known)
        return self._pieces(instance, form, known)

    def buffer(self, instance: Instance, form: str) -> Buffer:
        """Return a file as one buffer, a large one as a map of a temporary file."""
        return _spooled(self._pieces(instance, form, Known(self._decisions)))

    def received(self, sop_uid: str) -> Buffer:
        """Return the received file of an instance as one buffer. Raises NOT_FOUND."""
        row = self._database.instances.find_one({"_id": sop_uid}, FILE_FIELDS)
        if row is None:
            raise AppError(Category.NOT_FOUND, "the instance is not here any more", where=sop_uid)
        return self.buffer(instance_from_row(row), RECEIVED)

    def _next(
        self, ahead: deque[tuple[Instance, Future[Sequence[bytes]] | None]], form: str, known: Known
    ) -> tuple[Instance, Iterable[bytes]]:
        instance, future = ahead.popleft()
        return instance, future.result() if future else self._pieces(instance, form, known)

    def _made(self, instance: Instance, form: str, known: Known) -> Sequence[bytes]:
        return list(self._pieces(instance, form, known))

    def _pieces(self, instance: Instance, form: str, known: Known) -> Iterator[bytes]:
        corrections = () if form == RECEIVED else known.in_force(instance.study_uid)
        if not any(each.is_of(instance.series_uid, instance.sop_uid) for each in corrections):
            return self._uncorrected(instance, form)
        syntax = instance.stored_transfer_syntax_uid if form == STORED else form
        is_deflated = syntax == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
        pieces = self._uncorrected(instance, EXPLICIT_VR_LITTLE_ENDIAN if is_deflated else form)
        return corrected_file(pieces, corrections, deflated=is_deflated)

    def _uncorrected(self, instance: Instance, form: str) -> Iterator[bytes]:
        if form in (RECEIVED, instance.received_transfer_syntax_uid):
            return self._received(instance)
        if form in (STORED, instance.stored_transfer_syntax_uid):
            return self._blob(instance.sha256_stored, instance.size_stored)
        stored = _spooled(self._blob(instance.sha256_stored, instance.size_stored))
        return convert(stored, instance.layout, instance.frames, form, trusted=instance.is_ours)

    def _received(self, instance: Instance) -> Iterator[bytes]:
        envelope = Envelope.from_document(self._whole(instance.envelope or self._envelope_of(instance.sop_uid)))
        if envelope.kind == FILE:
            return self._blob(instance.sha256_received, instance.size_received)
        stored = self._blob(instance.sha256_stored, instance.size_stored)
        if envelope.kind == SAME:
            rebuilt = rebuild_same(envelope, stored)
        else:
            rebuilt = rebuild(envelope, _spooled(stored), instance.layout, instance.frames, self._frame_pool)
        problem = AppError(Category.FAULT, "the rebuilt file is not the received one", where=instance.sop_uid)
        return _checked(rebuilt, instance.sha256_received, problem)

    def _envelope_of(self, sop_uid: str) -> Document:
        row = self._database.instances.find_one({"_id": sop_uid}, {"envelope": 1})
        if row is None:
            raise AppError(Category.NOT_FOUND, "the instance is not here any more", where=sop_uid)
        envelope: Document = row["envelope"]
        return envelope

    def _blob(self, key: str, size: int) -> Iterator[bytes]:
        pieces = iter(self._blobs.read_parts([Part(key, 0, size)])) if size <= ONE_READ_BYTES else self._blobs.read(key)
        return _checked(pieces, key, AppError(Category.FAULT, "stored bytes do not match their digest", where=key))

    def _whole(self, document: Document) -> dict[str, Any]:
        """Return the document with what was moved aside put back."""
        aside = {name: value for name, value in document.items() if isinstance(value, dict) and "blob" in value}
        values = {name: b"".join(self._blob(value["blob"], value["size"])) for name, value in aside.items()}
        return {**document, **values}


def size_of_file(instance: Instance) -> int:
    """Return about how many bytes the file has in its largest form, which is with its frames uncompressed."""
    decoded = instance.number_of_frames * instance.layout.frame_bits // 8 if instance.layout else 0
    return max(instance.size_received, instance.size_stored, decoded)


def _held(ahead: Iterable[tuple[Instance, Future[Sequence[bytes]] | None]]) -> int:
    return sum(size_of_file(instance) for instance, future in ahead if future)


def _spooled(pieces: Iterable[bytes]) -> Buffer:
    spool = Spool()
    try:
        for piece in pieces:
            spool.write(piece)
        return spool.finish()
    finally:
        spool.discard()


def _checked(pieces: Iterable[bytes], sha256: str, problem: AppError) -> Iterator[bytes]:
    """Yield the pieces, the last one after their digest was found right; raise `problem` otherwise."""
    digest = hashlib.sha256()
    last = b""
    for piece in pieces:
        digest.update(piece)
        if last:
            yield last
        last = piece
    if digest.hexdigest() != sha256:
        raise problem
    yield last
