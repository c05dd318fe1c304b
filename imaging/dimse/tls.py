"""DICOM over TLS: what we show, and whom we believe, as a listener and as a client.

TLS 1.2 and newer with the ciphers that Python's ssl thinks safe, which include those of the BCP 195 profile. Hides that
a handshake takes as long as a peer likes: here it keeps nobody else waiting. Source: PS3.15 B.9.
"""

import socket
import ssl
from typing import Any

from imaging.errors import AppError, Category
from imaging.tls import Identity, load


def listening(identity: Identity, *, patience_s: float) -> ssl.SSLContext:
    """Return a listener's context. With authorities, only who shows a certificate of theirs is let in.

    patience_s   longest silence of a peer, in the handshake and after it

    Raises INVALID, naming the setting, for a file that cannot be used.
    """
    if identity.certificate is None:
        raise AppError(Category.INVALID, "a listener over TLS needs a certificate", where="tls_certificate")
    context = _Patient(ssl.PROTOCOL_TLS_SERVER)
    context.patience_s = patience_s
    load(context, identity)
    if identity.authorities is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def calling(identity: Identity) -> "Calling":
    """Return a client's context, for one connection. Raises INVALID, naming the setting, for a file."""
    context = Calling(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = _Telling
    if identity.authorities is None:
        context.load_default_certs()
    load(context, identity)
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
