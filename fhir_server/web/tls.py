"""TLS of the web server: what it shows and whom it asks, read again when the files change.

A certificate is renewed while the server runs: each process looks at the files every few seconds and takes new ones for
the connections that come from then on. Files that do not fit together, as in the middle of a renewal, change nothing.
"""

import errno
import logging
import socket
import ssl
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509

from fhir_server.config import Config
from fhir_server.web.pace import PacedSocket
from imaging.errors import AppError
from imaging.tls import Identity, load

log = logging.getLogger(__name__)

LOOK_S = 2.0  # between two looks at the files
SOON = timedelta(days=14)  # before its end a certificate is warned of, once a day
REMIND_S = 86_400.0
# RFC 9325 4.2; those of TLS 1.3 are all good.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
CLIENTS = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL}
_NAMES = ("web.tls_certificate", "web.tls_key", "web.tls_clients")


class TlsSocket(ssl.SSLSocket):
    """The server's end of a connection, which behaves as one without TLS does.

    What cannot be read or written at once raises BlockingIOError, what the client breaks is a ConnectionResetError, and
    the client is told the end before the connection goes (RFC 8446 6.1).
    """

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Return what has come; nothing at its end."""
        try:
            return super().recv(buflen, flags)
        except ssl.SSLError as error:
            raise _plain(error) from None

    def send(self, data: Any, flags: int = 0) -> int:
        """Send some of `data`; return how many bytes."""
        try:
            return super().send(data, flags)
        except ssl.SSLError as error:
            raise _plain(error) from None

    def shutdown(self, how: int) -> None:
        """Say that nothing comes any more. What the client still sends can be read, and is not decrypted."""
        self._say_end()
        super().shutdown(how)

    def close(self) -> None:
        """Say the end, and close."""
        if self.fileno() >= 0:
            self._say_end()
        super().close()

    def _say_end(self) -> None:
        with suppress(OSError, ValueError):
            self.settimeout(0.0)
            self.unwrap()  # waits for no answer: with the time-out of 0 it raises instead


class PacedTlsSocket(PacedSocket, TlsSocket):
    """Such a connection, given up when its client is too slow."""


class Tls:
    """The context for connections that come. Made before processes fork: they resume one another's sessions."""

    def __init__(self, config: Config) -> None:
        """Read the files that the settings name. Raises INVALID, naming the setting."""
        self._identity = Identity(*(config[name] for name in _NAMES))
        self._minimum = VERSIONS[config["web.tls_minimum"]]
        self._clients = CLIENTS[config["web.tls_client_certificate"]]
        self._seen = _state(self._identity.files)
        self._looked = self._reminded = -REMIND_S
        self._context, self._until = self._read()

    def wrap(self, connection: socket.socket, patience_s: float) -> PacedTlsSocket:
        """Return a connection whose handshake is to be made, without waiting; the old object is of no use any more.

        Raises OSError when the client is gone.
        """
        connection.setblocking(False)
        wrapped = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        assert isinstance(wrapped, PacedTlsSocket)  # noqa: S101 -- the context's own class
        wrapped.patience_s = patience_s
        return wrapped

    def refresh(self) -> None:
        """Read the files again when they changed; warn of a certificate that ends soon. Costs nothing most times."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        state = _state(self._identity.files)
        if state != self._seen:
            self._seen = state
            self._read_again()
        if now - self._reminded >= REMIND_S and self._until - datetime.now(UTC) < SOON:
            self._reminded = now
            log.warning("the certificate ends soon, or has ended: renew it", extra={"until": self._until.isoformat()})

    def _read_again(self) -> None:
        try:
            self._context, self._until = self._read()
        except AppError as error:
            log.warning("the new certificate is not taken, the old one stays", extra={"reason": str(error)})
        else:
            self._reminded = -REMIND_S
            log.info("a new certificate is shown", extra={"until": self._until.isoformat()})

    def _read(self) -> tuple[ssl.SSLContext, datetime]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sslsocket_class = PacedTlsSocket
        context.minimum_version = self._minimum
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_ciphers(CIPHERS)
        context.set_alpn_protocols(["http/1.1"])
        load(context, self._identity, _NAMES)
        if self._identity.authorities is not None:
            context.verify_mode = self._clients
        assert self._identity.certificate is not None  # noqa: S101 -- without it there is no TLS
        return context, _end(self._identity.certificate)


def tls(config: Config) -> Tls | None:
    """Return the TLS of the settings, None for none. Raises INVALID, naming the setting."""
    return Tls(config) if config["web.tls_certificate"] else None


def _plain(error: ssl.SSLError) -> OSError:
    if isinstance(error, ssl.SSLWantReadError | ssl.SSLWantWriteError):
        return BlockingIOError(errno.EAGAIN, "not now")
    return ConnectionResetError(errno.ECONNRESET, error.reason or "the client broke the connection")


def _state(files: tuple[Path, ...]) -> list[tuple[int, ...] | None]:
    return [_state_of(each) for each in files]


def _state_of(file: Path) -> tuple[int, ...] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _end(certificate: Path) -> datetime:
    """Return when the certificate that is shown ends: the first of the file."""
    return x509.load_pem_x509_certificates(certificate.read_bytes())[0].not_valid_after_utc
