"""QIDO-RS queries: URL parameters -> `Matching`, a plain description of what is asked.

Hides the spellings of attributes (keyword, tag, dotted path), the matching rules of each value representation and the
paging parameters. Matching itself is the archive's. Sources: PS3.18 8.3.4 and 10.6.1, PS3.4 C.2.2.2.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum

from pydicom.datadict import dictionary_VR, tag_for_keyword

from imaging.dicomweb import moments
from imaging.errors import AppError, Category

ALL = frozenset({"all"})
MAX_MATCHES = 64
MAX_PATH_DEPTH = 8
MAX_VALUE_CHARS = 65_536  # a list of UIDs may be long
MAX_VALUES = 1_000
MAX_WILDCARDS = 16
MAX_OFFSET = 1_000_000_000
STUDY_INSTANCE_UID = "0020000D"
SERIES_INSTANCE_UID = "0020000E"
SPECIFIC_CHARACTER_SET = "00080005"
TIMEZONE_OFFSET_FROM_UTC = "00080201"
UTF_8 = "ISO_IR 192"


class Level(StrEnum):
    """What a query returns."""

    STUDIES = "studies"
    SERIES = "series"
    INSTANCES = "instances"


class MatchKind(StrEnum):
    """How the values of a match are meant."""

    ONE_OF = "one-of"
    WILDCARD = "wildcard"  # one of the patterns; "*" any run of characters, "?" one; others stand for themselves
    RANGE = "range"  # (low, high): low <= value < high + U+FFFF as text, "" open; so a short bound covers its period
    PERIOD = "period"  # (low date, low time, high date, high time) of a date and the time beside it; "" open
    EMPTY = "empty"  # absent or without value


@dataclass(frozen=True, slots=True)
class Match:
    """One condition. `tag` is eight hex digits in upper case; items of sequences follow after dots.

    moments   (low, high) in UTC as `moments.text` writes them, low <= moment < high, "" open, where a time zone was
              asked: it goes for what tells its own zone; what does not is compared by `values`
    """

    tag: str
    vr: str
    kind: MatchKind
    values: tuple[str, ...] = ()
    moments: tuple[str, ...] = ()

    @property
    def top(self) -> str:
        """The attribute of the data set itself: the sequence, where the condition is on what is inside."""
        return self.tag.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Matching:
    """A query: all matches must hold. `include` holds tags (dotted in sequences) or is `ALL`."""

    level: Level
    matches: tuple[Match, ...] = ()
    include: frozenset[str] = frozenset()
    limit: int | None = None
    offset: int = 0
    fuzzy: bool = False

    def within(self, study_uid: str | None = None, series_uid: str | None = None) -> "Matching":
        """Return the query narrowed to one study or series, as the path of a request says; what was asked stays."""
        uids = {STUDY_INSTANCE_UID: study_uid, SERIES_INSTANCE_UID: series_uid}
        narrow = tuple(Match(tag, "UI", MatchKind.ONE_OF, (uid,)) for tag, uid in uids.items() if uid)
        return replace(self, matches=narrow + self.matches)


def parse_query(level: Level, parameters: Iterable[tuple[str, str]], *, max_limit: int | None = None) -> Matching:
    """Return what the (name, value) pairs of a search URL ask for.

    A repeated attribute means any of its values. A `limit` is cut to `max_limit`; None means none was given.
    Raises INVALID, naming the parameter and never its value.
    """
    asked: dict[str, list[str]] = {}
    options: dict[str, list[str]] = {}
    for name, value in parameters:
        if len(value) > MAX_VALUE_CHARS:
            raise _invalid(name, f"value longer than {MAX_VALUE_CHARS} characters")
        option = name.lower()
        if option in _OPTIONS:
            options.setdefault(option, []).append(value)
        else:
            asked.setdefault(name, []).append(value)
    if len(asked) > MAX_MATCHES:
        raise AppError(Category.INVALID, f"more than {MAX_MATCHES} attributes", where="query")
    include = _included(options.get("includefield", []))
    _boolean("multiplevaluematching", options)  # several values are always understood
    matches, named = _matches(asked, match_empty=_boolean("emptyvaluematching", options))
    if include is not ALL:
        include |= named
    limit = _number("limit", options)
    if max_limit is not None and limit is not None:
        limit = min(limit, max_limit)
    offset = _number("offset", options) or 0
    return Matching(level, tuple(matches), include, limit, offset, _boolean("fuzzymatching", options))


def _matches(asked: dict[str, list[str]], *, match_empty: bool) -> tuple[list[Match], frozenset[str]]:
    """Return the conditions, and the tags of all attributes that were named."""
    matches: dict[str, Match] = {}
    named = set()
    zone_minutes = None
    for name, values in asked.items():
        tag, vr = attribute(name)
        named.add(tag)
        if tag == TIMEZONE_OFFSET_FROM_UTC and any(values):
            zone_minutes = _zone(name, values)
        elif tag == SPECIFIC_CHARACTER_SET:
            _check_character_set(name, values)
        elif match := _match(name, tag, vr, values, match_empty):
            matches[name] = match
    return _combined(matches, zone_minutes), frozenset(named)


def attribute(name: str) -> tuple[str, str]:
    """Return (tag path, VR) of a keyword, an eight-digit tag, or a dotted path of them. Raises INVALID for others.

    The VR of a private attribute is "UN". Of an attribute with a choice of VRs it is the first.
    """
    steps = name.split(".")
    if len(steps) > MAX_PATH_DEPTH:
        raise _invalid(name, f"path deeper than {MAX_PATH_DEPTH}")
    found = [_step(name, step) for step in steps]
    if any(vr not in ("SQ", "UN") for _, vr in found[:-1]):
        raise _invalid(name, "only sequences have attributes inside")
    return ".".join(tag for tag, _ in found), found[-1][1]


_OPTIONS = {
    "limit", "offset", "includefield", "fuzzymatching", "emptyvaluematching", "multiplevaluematching", "accept",
    "charset",
}  # fmt: skip
_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_UID = re.compile(r"[0-9.]{1,64}")
_DATE = re.compile(r"\d{8}")
_TIME = re.compile(r"(?:[01]\d|2[0-3])(?:[0-5]\d(?:(?:[0-5]\d|60)(?:\.\d{1,6})?)?)?")
_MOMENT = r"\d{4}(?:(?:\d{2}){1,5}(?:\.\d{1,6})?)?(?:[+-](?:0\d|1[0-4])[0-5]\d)?"
_DATE_TIMES = re.compile(rf"({_MOMENT})?(-)?({_MOMENT})?")
_INTEGER = re.compile(r"[+-]?\d{1,20}")
_INTEGERS = {"IS", "US", "SS", "UL", "SL", "UV", "SV"}
_DECIMALS = {"DS", "FL", "FD"}
_NOT_MATCHED = {"SQ", "OB", "OD", "OF", "OL", "OV", "OW", "AT"}


def _step(name: str, step: str) -> tuple[str, str]:
    tag = int(step, 16) if _TAG.fullmatch(step) else tag_for_keyword(step) if step.isalnum() else None
    if tag is None:
        raise _invalid(name, "no such parameter and no DICOM attribute of this name")
    try:
        vr = dictionary_VR(tag)[:2]
    except KeyError:
        if not (tag >> 16) & 1:
            raise _invalid(name, "no such DICOM attribute") from None
        vr = "UN"
    return f"{tag:08X}", vr


def _match(name: str, tag: str, vr: str, values: list[str], match_empty: bool) -> Match | None:
    """Return the condition that the values make; None for universal matching (PS3.4 C.2.2.2.3)."""
    texts = [value.strip() for value in values]
    if match_empty and texts == ['""']:
        return Match(tag, vr, MatchKind.EMPTY)
    if any(not text.strip("*") for text in texts):
        return None
    if vr in _NOT_MATCHED:
        raise _invalid(name, f"attributes of VR {vr} cannot be matched")
    if vr in _RANGES:
        if len(texts) > 1:
            raise _invalid(name, "given more than once")
        return _range_match(name, tag, vr, texts[0])
    separators = r"[\\,]" if vr in ("UI", "CS") else r"\\"
    pieces = [piece.strip() for text in texts for piece in re.split(separators, text)]
    if not all(pieces) or len(pieces) > MAX_VALUES:
        raise _invalid(name, f"a list of 1 to {MAX_VALUES} values without empty ones expected")
    if vr == "UI" or vr in _INTEGERS | _DECIMALS:
        return Match(tag, vr, MatchKind.ONE_OF, tuple(_plain(name, vr, piece) for piece in pieces))
    return _text_match(name, tag, vr, pieces)


def _plain(name: str, vr: str, text: str) -> str:
    if vr == "UI":
        if not _UID.fullmatch(text):
            raise _invalid(name, "not a UID")
        return text
    try:
        if vr in _INTEGERS:
            return str(int(text)) if _INTEGER.fullmatch(text) else str(int(""))
        return str(float(text))
    except ValueError:
        raise _invalid(name, "not a number") from None


def _text_match(name: str, tag: str, vr: str, pieces: list[str]) -> Match:
    if not any("*" in piece or "?" in piece for piece in pieces):
        return Match(tag, vr, MatchKind.ONE_OF, tuple(pieces))
    patterns = tuple(re.sub(r"\*+", "*", piece) for piece in pieces)
    if any(pattern.count("*") + pattern.count("?") > MAX_WILDCARDS for pattern in patterns):
        raise _invalid(name, f"more than {MAX_WILDCARDS} wildcards")
    return Match(tag, vr, MatchKind.WILDCARD, patterns)


def _range_match(name: str, tag: str, vr: str, text: str) -> Match:
    if vr == "DT":
        return _date_time_match(name, tag, text)
    bounds = [bound.strip() for bound in text.split("-")]
    is_valid, expected = _RANGES[vr]
    if len(bounds) > 2 or not any(bounds) or not all(is_valid(bound) for bound in bounds if bound):
        raise _invalid(name, f"{expected} or a range of two expected")
    low, high = bounds[0], bounds[-1]
    if vr == "DA" and len(bounds) == 1:
        return Match(tag, vr, MatchKind.ONE_OF, (low,))
    if vr == "DA" and low and high and low > high:
        raise _invalid(name, "the range ends before it begins")
    if vr == "TM":
        low = _without_zeros(low, 2)
    return Match(tag, vr, MatchKind.RANGE, (low, high))


def _date_time_match(name: str, tag: str, text: str) -> Match:
    """Return the condition on a date and time; a zone is told by its sign (PS3.5 table 6.2-1)."""
    found = _DATE_TIMES.fullmatch(text.replace(" ", "+"))  # a plus sign that was not escaped in the URL
    if not found or not (found[1] or found[3]) or (found[1] and found[3] and not found[2]):
        raise _invalid(name, "a date and time as YYYYMMDDHHMMSS.FFFFFF&ZZXX or a range of two expected")
    low, high = (found[1] or "", found[3] or "") if found[2] else (found[1] or found[3],) * 2
    zones = [moments.zone_of(bound) for bound in (low, high) if bound]
    plain = _without_zeros(moments.without_zone(low), 8), moments.without_zone(high)
    zone = next((zone for zone in zones if zone is not None), None)
    told = _bounds(name, low, high, zone or 0)
    return Match(tag, "DT", MatchKind.RANGE, plain, told if zone is not None else ())


def _bounds(name: str, low: str, high: str, zone_minutes: int) -> tuple[str, str]:
    try:
        return moments.bounds(low, high, zone_minutes)
    except (ValueError, OverflowError):
        raise _invalid(name, "no such date and time") from None


def _without_zeros(low: str, keep: int) -> str:
    """Return the shortest text of the same moment, so that what is stored as 10:30 is not before 10:30:00."""
    low = re.sub(r"\.0*$", "", low.rstrip("0") if "." in low else low)
    while "." not in low and len(low) > keep and low.endswith("00"):
        low = low[:-2]
    return low


def _is_date(text: str) -> bool:
    if not _DATE.fullmatch(text):
        return False
    try:
        date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return False
    return True


_RANGES: dict[str, tuple[Callable[[str], object], str]] = {
    "DA": (_is_date, "a date as YYYYMMDD"),
    "TM": (_TIME.fullmatch, "a time as HHMMSS.FFFFFF"),
    "DT": (_DATE_TIMES.fullmatch, "a date and time"),
}


def _zone(name: str, values: list[str]) -> int:
    """Return the minutes by which a zone is ahead of UTC."""
    if len(values) > 1:
        raise _invalid(name, "given more than once")
    text = values[0].strip()
    found = moments.zone_of("+" + text if text[:1].isdigit() else text)  # an unescaped plus sign came as a space
    if found is None:
        raise _invalid(name, "an offset from -1200 to +1400 expected")
    return found


def _check_character_set(name: str, values: list[str]) -> None:
    """An address is UTF-8 whatever it says; the attribute is never matched (PS3.4 C.2.2.2)."""
    if any(value.strip() not in ("", "*", UTF_8) for value in values):
        raise _invalid(name, f"addresses are in UTF-8, {UTF_8}; the attribute itself is not matched")


def _combined(matches: Mapping[str, Match], zone_minutes: int | None) -> list[Match]:
    """Return the matches (by name) with a date and the time beside it as one, where they are one range.

    In a zone both are one in any form. Raises INVALID for a time in a zone without its date. Source: PS3.4 C.2.2.2.5.4.
    """
    by_tag = {match.tag: match for match in matches.values()}
    found = []
    for name, match in matches.items():
        if match.tag in _DATE_OF:
            day = by_tag.get(_DATE_OF[match.tag])
            if _is_one_range(day, match, zone_minutes):
                continue
            if zone_minutes is not None and match.kind is MatchKind.RANGE:
                raise _invalid(name, "a time in another zone needs its date as well")
        time = by_tag.get(moments.TIME_OF.get(match.tag, ""))
        if match.tag in moments.TIME_OF and _is_one_range(match, time, zone_minutes):
            match = _period(match, time, zone_minutes)
        elif _is_unplaced(match) and zone_minutes is not None:
            match = replace(match, moments=_bounds(name, match.values[0], match.values[1], zone_minutes))
        elif match.vr == "TM" and match.kind is MatchKind.RANGE and _is_backwards(*match.values):
            raise _invalid(name, "the range ends before it begins; one over midnight needs a range of dates")
        found.append(match)
    return found


def _is_one_range(day: Match | None, time: Match | None, zone_minutes: int | None) -> bool:
    if day is None or day.kind not in (MatchKind.ONE_OF, MatchKind.RANGE):
        return False
    if time is None or time.kind is not MatchKind.RANGE:
        return zone_minutes is not None and time is None
    if zone_minutes is not None:
        return True
    if day.kind is not MatchKind.RANGE or _without_zeros(time.values[1], 2) == time.values[0]:
        return False
    # The same form: both closed, or both open to the same side.
    return [*map(bool, day.values)] == [*map(bool, time.values)]


def _is_unplaced(match: Match) -> bool:
    """Say whether this is a date and time that tells no zone."""
    return match.vr == "DT" and match.kind is MatchKind.RANGE and not match.moments


def _is_backwards(low: str, high: str) -> bool:
    return bool(low and high) and low[: len(high)] > high[: len(low)]


def _period(day: Match, time: Match | None, zone_minutes: int | None) -> Match:
    low_date, high_date = day.values if len(day.values) == 2 else day.values * 2
    low_time, high_time = time.values if time else ("", "")
    bounds: tuple[str, ...] = ()
    if zone_minutes is not None:
        bounds = _bounds(day.tag, low_date and low_date + low_time, high_date and high_date + high_time, zone_minutes)
    return Match(day.tag, "DA", MatchKind.PERIOD, (low_date, low_time, high_date, high_time), bounds)


_DATE_OF = {time: day for day, time in moments.TIME_OF.items()}


def _included(values: list[str]) -> frozenset[str]:
    names = [name.strip() for value in values for name in value.split(",")]
    if len(names) > MAX_VALUES:
        raise _invalid("includefield", f"more than {MAX_VALUES} attributes")
    tags = {"all" if name == "all" else attribute(name)[0] for name in names if name}
    return ALL if "all" in tags else frozenset(tags)


def _number(name: str, options: dict[str, list[str]]) -> int | None:
    text = _single(name, options)
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,10}", text, re.ASCII) or int(text) > MAX_OFFSET:
        raise _invalid(name, f"a number from 0 to {MAX_OFFSET} expected")
    return int(text)


def _boolean(name: str, options: dict[str, list[str]]) -> bool:
    text = _single(name, options)
    if text not in (None, "true", "false"):
        raise _invalid(name, "true or false expected")
    return text == "true"


def _single(name: str, options: dict[str, list[str]]) -> str | None:
    values = options.get(name, [])
    if len(values) > 1:
        raise _invalid(name, "given more than once")
    return values[0].strip() if values and values[0].strip() else None


def _invalid(name: str, message: str) -> AppError:
    shown = name if len(name) <= 300 and name.isprintable() else "query parameter"
    return AppError(Category.INVALID, message, where=shown)
