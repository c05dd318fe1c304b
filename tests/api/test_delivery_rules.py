"""Who may have images delivered to whom, what a notification tells, and what is on record afterwards."""

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fhir_server.access.contracts import Right
from fhir_server.delivery import value
from fhir_server.model.peer import Peer, Way
from fhir_server.model.query import parse
from fhir_server.model.validation import validate
from fhir_server.outbound import webhook
from fhir_server.work.handlers import Later
from fhir_server.work.kinds import handlers
from tests.support.deliveries import LOOPBACK, ORDERER, SERIES, STUDY, attempt, done, order, outputs, placed, register
from tests.support.doors import Caller, Doors, new_study, opened
from tests.support.receivers import Receiver, receiving, status, takes, takes_half
from tests.support.volumes import ct_files

HOW_TO = Path(__file__).parents[2] / "docs/howto/deliver-images.md"
PUBLIC = "https://pacs.example.org/dicom-web"


@pytest.fixture
def doors(db: Any) -> Iterator[Doors]:
    with opened(db, **LOOPBACK) as made:
        made.ingest(*ct_files())
        yield made


@pytest.fixture
def orderer(doors: Doors) -> Caller:
    return doors.caller(*ORDERER, name="orderer")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def refusal(response: Any) -> tuple[int, str]:
    return response.status_code, response.json["issue"][0]["diagnostics"]


def organization(doors: Doors, name: str) -> str:
    return doors.server.principals.named(name)


class TestWhoMay:
    def test_another_subscribers_endpoint_is_permitted_while_it_may_receive_images(self, doors, orderer, receiver):
        doors.server.principals.add("clinic", [Right.RECEIVE_IMAGES])

        ended = done(doors, placed(orderer, order(register(doors, receiver, subscriber="clinic"))))

        assert outputs(ended, "delivered") == [6]

    @pytest.mark.parametrize("rights", [[Right.REGISTER_IMAGES], [Right.ORDER_PROCESSING], [Right.AUDIT]])
    def test_not_when_it_may_not(self, doors, orderer, receiver, rights):
        doors.server.principals.add("clinic", rights)
        endpoint = register(doors, receiver, subscriber="clinic")

        code, words = refusal(orderer.post("/fhir/Task", order(endpoint)))

        assert code == 403
        assert "receive-images is needed to have images delivered to Endpoint/peer-pacs" in words

    def test_nor_when_its_contract_has_ended_or_it_is_suspended_meanwhile(self, doors, orderer, receiver):
        end = doors.clock.now + timedelta(hours=1)
        doors.server.principals.add("clinic", [Right.RECEIVE_IMAGES], end=end)
        doors.server.principals.add("lab", [Right.RECEIVE_IMAGES])
        clinic = placed(orderer, order(register(doors, receiver, "a", "clinic")))
        lab = placed(orderer, order(register(doors, receiver, "b", "lab")))
        doors.clock.forward(hours=2)
        doors.server.principals.suspend("lab")

        ended, also = done(doors, clinic), done(doors, lab)

        assert "receive-images is needed" in ended["failure"]
        assert "suspended" in also["failure"]
        assert receiver.came == []

    def test_its_own_receiver_gets_what_the_subscriber_registered_itself(self, doors, receiver):
        scanner = doors.caller(Right.ORDER_PROCESSING, Right.REGISTER_IMAGES, name="scanner")
        doors.ingest(*ct_files(2, "1.2.3.5", "1.2.3.5.1"), name="scanner")
        endpoint = register(doors, receiver, subscriber="scanner")
        mine = value("series", "valueId", "1.2.3.5.1")

        ended = done(doors, placed(scanner, order(endpoint, mine)))

        assert outputs(ended, "delivered") == [2]
        assert refusal(scanner.post("/fhir/Task", order(endpoint)))[0] == 403

    def test_a_notification_goes_to_those_alone_that_may_fetch(self, doors, receiver):
        scanner = doors.caller(Right.ORDER_PROCESSING, Right.REGISTER_IMAGES, name="scanner")
        doors.ingest(*ct_files(2, "1.2.3.5", "1.2.3.5.1"), name="scanner")
        endpoint = register(doors, receiver, subscriber="scanner", way=Way.WEBHOOK)

        code, words = refusal(scanner.post("/fhir/Task", order(endpoint, value("series", "valueId", "1.2.3.5.1"))))

        assert code == 403
        assert "receive-images" in words

    @pytest.mark.parametrize("rights", [[Right.REGISTER_IMAGES], [Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES]])
    def test_who_has_no_right_to_order_orders_no_delivery(self, doors, orderer, receiver, rights):
        other = doors.caller(*rights, name="other")

        code, words = refusal(other.post("/fhir/Task", order(register(doors, receiver))))

        assert code == 403
        assert "order-processing" in words

    def test_a_requester_that_lost_the_right_meanwhile_gets_nothing_delivered(self, doors, orderer, receiver):
        task = placed(orderer, order(register(doors, receiver)))
        doors.server.principals.add("orderer", [Right.RECEIVE_IMAGES])

        ended = done(doors, task)

        assert "order-processing" in ended["failure"]
        assert receiver.came == []

    def test_an_organization_stands_for_the_receivers_that_it_manages(self, doors, orderer, receiver):
        doors.server.principals.add("clinic", [Right.RECEIVE_IMAGES])
        register(doors, receiver, "a", "clinic", address=f"{receiver.address}/a")
        register(doors, receiver, "b", "clinic", address=f"{receiver.address}/b")
        doors.server.endpoints.add(Peer("source", "", Way.DICOMWEB, PUBLIC), "clinic")

        ended = done(doors, placed(orderer, order(organization(doors, "clinic"))))

        assert {each.path for each in receiver.came} == {"/a/studies", "/b/studies"}
        assert [each["reference"] for each in outputs(ended, "endpoint")] == ["Endpoint/peer-a", "Endpoint/peer-b"]
        assert outputs(ended, "delivered") == [6, 6]
        assert len(outputs(ended, "provenance")) == 2

    def test_one_of_them_that_is_down_does_not_keep_images_from_the_others_nor_are_they_sent_twice(
        self, doors, orderer, receiver
    ):
        doors.server.principals.add("clinic", [Right.RECEIVE_IMAGES])
        with receiving(status(503), takes) as other:
            register(doors, other, "a", "clinic")
            register(doors, receiver, "b", "clinic")
            task = placed(orderer, order(organization(doors, "clinic")))

            first = attempt(doors, task)
            doors.clock.forward(seconds=10)
            ended = done(doors, task)

        assert isinstance(first, Later)
        assert outputs(ended, "delivered") == [6, 6]
        assert (len(receiver.came), len(other.came)) == (1, 2)


