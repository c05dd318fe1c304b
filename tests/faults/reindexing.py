"""A worker of `reindex` Tasks with a short lease: `python -m tests.faults.reindexing URI DATABASE LEASE_S`."""

import signal
import sys
import threading
from functools import partial
from typing import Any

from pymongo import MongoClient

from fhir_server import config
from fhir_server.app import Server, assemble
from fhir_server.reindexing import CODE
from fhir_server.store import parameters, reindex
from fhir_server.store.filters import UNRESTRICTED
from fhir_server.store.lease import Leases
from fhir_server.store.repository import Repository
from fhir_server.store.task_queue import TaskQueue
from fhir_server.work.crew import Crew
from fhir_server.work.kinds import handlers
from fhir_server.work.tasks import Pace, Surroundings, Worker
from fhir_server.work.upkeep import Upkeep
from tests.support.doors import BASE_URL
from tests.support.orders import now


def opening(uri: str, name: str) -> Server:
    """Return the server that the handler works in; processes hear of search parameters at once, batches are small."""
    parameters.SETTLE_S, reindex.BATCH = 0.0, 20
    database = MongoClient[dict[str, Any]](uri, tz_aware=True)[name]
    server = assemble(config.load({"web.base_url": BASE_URL}, environment={}), database)
    server.search_parameters._refresh_s = 0.0
    return server


def main(uri: str, name: str, lease_s: str) -> None:
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    with MongoClient[dict[str, Any]](uri, tz_aware=True) as client:
        database = client[name]
        own = Repository(database, UNRESTRICTED, clock=now, internal=True)
        around = Surroundings(own, Leases(database, now), TaskQueue(database, now), now)
        pace = Pace(lease_s=float(lease_s), first_s=0.1)
        worker = Worker(around, {CODE: handlers.get(CODE)}, partial(opening, uri, name), pace)
        Crew([worker], Upkeep(own, around.queue, now, claim_s=60, most_claims=5), around.queue).run(stopping)


if __name__ == "__main__":
    main(*sys.argv[1:])
