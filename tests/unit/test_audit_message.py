"""AuditEvents as DICOM Audit Messages. PS3.15 A.5.1 (schema), A.5.3 (events), CID 400 and 401; FHIR R4 AuditEvent."""

import base64
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from fhir_server import audit_page
from fhir_server.access.audit import MINOR_FAILURE, SERIOUS_FAILURE, SUCCESS, Access
from fhir_server.access.audit_message import MOST_OBJECTS, Source, messages
from tests.support.syslog import SCHEMA

SOURCE = Source("images-1", "north", "https://images.test:8443")
NOT_WORDS = "\x00<&\"'\ud800 é\x1b"  # what XML cannot have, or has to escape
DCM = "DCM"


def event(access: Access, *entities: dict[str, Any], outcome: str = SUCCESS, **changes: Any) -> dict[str, Any]:
    kind = access.value
    agent = {
        "who": {"reference": "Organization/1"}, "altId": "client-1", "requestor": True,
        "network": {"address": "10.0.0.7", "type": "2"},
    }  # fmt: skip
    return {
        "resourceType": "AuditEvent", "type": kind.type, "subtype": [kind.subtype], "action": kind.action,
        "recorded": "2026-03-01T10:20:30.123Z", "outcome": outcome, "agent": [agent], "entity": list(entities),
        **changes,
    }  # fmt: skip


def about(reference: str, **details: str) -> dict[str, Any]:
    detail = [{"type": name, "valueString": value} for name, value in details.items()]
    return {"what": {"reference": reference}, **({"detail": detail} if detail else {})}


def study(uid: str, instances: int) -> dict[str, Any]:
    return {
        "what": {
            "reference": f"ImagingStudy/{uid}",
            "identifier": {"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"},
        },
        "detail": [{"type": "instances", "valueString": str(instances)}],
    }


def query(*names: str) -> dict[str, Any]:
    return {"role": {"code": "24"}, "detail": [{"type": "parameter", "valueString": name} for name in names]}


def told(given: dict[str, Any]) -> Any:
    """The one message of an event, which the schema lets through."""
    (body,) = messages(given, SOURCE)
    found = etree.fromstring(body)
    SCHEMA.assertValid(found)
    return found


def codes(message: Any, path: str) -> list[tuple[str, str]]:
    return [(each.get("csd-code"), each.get("codeSystemName")) for each in message.findall(path)]


def participants(message: Any) -> dict[str, list[tuple[str, str]]]:
    return {each.get("UserID"): codes(each, "RoleIDCode") for each in message.findall("ActiveParticipant")}


@pytest.mark.parametrize("access", list(Access), ids=str)
@pytest.mark.parametrize("outcome", [SUCCESS, MINOR_FAILURE, SERIOUS_FAILURE])
def test_every_kind_of_access_is_as_the_schema_says(access: Access, outcome: str) -> None:
    for entities in ([], [about("Patient/1", pages="3")], [study("1.2.3", 4)], [query("patient", "modality")]):
        for agents in ([{"requestor": True}], event(access)["agent"]):
            message = told(event(access, *entities, outcome=outcome, agent=agents, outcomeDesc="why <it> failed"))

            assert message.find("EventIdentification").get("EventOutcomeIndicator") == outcome
            for each in message.iter():
                assert each.get("originalText") != ""


@pytest.mark.parametrize(
    ("access", "entity", "code"),
    [
        (Access.STORE, study("1.2", 1), "110104"),
        (Access.RETRIEVE, study("1.2", 1), "110104"),
        (Access.BEGIN_SENDING, study("1.2", 1), "110102"),
        (Access.QUERY, query("PatientID"), "110112"),
        (Access.SEARCH, query("name"), "110112"),
        (Access.READ, about("Patient/1"), "110110"),
        (Access.CREATE, about("Task/1"), "110109"),
        (Access.READ, about("ImagingStudy/1"), "110111"),
        (Access.READ, about("AuditEvent/1"), "110101"),
        (Access.EXPORT, about("Task/1"), "110106"),
        (Access.SIGN_IN, about("Person/1"), "110114"),
        (Access.FACTOR, about("Person/1"), "110113"),
        (Access.DELETE_IMAGES, study("1.2", 1), "110105"),
        (Access.READ, about("StructureDefinition/1"), "rest"),
    ],
)
def test_events_are_those_of_dicom(access: Access, entity: dict[str, Any], code: str) -> None:
    message = told(event(access, entity))

    assert codes(message, "EventIdentification/EventID")[0][0] == code


