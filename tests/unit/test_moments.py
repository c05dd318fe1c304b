"""Dates and times in UTC. Expected values: PS3.5 table 6.2-1, and the calendar of Python."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging.dicomweb import moments


@pytest.mark.parametrize(
    ("written", "zone", "expected"),
    [
        ("20260101101500", 60, "20260101091500.000000"),
        ("2026010100", 60, "20251231230000.000000"),
        ("20260101101500.5-0500", 60, "20260101151500.500000"),
        ("20260101235960", 0, "20260101235959.000000"),
        ("20260101101500", None, ""),
        ("20260101", 0, ""),
        ("20261301101500", 0, ""),
        ("00010101000000", 840, ""),
        ("not a date", 0, ""),
    ],
)
def test_a_moment_needs_an_hour_and_a_zone(written: str, zone: int | None, expected: str) -> None:
    assert moments.moment_of(written, zone) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        ("20260101", "20260101", ("20260101000000.000000", "20260102000000.000000")),
        ("2026", "2026", ("20260101000000.000000", "20270101000000.000000")),
        ("202612", "202612", ("20261201000000.000000", "20270101000000.000000")),
        ("202601", "202601", ("20260101000000.000000", "20260201000000.000000")),
        ("2026010110", "2026010110", ("20260101100000.000000", "20260101110000.000000")),
        ("202601011030", "202601011030", ("20260101103000.000000", "20260101103100.000000")),
        ("20260101103000.1", "20260101103000.1", ("20260101103000.100000", "20260101103000.200000")),
        ("", "20260101-0500", ("", "20260102050000.000000")),
    ],
)
def test_a_bound_covers_the_period_that_it_names(low: str, high: str, expected: tuple[str, str]) -> None:
    assert moments.bounds(low, high, 0) == expected


@pytest.mark.parametrize(("text", "minutes"), [("+0100", 60), ("-0330", -210), ("+1400", 840), ("0100", None)])
def test_a_zone_is_told_by_its_sign(text: str, minutes: int | None) -> None:
    assert moments.zone_of(text) == minutes


DAYS = st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1))
ZONES = st.integers(-720, 840)


@given(DAYS, DAYS, ZONES)
def test_texts_sort_as_moments_do(one: datetime, other: datetime, zone: int) -> None:
    here = timezone(timedelta(minutes=zone))
    a, b = one.replace(tzinfo=here), other.replace(tzinfo=UTC)

    assert (moments.text(a) < moments.text(b)) == (a < b)


@given(DAYS, ZONES)
def test_a_moment_lies_within_the_bounds_of_its_day_in_every_zone(one: datetime, zone: int) -> None:
    low, high = moments.bounds(f"{one:%Y%m%d}", f"{one:%Y%m%d}", zone)

    assert low <= moments.moment_of(f"{one:%Y%m%d%H%M%S.%f}", zone) < high
