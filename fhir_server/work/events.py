"""From changes of resources to events of Subscriptions: what was written is looked at once, here and in no request.

One process at a time takes changes that nobody has looked at, in their order, and notes for whom they are events; both
happen in one transaction, under a lease. All Subscriptions on a type are asked together, by one look of the database.
Where no Subscription is, nothing is looked at. Source: Subscriptions R5 Backport 1.1.0, workflow.
"""

import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from fhir_server.access.principals import Principal
from fhir_server.model.criteria import Clause, Token
from fhir_server.model.query import Query
from fhir_server.model.subscription import Status, Subscription
from fhir_server.model.topics import CREATE, DELETE, UPDATE
from fhir_server.rest import watching
from fhir_server.rest.subscriptions import LIVE, asked_for, principal_of, query_of, set_status
from fhir_server.store import watchers
from fhir_server.store.documents import Resource
from fhir_server.store.lease import Lease, Leases
from fhir_server.store.matching import Selection
from fhir_server.store.subscriptions import Change, State
from imaging.errors import AppError, Category

log = logging.getLogger(__name__)

LEASE = "subscriptions"
LEASE_S = 30.0
MOST_VERSIONS = 100  # of a Subscription that are looked at to learn since when it has been asked for
MOST_EVENTS = 5_000  # that one transaction makes, about
LEAST = 10  # changes that are looked at together, however many Subscriptions there are
_PAGE = 500  # Subscriptions fetched at a time
_REFUSED = frozenset({Category.FORBIDDEN, Category.NOT_FOUND, Category.GONE})

Versions = Mapping[tuple[str, int], Resource]


@dataclass(frozen=True, slots=True)
class Listener:
    """A Subscription in which changes count, since when, and its search."""

    subscription: Subscription
    since: datetime
    query: Query


