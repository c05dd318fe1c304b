"""People: who may sign in, with which role, and how a password is checked.

After some failures a login is held, for longer each time; while it is held the password is not looked at. An unknown
login costs as much time as a wrong password (`passwords`).
"""

import secrets
import string
from collections.abc import Callable
from datetime import datetime, timedelta

from fhir_server.access.grants import Role
from fhir_server.access.passwords import LONGEST, Passwords
from fhir_server.model.resources import RESOURCES
from fhir_server.store.people import Key, Person
from fhir_server.store.people import People as Register
from imaging.errors import AppError, Category

__all__ = ["ROLES", "Key", "People", "Person"]

ROLES = tuple(Role)
# What can represent a person. Source: SMART App Launch 2.2, scopes for requesting identity data.
FHIR_USERS = frozenset({"Patient", "Practitioner", "PractitionerRole", "RelatedPerson", "Person"})

FAILURES_ALLOWED = 5
FIRST_HOLD = timedelta(seconds=30)
LONGEST_HOLD = timedelta(hours=1)
MOST_KEYS = 10
_LOGIN = frozenset(string.ascii_lowercase + string.digits + "._@-+")
_NOBODY = "the login or the password is wrong"


class People:
    """Signs people in, and keeps the register of them."""

    def __init__(self, register: Register, clock: Callable[[], datetime], passwords: Passwords) -> None:
        self._register = register
        self._clock = clock
        self._passwords = passwords

    def add(self, login: str, *, organization: str, name: str, role: str, fhir_user: str, password: str) -> Person:
        """Register a person. Raises INVALID, CONFLICT when the login is taken."""
        login = login.strip().lower()
        if not 1 <= len(login) <= 100 or not set(login) <= _LOGIN:
            raise _invalid("a login has 1 to 100 of the characters a-z 0-9 . _ @ - +", "login")
        if role not in ROLES:
            raise _invalid(f"a role is one of {', '.join(ROLES)}", "role")
        kind, _, identifier = fhir_user.partition("/")
        if kind not in FHIR_USERS or kind not in RESOURCES or not identifier:
            kinds = ", ".join(sorted(FHIR_USERS))
            raise _invalid(f"a person is represented by a {kinds}, named as TYPE/ID, such as Patient/123", "fhirUser")
        if role == "patient" and kind != "Patient":
            raise _invalid("a patient is represented by a Patient resource", "fhirUser")
        person = Person(
            login, organization, name.strip() or login, role, fhir_user, self._passwords.hash(password), _new_stamp()
        )
        if not self._register.add(person):
            raise AppError(Category.CONFLICT, "there is a person with this login already", where="login")
        return person

    def all(self) -> list[Person]:
        """Return everybody, by login."""
        return self._register.all()

    def named(self, login: str) -> Person:
        """Return the person of this login, also one that is shut out. Raises NOT_FOUND."""
        return self._known(self._register.find(login.strip().lower()))

    def find(self, login: str) -> Person | None:
        """Return the person of this login if there is one and it may sign in."""
        person = self._register.find(login)
        return None if person is None or person.is_disabled else person

    def set_password(self, login: str, password: str) -> Person:
        """Give a person another password; every session of the person ends, and a hold too. Raises NOT_FOUND."""
        values = {
            "password_hash": self._passwords.hash(password),
            "stamp": _new_stamp(),
            "failures": 0,
            "held_until": None,
        }
        return self._changed(login, **values)

    def disable(self, login: str, *, is_disabled: bool = True) -> Person:
        """Shut a person out, or let one in again; sessions end either way. Raises NOT_FOUND."""
        return self._changed(login, is_disabled=is_disabled, stamp=_new_stamp(), failures=0, held_until=None)

    def set_second_factor(self, login: str, secret: str, step: int, recovery_codes: list[str]) -> Person:
        """Ask for codes of this secret from now on; "" asks for none. Raises NOT_FOUND."""
        return self._changed(login, totp_secret=secret, totp_step=step, recovery_codes=recovery_codes)

    def set_recovery_codes(self, login: str, codes: list[str]) -> Person:
        """Keep digests of recovery codes in place of those before. Raises NOT_FOUND."""
        return self._changed(login, recovery_codes=codes)

    def forget_second_factor(self, login: str) -> Person:
        """Let a person in with the password alone: codes, recovery codes and keys are forgotten. Raises NOT_FOUND."""
        return self._changed(login, totp_secret="", totp_step=0, recovery_codes=[], keys=[])

    def add_key(self, login: str, key: Key) -> None:
        """Keep a security key. Raises CONFLICT when it is known already, or a person would have too many."""
        if not self._register.add_key(login, key, most=MOST_KEYS):
            message = f"this key is registered already, or there are {MOST_KEYS} keys, which is the most"
            raise AppError(Category.CONFLICT, message, where="key")

    def use_key(self, login: str, key: str, counter: int) -> bool:
        """Note that a security key was used; say whether it counted on."""
        return self._register.use_key(login, key, counter, now=self._clock())

    def remove_key(self, login: str, key: str) -> Person:
        """Forget a security key; with the last second factor the recovery codes go too. Raises NOT_FOUND."""
        if not self._register.remove_key(login.strip().lower(), key):
            raise AppError(Category.NOT_FOUND, "there is no such key of this person", where="key")
        person = self.named(login)
        return person if person.has_second_factor else self.set_recovery_codes(login, [])

    def remove_key_named(self, login: str, name: str) -> Person:
        """Forget the security key that its owner calls so. Raises NOT_FOUND."""
        wanted = [each.id for each in self.named(login).keys if each.name.casefold() == name.strip().casefold()]
        return self.remove_key(login, wanted[0] if wanted else "")

    def use_step(self, login: str, step: int) -> bool:
        """Note that the code of a step was used; say whether it is later than any before."""
        return self._register.use_step(login, step)

    def use_recovery_code(self, login: str, code_sha256: str) -> bool:
        """Take a recovery code away; say whether it was there."""
        return self._register.use_recovery_code(login, code_sha256)

    def check_hold(self, person: Person) -> None:
        """Return unless signing in failed too often a moment ago. Raises UNAUTHENTICATED."""
        now = self._clock()
        if person.held_until and now < person.held_until:
            wait = int((person.held_until - now).total_seconds()) + 1
            message = f"signing in failed too often; try again in {wait} seconds"
            raise AppError(Category.UNAUTHENTICATED, message, where="sign-in")

    def note_failure(self, person: Person) -> None:
        """Count a failure to sign in; after some, the login is held."""
        self._note_failure(person.login, self._clock())

    def are_too_many(self) -> bool:
        """Say whether so many sign in at this moment that who came now would be told to try again."""
        return self._passwords.is_full()

    def sign_in(self, login: str, password: str) -> Person:
        """Return the person whom login and password prove. Raises UNAUTHENTICATED, BUSY when too many try at once."""
        if len(login) > 100 or len(password) > LONGEST:
            raise AppError(Category.UNAUTHENTICATED, _NOBODY, where="sign-in")
        person, now = self._register.find(login.strip().lower()), self._clock()
        if person:
            self.check_hold(person)
        is_right = self._passwords.matches(person.password_hash if person else "", password)
        if person is None or person.is_disabled or not is_right:
            if person:
                self._note_failure(person.login, now)
            raise AppError(Category.UNAUTHENTICATED, _NOBODY, where="sign-in")
        return person

    def signed_in(self, person: Person) -> Person:
        """Note that signing in worked to its end: failures are forgotten."""
        return self._changed(person.login, failures=0, held_until=None) if person.failures else person

    def _note_failure(self, login: str, now: datetime) -> None:
        beyond = self._register.count_failure(login) - FAILURES_ALLOWED
        if beyond >= 0:
            hold = min(FIRST_HOLD * 2 ** min(beyond, 10), LONGEST_HOLD)
            self._register.change(login, held_until=now + hold)

    def _changed(self, login: str, **values: object) -> Person:
        return self._known(self._register.change(login.strip().lower(), **values))

    @staticmethod
    def _known(person: Person | None) -> Person:
        if person is None:
            raise AppError(Category.NOT_FOUND, "there is no person of this login", where="login")
        return person


def new_password() -> str:
    """Return a password that nobody guesses, 96 bits, in groups that can be read out."""
    letters = "abcdefghjkmnpqrstuvwxyz23456789"
    return "-".join("".join(secrets.choice(letters) for _ in range(5)) for _ in range(4))


def _new_stamp() -> str:
    return secrets.token_urlsafe(16)


def _invalid(message: str, where: str) -> AppError:
    return AppError(Category.INVALID, message, where=where)
