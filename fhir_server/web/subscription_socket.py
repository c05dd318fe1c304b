"""The socket by which Subscriptions are told: a client binds it to some, and hears of their events.

Two ways to bind: `bind <id>`, of FHIR R4, after a bearer token came with the handshake; and `bind-with-token <token>`,
with a token of `$get-ws-binding-token`, for clients that can send no headers. R4's Subscriptions are told by `bound`
and `ping`; those to topics by Bundles. What was not told yet comes first. A socket ends when what bound it is over.
Sources: FHIR R4 subscription 2.46.5.2; Subscriptions R5 Backport 1.1.0, channels, websockets.
"""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from flask import Blueprint, Response, request
from websockets.frames import CloseCode

from fhir_server.access.audit import Access
from fhir_server.access.principals import Principal
from fhir_server.model import json
from fhir_server.model.criteria import ID_FORM
from fhir_server.model.outcome import outcome
from fhir_server.model.subscription import Status, Subscription, Way
from fhir_server.rest import subscriptions
from fhir_server.rest.notices import Kind, Told
from fhir_server.rest.subscription_operations import SOCKET_PATH, TOKEN_LIFE
from fhir_server.rest.subscriptions import Teller, asked_for, require_same
from fhir_server.store.subscriptions import State
from fhir_server.web.http import principal_of, tries
from fhir_server.web.sockets import Line, Sockets
from imaging.errors import AppError, Category

log = logging.getLogger(__name__)

LOOK_S = 60.0  # between two looks at a binding at least, so that a suspension is felt without an event
UNBOUND_S = 60.0  # a socket that nobody binds is closed after this
MOST_BINDINGS = 100  # of one socket
MOST_MISTAKES = 5  # of one client
AWAIT_MS = 500
REOPEN_S = 1.0


def blueprint(server: subscriptions.Backing, sockets: Sockets) -> Blueprint:
    """Return the address of the socket."""
    routes = Blueprint("socket", __name__, url_prefix="/fhir")

    def connect() -> Response:
        tries(Access.READ)
        # A browser can send no header with a handshake: it binds by a token, which it got with one.
        principal = principal_of(request) if "Authorization" in request.headers else None
        sockets.adopt(request.environ, lambda line: Talk(server, line, principal))
        return Response(status=101)

    for is_handshake in (True, False):  # the router tells them apart; what is none is told so
        name = "connect" if is_handshake else "no-handshake"
        options: dict[str, Any] = {"methods": ["GET"], "provide_automatic_options": False, "websocket": is_handshake}
        routes.add_url_rule(SOCKET_PATH, name, connect, **options)
    return routes


class Events:
    """Wakes the sockets of this process when events come, as long as there are any sockets."""

    def __init__(self, server: subscriptions.Backing) -> None:
        self._server = server
        self._sockets: Sockets | None = None
        self._running = threading.Lock()

    def serve(self, sockets: Sockets) -> None:
        """Say whom to wake."""
        self._sockets = sockets

    def start(self) -> None:
        """Begin, unless it has."""
        if self._running.acquire(blocking=False):
            threading.Thread(target=self._watch, name="socket-events", daemon=True).start()

    def _watch(self) -> None:
        sockets = self._sockets
        assert sockets is not None  # noqa: S101 -- `serve` comes before any socket
        while sockets.is_used:
            try:
                self._listen(sockets)
            except Exception:
                log.exception("the change stream broke; it is opened again")
                time.sleep(REOPEN_S)
        self._running.release()
        sockets.again()  # one may have come at the last moment

    def _listen(self, sockets: Sockets) -> None:
        with self._server.subscriptions.watch_events(AWAIT_MS) as news:
            sockets.wake(None)  # what came before is found by a look
            while sockets.is_used:
                if name := news():
                    sockets.wake(name)


@dataclass(frozen=True, slots=True)
class Binding:
    """A Subscription that a socket is bound to.

    until  when it has to be bound again
    told   number of the last event that was told here
    at     monotonic time of the last notification
    """

    until: datetime
    told: int
    at: float


