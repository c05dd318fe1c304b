"""Subscriptions: who may store which, what they select, and what they may be told.

A subscriber has its own Subscriptions and sees no others; they may name credentials. What they tell is read with the
subscriber's rights at that moment. How they are delivered is told by `work` (rest-hook) and `web` (websocket).
Sources: FHIR R4 subscription; Subscriptions R5 Backport 1.1.0.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from fhir_server.access import backing
from fhir_server.access.audit import Access
from fhir_server.access.contracts import Right
from fhir_server.access.policy import require
from fhir_server.access.principals import Principal
from fhir_server.config import Config, networks
from fhir_server.model import json, query
from fhir_server.model.criteria import Clause, Limits, Token
from fhir_server.model.query import Query
from fhir_server.model.rule import OWNER, owned
from fhir_server.model.subscription import Content, Status, Subscription, subscription_of
from fhir_server.model.xml import to_xml
from fhir_server.outbound.remote import Rules, refused_as_written, target_of
from fhir_server.rest.criteria import RESULT_PARAMETERS, parameters_of
from fhir_server.rest.notices import Kind, Told, notification
from fhir_server.store.documents import Resource
from fhir_server.store.repository import Hooks
from fhir_server.store.subscriptions import Event, State, Subscriptions
from imaging.errors import AppError, Category

Json = dict[str, Any]

LONGEST_BODY = 8 << 20  # bytes of resources in one notification, about
LIVE = (Status.REQUESTED, Status.ACTIVE, Status.ERROR)  # in which changes count
_HIDDEN = frozenset({Category.NOT_FOUND, Category.GONE, Category.FORBIDDEN})
# What a new version may differ in without the endpoint having to be asked again.
_INSUBSTANTIAL = frozenset({"meta", "status", "text", "contact", "reason", "error", "end"})


class Backing(backing.Backing, Protocol):
    """What Subscriptions need of the server."""

    @property
    def subscriptions(self) -> Subscriptions:
        """What happened, and how far each Subscription has been told."""

    @property
    def search_limits(self) -> Limits:
        """Bounds on searches."""


# ---- who may store which


def hooks_of(server: Backing, principal: Principal) -> Hooks:
    """Return the hooks of a subscriber's Subscriptions: what may be stored, and who sets the status to what."""

    def create(resource: Json) -> Json:
        wanted = Status.OFF if resource["status"] == Status.OFF else Status.REQUESTED
        made = owned(_with_status(resource, wanted), principal.subscriber)
        admit(server, principal, made, is_new=True)
        return made

    def update(current: Json, new: Json, is_internal: bool) -> Json:
        if is_internal:
            return new
        made = owned(_changed_by_client(current, new), principal.subscriber)
        admit(server, principal, made, is_new=False)
        return made

    return Hooks(before_create=create, before_update=update)


def admit(server: Backing, principal: Principal, resource: Json, *, is_new: bool) -> None:
    """Raise what keeps a principal from storing a Subscription: rights, number, what it says, where it leads."""
    require(principal, Right.RECEIVE_IMAGES, "be notified")
    most = server.config["subscriptions.most"]
    if is_new and count_of(server, principal.subscriber) >= most:
        message = f"you have {most} Subscriptions, which is all that there may be; delete or change one"
        raise AppError(Category.TOO_LARGE, message, where="Subscription")
    wanted = subscription_of(resource)
    query_of(server, wanted)
    if wanted.status is not Status.OFF and wanted.is_over(server.clock()):
        raise AppError(Category.INVALID, "the end lies in the past", where="Subscription.end")
    if wanted.is_pushed:
        where = "Subscription.channel.endpoint"
        try:
            reason = refused_as_written(target_of(wanted.channel.endpoint), rules_of(server.config))
        except AppError as error:
            raise AppError(error.category, error.message, where=where) from None
        if reason:
            raise AppError(Category.INVALID, reason.replace("outbound.", "subscriptions."), where=where)


def rules_of(config: Config) -> Rules:
    """Return what holds for connections to endpoints, whose addresses subscribers choose and not the operator."""
    return Rules(
        private_networks=networks(config["subscriptions.private_networks"]),
        ca_file=config["outbound.ca_bundle"],
        connect_s=config["outbound.connect_s"],
        silence_s=config["outbound.silence_s"],
    )


def count_of(server: Backing, owner: str) -> int:
    """Return how many Subscriptions a subscriber has."""
    return server.own.search(Query("Subscription", (owned_by(owner),), count=0)).total or 0


def owned_by(owner: str) -> Clause:
    """Return the clause of the Subscriptions of a subscriber."""
    return Clause("_tag", "token", "", (Token(OWNER, owner),))


def _changed_by_client(current: Json, new: Json) -> Json:
    """Return what a client makes of a Subscription; only this server says that it works, or that it does not."""
    before, wanted = Status(current["status"]), Status(new["status"])
    if wanted is Status.OFF:
        return _with_status(new, Status.OFF)
    is_same = _substance(current) == _substance(new)
    if wanted is Status.ERROR:
        if before is not Status.ERROR or not is_same:
            message = "only this server says that there is an error; ask for it again by the status requested"
            raise AppError(Category.INVALID, message, where="Subscription.status")
        return {**new, **{name: current[name] for name in ("error",) if name in current}}
    if before is Status.ACTIVE and is_same and wanted is Status.ACTIVE:
        return _with_status(new, Status.ACTIVE)
    return _with_status(new, Status.REQUESTED)


