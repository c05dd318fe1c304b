"""The operations on Subscriptions: how they are, what they were to tell, and a token to be told by a socket.

Source: Subscriptions R5 Backport 1.1.0, OperationDefinitions backport-subscription-status, -events and
-get-ws-binding-token.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

from fhir_server.access.audit import Access
from fhir_server.model.criteria import Clause, Token, check_id
from fhir_server.model.dates import to_instant
from fhir_server.model.query import Query
from fhir_server.model.subscription import GUIDE, MOST_EVENTS, Content, Subscription, Way
from fhir_server.rest.calls import Call, Operation, answer
from fhir_server.rest.notices import Kind, statuses
from fhir_server.rest.subscriptions import Teller, asked_for, require_same
from fhir_server.store.subscriptions import State
from imaging.errors import AppError, Category

MOST_AT_ONCE = 1_000  # Subscriptions in one answer
TOKEN_LIFE = timedelta(hours=1)
SOCKET_PATH = "/_socket"  # below the base of the FHIR door

_DEFINITIONS = f"{GUIDE}/OperationDefinition/backport-subscription-"
_TYPES = frozenset({"Subscription"})


def socket_url(fhir_url: str) -> str:
    """Return the address of the socket."""
    return "ws" + fhir_url.removeprefix("http") + SOCKET_PATH


def _status(call: Call) -> bytes:
    wanted = {str(each) for each in call.values.get("status", [])} if not call.id else set()
    found = [each for each in _named(call) if not wanted or each.status in wanted]
    told = [(each, _state(call, each)) for each in found]
    return statuses(told, fhir_url=call.server.fhir_url, now=call.server.clock())


def _events(call: Call) -> bytes:
    (asked,) = _named(call)
    state = _state(call, asked)
    if asked.topic is None:
        message = "the events of Subscriptions to a topic can be asked for; search for what this one selects"
        raise AppError(Category.UNSUPPORTED, message, where="Subscription.criteria")
    first = call.number("eventsSinceNumber", 1)
    last = min(call.number("eventsUntilNumber", state.number), state.number)
    content = call.one("content", asked.content.value)
    if content not in set(Content):
        raise AppError(Category.INVALID, f"content is one of: {', '.join(Content)}", where="content")
    # What is asked for in a request may be as much as one notification holds, however few the endpoint wants.
    teller = Teller(call.server, replace(asked, channel=replace(asked.channel, most=MOST_EVENTS, payload="")))
    batch = teller.pending(first - 1, last)
    told = batch.told if batch else ()
    teller.record(told)
    return teller.bundle(Kind.QUERY_EVENT, state, told, Content(content))


def _token(call: Call) -> bytes:
    named = _named(call)
    found = [each for each in named if each.channel.way is Way.WEBSOCKET]
    is_named = call.id or call.values.get("id")
    if not found or (is_named and len(found) < len(named)):
        message = "the channel of a Subscription that is told by a socket is websocket"
        raise AppError(Category.INVALID, message, where="Subscription.channel.type")
    until = call.server.clock() + TOKEN_LIFE
    token = call.server.subscriptions.token(found[0].owner, [each.id for each in found], until)
    told = [
        {"name": "token", "valueString": token},
        {"name": "expiration", "valueDateTime": to_instant(until)},
        *({"name": "subscription", "valueString": each.id} for each in found),
        {"name": "websocket-url", "valueUrl": socket_url(call.server.fhir_url)},
    ]
    return answer(told)


def _named(call: Call) -> list[Subscription]:
    """Return the Subscriptions that are meant: of the address, of the parameter `id`, or all that the caller has."""
    names = [call.id] if call.id else [check_id(str(each), where="id") for each in call.values.get("id", [])]
    clauses = (Clause("_id", "token", "", tuple(Token(None, each) for each in names)),) if names else ()
    found = {each.id: each for each in _searched(call, Query("Subscription", clauses, count=MOST_AT_ONCE))}
    missing = [each for each in names if each not in found]
    if call.id and missing:
        call.repository.read("Subscription", call.id)  # says why: unknown, or deleted
    if missing:
        raise AppError(Category.NOT_FOUND, f"Subscription/{missing[0]} is not known", where="id")
    return list(found.values())


def _searched(call: Call, query: Query) -> Iterator[Subscription]:
    for each in call.repository.search(query).matches:
        asked, grant = asked_for(each), call.repository.stamp.grant
        if call.id or "id" in call.values:
            require_same(asked, grant)
        if grant in (None, asked.grant):
            yield asked


def _state(call: Call, asked: Subscription) -> State:
    """Return how far a Subscription is; one that nobody has looked at yet has had no events."""
    return call.server.subscriptions.state(asked.id) or State(asked.id, call.server.clock())


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "status", f"{_DEFINITIONS}status", _status, frozenset({"id", "status"}),
        _TYPES, on_type=True, on_instance=True,
    ),
    Operation(
        "events", f"{_DEFINITIONS}events", _events,
        frozenset({"eventsSinceNumber", "eventsUntilNumber", "content"}), _TYPES, on_instance=True,
        access=Access.READ,
    ),
    Operation(
        "get-ws-binding-token", f"{_DEFINITIONS}get-ws-binding-token", _token, frozenset({"id"}),
        _TYPES, on_type=True, on_instance=True,
    ),
)  # fmt: skip
