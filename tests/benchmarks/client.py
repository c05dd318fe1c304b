"""One plain DICOMweb client for every server that is measured, so that only the servers differ."""

import http.client
import multiprocessing
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

BOUNDARY = "benchmark-boundary-3f1c"
INSTANCES_A_REQUEST = 50


@dataclass(frozen=True)
class Target:
    """A DICOMweb server: where it listens, what to say to be let in, and whom to believe over TLS (None: no TLS)."""

    name: str
    port: int
    base: str
    token: str = ""
    tls: ssl.SSLContext | None = None

    def headers(self, **more: str) -> dict[str, str]:
        told = {name.replace("_", "-"): value for name, value in more.items()}
        return {**({"Authorization": f"Bearer {self.token}"} if self.token else {}), **told}

    def connect(self) -> http.client.HTTPConnection:
        if self.tls is not None:
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=300, context=self.tls)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)


def body_of(files: Sequence[bytes]) -> bytes:
    """Return a multipart/related body of Part 10 files."""
    parts = [f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode() + data + b"\r\n" for data in files]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def stow(target: Target, paths: Sequence[Path]) -> None:
    """Send the files in requests of `INSTANCES_A_REQUEST`, one after the other, on one connection."""
    kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
    headers = target.headers(Content_Type=kind, Accept="application/dicom+json")
    with closing(target.connect()) as connection:
        for start in range(0, len(paths), INSTANCES_A_REQUEST):
            body = body_of([path.read_bytes() for path in paths[start : start + INSTANCES_A_REQUEST]])
            connection.request("POST", f"{target.base}/studies", body, headers)
            response = connection.getresponse()
            answer = response.read()
            if response.status != 200:
                raise RuntimeError(f"{target.name} answered {response.status}: {answer[:300]!r}")


def stow_together(target: Target, paths: Sequence[Path], clients: int) -> float:
    """Send the files from `clients` processes at once; return the wall seconds from first byte to last answer."""
    shares = [paths[n::clients] for n in range(clients)]
    context = multiprocessing.get_context("fork")
    started = time.perf_counter()
    processes = [context.Process(target=stow, args=(target, share)) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"{target.name} failed with {clients} clients")
    return time.perf_counter() - started


def get(connection: http.client.HTTPConnection, target: Target, path: str, accept: str) -> int:
    """Fetch and throw away; return the number of bytes."""
    try:
        connection.request("GET", f"{target.base}{path}", headers=target.headers(Accept=accept))
        response = connection.getresponse()
        size = 0
        while block := response.read(1 << 20):
            size += len(block)
    except (OSError, http.client.HTTPException):
        connection.close()  # the next request opens a new one
        raise
    if response.status not in (200, 206):
        raise RuntimeError(f"{target.name} answered {response.status} to {path}")
    return size


def timed(action: Callable[[], object], runs: int) -> float:
    """Return the median wall seconds of `runs` runs after one that is not counted."""
    action()
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[len(seconds) // 2]
