"""A whole server, whose sockets are spoken to by a client that is not ours, websocket-client; and the page of how to.

FHIR R4 subscription 2.46.5.2, and Subscriptions R5 Backport 1.1.0, channels, websockets.
"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import websocket

from fhir_server.access.contracts import Right
from fhir_server.app import Server, open_server
from tests.support.doors import new_study
from tests.support.engine import settings
from tests.support.serving import Served, children, fhir_imaging, serving, wait_for
from tests.support.subscribing import STATUS_CHANGED, ending, events, numbers, plain, said, to_topic

MOST = 6  # sockets; more than threads
SETTINGS = [
    part
    for each in (
        "access.cache_s=0", "web.workers=1", "web.threads=2", f"web.sockets={MOST}", "work.task_workers=0",
        "subscriptions.private_networks=127.0.0.0/8",
    )
    for part in ("--set", each)
]  # fmt: skip
PAGE = Path(__file__).parents[2] / "docs/howto/subscribe-to-changes.md"
TASK = {"resourceType": "Task", "status": "requested", "intent": "order", "code": {"text": "read it"}}


class Client:
    """A subscriber's program."""

    def __init__(self, served: Served, operator: Server, name: str) -> None:
        self.base, self.served = served.base_url, served
        operator.principals.add(name, [Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, Right.ORDER_PROCESSING])
        self.token = operator.principals.mint(name)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/fhir+json"}
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"{self.base}/fhir/{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read() or b"null")

    def send(self, *files: bytes) -> None:
        """Store images."""
        for file in files:
            headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/dicom"}
            request = urllib.request.Request(f"{self.base}/dicom-web/studies", file, headers)
            urllib.request.urlopen(request, timeout=30).close()

    def subscribed(self, subscription: dict[str, Any]) -> str:
        """The id of a new Subscription that is active."""
        made = self.call("POST", "Subscription", subscription)
        assert wait_for(lambda: self.call("GET", f"Subscription/{made['id']}")["status"] == "active")
        return str(made["id"])

    def connected(self, *, with_token: bool) -> websocket.WebSocket:
        statement = self.call("GET", "metadata")
        (address,) = [each["valueUri"] for each in statement["rest"][0]["extension"] if "websocket" in each["url"]]
        header = [f"Authorization: Bearer {self.token}"] if with_token else []
        return websocket.create_connection(address, timeout=20, header=header)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    temporary = tempfile.TemporaryDirectory(prefix="fhir-imaging-test-")
    with temporary as directory, serving(Path(directory), *SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def operator(served: Served) -> Iterator[Server]:
    """The server as the operator's commands open it."""
    with open_server(settings(served.data_dir)) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(served: Served, operator: Server) -> Client:
    return Client(served, operator, "ward")


def place(client: Client) -> str:
    return f"{client.base}/fhir/Task/{client.call('POST', 'Task', TASK)['id']}"


def bound(client: Client, *names: str) -> websocket.WebSocket:
    """A socket that was bound by a token, and whose handshakes were read."""
    query = "&".join(f"id={name}" for name in names)
    answer = client.call("GET", f"Subscription/$get-ws-binding-token?{query}")
    told = {each["name"]: each for each in answer["parameter"]}
    line = websocket.create_connection(told["websocket-url"]["valueUrl"], timeout=20)
    line.send(f"bind-with-token {told['token']['valueString']}")
    handshakes = [json.loads(line.recv()) for _ in names]
    assert [said(each, "type") for each in handshakes] == ["handshake"] * len(names)
    return line


def test_r4_bind_is_answered_by_bound_and_each_match_by_ping(client: Client) -> None:
    name = client.subscribed(plain("Task?status=requested", "", way="websocket"))

    with ending(client.connected(with_token=True)) as line:
        line.send(f"bind {name}")
        answer = line.recv()
        place(client)
        pings = [line.recv()]
        place(client)
        pings.append(line.recv())

    assert answer == f"bound {name}"
    assert pings == [f"ping {name}"] * 2


def test_channels_websockets_tell_by_bundles_what_a_token_bound(client: Client) -> None:
    one = client.subscribed(to_topic(STATUS_CHANGED, way="websocket"))
    other = client.subscribed(to_topic(STATUS_CHANGED, way="websocket", content="full-resource"))

    with ending(bound(client, one, other)) as line:
        task = place(client)
        told = [json.loads(line.recv()) for _ in range(2)]

    assert {said(each, "subscription")["reference"].rpartition("/")[2] for each in told} == {one, other}
    assert [events(each)[0]["focus"]["reference"] for each in told] == [task, task]
    assert sorted(len(each["entry"]) for each in told) == [1, 2]


def test_channels_websockets_what_was_missed_comes_when_bound_again(client: Client) -> None:
    name = client.subscribed(to_topic(STATUS_CHANGED, way="websocket", max_count=2))
    with ending(bound(client, name)) as line:
        place(client)
        first = json.loads(line.recv())
    for _ in range(3):
        place(client)
    assert wait_for(lambda: len(events(client.call("GET", f"Subscription/{name}/$events"))) == 4)

    with ending(bound(client, name)) as line:
        missed = [json.loads(line.recv()) for _ in range(2)]

    assert numbers([first, *missed]) == [1, 2, 3, 4]


def test_channels_websockets_notify_in_xml_where_that_is_asked(client: Client) -> None:
    name = client.subscribed(to_topic(STATUS_CHANGED, way="websocket", payload="application/fhir+xml"))
    answer = client.call("GET", f"Subscription/{name}/$get-ws-binding-token")
    told = {each["name"]: each for each in answer["parameter"]}

    with ending(client.connected(with_token=False)) as line:
        line.send(f"bind-with-token {told['token']['valueString']}")
        handshake = line.recv()

    assert handshake.startswith("<?xml") or handshake.startswith('<Bundle xmlns="http://hl7.org/fhir"')


def test_channels_websockets_heartbeat(client: Client) -> None:
    name = client.subscribed(to_topic(STATUS_CHANGED, way="websocket", heartbeat_period=5))

    with ending(bound(client, name)) as line:
        begun = time.monotonic()
        told = json.loads(line.recv())

    assert said(told, "type") == "heartbeat"
    assert time.monotonic() - begun >= 4.9


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("bind-with-token nonsense", "unknown or over"),
        ("bind {mine}", "no bearer token came"),
        ("hello", "bind ID or bind-with-token TOKEN"),
    ],
)
def test_safety_who_shows_nothing_is_told_nothing(client: Client, command: str, words: str) -> None:
    name = client.subscribed(plain("Task?", "", way="websocket"))

    with ending(client.connected(with_token=False)) as line:
        line.send(command.format(mine=name))
        answer = json.loads(line.recv())

    assert answer["resourceType"] == "OperationOutcome"
    assert words in answer["issue"][0]["diagnostics"]
    client.call("DELETE", f"Subscription/{name}")


