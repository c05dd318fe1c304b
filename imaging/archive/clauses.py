"""From the matches of a query to a MongoDB filter over the keys of one collection.

Matches on the attributes of one sequence have to hold in one of its items (PS3.4 C.2.2.2.6). Every clause is one that
an index over `keys`, `words` and `moments` can narrow. Source: PS3.4 C.2.2.2.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from imaging.archive import keys
from imaging.dicomweb import Match, MatchKind
from imaging.dicomweb.moments import TIME_OF

Clause = dict[str, Any]


def clauses(matches: Iterable[Match], fields: Mapping[str, str], *, fuzzy: bool) -> list[Clause]:
    """Return one clause for each match, or for all that look into one sequence.

    fields   attributes that are fields of their own, by tag; all others are matched in `keys`
    """
    found, inside = [], dict[str, list[Match]]()
    for match in matches:
        sequence, dot, rest = match.tag.partition(".")
        if dot:
            inside.setdefault(sequence, []).append(replace(match, tag=rest))
        elif fuzzy and match.vr == "PN" and match.kind is MatchKind.ONE_OF:
            found.append(_any([_fuzzy(match.tag, value) for value in match.values]))
        else:
            found.append(_placed(match, fields.get(match.tag, f"keys.{match.tag}")))
    return found + [_in_one_item(f"keys.{sequence}", some) for sequence, some in inside.items()]


def _in_one_item(field: str, matches: Sequence[Match]) -> Clause:
    inside: dict[str, list[Match]] = {}
    parts = []
    for match in matches:
        sequence, dot, rest = match.tag.partition(".")
        if dot:
            inside.setdefault(sequence, []).append(replace(match, tag=rest))
        else:
            parts.append(_plain(match, match.tag))
    parts += [_in_one_item(sequence, some) for sequence, some in inside.items()]
    held = {field: {"$elemMatch": {"$and": parts} if len(parts) > 1 else parts[0]}}
    if all(match.kind is MatchKind.EMPTY for match in matches):
        # Of a sequence without items, every attribute inside is empty as well.
        return {"$or": [held, {field: {"$in": [keys.EMPTY, None]}}]}
    return held


def _placed(match: Match, field: str) -> Clause:
    """Return the clause of an attribute at the top: by its moment where a zone was asked and the document tells one."""
    plain = _plain(match, field)
    if not match.moments:
        return plain
    moment = f"moments.{match.tag}"
    low, high = match.moments
    bounds = {**({"$gte": low} if low else {}), **({"$lt": high} if high else {})}
    return {"$or": [{moment: bounds}, {"$and": [plain, {moment: None}]}]}


def _plain(match: Match, field: str) -> Clause:
    return _MADE[match.kind](match, field)


def _one_of(match: Match, field: str) -> Clause:
    if match.vr == "PN":
        return _any([_groups(field, value, str) for value in match.values])
    texts = [text for value in match.values for text in keys.normalised(match.vr, value)]
    wanted: list[Any] = [int(text) for text in texts] if field == "number" else list(texts)
    return {field: {"$in": wanted}} if len(wanted) > 1 else {field: wanted[0]}


def _wildcard(match: Match, field: str) -> Clause:
    if match.vr == "PN":
        return _any([_groups(field, value, _regex) for value in match.values])
    return _any([{field: _regex(text)} for value in match.values for text in keys.normalised(match.vr, value)])


def _range(match: Match, field: str) -> Clause:
    low, high = match.values
    return {field: {**({"$gte": low} if low else {"$gt": keys.EMPTY}), **({"$lt": high + "\uffff"} if high else {})}}


def _period(match: Match, field: str) -> Clause:
    """Return the clause of a date and the time beside it as one moment."""
    low_date, low_time, high_date, high_time = match.values
    time = f"keys.{TIME_OF[match.tag]}"
    bounds = {**({"$gte": low_date} if low_date else {"$gt": keys.EMPTY}), **({"$lte": high_date} if high_date else {})}
    parts: list[Clause] = [{field: bounds}]
    if low_time:
        parts.append({"$or": [{field: {"$gt": low_date}}, {field: low_date, time: {"$gte": low_time}}]})
    if high_time:
        before = {"$gt": keys.EMPTY, "$lt": high_time + "\uffff"}
        parts.append({"$or": [{field: {"$lt": high_date}}, {field: high_date, time: before}]})
    return {"$and": parts}


def _empty(_: Match, field: str) -> Clause:
    return {field: keys.EMPTY if field.startswith("keys.") else None}


_MADE: Mapping[MatchKind, Callable[[Match, str], Clause]] = {
    MatchKind.ONE_OF: _one_of,
    MatchKind.WILDCARD: _wildcard,
    MatchKind.RANGE: _range,
    MatchKind.PERIOD: _period,
    MatchKind.EMPTY: _empty,
}


def _groups(field: str, name: str, form: Callable[[str], Any]) -> Clause:
    """Return the clause of a name: each component group that is given has to be one of the stored ones."""
    parts = [{field: form(group)} for group in keys.normalised("PN", name) if group != "*"]
    return {"$and": parts} if len(parts) > 1 else parts[0] if parts else {}


def _fuzzy(tag: str, name: str) -> Clause:
    """Return the clause of a name each of whose words begins some word of the stored one (PS3.4 C.2.2.2.1.1)."""
    parts = [{f"words.{tag}": {"$regex": f"^{re.escape(word)}"}} for word in keys.words_of(name)]
    return {"$and": parts} if parts else {}


def _any(parts: list[Clause]) -> Clause:
    return parts[0] if len(parts) == 1 else {"$or": parts}


def _regex(text: str) -> Clause:
    meant = "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in text)
    pattern = f"^{meant.removesuffix('.*')}" if meant.endswith(".*") else f"^{meant}$"
    return {"$regex": pattern, "$options": "s"}
