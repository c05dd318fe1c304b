"""A second factor: one-time codes of an authenticator app, and recovery codes for who has lost it.

Codes are those of RFC 6238 with SHA-1, six digits and steps of 30 s, which every authenticator app has. A code is good
once, in the step that it belongs to or the one before or after it. The secret has to be kept as it is, since codes are
computed from it; of recovery codes only a digest is kept, and each is good once.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import pyotp
import segno

from fhir_server.access.people import People, Person
from fhir_server.store.credentials import digest
from imaging.errors import AppError, Category

STEP_S = 30
RECOVERY_CODES = 8
ISSUER = "Imaging server"
_WRONG = "the code is wrong, or was used before"


class Factor(StrEnum):
    """What a session was begun with, beside the password."""

    CODE = "code"
    RECOVERY = "recovery code"
    KEY = "key"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What somebody needs to set an authenticator up: a picture for its camera, or the secret to type."""

    secret: str
    picture: str  # SVG as a data URI


class SecondFactor:
    """Sets second factors up and checks them."""

    def __init__(self, people: People, clock: Callable[[], datetime]) -> None:
        self._people = people
        self._clock = clock

    def offer(self, person: Person) -> Enrolment:
        """Return a new secret for a person; nothing is kept until `confirm`."""
        secret = pyotp.random_base32()
        address = pyotp.TOTP(secret).provisioning_uri(name=person.login, issuer_name=ISSUER)
        return Enrolment(secret, segno.make(address, error="m").svg_data_uri(scale=5, border=4, light="#fff"))

    def confirm(self, person: Person, secret: str, code: str) -> list[str]:
        """Keep a secret whose authenticator gives this code; return recovery codes, shown once. Raises INVALID."""
        step = self._step(secret, code)
        if step is None:
            message = "the code does not belong to this secret; is the clock of the device right?"
            raise AppError(Category.INVALID, message, where="code")
        codes = _new_codes()
        self._people.set_second_factor(person.login, secret, step, [digest(each) for each in codes])
        return codes

    def recovery_codes(self, person: Person) -> list[str]:
        """Return new recovery codes in place of those before; shown once."""
        codes = _new_codes()
        self._people.set_recovery_codes(person.login, [digest(each) for each in codes])
        return codes

    def check(self, person: Person, code: str) -> Factor:
        """Return which factor it is when a code or a recovery code is right; it is used up. Raises UNAUTHENTICATED."""
        code = code.strip().replace(" ", "").lower()
        step = self._step(person.totp_secret, code) if len(code) <= 20 else None
        is_right = (
            self._people.use_step(person.login, step)
            if step is not None
            else self._people.use_recovery_code(person.login, digest(code))
        )
        if not is_right:
            self._people.note_failure(person)
            raise AppError(Category.UNAUTHENTICATED, _WRONG, where="sign-in")
        return Factor.RECOVERY if step is None else Factor.CODE

    def _step(self, secret: str, code: str) -> int | None:
        """Return the step of RFC 6238 to which a code belongs, None for a wrong one."""
        if not secret:  # of who has a security key only; everybody knows the codes of the empty secret
            return None
        now = int(self._clock().timestamp()) // STEP_S
        totp = pyotp.TOTP(secret)
        steps = [step for step in (now, now - 1, now + 1) if secrets.compare_digest(totp.generate_otp(step), code)]
        return steps[0] if code.isascii() and steps else None


def _new_codes() -> list[str]:
    return [f"{secrets.token_hex(3)}-{secrets.token_hex(3)}" for _ in range(RECOVERY_CODES)]
