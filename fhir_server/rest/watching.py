"""Subscriptions to work items, and what their subscribers are told: PS3.18 11.10 to 11.13 over the Tasks.

A subscriber's AE title is subscribed to single work items, to the worklist, or to what matches a filter. Its events are
numbered with those of FHIR Subscriptions; whether one is told, and of which work item, is decided by what the
subscriber may read and is subscribed to when it is told. Source: PS3.4 CC.2.3, CC.2.4.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from fhir_server.access.audit import Access
from fhir_server.access.contracts import Right
from fhir_server.access.policy import require
from fhir_server.access.principals import Principal
from fhir_server.model import workitem
from fhir_server.model.query import Query
from fhir_server.model.subscription import Channel, Content, Status, Subscription, Way
from fhir_server.model.task import Json
from fhir_server.model.workitem_events import FILTERED_WORKLIST, WORKLIST, Kind, happened, report, state_report
from fhir_server.rest import subscriptions, worklist
from fhir_server.rest.worklist import Seen
from fhir_server.store.documents import Resource
from fhir_server.store.subscriptions import Change, Event, Subscriptions
from fhir_server.store.watchers import Everything, Watcher, Watchers, id_of
from imaging.dicomweb import Level, Matching, parse_query
from imaging.dicomweb.holds import holds
from imaging.dicomweb.json_model import Model
from imaging.errors import AppError, Category

LONGEST_TITLE = 16  # characters; PS3.5 6.2, AE
LONGEST_FILTER = 2_000  # characters
MOST_TOLD_FIRST = 2_000  # work items whose state is told when somebody subscribes to the worklist; the newest
PAGE = 500  # Tasks of these that are looked up together
AT_A_TIME = 50  # events that are looked at together
ASKED_FOR = "STATE"  # method of an event: the state is told to who subscribed, though nothing changed
_HIDDEN = frozenset({Category.NOT_FOUND, Category.GONE, Category.FORBIDDEN})
_WORKLISTS = (WORKLIST, FILTERED_WORKLIST)


class Notifying(subscriptions.Backing, Protocol):
    """What those who make events need of the server."""

    @property
    def watchers(self) -> Watchers: ...  # noqa: D102


class Backing(worklist.Backing, Protocol):
    """What those who subscribe to work items need of the server."""

    @property
    def subscriptions(self) -> Subscriptions: ...  # noqa: D102
    @property
    def watchers(self) -> Watchers: ...  # noqa: D102


def as_subscription(watcher: Watcher) -> tuple[Subscription, datetime]:
    """Return a watcher as what makes changes of Tasks count for it, and since when they do."""
    channel = Channel(Way.WEBSOCKET, "", "", ())
    asked = Subscription(
        id=watcher.id,
        version=watcher.revision,
        owner=watcher.owner,
        status=Status.ACTIVE,
        topic=None,
        resource="Task",
        filters=(),
        channel=channel,
        content=Content.EMPTY,
        end=None,
        grant=watcher.grant,
    )
    return asked, watcher.since


def title_of(written: str) -> str:
    """Return an AE title without the spaces around it, which mean nothing. Raises INVALID for what is none."""
    title = written.strip(" ")
    if not 0 < len(title) <= LONGEST_TITLE or not all(" " <= each <= "~" and each != "\\" for each in title):
        message = f"an AE title has 1 to {LONGEST_TITLE} printable ASCII characters and no backslash"
        raise AppError(Category.INVALID, message, where="AETitle")
    return title


class Watching:
    """What one principal's AE title is subscribed to; for one request."""

    def __init__(self, server: Backing, principal: Principal, title: str) -> None:
        """Open it. Raises INVALID for what is no title, FORBIDDEN for who may not receive anything."""
        self._server, self._principal, self._title = server, principal, title_of(title)
        self.id = id_of(principal.subscriber, self._title)
        require(principal, Right.RECEIVE_IMAGES, "be told of work items")
        self._repository = server.repository_for(principal)

    @property
    def title(self) -> str:
        """The title as it counts."""
        return self._title

    def subscribe(self, uid: str, filter: str, *, with_all: bool) -> None:
        """Subscribe to a work item or to a worklist.

        filter    what the work items of the filtered worklist have to match: attribute=value,...
        with_all  whether the state of all that the worklist has is told at once
        Raises NOT_FOUND for a work item that is not there, INVALID for a filter, TOO_LARGE for one title too many.
        """
        if uid == FILTERED_WORKLIST:
            _matching(filter)
        elif filter:
            message = f"only the worklist {FILTERED_WORKLIST} is filtered"
            raise AppError(Category.INVALID, message, where="filter")
        first = [] if uid in _WORKLISTS else [self._task(uid)]
        self._server.watchers.change(self.id, lambda found: self._subscribed(found, uid, filter))
        watcher = self._server.watchers.find(self.id)
        if watcher is None:
            return  # unsubscribed by somebody else meanwhile
        self._server.subscriptions.begin(self.id, watcher.since, is_pushed=False)
        self._server.subscriptions.announce()
        if uid in _WORKLISTS and with_all:
            first = list(self._all(watcher))
        if first:
            now = self._server.clock()
            asked = [Change(each.key, each.version, ASKED_FOR, now) for each in reversed(first)]
            self._server.subscriptions.note(self.id, asked)
        self._record(first)

    def unsubscribe(self, uid: str) -> None:
        """Unsubscribe from a work item, or from a worklist with all of its work items. Raises NOT_FOUND."""

        def change(found: Watcher | None) -> Watcher | None:
            watcher = self._known(found)
            if uid in _WORKLISTS:
                return None
            without = watcher.without | ({uid} if watcher.worklist else set())
            left = replace(watcher, named=watcher.named - {uid}, without=without)
            return None if left.is_idle else left

        self._server.watchers.change(self.id, change)
        self._server.subscriptions.announce()
        self._record(())

    def suspend(self, uid: str) -> None:
        """Take no more new work items in; those there are go on being told of. Raises INVALID, NOT_FOUND."""
        if uid not in _WORKLISTS:
            message = f"only a subscription to a worklist, {' or '.join(_WORKLISTS)}, is suspended"
            raise AppError(Category.INVALID, message, where="Workitem")

        def change(found: Watcher | None) -> Watcher | None:
            watcher = self._known(found)
            if watcher.worklist is None:
                raise AppError(Category.NOT_FOUND, "the worklist is not subscribed to", where="subscribers")
            until = watcher.worklist.until or self._server.clock()
            return replace(watcher, worklist=replace(watcher.worklist, until=until))

        self._server.watchers.change(self.id, change)
        self._record(())

    # ---- what these do

    def _subscribed(self, found: Watcher | None, uid: str, filter: str) -> Watcher:
        owner, grant = self._principal.subscriber, self._principal.lasting()
        if found is None:
            most = self._server.config["subscriptions.most"]
            if self._server.watchers.count(owner) >= most:
                message = f"you have {most} AE titles that are subscribed, which is all that there may be"
                raise AppError(Category.TOO_LARGE, message, where="subscribers")
            found = Watcher(owner, self._title, grant, self._server.clock())
        elif grant != found.grant:
            raise AppError(Category.FORBIDDEN, _OTHER_TOKEN, where="subscribers")
        if uid in _WORKLISTS:
            return replace(found, worklist=Everything(filter), without=frozenset())
        return replace(found, named=found.named | {uid}, without=found.without - {uid})

    def _known(self, found: Watcher | None) -> Watcher:
        if found is None:
            raise AppError(Category.NOT_FOUND, "this AE title is not subscribed to anything", where="subscribers")
        require_same(found, self._principal)
        return found

    def _task(self, uid: str) -> Resource:
        found = self._repository.read("Task", workitem.task_id_of(uid))
        if workitem.uid_of(found.id) != uid or workitem.state_of(found.json()) is None:
            raise AppError(Category.NOT_FOUND, "there is no such work item", where="workitem")
        return found

    def _all(self, watcher: Watcher) -> Iterator[Resource]:
        view = _View(self._server, self._principal, watcher)
        query: Query | None = Query("Task", (), count=PAGE, total="none")
        seen = 0
        while query is not None and seen < MOST_TOLD_FIRST:
            page = self._repository.search(query)
            seen += len(page.matches)
            yield from (each for each in page.matches if view.covers(each))
            query = replace(query, cursor=page.next_cursor) if page.next_cursor else None

    def _record(self, about: Sequence[Resource]) -> None:
        self._server.audit.record(self._principal, Access.UPDATE, resources=[each.key for each in about])


