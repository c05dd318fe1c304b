"""QIDO-RS matching on the summaries: `Matching` -> MongoDB filter -> DICOM JSON.

Every asked condition is applied or refused, never ignored. Results are stably ordered: studies newest first, series and
instances in reading order, UIDs breaking ties. Sources: PS3.18 10.6, PS3.4 C.2.2.2.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import orjson
from pymongo import ASCENDING, DESCENDING
from pymongo.database import Database

from imaging.archive import attributes
from imaging.archive.attributes import SERIES_INSTANCE_UID, SOP_INSTANCE_UID, STUDY_INSTANCE_UID, Attributes
from imaging.archive.catalogue import Document
from imaging.archive.summaries import metadata
from imaging.blobs import BlobStore
from imaging.dicomweb import Level, Match, Matching, MatchKind
from imaging.dicomweb.query import ALL
from imaging.errors import AppError, Category

MAX_PARENTS = 20_000  # studies or series that the conditions of a higher level may match
BULK_VRS = {"OB", "OD", "OF", "OL", "OV", "OW", "UN"}

Allowed = Callable[[str], bool]

# Attributes that are fields of their own; all others are matched in `keys`. None: the collection's `_id`.
_FIELDS = {
    Level.STUDIES: {STUDY_INSTANCE_UID: "_id"},
    Level.SERIES: {STUDY_INSTANCE_UID: "study", SERIES_INSTANCE_UID: "_id"},
    Level.INSTANCES: {
        STUDY_INSTANCE_UID: "study",
        SERIES_INSTANCE_UID: "series",
        SOP_INSTANCE_UID: "_id",
        "00080016": "class",
        "00200013": "number",
    },
}
_COUNTED = {
    Level.STUDIES: {
        attributes.MODALITIES_IN_STUDY,
        attributes.SOP_CLASSES_IN_STUDY,
        attributes.NUMBER_OF_STUDY_RELATED_SERIES,
        attributes.NUMBER_OF_STUDY_RELATED_INSTANCES,
    },
    Level.SERIES: {attributes.NUMBER_OF_SERIES_RELATED_INSTANCES},
    Level.INSTANCES: set[str](),
}
_TABLES: dict[Level, tuple[str, ...]] = {
    Level.STUDIES: attributes.STUDY,
    Level.SERIES: attributes.SERIES,
    Level.INSTANCES: (),
}
_ABOVE = {Level.STUDIES: (), Level.SERIES: (Level.STUDIES,), Level.INSTANCES: (Level.STUDIES, Level.SERIES)}
_ORDER = {
    Level.STUDIES: [("keys.00080020", DESCENDING), ("_id", ASCENDING)],
    Level.SERIES: [("study", ASCENDING), ("number", ASCENDING), ("_id", ASCENDING)],
    Level.INSTANCES: [
        ("study", ASCENDING),
        ("series_number", ASCENDING),
        ("series", ASCENDING),
        ("number", ASCENDING),
        ("_id", ASCENDING),
    ],
}
_RETURNED = {"attributes": 1, "study": 1, "series": 1, "first": 1}


def matched(level: Level) -> frozenset[str]:
    """Return the tags that a level itself can be searched by; those of the levels above can be, too."""
    return frozenset({*_FIELDS[level], *_TABLES[level], *_COUNTED[level]})


def returned(level: Level) -> frozenset[str]:
    """Return the tags that a result of a level may carry without being asked for."""
    syntaxes = {attributes.AVAILABLE_TRANSFER_SYNTAX_UID} if level is Level.INSTANCES else set()
    return frozenset({*attributes.LEVELS[level], *_COUNTED[level], attributes.INSTANCE_AVAILABILITY, *syntaxes})


def run(
    database: Database[Document], blobs: BlobStore, matching: Matching, allowed: Allowed | None = None
) -> list[Document]:
    """Return what matches as DICOM JSON data sets, tags ascending; `allowed` tells which studies may be seen.

    Results of a query that names its study hold the attributes of their own level; others also those above, as the
    standard asks. Raises INVALID for an attribute that cannot be matched at this level, TOO_LARGE when conditions on a
    higher level match too much.
    """
    clauses = _clauses(database, matching)
    cursor = database[matching.level].find({"$and": clauses}, _RETURNED).sort(_ORDER[matching.level])
    if allowed is None:
        rows = list(cursor.skip(matching.offset).limit(matching.limit or 0)) if matching.limit != 0 else []
    else:
        seen = (row for row in cursor if allowed(str(row.get("study", row["_id"]))))
        stop = None if matching.limit is None else matching.offset + matching.limit
        rows = list(islice(seen, matching.offset, stop))
    return [_result(row) for row in _completed(database, blobs, matching, rows)]


def _clauses(database: Database[Document], matching: Matching) -> list[Document]:
    """Return the conditions on the level's own documents; those on levels above become lists of UIDs."""
    rest = list(matching.matches)
    clauses: list[Document] = [] if matching.level is Level.INSTANCES else [{"keys": {"$exists": True}}]
    own = [match for match in rest if match.tag in matched(matching.level)]
    rest = [match for match in rest if match not in own]
    clauses += [_clause(_field(matching.level, match), match, fuzzy=matching.fuzzy) for match in own]
    for level in reversed(_ABOVE[matching.level]):
        above = tuple(match for match in rest if match.tag in matched(level))
        if above:
            rest = [match for match in rest if match not in above]
            # What narrows this level to a study narrows the level above, too.
            narrow = tuple(match for match in own if match.tag == STUDY_INSTANCE_UID and match not in above)
            field = {Level.STUDIES: "study", Level.SERIES: "series"}[level]
            clauses.append({field: {"$in": _uids(database, replace(matching, level=level, matches=above + narrow))}})
    if rest:
        message = f"{rest[0].tag} cannot be matched in a query for {matching.level}"
        raise AppError(Category.INVALID, message, where="query")
    return clauses or [{}]


