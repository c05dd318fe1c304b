"""Subscriptions served by real worker processes that die on the way, to endpoints that come and go: nothing is lost.

At least once, and in the order of the events of each Subscription.
"""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.test_delivery import RealClock
from tests.support.doors import Caller, Doors, opened
from tests.support.receivers import Answer, Came, Receiver, hangs, receiving, status
from tests.support.serving import wait_for
from tests.support.subscribing import (
    LOOPBACK,
    STATUS_CHANGED,
    SUBSCRIBER,
    Work,
    hears,
    kinds,
    notified,
    numbers,
    plain,
    stored,
    to_topic,
    worker,
)
from tests.support.working import kill

COUNT = 30
QUICK = {
    **LOOPBACK,
    "outbound__pause_s": "0.1",
    "outbound__longest_pause_s": "0.5",
    "subscriptions__timeout_s": "1",
    "subscriptions__attempts": "200",
    "archive__encode_threads": "1",
}


@pytest.fixture
def doors(db: Any) -> Iterator[Doors]:
    with opened(db, **QUICK) as made:
        # The workers of these tests are other processes: time goes on by itself.
        yield Doors(made.server, RealClock(), made.flask)


@pytest.fixture
def me(doors: Doors) -> Caller:
    return doors.caller(*SUBSCRIBER, name="me")


@pytest.fixture
def values(engine_uri: str, db: Any) -> dict[str, str]:
    return {"mongodb__uri": engine_uri, "mongodb__database": db.name, "web__base_url": "http://images.test", **QUICK}


def places(doors: Doors, count: int) -> list[str]:
    """Write resources as the server does; return their ids in order."""
    task = {"resourceType": "Task", "status": "requested", "intent": "order"}
    return [doors.server.own.create(task).id for _ in range(count)]


def first_seen(found: list[int]) -> list[int]:
    return list(dict.fromkeys(found))


def after(count: int, act: Any) -> Any:
    """Take what comes, and have something happen when so many have come."""
    lock = threading.Lock()

    def behave(receiver: Receiver, came: Came) -> Answer | str:
        with lock:
            if len(receiver.came) == count:
                act()
        return Answer(200)

    return behave


def test_a_worker_killed_while_an_endpoint_hears_loses_nothing_and_keeps_the_order(
    doors: Doors, me: Caller, values: dict[str, str]
) -> None:
    with receiving(hears) as receiver, worker(**values) as first:
        name = stored(me, to_topic(STATUS_CHANGED, receiver.address, max_count=1))["id"]
        receiver.behaviours[:] = [after(10, lambda: kill(first))]
        places(doors, COUNT)
        first.wait(60)
        assert len(set(numbers(notified(receiver)))) < COUNT

        with worker(**values):
            assert wait_for(lambda: len(set(numbers(notified(receiver)))) == COUNT, 60)

    heard = numbers(notified(receiver))
    assert first_seen(heard) == list(range(1, COUNT + 1))
    assert len(heard) <= COUNT + 1  # what was heard and not noted came again
    assert doors.server.subscriptions.state(name).number == COUNT


@pytest.mark.parametrize("moment", ["history", "events"])
def test_a_worker_killed_while_it_makes_events_makes_each_once(
    doors: Doors, me: Caller, values: dict[str, str], moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two writes of the transaction: none of it counts."""

    class _DiedError(BaseException):
        """As a power cut: nobody handles it."""

    work = Work(doors)
    store = doors.server.subscriptions
    with receiving(hears) as receiver:
        stored(me, plain("Task?", receiver.address))
        work.all()
        placed = places(doors, 3)
        broken = {"history": "_numbered", "events": "_events"}[moment]
        if moment == "history":
            monkeypatch.setattr(type(store), broken, _raising(_DiedError))
        else:
            monkeypatch.setattr(store, broken, _Broken(_DiedError))
        with pytest.raises(_DiedError):
            work.dispatch()
        monkeypatch.undo()

        work.all()

    assert len(receiver.came) == len(placed)


def _raising(error: type[BaseException]) -> Any:
    def act(*_: Any, **__: Any) -> Any:
        raise error

    return act


class _Broken:
    def __init__(self, error: type[BaseException]) -> None:
        self.insert_many = _raising(error)


def test_an_endpoint_that_is_down_for_a_while_hears_all_of_it_in_order(
    doors: Doors, me: Caller, values: dict[str, str]
) -> None:
    with worker(**values):
        with receiving(hears) as before:
            port = int(before.address.rpartition(":")[2])
            stored(me, plain("Task?", before.address, payload="application/fhir+json"))
            placed = places(doors, 3)
            assert wait_for(lambda: len(before.came) == 3, 30)
        placed += places(doors, 5)
        with receiving(status(503), hangs, status(429), hears, port=port) as again:
            placed += places(doors, 2)
            assert wait_for(lambda: len(again.came) >= 10, 60)

    heard = [json.loads(each.body)["id"] for each in (*before.came, *again.came)]
    assert list(dict.fromkeys(heard)) == placed


def test_two_workers_tell_each_event_once_and_in_order(doors: Doors, me: Caller, values: dict[str, str]) -> None:
    with receiving(hears) as one, receiving(hears) as other, worker(**values), worker(**values):
        for each in (one, other):
            stored(me, to_topic(STATUS_CHANGED, each.address, max_count=1))
        assert wait_for(lambda: one.came and other.came, 30)
        places(doors, COUNT)
        assert wait_for(lambda: len(one.came) > COUNT and len(other.came) > COUNT, 60)

    for each in (one, other):
        assert numbers(notified(each)) == list(range(1, COUNT + 1))
        assert kinds(notified(each))[0] == "handshake"
