"""The FHIR door over HTTP. Expected values: FHIR R4 http (3.1.0), search (3.1.1), SMART Imaging Access."""

import orjson
import pytest

from fhir_server.access.contracts import Right
from tests.support.doors import FHIR, Caller, Doors, new_study

PATIENT = {"resourceType": "Patient", "name": [{"family": "Example"}], "gender": "other"}


def made(both: Caller, resource=PATIENT):
    response = both.post(f"/fhir/{resource['resourceType']}", resource)
    assert response.status_code == 201, response.text
    return response.json


def issue(response):
    assert response.content_type.startswith("application/fhir+json")
    assert response.json["resourceType"] == "OperationOutcome"
    return response.json["issue"][0]


# ---- create, read, update, delete


def test_create_answers_201_with_location_etag_and_last_modified(both):
    response = both.post("/fhir/Patient", PATIENT)

    assert response.status_code == 201
    assert response.headers["Location"] == f"{FHIR}/Patient/{response.json['id']}/_history/1"
    assert response.headers["ETag"] == 'W/"1"'
    assert "Last-Modified" in response.headers
    assert response.json["meta"]["versionId"] == "1"


def test_the_id_of_a_created_resource_is_the_servers(both):
    response = both.post("/fhir/Patient", {**PATIENT, "id": "mine"})

    assert response.json["id"] != "mine"


def test_read_gives_what_was_created(both):
    created = made(both)

    response = both.get(f"/fhir/Patient/{created['id']}")

    assert response.status_code == 200
    assert response.json == created
    assert response.content_type == "application/fhir+json; charset=utf-8"


def test_decimals_keep_their_digits(both):
    body = (
        b'{"resourceType":"Observation","status":"final","code":{"text":"x"},'
        b'"valueQuantity":{"value":1.50,"unit":"mm"}}'
    )

    response = both.call("POST", "/fhir/Observation", data=body, headers={"Content-Type": "application/fhir+json"})

    assert b'"value":1.50' in response.data
    assert b'"value":1.50' in both.get(f"/fhir/Observation/{response.json['id']}").data


def test_update_makes_the_next_version(both):
    created = made(both)

    response = both.put(f"/fhir/Patient/{created['id']}", {**created, "gender": "female"})

    assert (response.status_code, response.headers["ETag"]) == (200, 'W/"2"')
    assert both.get(f"/fhir/Patient/{created['id']}/_history/1").json["gender"] == "other"


def test_update_with_the_wrong_if_match_is_412(both):
    created = made(both)
    path = f"/fhir/Patient/{created['id']}"

    response = both.put(path, {**created, "gender": "female"}, headers={"If-Match": 'W/"7"'})

    assert response.status_code == 412
    assert both.get(path).json["gender"] == "other"


def test_update_with_the_right_if_match_is_taken(both):
    created = made(both)

    response = both.put(f"/fhir/Patient/{created['id']}", created, headers={"If-Match": 'W/"1"'})

    assert response.status_code == 200


def test_update_under_another_id_than_the_address_is_refused(both):
    created = made(both)

    response = both.put("/fhir/Patient/other", created)

    assert response.status_code == 400


def test_update_of_an_unknown_id_is_405_because_the_server_chooses_ids(both):
    response = both.put("/fhir/Patient/unknown", {**PATIENT, "id": "unknown"})

    assert response.status_code == 405


def test_a_deleted_resource_is_gone_and_its_history_stays(both):
    created = made(both)
    path = f"/fhir/Patient/{created['id']}"

    assert both.delete(path).status_code == 204

    assert both.get(path).status_code == 410
    assert issue(both.get(path))["code"] == "deleted"
    entries = both.get(f"{path}/_history").json["entry"]
    assert [entry["request"]["method"] for entry in entries] == ["DELETE", "POST"]
    assert "resource" not in entries[0]


def test_an_unknown_id_is_404(both):
    response = both.get("/fhir/Patient/unknown")

    assert response.status_code == 404
    assert issue(response)["code"] == "not-found"


