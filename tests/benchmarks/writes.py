"""What a create costs beside a bare transaction of two documents, and how long a resource takes to be validated."""

import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.read_concern import ReadConcern
from rich.console import Console
from rich.table import Table

from fhir_server.model import json
from fhir_server.model.validation import validate
from fhir_server.store.filters import UNRESTRICTED
from fhir_server.store.repository import Repository
from fhir_server.store.schema import ensure_schema
from fhir_server.store.writing import MAJORITY
from tests.benchmarks.searches import study
from tests.benchmarks.tasks import cpu_s, engine
from tests.support.engine import running_engine

Work = Callable[[], Any]
COUNT = 1_000
A_BLOCK = 40  # writes of one kind before the other's turn, so that what else happens hits both alike
CLIENTS = (1, 4)
RESOURCES: dict[str, dict[str, Any]] = {
    "ImagingStudy": study(77),
    "Patient": {
        "resourceType": "Patient",
        "identifier": [{"system": "http://hospital.test/mrn", "value": "123"}],
        "name": [{"family": "Family", "given": ["Given"]}],
        "gender": "female",
        "birthDate": "1970-01-01",
    },
}


def run(folder: Path, count: int = COUNT) -> None:
    """Create `count` resources of each type by each number of clients, in turn with as many bare transactions.

    The processor time is that of client and database, of a create and of the two kinds of bare transactions.
    """
    table = Table(title=f"{count:,} creates, and as many bare transactions of the same two documents, in turn")
    for column in ("resource, clients", "creates/s", "bare/s", "ratio", "with indexes/s", "ratio", *["CPU, ms"] * 3):
        table.add_column(column, justify="left" if "clients" in column else "right")
    with running_engine(folder) as uri, MongoClient[dict[str, Any]](uri, tz_aware=True) as client:
        for name, resource in RESOURCES.items():
            works = _works(client[f"bench-{name}"], resource)
            for clients in CLIENTS:
                table.add_row(f"{name}, {clients}", *_row(works, clients, max(count, A_BLOCK)))
    Console(width=110).print(table)
    large = study(77)
    large["series"] *= 6
    Console(width=110).print(
        f"An ImagingStudy of {len(json.dumps(large)):,} bytes is validated in {_ms(large):.2f} ms."
    )


def _works(database: Database[Any], resource: dict[str, Any]) -> list[Work]:
    """Return a create as the door does it (validated, indexed, told), and the bare writing of the same two documents.

    That is done into collections that have no index but that of the key, and into those of the repository.
    """
    ensure_schema(database)
    repository = Repository(database, UNRESTRICTED, clock=lambda: datetime.now(UTC))
    for name in ("current", "past"):
        database.create_collection(name)
    made = repository.create(resource)
    current = database["resources"].find_one({"_id": made.key})
    past = database["history"].find_one({"_id": f"{made.key}/1"})

    def create() -> None:
        validate(resource, resource["resourceType"])
        repository.create(resource)

    def insert(names: tuple[str, str], key: str, session: ClientSession) -> None:
        database[names[0]].insert_one({**current, "_id": key}, session=session)
        database[names[1]].insert_one({**past, "_id": key}, session=session)

    def bare(*names: str) -> None:
        work, snapshot = partial(insert, names, str(uuid.uuid4())), ReadConcern("snapshot")
        with database.client.start_session() as session:
            session.with_transaction(work, read_concern=snapshot, write_concern=MAJORITY)

    return [create, partial(bare, "current", "past"), partial(bare, "resources", "history")]


def _row(works: list[Work], clients: int, count: int) -> Iterator[str]:
    took_s, used_s = [0.0] * len(works), [0.0] * len(works)
    pids = engine()
    with ThreadPoolExecutor(clients) as pool:
        for work in works:
            _do(pool, work, A_BLOCK)  # the first ones make threads and connections
        for _ in range(count // A_BLOCK):
            for which, work in enumerate(works):
                begun, used = time.perf_counter(), time.process_time() + cpu_s(pids)
                _do(pool, work, A_BLOCK)
                took_s[which] += time.perf_counter() - begun
                used_s[which] += time.process_time() + cpu_s(pids) - used
    done = count // A_BLOCK * A_BLOCK
    yield f"{done / took_s[0]:.0f}"
    for each in took_s[1:]:
        yield from (f"{done / each:.0f}", f"{each / took_s[0]:.2f}")
    yield from (f"{each / done * 1e3:.2f}" for each in used_s)


def _do(pool: ThreadPoolExecutor, work: Work, count: int) -> None:
    for each in [pool.submit(work) for _ in range(count)]:
        each.result()


def _ms(resource: dict[str, Any]) -> float:
    """Return the median time of a validation."""
    times = []
    for _ in range(200):
        begun = time.perf_counter()
        validate(resource, resource["resourceType"])
        times.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(times)
