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
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from imaging.errors import AppError, Category
from imaging.tls import Identity, load

FACILITY = 10  # security and authorization
NOTICE, WARNING = 5, 4
PORTS = {"tls": 6514, "udp": 514}
MOST_DATAGRAM = 65_507  # bytes, over IPv4
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
        with (
            socket.create_connection(target, timeout=self.timeout_s) as plain,
            self._context().wrap_socket(plain, server_hostname=target[0]) as connection,
        ):
            connection.sendall(b"".join(b"%d %b" % (len(each), each) for each in messages))
            _end(connection)

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


def _end(connection: ssl.SSLSocket) -> None:
    """Tell the end and hear it told. Raises OSError where the collector has not read everything."""
    try:
        connection.unwrap()
    except ssl.SSLEOFError:
        # Some close without telling. They had read everything if all was acknowledged and no reset came: a connection
        # that is closed with unread bytes, or before they come, is reset.
        waiting = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        if waiting or connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise


def _by_datagrams(target: tuple[str, int], messages: Sequence[bytes]) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(*target, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as out:
        for each in messages:
            out.sendto(each[:MOST_DATAGRAM], address)


def _undelivered(why: str) -> AppError:
    return AppError(Category.BUSY, f"the audit record repository takes nothing: {why}", where="audit.repository")