def _uids(database: Database[Document], matching: Matching) -> list[str]:
    clauses = _clauses(database, matching)
    rows = database[matching.level].find({"$and": clauses}, {"_id": 1}).limit(MAX_PARENTS + 1)
    uids = [row["_id"] for row in rows]
    if len(uids) > MAX_PARENTS:
        message = f"the query matches more than {MAX_PARENTS} {matching.level}; narrow it, for instance by date"
        raise AppError(Category.TOO_LARGE, message, where="query")
    return uids


def _field(level: Level, match: Match) -> str:
    return _FIELDS[level].get(match.tag, f"keys.{match.tag}")


def _clause(field: str, match: Match, *, fuzzy: bool) -> Document:
    match match.kind:
        case MatchKind.EMPTY:
            return {field: None}
        case MatchKind.RANGE:
            low, high = match.values
            bounds = {**({"$gte": low} if low else {}), **({"$lt": high + "\uffff"} if high else {})}
            return {field: bounds}
        case MatchKind.WILDCARD:
            patterns = [_pattern(attributes.normalise(match.vr, value)) for value in match.values]
            return {"$or": [{field: {"$regex": pattern, "$options": "s"}} for pattern in patterns]}
        case _:
            return _one_of(field, match, fuzzy=fuzzy)


def _one_of(field: str, match: Match, *, fuzzy: bool) -> Document:
    values = [attributes.normalise(match.vr, value) for value in match.values]
    if match.vr == "PN" and fuzzy:
        return {"$or": [{"$and": [{field: {"$regex": word}} for word in _words(value)] or [{}]} for value in values]}
    wanted: list[Any] = [int(value) for value in values] if field == "number" else list(values)
    return {field: {"$in": wanted}} if len(wanted) > 1 else {field: wanted[0]}


def _words(name: str) -> list[str]:
    """Return a pattern for each word of a name: it begins some word of the stored one (PS3.4 C.2.2.2.1.1)."""
    return [rf"(^|[\^= -]){re.escape(word)}" for word in re.split(r"[\^= -]+", name) if word]


def _pattern(text: str) -> str:
    meant = "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in text)
    return f"^{meant.removesuffix('.*')}" if meant.endswith(".*") else f"^{meant}$"


def _completed(
    database: Database[Document], blobs: BlobStore, matching: Matching, rows: list[Document]
) -> Iterator[list[Attributes]]:
    """Yield for each row its attributes, those of the levels above where wanted, and the included extras."""
    own = [orjson.loads(row["attributes"]) for row in rows]
    named = any(match.tag == STUDY_INSTANCE_UID and match.kind is MatchKind.ONE_OF for match in matching.matches)
    above = [] if named and not matching.include else _parents(database, matching.level, rows)
    extras = _extras(database, blobs, matching, rows, own)
    for n, found in enumerate(own):
        parents = above[n] if above else []
        if named:
            wanted = matching.include
            parents = [{tag: it for tag, it in each.items() if wanted is ALL or tag in wanted} for each in parents]
        yield [*extras[n : n + 1], *parents, found]


def _parents(database: Database[Document], level: Level, rows: list[Document]) -> list[list[Attributes]]:
    found: list[list[Attributes]] = [[] for _ in rows]
    for above, field in zip(_ABOVE[level], ("study", "series"), strict=False):
        uids = list({row[field] for row in rows})
        documents = database[above].find({"_id": {"$in": uids}}, {"attributes": 1})
        told = {each["_id"]: orjson.loads(each["attributes"]) for each in documents if "attributes" in each}
        for n, row in enumerate(rows):
            found[n].append(told.get(row[field], {}))
    return found


def _extras(
    database: Database[Document], blobs: BlobStore, matching: Matching, rows: list[Document], own: list[Attributes]
) -> list[Attributes]:
    """Return what `includefield` asks beyond the tables, from the metadata of each (first) instance."""
    asked = {tag.split(".")[0] for tag in matching.include}
    known = {
        tag
        for level in (*_ABOVE[matching.level], matching.level)
        for tag in (*attributes.LEVELS[level], *_COUNTED[level])
    }
    if matching.include is not ALL and not asked - known:
        return []
    firsts = [str(row.get("first", row["_id"])) for row in rows]
    told = [orjson.loads(json) for _, json in metadata(database, blobs, firsts)]
    return [_chosen(each, None if matching.include is ALL else asked - known) for each in told]


def _chosen(told: Attributes, tags: set[str] | None) -> Attributes:
    return {
        tag: attribute
        for tag, attribute in told.items()
        if (tags is None and attribute["vr"] not in BULK_VRS) or (tags is not None and tag in tags)
    }


def _result(levels: list[Attributes]) -> Attributes:
    return levels[0] if len(levels) == 1 else attributes.merged(*levels)
