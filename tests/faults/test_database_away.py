"""A database that is killed, or hangs, under a working server: 503 in time, and work goes on when it is back."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
from werkzeug.test import TestResponse

from fhir_server.access.contracts import Right
from fhir_server.app import build
from fhir_server.doors import create_app
from fhir_server.engine import LocalEngine, find_engine
from tests.support.dicomweb import BOUNDARY, EXPLICIT_LE, Site, bearer, ct, related
from tests.support.engine import settings
from tests.support.serving import wait_for

TIMEOUT_S = 1.0
HEARTBEAT_S = 10.0  # between two looks of the driver at a database that seems well
SLACK_S = 15.0  # of a loaded machine, and for what comes after the first failure
INSTANCE = "/studies/1.2.3/series/1.2.3.1/instances/1.2.3.1.1"
DICOM = 'multipart/related; type="application/dicom"'
RELATED = f"{DICOM}; boundary={BOUNDARY}"
PATIENT = {"resourceType": "Patient", "name": [{"text": "x"}]}

# What is asked; the last two tell a body.
REQUESTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "FHIR read": ("GET", "/fhir/ImagingStudy/1.2.3", {}),
    "FHIR search": ("GET", "/fhir/ImagingStudy?_count=5", {}),
    "FHIR history": ("GET", "/fhir/ImagingStudy/1.2.3/_history", {}),
    "FHIR create": ("POST", "/fhir/Patient", {"json": PATIENT, "content_type": "application/fhir+json"}),
    "QIDO": ("GET", "/dicom-web/studies", {}),
    "QIDO of a study": ("GET", "/dicom-web/studies/1.2.3/instances", {}),
    "study": ("GET", "/dicom-web/studies/1.2.3", {"headers": {"Accept": DICOM}}),
    "metadata": ("GET", "/dicom-web/studies/1.2.3/metadata", {}),
    "received": ("GET", f"/dicom-web{INSTANCE}/received", {}),
    "frame": ("GET", f"/dicom-web{INSTANCE}/frames/1", {}),
    "converted": (
        "GET",
        f"/dicom-web{INSTANCE}",
        {"headers": {"Accept": f"application/dicom; transfer-syntax={EXPLICIT_LE}"}},
    ),
    "rendered": ("GET", f"/dicom-web{INSTANCE}/rendered", {"headers": {"Accept": "image/png"}}),
    "thumbnail": ("GET", f"/dicom-web{INSTANCE}/thumbnail", {"headers": {"Accept": "image/png"}}),
    "delete": ("DELETE", "/dicom-web/studies/1.2.3", {}),
    "no token": ("GET", "/fhir/Patient/1", {"headers": {"Authorization": "Bearer unknown"}}),
    "STOW": ("POST", "/dicom-web/studies", {"data": related(ct(2)), "content_type": RELATED}),
}


@dataclass(frozen=True)
class Victim:
    """A server whose database can be taken away."""

    engine: LocalEngine
    site: Site

    def ask(self, name: str) -> TestResponse:
        method, path, more = REQUESTS[name]
        headers = {**self.site.hospital, **more.get("headers", {})}
        return self.site.web.application.test_client().open(path, method=method, **{**more, "headers": headers})

    def signal(self, number: int) -> None:
        pid = self.engine.status().pid
        assert pid is not None
        os.kill(pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        while self.engine.status().running:
            time.sleep(0.01)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    directory = tmp_path_factory.mktemp("away")
    config = settings(directory, access__cache_s="0", mongodb__timeout_s=str(TIMEOUT_S))
    engine = find_engine(config)
    with closing(build(config, engine.start())) as server:
        try:
            both = bearer(server, "Both", Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES)
            made = Site(server, create_app(server).test_client(), both, both)
            assert made.store(ct(1)).status_code == 200
            server.studies.project("1.2.3")
            yield Victim(engine, made)
        finally:
            engine.stop()


@pytest.fixture
def killed(victim: Victim) -> Iterator[Victim]:
    victim.kill()
    yield victim
    victim.engine.restart()


@pytest.fixture
def hanging(victim: Victim) -> Iterator[Victim]:
    victim.signal(signal.SIGSTOP)
    yield victim
    victim.signal(signal.SIGCONT)


def test_all_requests_work_while_the_database_is_there(victim: Victim) -> None:
    statuses = {name: victim.ask(name).status_code for name in REQUESTS if name != "delete"}

    assert {name: status for name, status in statuses.items() if status >= 400} == {"no token": 401}


def test_a_database_that_was_killed_makes_503_in_time_and_no_fault(killed: Victim) -> None:
    begun = time.monotonic()
    with ThreadPoolExecutor(len(REQUESTS)) as pool:
        answers = dict(zip(REQUESTS, pool.map(killed.ask, REQUESTS), strict=True))

    assert time.monotonic() - begun < TIMEOUT_S + SLACK_S
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(REQUESTS, 503)
    assert all(answer.headers["Retry-After"] for answer in answers.values())
    assert answers["FHIR read"].get_json()["issue"][0]["code"] == "transient"


def test_a_database_that_hangs_makes_503_in_time(hanging: Victim) -> None:
    begun = time.monotonic()
    with ThreadPoolExecutor(len(REQUESTS)) as pool:
        statuses = dict(zip(REQUESTS, (each.status_code for each in pool.map(hanging.ask, REQUESTS)), strict=True))

    assert time.monotonic() - begun < HEARTBEAT_S + 2 * TIMEOUT_S + SLACK_S
    assert statuses == dict.fromkeys(REQUESTS, 503)


@pytest.mark.parametrize("away", ["killed", "hanging"])
def test_work_goes_on_when_the_database_is_back(victim: Victim, away: str) -> None:
    if away == "killed":
        victim.kill()
        victim.engine.restart()
    else:
        victim.signal(signal.SIGSTOP)
        assert victim.ask("FHIR read").status_code == 503
        victim.signal(signal.SIGCONT)

    assert wait_for(lambda: victim.ask("STOW").status_code == 200, timeout_s=60)
    assert victim.ask("received").status_code == 200