class TestOrdering:
    def test_what_cannot_be_delivered_to_is_told_when_it_is_ordered(self, doors, orderer):
        doors.server.endpoints.add(Peer("source", "", Way.DICOMWEB, PUBLIC), "orderer")
        made = doors.server.own.create(
            {
                "resourceType": "Endpoint",
                "status": "active",
                "connectionType": {"code": "dicom-stow-rs"},
                "payloadType": [{"text": "DICOM"}],
                "address": "https://169.254.169.254/latest",
            }
        ).key

        told = {
            recipient: refusal(orderer.post("/fhir/Task", order(recipient)))
            for recipient in (
                "Endpoint/peer-nowhere",
                "Endpoint/peer-source",
                "Endpoint/dicomweb",
                made,
                organization(doors, "orderer"),
                "Organization/nobody",
                "Patient/1",
            )
        }

        assert [code for code, _ in told.values()] == [404, 400, 400, 400, 404, 404, 400]
        assert "no endpoint 'nowhere' was registered" in told["Endpoint/peer-nowhere"][1]
        assert "a source of images" in told["Endpoint/peer-source"][1]
        assert "not registered by the operator" in told[made][1]
        assert "manages no Endpoint" in told["Organization/nobody"][1]
        assert "'endpoint': a reference to an Endpoint or an Organization expected" in told["Patient/1"][1]

    @pytest.mark.parametrize(
        ("images", "code", "words"),
        [
            ([value("series", "valueId", "9.9.9")], 404, "no such series"),
            ([value("instance", "valueId", "x")], 400, "a UID expected"),
            ([value("imaging-study", "valueReference", {"reference": "ImagingStudy/9.9"})], 404, ""),
            ([value("search", "valueString", "ImagingStudy")], 400, "a search such as"),
            (
                [value("search", "valueString", "ImagingStudy?modality=CT"), value("series", "valueId", SERIES)],
                400,
                "a search goes alone",
            ),
            ([value("form", "valueCode", "native")], 400, "'form' is not known"),
        ],
    )
    def test_a_wrong_input_is_named(self, doors, orderer, receiver, images, code, words):
        refused = refusal(orderer.post("/fhir/Task", order(register(doors, receiver), *images)))

        assert refused[0] == code
        assert words in refused[1]

    def test_an_order_that_is_restricted_to_a_recipient_goes_to_no_other(self, doors, orderer, receiver):
        doors.server.principals.add("clinic", [Right.RECEIVE_IMAGES])
        mine, theirs = register(doors, receiver), register(doors, receiver, "theirs", "clinic")
        only = {"restriction": {"recipient": [{"reference": organization(doors, "clinic")}]}}

        code, words = refusal(orderer.post("/fhir/Task", order(mine, **only)))
        ended = done(doors, placed(orderer, order(theirs, **only)))

        assert code == 400
        assert "restricted to other recipients than Endpoint/peer-pacs" in words
        assert outputs(ended, "delivered") == [6]

    def test_an_order_that_is_restricted_to_a_patient_has_no_images_of_another(self, doors, orderer, receiver):
        other, files = new_study(PatientID="P2")
        doors.ingest(*files)
        doors.server.studies.project(STUDY)
        patient = doors.server.own.read("ImagingStudy", STUDY).json()["subject"]
        only = {"restriction": {"recipient": [patient]}}
        endpoint = register(doors, receiver)
        search = value("search", "valueString", "ImagingStudy?modality=CT")

        named = value("imaging-study", "valueReference", {"reference": f"ImagingStudy/{other}"})
        code, words = refusal(orderer.post("/fhir/Task", order(endpoint, named, **only)))
        ended = done(doors, placed(orderer, order(endpoint, search, **only)))

        assert (code, "other patients than this study's" in words) == (400, True)
        assert outputs(ended, "delivered") == [6]

    def test_a_restriction_that_would_not_be_kept_is_refused(self, doors, orderer, receiver):
        endpoint = register(doors, receiver)

        twice = refusal(orderer.post("/fhir/Task", order(endpoint, restriction={"repetitions": 2})))
        group = {"recipient": [{"reference": "Practitioner/1"}]}
        to_nobody = refusal(orderer.post("/fhir/Task", order(endpoint, restriction=group)))

        assert (twice[0], to_nobody[0]) == (400, 400)

    def test_images_and_an_endpoint_are_needed(self, doors, orderer, receiver):
        task = order(register(doors, receiver))

        without_images = refusal(orderer.post("/fhir/Task", task | {"input": task["input"][-1:]}))
        without_endpoint = refusal(orderer.post("/fhir/Task", task | {"input": task["input"][:-1]}))

        assert "name images" in without_images[1]
        assert "'endpoint' comes 0 times" in without_endpoint[1]

    def test_an_endpoint_whose_time_is_over_takes_no_orders(self, doors, orderer, receiver):
        endpoint = register(doors, receiver, end=doors.clock.now + timedelta(hours=1))
        waiting = placed(orderer, order(endpoint))
        doors.clock.forward(hours=2)

        code, words = refusal(orderer.post("/fhir/Task", order(endpoint)))
        ended = done(doors, waiting)

        assert (code, "is over" in words) == (409, True)
        assert "the time of this endpoint is over" in ended["failure"]


