"""Answers that are fetched later. Expected values: FHIR R4 async (status, cancellation), RFC 7240 4.1."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
from pymongo.database import Database
from pymongo.errors import ConnectionFailure

from fhir_server.access.contracts import Right
from fhir_server.model import task as tasks
from fhir_server.model.task import Role
from fhir_server.rest import later
from fhir_server.rest.interactions import Interactions
from fhir_server.store.answers import Answers
from fhir_server.work.kinds import handlers
from imaging.errors import AppError, Category
from tests.api.test_fhir_bundles import bundle, entry, numbered, patient
from tests.support.doors import BASE_URL, FHIR, Caller, Doors, new_study, opened

Json = dict[str, Any]
LATER = {"Prefer": "respond-async"}


@pytest.fixture(scope="module")
def doors(module_db: Database[Json]) -> Iterator[Doors]:
    with opened(module_db) as made:
        yield made


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


def test_a_batch_that_writes_is_done_later_and_its_answer_fetched(doors: Doors, both):
    number, uid = uuid4().hex, new_study()[0]
    study = {"identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}], "status": "available"}
    study |= {"resourceType": "ImagingStudy", "subject": {"display": "somebody"}}
    address = asked(
        both,
        bundle(
            "batch",
            entry("POST", "Patient", numbered(number)),
            entry("POST", "Patient", numbered(number, gender="x")),
            entry("GET", f"Patient?identifier={number}"),
            entry("PUT", f"Patient?identifier={number}", numbered(number, gender="other")),
            entry("POST", "ImagingStudy", study),
            entry("DELETE", f"ImagingStudy/{uid}"),
            entry("DELETE", f"Patient?identifier={number}x"),
            entry("PATCH", "Patient/1", {"resourceType": "Parameters"}),
        ),
    )
    before = count(both, number)

    work(doors, address)
    answer = both.get(address).json

    told = [each["response"]["status"][:3] for each in answer["entry"]]
    assert (before, answer["type"]) == (0, "batch-response")
    assert told == ["201", "400", "200", "200", "201", "204", "204", "404"]
    assert answer["entry"][2]["resource"]["total"] == 1
    assert answer["entry"][3]["resource"]["gender"] == "other"
    assert both.get(f"/fhir/ImagingStudy/{uid}").status_code == 410


def test_of_a_batch_that_is_done_again_each_entry_is_done_once(doors: Doors, both, monkeypatch):
    number = uuid4().hex
    entries = [entry("POST", "Patient", numbered(number)) for _ in range(3)]
    address = asked(both, bundle("batch", *entries))
    order, perform, left = order_of(doors, address), Interactions.perform, [1]

    def dying(self: Interactions, ask: Any) -> Any:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return perform(self, ask)

    monkeypatch.setattr(Interactions, "perform", dying)
    with pytest.raises(KeyboardInterrupt):
        handlers.get("respond-async").run(order, doors.server, lambda _: None)
    monkeypatch.undo()
    after_death = count(both, number)
    for _ in range(2):
        handlers.get("respond-async").run(order, doors.server, lambda _: None)

    ids = [each["resource"]["id"] for each in both.get(address).json["entry"]]
    assert (after_death, count(both, number), len(set(ids))) == (1, 3, 3)


def test_two_workers_of_one_batch_do_each_entry_once_and_tell_the_same(doors: Doors, both):
    number = uuid4().hex
    address = asked(both, bundle("batch", *[entry("POST", "Patient", numbered(number)) for _ in range(8)]))
    order, journal = order_of(doors, address), doors.server.answers.journal

    def run(_: int) -> None:
        with suppress(AppError):  # that the answer is there already
            handlers.get("respond-async").run(order, doors.server, lambda _: None)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))

    told = both.get(address).json["entry"]
    assert [each["response"]["status"][:3] for each in told] == ["201"] * 8
    assert (count(both, number), len(journal(order["id"]).parts())) == (8, 8)


def test_a_batch_that_is_given_up_in_the_middle_writes_no_more(doors: Doors, both):
    number = uuid4().hex
    address = asked(both, bundle("batch", entry("POST", "Patient", numbered(number))))
    order = order_of(doors, address)
    found = doors.server.answers.find(order["id"])
    both.delete(address)

    principal = doors.server.principals.acting_for(found.owner)
    done = later.done(doors.server, principal, found.request, doors.server.answers.journal(order["id"]))

    assert b'"404 Not Found"' in done.body
    assert count(both, number) == 0


def test_a_database_that_is_away_is_no_answer_to_an_entry(doors: Doors, both, monkeypatch):
    address = asked(both, bundle("batch", entry("POST", "Patient", patient())))
    order = order_of(doors, address)

    def away(*_: Any) -> Any:
        raise ConnectionFailure

    monkeypatch.setattr(Interactions, "perform", away)
    with pytest.raises(AppError) as raised:
        handlers.get("respond-async").run(order, doors.server, lambda _: None)

    assert raised.value.category is Category.BUSY
    assert both.get(address).status_code == 202


def test_a_batch_that_selects_a_study_to_delete_is_answered_at_once_because_images_cannot_be_deleted_twice(both):
    response = both.post("/fhir", bundle("batch", entry("DELETE", "ImagingStudy?_id=unknown")), headers=LATER)

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
