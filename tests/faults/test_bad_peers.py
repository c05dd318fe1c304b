"""Other servers that trickle or break off: a request to them ends in time, and never looks like a good answer."""

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from fhir_server.outbound import dicomweb
from fhir_server.outbound.remote import Remote, Rules
from imaging.errors import AppError, Category

RULES = Rules(private_networks=(ipaddress.ip_network("127.0.0.0/8"),), silence_s=5.0)
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\n"
DICOM = b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom\r\n"
DROP = b"x"
Answer = Callable[[socket.socket], None]


@contextmanager
def answering(answer: Answer) -> Iterator[Remote]:
    """Give a connection to a server that answers each connection once, with bytes, and closes it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    if connection.recv(65_536):
                        answer(connection)

    threading.Thread(target=serve, daemon=True).start()
    try:
        with Remote(f"http://127.0.0.1:{listener.getsockname()[1]}", RULES, name="peer") as remote:
            yield remote
    finally:
        listener.close()


def says(data: bytes) -> Answer:
    return lambda connection: connection.sendall(data)


def trickles(head: bytes) -> Answer:
    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(DROP)
            time.sleep(0.1)

    return answer


def fetched(remote: Remote, within_s: float = 5.0) -> bytes:
    with remote.incoming("/x", {}, within_s=within_s) as (_, blocks):
        return b"".join(blocks)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nX-Header: ",
        DICOM + b"Content-Length: 1000000\r\n\r\n",
        DICOM + b"Transfer-Encoding: chunked\r\n\r\nFFFFF\r\n",
        DICOM + b"\r\n",
    ],
    ids=["header", "counted body", "chunk", "body to the end"],
)
def test_what_trickles_is_given_up_at_its_deadline(head: bytes) -> None:
    begun = time.monotonic()

    with answering(trickles(head)) as remote, pytest.raises(AppError) as refused:
        fetched(remote, within_s=1.0)

    assert refused.value.category is Category.BUSY
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize(
    "answer",
    [
        DICOM + b"Content-Length: 100\r\n\r\nabc",
        DICOM + b"Transfer-Encoding: chunked\r\n\r\nFF\r\nabc",
        DICOM + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 2",
        b"",
    ],
    ids=["counted body", "chunk", "between chunks", "status line", "nothing"],
)
def test_what_breaks_off_is_no_answer(answer: bytes) -> None:
    with answering(says(answer)) as remote, pytest.raises(AppError) as refused:
        fetched(remote)

    assert refused.value.category is Category.BUSY


def test_chunks_are_put_together() -> None:
    body = b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"

    with answering(says(DICOM + b"Transfer-Encoding: chunked\r\n\r\n" + body)) as remote:
        assert fetched(remote) == b"abcdefg"


def test_a_search_of_which_only_the_header_came_is_not_one_without_matches() -> None:
    with answering(says(JSON)) as remote, pytest.raises(AppError) as refused:
        list(dicomweb.search(remote, "/studies", [], "0020000D", most=10))

    assert refused.value.category is Category.BUSY


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 204 No Content\r\n\r\n", JSON + b"Content-Length: 0\r\n\r\n", JSON + b"Content-Length: 2\r\n\r\n[]"],
    ids=["no content", "empty", "an empty list"],
)
def test_a_search_without_matches_has_none(answer: bytes) -> None:
    with answering(says(answer)) as remote:
        assert list(dicomweb.search(remote, "/studies", [], "0020000D", most=10)) == []
