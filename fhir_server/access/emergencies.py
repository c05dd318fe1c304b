"""Emergency access ("break the glass"): for a short while, to one patient whom a person may not see otherwise.

Only where a contract allows it, only for practitioners, with a reason, and never without an alarm: that is written, as
a row, an AuditEvent and a Communication, before anything is shown. What it opens is the reading of one patient's
records as far as the right `break-glass` goes, compiled like every other right; see `Principals.in_emergency`. The
reason is for those who review the access; it is in no log and no resource.
Sources: DICOM PS3.15 A.5 (Emergency Override Started); HL7 v3 ActReason (BTG); 45 CFR 164.312(a)(2)(ii).
"""

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from fhir_server.access.audit import BREAK_GLASS, Access, Audit
from fhir_server.access.contracts import Right
from fhir_server.access.grants import Grant, Role
from fhir_server.access.people import Person
from fhir_server.access.policy import restriction
from fhir_server.access.principals import Principal, Principals
from fhir_server.access.scopes import Context, Permission, ResourceScope, Scopes
from fhir_server.model.criteria import ID_FORM, escaped
from fhir_server.model.dates import to_instant
from fhir_server.model.query import Query, parse
from fhir_server.model.topics import ALARM
from fhir_server.store.documents import Resource
from fhir_server.store.emergencies import Emergencies as Register
from fhir_server.store.emergencies import Emergency
from fhir_server.store.repository import Repository
from imaging.errors import AppError, Category

__all__ = ["Emergencies", "Emergency", "Verdict", "Wanted", "in_emergency"]

SHORTEST_REASON, LONGEST_REASON = 10, 500  # characters
LONGEST_NOTE = 2_000  # characters of a review
LONGEST_WORDS = 100  # characters of a number or a name
TO_GO_ON = timedelta(minutes=10)  # from asking to agreeing
ALARM_SYSTEM = "urn:fhir-imaging:alarm"  # system of the identifier of the Communication: the id of the access
_TO_FIND = Scopes.parse("user/Patient.rs")
_READING = (Permission.READ, Permission.SEARCH)

log = logging.getLogger(__name__)


