"""Grants: what a token of an authorization server was given for, apart from whose token it is.

A `Grant` is made by whoever hands out tokens, kept with the token, and found again on the principal of each request. A
token endpoint needs nothing but this:

    grant = Grant(
        client_id="growth-app",                       # to whom it is issued; the client has to be registered
        scopes=Scopes.parse(asked) & allowed,         # what was agreed to, not what was asked
        expires=now + timedelta(minutes=5),
        patient="Patient/123",                        # launch context; "" without one
        user="Practitioner/7", role=Role.PRACTITIONER,  # who signed in; "" and None for a program by itself
        family=new_family(),                          # all tokens of one authorisation, so that they end together
    )
    token = principals.issue(grant)                   # the bearer token; shown once
    answer = {"access_token": token, "scope": str(grant.scopes), **grant.launch_context()}

    principals.grant_of(token)                        # introspection: the Grant of a valid token, None for others
    principals.revoke(token)                          # revocation of one token
    principals.revoke_family(grant.family)            # a refresh token was used twice: all of them end

What may be done with such a token is the scopes, within the contracts of the subscriber, within the role of the user,
within the patient's compartment; `policy` compiles that. Nothing in a grant ever widens what the contracts say, and
two grants are never put together.   Sources: SMART App Launch 2.2; RFC 6749; RFC 7009; RFC 7662.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from fhir_server.access.contracts import Right
from fhir_server.access.scopes import Scopes
from imaging.errors import AppError, Category

MOST_CONTEXT = 50  # entries of fhirContext
LONGEST_TEXT = 1_000  # characters of one value in it
_REFERENCE = re.compile(r"([A-Z][A-Za-z]{1,63})/[A-Za-z0-9\-.]{1,64}")
_USERS = frozenset({"Patient", "Practitioner", "PractitionerRole", "RelatedPerson", "Person"})


class Role(StrEnum):
    """What a person is here for; `AT_MOST` says what each may do of what the contracts allow."""

    PATIENT = "patient"
    PRACTITIONER = "practitioner"
    TECHNOLOGIST = "technologist"
    OPERATOR = "operator"
    AUDITOR = "auditor"


AT_MOST: Mapping[Role, frozenset[Right]] = MappingProxyType(
    {
        Role.PATIENT: frozenset({Right.RECEIVE_IMAGES, Right.RECEIVE_BY_URL}),
        Role.PRACTITIONER: frozenset(
            {
                Right.RECEIVE_IMAGES,
                Right.RECEIVE_BY_URL,
                Right.RECEIVE_DEIDENTIFIED,
                Right.REGISTER_IMAGES,
                Right.ORDER_PROCESSING,
                Right.ORDER_HARD_COPY,
                Right.BREAK_GLASS,
            }
        ),
        Role.TECHNOLOGIST: frozenset(
            {
                Right.RECEIVE_IMAGES,
                Right.RECEIVE_BY_URL,
                Right.RECEIVE_DEIDENTIFIED,
                Right.REGISTER_IMAGES,
                Right.ORDER_PROCESSING,
                Right.ORDER_HARD_COPY,
                Right.PROCESS_IMAGES,
            }
        ),
        Role.OPERATOR: frozenset({Right.DEFINE}),
        Role.AUDITOR: frozenset({Right.AUDIT}),
    }
)


@dataclass(frozen=True, slots=True)
class ContextItem:
    """One entry of the launch parameter `fhirContext`. Source: SMART 2.2, launch context.

    At least one of reference ("ImagingStudy/1", relative to this server or absolute), canonical and identifier
    (system, value) is given.
    """

    reference: str = ""
    canonical: str = ""
    identifier: tuple[str, str] | None = None
    type: str = ""
    role: str = ""

    def document(self) -> dict[str, Any]:
        """Return the entry as JSON has it."""
        identifier = {"system": self.identifier[0], "value": self.identifier[1]} if self.identifier else None
        found = {"reference": self.reference, "canonical": self.canonical, "identifier": identifier}
        return {name: item for name, item in {**found, "type": self.type, "role": self.role}.items() if item}


@dataclass(frozen=True, slots=True)
class Grant:
    """What one access token was given for.

    client_id   the registered client that it is issued to
    scopes      what was agreed to
    expires     when the token ends, aware
    patient     "Patient/..." that it is about, "" without one: then `patient/` scopes give nothing
    encounter   "Encounter/..." of the launch, "" without one; context only, it narrows nothing
    context     `fhirContext` of the launch; context only, it widens and narrows nothing
    user        who signed in ("Practitioner/...", "Patient/..." or the like), "" for a program by itself: then `user/`
                scopes give nothing; with a user, `system/` scopes give nothing
    role        of the user; given where and only where there is a user. A patient's grant always names the patient
    subscriber  "Organization/..." whose contracts count, where that is not the client's: of a user of a hospital with
                an app of somebody else's. "" for the client's own
    family      name of the authorisation that the token descends from, "" for none
    more        further parameters of the launch, such as (`intent`, "review"); told to the client, and nothing else
    subject     by which name apps know the user, "" where they were told none
    emergency   id of the emergency access that it belongs to, "" for none; then it is a practitioner's, about one
                patient, and reaches as far as the right `break-glass`
    issuer      URL of another server that issued the token, "" for this one; its users are not resources here
    called      what another server, which issued the token, calls the patient, "Patient/..."; "" where that is the same
    Raises INVALID for what does not go together.
    """

    client_id: str
    scopes: Scopes
    expires: datetime
    patient: str = ""
    encounter: str = ""
    context: tuple[ContextItem, ...] = ()
    user: str = ""
    role: Role | None = None
    subscriber: str = ""
    family: str = ""
    more: tuple[tuple[str, str | bool], ...] = ()
    subject: str = ""
    issuer: str = ""
    called: str = ""
    emergency: str = ""

    def __post_init__(self) -> None:
        """Check what goes together."""
        if not self.client_id:
            raise _invalid("client_id", "a grant is issued to a client")
        if self.expires.tzinfo is None:
            raise _invalid("expires", "the end of a grant has a time zone")
        for name, text, kinds in (
            ("patient", self.patient, {"Patient"}),
            ("encounter", self.encounter, {"Encounter"}),
            ("fhirUser", self.user, _USERS),
            ("subscriber", self.subscriber, {"Organization"}),
        ):
            match = _REFERENCE.fullmatch(text)
            if text and (match is None or match[1] not in kinds):
                raise _invalid(name, f"it is written {' or '.join(sorted(kinds))}/id")
        if bool(self.user) is not (self.role is not None):
            raise _invalid("role", "a user has a role, and a program by itself has none")
        if self.role is Role.PATIENT and not self.patient:
            raise _invalid("patient", "what a patient signed in for is about one patient")
        if self.emergency and not (self.patient and self.role is Role.PRACTITIONER):
            raise _invalid("emergency", "emergency access is a practitioner's, to one patient")
        if len(self.context) > MOST_CONTEXT:
            raise _invalid("fhirContext", f"it has at most {MOST_CONTEXT} entries")

    @property
    def is_for_patient_alone(self) -> bool:
        """Say whether it is about its patient alone, whatever the scopes say: a patient's own, or of an emergency."""
        return self.role is Role.PATIENT or bool(self.emergency)

    def launch_context(self) -> dict[str, Any]:
        """Return the launch parameters of a token response, those that there are."""
        found = {
            "patient": self.patient.removeprefix("Patient/"),
            "encounter": self.encounter.removeprefix("Encounter/"),
            "fhirContext": [each.document() for each in self.context],
        }
        return {name: item for name, item in found.items() if item} | dict(self.more)

    def document(self) -> dict[str, Any]:
        """Return the grant as it is kept with its token, which has client, end and family itself."""
        found = {
            "scopes": str(self.scopes),
            "patient": self.patient,
            "encounter": self.encounter,
            "context": [each.document() for each in self.context],
            "user": self.user,
            "role": self.role.value if self.role else "",
            "subscriber": self.subscriber,
            "issuer": self.issuer,
            "called": self.called,
            "emergency": self.emergency,
            "more": dict(self.more),
            "subject": self.subject,
        }
        return {name: item for name, item in found.items() if item or name == "scopes"}


