"""A worker of all kinds of Tasks in a process of its own: `python -m tests.support.working LEASE_S NAME=VALUE...`."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial

from fhir_server import config as settings
from fhir_server import engine
from fhir_server.app import build
from fhir_server.background import task_crew
from fhir_server.work import tasks


def main(lease_s: str, *pairs: str) -> None:
    config = settings.load(dict(pair.split("=", 1) for pair in pairs), environment={})
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    # A crew as the server has it, but in a hurry.
    tasks.Pace = partial(tasks.Pace, lease_s=float(lease_s), first_s=0.1, later_s=0.5)  # type: ignore[misc]
    with closing(build(config, engine.attach(config))) as server:
        task_crew(server).run(stopping)


@contextmanager
def running(module: str, *words: str, **values: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a module with words and settings, dots as double underscores, until the block ends."""
    given = [f"{name.replace('__', '.')}={value}" for name, value in values.items()]
    process = subprocess.Popen([sys.executable, "-m", module, *words, *given])
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(30)


def working(lease_s: float, **values: str) -> AbstractContextManager["subprocess.Popen[bytes]"]:
    """Run a worker with these settings until the block ends."""
    return running("tests.support.working", str(lease_s), **values)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """End a worker as a power cut would."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)


if __name__ == "__main__":
    main(*sys.argv[1:])