def test_history_is_paged_without_gaps(both):
    created = made(both)
    path = f"/fhir/Patient/{created['id']}"
    for gender in ("male", "female", "unknown"):
        both.put(path, {**created, "gender": gender})

    first = both.get(f"{path}/_history?_count=3").json
    following = next(link["url"] for link in first["link"] if link["relation"] == "next")
    second = both.get(following.removeprefix("http://images.test")).json

    versions = [entry["resource"]["meta"]["versionId"] for page in (first, second) for entry in page["entry"]]
    assert versions == ["4", "3", "2", "1"]
    assert not [link for link in second["link"] if link["relation"] == "next"]


@pytest.mark.parametrize(
    ("prefer", "kind"),
    [
        ("return=minimal", None),
        ("return=representation", "Patient"),
        ("return=OperationOutcome", "OperationOutcome"),
    ],
)
def test_prefer_says_what_comes_back(both, prefer, kind):
    response = both.post("/fhir/Patient", PATIENT, headers={"Prefer": prefer})

    assert response.status_code == 201
    assert (response.json["resourceType"] if response.data else None) == kind


def test_a_conditional_read_of_what_is_known_is_304(both):
    created = made(both)
    path = f"/fhir/Patient/{created['id']}"

    assert both.get(path, headers={"If-None-Match": 'W/"1"'}).status_code == 304
    assert both.get(path, headers={"If-None-Match": 'W/"2"'}).status_code == 200
    known = both.get(path).headers["Last-Modified"]
    assert both.get(path, headers={"If-Modified-Since": known}).status_code == 304


# ---- bad input


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b'{"resourceType":"Patient","resourceType":"Patient"}',
        b'{"resourceType":"Patient","name":[{"family":"\xff"}]}',
        b'{"resourceType":"Patient","multipleBirthInteger":NaN}',
        b'{"resourceType":"Patient","name":[{"family":"\\ud800"}]}',
        b"[]",
        b'"Patient"',
        b'{"resourceType":"Observation"}',
        b'{"resourceType":"Patient","name":null}',
        b'{"resourceType":"Patient","nickname":"x"}',
        b'{"resourceType":"Patient","gender":"sometimes"}',
        b'{"resourceType":"Patient","birthDate":"2021-02-30"}',
        b'{"resourceType":"Patient","extension":' + b"[" * 500 + b"]" * 500 + b"}",
        b"[" * 100_000 + b"]" * 100_000,
        b'{"resourceType":"Patient","x":' + b'{"x":' * 5_000 + b"1" + b"}" * 5_000 + b"}",
        b'{"resourceType":"Patient","multipleBirthInteger":' + b"9" * 10_000 + b"}",
        b'{"resourceType":{"$gt":""}}',
    ],
)
def test_a_bad_body_is_400_and_stores_nothing(both, body):
    response = both.call("POST", "/fhir/Patient", data=body, headers={"Content-Type": "application/fhir+json"})

    assert response.status_code == 400
    assert issue(response)["severity"] == "error"
    assert both.get("/fhir/Patient").json["total"] == 0


def test_a_body_beyond_the_limit_is_413(both):
    large = {**PATIENT, "text": {"status": "generated", "div": "x" * (9 << 20)}}

    response = both.post("/fhir/Patient", large)

    assert response.status_code == 413
    assert issue(response)["code"] == "too-costly"


def test_another_media_type_is_415(both):
    response = both.post("/fhir/Patient", PATIENT, headers={"Content-Type": "text/plain"})

    assert response.status_code == 415


@pytest.mark.parametrize("accept", ["text/turtle", "application/fhir+json; fhirVersion=3.0", "image/png"])
def test_what_cannot_be_given_is_406(both, accept):
    assert both.get("/fhir/Patient", headers={"Accept": accept}).status_code == 406


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "application/fhir+json; fhirVersion=4.0", "text/html,*/*;q=0.8", ""]
)
def test_what_json_clients_send_is_welcome(both, accept):
    assert both.get("/fhir/Patient", headers={"Accept": accept}).status_code == 200


def test_format_wins_over_accept(both):
    assert both.get("/fhir/Patient?_format=json", headers={"Accept": "text/turtle"}).status_code == 200
    assert both.get("/fhir/Patient?_format=ttl").status_code == 406


def test_pretty_is_the_same_resource_in_lines(both):
    created = made(both)

    response = both.get(f"/fhir/Patient/{created['id']}?_pretty=true")

    assert orjson.loads(response.data) == created
    assert b'\n  "resourceType": "Patient",\n' in response.data


