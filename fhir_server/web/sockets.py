"""WebSocket connections of one process, served by one thread of their own: they take none that answers requests.

A door hands a connection over after it looked at the request; what is said on it is the business of a `Conversation`.
Hides the protocol (RFC 6455, by the library websockets), waiting, keep-alive, and clients that do not read: what waits
to be sent to one is bounded, and a conversation is only asked for more when that is gone.
"""

import logging
import os
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Protocol

from websockets.datastructures import Headers
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from imaging.errors import AppError, Category

log = logging.getLogger(__name__)

MOST_MESSAGE_BYTES = 4_096  # of one message that a client sends; they are short commands
BLOCK_BYTES = 1 << 16
PING_S = 30.0  # after so much silence a client is asked whether it is there
SILENCE_S = 75.0  # and given up after so much; also one that takes nothing of what is sent
FAREWELL_S = 2.0  # for a client to answer a close
HANDED_OVER = "fhir_imaging.handed_over"  # in the WSGI environment: the connection is not the web server's any more
_OURS = ("Host", "Connection", "Upgrade", "Origin", "Sec-WebSocket-Key", "Sec-WebSocket-Version")

# The library tells headers at its lowest levels; they hold tokens.
_wire = logging.getLogger("websockets.server")
_wire.setLevel(logging.WARNING)


class HandedOver(StopIteration):
    """The connection is not the web server's any more; to gunicorn it means that there is nothing more to do."""


class Line(Protocol):
    """What a conversation may do with its connection."""

    def say(self, text: str) -> None:
        """Send a message."""

    def end(self, code: int, reason: str) -> None:
        """Close in order; `reason` is told to the client, in up to 120 characters."""


class Conversation(Protocol):
    """What is said on one connection. All of it is called by one thread, one call at a time."""

    def heard(self, text: str) -> None:
        """Take note of a message of the client."""

    def cares(self, subject: str) -> bool:
        """Say whether news of a subject are worth a turn."""

    def turn(self) -> float:
        """Say what there is to say now; return in how many seconds to be asked again, if nothing happens before."""

    def leaving(self) -> None:
        """Say what there is to say when the server goes."""


class Sockets:
    """The connections. `close` ends them all."""

    def __init__(self, most: int, *, started: Callable[[], None] = lambda: None) -> None:
        """Have room for `most` connections. `started` is called when the first comes after there was none."""
        self._most, self._started = most, started
        self._lines: set[_Line] = set()
        self._coming: queue.SimpleQueue[_Line] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._bell = _Bell()
        self._closing = False
        self._count = 0

    @property
    def is_used(self) -> bool:
        """Whether there is any connection."""
        return self._count > 0

    def adopt(self, environ: dict[str, Any], begin: Callable[[Line], Conversation]) -> None:
        """Take over the connection of a request and begin a conversation; the request is then answered.

        Raises INVALID for a request that is no WebSocket handshake, BUSY when there is no room.
        """
        reply = handshake(environ)
        connection = environ.get("gunicorn.socket")
        if not isinstance(connection, socket.socket):
            raise AppError(Category.UNSUPPORTED, "this web server hands over no connections", where="Upgrade")
        with self._lock:
            if self._closing or self._count >= self._most:
                raise AppError(Category.BUSY, f"{self._most} sockets are open, which is all: try again", where="socket")
            self._count += 1
            if self._count == 1:
                self._started()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sockets", daemon=True)
                self._thread.start()
        environ[HANDED_OVER] = True
        self._coming.put(_Line(connection, reply, begin))
        self._bell.ring()

    def wake(self, subject: str | None) -> None:
        """Give a turn to all conversations that care for a subject, None for all."""
        self._news.put(subject)
        self._bell.ring()

    def again(self) -> None:
        """Call `started` again, if there is any connection."""
        if self.is_used:
            self._started()

    def stop(self) -> None:
        """Begin to close everything; nothing is taken on any more. May be called by a signal's handler."""
        self._closing = True
        self._bell.ring()

    def close(self, within_s: float) -> None:
        """Close everything in order, and what does not close within this time without."""
        self.stop()
        if self._thread is not None:
            self._thread.join(within_s)

    # ---- the thread

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._bell, selectors.EVENT_READ)
        while not (self._closing and not self._lines and self._coming.empty()):
            now = time.monotonic()
            wait_s = min((each.due - now for each in self._lines), default=None)
            ready = selector.select(wait_s if wait_s is None else max(wait_s, 0.0))
            self._bell.hush()
            self._greet(selector)
            for key, _ in ready:
                if isinstance(key.data, _Line):
                    key.data.safely(key.data.exchange)
            self._tell()
            for each in list(self._lines):
                if self._closing:
                    each.safely(each.leave)
                each.safely(each.attend)
                self._watch(selector, each)
        selector.close()

    def _greet(self, selector: selectors.BaseSelector) -> None:
        for line in _drained(self._coming):
            self._lines.add(line)
            selector.register(line.connection, selectors.EVENT_READ, line)
            line.safely(line.open)
            line.safely(line.exchange)  # over TLS something may have been read before, and no selector tells

    def _tell(self) -> None:
        subjects = list(dict.fromkeys(_drained(self._news)))
        for each in self._lines:
            if any(subject is None or each.cares(subject) for subject in subjects):
                each.is_due = True

    def _watch(self, selector: selectors.BaseSelector, line: "_Line") -> None:
        if line.is_over:
            selector.unregister(line.connection)
            line.connection.close()
            self._lines.discard(line)
            with self._lock:
                self._count -= 1
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if line.waiting else 0)
        if selector.get_key(line.connection).events != wanted:
            selector.modify(line.connection, wanted, line)


