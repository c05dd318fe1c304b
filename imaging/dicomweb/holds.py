"""Matching of one data set: whether the conditions of a query hold of a DICOM JSON object.

What the archive does by an index, for data sets that are made when they are asked for, such as work items. A value in
any item of a sequence is enough. Source: PS3.4 C.2.2.2.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from imaging.dicomweb import moments
from imaging.dicomweb.query import Match, MatchKind
from imaging.wildcards import matches

_AFTER_ALL = "\uffff"
_NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")


def holds(match: Match, document: Mapping[str, Any], *, fuzzy: bool = False) -> bool:
    """Say whether a condition holds. Names match without regard to case; fuzzily, by the beginnings of their words."""
    found = [text for value in _values(document, match.tag.split(".")) for text in _texts(value)]
    if match.kind is MatchKind.EMPTY:
        return not any(found)
    if match.kind is MatchKind.PERIOD:
        return False  # a date and the time beside it, which work items have as one
    if match.vr == "PN" and fuzzy:
        return any(_is_alike(name, wanted) for name in found for wanted in match.values)
    return any(_KINDS[match.kind](match, text) for text in found if text)


def _values(document: Mapping[str, Any], path: list[str]) -> Iterator[Any]:
    inside = document.get(path[0], {}).get("Value", [])
    if len(path) == 1:
        yield from inside
        return
    for item in inside:
        yield from _values(item or {}, path[1:])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from (value[group] for group in _NAME_GROUPS if value.get(group))
    elif value is not None:
        yield str(value)


def _is_one_of(match: Match, text: str) -> bool:
    if match.vr == "PN":
        return text.casefold() in {each.casefold() for each in match.values}
    if match.vr in ("DS", "FL", "FD"):
        return any(float(each) == _number(text) for each in match.values)
    return text in match.values


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _is_like(match: Match, text: str) -> bool:
    if match.vr == "PN":
        return any(matches(pattern.casefold(), text.casefold()) for pattern in match.values)
    return any(matches(pattern, text) for pattern in match.values)


def _is_within(match: Match, text: str) -> bool:
    low, high = match.values
    told = moments.zone_of(text) if match.vr == "DT" else None
    if told is not None:
        # A range without a zone is one of UTC, in which this server tells its own times.
        low, high = match.moments or moments.bounds(low, high, 0)
        text = moments.moment_of(text, None)
        return bool(text) and (not low or low <= text) and (not high or text < high)
    return (not low or low <= text) and (not high or text < high + _AFTER_ALL)


def _is_alike(name: str, wanted: str) -> bool:
    words = re.split(r"[\s^=]+", name.casefold())
    return all(any(word.startswith(part) for word in words) for part in re.split(r"[\s^=]+", wanted.casefold()) if part)


_KINDS = {MatchKind.ONE_OF: _is_one_of, MatchKind.WILDCARD: _is_like, MatchKind.RANGE: _is_within}
