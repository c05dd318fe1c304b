"""DICOM over TLS: what we show, and whom we believe, as a listener and as a client.

TLS 1.2 and newer with the ciphers that Python's ssl thinks safe, which include those of the BCP 195 profile. Hides that
a handshake takes as long as a peer likes: here it keeps nobody else waiting. Source: PS3.15 B.9.
"""

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imaging.errors import AppError, Category


@dataclass(frozen=True, slots=True)
class Identity:
    """Who we are and whom we believe; PEM files.

    certificate   ours, with those between it and its authority; None shows none
    key           of it, None where it is in the same file
    authorities   that sign peers' certificates; None stands for those of the system as a client, and as a listener for
                  asking nobody for a certificate
    """

    certificate: Path | None = None
    key: Path | None = None
    authorities: Path | None = None


def listening(identity: Identity, *, patience_s: float) -> ssl.SSLContext:
    """Return a listener's context. With authorities, only who shows a certificate of theirs is let in.

    patience_s   longest silence of a peer, in the handshake and after it

    Raises INVALID, naming the setting, for a file that cannot be used.
    """
    if identity.certificate is None:
        raise AppError(Category.INVALID, "a listener over TLS needs a certificate", where="tls_certificate")
    context = _Patient(ssl.PROTOCOL_TLS_SERVER)
    context.patience_s = patience_s
    _load(context, identity)
    if identity.authorities is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def calling(identity: Identity) -> "Calling":
    """Return a client's context, for one connection. Raises INVALID, naming the setting, for a file."""
    context = Calling(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = _Telling
    if identity.authorities is None:
        context.load_default_certs()
    _load(context, identity)
    return context


class Calling(ssl.SSLContext):
    """A client's context, which remembers why a handshake failed; pynetdicom says only that there is no connection."""

    trouble: str = ""


class _Telling(ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except ssl.SSLCertVerificationError as error:
            self._tell(f"its certificate is not believed: {error.verify_message}")
            raise
        except ssl.SSLError as error:
            self._tell(f"no TLS connection comes about ({error.reason or 'it was ended'})")
            raise

    def _tell(self, trouble: str) -> None:
        if isinstance(self.context, Calling):
            self.context.trouble = trouble


class _Patient(ssl.SSLContext):
    """A listener's context.

    The handshake takes place where the association reads first, in a thread of its own, and not where connections are
    accepted: there, one who connects and then is silent would keep out everybody.
    """

    patience_s: float

    def wrap_socket(self, sock: socket.socket, *given: Any, **named: Any) -> ssl.SSLSocket:
        sock.settimeout(self.patience_s)
        return super().wrap_socket(sock, *given, **{**named, "do_handshake_on_connect": False})


def _load(context: ssl.SSLContext, identity: Identity) -> None:
    if identity.certificate is not None:
        _readable(identity.certificate, "tls_certificate")
        if identity.key is not None:
            _readable(identity.key, "tls_key")
        try:
            # Never a prompt: a key with a password is refused.
            context.load_cert_chain(identity.certificate, identity.key, password="")
        except (OSError, ValueError) as error:
            message = "the certificate and its key, without a password, do not fit together or are no PEM"
            raise AppError(Category.INVALID, message, where="tls_certificate") from error
    if identity.authorities is not None:
        _readable(identity.authorities, "ca_file")
        try:
            context.load_verify_locations(identity.authorities)
        except OSError as error:
            raise AppError(Category.INVALID, "no certificates in PEM are in the file", where="ca_file") from error


def _readable(path: Path, where: str) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise AppError(Category.INVALID, f"the file cannot be read: {error.strerror}", where=where) from error
