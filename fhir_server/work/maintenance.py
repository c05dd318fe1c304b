"""The maintenance worker: brings studies up to date when they have become quiet, has rules look at them, and sweeps up.

Woken by a change stream, so an idle system does no work; a sweep now and then finds what nobody was told of. Any number
of workers may run: one projects a study at a time (`projector`), and sweeping is safe anywhere.
"""

import logging
import random
import threading
import time
from datetime import timedelta

from fhir_server import reindexing
from fhir_server.work.backing import Backing
from fhir_server.work.triggers import Triggers
from imaging.errors import AppError, Category

log = logging.getLogger(__name__)

AT_A_TIME = 500  # studies looked at in one round
PATIENCE_S = 15.0  # a study that never becomes quiet is projected this often
AWAIT_MS = 500  # how long the engine holds an idle question for changes; bounds how long a stop takes
REST_S = 10.0  # before rules look again when they could not
REOPEN_S = 1.0  # before a broken change stream is opened again


def run(server: Backing, stopping: threading.Event) -> None:
    """Work until `stopping` is set; return within about a second of that, after the study at hand."""
    worker = Maintenance(server)
    watcher = threading.Thread(target=worker.watch, args=(stopping,), name="maintenance-watch", daemon=True)
    watcher.start()
    log.info("maintenance starts")
    while not stopping.is_set():
        worker.wait(worker.round(stopping), stopping)
    watcher.join()
    log.info("maintenance ends")


class Maintenance:
    """One worker's rounds."""

    def __init__(self, server: Backing) -> None:
        self._server = server
        self._quiet_s: float = server.config["work.projection_quiet_s"]
        self._interval_s: float = server.config["work.sweep_interval_s"]
        self._triggers = Triggers(server)
        self._woken = threading.Event()
        self._waits_since: dict[str, float] = {}  # Study Instance UID -> monotonic s
        self._swept = -self._interval_s + time.monotonic()

    def round(self, stopping: threading.Event) -> float:
        """Do what is due; return after how many seconds something may be due again."""
        self._woken.clear()
        # The outermost door of this process: whatever went wrong (a failover, say), the next round tries again.
        try:
            waiting = self._project_due(stopping)
        except Exception:
            log.exception("studies could not be brought up to date; it is tried again")
            return REOPEN_S
        try:
            looking_s = self._triggers.round(stopping)
        except Exception:
            log.exception("rules could not look at studies; it is tried again")
            looking_s = REST_S
        try:
            if time.monotonic() - self._swept >= self._interval_s:
                self._finish_decisions()
                self._sweep()
        except Exception:
            log.exception("sweeping failed; it is tried again")
        next_s = max(self._quiet_s, 0.05) if waiting else self._interval_s
        return next_s if looking_s is None else min(next_s, looking_s)

    def wait(self, seconds: float, stopping: threading.Event) -> None:
        """Sleep until something changes, but not longer."""
        if self._woken.wait(seconds):
            # What has just been marked is not due before it was quiet for a while.
            stopping.wait(self._quiet_s)

    def watch(self, stopping: threading.Event) -> None:
        """Wake the rounds whenever a study is marked behind, until `stopping` is set."""
        while not stopping.is_set():
            try:
                with self._server.archive.watch(AWAIT_MS) as stream:
                    # Marks from before the stream was open are found by a round.
                    self._woken.set()
                    while not stopping.is_set():
                        if stream.try_next() is not None:
                            self._woken.set()
            except Exception:
                log.exception("the change stream broke; it is opened again")
                stopping.wait(REOPEN_S)
        self._woken.set()

    def _project_due(self, stopping: threading.Event) -> int:
        """Project what is quiet, or has waited long enough; return how many studies still wait."""
        archive, now = self._server.archive, time.monotonic()
        behind = archive.behind(AT_A_TIME)
        self._waits_since = {uid: self._waits_since.get(uid, now) for uid in behind}
        if not behind:
            return 0
        quiet = set(archive.behind(AT_A_TIME, marked_before=self._server.clock() - timedelta(seconds=self._quiet_s)))
        due = [uid for uid in behind if uid in quiet or now - self._waits_since[uid] > PATIENCE_S]
        # Several workers see the same list; in the same order they would wait for one another.
        random.shuffle(due)
        done = 0
        for study_uid in due:
            if stopping.is_set():
                break
            done += self._server.studies.attempt(study_uid)
            # Where more images came meanwhile, patience begins anew.
            self._waits_since[study_uid] = time.monotonic()
        return len(behind) - done

    def _finish_decisions(self) -> None:
        for decisions in (self._server.reconciliation, self._server.corrections):
            try:
                decisions.finish()
            except AppError as error:
                if error.category is not Category.BUSY:  # somebody is deciding, or died of it a moment ago
                    raise

    def _sweep(self) -> None:
        self._swept = time.monotonic()
        swept = self._server.archive.sweep()
        reindexing.place(self._server.own, self._server.search_parameters)
        self._server.exports.sweep(self._server.answers.is_kept)
        log.debug("swept", extra={"result": str(swept)})
