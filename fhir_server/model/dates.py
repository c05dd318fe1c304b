"""FHIR dates as half-open intervals of time: `2012-03` is the whole of March 2012.

A time without zone counts as UTC; bounds outside the years 1 to 9999 are clamped. Source: FHIR R4 search, date.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from imaging.errors import AppError, Category

EARLIEST = datetime(1, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC)

_FORM = re.compile(
    r"(?P<year>\d{4})(?:-(?P<month>\d\d)(?:-(?P<day>\d\d)"
    r"(?:T(?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.(?P<fraction>\d+))?)?(?P<zone>Z|[+-]\d\d:\d\d)?)?)?)?",
    re.ASCII,
)


class Interval(NamedTuple):
    """Moments from `low` (included) to `high` (excluded), both aware UTC, in whole milliseconds."""

    low: datetime
    high: datetime


def interval(text: str) -> Interval:
    """Return the interval that a FHIR date, dateTime or instant covers. Raises INVALID for any other text."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise AppError(Category.INVALID, "a date has the form YYYY[-MM[-DD[Thh:mm[:ss[.fff]][zone]]]]")
    part = match.groupdict()
    try:
        low = _start(part)
    except (ValueError, OverflowError):
        raise AppError(Category.INVALID, "no such date or time in the calendar") from None
    return Interval(low, _end(low, part))


def to_instant(moment: datetime) -> str:
    """Return an aware datetime as a FHIR instant in UTC with milliseconds."""
    utc = moment.astimezone(UTC)
    return f"{utc:%Y-%m-%dT%H:%M:%S}.{utc.microsecond // 1000:03d}Z".rjust(24, "0")


def whole_milliseconds(moment: datetime) -> datetime:
    """Return the moment cut to milliseconds, which is what the database and a FHIR instant keep."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _start(part: dict[str, str | None]) -> datetime:
    year, month, day = (int(part[name] or 1) for name in ("year", "month", "day"))
    hour, minute, second = (int(part[name] or 0) for name in ("hour", "minute", "second"))
    milliseconds = int((part["fraction"] or "0")[:3].ljust(3, "0"))
    second = min(second, 59)  # a leap second, which FHIR allows, counts as the one before it
    local = datetime(year, month, day, hour, minute, second, milliseconds * 1000, tzinfo=UTC)
    zone = part["zone"]
    if zone is None or zone == "Z":
        return local
    offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[4:6]))
    return _shift(local, -offset if zone.startswith("+") else offset)


_STEPS = {
    "fraction": timedelta(milliseconds=1),
    "second": timedelta(seconds=1),
    "minute": timedelta(minutes=1),
    "day": timedelta(days=1),
}


def _end(low: datetime, part: dict[str, str | None]) -> datetime:
    for name, step in _STEPS.items():
        if part[name] is not None:
            return _shift(low, step)
    year, month = low.year, low.month
    if part["month"] is None or month == 12:
        return LATEST if year == 9999 else datetime(year + 1, 1, 1, tzinfo=UTC)
    return datetime(year, month + 1, 1, tzinfo=UTC)


def _shift(moment: datetime, step: timedelta) -> datetime:
    try:
        return min(moment + step, LATEST)
    except OverflowError:
        return LATEST if step > timedelta(0) else EARLIEST
