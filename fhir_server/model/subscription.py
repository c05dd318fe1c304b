"""What a Subscription asks for, as a value: of which resources, by which channel, in which form, until when.

Pure. Two kinds: those of R4, whose criteria are a search, and those of the topic-based backport of R5, whose criteria
name a topic. Sources: FHIR R4 subscription; Subscriptions R5 Backport 1.1.0, backport-subscription.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from fhir_server.model.dates import interval
from fhir_server.model.resources import RESOURCES
from fhir_server.model.rule import owner_of
from fhir_server.model.topics import TOPICS, VERSION, Topic
from imaging.errors import AppError, Category

Json = dict[str, Any]

GUIDE = "http://hl7.org/fhir/uv/subscriptions-backport"
FILTER = f"{GUIDE}/StructureDefinition/backport-filter-criteria"
CHANNEL_TYPE = f"{GUIDE}/StructureDefinition/backport-channel-type"
CONTENT = f"{GUIDE}/StructureDefinition/backport-payload-content"
HEARTBEAT = f"{GUIDE}/StructureDefinition/backport-heartbeat-period"
TIMEOUT = f"{GUIDE}/StructureDefinition/backport-timeout"
MAX_COUNT = f"{GUIDE}/StructureDefinition/backport-max-count"

JSON_TYPES = ("application/fhir+json", "application/json")
XML_TYPES = ("application/fhir+xml", "application/xml")

MOST_FILTERS = 20
MOST_HEADERS = 20
LONGEST_HEADER = 4_096  # characters
SHORTEST_HEARTBEAT_S = 5
LONGEST_TIMEOUT_S = 120
MOST_EVENTS = 100  # in one notification
NOTHING_IS_TOLD_OF = frozenset({"AuditEvent", "Subscription"})

_SEARCH = re.compile(r"([A-Z][A-Za-z]+)(?:\?(.*))?", re.DOTALL)
_HEADER = re.compile(
    r"([!#$%&'*+.^_`|~0-9A-Za-z\-]{1,128}):[ \t]*([\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)", re.ASCII
)
# They belong to the connection or to the message, and are this server's business.
_OUR_HEADERS = frozenset({
    "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect", "host",
    "keep-alive", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip


class Status(StrEnum):
    """How a Subscription is. Source: FHIR R4 value set subscription-status."""

    REQUESTED = "requested"
    ACTIVE = "active"
    ERROR = "error"
    OFF = "off"


class Way(StrEnum):
    """Channels by which notifications go out here."""

    REST_HOOK = "rest-hook"
    WEBSOCKET = "websocket"


class Content(StrEnum):
    """How much of a resource a notification of a topic holds. Source: backport-content-value-set."""

    EMPTY = "empty"
    ID_ONLY = "id-only"
    FULL = "full-resource"


@dataclass(frozen=True, slots=True)
class Channel:
    """How a Subscription is told of events.

    payload      media type, as it was written; "" for none, which only R4's Subscriptions may have
    heartbeat_s  0 for none
    timeout_s    of one attempt, 0 where the Subscription does not say
    most         events in one notification
    """

    way: Way
    endpoint: str
    payload: str
    headers: tuple[tuple[str, str], ...]
    heartbeat_s: int = 0
    timeout_s: int = 0
    most: int = MOST_EVENTS

    @property
    def is_xml(self) -> bool:
        """Whether XML is wanted."""
        return _media(self.payload) in XML_TYPES


@dataclass(frozen=True, slots=True)
class Subscription:
    """What is asked for.

    owner     reference of the subscriber, "" for nobody's
    topic     None for one of R4
    resource  type of the resources that are told of
    filters   searches of the type, `name=value&...`; all have to be met
    content   of a topic's notifications
    grant     what the token was given for with which it was stored, None where the contracts alone limit it
    """

    id: str
    version: int
    owner: str
    status: Status
    topic: Topic | None
    resource: str
    filters: tuple[str, ...]
    channel: Channel
    content: Content
    end: datetime | None
    grant: Mapping[str, Any] | None = None

    @property
    def is_pushed(self) -> bool:
        """Whether this server goes to the subscriber, which has not to come itself."""
        return self.channel.way is Way.REST_HOOK

    def is_over(self, now: datetime) -> bool:
        """Say whether the Subscription has ended."""
        return self.end is not None and self.end <= now


def subscription_of(resource: Mapping[str, Any]) -> Subscription:
    """Return what a Subscription asks for. Raises INVALID, saying where, for what cannot be done here."""
    topic, kind, filters = _criteria(resource)
    channel = resource["channel"]
    content = _content(channel, is_topic=topic is not None)
    meta = resource.get("meta", {})
    return Subscription(
        id=str(resource.get("id", "")),
        version=int(meta.get("versionId", 0)),
        owner=owner_of(resource),
        status=Status(resource["status"]),
        topic=topic,
        resource=kind,
        filters=filters,
        channel=_channel(channel, is_topic=topic is not None),
        content=content,
        end=interval(resource["end"]).low if "end" in resource else None,
    )


def _criteria(resource: Mapping[str, Any]) -> tuple[Topic | None, str, tuple[str, ...]]:
    criteria = str(resource.get("criteria", ""))
    filters = [str(each) for each in _extensions(resource.get("_criteria"), FILTER)]
    found = _SEARCH.fullmatch(criteria)
    if found is None:
        topic = _topic(criteria)
        if len(filters) > MOST_FILTERS:
            raise _invalid(f"{len(filters)} filters; at most {MOST_FILTERS}", "criteria")
        return topic, topic.resource, tuple(_of_topic(topic, each) for each in filters)
    kind, search = found[1], found[2] or ""
    if filters:
        raise _invalid("filters narrow a topic; criteria that are a search say everything themselves", "criteria")
    if kind not in RESOURCES:
        raise _invalid(f"this server keeps no {kind[:64]} resources", "criteria")
    if kind in NOTHING_IS_TOLD_OF:
        raise _invalid(f"nobody is notified of {kind} resources", "criteria")
    return None, kind, (search,) if search else ()


def _topic(canonical: str) -> Topic:
    url, bar, version = canonical.partition("|")
    found = TOPICS.get(url)
    if found is None or (bar and version != VERSION):
        known = ", ".join(TOPICS)
        message = f"criteria are a search, as in ImagingStudy?modality=CT, or one of the topics: {known}"
        raise _invalid(message, "criteria")
    return found


def _of_topic(topic: Topic, text: str) -> str:
    """Return the search of a filter: `Type?name=value`, or what comes after the question mark alone."""
    kind, mark, search = text.partition("?")
    if not mark:
        return text
    if kind != topic.resource:
        message = f"the topic is about {topic.resource}; a filter has the form {topic.resource}?name=value"
        raise _invalid(message, "criteria")
    return search


def _content(channel: Mapping[str, Any], *, is_topic: bool) -> Content:
    given = list(_extensions(channel.get("_payload"), CONTENT))
    if not is_topic:
        if given:
            raise _invalid("the content of a payload is chosen for topics only", "channel.payload")
        return Content.FULL
    codes = ", ".join(Content)
    if len(given) != 1 or given[0] not in set(Content):
        raise _invalid(f"one extension {CONTENT} says how much is told: {codes}", "channel.payload")
    return Content(given[0])


def _channel(channel: Mapping[str, Any], *, is_topic: bool) -> Channel:
    way, payload = channel["type"], str(channel.get("payload", ""))
    if way not in set(Way) or any(_extensions(channel.get("_type"), CHANNEL_TYPE)):
        raise _invalid(f"channels here are: {', '.join(Way)}", "channel.type")
    if (payload or is_topic) and _media(payload) not in (*JSON_TYPES, *XML_TYPES):
        raise _invalid(f"a payload is {JSON_TYPES[0]} or {XML_TYPES[0]}", "channel.payload")
    if way == Way.REST_HOOK and not channel.get("endpoint"):
        raise _invalid("a rest-hook has the address of an endpoint", "channel.endpoint")
    return Channel(
        Way(way),
        str(channel.get("endpoint", "")),
        payload,
        _headers(channel.get("header", [])),
        heartbeat_s=_number(channel, HEARTBEAT, (SHORTEST_HEARTBEAT_S, 10_000_000)),
        timeout_s=_number(channel, TIMEOUT, (1, LONGEST_TIMEOUT_S)),
        most=min(_number(channel, MAX_COUNT, (1, 1_000_000)) or MOST_EVENTS, MOST_EVENTS),
    )


def _headers(given: list[Any]) -> tuple[tuple[str, str], ...]:
    if len(given) > MOST_HEADERS:
        raise _invalid(f"{len(given)} headers; at most {MOST_HEADERS}", "channel.header")
    found = []
    for number, each in enumerate(given):
        where, match = f"channel.header[{number}]", _HEADER.fullmatch(str(each).strip())
        if match is None or len(str(each)) > LONGEST_HEADER:
            message = f"a header has the form Name: value, in ASCII, with at most {LONGEST_HEADER} characters"
            raise _invalid(message, where)
        if match[1].lower() in _OUR_HEADERS:
            raise _invalid(f"{match[1]} is set by this server", where)
        found.append((match[1], match[2]))
    if len({name.lower() for name, _ in found}) != len(found):
        raise _invalid("a header is given more than once", "channel.header")
    return tuple(found)


def _number(channel: Mapping[str, Any], url: str, bounds: tuple[int, int]) -> int:
    """Return the whole number of an extension, 0 where there is none."""
    given = list(_extensions(channel, url))
    if not given or given == [0]:
        return 0
    least, most = bounds
    if len(given) > 1 or not isinstance(given[0], int) or not least <= given[0] <= most:
        name = url.rpartition("/")[2]
        raise _invalid(f"{name} is given once, as a whole number from {least} to {most}", "channel.extension")
    return given[0]


def _extensions(element: Any, url: str) -> Iterator[Any]:
    """Yield the values of the extensions of an element, or of the primitive beside it, that have this url."""
    for each in element.get("extension", []) if isinstance(element, Mapping) else []:
        if each.get("url") == url:
            yield next((value for name, value in each.items() if name.startswith("value")), None)


def _media(payload: str) -> str:
    return payload.partition(";")[0].strip().lower()


def _invalid(message: str, where: str) -> AppError:
    return AppError(Category.INVALID, message, where=f"Subscription.{where}")