class Dispatcher:
    """Makes events of changes."""

    def __init__(self, server: watching.Notifying, leases: Leases) -> None:
        self._server, self._leases = server, leases
        self._store = server.subscriptions
        self._worker = str(uuid.uuid4())
        self._listeners: tuple[Listener, ...] = ()
        self._since: datetime | None = None  # when the first of them was asked for
        self._generation: int | None = None  # None: Subscriptions have to be read
        self._broken: set[tuple[str, int]] = set()  # versions of Subscriptions whose criteria cannot be looked up

    def concerns(self, resource_type: str) -> bool:
        """Say whether a change of a resource of this type is worth a round; take note of one of a Subscription."""
        if resource_type == "Subscription":
            self._generation = None
        if self._generation is None:
            return True
        return any(each.subscription.resource == resource_type for each in self._listeners)

    def round(self) -> float | None:
        """Pass on what there is; return in how many seconds it should be tried again, None where all is done."""
        if self._generation is None and not self._is_any():
            self._listeners, self._since, self._generation = (), None, self._store.generation()
            return None
        lease = self._leases.claim(LEASE, self._worker, LEASE_S)
        if lease is None:
            return LEASE_S  # who holds it does the work, unless it dies
        try:
            self._read()
            while changes := self._changes():
                self._read()  # again: what was announced before one of these changes counts for it
                self._pass_on(changes[: max(LEAST, MOST_EVENTS // max(1, len(self._listeners)))], lease)
        finally:
            self._leases.finish(lease)
        return None

    # ---- Subscriptions

    def _is_any(self) -> bool:
        return bool(self._store.states()) or bool(self._found(1)) or bool(self._server.watchers.all())

    def _found(self, most: int = _PAGE) -> list[Resource]:
        wanted = Clause("status", "token", "", tuple(Token(None, each.value) for each in LIVE))
        found: list[Resource] = []
        query: Query | None = Query("Subscription", (wanted,), count=most)
        while query is not None:
            page = self._server.own.search(query)
            found += page.matches
            query = replace(query, cursor=page.next_cursor) if page.next_cursor and most == _PAGE else None
        return found

    def _read(self) -> None:
        """Read Subscriptions, unless nothing changed since they were; begin and end their bookkeeping."""
        generation = self._store.generation()
        if generation == self._generation:
            return
        # Before they are read: what changes meanwhile counts as unread.
        self._generation = generation
        found = {each.id: each for each in self._found()}
        states = self._store.states()
        titles = [watching.as_subscription(each) for each in self._server.watchers.all()]
        for gone in states.keys() - found.keys() - {each.id for each, _ in titles}:
            self._store.end(gone)
        for watcher, since in titles:
            self._store.begin(watcher.id, since, is_pushed=False)
        listeners = [each for name in found if (each := self._listener(found[name], states.get(name))) is not None]
        listeners += [Listener(watcher, since, Query(watcher.resource, ())) for watcher, since in titles]
        states = self._store.states()
        self._listeners = tuple(replace(each, since=states[each.subscription.id].since) for each in listeners)
        self._since = min((each.since for each in self._listeners), default=None)

    def _listener(self, resource: Resource, state: State | None) -> Listener | None:
        try:
            subscription = asked_for(resource)
        except AppError as error:
            log.warning("a Subscription is not understood", extra={"subscription": resource.id, "reason": str(error)})
            return None
        if state is None or state.is_pushed is not subscription.is_pushed:
            self._store.begin(resource.id, self._asked_since(resource), is_pushed=subscription.is_pushed)
        if state is None or subscription.status is Status.REQUESTED or subscription.end:
            self._store.wake(resource.id)
        try:
            return Listener(subscription, resource.last_updated, query_of(self._server, subscription))
        except AppError as error:  # a search parameter is gone
            self._break(subscription, str(error))
            return None

    def _asked_since(self, resource: Resource) -> datetime:
        """Return when a Subscription came to be as it is: nobody may have looked since, and it was changed again."""
        since = resource.last_updated
        for each in self._server.own.history("Subscription", resource.id, count=MOST_VERSIONS):
            if each.deleted or each.json()["status"] == Status.OFF:
                break
            since = each.last_updated
        return since

    # ---- changes

    def _changes(self) -> list[Change]:
        return self._store.changes(self._since) if self._since else []

    def _pass_on(self, changes: Sequence[Change], lease: Lease) -> None:
        if any(each.type == "Subscription" for each in changes):
            self._generation = None
            self._read()
        events: dict[str, list[Change]] = {}
        for kind in {each.subscription.resource for each in self._listeners} & {each.type for each in changes}:
            listeners = [each for each in self._listeners if each.subscription.resource == kind]
            events |= self._events([each for each in changes if each.type == kind], listeners)
        self._store.pass_on(changes, events, self._leases.renewing(lease, LEASE_S))

    def _events(self, changes: Sequence[Change], listeners: Sequence[Listener]) -> dict[str, list[Change]]:
        """Return the changes of resources of one type that are events, by Subscription."""
        needs_before = any(each.subscription.topic and each.subscription.topic.needs_before for each in listeners)
        versions = self._store.versions(_wanted(changes, needs_before=needs_before))
        triggered = {each.subscription.id: _triggering(each, changes, versions) for each in listeners}
        selections = self._selections([each for each in listeners if triggered[each.subscription.id]])
        judged = {_judged(c) for name in selections for c in triggered[name]}
        met = self._met([versions[each] for each in sorted(judged) if each in versions], selections)
        found = {name: [c for c in triggered[name] if _judged(c) in met[name]] for name in met}
        return {name: mine for name, mine in found.items() if mine}

    def _met(self, versions: Sequence[Resource], selections: dict[str, Selection]) -> dict[str, set[tuple[str, int]]]:
        """Return which versions each Subscription selects; one whose criteria cannot be looked up holds up no other."""
        own = self._server.own
        try:
            return own.selected_by(versions, selections)
        except Exception:
            if len(selections) < 2:
                raise
        met: dict[str, set[tuple[str, int]]] = {}
        failed: dict[str, Exception] = {}
        for name, selection in selections.items():
            try:
                met |= own.selected_by(versions, {name: selection})
            except Exception as error:  # noqa: BLE001 -- whatever the database finds wrong with these criteria
                failed[name] = error
        if not met:  # it is not about the criteria
            raise next(iter(failed.values()))
        for each in self._listeners:
            if (failure := failed.get(each.subscription.id)) is not None:
                reason = str(failure) if isinstance(failure, AppError) else f"they fail ({type(failure).__name__})"
                self._break(each.subscription, f"the criteria cannot be looked up: {reason}")
        return met

    def _break(self, subscription: Subscription, reason: str) -> None:
        """Say that the criteria of a Subscription cannot be looked up; it is left out from now on."""
        self._broken.add((subscription.id, subscription.version))
        self._store.failed(subscription.id, reason)
        if subscription.status is not Status.ERROR:
            log.warning("a Subscription fails", extra={"subscription": subscription.id, "reason": reason})
            if subscription.id.startswith(watchers.PREFIX):
                return  # no resource tells of it
            try:
                set_status(self._server, subscription, Status.ERROR, reason)
            except AppError as error:
                if error.category not in (Category.PRECONDITION, *_REFUSED):
                    raise

    def _selections(self, listeners: Iterable[Listener]) -> dict[str, Selection]:
        """Return what has to be met, by Subscription; none for who may not read any of it now."""
        principals: dict[str, Principal | None] = {}
        selections: dict[str, Selection] = {}
        for each in listeners:
            who = f"{each.subscription.owner} {each.subscription.grant}"
            if who not in principals:
                principals[who] = self._principal(each.subscription)
            principal = principals[who]
            if principal is None or (each.subscription.id, each.subscription.version) in self._broken:
                continue
            try:
                selections[each.subscription.id] = self._server.repository_for(principal).selection(each.query)
            except AppError as error:
                if error.category in (Category.BUSY, Category.FAULT):
                    raise
                if error.category not in _REFUSED:
                    self._break(each.subscription, str(error))
        return selections

    def _principal(self, subscription: Subscription) -> Principal | None:
        try:
            return principal_of(self._server, subscription)
        except AppError as error:
            if error.category not in _REFUSED:
                raise
            return None


def _wanted(changes: Iterable[Change], *, needs_before: bool) -> list[tuple[str, int]]:
    """Return the versions that decide about changes."""
    names = []
    for each in changes:
        if each.method != "DELETE":
            names.append((each.key, each.version))
        if (each.method == "DELETE" or needs_before) and each.version > 1:
            names.append((each.key, each.version - 1))
    return names


def _judged(change: Change) -> tuple[str, int]:
    """Return the version whose content has to meet the criteria: of a deletion the last one that had content."""
    return (change.key, change.version - 1) if change.method == "DELETE" else (change.key, change.version)


def _triggering(listener: Listener, changes: Iterable[Change], versions: Versions) -> list[Change]:
    return [c for c in changes if c.at >= listener.since and _triggers(listener.subscription, c, versions)]


def _triggers(subscription: Subscription, change: Change, versions: Versions) -> bool:
    topic, is_deletion = subscription.topic, change.method == "DELETE"
    if topic is None:
        return not is_deletion  # FHIR R4 subscription: none "when a resource is deleted"
    now = versions.get((change.key, change.version))
    if is_deletion:
        return DELETE in topic.interactions
    if now is None or (CREATE if now.is_first else UPDATE) not in topic.interactions:
        return False
    if not topic.needs_before:
        return True
    before = None if now.is_first else versions.get((change.key, change.version - 1))
    return topic.trigger(before.json() if before and not before.deleted else None, now.json())
