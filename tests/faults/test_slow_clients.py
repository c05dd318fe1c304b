"""Clients that stop, trickle or go away hold nobody up, and what they left unfinished is not taken for finished."""

import http.client
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlparse

import pytest

from tests.support.dicomweb import BOUNDARY, ct, related
from tests.support.serving import Served, answer, fhir_imaging, serving, wait_for

PATIENCE_S = 2
THREADS = 2
LARGE = ct(1, study="1.2.9", side=2048, frames=10)  # 84 MB, more than socket buffers hold


@dataclass(frozen=True)
class Door:
    """A server with few threads and little patience."""

    served: Served
    host: str
    port: int
    token: str

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=60)

    def head(self, method: str, path: str, **headers: str) -> bytes:
        told = {"Host": self.host, "Authorization": f"Bearer {self.token}", **headers}
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in told.items()]
        return "\r\n".join([f"{method} /dicom-web{path} HTTP/1.1", *lines, "", ""]).encode()

    def store_head(self, length: int) -> bytes:
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        return self.head(
            "POST", "/studies", Content_Type=kind, Accept="application/dicom+json", Content_Length=f"{length}"
        )

    def status(self, path: str) -> int:
        return answer(f"{self.served.base_url}/dicom-web{path}", self.token)

    def answers(self) -> bool:
        """Whether all threads are free to work."""
        return all(answer(f"{self.served.base_url}/health/ready", timeout_s=1) == 200 for _ in range(THREADS))


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    changes = {"web.workers": 1, "web.threads": THREADS, "web.client_timeout_s": PATIENCE_S}
    options = [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    with serving(tmp_path_factory.mktemp("slow") / "store", *options) as served:
        named = ("--data-dir", served.data_dir)
        fhir_imaging("subscriber", "add", "both", "--register-images", "--receive-images", *named)
        token = fhir_imaging("token", "both", *named).stdout.strip()
        address = urlparse(served.base_url)
        yield Door(served, str(address.hostname), int(address.port or 0), token)


def status_of(connection: socket.socket) -> int:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status


def test_a_body_that_stops_coming_is_given_up(door: Door) -> None:
    body = related(ct(1, study="1.2.1"))
    waiting = [door.connect() for _ in range(THREADS)]
    for connection in waiting:
        connection.sendall(door.store_head(len(body)) + body[:100])

    statuses = [status_of(connection) for connection in waiting]
    close(waiting)

    assert statuses == [408] * THREADS
    assert wait_for(door.answers)
    assert door.status("/studies/1.2.1") == 404


@pytest.mark.parametrize("text", ["head", "body"])
def test_a_client_that_trickles_is_given_up(door: Door, text: str) -> None:
    sent = door.store_head(100_000) if text == "body" else door.store_head(100_000)[:40]
    waiting = [door.connect() for _ in range(THREADS)]
    for connection in waiting:
        connection.sendall(sent)

    ended = [0] * THREADS
    deadline = time.monotonic() + 60
    while not all(ended) and time.monotonic() < deadline:
        time.sleep(0.5)
        for number, connection in enumerate(waiting):
            ended[number] = ended[number] or _trickle(connection)
    close(waiting)

    assert ended == [408] * THREADS
    assert wait_for(door.answers)


def test_a_client_that_does_not_take_its_answer_is_given_up(door: Door) -> None:
    assert store(door, LARGE) == 200

    waiting = [door.connect() for _ in range(THREADS)]
    for connection in waiting:
        connection.sendall(door.head("GET", "/studies/1.2.9", Accept='multipart/related; type="application/dicom"'))

    answers = wait_for(door.answers, timeout_s=60)
    close(waiting)

    assert answers


def test_a_client_that_goes_away_while_it_receives_disturbs_nobody(door: Door) -> None:
    assert store(door, LARGE) == 200

    for _ in range(3 * THREADS):
        with door.connect() as connection:
            connection.sendall(door.head("GET", "/studies/1.2.9", Accept='multipart/related; type="application/dicom"'))
            connection.recv(100_000)

    assert wait_for(door.answers, timeout_s=60)
    assert '"level": "error"' not in door.served.log.read_text()


def test_what_came_before_a_client_went_away_stays_and_the_rest_is_not_there(door: Door) -> None:
    first, second = ct(1, study="1.2.5"), ct(2, study="1.2.5")
    body = related(first, second)

    for _ in range(3 * THREADS):
        with door.connect() as connection:
            connection.sendall(door.store_head(len(body)) + body[: -len(second) // 2])

    assert wait_for(lambda: door.status("/studies/1.2.5/series/1.2.5.1/instances/1.2.5.1.1") == 200, timeout_s=60)
    assert door.status("/studies/1.2.5/series/1.2.5.1/instances/1.2.5.1.2") == 404
    assert store(door, first, second) == 200


def test_a_file_that_ends_before_its_announced_length_is_not_stored(door: Door) -> None:
    data = ct(1, study="1.2.6")
    with door.connect() as connection:
        connection.sendall(
            door.head("POST", "/studies", Content_Type="application/dicom", Content_Length=f"{len(data) + 10}") + data
        )
        connection.shutdown(socket.SHUT_WR)

        assert status_of(connection) == 400
    assert door.status("/studies/1.2.6") == 404


def close(connections: Iterable[socket.socket]) -> None:
    for connection in connections:
        connection.close()


def store(door: Door, *files: bytes) -> int:
    body = related(*files)
    with door.connect() as connection:
        connection.sendall(door.store_head(len(body)) + body)
        return status_of(connection)


def _trickle(connection: socket.socket) -> int:
    """Send a byte; return the status when the server has answered."""
    connection.setblocking(False)
    try:
        if not connection.recv(1, socket.MSG_PEEK):
            return -1
        connection.setblocking(True)
        return status_of(connection)
    except BlockingIOError:
        connection.setblocking(True)
        connection.sendall(b"x")
        return 0
