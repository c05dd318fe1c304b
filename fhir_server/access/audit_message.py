"""AuditEvents as DICOM Audit Messages, the XML that Audit Record Repositories take. Pure.

The mapping is that of FHIR (R4 AuditEvent, mappings to DICOM), with the event and the roles that DICOM and IHE have for
each kind of access. Nothing is added to what the event says but this server as a participant.
Sources: PS3.15 A.5 (schema A.5.1, events A.5.3), CID 400 and 401; IHE ITI TF-2 3.20.
"""

import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element, SubElement, tostring

from fhir_server.model.resources import RESOURCES, Domain

Json = Mapping[str, Any]

MOST_OBJECTS = 50  # of one message, which keeps it below the 32,768 octets that all have to take; PS3.15 A.6
SUCCESS, SERIOUS_FAILURE = "0", "8"

_DCM = "http://dicom.nema.org/resources/ontology/DCM"
_SYSTEMS = {_DCM: "DCM", "urn:ihe:event-type-code": "IHE Transactions"}
_TYPES = "http://hl7.org/fhir/resource-types"
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, 2.2


class Code(NamedTuple):
    """A coded value: code, name of its system, meaning."""

    code: str
    system: str
    text: str


# CID 400 and 401, and the transactions of IHE, as far as events here are of them.
_MEANINGS = {
    "110100": "Application Activity",
    "110101": "Audit Log Used",
    "110102": "Begin Transferring DICOM Instances",
    "110104": "DICOM Instances Transferred",
    "110105": "DICOM Study Deleted",
    "110106": "Export",
    "110109": "Order Record",
    "110110": "Patient Record",
    "110111": "Procedure Record",
    "110112": "Query",
    "110113": "Security Alert",
    "110114": "User Authentication",
    "110120": "Application Start",
    "110121": "Application Stop",
    "110122": "Login",
    "110126": "Node Authentication",
    "110127": "Emergency Override Started",
    "110137": "User Security Attributes Changed",
    "110138": "Emergency Override Stopped",
    "110150": "Application",
    "110152": "Destination Role ID",
    "110153": "Source Role ID",
    "110180": "Study Instance UID",
    "RAD-55": "WADO Retrieve",
    "RAD-107": "WADO-RS Retrieve",
    "RAD-108": "Store Instances Over the Web",
    "RAD-129": "QIDO-RS Query",
    "rest": "RESTful Operation",
}


def _dcm(code: str) -> Code:
    return Code(code, "DCM", _MEANINGS[code])


QUERY, PATIENT_RECORD, SECURITY_ALERT = _dcm("110112"), _dcm("110110"), _dcm("110113")
USER_AUTHENTICATION = _dcm("110114")
# FHIR's interactions on what is of these types are records of theirs, on all other types about care PATIENT_RECORD.
RECORDS = {
    "AuditEvent": _dcm("110101"),
    "Task": _dcm("110109"),
    "ServiceRequest": _dcm("110109"),
    "ImagingStudy": _dcm("110111"),
    "Procedure": _dcm("110111"),
}
SEARCHES = frozenset({"search-type", "search-system", "history-type", "history-system"})
_SOURCE, _DESTINATION, _APPLICATION = _dcm("110153"), _dcm("110152"), _dcm("110150")
_STUDY = _dcm("110180")
# (event, action) -> roles of who asked, and of this server; PS3.15 A.5.3. None: that has no role in the event
ROLES: Mapping[tuple[str, str], tuple[Code | None, Code]] = {
    ("110104", "C"): (_SOURCE, _DESTINATION),
    ("110104", "R"): (_DESTINATION, _SOURCE),
    ("110102", "E"): (None, _SOURCE),
    ("110106", "R"): (None, _SOURCE),
    ("110112", "E"): (_SOURCE, _DESTINATION),
    ("110112", "R"): (_SOURCE, _DESTINATION),
}
_OBJECT_TYPES = {"Patient": "1", "Practitioner": "1", "Person": "1", "RelatedPerson": "1", "Organization": "3"}


