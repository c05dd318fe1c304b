"""Handlers that tests order, and a worker of them: `python -m tests.support.orders URI DATABASE LEASE_S`."""

import os
import signal
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Any

from pymongo import MongoClient

from fhir_server.model.task import Json, Kind, Parameter, Progress
from fhir_server.store.filters import UNRESTRICTED
from fhir_server.store.lease import Leases
from fhir_server.store.repository import Repository
from fhir_server.store.task_queue import TaskQueue
from fhir_server.work.crew import Crew
from fhir_server.work.handlers import Done, Handler, Later, Limits, Report
from fhir_server.work.tasks import Pace, Surroundings, Worker
from fhir_server.work.upkeep import Upkeep
from imaging.errors import AppError, Category


def add(task: Json, context: Any, report: Report) -> list[Json]:
    total = sum(each["valueInteger"] for each in task["input"])
    return [{"type": {"text": "sum"}, "valueInteger": total}]


def sleep(task: Json, context: Any, report: Report) -> list[Json]:
    report(Progress(0, "sleeping"))
    time.sleep(task["input"][0]["valueInteger"])
    return [{"type": {"text": "sum"}, "valueInteger": 1}]


def quarter(task: Json, context: Any, report: Report) -> list[Json]:
    """Say at once that a quarter is done, and take the seconds of the input for it all."""
    report(Progress(25, "a quarter"))
    return sleep(task, context, lambda _: None)


def wait(task: Json, context: Any, report: Report) -> list[Json] | Later:
    """Wait until the moment of its input, in seconds of the epoch."""
    if time.time() < task["input"][0]["valueInteger"]:
        return Later(0.2, "a moment to come")
    return [{"type": {"text": "sum"}, "valueInteger": 1}]


def half(task: Json, context: Any, report: Report) -> Done:
    return Done([{"type": {"text": "sum"}, "valueInteger": 1}], failure="only one half was done")


def crash(task: Json, context: Any, report: Report) -> list[Json]:
    os.kill(os.getpid(), signal.SIGSEGV)
    return []


def spin(task: Json, context: Any, report: Report) -> list[Json]:
    while True:
        pass


def refuse(task: Json, context: Any, report: Report) -> list[Json]:
    raise AppError(Category.UNSUPPORTED, "not of this kind", where="input")


def grow(task: Json, context: Any, report: Report) -> list[Json]:
    bytearray(1 << 40)
    return []


NUMBERS = (Parameter("number", "valueInteger", most=10),)
SUM = (Parameter("sum", "valueInteger", least=1),)
FEW = Limits(attempts=2, wall_s=30)
RUNS = {
    "add": add,
    "sleep": sleep,
    "crash": crash,
    "refuse": refuse,
    "grow": grow,
    "quarter": quarter,
    "wait": wait,
    "half": half,
}
HANDLERS = {code: Handler(Kind(code, NUMBERS, SUM), run, FEW) for code, run in RUNS.items()}
HANDLERS["spin"] = Handler(Kind("spin"), spin, Limits(cpu_s=1, attempts=2))
HANDLERS["slow"] = Handler(Kind("slow", NUMBERS, SUM), sleep, Limits(wall_s=0.5))


def nothing() -> None:
    """Context of handlers that need none."""


def now() -> datetime:
    return datetime.now(UTC)


def crew(database: Any, lease_s: float = 5.0, workers: int = 1) -> Crew:
    own = Repository(database, UNRESTRICTED, clock=now, internal=True)
    around = Surroundings(own, Leases(database, now), TaskQueue(database, now), now)
    pace = Pace(lease_s=lease_s, first_s=0.1)
    upkeep = Upkeep(own, around.queue, now, claim_s=2, most_claims=2)
    return Crew([Worker(around, HANDLERS, nothing, pace) for _ in range(workers)], upkeep, around.queue)


def main(uri: str, name: str, lease_s: str) -> None:
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    with MongoClient[dict[str, Any]](uri, tz_aware=True) as client:
        crew(client[name], float(lease_s)).run(stopping)


if __name__ == "__main__":
    main(*sys.argv[1:])