def notified(doors: Doors, orderer: Caller, receiver: Receiver) -> tuple[dict[str, Any], dict[str, Any]]:
    """Have the orderer's webhook notified; return the Task and the message."""
    task = placed(orderer, order(register(doors, receiver, "hook", way=Way.WEBHOOK)))
    ended = done(doors, task)
    assert (ended["failure"], outputs(ended, "delivered")) == ("", [6])
    return task, json.loads(receiver.came[-1].body)


class TestNotification:
    def test_the_signature_is_that_of_standard_webhooks(self, doors, orderer):
        with receiving(status(204)) as receiver:
            notified(doors, orderer, receiver)

        (came,) = receiver.came
        key = base64.b64decode(doors.server.peers.get("hook").secret.removeprefix("whsec_"))
        # Standard Webhooks 1.0: HMAC-SHA256 of id.timestamp.body, base64, after the version.
        signed = f"{came.headers['webhook-id']}.{came.headers['webhook-timestamp']}.".encode() + came.body
        expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        assert came.headers["webhook-signature"] == f"v1,{expected}"
        assert came.headers["content-type"] == "application/fhir+json"
        assert "." not in came.headers["webhook-id"]

    def test_a_secret_that_is_replaced_signs_beside_the_new_one_for_a_while(self, doors, orderer):
        # Standard Webhooks 1.0, "webhook-signature": several signatures are separated by spaces.
        with receiving(status(204), status(204), status(204)) as receiver:
            notified(doors, orderer, receiver)
            before = doors.server.peers.get("hook")
            _, new = doors.server.endpoints.add(before, "orderer", new_secret_wanted=True)
            placed_at = doors.clock.now
            done(doors, placed(orderer, order(before.endpoint)))
            doors.server.endpoints.add(before, "orderer")  # registered anew in the middle, which keeps both
            doors.clock.forward(hours=24)
            done(doors, placed(orderer, order(before.endpoint)))

        both, alone = receiver.came[1], receiver.came[2]
        signed = [
            webhook.signature(secret, both.headers["webhook-id"], int(placed_at.timestamp()), both.body)
            for secret in (new, before.secret)
        ]
        assert both.headers["webhook-signature"].split(" ") == signed
        assert len(alone.headers["webhook-signature"].split(" ")) == 1
        assert new != before.secret

    def test_the_example_of_the_page_tells_a_genuine_one_from_others(self, doors, orderer):
        (block,) = re.findall(r"```python\n(.*?)```", HOW_TO.read_text(), re.DOTALL)
        written: dict[str, Any] = {}
        exec(block, written)
        with receiving(status(204)) as receiver:
            notified(doors, orderer, receiver)
        (came,) = receiver.came
        secret, now_s = doors.server.peers.get("hook").secret, doors.clock.now.timestamp()

        def is_genuine(headers: Any = came.headers, body: bytes = came.body, at: float = now_s) -> bool:
            return bool(written["is_genuine"](headers, body, secret, at))

        assert is_genuine()
        assert not is_genuine(body=came.body + b" ")
        assert not is_genuine(headers={**came.headers, "webhook-id": "other"})
        assert not is_genuine(at=now_s + 301)

    def test_it_says_what_can_be_fetched_where_and_under_which_conditions_it_was_made(self, doors, orderer):
        with receiving(status(204)) as receiver:
            task, told = notified(doors, orderer, receiver)

        resources = [each["resource"] for each in told["entry"]]
        validate(told, "Bundle")
        for each in resources:
            validate(each, each["resourceType"])
        header, order_, study, *_ = resources
        assert (told["type"], header["eventUri"]) == ("message", "urn:fhir-imaging:event:images-available")
        assert header["focus"] == [
            {"reference": f"Task/{task['id']}"}, {"reference": f"ImagingStudy/{STUDY}"},
        ]  # fmt: skip
        assert order_["id"] == task["id"]
        assert [each["uid"] for each in study["series"]] == [SERIES]
        assert "instance" not in study["series"][0]
        assert study["meta"]["tag"][0]["code"] == "SUBSETTED"
        (conditions,) = [each for each in resources if each["resourceType"] == "Observation"]
        (link,) = study["series"][0]["extension"]
        assert link["valueReference"]["reference"] == f"Observation/{conditions['id']}"
        (where,) = [each for each in resources if each["resourceType"] == "Endpoint"]
        assert where["address"] == doors.server.dicomweb_url
        assert orderer.get(f"/dicom-web/studies/{study['id']}/series/{SERIES}").status_code == 200

    def test_it_is_the_same_message_when_it_is_tried_again(self, doors, orderer):
        with receiving(status(500), status(200)) as receiver:
            task = placed(orderer, order(register(doors, receiver, "hook", way=Way.WEBHOOK)))
            attempt(doors, task)
            doors.clock.forward(seconds=10)
            done(doors, task)

        first, second = receiver.came
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert first.headers["webhook-timestamp"] != second.headers["webhook-timestamp"]
        assert json.loads(first.body)["id"] == json.loads(second.body)["id"]

    def test_one_that_is_gone_is_not_tried_again(self, doors, orderer):
        with receiving(status(410)) as receiver:
            ended = done(doors, placed(orderer, order(register(doors, receiver, "hook", way=Way.WEBHOOK))))

        assert "HTTP 410" in ended["failure"]
        assert "provenance" not in str(ended["output"])


