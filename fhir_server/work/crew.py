"""The workers of Tasks of one process: one change stream wakes them all, and tells them what others took.

An idle process asks the engine for news and does nothing else; under load news come in batches, since each worker of
each process hears of every change.
"""

import logging
import threading
import time
from collections.abc import Sequence

from fhir_server.store.task_queue import TaskQueue
from fhir_server.work.tasks import Worker
from fhir_server.work.upkeep import Upkeep

log = logging.getLogger(__name__)

AWAIT_MS = 500  # how long the engine holds an idle question for changes; bounds how long a stop takes
REOPEN_S = 1.0  # before a broken change stream is opened again
GATHER_S = 0.05  # after news, before the next are asked for
_LOCAL_S = 0.0003  # an answer that takes longer came from the engine, not from the last batch


class Crew:
    """Runs workers, each in a thread of its own, and the upkeep of Tasks that others do."""

    def __init__(self, workers: Sequence[Worker], upkeep: Upkeep, queue: TaskQueue) -> None:
        self._members: tuple[Worker | Upkeep, ...] = (*workers, upkeep)
        self._queue = queue

    def run(self, stopping: threading.Event) -> None:
        """Work until `stopping` is set; return within about a second of that."""
        threads = [
            threading.Thread(target=member.run, args=(stopping,), name=f"tasks-{number}")
            for number, member in enumerate(self._members)
        ]
        for thread in threads:
            thread.start()
        self._watch(stopping)
        for thread in threads:
            thread.join()

    def _watch(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                with self._queue.watch(AWAIT_MS) as change:
                    # What came before the stream was open is found by a look.
                    self._wake()
                    while not stopping.is_set():
                        asked = time.monotonic()
                        news = change()
                        if news is None:
                            continue
                        for member in self._members:
                            member.hear(news)
                        if time.monotonic() - asked > _LOCAL_S:
                            stopping.wait(GATHER_S)
            except Exception:
                log.exception("the change stream broke; it is opened again")
                stopping.wait(REOPEN_S)
        self._wake()

    def _wake(self) -> None:
        for member in self._members:
            member.wake()
