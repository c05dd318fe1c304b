"""Moments: dates and times of DICOM in UTC, as text that sorts.

A DICOM date, time or date and time may be cut short and then means the whole period that it names.
Sources: PS3.5 table 6.2-1 (DA, TM, DT), PS3.3 C.12.1 (Timezone Offset From UTC).
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Final

TIME_OF: Final[Mapping[str, str]] = {
    # date       time
    "00080020": "00080030",  # Study
    "00080021": "00080031",  # Series
    "00080022": "00080032",  # Acquisition
    "00080023": "00080033",  # Content
    "00400244": "00400245",  # Performed Procedure Step Start
}
"""The attribute that holds the time of day of a date."""

_ZONE: Final = re.compile(r"[+-](?:0\d|1[0-4])[0-5]\d$")
_WIDTHS: Final = (4, 6, 8, 10, 12, 14)  # digits of a year, a month, a day, an hour, a minute, a second
_LAST_YEAR: Final = 9998


def zone_of(text: str) -> int | None:
    """Return the minutes ahead of UTC that a text ends in, as "+0130"; None without."""
    found = _ZONE.search(text)
    if not found:
        return None
    sign = -1 if found[0][0] == "-" else 1
    return sign * (60 * int(found[0][1:3]) + int(found[0][3:5]))


def without_zone(text: str) -> str:
    """Return a date and time without the zone at its end."""
    return _ZONE.sub("", text)


def text(moment: datetime) -> str:
    """Return an aware moment as text; texts sort as moments do."""
    return moment.astimezone(UTC).strftime("%Y%m%d%H%M%S.%f")


def moment_of(written: str, zone_minutes: int | None) -> str:
    """Return the first moment of a date and time as `text` writes it; its own zone goes before the one given.

    "" where neither tells a zone, where the hour is missing, or where there is no such time.
    """
    own = zone_of(written)
    zone = zone_minutes if own is None else own
    plain = without_zone(written)
    if zone is None or len(plain) < 10:
        return ""
    try:
        return text(_first(plain, zone))
    except (ValueError, OverflowError):
        return ""


def bounds(low: str, high: str, zone_minutes: int) -> tuple[str, str]:
    """Return the first moment of `low` and the first one after `high`, "" where open. Raises ValueError."""
    ends = []
    for written, edge in ((low, _first), (high, _after)):
        own = zone_of(written)
        plain = without_zone(written)
        ends.append(text(edge(plain, zone_minutes if own is None else own)) if plain else "")
    return ends[0], ends[1]


def _first(plain: str, zone_minutes: int) -> datetime:
    digits, _, fraction = plain.partition(".")
    numbers = [int(digits[start:end]) for start, end in zip((0, *_WIDTHS), _WIDTHS, strict=False) if digits[start:end]]
    year, month, day, hour, minute, second = (*numbers, *(0, 1, 1, 0, 0, 0)[len(numbers) :])
    if not 1 < year <= _LAST_YEAR:
        raise ValueError(year)
    zone = timezone(timedelta(minutes=zone_minutes))
    # A leap second is the last moment of its minute.
    at = datetime(year, month, day, hour, minute, min(second, 59), tzinfo=zone)
    return at + timedelta(microseconds=int(fraction.ljust(6, "0")[:6]) if fraction else 0)


def _after(plain: str, zone_minutes: int) -> datetime:
    first = _first(plain, zone_minutes)
    digits, _, fraction = plain.partition(".")
    if fraction:
        return first + timedelta(microseconds=10 ** (6 - len(fraction)))
    steps = {
        10: timedelta(hours=1), 12: timedelta(minutes=1), 14: timedelta(seconds=1), 8: timedelta(days=1),
    }  # fmt: skip
    if len(digits) in steps:
        return first + steps[len(digits)]
    if len(digits) == 6 and first.month < 12:
        return first.replace(month=first.month + 1)
    return first.replace(year=first.year + 1, month=1)
