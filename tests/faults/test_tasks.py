"""Orders on a real database: done once, whatever happens to workers."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.database import Database

from fhir_server.store.filters import UNRESTRICTED
from fhir_server.store.repository import Repository
from fhir_server.store.schema import ensure_schema
from fhir_server.work.handlers import TREATMENT, Treatment
from imaging.errors import Category
from tests.support import orders

Data = Database[dict[str, Any]]


@pytest.fixture
def own(db: Data) -> Repository:
    ensure_schema(db)
    return Repository(db, UNRESTRICTED, clock=orders.now, internal=True)


@contextmanager
def working(db: Data, lease_s: float = 5.0) -> Iterator[None]:
    stopping = threading.Event()
    thread = threading.Thread(target=orders.crew(db, lease_s).run, args=(stopping,))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(10)
        assert not thread.is_alive()


@contextmanager
def process(uri: str, db: Data, lease_s: float) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "tests.support.orders", uri, db.name, str(lease_s)]
    started = subprocess.Popen(command)
    try:
        yield started
    finally:
        started.send_signal(signal.SIGCONT)
        started.terminate()
        started.wait(15)


def order(own: Repository, code: str, *numbers: int, requester: str = "Organization/a", **more: Any) -> str:
    inputs = {"input": [{"type": {"text": "number"}, "valueInteger": number} for number in numbers]} if numbers else {}
    made = {"resourceType": "Task", "status": "requested", "intent": "order", "code": {"coding": [{"code": code}]}}
    return own.create({**made, **inputs, "requester": {"reference": requester}, **more}).id


def status(own: Repository, task: str) -> str:
    return str(own.read("Task", task).json()["status"])


def until(claim: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if claim():
            return True
        time.sleep(0.05)
    return False


def completions(own: Repository, task: str) -> int:
    """How many versions of a Task are completed: more than one would be a result that appeared twice."""
    return sum(each.json()["status"] == "completed" for each in own.history("Task", task))


def test_every_category_has_a_treatment() -> None:
    assert set(TREATMENT) == set(Category)
    assert TREATMENT[Category.BUSY] is Treatment.LATER


def test_two_workers_complete_each_of_many_orders_once(own: Repository, db: Data) -> None:
    made = [order(own, "add", number, 1) for number in range(200)]

    with working(db), working(db):
        assert until(lambda: all(status(own, task) == "completed" for task in made[-3:]), 25)
        assert until(lambda: all(status(own, task) == "completed" for task in made), 15)

    assert {completions(own, task) for task in made} == {1}
    assert [own.read("Task", task).json()["output"][0]["valueInteger"] for task in made[:3]] == [1, 2, 3]
    assert {own.read("Task", task).version for task in made} == {3}  # ordered, started, completed: none started twice


def test_a_worker_killed_in_the_middle_is_replaced(own: Repository, db: Data, engine_uri: str) -> None:
    with process(engine_uri, db, 2) as first:
        task = order(own, "sleep", 3)
        assert until(lambda: status(own, task) == "in-progress")
        os.kill(first.pid, signal.SIGKILL)

        with working(db, 2):
            assert until(lambda: status(own, task) == "completed")

    assert completions(own, task) == 1


def test_a_worker_that_slept_through_its_lease_publishes_nothing(own: Repository, db: Data, engine_uri: str) -> None:
    with process(engine_uri, db, 1) as first:
        task = order(own, "sleep", 1)
        assert until(lambda: status(own, task) == "in-progress")
        os.kill(first.pid, signal.SIGSTOP)

        with working(db, 1):
            assert until(lambda: status(own, task) == "completed")
            os.kill(first.pid, signal.SIGCONT)
            time.sleep(2)

    assert completions(own, task) == 1


def test_a_cancelled_order_stops_within_seconds(own: Repository, db: Data) -> None:
    with working(db):
        long = order(own, "sleep", 60)
        assert until(lambda: status(own, long) == "in-progress")
        own.update(own.read("Task", long).json() | {"status": "cancelled"})
        next_one = order(own, "add", 1)

        assert until(lambda: status(own, next_one) == "completed", 5)
    assert status(own, long) == "cancelled"


def test_a_stopped_worker_gives_its_order_back_and_the_next_one_finishes_it(own: Repository, db: Data) -> None:
    with working(db, 60):
        task = order(own, "sleep", 2)
        assert until(lambda: status(own, task) == "in-progress")

    with working(db, 60):
        assert until(lambda: status(own, task) == "completed", 10)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("crash", "died"),
        ("refuse", "not of this kind"),
        ("spin", "processor time"),
        ("grow", "memory"),
        ("slow", "longer than"),
    ],
)
def test_an_order_that_cannot_be_done_fails_alone_with_the_reason(
    own: Repository, db: Data, code: str, reason: str
) -> None:
    with working(db):
        poison = order(own, code, *([5] if code == "slow" else []))
        good = order(own, "add", 1)

        assert until(lambda: status(own, poison) == "failed")
        assert until(lambda: status(own, good) == "completed")
    assert reason in own.read("Task", poison).json()["statusReason"]["text"]


def test_the_pressing_come_first_and_requesters_take_turns(own: Repository, db: Data) -> None:
    many = [order(own, "add", 1, requester="Organization/a") for _ in range(3)]
    one = order(own, "add", 1, requester="Organization/b")
    pressing = order(own, "add", 1, priority="stat")
    order(own, "add", 1, owner={"reference": "Organization/c"})

    found = orders.TaskQueue(db, orders.now).look({"add"})

    assert [each.id for each in found.orders] == [pressing, many[0], one, many[1], many[2]]


def test_one_with_a_long_queue_keeps_nobody_waiting(own: Repository, db: Data) -> None:
    many = [order(own, "sleep", 1, requester="Organization/a") for _ in range(4)]
    one = order(own, "sleep", 1, requester="Organization/b")

    with working(db):
        assert until(lambda: status(own, one) == "completed")

    assert sum(status(own, each) != "requested" for each in many) <= 2


def test_progress_is_told_with_what_is_to_go_however_soon_it_was_reported(own: Repository, db: Data) -> None:
    with working(db):
        task = order(own, "quarter", 4)
        assert until(lambda: "extension" in own.read("Task", task).json())
        running = own.read("Task", task).json()
        assert until(lambda: status(own, task) == "completed")

    told = {each["url"]: each for each in running["extension"][0]["extension"]}
    assert (told["percent"]["valueUnsignedInt"], told["step"]["valueString"]) == (25, "a quarter")
    assert 2 <= told["estimate"]["valueDuration"]["value"] <= 9  # three times what the first quarter took
    assert running["businessStatus"] == {"text": "a quarter"}
    assert not {"businessStatus", "extension"} & own.read("Task", task).json().keys()


def test_the_period_of_an_order_is_kept(own: Repository, db: Data) -> None:
    early = order(own, "add", 1, restriction={"period": {"start": "2999-01-01"}})
    late = order(own, "add", 1, restriction={"period": {"end": "2001-01-01"}})

    with working(db):
        assert until(lambda: status(own, late) == "failed")
        time.sleep(0.5)
    assert status(own, early) == "requested"


def test_an_order_that_waits_for_something_outside_makes_one_version_of_it_however_long_it_waits(
    own: Repository, db: Data
) -> None:
    with working(db):
        task = order(own, "wait", int(time.time()) + 3)
        assert until(lambda: "businessStatus" in own.read("Task", task).json())
        waiting = own.read("Task", task).json()
        assert until(lambda: status(own, task) == "completed")

    done = own.read("Task", task)
    assert (waiting["status"], waiting["businessStatus"]["text"]) == ("in-progress", "a moment to come")
    assert "businessStatus" not in done.json()
    assert done.version == 4  # ordered, started, waiting, completed


def test_the_period_ends_an_order_that_waits_and_the_reason_tells_for_what(own: Repository, db: Data) -> None:
    end = datetime.now(UTC) + timedelta(seconds=2)
    with working(db):
        task = order(own, "wait", int(time.time()) + 60, restriction={"period": {"end": end.isoformat()}})
        assert until(lambda: status(own, task) == "failed")

    assert "a moment to come" in own.read("Task", task).json()["statusReason"]["text"]


def test_an_order_that_failed_in_part_tells_in_its_outputs_what_was_done(own: Repository, db: Data) -> None:
    with working(db):
        task = order(own, "half")
        assert until(lambda: status(own, task) == "failed")

    failed = own.read("Task", task).json()
    assert failed["statusReason"]["text"] == "only one half was done"
    assert failed["output"][0]["valueInteger"] == 1
