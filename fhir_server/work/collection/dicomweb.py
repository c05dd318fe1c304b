"""A DICOMweb server as a source: what is new there is found with QIDO-RS; `fetching` gets it.

Hides in which steps one asks, so that what did not change costs nothing: studies by date, then the series of a study
whose numbers differ from those noted, then the instances of such a series, less those that are settled or here.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType

from fhir_server.model.peer import Peer
from fhir_server.outbound import dicomweb
from fhir_server.outbound.remote import Remote, Rules
from fhir_server.store.collected import SERIES, STUDY, TRIED, Collected, Note, Tally
from fhir_server.work.collection import Budget, Expected, Ingest, plan
from fhir_server.work.collection.fetching import Fetching, Series, try_again
from imaging.dataset import check_uid
from imaging.errors import AppError

MOST_STUDIES = 5_000  # of one search; beyond, it is asked for in windows of dates
MOST_SERIES = 10_000  # of one study
MOST_INSTANCES = 100_000  # of one series
MOST_LATER = 500  # unfinished studies looked at in one round
LOOKED_UP = 200  # studies whose notes are read at a time
_STUDY_UID, _SERIES_UID, _SOP_UID, _STUDY_DATE = "0020000D", "0020000E", "00080018", "00080020"
_MODALITIES, _SERIES_OF_STUDY, _OF_STUDY, _OF_SERIES = "00080061", "00201206", "00201208", "00201209"


@dataclass(frozen=True, slots=True)
class Study:
    """A study that is new, has changed, or was left unfinished.

    looks   numbers of its series and instances, "3/120"; what is not told counts as changed
    """

    uid: str
    date: str
    modalities: str
    looks: str

    @property
    def size(self) -> int:
        """The number of its instances that the source tells, 1 where it does not."""
        told = self.looks.partition("/")[2]
        return max(int(told), 1) if told.isdigit() else 1


class DicomwebSource:
    """The server of a peer, as a context manager."""

    def __init__(
        self,
        peer: Peer,
        rules: Rules,
        collected: Collected,
        present: Callable[[Collection[str]], set[str]],
        *,
        clock: Callable[[], datetime],
        most_bytes: int,
        is_careful: bool = False,
    ) -> None:
        """`present` tells which instances are here, `most_bytes` is the size of the largest that is taken.

        A careful source notes what it is going to fetch, one by one: the process died before, perhaps of one of them.
        """
        self._peer, self._rules, self._collected, self._present = peer, rules, collected, present
        self._clock, self._most_bytes, self._is_careful = clock, most_bytes, is_careful
        self._filters = plan.filters_of(peer.schedule.filters)
        self._dates: set[str] = set()

    def __enter__(self) -> "DicomwebSource":
        peer = self._peer
        with ExitStack() as stack:
            opened = [
                stack.enter_context(Remote(each, self._rules, name=peer.name, authorization=peer.authorization))
                for each in dict.fromkeys((peer.address, peer.wado_address or peer.address))
            ]
            self._qido, self._wado = opened[0], opened[-1]
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    # ---- what is new

    def items(self) -> Iterator[Study]:
        """Yield unfinished studies that are due, then what is new or has changed, oldest first."""
        now = self._clock()
        later = [
            found
            for note in self._collected.due(self._peer.name, STUDY, now, MOST_LATER)
            for found in self._named(note.key)
        ]
        yield from later
        seen = {each.uid for each in later}
        mark, schedule = self._collected.mark(self._peer.name), self._peer.schedule
        window = plan.window_from(mark.latest, schedule.since, schedule.overlap_days)
        group: list[Study] = []
        for study in plan.listing(window, self._studies, MOST_STUDIES, now.date()):
            group.append(study)
            if len(group) == LOOKED_UP:
                yield from self._changed(group, seen)
                group = []
        yield from self._changed(group, seen)

    def dates(self) -> set[str]:
        """Return the study dates that `items` has passed."""
        return self._dates

    def _changed(self, group: Sequence[Study], seen: Collection[str]) -> Iterator[Study]:
        notes = self._collected.notes(self._peer.name, STUDY, [each.uid for each in group])
        for study in group:
            note = notes.get(study.uid)
            if study.uid not in seen and (note is None or note.value != study.looks or "?" in study.looks):
                yield study
            self._dates.add(study.date)

    def _named(self, uid: str) -> Iterator[Study]:
        """Yield an unfinished study; one that is not there any more is finished."""
        params = [(key, value) for key, value in self._filters.of_studies if key != "StudyInstanceUID"]
        found = [each for each in self._matches([*params, ("StudyInstanceUID", uid)]) if each.uid == uid]
        if not found:
            self._collected.note(self._peer.name, [Note(STUDY, uid, "gone")], self._clock())
        for study in found[:1]:
            yield Study(uid, "", study.modalities, study.looks)  # without date: it must not move the mark

    def _studies(self, window: plan.Window) -> Iterator[Study]:
        return self._matches([*self._filters.of_studies, *([("StudyDate", window.key)] if window.key else [])])

    def _matches(self, params: Sequence[tuple[str, str]]) -> Iterator[Study]:
        fields = [("includefield", tag) for tag in (_MODALITIES, _SERIES_OF_STUDY, _OF_STUDY)]
        most = MOST_STUDIES + 1
        for match in dicomweb.search(self._qido, "/studies", [*params, *fields], _STUDY_UID, most=most):
            uid = dicomweb.text(match, _STUDY_UID)
            if _is_uid(uid) and plan.agrees(match, self._filters.of_studies):
                numbers = [dicomweb.text(match, tag) for tag in (_SERIES_OF_STUDY, _OF_STUDY)]
                looks = "/".join(
                    each if each.isascii() and each.isdigit() and len(each) < 10 else "?" for each in numbers
                )
                date = dicomweb.text(match, _STUDY_DATE)
                modalities = ",".join(dicomweb.values(match, _MODALITIES))[:100]
                yield Study(uid, date if plan.day_of(date) else "", modalities, looks)

    # ---- what would come, and what comes

    def is_news(self, item: Study) -> bool:
        """Say whether something of a study would be fetched; one of which nothing would is noted as settled."""
        again: list[datetime] = []
        for series in self._series(item, again):
            if series.wanted:
                return True
            again += series.again
            self._collected.note(self._peer.name, [series.note], self._clock())
        self._settle(item, again)
        return False

    def expected(self, item: Study) -> Iterator[Expected]:
        """Yield what would be fetched of a study."""
        series = list(self._series(item, None))
        wanted, later = sum(len(each.wanted) for each in series), sum(len(each.again) for each in series)
        if wanted or later:
            of = max(item.size, sum(len(each.listed) for each in series))
            note = f"{later} could not be fetched and wait for another try" if later else ""
            yield Expected(item.uid, item.date, item.modalities, wanted, of, note)

    def take(self, item: Study, ingest: Ingest, budget: Budget, told: Callable[[Tally], None]) -> bool:
        """Fetch and store what is new of a study."""
        fetching = Fetching(
            self._peer.name,
            item.uid,
            self._qido,
            self._wado,
            self._collected,
            clock=self._clock,
            most_bytes=self._most_bytes,
            is_careful=self._is_careful,
            ingest=ingest,
            budget=budget,
            told=told,
        )
        again: list[datetime] = []
        for series in self._series(item, again):
            if not fetching.take(series):
                return False
            again += series.again
        self._settle(item, again)
        return True

    def _settle(self, study: Study, again: Sequence[datetime]) -> None:
        """Note that nothing is to be asked of a study before it changes, or something of it is due for another try."""
        note = Note(STUDY, study.uid, study.looks, min(again, default=None))
        self._collected.note(self._peer.name, [note], self._clock())

    def _series(self, study: Study, again: list[datetime] | None) -> Iterator[Series]:
        """Yield the series of a study that have something open.

        again   takes moments at which to ask for what is not listed yet; None: that is not noted either
        """
        path, pairs = f"/studies/{study.uid}/series", self._filters.of_series
        params = [*pairs, ("includefield", _OF_SERIES)]
        numbers = {
            uid: dicomweb.count(match, _OF_SERIES)
            for match in dicomweb.search(self._qido, path, params, _SERIES_UID, most=MOST_SERIES)
            if _is_uid(uid := dicomweb.text(match, _SERIES_UID)) and plan.agrees(match, pairs)
        }
        if not pairs and again is not None:
            again += self._short(study.uid, study.looks.partition("/")[0], len(numbers))
        notes = self._collected.notes(self._peer.name, SERIES, list(numbers))
        for uid, number in numbers.items():
            settled = set(notes[uid].value.split()) if uid in notes else set()
            if not number or number != len(settled):
                series = self._opened(f"{path}/{uid}", uid, settled)
                if again is not None:
                    series.again += self._short(uid, str(number), len(series.listed))
                yield series

    def _short(self, uid: str, told: str, listed: int) -> list[datetime]:
        """Return when to look again at a study or series of which less is listed than the source says that there is.

        An index that lags behind catches up; a number that is wrong stays so, and after some tries is let be.
        """
        if not told.isdigit() or listed >= int(told):
            return []
        now, before = self._clock(), self._collected.notes(self._peer.name, TRIED, [uid]).get(uid)
        if before and before.due and before.due > now:
            return [before.due]
        note = try_again(before, uid, f"{told} are told of and {listed} listed", now)
        self._collected.note(self._peer.name, [note], now)
        return [note.due] if note.due else []

    def _opened(self, path: str, uid: str, settled: set[str]) -> Series:
        matches = dicomweb.search(self._qido, f"{path}/instances", [], _SOP_UID, most=MOST_INSTANCES)
        order = [sop_uid for each in matches if _is_uid(sop_uid := dicomweb.text(each, _SOP_UID))]
        listed = set(order)
        settled &= listed
        settled |= self._present(listed - settled)
        now, tried = self._clock(), self._collected.notes(self._peer.name, TRIED, list(listed - settled))
        again = [note.due for note in tried.values() if note.due and note.due > now]
        resting = {note.key for note in tried.values() if note.due and note.due > now}
        wanted = [each for each in order if each not in settled and each not in resting]
        return Series(path, uid, listed, settled, wanted, tried, again)


def _is_uid(text: str) -> bool:
    try:
        check_uid(text, "UID")
    except AppError:
        return False
    return True
