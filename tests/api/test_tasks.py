"""Tasks over REST: what a requester, an owner and anybody else may do with an order."""

from typing import Any

import pytest

from fhir_server.access.contracts import Right
from tests.support.doors import Caller, Doors

BOTH = (Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES)


@pytest.fixture
def requester(doors: Doors) -> Caller:
    return doors.caller(*BOTH, name="requester")


@pytest.fixture
def processor(doors: Doors) -> Caller:
    return doors.caller(*BOTH, name="processor")


def organization(doors: Doors, name: str) -> str:
    return next(each.organization for each in doors.server.principals.subscribers() if each.name == name)


def order(**more: Any) -> dict[str, Any]:
    return {"resourceType": "Task", "status": "requested", "intent": "order"} | more


def test_who_orders_is_the_requester(doors: Doors, requester: Caller) -> None:
    made = requester.post("/fhir/Task", order())

    assert made.status_code == 201
    assert made.json["requester"] == {"reference": organization(doors, "requester")}


@pytest.mark.parametrize("status", ["completed", "in-progress", "cancelled"])
def test_a_task_does_not_begin_in_the_middle(requester: Caller, status: str) -> None:
    assert requester.post("/fhir/Task", order(status=status)).status_code == 409


def test_the_requester_cancels_but_does_not_complete(requester: Caller) -> None:
    made = requester.post("/fhir/Task", order()).json
    address = f"/fhir/Task/{made['id']}"

    assert requester.put(address, made | {"status": "completed"}).status_code == 409
    assert requester.put(address, made | {"status": "in-progress"}).status_code == 403
    assert requester.put(address, made | {"status": "cancelled"}).status_code == 200
    assert requester.put(address, made | {"status": "requested"}).status_code == 409


def test_others_change_and_delete_nothing(requester: Caller, processor: Caller) -> None:
    made = requester.post("/fhir/Task", order()).json
    address = f"/fhir/Task/{made['id']}"

    assert processor.put(address, made | {"status": "cancelled"}).status_code == 403
    assert processor.delete(address).status_code == 403


def test_an_external_processor_claims_and_completes_what_it_owns(
    doors: Doors, requester: Caller, processor: Caller
) -> None:
    made = requester.post("/fhir/Task", order(owner={"reference": organization(doors, "processor")})).json
    address = f"/fhir/Task/{made['id']}"

    claimed = processor.put(address, made | {"status": "in-progress"}, headers={"If-Match": 'W/"1"'})
    second = processor.put(address, made | {"status": "in-progress"}, headers={"If-Match": 'W/"1"'})
    output = [{"type": {"text": "note"}, "valueString": "done"}]
    done = processor.put(address, claimed.json | {"status": "completed", "output": output})

    assert [claimed.status_code, second.status_code, done.status_code] == [200, 412, 200]
    assert requester.get(address).json["output"] == output
