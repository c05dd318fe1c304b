"""Security keys and passkeys as a second factor: WebAuthn, with Yubico's `fido2` for its formats and signatures.

Hides challenges, counters and what a browser's answer has to fulfil. A challenge is good once, for a while, for one
person, one purpose and the browser that was given it. Which make a key is, is not asked: no attestation. A key that
counts must count on: one that does not was copied, and is refused. Keys belong to the host name of this server and work
on https, and on this machine itself (`localhost`), since browsers want it so.
Source: W3C Web Authentication Level 2, 7.1 and 7.2.
"""

import hashlib
import hmac
import json
import re
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from fido2.server import Fido2Server
from fido2.utils import websafe_decode, websafe_encode
from fido2.webauthn import (
    AttestationConveyancePreference,
    AttestedCredentialData,
    AuthenticationResponse,
    AuthenticatorData,
    PublicKeyCredentialDescriptor,
    PublicKeyCredentialParameters,
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialType,
    PublicKeyCredentialUserEntity,
    RegistrationResponse,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from fhir_server.access.people import MOST_KEYS, Key, People, Person
from fhir_server.store.tickets import Kind, Tickets
from imaging.errors import AppError, Category

CHALLENGE_LIFE = timedelta(minutes=5)
LONGEST_ANSWER = 16_000  # characters of JSON
LONGEST_NAME = 60  # characters
LONGEST_ID = 1023  # bytes. Source: WebAuthn Level 2, 7.1 step 17
TRANSPORTS = ("usb", "nfc", "ble", "smart-card", "hybrid", "internal")
ALGORITHMS = (-7, -8, -35, -257)  # ES256, EdDSA, ES384, RS256. Source: IANA COSE Algorithms
COUNTED_BACK = (
    "this key answered with an old counter: there may be a copy of it. Use another way, and tell the operator"
)
_IP_ADDRESS = re.compile(r".*:.*|[\d.]+")
# What the library's readers raise for answers that are none.
_UNREADABLE = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError, OverflowError, RecursionError),
    *(NotImplementedError, struct.error, UnsupportedAlgorithm),
)


