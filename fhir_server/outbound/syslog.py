"""Syslog messages to a collector: over TLS, with a proof that they arrived, or as datagrams.

Syslog has no acknowledgement. Over TLS each burst has a connection of its own: when all is sent, its end is told, and
the collector tells the end in turn, which it can only after it has read everything. What has not been proved so counts
as not sent. Sources: RFC 5424 (format), RFC 5425 (TLS; 4.3 framing, 4.4 end), RFC 5426 (UDP), PS3.15 A.6 and A.7.
"""

import fcntl
import os
import socket
import ssl
import struct
import termios
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from imaging.errors import AppError, Category
from imaging.tls import Identity, load

T = TypeVar("T")

FACILITY = 10  # security and authorization
NOTICE, WARNING = 5, 4
PORTS = {"tls": 6514, "udp": 514}
MOST_DATAGRAM = 65_507  # bytes, over IPv4
_BLOCK_BYTES = 1 << 16
_BOM = b"\xef\xbb\xbf"
_APP, _MSGID = "fhir-imaging", "DICOM+RFC3881"
_NAMES = ("audit.tls_certificate", "audit.tls_key", "audit.ca_bundle")


@dataclass(frozen=True, slots=True)
class Collector:
    """Where messages go: `tls://host:port` or `udp://host:port`; whom we believe and what we show over TLS.

    timeout_s   longest wait for a connection, for bytes to be taken, and for the end to be told
    """

    address: str
    identity: Identity
    timeout_s: float

    def send(self, messages: Sequence[bytes]) -> None:
        """Return when all have arrived, over UDP when they have been sent. Raises BUSY, saying why they may not."""
        found = urlsplit(self.address)
        target = (found.hostname or "", found.port or PORTS[found.scheme])
        try:
            if found.scheme == "udp":
                _by_datagrams(target, messages)
            else:
                self._by_tls(target, messages)
        except ssl.SSLCertVerificationError as error:
            raise _undelivered(f"its certificate is not believed: {error.verify_message}") from error
        except ssl.SSLError as error:
            raise _undelivered(f"the TLS connection failed: {error.reason or type(error).__name__}") from error
        except TimeoutError as error:
            raise _undelivered(f"it does not answer within {self.timeout_s:g} s") from error
        except OSError as error:
            raise _undelivered(error.strerror or type(error).__name__) from error

    def check(self) -> None:
        """Return when the files can be used. Raises INVALID, naming the setting."""
        self._context()

    def _by_tls(self, target: tuple[str, int], messages: Sequence[bytes]) -> None:
        with socket.create_connection(target, timeout=self.timeout_s) as plain:
            session = _Session(plain, self._context(), target[0])
            for each in messages:
                session.send(b"%d %b" % (len(each), each))
            session.end()

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.identity.authorities is None:
            context.load_default_certs()
        load(context, self.identity, _NAMES)
        return context


def message(body: bytes, *, at: str, severity: int, host: str) -> bytes:
    """Return a body of UTF-8 text as a syslog message of a moment (RFC 3339). Source: RFC 5424 6."""
    head = f"<{FACILITY * 8 + severity}>1 {at} {host or '-'} {_APP} {os.getpid()} {_MSGID} - "
    return head.encode("ascii", "replace") + _BOM + body


class _Session:
    """A TLS connection that tells its end apart from a refusal.

    `ssl.SSLSocket.unwrap` takes any fatal alert for the end: OpenSSL's SSL_shutdown succeeds on one, such as that of a
    collector which misses our certificate after the handshake of TLS 1.3 is over for us. Here the end is sent and then
    read for as any data is, which no alert passes unnoticed.
    """

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, host: str) -> None:
        """Make the handshake."""
        self._plain = plain
        self._coming, self._going = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._coming, self._going, server_hostname=host)
        self._done(self._tls.do_handshake)

    def send(self, data: bytes) -> None:
        """Give data to the network."""
        self._done(lambda: self._tls.write(data))

    def end(self) -> None:
        """Tell the end and hear it told. Raises OSError where the collector has not read everything."""
        try:
            with suppress(ssl.SSLWantReadError):
                while self._tls.read(_BLOCK_BYTES):  # what came with the handshake
                    pass
            with suppress(ssl.SSLWantReadError):
                self._tls.unwrap()  # nothing is read for this: all that came has been
            while self._done(lambda: self._tls.read(_BLOCK_BYTES)):
                pass
        except ssl.SSLZeroReturnError:
            return
        except ssl.SSLEOFError:
            # Some close without telling. They had read everything if all was acknowledged and no reset came: a
            # connection that is closed with unread bytes, or before they come, is reset.
            waiting = struct.unpack("i", fcntl.ioctl(self._plain.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
            if waiting or self._plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise

    def _done(self, step: Callable[[], T]) -> T:
        """Return what a step comes to; wait for the collector where it has to."""
        while True:
            try:
                found = step()
            except ssl.SSLWantReadError:
                self._flush()
                if data := self._plain.recv(_BLOCK_BYTES):
                    self._coming.write(data)
                else:
                    self._coming.write_eof()
            except ssl.SSLError:
                with suppress(OSError):
                    self._flush()  # why we refuse
                raise
            else:
                self._flush()
                return found

    def _flush(self) -> None:
        if self._going.pending:
            self._plain.sendall(self._going.read())


def _by_datagrams(target: tuple[str, int], messages: Sequence[bytes]) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(*target, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as out:
        for each in messages:
            out.sendto(each[:MOST_DATAGRAM], address)


def _undelivered(why: str) -> AppError:
    return AppError(Category.BUSY, f"the audit record repository takes nothing: {why}", where="audit.repository")
