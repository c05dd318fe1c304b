"""Where a page ended, as a signed text: the next page starts behind that place, whatever was written meanwhile.

A place is the sort key of the last match. The text is bound to the query that made it and signed, so that it can be
neither altered nor used to ask something else. Pure.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from fhir_server.model.query import Query
from imaging.errors import AppError, Category

Filter = dict[str, Any]
Order = Sequence[tuple[str, int]]  # field and direction: 1 ascending, -1 descending

SIGNATURE_SIZE = 16  # bytes of HMAC-SHA256
NEWEST_FIRST: Order = (("created", -1), ("_id", 1))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_NEVER_ABSENT = frozenset({"created", "lastUpdated", "_id"})


def order_of(query: Query) -> Order:
    """Return the total order of a query's matches.

    Without `_sort` it is newest created first: a key that never changes, so that a resource that is updated while a
    client turns the pages is neither missed nor seen twice.
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
        else:
            order += [(f"sort.{key.code}.l", direction), (f"sort.{key.code}.h", direction)]
    # Opposite to the first key, as in the indexes, which are read backwards for the other direction.
    return [*order, ("_id", -order[0][1])]


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


def sign(query: Query, values: Sequence[Any], key: bytes) -> str:
    """Return the cursor text of a place."""
    content = orjson.dumps([query.fingerprint, [_packed(value) for value in values]])
    return base64.urlsafe_b64encode(_signature(content, key) + content).rstrip(b"=").decode()


def verify(query: Query, text: str, key: bytes) -> list[Any]:
    """Return the place that a cursor text names. Raises INVALID when it is not of this server or of another query."""
    try:
        raw = base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
    except ValueError:
        raw = b""
    signature, content = raw[:SIGNATURE_SIZE], raw[SIGNATURE_SIZE:]
    if not hmac.compare_digest(signature, _signature(content, key)):
        raise AppError(Category.INVALID, "the page address is not one of this server's", where="_cursor")
    fingerprint, values = orjson.loads(content)
    if fingerprint != query.fingerprint:
        raise AppError(Category.INVALID, "the page address belongs to another search", where="_cursor")
    return [_unpacked(value) for value in values]


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
    return (value - _EPOCH) // _MILLISECOND if isinstance(value, datetime) else value


def _unpacked(value: Any) -> Any:
    return _EPOCH + value * _MILLISECOND if isinstance(value, int) else value
