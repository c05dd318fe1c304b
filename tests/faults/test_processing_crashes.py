"""Crash before every single write of an order: the result appears exactly once, whoever dies when."""

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from fhir_server.access.contracts import Right
from fhir_server.delivery import value
from fhir_server.model.task import CODES, name_of
from fhir_server.store.filters import UNRESTRICTED
from fhir_server.store.repository import Repository
from fhir_server.store.schema import ensure_schema
from fhir_server.work.kinds import handlers
from tests.faults import processing
from tests.faults.storing import KILLED
from tests.faults.test_tasks import completions, order, status, until, working
from tests.support import orders
from tests.support.doors import Doors, opened
from tests.support.volumes import ct_files

Data = Database[dict[str, Any]]
MOST_WRITES = 60  # the loop ends at the first run that survives
STUDY = "1.2.3.4"


@pytest.fixture(scope="module")
def forking() -> ForkServerContext:
    """Start processes that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.processing", "imaging.algorithms", "imaging.derive"])
    return context


@pytest.fixture
def forgetful(mongo: MongoClient[dict[str, Any]]) -> Iterator[None]:
    """Have the engine give up the transactions of the dead after a second, in place of a minute."""
    name = "transactionLifetimeLimitSeconds"
    before = mongo.admin.command("getParameter", 1, **{name: 1})[name]
    mongo.admin.command("setParameter", 1, **{name: 1})
    yield
    mongo.admin.command("setParameter", 1, **{name: before})


@pytest.fixture
def doors(db: Data) -> Iterator[Doors]:
    with opened(db) as made:
        yield made


def test_a_crash_before_any_write_of_processing_leaves_one_result(
    doors: Doors, db: Data, engine_uri: str, forking: ForkServerContext, forgetful: None
) -> None:
    orderer = doors.caller(Right.ORDER_PROCESSING, Right.RECEIVE_IMAGES, name="orderer")
    doors.ingest(*ct_files())
    inputs = [value("algorithm", "valueString", "slab"), value("thickness_mm", "valueDecimal", 1000)]
    inputs.append(value("imaging-study", "valueReference", {"reference": f"ImagingStudy/{STUDY}"}))
    code = {"coding": [{"system": CODES, "code": "process"}]}
    task = {"resourceType": "Task", "status": "requested", "intent": "order", "code": code, "input": inputs}
    crashes, survived = 0, False

    while not survived:
        crashes += 1
        assert crashes < MOST_WRITES
        placed = orderer.post("/fhir/Task", task).json
        arguments = (engine_uri, db.name, placed, doors.clock.now, crashes)
        doomed = forking.Process(target=processing.process, args=arguments)
        doomed.start()
        doomed.join(60)
        assert doomed.exitcode in (0, KILLED)
        survived = doomed.exitcode == 0
        doors.clock.forward(minutes=2)  # leases of who died end

        done = handlers.get("process").run(placed, doors.server, lambda _: None)

        made = Counter(name_of(each) for each in done.outputs)
        assert (made["series"], made["provenance"]) == (1, 1)
        assert doors.server.archive.count() == 6 + crashes
        assert orderer.get(f"/fhir/Provenance?target=ImagingStudy/{STUDY}&_summary=count").json["total"] == crashes
        assert orderer.get(f"/fhir/ImagingStudy/{STUDY}").json["numberOfInstances"] == 6 + crashes
    assert crashes > 5


def test_a_worker_that_dies_before_any_write_of_its_own_is_replaced_and_the_end_is_one(
    db: Data, engine_uri: str, forking: ForkServerContext, forgetful: None
) -> None:
    ensure_schema(db)
    own = Repository(db, UNRESTRICTED, clock=orders.now, internal=True)
    crashes, survived = 0, False

    while not survived:
        crashes += 1
        assert crashes < MOST_WRITES
        task = order(own, "add", crashes, 1)
        doomed = forking.Process(target=processing.work, args=(engine_uri, db.name, task, crashes))
        doomed.start()
        doomed.join(60)
        assert doomed.exitcode in (0, KILLED)
        survived = doomed.exitcode == 0

        with working(db, 1.0):
            assert until(lambda task=task: status(own, task) == "completed")

        assert completions(own, task) == 1
        assert own.read("Task", task).json()["output"][0]["valueInteger"] == crashes + 1
    assert crashes > 3
