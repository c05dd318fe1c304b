"""QIDO-RS matching on the summaries: `Matching` -> MongoDB filter -> DICOM JSON.

Every asked condition is applied or refused, never ignored. Results are stably ordered: studies newest first, series and
instances in reading order, UIDs breaking ties. Sources: PS3.18 10.6, PS3.4 C.2.2.2.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import orjson
from pymongo import ASCENDING, DESCENDING
from pymongo.database import Database

from imaging.archive import attributes
from imaging.archive.attributes import (
    SERIES_INSTANCE_UID,
    SOP_INSTANCE_UID,
    SPECIFIC_CHARACTER_SET,
    STANDARD,
    STUDY_INSTANCE_UID,
    TIMEZONE_OFFSET_FROM_UTC,
    Attributes,
    Tables,
)
from imaging.archive.catalogue import Document
from imaging.archive.clauses import clauses
from imaging.archive.corrections import Known
from imaging.archive.summaries import metadata
from imaging.blobs import BlobStore
from imaging.dicomweb import Level, Matching, MatchKind
from imaging.dicomweb.query import ALL
from imaging.errors import AppError, Category

MAX_PARENTS = 20_000  # studies or series that the conditions of a higher level may match
BULK_VRS = {"OB", "OD", "OF", "OL", "OV", "OW", "UN"}

Allowed = Callable[[Sequence[str]], Collection[str]]  # of studies, those that may be seen
_TOGETHER = 200  # rows whose studies are asked about together
_AT_ONCE = 1000  # rows in one answer of the database

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
_NEVER_MATCHED = {SPECIFIC_CHARACTER_SET, TIMEZONE_OFFSET_FROM_UTC}  # they say how others are meant
_ABOVE = {Level.STUDIES: (), Level.SERIES: (Level.STUDIES,), Level.INSTANCES: (Level.STUDIES, Level.SERIES)}
_PLACE_OF_UID = {Level.STUDIES: "study", Level.SERIES: "series"}  # in the documents of the levels below
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


class Result(NamedTuple):
    """What matched: the UIDs of its study, series and instance, as far as its level goes, and its attributes as JSON.

    The JSON is a DICOM JSON data set, tags ascending; where nothing had to be added it is as it lies in the database.
    """

    uids: tuple[str, ...]
    json: bytes

    def attributes(self) -> Attributes:
        """Return the attributes."""
        found: Attributes = orjson.loads(self.json)
        return found


def matched(level: Level, tables: Tables = STANDARD) -> frozenset[str]:
    """Return the tags that a level itself can be searched by; those of the levels above can be, too.

    Of a sequence, the attributes inside are matched.
    """
    return frozenset({*_FIELDS[level], *tables[level], *_COUNTED[level]} - _NEVER_MATCHED)


def returned(level: Level, tables: Tables = STANDARD) -> frozenset[str]:
    """Return the tags that a result of a level may carry without being asked for."""
    syntaxes = {attributes.AVAILABLE_TRANSFER_SYNTAX_UID} if level is Level.INSTANCES else set()
    return frozenset({*tables[level], *_COUNTED[level], attributes.INSTANCE_AVAILABILITY, *syntaxes})


def run(
    database: Database[Document],
    blobs: BlobStore,
    matching: Matching,
    tables: Tables,
    known: Known,
    allowed: Allowed | None = None,
    studies: Sequence[str] | None = None,
) -> list[Result]:
    """Return what matches.

    allowed   tells which studies may be seen; None: all
    studies   the only ones that may be seen, where they are few

    Results of a query that names its study hold the attributes of their own level; others also those above, as the
    standard asks. Raises INVALID for an attribute that cannot be matched at this level, TOO_LARGE when conditions on a
    higher level match too much.
    """
    wanted = _clauses(database, matching, tables)
    if studies is not None:
        wanted.append({_FIELDS[matching.level][STUDY_INSTANCE_UID]: {"$in": list(studies)}})
    cursor = database[matching.level].find({"$and": wanted}, _RETURNED).sort(_ORDER[matching.level])
    if allowed is None:
        page = cursor.skip(matching.offset).limit(matching.limit or 0).batch_size(_AT_ONCE)
        rows = list(page) if matching.limit != 0 else []
    else:
        seen = _seen(cursor, allowed)
        stop = None if matching.limit is None else matching.offset + matching.limit
        rows = list(islice(seen, matching.offset, stop))
    found = _completed(database, blobs, matching, tables, rows, known)
    return [Result(_uids_of(matching.level, row), json) for row, json in zip(rows, found, strict=True)]


def _uids_of(level: Level, row: Document) -> tuple[str, ...]:
    above = (str(row[_PLACE_OF_UID[each]]) for each in _ABOVE[level])
    return (*above, str(row["_id"]))


def _seen(rows: Iterable[Document], allowed: Allowed) -> Iterator[Document]:
    """Yield the rows whose studies may be seen, in order."""
    rest = iter(rows)
    while some := list(islice(rest, _TOGETHER)):
        studies = [str(row.get("study", row["_id"])) for row in some]
        visible = set(allowed(list(dict.fromkeys(studies))))
        yield from (row for row, study in zip(some, studies, strict=True) if study in visible)


def _clauses(database: Database[Document], matching: Matching, tables: Tables) -> list[Document]:
    """Return the conditions on the level's own documents; those on levels above become lists of UIDs."""
    rest = list(matching.matches)
    found: list[Document] = [] if matching.level is Level.INSTANCES else [{"keys": {"$exists": True}}]
    own = [match for match in rest if match.top in matched(matching.level, tables)]
    rest = [match for match in rest if match not in own]
    found += clauses(own, _FIELDS[matching.level], fuzzy=matching.fuzzy)
    for level in reversed(_ABOVE[matching.level]):
        above = tuple(match for match in rest if match.top in matched(level, tables))
        if above:
            rest = [match for match in rest if match not in above]
            # What narrows this level to a study narrows the level above, too.
            narrow = tuple(match for match in own if match.tag == STUDY_INSTANCE_UID and match not in above)
            upper = replace(matching, level=level, matches=above + narrow)
            found.append({_PLACE_OF_UID[level]: {"$in": _uids(database, upper, tables)}})
    if rest:
        message = f"{rest[0].tag} cannot be matched in a query for {matching.level}"
        raise AppError(Category.INVALID, message, where="query")
    return found or [{}]


