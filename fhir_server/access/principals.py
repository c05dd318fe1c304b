"""Principals: who is asking. From a bearer token to a subscriber and the rights that its contracts give now.

Hides tokens, clients, Organizations and Contracts behind `authenticate`. What was found is believed for `cache_s`
seconds and never beyond the end of a token or of a contract's period; so an expiry, a suspension or a new contract is
felt within that time in every process.
"""

import re
import threading
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from fhir_server.access.agreements import LONGEST_ISSUER, Agreement, agreed, agreement_contract, is_agreement
from fhir_server.access.contracts import (
    UNLIMITED,
    Limits,
    Right,
    Source,
    Term,
    contract,
    sources_in_force,
    terms_in_force,
)
from fhir_server.access.foreign import LONGEST, ForeignTokens
from fhir_server.access.grants import AT_MOST, Grant, grant_from_document
from fhir_server.model.criteria import Clause, Reference, Token
from fhir_server.model.dates import LATEST
from fhir_server.model.query import Query
from fhir_server.model.subscriber import SUBSCRIBER_SYSTEM, is_subscriber
from fhir_server.store.credentials import LONGEST_TOKEN, TOKEN_PREFIX, Client, Credential, Credentials, digest
from fhir_server.store.documents import Resource
from fhir_server.store.filters import Act
from fhir_server.store.repository import Repository
from imaging.errors import AppError, Category

__all__ = ["Principal", "Principals", "Right", "Subscriber"]

LONGEST_NAME = 200  # characters
_MOST_CACHED = 10_000  # tokens


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a client acting for a subscriber, with the rights in force. Without rights it may do nothing.

    subscriber   reference of the Organization, "Organization/..."
    rights       that contracts in force give the subscriber, as far as the role of the user goes
    grant        what the token was given for; None for one of the operator's commands: the contracts alone limit it
    limited      how far rights go that do not go everywhere, in a settled order
    devices      "Device/..." of the subscriber, which may do Tasks; told where rights are limited or printers served
    keeps        with what options images are de-identified for the subscriber: those that all of its terms give, so
                 that one recipient has one form of each image
    token        with which the principal came, "" where it works later or by other means; `expires` is when it ends
    authorised_by   URIs of what allowed it to come, for the audit record; none where that is the token alone
    sources      the terms in force with their Contracts, as `contracts.sources_in_force` has them: what is done is
                 charged to them (`charging`). Two who may do the same are the same, whichever Contracts say so
    """

    subscriber: str
    client_id: str
    name: str
    rights: frozenset[Right]
    grant: Grant | None = None
    limited: tuple[Term, ...] = ()
    devices: tuple[str, ...] = ()
    keeps: frozenset[str] = frozenset()
    token: str = field(default="", repr=False, compare=False)
    expires: datetime | None = field(default=None, compare=False)
    authorised_by: tuple[str, ...] = field(default=(), compare=False)
    sources: tuple[Source, ...] = field(default=(), compare=False)

    def limits(self, right: Right) -> tuple[Limits, ...]:
        """Return how far a right goes: alternatives, none where the subscriber does not have it."""
        if right not in self.rights:
            return ()
        return tuple(term.limits for term in self.limited if term.right is right) or (UNLIMITED,)

    def holding(self, grant: Grant) -> "Principal":
        """Return the same principal, narrowed to a grant and to the role of its user."""
        rights = self.rights if grant.role is None else self.rights & AT_MOST[grant.role]
        sources = tuple(each for each in self.sources if each.term.right in rights)
        return replace(self, rights=rights, grant=grant, sources=sources)

    def may(self, right: Right) -> bool:
        """Say whether a contract in force gives this right."""
        return right in self.rights

    def granted(self) -> dict[str, Any] | None:
        """Return the grant as it is kept with what is stored, None without one."""
        return None if self.grant is None else {**self.grant.document(), "client": self.grant.client_id}

    def lasting(self) -> dict[str, Any] | None:
        """Return the grant as it is kept with work that is done later, None without one.

        Raises FORBIDDEN for emergency access, which never outlasts its token.
        """
        if self.grant is not None and self.grant.emergency:
            raise _reading_at_once()
        return self.granted()


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A subscriber as an operator sees it."""

    name: str
    organization: str
    rights: frozenset[Right]
    suspended: bool
    clients: tuple[str, ...]
    terms: frozenset[Term] = frozenset()


