"""The resources as they were at one moment, read while others write: what an export is made of.

The database cannot hold a snapshot open for as long as millions of resources take to read, so the moment is a bound on
`lastUpdated`, and three things make it exact:

* `settle` returns when every write that was stamped with the moment or before is committed: it waits for the clocks of
  several machines to agree, and then for the transactions that are open.
* Resources are read in the order of their keys, which no write changes, in blocks. What was not changed since the
  moment is as it was. After a block is read, the keys within it that were changed since are looked up; of each the
  version that was current at the moment is taken from the history, and meets the criteria or not as the database
  itself judges it. So each resource comes once, whenever it is written to.
* Reading can begin again behind any key, in another process, and gives what it would have given.

Everything goes through the restriction. What other resources decide (chains, `_has`) is decided as it is when read.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from pymongo.collection import Collection
from pymongo.cursor import Cursor
from pymongo.database import Database
from pymongo.errors import OperationFailure

from fhir_server.model.chains import Criterion
from fhir_server.model.resources import RESOURCES
from fhir_server.store.conditions import Filter
from fhir_server.store.documents import BODY_FIELDS, Document, Resource, resource_of
from fhir_server.store.failures import translated, unavailable
from fhir_server.store.filters import Act, Restriction, restricted
from fhir_server.store.history import History
from fhir_server.store.joins import Joins, Plan
from imaging.errors import AppError, Category

log = logging.getLogger(__name__)

BLOCK = 2_000  # resources that are read before it is asked which were changed
BLOCK_BYTES = 8 << 20  # of their bodies
TOGETHER = 100  # resources whose versions are looked up together
STEP = 20  # versions of each that are looked at in one go
FEW_OWNERS = 10_000  # patients whose resources are found by the index of compartments
LONGEST_TRANSACTION_S = 60.0  # where nobody has set another limit
_LOOK_S = 0.05  # between two looks at what is open


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which resources of a type are asked for.

    criteria     alternatives, each of criteria that all have to be met; none: all resources
    since        only what was changed later
    owners       references of patients, in whose compartments they have to be; None: of any, or of none
    owned        they are in some patient's compartment (True), in none (False), or that does not matter (None)
    only         in no compartment of a patient who is not among these; None: that does not matter
    """

    criteria: tuple[tuple[Criterion, ...], ...] = ()
    since: datetime | None = None
    owners: frozenset[str] | None = None
    owned: bool | None = None
    only: frozenset[str] | None = None

    @property
    def is_selective(self) -> bool:
        """Whether an index other than that of the keys may find them sooner."""
        return bool(self.criteria or self.since or (self.owners is not None and len(self.owners) <= FEW_OWNERS))

    @property
    def index(self) -> str:
        """The index that finds them, "" where the database chooses one."""
        if self.criteria:
            return ""
        if self.owners and len(self.owners) <= FEW_OWNERS:
            return "compartment"
        return "updated" if self.since and self.owners is None else ""


@dataclass(frozen=True, slots=True)
class Deletion:
    """A resource that was deleted: its reference, and the place of its deletion among others."""

    key: str
    place: str


@dataclass(slots=True)
class _Asked:
    """What is asked as filters: `condition` of a document of any time, `checks` to be verified one by one."""

    condition: Filter
    plans: list[Plan] = field(default_factory=list)


def settle(database: Database[Any], *, wait_s: float) -> None:
    """Return when every write that was begun until now is committed or given up. Takes `wait_s` at least.

    wait_s   how far the clocks of the machines that write may differ, or a process may pause between looking at its
             clock and writing
    Where the database does not tell which transactions are open, it waits as long as one can be.
    """
    time.sleep(wait_s)
    try:
        open_ones = _open_transactions(database)
        while open_ones:  # the engine ends what is open for too long
            time.sleep(_LOOK_S)
            open_ones &= _open_transactions(database)
    except OperationFailure as error:
        if unavailable(error):
            raise AppError(Category.BUSY, "the database cannot answer now", where="export") from error
        log.warning("the database does not tell which transactions are open; it is waited for the longest one")
        time.sleep(LONGEST_TRANSACTION_S)


