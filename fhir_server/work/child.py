"""A child process that runs handlers, so that a crash, a leak or a loop costs one order and nothing else.

It is started once and kept for many orders; what ends badly ends the process, and the next order gets a new one.
"""

import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

from fhir_server.model.task import Json, Progress
from fhir_server.store.failures import unavailable
from fhir_server.work.handlers import Done, Handler, Later, Limits, Run
from imaging.errors import AppError, Category

Opening = Callable[[], Any]  # makes the context of handlers, once in a child; a function of a module


class Child:
    """One process that does one order at a time."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._spawning = multiprocessing.get_context("spawn")
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._busy = False

    def begin(self, handler: Handler, task: Json) -> None:
        """Start an order; `listen` tells how it goes."""
        if self._busy or self._process is None or not self._process.is_alive():
            self._start()
        self._busy = True
        assert self._pipe is not None  # noqa: S101 -- a started child has one
        try:
            self._pipe.send((handler.run, handler.limits, task))
        except OSError:
            self._died()

    def listen(self, seconds: float) -> Progress | Done | Later | None:
        """Return progress, what was done (or is to be done later) at the end, None when nothing was said for so long.

        Raises what the handler raised; FAULT when the process died, TOO_LARGE when a limit ended it.
        """
        assert self._pipe is not None  # noqa: S101 -- `begin` was called
        assert self._process is not None  # noqa: S101
        ready = wait([self._pipe, self._process.sentinel], seconds)
        if not ready:
            return None
        try:
            said: Any = self._pipe.recv()  # raises EOFError when the process ended without a word
        except (EOFError, OSError):
            self._died()
        self._busy = isinstance(said, Progress)
        if isinstance(said, tuple):
            category, message, where = said
            raise AppError(category, message, where=where)
        outcome: Progress | Done | Later = said
        return outcome

    @property
    def is_busy(self) -> bool:
        """Say whether an order was begun and has not ended."""
        return self._busy

    def kill(self) -> int | None:
        """End the process at once, whatever it does; return its exit code. Without effect when there is none."""
        self._busy = False
        if self._process is None or self._pipe is None:
            return None
        self._process.kill()
        self._process.join()
        code = self._process.exitcode
        self._pipe.close()
        self._process.close()
        self._process = self._pipe = None
        return code

    def _start(self) -> None:
        self.kill()
        self._pipe, theirs = self._spawning.Pipe()
        self._process = self._spawning.Process(target=_serve, args=(theirs, self._opening), daemon=True)
        self._process.start()
        theirs.close()

    def _died(self) -> NoReturn:
        if self._process is not None:
            self._process.join(1.0)
        code = self.kill()
        if code == -signal.SIGXCPU:
            raise AppError(Category.TOO_LARGE, "the order needs more processor time than an order may use")
        raise AppError(Category.FAULT, f"the process that did the work died (exit code {code})")


def _serve(pipe: Connection, opening: Opening) -> None:
    """Do orders until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    context = opening()
    while True:
        try:
            run, limits, task = pipe.recv()
        except EOFError:
            return
        pipe.send(_done(run, limits, task, context, pipe.send))


def _done(run: Run, limits: Limits, task: Json, context: Any, report: Callable[[Progress], None]) -> Any:
    try:
        _limit(limits)
        done = run(task, context, report)
        return done if isinstance(done, Done | Later) else Done(done)
    except AppError as error:
        return error.category, error.message, error.where
    except MemoryError:
        return Category.TOO_LARGE, "the order needs more memory than an order may use", None
    except Exception as error:  # noqa: BLE001 -- a door; the words of the error may quote patient data
        if message := unavailable(error):
            return Category.BUSY, message, "mongodb"
        return Category.FAULT, f"the work ended by a fault ({type(error).__name__})", None


def _limit(limits: Limits) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime) + 1 + limits.cpu_s
    _set_limit(resource.RLIMIT_CPU, most)
    _set_limit(resource.RLIMIT_AS, limits.memory_bytes)


def _set_limit(kind: int, wanted: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
