"""Deliveries by a real worker whose process, receiver or database dies on the way: all arrives once, and is told."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fhir_server.app import Server, build
from fhir_server.doors import create_app
from fhir_server.engine import find_engine
from imaging.errors import AppError
from tests.support.deliveries import LOOPBACK, ORDERER, SERIES, order, outputs, placed, register
from tests.support.doors import Caller, Clock, Doors, opened
from tests.support.engine import settings
from tests.support.receivers import Answer, Came, Receiver, hangs, receiving, status, takes, takes_half
from tests.support.volumes import ct_files
from tests.support.working import kill, working

COUNT = 120  # three batches
QUICK = {**LOOPBACK, "outbound__pause_s": "0.2", "outbound__longest_pause_s": "1", "outbound__silence_s": "1"}


class RealClock(Clock):
    """The time as it is."""

    def __call__(self) -> Any:
        super().__init__()
        return self.now


@pytest.fixture
def doors(db: Any) -> Iterator[Doors]:
    with opened(db, **QUICK) as made:
        made.ingest(*ct_files(COUNT))
        yield made


@pytest.fixture
def orderer(doors: Doors) -> Caller:
    return doors.caller(*ORDERER, name="orderer")


@pytest.fixture
def values(engine_uri: str, db: Any) -> dict[str, str]:
    return {
        "mongodb__uri": engine_uri,
        "mongodb__database": db.name,
        "archive__encode_threads": "1",
        "work__task_workers": "1",
        **QUICK,
    }


def task_of(server: Server, task: dict[str, Any]) -> dict[str, Any]:
    return server.own.read("Task", task["id"]).json()


def ended(server: Server, task: dict[str, Any], seconds: float = 60) -> dict[str, Any]:
    """Wait for the end of a Task; return it."""
    deadline, found = time.monotonic() + seconds, task
    while time.monotonic() < deadline:
        with suppress(AppError):  # a test may take the database away for a while
            found = task_of(server, task)
        if found["status"] in ("completed", "failed", "cancelled"):
            return found
        time.sleep(0.1)
    raise AssertionError(f"not over in {seconds} s: {found['status']} {found.get('businessStatus')}")


def uids() -> set[str]:
    return {f"{SERIES}.{n + 1}" for n in range(COUNT)}


def assert_all_is_there_and_told(server: Server, receiver: Receiver, task: dict[str, Any]) -> None:
    assert task["status"] == "completed", task.get("statusReason")
    assert set(receiver.kept) == uids()
    assert outputs(task, "delivered") == [COUNT]
    completions = [each.json()["status"] for each in server.own.history("Task", task["id"], count=100)]
    assert completions.count("completed") == 1
    (reference,) = outputs(task, "provenance")
    told = server.own.read(*reference["reference"].split("/")).json()
    assert told["target"][1]["identifier"]["value"] == f"urn:oid:{SERIES}"
    assert told["meta"]["versionId"] == "1"


def once(act: Callable[[], None]) -> Callable[[Receiver, Came], Answer | str]:
    """Keep what comes, then have something happen before the answer goes out."""

    def behave(receiver: Receiver, came: Came) -> Answer | str:
        answer = takes(receiver, came)
        act()
        return answer

    return behave


def test_a_worker_killed_in_the_middle_costs_one_batch(doors: Doors, orderer: Caller, values: dict[str, str]) -> None:
    with receiving() as receiver, working(2, **values) as first:
        receiver.behaviours[:] = [takes, once(lambda: kill(first)), takes]
        task = placed(orderer, order(register(doors, receiver)))
        first.wait(60)
        assert task_of(doors.server, task)["status"] == "in-progress"

        with working(2, **values):
            done = ended(doors.server, task)

    assert_all_is_there_and_told(doors.server, receiver, done)
    assert len(receiver.deliveries) == COUNT + 50  # the batch that was not acknowledged came twice, no other


def test_two_workers_at_once_deliver_once(doors: Doors, orderer: Caller, values: dict[str, str]) -> None:
    with receiving() as receiver, working(5, **values), working(5, **values):
        endpoint = register(doors, receiver)
        tasks = [placed(orderer, order(endpoint)) for _ in range(4)]
        over = [ended(doors.server, task) for task in tasks]

    assert [each["status"] for each in over] == ["completed"] * 4
    assert len(receiver.deliveries) == 4 * COUNT


def test_a_receiver_with_many_a_weakness_has_everything_in_the_end(
    doors: Doors, orderer: Caller, values: dict[str, str]
) -> None:
    with receiving(status(503), takes_half(0xA700), hangs, status(429), takes) as receiver, working(5, **values):
        task = placed(orderer, order(register(doors, receiver)))
        done = ended(doors.server, task)

    assert_all_is_there_and_told(doors.server, receiver, done)
    reasons = [each.json().get("businessStatus", {}).get("text", "") for each in history(doors.server, task)]
    assert any("HTTP 503" in each for each in reasons)


def test_a_receiver_that_is_down_costs_no_versions_and_an_end_when_the_period_is_over(
    doors: Doors, orderer: Caller, values: dict[str, str]
) -> None:
    # Time enough for a worker to start on a machine that is busy.
    period = {"period": {"end": (datetime.now(UTC) + timedelta(seconds=15)).isoformat()}}
    with receiving(takes, status(503)) as receiver, working(5, **values):
        task = placed(orderer, order(register(doors, receiver), restriction=period))
        done = ended(doors.server, task)

    assert done["status"] == "failed"
    assert (
        "the time for it is over; the last try: the other server refuses the request (HTTP 503)"
        in (done["statusReason"]["text"])
    )
    assert outputs(done, "delivered") == [50]
    (reference,) = outputs(done, "provenance")
    told = doors.server.own.read(*reference["reference"].split("/")).json()
    assert {each["identifier"]["value"] for each in told["target"][1:]} == {f"urn:oid:{uid}" for uid in receiver.kept}
    assert len(receiver.came) > 3
    # ordered, started, perhaps progress, waiting, ended: not one more for each try
    assert len(history(doors.server, task)) <= 6


def test_a_cancelled_delivery_stops_and_what_began_is_in_the_audit_record(
    doors: Doors, orderer: Caller, values: dict[str, str]
) -> None:
    with receiving(takes, hangs) as receiver, working(5, **{**values, "outbound__silence_s": "60"}):
        task = placed(orderer, order(register(doors, receiver)))
        wait_until(lambda: len(receiver.came) == 2)
        current = orderer.get(f"/fhir/Task/{task['id']}")
        response = orderer.put(f"/fhir/Task/{task['id']}", current.json | {"status": "cancelled"})
        assert response.status_code == 200, response.text
        time.sleep(2)
        events = doors.server.database.resources.count_documents(
            {"type": "AuditEvent", "tok": {"$elemMatch": {"p": "type", "c": "110102"}}}
        )

    assert len(receiver.came) == 2
    assert events == 1
    assert task_of(doors.server, task)["status"] == "cancelled"


def test_a_database_that_is_killed_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    engine = find_engine(settings(tmp_path, mongodb__timeout_s="2"))
    config = settings(tmp_path, mongodb__timeout_s="2", **QUICK)

    def die() -> None:
        pid = engine.status().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        while engine.status().running:
            time.sleep(0.01)
        engine.restart()

    with closing(build(config, engine.start())) as server, receiving() as receiver:
        try:
            doors = Doors(server, RealClock(), create_app(server).test_client())
            doors.ingest(*ct_files(COUNT))
            orderer = doors.caller(*ORDERER, name="orderer")
            receiver.behaviours[:] = [takes, once(die), takes]
            given = {name.replace(".", "__"): str(config[name]) for name in ("data.dir", "mongodb.timeout_s")}
            with working(2, **given, **QUICK):
                task = placed(orderer, order(register(doors, receiver)))
                done = ended(server, task)
            assert_all_is_there_and_told(server, receiver, done)
        finally:
            engine.stop()


def history(server: Server, task: dict[str, Any]) -> list[Any]:
    return server.own.history("Task", task["id"], count=100)


def wait_until(claim: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.05)
