"""A whole server, whose event channels are opened by websocket-client, and the program of the how-to page.

PS3.18 8.10.4, 8.10.5 and 11.10 to 11.13.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket
from pydicom.uid import generate_uid

from fhir_server.access.contracts import Right
from fhir_server.app import open_server
from tests.support.engine import settings
from tests.support.serving import Served, serving
from tests.support.subscribing import ending
from tests.support.workitems import new_item, state

WORKLIST = "1.2.840.10008.5.1.4.34.5"
PAGE = Path(__file__).parents[2] / "docs/howto/work-by-ups.md"
SETTINGS = [
    part
    for each in ("access.cache_s=0", "web.workers=1", "web.threads=2", "work.task_workers=0")
    for part in ("--set", each)
]


class Client:
    """A subscriber's program, which orders and does the work."""

    def __init__(self, served: Served) -> None:
        self.base = f"{served.base_url}/dicom-web"
        with open_server(settings(served.data_dir)) as operator:
            operator.principals.add("clinic", list(Right))
            self.token = operator.principals.mint("clinic")

    def call(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/dicom+json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.base}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.headers

    def placed(self) -> str:
        uid = generate_uid()
        self.call("POST", f"/workitems?{uid}", new_item(ScheduledStationNameCodeSequence=None))
        return uid

    def opened(self, title: str) -> websocket.WebSocket:
        address = f"ws{self.base.removeprefix('http')}/subscribers/{title}"
        return websocket.create_connection(address, timeout=20, header=[f"Authorization: Bearer {self.token}"])


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with (
        tempfile.TemporaryDirectory(prefix="fhir-imaging-test-") as directory,
        serving(Path(directory), *SETTINGS) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def client(served: Served) -> Client:
    return Client(served)


def heard(line: websocket.WebSocket) -> tuple[str, int, str]:
    """The work item, the Event Type ID and the state of the next report."""
    report = json.loads(line.recv())
    values = [report.get(tag, {}).get("Value", [""])[0] for tag in ("00001000", "00001002", "00741000")]
    return values[0], values[1], values[2]


def test_events_come_by_the_channel_as_they_happen(client: Client) -> None:
    with ending(client.opened("LIVE")) as line:  # before anything is subscribed to
        answer = client.call("POST", f"/workitems/{WORKLIST}/subscribers/LIVE")
        uid = client.placed()
        told = [heard(line)]
        client.call("PUT", f"/workitems/{uid}/state", state("IN PROGRESS"))
        told.append(heard(line))
        client.call("POST", f"/workitems/{uid}/cancelrequest")
        told.append(heard(line))

    assert answer["Content-Location"].endswith("/dicom-web/subscribers/LIVE")
    assert answer["Content-Location"].startswith("ws://")
    assert told == [(uid, 1, "SCHEDULED"), (uid, 1, "IN PROGRESS"), (uid, 2, "")]


def test_what_was_missed_comes_when_the_channel_is_opened_again(client: Client) -> None:
    first = client.placed()
    client.call("POST", f"/workitems/{first}/subscribers/MISSED")
    with ending(client.opened("MISSED")) as line:
        told = [heard(line)]
    client.call("PUT", f"/workitems/{first}/state", state("IN PROGRESS"))

    with ending(client.opened("MISSED")) as line:
        told.append(heard(line))

    assert told == [(first, 1, "SCHEDULED"), (first, 1, "IN PROGRESS")]


def test_a_later_channel_takes_the_place_of_an_earlier_one(client: Client) -> None:
    with ending(client.opened("TWICE")) as before, ending(client.opened("TWICE")) as after:
        gone = before.recv()
        client.call("POST", f"/workitems/{WORKLIST}/subscribers/TWICE")
        uid = client.placed()

        assert gone == ""
        assert heard(after) == (uid, 1, "SCHEDULED")


def test_the_program_on_the_page_prints_events(client: Client) -> None:
    (program,) = [each for each in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "TITLE" in each]
    uid = client.placed()
    client.call("POST", f"/workitems/{uid}/subscribers/PAGE")
    environment = {"SERVER": client.base.removesuffix("/dicom-web"), "TOKEN": client.token, "TITLE": "PAGE"}

    with subprocess.Popen(
        [sys.executable, "-c", program], env=os.environ | environment, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        running.terminate()

    assert line == f"{uid} state SCHEDULED\n"


def test_a_server_that_stops_says_so_on_the_channel(served: Served, client: Client) -> None:
    with ending(client.opened("LAST")) as line:
        served.process.terminate()
        told = heard(line)
        end = line.recv()

    assert told == (WORKLIST, 4, "")
    assert end == ""
    assert served.process.wait(30) is not None