class Principals:
    """Tells who a token belongs to, and keeps the register of subscribers."""

    def __init__(
        self,
        credentials: Credentials,
        own: Repository,
        *,
        cache_s: float,
        token_days: float,
        clock: Callable[[], datetime],
        foreign: Callable[["Principals"], ForeignTokens] | None = None,
    ) -> None:
        """Keep the register. `foreign` makes what knows the tokens of another authorization server."""
        self._foreign = foreign(self) if foreign else None
        self._credentials = credentials
        self._own = own
        self._cache_s = cache_s
        self._token_life = timedelta(days=token_days)
        self._clock = clock
        self._cache: dict[str, tuple[Principal, datetime]] = {}
        self._lock = threading.Lock()

    def authenticate(self, token: str) -> Principal:
        """Return the principal of a bearer token. Raises UNAUTHENTICATED when it is unknown, expired or suspended."""
        is_foreign = self._foreign is not None and not token.startswith(TOKEN_PREFIX)
        if not token or (len(token) > LONGEST_TOKEN and not is_foreign) or len(token) > LONGEST:
            raise _unauthenticated(_UNKNOWN)
        key, now = digest(token), self._clock()
        cached = self._cache.get(key)
        if cached and now < cached[1]:
            return cached[0]
        principal, until = self._of_issuer(token, now) if is_foreign else self._resolve(token, key, now)
        with self._lock:
            if len(self._cache) >= _MOST_CACHED:
                self._cache.clear()
            self._cache[key] = principal, until
        return principal

    def is_active(self, organization: str) -> bool:
        """Say whether a subscriber, "Organization/...", is registered and not suspended."""
        return _is_active(self._with_contracts(organization)[0])

    def identified(self, system: str, value: str) -> str:
        """Return the one Patient of the issuer's subscriber that has an identifier, "" for none or several.

        One that was merged into another, which has its identifiers, does not count.
        """
        if self._foreign is None:
            return ""
        owner = self.named(self._foreign.issuer.subscriber)
        terms, _ = terms_in_force(self._contracts(owner), owner, self._clock())
        whose = [term.limits.whose for term in terms if term.right is Right.RECEIVE_IMAGES]
        clause = Clause("identifier", "token", "", (Token(system, value),))
        found = self._own.search(Query("Patient", (clause,), count=_MOST_ALIKE)).matches
        found = [each for each in found if not _is_replaced(each.json())]
        seen = [each.key for each in found if any(one is None or each.stamp.owner in one for one in whose)]
        return seen[0] if len(seen) == 1 else ""

    def _of_issuer(self, token: str, now: datetime) -> tuple[Principal, datetime]:
        """Return who shows a token of another authorization server, and until when that may be believed."""
        assert self._foreign is not None  # noqa: S101 -- asked before
        organization = self.named(self._foreign.issuer.subscriber)
        found, contracts = self._with_contracts(organization)
        if not _is_active(found):
            raise _unauthenticated("the subscriber is suspended")
        grant = self._foreign.grant_of(token, now)
        sources, change = sources_in_force(contracts, organization, now)
        until = min(grant.expires, change, now + timedelta(seconds=self._cache_s))
        principal = self._principal(organization, grant.client_id, self._foreign.issuer.subscriber, sources, grant)
        return replace(principal, token=token, expires=grant.expires), until

    def acting_for(self, organization: str, granted: Mapping[str, Any] | None = None) -> Principal:
        """Return the principal as which this server works for a subscriber, "Organization/...", with its rights now.

        granted   what the token was given for with which the work was ordered, as `Principal.lasting` had it: the work
                  may outlast the token, but never reaches beyond it
        Raises FORBIDDEN when it is suspended: what it ordered before is not done any more. And for emergency access,
        which never outlasts its token.
        """
        if granted is not None and granted.get("emergency"):
            raise _reading_at_once()
        found, contracts = self._with_contracts(organization)
        if found is None or not _is_active(found):
            raise AppError(Category.FORBIDDEN, "the subscriber is suspended", where=organization)
        sources, _ = sources_in_force(contracts, organization, self._clock())
        name = found.get("name", "")
        grant = None
        if granted is not None:
            grant = grant_from_document(granted, client_id=granted.get("client", ""), expires=LATEST)
        return self._principal(organization, "", name, sources, grant)

    def in_emergency(self, organization: str) -> Principal:
        """Return the principal as which a subscriber, "Organization/...", sees in an emergency; without a patient yet.

        Raises FORBIDDEN when it is suspended.
        """
        acting = self.acting_for(organization)
        sources, _ = sources_in_force(self._contracts(organization), organization, self._clock())
        return self._principal(organization, "", acting.name, self._in_emergency(organization, sources), None)

    def _in_emergency(self, organization: str, sources: Iterable[Source]) -> tuple[Source, ...]:
        """Return what the right to emergency access lets a subscriber receive, and nothing else."""
        found = []
        for each in sources:
            if each.term.right is Right.BREAK_GLASS:
                limits = replace(each.term.limits, whose=self._opened_to(organization, each.term.limits.whose))
                found.append(Source(Term(Right.RECEIVE_IMAGES, limits), each.contract))
        return tuple(found)

    def _opened_to(self, organization: str, whose: frozenset[str] | None) -> frozenset[str]:
        """Return of whom emergency access reaches the patients: itself, and of `whose` those who agreed to it."""
        if whose is None:
            every = self._all("Organization", Clause("identifier", "token", "", (Token(SUBSCRIBER_SYSTEM, None),)))
            whose = frozenset(each.key for each in every)
        now = self._clock()
        others = (each for each in whose if each != organization)
        return frozenset(
            {
                organization,
                *(each for each in others if agreed(self._contracts(each), each, now).opens_to(organization)),
            }
        )

    def named(self, name: str) -> str:
        """Return the reference of the subscriber's Organization. Raises NOT_FOUND."""
        return self._named(name).key

    def add(
        self,
        name: str,
        rights: Iterable[Right],
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        limits: Limits = UNLIMITED,
        is_own: bool = False,
        keeps: frozenset[str] = frozenset(),
        emergency: Limits | None = None,
    ) -> Subscriber:
        """Register a subscriber with a contract that gives `rights`; return it.

        limits   how far they go
        is_own   they go to the subscriber's own images and resources, and those of `limits.whose`
        keeps    options of `contracts.KEEPS` with which images are de-identified for it
        emergency   whose patients, besides its own, emergency access reaches; None: there is no such access
        For one that is there, the new contract takes the place of the others. A suspended one is let in again.
        """
        now, wanted = self._clock(), frozenset(rights)
        if not name.strip() or len(name) > LONGEST_NAME:
            raise _invalid(f"a subscriber's name has 1 to {LONGEST_NAME} characters")
        if not wanted:
            raise _invalid("a contract without rights says nothing; name at least one")
        if end is not None and end <= (start or now):
            raise _invalid("the contract would end before it starts")
        organization = self._find(name) or self._register(name)
        reference = organization.key
        if is_own:
            limits = replace(limits, whose=frozenset({reference}) | (limits.whose or frozenset()))
        if emergency is not None and emergency.whose is not None:
            emergency = replace(emergency, whose=emergency.whose | {reference})
        if not self._own_clients(reference):
            client_id = f"{_slug(name)}-{organization.id[:8]}"
            self._credentials.add_client(Client(client_id, reference, name, suspended=False))
        earlier = self._contracts(reference)
        # The new one first, so that a client at work notices nothing; a crash leaves what `subscriber list` shows.
        self._own.create(
            contract(
                reference,
                wanted,
                issued=now,
                start=start or now,
                end=end,
                limits=limits,
                keeps=keeps,
                emergency=emergency,
            )
        )
        self._terminate(each for each in earlier if not is_agreement(each))
        self._set_active(organization, active=True)
        self._credentials.suspend(reference, suspended=False)
        return self._subscriber(self._named(name))

    def agree(self, name: str, agreement: Agreement) -> None:
        """Agree with a subscriber on the images that it registers, in place of what was agreed. Raises NOT_FOUND."""
        if len(agreement.issuer) > LONGEST_ISSUER or not agreement.issuer.isascii() or "\\" in agreement.issuer:
            raise _invalid(f"an issuer has up to {LONGEST_ISSUER} ASCII characters and no backslash")
        reference = self._named(name).key
        earlier = [each for each in self._contracts(reference) if is_agreement(each)]
        if agreement != Agreement():
            self._own.create(agreement_contract(reference, agreement, issued=self._clock()))
        self._terminate(earlier)

    def subscribers(self) -> list[Subscriber]:
        """Return every subscriber, by name."""
        found = self._all("Organization", Clause("identifier", "token", "", (Token(SUBSCRIBER_SYSTEM, None),)))
        return sorted((self._subscriber(each) for each in found), key=lambda subscriber: subscriber.name)

    def suspend(self, name: str) -> None:
        """Stop every client of a subscriber at once; `add` lets it in again. Raises NOT_FOUND."""
        organization = self._named(name)
        self._credentials.suspend(organization.key)
        self._set_active(organization, active=False)

    def mint(self, name: str) -> str:
        """Return a new bearer token for a subscriber's client. Raises NOT_FOUND."""
        now, organization = self._clock(), self._named(name)
        clients = self._own_clients(organization.key)
        if not clients:
            raise AppError(Category.NOT_FOUND, f"{name[:LONGEST_NAME]!r} has no client; repeat `subscriber add`")
        return self._credentials.mint(clients[0].client_id, now=now, expires=now + self._token_life)

    def issue(self, grant: Grant) -> str:
        """Return a new bearer token for a grant, which ends when the grant does. See `grants`.

        Raises NOT_FOUND for a client that is not registered, INVALID for a grant that is over.
        """
        now = self._clock()
        if grant.expires <= now:
            raise _invalid("the grant is over already")
        return self._credentials.mint(
            grant.client_id, now=now, expires=grant.expires, grant=grant.document(), family=grant.family
        )

    def grant_of(self, token: str) -> Grant | None:
        """Return what a token was given for, None unless it is valid and an authorization server gave it."""
        try:
            return self.authenticate(token).grant
        except AppError as error:
            if error.category is Category.UNAUTHENTICATED:
                return None
            raise

    def revoke(self, token: str) -> None:
        """Withdraw a token; one that is unknown is withdrawn already. Other processes feel it within `cache_s`."""
        if len(token) > LONGEST_TOKEN:
            return
        self._credentials.revoke(digest(token))
        self._forget([digest(token)])

    def revoke_family(self, family: str) -> None:
        """Withdraw all tokens of one authorisation. Other processes feel it within `cache_s`."""
        self._forget(self._credentials.revoke_family(family))

    def _forget(self, digests: Iterable[str]) -> None:
        with self._lock:
            for each in digests:
                self._cache.pop(each, None)

    def _resolve(self, token: str, key: str, now: datetime) -> tuple[Principal, datetime]:
        credential = self._credentials.find(key)
        if credential is None:
            raise _unauthenticated(_UNKNOWN)
        if credential.expires <= now:
            raise _unauthenticated("the bearer token has expired")
        client = credential.client
        grant = _grant(credential)
        subscriber = (grant.subscriber if grant else "") or client.organization
        found, contracts = self._with_contracts(subscriber)
        is_active = _is_active(found) and (subscriber == client.organization or self.is_active(client.organization))
        if client.suspended or not is_active:
            raise _unauthenticated("the subscriber is suspended")
        sources, change = sources_in_force(contracts, subscriber, now)
        if grant is not None and grant.emergency:
            sources = self._in_emergency(subscriber, sources)
        until = min(credential.expires, change, now + timedelta(seconds=self._cache_s))
        principal = self._principal(subscriber, client.client_id, client.name, sources, grant)
        return replace(principal, token=token, expires=credential.expires), until

    def _principal(
        self, subscriber: str, client_id: str, name: str, sources: tuple[Source, ...], grant: Grant | None
    ) -> Principal:
        """Return who has these terms, with the rights as far as the role of the user goes."""
        terms = frozenset(source.term for source in sources)
        rights = frozenset(term.right for term in terms)
        everywhere = {term.right for term in terms if term.limits == UNLIMITED}
        limited = sorted((term for term in terms if term.right not in everywhere), key=repr)
        devices = self._devices(subscriber) if limited or Right.SERVE_PRINTERS in rights else ()
        kept = [term.keeps for term in terms if term.right is Right.RECEIVE_DEIDENTIFIED]
        keeps = frozenset.intersection(*kept) if kept else frozenset[str]()
        principal = Principal(
            subscriber, client_id, name, rights, None, tuple(limited), devices, keeps, sources=sources
        )
        return principal if grant is None else principal.holding(grant)

    def _devices(self, reference: str) -> tuple[str, ...]:
        clause = Clause("organization", "reference", "", (Reference((reference,)),))
        return tuple(sorted(f"Device/{each}" for each in self._own.ids("Device", Act.SEARCH, by=[clause])))

    def _own_clients(self, organization: str) -> list[Client]:
        return [client for client in self._credentials.clients(organization) if not client.is_app]

    def _terminate(self, contracts: Iterable[dict[str, Any]]) -> None:
        for each in contracts:
            if each["status"] == "executed":
                self._own.update({**each, "status": "terminated"}, if_match=None)

    def _with_contracts(self, reference: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """Return the Organization of a subscriber, None where there is none, and its Contracts: read together."""
        found, contracts = self._own.with_referrers(
            "Organization", reference.removeprefix("Organization/"), _about(reference), "Contract"
        )
        return found.json() if found else None, [each.json() for each in contracts]

    def _contracts(self, reference: str) -> list[dict[str, Any]]:
        return [each.json() for each in self._all("Contract", _about(reference))]

    def _find(self, name: str) -> Resource | None:
        found = self._all("Organization", Clause("identifier", "token", "", (Token(SUBSCRIBER_SYSTEM, name),)))
        return found[0] if found else None

    def _named(self, name: str) -> Resource:
        found = self._find(name)
        if found is None:
            raise AppError(Category.NOT_FOUND, f"no subscriber {name[:LONGEST_NAME]!r}; `subscriber add` makes one")
        return found

    def _register(self, name: str) -> Resource:
        identifier = [{"system": SUBSCRIBER_SYSTEM, "value": name}]
        made = {"resourceType": "Organization", "identifier": identifier, "active": True, "name": name}
        return self._own.create(made)

    def _set_active(self, organization: Resource, *, active: bool) -> None:
        resource = organization.json()
        if resource.get("active", True) is not active:
            self._own.update({**resource, "active": active}, if_match=None)

    def _subscriber(self, organization: Resource) -> Subscriber:
        resource = organization.json()
        terms, _ = terms_in_force(self._contracts(organization.key), organization.key, self._clock())
        rights = frozenset(term.right for term in terms)
        clients = tuple(client.client_id for client in self._credentials.clients(organization.key))
        return Subscriber(_name(resource), organization.key, rights, not resource.get("active", True), clients, terms)

    def _all(self, resource_type: str, clause: Clause) -> list[Resource]:
        found: list[Resource] = []
        query: Query | None = Query(resource_type, (clause,), count=_PAGE)
        while query is not None:
            page = self._own.search(query)
            found += page.matches
            query = replace(query, cursor=page.next_cursor) if page.next_cursor else None
        return found


_UNKNOWN = "the bearer token is not one of this server"
_PAGE = 500  # resources fetched at a time
_MOST_ALIKE = 20  # Patients with one identifier that are looked at


def _grant(credential: Credential) -> Grant | None:
    if credential.grant is None:
        return None
    try:
        return grant_from_document(
            credential.grant,
            client_id=credential.client.client_id,
            expires=credential.expires,
            family=credential.family,
        )
    except AppError as error:
        # A mistake in what is kept closes the door and never opens it.
        raise _unauthenticated(_UNKNOWN) from error


def _name(organization: Mapping[str, Any]) -> str:
    """The subscriber's name for commands; `Organization.name` may be changed to a longer one."""
    values = [each["value"] for each in organization["identifier"] if each.get("system") == SUBSCRIBER_SYSTEM]
    return str(values[0])


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40] or "client"


def _is_replaced(patient: Mapping[str, Any]) -> bool:
    return any(each.get("type") == "replaced-by" for each in patient.get("link", []))


def _about(organization: str) -> Clause:
    return Clause("subject", "reference", "", (Reference((organization,)),))


def _is_active(organization: Mapping[str, Any] | None) -> bool:
    return organization is not None and is_subscriber(organization) and bool(organization.get("active", True))


def _reading_at_once() -> AppError:
    message = "emergency access is for reading at once; nothing is done with it later"
    return AppError(Category.FORBIDDEN, message, where="emergency")


def _unauthenticated(message: str) -> AppError:
    return AppError(Category.UNAUTHENTICATED, message, where="Authorization")


def _invalid(message: str) -> AppError:
    return AppError(Category.INVALID, message, where="subscriber")