@dataclass(frozen=True, slots=True)
class Source:
    """Who reports: the id of this server as a source of events, of the enterprise's site, and its address."""

    id: str
    site: str
    url: str


def messages(event: Json, source: Source) -> list[bytes]:
    """Return an AuditEvent as one XML document or more: one that names many objects is told in several."""
    entities = event.get("entity", [])
    parts = [entities[at : at + MOST_OBJECTS] for at in range(0, len(entities), MOST_OBJECTS)] or [[]]
    return [tostring(_message(event, part, source), encoding="utf-8") for part in parts]


def event_id(event: Json) -> Code:
    """Return the event of PS3.15 that an AuditEvent tells of."""
    if event["outcome"] == SERIOUS_FAILURE and not _is_known(event) and _type(event).code != USER_AUTHENTICATION.code:
        return SECURITY_ALERT
    if _type(event).code != "rest":
        return _type(event)
    if _subtype(event).code in SEARCHES:
        return QUERY
    named = [_kind(each) for each in event.get("entity", []) if "reference" in each.get("what", {})]
    for kind in named:
        if kind in RECORDS:
            return RECORDS[kind]
        if kind in RESOURCES and RESOURCES[kind].domain is Domain.CARE:
            return PATIENT_RECORD
    return _type(event)


def _message(event: Json, entities: Sequence[Json], source: Source) -> Element:
    message = Element("AuditMessage")
    identified = event_id(event)
    head = SubElement(
        message,
        "EventIdentification",
        EventActionCode=event["action"],
        EventDateTime=event["recorded"],
        EventOutcomeIndicator=event["outcome"],
    )
    _coded(head, "EventID", identified)
    for code in _event_types(event, identified):
        _coded(head, "EventTypeCode", code)
    if words := event.get("outcomeDesc"):
        SubElement(head, "EventOutcomeDescription").text = _clean(words)
    for agent, role in _participants(event, identified, source):
        _active(message, agent, role)
    origin = {"AuditSourceID": _clean(source.id)} | ({"AuditEnterpriseSiteID": source.site} if source.site else {})
    reporter = SubElement(message, "AuditSourceIdentification", origin)
    SubElement(reporter, "AuditSourceTypeCode", {"csd-code": "4"})  # application server
    for entity in entities:
        _object(message, entity, _subtype(event))
    return message


def _event_types(event: Json, identified: Code) -> Iterator[Code]:
    if identified is SECURITY_ALERT and _type(event).code != SECURITY_ALERT.code:
        yield _dcm("110126")
    if _subtype(event).code != identified.code:
        yield _subtype(event)
    for purpose in event.get("purposeOfEvent", []):
        yield _code(purpose["coding"][0])


# ---- who took part


def _participants(event: Json, identified: Code, source: Source) -> Iterator[tuple[dict[str, str], Code | None]]:
    agents = event["agent"]
    asking, ours = ROLES.get((identified.code, event["action"]), (None, _APPLICATION))
    roles = [_code(each["type"]["coding"][0]) if "type" in each else None for each in agents]
    is_sent = any(role and role.code == _DESTINATION.code for role in roles)
    for agent, role in zip(agents, roles, strict=True):
        yield _agent(agent), role or (asking if agent["requestor"] and not is_sent else None)
    host = urlsplit(source.url).hostname or source.url
    is_address = bool(re.fullmatch(r"[\d.]+|.*:.*", host))
    yield (
        {
            "UserID": source.url,
            "UserIsRequestor": "false",
            "NetworkAccessPointID": host,
            "NetworkAccessPointTypeCode": "2" if is_address else "1",
        },
        ours,
    )