class Verdict(StrEnum):
    """What a review says of an emergency access."""

    JUSTIFIED = "justified"
    UNJUSTIFIED = "unjustified"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Whose records are needed: one of a reference, a number, or name and birth date; never a list to look through."""

    reference: str = ""
    number: str = ""
    family: str = ""
    born: str = ""


class Emergencies:
    """Gives people access in an emergency, and raises the alarm."""

    def __init__(
        self,
        principals: Principals,
        register: Register,
        own: Repository,
        audit: Audit,
        *,
        per_day: int,
        life: timedelta,
        end_family: Callable[[str], None],
        clock: Callable[[], datetime],
    ) -> None:
        """Make it.

        per_day     how often one person may ask in a day (UTC), found or not
        life        of a token
        end_family  ends all tokens of an authorisation; that of an emergency access has its id for a name
        """
        self.life = life
        self._principals = principals
        self._register = register
        self._own = own
        self._audit = audit
        self._per_day = per_day
        self._end_family = end_family
        self._clock = clock

    def may(self, person: Person) -> bool:
        """Say whether a person may ask at all."""
        if person.role != Role.PRACTITIONER:
            return False
        return self._principals.acting_for(person.organization).may(Right.BREAK_GLASS)

    def finder(self, person: Person) -> Principal:
        """Return the principal as which one patient is looked for, as far as emergency access goes."""
        grant = Grant("sign-in", _TO_FIND, self._clock() + TO_GO_ON, user=person.fhir_user, role=Role(person.role))
        return self._principals.in_emergency(person.organization).holding(grant)

    def ask(self, person: Person, client_id: str, reason: str, wanted: Wanted) -> Emergency:
        """Raise the alarm and return the access, which then waits `TO_GO_ON` for the person to go on.

        Raises FORBIDDEN when the person may not, or asked too often today; INVALID for a reason that is none, and when
        not exactly one patient is meant.
        """
        if not self.may(person):
            raise AppError(Category.FORBIDDEN, "no contract gives you emergency access", where="emergency")
        reason = " ".join(reason.split())
        if not SHORTEST_REASON <= len(reason) <= LONGEST_REASON or not reason.isprintable():
            message = f"say why, in {SHORTEST_REASON} to {LONGEST_REASON} characters: somebody will read it"
            raise AppError(Category.INVALID, message, where="reason")
        try:
            if self._register.count(person.login, now=self._clock()) > self._per_day:
                message = (
                    f"you asked {self._per_day} times today, which is the most; the operator of this server can help"
                )
                raise AppError(Category.FORBIDDEN, message, where="emergency")
            patient = self._find(person, wanted)
        except AppError as error:
            self._audit.refused(_recorded(person), Access.EMERGENCY, error)
            raise
        return self._raise_alarm(person, client_id, reason, patient)

    def waiting(self, identifier: str, person: Person, patient: str) -> Emergency | None:
        """Return the access that a person asked for about a patient and may go on with, None when there is none."""
        found = self._register.find(identifier) if identifier else None
        if found is None or (found.login, found.patient) != (person.login, patient):
            return None
        return None if found.is_taken or found.ended or found.until <= self._clock() else found

    def take(self, found: Emergency) -> None:
        """Note that a code is given out for an access, once. Raises INVALID when it was, or waited too long."""
        now = self._clock()
        if not self._register.take(found.id, now=now, until=now + self.life):
            raise AppError(Category.INVALID, "the emergency access is over, or was used: ask again", where="emergency")

    def listed(self, *, all_of_them: bool, most: int = 1_000, concerning: str = "") -> list[Emergency]:
        """Return the alarms, those that nobody has reviewed or all; newest first.

        concerning   a subscriber whose people or patients they are about, "" for everybody's
        """
        return self._register.listed(all_of_them=all_of_them, most=most, concerning=concerning)

    def found(self, identifier: str) -> Emergency:
        """Return one. Raises NOT_FOUND."""
        return _known(self._register.find(identifier))

    def end(self, identifier: str) -> Emergency:
        """End an access at once, with every token of it. Raises NOT_FOUND."""
        self.found(identifier)
        self._end_family(identifier)
        ended = _known(self._register.end(identifier, now=self._clock()))
        self._audit.record(_by_operator(ended), Access.EMERGENCY_ENDED, resources=[ended.patient])
        return ended

    def review_by(self, person: Person, identifier: str, verdict: Verdict, note: str) -> Emergency:
        """Say what a person thinks of an access that concerns the person's subscriber. Raises as `review`."""
        found = self.found(identifier[:LONGEST_WORDS])
        if person.organization not in (found.organization, found.owner):
            raise _unknown()
        return self._reviewed(found, verdict, person.login, note, by=_recorded(person))

    def review(self, identifier: str, verdict: Verdict, *, reviewer: str, note: str) -> Emergency:
        """Say what an operator thinks of an access. Raises NOT_FOUND, INVALID, CONFLICT when it was reviewed before."""
        found = self.found(identifier)
        return self._reviewed(found, verdict, reviewer, note, by=_by_operator(found))

    def _reviewed(self, before: Emergency, verdict: Verdict, reviewer: str, note: str, *, by: Principal) -> Emergency:
        reviewer, note = reviewer.strip(), note.strip()
        if not 1 <= len(reviewer) <= LONGEST_WORDS or len(note) > LONGEST_NOTE:
            message = f"a reviewer has 1 to {LONGEST_WORDS} characters, a note at most {LONGEST_NOTE}"
            raise AppError(Category.INVALID, message, where="review")
        done = self._register.review(before.id, verdict=verdict, reviewer=reviewer, note=note, now=self._clock())
        if done is None:
            message = f"it was reviewed before: {before.verdict or 'in this moment'}"
            raise AppError(Category.CONFLICT, message, where="review")
        self._audit.record(by, Access.EMERGENCY_REVIEWED, resources=[done.patient], details={"verdict": verdict})
        return done

    def _find(self, person: Person, wanted: Wanted) -> Resource:
        words = (wanted.reference, wanted.number, wanted.family, wanted.born)
        if max(map(len, words)) > LONGEST_WORDS:
            message = f"what you look for has at most {LONGEST_WORDS} characters"
            raise AppError(Category.INVALID, message, where="patient")
        repository = self._own.opened_for(restriction(self.finder(person)))
        found = repository.search(_query(wanted)).matches
        if len(found) != 1:
            raise _not_one("nobody" if not found else "more than one patient")
        return found[0]

    def _raise_alarm(self, person: Person, client_id: str, reason: str, patient: Resource) -> Emergency:
        now = self._clock()
        asked = Emergency(
            id=secrets.token_hex(16),
            login=person.login,
            user=person.fhir_user,
            organization=person.organization,
            patient=patient.key,
            owner=patient.stamp.owner,
            client_id=client_id,
            reason=reason,
            asked=now,
            until=now + TO_GO_ON,
        )
        # The row first: it is the alarm. What follows tells of it; a crash in between leaves the alarm and no access.
        self._register.add(asked)
        self._audit.record(_recorded(person, asked), Access.EMERGENCY, resources=[asked.patient])
        self._own.update(_communication(asked), create=True, owner=asked.owner or None)
        log.warning("emergency access was asked for", extra={"alarm": asked.id, "subscriber": asked.organization})
        return asked


