"""Requests to other servers: where they may lead, and how long and large what comes back may be.

Expected values for addresses: the IANA registries of special-purpose addresses (RFC 6890 and its successors).
"""

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trustme

from fhir_server.outbound import remote as module
from fhir_server.outbound.remote import Remote, Rules, is_permitted, refused_as_written, require_good, target_of
from imaging.errors import AppError, Category
from tests.support.receivers import Answer, Came, Receiver, receiving, served, status

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
RULES = Rules(private_networks=LOOPBACK, connect_s=2, silence_s=2)


def opened(address: str, rules: Rules = RULES, **more: Any) -> Remote:
    return Remote(address, rules, name="peer", **more)


def failure(call: Callable[[], Any]) -> AppError:
    with pytest.raises(AppError) as caught:
        call()
    return caught.value


# ---- addresses


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://a.example", ("https", "a.example", 443, "", "a.example")),
        ("http://a.example:80/", ("http", "a.example", 80, "", "a.example")),
        ("https://A.example:8443/dicom web/", ("https", "a.example", 8443, "/dicom%20web", "a.example:8443")),
        ("https://[2001:db8::1]:444/x", ("https", "2001:db8::1", 444, "/x", "[2001:db8::1]:444")),
    ],
)
def test_an_address_is_a_scheme_a_host_a_port_and_a_path(address, expected):
    target = target_of(address)

    assert (target.scheme, target.host, target.port, target.path, target.authority) == expected


@pytest.mark.parametrize(
    "address",
    [
        "", "a.example", "ftp://a.example", "file:///etc/passwd", "gopher://a.example", "https://", "https:///x",
        "https://u:p@a.example", "https://u@a.example", "https://a.example?x=1", "https://a.example#x",
        "https://a.example:99999", "https://a.example:x", "https://[::1",
    ],
)  # fmt: skip
def test_anything_else_is_none(address):
    assert failure(lambda: target_of(address)).category is Category.INVALID


@pytest.mark.parametrize(
    ("address", "is_public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),  # loopback
        ("0.0.0.0", False),  # this host
        ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.1.1", False),  # private use
        ("169.254.169.254", False),  # link local, metadata of clouds
        ("100.64.0.1", False),  # shared address space
        ("192.0.2.1", False), ("198.18.0.1", False), ("240.0.0.1", False), ("255.255.255.255", False),
        ("224.0.0.1", False), ("ff02::1", False),  # multicast
        ("::1", False), ("::", False), ("fe80::1", False), ("fd00::1", False), ("2001:db8::1", False),
        ("::ffff:127.0.0.1", False), ("::ffff:10.0.0.1", False),  # IPv4 within IPv6
        ("64:ff9b::7f00:1", False),  # NAT64 of 127.0.0.1
        ("2002:7f00:1::", False),  # 6to4 of 127.0.0.1
        ("2001:0:7f00:1::", False),  # Teredo
        ("64:ff9b:1::7f00:1", False), ("::7f00:1", False), ("::ffff:0:7f00:1", False),  # further ways to carry IPv4
        ("fec0::1", False),  # site local
        ("192.88.99.1", False),  # relays of 6to4
    ],
)  # fmt: skip
def test_only_public_addresses_are_permitted_and_those_by_tls(address, is_public):
    parsed = ipaddress.ip_address(address)

    assert is_permitted(parsed, "https", ()) is is_public
    assert not is_permitted(parsed, "http", ())


def test_a_private_network_that_was_allowed_may_be_reached_without_tls_and_no_other():
    networks = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))

    allowed = [
        each
        for each in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1", "192.168.0.1", "169.254.169.254", "fe80::1")
        if is_permitted(ipaddress.ip_address(each), "http", networks)
    ]

    assert allowed == ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1"]


def test_what_will_never_be_connected_to_is_seen_without_looking_it_up():
    def seen(*addresses: str, rules: Rules) -> list[bool]:
        return [bool(refused_as_written(target_of(each), rules)) for each in addresses]

    assert seen("https://a.example", "http://a.example", "https://10.0.0.1", rules=Rules()) == [False, True, True]
    assert seen("http://a.example", "http://127.0.0.1", "http://10.0.0.1", rules=RULES) == [False, False, True]


# ---- names


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """What names lead to: each look-up takes the next answer, the last one stays. Numbers lead to themselves."""
    table: dict[str, list[list[str]]] = {}
    really = socket.getaddrinfo

    def look_up(host: str, port: int, *more: Any, **further: Any) -> Any:
        if host not in table:
            return really(host, port, *more, **further)
        answers = table[host]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return table


def test_a_name_that_leads_to_a_private_address_is_refused(names):
    names["pacs.test"] = [["10.0.0.1"]]

    error = failure(lambda: opened("https://pacs.test"))

    assert error.category is Category.FORBIDDEN
    assert "outbound.private_networks" in error.message


