"""Organizations of hospitals and practices: clients keep them. Those that are subscribers are the operator's."""

from collections.abc import Iterator
from typing import Any

import pytest
from pymongo.database import Database

from fhir_server.access.contracts import Limits, Right
from tests.support.doors import Caller, Doors, opened

Json = dict[str, Any]
SUBSCRIBER = "urn:fhir-imaging:subscriber"
HOSPITAL: Json = {
    "resourceType": "Organization",
    "identifier": [{"system": "http://hl7.org/fhir/sid/us-npi", "value": "1"}],
    "name": "General Hospital",
}
SPOOF = [{"op": "add", "path": "/identifier/-", "value": {"system": SUBSCRIBER, "value": "operator"}}]


@pytest.fixture
def chosen(db: Database[Json]) -> Iterator[Doors]:
    """A server where clients choose ids."""
    with opened(db, fhir__ids="clients") as made:
        yield made


def _named(caller: Caller, name: str) -> Json:
    found = caller.get(f"/fhir/Organization?identifier={SUBSCRIBER}|{name}").json["entry"]
    return dict(found[0]["resource"])


def test_a_hospital_is_created_changed_found_and_deleted(both: Caller) -> None:
    made = both.post("/fhir/Organization", HOSPITAL, headers={"If-None-Exist": "identifier=1"})
    address = f"/fhir/Organization/{made.json['id']}"

    assert made.status_code == 201, made.json
    assert both.put(address, {**HOSPITAL, "id": made.json["id"], "active": True}).status_code == 200
    patient = {"resourceType": "Patient", "managingOrganization": {"reference": address.removeprefix("/fhir/")}}
    both.post("/fhir/Patient", patient)
    assert both.get("/fhir/Patient?organization.name=general").json["total"] == 1
    assert both.delete(address).status_code == 204
    assert both.get(address).status_code == 410


def test_a_transaction_brings_its_organizations_along(both: Caller) -> None:
    """As bundles of synthetic patients do."""
    hospital = {
        "fullUrl": "urn:uuid:0d0c7d3e-1f5a-4a3a-8b8a-1c1a4d3f7a11",
        "resource": HOSPITAL,
        "request": {"method": "POST", "url": "Organization", "ifNoneExist": "identifier=1"},
    }
    patient = {"resourceType": "Patient", "managingOrganization": {"reference": hospital["fullUrl"]}}
    entries = [hospital, {"resource": patient, "request": {"method": "POST", "url": "Patient"}}]

    done = both.post("/fhir", {"resourceType": "Bundle", "type": "transaction", "entry": entries})

    made = [each["resource"] for each in done.json["entry"]]
    assert made[1]["managingOrganization"]["reference"] == f"Organization/{made[0]['id']}"


def test_nobody_makes_a_subscriber_or_touches_one(doors: Doors, both: Caller) -> None:
    everything = doors.caller(*Right, name="everything")
    hospital = everything.post("/fhir/Organization", HOSPITAL).json
    operator = _named(everything, "both")
    other = f"/fhir/Organization/{operator['id']}"
    ours = f"/fhir/Organization/{hospital['id']}"
    named = [{"system": SUBSCRIBER, "value": "mine"}]
    patch = {"Content-Type": "application/json-patch+json"}
    tag = {"resourceType": "Parameters", "parameter": [{"name": "meta", "valueMeta": {"tag": [{"code": "x"}]}}]}

    refused = [
        everything.post("/fhir/Organization", {**HOSPITAL, "identifier": named}),
        everything.put(ours, {**hospital, "identifier": named}),
        everything.call("PATCH", ours, json=SPOOF, headers=patch),
        everything.put(other, {**operator, "active": False}),
        everything.put(other, {**operator, "identifier": HOSPITAL["identifier"]}),
        everything.call("PATCH", other, json=[{"op": "remove", "path": "/identifier"}], headers=patch),
        everything.post(f"{other}/$meta-add", tag),
        everything.delete(other),
        everything.delete(f"/fhir/Organization?identifier={SUBSCRIBER}|both"),
        everything.put(f"/fhir/Organization?identifier={SUBSCRIBER}|both", {**HOSPITAL}),
    ]

    assert [each.status_code for each in refused] == [409] * len(refused)
    assert "operator's commands" in refused[0].json["issue"][0]["diagnostics"]
    assert _named(everything, "both") == operator
    assert both.get("/fhir/Patient").status_code == 200


def test_a_subscriber_that_was_removed_does_not_come_back_by_its_id(chosen: Doors) -> None:
    everything, removed = (chosen.caller(*Right, name=name) for name in ("everything", "removed"))
    organization = _named(everything, "removed")["id"]
    chosen.server.own.delete("Organization", organization)

    again = everything.put(f"/fhir/Organization/{organization}", {**HOSPITAL, "id": organization, "active": True})

    assert again.status_code == 201
    assert removed.get("/fhir/Patient").status_code == 401


def test_who_sees_its_own_sees_its_own_hospitals_and_not_those_of_others(doors: Doors) -> None:
    principals = doors.server.principals
    for name in ("north", "south"):
        rights = (Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES)
        principals.add(name, rights, limits=Limits(whose=frozenset()), is_own=True)
    north, south = (Caller(doors.flask, principals.mint(name), doors.clock) for name in ("north", "south"))

    made = north.post("/fhir/Organization", HOSPITAL).json["id"]

    assert north.get(f"/fhir/Organization/{made}").status_code == 200
    assert south.get(f"/fhir/Organization/{made}").status_code == 404
    assert south.delete(f"/fhir/Organization/{made}").status_code == 204  # as of what is not there
    assert north.get(f"/fhir/Organization/{made}").status_code == 200


def test_a_task_is_not_addressed_to_a_hospital_that_is_no_subscriber(doors: Doors) -> None:
    everything = doors.caller(*Right, name="everything")
    hospital = everything.post("/fhir/Organization", HOSPITAL).json["id"]
    order = {
        "resourceType": "Task", "status": "requested", "intent": "order", "code": {"text": "look"},
        "owner": {"reference": f"Organization/{hospital}"},
    }  # fmt: skip

    answer = everything.post("/fhir/Task", order)

    assert (answer.status_code, "no subscriber" in answer.text) == (400, True)
