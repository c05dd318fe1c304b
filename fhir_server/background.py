"""What works in the background of a server: Tasks, collection, notifications, forwarding of the audit record."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata

from fhir_server.app import Server, open_in_child
from fhir_server.store.lease import Leases
from fhir_server.store.task_queue import TaskQueue
from fhir_server.store.trail import Trail
from fhir_server.work import forwarding as auditing
from fhir_server.work import parties
from fhir_server.work.collection.collector import Collector
from fhir_server.work.crew import Crew
from fhir_server.work.events import Dispatcher
from fhir_server.work.forwarding import Forwarding
from fhir_server.work.handlers import Limits
from fhir_server.work.kinds import handlers
from fhir_server.work.notifying import Notifications, Notifier
from fhir_server.work.tasks import Surroundings, Worker
from fhir_server.work.upkeep import Upkeep


def task_crew(server: Server) -> Crew:
    """Return the workers of Tasks of one process, as many as set; each does one order at a time in a child process."""
    parties.announce(server.own, name="FHIR ImagingStudy server", version=metadata.version("fhir-imaging-server"))
    orders, transfers = server.config["work.task_workers"], server.config["work.transfer_workers"]
    workers = [_worker(server, is_transfer=False) for _ in range(orders)]
    return _crew(server, workers + [_worker(server, is_transfer=True) for _ in range(transfers)])


def transfer_crew(server: Server) -> Crew:
    """Return one worker of those Tasks that wait for other machines more than they work, for a command."""
    return _crew(server, [_worker(server, is_transfer=True)])


def _crew(server: Server, workers: Sequence[Worker]) -> Crew:
    config, queue = server.config, TaskQueue(server.database, server.clock)
    claims = {"claim_s": config["work.claim_s"], "most_claims": config["work.order_attempts"]}
    return Crew(workers, Upkeep(server.own, queue, server.clock, **claims), queue)


def _worker(server: Server, *, is_transfer: bool) -> Worker:
    config = server.config
    limits = Limits(
        cpu_s=config["work.order_cpu_s"],
        wall_s=config["work.order_wall_s"],
        memory_bytes=config["work.order_memory_mb"] << 20,
        attempts=config["work.order_attempts"],
    )
    every = {code: replace(handlers.get(code), limits=limits) for code in handlers}
    known = {code: handler for code, handler in every.items() if handler.is_transfer is is_transfer}
    leases, queue = Leases(server.database, server.clock), TaskQueue(server.database, server.clock)
    return Worker(Surroundings(server.own, leases, queue, server.clock), known, partial(open_in_child, config))


def collector(server: Server) -> Collector:
    """Return what looks at the sources that images are collected from."""
    return Collector(server, Leases(server.database, server.clock))


def notifications(server: Server) -> Notifications:
    """Return what makes events of changes and delivers them to the endpoints of Subscriptions."""
    leases = Leases(server.database, server.clock)
    threads = server.config["work.notifications"]
    return Notifications(Dispatcher(server, leases), Notifier(server, leases), server, threads=threads)


def forwarding(server: Server) -> Forwarding | None:
    """Return what forwards the audit record, None where no repository is set. Raises INVALID for its files."""
    trail, leases = Trail(server.database, server.clock), Leases(server.database, server.clock)
    found = auditing.collector(server.config)
    return Forwarding(trail, leases, found, server.config) if found else None
