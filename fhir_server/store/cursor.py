"""Where a page ended, as a signed text: the next page starts behind that place, whatever was written meanwhile.

A place is the sort key of the last match. The text is bound to the query that made it and signed, so that it can be
neither altered nor used to ask something else. Pure.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import orjson

from fhir_server.model.query import OWN_FIELDS, Query, is_scalar_date
from fhir_server.store.index import ARRAYS
from imaging.errors import AppError, Category

Filter = dict[str, Any]
Order = Sequence[tuple[str, int]]  # field and direction: 1 ascending, -1 descending

SIGNATURE_SIZE = 16  # bytes of HMAC-SHA256
COMPUTED = "key."
# array of rows -> what its rows are sorted by
_VALUES = {"tok": "c", "ref": "r", "str": "v", "dat": "l", "num": "l", "qty": "l", "uri": "u"}
NEWEST_FIRST: Order = (("created", -1), ("_id", 1))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_NEVER_ABSENT = frozenset({"created", "lastUpdated", "_id"})


def order_of(query: Query) -> Order:
    """Return the total order of a query's matches.

    Without `_sort` it is newest created first: a key that never changes, so that a resource that is updated while a
    client turns the pages is neither missed nor seen twice. Fields that begin with `key.` are computed (`computed`).
    """
    if not query.sort:
        return NEWEST_FIRST
    order: list[tuple[str, int]] = []
    for key in query.sort:
        direction = -1 if key.is_descending else 1
        if key.code == "_id":
            return [*order, ("_id", direction)]
        if key.code == "_lastUpdated":
            order.append(("lastUpdated", direction))
        elif is_scalar_date(query.type, key.code):
            order += [(f"sort.{key.code}.l", direction), (f"sort.{key.code}.h", direction)]
        else:
            order.append((f"{COMPUTED}{key.code}", direction))
    # Opposite to the first key, as in the indexes, which are read backwards for the other direction.
    return [*order, ("_id", -order[0][1])]


def computed(query: Query) -> dict[str, Any]:
    """Return the expressions of the fields of the order that no document has: the lowest or highest of the rows.

    Source: FHIR R4 search 3.1.1.5.1: ascending order goes by the lowest of several values, descending by the highest.
    """
    scalars = {key.code for key in query.sort if is_scalar_date(query.type, key.code)}
    found = {}
    for key in query.sort:
        if key.code in OWN_FIELDS or key.code in scalars:
            continue
        array = ARRAYS[key.type]
        rows = {"$filter": {"input": {"$ifNull": [f"${array}", []]}, "cond": {"$eq": ["$$this.p", key.code]}}}
        values = {"$map": {"input": rows, "in": f"$$this.{_VALUES[array]}"}}
        found[f"{COMPUTED}{key.code}"] = {"$max" if key.is_descending else "$min": values}
    return found


def keys_of(rows: Mapping[str, Any], order: Order) -> dict[str, Any]:
    """Return the fields of the order that search rows give, in the shape of a document."""
    found: dict[str, Any] = {"sort": rows.get("sort", {}), "key": {}}
    for name, direction in order:
        code = name.removeprefix(COMPUTED)
        if code != name:
            matching = ((array, row) for array in _VALUES for row in rows.get(array, ()) if row["p"] == code)
            values = [row[_VALUES[array]] for array, row in matching if _VALUES[array] in row]
            found["key"][code] = (min if direction > 0 else max)(values) if values else None
    return found


def is_steady(query: Query) -> bool:
    """Say whether writing never moves a resource within the order."""
    return all(key.code == "_id" for key in query.sort)


def place(document: Mapping[str, Any], order: Order) -> list[Any]:
    """Return the sort key of a document."""
    return [_lookup(document, field) for field, _ in order]


def beyond(order: Order, values: Sequence[Any]) -> Filter:
    """Return the filter of everything behind a place; an absent value sorts before all others, as MongoDB does it."""
    steps: list[Filter] = []
    for position, (field, direction) in enumerate(order):
        further = _further(field, direction, values[position])
        if further is not None:
            same = {name: value for (name, _), value in zip(order[:position], values, strict=False)}
            steps.append({"$and": [same, further]} if same else further)
    bound = _bound(*order[0], values[0])
    return {"$and": [bound, {"$or": steps}]} if bound else {"$or": steps}


class Place(NamedTuple):
    """Where a page ended: the sort key of its last match, and when the first page was read."""

    values: list[Any]
    moment: datetime | None = None


def sign(query: Query, place: Place, key: bytes) -> str:
    """Return the cursor text of a place."""
    content = orjson.dumps([query.fingerprint, [_packed(value) for value in place.values], _packed(place.moment)])
    return base64.urlsafe_b64encode(_signature(content, key) + content).rstrip(b"=").decode()


def verify(query: Query, text: str, key: bytes) -> Place:
    """Return the place that a cursor text names. Raises INVALID when it is not of this server or of another query."""
    try:
        raw = base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
    except ValueError:
        raw = b""
    signature, content = raw[:SIGNATURE_SIZE], raw[SIGNATURE_SIZE:]
    if not hmac.compare_digest(signature, _signature(content, key)):
        raise AppError(Category.INVALID, "the page address is not one of this server's", where="_cursor")
    fingerprint, values, moment = orjson.loads(content)
    if fingerprint != query.fingerprint:
        raise AppError(Category.INVALID, "the page address belongs to another search", where="_cursor")
    return Place([_unpacked(value) for value in values], _unpacked(moment))


def _further(field: str, direction: int, value: Any) -> Filter | None:
    if value is None:
        return {field: {"$ne": None}} if direction > 0 else None
    if direction > 0:
        return {field: {"$gt": value}}
    if field in _NEVER_ABSENT:
        return {field: {"$lt": value}}
    return {"$or": [{field: {"$lt": value}}, {field: None}]}


def _bound(field: str, direction: int, value: Any) -> Filter | None:
    """Return a plain condition on the first key, from which the planner gets the bounds of its index scan."""
    if value is None:
        return {field: None} if direction < 0 else None
    if direction > 0:
        return {field: {"$gte": value}}
    return {field: {"$lte": value}} if field in _NEVER_ABSENT else {field: {"$not": {"$gt": value}}}


def _signature(content: bytes, key: bytes) -> bytes:
    return hmac.digest(key, content, hashlib.sha256)[:SIGNATURE_SIZE]


def _lookup(document: Mapping[str, Any], path: str) -> Any:
    found: Any = document
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _packed(value: Any) -> Any:
    return [(value - _EPOCH) // _MILLISECOND] if isinstance(value, datetime) else value


def _unpacked(value: Any) -> Any:
    return _EPOCH + value[0] * _MILLISECOND if isinstance(value, list) else value
