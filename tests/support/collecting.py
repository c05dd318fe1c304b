"""A worker that collects, a process with short leases: `python -m tests.support.collecting URI DATABASE NETWORKS`."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from fhir_server import app, config
from fhir_server.background import collector
from fhir_server.store.lease import Leases
from fhir_server.store.task_queue import TaskQueue
from fhir_server.work.collection.collector import CODE
from fhir_server.work.crew import Crew
from fhir_server.work.kinds import handlers
from fhir_server.work.tasks import Pace, Surroundings, Worker
from fhir_server.work.upkeep import Upkeep

LEASE_S = 2.0


@contextmanager
def collecting(uri: str, database: str, networks: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a worker until the block ends."""
    started = subprocess.Popen([sys.executable, "-m", "tests.support.collecting", uri, database, networks])
    try:
        yield started
    finally:
        started.terminate()
        started.wait(20)


def main(uri: str, database: str, networks: str) -> None:
    """Work until SIGTERM."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    given = {"mongodb.uri": uri, "mongodb.database": database, "outbound.private_networks": networks}
    settings = config.load({**given, "log.level": "error", "outbound.silence_s": "5"}, environment={})
    server = app.build(settings, uri)
    around = Surroundings(
        server.own, Leases(server.database, server.clock), TaskQueue(server.database, server.clock), server.clock
    )
    worker = Worker(
        around, {CODE: handlers.get(CODE)}, partial(app.open_in_child, settings), Pace(lease_s=LEASE_S, first_s=0.1)
    )
    upkeep = Upkeep(server.own, around.queue, server.clock, claim_s=60.0, most_claims=5)
    runs = (collector(server).run, Crew([worker], upkeep, around.queue).run)
    threads = [threading.Thread(target=each, args=(stopping,)) for each in runs]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    server.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
