"""Fetches what is wanted of a series with WADO-RS, has it stored, and notes what became of each instance.

A series comes as a whole when most of it is missing. What that did not bring is fetched one by one, so that an instance
which breaks the transfer costs the others nothing; it is tried again with growing pauses, and given up after `TRIES`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from fhir_server.outbound import dicomweb
from fhir_server.outbound.remote import Remote, require_good
from fhir_server.store.collected import REFUSED, SERIES, TRIED, Collected, Note, Tally
from fhir_server.work.collection import Budget, Ingest, is_final
from imaging.archive import Refused, Stored
from imaging.blobs import Buffer
from imaging.dicomweb import MultipartLimits, PartTooLargeError
from imaging.errors import AppError, Category

MOST_FAILED = 20  # instances of one study that may fail one by one before the round ends
TRIES = 10
FIRST_TRY_AGAIN = timedelta(minutes=5)  # doubles up to
LAST_TRY_AGAIN = timedelta(days=1)
MOST_REASON = 500  # characters
# What the whole source suffers from; other errors may be about the one thing that was asked for.
_OF_SOURCE = frozenset({Category.FORBIDDEN, Category.UNAUTHENTICATED, Category.UNSUPPORTED, Category.FAULT})


@dataclass(slots=True)
class Series:
    """A series that has something open. `path` is below the base address of the source.

    listed    SOP Instance UIDs that the source has
    settled   those that are here, were here, or are refused for good
    wanted    those to be fetched now
    tried     notes of those that could not be fetched before
    again     when those that could not are to be tried again
    """

    path: str
    uid: str
    listed: set[str]
    settled: set[str]
    wanted: list[str]
    tried: dict[str, Note]
    again: list[datetime] = field(default_factory=list)

    @property
    def note(self) -> Note:
        """What is to be remembered of it."""
        return Note(SERIES, self.uid, " ".join(sorted(self.settled & self.listed)))


class Fetching:
    """Fetches series of one study of a peer."""

    def __init__(
        self,
        peer: str,
        study_uid: str,
        qido: Remote,
        wado: Remote,
        collected: Collected,
        *,
        clock: Callable[[], datetime],
        most_bytes: int,
        is_careful: bool,
        ingest: Ingest,
        budget: Budget,
        told: Callable[[Tally], None],
    ) -> None:
        """For the arguments see `Source.take` and the source that calls."""
        self._peer, self._study_uid, self._qido, self._wado = peer, study_uid, qido, wado
        self._collected, self._clock, self._most_bytes, self._is_careful = collected, clock, most_bytes, is_careful
        self._ingest, self._budget, self._told = ingest, budget, told
        self._failed = 0

    def take(self, series: Series) -> bool:
        """Fetch what is wanted of a series, note how far that came, and say whether the budget let it be all."""
        try:
            if self._comes_whole(series):
                # What keeps a series from coming as a whole is met again, and judged, instance by instance.
                self._fetch(series)
            for sop_uid in [each for each in series.wanted if each not in series.settled]:
                if self._budget.is_spent:
                    return False
                self._fetch_one(series, sop_uid)
        finally:
            self._note(series.note)
        return True

    def _comes_whole(self, series: Series) -> bool:
        is_most = 2 * len(series.wanted) >= len(series.listed)
        return len(series.wanted) > 1 and is_most and not (series.tried or self._is_careful or self._budget.is_spent)

    def _fetch_one(self, series: Series, sop_uid: str) -> None:
        if self._is_careful:
            self._note(
                try_again(series.tried.get(sop_uid), sop_uid, "the work died in the middle of it", self._clock())
            )
        error = self._fetch(series, sop_uid)
        if sop_uid in series.settled:
            return
        if isinstance(error, PartTooLargeError):
            self._refuse(series, sop_uid, str(error))
            return
        if error is not None:
            self._check_source(error)
        reason = str(error) if error else "the source lists it and sends nothing"
        note = try_again(series.tried.get(sop_uid), sop_uid, reason, self._clock())
        if note.due is None:
            self._refuse(series, sop_uid, note.value)
            return
        self._note(note)
        series.again.append(note.due)
        self._told(Tally(failed=1))

    def _fetch(self, series: Series, sop_uid: str = "") -> AppError | None:
        """Fetch and store a series or one instance; return what broke it off. Raises what keeps it from storing."""
        limits = MultipartLimits(
            parts=2 * len(series.listed) + 100,  # more may have come there meanwhile
            part_bytes=self._most_bytes,
            total_bytes=max(self._budget.bytes, 0) + self._most_bytes,
        )
        path = f"{series.path}/instances/{sop_uid}" if sop_uid else series.path
        files = dicomweb.retrieve(self._wado, path, limits, within_s=max(self._budget.left_s, 1.0))
        parts = _Parts(files, self._budget)
        for outcome in self._ingest(parts, self._study_uid):
            if isinstance(outcome, Stored):
                self._stored(series, outcome)
            elif not is_final(outcome.error):
                raise outcome.error
            else:
                # One that was asked for alone is known also when it is so damaged that it does not tell its UID.
                self._refused(series, outcome, sop_uid)
        return parts.error

    def _stored(self, series: Series, outcome: Stored) -> None:
        series.settled.add(outcome.summary.sop_uid)
        new = int(outcome.created)
        self._told(Tally(stored=new, here=1 - new, bytes=outcome.size_received, studies=[outcome.summary.study_uid]))

    def _refused(self, series: Series, outcome: Refused, asked: str) -> None:
        uid = outcome.sop_instance_uid if outcome.sop_instance_uid in series.listed else asked
        if uid:
            self._refuse(series, uid, str(outcome.error))

    def _refuse(self, series: Series, sop_uid: str, reason: str) -> None:
        series.settled.add(sop_uid)
        self._note(Note(REFUSED, sop_uid, reason[:MOST_REASON]))
        self._told(Tally(refused=1, reasons=[f"{sop_uid}: {reason}"[:MOST_REASON]]))

    def _check_source(self, error: AppError) -> None:
        """Return where an instance fails alone. Raises the error where the source as a whole does."""
        self._failed += 1
        if error.category in _OF_SOURCE or self._failed > MOST_FAILED:
            raise error
        answer = self._qido.exchange(
            "GET", "/studies?limit=1", headers={"Accept": dicomweb.DICOM_JSON}, most_bytes=dicomweb.MOST_ANSWER_BYTES
        )
        require_good(answer.status, self._peer)

    def _note(self, note: Note) -> None:
        self._collected.note(self._peer, [note], self._clock())


def try_again(before: Note | None, uid: str, reason: str, now: datetime) -> Note:
    """Return the note of what could not be fetched, or not yet; after the last try without a time for another."""
    times = int(before.value.partition(" ")[0]) + 1 if before else 1
    if times >= TRIES:
        return Note(TRIED, uid, f"{times} tries, then given up: {reason}"[:MOST_REASON])
    pause = min(FIRST_TRY_AGAIN * 2 ** (times - 1), LAST_TRY_AGAIN)
    return Note(TRIED, uid, f"{times} {reason}"[:MOST_REASON], now + pause)


class _Parts:
    """Files as they come, until the budget is spent. What breaks them off is kept in `error`; those before count."""

    def __init__(self, files: Iterator[Buffer], budget: Budget) -> None:
        self.error: AppError | None = None
        self._files, self._budget = files, budget

    def __iter__(self) -> Iterator[Buffer]:
        try:
            for file in self._files:
                self._budget.spend(len(file))
                yield file
                if self._budget.is_spent:
                    return
        except AppError as error:
            self.error = error
