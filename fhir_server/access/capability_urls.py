"""Capability URLs: addresses that are permission by themselves to retrieve one study, for what cannot send tokens.

Each is given out for a bearer token and stands for it: at every use that token is checked again, so that whatever ends
or narrows the token, its authorisation, its client or the contracts of its subscriber, does so to the address. What it
opens is told by `policy.only_study`.   Source: SMART Imaging Access 0.1.0, retrieving images.
"""

import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256

from cryptography.fernet import Fernet, InvalidToken

from fhir_server.access.contracts import Right
from fhir_server.access.policy import as_receiver, only_study
from fhir_server.access.principals import Principal
from fhir_server.store.capability_urls import CapabilityUrls as Register
from fhir_server.store.capability_urls import Row
from fhir_server.store.credentials import digest
from imaging.errors import AppError, Category

PREFIX = "fic_"  # lets secret scanners recognise an address that leaked
FORM = PREFIX + r"[A-Za-z0-9_\-]{43}"  # of the secret: 256 bits
MOST = 5_000  # of one token at a time
_BYTES = 32
_FORM = re.compile(FORM)
_REFUSED = "this address opens nothing, or nothing any more; search for the study again to get another one"


@dataclass(frozen=True, slots=True)
class Capability:
    """What a capability URL is good for now.

    principal   who it was given to, narrowed to the study
    by_url      the same as far as the contracts let studies be had by such addresses: the study has to be seen by both
    """

    study_uid: str
    expires: datetime
    principal: Principal
    by_url: Principal


class CapabilityUrls:
    """Gives them out, and tells what one is good for."""

    def __init__(
        self,
        register: Register,
        authenticate: Callable[[str], Principal],
        *,
        life_s: float,
        clock: Callable[[], datetime],
    ) -> None:
        self._register = register
        self._known: dict[str, Row] = {}  # by digest; a row never changes, so it is read once by each process
        self._authenticate = authenticate
        self._life = timedelta(seconds=life_s)
        self._clock = clock

    def give(self, principal: Principal, study_uids: Iterable[str]) -> tuple[dict[str, str], datetime]:
        """Return a new secret for each study, and when they end: never after the token.

        That the principal may have the studies is for the caller to know. Raises BUSY for more than `MOST` at a time.
        """
        now, token = self._clock(), digest(principal.token)
        wanted = list(study_uids)
        if self._register.count(token, now=now, most=MOST) + len(wanted) > MOST:
            message = f"more than {MOST} capability URLs of this token would be good at a time; ask for fewer studies"
            raise AppError(Category.BUSY, message, where="_include")
        end = min(now + self._life, principal.expires or now)
        made = {study_uid: PREFIX + secrets.token_urlsafe(_BYTES) for study_uid in wanted}
        sealed = {uid: _seal(secret).encrypt(principal.token.encode()) for uid, secret in made.items()}
        self._register.add(Row(digest(secret), uid, end, token, sealed[uid]) for uid, secret in made.items())
        return made, end

    def open(self, secret: str) -> Capability:
        """Return what the secret in an address is good for now. Raises UNAUTHENTICATED, saying no more than that."""
        row = self._row(digest(secret)) if _FORM.fullmatch(secret) else None
        if row is None or row.expires <= self._clock():
            raise _refused()
        try:
            principal = self._authenticate(_seal(secret).decrypt(row.sealed).decode())
        except InvalidToken as error:
            raise _refused() from error
        except AppError as error:
            if error.category is Category.UNAUTHENTICATED:
                raise _refused() from error
            raise
        if not may_have(principal):
            raise _refused()
        by = (f"urn:fhir-imaging:capability:{row.digest[:_NAME]}", _name(row.token))
        one = replace(only_study(principal, row.study_uid), token="", authorised_by=by)
        return Capability(row.study_uid, row.expires, one, only_study(had_by_url(principal), row.study_uid))

    def _row(self, key: str) -> Row | None:
        found = self._known.get(key) or self._register.find(key)
        if found is not None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = found
        return found


_MOST_KNOWN = 10_000  # rows
_NAME = 16  # hex digits of a digest by which the audit record names what it was made of


def may_have(principal: Principal) -> bool:
    """Say whether a principal is given capability URLs at all."""
    return bool(principal.token) and principal.may(Right.RECEIVE_IMAGES) and principal.may(Right.RECEIVE_BY_URL)


def had_by_url(principal: Principal) -> Principal:
    """Return the principal that sees what the contracts let this one have by capability URLs."""
    return as_receiver(principal, Right.RECEIVE_BY_URL)


def known_by_token(principal: Principal) -> Principal:
    """Return the principal of whom the audit record says by which token it came; that tells nothing of the token."""
    return replace(principal, authorised_by=(_name(digest(principal.token)),))


def _name(token_sha256: str) -> str:
    return f"urn:fhir-imaging:token:{token_sha256[:_NAME]}"


def _seal(secret: str) -> Fernet:
    # Another digest of the secret than the one under which it is kept.
    return Fernet(urlsafe_b64encode(sha256(b"seal\0" + secret.encode()).digest()))


def _refused() -> AppError:
    return AppError(Category.UNAUTHENTICATED, _REFUSED, where="capability URL")
