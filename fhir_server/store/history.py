"""What was: versions of resources, of one of them or of many, latest first, as far as somebody may see them.

Hides how versions are found and judged: a version is within reach when its own content is, as the database itself
judges it; a deletion has no content, so only who may see all sees it. Source: FHIR R4 http 3.1.0.12.
"""

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.database import Database

from fhir_server.model.criteria import Table
from fhir_server.model.dates import Interval
from fhir_server.model.definitions import parameters
from fhir_server.store import index
from fhir_server.store.documents import Json, Resource, resource_of
from fhir_server.store.filters import Demand, compile_demand
from fhir_server.store.session import InSession
from imaging.errors import AppError, Category

MAX_HISTORY = 1000  # versions in one answer
BATCH = 200  # versions looked at together
MOST_BYTES = 64 << 20  # of the versions of one answer; what is beyond comes with the next
MOST_SCANNED = 10_000  # versions looked at for one answer
MAX_TIME_MS = 20_000  # of one query to the database
JUDGED_BYTES = 4 << 20  # of bodies whose search rows are judged together

_ORDER = [("lastUpdated", -1), ("version", -1), ("_id", -1)]
_PLACE = re.compile(r"(\d{1,15})(?:\.(\d{1,18})\.([A-Za-z]{1,64}/[A-Za-z0-9\-.]{1,64}))?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

Reach = Mapping[str, tuple[Demand, ...]]  # resource type -> what a version must satisfy, nothing for all of them


@dataclass(frozen=True, slots=True)
class Period:
    """Which versions are asked for: made at `since` or later; current at some moment of `at`; None: whenever."""

    since: datetime | None = None
    at: Interval | None = None


@dataclass(frozen=True, slots=True)
class Versions:
    """Versions, latest first. `place` leads on to the next ones, "" where there are none."""

    found: list[Resource] = field(default_factory=list)
    place: str = ""


class History:
    """The versions of all resources."""

    def __init__(
        self, database: Database[Any], *, base_url: str, clock: Callable[[], datetime], table: Table = parameters
    ) -> None:
        self._database = database
        self._table = table
        self._history: Collection[Any] | InSession = database["history"]
        self._base_url = base_url
        self._clock = clock

    def part_of(self, session: ClientSession, flush: Callable[[], None]) -> "History":
        """Return the same as a part of a session's transaction; `flush` writes what waits to be written in it."""
        other = copy.copy(self)
        other._history = InSession(self._database["history"], session, flush)
        return other

    def versions(self, key: str, numbers: Sequence[int]) -> list[Resource]:
        """Return the versions of one resource that exist, in the order asked."""
        documents = self._history.find({"_id": {"$in": [f"{key}/{number}" for number in numbers]}})
        by_version = {found.version: found for found in (resource_of(key, document) for document in documents)}
        return [by_version[number] for number in numbers if number in by_version]

    def numbers(self, key: str, period: Period) -> list[int]:
        """Return which versions of one resource lie in a period, latest first."""
        # `0` follows `/`: every version of this key and nothing else.
        of_key = {"_id": {"$gte": f"{key}/", "$lt": f"{key}0"}}
        documents = self._history.find(of_key, {"version": 1, "lastUpdated": 1, "_id": 0}).max_time_ms(MAX_TIME_MS)
        found, until = [], None
        for each in sorted(documents, key=lambda document: -document["version"]):
            if _is_in(period, each["lastUpdated"], until):
                found.append(each["version"])
            until = each["lastUpdated"]
        return found

    def named(self, references: Iterable[str]) -> list[str]:
        """Return the names `Type/id/version` of versions that references are to; without a version, to all there are.

        Raises TOO_LARGE for more than 10,000.
        """
        parts = [reference.partition("/_history/") for reference in references]
        whole = list({key for key, _, version in parts if not version})
        found = {f"{key}/{version}": None for key, _, version in parts if version}
        for document in self._database["resources"].find({"_id": {"$in": whole}}, {"version": 1}):
            found |= {f"{document['_id']}/{number}": None for number in range(1, document["version"] + 1)}
            if len(found) > MOST_SCANNED:
                raise AppError(Category.TOO_LARGE, f"the list is to more than {MOST_SCANNED} versions", where="_list")
        return list(found)

    def changes(
        self, reach: Reach, period: Period, *, count: int, place: str = "", among: Sequence[str] | None = None
    ) -> Versions:
        """Return versions of resources of several types, of those named `among` only. Raises INVALID for a wrong place.

        Looks at 10,000 versions at most: a page may be short, even empty, and still lead on.
        """
        begun = _read(place) if place else None
        condition = {"type": {"$in": sorted(reach)}, **_bounds(period)}
        if among is not None:
            condition["_id"] = {"$in": list(among)}
        found: list[Resource] = []
        size = scanned = 0
        while True:
            after = {"$and": [condition, _beyond(begun)]} if begun else condition
            documents = list(self._history.find(after).sort(_ORDER).limit(BATCH).max_time_ms(MAX_TIME_MS))
            scanned += len(documents)
            for each in self._visible(documents, reach, period):
                if len(found) == count or size > MOST_BYTES:
                    return Versions(found, _written(found[-1]))
                found.append(each)
                size += len(each.body)
            if len(documents) < BATCH:
                return Versions(found)
            latest = _resource(documents[-1])
            begun = (latest.last_updated, latest.version, latest.key)
            if scanned >= MOST_SCANNED:
                return _cut(found, latest.last_updated, place)

    def within(self, versions: Sequence[Resource], mandatory: tuple[Demand, ...]) -> list[Resource]:
        """Return the versions of one type that satisfy all clauses."""
        if not mandatory:
            return list(versions)
        with_content = [each for each in versions if not each.deleted]
        return self.meeting(with_content, self.demand(with_content[0].type, mandatory)) if with_content else []

    def meeting(self, versions: Sequence[Resource], condition: Json) -> list[Resource]:
        """Return the versions, all with content, that meet a condition on documents of current versions."""
        names: set[str] = set()
        for group in by_size(versions):
            rows = [{"$literal": self._judged(each)} for each in group]
            pipeline: list[Json] = [{"$documents": rows}, {"$match": condition}, {"$project": {"name": 1}}]
            names |= {document["name"] for document in self._database.aggregate(pipeline)}
        return [each for each in versions if _name(each) in names]

    def meeting_each(self, versions: Sequence[Resource], conditions: Mapping[str, Json]) -> dict[str, list[Resource]]:
        """Return for each name which of the versions, all with content, meet the condition of that name."""
        found: dict[str, list[Resource]] = {name: [] for name in conditions}
        branches = {
            f"c{number}": [{"$match": condition}, {"$project": {"name": 1}}]
            for number, condition in enumerate(conditions.values())
        }
        for group in by_size(versions if conditions else ()):
            rows = [{"$literal": self._judged(each)} for each in group]
            (answer,) = self._database.aggregate([{"$documents": rows}, {"$facet": branches}], maxTimeMS=MAX_TIME_MS)
            for number, name in enumerate(conditions):
                names = {document["name"] for document in answer[f"c{number}"]}
                found[name] += [each for each in group if _name(each) in names]
        return found

    def demand(self, kind: str, mandatory: tuple[Demand, ...]) -> dict[str, Any]:
        """Return the filter of what lies within clauses."""
        now = self._clock()
        return {"$and": [{"type": kind}, *(compile_demand(kind, demand, now) for demand in mandatory)]}

    def _judged(self, version: Resource) -> Json:
        rows = index.rows(version.json(), base_url=self._base_url, table=self._table)
        own = {"_id": version.key, "type": version.type, "lastUpdated": version.last_updated, "name": _name(version)}
        return {**own, **version.stamp.fields(), **rows}

    def _visible(self, documents: list[Json], reach: Reach, period: Period) -> list[Resource]:
        wanted = [_resource(each) for each in documents]
        if period.at:
            wanted = self._current_in(wanted, period.at)
        judged: set[str] = set()
        for kind in {each.type for each in wanted}:
            mine = [each for each in wanted if each.type == kind]
            judged |= {_name(each) for each in self.within(mine, reach[kind])}
        return [each for each in wanted if _name(each) in judged]

    def _current_in(self, versions: list[Resource], at: Interval) -> list[Resource]:
        """Leave out what was replaced before the interval began."""
        older = {f"{each.key}/{each.version + 1}": each for each in versions if each.last_updated < at.low}
        replaced = self._history.find({"_id": {"$in": list(older)}, "lastUpdated": {"$lte": at.low}}, {"_id": 1})
        gone = {_name(older[document["_id"]]) for document in replaced}
        return [each for each in versions if _name(each) not in gone]


def _is_in(period: Period, moment: datetime, until: datetime | None) -> bool:
    """Say whether a version, current from `moment` until the next one came, lies in a period."""
    if period.since and moment < period.since:
        return False
    return period.at is None or (moment < period.at.high and (until is None or until > period.at.low))


def _bounds(period: Period) -> Json:
    bounds: Json = {}
    if period.since:
        bounds["$gte"] = period.since
    if period.at:
        bounds["$lt"] = period.at.high
    return {"lastUpdated": bounds} if bounds else {}


def _cut(found: list[Resource], moment: datetime, place: str) -> Versions:
    """Stop where a millisecond ends, so that the place names no resource that may not be seen."""
    kept = [each for each in found if each.last_updated > moment]
    following = str((moment - _EPOCH) // _MILLISECOND)
    if following == place:
        raise AppError(Category.TOO_LARGE, "too many versions were made at the same moment", where="_history")
    return Versions(kept, following)


def _written(version: Resource) -> str:
    return f"{(version.last_updated - _EPOCH) // _MILLISECOND}.{version.version}.{version.key}"


def _read(place: str) -> tuple[datetime, int | None, str]:
    match = _PLACE.fullmatch(place)
    if match is None:
        raise AppError(Category.INVALID, "the page address is not one of this server's", where="_cursor")
    try:
        moment = _EPOCH + int(match[1]) * _MILLISECOND
    except OverflowError:
        raise AppError(Category.INVALID, "the page address is not one of this server's", where="_cursor") from None
    return moment, int(match[2]) if match[2] else None, match[3] or ""


def _beyond(place: tuple[datetime, int | None, str]) -> Json:
    moment, version, key = place
    if version is None:
        return {"lastUpdated": {"$lte": moment}}
    same = {"lastUpdated": moment}
    steps = [
        {"lastUpdated": {"$lt": moment}},
        {**same, "version": {"$lt": version}},
        {**same, "version": version, "_id": {"$lt": f"{key}/{version}"}},
    ]
    return {"lastUpdated": {"$lte": moment}, "$or": steps}


def _resource(document: Mapping[str, Any]) -> Resource:
    return resource_of(document["_id"].rpartition("/")[0], document)


def _name(version: Resource) -> str:
    return f"{version.key}/{version.version}"


def by_size(versions: Iterable[Resource]) -> Iterable[list[Resource]]:
    """Yield the versions in groups whose search rows can be judged together."""
    group: list[Resource] = []
    size = 0
    for each in versions:
        if group and size + len(each.body) > JUDGED_BYTES:
            yield group
            group, size = [], 0
        group.append(each)
        size += len(each.body)
    if group:
        yield group
