"""Notifications of topic-based Subscriptions as Bundles, put together from stored bytes. Pure.

The first entry is a Parameters resource that says how the Subscription is; R4 has no SubscriptionStatus.
Source: Subscriptions R5 Backport 1.1.0, notifications, payloads, backport-subscription-status-r4.
"""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from fhir_server.model import json
from fhir_server.model.dates import to_instant
from fhir_server.model.subscription import GUIDE, Content, Status, Subscription
from fhir_server.rest import bundles
from fhir_server.store.documents import Resource
from fhir_server.store.subscriptions import Event, State

Json = dict[str, Any]

STATUS_PROFILE = f"{GUIDE}/StructureDefinition/backport-subscription-status-r4"
NOTIFICATION_PROFILE = f"{GUIDE}/StructureDefinition/backport-subscription-notification-r4"


class Kind(StrEnum):
    """What a notification is for. Source: value set subscription-notification-type."""

    HANDSHAKE = "handshake"
    HEARTBEAT = "heartbeat"
    EVENT = "event-notification"
    QUERY_STATUS = "query-status"
    QUERY_EVENT = "query-event"


@dataclass(frozen=True, slots=True)
class Told:
    """An event as it may be told: the version that it is about, None where the subscriber may not read it."""

    event: Event
    version: Resource | None


def notification(
    kind: Kind,
    subscription: Subscription,
    state: State,
    told: Sequence[Told],
    *,
    content: Content,
    fhir_url: str,
    now: datetime,
) -> bytes:
    """Return a notification Bundle with these events."""
    head = {
        "resourceType": "Bundle",
        "id": str(uuid.uuid4()),
        "meta": {"profile": [NOTIFICATION_PROFILE]},
        "type": "history",
        "timestamp": to_instant(now),
    }
    said = status(kind, subscription, state, fhir_url=fhir_url, told=told, content=content)
    first = {
        "fullUrl": f"urn:uuid:{said['id']}",
        "resource": said,
        "request": {"method": "GET", "url": f"{_address(subscription, fhir_url)}/$status"},
        "response": {"status": "200"},
    }
    entries = [json.dumps(first)]
    if content is Content.FULL:
        entries += _entries(fhir_url, (each.version for each in told))
    return b"".join([json.dumps(head)[:-1], b',"entry":[', b",".join(entries), b"]}"])


def status(
    kind: Kind,
    subscription: Subscription,
    state: State,
    *,
    fhir_url: str,
    told: Sequence[Told] = (),
    content: Content = Content.ID_ONLY,
) -> Json:
    """Return how a Subscription is, with these events."""
    said: list[Json] = [_parameter("subscription", "Reference", {"reference": _address(subscription, fhir_url)})]
    if subscription.topic and content is not Content.EMPTY:
        said.append(_parameter("topic", "Canonical", subscription.topic.url))
    said.append(_parameter("status", "Code", subscription.status.value))
    said.append(_parameter("type", "Code", kind.value))
    said.append(_parameter("events-since-subscription-start", "String", str(state.number)))
    said += [{"name": "notification-event", "part": _event(each, content, fhir_url)} for each in told]
    if subscription.status is Status.ERROR or state.reason:
        reason = state.reason or "notifications could not be delivered"
        said.append(_parameter("error", "CodeableConcept", {"text": reason}))
    return {
        "resourceType": "Parameters",
        "id": str(uuid.uuid4()),
        "meta": {"profile": [STATUS_PROFILE]},
        "parameter": said,
    }


def statuses(found: Iterable[tuple[Subscription, State]], *, fhir_url: str, now: datetime) -> bytes:
    """Return the answer to `$status`: a searchset with how each of these Subscriptions is."""
    entries = []
    for subscription, state in found:
        said = status(Kind.QUERY_STATUS, subscription, state, fhir_url=fhir_url)
        entries.append({"fullUrl": f"urn:uuid:{said['id']}", "resource": said, "search": {"mode": "match"}})
    bundle = {
        "resourceType": "Bundle",
        "id": str(uuid.uuid4()),
        "meta": {"lastUpdated": to_instant(now)},
        "type": "searchset",
        "total": len(entries),
        **({"entry": entries} if entries else {}),
    }
    return json.dumps(bundle)


def _event(told: Told, content: Content, fhir_url: str) -> list[Json]:
    parts = [
        _parameter("event-number", "String", str(told.event.number)),
        _parameter("timestamp", "Instant", to_instant(told.event.at)),
    ]
    if content is not Content.EMPTY and told.version is not None:
        parts.append(_parameter("focus", "Reference", {"reference": f"{fhir_url}/{told.event.key}"}))
    return parts


def _entries(fhir_url: str, versions: Iterable[Resource | None]) -> Iterable[bytes]:
    # A version that two events are about stands once: fullUrl and version together are unique in a Bundle (bdl-7).
    distinct = {(each.key, each.version): each for each in versions if each is not None}
    return (bundles.version_entry(fhir_url, each) for each in distinct.values())


def _address(subscription: Subscription, fhir_url: str) -> str:
    return f"{fhir_url}/Subscription/{subscription.id}"


def _parameter(name: str, kind: str, value: Any) -> Json:
    return {"name": name, f"value{kind}": value}
