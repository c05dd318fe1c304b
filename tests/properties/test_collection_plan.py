"""What a look asks for: nothing that arrives within the overlap is lost, in whatever order and however it is cut."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fhir_server.work.collection import plan
from fhir_server.work.collection.plan import Window
from imaging.errors import AppError, Category

TODAY = date(2026, 6, 15)
NOON = datetime(2026, 6, 15, 12, tzinfo=UTC)
DAYS = st.dates(date(1980, 1, 1), date(2030, 1, 1))


@dataclass(frozen=True)
class Found:
    uid: int
    date: str


def dicom(day: date | None) -> str:
    return f"{day:%Y%m%d}" if day else ""


def matches(window: Window, study: Found) -> bool:
    """What a server finds for a key StudyDate: PS3.4 C.2.2.2.5, range matching; no key matches all."""
    if not window.key:
        return True
    low, dash, high = window.key.partition("-")
    return bool(study.date) and low <= study.date <= (high or "99999999" if dash else low)


@example([date(2027, 1, 1), date(2027, 1, 2)], 1, None)
@example([date(9999, 12, 30), date(9999, 12, 31)], 1, None)
@given(
    st.lists(DAYS, max_size=60),
    st.integers(1, 10),
    st.one_of(st.none(), DAYS),
)
def test_a_listing_that_is_cut_into_windows_gives_each_study_once_and_oldest_first(
    days: list[date], most: int, since: date | None
) -> None:
    studies = [Found(number, dicom(day)) for number, day in enumerate(days)]
    counts = {day: days.count(day) for day in days}
    wanted = [each for each in studies if since is None or each.date >= dicom(since)]

    def ask(window: Window) -> Iterator[Found]:
        return (each for each in reversed(studies) if matches(window, each))

    if max((counts[day] for day in days if since is None or day >= since), default=0) > most:
        with pytest.raises(AppError) as refused:
            list(plan.listing(Window(since), ask, most, TODAY))
        assert refused.value.category is Category.TOO_LARGE
        return
    found = list(plan.listing(Window(since), ask, most, TODAY))

    assert sorted(each.uid for each in found) == sorted(each.uid for each in wanted)
    assert [each.date for each in found] == sorted(each.date for each in found)


@given(st.one_of(st.none(), DAYS), st.one_of(st.none(), DAYS))
def test_halves_are_smaller_and_share_no_day(first: date | None, last: date | None) -> None:
    if first and last and first > last:
        first, last = last, first
    halves = Window(first, last).halves(TODAY)

    if halves is None:
        assert first == last or last is None
        return
    early, late = halves
    assert (early.first, late.last) == (first, last)
    assert early.last is not None
    assert late.first == early.last + timedelta(days=1)
    assert first is None or first <= early.last
    assert last is None or late.first <= last


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]], list[int]]:
    """An overlap, (day of the study, day on which it appears at the source), and days on which it is looked at."""
    overlap = draw(st.integers(0, 10))
    studies = draw(
        st.lists(
            st.integers(0, 60).flatmap(lambda day: st.tuples(st.just(day), st.integers(day, day + overlap))),
            max_size=40,
        )
    )
    looks = sorted(draw(st.sets(st.integers(0, 70), max_size=20)))
    return overlap, studies, looks


@given(arrivals(), st.integers(1, 5))
def test_nothing_is_lost_that_appears_within_the_overlap_however_few_a_round_takes(
    case: tuple[int, list[tuple[int, int]], list[int]], most: int
) -> None:
    overlap, studies, looks = case
    begin = date(2026, 1, 1)
    collected: set[int] = set()
    latest = ""

    for day in [*looks, *[80] * (len(studies) + 1)]:  # looked at often at the end, so that each round may take few
        now = datetime.combine(begin + timedelta(days=day), NOON.timetz())
        there = [
            Found(n, dicom(begin + timedelta(days=dated))) for n, (dated, seen) in enumerate(studies) if seen <= day
        ]
        window = plan.window_from(latest, "", overlap)
        listed = sorted((each for each in there if matches(window, each)), key=lambda each: each.date)
        new = [each for each in listed if each.uid not in collected]
        taken = new[:most]
        collected |= {each.uid for each in taken}
        latest = plan.reached(latest, [each.date for each in (listed if len(taken) == len(new) else taken)], now)

    assert collected == set(range(len(studies)))


@given(st.lists(st.one_of(DAYS.map(dicom), st.just(""))), DAYS.map(dicom))
def test_the_mark_never_goes_back_and_never_into_the_future(dates: list[str], before: str) -> None:
    after = plan.reached(before, dates, NOON)

    assert after >= before
    assert after <= max(before, dicom(TODAY))


def test_a_study_from_the_future_hides_none() -> None:
    mark = plan.reached("20260610", ["29990101", "20260611"], NOON)

    assert plan.window_from(mark, "", 3) == Window(date(2026, 6, 12))


@pytest.mark.parametrize(
    ("latest", "since", "first"),
    [
        ("", "", None),
        ("", "20250101", date(2025, 1, 1)),
        ("20260610", "", date(2026, 6, 7)),
        ("20260610", "20260609", date(2026, 6, 9)),
        ("20260610", "20250101", date(2026, 6, 7)),
        ("00010102", "", date(1, 1, 1)),
    ],
)
def test_a_look_begins_at_the_mark_less_the_overlap_and_not_before_the_first_date_of_interest(
    latest: str, since: str, first: date | None
) -> None:
    assert plan.window_from(latest, since, 3) == Window(first)


@given(st.floats(1, 100_000), st.integers(1, 1_000))
def test_pauses_double_up_to_an_hour_or_the_schedule(every_s: float, failures: int) -> None:
    pause, longer = plan.pause_s(every_s, failures), plan.pause_s(every_s, failures + 1)

    assert pause >= every_s
    assert longer in (2 * pause, max(every_s, 3_600.0))
    assert longer <= max(every_s, 3_600.0)