def test_a_name_that_changes_its_mind_leads_nowhere_else(names):
    with receiving(lambda receiver, came: Answer(200, b"first")) as first, receiving(status(200)) as second:
        names["pacs.test"] = [["127.0.0.1"], ["10.0.0.1"]]
        port = first.address.rpartition(":")[2]

        with opened(f"http://pacs.test:{port}") as remote:
            answers = [remote.exchange("GET", "/x", most_bytes=10) for _ in range(3)]

    assert [each.body for each in answers] == [b"first"] * 3
    assert first.came[0].headers["host"] == f"pacs.test:{port}"
    assert second.came == []
    assert names["pacs.test"] == [["10.0.0.1"]]  # looked up once


def test_of_several_addresses_only_permitted_ones_are_tried_and_a_dead_one_is_passed_over(names):
    with receiving(status(200)) as receiver:
        names["pacs.test"] = [["10.0.0.1", "127.0.0.9", "127.0.0.1"]]
        port = receiver.address.rpartition(":")[2]

        with opened(f"http://pacs.test:{port}") as remote:
            assert remote.exchange("GET", "", most_bytes=10).status == 200


def test_a_name_that_nobody_knows_and_a_port_that_nobody_listens_to_are_waited_for(names):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        silent = failure(lambda: opened(f"http://127.0.0.1:{probe.getsockname()[1]}"))
    unknown = failure(lambda: opened("http://nobody.invalid"))

    assert (silent.category, unknown.category) == (Category.BUSY, Category.BUSY)


# ---- answers


def test_redirects_are_not_followed():
    with (
        receiving(status(200)) as other,
        receiving(status(307, Location=other.address)) as receiver,
        opened(receiver.address) as remote,
    ):
        answer = remote.exchange("POST", "/studies", body=b"x", most_bytes=10)

        def get() -> None:
            with remote.incoming("/studies", {}, within_s=5):
                pass

        error = failure(get)

    assert answer.status == 307
    assert error.category is Category.UNSUPPORTED
    assert "redirect" in error.message
    assert other.came == []


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    with receiving(status(200)) as receiver:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")

        with opened(receiver.address) as remote:
            assert remote.exchange("GET", "", most_bytes=10).status == 200


def test_an_answer_beyond_the_limit_is_given_up():
    with receiving(lambda receiver, came: Answer(200, bytes(1000))) as receiver, opened(receiver.address) as remote:
        assert len(remote.exchange("GET", "", most_bytes=1000).body) == 1000

        error = failure(lambda: remote.exchange("GET", "", most_bytes=999))

    assert error.category is Category.TOO_LARGE
    assert "999 bytes" in error.message


