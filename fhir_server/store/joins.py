"""Criteria that other resources decide: chains, `_has`, `_list`, value sets, hierarchies.

Such a criterion becomes a plain filter where few resources decide it. Where many do, the matches are verified in
batches instead, in the order of the page, which is soon filled; where it is not, a larger filter is tried. Everything
read on the way is within the restriction: a resource that may not be seen decides nothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from typing import Any

from pymongo.collection import Collection

from fhir_server.model.chains import AllOf, AnyOf, Chain, Criterion, Has, Listed, Not
from fhir_server.model.criteria import Clause, Reference, Text, Token
from fhir_server.model.definitions import load
from fhir_server.model.terminology import Terminology
from fhir_server.store.conditions import Filter
from fhir_server.store.documents import BODY_FIELDS, resource_of
from fhir_server.store.filters import DENY, NOTHING, Act, Demand, Restriction, compile_clause, restricted
from imaging.errors import AppError, Category

MAX_TIME_MS = 20_000  # of one query to the database
FEW = 1_000  # resources that may decide a criterion as a filter
MANY = 20_000  # the same where a page was not filled by verifying; such a filter takes some 0.2 s
BATCH = 500  # candidates that are verified together
PATIENCE = 1_000  # candidates that are verified before the larger filter is tried
MOST_VERIFIED = 100_000  # candidates of one search
MOST_LISTED = 10_000  # entries of a List that are looked at
MOST_BELOW = 10_000  # resources of a hierarchy
# Types whose resources are parts of others of the type, and the parameter that says of which.
PARTS_OF: Mapping[str, str] = {
    "Encounter": "part-of",
    "Location": "partof",
    "Organization": "partof",
    "Procedure": "part-of",
    "Task": "part-of",
}


@dataclass(slots=True)
class Plan:
    """How criteria are met: filters, and criteria that are left to be verified."""

    filters: list[Filter]
    checks: list[Criterion]


class Joins:
    """Resolves criteria for one search."""

    def __init__(
        self,
        collection: Collection[Any],
        restriction: Restriction,
        now: datetime,
        terminology: "Terms | None" = None,
        *,
        few: int = FEW,
    ) -> None:
        self._collection = collection
        self._restriction = restriction
        self._now = now
        self._terms = terminology or Terms(self)
        self.few = few
        self._verified = 0

    def plan(self, kind: str, criteria: Iterable[Criterion]) -> Plan:
        """Return how the criteria on resources of a type are met."""
        plan = Plan([], [])
        for criterion in criteria:
            found = self._filter(kind, criterion)
            if found is None:
                plan.checks.append(criterion)
            else:
                plan.filters.append(found)
        return plan

    def verified(self, kind: str, keys: Sequence[str], checks: Iterable[Criterion]) -> set[str]:
        """Return those of the resources `Type/id` of one type that meet all of the criteria."""
        self._verified += len(keys)
        if self._verified > MOST_VERIFIED:
            message = f"the search has to look at more than {MOST_VERIFIED} resources: narrow it by further criteria"
            raise AppError(Category.TOO_LARGE, message, where="search")
        left = set(keys)
        for check in checks:
            left = self._holds(kind, left, check) if left else left
        return left

    def reach(self, kind: str, act: Act = Act.SEARCH) -> tuple[Demand, ...] | None:
        """Return the demands under which a type may be searched, None when it may not."""
        access = self._restriction.access(kind, act)
        if access is DENY:
            return None
        return access if isinstance(access, tuple) else ()

    def find(
        self, kind: str, wanted: list[Filter], fields: Mapping[str, int], limit: int, act: Act = Act.SEARCH
    ) -> list[Any]:
        """Return documents of a type that may be looked for, or read, up to `limit`."""
        mandatory = self.reach(kind, act)
        if mandatory is None:
            return []
        condition = restricted(kind, mandatory, wanted, self._now)
        return list(self._collection.find(condition, fields).limit(limit).max_time_ms(MAX_TIME_MS))

    # ---- as filters

    def _filter(self, kind: str, criterion: Criterion) -> Filter | None:
        """Return a criterion as a filter, None where too many resources decide it."""
        if isinstance(criterion, Clause):
            return compile_clause(kind, self._plain(kind, criterion), self._now) if criterion.values else NOTHING
        if isinstance(criterion, Chain):
            return self._chain(criterion)
        if isinstance(criterion, Has):
            return self._has(kind, criterion)
        if isinstance(criterion, Listed):
            return {"_id": {"$in": [key for key in self._entries(criterion.id) if key.startswith(f"{kind}/")]}}
        if isinstance(criterion, Not):
            inner = self._filter(kind, criterion.part)
            return None if inner is None else {"$nor": [inner]}
        parts = [self._filter(kind, part) for part in criterion.parts]
        if any(part is None for part in parts):
            return None
        return {"$and" if isinstance(criterion, AllOf) else "$or": parts}

    def _chain(self, chain: Chain) -> Filter | None:
        names: list[str] = []
        for target, inner in self._readable(chain.targets):
            found = self._keys(target, inner, by_url=chain.is_canonical)
            if found is None or len(names) + len(found) > self.few:
                return None
            names += found
        return _refers(chain.code, names) if names else NOTHING

    def _readable(self, targets: Sequence[tuple[str, Criterion]]) -> list[tuple[str, Criterion]]:
        """Return the targets that may be read. Raises FORBIDDEN where there is none."""
        found = [each for each in targets if self.reach(each[0]) is not None]
        if not found:
            self._restriction.require(targets[0][0], Act.SEARCH)
        return found

    def _keys(self, kind: str, criterion: Criterion, *, by_url: bool) -> list[str] | None:
        """Return by what resources that meet a criterion are referred to, None for too many."""
        inner = self._filter(kind, criterion)
        if inner is None:
            return None
        found = self.find(kind, [inner], {"_id": 1, **({"uri": 1} if by_url else {})}, self.few + 1)
        if len(found) > self.few:
            return None
        keys = [document["_id"] for document in found]
        urls = [row["u"] for document in found for row in document.get("uri", ()) if row["p"] == "url"]
        return keys + urls

    def _has(self, kind: str, has: Has) -> Filter | None:
        self._restriction.require(has.source, Act.SEARCH)
        inner = self._filter(has.source, has.inner)
        if inner is None:
            return None
        wanted: list[Filter] = [inner, {"ref": {"$exists": True, "$elemMatch": {"p": has.code}}}]
        found = self.find(has.source, wanted, {"ref": 1}, self.few + 1)
        if len(found) > self.few:
            return None
        names = {row["r"] for document in found for row in document.get("ref", ()) if row["p"] == has.code}
        keys = sorted(name for name in names if name.startswith(f"{kind}/"))
        urls = sorted(name for name in names if ":" in name)
        by_id: Filter = {"_id": {"$in": keys}}
        by_url: Filter = {"uri": {"$exists": True, "$elemMatch": {"p": "url", "u": {"$in": urls}}}}
        return {"$or": [by_id, by_url]} if urls else by_id

    def _entries(self, identifier: str) -> list[str]:
        self._restriction.require("List", Act.READ)
        found = self.find("List", [{"_id": f"List/{identifier}"}], dict(BODY_FIELDS), 1, Act.READ)
        if not found:
            return []
        entries = resource_of(found[0]["_id"], found[0]).json().get("entry", ())[:MOST_LISTED]
        items = (each.get("item", {}).get("reference") for each in entries if not each.get("deleted"))
        return [item.partition("/_history/")[0] for item in items if isinstance(item, str)]

    # ---- candidate by candidate

    def _holds(self, kind: str, keys: set[str], criterion: Criterion) -> set[str]:
        if isinstance(criterion, AllOf):
            for part in criterion.parts:
                keys = self._holds(kind, keys, part) if keys else keys
            return keys
        if isinstance(criterion, AnyOf):
            return set().union(*(self._holds(kind, keys, part) for part in criterion.parts))
        if isinstance(criterion, Chain):
            return self._chain_holds(keys, criterion)
        if isinstance(criterion, Has):
            return self._has_holds(kind, keys, criterion)
        plain = self._filter(kind, criterion)
        assert plain is not None  # noqa: S101 -- only chains and `_has` can have too many
        return self._among(keys, plain)

    def _among(self, keys: Iterable[str], condition: Filter) -> set[str]:
        found = self._collection.find({"$and": [{"_id": {"$in": sorted(keys)}}, condition]}, {"_id": 1})
        return {document["_id"] for document in found.max_time_ms(MAX_TIME_MS)}

    def _chain_holds(self, keys: set[str], chain: Chain) -> set[str]:
        referring: dict[str, set[str]] = {}
        fields = {"ref": {"$filter": {"input": "$ref", "cond": {"$eq": ["$$this.p", chain.code]}}}}
        for document in self._collection.find({"_id": {"$in": sorted(keys)}}, fields).max_time_ms(MAX_TIME_MS):
            for row in document.get("ref") or ():
                referring.setdefault(row["r"], set()).add(document["_id"])
        holding: set[str] = set()
        for target, inner in self._readable(chain.targets):
            for batch in _batches(sorted(referring)):
                for name in self._met(target, batch, inner, by_url=chain.is_canonical):
                    holding |= referring.get(name, set())
        return holding

    def _met(self, target: str, names: Sequence[str], inner: Criterion, *, by_url: bool) -> set[str]:
        """Return the names of resources, of those given, that meet a criterion."""
        own = [name for name in names if name.startswith(f"{target}/")]
        wanted: Filter = {"_id": {"$in": own}}
        if by_url:
            wanted = {"$or": [wanted, {"uri": {"$exists": True, "$elemMatch": {"p": "url", "u": {"$in": [*names]}}}}]}
        elif not own:
            return set()
        found = self.find(target, [wanted], {"_id": 1, **({"uri": 1} if by_url else {})}, 0)
        met = self.verified(target, [document["_id"] for document in found], [inner])
        urls = {row["u"] for each in found if each["_id"] in met for row in each.get("uri", ()) if row["p"] == "url"}
        return met | urls

    def _has_holds(self, kind: str, keys: set[str], has: Has) -> set[str]:
        """Go through the referring resources in batches until every key is known to have one, or none is left."""
        self._restriction.require(has.source, Act.SEARCH)
        left, holding = set(keys), set[str]()
        names = {key: key for key in keys} | (self._urls(keys) if has.is_canonical else {})
        last = ""
        while left:
            wanted = [_refers(has.code, sorted(names)), {"_id": {"$gt": last}}]
            found = self._ordered(has.source, wanted)
            if not found:
                break
            met = self.verified(has.source, [document["_id"] for document in found], [has.inner])
            for document in found:
                if document["_id"] in met:
                    referred = {row["r"] for row in document["ref"] if row["p"] == has.code}
                    holding |= {names[name] for name in referred & names.keys()}
            left -= holding
            names = {name: key for name, key in names.items() if key in left}
            last = found[-1]["_id"]
        return holding

    def _urls(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the canonical URLs of resources, and whose they are."""
        found = self._collection.find({"_id": {"$in": sorted(keys)}}, {"uri": 1}).max_time_ms(MAX_TIME_MS)
        return {row["u"]: one["_id"] for one in found for row in one.get("uri", ()) if row["p"] == "url"}

    def _ordered(self, kind: str, wanted: list[Filter]) -> list[Any]:
        mandatory = self.reach(kind) or ()
        condition = restricted(kind, mandatory, wanted, self._now)
        found = self._collection.find(condition, {"ref": 1}).sort("_id", 1).limit(BATCH)
        return list(found.max_time_ms(MAX_TIME_MS))

    # ---- modifiers that look something up

    def _plain(self, kind: str, clause: Clause) -> Clause:
        """Return a clause whose value sets, codes of a tree and hierarchies are the values that they stand for."""
        if clause.type == "token" and clause.modifier in _LOOKED_UP:
            try:
                return self._looked_up(clause)
            except AppError as error:
                message = f"search parameter {clause.code}:{clause.modifier}: {error.message}"
                raise AppError(Category.INVALID, message, where=clause.code) from error
        if clause.type == "reference" and clause.modifier in {"above", "below"}:
            return self._hierarchy(clause)
        return clause

    def _looked_up(self, clause: Clause) -> Clause:
        if clause.modifier in {"in", "not-in"}:
            texts = [value for value in clause.values if isinstance(value, Text)]
            codes = [token for value in texts for token in self._terms.members(value)]
            return replace(clause, modifier="not" if clause.modifier == "not-in" else "", values=(*codes,) or _NO_CODE)
        tokens = [value for value in clause.values if isinstance(value, Token)]
        codes = [token for value in tokens for token in self._terms.around(value, clause.modifier)]
        return replace(clause, modifier="", values=(*codes,))

    def _hierarchy(self, clause: Clause) -> Clause:
        names = [text for value in clause.values if isinstance(value, Reference) for text in value.candidates]
        kinds = {name.partition("/")[0] for name in names}
        if not kinds & PARTS_OF.keys():
            return clause  # versions of a canonical reference
        found: dict[str, None] = dict.fromkeys(names)
        latest = names
        while latest:
            latest = [name for name in self._next(latest, clause.modifier) if name not in found]
            found.update(dict.fromkeys(latest))
            if len(found) > MOST_BELOW:
                message = f"more than {MOST_BELOW} resources lie {clause.modifier} it"
                raise AppError(Category.TOO_LARGE, message, where=clause.code)
        return replace(clause, modifier="", values=(Reference(tuple(found)),))

    def _next(self, names: Sequence[str], direction: str) -> Iterator[str]:
        for kind, code in PARTS_OF.items():
            own = [name for name in names if name.startswith(f"{kind}/")]
            if not own:
                continue
            wanted = _refers(code, own) if direction == "below" else {"_id": {"$in": own}}
            for document in self.find(kind, [wanted], {"ref": 1}, MOST_BELOW + 1):
                if direction == "below":
                    yield document["_id"]
                else:
                    yield from (row["r"] for row in document.get("ref", ()) if row["p"] == code)


