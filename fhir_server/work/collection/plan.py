"""What to ask of a source, and when: windows of study dates, filters, pauses and quotas.

Pure. A look asks for studies from the high-water mark, which is the latest study date that was dealt with, less the
overlap. A study that comes late is found when it is there before the mark is further than the overlap beyond its date.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from fnmatch import fnmatchcase
from typing import Any, Protocol, TypeVar

from pydicom.datadict import keyword_for_tag, tag_for_keyword

from fhir_server.outbound.dicomweb import values
from fhir_server.store.collected import Mark
from imaging.errors import AppError, Category

MOST_SEARCHES = 200  # of one look that has to be cut into windows
FIRST_PAUSE_S = 60.0  # at most, before a round that was begun is tried again; doubles up to
LONGEST_PAUSE_S = 3_600.0  # between two tries of a source that fails, unless its schedule is slower
USED_UP = "the quota of the day is used up; it goes on at midnight UTC"
_NO_QUOTA = 1 << 62
_OLDEST = date(1900, 1, 1)  # where an open window is cut as if it began here; studies before are in it nevertheless
_LATEST_ZONE = timedelta(hours=12)  # UTC-12: the last place on earth where a day begins

# Keys of series, which a search for studies does not know. Source: PS3.18 table 10.6.1-5, PS3.3 C.7.3.1, C.7.5.1.
SERIES_KEYS = frozenset({
    "BodyPartExamined", "InstitutionName", "Laterality", "Manufacturer", "ManufacturerModelName", "Modality",
    "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "ProtocolName", "SeriesDate",
    "SeriesDescription", "SeriesInstanceUID", "SeriesNumber", "StationName",
})  # fmt: skip


class Dated(Protocol):
    """Something with a study date."""

    @property
    def date(self) -> str:
        """The study date, YYYYMMDD; "" for none that can be read."""


T = TypeVar("T", bound=Dated)


@dataclass(frozen=True, slots=True)
class Window:
    """Study dates from `first` to `last`, both included; None: without bound. Without any, studies without date too."""

    first: date | None = None
    last: date | None = None

    @property
    def key(self) -> str:
        """Return the value of the key StudyDate, "" for none. Source: PS3.4 C.2.2.2.5."""
        first, last = (f"{each:%Y%m%d}" if each else "" for each in (self.first, self.last))
        if first == last:
            return first
        return f"{first}-{last}"

    def halves(self, today: date) -> "tuple[Window, Window] | None":
        """Return an earlier and a later window that make this one; None when it cannot be cut."""
        low = self.first or min(_OLDEST, self.last or _OLDEST)
        high = self.last or max(today, low)
        if self.last is None and low > today:  # of clocks that are wrong, nobody knows by how much
            high = low + min(2 * (low - today), date.max - low)
        if low == high and (self.last or self.first is None or low > today):
            return None
        middle = min(low + (high - low) // 2, date.max - timedelta(days=1))
        return Window(self.first, middle), Window(middle + timedelta(days=1), self.last)


def window_from(latest: str, since: str, overlap_days: int) -> Window:
    """Return what a look asks for. `latest` is the mark, "" before the first; neither it nor `since` is passed over."""
    mark, bound = day_of(latest), day_of(since)
    if mark is None:
        return Window(bound)
    first = mark - timedelta(days=overlap_days) if (mark - date.min).days > overlap_days else date.min
    return Window(max(first, bound) if bound else first)


def listing(window: Window, ask: Callable[[Window], Iterable[T]], most: int, today: date) -> Iterator[T]:
    """Yield all that a search finds, oldest first, holding up to `most` at a time: a larger answer is asked in parts.

    Raises TOO_LARGE where one day has more than `most`, or very many days do.
    """
    waiting, searches = [window], 0
    while waiting:
        window = waiting.pop()
        searches += 1
        found = []
        for each in ask(window):
            found.append(each)
            if len(found) > most:
                break
        halves = window.halves(today)
        if len(found) <= most:
            yield from sorted(found, key=lambda each: each.date)
        elif halves is None or searches >= MOST_SEARCHES:
            message = f"more than {most} studies of one day, or of very many; narrow what is collected by filters"
            raise AppError(Category.TOO_LARGE, message, where="QIDO-RS")
        else:
            waiting += reversed(halves)


def reached(latest: str, dates: Iterable[str], now: datetime) -> str:
    """Return the mark after studies of these dates were dealt with.

    It never goes back, and never beyond a day that has begun everywhere: a study from the future, of a clock that is
    wrong, would hide all others.
    """
    today = f"{(now.astimezone(UTC) - _LATEST_ZONE).date():%Y%m%d}"
    return max([latest, *(min(each, today) for each in dates if each)])


def day_of(text: str) -> date | None:
    """Return the day that a DICOM date names, None for any other text."""
    try:
        return (
            date(int(text[:4]), int(text[4:6]), int(text[6:]))
            if len(text) == 8 and text.isascii() and text.isdigit()
            else None
        )
    except ValueError:
        return None


def pause_s(every_s: float, failures: int) -> float:
    """Return how long to leave a source alone after so many failures in a row; it doubles up to an hour."""
    return min(every_s * 2.0 ** min(failures, 30), max(every_s, LONGEST_PAUSE_S))


def next_day(now: datetime) -> datetime:
    """Return when the next day begins, by which daily quotas are counted: midnight UTC."""
    return datetime.combine(now.astimezone(UTC).date() + timedelta(days=1), time(), UTC)


def left_today(config: Mapping[str, Any], mark: Mark, now: datetime) -> tuple[int, int]:
    """Return how many instances and bytes the quotas of a day let a source still bring; very many without a quota."""
    is_today = mark.day == f"{now.astimezone(UTC):%Y%m%d}"
    used = (mark.day_instances, mark.day_bytes) if is_today else (0, 0)
    quotas = (config["collect.day_instances"], config["collect.day_bytes"])
    instances, size = (quota - gone if quota else _NO_QUOTA for quota, gone in zip(quotas, used, strict=True))
    return instances, size


def is_used_up(config: Mapping[str, Any], mark: Mark, now: datetime) -> bool:
    """Say whether a quota of the day is used up."""
    return min(left_today(config, mark, now)) <= 0


@dataclass(frozen=True, slots=True)
class Filters:
    """The filters of a schedule by the level that knows them; what is asked for Modality narrows studies, too."""

    pairs: tuple[tuple[str, str], ...]

    @property
    def of_studies(self) -> list[tuple[str, str]]:
        """Keys of a search for studies."""
        modalities = [("ModalitiesInStudy", value) for key, value in self.pairs if key == "Modality"]
        return [pair for pair in self.pairs if pair[0] not in SERIES_KEYS] + modalities

    @property
    def of_series(self) -> list[tuple[str, str]]:
        """Keys of a search for the series of a study."""
        return [pair for pair in self.pairs if pair[0] in SERIES_KEYS]


def filters_of(texts: Sequence[str]) -> Filters:
    """Return filters as they are registered, "Modality=CT". Raises INVALID for one that a look cannot use."""
    pairs = tuple((_keyword(key.strip()), value.strip()) for key, _, value in (each.partition("=") for each in texts))
    for key, value in pairs:
        if not value or key in ("StudyDate", "limit", "offset", "includefield"):
            message = "a filter is KEYWORD=VALUE; the first study date of interest is told apart from filters"
            raise AppError(Category.INVALID, message, where="filter")
    return Filters(pairs)


def agrees(match: Mapping[str, Any], pairs: Iterable[tuple[str, str]]) -> bool:
    """Say whether an answer fits the keys that were asked for, as far as it tells: a server may ignore some.

    Ranges and lists of UIDs are taken on trust. Source: PS3.4 C.2.2.2.4, wildcards.
    """
    return all(_fits(match, key, value) for key, value in pairs)


def _keyword(key: str) -> str:
    """Return the keyword of an attribute that is named by its tag, eight hex digits."""
    return keyword_for_tag(int(key, 16)) or key if re.fullmatch(r"[0-9A-Fa-f]{8}", key) else key


def _fits(match: Mapping[str, Any], key: str, wanted: str) -> bool:
    tag = tag_for_keyword(key)
    given = values(match, f"{tag:08X}" if tag is not None else key.upper())
    if not given or "-" in wanted or "\\" in wanted or "," in wanted:
        return True
    pattern = wanted.casefold().replace("[", "[[]")
    return any(fnmatchcase(each.casefold(), pattern) for each in given)
