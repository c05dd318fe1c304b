"""Processes that do orders and die before their n-th write to the database; started by the crash tests."""

import os
import threading
import time
from datetime import datetime
from typing import Any

from pymongo import MongoClient
from pymongo.monitoring import CommandListener, CommandStartedEvent

from fhir_server import config
from fhir_server.app import assemble
from fhir_server.store.filters import UNRESTRICTED
from fhir_server.store.repository import Repository
from fhir_server.work.kinds import handlers
from tests.faults.storing import KILLED, WRITES
from tests.support import orders
from tests.support.doors import BASE_URL


class Reaper(CommandListener):
    """Ends the process without any clean-up just before the n-th write that is sent after `arm`.

    Of a transaction only the commit counts: what is before it is undone with it.
    """

    def __init__(self) -> None:
        self._left = 0

    def arm(self, last: int) -> None:
        self._left = last

    def started(self, event: CommandStartedEvent) -> None:
        is_write = event.command_name in WRITES and "autocommit" not in event.command
        if self._left and (is_write or event.command_name == "commitTransaction"):
            self._left -= 1
            if self._left == 0:
                os._exit(KILLED)

    def succeeded(self, event: object) -> None:
        pass

    def failed(self, event: object) -> None:
        pass


def process(uri: str, name: str, task: dict[str, Any], now: datetime, last: int) -> None:
    """Do what a child process does for a Task of the kind `process`, at a moment."""
    reaper = Reaper()
    with MongoClient[dict[str, Any]](uri, tz_aware=True, event_listeners=[reaper]) as client:
        server = assemble(config.load({"web.base_url": BASE_URL}, environment={}), client[name], clock=lambda: now)
        reaper.arm(last)
        handlers.get("process").run(task, server, lambda _: None)
        reaper.arm(0)
        server.archive.close()


def work(uri: str, name: str, task: str, last: int) -> None:
    """Do what a worker does until an order is completed."""
    reaper, stopping = Reaper(), threading.Event()
    with MongoClient[dict[str, Any]](uri, tz_aware=True, event_listeners=[reaper]) as client:
        crew = orders.crew(client[name], lease_s=1.0)
        own = Repository(client[name], UNRESTRICTED, clock=orders.now, internal=True)
        reaper.arm(last)
        thread = threading.Thread(target=crew.run, args=(stopping,))
        thread.start()
        while own.read("Task", task).json()["status"] != "completed":
            time.sleep(0.05)
        time.sleep(0.2)  # the worker may have more to write about it
        reaper.arm(0)
        stopping.set()
        thread.join()
