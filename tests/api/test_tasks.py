"""Tasks over REST: what a requester, an owner, whoever may claim, and anybody else may do with an order."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from fhir_server.access.contracts import Right
from fhir_server.store.task_queue import TaskQueue
from fhir_server.work import parties
from fhir_server.work.upkeep import Upkeep
from tests.support.doors import Caller, Doors

BOTH = (Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES)
READER = {"coding": [{"system": "urn:kinds", "code": "reader"}]}
CLAIM_S = 900


@pytest.fixture
def requester(doors: Doors) -> Caller:
    return doors.caller(*BOTH, name="requester")


@pytest.fixture
def processor(doors: Doors) -> Caller:
    return doors.caller(*BOTH, Right.PROCESS_IMAGES, name="processor")


def organization(doors: Doors, name: str) -> str:
    return next(each.organization for each in doors.server.principals.subscribers() if each.name == name)


def order(**more: Any) -> dict[str, Any]:
    return {"resourceType": "Task", "status": "requested", "intent": "order"} | more


def device(caller: Caller, kind: dict[str, Any] = READER, **more: Any) -> str:
    """Register a Device of the caller; return its reference."""
    organization = caller.post("/fhir/Task", order()).json["requester"]
    made = caller.post("/fhir/Device", {"resourceType": "Device", "type": kind, "owner": organization} | more)
    assert made.status_code == 201, made.text
    return f"Device/{made.json['id']}"


def write(caller: Caller, task: dict[str, Any], **changes: Any) -> Any:
    """Update a Task as one that was read."""
    version = f'W/"{task["meta"]["versionId"]}"'
    return caller.put(f"/fhir/Task/{task['id']}", task | changes, headers={"If-Match": version})


def read(caller: Caller, task: dict[str, Any]) -> dict[str, Any]:
    return caller.get(f"/fhir/Task/{task['id']}").json


def upkeep(doors: Doors, most_claims: int = 3) -> float:
    server = doors.server
    queue = TaskQueue(server.database, server.clock)
    return Upkeep(server.own, queue, server.clock, claim_s=CLAIM_S, most_claims=most_claims).round()


def refusal(response: Any) -> tuple[int, str]:
    return response.status_code, response.json["issue"][0]["diagnostics"]


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


class TestAddressed:
    """Tasks with an owner."""

    def test_an_external_processor_claims_and_completes_what_it_owns(self, doors, requester, processor):
        made = requester.post("/fhir/Task", order(owner={"reference": organization(doors, "processor")})).json
        address = f"/fhir/Task/{made['id']}"

        claimed = processor.put(address, made | {"status": "in-progress"}, headers={"If-Match": 'W/"1"'})
        second = processor.put(address, made | {"status": "in-progress"}, headers={"If-Match": 'W/"1"'})
        output = [{"type": {"text": "note"}, "valueString": "done"}]
        done = write(processor, claimed.json, status="completed", output=output)

        assert [claimed.status_code, second.status_code, done.status_code] == [200, 412, 200]
        told = requester.get(address).json
        assert told["output"] == output
        assert told["executionPeriod"].keys() == {"start", "end"}

    def test_the_owner_may_be_a_device_of_a_subscriber(self, doors, requester, processor):
        mine = device(processor)
        made = requester.post("/fhir/Task", order(owner={"reference": mine})).json

        (found,) = processor.get(f"/fhir/Task?owner={mine}&status=requested").json["entry"]
        claimed = write(processor, found["resource"], status="in-progress")

        assert found["resource"] == made
        assert claimed.status_code == 200

    def test_without_if_match_work_is_neither_claimed_nor_ended(self, doors, requester, processor):
        made = requester.post("/fhir/Task", order(owner={"reference": organization(doors, "processor")})).json
        address = f"/fhir/Task/{made['id']}"

        unmatched = processor.put(address, made | {"status": "in-progress"})
        claimed = write(processor, made, status="in-progress").json
        ended = processor.put(address, claimed | {"status": "completed"})
        told = processor.put(address, claimed | {"businessStatus": {"text": "half"}})

        assert refusal(unmatched) == (400, "to make a Task in-progress, say which version you have read (If-Match)")
        assert [ended.status_code, told.status_code] == [400, 200]

    def test_work_can_be_given_back(self, doors, requester, processor):
        made = requester.post("/fhir/Task", order(owner={"reference": organization(doors, "processor")})).json
        claimed = write(processor, made, status="in-progress").json

        back = write(processor, claimed, status="ready").json

        assert (back["status"], back["owner"]) == ("ready", made["owner"])
        assert "executionPeriod" not in back

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({"owner": {"reference": "Organization/9"}}, "not known"),
            ({"owner": {"reference": "Device/9"}}, "not known"),
            ({"owner": {"reference": "Practitioner/9"}}, "the Organization of a subscriber"),
            ({"owner": {"display": "somebody"}}, "the Organization of a subscriber"),
            ({"performerType": [{"text": "reader"}]}, "told by a code"),
            ({"partOf": [{"reference": "Patient/9"}]}, "Task"),
        ],
    )
    def test_whom_nobody_knows_is_not_addressed(self, requester, more, words):
        status, told = refusal(requester.post("/fhir/Task", order(**more)))

        assert (status, words in told) == (400, True), told

    def test_a_device_without_owner_is_not_addressed(self, requester, processor):
        made = processor.post("/fhir/Device", {"resourceType": "Device"}).json

        status, told = refusal(requester.post("/fhir/Task", order(owner={"reference": f"Device/{made['id']}"})))

        assert (status, "has no owner" in told) == (400, True)

    def test_a_device_is_written_by_its_owner_alone(self, requester, processor):
        mine = device(processor)
        found = requester.get(f"/fhir/{mine}").json
        taken = found | {"owner": requester.post("/fhir/Task", order()).json["requester"]}

        assert requester.put(f"/fhir/{mine}", taken).status_code == 403
        assert requester.delete(f"/fhir/{mine}").status_code == 403
        assert requester.post("/fhir/Device", found).status_code == 403
        assert processor.put(f"/fhir/{mine}", found).status_code == 200

    def test_this_server_has_a_device_that_can_be_addressed(self, doors, requester):
        parties.announce(doors.server.own, name="here", version="1")

        made = requester.post("/fhir/Task", order(owner={"reference": "Device/fhir-imaging-server"}))

        assert made.status_code == 201
        assert (
            requester.put("/fhir/Device/fhir-imaging-server", {"resourceType": "Device", "id": "x"}).status_code == 400
        )
        assert requester.delete("/fhir/Device/fhir-imaging-server").status_code == 409


class TestOpen:
    """Tasks for any of a kind."""

    @pytest.fixture
    def made(self, requester: Caller) -> dict[str, Any]:
        return requester.post("/fhir/Task", order(performerType=[READER])).json

    def test_one_of_a_kind_finds_claims_and_completes_it(self, requester, processor, made):
        mine = device(processor)

        (found,) = processor.get("/fhir/Task?performer=urn:kinds|reader&status=requested,ready").json["entry"]
        claimed = write(processor, found["resource"], status="in-progress", owner={"reference": mine})
        done = write(processor, claimed.json, status="completed")

        assert found["resource"] == made
        assert [claimed.status_code, done.status_code] == [200, 200]
        assert done.json["owner"] == {"reference": mine}

    def test_of_two_that_claim_one_gets_it(self, doors, requester, processor, made):
        other = doors.caller(*BOTH, Right.PROCESS_IMAGES, name="other")
        owners = [{"reference": device(each)} for each in (processor, other)]

        first = write(processor, made, status="in-progress", owner=owners[0])
        second = write(other, made, status="in-progress", owner=owners[1])
        late = write(other, first.json, status="completed")

        assert [first.status_code, second.status_code, late.status_code] == [200, 412, 403]

    def test_without_the_right_or_a_device_of_the_kind_nothing_is_claimed(self, doors, processor, made):
        unknown = doors.caller(*BOTH, name="no contract")
        mine = {"reference": device(processor, {"coding": [{"system": "urn:kinds", "code": "printer"}]})}
        theirs = {"reference": device(unknown)}

        assert write(processor, made, status="in-progress", owner=mine).status_code == 403
        assert write(unknown, made, status="in-progress", owner=theirs).status_code == 403

    def test_who_claims_says_so_by_its_own_name_and_changes_nothing_else(self, requester, processor, made):
        mine = {"reference": device(processor)}
        other = made["requester"]

        assert write(processor, made, status="in-progress").status_code == 400
        assert write(processor, made, status="in-progress", owner=other).status_code == 400
        assert write(processor, made, status="rejected", owner=mine).status_code == 403
        assert write(processor, made, owner=mine).status_code == 403
        assert write(processor, made, status="in-progress", owner=mine, intent="plan").status_code == 403

    def test_what_is_given_back_is_open_again(self, doors, requester, processor, made):
        other = doors.caller(*BOTH, Right.PROCESS_IMAGES, name="other")
        claimed = write(processor, made, status="in-progress", owner={"reference": device(processor)}).json

        back = write(processor, claimed, status="ready").json
        again = write(other, back, status="in-progress", owner={"reference": device(other)})

        assert "owner" not in back
        assert again.status_code == 200

    def test_this_server_leaves_it_unless_it_is_of_the_kind(self, doors, requester, made):
        code = {"coding": [{"code": "process"}]}
        kind = {"coding": [{"system": "urn:fhir-imaging:code:performer", "code": "imaging-server"}]}
        own = doors.server.own
        other, ours = (own.create(order(code=code, performerType=[each])).id for each in (READER, kind))

        found = TaskQueue(doors.server.database, doors.server.clock).look({"process"})

        assert [each.id for each in found.orders] == [ours]
        assert other != ours


class TestClaims:
    """Claims of processors that are not heard of any more."""

    @pytest.mark.parametrize("changes", [{"businessStatus": {"text": "half"}}, {}], ids=["with news", "without news"])
    def test_a_claim_lapses_after_a_while_and_every_update_renews_it(self, doors, requester, processor, changes):
        made = requester.post("/fhir/Task", order(owner={"reference": organization(doors, "processor")})).json
        claimed = write(processor, made, status="in-progress").json
        doors.clock.forward(seconds=CLAIM_S - 10)
        told = write(processor, claimed, **changes).json
        doors.clock.forward(seconds=CLAIM_S - 10)

        pause_s = upkeep(doors)
        held = read(requester, made)
        doors.clock.forward(seconds=20)
        upkeep(doors)
        left = read(requester, made)
        late = write(processor, told, status="completed")

        assert (held["status"], left["status"], late.status_code) == ("in-progress", "ready", 412)
        assert 0 < pause_s <= 10
        assert left["businessStatus"]["coding"][0]["code"] == "lapsed"
        assert left["owner"] == made["owner"]
        assert write(processor, left, status="in-progress").status_code == 200

    def test_what_was_claimed_from_the_open_is_open_again(self, doors, requester, processor):
        made = requester.post("/fhir/Task", order(performerType=[READER])).json
        write(processor, made, status="in-progress", owner={"reference": device(processor)})
        doors.clock.forward(seconds=CLAIM_S + 1)

        upkeep(doors)

        assert "owner" not in read(requester, made)
        assert read(requester, made)["status"] == "ready"

    def test_an_order_that_is_claimed_and_left_again_and_again_is_set_aside(self, doors, requester, processor):
        made = requester.post("/fhir/Task", order(performerType=[READER])).json
        mine = {"reference": device(processor)}
        for _ in range(2):
            left = read(requester, made)
            forged = [
                {"url": "urn:fhir-imaging:extension:claim", "extension": [{"url": "lapsed", "valueUnsignedInt": 0}]}
            ]
            assert write(processor, left, status="in-progress", owner=mine, extension=forged).status_code == 200
            doors.clock.forward(seconds=CLAIM_S + 1)
            upkeep(doors, most_claims=2)

        failed = read(requester, made)
        assert failed["status"] == "failed"
        assert "claimed and left 2 times" in failed["statusReason"]["text"]
        assert processor.get("/fhir/Task?performer=urn:kinds|reader&status=requested,ready").json["total"] == 0

    def test_a_claim_on_hold_lapses_as_well(self, doors, requester, processor):
        made = requester.post("/fhir/Task", order(owner={"reference": organization(doors, "processor")})).json
        write(processor, write(processor, made, status="in-progress").json, status="on-hold")
        doors.clock.forward(seconds=CLAIM_S + 1)

        upkeep(doors)

        assert read(requester, made)["status"] == "ready"

    @pytest.mark.parametrize("is_claimed", [True, False])
    def test_the_end_of_its_period_ends_an_order_of_others(self, doors, requester, processor, is_claimed):
        end = doors.clock.now + timedelta(seconds=60)
        restriction = {"period": {"end": end.isoformat(timespec="seconds")}}
        owner = {"reference": organization(doors, "processor")}
        made = requester.post("/fhir/Task", order(owner=owner, restriction=restriction)).json
        if is_claimed:
            made = write(processor, made, status="in-progress").json
        upkeep(doors)
        before = read(requester, made)
        doors.clock.forward(seconds=62)

        upkeep(doors)

        assert before["status"] == made["status"]
        assert read(requester, made)["statusReason"]["text"].startswith("the period of the order is over")


class TestParts:
    def test_parts_are_made_by_who_orders_or_does_the_whole(self, doors, requester, processor):
        whole = requester.post("/fhir/Task", order(owner={"reference": organization(doors, "processor")})).json
        part = order(partOf=[{"reference": f"Task/{whole['id']}"}])
        stranger = doors.caller(*BOTH, name="stranger")

        assert requester.post("/fhir/Task", part).status_code == 201
        assert processor.post("/fhir/Task", part).status_code == 201
        assert stranger.post("/fhir/Task", part).status_code == 403
        assert len(requester.get(f"/fhir/Task?part-of=Task/{whole['id']}").json["entry"]) == 2

    def test_with_the_whole_its_parts_are_cancelled(self, doors, requester, processor):
        whole = requester.post("/fhir/Task", order()).json
        owner = {"reference": organization(doors, "processor")}
        part = requester.post("/fhir/Task", order(partOf=[{"reference": f"Task/{whole['id']}"}], owner=owner)).json
        write(processor, part, status="in-progress")

        with at_work(doors):
            write(requester, whole, status="cancelled")
            end = time.monotonic() + 10
            while read(requester, part)["status"] != "cancelled" and time.monotonic() < end:
                time.sleep(0.05)

        told = read(requester, part)
        assert (told["status"], whole["id"] in told["statusReason"]["text"]) == ("cancelled", True)


@contextmanager
def at_work(doors: Doors) -> Iterator[None]:
    """Run the upkeep of Tasks, as a worker process does."""
    from fhir_server.work.crew import Crew

    server, stopping = doors.server, threading.Event()
    queue = TaskQueue(server.database, server.clock)
    keeper = Upkeep(server.own, queue, server.clock, claim_s=CLAIM_S, most_claims=3)
    thread = threading.Thread(target=Crew([], keeper, queue).run, args=(stopping,))
    thread.start()
    time.sleep(1)  # until the change stream is open
    try:
        yield
    finally:
        stopping.set()
        thread.join(10)


def test_a_task_keeps_what_it_is_based_on_and_is_found_by_it(requester: Caller) -> None:
    subject = {"reference": "Patient/p1"}
    request = {"resourceType": "ServiceRequest", "status": "active", "intent": "order", "subject": subject}
    reference = f"ServiceRequest/{requester.post('/fhir/ServiceRequest', request).json['id']}"

    made = requester.post("/fhir/Task", order(basedOn=[{"reference": reference}])).json

    (found,) = requester.get(f"/fhir/Task?based-on={reference}").json["entry"]
    assert found["resource"] == made