def _open_transactions(database: Database[Any]) -> set[tuple[bytes, int]]:
    steps: list[Filter] = [
        {"$currentOp": {"allUsers": False, "idleSessions": True}},
        {"$match": {"transaction.parameters.autocommit": False}},
        {"$project": {"lsid": 1, "transaction.parameters.txnNumber": 1}},
    ]
    with translated("export"):
        found = list(database.client.admin.aggregate(steps))
    return {(bytes(each["lsid"]["id"]), each["transaction"]["parameters"]["txnNumber"]) for each in found}


class Snapshot:
    """Resources as they were at a moment, which has to be settled, within a restriction."""

    def __init__(
        self,
        database: Database[Any],
        restriction: Restriction,
        history: History,
        moment: datetime,
        *,
        clock: Callable[[], datetime],
    ) -> None:
        self._resources: Collection[Any] = database["resources"]
        self._history: Collection[Any] = database["history"]
        self._past = history
        self._restriction = restriction
        self.moment = moment
        self._clock = clock

    def may(self, act: Act, kind: str) -> bool:
        """Say whether resources of a type may be looked for, or read, some at least."""
        return self._joins().reach(kind, act) is not None

    def resources(self, kind: str, wanted: Wanted, after: str = "") -> Iterator[Resource]:
        """Yield resources of a type in the order of their keys `Type/id`, those behind `after`.

        Raises FORBIDDEN where the type may not be looked for.
        """
        asked = self._asked(kind, wanted, Act.SEARCH)
        last = after or f"{kind}/"
        for block in _blocks(self._current(kind, asked, wanted, last)):
            yield from self._whole(kind, asked, block, last, block[-1].key)
            last = block[-1].key
        yield from self._whole(kind, asked, [], last, f"{kind}0")  # `0` follows `/`

    def these(self, kind: str, keys: Iterable[str], wanted: Wanted) -> list[Resource]:
        """Return those of the resources with these keys `Type/id` that are asked for, in the order of their keys.

        Raises FORBIDDEN where the type may not be read.
        """
        asked, named = self._asked(kind, wanted, Act.READ), {"_id": {"$in": sorted(set(keys))}}
        still = {"$and": [asked.condition, named, self._until()]}
        with translated(kind):
            found = [_resource(each) for each in self._resources.find(still, BODY_FIELDS)]
        found = self._checked(kind, asked, found)
        return sorted([*found, *self._then(kind, asked, named)], key=lambda each: each.key)

    def deletions(self, kind: str, wanted: Wanted, after: str = "") -> Iterator[Deletion]:
        """Yield what was deleted since `wanted.since`, and met the criteria before, behind the place `after`."""
        asked = self._asked(kind, replace(wanted, since=None), Act.SEARCH)
        condition: Filter = {"type": kind, "lastUpdated": {"$gt": wanted.since, **self._until()["lastUpdated"]}}
        behind = [_beyond(after)] if after else []
        order = [("lastUpdated", 1), ("version", 1), ("_id", 1)]
        every = {"$and": [condition, *behind, {"deleted": True}]}
        with translated(kind):
            rows = self._history.find(every, {"version": 1, "lastUpdated": 1}).sort(order)
            for some in _batches(rows, TOGETHER):
                kept = self._deleted_still(kind, asked, some)
                for row in some:
                    key = row["_id"].rpartition("/")[0]
                    if (key, row["version"]) in kept:
                        yield Deletion(key, _place(row))

    # ---- what is asked, as filters

    def _joins(self) -> Joins:
        return Joins(self._resources, self._restriction, self._clock())

    def _asked(self, kind: str, wanted: Wanted, act: Act) -> _Asked:
        mandatory = self._restriction.require(kind, act)
        joins = self._joins()
        plans = [joins.plan(kind, each) for each in wanted.criteria]
        demands = _compartments(wanted)
        if wanted.since:
            demands.append({"lastUpdated": {"$gt": wanted.since}})
        if plans:
            # An alternative with checks is decided with the others by `_checked`; its filters narrow it before.
            demands.append({"$or": [{"$and": each.filters} if each.filters else {} for each in plans]})
        checks = plans if any(each.checks for each in plans) else []
        return _Asked(restricted(kind, mandatory, demands, self._clock()), checks)

    def _until(self) -> Filter:
        return {"lastUpdated": {"$lte": self.moment}}

    # ---- what was not changed since the moment

    def _current(self, kind: str, asked: _Asked, wanted: Wanted, after: str) -> Iterator[Resource]:
        """Yield resources that were not changed since the moment, in the order of their keys."""
        keys = {"_id": {"$gt": after, "$lt": f"{kind}0"}}
        condition = {"$and": [asked.condition, keys, self._until()]}
        with translated(kind):
            if not wanted.is_selective:
                documents = self._resources.find(condition, BODY_FIELDS).sort("_id", 1).hint([("_id", 1)])
                yield from self._verified(kind, asked, documents)
                return
            # Found by the index that suits, sorted without their bodies.
            found = self._resources.find(condition, {"_id": 1}).sort("_id", 1).allow_disk_use(True)
            if index := wanted.index:
                found = found.hint(index)
            for some in _batches(found, BLOCK):
                named = {"$and": [{"_id": {"$in": [each["_id"] for each in some]}}, self._until()]}
                bodies = self._resources.find(named, {**BODY_FIELDS, "type": 1}).sort("_id", 1)
                yield from self._verified(kind, asked, (each for each in bodies if each.get("type") == kind))

    def _verified(self, kind: str, asked: _Asked, documents: Cursor[Any] | Iterator[Document]) -> Iterator[Resource]:
        if not asked.plans:
            yield from map(_resource, documents)
            return
        for some in _batches(documents, TOGETHER):
            yield from self._checked(kind, asked, [_resource(each) for each in some])

    def _checked(self, kind: str, asked: _Asked, found: list[Resource]) -> list[Resource]:
        """Return those that meet one of the alternatives, where filters alone do not tell."""
        if not asked.plans or not found:
            return found
        keys = [each.key for each in found]
        met: set[str] = set()
        for plan in asked.plans:
            joins = self._joins()
            wanted: Filter = {"$and": [{"_id": {"$in": keys}}, *plan.filters]}
            mine = [each["_id"] for each in self._resources.find(wanted, {"_id": 1})]
            met |= joins.verified(kind, mine, plan.checks) if plan.checks else set(mine)
        return [each for each in found if each.key in met]

    # ---- what was changed since: as it was

    def _whole(self, kind: str, asked: _Asked, block: Sequence[Resource], after: str, last: str) -> Iterator[Resource]:
        """Yield a block in order, with what was changed since the moment within its keys."""
        there = {each.key for each in block}
        changed = (
            each for each in self._then(kind, asked, {"_id": {"$gt": after, "$lte": last}}) if each.key not in there
        )
        yield from _merged(block, changed)

    def _then(self, kind: str, asked: _Asked, keys: Filter) -> Iterator[Resource]:
        """Yield the versions of the moment of what was changed since, in the order of their keys."""
        if RESOURCES[kind].append_only:
            return
        # What is deleted has no type; this is the index `updated` nevertheless.
        since = {"type": {"$in": [kind, None]}, "lastUpdated": {"$gt": self.moment}, "version": {"$gt": 1}}
        with translated(kind):
            rows = self._resources.find({"$and": [since, keys]}, {"version": 1}).hint("updated")
            changed = sorted((row["_id"], row["version"]) for row in rows if row["_id"].startswith(f"{kind}/"))
            for start in range(0, len(changed), TOGETHER):
                versions = self._versions(changed[start : start + TOGETHER])
                found = self._past.meeting([each for each in versions if not each.deleted], asked.condition)
                yield from self._checked(kind, asked, sorted(found, key=lambda each: each.key))

    def _versions(self, keys: Sequence[tuple[str, int]]) -> list[Resource]:
        """Return the versions that were current at the moment, of resources whose version is another now."""
        numbers: dict[str, int] = {}
        left = dict(keys)
        while left:
            names = [f"{key}/{n}" for key, top in left.items() for n in range(top - 1, max(0, top - 1 - STEP), -1)]
            rows = self._history.find({"_id": {"$in": names}, **self._until()}, {"version": 1})
            for row in rows:
                key = row["_id"].rpartition("/")[0]
                numbers[key] = max(numbers.get(key, 0), row["version"])
            left = {key: top - STEP for key, top in left.items() if key not in numbers and top - STEP > 1}
        names = [f"{key}/{number}" for key, number in numbers.items()]
        found = self._history.find({"_id": {"$in": names}}, BODY_FIELDS)
        return [resource_of(each["_id"].rpartition("/")[0], each) for each in found]

    # ---- what was deleted

    def _deleted_still(self, kind: str, asked: _Asked, rows: Sequence[Document]) -> set[tuple[str, int]]:
        """Return key and version of the deletions that hold at the moment, of what met the criteria before."""
        wanted = {row["_id"].rpartition("/")[0]: row["version"] for row in rows}  # the last of several
        now = {each["_id"]: each for each in self._resources.find({"_id": {"$in": list(wanted)}}, {"version": 1})}
        later = [(key, each["version"]) for key, each in now.items() if each["version"] != wanted[key]]
        then = {each.key: each.version for each in self._versions([(key, top + 1) for key, top in later])}
        still = {key: version for key, version in wanted.items() if then.get(key, version) == version}
        names = [f"{key}/{version - 1}" for key, version in still.items()]
        contents = [_version(each) for each in self._history.find({"_id": {"$in": names}}, BODY_FIELDS)]
        met = self._past.meeting([each for each in contents if not each.deleted], asked.condition)
        return {(each.key, still[each.key]) for each in met}