@contextmanager
def talking(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """Listen, and let `talk` have the second connection: the first is the look whether anybody is there."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            listener.accept()[0].close()
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                talk(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)


def trickle(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    try:
        for _ in range(100):
            connection.sendall(b"x")
            time.sleep(0.05)
    except OSError:
        return


def test_an_answer_that_trickles_is_given_up_though_it_is_never_silent(monkeypatch):
    monkeypatch.setattr(module, "ANSWER_WITHIN_S", 0.5)
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)
    with talking(trickle) as address, opened(address) as remote:
        started = time.monotonic()

        error = failure(lambda: remote.exchange("GET", "", most_bytes=1000))

        assert time.monotonic() - started < 3
    assert error.category is Category.BUSY
    assert "too long" in error.message


def trickle_a_header(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    trickle(connection)


@pytest.mark.parametrize("body", [None, b"whole", [b"in", b"pieces"]], ids=["none", "bytes", "pieces"])
def test_a_header_that_trickles_is_given_up_whatever_was_sent(monkeypatch, body):
    monkeypatch.setattr(module, "ANSWER_WITHIN_S", 0.5)
    with talking(trickle_a_header) as address, opened(address) as remote:
        started = time.monotonic()

        error = failure(lambda: remote.exchange("POST", "", body=body, most_bytes=1000))

        assert time.monotonic() - started < 3
    assert error.category is Category.BUSY


def test_sending_may_take_longer_than_an_answer(monkeypatch):
    monkeypatch.setattr(module, "ANSWER_WITHIN_S", 0.5)

    def slowly() -> Iterator[bytes]:
        for _ in range(8):
            time.sleep(0.1)
            yield b"x"

    with receiving(status(200)) as receiver, opened(receiver.address) as remote:
        assert remote.exchange("POST", "", body=slowly(), most_bytes=10).status == 200


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("120", (120, 120)),
        ("0", (0, 0)),
        ("in an hour", (3000, 3600)),
        ("Fri, 31 Dec 1999 23:59:59 GMT", (0, 0)),
        ("-1", (0, 0)),
        ("soon", (0, 0)),
    ],
    ids=["seconds", "nothing", "in an hour", "long ago", "negative", "no time"],
)
def test_what_an_answer_asks_to_wait_is_known(asked, expected):
    if asked == "in an hour":  # of now, not of when tests were collected
        asked = (datetime.now(UTC) + timedelta(hours=1)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    with receiving(status(503, Retry_After=asked), status(200)) as receiver, opened(receiver.address) as remote:
        remote.exchange("GET", "", most_bytes=10)
        waits = remote.retry_after_s
        remote.exchange("GET", "", most_bytes=10)

    assert expected[0] <= waits <= expected[1]
    assert remote.retry_after_s == 0


@pytest.mark.parametrize(
    "talk",
    [
        lambda connection: time.sleep(1),
        lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx"),
        lambda connection: connection.sendall(b"SSH-2.0-OpenSSH\r\n"),
        lambda connection: None,
    ],
    ids=["silent", "breaks-off", "no-http", "closes"],
)
def test_a_server_that_is_silent_breaks_off_or_speaks_something_else_is_busy(talk):
    rules = Rules(private_networks=LOOPBACK, silence_s=0.3)
    with talking(talk) as address, opened(address, rules) as remote:
        error = failure(lambda: remote.exchange("GET", "", most_bytes=100))

    assert error.category is Category.BUSY
    assert error.where == "peer"


def test_a_body_is_sent_while_it_is_made():
    made = []

    def pieces() -> Iterator[bytes]:
        for n in range(5):
            made.append(n)
            yield bytes([n]) * 1000

    with receiving(status(200)) as receiver, opened(receiver.address) as remote:
        remote.exchange("POST", "/studies", body=pieces(), most_bytes=10)

    assert made == [0, 1, 2, 3, 4]
    assert receiver.came[0].body == b"".join(bytes([n]) * 1000 for n in range(5))
    assert receiver.came[0].headers["transfer-encoding"] == "chunked"


def test_messages_hold_neither_credentials_nor_words_of_the_other_side():
    def tells(receiver: Receiver, came: Came) -> Answer:
        return Answer(401, b"Patient Doe is secret", {"X-Words": "Patient Doe"})

    with receiving(tells) as receiver, opened(receiver.address, authorization="Bearer top-secret") as remote:
        answer = remote.exchange("GET", "", most_bytes=100)
        error = failure(lambda: require_good(answer.status, remote.name))

    assert receiver.came[0].headers["authorization"] == "Bearer top-secret"
    assert str(error) == "the other server refuses the request (HTTP 401) (peer)"


@pytest.mark.parametrize(
    ("codes", "category"),
    [
        ((408, 425, 429, 500, 502, 503, 504, 599), Category.BUSY),
        ((401, 403), Category.FORBIDDEN),
        ((404,), Category.NOT_FOUND),
        ((410,), Category.GONE),
        ((413,), Category.TOO_LARGE),
        ((301, 302, 303, 307, 308, 400, 405, 406, 411, 415, 422, 501), Category.UNSUPPORTED),
    ],
)
def test_a_status_says_whether_a_repetition_may_help(codes, category):
    assert {failure(lambda code=code: require_good(code, "peer")).category for code in codes} == {category}
    for code in (200, 202, 204, 299):
        require_good(code, "peer")


# ---- TLS


@contextmanager
def receiving_by_tls(authority: trustme.CA, host: str) -> Iterator[Receiver]:
    receiver = Receiver([status(200)])
    server = served(receiver)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        receiver.address = f"https://localhost:{server.server_port}"
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Any:
    made = trustme.CA()
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    made.cert_pem.write_to_path(str(path))
    return made, str(path)


def test_a_certificate_of_an_own_authority_is_believed_where_it_was_named(authority):
    made, path = authority
    with receiving_by_tls(made, "localhost") as receiver:
        rules = Rules(private_networks=LOOPBACK, ca_file=path)
        with opened(receiver.address, rules) as remote:
            assert remote.exchange("GET", "", most_bytes=10).status == 200


@pytest.mark.parametrize("case", ["unknown-authority", "other-host"])
def test_any_other_certificate_is_not(authority, case):
    made, path = authority
    host = "localhost" if case == "unknown-authority" else "other.example"
    ca_file = "" if case == "unknown-authority" else path
    with receiving_by_tls(made, host) as receiver:
        rules = Rules(private_networks=LOOPBACK, ca_file=ca_file)
        with opened(receiver.address, rules, authorization="Bearer x") as remote:
            error = failure(lambda: remote.exchange("GET", "", most_bytes=10))

    assert error.category is Category.BUSY
    assert "SSL" in error.message
    assert receiver.came == []


def test_a_file_of_authorities_that_is_none_is_told_by_the_name_of_its_setting(tmp_path):
    (tmp_path / "ca.pem").write_text("nothing")
    with receiving(status(200)) as receiver:
        address = receiver.address.replace("http:", "https:")
        rules = Rules(private_networks=LOOPBACK, ca_file=str(tmp_path / "ca.pem"))

        error = failure(lambda: opened(address, rules))

    assert (error.category, error.where) == (Category.FAULT, "outbound.ca_bundle")
