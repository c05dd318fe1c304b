"""A whole server that speaks HTTPS itself and forwards its record: with requests, httpx, curl, websocket-client."""

import io
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import requests
import trustme
import websocket
from pydicom import dcmread

from fhir_server.access.contracts import Right
from fhir_server.app import open_server
from imaging.dicomweb import iter_parts, parse_content_type
from tests.support.certificates import identity
from tests.support.dicomweb import BOUNDARY, ct, related
from tests.support.engine import settings
from tests.support.serving import Served, fhir_imaging, serving, wait_for
from tests.support.subscribing import STATUS_CHANGED, ending, events, said, to_topic
from tests.support.syslog import SCHEMA, Collector, collecting
from tests.support.workitems import new_item

STUDY, SLICES, SIDE = "1.2.443", 40, 512
WORKLIST = "1.2.840.10008.5.1.4.34.5"
NATIVE = 'multipart/related; type="application/dicom"'
TASK = {"resourceType": "Task", "status": "requested", "intent": "order", "code": {"text": "read it"}}


class Client(requests.Session):
    """A subscriber's program; it believes the authority of the test alone."""

    def __init__(self, served: Served, authority: Path) -> None:
        super().__init__()
        self.base, self.authority = served.base_url, str(authority)
        self.trust_env, self.verify = False, self.authority
        with open_server(settings(served.data_dir)) as operator:
            operator.principals.add("clinic", list(Right))
            self.bearer = f"Bearer {operator.principals.mint('clinic')}"
        self.headers["Authorization"] = self.bearer

    def connected(self, address: str) -> websocket.WebSocket:
        trusted = {"ca_certs": self.authority}
        return websocket.create_connection(
            address, timeout=20, sslopt=trusted, header=[f"Authorization: {self.bearer}"]
        )


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fhir-imaging-test-") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def files(folder: Path) -> Path:
    return identity(folder / "certificates", trustme.CA())


@pytest.fixture(scope="module")
def repository(files: Path) -> Iterator[Collector]:
    """The Audit Record Repository."""
    with collecting(files) as found:
        yield found


@pytest.fixture(scope="module")
def served(folder: Path, files: Path, repository: Collector) -> Iterator[Served]:
    given = {
        "audit.repository": f"tls://localhost:{repository.port}", "audit.ca_bundle": files / "ca.pem",
        "web.tls_certificate": files / "certificate.pem", "web.tls_key": files / "key.pem", "web.workers": 1,
        "web.threads": 2, "work.task_workers": 0, "access.cache_s": 0,
    }  # fmt: skip
    words = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
    with serving(folder / "store", *words) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Served, files: Path) -> Client:
    return Client(served, files / "ca.pem")


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    noise = np.random.default_rng(7)
    made = (noise.integers(0, 4096, SIDE * SIDE, dtype="<u2").tobytes() for _ in range(SLICES))
    return [ct(number, study=STUDY, side=SIDE, PixelData=each) for number, each in enumerate(made, 1)]


def test_addresses_begin_with_https_wherever_the_server_says_them(served: Served, client: Client) -> None:
    statement = client.get(f"{client.base}/fhir/metadata").json()

    assert served.base_url.startswith("https://127.0.0.1:")
    assert statement["implementation"]["url"] == f"{served.base_url}/fhir"
    assert "http://127.0.0.1" not in json.dumps(statement)
    smart = client.get(f"{client.base}/fhir/.well-known/smart-configuration").json()
    assert smart["token_endpoint"].startswith(served.base_url)


def test_browsers_stay_with_https_and_their_cookie_too(client: Client) -> None:
    page = requests.get(f"{client.base}/auth/sign-in", verify=client.authority, timeout=20)

    assert page.headers["Strict-Transport-Security"].startswith("max-age=")
    cookie = page.headers["Set-Cookie"]
    assert cookie.startswith("__Host-session=")
    assert "; Secure" in cookie


def test_who_does_not_believe_the_authority_gets_nothing(client: Client) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{client.base}/health/ready")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(client: Client) -> None:
    def curl(*words: str) -> str:
        return subprocess.run(["curl", "-sS", "-i", *words], capture_output=True, text=True, timeout=30).stdout

    found = curl("--cacert", client.authority, "-H", f"Authorization: {client.bearer}", f"{client.base}/fhir/Patient")
    plain = curl(f"http{client.base.removeprefix('https')}/fhir/Patient")

    assert found.startswith("HTTP/1.1 200 OK")
    assert plain.startswith("HTTP/1.1 400 ")
    assert "https://" in plain


def test_ready_asks_by_https(served: Served, files: Path) -> None:
    port = served.base_url.rpartition(":")[2]
    certificate = ("--set", f"web.tls_certificate={files / 'certificate.pem'}", "--data-dir", served.data_dir)

    asked = fhir_imaging("ready", "--set", f"web.port={port}", *certificate)
    plainly = fhir_imaging("ready", "--set", f"web.port={port}", "--data-dir", served.data_dir)

    assert (asked.returncode, asked.stdout) == (0, "ready\n")
    assert plainly.returncode == 1
    assert "is not ready" in plainly.stderr


