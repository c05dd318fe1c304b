"""Orders of deliveries, and what a worker does with one, step by step in the process of the test."""

from dataclasses import replace
from typing import Any

from fhir_server.access.contracts import Right
from fhir_server.delivery import value
from fhir_server.model import task as tasks
from fhir_server.model.peer import Peer, Way
from fhir_server.work.handlers import Done, Later
from fhir_server.work.kinds import handlers
from tests.support.doors import Caller, Doors
from tests.support.receivers import Receiver

STUDY, SERIES = "1.2.3.4", "1.2.3.4.5"
LOOPBACK = {"outbound__private_networks": "127.0.0.0/8"}
ORDERER = (Right.ORDER_PROCESSING, Right.RECEIVE_IMAGES)


def register(doors: Doors, receiver: Receiver, name: str = "pacs", subscriber: str = "orderer", **changes: Any) -> str:
    """Register the receiver; return the reference of its Endpoint."""
    peer = replace(Peer(name, "", Way.STOW, f"{receiver.address}/dicom-web"), **changes)
    return doors.server.endpoints.add(peer, subscriber)[0].endpoint


def order(recipient: str, *inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    named = inputs or (value("imaging-study", "valueReference", {"reference": f"ImagingStudy/{STUDY}"}),)
    return {
        "resourceType": "Task",
        "status": "requested",
        "intent": "order",
        "code": {"coding": [{"system": "urn:fhir-imaging:code:task", "code": "deliver"}]},
        "input": [*named, value("endpoint", "valueReference", {"reference": recipient})],
    } | more


def placed(caller: Caller, task: dict[str, Any]) -> dict[str, Any]:
    response = caller.post("/fhir/Task", task)
    assert response.status_code == 201, response.text
    return response.json


def attempt(doors: Doors, task: dict[str, Any]) -> Done | Later:
    """Do what a worker does with a Task, once, without its bookkeeping."""
    doors.clock.forward(milliseconds=1)
    return handlers.get("deliver").run(task, doors.server, lambda _: None)


def done(doors: Doors, task: dict[str, Any]) -> dict[str, Any]:
    """Do a Task that does not have to wait; return it as it ends."""
    outcome = attempt(doors, task)
    assert isinstance(outcome, Done), outcome
    return {"output": outcome.outputs, "failure": outcome.failure}


def outputs(task: dict[str, Any], name: str) -> list[Any]:
    """The values of the outputs of this name."""
    found = [each for each in task["output"] if tasks.name_of(each) == name]
    return [next(content for key, content in each.items() if key.startswith("value")) for each in found]
