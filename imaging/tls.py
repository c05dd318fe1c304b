"""Who we are over TLS, and whom we believe: certificates from files into a context of Python's ssl.

TLS 1.2 and newer with the ciphers that Python thinks safe, which include those of BCP 195 (RFC 9325). A key with a
password is refused and never asked for.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

from imaging.errors import AppError, Category

NAMES = ("tls_certificate", "tls_key", "ca_file")


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

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are named."""
        return tuple(each for each in (self.certificate, self.key, self.authorities) if each is not None)


def load(context: ssl.SSLContext, identity: Identity, names: tuple[str, str, str] = NAMES) -> None:
    """Put an identity into a context; `names` are those of the settings that named the files, in the same order.

    Raises INVALID, naming the setting, for a file that cannot be used.
    """
    certificate, key, authorities = names
    if identity.certificate is not None:
        _readable(identity.certificate, certificate)
        if identity.key is not None:
            _readable(identity.key, key)
        try:
            # Never a prompt: a key with a password is refused.
            context.load_cert_chain(identity.certificate, identity.key, password="")
        except (OSError, ValueError) as error:
            message = "the certificate and its key, without a password, do not fit together or are no PEM"
            raise AppError(Category.INVALID, message, where=certificate) from error
    if identity.authorities is not None:
        _readable(identity.authorities, authorities)
        try:
            context.load_verify_locations(identity.authorities)
        except OSError as error:
            raise AppError(Category.INVALID, "no certificates in PEM are in the file", where=authorities) from error


def _readable(path: Path, where: str) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise AppError(Category.INVALID, f"the file cannot be read: {error.strerror}", where=where) from error