@pytest.mark.parametrize(
    ("access", "client", "server"),
    [
        # PS3.15 A.5.3.6: the process that sent the data is the source. A.5.3.10: so is who asks a query.
        (Access.STORE, "110153", "110152"),
        (Access.RETRIEVE, "110152", "110153"),
        (Access.QUERY, "110153", "110152"),
        (Access.SEARCH, "110153", "110152"),
    ],
)
def test_sender_and_receiver_have_their_roles(access: Access, client: str, server: str) -> None:
    found = participants(told(event(access, query("x"))))

    assert found == {"client-1": [(client, DCM)], SOURCE.url: [(server, DCM)]}


def test_what_is_sent_goes_from_this_server_to_the_receiver() -> None:
    receiver = {
        "type": {"coding": [{"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "110152"}]},
        "who": {"reference": "Organization/2"}, "name": "pacs", "requestor": False,
        "network": {"address": "pacs.test", "type": "1"},
    }  # fmt: skip
    given = event(Access.SEND, study("1.2", 3))

    found = participants(told({**given, "agent": [*given["agent"], receiver]}))

    assert found == {"client-1": [], "pacs": [("110152", DCM)], SOURCE.url: [("110153", DCM)]}


def test_who_broke_the_glass_and_why_is_told() -> None:
    reader = {"system": "http://terminology.hl7.org/CodeSystem/v3-ParticipationType", "code": "IRCP"}
    purpose = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "BTG"}
    doctor = {"type": {"coding": [reader]}, "who": {"reference": "Practitioner/1"}, "requestor": False}
    given = event(Access.RETRIEVE, study("1.2", 1), purposeOfEvent=[{"coding": [purpose]}])

    message = told({**given, "agent": [*given["agent"], doctor]})

    assert participants(message) == {
        "client-1": [("110152", DCM)], "Practitioner/1": [("IRCP", reader["system"])], SOURCE.url: [("110153", DCM)],
    }  # fmt: skip
    assert ("BTG", purpose["system"]) in codes(message, "EventIdentification/EventTypeCode")


def test_who_when_and_how_it_ended() -> None:
    message = told(event(Access.READ, about("Patient/1"), outcome=MINOR_FAILURE, outcomeDesc="not found"))

    head = message.find("EventIdentification")
    assert dict(head.attrib) == {
        "EventActionCode": "R", "EventDateTime": "2026-03-01T10:20:30.123Z", "EventOutcomeIndicator": "4",
    }  # fmt: skip
    assert head.findtext("EventOutcomeDescription") == "not found"
    assert codes(head, "EventTypeCode") == [("read", "http://hl7.org/fhir/restful-interaction")]
    client, server = message.findall("ActiveParticipant")
    assert dict(client.attrib) == {
        "UserID": "client-1", "AlternativeUserID": "Organization/1", "UserIsRequestor": "true",
        "NetworkAccessPointID": "10.0.0.7", "NetworkAccessPointTypeCode": "2",
    }  # fmt: skip
    assert (server.get("NetworkAccessPointID"), server.get("NetworkAccessPointTypeCode")) == ("images.test", "1")
    source = message.find("AuditSourceIdentification")
    assert dict(source.attrib) == {"AuditEnterpriseSiteID": "north", "AuditSourceID": "images-1"}
    assert source.find("AuditSourceTypeCode").get("csd-code") == "4"


def test_who_is_not_known_is_a_security_alert() -> None:
    message = told(event(Access.READ, outcome=SERIOUS_FAILURE, agent=[{"requestor": True}]))

    assert codes(message, "EventIdentification/EventID") == [("110113", DCM)]
    assert ("110126", DCM) in codes(message, "EventIdentification/EventTypeCode")  # Node Authentication


def test_a_sign_in_that_failed_stays_user_authentication() -> None:
    message = told(event(Access.SIGN_IN, outcome=SERIOUS_FAILURE, agent=[{"requestor": True}]))

    assert codes(message, "EventIdentification/EventID") == [("110114", DCM)]
    assert codes(message, "EventIdentification/EventTypeCode") == [("110122", DCM)]  # Login


def test_a_study_is_named_by_its_uid_with_the_number_of_instances() -> None:
    found = told(event(Access.STORE, study("1.2.3", 7))).find("ParticipantObjectIdentification")

    assert (found.get("ParticipantObjectID"), found.get("ParticipantObjectTypeCode")) == ("1.2.3", "2")
    assert codes(found, "ParticipantObjectIDTypeCode") == [("110180", DCM)]
    assert found.find("ParticipantObjectDescription/SOPClass").get("NumberOfInstances") == "7"


def test_of_a_search_the_names_of_parameters_alone_are_told() -> None:
    found = told(event(Access.SEARCH, query("family", "birthdate"))).find("ParticipantObjectIdentification")

    assert found.get("ParticipantObjectTypeCodeRole") == "24"
    assert base64.b64decode(found.findtext("ParticipantObjectQuery")) == b"family&birthdate"


def test_a_patient_is_a_person_and_details_are_kept() -> None:
    found = told(event(Access.EXPORT, about("Patient/1", pages="3"))).find("ParticipantObjectIdentification")

    assert (found.get("ParticipantObjectTypeCode"), found.get("ParticipantObjectTypeCodeRole")) == ("1", "1")
    (detail,) = found.findall("ParticipantObjectDetail")
    assert (detail.get("type"), base64.b64decode(detail.get("value"))) == ("pages", b"3")


def test_what_xml_cannot_have_does_not_break_the_message() -> None:
    agent = {"altId": NOT_WORDS, "requestor": True}

    message = told(event(Access.READ, about(f"Patient/{NOT_WORDS}"), outcomeDesc=NOT_WORDS, agent=[agent]))

    kept = message.find("EventIdentification/EventOutcomeDescription").text
    assert kept == "\ufffd<&\"'\ufffd é\ufffd"


def test_many_objects_are_told_in_several_messages_of_bounded_size() -> None:
    uids = [f"1.2.826.0.1.3680043.8.498.{'9' * 37}{number:02d}"[:64] for number in range(2 * MOST_OBJECTS + 1)]

    bodies = messages(event(Access.RETRIEVE, *(study(uid, 1) for uid in uids)), SOURCE)

    assert len(bodies) == 3
    assert max(map(len, bodies)) < 32_768  # PS3.15 A.6
    found = [etree.fromstring(body) for body in bodies]
    named = [
        each.get("ParticipantObjectID") for one in found for each in one.findall("ParticipantObjectIdentification")
    ]
    assert named == uids
    for each in found:
        SCHEMA.assertValid(each)


def test_the_schema_of_the_tests_refuses_what_is_none() -> None:
    (body,) = messages(event(Access.READ, about("Patient/1")), SOURCE)
    for wrong in (
        body.replace(b'EventOutcomeIndicator="0"', b'EventOutcomeIndicator="1"'),
        body.replace(b"originalText", b"displayName"),
        body.replace(b'UserIsRequestor="true"', b""),
        body.replace(b"ParticipantObjectName", b"ObjectName"),
    ):
        assert not SCHEMA.validate(etree.fromstring(wrong))


def test_the_tables_of_the_page_are_those_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/audit-messages.md").read_text()

    assert audit_page.table() in page
    assert audit_page.records() in page