_OTHER_TOKEN = "it was subscribed with a token that was given for something else"  # noqa: S105 -- no secret


def require_same(watcher: Watcher, principal: Principal) -> None:
    """Raise FORBIDDEN where a token was given for less, or other, than what was subscribed with."""
    granted = principal.granted()
    if granted is not None and granted != watcher.grant:
        raise AppError(Category.FORBIDDEN, _OTHER_TOKEN, where="subscribers")


def is_told(server: Backing, task: Json) -> bool:
    """Say whether the performer of a work item is subscribed to it, so that a request reaches it."""
    owner = task.get("owner", {}).get("reference", "")
    for watcher in server.watchers.all():
        try:
            principal = server.principals.acting_for(watcher.owner, watcher.grant)
            if not server.actor_for(principal).is_meant_by(owner):
                continue
            seen = server.repository_for(principal).read("Task", task["id"])
        except AppError as error:
            if error.category not in _HIDDEN:
                raise
            continue
        if principal.may(Right.RECEIVE_IMAGES) and _View(server, principal, watcher).covers(seen):
            return True
    return False


# ---- what is told


@dataclass(frozen=True, slots=True)
class Batch:
    """Event Reports that go out together. `last` is the number of the event up to which all is settled then."""

    reports: Sequence[Model]
    last: int


