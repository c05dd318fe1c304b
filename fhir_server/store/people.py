"""People who sign in, on MongoDB.

* `people`  `_id` login, in lower case; the subscriber that the person belongs to, role, FHIR resource that represents
            the person, hash of the password, how often signing in failed since it last worked, until when it is held,
            secret of the second factor, digests of recovery codes, security keys with their counters. No two people
            have the same security key
"""

from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, IndexModel, ReturnDocument, WriteConcern
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

INDEXES = [
    IndexModel([("organization", ASCENDING)], name="organization"),
    IndexModel(
        [("keys.id", ASCENDING)],
        name="keys",
        unique=True,
        partialFilterExpression={"keys.id": {"$exists": True}},
    ),
]


@dataclass(frozen=True, slots=True)
class Key:
    """A security key or passkey of somebody.

    id         credential id, base64url without padding
    name       how its owner calls it
    data       attested credential data with the public key. Source: WebAuthn Level 2, 6.5.1
    counter    of signatures, as it was last seen; 0 of a key that does not count
    """

    id: str
    name: str
    data: bytes
    counter: int
    added: datetime
    used: datetime | None = None
    transports: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who may sign in.

    organization   the subscriber, "Organization/..."
    role           of `access.grants.Role`
    fhir_user      reference of the resource that represents the person, such as "Practitioner/7"
    stamp          changes with the password; a session of an earlier stamp is over
    """

    login: str
    organization: str
    name: str
    role: str
    fhir_user: str
    password_hash: str
    stamp: str
    is_disabled: bool = False
    failures: int = 0
    held_until: datetime | None = None
    totp_secret: str = ""
    totp_step: int = 0  # the last one of which a code was used
    recovery_codes: tuple[str, ...] = ()  # digests of those that are left
    keys: tuple[Key, ...] = ()

    @property
    def has_second_factor(self) -> bool:
        """Say whether the password alone does not let in."""
        return bool(self.totp_secret or self.keys)


class People:
    """The register of people."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        # A password that was changed or a person who was shut out must never be rolled back.
        self._people = database.get_collection("people", write_concern=WriteConcern(w="majority", j=True))

    def ensure_indexes(self) -> None:
        """Create the indexes; those that exist are left alone."""
        self._people.create_indexes(INDEXES)

    def add(self, person: Person) -> bool:
        """Register a person; say whether the login was free."""
        document = asdict(person)
        try:
            self._people.insert_one({"_id": document.pop("login"), **document})
        except DuplicateKeyError:
            return False
        return True

    def find(self, login: str) -> Person | None:
        """Return the person of this login, None when there is none."""
        return _person(self._people.find_one({"_id": login}))

    def all(self) -> list[Person]:
        """Return everybody, by login."""
        return [person for each in self._people.find().sort("_id") if (person := _person(each))]

    def change(self, login: str, **values: Any) -> Person | None:
        """Set what is known of a person; return the person, None when there is none."""
        changed = self._people.find_one_and_update(
            {"_id": login}, {"$set": values}, return_document=ReturnDocument.AFTER
        )
        return _person(changed)

    def use_step(self, login: str, step: int) -> bool:
        """Note that the code of a step was used; say whether it is later than any before."""
        changed = self._people.update_one({"_id": login, "totp_step": {"$lt": step}}, {"$set": {"totp_step": step}})
        return bool(changed.modified_count)

    def use_recovery_code(self, login: str, code_sha256: str) -> bool:
        """Take a recovery code away; say whether it was there."""
        changed = self._people.update_one(
            {"_id": login, "recovery_codes": code_sha256}, {"$pull": {"recovery_codes": code_sha256}}
        )
        return bool(changed.modified_count)

    def add_key(self, login: str, key: Key, *, most: int) -> bool:
        """Keep a security key; say whether nobody has it yet and there are fewer than so many."""
        matching = {"_id": login, "keys.id": {"$ne": key.id}, f"keys.{most - 1}": {"$exists": False}}
        try:
            changed = self._people.update_one(matching, {"$push": {"keys": asdict(key)}})
        except DuplicateKeyError:
            return False
        return bool(changed.modified_count)

    def use_key(self, login: str, key: str, counter: int, *, now: datetime) -> bool:
        """Note that a security key was used; say whether it counted on. One that does not count stays at 0."""
        is_on = {"$lt": counter} if counter else 0
        changed = self._people.update_one(
            {"_id": login, "keys": {"$elemMatch": {"id": key, "counter": is_on}}},
            {"$set": {"keys.$.counter": counter, "keys.$.used": now}},
        )
        return bool(changed.matched_count)

    def remove_key(self, login: str, key: str) -> bool:
        """Forget a security key; say whether it was there."""
        return bool(self._people.update_one({"_id": login}, {"$pull": {"keys": {"id": key}}}).modified_count)

    def count_failure(self, login: str) -> int:
        """Count one more failure to sign in; return how many there were since it last worked."""
        changed = self._people.find_one_and_update(
            {"_id": login}, {"$inc": {"failures": 1}}, return_document=ReturnDocument.AFTER
        )
        return int(changed["failures"]) if changed else 0


def _person(document: dict[str, Any] | None) -> Person | None:
    if document is None:
        return None
    known = {each.name for each in fields(Person)} - {"login", "keys"}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in document.items() if name in known
    }
    keys = tuple(Key(**{**each, "transports": tuple(each["transports"])}) for each in document.get("keys", []))
    return Person(login=document["_id"], keys=keys, **values)
