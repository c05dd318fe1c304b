"""The one real mongod of a test run."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fhir_server import config
from fhir_server.engine import find_engine

PLENTY = 12 << 30  # bytes


def settings(data_dir: Path, **changes: str) -> config.Config:
    """Settings of a test server in `data_dir`; the environment of whoever runs the tests is not looked at.

    `changes` are setting names with `__` for the dot: `settings(path, web__port="0")`.
    """
    values = {"data.dir": str(data_dir), "engine.cache_gb": "0.25", "mongodb.timeout_s": "5"}
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    return config.load(values, environment={})


def folder_in_memory() -> Path | None:
    """Return a folder in memory, where writes need not wait for the disk; None where there is not plenty of it.

    Each process that runs tests has a database of its own, of about two gigabytes in the end.
    """
    folder, memory = Path("/dev/shm"), Path("/proc/meminfo")
    if not folder.is_dir() or not memory.is_file():
        return None
    told = dict(line.split(":", 1) for line in memory.read_text().splitlines())
    free = min(shutil.disk_usage(folder).free, int(told["MemAvailable"].split()[0]) << 10)
    return folder if free > PLENTY else None


@contextmanager
def running_engine(data_dir: Path) -> Iterator[str]:
    """Run the embedded engine in `data_dir` and give its URI."""
    engine = find_engine(settings(data_dir))
    uri = engine.start()
    try:
        yield uri
    finally:
        engine.stop()