def test_an_unknown_type_is_404_and_an_unknown_address_too(both):
    assert issue(both.get("/fhir/Unicorn"))["code"] == "not-found"
    assert both.get("/fhir/Unicorn").status_code == 404
    assert issue(both.get("/nowhere"))["code"] == "not-found"


def test_a_method_that_an_address_does_not_take_is_405_with_allow(both):
    response = both.call("POST", "/fhir/Patient/1")

    assert response.status_code == 405
    assert "GET" in response.headers["Allow"]
    assert issue(response)["code"] == "not-supported"


@pytest.mark.parametrize("kind", ["AuditEvent", "Contract"])
def test_what_only_the_server_and_its_operator_write_is_405_with_allow(both, kind):
    response = both.post(f"/fhir/{kind}", {"resourceType": kind})

    assert (response.status_code, response.headers["Allow"]) == (405, "GET, HEAD")
    assert both.delete(f"/fhir/{kind}/1").status_code == 405


@pytest.mark.parametrize("path", ["/fhir/Patient/$everything", "/fhir/Patient/_search"])
def test_operations_that_are_not_there_say_so(both, path):
    assert both.get(path).status_code == 501


# ---- search


def test_search_finds_by_parameter_and_says_so_in_the_self_link(both):
    made(both)
    wanted = made(both, {**PATIENT, "name": [{"family": "Wanted"}]})

    bundle = both.get("/fhir/Patient?name=wanted&_count=10").json

    assert [entry["resource"]["id"] for entry in bundle["entry"]] == [wanted["id"]]
    assert bundle["entry"][0]["fullUrl"] == f"{FHIR}/Patient/{wanted['id']}"
    assert bundle["entry"][0]["search"] == {"mode": "match"}
    assert bundle["link"][0] == {"relation": "self", "url": f"{FHIR}/Patient?name=wanted&_count=10"}
    assert bundle["total"] == 1


def test_search_by_post_is_the_same_search(both):
    wanted = made(both, {**PATIENT, "name": [{"family": "Wanted"}]})

    response = both.call("POST", "/fhir/Patient/_search?_count=10", data={"name": "wanted"})

    assert [entry["resource"]["id"] for entry in response.json["entry"]] == [wanted["id"]]


def test_pages_follow_one_another_without_loss_or_repetition(both):
    ids = {made(both)["id"] for _ in range(5)}

    found, path = [], "/fhir/Patient?_count=2"
    while path:
        bundle = both.get(path).json
        found += [entry["resource"]["id"] for entry in bundle["entry"]]
        path = next((link["url"] for link in bundle["link"] if link["relation"] == "next"), "")
        path = path.removeprefix("http://images.test")

    assert len(found) == 5
    assert set(found) == ids


def test_an_empty_result_has_no_entry(both):
    bundle = both.get("/fhir/Patient?name=nobody").json

    assert bundle["total"] == 0
    assert "entry" not in bundle


def test_an_unknown_parameter_is_400_unless_handling_is_lenient(both):
    made(both)

    assert both.get("/fhir/Patient?shoe-size=44").status_code == 400
    lenient = both.get("/fhir/Patient?shoe-size=44", headers={"Prefer": "handling=lenient"})
    assert lenient.status_code == 200
    assert lenient.json["entry"][-1]["search"] == {"mode": "outcome"}
    assert "shoe-size" not in lenient.json["link"][0]["url"]


def test_a_foreign_cursor_is_400(both):
    assert both.get("/fhir/Patient?_cursor=abc").status_code == 400


# ---- images


def test_acknowledged_images_are_found_at_once(doors: Doors, both):
    study_uid, files = new_study(instances=2, series=2, AccessionNumber="A7")
    doors.ingest(*files)

    bundle = both.get(
        f"/fhir/ImagingStudy?identifier=urn:dicom:uid|urn:oid:{study_uid}&_include=ImagingStudy:endpoint"
    ).json

    study, endpoint = (entry["resource"] for entry in bundle["entry"])
    assert study["identifier"][0] == {"system": "urn:dicom:uid", "value": f"urn:oid:{study_uid}"}
    assert (study["numberOfSeries"], study["numberOfInstances"]) == (2, 4)
    assert endpoint["address"] == "http://images.test/dicom-web"
    assert endpoint["connectionType"]["code"] == "dicom-wado-rs"
    assert bundle["entry"][1]["search"] == {"mode": "include"}