def test_safety_the_subscription_of_another_is_not_known(client: Client, operator: Server) -> None:
    name = client.subscribed(plain("Task?", "", way="websocket"))
    other = Client(client.served, operator, "another")

    with ending(other.connected(with_token=True)) as line:
        line.send(f"bind {name}")
        answer = json.loads(line.recv())
        for _ in range(4):
            line.send("bind again")
            line.recv()
        with pytest.raises(websocket.WebSocketConnectionClosedException):
            line.recv() or line.recv()  # closed after so many mistakes

    assert answer["issue"][0]["code"] == "not-found"


def test_safety_a_socket_of_a_suspended_subscriber_hears_nothing(client: Client, operator: Server) -> None:
    short = Client(client.served, operator, "short")
    name = short.subscribed(to_topic(STATUS_CHANGED, way="websocket"))
    with ending(bound(short, name)) as line:
        place(client)
        first = json.loads(line.recv())
        operator.principals.suspend("short")
        place(client)
        line.send("anything")
        answer = json.loads(line.recv())
        _, data = line.recv_data()

    assert said(first, "type") == "event-notification"
    assert answer["resourceType"] == "OperationOutcome"
    assert int.from_bytes(data[:2], "big") == 1008  # RFC 6455 7.4.1, policy violation


def test_a_long_message_is_refused(client: Client) -> None:
    with ending(client.connected(with_token=False)) as line:
        line.send("x" * 5_000)
        code, _ = line.recv_data()

    assert code == websocket.ABNF.OPCODE_CLOSE


