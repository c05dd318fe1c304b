"""Kill -9 any process of a working server, again and again, while images come in: nothing acknowledged is lost."""

import hashlib
import http.client
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http import HTTPStatus
from pathlib import Path

import pytest

from fhir_server.projector import LEASE_S
from tests.benchmarks.client import BOUNDARY, Target, body_of
from tests.benchmarks.servers import ours
from tests.support.small_images import small_images

KINDS = ("mongod", "web", "worker")
INSTANCES_A_REQUEST = 5
SEED = 20260420


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Target]:
    with ours(tmp_path, "access.cache_s=0", "web.stop_s=5", "work.projection_quiet_s=0.2") as target:
        yield target


class Sender(threading.Thread):
    """Stores batches until told to stop, each until it is acknowledged; remembers what was."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target
        self.acknowledged: dict[tuple[str, str, str], str] = {}  # UIDs -> SHA-256 of what was sent
        self.failures = 0
        self.stopping = threading.Event()

    def run(self) -> None:
        images = small_images()
        while not self.stopping.is_set():
            batch = [next(images) for _ in range(INSTANCES_A_REQUEST)]
            while not self._store([data for *_, data in batch]):
                self.failures += 1
                time.sleep(0.1)
            for study, series, sop, data in batch:
                self.acknowledged[study, series, sop] = hashlib.sha256(data).hexdigest()

    def _store(self, files: list[bytes]) -> bool:
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        headers = self.target.headers(Content_Type=kind, Accept="application/dicom+json")
        with closing(self.target.connect()) as connection:
            try:
                connection.request("POST", f"{self.target.base}/studies", body_of(files), headers)
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False


def test_no_killed_process_loses_what_was_acknowledged(server: Target, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    sender = Sender(server)
    sender.start()
    for kind in (*KINDS, *KINDS, *KINDS[:2]):
        time.sleep(1.0 + chance.random())
        os.kill(chance.choice(_pids(tmp_path, kind)), signal.SIGKILL)
    seen = len(sender.acknowledged)
    deadline = time.monotonic() + 60
    while len(sender.acknowledged) <= seen and time.monotonic() < deadline:  # it works again
        time.sleep(0.1)
    sender.stopping.set()
    sender.join(60)

    assert len(sender.acknowledged) > seen
    with closing(server.connect()) as connection:
        for (study, series, sop), digest in sender.acknowledged.items():
            path = f"/studies/{study}/series/{series}/instances/{sop}/received"
            assert hashlib.sha256(_get(connection, server, path)).hexdigest() == digest


def _pids(folder: Path, kind: str) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid,args", "-ww"], capture_output=True, text=True, check=True).stdout
    wanted = {"mongod": "/mongod ", "web": "fhir_server.cli web ", "worker": "fhir_server.cli worker "}[kind]
    lines = [line.strip().split(maxsplit=1) for line in listed.splitlines()[1:]]
    return [int(pid) for pid, command in lines if wanted in command and str(folder) in command]


def _get(connection: http.client.HTTPConnection, target: Target, path: str) -> bytes:
    """Return what is there; asks again as it is told to, while a lease of a killed process keeps a study busy."""
    deadline = time.monotonic() + 2 * LEASE_S
    while True:
        connection.request("GET", f"{target.base}{path}", headers=target.headers(Accept="application/dicom"))
        response = connection.getresponse()
        body = response.read()
        if response.status != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
            assert response.status == HTTPStatus.OK, body[:300]
            return body
        time.sleep(float(response.headers["Retry-After"]))
