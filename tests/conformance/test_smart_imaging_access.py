"""SMART Imaging Access 0.1.0 (Argonaut, CI build of 2026-08): a test for each SHALL of the server, named by it.

Tokens come from this server's register of grants; how apps get them is in test_smart_app_launch and test_authorization.
What the guide demands of capability URLs is tested in tests/api/test_capability_urls.py.
"""

import re
from collections.abc import Iterator
from email.message import EmailMessage

import pytest

from fhir_server.access.contracts import Right
from tests.api.test_grants_at_doors import UID, Scene
from tests.support.doors import BASE_URL, FHIR, new_study, opened

CAPABILITIES = "http://fhir.org/argonaut/smart-imaging/capabilities"
REQUIRES = "http://fhir.org/argonaut/smart-imaging/StructureDefinition/requires-access-token"
WHOLE = {"Accept": "multipart/related; type=application/dicom; transfer-syntax=*"}  # `type` is not quoted
COVERING = ["patient/ImagingStudy.rs", "patient/ImagingStudy.read", "patient/*.rs", "patient/*.read", "patient/*.cruds",
            "patient/ImagingStudy.r patient/ImagingStudy.s"]  # fmt: skip


@pytest.fixture(scope="module")
def scene(module_db) -> Iterator[Scene]:
    with opened(module_db) as doors:
        made = Scene(
            doors, doors.server.principals.add("apps", [Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES]).clients[0]
        )
        for name, patient in (("one", "anna"), ("two", "anna"), ("other", "bert")):
            made.studies[name], files = new_study(PatientID=patient, instances=2)
            doors.ingest(*files, name="apps")
            doors.server.studies.project(made.studies[name])
            subject = doors.server.own.read("ImagingStudy", made.studies[name]).json()["subject"]
            made.patients[patient] = subject["reference"]
            doors.clock.forward(hours=1)
        yield made


# ---- discovery


def test_the_smart_configuration_lists_the_capabilities_of_both_modes(scene):
    told = scene.doors.stranger.get("/fhir/.well-known/smart-configuration").json

    assert {"smart-imaging-access", f"{CAPABILITIES}/app-launch", f"{CAPABILITIES}/backend-services"} <= set(
        told["capabilities"]
    )
    assert "client_credentials" in told["grant_types_supported"]
    assert "private_key_jwt" in told["token_endpoint_auth_methods_supported"]
    assert "system/ImagingStudy.rs" in told["scopes_supported"]


# ---- search


def test_studies_are_found_by_patient(scene):
    caller = scene.caller("patient/ImagingStudy.rs", "anna")

    assert scene.found(caller, f"/fhir/ImagingStudy?patient={scene.patients['anna']}") == {"one", "two"}


def test_studies_are_found_by_patient_and_last_updated(scene):
    caller, anna = scene.caller("patient/ImagingStudy.rs", "anna"), scene.patients["anna"]
    moment = scene.doors.server.own.read("ImagingStudy", scene.studies["two"]).last_updated.strftime(
        "%Y-%m-%dT%H:%M:%SZ"
    )

    assert scene.found(caller, f"/fhir/ImagingStudy?patient={anna}&_lastUpdated=ge{moment}") == {"two"}
    assert scene.found(caller, f"/fhir/ImagingStudy?patient={anna}&_lastUpdated=lt{moment}") == {"one"}


def test_a_study_is_found_by_patient_and_study_instance_uid(scene):
    caller, anna, uid = scene.caller("patient/ImagingStudy.rs", "anna"), scene.patients["anna"], scene.studies["one"]

    for value in (f"urn:oid:{uid}", f"urn:dicom:uid|urn:oid:{uid}"):
        assert scene.found(caller, f"/fhir/ImagingStudy?patient={anna}&identifier={value}") == {"one"}


def test_the_endpoint_is_included(scene):
    caller, anna = scene.caller("patient/ImagingStudy.rs", "anna"), scene.patients["anna"]

    found = caller.get(f"/fhir/ImagingStudy?patient={anna}&_include=ImagingStudy:endpoint").json["entry"]

    assert [each["search"]["mode"] for each in found] == ["match", "match", "include"]
    assert found[2]["fullUrl"] == f"{FHIR}/Endpoint/dicomweb"


@pytest.mark.parametrize("scopes", COVERING)
def test_app_launch_a_patient_other_than_the_tokens_is_403(scene, scopes):
    caller = scene.caller(scopes, "anna")

    answer = caller.get(f"/fhir/ImagingStudy?patient={scene.patients['bert']}")

    assert answer.status_code == 403
    assert answer.json["resourceType"] == "OperationOutcome"


def test_backend_a_patient_outside_the_authorised_access_is_403(scene):
    of_anna = scene.caller(f"system/ImagingStudy.rs?patient={scene.patients['anna']}")

    assert of_anna.get(f"/fhir/ImagingStudy?patient={scene.patients['bert']}").status_code == 403


def test_backend_studies_that_are_not_permitted_are_left_out_silently(scene):
    caller = scene.caller(f"system/ImagingStudy.rs?identifier=urn:oid:{scene.studies['one']}")

    answer = caller.get(f"/fhir/ImagingStudy?patient={scene.patients['anna']}&_total=accurate")

    assert [each["resource"]["id"] for each in answer.json["entry"]] == [scene.studies["one"]]
    assert answer.json["total"] == 1


# ---- profiles


