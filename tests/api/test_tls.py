"""The web server by itself over TLS: versions, certificates of clients, renewal, and clients with bad manners.

RFC 8446, RFC 9325; handshakes are tried with Python's ssl and with OpenSSL's own client.
"""

import http.client
import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from fhir_server import config
from fhir_server.supervisor import is_ready
from fhir_server.web import arrivals
from fhir_server.web.tls import tls
from imaging.errors import AppError, Category
from tests.support.certificates import identity
from tests.support.serving import children, wait_for
from tests.support.web_servers import Running, web_server

THREADS = 2  # of the server under test
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.RSA)


@pytest.fixture(scope="module")
def clients() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Path:
    return identity(tmp_path_factory.mktemp("server") / "files", authority)


def served(ours: Path, log: Path, **settings: str) -> Any:
    files = {"web_tls_certificate": str(ours / "certificate.pem"), "web_tls_key": str(ours / "key.pem")}
    return web_server(log, **files, **settings)


@pytest.fixture(scope="module")
def server(ours: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with served(ours, tmp_path_factory.mktemp("log") / "log", web_client_timeout_s="2") as running:
        yield running


@pytest.fixture(scope="module")
def strict(ours: Path, clients: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("strict")
    clients.cert_pem.write_to_path(folder / "clients.pem")
    with served(ours, folder / "log", web_tls_clients=str(folder / "clients.pem")) as running:
        yield running


def believing(authority: trustme.CA, shown: trustme.LeafCert | None = None) -> ssl.SSLContext:
    """A client's context."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    if shown is not None:
        shown.configure_cert(context)
    return context


def connected(server: Running, context: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection(server.address, timeout=20)
    return context.wrap_socket(plain, server_hostname="localhost")


def asked(server: Running, context: ssl.SSLContext, path: str = "/", body: bytes | None = None) -> Any:
    client = http.client.HTTPSConnection(*server.address, timeout=20, context=context)
    with closing(client):
        client.request("POST" if body else "GET", path, body)
        return json.loads(client.getresponse().read())


def read_all(line: ssl.SSLSocket) -> int:
    """Read until the connection ends, in whatever way; return how many bytes came."""
    taken = 0
    with suppress(ssl.SSLError, ConnectionError):
        while data := line.recv(1 << 20):
            taken += len(data)
    return taken


def openssl(server: Running, *options: str) -> str:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", *options]
    done = subprocess.run(command, input=b"", capture_output=True, timeout=30)
    return (done.stdout + done.stderr).decode(errors="replace")


# ---- what is spoken


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_requests_and_answers_pass_over_tls(server: Running, authority: trustme.CA, version: ssl.TLSVersion) -> None:
    context = believing(authority)
    context.minimum_version = context.maximum_version = version

    told = asked(server, context, body=b"x" * (3 * MEBIBYTE))

    assert told["scheme"] == "https"
    assert told["taken"] == 3 * MEBIBYTE


def test_many_requests_pass_on_one_connection_also_when_they_come_at_once(
    server: Running, authority: trustme.CA
) -> None:
    request = b"GET /?10 HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 6000 + b"\r\n\r\n"

    with connected(server, believing(authority)) as line:
        line.sendall(request * 6 + request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        answers = b"".join(iter(lambda: line.recv(1 << 16), b""))

    assert answers.count(b"HTTP/1.1 200 OK") == 7


def test_the_end_of_a_connection_is_told_before_it_goes(server: Running, authority: trustme.CA) -> None:
    plain = socket.create_connection(server.address, timeout=20)
    context = believing(authority)
    with context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")

        # Without close_notify the last recv raises SSLEOFError.
        received = b"".join(iter(lambda: line.recv(1 << 16), b""))

    assert received.startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("option", ["-tls1", "-tls1_1"])
def test_older_versions_are_refused(server: Running, option: str) -> None:
    said = openssl(server, option, "-cipher", "ALL:@SECLEVEL=0")

    assert "alert protocol version" in said
    assert "Cipher is (NONE)" in said


def test_only_1_3_where_it_is_the_oldest(ours: Path, authority: trustme.CA, tmp_path: Path) -> None:
    with served(ours, tmp_path / "log", web_tls_minimum="1.3") as running:
        assert "alert protocol version" in openssl(running, "-tls1_2")
        assert asked(running, believing(authority))["scheme"] == "https"


def test_weak_ciphers_are_refused_and_strong_ones_taken(server: Running) -> None:
    strong = "ECDHE-ECDSA-AES128-GCM-SHA256"  # RFC 9325 4.2
    for weak in ("ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES256-SHA", "ECDHE-ECDSA-AES128-CCM"):
        assert "Cipher is (NONE)" in openssl(server, "-tls1_2", "-cipher", weak)
    assert f"Cipher is {strong}" in openssl(server, "-tls1_2", "-cipher", strong)


def test_sessions_are_resumed(server: Running, authority: trustme.CA) -> None:
    context = believing(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with connected(server, context) as first:
        session = first.session

    plain = socket.create_connection(server.address, timeout=20)
    with context.wrap_socket(plain, server_hostname="localhost", session=session) as second:
        assert second.session_reused


def test_a_request_without_tls_is_told_so(server: Running) -> None:
    with socket.create_connection(server.address, timeout=20) as line:
        line.sendall(b"GET /fhir/Patient?name=Doe HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\r\n\r\n")
        answer = b"".join(iter(lambda: line.recv(4096), b""))

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert "https://" in json.loads(body)["issue"][0]["diagnostics"]
    assert server.told("a client speaks without TLS where TLS is wanted")
    assert "Doe" not in server.log.read_text()


# ---- clients with bad manners


def test_clients_that_never_finish_their_handshake_hold_nobody_up(server: Running, authority: trustme.CA) -> None:
    with ExitStack() as stack:
        for number in range(20 * THREADS):
            line = stack.enter_context(socket.create_connection(server.address, timeout=20))
            if number % 2:
                line.sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a ClientHello

        begun = time.monotonic()
        told = asked(server, believing(authority))
        waited_s = time.monotonic() - begun

    assert told["scheme"] == "https"
    assert waited_s < 5.0  # gunicorn's own wait for the first byte, which takes a thread


def test_clients_that_finish_their_handshake_and_are_silent_hold_nobody_up(
    server: Running, authority: trustme.CA
) -> None:
    context = believing(authority)
    with ExitStack() as stack:
        for _ in range(4 * THREADS):
            stack.enter_context(connected(server, context))

        begun = time.monotonic()
        asked(server, context)
        waited_s = time.monotonic() - begun

    assert waited_s < 6.0  # eight of them, two at a time, for web.client_timeout_s each, are eight seconds


def test_silent_clients_go_after_their_time(server: Running, authority: trustme.CA) -> None:
    with connected(server, believing(authority)) as silent:
        silent.settimeout(15)
        begun = time.monotonic()

        assert silent.recv(1) == b""

        assert time.monotonic() - begun >= 1.9  # web.client_timeout_s


def test_of_too_many_that_come_the_first_goes(server: Running, authority: trustme.CA) -> None:
    with ExitStack() as stack:
        first, *_ = [
            stack.enter_context(socket.create_connection(server.address, timeout=20)) for _ in range(arrivals.MOST + 1)
        ]
        assert asked(server, believing(authority))["scheme"] == "https"

        assert first.recv(1) == b""


def test_a_client_that_sends_too_slowly_is_given_up(server: Running, authority: trustme.CA) -> None:
    with connected(server, believing(authority)) as line:
        line.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        begun = time.monotonic()
        received = b"".join(iter(lambda: line.recv(4096), b""))

    assert time.monotonic() - begun < 15
    assert b" 200 " not in received


def test_a_client_that_takes_nothing_is_given_up(server: Running, authority: trustme.CA) -> None:
    with connected(server, believing(authority)) as line:
        line.sendall(b"GET /?100000000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_for(lambda: False, 3.0)  # web.client_timeout_s and more
        taken = read_all(line)

    assert taken < 100_000_000


def test_a_client_that_breaks_the_record_layer_breaks_nothing_else(server: Running, authority: trustme.CA) -> None:
    with connected(server, believing(authority)) as line:
        line.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n")
        socket.socket.send(line, b"no record of TLS at all")
        read_all(line)

    assert asked(server, believing(authority))["scheme"] == "https"
    assert server.process.poll() is None


def test_who_waits_for_leave_to_send_a_body_gets_it(server: Running, authority: trustme.CA) -> None:
    with connected(server, believing(authority)) as line:
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nConnection: close\r\n"
        line.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert line.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.sendall(b"hello")

        assert b'"taken": 5' in b"".join(iter(lambda: line.recv(4096), b""))


def test_connections_without_tls_that_are_silent_take_no_thread_either(tmp_path: Path) -> None:
    with web_server(tmp_path / "log") as running, ExitStack() as stack:
        for _ in range(8 * THREADS):
            stack.enter_context(socket.create_connection(running.address, timeout=20))
        client = http.client.HTTPConnection(*running.address, timeout=20)
        with closing(client):
            client.request("GET", "/")
            assert json.loads(client.getresponse().read())["scheme"] == "http"
            begun = time.monotonic()
            client.request("GET", "/")
            client.getresponse().read()
        assert time.monotonic() - begun < 5.0


# ---- certificates of clients


def test_a_client_with_a_certificate_of_the_authority_is_let_in(
    strict: Running, authority: trustme.CA, clients: trustme.CA
) -> None:
    assert asked(strict, believing(authority, clients.issue_cert("client@test")))["scheme"] == "https"


def test_a_client_without_a_certificate_is_refused_and_told(strict: Running, authority: trustme.CA) -> None:
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        asked(strict, believing(authority))

    assert wait_for(lambda: strict.told("a TLS handshake failed"))
    assert strict.told("a TLS handshake failed")[-1]["kind"] == "PEER_DID_NOT_RETURN_A_CERTIFICATE"


def test_a_client_with_a_certificate_of_another_authority_is_refused(strict: Running, authority: trustme.CA) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        asked(strict, believing(authority, trustme.CA().issue_cert("client@test")))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_where_a_certificate_is_optional_only_a_bad_one_is_refused(
    ours: Path, authority: trustme.CA, clients: trustme.CA, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    clients.cert_pem.write_to_path(tmp_path / "clients.pem")
    settings = {"web_tls_clients": str(tmp_path / "clients.pem"), "web_tls_client_certificate": "optional"}
    good, none, bad = (
        believing(authority, shown)
        for shown in (clients.issue_cert("client@test"), None, trustme.CA().issue_cert("client@test"))
    )
    for each in (good, none, bad):
        each.maximum_version = version
    with served(ours, tmp_path / "log", **settings) as running:
        assert asked(running, good)["scheme"] == asked(running, none)["scheme"] == "https"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            asked(running, bad)


def test_a_server_that_wants_certificates_is_known_to_be_ready(strict: Running, clients: trustme.CA) -> None:
    """Nobody but its clients has one."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        closed = nobody.getsockname()
    words = {"web.tls_certificate": "c.pem", "web.tls_clients": "ca.pem"}
    told = config.load(words, environment={})

    assert is_ready(told, strict.address)
    assert not is_ready(told, closed)


# ---- much at a time


def test_much_passes_in_little_memory(server: Running, authority: trustme.CA) -> None:
    context = believing(authority)
    (worker,) = children(server.process.pid)
    asked(server, context, body=b"x" * MEBIBYTE)
    before = peak_of(worker)

    client = http.client.HTTPSConnection(*server.address, timeout=60, context=context)
    with closing(client):
        client.request("POST", "/", (b"x" * MEBIBYTE for _ in range(150)), {"Content-Length": str(150 * MEBIBYTE)})
        assert json.loads(client.getresponse().read())["taken"] == 150 * MEBIBYTE
        client.request("GET", f"/?{150 * MEBIBYTE}")
        answer = client.getresponse()
        assert sum(map(len, iter(lambda: answer.read(1 << 18), b""))) == 150 * MEBIBYTE

    assert peak_of(worker) - before < 10 * MEBIBYTE


def peak_of(pid: int) -> int:
    """Most memory that a process has ever had, in bytes."""
    (line,) = [each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("VmHWM")]
    return int(line.split()[1]) << 10


# ---- renewal


def test_a_new_certificate_is_shown_without_a_restart_and_half_of_one_changes_nothing(
    authority: trustme.CA, tmp_path: Path
) -> None:
    ours = identity(tmp_path / "ours", authority)
    renewed = identity(tmp_path / "renewed", trustme.CA())
    context = believing(authority)
    with served(ours, tmp_path / "log") as running:
        pid = asked(running, context)["pid"]
        shutil.copy(renewed / "key.pem", ours / "key.pem.new")
        (ours / "key.pem.new").replace(ours / "key.pem")
        assert wait_for(lambda: running.told("the new certificate is not taken, the old one stays"))
        assert asked(running, context)["pid"] == pid

        shutil.copy(renewed / "certificate.pem", ours / "certificate.pem.new")
        (ours / "certificate.pem.new").replace(ours / "certificate.pem")
        assert wait_for(lambda: running.told("a new certificate is shown"))

        with pytest.raises(ssl.SSLCertVerificationError):
            asked(running, context)
        new = ssl.create_default_context(cafile=str(renewed / "ca.pem"))
        assert asked(running, new)["pid"] == pid


def test_a_certificate_that_ended_is_warned_of(authority: trustme.CA, tmp_path: Path) -> None:
    made = authority.issue_cert("127.0.0.1", not_after=datetime.now(UTC) + timedelta(days=3))
    for blob in made.cert_chain_pems:
        blob.write_to_path(tmp_path / "certificate.pem", append=True)
    made.private_key_pem.write_to_path(tmp_path / "certificate.pem", append=True)
    with web_server(tmp_path / "log", web_tls_certificate=str(tmp_path / "certificate.pem")) as running:
        asked(running, believing(authority))

        assert wait_for(lambda: running.told("the certificate ends soon, or has ended: renew it"))


# ---- settings


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"web.tls_certificate": "missing.pem"}, "web.tls_certificate"),
        ({"web.tls_key": "missing.pem"}, "web.tls_key"),
        ({"web.tls_key": "other.pem"}, "web.tls_certificate"),
        ({"web.tls_clients": "empty.pem"}, "web.tls_clients"),
    ],
)
def test_files_that_cannot_be_used_are_named_before_anything_starts(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    trustme.CA().issue_cert("x").private_key_pem.write_to_path(tmp_path / "other.pem")
    (tmp_path / "empty.pem").touch()
    files = {"web.tls_certificate": str(ours / "certificate.pem"), "web.tls_key": str(ours / "key.pem")}

    with pytest.raises(AppError) as refused:
        tls(config.load(files | changes, environment={}))

    assert (refused.value.category, refused.value.where) == (Category.INVALID, where)