def handshake(environ: Mapping[str, Any]) -> bytes:
    """Return the answer that accepts a WebSocket handshake. Raises INVALID for any other request."""
    names = {name: f"HTTP_{name.upper().replace('-', '_')}" for name in _OURS}
    given = Headers([(name, environ[variable]) for name, variable in names.items() if variable in environ])
    response = ServerProtocol(logger=_wire).accept(Request(environ.get("PATH_INFO", "/"), given))
    if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
        raise AppError(Category.INVALID, "a WebSocket handshake (RFC 6455) is wanted", where="Upgrade")
    return response.serialize()


class _Line:
    """One connection."""

    def __init__(self, connection: socket.socket, reply: bytes, begin: Callable[[Line], Conversation]) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.waiting = bytearray(reply)
        self.is_over = False
        self.is_due = True
        self._protocol = ServerProtocol(state=OPEN, max_size=MOST_MESSAGE_BYTES, logger=_wire)
        self._begin, self._conversation = begin, None
        self._heard_at = self._moved_at = time.monotonic()
        self._asked = False  # a ping is under way
        self._turn_at = 0.0
        self._ended_at: float | None = None
        self._is_shut = False

    _conversation: Conversation | None

    @property
    def due(self) -> float:
        """Monotonic time at which to attend to it though nothing happened."""
        if self._ended_at is not None:
            return self._ended_at + FAREWELL_S
        turn_at = self._moved_at + SILENCE_S if self.waiting else self._turn_at
        return min(turn_at, self._heard_at + (SILENCE_S if self._asked else PING_S))

    def open(self) -> None:
        """Begin the conversation."""
        self._guarded(lambda: setattr(self, "_conversation", self._begin(self)))

    def cares(self, subject: str) -> bool:
        return self._conversation is not None and self._conversation.cares(subject)

    def say(self, text: str) -> None:
        if self._ended_at is None and self._protocol.state is OPEN:
            self._protocol.send_text(text.encode())
            self._collect()

    def end(self, code: int, reason: str) -> None:
        if self._ended_at is None:
            self._ended_at = time.monotonic()
            if self._protocol.state is OPEN:
                self._protocol.send_close(code, reason.encode()[:120].decode(errors="ignore"))
            self._collect()

    def leave(self) -> None:
        """Say that the server goes."""
        if self._ended_at is None and self._conversation is not None:
            self._guarded(self._conversation.leaving)
        self.end(CloseCode.GOING_AWAY, "the server stops")

    def safely(self, act: Callable[[], None]) -> None:
        """Do it; whatever goes wrong with one connection, the others go on."""
        try:
            act()
        except Exception:
            log.exception("a connection failed")
            self.is_over = True

    def exchange(self) -> None:
        """Read what came and write what waits, as far as that goes without waiting."""
        try:
            data = self.connection.recv(BLOCK_BYTES)
        except BlockingIOError:
            data = None
        except OSError:
            data = b""
        if data == b"":
            self._protocol.receive_eof()
            self.is_over = True
            return
        if data:
            self._heard_at, self._asked = time.monotonic(), False
            self._protocol.receive_data(data)
            for event in self._protocol.events_received():
                if isinstance(event, Frame):
                    self._take(event)
            self._collect()
        self._flush()

    def attend(self) -> None:
        """Give the conversation its turn, ask a silent client whether it is there, and write."""
        now = time.monotonic()
        if self._is_given_up(now):
            self.is_over = True
            return
        if now - self._heard_at >= PING_S and not self._asked and self._ended_at is None:
            self._asked = True
            self._protocol.send_ping(b"")
            self._collect()
        # What waits goes first, however much there would be to say.
        if (self.is_due or now >= self._turn_at) and not self.waiting and self._ended_at is None:
            self.is_due = False
            self._guarded(self._take_turn)
        self._flush()

    def _is_given_up(self, now: float) -> bool:
        if self.is_over:
            return True
        if self._ended_at is not None and now - self._ended_at >= FAREWELL_S:
            return True  # it did not answer the close
        if self.waiting and now - self._moved_at > SILENCE_S:
            return True
        return self._asked and now - self._heard_at > SILENCE_S

    def _take_turn(self) -> None:
        if self._conversation is not None:
            self._turn_at = time.monotonic() + self._conversation.turn()

    def _take(self, frame: Frame) -> None:
        if frame.opcode is Opcode.TEXT and frame.fin:
            text = bytes(frame.data).decode(errors="replace")
            conversation = self._conversation
            if conversation is not None:
                self._guarded(lambda: conversation.heard(text))
                self.is_due = True
        elif frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            self.end(CloseCode.UNSUPPORTED_DATA, "commands are short messages of text")

    def _guarded(self, act: Callable[[], None]) -> None:
        """Have the conversation do something; what goes wrong is told to the client, and ends the connection."""
        try:
            act()
        except AppError as error:
            code = CloseCode.TRY_AGAIN_LATER if error.category is Category.BUSY else CloseCode.POLICY_VIOLATION
            self.end(code, error.message)
        except Exception:
            log.exception("a socket failed")
            self.end(CloseCode.INTERNAL_ERROR, "the server could not do this")

    def _collect(self) -> None:
        for each in self._protocol.data_to_send():
            if each:
                if not self.waiting:
                    self._moved_at = time.monotonic()
                self.waiting += each
            elif self._ended_at is None:  # the client said that it goes, or made a mistake
                self._ended_at = time.monotonic()

    def _flush(self) -> None:
        if self.waiting:
            try:
                sent = self.connection.send(self.waiting)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.is_over = True
                return
            if sent:
                self._moved_at = time.monotonic()
                del self.waiting[:sent]
        if not self.waiting and self._protocol.eof_sent and not self._is_shut:
            # The client hears the close before the connection goes: it is left to close that.
            self._is_shut = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_WR)


class _Bell:
    """Wakes a selector from another thread."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        return self._read

    def ring(self) -> None:
        with suppress(BlockingIOError):  # it is ringing already
            os.write(self._write, b"\0")

    def hush(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._read, 4096)


def _drained(waiting: "queue.SimpleQueue[Any]") -> Iterable[Any]:
    while True:
        try:
            yield waiting.get_nowait()
        except queue.Empty:
            return