class Reporter:
    """What a watcher is told, as its subscriber may read it now."""

    def __init__(self, server: Backing, watcher: Watcher) -> None:
        """Open it. Raises FORBIDDEN where the subscriber is suspended, or may not receive any more."""
        self._server, self._watcher = server, watcher
        self._principal = server.principals.acting_for(watcher.owner, watcher.grant)
        require(self._principal, Right.RECEIVE_IMAGES, "be told of work items")
        self._repository = server.repository_for(self._principal)
        self._view = _View(server, self._principal, watcher)

    def pending(self, after: int, until: int) -> Batch | None:
        """Return what is to be told next after an event, None where none are left that are kept."""
        store = self._server.subscriptions
        events = store.events(self._watcher.id, after + 1, until, AT_A_TIME)
        if not events:
            return None
        before = store.versions([(each.key, each.version - 1) for each in events])
        reports: list[Model] = []
        told: dict[str, None] = {}
        for each in events:
            made = list(self._reports(each, before.get((each.key, each.version - 1))))
            reports += made
            told |= {each.key: None} if made else {}
        if told:
            self._server.audit.record(self._principal, Access.NOTIFY, resources=list(told))
        return Batch(reports, events[-1].number)

    def _reports(self, event: Event, before: Resource | None) -> Iterator[Model]:
        task = self._readable(event)
        if task is None or not self._view.covers(task):
            return
        uid = str(workitem.uid_of(task.id))
        if event.method == ASKED_FOR:
            yield report(Kind.STATE, uid, event.number, state_report(task.json()))
            return
        was = None if before is None or before.deleted or task.is_first else before.json()
        for kind, content in happened(was, task.json()):
            yield report(kind, uid, event.number, content)

    def _readable(self, event: Event) -> Resource | None:
        """Return the version that an event is about where both it and the Task as it is now may be read."""
        identifier = event.key.partition("/")[2]
        try:
            self._repository.read("Task", identifier)
            return self._repository.vread("Task", identifier, event.version)
        except AppError as error:
            if error.category not in _HIDDEN:
                raise
            return None


class _View:
    """Which work items a watcher is subscribed to."""

    def __init__(self, server: Backing, principal: Principal, watcher: Watcher) -> None:
        self._watcher = watcher
        self._known = Seen(server.repository_for(principal), server.dicomweb_url)
        written = watcher.worklist.filter if watcher.worklist else ""
        self._matching = _matching(written) if written else None

    def covers(self, task: Resource) -> bool:
        """Say whether it is subscribed to a work item, which may be no more than a draft of a Task."""
        uid, watcher, content = workitem.uid_of(task.id), self._watcher, task.json()
        if uid is None or workitem.state_of(content) is None or uid in watcher.without:
            return False
        if uid in watcher.named:
            return True
        if watcher.worklist is None:
            return False
        until = watcher.worklist.until
        if until is not None and (task.created or task.last_updated) > until:
            return False
        return self._matching is None or self._matches(self._matching, content)

    def _matches(self, matching: Matching, task: Json) -> bool:
        model = workitem.dataset_of(task, self._known)
        return all(holds(match, model, fuzzy=matching.fuzzy) for match in matching.matches)


def _matching(filter: str) -> Matching:
    """Return what a filter asks for: attribute=value pairs with commas between, as PS3.18 11.10 has it."""
    if len(filter) > LONGEST_FILTER:
        raise AppError(Category.TOO_LARGE, f"a filter has {LONGEST_FILTER} characters at most", where="filter")
    pairs: list[tuple[str, str]] = []
    for part in filter.split(","):
        name, equals, value = part.partition("=")
        if equals:
            pairs.append((name.strip(), value))
        elif pairs:  # a list of values has commas as well
            pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]},{part}")
    matching = parse_query(Level.INSTANCES, pairs)
    if not matching.matches or matching.offset or matching.limit is not None:
        raise AppError(Category.INVALID, "attribute=value,... expected, of attributes of work items", where="filter")
    return matching