def test_an_imaging_study_is_of_the_profile(scene):
    shown = scene.caller("patient/ImagingStudy.rs", "anna").get(f"/fhir/ImagingStudy/{scene.studies['one']}").json

    uids = [each["value"] for each in shown["identifier"] if each["system"] == "urn:dicom:uid"]
    assert uids == [f"urn:oid:{scene.studies['one']}"]
    assert shown["subject"]["reference"] == scene.patients["anna"]
    assert len(shown["modality"]) >= 1
    assert shown["endpoint"] == [{"reference": "Endpoint/dicomweb"}]


def test_the_endpoint_is_of_the_profile(scene):
    shown = scene.caller("patient/ImagingStudy.rs", "anna").get("/fhir/Endpoint/dicomweb").json

    assert shown["connectionType"]["code"] == "dicom-wado-rs"
    assert shown["address"] == f"{BASE_URL}/dicom-web"
    assert [each["valueBoolean"] for each in shown["extension"] if each["url"] == REQUIRES] == [True]


# ---- WADO-RS


def test_a_full_study_is_retrieved_with_any_transfer_syntax(scene):
    answer = scene.caller("patient/ImagingStudy.rs", "anna").get(
        f"/dicom-web/studies/{scene.studies['one']}", headers=WHOLE
    )

    assert answer.status_code == 200
    header = EmailMessage()
    header["Content-Type"] = answer.headers["Content-Type"]
    assert header.get_content_type() == "multipart/related"
    assert header.get_param("type") == "application/dicom"
    assert len(re.findall(rb"Content-Type: application/dicom", answer.data)) == 2


@pytest.mark.parametrize("scopes", [*COVERING, "system/ImagingStudy.rs", "system/*.rs"])
def test_scopes_that_cover_imaging_studies_give_the_images(scene, scopes):
    caller = scene.caller(scopes, "anna" if "patient" in scopes else "")

    assert caller.get(f"/dicom-web/studies/{scene.studies['one']}", headers=WHOLE).status_code == 200


@pytest.mark.parametrize(
    "scopes", ["patient/Patient.rs", "patient/ImagingStudy.c", "openid fhirUser", "user/ImagingStudy.rs"]
)
def test_scopes_that_do_not_cover_them_do_not(scene, scopes):
    caller = scene.caller(scopes, "anna")

    assert caller.get(f"/dicom-web/studies/{scene.studies['one']}", headers=WHOLE).status_code == 403


def test_a_missing_patient_context_is_never_system_access(scene):
    caller = scene.caller("patient/ImagingStudy.rs patient/*.cruds")

    assert caller.get(f"/dicom-web/studies/{scene.studies['one']}", headers=WHOLE).status_code == 403
    assert caller.get("/fhir/ImagingStudy").status_code == 403


def test_the_token_is_checked_at_each_retrieve(scene):
    principals, address = scene.doors.server.principals, f"/dicom-web/studies/{scene.studies['one']}"
    caller = scene.caller("patient/ImagingStudy.rs", "anna")
    instance = caller.get(f"{address}/instances", headers={"Accept": "application/dicom+json"}).json[0]
    series, sop = instance["0020000E"]["Value"][0], instance["00080018"]["Value"][0]
    instance = f"series/{series}/instances/{sop}"
    below = ["metadata", f"series/{series}", instance, f"{instance}/frames/1", "rendered", "thumbnail"]
    paths = [address, *(f"{address}/{each}" for each in below)]
    assert {caller.get(each).status_code for each in paths} == {200}

    principals.revoke(caller.token)

    assert {caller.get(each).status_code for each in paths} == {401}
    assert {scene.doors.stranger.get(each).status_code for each in paths} == {401}


def test_a_token_that_has_ended_gives_nothing(scene):
    caller = scene.caller("patient/ImagingStudy.rs", "anna")
    scene.doors.clock.forward(minutes=6)

    assert caller.get(f"/dicom-web/studies/{scene.studies['one']}").status_code == 401


def test_a_study_of_which_any_part_is_forbidden_is_denied_whole(scene):
    caller = scene.caller("patient/ImagingStudy.rs", "anna")

    for path in ("", "/metadata", "/series", "/instances"):
        assert caller.get(f"/dicom-web/studies/{scene.studies['other']}{path}").status_code == 404
    found = caller.get("/dicom-web/studies", headers={"Accept": "application/dicom+json"}).json
    assert {each[UID]["Value"][0] for each in found} == {scene.studies["one"], scene.studies["two"]}


def test_scopes_and_contexts_of_two_grants_are_never_combined(scene):
    anna, bert = scene.caller("patient/ImagingStudy.rs", "anna"), scene.caller("patient/Patient.rs", "bert")
    both = {"Authorization": f"Bearer {anna.token}, Bearer {bert.token}"}

    assert scene.doors.stranger.get("/fhir/ImagingStudy", headers=both).status_code == 401
    assert bert.get(f"/dicom-web/studies/{scene.studies['other']}").status_code == 403
    assert anna.get(f"/dicom-web/studies/{scene.studies['other']}").status_code == 404


def test_a_token_of_another_issuer_is_not_taken(scene):
    foreign = "eyJhbGciOiJub25lIn0.eyJzY29wZSI6InN5c3RlbS8qLnJzIn0."

    answer = scene.doors.stranger.get("/fhir/ImagingStudy", headers={"Authorization": f"Bearer {foreign}"})

    assert answer.status_code == 401
