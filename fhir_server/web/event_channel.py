"""Subscriptions to work items at the DICOMweb door, and the channel by which their Event Reports go out.

The channel is a WebSocket; each report is a message of text, a data set as DICOM JSON. A subscriber may open it before
it subscribes, and come again: what was not told yet comes first. Of two channels for one title in this process the
later one stays. Source: PS3.18 8.10.4, 8.10.5, 11.10 to 11.13.
"""

from collections.abc import Callable
from http import HTTPStatus
from weakref import WeakValueDictionary

import orjson
from flask import Response, current_app, request
from websockets.frames import CloseCode

from fhir_server.access.audit import Access
from fhir_server.access.principals import Principal
from fhir_server.model.workitem_events import WORKLIST, Kind, going_down, report
from fhir_server.rest.subscription_operations import TOKEN_LIFE
from fhir_server.rest.watching import Backing, Reporter, Watching, require_same
from fhir_server.web.dicom_door import Door
from fhir_server.web.http import principal_of, tries
from fhir_server.web.sockets import Line, Sockets
from fhir_server.web.workitems import WORKITEM
from imaging.errors import AppError, Category

LOOK_S = 60.0  # between two looks at least, so that a suspension of the subscriber is felt without an event
SUBSCRIBED = f"{WORKITEM}/subscribers/<title>"
CHANNEL = "/subscribers/<title>"
NO_LOCK = "Deletion Lock not granted."  # what a Warning says; PS3.18 11.10.3
_FLAGS = {"": False, "false": False, "true": True}


def subscribe(door: Door, workitem_uid: str, title: str) -> Response:
    """POST /workitems/{uid}/subscribers/{aet}[?deletionlock=&filter=]: 201 with the address of the channel."""
    tries(Access.UPDATE)
    watching = _watching(door, title)
    with_lock = _flag("deletionlock")
    watching.subscribe(workitem_uid, request.args.get("filter", "").strip(), with_all=with_lock)
    response = Response(status=HTTPStatus.CREATED)
    response.headers["Content-Location"] = f"ws{door.base_url.removeprefix('http')}/subscribers/{watching.title}"
    if with_lock:
        response.headers["Warning"] = f"299 {door.base_url}: {NO_LOCK}"
    return response


def unsubscribe(door: Door, workitem_uid: str, title: str) -> Response:
    """DELETE /workitems/{uid}/subscribers/{aet}: 200."""
    tries(Access.UPDATE)
    _watching(door, title).unsubscribe(workitem_uid)
    return Response(status=HTTPStatus.OK)


def suspend(door: Door, workitem_uid: str, title: str) -> Response:
    """POST /workitems/{uid}/subscribers/{aet}/suspend: 200; the UID is that of a worklist."""
    tries(Access.UPDATE)
    _watching(door, title).suspend(workitem_uid)
    return Response(status=HTTPStatus.OK)


def open_channel(door: Door, title: str) -> Response:
    """GET /subscribers/{aet} with a WebSocket handshake: 101."""
    tries(Access.READ)
    channels: Channels = current_app.extensions["channels"]
    channels.adopt(principal_of(request), _watching(door, title).id)
    return Response(status=HTTPStatus.SWITCHING_PROTOCOLS)


ROUTES: tuple[tuple[str, str, Callable[..., Response]], ...] = (
    ("POST", SUBSCRIBED, subscribe),
    ("DELETE", SUBSCRIBED, unsubscribe),
    ("POST", f"{SUBSCRIBED}/suspend", suspend),
    ("GET", CHANNEL, open_channel),
)


def _watching(door: Door, title: str) -> Watching:
    return Watching(door.server, principal_of(request), title)


def _flag(name: str) -> bool:
    written = request.args.get(name, "").strip().lower()
    if written not in _FLAGS:
        raise AppError(Category.INVALID, "true or false expected", where=name)
    return _FLAGS[written]


class Channels:
    """The channels of this process: one for each title of a subscriber."""

    def __init__(self, server: Backing, sockets: Sockets) -> None:
        self._server, self._sockets = server, sockets
        self._open: WeakValueDictionary[str, Channel] = WeakValueDictionary()

    def adopt(self, principal: Principal, id: str) -> None:
        """Open the channel of a watcher on the connection of this request. Raises FORBIDDEN, INVALID, BUSY."""
        watcher = self._server.watchers.find(id)
        if watcher is not None:
            require_same(watcher, principal)
        self._sockets.adopt(request.environ, lambda line: self._begin(line, principal, id))

    def _begin(self, line: Line, principal: Principal, id: str) -> "Channel":
        before = self._open.get(id)
        if before is not None:
            before.end("the same AE title has opened another channel")
        self._open[id] = channel = Channel(self._server, line, principal, id)
        return channel


class Channel:
    """One of them."""

    def __init__(self, server: Backing, line: Line, principal: Principal, id: str) -> None:
        self._server, self._line, self._principal, self._id = server, line, principal, id
        self._until = server.clock() + TOKEN_LIFE
        self._told: int | None = None  # number of the last event that was told here

    def end(self, reason: str) -> None:
        """Close it in order."""
        self._line.end(CloseCode.NORMAL_CLOSURE, reason)

    def heard(self, text: str) -> None:
        """Take note of nothing: the standard has a client say nothing here."""

    def cares(self, subject: str) -> bool:
        """Say whether an event is for this title."""
        return subject == self._id

    def leaving(self) -> None:
        """Say that the server goes. Source: PS3.4 CC.2.4.3, SCP Status Change."""
        self._say(report(Kind.SCP_STATUS, WORKLIST, 0, going_down()))

    def turn(self) -> float:
        """Tell what there is to tell."""
        left_s = (self._until - self._server.clock()).total_seconds()
        if left_s <= 0:
            self._line.end(CloseCode.POLICY_VIOLATION, "a channel is open for an hour at most: open it again")
            return 0.0
        watcher = self._server.watchers.find(self._id)
        state = self._server.subscriptions.state(self._id) if watcher else None
        if watcher is None or state is None:
            self._told = None
            return min(LOOK_S, left_s)
        require_same(watcher, self._principal)
        reporter = Reporter(self._server, watcher)
        # Numbers begin again for who unsubscribed from everything and came back.
        told = state.told if self._told is None or self._told > state.number else self._told
        if told >= state.number:
            self._told = told
            return min(LOOK_S, left_s)
        batch = reporter.pending(told, state.number)
        for each in batch.reports if batch else ():
            self._say(each)
        self._told = batch.last if batch else state.number  # the rest was kept for too long
        self._server.subscriptions.told(self._id, number=self._told, at=self._server.clock())
        return 0.0 if self._told < state.number else min(LOOK_S, left_s)

    def _say(self, told: dict[str, object]) -> None:
        self._line.say(orjson.dumps(told).decode())
