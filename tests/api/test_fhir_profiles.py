"""Profiles that hold for what is written. Expected: FHIR R4 profiling, http 3.1.0.4.1 (422), SMART Imaging Access."""

from collections.abc import Iterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from fhir_server.access.contracts import Right
from tests.support.doors import Caller, Doors, new_study, opened

Json = dict[str, Any]
SMART = "http://fhir.org/argonaut/smart-imaging/StructureDefinition"
TOKEN = f"{SMART}/requires-access-token"
DCM = "http://dicom.nema.org/resources/ontology/DCM"
WADO = {"system": "http://terminology.hl7.org/CodeSystem/endpoint-connection-type", "code": "dicom-wado-rs"}
ANY = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/endpoint-payload-type", "code": "any"}]}
NAMED = {"resourceType": "Patient", "meta": {"profile": ["http://mine"]}, "name": [{"text": "A"}]}
NAMELESS = {"resourceType": "Patient", "meta": {"profile": ["http://mine"]}}


def endpoint(**changes: Any) -> Json:
    """An Endpoint as the guide's example has it; what is empty is left out."""
    extension = [{"url": TOKEN, "valueBoolean": True}]
    made = {
        "resourceType": "Endpoint", "meta": {"profile": [f"{SMART}/smart-wado-endpoint"]}, "extension": extension,
        "status": "active", "connectionType": WADO, "payloadType": [ANY], "address": "https://i.test/wado", **changes,
    }  # fmt: skip
    return {name: value for name, value in made.items() if value not in ([], {})}


def study(number: int, **changes: Any) -> Json:
    """An ImagingStudy as the guide's example with a contained Endpoint has it; what is empty is left out."""
    inside = endpoint(id="e", meta={})
    made = {
        "resourceType": "ImagingStudy", "meta": {"profile": [f"{SMART}/smart-imaging-study"]}, "contained": [inside],
        "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:1.2.3.{number}"}], "status": "available",
        "subject": {"reference": "Patient/1"}, "started": "2023-02-24T14:02:49Z",
        "modality": [{"system": DCM, "code": "CT"}], "endpoint": [{"reference": "#e"}], **changes,
    }  # fmt: skip
    return {name: value for name, value in made.items() if value != []}


@pytest.fixture(scope="module")
def doors(module_db: Database[Json]) -> Iterator[Doors]:
    with opened(module_db) as made:
        yield made


@pytest.fixture(scope="module")
def client(doors: Doors) -> Caller:
    """A client with every right, where a profile was uploaded by which a Patient has a name."""
    caller = doors.caller(*Right, name="client")
    for version, name in (("1", "Patient.photo"), ("2", "Patient.name")):
        rows = [{"id": "Patient", "path": "Patient"}, {"id": name, "path": name, "min": 1}]
        profile = {
            "resourceType": "StructureDefinition", "url": "http://mine", "version": version, "name": "Mine",
            "status": "active", "kind": "resource", "abstract": False, "type": "Patient", "derivation": "constraint",
            "baseDefinition": "http://hl7.org/fhir/StructureDefinition/Patient", "differential": {"element": rows},
        }  # fmt: skip
        assert caller.post("/fhir/StructureDefinition", profile).status_code == 201
    return caller


def told(answer: Any) -> tuple[int, list[str]]:
    """The status, and the elements that are named."""
    return answer.status_code, [each for issue in answer.json.get("issue", ()) for each in issue["expression"]]


def test_what_says_that_it_conforms_has_to(client):
    patient = client.post("/fhir/Patient", NAMED)
    address = f"/fhir/Patient/{patient.json['id']}"
    remove = [{"op": "remove", "path": "/name"}]
    entry = {"resource": NAMELESS, "request": {"method": "POST", "url": "Patient"}}

    assert patient.status_code == 201
    assert told(client.post("/fhir/Patient", NAMELESS)) == (422, ["Patient.name"])
    assert told(client.put(address, {**NAMELESS, "id": patient.json["id"]})) == (422, ["Patient.name"])
    patched = client.patch(address, remove, headers={"Content-Type": "application/json-patch+json"})
    assert told(patched) == (422, ["Patient.name"])
    for kind in ("batch", "transaction"):
        bundle = client.post("/fhir", {"resourceType": "Bundle", "type": kind, "entry": [entry]}).json
        issue = bundle.get("issue") or bundle["entry"][0]["response"]["outcome"]["issue"]
        assert issue[0]["expression"] == ["Bundle.entry[0].resource.name"]
    assert client.get(address).json["meta"]["versionId"] == "1"