def test_a_study_is_read_as_it_is_now(doors: Doors, both):
    study_uid, files = new_study(instances=3)
    doors.ingest(*files[:1])
    assert both.get(f"/fhir/ImagingStudy/{study_uid}").json["numberOfInstances"] == 1

    doors.ingest(*files[1:])

    assert both.get(f"/fhir/ImagingStudy/{study_uid}").json["numberOfInstances"] == 3


def test_the_patient_of_a_study_is_found_and_refers_back(doors: Doors, both):
    study_uid, files = new_study(PatientID="P-1", PatientName="King^Ada", IssuerOfPatientID="1.2.276.0.76")
    doors.ingest(*files)

    (patient,) = both.get("/fhir/Patient?identifier=urn:oid:1.2.276.0.76|P-1").json["entry"]

    found = both.get(f"/fhir/ImagingStudy?patient={patient['resource']['id']}").json
    assert found["entry"][0]["resource"]["id"] == study_uid


def test_studies_of_one_patient_share_one_patient_resource(doors: Doors, both):
    for _ in range(2):
        doors.ingest(*new_study(PatientID="P-1", IssuerOfPatientID="1.2.276.0.76")[1])

    subjects = {entry["resource"]["subject"]["reference"] for entry in both.get("/fhir/ImagingStudy").json["entry"]}

    assert len(subjects) == 1


def test_equal_patient_ids_of_two_hospitals_are_two_patients(doors: Doors, both):
    for hospital in ("north", "south"):
        doors.ingest(*new_study(PatientID="P-1")[1], name=hospital)

    subjects = {entry["resource"]["subject"]["reference"] for entry in both.get("/fhir/ImagingStudy").json["entry"]}

    assert len(subjects) == 2


def test_a_patient_that_a_client_made_is_used_and_not_changed(doors: Doors, both):
    known = made(both, {**PATIENT, "identifier": [{"system": "urn:oid:1.2.276.0.76", "value": "P-1"}]})
    study_uid, files = new_study(PatientID="P-1", PatientName="Other^Name", IssuerOfPatientID="1.2.276.0.76")
    doors.ingest(*files)

    study = both.get(f"/fhir/ImagingStudy/{study_uid}").json

    assert study["subject"] == {"reference": f"Patient/{known['id']}"}
    assert both.get(f"/fhir/Patient/{known['id']}").json == known


def test_images_without_patient_id_have_a_patient_of_their_own(doors: Doors, both):
    for _ in range(2):
        doors.ingest(*new_study(PatientID="")[1])

    subjects = {entry["resource"]["subject"]["reference"] for entry in both.get("/fhir/ImagingStudy").json["entry"]}

    assert len(subjects) == 2


def test_the_order_of_the_same_patient_and_accession_number_is_linked(doors: Doors, both):
    patient = made(both, {**PATIENT, "identifier": [{"system": "urn:oid:1.2.276.0.76", "value": "P-1"}]})
    order = {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "subject": {"reference": f"Patient/{patient['id']}"},
        "identifier": [{"value": "A7"}],
    }
    mine = made(both, order)
    made(both, {**order, "subject": {"reference": "Patient/somebody-else"}})
    study_uid, files = new_study(PatientID="P-1", IssuerOfPatientID="1.2.276.0.76", AccessionNumber="A7")

    doors.ingest(*files)

    study = both.get(f"/fhir/ImagingStudy/{study_uid}").json
    assert study["basedOn"] == [{"reference": f"ServiceRequest/{mine['id']}"}]


def test_imaging_conditions_come_with_the_series_and_are_searchable(doors: Doors, both):
    study_uid, files = new_study()
    doors.ingest(*files)
    study = both.get(f"/fhir/ImagingStudy/{study_uid}").json

    (extension,) = study["series"][0]["extension"]
    observation = both.get(f"/fhir/{extension['valueReference']['reference']}").json

    assert observation["partOf"] == [{"reference": f"ImagingStudy/{study_uid}"}]
    assert observation["subject"] == study["subject"]
    found = both.get(f"/fhir/Observation?subject={study['subject']['reference']}").json
    assert [entry["resource"]["id"] for entry in found["entry"]] == [observation["id"]]