class Talk:
    """One client."""

    def __init__(self, server: subscriptions.Backing, line: Line, principal: Principal | None) -> None:
        self._server, self._line, self._principal = server, line, principal
        self._store, self._clock = server.subscriptions, server.clock
        self._bindings: dict[str, Binding] = {}
        self._begun = time.monotonic()
        self._mistakes = 0

    def heard(self, text: str) -> None:
        """Do what the client asks for; a mistake is told as an OperationOutcome."""
        command, _, argument = text.strip().partition(" ")
        act = {"bind": self._bind, "bind-with-token": self._bind_by_token}.get(command)
        try:
            if act is None:
                raise AppError(Category.INVALID, "bind ID or bind-with-token TOKEN is wanted", where="message")
            act(argument.strip())
        except AppError as error:
            if error.category in (Category.BUSY, Category.FAULT):
                raise
            self._mistakes += 1
            self._line.say(json.dumps(outcome(error)).decode())
            if self._mistakes >= MOST_MISTAKES:
                self._line.end(CloseCode.POLICY_VIOLATION, "too many mistakes")

    def cares(self, subject: str) -> bool:
        """Say whether this is bound to a Subscription."""
        return subject in self._bindings

    def turn(self) -> float:
        """Tell what there is to tell."""
        if not self._bindings:
            left_s = self._begun + UNBOUND_S - time.monotonic()
            if left_s <= 0:
                self._line.end(CloseCode.POLICY_VIOLATION, "nothing was bound")
            return max(left_s, 0.0)
        waits = [LOOK_S]
        for name, binding in list(self._bindings.items()):
            left_s = (binding.until - self._clock()).total_seconds()
            if left_s <= 0:
                self._line.end(CloseCode.POLICY_VIOLATION, "what bound this socket is over: bind it again")
                return 0.0
            waits += [left_s, self._serve(name, binding)]
        return min(waits)

    def leaving(self) -> None:
        """Say nothing: the close tells it."""

    # ---- binding

    def _bind(self, name: str) -> None:
        if self._principal is None:
            message = "no bearer token came with the handshake; use bind-with-token"
            raise AppError(Category.UNAUTHENTICATED, message, where="bind")
        asked = self._subscription(name)
        if asked is not None and asked.owner == self._principal.subscriber:
            require_same(asked, self._principal.granted())
        self._bound(name, self._principal.subscriber, self._clock() + TOKEN_LIFE)
        self._line.say(f"bound {name}")

    def _bind_by_token(self, token: str) -> None:
        found = self._store.bound_by(token)
        if found is None:
            raise AppError(Category.UNAUTHENTICATED, "the token is unknown or over", where="bind-with-token")
        owner, names, until = found
        for name in names:
            asked, state = self._bound(name, owner, until)
            if asked.topic is None:
                self._line.say(f"bound {name}")
            else:
                # Of whom it is told that it may not receive any more, nothing is told.
                teller = Teller(self._server, asked)
                self._line.say(teller.bundle(Kind.HANDSHAKE, replace(state, number=state.told)).decode())

    def _bound(self, name: str, owner: str, until: datetime) -> tuple[Subscription, State]:
        asked = self._subscription(name)
        if asked is None or asked.owner != owner:
            raise AppError(Category.NOT_FOUND, "there is no such Subscription", where="bind")
        if asked.channel.way is not Way.WEBSOCKET:
            raise AppError(Category.INVALID, "its channel is not websocket", where="Subscription.channel.type")
        if asked.status not in (Status.REQUESTED, Status.ACTIVE):
            raise AppError(Category.INVALID, f"it is {asked.status}", where="Subscription.status")
        if len(self._bindings) >= MOST_BINDINGS and name not in self._bindings:
            raise AppError(Category.TOO_LARGE, f"a socket is bound to {MOST_BINDINGS} Subscriptions at most")
        state = self._store.state(name) or State(name, self._clock())
        before = self._bindings.get(name)
        told = before.told if before else state.told
        self._bindings[name] = Binding(until, told, time.monotonic())
        return asked, state

    def _subscription(self, name: str) -> Subscription | None:
        if not ID_FORM.fullmatch(name):
            return None
        try:
            return asked_for(self._server.own.read("Subscription", name))
        except AppError as error:
            if error.category not in (Category.NOT_FOUND, Category.GONE):
                raise
            return None

    # ---- telling

    def _serve(self, name: str, binding: Binding) -> float:
        """Tell one notification of a Subscription, if there is any; return in how many seconds to come back."""
        asked = self._subscription(name)
        if asked is None or asked.status not in (Status.REQUESTED, Status.ACTIVE) or asked.is_over(self._clock()):
            self._line.end(CloseCode.POLICY_VIOLATION, f"Subscription/{name} is not active any more")
            return 0.0
        teller = Teller(self._server, asked)
        state = self._store.state(name) or State(name, self._clock())
        if binding.told < state.number:
            batch = teller.pending(binding.told, state.number)
            last = batch.last if batch else state.number  # None where the rest was kept for too long
            if batch:
                self._tell(teller, batch.told, replace(state, number=last))
            self._store.told(name, number=last, at=self._clock())
            self._bindings[name] = replace(binding, told=last, at=time.monotonic())
            return 0.0 if last < state.number else LOOK_S
        return self._rested(teller, state, binding)

    def _tell(self, teller: Teller, told: Sequence[Told], state: State) -> None:
        asked = teller.subscription
        if asked.topic:
            self._line.say(teller.bundle(Kind.EVENT, state, told).decode())
        else:
            for _ in (each for each in told if each.version is not None):
                self._line.say(f"ping {asked.id}")
        teller.record(told)

    def _rested(self, teller: Teller, state: State, binding: Binding) -> float:
        """Send a heartbeat where one is due."""
        asked = teller.subscription
        period_s = asked.channel.heartbeat_s if asked.topic else 0
        if not period_s:
            return LOOK_S
        left_s = binding.at + period_s - time.monotonic()
        if left_s <= 0:
            self._line.say(teller.bundle(Kind.HEARTBEAT, state).decode())
            self._bindings[asked.id] = replace(binding, at=time.monotonic())
            left_s = float(period_s)
        return left_s
