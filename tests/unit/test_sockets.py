"""Sockets of one process, by themselves: over a pair of sockets, with the client of websocket-client."""

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import websocket

from fhir_server.web.sockets import HANDED_OVER, Line, Sockets
from imaging.errors import AppError, Category

# RFC 6455 1.3: the key of the example, and what it has to be answered with.
KEY, ANSWER = "dGhlIHNhbXBsZSBub25jZQ==", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
MEBIBYTE = 1 << 20


def asked(connection: socket.socket, **changes: str) -> dict[str, Any]:
    headers = {
        "HTTP_HOST": "images.test",
        "HTTP_CONNECTION": "Upgrade",
        "HTTP_UPGRADE": "websocket",
        "HTTP_SEC_WEBSOCKET_KEY": KEY,
        "HTTP_SEC_WEBSOCKET_VERSION": "13",
    }
    return {"PATH_INFO": "/x", "gunicorn.socket": connection, **headers, **changes}


class Echo:
    """Says what it hears, and what it is told to say at its turns."""

    def __init__(self, line: Line, subject: str = "", text: str = "") -> None:
        self.line, self.subject, self.text = line, subject, text
        self.turns = 0
        self.is_news = False

    def heard(self, text: str) -> None:
        if text == "fail":
            raise AppError(Category.FORBIDDEN, "you may not")
        if text == "break":
            raise KeyError
        self.line.say(text)

    def cares(self, subject: str) -> bool:
        self.is_news = subject == self.subject
        return self.is_news

    def leaving(self) -> None:
        self.line.say("going")

    def turn(self) -> float:
        self.turns += 1
        if self.is_news:
            self.is_news = False
            self.line.say(f"news of {self.subject}")
        if self.text:
            self.line.say(self.text)
            return 0.0
        return 1000.0


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    made = Sockets(3)
    yield made
    made.close(5)


def connected(sockets: Sockets, **given: str) -> tuple[websocket.WebSocket, socket.socket, list[Echo]]:
    """A client, its connection, and a list with the conversation, once there is one."""
    ours, theirs = socket.socketpair()
    talks: list[Echo] = []

    def begin(line: Line) -> Echo:
        talks.append(Echo(line, **given))
        return talks[0]

    environ = asked(ours)
    sockets.adopt(environ, begin)
    assert environ[HANDED_OVER]
    theirs.settimeout(10)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += theirs.recv(1)
    assert head.startswith(b"HTTP/1.1 101 ")
    assert ANSWER in head
    client = websocket.WebSocket()
    client.sock, client.connected = theirs, True
    return client, theirs, talks


def test_a_message_is_heard_and_answered(sockets: Sockets) -> None:
    client, _, _ = connected(sockets)

    client.send("grüß")

    assert client.recv() == "grüß"
    client.shutdown()


def test_news_wake_those_who_care(sockets: Sockets) -> None:
    one, _, _ = connected(sockets, subject="a")
    other, _, _ = connected(sockets, subject="b")

    sockets.wake("a")
    told = one.recv()
    other.send("nothing else came")

    assert told == "news of a"
    assert other.recv() == "nothing else came"
    one.shutdown()
    other.shutdown()


def test_who_does_not_read_is_not_talked_at_and_keeps_nobody_waiting(sockets: Sockets) -> None:
    deaf, _, talks = connected(sockets, text="x" * MEBIBYTE)
    client, _, _ = connected(sockets)

    for number in range(50):
        client.send(str(number))
        assert client.recv() == str(number)

    assert talks[0].turns <= 3  # one waits to be sent, as much as fits lies with the operating system
    assert deaf.recv() == "x" * MEBIBYTE
    deaf.shutdown()
    client.shutdown()


@pytest.mark.parametrize(("text", "code"), [("fail", 1008), ("break", 1011), ("x" * 5_000, 1009)])
def test_what_goes_wrong_closes_one_connection(sockets: Sockets, text: str, code: int) -> None:
    client, _, _ = connected(sockets)
    other, _, _ = connected(sockets)

    client.send(text)
    _, data = client.recv_data()
    other.send("still here")

    assert int.from_bytes(data[:2], "big") == code
    assert other.recv() == "still here"
    client.shutdown()
    other.shutdown()


def test_binary_messages_are_not_understood(sockets: Sockets) -> None:
    client, _, _ = connected(sockets)

    client.send_binary(b"x")
    _, data = client.recv_data()

    assert int.from_bytes(data[:2], "big") == 1003  # RFC 6455 7.4.1
    client.shutdown()


def test_a_mistake_in_the_protocol_closes_the_connection(sockets: Sockets) -> None:
    client, plain, _ = connected(sockets)

    plain.sendall(b"\x81\x05hello")  # RFC 6455 5.1: a client masks what it sends
    _, data = client.recv_data()

    assert int.from_bytes(data[:2], "big") == 1002
    client.shutdown()


def test_there_is_room_for_so_many_and_again_when_one_goes(sockets: Sockets) -> None:
    clients = [connected(sockets)[0] for _ in range(3)]
    ours, theirs = socket.socketpair()
    with pytest.raises(AppError) as refused:
        sockets.adopt(asked(ours), Echo)
    ours.close()
    theirs.close()

    clients.pop().shutdown()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            clients.append(connected(sockets)[0])
            break
        except AppError:
            time.sleep(0.02)

    assert refused.value.category is Category.BUSY
    assert len(clients) == 3
    for each in clients:
        each.shutdown()


@pytest.mark.parametrize(
    "changes",
    [{"HTTP_UPGRADE": "h2c"}, {"HTTP_SEC_WEBSOCKET_VERSION": "8"}, {"HTTP_SEC_WEBSOCKET_KEY": "short"}],
)
def test_what_is_no_handshake_is_refused(sockets: Sockets, changes: dict[str, str]) -> None:
    with socket.socket() as plain, pytest.raises(AppError) as refused:
        sockets.adopt(asked(plain, **changes), Echo)

    assert refused.value.category is Category.INVALID


def test_on_close_everybody_is_told() -> None:
    made = Sockets(3)
    client, _, _ = connected(made)

    made.stop()
    farewell = client.recv()
    _, data = client.recv_data()
    client.shutdown()
    made.close(5)

    assert farewell == "going"
    assert int.from_bytes(data[:2], "big") == 1001
    assert not made.is_used
    with socket.socket() as plain, pytest.raises(AppError):
        made.adopt(asked(plain), Echo)