_PATIENTS: Filter = {"$gte": "Patient/", "$lt": "Patient0"}


def _compartments(wanted: Wanted) -> list[Filter]:
    """Return the conditions on the compartments that a resource is in."""
    found: list[Filter] = []
    if wanted.owners is not None:
        found.append({"compartments": {"$in": sorted(wanted.owners)}})
    elif wanted.owned is not None:
        some: Filter = {"compartments": {"$elemMatch": _PATIENTS}}
        found.append(some if wanted.owned else {"$nor": [some]})
    if wanted.only is not None:
        others = {**_PATIENTS, "$nin": sorted(wanted.only)}
        found.append({"$nor": [{"compartments": {"$elemMatch": others}}]})
    return found


def _blocks(resources: Iterator[Resource]) -> Iterator[list[Resource]]:
    block: list[Resource] = []
    size = 0
    for each in resources:
        block.append(each)
        size += len(each.body)
        if len(block) >= BLOCK or size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _merged(block: Sequence[Resource], others: Iterator[Resource]) -> Iterator[Resource]:
    """Yield two series of resources in the order of their keys."""
    other = next(others, None)
    for each in block:
        while other is not None and other.key < each.key:
            yield other
            other = next(others, None)
        yield each
    if other is not None:
        yield other
        yield from others


def _batches(documents: Iterable[Document], count: int) -> Iterator[list[Document]]:
    for _, group in groupby(enumerate(documents), key=lambda numbered: numbered[0] // count):
        yield [document for _, document in group]


def _resource(document: Document) -> Resource:
    return resource_of(document["_id"], document)


def _version(document: Document) -> Resource:
    return resource_of(document["_id"].rpartition("/")[0], document)


def _place(row: Document) -> str:
    return f"{int(row['lastUpdated'].timestamp() * 1000)}.{row['version']}.{row['_id']}"


def _beyond(place: str) -> Filter:
    moment_ms, version, name = place.split(".", 2)
    moment = datetime.fromtimestamp(int(moment_ms) // 1000, UTC).replace(microsecond=int(moment_ms) % 1000 * 1000)
    same = {"lastUpdated": moment}
    return {
        "$or": [
            {"lastUpdated": {"$gt": moment}},
            {**same, "version": {"$gt": int(version)}},
            {**same, "version": int(version), "_id": {"$gt": name}},
        ]
    }