def test_equipment_is_a_device_that_can_be_read(doors: Doors, both):
    study_uid, files = new_study(Manufacturer="ACME", ManufacturerModelName="Ring 9", DeviceSerialNumber="S1")
    doors.ingest(*files)

    actor = both.get(f"/fhir/ImagingStudy/{study_uid}").json["series"][0]["performer"][0]["actor"]

    assert both.get(f"/fhir/{actor['reference']}").json["modelNumber"] == "Ring 9"


def test_projecting_again_makes_no_new_version(doors: Doors, both):
    study_uid, files = new_study()
    doors.ingest(*files)
    before = both.get(f"/fhir/ImagingStudy/{study_uid}").json

    doors.server.studies.project(study_uid)

    assert both.get(f"/fhir/ImagingStudy/{study_uid}").json == before


def test_what_a_client_adds_to_a_study_survives_new_images(doors: Doors, both):
    study_uid, files = new_study(instances=2)
    doors.ingest(files[0])
    path = f"/fhir/ImagingStudy/{study_uid}"
    study = both.get(path).json

    assert both.put(path, {**study, "note": [{"text": "seen"}]}).status_code == 200
    doors.ingest(files[1])

    study = both.get(path).json
    assert study["note"] == [{"text": "seen"}]
    assert study["numberOfInstances"] == 2


def test_what_comes_from_the_images_cannot_be_changed(doors: Doors, both):
    study_uid, files = new_study()
    doors.ingest(*files)
    path = f"/fhir/ImagingStudy/{study_uid}"
    study = both.get(path).json

    response = both.put(path, {**study, "description": "something else"})

    assert response.status_code == 409
    assert "ImagingStudy.description" in issue(response)["diagnostics"]
    assert both.get(path).json == study


@pytest.mark.parametrize("kind", ["Observation", "Device", "Endpoint"])
def test_what_the_server_makes_from_images_cannot_be_deleted(doors: Doors, both, kind):
    doors.ingest(*new_study(ManufacturerModelName="Ring 9")[1])
    resource = both.get(f"/fhir/{kind}").json["entry"][0]["resource"]

    assert both.delete(f"/fhir/{kind}/{resource['id']}").status_code == 409


def test_a_study_may_be_announced_before_its_images_come(doors: Doors, both):
    study_uid, files = new_study()
    announced = {
        "resourceType": "ImagingStudy",
        "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{study_uid}"}],
        "status": "registered",
        "subject": {"reference": "Patient/x"},
        "reasonCode": [{"text": "cough"}],
    }

    assert made(both, announced)["id"] == study_uid
    assert both.post("/fhir/ImagingStudy", announced).status_code == 409
    doors.ingest(*files)

    study = both.get(f"/fhir/ImagingStudy/{study_uid}").json
    assert study["status"] == "available"
    assert study["reasonCode"] == [{"text": "cough"}]
    assert study["numberOfInstances"] == 1


def test_the_study_instance_uid_of_a_study_cannot_change(both):
    announced = {
        "resourceType": "ImagingStudy",
        "identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}],
        "status": "registered",
        "subject": {"reference": "Patient/x"},
    }
    study = made(both, announced)
    other = {**study, "identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:1.2.4"}]}

    assert both.put(f"/fhir/ImagingStudy/{study['id']}", other).status_code == 409


def test_a_malformed_study_instance_uid_is_400(both):
    announced = {
        "resourceType": "ImagingStudy",
        "identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:not-a-uid"}],
        "status": "registered",
        "subject": {"reference": "Patient/x"},
    }

    assert both.post("/fhir/ImagingStudy", announced).status_code == 400


def test_deleting_a_study_deletes_its_images(doors: Doors):
    sender = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="sender")
    study_uid, files = new_study()
    doors.ingest(*files, name="sender")
    sender = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="sender")
    assert sender.get(f"/fhir/ImagingStudy/{study_uid}").status_code == 200

    assert sender.delete(f"/fhir/ImagingStudy/{study_uid}").status_code == 204

    assert sender.get(f"/fhir/ImagingStudy/{study_uid}").status_code == 410
    assert doors.server.archive.count() == 0
    assert sender.get("/fhir/Observation").json["total"] == 0


