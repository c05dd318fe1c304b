"""Whatever dies while a hard copy is printed, each order is printed once: the process that prints, or the printer."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fhir_server.access.contracts import Right
from fhir_server.delivery import value
from fhir_server.store.lease import Leases
from fhir_server.store.printers import LEASE_S
from fhir_server.store.task_queue import TaskQueue
from fhir_server.work.kinds import handlers
from fhir_server.work.tasks import Pace, Surroundings, Worker
from tests.api.test_hard_copy import order, study_input
from tests.support.doors import BASE_URL, Caller, Doors, new_study, opened
from tests.support.orders import now
from tests.support.presses import STEPS, open_backing, plan, printed
from tests.support.serving import wait_for

SETTINGS = {"web.base_url": BASE_URL, "archive.encode_threads": "1"}
DEVICE = value("device", "valueReference", {"reference": "Device/printer-film"})
Data = Any

pytestmark = pytest.mark.slow


@pytest.fixture
def doors(db: Data) -> Iterator[Doors]:
    with opened(db) as made:
        yield made


@pytest.fixture
def folder(doors: Doors, tmp_path: Path) -> Path:
    place = tmp_path / "films"
    place.mkdir()
    doors.server.printers.add("film", "fragile", {"folder": str(place), "dots_per_inch": 100})
    return place


@pytest.fixture
def orderer(doors: Doors) -> Caller:
    return doors.caller(Right.ORDER_HARD_COPY, Right.RECEIVE_IMAGES, name="orderer")


@contextmanager
def working(doors: Doors, uri: str, lease_s: float = 5.0) -> Iterator[None]:
    """Run a worker as in production, its orders in a child process, until the block ends."""
    db = doors.server.database
    around = Surroundings(doors.server.own, Leases(db, now), TaskQueue(db, now), now)
    known = {"hard-copy": handlers.get("hard-copy")}
    worker = Worker(around, known, partial(open_backing, uri, db.name, SETTINGS), Pace(lease_s=lease_s, first_s=0.1))
    stopping = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stopping,))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        worker.wake()
        thread.join(20)


def ordered(doors: Doors, orderer: Caller) -> str:
    study, files = new_study()
    doors.ingest(*files)
    response = orderer.post("/fhir/Task", order(study_input(study), DEVICE))
    assert response.status_code == 201, response.text
    return str(response.json["id"])


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("how", ["die", "fail"])
def test_an_order_is_printed_once_whatever_dies_at_any_step(
    doors: Doors, folder: Path, orderer: Caller, engine_uri: str, how: str, step: str
) -> None:
    task = ordered(doors, orderer)
    plan(folder, f"{how} {step}")

    with working(doors, engine_uri):
        assert wait_for(lambda: doors.server.own.read("Task", task).json()["status"] in ("completed", "failed"), 60)

    last = doors.server.own.read("Task", task).json()
    assert last["status"] == "completed", last
    assert printed(folder) == [task]
    versions = [each.json()["status"] for each in doors.server.own.history("Task", task)]
    assert versions.count("completed") == 1


def test_two_workers_print_each_of_many_orders_once(
    doors: Doors, folder: Path, orderer: Caller, engine_uri: str
) -> None:
    made = [ordered(doors, orderer) for _ in range(12)]

    with working(doors, engine_uri), working(doors, engine_uri):
        assert wait_for(lambda: len(printed(folder)) >= len(made), 60)
        statuses = lambda: {doors.server.own.read("Task", each).json()["status"] for each in made}  # noqa: E731
        assert wait_for(lambda: statuses() == {"completed"}, 30)

    assert printed(folder) == sorted(made)


def test_a_process_that_slept_while_another_took_over_saves_and_prints_nothing(
    doors: Doors, folder: Path, orderer: Caller
) -> None:
    task = ordered(doors, orderer)
    jobs = doors.server.printers.jobs

    with jobs.job(task) as sleeper:
        doors.clock.forward(seconds=LEASE_S + 1)
        with jobs.job(task) as other:
            other.keep("theirs")
            with pytest.raises(Exception, match="lease was lost"):
                sleeper.keep("mine")

    assert sleeper.ticket() == "theirs"
