"""Subscriptions as clients store them, and what a worker does for them, step by step in the process of the test.

`python -m tests.support.subscribing NAME=VALUE...` is what a worker process does for them, in a hurry.
"""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import websocket

from fhir_server import config as settings
from fhir_server import engine
from fhir_server.access.contracts import Right
from fhir_server.app import build
from fhir_server.background import notifications
from fhir_server.store.lease import Leases
from fhir_server.work import events as making
from fhir_server.work import notifying as telling
from fhir_server.work.events import Dispatcher
from fhir_server.work.notifying import Notifier
from tests.support.doors import Caller, Doors
from tests.support.receivers import Came, Receiver, status
from tests.support.working import running

LOOPBACK = {"subscriptions__private_networks": "127.0.0.0/8", "outbound__silence_s": "2"}
SUBSCRIBER = (Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES)
BACKPORT = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/"
TOPIC = "urn:fhir-imaging:topic:"
CHANGED, NEW = f"{TOPIC}imaging-study-changed", f"{TOPIC}imaging-study-new"
STATUS_CHANGED, RESULT_READY = f"{TOPIC}task-status-changed", f"{TOPIC}result-ready"
EMERGENCY = f"{TOPIC}emergency-access"
hears = status(200)


def plain(criteria: str, endpoint: str, *, payload: str = "", way: str = "rest-hook", **more: Any) -> dict[str, Any]:
    """A Subscription of R4, whose criteria are a search."""
    channel = {"type": way, **({"endpoint": endpoint} if endpoint else {}), **({"payload": payload} if payload else {})}
    return {
        "resourceType": "Subscription",
        "status": "requested",
        "reason": "a test",
        "criteria": criteria,
        "channel": channel,
        **more,
    }


def to_topic(
    topic: str,
    endpoint: str = "",
    *filters: str,
    content: str = "id-only",
    payload: str = "application/fhir+json",
    way: str = "rest-hook",
    **numbers: int,
) -> dict[str, Any]:
    """A Subscription of the backport; `numbers` are `heartbeat_period`, `timeout` and `max_count`."""
    made = plain(topic, endpoint, payload=payload, way=way)
    kinds = {"max-count": "valuePositiveInt"}
    extensions = [
        {"url": f"{BACKPORT}backport-{name}", kinds.get(name, "valueUnsignedInt"): number}
        for name, number in ((name.replace("_", "-"), number) for name, number in numbers.items())
    ]
    if extensions:
        made["channel"]["extension"] = extensions
    made["channel"]["_payload"] = {"extension": [{"url": f"{BACKPORT}backport-payload-content", "valueCode": content}]}
    if filters:
        url = f"{BACKPORT}backport-filter-criteria"
        made["_criteria"] = {"extension": [{"url": url, "valueString": each} for each in filters]}
    return made


def stored(caller: Caller, subscription: dict[str, Any]) -> dict[str, Any]:
    response = caller.post("/fhir/Subscription", subscription)
    assert response.status_code == 201, response.text
    return dict(response.json)


def refused(caller: Caller, subscription: dict[str, Any]) -> str:
    """What is told of a Subscription that is not taken."""
    response = caller.post("/fhir/Subscription", subscription)
    assert 400 <= response.status_code < 500, response.text
    return str(response.json["issue"][0]["diagnostics"])


@contextmanager
def ending(line: websocket.WebSocket) -> Iterator[websocket.WebSocket]:
    """Have the connection closed at the end, also where the server closed it before."""
    try:
        yield line
    finally:
        line.shutdown()


class Work:
    """What one worker does."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors
        leases = Leases(doors.server.database, doors.clock)
        self._dispatcher, self._notifier = Dispatcher(doors.server, leases), Notifier(doors.server, leases)

    def dispatch(self) -> None:
        """Make events of changes."""
        self._doors.clock.forward(milliseconds=1)
        self._dispatcher.concerns("Subscription")
        assert self._dispatcher.round() is None

    def deliver(self) -> None:
        """Do what is due now."""
        self._doors.clock.forward(milliseconds=1)
        for name in self._doors.server.subscriptions.due(self._doors.clock(), 100):
            assert self._notifier.look(name)

    def all(self) -> None:
        """Do everything until nothing is to be done."""
        for _ in range(3):
            self.dispatch()
            self.deliver()


def notified(receiver: Receiver) -> list[dict[str, Any]]:
    """The notification Bundles that came."""
    return [json.loads(each.body) for each in receiver.came]


def said(bundle: dict[str, Any], name: str) -> Any:
    """The value of a parameter of the status that a notification begins with, None without it."""
    found = [each for each in bundle["entry"][0]["resource"]["parameter"] if each["name"] == name]
    return next((value for each in found for key, value in each.items() if key.startswith("value")), None)


def events(bundle: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each event in a notification the values of its parts, by name."""
    found = [each for each in bundle["entry"][0]["resource"]["parameter"] if each["name"] == "notification-event"]
    return [
        {part["name"]: next(value for key, value in part.items() if key.startswith("value")) for part in each["part"]}
        for each in found
    ]


def numbers(bundles: Sequence[dict[str, Any]]) -> list[int]:
    """The numbers of all events, in the order in which they came."""
    return [int(each["event-number"]) for bundle in bundles for each in events(bundle)]


def kinds(bundles: Sequence[dict[str, Any]]) -> list[str]:
    return [said(each, "type") for each in bundles]


def bodies(came: Sequence[Came]) -> list[tuple[str, str]]:
    return [(each.method, each.path) for each in came]


def main(*pairs: str) -> None:
    config = settings.load(dict(pair.split("=", 1) for pair in pairs), environment={})
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    making.LEASE_S, telling.MARGIN_S = 2.0, 1.0
    with closing(build(config, engine.attach(config))) as server:
        notifications(server).run(stopping)


def worker(**values: str) -> "AbstractContextManager[subprocess.Popen[bytes]]":
    """Run a worker for Subscriptions with these settings, dots as double underscores, until the block ends."""
    return running("tests.support.subscribing", **values)


if __name__ == "__main__":
    main(*sys.argv[1:])