def test_images_that_come_again_after_a_deletion_are_shown_again(doors: Doors):
    study_uid, files = new_study()
    doors.ingest(*files, name="sender")
    sender = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="sender")
    sender.get(f"/fhir/ImagingStudy/{study_uid}")
    sender.delete(f"/fhir/ImagingStudy/{study_uid}")

    doors.ingest(*files, name="again")

    assert sender.get(f"/fhir/ImagingStudy/{study_uid}").json["numberOfInstances"] == 1


def test_only_the_subscriber_that_registered_all_images_deletes_them(doors: Doors, both):
    study_uid, files = new_study(instances=2)
    doors.ingest(files[0], name="north")
    doors.ingest(files[1], name="both")
    both = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="both")

    assert both.delete(f"/fhir/ImagingStudy/{study_uid}").status_code == 403
    assert doors.server.archive.count() == 2


def test_a_patient_with_images_cannot_be_deleted(doors: Doors, both):
    study_uid, files = new_study()
    doors.ingest(*files)
    subject = both.get(f"/fhir/ImagingStudy/{study_uid}").json["subject"]["reference"]

    assert both.delete(f"/fhir/{subject}").status_code == 409


# ---- manners


def test_metadata_is_open_and_true_about_the_version(doors: Doors):
    statement = doors.stranger.get("/fhir/metadata").json

    assert statement["resourceType"] == "CapabilityStatement"
    assert statement["fhirVersion"] == "4.0.1"
    assert {row["type"] for row in statement["rest"][0]["resource"]} >= {"ImagingStudy", "Patient", "Endpoint"}


def test_health_is_open(doors: Doors):
    assert doors.stranger.get("/health/live").status_code == 200
    assert doors.stranger.get("/health/ready").status_code == 200


def test_a_given_request_id_is_kept_and_a_bad_one_replaced(both):
    assert both.get("/fhir/Patient", headers={"X-Request-Id": "abc-1"}).headers["X-Request-Id"] == "abc-1"
    assert both.get("/fhir/Patient", headers={"X-Request-Id": "a b\tc"}).headers["X-Request-Id"] != "a b\tc"


def test_a_fault_tells_nothing_but_the_request_id(doors: Doors, both, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("King^Ada is the patient")

    monkeypatch.setattr("fhir_server.store.repository.Repository.search", broken)

    response = both.get("/fhir/Device", headers={"X-Request-Id": "r-1"})

    assert response.status_code == 500
    assert response.headers["X-Request-Id"] == "r-1"
    assert "King" not in response.text


def test_the_access_log_tells_of_health_only_what_is_not_well(doors: Doors, caplog):
    caplog.set_level("INFO", logger="fhir_server.access_log")

    doors.stranger.get("/health/ready").close()
    doors.stranger.get("/health/nothing").close()

    assert [record.status for record in caplog.records if record.name == "fhir_server.access_log"] == [404]


def test_the_access_log_has_the_route_and_no_values(doors: Doors, both, caplog):
    caplog.set_level("INFO", logger="fhir_server.access_log")

    both.get("/fhir/Patient?name=Secretname", headers={"X-Request-Id": "r-1"}).close()
    both.get("/fhir/Patient/some-id").close()

    search, read = [record for record in caplog.records if record.name == "fhir_server.access_log"]
    assert (search.method, search.route, search.status) == ("GET", "/fhir/<type>", 200)
    assert (read.route, read.status) == ("/fhir/<type>/<id>", 404)
    assert search.client.startswith("both-")
    assert search.ms >= 0
    assert "Secretname" not in str(vars(search))
    assert "some-id" not in str(vars(read))


def test_a_request_without_content_length_is_bounded_too(both):
    response = both.call(
        "POST",
        "/fhir/Patient",
        data=b" " * (9 << 20),
        headers={"Content-Type": "application/fhir+json"},
        environ_overrides={"CONTENT_LENGTH": "", "wsgi.input_terminated": True},
    )

    assert response.status_code == 413


def test_an_order_that_comes_after_the_images_is_linked_too(doors: Doors, both):
    study_uid, files = new_study(AccessionNumber="A7")
    doors.ingest(*files)
    subject = both.get(f"/fhir/ImagingStudy/{study_uid}").json["subject"]

    order = {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "subject": subject,
        "identifier": [{"value": "A7"}],
    }
    made_order = made(both, order)

    study = both.get(f"/fhir/ImagingStudy/{study_uid}").json
    assert study["basedOn"] == [{"reference": f"ServiceRequest/{made_order['id']}"}]
