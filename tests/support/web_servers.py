"""The web server as a process of its own, with a small application instead of ours: it needs no database."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fhir_server import config, logs
from fhir_server.web.server import WebServer, listen

ROOT = Path(__file__).parents[2]  # where `tests` is found from
DEFAULTS = {"web.workers": "1", "web.threads": "2", "log.level": "debug"}


@dataclass(frozen=True)
class Running:
    """A web server on this machine. `log` is what it wrote."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    def told(self, event: str) -> list[dict[str, Any]]:
        """The entries of the log with this text."""
        entries = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [each for each in entries if each["event"] == event]


@contextmanager
def web_server(log: Path, **settings: str) -> Iterator[Running]:
    """Run a web server until the block ends; settings are named with `_` for the dot."""
    given = DEFAULTS | {name.replace("_", ".", 1): value for name, value in settings.items()}
    words = [sys.executable, "-m", "tests.support.web_servers", *(f"{k}={v}" for k, v in given.items())]
    with listen("127.0.0.1", 0) as listener, log.open("wb") as written:
        port = listener.getsockname()[1]
        fd = listener.fileno()
        process = subprocess.Popen([*words, f"web.port={port}", str(fd)], pass_fds=(fd,), stderr=written, cwd=ROOT)
        try:
            yield Running(process, port, log)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with what came: the scheme and how many bytes; or with as many bytes as the query asks for."""
    taken = sum(map(len, iter(lambda: environ["wsgi.input"].read(1 << 16), b"")))
    wanted = int(environ.get("QUERY_STRING") or 0)
    told = json.dumps({"scheme": environ["wsgi.url_scheme"], "taken": taken, "pid": os.getpid()}).encode()
    start("200 OK", [("Content-Length", str(wanted or len(told)))])
    return (b"\0" * min(1 << 16, wanted - at) for at in range(0, wanted, 1 << 16)) if wanted else [told]


if __name__ == "__main__":
    *pairs, fd = sys.argv[1:]
    found = config.load(dict(pair.split("=", 1) for pair in pairs), environment={})
    logs.configure(process="web", level=found["log.level"])
    inherited = socket.socket(fileno=int(fd))
    WebServer(found, lambda _: application, fd=inherited.fileno()).run()
