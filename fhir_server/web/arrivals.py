"""Connections that came and have asked for nothing yet: none of them takes a thread.

They are watched by the one thread that accepts connections. Where the server speaks TLS, handshakes are made there step
by step, without waiting for anybody. Whoever is silent for too long goes, and when too many have come at a time, the
one that came first.
"""

import logging
import selectors
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

from fhir_server.web.pace import PacedSocket
from fhir_server.web.tls import PacedTlsSocket, Tls

log = logging.getLogger(__name__)

MOST = 256  # of one process
HANDSHAKE_S = 10.0
LEAVING_S = 2.0  # for a client to read why it is refused
_HANDSHAKE = 22  # the content type by which TLS begins; RFC 8446 5.1
_BLOCK_BYTES = 1 << 16

Connection = Any  # gunicorn's: has the socket as `sock`


class Arrivals:
    """The connections of one process that are waited for.

    poller      of the thread that accepts connections; calls what is registered, with the socket
    tls         None: connections are not encrypted
    patience_s  how long a client may take until its request begins
    refusal     makes the answer to a client that speaks without TLS where TLS is wanted
    ready       takes a connection on which something was asked
    gone        is told of one that will ask for nothing any more; closes it
    """

    def __init__(
        self,
        poller: selectors.BaseSelector,
        tls: Tls | None,
        *,
        patience_s: float,
        refusal: Callable[[], bytes],
        ready: Callable[[Connection], None],
        gone: Callable[[Connection], None],
    ) -> None:
        self._poller, self._tls, self._patience_s = poller, tls, patience_s
        self._refusal, self._ready, self._gone = refusal, ready, gone
        self._until: dict[Connection, float] = {}  # monotonic time; in the order in which they came

    def __len__(self) -> int:
        return len(self._until)

    def add(self, conn: Connection) -> None:
        """Wait for a new connection to ask for something."""
        if len(self._until) >= MOST:
            self._drop(next(iter(self._until)))
        if self._tls is None:
            conn.sock = PacedSocket.adopt(conn.sock, self._patience_s)
        step, within_s = (self._asks, self._patience_s) if self._tls is None else (self._begins, HANDSHAKE_S)
        conn.sock.setblocking(False)
        self._until[conn] = time.monotonic() + within_s
        self._poller.register(conn.sock, selectors.EVENT_READ, partial(self._step, conn, step))

    def expire(self, *, within_s: float | None = None) -> None:
        """Let those go whose time is over; `within_s` leaves that much time to the others."""
        now = time.monotonic()
        for conn, until in list(self._until.items()):
            if within_s is not None:
                self._until[conn] = until = min(until, now + within_s)
            if until <= now:
                self._drop(conn)

    # ---- what happens to one; each is called when its socket is ready

    def _step(self, conn: Connection, step: Callable[[Connection], None], _: Any) -> None:
        if conn not in self._until:
            return  # it was dropped by another of the same round
        try:
            step(conn)
        except BlockingIOError:
            pass  # the selector was wrong
        except (OSError, ValueError) as error:
            log.debug("a connection went", extra={"kind": type(error).__name__})
            self._drop(conn)

    def _begins(self, conn: Connection) -> None:
        first = conn.sock.recv(1, socket.MSG_PEEK)
        if first and first[0] != _HANDSHAKE:
            log.info("a client speaks without TLS where TLS is wanted")
            conn.sock.send(self._refusal())
            self._leave(conn)
            return
        if not first:
            self._drop(conn)
            return
        self._poller.unregister(conn.sock)
        conn.sock = cast(Tls, self._tls).wrap(conn.sock, self._patience_s)
        self._poller.register(conn.sock, selectors.EVENT_READ, partial(self._step, conn, self._shakes))
        self._shakes(conn)

    def _shakes(self, conn: Connection) -> None:
        try:
            conn.sock.do_handshake()
        except ssl.SSLWantReadError:
            self._watch(conn, selectors.EVENT_READ, self._shakes)
        except ssl.SSLWantWriteError:
            self._watch(conn, selectors.EVENT_WRITE, self._shakes)
        except ssl.SSLEOFError:
            self._drop(conn)
        except ssl.SSLError as error:
            log.info("a TLS handshake failed", extra=_told(error))
            self._leave(conn)
        else:
            self._until[conn] = time.monotonic() + self._patience_s
            self._watch(conn, selectors.EVENT_READ, self._asks)

    def _asks(self, conn: Connection) -> None:
        self._poller.unregister(conn.sock)
        del self._until[conn]
        self._ready(conn)

    def _leave(self, conn: Connection) -> None:
        """Have the client read what it was told before the connection goes: with unread bytes that would be lost."""
        self._until[conn] = time.monotonic() + LEAVING_S
        socket.socket.shutdown(conn.sock, socket.SHUT_WR)
        self._watch(conn, selectors.EVENT_READ, self._leaves)

    def _leaves(self, conn: Connection) -> None:
        if not socket.socket.recv(conn.sock, _BLOCK_BYTES):
            self._drop(conn)

    def _watch(self, conn: Connection, events: int, step: Callable[[Connection], None]) -> None:
        self._poller.modify(conn.sock, events, partial(self._step, conn, step))

    def _drop(self, conn: Connection) -> None:
        del self._until[conn]
        with suppress(KeyError, ValueError, OSError):
            self._poller.unregister(conn.sock)
        self._gone(conn)


def is_decrypted(connection: socket.socket) -> bool:
    """Say whether something waits that was read from the network already, so that no selector tells of it."""
    return isinstance(connection, PacedTlsSocket) and connection.fileno() >= 0 and connection.pending() > 0


def _told(error: ssl.SSLError) -> dict[str, str]:
    """Return what OpenSSL says of a handshake: words of its own, nothing of the client."""
    why = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else ""
    return {"kind": error.reason or type(error).__name__, **({"why": why} if why else {})}