class TestRecord:
    def test_a_provenance_says_who_got_what_when(self, doors, orderer, receiver):
        task = placed(orderer, order(register(doors, receiver)))

        (reference,) = outputs(done(doors, task), "provenance")

        told = orderer.get(f"/fhir/{reference['reference']}").json
        validate(told, "Provenance")
        assert told["target"] == [
            {"reference": f"ImagingStudy/{STUDY}"},
            {"identifier": {"system": "urn:dicom:uid", "value": f"urn:oid:{SERIES}"}},
        ]
        assert told["agent"][1]["who"] == {
            "reference": organization(doors, "orderer"), "display": "Endpoint/peer-pacs",
        }  # fmt: skip
        assert told["agent"][0]["onBehalfOf"]["reference"] == organization(doors, "orderer")
        assert told["entity"][0]["what"] == {"reference": f"Task/{task['id']}"}
        assert told["recorded"] == told["occurredPeriod"]["end"]
        asked = f"/fhir/Provenance?agent={organization(doors, 'orderer')}&target=ImagingStudy/{STUDY}"
        assert [each["resource"]["id"] for each in orderer.get(asked).json["entry"]] == [told["id"]]

    def test_work_that_is_done_twice_leaves_one_record(self, doors, orderer, receiver):
        task = placed(orderer, order(register(doors, receiver)))

        first, second = done(doors, task), done(doors, task)

        assert first == second
        assert len(receiver.came) == 1
        found = doors.server.own.search(parse("Provenance", [("entity", f"Task/{task['id']}")])).matches
        assert [each.version for each in found] == [1]

    def test_audit_events_say_that_sending_began_and_what_was_acknowledged(self, doors, orderer):
        auditor = doors.caller(Right.AUDIT, name="auditor")
        with receiving(takes_half(0xA700)) as receiver:
            attempt(doors, placed(orderer, order(register(doors, receiver))))

        entries = auditor.get("/fhir/AuditEvent?_sort=date&_count=100").json["entry"]
        events = [each["resource"] for each in entries]
        of_sending = [each for each in events if len(each["agent"]) == 2]
        began, sent = sorted(of_sending, key=lambda each: each["type"]["code"])
        assert (began["type"]["code"], sent["type"]["code"]) == ("110102", "110104")  # PS3.16 CID 400
        for each in (began, sent):
            validate(each, "AuditEvent")
            requester, destination = each["agent"]
            assert requester["who"]["reference"] == organization(doors, "orderer")
            assert destination["who"]["reference"] == organization(doors, "orderer")
            assert destination["name"] == "pacs"
            assert destination["network"]["address"] == "127.0.0.1"
        assert began["entity"][0]["detail"][0]["valueString"] == "6"
        assert sent["entity"][0]["detail"][0]["valueString"] == "3"
        assert (began["outcome"], sent["outcome"]) == ("0", "4")
        assert "A700H" in sent["outcomeDesc"]

    def test_outputs_are_those_that_the_kind_declares(self, doors, orderer, receiver):
        from fhir_server.model import task as tasks

        task = placed(orderer, order(register(doors, receiver)))
        outcome = attempt(doors, task)

        started = tasks.start(task, tasks.Role.SERVER, doors.clock())
        completed = tasks.complete(
            started, handlers.get("deliver").kind, outcome.outputs, tasks.Role.SERVER, doors.clock()
        )

        validate(completed, "Task")


