"""What the engine of Tasks costs: orders a second of one worker and of two, CPU of an order, and how soon it starts."""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from pymongo import MongoClient
from rich.console import Console
from rich.table import Table

from fhir_server.model.dates import interval
from fhir_server.model.task import Json
from fhir_server.store.filters import UNRESTRICTED
from fhir_server.store.repository import Repository
from fhir_server.store.schema import ensure_schema
from tests.support.engine import running_engine
from tests.support.orders import now

COUNT = 1_000
ROUNDS = 2  # one worker and two in turn, so that what else the machine does weighs on both
ALONE = 50  # orders placed one by one, for the time to their start
WITHIN_S = 600
A_TICK = 1 / os.sysconf("SC_CLK_TCK")  # s, unit of the CPU times in /proc


def run(folder: Path, count: int = COUNT, rounds: int = ROUNDS) -> None:
    """Have `count` tiny orders done by one worker and by two, and print rates, their ratio, CPU and time to start."""
    with running_engine(folder) as uri, MongoClient[Json](uri, tz_aware=True) as client:
        many = [_many(client, uri, workers, count, f"tasks{n}-{workers}") for n in range(rounds) for workers in (1, 2)]
        starts_ms = _starts_ms(client, uri, min(ALONE, count))
    one, two = (statistics.median(each["rate"] for each in many[first::2]) for first in (0, 1))
    table = Table(title=f"{count:,} orders of next to no work, median of {rounds} rounds")
    for column in ("what", "one worker", "two workers", "ratio"):
        table.add_column(column, justify="left" if column == "what" else "right")
    table.add_row("orders a second", f"{one:.0f}", f"{two:.0f}", f"{two / one:.2f}")
    for what, name in (("CPU of worker and child, ms an order", "cpu_ms"), ("CPU of mongod, ms an order", "mongod_ms")):
        each = [statistics.median(found[name] for found in many[first::2]) for first in (0, 1)]
        table.add_row(what, f"{each[0]:.1f}", f"{each[1]:.1f}", f"{each[1] / each[0]:.2f}")
    table.add_row("orders started more than once", *(f"{sum(m['twice'] for m in many[n::2]):.0f}" for n in (0, 1)))
    table.add_row("order to start, idle worker, median ms", f"{statistics.median(starts_ms):.0f}")
    Console(width=110).print(table)


def _many(client: MongoClient[Json], uri: str, workers: int, count: int, name: str) -> dict[str, float]:
    own = _opened(client, name)
    with ExitStack() as stack:
        running = [stack.enter_context(_worker(uri, name)) for _ in range(workers)]
        # Each sleeps once, so that all are there with their child processes.
        _await(own, [_order(own, "sleep", 2) for _ in running])
        with _held(running):
            made = [_order(own, "add", number, 1) for number in range(count)]
            before, mongod = cpu_s(running), cpu_s(engine())
        _await(own, made)
        used_s, mongod_s = cpu_s(running) - before, cpu_s(engine()) - mongod
    periods = [own.read("Task", each).json()["executionPeriod"] for each in made]
    took_s = (max(_at(each["end"]) for each in periods) - min(_at(each["start"]) for each in periods)).total_seconds()
    twice = sum(own.read("Task", each).version != 3 for each in made)  # ordered, started, completed
    return {
        "rate": count / took_s, "cpu_ms": used_s / count * 1e3, "mongod_ms": mongod_s / count * 1e3, "twice": twice,
    }  # fmt: skip


def _starts_ms(client: MongoClient[Json], uri: str, count: int) -> list[float]:
    """Return the time from the placing of an order to its start, for orders that come to an idle worker."""
    own = _opened(client, "tasks-alone")
    found = []
    with _worker(uri, "tasks-alone"):
        _await(own, [_order(own, "sleep", 1)])
        for number in range(count):
            placed, task = now(), _order(own, "add", number)
            _await(own, [task])
            start = _at(own.read("Task", task).json()["executionPeriod"]["start"])
            found.append((start - placed).total_seconds() * 1e3)
    return found


def _at(text: str) -> datetime:
    return interval(text).low


def _opened(client: MongoClient[Json], name: str) -> Repository:
    ensure_schema(client[name])
    return Repository(client[name], UNRESTRICTED, clock=now, internal=True)


def _order(own: Repository, code: str, *numbers: int) -> str:
    inputs = [{"type": {"text": "number"}, "valueInteger": number} for number in numbers]
    made = {"resourceType": "Task", "status": "requested", "intent": "order", "code": {"coding": [{"code": code}]}}
    return own.create({**made, "input": inputs, "requester": {"reference": "Organization/bench"}}).id


def _await(own: Repository, made: list[str]) -> None:
    """Return when all orders are completed, asking rarely, so that the question costs the workers nothing."""
    deadline = time.monotonic() + WITHIN_S
    for each in reversed(made):
        while own.read("Task", each).json()["status"] != "completed":
            if time.monotonic() > deadline:
                raise TimeoutError(f"orders are not done within {WITHIN_S} s")
            time.sleep(0.05)


@contextmanager
def _worker(uri: str, name: str) -> Iterator[int]:
    """Run a worker of the orders in a database, and give its process id."""
    command = [sys.executable, "-m", "tests.support.orders", uri, name, "60"]
    started = subprocess.Popen(command)
    try:
        yield started.pid
    finally:
        started.terminate()
        started.wait(30)


@contextmanager
def _held(pids: Sequence[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def cpu_s(pids: Sequence[int]) -> float:
    """Return the CPU time of processes and of all those that they started and that still run."""
    rows = dict(_processes())
    wanted: set[int] = set()
    further = set(pids)
    while further:
        wanted |= further
        further = {pid for pid, fields in rows.items() if int(fields[1]) in wanted} - wanted
    # Source: proc(5), fields 14 and 15 (utime, stime), counted behind the name of the program.
    return sum(int(rows[pid][11]) + int(rows[pid][12]) for pid in wanted & rows.keys()) * A_TICK


def engine() -> list[int]:
    """Return the process id of the mongod that this process started."""
    own = str(os.getpid())
    return [pid for pid, fields in _processes() if fields[1] == own and "mongod" in _command(pid)]


def _processes() -> Iterator[tuple[int, list[str]]]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            yield int(path.parent.name), path.read_text().rpartition(")")[2].split()


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]
    return ""