def _with_status(resource: Json, status: Status) -> Json:
    kept = {name: value for name, value in resource.items() if name != "error"}
    return {**kept, "status": status.value}


def _substance(resource: Mapping[str, Any]) -> Json:
    return {name: value for name, value in resource.items() if name not in _INSUBSTANTIAL}


def asked_for(found: Resource) -> Subscription:
    """Return what a stored Subscription asks for, under the grant with which it was stored. Raises INVALID."""
    return replace(subscription_of(found.json()), grant=found.stamp.grant)


def principal_of(server: Backing, subscription: Subscription) -> Principal:
    """Return the principal as which a Subscription is served. Raises FORBIDDEN when the subscriber is suspended."""
    return server.principals.acting_for(subscription.owner, subscription.grant)


def require_same(subscription: Subscription, grant: Mapping[str, Any] | None) -> None:
    """Raise FORBIDDEN where a token was given for less, or other, than what a Subscription was stored with.

    grant   of who asks to be told what the Subscription tells
    """
    if grant is not None and grant != subscription.grant:
        message = "it was stored with a token that was given for something else"
        raise AppError(Category.FORBIDDEN, message, where=f"Subscription/{subscription.id}")


def set_status(server: Backing, asked: Subscription, status: Status, reason: str = "") -> Subscription:
    """Write another status. Raises PRECONDITION where the Subscription was changed since, NOT_FOUND and GONE."""
    current = server.own.read("Subscription", asked.id).json()
    rest = {name: value for name, value in current.items() if name != "error"}
    changed = {**rest, "status": status.value, **({"error": reason} if reason else {})}
    return asked_for(server.own.update(changed, if_match=asked.version))


# ---- what they select


def query_of(server: Backing, subscription: Subscription) -> Query:
    """Return the search that a resource has to meet. Raises INVALID for what is no search, or selects nothing."""
    where, limits = "Subscription.criteria", server.search_limits
    given = [pair for text in subscription.filters for pair in parameters_of(text, limits, where=where)]
    for name, _ in given:
        if name.partition(":")[0] in RESULT_PARAMETERS or name in query.NOT_SEARCH:
            raise AppError(Category.INVALID, f"{name[:64]} selects nothing", where=where)
    try:
        return query.parse(subscription.resource, given, base_url=server.fhir_url, limits=limits)
    except AppError as error:
        named = f"{error.where}: " if error.where else ""
        raise AppError(error.category, f"{named}{error.message}", where=where) from None


# ---- what they may be told


@dataclass(frozen=True, slots=True)
class Batch:
    """Events that go out together. `last` is the number up to which all is settled then."""

    told: Sequence[Told]
    last: int


class Teller:
    """What a Subscription tells, as its subscriber may read it now."""

    def __init__(self, server: Backing, subscription: Subscription) -> None:
        """Open it. Raises FORBIDDEN where the subscriber is suspended, or may not receive any more."""
        self._server = server
        self.subscription = subscription
        self.principal = principal_of(server, subscription)
        require(self.principal, Right.RECEIVE_IMAGES, "be notified")
        self._repository = server.repository_for(self.principal)

    def of(self, subscription: Subscription) -> "Teller":
        """Return the same for a Subscription as it has become."""
        other = copy.copy(self)
        other.subscription = subscription
        return other

    def pending(self, after: int, until: int) -> Batch | None:
        """Return the next events after a number, None where none are left that are kept."""
        most = self.subscription.channel.most if self.subscription.topic else 1
        events = self._server.subscriptions.events(self.subscription.id, after + 1, until, most)
        told: list[Told] = []
        size = 0
        for each in events:
            version = self._readable(each)
            size += len(version.body) if version else 0
            if told and size > LONGEST_BODY and self.subscription.content is Content.FULL:
                break
            told.append(Told(each, version))
        return Batch(told, told[-1].event.number) if told else None

    def bundle(self, kind: Kind, state: State, told: Sequence[Told] = (), content: Content | None = None) -> bytes:
        """Return a notification in the form that the Subscription asks for."""
        made = self._json(kind, state, told, content)
        return to_xml(json.loads_trusted(made)) if self.subscription.channel.is_xml else made

    def resource(self, version: Resource) -> bytes:
        """Return a resource in the form that the Subscription asks for."""
        return to_xml(version.json()) if self.subscription.channel.is_xml else version.body

    def record(self, told: Sequence[Told]) -> None:
        """Put on record what was told."""
        keys = dict.fromkeys(each.event.key for each in told if each.version is not None)
        named = [f"Subscription/{self.subscription.id}", *keys]
        self._server.audit.record(self.principal, Access.NOTIFY, resources=named)

    def _json(self, kind: Kind, state: State, told: Sequence[Told], content: Content | None) -> bytes:
        return notification(
            kind,
            self.subscription,
            state,
            told,
            content=content or self.subscription.content,
            fhir_url=self._server.fhir_url,
            now=self._server.clock(),
        )

    def _readable(self, event: Event) -> Resource | None:
        """Return the version that an event is about where both it and the resource as it is now may be read."""
        kind, _, identifier = event.key.partition("/")
        is_deletion = event.method == "DELETE"
        try:
            self._repository.read(kind, identifier)
        except AppError as error:
            if error.category not in _HIDDEN:
                raise
            if error.category is not Category.GONE:
                return None
        if is_deletion:
            return self._server.subscriptions.versions([(event.key, event.version)]).get((event.key, event.version))
        try:
            return self._repository.vread(kind, identifier, event.version)
        except AppError as error:
            if error.category not in _HIDDEN:
                raise
            return None