def test_a_claim_is_not_added_to_what_does_not_conform(client):
    address = f"/fhir/Patient/{client.post('/fhir/Patient', {'resourceType': 'Patient'}).json['id']}"
    claim = {"name": "meta", "valueMeta": {"profile": ["http://mine"]}}

    answer = client.post(f"{address}/$meta-add", {"resourceType": "Parameters", "parameter": [claim]})

    assert told(answer) == (422, ["Patient.name"])
    assert "profile" not in client.get(address).json["meta"]


def test_the_version_that_is_named_holds(client):
    def create(profile: str) -> tuple[int, list[str]]:
        return told(client.post("/fhir/Patient", {"resourceType": "Patient", "meta": {"profile": [profile]}}))

    assert create("http://mine|1") == (422, ["Patient.photo"])
    assert create("http://mine|2") == (422, ["Patient.name"])
    assert create("http://mine|3")[0] == 201


def test_a_profile_that_is_not_held_or_not_claimed_keeps_nobody_from_writing(client):
    unknown = {"resourceType": "Patient", "meta": {"profile": ["http://nobody", "http://hl7.org/fhir/x"]}}

    assert client.post("/fhir/Patient", unknown).status_code == 201
    assert client.post("/fhir/Patient", {"resourceType": "Patient"}).status_code == 201


def test_the_profile_of_another_type_is_no_claim_that_can_be_kept(client):
    claims = {"resourceType": "Basic", "code": {"text": "x"}, "meta": {"profile": ["http://mine"]}}

    assert told(client.post("/fhir/Basic", claims)) == (422, ["Basic"])


def test_resources_as_smart_imaging_access_has_them_are_taken(client):
    made = client.post("/fhir/Endpoint", endpoint())
    elsewhere = {"reference": f"Endpoint/{made.json['id']}"}

    assert made.status_code == 201
    assert client.post("/fhir/ImagingStudy", study(1)).status_code == 201
    assert client.post("/fhir/ImagingStudy", study(2, contained=[], endpoint=[elsewhere])).status_code == 201


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"endpoint": [], "contained": []}, "ImagingStudy.endpoint"),
        ({"modality": []}, "ImagingStudy.modality"),
        ({"identifier": [{"system": "http://x", "value": "1"}]}, "ImagingStudy.identifier"),
        ({"subject": {"reference": "Group/1"}}, "ImagingStudy.subject.reference"),
        ({"contained": [endpoint(id="e", meta={}, extension=[])]}, "ImagingStudy.contained[0].extension"),
        (
            {"contained": [endpoint(id="e", connectionType={**WADO, "code": "dicom-qido-rs"})]},
            "ImagingStudy.contained[0].connectionType",
        ),
    ],
)
def test_a_study_that_smart_imaging_access_forbids_is_refused(client, changes, expected):
    status, found = told(client.post("/fhir/ImagingStudy", study(3, **changes)))

    assert (status, expected in found) == (422, True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"connectionType": {**WADO, "code": "dicom-qido-rs"}}, "Endpoint.connectionType"),
        ({"extension": [{"url": "http://x", "valueBoolean": True}]}, "Endpoint.extension"),
        ({"extension": [{"url": TOKEN, "valueString": "yes"}]}, "Endpoint.extension[0].value"),
    ],
)  # fmt: skip
def test_an_endpoint_that_smart_imaging_access_forbids_is_refused(client, changes, expected):
    assert told(client.post("/fhir/Endpoint", endpoint(**changes))) == (422, [expected])


def test_what_images_made_may_be_changed_by_clients_and_conforms(doors: Doors, client):
    uid, files = new_study()
    doors.ingest(*files, name="client")
    # Without _include: this client would be shown a capability URL in place of the Endpoint.
    (made,) = client.get("/fhir/ImagingStudy?identifier=urn:dicom:uid|urn:oid:" + uid).json["entry"]
    found = made["resource"]
    served = client.get(f"/fhir/{found['endpoint'][0]['reference']}").json

    changed = client.put(f"/fhir/ImagingStudy/{found['id']}", {**found, "note": [{"text": "seen"}]})

    assert changed.status_code == 200
    assert served["meta"]["profile"] == [f"{SMART}/smart-wado-endpoint"]
    outcome = client.get(f"/fhir/Endpoint/{served['id']}/$validate").json
    assert {each["code"] for each in outcome["issue"]} == {"invariant"}  # dom-6: it has no narrative
    assert {each["severity"] for each in outcome["issue"]} == {"warning"}


def test_an_operator_may_have_profiles_checked_by_nobody(mongo: MongoClient[Json], doors: Doors):
    with opened(doors.server.database, fhir__profiles="off") as lenient:
        assert lenient.caller(*Right, name="client").post("/fhir/Patient", NAMELESS).status_code == 201