def _uids(database: Database[Document], matching: Matching, tables: Tables) -> list[str]:
    wanted = _clauses(database, matching, tables)
    rows = database[matching.level].find({"$and": wanted}, {"_id": 1}).limit(MAX_PARENTS + 1)
    uids = [row["_id"] for row in rows]
    if len(uids) > MAX_PARENTS:
        message = f"the query matches more than {MAX_PARENTS} {matching.level}; narrow it, for instance by date"
        raise AppError(Category.TOO_LARGE, message, where="query")
    return uids


def _completed(
    database: Database[Document],
    blobs: BlobStore,
    matching: Matching,
    tables: Tables,
    rows: list[Document],
    known: Known,
) -> Iterator[bytes]:
    """Yield for each row its attributes, with those of the levels above where wanted, and the included extras."""
    named = any(match.tag == STUDY_INSTANCE_UID and match.kind is MatchKind.ONE_OF for match in matching.matches)
    above = [] if named and not matching.include else _parents(database, matching.level, rows)
    extras = _extras(database, blobs, matching, tables, rows, known)
    for n, row in enumerate(rows):
        parents = above[n] if above else []
        if named:
            wanted = matching.include
            parents = [{tag: it for tag, it in each.items() if wanted is ALL or tag in wanted} for each in parents]
        more = [*extras[n : n + 1], *parents]
        own = row["attributes"]
        yield orjson.dumps(attributes.merged(*more, orjson.loads(own))) if more else own


def _parents(database: Database[Document], level: Level, rows: list[Document]) -> list[list[Attributes]]:
    found: list[list[Attributes]] = [[] for _ in rows]
    for above in _ABOVE[level]:
        field = _PLACE_OF_UID[above]
        uids = list({row[field] for row in rows})
        documents = database[above].find({"_id": {"$in": uids}}, {"attributes": 1})
        told = {each["_id"]: orjson.loads(each["attributes"]) for each in documents if "attributes" in each}
        for n, row in enumerate(rows):
            found[n].append(told.get(row[field], {}))
    return found


def _extras(
    database: Database[Document],
    blobs: BlobStore,
    matching: Matching,
    tables: Tables,
    rows: list[Document],
    known: Known,
) -> list[Attributes]:
    """Return what `includefield` asks beyond the tables, from the metadata of each (first) instance."""
    levels = (*_ABOVE[matching.level], matching.level)
    listed = {tag for level in levels for tag in (*tables[level], *_COUNTED[level])}
    asked = {path for path in matching.include if path.split(".")[0] not in listed}
    if matching.include is not ALL and not asked:
        return []
    firsts = [str(row.get("first", row["_id"])) for row in rows]
    told = [orjson.loads(json) for _, json in metadata(database, blobs, firsts, known)]
    if matching.include is ALL:
        return [{tag: each[tag] for tag in each if each[tag]["vr"] not in BULK_VRS} for each in told]
    return [_chosen(each, asked) for each in told]


def _chosen(told: Attributes, paths: Iterable[str]) -> Attributes:
    """Return the attributes of these paths: of sequences what is asked inside, with private ones their creators."""
    inside: dict[str, set[str]] = {}
    for path in paths:
        tag, _, rest = path.partition(".")
        inside.setdefault(tag, set()).add(rest)
        if int(tag[:4], 16) % 2:
            inside.setdefault(f"{tag[:4]}00{tag[4:6]}", set()).add("")
    return {tag: _pruned(told[tag], rests) for tag, rests in inside.items() if tag in told}


def _pruned(attribute: dict[str, Any], paths: set[str]) -> dict[str, Any]:
    if "" in paths or attribute["vr"] != "SQ" or "Value" not in attribute:
        return attribute
    return {**attribute, "Value": [_chosen(item or {}, paths) for item in attribute["Value"]]}