class Purpose(StrEnum):
    """What a challenge is for; an answer for one is none for another."""

    ADD = "add"
    SIGN_IN = "sign-in"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a browser hands to `navigator.credentials`: options in JSON, and the challenge in them."""

    options: str
    challenge: str


class SecurityKeys:
    """Asks browsers for keys and checks what they answer."""

    def __init__(
        self,
        people: People,
        tickets: Tickets,
        *,
        base_url: str,
        user_verification: str,
        handle_key: bytes,
        clock: Callable[[], datetime],
    ) -> None:
        """Make it for a server.

        base_url            by which browsers reach it; its host is what keys belong to
        user_verification   "required", "preferred" or "discouraged": whether a key asks for PIN or finger
        handle_key          from which a person's name for keys is made, which tells nobody who it is
        """
        parts = urlsplit(base_url)
        host = parts.hostname or ""
        self.is_possible = host == "localhost" or (parts.scheme == "https" and not _IP_ADDRESS.fullmatch(host))
        self._origin = f"{parts.scheme}://{parts.netloc.lower()}"
        self._people = people
        self._tickets = tickets
        self._verification = UserVerificationRequirement(user_verification)
        self._handle_key = handle_key
        self._clock = clock
        self._server = Fido2Server(
            PublicKeyCredentialRpEntity(id=host or "localhost", name="Imaging server"),
            attestation=AttestationConveyancePreference.NONE,
            verify_origin=lambda origin: origin == self._origin,
        )
        self._server.timeout = int(CHALLENGE_LIFE.total_seconds() * 1000)  # type: ignore[assignment] # made as None
        self._server.allowed_algorithms = [
            PublicKeyCredentialParameters(type=PublicKeyCredentialType.PUBLIC_KEY, alg=each) for each in ALGORITHMS
        ]

    def offer(self, person: Person) -> Asked:
        """Return what a browser is asked to make a new key of a person. Raises UNSUPPORTED, CONFLICT for too many."""
        self._check_possible()
        if len(person.keys) >= MOST_KEYS:
            message = f"a person has at most {MOST_KEYS} keys: remove one first"
            raise AppError(Category.CONFLICT, message, where="key")
        user = PublicKeyCredentialUserEntity(id=self._handle(person.login), name=person.login, display_name=person.name)
        challenge = self._challenge(person, Purpose.ADD)
        options, _ = self._server.register_begin(
            user,
            _descriptors(person),
            resident_key_requirement=ResidentKeyRequirement.PREFERRED,
            user_verification=self._verification,
            challenge=websafe_decode(challenge),
        )
        return Asked(_json(options), challenge)

    def add(self, person: Person, challenge: str, answer: str, name: str) -> Key:
        """Keep the key that a browser made. Raises INVALID, UNSUPPORTED, CONFLICT when somebody has it already."""
        self._check_possible()
        name = " ".join(name.split()) or f"Key {len(person.keys) + 1}"
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise _invalid(f"the name of a key has at most {LONGEST_NAME} characters")
        if name.casefold() in {each.name.casefold() for each in person.keys}:
            raise _invalid("there is a key of this name: choose another one")
        self._use(person, Purpose.ADD, challenge)
        data, transports = self._made(challenge, answer)
        credential = data.credential_data
        if credential is None or not 0 < len(credential.credential_id) <= LONGEST_ID:
            raise _invalid("the answer of the key holds no usable credential")
        if credential.public_key.get(3) not in ALGORITHMS:
            raise _invalid("the key signs in a way that was not asked for")
        key = Key(
            id=websafe_encode(credential.credential_id),
            name=name,
            data=bytes(credential),
            counter=data.counter,
            added=self._clock(),
            transports=transports,
        )
        self._people.add_key(person.login, key)
        return key

    def ask(self, person: Person) -> Asked:
        """Return what a browser is asked so that a person proves to have one of the keys."""
        challenge = self._challenge(person, Purpose.SIGN_IN)
        options, _ = self._server.authenticate_begin(
            _descriptors(person), user_verification=self._verification, challenge=websafe_decode(challenge)
        )
        return Asked(_json(options), challenge)

    def check(self, person: Person, challenge: str, answer: str) -> None:
        """Return when a key of a person answered this challenge. Raises UNAUTHENTICATED."""
        try:
            self._use(person, Purpose.SIGN_IN, challenge)
            key, counter = self._proved(person, challenge, answer)
            if not self._people.use_key(person.login, key, counter):
                raise AppError(Category.UNAUTHENTICATED, COUNTED_BACK, where="sign-in")
        except AppError as error:
            self._people.note_failure(person)
            raise AppError(Category.UNAUTHENTICATED, error.message, where="sign-in") from error

    def _made(self, challenge: str, answer: str) -> tuple[AuthenticatorData, tuple[str, ...]]:
        """Return what the key says of itself, and by which ways it can be reached."""
        try:
            read = _read(answer)
            registration = RegistrationResponse.from_dict(read)
            said = read["response"].get("transports") or ()
            transports = tuple(each for each in TRANSPORTS if each in said)
            return self._server.register_complete(self._state(challenge), registration), transports
        except _UNREADABLE as error:
            message = "the browser's answer is no new key for this server, or not one that was asked for"
            raise _invalid(message) from error

    def _proved(self, person: Person, challenge: str, answer: str) -> tuple[str, int]:
        """Return which key signed the challenge, and its counter."""
        try:
            response = AuthenticationResponse.from_dict(_read(answer))
            handle = response.response.user_handle
            if handle and not hmac.compare_digest(handle, self._handle(person.login)):
                raise ValueError("the key was made for somebody else")
            known = [AttestedCredentialData(each.data) for each in person.keys]
            used = self._server.authenticate_complete(self._state(challenge), known, response)
            return websafe_encode(used.credential_id), response.response.authenticator_data.counter
        except _UNREADABLE as error:
            raise _invalid("the key was not accepted") from error

    def _state(self, challenge: str) -> dict[str, Any]:
        return {"challenge": challenge, "user_verification": self._verification}

    def _challenge(self, person: Person, purpose: Purpose) -> str:
        challenge = secrets.token_urlsafe(32)
        content = {"login": person.login, "purpose": purpose}
        self._tickets.put(Kind.CHALLENGE, challenge, content, expires=self._clock() + CHALLENGE_LIFE)
        return challenge

    def _use(self, person: Person, purpose: Purpose, challenge: str) -> None:
        ticket = self._tickets.use(Kind.CHALLENGE, challenge, now=self._clock()) if len(challenge) <= 100 else None
        wanted = {"login": person.login, "purpose": purpose}
        if ticket is None or ticket.is_used or ticket.content != wanted:
            raise _invalid("it took too long, or the answer was sent twice: try again")

    def _handle(self, login: str) -> bytes:
        return hmac.new(self._handle_key, f"webauthn {login}".encode(), hashlib.sha256).digest()

    def _check_possible(self) -> None:
        if not self.is_possible:
            message = "security keys need a server that is reached by https and a host name (setting web.base_url)"
            raise AppError(Category.UNSUPPORTED, message, where="key")


def _descriptors(person: Person) -> list[PublicKeyCredentialDescriptor]:
    return [
        PublicKeyCredentialDescriptor.from_dict(
            {"type": "public-key", "id": each.id, **({"transports": list(each.transports)} if each.transports else {})}
        )
        for each in person.keys
    ]


def _json(options: Any) -> str:
    return json.dumps(options["publicKey"], default=dict)


def _read(answer: str) -> dict[str, Any]:
    if len(answer) > LONGEST_ANSWER:
        raise ValueError(f"an answer has at most {LONGEST_ANSWER} characters")
    found = json.loads(answer)
    if not isinstance(found, dict):
        raise TypeError("an answer is an object")
    return found


def _invalid(message: str) -> AppError:
    return AppError(Category.INVALID, message, where="key")