def _agent(agent: Json) -> dict[str, str]:
    who = agent.get("who", {})
    reference = who.get("reference") or who.get("identifier", {}).get("value", "")
    network = agent.get("network", {})
    names = [each for each in (agent.get("altId"), agent.get("name"), reference, network.get("address")) if each]
    told = {"UserID": names[0] if names else "unknown", "UserIsRequestor": str(agent["requestor"]).lower()}
    if reference and reference != told["UserID"]:
        told["AlternativeUserID"] = reference
    if network:
        told |= {"NetworkAccessPointID": network["address"], "NetworkAccessPointTypeCode": network["type"]}
    return told


def _active(message: Element, agent: Mapping[str, str], role: Code | None) -> None:
    element = SubElement(message, "ActiveParticipant", {name: _clean(value) for name, value in agent.items()})
    if role is not None:
        _coded(element, "RoleIDCode", role)


# ---- on what


class _Object(NamedTuple):
    id: str
    type: str  # of an object: 1 person, 2 system object, 3 organization, 4 other
    role: str
    code: Code
    query: str = ""


def _object(message: Element, entity: Json, transaction: Code) -> None:
    found = _identified(entity, transaction)
    told = {"ParticipantObjectID": _clean(found.id), "ParticipantObjectTypeCode": found.type}
    if found.role:
        told["ParticipantObjectTypeCodeRole"] = found.role
    element = SubElement(message, "ParticipantObjectIdentification", told)
    _coded(element, "ParticipantObjectIDTypeCode", found.code)
    if found.query:
        SubElement(element, "ParticipantObjectQuery").text = _base64(found.query)
        return
    SubElement(element, "ParticipantObjectName").text = _clean(found.id)
    details = {each["type"]: each["valueString"] for each in entity.get("detail", [])}
    instances = details.pop("instances", "")
    for name, value in details.items():
        SubElement(element, "ParticipantObjectDetail", type=_clean(name), value=_base64(value))
    if instances:
        description = SubElement(element, "ParticipantObjectDescription")
        SubElement(description, "SOPClass", NumberOfInstances=instances)


def _identified(entity: Json, transaction: Code) -> _Object:
    what = entity.get("what", {})
    identifier = what.get("identifier", {})
    if identifier.get("system") == "urn:dicom:uid":
        return _Object(identifier["value"].removeprefix("urn:oid:"), "2", "3", _STUDY)
    if "reference" in what:
        kind = _kind(entity)
        role = "1" if kind == "Patient" else "4"
        return _Object(what["reference"], _OBJECT_TYPES.get(kind, "2"), role, Code(kind, _TYPES, kind))
    if entity.get("role", {}).get("code") == "24":
        # Names of parameters alone: their values may name a patient, and are not on record.
        names = "&".join(each["valueString"] for each in entity.get("detail", []))
        return _Object(transaction.code, "2", "24", transaction, query=names)
    return _Object(identifier.get("value", ""), "4", "", _code(entity["type"]))


def _kind(entity: Json) -> str:
    return str(entity["what"]["reference"]).rpartition("/")[0].rpartition("/")[2]


def _is_known(event: Json) -> bool:
    return any("who" in each or "altId" in each for each in event["agent"])


# ---- codes and text


def _type(event: Json) -> Code:
    return _code(event["type"])


def _subtype(event: Json) -> Code:
    return _code(event["subtype"][0])


def _code(coding: Json) -> Code:
    system, code = str(coding["system"]), str(coding["code"])
    return Code(code, _SYSTEMS.get(system, system), str(coding.get("display") or _MEANINGS.get(code, code)))


def _coded(parent: Element, name: str, code: Code) -> None:
    SubElement(parent, name, {"csd-code": code.code, "codeSystemName": code.system, "originalText": code.text})


def _clean(text: str) -> str:
    """Return a text as XML can have it."""
    return _ILLEGAL.sub("\ufffd", text)


def _base64(text: str) -> str:
    return b64encode(text.encode(errors="replace")).decode()
