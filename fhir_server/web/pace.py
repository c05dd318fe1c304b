"""The connection of a client, given up when the client is too slow.

A thread serves one client at a time. One that announces a body and sends nothing, that sends a byte now and then, or
that does not take its answer would keep the thread for as long as it likes. Time counts only while the client is waited
for: what the server does meanwhile is not the client's fault.
"""

import errno
import socket
import time
from typing import Any

LEAST_BYTES_PER_S = 1024


class TooSlow(Exception):
    """The client did not send its request in time."""


class PacedSocket(socket.socket):
    """A connected socket; in blocking mode it waits for the client up to `patience_s`.

    Within any `patience_s` of waiting, `LEAST_BYTES_PER_S` on average have to pass.
    """

    patience_s: float
    _waited_s = 0.0
    _passed = 0

    @classmethod
    def adopt(cls, connection: socket.socket, patience_s: float) -> "PacedSocket":
        """Return `connection` as a paced one; the old object is of no use any more."""
        paced = cls(connection.family, connection.type, connection.proto, fileno=connection.detach())
        paced.patience_s = patience_s
        return paced

    @classmethod
    def gone(cls) -> "PacedSocket":
        """Return one that is connected to nobody, and closed."""
        ours = cls()
        ours.close()
        return ours

    def setblocking(self, flag: bool) -> None:
        """Wait for the client up to `patience_s`, or not at all. Without effect on a closed socket."""
        if self.fileno() >= 0:
            self.settimeout(self.patience_s if flag else 0.0)

    def recv(self, *args: Any) -> bytes:
        """Return what has come. Raises TooSlow; TimeoutError where another time-out was set."""
        begun = time.monotonic()
        try:
            data = super().recv(*args)
        except TimeoutError:
            if self.gettimeout() != self.patience_s:
                raise
            raise TooSlow("nothing came") from None
        if not self._is_in_pace(len(data), begun):
            raise TooSlow("too little came")
        return data

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all of `data`. Raises ConnectionResetError when the client does not take it, as if it had gone."""
        rest = memoryview(data)
        while rest:
            begun = time.monotonic()
            try:
                sent = self.send(rest, flags)
            except TimeoutError:
                sent = 0
            if not sent or not self._is_in_pace(sent, begun):
                raise ConnectionResetError(errno.ECONNRESET, "the client does not take its answer")
            rest = rest[sent:]

    def _is_in_pace(self, passed: int, begun: float) -> bool:
        self._waited_s += time.monotonic() - begun
        self._passed += passed
        if self._waited_s < self.patience_s:
            return True
        enough = self._passed >= self._waited_s * LEAST_BYTES_PER_S
        self._waited_s, self._passed = 0.0, 0
        return enough
