"""The register of endpoints: who sees one, who may not change it, and what an operator may register."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from fhir_server.access.contracts import Right
from fhir_server.model.peer import Form, Peer, Schedule, Way
from fhir_server.model.validation import validate
from imaging.errors import AppError, Category
from tests.support.doors import Doors, opened

PUBLIC = "https://pacs.example.org/dicom-web"
PACS = Peer("pacs", "", Way.STOW, PUBLIC, authorization="Bearer very-secret-token", form=Form.STORED)
HOOK = Peer("hook", "", Way.WEBHOOK, "https://app.example.org/hooks/T0123/capability")


@pytest.fixture
def clinic(doors: Doors) -> Any:
    return doors.caller(Right.RECEIVE_IMAGES, Right.REGISTER_IMAGES, name="clinic")


def test_a_registered_peer_is_an_endpoint_that_its_subscriber_finds(doors, clinic):
    doors.server.endpoints.add(PACS, "clinic")

    found = clinic.get("/fhir/Endpoint/peer-pacs").json

    validate(found, "Endpoint")
    assert found["status"] == "active"
    assert found["address"] == PUBLIC
    assert found["connectionType"]["code"] == "dicom-stow-rs"
    mine = found["managingOrganization"]["reference"]
    assert clinic.get(f"/fhir/{mine}").json["name"] == "clinic"
    assert [each["resource"]["id"] for each in clinic.get(f"/fhir/Endpoint?organization={mine}").json["entry"]] == [
        "peer-pacs"
    ]


def test_no_credential_and_no_capability_is_in_what_is_shown(doors, clinic):
    doors.server.endpoints.add(PACS, "clinic")
    hook, secret = doors.server.endpoints.add(HOOK, "clinic")

    shown = clinic.get("/fhir/Endpoint").text + clinic.get("/fhir/Endpoint/peer-hook/_history").text

    assert secret.startswith("whsec_")
    assert hook.address.endswith("capability")
    assert [word for word in ("very-secret-token", secret, "capability", "T0123") if word in shown] == []
    assert clinic.get("/fhir/Endpoint/peer-hook").json["address"] == "https://app.example.org"
    assert "very-secret-token" not in repr(PACS)


def test_a_folder_is_shown_without_its_path_and_with_what_is_collected(doors, clinic):
    schedule = Schedule(every_s=60, filters=("Modality=CT", "00080060=MR"))
    doors.server.endpoints.add(Peer("inbox", "", Way.FOLDER, "/srv/inbox", schedule=schedule), "clinic")

    found = clinic.get("/fhir/Endpoint/peer-inbox").json

    validate(found, "Endpoint")
    assert found["address"] == "urn:fhir-imaging:folder:inbox"
    told = found["extension"][0]["extension"]
    assert told[0]["valueDuration"]["value"] == 60
    assert [each["valueString"] for each in told[1:]] == ["Modality=CT", "00080060=MR"]


def test_who_only_orders_sees_its_own_endpoints_alone(doors, clinic):
    orderer = doors.caller(Right.ORDER_PROCESSING, name="orderer")
    doors.server.endpoints.add(PACS, "clinic")
    doors.server.endpoints.add(replace(PACS, name="mine"), "orderer")

    assert [each["resource"]["id"] for each in orderer.get("/fhir/Endpoint").json["entry"]] == ["peer-mine"]
    assert orderer.get("/fhir/Endpoint/peer-pacs").status_code == 404


def test_a_client_can_neither_change_nor_delete_nor_forge_a_registered_endpoint(doors, clinic):
    doors.server.endpoints.add(PACS, "clinic")
    shown = clinic.get("/fhir/Endpoint/peer-pacs").json

    changed = clinic.put("/fhir/Endpoint/peer-pacs", shown | {"address": "https://evil.example.org"})
    forged = clinic.put("/fhir/Endpoint/peer-evil", shown | {"id": "peer-evil"})
    deleted = clinic.delete("/fhir/Endpoint/peer-pacs")

    assert (changed.status_code, deleted.status_code) == (409, 409)
    assert forged.status_code == 405
    assert "made by the server itself" in changed.json["issue"][0]["diagnostics"]
    assert clinic.get("/fhir/Endpoint/peer-pacs").json == shown


def test_suspending_shows_and_resuming_too_and_removing_forgets_everything(doors, clinic):
    endpoints = doors.server.endpoints
    endpoints.add(PACS, "clinic")

    endpoints.suspend("pacs")
    assert clinic.get("/fhir/Endpoint/peer-pacs").json["status"] == "suspended"
    assert not doors.server.peers.get("pacs").in_use(doors.clock.now)
    endpoints.resume("pacs")
    assert clinic.get("/fhir/Endpoint/peer-pacs").json["status"] == "active"
    endpoints.remove("pacs")

    assert clinic.get("/fhir/Endpoint/peer-pacs").status_code == 410
    assert "very-secret-token" not in str(list(doors.server.database.peers.find()))
    with pytest.raises(AppError) as caught:
        endpoints.suspend("pacs")
    assert caught.value.category is Category.NOT_FOUND


def test_a_removed_endpoint_can_be_registered_again(doors, clinic):
    endpoints = doors.server.endpoints
    endpoints.add(PACS, "clinic")
    endpoints.remove("pacs")

    endpoints.add(PACS, "clinic")

    assert clinic.get("/fhir/Endpoint/peer-pacs").status_code == 200


def test_a_peer_comes_back_from_the_database_as_it_was_registered(doors, clinic):
    schedule = Schedule(every_s=60, filters=("Modality=CT",), since="20260101", overlap_days=7, quiet_s=1, keeps=True)
    start = doors.clock.now.replace(microsecond=0)
    peer = Peer(
        "ct", "", Way.DICOMWEB, PUBLIC, wado_address=f"{PUBLIC}/wado", authorization="Basic dTpw",
        schedule=schedule, start=start, end=start + timedelta(days=1),
    )  # fmt: skip

    added, secret = doors.server.endpoints.add(peer, "clinic")

    assert doors.server.peers.get("ct") == added == replace(peer, subscriber=added.subscriber)
    assert secret == ""


def test_a_webhook_registered_anew_keeps_its_secret_unless_a_new_one_is_wanted(doors, clinic):
    endpoints = doors.server.endpoints
    first, made = endpoints.add(HOOK, "clinic")

    second, again = endpoints.add(replace(HOOK, address="https://other.example.org/"), "clinic")
    third, new = endpoints.add(HOOK, "clinic", new_secret_wanted=True)

    assert (first.secret, second.secret, again) == (made, made, "")
    assert third.secret == new != made


def test_the_name_of_another_subscribers_endpoint_is_taken(doors, clinic):
    doors.caller(Right.RECEIVE_IMAGES, name="other")
    doors.server.endpoints.add(PACS, "other")

    with pytest.raises(AppError) as caught:
        doors.server.endpoints.add(PACS, "clinic")

    assert caught.value.category is Category.CONFLICT


@pytest.mark.parametrize(
    ("changes", "category", "words"),
    [
        ({"name": "Not A Name"}, Category.INVALID, "small letters"),
        ({"address": "ftp://pacs.example.org"}, Category.INVALID, "http"),
        ({"address": "https://user:pw@pacs.example.org"}, Category.INVALID, "host"),
        ({"address": "https://pacs.example.org/?a=b"}, Category.INVALID, "path"),
        ({"address": "http://pacs.example.org"}, Category.FORBIDDEN, "private_networks"),
        ({"address": "https://127.0.0.1:8042"}, Category.FORBIDDEN, "private_networks"),
        ({"address": "https://[::1]"}, Category.FORBIDDEN, "private_networks"),
        ({"address": "https://169.254.169.254/latest"}, Category.FORBIDDEN, "private_networks"),
        ({"authorization": "Bearer a\r\nX-Evil: 1"}, Category.INVALID, "printable"),
        ({"authorization": "Bearer"}, Category.INVALID, "printable"),
        ({"way": Way.FOLDER, "address": "inbox"}, Category.INVALID, "whole path"),
        ({"way": Way.DICOMWEB, "schedule": Schedule(filters=("Modalty=CT",))}, Category.INVALID, "KEYWORD=VALUE"),
        ({"way": Way.DICOMWEB, "schedule": Schedule(filters=("Modality",))}, Category.INVALID, "KEYWORD=VALUE"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_registered(doors, clinic, changes, category, words):
    with pytest.raises(AppError) as caught:
        doors.server.endpoints.add(replace(PACS, **changes), "clinic")

    assert caught.value.category is category
    assert words in caught.value.message
    assert doors.server.endpoints.all() == []


def test_an_unknown_subscriber_has_no_endpoints(doors):
    with pytest.raises(AppError) as caught:
        doors.server.endpoints.add(PACS, "nobody")

    assert caught.value.category is Category.NOT_FOUND


def test_what_lies_in_a_private_network_may_be_registered_where_the_setting_says_so(db):
    with opened(db, outbound__private_networks="127.0.0.0/8, 10.0.0.0/8") as doors:
        doors.server.principals.add("clinic", [Right.RECEIVE_IMAGES])

        added, _ = doors.server.endpoints.add(replace(PACS, address="http://10.1.2.3:8042/dicom-web"), "clinic")

        assert doors.server.peers.all(added.subscriber) == [added]
        with pytest.raises(AppError):
            doors.server.endpoints.add(replace(PACS, address="http://192.168.1.1"), "clinic")