def in_emergency(scopes: Scopes) -> Scopes:
    """Return what of scopes can be granted in an emergency: to read about the one patient, and for once.

    Visits and studies cannot be picked then: the person sees none before.
    """
    resources = tuple(
        ResourceScope(each.context, each.type, permissions, each.criteria)
        for each in scopes.resources
        if each.context is Context.PATIENT
        and (permissions := "".join(letter for letter in each.permissions if letter in _READING))
    )
    return Scopes(resources, tuple(each for each in scopes.others if each.partition("?")[0] not in _NOT_THEN))


_NOT_THEN = frozenset({"offline_access", "online_access", "launch/encounter", "launch/imagingstudy"})


def _query(wanted: Wanted) -> Query:
    kind, _, identifier = wanted.reference.partition("/")
    if wanted.reference:
        if kind != "Patient" or not ID_FORM.fullmatch(identifier):
            raise _not_one("nobody")
        return parse("Patient", [("_id", identifier), ("_count", "2")])
    if wanted.number.strip():
        return parse("Patient", [("identifier", escaped(wanted.number.strip())), ("_count", "2")])
    if not wanted.family.strip() or not wanted.born.strip():
        message = "give the number of the patient, or family name and date of birth"
        raise AppError(Category.INVALID, message, where="patient")
    asked = [("family", escaped(wanted.family.strip())), ("birthdate", wanted.born.strip()), ("_count", "2")]
    return parse("Patient", asked)


def _known(found: Emergency | None) -> Emergency:
    if found is None:
        raise _unknown()
    return found


def _unknown() -> AppError:
    return AppError(Category.NOT_FOUND, "there is no emergency access of this id", where="alarm")


def _not_one(what: str) -> AppError:
    message = f"{what} was found: check the number, or family name and date of birth"
    return AppError(Category.NOT_FOUND, message, where="patient")


def _recorded(person: Person, asked: Emergency | None = None) -> Principal:
    """Return who stands in the record as having asked."""
    grant = None
    if asked:
        grant = Grant(
            asked.client_id,
            _TO_FIND,
            asked.until,
            patient=asked.patient,
            user=asked.user,
            role=Role.PRACTITIONER,
            emergency=asked.id,
        )
    return Principal(person.organization, person.login, "", frozenset(), grant)


def _by_operator(found: Emergency) -> Principal:
    return Principal(found.organization, "operator", "", frozenset())


def _communication(asked: Emergency) -> dict[str, Any]:
    """Return what tells the subscriber whose patient it is. The reason is not in it: it is for who reviews."""
    recipient = {"recipient": [{"reference": asked.owner}]} if asked.owner else {}
    return {
        "resourceType": "Communication",
        "id": f"emergency-{asked.id}",
        "identifier": [{"system": ALARM_SYSTEM, "value": asked.id}],
        "status": "completed",
        "category": [{"coding": [ALARM]}],
        "priority": "urgent",
        "subject": {"reference": asked.patient},
        "sent": to_instant(asked.asked),
        **recipient,
        "reasonCode": [{"coding": [BREAK_GLASS]}],
        "payload": [{"contentString": "Emergency access to the records of this patient was asked for"}],
    }
