"""Runs the command `fhir-imaging`, and a whole server by it, as a user would."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

COMMAND = [sys.executable, "-P", "-m", "fhir_server.cli"]
# Nothing of whoever runs the tests.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("FHIR_IMAGING_") and k != "MONGODB_URI"}


@dataclass(frozen=True)
class Served:
    """A running server."""

    process: "subprocess.Popen[str]"
    base_url: str
    data_dir: Path
    message: str
    log: Path

    def pid_of(self, part: str) -> int:
        """Process id of `web`, `worker` or `mongod`: the child of the supervisor whose command line has that word."""
        for pid, words in children(self.process.pid).items():
            if part in words or words[0].endswith(f"/{part}"):
                return pid
        return 0


def fhir_imaging(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run one command to its end."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=60)


@contextmanager
def serving(data_dir: Path, *arguments: object, **environment: str) -> Iterator[Served]:
    """Run `fhir-imaging serve` on a free port until the block ends."""
    command = [*COMMAND, "serve", "--port", "0", "--data-dir", data_dir, *arguments, "--set", "engine.cache_gb=0.25"]
    with tempfile.NamedTemporaryFile("w", suffix=".log") as log:
        process = subprocess.Popen(
            [str(word) for word in command],
            env=ENVIRONMENT | environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if "Ctrl-C" in line:
                    break
            message = "".join(lines)
            found = re.search(r"FHIR\s+(\S+)/fhir", message)
            assert found, Path(log.name).read_text()
            yield Served(process, found[1], data_dir, message, Path(log.name))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            process.stdout.close()


def answer(url: str, token: str = "", timeout_s: float = 10) -> int:
    """Status of a GET, 0 when there is no answer."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return response.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


def children(parent: int) -> dict[int, list[str]]:
    """Process id and command line of every living child of a process."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, ppid = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(ppid) == parent and state != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_bytes().decode().split("\0")
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_for(condition: Callable[[], object], timeout_s: float = 15.0) -> bool:
    """Wait until `condition` holds; False when it does not within the time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return bool(condition())