def grant_from_document(document: Mapping[str, Any], *, client_id: str, expires: datetime, family: str = "") -> Grant:
    """Return the grant that was kept as `Grant.document`. Raises INVALID for what is none."""
    try:
        return Grant(
            client_id=client_id,
            scopes=Scopes.parse(document["scopes"]),
            expires=expires if expires.tzinfo else expires.replace(tzinfo=UTC),
            patient=document.get("patient", ""),
            encounter=document.get("encounter", ""),
            context=context_items(document.get("context", [])),
            user=document.get("user", ""),
            role=Role(document["role"]) if document.get("role") else None,
            subscriber=document.get("subscriber", ""),
            family=family,
            more=tuple(document.get("more", {}).items()),
            subject=document.get("subject", ""),
            issuer=document.get("issuer", ""),
            called=document.get("called", ""),
            emergency=document.get("emergency", ""),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _invalid("grant", "what is kept with the token is no grant") from error


def context_items(entries: Any) -> tuple[ContextItem, ...]:
    """Return the entries of a `fhirContext` that came as JSON. Raises INVALID."""
    if not isinstance(entries, list) or len(entries) > MOST_CONTEXT:
        raise _invalid("fhirContext", f"it is a list of at most {MOST_CONTEXT} entries")
    return tuple(_context_item(each) for each in entries)


def _context_item(entry: Any) -> ContextItem:
    if not isinstance(entry, dict):
        raise _invalid("fhirContext", "each entry is an object")
    identifier = entry.get("identifier")
    if identifier is not None:
        if not isinstance(identifier, dict):
            raise _invalid("fhirContext", "identifier is an object with system and value")
        identifier = (str(identifier.get("system", "")), str(identifier.get("value", "")))
    texts = {name: entry.get(name, "") for name in ("reference", "canonical", "type", "role")}
    for text in (*texts.values(), *(identifier or ())):
        if not isinstance(text, str) or len(text) > LONGEST_TEXT:
            raise _invalid("fhirContext", f"values are texts of at most {LONGEST_TEXT} characters")
    if not (texts["reference"] or texts["canonical"] or identifier):
        raise _invalid("fhirContext", "each entry has a reference, a canonical or an identifier")
    if texts["role"] not in ("", "launch") and ":" not in texts["role"]:
        raise _invalid("fhirContext", "a role other than launch is an absolute address")
    kind = texts["reference"].rstrip("/").rpartition("/")[0].rpartition("/")[2]
    if kind in ("Patient", "Encounter") and texts["role"] in ("", "launch"):
        raise _invalid("fhirContext", f"the {kind} of a launch has a parameter of its own")
    return ContextItem(identifier=identifier, **texts)


def new_family() -> str:
    """Return a name for the tokens of one new authorisation."""
    return secrets.token_urlsafe(16)


def _invalid(where: str, message: str) -> AppError:
    return AppError(Category.INVALID, message, where=where)
