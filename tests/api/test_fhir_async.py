"""Answers that are fetched later. Expected values: FHIR R4 async (status, cancellation), RFC 7240 4.1."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from pymongo import MongoClient

from fhir_server.access.contracts import Right
from fhir_server.model import task as tasks
from fhir_server.model.task import Role
from fhir_server.store.answers import Answers
from fhir_server.work.kinds import handlers
from imaging.errors import AppError
from tests.api.test_fhir_bundles import bundle, entry, numbered, patient
from tests.support.doors import BASE_URL, FHIR, Caller, Doors, opened

Json = dict[str, Any]
LATER = {"Prefer": "respond-async"}


@pytest.fixture(scope="module")
def doors(mongo: MongoClient[Json]) -> Iterator[Doors]:
    name = f"test_{uuid4().hex}"
    with opened(mongo[name]) as made:
        yield made
    mongo.drop_database(name)


@pytest.fixture
def both(doors: Doors) -> Caller:
    return doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="both")


def asked(caller: Caller, body: Json, **headers: str) -> str:
    """Ask for a Bundle to be processed later, and return the address of the answer."""
    response = caller.post("/fhir", body, headers={**LATER, **headers})
    assert (response.status_code, response.data) == (202, b"")
    return response.headers["Content-Location"].removeprefix(BASE_URL)


def order_of(doors: Doors, address: str) -> Json:
    return doors.server.own.read("Task", address.rpartition("/")[2]).json()


def work(doors: Doors, address: str) -> Json:
    """Do what the worker does for the Task of a request: start it, do it, write down what came of it."""
    handler, now = handlers.get("respond-async"), doors.clock.now
    started = doors.server.own.update(tasks.start(order_of(doors, address), Role.SERVER, now)).json()
    done = handler.run(started, doors.server, lambda _: None)
    outputs = done.outputs if not isinstance(done, list) else done
    return doors.server.own.update(tasks.complete(started, handler.kind, outputs, Role.SERVER, now)).json()


def count(both: Caller, number: str) -> int:
    return both.get(f"/fhir/Patient?identifier={number}&_summary=count").json["total"]


def test_a_transaction_is_done_later_and_its_answer_fetched(doors: Doors, both):
    number = uuid4().hex
    address = asked(both, bundle("transaction", entry("POST", "Patient", numbered(number))))

    waiting = both.get(address)
    before = count(both, number)
    finished = work(doors, address)
    answer = both.get(address)

    assert (waiting.status_code, waiting.headers["X-Progress"], waiting.headers["Retry-After"]) == (
        202,
        "requested",
        "2",
    )
    assert before == 0
    assert finished["output"][0]["valueUnsignedInt"] == 200
    assert (answer.status_code, answer.json["type"]) == (200, "transaction-response")
    assert answer.json["entry"][0]["response"]["location"].startswith(f"{FHIR}/Patient/")
    assert count(both, number) == 1


def test_a_transaction_that_is_done_twice_is_done_once(doors: Doors, both):
    number = uuid4().hex
    address = asked(both, bundle("transaction", entry("POST", "Patient", numbered(number))))
    order = order_of(doors, address)

    for _ in range(2):
        handlers.get("respond-async").run(order, doors.server, lambda _: None)

    assert count(both, number) == 1
    assert both.get(address).status_code == 200


def test_what_cannot_keep_its_answer_writes_nothing(doors: Doors, both, monkeypatch):
    number = uuid4().hex
    address = asked(both, bundle("transaction", entry("POST", "Patient", numbered(number))))
    order = order_of(doors, address)
    found = doors.server.answers.find(order["id"])
    doors.server.answers.keeping(order["id"], 200, b"{}")(None)
    # Another run looked before the answer was there.
    monkeypatch.setattr(Answers, "find", lambda self, id: found)

    with pytest.raises(AppError, match="answered already"):
        handlers.get("respond-async").run(order, doors.server, lambda _: None)

    assert count(both, number) == 0


def test_an_error_is_an_answer(doors: Doors, both):
    address = asked(both, bundle("transaction", entry("GET", "Patient/unknown")))
    work(doors, address)

    answer = both.get(address)

    assert (answer.status_code, answer.json["issue"][0]["expression"]) == (404, ["Bundle.entry[0]"])


def test_searches_and_batches_that_read_are_done_later(doors: Doors, both):
    made = both.post("/fhir/Patient", patient(gender="other")).json
    searched = both.get(f"/fhir/Patient?_id={made['id']}", headers=LATER)
    posted = both.call("POST", "/fhir/Patient/_search", data={"_id": made["id"]}, headers=LATER)
    addresses = [each.headers["Content-Location"].removeprefix(BASE_URL) for each in (searched, posted)]
    addresses.append(asked(both, bundle("batch", entry("GET", f"Patient/{made['id']}"))))

    for address in addresses:
        work(doors, address)

    assert [both.get(address).json.get("total") for address in addresses[:2]] == [1, 1]
    assert both.get(addresses[2]).json["entry"][0]["resource"] == made
    assert both.get(addresses[2], headers={"Accept": "application/fhir+xml"}).mimetype == "application/fhir+xml"


def test_a_batch_that_writes_is_answered_at_once_because_it_cannot_be_tried_again(both):
    response = both.post("/fhir", bundle("batch", entry("POST", "Patient", patient())), headers=LATER)

    assert (response.status_code, response.json["type"]) == (200, "batch-response")


def test_the_rights_are_those_at_the_time_of_the_work(doors: Doors):
    caller = doors.caller(Right.RECEIVE_IMAGES, name="clinic")
    response = caller.get("/fhir/Patient", headers=LATER)
    address = response.headers["Content-Location"].removeprefix(BASE_URL)
    doors.server.principals.add("clinic", [Right.REGISTER_IMAGES])

    work(doors, address)

    assert caller.get(address).status_code == 403


def test_who_may_not_ask_is_told_at_once(doors: Doors):
    sender = doors.caller(Right.REGISTER_IMAGES, name="sender")

    assert sender.get("/fhir/Patient", headers=LATER).status_code == 403


def test_nobody_else_learns_of_a_request(doors: Doors, both):
    address = asked(both, bundle("transaction"))
    other = doors.caller(*Right, name="other")

    assert [other.get(address).status_code, other.delete(address).status_code] == [404, 404]
    assert both.get("/fhir/_async/unknown").status_code == 404
    assert both.get("/fhir/_async/%24where").status_code == 404
    assert doors.stranger.get(address).status_code == 401


def test_a_request_that_is_given_up_is_not_done(doors: Doors, both):
    address = asked(both, bundle("transaction", entry("POST", "Patient", patient())))
    order = order_of(doors, address)

    response = both.delete(address)

    assert response.status_code == 202
    assert order_of(doors, address)["status"] == "cancelled"
    assert both.get(address).status_code == 404
    with pytest.raises(AppError):
        handlers.get("respond-async").run(order, doors.server, lambda _: None)


def test_a_request_that_failed_says_so(doors: Doors, both):
    address = asked(both, bundle("transaction"))
    failed = tasks.fail(order_of(doors, address), "given up after 5 attempts", Role.SERVER, doors.clock.now)
    doors.server.own.update(failed)

    response = both.get(address)

    assert (response.status_code, response.json["issue"][0]["diagnostics"]) == (500, "given up after 5 attempts")


def test_clients_do_not_place_such_tasks_themselves(doors: Doors):
    caller = doors.caller(*Right, name="everything")
    code = {"coding": [{"system": tasks.CODES, "code": "respond-async"}]}
    order = {"resourceType": "Task", "status": "requested", "intent": "order", "code": code}

    assert caller.post("/fhir/Task", order).status_code == 403


def test_a_request_is_forgotten_after_a_day(doors: Doors):
    index = doors.server.database["answers"].index_information()["forget"]

    assert index["expireAfterSeconds"] == 24 * 3600