def test_a_plain_request_is_no_handshake(client: Client) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        client.call("GET", "_socket")

    assert refused.value.code == 400
    assert json.loads(refused.value.read())["resourceType"] == "OperationOutcome"


def test_sockets_are_so_many_and_take_no_threads_from_requests(client: Client) -> None:
    lines = [client.connected(with_token=False) for _ in range(MOST)]
    try:
        too_many = handshake(client)
        client.call("GET", "Task?_count=1")
    finally:
        for line in lines:
            line.shutdown()

    assert too_many == 503
    assert wait_for(lambda: handshake(client) == 101)  # room again


def handshake(client: Client) -> int:
    """The status of the answer to a handshake, after which the connection is closed."""
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    connection = http.client.HTTPConnection(urlsplit(client.base).netloc, timeout=20)
    with closing(connection):
        connection.request("GET", "/fhir/_socket", headers={**headers, "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="})
        return connection.getresponse().status


@contextmanager
def program(folder: Path, code: str, *arguments: str) -> Iterator[Iterator[str]]:
    """Run a program of the page; give the lines that it prints."""
    path = folder / "program.py"
    path.write_text(code)
    process = subprocess.Popen([sys.executable, str(path), *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield (line.strip() for line in process.stdout)
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.M | re.S)


def test_the_endpoint_of_the_page_is_told_of_a_new_study(client: Client, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    subscription = json.loads(blocks("json")[0])
    subscription["channel"]["endpoint"] = f"http://127.0.0.1:{port}/hook"

    with program(tmp_path, blocks("python")[0], str(port)) as lines:
        assert wait_for(lambda: is_open(port))
        client.subscribed(subscription)
        uid, (file,) = new_study()
        client.send(file)
        told = [next(lines) for _ in range(3)]

    assert told == ["handshake", "event-notification", f"1 {client.base}/fhir/ImagingStudy/{uid}"]


def test_the_listener_of_the_page_is_told_over_its_socket(client: Client, tmp_path: Path) -> None:
    subscription = json.loads(blocks("json")[0])
    subscription["channel"] |= {"type": "websocket"}
    del subscription["channel"]["endpoint"]
    name = client.subscribed(subscription)

    with program(tmp_path, blocks("python")[1], client.base, client.token, name) as lines:
        told = [next(lines)]
        client.send(*new_study()[1])
        told.append(next(lines))

    assert told == ["handshake", "event-notification"]


def test_the_search_of_the_page_is_taken(client: Client) -> None:
    subscription = json.loads(blocks("json")[1])
    made = client.call("POST", "Subscription", {**subscription, "status": "off"})

    assert made["criteria"] == "DiagnosticReport?subject=Patient/123"


def test_the_command_shows_which_subscriptions_fail_and_why(client: Client) -> None:
    well = client.subscribed(to_topic(STATUS_CHANGED, way="websocket"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/secret-path"
    ill = client.call("POST", "Subscription", to_topic(STATUS_CHANGED, nobody))["id"]
    assert wait_for(lambda: client.call("GET", f"Subscription/{ill}")["status"] == "error")

    shown = fhir_imaging("subscriptions", "--failing", "--data-dir", client.served.data_dir).stdout

    (row,) = [line.split() for line in shown.splitlines() if line.startswith(ill)]
    assert row[1:8] == ["ward", STATUS_CHANGED, "rest-hook", "127.0.0.1", "error", "0", "0"]
    assert "the other server does not answer" in shown
    assert well not in shown
    assert "secret-path" not in shown


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_a_client_is_told_that_the_server_goes(client: Client) -> None:
    with ending(client.connected(with_token=False)) as line:
        os.kill(next(iter(children(client.served.pid_of("web")))), signal.SIGTERM)
        code, data = line.recv_data()

    assert code == websocket.ABNF.OPCODE_CLOSE
    assert int.from_bytes(data[:2], "big") == 1001  # RFC 6455 7.4.1, going away
