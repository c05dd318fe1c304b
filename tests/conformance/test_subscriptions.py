"""Subscriptions: FHIR R4 subscription (2.46), and the guide Subscriptions R5 Backport 1.1.0, page by page.

Delivery is done step by step by what a worker does, to a receiver that is a real HTTP server.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from pydicom import dcmread
from pymongo.database import Database

from fhir_server.access.contracts import Right
from fhir_server.access.grants import Grant
from fhir_server.access.scopes import Scopes
from fhir_server.model.dates import to_instant
from fhir_server.model.query import Query
from fhir_server.model.validation import validate
from fhir_server.model.xml import from_xml
from fhir_server.store.repository import Repository
from fhir_server.work import topics
from tests.support.doors import Caller, Doors, new_study, opened
from tests.support.receivers import Receiver, closes, receiving, status
from tests.support.subscribing import (
    BACKPORT,
    CHANGED,
    EMERGENCY,
    LOOPBACK,
    NEW,
    RESULT_READY,
    STATUS_CHANGED,
    SUBSCRIBER,
    Work,
    bodies,
    events,
    hears,
    kinds,
    notified,
    numbers,
    plain,
    refused,
    said,
    stored,
    to_topic,
)
from tests.support.workitems import new_item, send

ORDERER = (*SUBSCRIBER, Right.ORDER_PROCESSING)
TASK = {"resourceType": "Task", "status": "requested", "intent": "order", "code": {"text": "read it"}}


@pytest.fixture(scope="module")
def doors(module_db: Database[dict[str, Any]]) -> Iterator[Doors]:
    with opened(module_db, **LOOPBACK, subscriptions__most="12", subscriptions__attempts="3") as made:
        yield made


@pytest.fixture
def me(doors: Doors) -> Caller:
    return doors.caller(*ORDERER, name=f"me-{uuid4()}")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving(hears) as made:
        yield made


@pytest.fixture
def work(doors: Doors) -> Work:
    """A worker; what others subscribed to is forgotten."""
    for each in doors.server.own.search(Query("Subscription", count=1000)).matches:
        doors.server.own.delete("Subscription", each.id)
    made = Work(doors)
    made.all()
    return made


def status_of(caller: Caller, subscription: dict[str, Any]) -> str:
    return str(caller.get(f"/fhir/Subscription/{subscription['id']}").json["status"])


def a_patient(caller: Caller, **elements: Any) -> dict[str, Any]:
    response = caller.post("/fhir/Patient", {"resourceType": "Patient", **elements})
    assert response.status_code == 201, response.text
    return dict(response.json)


def a_study(doors: Doors, **changes: Any) -> str:
    uid, files = new_study(**changes)
    doors.ingest(*files)
    doors.server.studies.catch_up()
    return uid


# ---- FHIR R4 2.46.5.1, channel type rest-hook


def test_r4_without_payload_is_told_by_an_empty_post(me: Caller, receiver: Receiver, work: Work) -> None:
    stored(me, plain("Patient?gender=female", f"{receiver.address}/hook", payload=""))
    work.all()

    a_patient(me, gender="female")
    work.all()

    assert [(each.method, each.path, each.body) for each in receiver.came] == [("POST", "/hook", b"")]


def test_r4_with_payload_is_told_by_an_update_below_the_endpoint(me: Caller, receiver: Receiver, work: Work) -> None:
    stored(me, plain("Patient?gender=female", f"{receiver.address}/fhir", payload="application/fhir+json"))
    work.all()

    made = a_patient(me, gender="female")
    work.all()

    assert bodies(receiver.came) == [("PUT", f"/fhir/Patient/{made['id']}")]
    assert json.loads(receiver.came[0].body) == made
    assert receiver.came[0].headers["content-type"] == "application/fhir+json"


def test_r4_payload_in_xml_is_sent_in_xml(me: Caller, receiver: Receiver, work: Work) -> None:
    stored(me, plain("Patient?gender=female", receiver.address, payload="application/fhir+xml"))
    work.all()

    made = a_patient(me, gender="female")
    work.all()

    assert from_xml(receiver.came[0].body, most_levels=50) == made
    assert receiver.came[0].headers["content-type"] == "application/fhir+xml"


def test_r4_headers_of_the_channel_are_sent(me: Caller, receiver: Receiver, work: Work) -> None:
    asked = plain("Patient?", receiver.address)
    asked["channel"]["header"] = ["Authorization: Bearer secret-abc-123", "X-Tenant: north"]
    stored(me, asked)
    work.all()

    a_patient(me)
    work.all()

    assert receiver.came[0].headers["authorization"] == "Bearer secret-abc-123"
    assert receiver.came[0].headers["x-tenant"] == "north"


# ---- FHIR R4 2.46.4, criteria


def test_r4_criteria_are_applied_to_the_new_value(me: Caller, receiver: Receiver, work: Work) -> None:
    made = a_patient(me, gender="male")
    stored(me, plain("Patient?gender=female", receiver.address, payload="application/fhir+json"))
    work.all()

    for gender in ("female", "unknown"):
        made = me.put(f"/fhir/Patient/{made['id']}", {**made, "gender": gender}).json
    me.delete(f"/fhir/Patient/{made['id']}")
    work.all()

    assert [json.loads(each.body)["gender"] for each in receiver.came] == ["female"]


def test_r4_every_version_counts_though_another_has_replaced_it(me: Caller, receiver: Receiver, work: Work) -> None:
    stored(me, plain("Patient?gender=female", receiver.address, payload="application/fhir+json"))
    work.all()

    made = a_patient(me, gender="female")
    for name in ("Anna", "Berta"):
        made = me.put(f"/fhir/Patient/{made['id']}", {**made, "name": [{"given": [name]}]}).json
    work.all()

    assert [json.loads(each.body)["meta"]["versionId"] for each in receiver.came] == ["1", "2", "3"]


def test_r4_criteria_may_be_chained(me: Caller, receiver: Receiver, work: Work) -> None:
    hers, his = a_patient(me, gender="female"), a_patient(me, gender="male")
    stored(me, plain("Condition?subject:Patient.gender=female", receiver.address, payload="application/fhir+json"))
    work.all()

    for patient in (his, hers):
        body = {"resourceType": "Condition", "subject": {"reference": f"Patient/{patient['id']}"}}
        assert me.post("/fhir/Condition", body).status_code == 201
    work.all()

    told = [json.loads(each.body)["subject"]["reference"] for each in receiver.came]
    assert told == [f"Patient/{hers['id']}"]


def test_what_was_before_the_subscription_is_not_told(me: Caller, receiver: Receiver, work: Work) -> None:
    a_patient(me)
    stored(me, plain("Patient?", receiver.address))
    work.all()

    assert not receiver.came


# ---- FHIR R4 2.46.3, Subscription.status and end


def test_r4_status_goes_from_requested_to_active(me: Caller, receiver: Receiver, work: Work) -> None:
    made = stored(me, {**plain("Patient?", receiver.address), "status": "active"})
    assert made["status"] == "requested"

    work.all()

    assert status_of(me, made) == "active"


def test_r4_status_is_off_after_the_end(doors: Doors, me: Caller, receiver: Receiver, work: Work) -> None:
    assert "the end lies in the past" in refused(me, plain("Patient?", receiver.address, end=to_instant(doors.clock())))
    end = to_instant(doors.clock() + timedelta(seconds=5))
    made = stored(me, plain("Patient?", receiver.address, end=end))
    work.all()
    before = status_of(me, made)

    doors.clock.forward(seconds=6)
    work.all()

    assert (before, status_of(me, made)) == ("active", "off")


def test_a_subscription_that_is_turned_off_hears_nothing(me: Caller, receiver: Receiver, work: Work) -> None:
    made = stored(me, plain("Patient?", receiver.address))
    work.all()

    current = me.get(f"/fhir/Subscription/{made['id']}").json
    assert me.put(f"/fhir/Subscription/{made['id']}", {**current, "status": "off"}).json["status"] == "off"
    a_patient(me)
    work.all()

    assert not receiver.came


def test_a_deleted_subscription_hears_nothing(doors: Doors, me: Caller, receiver: Receiver, work: Work) -> None:
    made = stored(me, plain("Patient?", receiver.address))
    work.all()

    me.delete(f"/fhir/Subscription/{made['id']}")
    a_patient(me)
    work.all()

    assert not receiver.came
    assert doors.server.subscriptions.state(made["id"]) is None


# ---- R5 backport: channels, rest-hook


def test_channels_rest_hook_begins_with_a_handshake(me: Caller, receiver: Receiver, work: Work) -> None:
    made = stored(me, to_topic(NEW, receiver.address))
    assert made["status"] == "requested"

    work.all()

    (bundle,) = notified(receiver)
    assert (said(bundle, "type"), said(bundle, "status")) == ("handshake", "requested")
    assert said(bundle, "events-since-subscription-start") == "0"
    assert status_of(me, made) == "active"


@pytest.mark.parametrize("answer", [status(500), status(404), closes])
def test_channels_rest_hook_a_failed_handshake_is_an_error(me: Caller, work: Work, answer: Any) -> None:
    with receiving(answer) as silent:
        made = stored(me, to_topic(NEW, silent.address))
        work.all()

    found = me.get(f"/fhir/Subscription/{made['id']}").json
    assert found["status"] == "error"
    assert "other server" in found["error"]
    assert len(silent.came) == 1


def test_channels_rest_hook_is_posted_in_the_content_type_that_was_asked(
    me: Caller, receiver: Receiver, work: Work
) -> None:
    stored(me, to_topic(NEW, f"{receiver.address}/x", payload="application/fhir+xml"))

    work.all()

    assert bodies(receiver.came) == [("POST", "/x")]
    assert receiver.came[0].headers["content-type"] == "application/fhir+xml"
    assert from_xml(receiver.came[0].body, most_levels=50)["resourceType"] == "Bundle"


# ---- R5 backport: notifications


@pytest.mark.parametrize("content", ["empty", "id-only", "full-resource"])
def test_notifications_are_valid_history_bundles_with_the_status_first(
    doors: Doors, me: Caller, receiver: Receiver, work: Work, content: str
) -> None:
    made = stored(me, to_topic(NEW, receiver.address, content=content))
    work.all()
    a_study(doors)
    work.all()

    for bundle in notified(receiver):
        validate(bundle, "Bundle")
        first = bundle["entry"][0]
        assert bundle["type"] == "history"
        assert first["resource"]["resourceType"] == "Parameters"
        assert first["resource"]["meta"]["profile"] == [f"{BACKPORT}backport-subscription-status-r4"]
        assert first["request"] == {
            "method": "GET",
            "url": f"http://images.test/fhir/Subscription/{made['id']}/$status",
        }
        assert said(bundle, "subscription") == {"reference": f"http://images.test/fhir/Subscription/{made['id']}"}
        assert all("request" in each and "response" in each for each in bundle["entry"])  # bdl-3, bdl-4
    assert kinds(notified(receiver)) == ["handshake", "event-notification"]


def test_notifications_number_the_events_of_each_subscription_in_order(
    doors: Doors, me: Caller, receiver: Receiver, work: Work
) -> None:
    stored(me, to_topic(NEW, receiver.address, max_count=2))
    work.all()

    uids = [a_study(doors) for _ in range(5)]
    work.all()

    told = [each for bundle in notified(receiver) for each in events(bundle)]
    assert [each["focus"]["reference"].rpartition("/")[2] for each in told] == uids
    assert numbers(notified(receiver)) == [1, 2, 3, 4, 5]
    assert [len(events(each)) for each in notified(receiver)] == [0, 2, 2, 1]
    assert said(notified(receiver)[-1], "events-since-subscription-start") == "5"


def test_notifications_heartbeat_when_nothing_happens(doors: Doors, me: Caller, receiver: Receiver, work: Work) -> None:
    stored(me, to_topic(NEW, receiver.address, heartbeat_period=60))
    work.all()

    doors.clock.forward(seconds=50)
    work.all()
    doors.clock.forward(seconds=11)
    work.all()

    assert kinds(notified(receiver)) == ["handshake", "heartbeat"]
    assert said(notified(receiver)[1], "events-since-subscription-start") == "0"


# ---- R5 backport: payloads


def test_payloads_empty_has_no_references(doors: Doors, me: Caller, receiver: Receiver, work: Work) -> None:
    stored(me, to_topic(NEW, receiver.address, content="empty"))
    work.all()
    uid = a_study(doors)
    work.all()

    bundle = notified(receiver)[-1]
    assert len(bundle["entry"]) == 1
    assert [set(each) for each in events(bundle)] == [{"event-number", "timestamp"}]
    assert uid.encode() not in receiver.came[-1].body
    assert said(bundle, "topic") is None  # "SHOULD NOT be present when using empty payloads"


def test_payloads_id_only_names_the_focus(doors: Doors, me: Caller, receiver: Receiver, work: Work) -> None:
    stored(me, to_topic(NEW, receiver.address, content="id-only"))
    work.all()
    uid = a_study(doors)
    work.all()

    bundle = notified(receiver)[-1]
    assert events(bundle)[0]["focus"] == {"reference": f"http://images.test/fhir/ImagingStudy/{uid}"}
    assert not [each for each in bundle["entry"][1:] if "resource" in each]


def test_payloads_full_resource_has_the_resource(doors: Doors, me: Caller, receiver: Receiver, work: Work) -> None:
    stored(me, to_topic(NEW, receiver.address, content="full-resource"))
    work.all()
    uid = a_study(doors)
    work.all()

    bundle = notified(receiver)[-1]
    (entry,) = bundle["entry"][1:]
    assert entry["resource"] == me.get(f"/fhir/ImagingStudy/{uid}/_history/1").json
    assert entry["fullUrl"] == f"http://images.test/fhir/ImagingStudy/{uid}"
    assert said(bundle, "topic") == NEW


# ---- R5 backport: components, subscription topics in R4


def test_topics_are_listed_in_the_capability_statement(doors: Doors) -> None:
    statement = doors.stranger.get("/fhir/metadata").json
    row = next(each for each in statement["rest"][0]["resource"] if each["type"] == "Subscription")

    listed = {each["valueCanonical"] for each in row["extension"]}

    assert {each["url"] for each in row["extension"]} == {f"{BACKPORT}capabilitystatement-subscriptiontopic-canonical"}
    assert listed == {NEW, CHANGED, STATUS_CHANGED, RESULT_READY, EMERGENCY}
    assert row["supportedProfile"] == [f"{BACKPORT}backport-subscription"]
    assert {each["name"] for each in row["operation"]} == {"status", "events", "get-ws-binding-token"}
    assert {"create", "read", "update", "delete", "search-type"} <= {each["code"] for each in row["interaction"]}
    assert "backport-subscription-server-r4" in {each.rpartition("/")[2] for each in statement["instantiates"]}


def test_topics_are_told_as_basic_resources_that_nobody_changes(doors: Doors, me: Caller) -> None:
    topics.publish(doors.server.own)

    found = me.get("/fhir/Basic?code=http://hl7.org/fhir/fhir-types|SubscriptionTopic").json["entry"]
    urls = {
        extension["valueUri"]
        for each in found
        for extension in each["resource"]["extension"]
        if extension["url"].endswith("extension-SubscriptionTopic.url")
    }
    assert urls == {NEW, CHANGED, STATUS_CHANGED, RESULT_READY, EMERGENCY}
    for each in found:
        validate(each["resource"], "Basic")
    basic = found[0]["resource"]
    assert me.put(f"/fhir/Basic/{basic['id']}", basic).status_code == 409
    assert me.delete(f"/fhir/Basic/{basic['id']}").status_code == 409


def test_topic_of_new_studies_tells_of_each_once(doors: Doors, me: Caller, receiver: Receiver, work: Work) -> None:
    stored(me, to_topic(NEW, receiver.address))
    work.all()
    uid, files = new_study(instances=2)
    for file in files:
        doors.ingest(file)
        doors.server.studies.catch_up()
    work.all()

    (told,) = events(notified(receiver)[-1])
    assert told["focus"]["reference"].endswith(uid)


def test_topic_of_changed_studies_tells_of_changes_and_of_the_end(
    doors: Doors, me: Caller, receiver: Receiver, work: Work
) -> None:
    uid, files = new_study(instances=2)
    doors.ingest(files[0])
    doors.server.studies.catch_up()
    stored(me, to_topic(CHANGED, receiver.address, content="full-resource"))
    work.all()

    doors.ingest(files[1])
    doors.server.studies.catch_up()
    doors.server.own.delete("ImagingStudy", uid)
    work.all()

    bundle = notified(receiver)[-1]
    assert numbers([bundle]) == [1, 2]
    assert [each["request"]["method"] for each in bundle["entry"][1:]] == ["PUT", "DELETE"]
    assert bundle["entry"][1]["resource"]["numberOfInstances"] == 2


def test_topics_of_orders_tell_when_the_status_changes_and_when_the_result_is_there(
    me: Caller, receiver: Receiver, work: Work
) -> None:
    stored(me, to_topic(STATUS_CHANGED, f"{receiver.address}/status", content="full-resource"))
    stored(me, to_topic(RESULT_READY, f"{receiver.address}/ready", content="full-resource"))
    work.all()
    receiver.came.clear()

    task = {**TASK, "status": "draft"}
    made = me.post("/fhir/Task", task).json
    for change in ({"description": "urgent"}, {"status": "requested"}):
        made = me.put(
            f"/fhir/Task/{made['id']}", {**made, **change}, headers={"If-Match": f'W/"{made["meta"]["versionId"]}"'}
        ).json
        assert made["resourceType"] == "Task", made
    work.all()

    told = [entry["resource"]["status"] for bundle in notified(receiver) for entry in bundle["entry"][1:]]
    assert told == ["draft", "requested"]
    assert {each.path for each in receiver.came} == {"/status"}


def test_work_items_are_told_of_as_the_tasks_that_they_are(me: Caller, receiver: Receiver, work: Work) -> None:
    stored(me, to_topic(STATUS_CHANGED, receiver.address, content="full-resource"))
    work.all()
    receiver.came.clear()

    assert send(me, "POST", "?1.2.3.4.5", new_item()).status_code == 201
    assert send(me, "POST", "/1.2.3.4.5/cancelrequest").status_code == 202
    work.all()

    told = [entry["resource"] for bundle in notified(receiver) for entry in bundle["entry"][1:]]
    assert [(each["id"], each["status"]) for each in told] == [("1.2.3.4.5", "requested"), ("1.2.3.4.5", "cancelled")]


def test_topic_of_results_tells_of_the_completed_task(doors: Doors, me: Caller, receiver: Receiver, work: Work) -> None:
    made = me.post("/fhir/Task", TASK).json
    stored(me, to_topic(RESULT_READY, receiver.address, content="full-resource"))
    work.all()

    for state in ("accepted", "completed", "completed"):
        current = doors.server.own.read("Task", made["id"]).json()
        doors.server.own.update({**current, "status": state, "note": [{"text": str(uuid4())}]})
    work.all()

    (entry,) = notified(receiver)[-1]["entry"][1:]
    assert entry["resource"]["status"] == "completed"
    assert numbers(notified(receiver)) == [1]


def test_filters_of_a_topic_are_joined_by_and(doors: Doors, me: Caller, receiver: Receiver, work: Work) -> None:
    stored(me, to_topic(NEW, receiver.address, "ImagingStudy?modality=CT", "ImagingStudy?_id=1.2.3.77"))
    work.all()

    for uid, modality in (("1.2.3.77", "CT"), ("1.2.3.78", "CT")):
        _, files = new_study(Modality=modality)
        doors.ingest(*_with_study_uid(files, uid))
        doors.server.studies.catch_up()
    work.all()

    (told,) = events(notified(receiver)[-1])
    assert told["focus"]["reference"].endswith("/1.2.3.77")


def _with_study_uid(files: list[bytes], uid: str) -> list[bytes]:
    made = []
    for each in files:
        ds = dcmread(io.BytesIO(each))
        ds.StudyInstanceUID = uid
        out = io.BytesIO()
        ds.save_as(out)
        made.append(out.getvalue())
    return made


# ---- R5 backport: conformance, what a server SHALL reject


def changed(subscription: dict[str, Any], **channel: Any) -> dict[str, Any]:
    return {**subscription, "channel": {**subscription["channel"], **channel}}


HOOK = "http://127.0.0.1:9/hook"
CUSTOM = {
    "extension": [{"url": f"{BACKPORT}backport-channel-type", "valueCoding": {"system": "http://x", "code": "zulip"}}]
}
REJECTED: dict[str, tuple[dict[str, Any], str]] = {
    "topic": (to_topic("http://example.org/topic/admission", HOOK), "or one of the topics"),
    "version of a topic": (to_topic(f"{NEW}|9", HOOK), "or one of the topics"),
    "type": (plain("Starship?name=x", HOOK), "this server keeps no Starship resources"),
    "record": (plain("AuditEvent?", HOOK), "nobody is notified of AuditEvent"),
    "itself": (plain("Subscription?", HOOK), "nobody is notified of Subscription"),
    "parameter": (plain("Patient?shoe-size=44", HOOK), "shoe-size"),
    "value": (plain("Patient?birthdate=yesterday", HOOK), "birthdate"),
    "no search": (plain("Patient?gender", HOOK), "search criteria are wanted"),
    "sorted": (plain("Patient?_sort=birthdate", HOOK), "_sort selects nothing"),
    "filter": (to_topic(NEW, HOOK, "ImagingStudy?colour=red"), "colour"),
    "filter of another type": (to_topic(NEW, HOOK, "Patient?gender=male"), "the topic is about ImagingStudy"),
    "channel": (changed(plain("Patient?", ""), type="email", endpoint="mailto:a@example.org"), "channels here are"),
    "custom channel": (changed(to_topic(NEW, HOOK), _type=CUSTOM), "channels here are"),
    "no endpoint": (plain("Patient?", ""), "a rest-hook has the address of an endpoint"),
    "payload": (to_topic(NEW, HOOK, payload="text/plain"), "a payload is application/fhir+json"),
    "content": (to_topic(NEW, HOOK, content="everything"), "says how much is told"),
    "heartbeat": (to_topic(NEW, HOOK, heartbeat_period=1), "backport-heartbeat-period"),
    "timeout": (to_topic(NEW, HOOK, timeout=100_000), "backport-timeout"),
    "header": (changed(plain("Patient?", HOOK), header=["no colon"]), "Name: value"),
    "smuggled header": (changed(plain("Patient?", HOOK), header=["X: a\r\nY: b"]), "Name: value"),
    "our header": (changed(plain("Patient?", HOOK), header=["Host: elsewhere"]), "Host is set by this server"),
    "private network": (plain("Patient?", "https://10.1.2.3/hook"), "subscriptions.private_networks"),
    "metadata of a cloud": (plain("Patient?", "http://169.254.169.254/latest"), "subscriptions.private_networks"),
    "no TLS": (plain("Patient?", "http://8.8.8.8/hook"), "without TLS"),
    "credentials in the address": (plain("Patient?", "https://a:b@example.org/hook"), "a host, perhaps a port"),
    "another scheme": (plain("Patient?", "file:///etc/passwd"), "a host, perhaps a port"),
}  # fmt: skip


@pytest.mark.parametrize("name", REJECTED)
def test_conformance_what_cannot_be_done_is_rejected(me: Caller, name: str) -> None:
    subscription, words = REJECTED[name]

    assert words in refused(me, subscription)


def test_conformance_only_so_many_subscriptions_of_a_subscriber(me: Caller, receiver: Receiver, work: Work) -> None:
    for _ in range(12):
        stored(me, plain("Patient?", receiver.address))

    response = me.post("/fhir/Subscription", plain("Patient?", receiver.address))

    assert response.status_code == 413
    assert "12 Subscriptions" in response.json["issue"][0]["diagnostics"]


# ---- R5 backport: errors


def test_errors_the_subscription_fails_after_so_many_tries_and_goes_on_when_asked(
    doors: Doors, me: Caller, work: Work
) -> None:
    with receiving(hears, status(503), status(503), status(503), hears) as receiver:
        made = stored(me, to_topic(NEW, receiver.address))
        work.all()
        uid = a_study(doors)
        for _ in range(3):
            work.all()
            doors.clock.forward(seconds=700)
        work.all()
        assert len(receiver.came) == 4  # the handshake and three tries

        failed = me.get(f"/fhir/Subscription/{made['id']}").json
        (told,) = me.get(f"/fhir/Subscription/{made['id']}/$status").json["entry"]
        missed = a_study(doors)
        work.all()
        again = me.put(f"/fhir/Subscription/{made['id']}", {**failed, "status": "requested"}).json
        work.all()

    assert (failed["status"], "HTTP 503" in failed["error"]) == ("error", True)
    assert said({"entry": [told]}, "status") == "error"
    assert "HTTP 503" in said({"entry": [told]}, "error")["text"]
    assert "error" not in again
    assert status_of(me, made) == "active"
    assert kinds(notified(receiver))[4:] == ["handshake", "event-notification"]
    told_now = [each["focus"]["reference"].rpartition("/")[2] for each in events(notified(receiver)[-1])]
    assert told_now == [uid, missed]  # nothing is lost by the time of the error


def test_errors_after_a_failure_later_events_wait(doors: Doors, me: Caller, work: Work) -> None:
    with receiving(hears, status(500), hears) as receiver:
        stored(me, to_topic(NEW, receiver.address, max_count=1))
        work.all()
        a_study(doors)
        work.all()
        a_study(doors)
        work.all()
        came_while_it_paused = len(receiver.came)
        doors.clock.forward(seconds=700)
        work.all()

    assert came_while_it_paused == 2
    assert numbers(notified(receiver)[2:]) == [1, 2]


def test_errors_only_the_server_says_that_there_is_one(me: Caller, receiver: Receiver, work: Work) -> None:
    made = stored(me, to_topic(NEW, receiver.address))

    response = me.put(f"/fhir/Subscription/{made['id']}", {**made, "status": "error"})

    assert response.status_code == 400
    assert "only this server says" in response.text


def test_another_endpoint_is_asked_anew(me: Caller, receiver: Receiver, work: Work) -> None:
    made = stored(me, to_topic(NEW, f"{receiver.address}/a"))
    work.all()

    current = me.get(f"/fhir/Subscription/{made['id']}").json
    moved = me.put(f"/fhir/Subscription/{made['id']}", changed(current, endpoint=f"{receiver.address}/b")).json
    work.all()

    assert moved["status"] == "requested"
    assert bodies(receiver.came) == [("POST", "/a"), ("POST", "/b")]
    assert status_of(me, made) == "active"


def test_criteria_that_are_not_understood_any_more_hold_up_no_other_subscription(
    doors: Doors, me: Caller, receiver: Receiver, work: Work
) -> None:
    lost = stored(me, plain("Patient?", f"{receiver.address}/lost"))
    stored(me, plain("Patient?", f"{receiver.address}/kept"))
    # As when a search parameter that somebody defined is deleted.
    doors.server.own.update({**lost, "criteria": "Patient?shoe-size=44"})
    work.all()

    a_patient(me)
    work.all()

    assert bodies(receiver.came) == [("POST", "/kept")]
    found = me.get(f"/fhir/Subscription/{lost['id']}").json
    assert found["status"] == "error"
    assert "shoe-size" in found["error"]


def test_criteria_that_the_database_refuses_hold_up_no_other_subscription(
    doors: Doors, me: Caller, receiver: Receiver, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = stored(me, plain("Patient?gender=male", f"{receiver.address}/lost"))
    stored(me, plain("Patient?", f"{receiver.address}/kept"))
    work.all()
    compiled = Repository.selection

    def selection(self: Repository, query: Any) -> Any:
        found = compiled(self, query)
        return replace(found, condition={"$nonsense": 1}) if query.clauses else found

    monkeypatch.setattr(Repository, "selection", selection)
    for _ in range(2):
        a_patient(me, gender="male")
        work.all()

    assert bodies(receiver.came) == [("POST", "/kept")] * 2
    found = me.get(f"/fhir/Subscription/{lost['id']}").json
    assert (found["status"], found["meta"]["versionId"]) == ("error", "3")  # requested, active, error
    assert "cannot be looked up" in found["error"]


def test_a_subscription_may_change_its_channel(doors: Doors, me: Caller, receiver: Receiver, work: Work) -> None:
    made = stored(me, plain("Patient?", "", way="websocket"))
    work.all()
    current = me.get(f"/fhir/Subscription/{made['id']}").json
    me.put(f"/fhir/Subscription/{made['id']}", {**current, "channel": plain("", receiver.address)["channel"]})
    work.all()

    a_patient(me)
    work.all()

    assert bodies(receiver.came) == [("POST", "/")]


# ---- R5 backport: operations


def test_operation_status_of_one_and_of_many(me: Caller, receiver: Receiver, work: Work) -> None:
    one, other = (stored(me, to_topic(NEW, receiver.address)) for _ in range(2))
    off = stored(me, {**to_topic(NEW, receiver.address), "status": "off"})
    work.all()

    def told(query: str) -> set[str]:
        bundle = me.get(f"/fhir/Subscription{query}").json
        validate(bundle, "Bundle")
        assert bundle["type"] == "searchset"
        found = [said({"entry": [each]}, "subscription")["reference"] for each in bundle.get("entry", [])]
        return {each.rpartition("/")[2] for each in found}

    assert told(f"/{one['id']}/$status") == {one["id"]}
    assert told("/$status") == {one["id"], other["id"], off["id"]}
    assert told("/$status?status=active") == {one["id"], other["id"]}
    assert told(f"/$status?id={one['id']}&id={off['id']}") == {one["id"], off["id"]}
    assert told(f"/$status?id={one['id']}&id={off['id']}&status=off") == {off["id"]}
    assert me.get("/fhir/Subscription/$status?id=unknown").status_code == 404


def test_operation_events_tells_what_was(doors: Doors, me: Caller, receiver: Receiver, work: Work) -> None:
    made = stored(me, to_topic(NEW, receiver.address))
    work.all()
    uids = [a_study(doors) for _ in range(4)]
    work.all()

    def asked(query: str) -> dict[str, Any]:
        bundle = me.get(f"/fhir/Subscription/{made['id']}/$events{query}").json
        validate(bundle, "Bundle")
        assert (bundle["type"], said(bundle, "type")) == ("history", "query-event")
        return dict(bundle)

    assert numbers([asked("")]) == [1, 2, 3, 4]
    assert numbers([asked("?eventsSinceNumber=2&eventsUntilNumber=3")]) == [2, 3]
    assert numbers([asked("?eventsSinceNumber=9")]) == []
    full = asked("?eventsSinceNumber=4&content=full-resource")
    assert full["entry"][1]["resource"]["id"] == uids[3]
    assert len(asked("?content=empty")["entry"]) == 1
    assert me.get(f"/fhir/Subscription/{made['id']}/$events?content=all").status_code == 400


# ---- R5 backport: safety and security


def test_safety_a_subscription_is_its_subscribers_own(doors: Doors, me: Caller, receiver: Receiver, work: Work) -> None:
    made = stored(me, to_topic(NEW, receiver.address))
    other = doors.caller(*SUBSCRIBER, name="other")

    assert other.get(f"/fhir/Subscription/{made['id']}").status_code == 404
    assert other.get("/fhir/Subscription").json.get("entry", []) == []
    assert other.put(f"/fhir/Subscription/{made['id']}", made).status_code == 404
    assert other.get(f"/fhir/Subscription/{made['id']}/$status").status_code == 404
    assert other.get(f"/fhir/Subscription/{made['id']}/$events").status_code == 404
    forged = {**to_topic(NEW, receiver.address), "meta": made["meta"]}
    mine = stored(other, forged)
    assert mine["meta"]["tag"] != made["meta"]["tag"]


def test_safety_a_suspended_subscriber_gets_nothing(doors: Doors, receiver: Receiver, work: Work) -> None:
    name = f"short-{uuid4()}"
    short = doors.caller(*SUBSCRIBER, name=name)
    made = stored(short, to_topic(NEW, receiver.address))
    work.all()
    a_study(doors)
    work.dispatch()

    doors.server.principals.suspend(name)
    work.all()
    a_study(doors)
    work.all()

    assert kinds(notified(receiver)) == ["handshake"]
    found = doors.server.own.read("Subscription", made["id"]).json()
    assert found["status"] == "error"
    assert "the subscriber is suspended" in found["error"]


def test_safety_who_may_not_receive_any_more_gets_nothing(doors: Doors, receiver: Receiver, work: Work) -> None:
    name = f"once-{uuid4()}"
    once = doors.caller(*SUBSCRIBER, name=name)
    stored(once, plain("Patient?", receiver.address, payload="application/fhir+json"))
    work.all()
    a_patient(once)
    work.dispatch()

    doors.server.principals.add(name, [Right.REGISTER_IMAGES])
    work.all()

    assert not receiver.came


def granted(doors: Doors, scopes: str) -> Caller:
    """A program by itself, with a token that was given for these scopes."""
    client = doors.server.principals.add("backend", SUBSCRIBER).clients[0]
    grant = Grant(client_id=client, scopes=Scopes.parse(scopes), expires=doors.clock() + timedelta(minutes=5))
    return Caller(doors.flask, doors.server.principals.issue(grant), doors.clock)


def test_safety_a_subscription_tells_no_more_than_the_token_was_given_for(
    doors: Doors, receiver: Receiver, work: Work
) -> None:
    narrow = granted(doors, "system/Subscription.cruds system/ImagingStudy.rs?modality=CT")
    made = stored(narrow, to_topic(NEW, receiver.address))
    work.all()

    uids = {modality: a_study(doors, Modality=modality) for modality in ("MR", "CT")}
    doors.clock.forward(minutes=10)  # the token is over, what it was given for is not
    work.all()

    (told,) = events(notified(receiver)[-1])
    assert told["focus"]["reference"].endswith(uids["CT"])
    other = granted(doors, "system/Subscription.rs")
    for operation in ("$events", "$get-ws-binding-token", "$status"):
        assert other.get(f"/fhir/Subscription/{made['id']}/{operation}").status_code == 403
    assert "entry" not in other.get("/fhir/Subscription/$status").json


def test_safety_who_may_only_register_stores_none(doors: Doors, receiver: Receiver) -> None:
    sender = doors.caller(Right.REGISTER_IMAGES, name="sender-only")

    response = sender.post("/fhir/Subscription", plain("Patient?", receiver.address))

    assert response.status_code == 403


def test_safety_what_was_told_is_on_record(doors: Doors, me: Caller, receiver: Receiver, work: Work) -> None:
    made = stored(me, to_topic(NEW, receiver.address))
    work.all()
    uid = a_study(doors)
    work.all()

    auditor = doors.caller(Right.AUDIT, name="auditor")
    found = auditor.get(f"/fhir/AuditEvent?entity=Subscription/{made['id']}&subtype=notify").json["entry"]
    named = {each["what"]["reference"] for each in found[0]["resource"]["entity"]}
    assert named == {f"Subscription/{made['id']}", f"ImagingStudy/{uid}"}
