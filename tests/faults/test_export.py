"""Exports whose worker dies, after any write: what is fetched in the end is what it would have been, each line once."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pymongo.database import Database

from fhir_server.access.contracts import Right
from fhir_server.model import json
from fhir_server.model.task import Role, start
from fhir_server.rest import exporting as asking
from fhir_server.store.answers import Answers
from fhir_server.store.exports import Exports
from fhir_server.work import exporting
from fhir_server.work.exporting import Exporter, FileLimits
from fhir_server.work.kinds import handlers
from imaging.errors import AppError
from tests.faults.test_tasks import until
from tests.support.doors import Caller, Doors, opened
from tests.support.exporting import Exported, fetched, kicked_off, work
from tests.support.working import working

PATH = "/fhir/Patient/$export?_since=2020-01-01T00:00:00Z"


class KilledError(BaseException):
    """The process is dead."""


@dataclass
class Ward:
    doors: Doors
    client: Caller


@pytest.fixture(scope="module")
def ward(module_db: Database[dict[str, Any]]) -> Iterator[Ward]:
    """A server with patients, Observations, who made these, Provenance of them, and some that were deleted."""
    with opened(module_db, bulk__settle_s="0", bulk__exports="1000", bulk__file_bytes="1024") as doors:
        client = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="both")
        doctors = [made(client, {"resourceType": "Practitioner"}) for _ in range(3)]
        for number in range(4):
            patient = made(client, {"resourceType": "Patient"})
            content = {"status": "final", "code": {"text": "x"}, "subject": patient, "performer": [doctors[number % 3]]}
            observation = made(client, {"resourceType": "Observation", **content})
            agent = [{"who": doctors[0]}]
            told = {"target": [observation], "recorded": "2026-01-01T00:00:00Z", "agent": agent}
            made(client, {"resourceType": "Provenance", **told})
            client.delete(f"/fhir/{made(client, {'resourceType': 'Patient'})['reference']}")
        yield Ward(doors, client)


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "PAGE_LINES", 2)
    monkeypatch.setattr(exporting, "TOGETHER", 2)
    monkeypatch.setattr(exporting, "ENTRIES", 2)


def made(client: Caller, resource: dict[str, Any]) -> dict[str, str]:
    answer = client.post(f"/fhir/{resource['resourceType']}", resource).json
    return {"reference": f"{resource['resourceType']}/{answer['id']}"}


def told(found: Exported) -> dict[Any, list[bytes]]:
    """Every line but those of Tasks, of which there is one more for each export."""
    return {key: sorted(map(json.dumps, lines)) for key, lines in found.lines.items() if key[1] != "Task"}


def dying(write: Callable[..., Any], nth: int, *, before: bool) -> Callable[..., Any]:
    """Return a write in whose nth call, counted from 0, the process dies: before it is done, or right after."""
    calls = iter(range(10_000))

    def write_or_die(*arguments: Any) -> Any:
        number = next(calls)
        if before and number == nth:
            raise KilledError
        result = write(*arguments)
        if number == nth:
            raise KilledError
        return result

    return write_or_die


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_death_at_any_page_changes_nothing(ward: Ward, monkeypatch, before):
    address = kicked_off(ward.client, PATH)
    work(ward.doors, address)
    whole = told(fetched(ward.client, address))
    pages = ward.doors.server.database["export_pages"].count_documents({"export": address.rpartition("/")[2]})

    outcomes = []
    for number in range(pages):
        address = kicked_off(ward.client, PATH)
        with monkeypatch.context() as patched:
            patched.setattr(Exports, "write", dying(Exports.write, number, before=before))
            with pytest.raises(KilledError):
                work(ward.doors, address)
        work(ward.doors, address)
        outcomes.append(told(fetched(ward.client, address)))

    assert pages >= 9
    assert outcomes == [whole] * pages
    assert {kind for _, kind in whole} == {"Bundle", "Observation", "Patient", "Practitioner", "Provenance"}


def test_a_death_in_turn_after_turn_ends(ward: Ward, monkeypatch):
    """Each worker writes two pages and dies."""
    address = kicked_off(ward.client, PATH)
    deaths = 0

    while True:
        with monkeypatch.context() as patched:
            patched.setattr(Exports, "write", dying(Exports.write, 1, before=False))
            try:
                work(ward.doors, address)
                break
            except KilledError:
                deaths += 1

    again = kicked_off(ward.client, PATH)
    work(ward.doors, again)
    assert deaths > 3
    assert told(fetched(ward.client, address)) == told(fetched(ward.client, again))


def test_a_death_with_the_manifest_written_gives_that_manifest(ward: Ward, monkeypatch):
    address = kicked_off(ward.client, PATH)
    keeping = Answers.keeping
    with monkeypatch.context() as patched:
        patched.setattr(Answers, "keeping", lambda *given: dying(keeping(*given), 0, before=False))
        with pytest.raises(KilledError):
            work(ward.doors, address)
    manifest = ward.client.get(address).json

    done = work(ward.doors, address)

    assert ward.client.get(address).json == manifest
    assert done["output"][1]["valueUnsignedInt"] == sum(len(manifest[part]) for part in ("output", "deleted", "error"))


def test_of_two_workers_that_have_the_same_export_one_is_refused(ward: Ward):
    address = kicked_off(ward.client, PATH)
    server, id = ward.doors.server, address.rpartition("/")[2]
    server.exports.begin(id, wait_s=0)
    begun = [False]

    def other_worker(percent: int, text: str) -> None:
        if not begun[0]:
            begun[0] = True
            work(ward.doors, address)

    with pytest.raises(AppError, match="another writer was first"):
        exporter(ward, id).run(float("inf"), other_worker)

    again = kicked_off(ward.client, PATH)
    work(ward.doors, again)
    assert told(fetched(ward.client, address)) == told(fetched(ward.client, again))


def exporter(ward: Ward, id: str) -> Exporter:
    server = ward.doors.server
    asked = server.answers.find(id)
    snapshot = server.repository_for(server.principals.acting_for(asked.owner)).as_of(
        server.exports.begin(id, wait_s=0)
    )
    return Exporter(
        server.exports,
        id,
        asking.of_json(json.loads_trusted(asked.request)["export"]),
        snapshot,
        base_url=server.fhir_url,
        limits=server.search_limits,
        file_limits=FileLimits(1024, 100),
    )


def test_what_is_written_by_a_worker_that_heard_of_no_end_is_swept_up(ward: Ward):
    address = kicked_off(ward.client, PATH)
    server, id = ward.doors.server, address.rpartition("/")[2]
    order = server.own.update(start(server.own.read("Task", id).json(), Role.SERVER, ward.doors.clock.now)).json()
    deleted = [False]

    def given_up(progress: Any) -> None:
        if not deleted[0]:
            deleted[0] = True
            ward.client.delete(address)

    with pytest.raises(AppError):
        handlers.get("export").run(order, server, given_up)
    left = server.exports.files(id)
    server.exports.sweep(server.answers.is_kept)

    assert left
    assert server.exports.files(id) == ()


def test_a_worker_that_is_killed_is_followed_by_another(db, engine_uri, mongo):
    settings = {"mongodb__uri": engine_uri, "mongodb__database": db.name, "web__base_url": "http://images.test"}
    with opened(db) as doors:
        client = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="both")
        patients = {made(client, {"resourceType": "Patient"})["reference"] for _ in range(5)}
        address = kicked_off(client, "/fhir/$export?_type=Patient")
        id = address.rpartition("/")[2]

        def status() -> str:
            return str(doors.server.own.read("Task", id).json()["status"])

        with working(2.0, bulk__settle_s="60", **settings) as first:
            assert until(lambda: status() == "in-progress", 40)
            os.kill(first.pid, signal.SIGKILL)
        with working(2.0, bulk__settle_s="0", **settings):
            assert until(lambda: status() == "completed", 40)

        assert {f"Patient/{each}" for each in fetched(client, address).ids("Patient")} == patients