def test_a_processing_order_has_its_result_delivered_to_the_endpoint_and_to_the_organization_that_it_names(
    doors: Doors, orderer: Caller, receiver: Receiver
) -> None:
    doors.server.principals.add("clinic", [Right.RECEIVE_IMAGES])
    mine = register(doors, receiver)
    with receiving(status(200)) as hook:
        register(doors, hook, "hook", "clinic", way=Way.WEBHOOK)
        recipients = [
            value("deliver-to", "valueReference", {"reference": each}) for each in (mine, organization(doors, "clinic"))
        ]
        process = {
            **order(mine), "code": {"coding": [{"system": "urn:fhir-imaging:code:task", "code": "process"}]},
            "input": [
                value("algorithm", "valueString", "slab"), value("thickness_mm", "valueDecimal", 1000),
                value("series", "valueId", SERIES), *recipients,
            ],
        }  # fmt: skip
        task = placed(orderer, process)
        made = handlers.get("process").run(task, doors.server, lambda _: None)
        own = doors.server.own
        own.update({**task, "output": made.outputs}, guard=own.creating(made.then))

        ended = [done(doors, own.read("Task", each["id"]).json()) for each in made.then]

    (result,) = outputs({"output": made.outputs}, "series")
    assert [outputs(each, "delivered") for each in ended] == [[1], [1]]
    assert len(receiver.kept) == 1
    told = [each["resource"] for each in json.loads(hook.came[0].body)["entry"]]
    (provenance,) = [each for each in told if each["resourceType"] == "Provenance"]
    assert provenance["activity"]["text"].startswith("Slab projection")
    (study,) = [each for each in told if each["resourceType"] == "ImagingStudy"]
    assert [each["uid"] for each in study["series"]] == [result]
    assert told[1]["id"] == task["id"]
