"""A worker that dies while it indexes by a new search parameter: another one ends it, and no search misses a thing."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pymongo.database import Database

from fhir_server.access.contracts import Right
from tests.faults.test_tasks import completions, until
from tests.support.doors import Caller, Doors, opened

Json = dict[str, Any]
STUDIES = 600
WITH_REGION = {"tok": {"$elemMatch": {"p": "region"}}}
PARAMETER = {
    "resourceType": "SearchParameter", "url": "http://example.org/SearchParameter/region", "name": "Region",
    "status": "active", "description": "region of a series", "code": "region", "base": ["ImagingStudy"],
    "type": "token", "expression": "ImagingStudy.series.bodySite",
}  # fmt: skip


@pytest.fixture
def doors(db: Database[Json]) -> Iterator[Doors]:
    with opened(db) as made:
        made.server.search_parameters._refresh_s = 0.0
        yield made


@pytest.fixture
def client(doors: Doors) -> Caller:
    """A client, where there are studies of two regions."""
    writer = doors.server.own._writer
    doors.server.database["resources"].insert_many(
        [writer.document(f"ImagingStudy/{number}", _study(number), "POST") for number in range(STUDIES)]
    )
    return doors.caller(*Right, name="client")


def _study(number: int) -> Json:
    site = {"system": "http://snomed.info/sct", "code": "51185008" if number % 3 else "69536005"}
    series = [{"uid": "1.2", "modality": {"code": "CT"}, "bodySite": site}]
    return {
        "resourceType": "ImagingStudy", "status": "available", "subject": {"reference": "Patient/1"}, "series": series
    }  # fmt: skip


def _status(client: Caller, task: Json) -> str:
    found = client.get(f"/fhir/Task/{task['id']}").json
    assert found["status"] != "failed", found
    return str(found["status"])


@contextmanager
def worker(uri: str, db: Database[Json]) -> Iterator[int]:
    """Run a worker in a process group of its own, and give the group's id."""
    command = [sys.executable, "-m", "tests.faults.reindexing", uri, db.name, "1"]
    started = subprocess.Popen(command, start_new_session=True)
    try:
        yield started.pid
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGTERM)
        started.wait(20)


def test_a_worker_killed_while_it_indexes_is_replaced_and_nothing_is_missed(
    doors: Doors, client: Caller, db: Database[Json], engine_uri: str
) -> None:
    indexed = db["resources"].count_documents
    search = "/fhir/ImagingStudy?region=51185008&_summary=count"

    with worker(engine_uri, db) as group:
        assert client.post("/fhir/SearchParameter", PARAMETER).status_code == 201
        assert until(lambda: indexed(WITH_REGION) > 0, 60)
        os.killpg(group, signal.SIGKILL)
    left = STUDIES - indexed(WITH_REGION)
    unknown = client.get(search).status_code
    task = client.get("/fhir/Task?code=reindex").json["entry"][0]["resource"]
    with worker(engine_uri, db):
        assert until(lambda: _status(client, task) == "completed", 60)

    assert left > 0
    assert (task["status"], unknown) == ("in-progress", 400)
    assert client.get(search).json["total"] == STUDIES * 2 // 3
    assert indexed(WITH_REGION) == STUDIES
    assert completions(doors.server.own, task["id"]) == 1