def test_a_study_comes_in_and_out_whole(client: Client, images: list[bytes]) -> None:
    body = related(*images)
    headers = {"Content-Type": f"{NATIVE}; boundary={BOUNDARY}", "Accept": "application/dicom+json"}
    pieces = (body[at : at + 99_999] for at in range(0, len(body), 99_999))
    stored = client.post(f"{client.base}/dicom-web/studies", pieces, headers=headers)
    assert stored.status_code == 200, stored.text[:300]
    assert stored.json()["00081199"]["Value"][0]["00081190"]["Value"][0].startswith("https://")

    with client.get(f"{client.base}/dicom-web/studies/{STUDY}", headers={"Accept": NATIVE}, stream=True) as answer:
        kind = parse_content_type(answer.headers["Content-Type"])
        parts = iter_parts(answer.raw.read, kind.parameters["boundary"])
        came = {dcmread(io.BytesIO(bytes(part.body))).PixelData for part in parts}

    assert came == {dcmread(io.BytesIO(each)).PixelData for each in images}


def test_a_subscription_is_told_by_wss(client: Client) -> None:
    subscription = to_topic(STATUS_CHANGED, way="websocket")
    fhir = {"Content-Type": "application/fhir+json"}
    base = f"{client.base}/fhir"
    name = client.post(f"{base}/Subscription", json.dumps(subscription), headers=fhir).json()["id"]
    assert wait_for(lambda: client.get(f"{base}/Subscription/{name}").json()["status"] == "active")
    told = client.get(f"{base}/Subscription/{name}/$get-ws-binding-token").json()["parameter"]
    binding: dict[str, Any] = {each["name"]: each for each in told}
    address = binding["websocket-url"]["valueUrl"]

    with ending(client.connected(address)) as line:
        line.send(f"bind-with-token {binding['token']['valueString']}")
        handshake = json.loads(line.recv())
        task = client.post(f"{base}/Task", json.dumps(TASK), headers=fhir).json()["id"]
        event = json.loads(line.recv())

    assert address.startswith("wss://")
    assert said(handshake, "type") == "handshake"
    assert events(event)[0]["focus"]["reference"] == f"{base}/Task/{task}"


def test_events_of_work_items_are_told_by_wss(client: Client) -> None:
    base = f"{client.base}/dicom-web"
    answer = client.post(f"{base}/workitems/{WORKLIST}/subscribers/WARD")
    item = new_item(ScheduledStationNameCodeSequence=None)

    with ending(client.connected(answer.headers["Content-Location"])) as line:
        client.post(f"{base}/workitems?2.25.443", json.dumps(item), headers={"Content-Type": "application/dicom+json"})
        report = json.loads(line.recv())

    assert answer.headers["Content-Location"].startswith("wss://")
    assert report["00001000"]["Value"] == ["2.25.443"]


def test_more_sockets_than_threads_are_open_at_a_time(client: Client) -> None:
    address = f"wss{client.base.removeprefix('https')}/fhir/_socket"
    lines = [client.connected(address) for _ in range(5)]

    assert requests.get(f"{client.base}/health/ready", verify=client.authority, timeout=20).status_code == 200

    for line in lines:
        line.send("bind nothing-that-is-there")
        assert json.loads(line.recv())["resourceType"] == "OperationOutcome"
        line.close()


def test_the_audit_record_is_forwarded_and_that_is_told(served: Served, client: Client, repository: Collector) -> None:
    client.get(f"{client.base}/fhir/Patient?family=Doe")
    here = ("--data-dir", served.data_dir, "--set", f"audit.repository=tls://localhost:{repository.port}")

    def told() -> list[str]:
        events = [each.xml.find("EventIdentification") for each in repository.came]
        return [code.get("csd-code") for event in events for code in event.findall("EventTypeCode")]

    assert wait_for(lambda: {"110120", "search-type"} <= set(told()))  # Application Start, and what was searched for
    assert all(SCHEMA.validate(each.xml) for each in repository.came)
    assert not any(b"Doe" in each.body for each in repository.came)
    status = fhir_imaging("audit", "status", *here)
    assert status.returncode == 0
    assert f"repository    tls://localhost:{repository.port}\n" in status.stdout
    assert "last arrived  20" in status.stdout


def test_a_certificate_that_cannot_be_used_is_refused_in_one_line(served: Served, files: Path) -> None:
    other = served.data_dir.parent / "other"

    refused = fhir_imaging("serve", "--data-dir", other, "--set", f"web.tls_certificate={files / 'key.pem'}")

    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "web.tls_certificate" in refused.stderr
    assert not other.exists()