class Terms:
    """Value sets and code systems for a search: those that ship, and those in the store that may be read."""

    def __init__(self, joins: Joins) -> None:
        self._joins = joins

    @property
    def _terminology(self) -> Terminology:
        # What ships is read when a criterion first asks for it: most searches never do.
        return shipped().using(self._stored)

    def members(self, value: Text) -> list[Token]:
        """Return the codes of a value set, by URL or as `ValueSet/id`."""
        url = value.text
        if url.startswith("ValueSet/"):
            found = self._joins.find("ValueSet", [{"_id": url}], dict(BODY_FIELDS), 1)
            if not found:
                raise AppError(Category.NOT_FOUND, f"{url[:200]} is not known here", where="ValueSet")
            return [_token(each) for each in self._terminology.expand(resource_of(url, found[0]).json())]
        return [_token(each) for each in self._terminology.expand(url)]

    def around(self, value: Token, direction: str) -> list[Token]:
        """Return the code and what lies above or below it in its system."""
        if not value.system or value.code is None:
            raise AppError(Category.INVALID, f":{direction} needs a code with its system: system|code", where=direction)
        known = self._terminology.code_system(value.system)
        keys = known.below(value.code) if direction == "below" else known.above(value.code)
        return [Token(value.system, known.concepts[key].code if key in known.concepts else value.code) for key in keys]

    def _stored(self, kind: str, url: str) -> Mapping[str, Any] | None:
        wanted: Filter = {"uri": {"$exists": True, "$elemMatch": {"p": "url", "u": url}}}
        found = self._joins.find(kind, [wanted], dict(BODY_FIELDS), 1)
        return resource_of(found[0]["_id"], found[0]).json() if found else None


_LOOKED_UP = frozenset({"in", "not-in", "above", "below"})
_NO_CODE = (Token("", ""),)  # no resource has it


@cache
def shipped() -> Terminology:
    """Return the code systems and value sets that ship with the server."""
    return Terminology(load("terminology"))


def _token(coding: Any) -> Token:
    return Token(coding.system, coding.code)


def _refers(code: str, names: list[str]) -> Filter:
    return {"ref": {"$exists": True, "$elemMatch": {"p": code, "r": {"$in": names}}}}


def _batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + BATCH] for start in range(0, len(names), BATCH))
