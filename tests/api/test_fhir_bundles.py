"""Batch and transaction at the FHIR door. Expected values: FHIR R4 http 3.1.0.11, bundle."""

import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import orjson
import pytest
from pymongo.database import Database

from fhir_server.access.contracts import Right
from fhir_server.model.validation import validate
from tests.support.doors import FHIR, Caller, Doors, new_study, opened
from tests.unit.test_fhirpath_patch import replace

Json = dict[str, Any]
URN = "urn:uuid:61ebe359-bfdc-4613-8bf2-c5e300945f0a"
OTHER_URN = "urn:uuid:88f151c0-a954-468a-88bd-5ae15c08e059"


@pytest.fixture(scope="module")
def doors(module_db: Database[Json]) -> Iterator[Doors]:
    with opened(module_db) as made:
        yield made


def entry(method: str, url: str, resource: Json | None = None, full_url: str = "", **conditions: str) -> Json:
    made: Json = {"request": {"method": method, "url": url, **conditions}}
    if resource is not None:
        made["resource"] = resource
    return {**made, "fullUrl": full_url} if full_url else made


def bundle(kind: str, *entries: Json) -> Json:
    return {"resourceType": "Bundle", "type": kind, "entry": list(entries)}


def post(caller: Caller, kind: str, *entries: Json, **headers: str) -> Any:
    return caller.post("/fhir", bundle(kind, *entries), headers=headers)


def done(caller: Caller, kind: str, *entries: Json, **headers: str) -> list[Json]:
    """Have a Bundle processed, and return the entries of the answer."""
    response = post(caller, kind, *entries, **headers)
    assert response.status_code == 200, response.text
    assert response.json["type"] == f"{kind}-response"
    validate(response.json, "Bundle")
    return response.json["entry"]


def statuses(entries: list[Json]) -> list[str]:
    return [each["response"]["status"][:3] for each in entries]


def patient(**content: Any) -> Json:
    return {"resourceType": "Patient", **content}


def numbered(number: str, **content: Any) -> Json:
    return patient(identifier=[{"system": "http://hospital.test/numbers", "value": number}], **content)


def observation(subject: str, **content: Any) -> Json:
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": {"text": "x"},
        "subject": {"reference": subject},
        **content,
    }


def new_number() -> str:
    return uuid4().hex


def made(both: Caller, resource: Json) -> Json:
    created = both.post(f"/fhir/{resource['resourceType']}", resource)
    assert created.status_code == 201, created.text
    return created.json


def count(both: Caller, number: str) -> int:
    return both.get(f"/fhir/Patient?identifier={number}&_summary=count").json["total"]


def version(both: Caller, key: str) -> str:
    return both.get(f"/fhir/{key}").headers["ETag"]


# ---- 3.1.0.11 both


@pytest.mark.parametrize("kind", ["batch", "transaction"])
def test_each_entry_is_answered_in_its_place_as_if_it_were_alone(both, kind):
    known = made(both, patient(gender="male"))
    gone = made(both, patient())
    key = f"Patient/{known['id']}"

    found = done(
        both,
        kind,
        entry("GET", key),
        entry("POST", "Patient", patient(gender="other")),
        entry("DELETE", f"Patient/{gone['id']}"),
        entry("PUT", key, {**known, "gender": "female"}, ifMatch='W/"1"'),
        entry("HEAD", key),
        entry("GET", f"{key}/_history/1"),
        entry("GET", f"Patient?_id={known['id']}"),
        entry("GET", f"{key}/_history"),
    )

    assert statuses(found) == ["200", "201", "204", "200", "200", "200", "200", "200"]
    created = found[1]["response"]
    assert created["location"] == f"{FHIR}/Patient/{found[1]['resource']['id']}/_history/1"
    assert (created["etag"], created["status"]) == ('W/"1"', "201 Created")
    assert created["lastModified"] == found[1]["resource"]["meta"]["lastUpdated"]
    assert "resource" not in found[2]
    assert found[3]["response"]["etag"] == 'W/"2"'
    assert "resource" not in found[4]
    assert found[5]["resource"]["gender"] == "male"
    assert (found[6]["resource"]["type"], found[6]["resource"]["total"]) == ("searchset", 1)
    assert found[7]["resource"]["type"] == "history"
    assert both.get(f"/fhir/Patient/{gone['id']}").status_code == 410


@pytest.mark.parametrize("kind", ["batch", "transaction"])
@pytest.mark.parametrize(
    ("prefer", "has_resource", "has_outcome"),
    [
        ("return=minimal", False, False),
        ("return=representation", True, False),
        ("return=OperationOutcome", False, True),
    ],
)
def test_prefer_holds_for_every_entry(both, kind, prefer, has_resource, has_outcome):
    (found,) = done(both, kind, entry("POST", "Patient", patient()), Prefer=prefer)

    assert ("resource" in found, "outcome" in found["response"]) == (has_resource, has_outcome)
    assert found["response"]["location"]


@pytest.mark.parametrize("kind", ["batch", "transaction"])
def test_an_empty_bundle_is_answered_by_an_empty_one(both, kind):
    response = both.post("/fhir/", {"resourceType": "Bundle", "type": kind})

    assert (response.status_code, response.json.get("entry")) == (200, None)


@pytest.mark.parametrize("kind", ["batch", "transaction"])
def test_conditions_hold_for_their_entry(both, kind):
    number = new_number()
    key = f"Patient/{made(both, numbered(number))['id']}"

    found = done(
        both,
        kind,
        entry("POST", "Patient", numbered(number), ifNoneExist=f"identifier={number}"),
        entry("GET", key, ifNoneMatch='W/"1"'),
        entry("GET", key, ifModifiedSince="2999-01-01T00:00:00Z"),
        entry("PUT", f"Patient?identifier={number}", numbered(number, gender="male")),
        entry("DELETE", f"Patient?identifier={number}x"),
    )

    wanted = ["200", "304", "304", "200", "204"] if kind == "batch" else ["200", "200", "304", "200", "204"]
    assert statuses(found) == wanted  # a transaction reads after it wrote
    assert found[0]["response"]["location"].startswith(f"{FHIR}/{key}/")
    assert count(both, number) == 1


@pytest.mark.parametrize("kind", ["batch", "transaction"])
def test_patches_go_as_parameters_or_as_a_binary(both, kind):
    first, second = made(both, patient()), made(both, patient(gender="male"))
    operations = base64.b64encode(b'[{"op":"add","path":"/gender","value":"female"}]').decode()
    json_patch = {"resourceType": "Binary", "contentType": "application/json-patch+json", "data": operations}
    fhirpath = {"resourceType": "Parameters", "parameter": [replace("Patient.gender", valueCode="other")]}

    found = done(
        both,
        kind,
        entry("PATCH", f"Patient/{first['id']}", json_patch),
        entry("PATCH", f"Patient/{second['id']}", fhirpath),
    )

    assert statuses(found) == ["200", "200"]
    assert [each["resource"]["gender"] for each in found] == ["female", "other"]


# ---- 3.1.0.11.1 batch


def test_a_batch_goes_on_where_an_entry_fails(both):
    found = done(
        both,
        "batch",
        entry("GET", "Patient/unknown"),
        entry("POST", "Patient", patient(gender="sometimes")),
        entry("POST", "Patient", patient()),
        entry("GET", "Unicorn/1"),
        entry("POST", "Contract", {"resourceType": "Contract"}),
        entry("FETCH", "Patient/1"),
        entry("GET", "http://elsewhere.test/Patient/1"),
        {"resource": patient()},
        {},
        entry("PUT", "Patient/1", patient(id="2")),
        entry("GET", "Patient?shoe-size=44"),
        entry("GET", "Patient/$everything"),
    )

    assert statuses(found) == [
        "404", "400", "201", "404", "405", "400", "400", "400", "400", "400", "400", "501",
    ]  # fmt: skip
    assert found[0]["response"]["outcome"]["issue"][0]["code"] == "not-found"
    assert found[1]["response"]["outcome"]["issue"][0]["expression"] == ["Bundle.entry[1].resource.gender"]


def test_rights_hold_for_each_entry_of_a_batch(doors: Doors, both):
    known = made(both, patient())
    sender = doors.caller(Right.REGISTER_IMAGES, name="sender")

    found = done(sender, "batch", entry("GET", f"Patient/{known['id']}"), entry("POST", "Patient", patient()))

    assert statuses(found) == ["403", "201"]


def test_each_entry_of_a_bundle_is_on_record(doors: Doors, both):
    known = made(both, patient())
    key = f"Patient/{known['id']}"

    done(both, "batch", entry("GET", key), entry("GET", f"{key}x"))
    done(both, "transaction", entry("PUT", key, known))

    auditor = doors.caller(Right.AUDIT, name="auditor")
    events = [each["resource"] for each in auditor.get(f"/fhir/AuditEvent?entity={key},{key}x").json["entry"]]
    told = {(event["subtype"][0]["code"], event["outcome"]) for event in events}
    assert told == {("create", "0"), ("read", "0"), ("read", "4"), ("update", "0")}


# ---- 3.1.0.11.2 transaction: all or nothing


@pytest.mark.parametrize(
    ("wrong", "status", "code"),
    [
        (entry("GET", "Patient/unknown"), 404, "not-found"),
        (entry("POST", "Patient", patient(gender="sometimes")), 400, "code-invalid"),
        (entry("PUT", "Patient/unknown", patient(id="unknown")), 400, "not-supported"),
        (entry("PUT", "Patient/unknown", patient(id="unknown"), ifMatch='W/"1"'), 412, "conflict"),
        (entry("DELETE", "Contract/1"), 400, "not-supported"),
        (entry("POST", "Unicorn", {"resourceType": "Unicorn"}), 404, "not-found"),
        (entry("POST", "Patient", observation("Patient/1")), 400, "invalid"),
        (entry("POST", "Patient", patient(), ifNoneExist="shoe-size=44"), 400, "invalid"),
        (entry("POST", "Observation", observation("Patient?identifier=nobody")), 412, "conflict"),
        (entry("PATCH", "Patient?identifier=nobody", {"resourceType": "Parameters"}), 404, "not-found"),
        ({}, 400, "invalid"),
    ],
)
def test_a_transaction_is_undone_by_one_entry_which_the_answer_names(both, wrong, status, code):
    number = new_number()

    response = post(both, "transaction", entry("POST", "Patient", numbered(number)), wrong)

    assert response.status_code == status, response.text
    issue = response.json["issue"][0]
    assert issue["code"] == code
    assert issue["expression"][0].startswith("Bundle.entry[1]")
    assert count(both, number) == 0


def test_what_a_transaction_was_refused_is_on_record_and_what_was_undone_is_not(doors: Doors, both):
    key = f"Patient/{new_number()}"
    known = made(both, patient())

    post(both, "transaction", entry("PUT", f"Patient/{known['id']}", known), entry("GET", key))

    auditor = doors.caller(Right.AUDIT, name="auditor")
    refused = auditor.get(f"/fhir/AuditEvent?entity={key}").json["entry"]
    assert [(each["resource"]["outcome"], each["resource"]["subtype"][0]["code"]) for each in refused] == [
        ("4", "read")
    ]
    updates = auditor.get(f"/fhir/AuditEvent?entity=Patient/{known['id']}&subtype=update").json
    assert updates["total"] == 0


def test_rights_are_asked_for_every_entry_before_anything_is_done(doors: Doors, both):
    number = new_number()
    receiver = doors.caller(Right.RECEIVE_IMAGES, name="receiver")

    response = post(
        receiver, "transaction", entry("GET", "Patient?_count=1"), entry("POST", "Patient", numbered(number))
    )

    assert response.status_code == 403
    assert response.json["issue"][0]["expression"] == ["Bundle.entry[1]"]
    assert count(both, number) == 0


# ---- 3.1.0.11.2 order


def test_a_transaction_deletes_creates_updates_and_reads_in_this_order(both):
    number = new_number()
    old = made(both, numbered(number))
    other = made(both, patient())

    found = done(
        both,
        "transaction",
        entry("GET", f"Patient?identifier={number}"),
        entry("PUT", f"Patient/{other['id']}", numbered(number, id=other["id"])),
        entry("POST", "Patient", numbered(number), ifNoneExist=f"identifier={number}"),
        entry("DELETE", f"Patient/{old['id']}"),
    )

    # The old one is gone before the criteria look; the search sees what was created and what was updated.
    assert statuses(found) == ["200", "200", "201", "204"]
    assert {each["resource"]["id"] for each in found[0]["resource"]["entry"]} == {
        other["id"],
        found[2]["resource"]["id"],
    }


# ---- 3.1.0.11.2 references


def test_references_within_the_bundle_become_those_of_what_was_made(both):
    narrative = f'<div xmlns="http://www.w3.org/1999/xhtml"><a href="{URN}">who</a> <a href="http://x.test">x</a></div>'
    found = done(
        both,
        "transaction",
        entry("POST", "Observation", observation(URN, text={"status": "generated", "div": narrative}), OTHER_URN),
        entry("POST", "Patient", patient(link=[{"other": {"reference": URN}, "type": "seealso"}]), URN),
        entry(
            "POST",
            "Provenance",
            {
                "resourceType": "Provenance",
                "target": [{"reference": OTHER_URN}],
                "recorded": "2026-01-01T00:00:00Z",
                "agent": [{"who": {"reference": URN}}],
                "policy": [URN, "http://policy.test"],
            },
        ),
    )

    person = f"Patient/{found[1]['resource']['id']}"
    noted = found[0]["resource"]
    assert noted["subject"] == {"reference": person}
    assert f'href="{FHIR}/{person}"' in noted["text"]["div"]
    assert 'href="http://x.test"' in noted["text"]["div"]
    assert found[1]["resource"]["link"][0]["other"] == {"reference": person}
    provenance = found[2]["resource"]
    assert provenance["target"] == [{"reference": f"Observation/{noted['id']}"}]
    assert provenance["policy"] == [f"{FHIR}/{person}", "http://policy.test"]


def test_a_reference_to_what_was_there_already_becomes_that(both):
    number = new_number()
    known = made(both, numbered(number))

    found = done(
        both,
        "transaction",
        entry("POST", "Observation", observation(URN)),
        entry("POST", "Patient", numbered(number), URN, ifNoneExist=f"identifier={number}"),
    )

    assert statuses(found) == ["201", "200"]
    assert found[0]["resource"]["subject"] == {"reference": f"Patient/{known['id']}"}


def test_relative_references_are_resolved_by_the_full_url_of_where_they_stand(both):
    found = done(
        both,
        "transaction",
        entry("POST", "Observation", observation("Patient/7"), "http://source.test/fhir/Observation/8"),
        entry("POST", "Patient", patient(id="7"), "http://source.test/fhir/Patient/7"),
    )

    assert found[0]["resource"]["subject"] == {"reference": f"Patient/{found[1]['resource']['id']}"}


def test_references_by_criteria_are_looked_up(both):
    number, fresh = new_number(), new_number()
    known = made(both, numbered(number))

    found = done(
        both,
        "transaction",
        entry("POST", "Observation", observation(f"Patient?identifier=http://hospital.test/numbers|{number}")),
        entry("POST", "Observation", observation(f"Patient?identifier={fresh}")),
        entry("POST", "Patient", numbered(fresh), ifNoneExist=f"identifier={fresh}"),
    )

    assert found[0]["resource"]["subject"] == {"reference": f"Patient/{known['id']}"}
    assert found[1]["resource"]["subject"] == {"reference": f"Patient/{found[2]['resource']['id']}"}


def test_a_reference_by_criteria_that_fits_several_fails_the_whole(both):
    number = new_number()
    made(both, numbered(number))
    made(both, numbered(number))

    response = post(both, "transaction", entry("POST", "Observation", observation(f"Patient?identifier={number}")))

    assert response.status_code == 412


def test_a_patch_refers_to_what_is_made_in_the_same_transaction(both):
    noted = made(both, observation("Patient/1"))
    patch = {
        "resourceType": "Parameters",
        "parameter": [replace("Observation.subject", valueReference={"reference": URN})],
    }

    found = done(
        both,
        "transaction",
        entry("PATCH", f"Observation/{noted['id']}", patch),
        entry("POST", "Patient", patient(), URN),
    )

    assert found[0]["resource"]["subject"] == {"reference": f"Patient/{found[1]['resource']['id']}"}


# ---- 3.1.0.11.2 identities that overlap


def overlapping(key: str, number: str) -> dict[str, list[Json]]:
    known = patient(id=key.partition("/")[2])
    return {
        "update twice": [entry("PUT", key, known), entry("PUT", key, known)],
        "delete and update": [entry("DELETE", key), entry("PUT", key, known)],
        "patch and update": [entry("PATCH", key, {"resourceType": "Parameters"}), entry("PUT", key, known)],
        "by id and by criteria": [entry("PUT", key, known), entry("PUT", f"Patient?identifier={number}", patient())],
        "criteria twice": [
            entry("PUT", f"Patient?identifier={number}x", patient()),
            entry("PUT", f"Patient?identifier={number}x", patient()),
        ],
        "deleted by criteria": [entry("DELETE", f"Patient?identifier={number}"), entry("PUT", key, known)],
        "same fullUrl": [entry("POST", "Patient", patient(), URN), entry("POST", "Patient", patient(), URN)],
    }


@pytest.mark.parametrize("name", overlapping("Patient/1", ""))
def test_identities_that_overlap_fail_the_whole(both, name):
    number = new_number()
    key = f"Patient/{made(both, numbered(number))['id']}"

    response = post(both, "transaction", *overlapping(key, number)[name])

    assert response.status_code == 400, response.text
    assert "Bundle.entry[1]" in response.json["issue"][0]["diagnostics"] + response.json["issue"][0]["expression"][0]
    assert version(both, key) == 'W/"1"'


def test_equal_conditional_creates_make_one_resource(both):
    number = new_number()
    creation = entry("POST", "Patient", numbered(number), ifNoneExist=f"identifier={number}")

    found = done(
        both,
        "transaction",
        {**creation, "fullUrl": URN},
        {**creation, "fullUrl": OTHER_URN},
        entry("POST", "Observation", observation(OTHER_URN)),
    )

    assert statuses(found) == ["201", "200", "201"]
    assert found[0]["response"]["location"] == found[1]["response"]["location"]
    assert found[2]["resource"]["subject"]["reference"] == f"Patient/{found[0]['resource']['id']}"
    assert count(both, number) == 1


def test_of_equal_transactions_at_the_same_time_one_creates(both):
    number = new_number()
    creation = bundle("transaction", entry("POST", "Patient", numbered(number), ifNoneExist=f"identifier={number}"))

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: both.post("/fhir", creation), range(6)))

    assert sorted(statuses([each for answer in answers for each in answer.json["entry"]])) == ["200"] * 5 + ["201"]
    assert count(both, number) == 1


def test_transactions_that_meet_are_all_done_one_after_another(both):
    keys = [f"Patient/{made(both, patient())['id']}" for _ in range(2)]

    def both_ways(turn: int) -> int:
        entries = [entry("PUT", key, patient(id=key.partition("/")[2])) for key in keys[:: (-1) ** turn]]
        return post(both, "transaction", *entries).status_code

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(both_ways, range(8)))

    assert answers == [200] * 8
    assert {version(both, key) for key in keys} == {'W/"9"'}


# ---- compartments


@pytest.mark.parametrize("kind", ["batch", "transaction"])
def test_a_compartment_is_searched_by_an_entry(both, kind):
    key = f"Patient/{made(both, patient())['id']}"
    about, other = made(both, observation(key)), made(both, observation(key, status="amended"))
    made(both, observation("Patient/somebody"))

    answers = done(
        both,
        kind,
        entry("GET", f"{key}/Observation"),
        entry("GET", f"{key}/Observation?status=amended"),
        entry("GET", f"{FHIR}/{key}/*?_type=Observation&_sort=_lastUpdated"),
        entry("GET", f"{key}/ImagingStudy?_summary=count"),
    )

    found = [[one["resource"]["id"] for one in each["resource"].get("entry", ())] for each in answers]
    assert found == [[other["id"], about["id"]], [other["id"]], [about["id"], other["id"]], []]
    assert answers[3]["resource"]["total"] == 0


def test_a_compartment_that_there_is_none_of_is_404(both):
    [answer] = done(both, "batch", entry("GET", "Organization/1/ImagingStudy"))

    assert statuses([answer]) == ["404"]


# ---- operations


def parameters(**values: Any) -> Json:
    return {"resourceType": "Parameters", "parameter": [{"name": name, **value} for name, value in values.items()]}


@pytest.mark.parametrize("kind", ["batch", "transaction"])
def test_operations_are_entries_as_well(both, kind):
    found = made(both, numbered(new_number(), gender="male"))
    key = f"Patient/{found['id']}"
    about = made(both, observation(key))

    answers = done(
        both,
        kind,
        entry("POST", "Patient/$validate", patient(gender="x")),
        entry("POST", f"{key}/$meta-add", parameters(meta={"valueMeta": {"tag": [{"code": "a"}]}})),
        entry("POST", "ValueSet/$expand", parameters(url={"valueUri": "http://hl7.org/fhir/ValueSet/link-type"})),
        entry("GET", f"{key}/$everything?_count=10"),
        entry("GET", "CodeSystem/$lookup?system=http://hl7.org/fhir/link-type&code=refer&_format=json"),
        entry("POST", f"{key}/$everything"),
        entry("HEAD", f"{key}/$meta"),
    )

    assert statuses(answers) == ["200"] * 7
    assert answers[0]["resource"]["issue"][0]["expression"] == ["Patient.gender"]
    assert answers[1]["resource"]["parameter"][0]["valueMeta"]["tag"] == [{"code": "a"}]
    assert answers[2]["resource"]["expansion"]["total"] == 4
    for each in (answers[3], answers[5]):
        ids = [one["resource"]["id"] for one in each["resource"]["entry"]]
        assert ids[:2] == [found["id"], about["id"]]
    assert {each["name"] for each in answers[4]["resource"]["parameter"]} >= {"name", "display"}
    assert "resource" not in answers[6]
    assert both.get(f"/fhir/{key}").json["meta"]["tag"] == [{"code": "a"}]


def test_an_operation_in_a_transaction_sees_what_was_made_before_it_and_is_undone_with_it(both):
    number = new_number()
    key = f"Patient/{made(both, patient())['id']}"
    label = entry("POST", f"{key}/$meta-add", parameters(meta={"valueMeta": {"tag": [{"code": "a"}]}}))
    about = entry("POST", "Observation", observation(key))
    everything = entry("GET", f"{key}/$everything")

    seen = done(both, "transaction", everything, about, label)[0]["resource"]["entry"]
    refused = post(both, "transaction", label, entry("POST", "Patient", numbered(number, gender="x")))
    twice = post(both, "transaction", label, entry("PUT", key, patient(id=key.partition("/")[2])))

    assert [each["resource"]["resourceType"] for each in seen] == ["Patient", "Observation"]
    assert seen[0]["resource"]["meta"]["tag"] == [{"code": "a"}]
    assert (refused.status_code, twice.status_code) == (400, 400)
    assert version(both, key) == 'W/"2"'


@pytest.mark.parametrize(
    ("method", "url", "status"),
    [
        ("GET", "Patient/$nothing", "501"),
        ("GET", "Patient/1/$expand", "501"),
        ("GET", "Patient/$validate", "501"),
        ("DELETE", "Patient/1/$meta", "501"),
        ("PUT", "Patient/1/$meta-add", "501"),
        ("GET", "Nothing/1/$meta", "404"),
        ("GET", "Patient/a_b/$meta", "400"),
        ("GET", "Patient/1/$meta?nonsense=1", "400"),
        ("POST", "Patient/$validate", "400"),
    ],
)
def test_an_operation_that_is_not_there_or_asked_wrongly_is_refused(both, method, url, status):
    resource = {"resource": parameters()} if method == "PUT" else {}
    [answer] = done(both, "batch", {"request": {"method": method, "url": url}, **resource})
    whole = post(both, "transaction", {"request": {"method": method, "url": url}, **resource})

    assert statuses([answer]) == [status]
    assert whole.json["issue"][0]["expression"] == ["Bundle.entry[0]"]


def test_rights_and_records_are_those_of_the_operation(doors: Doors, both):
    reader = doors.caller(Right.RECEIVE_IMAGES, name="reader")
    auditor = doors.caller(Right.AUDIT, name="auditor")
    key = f"Patient/{made(both, patient())['id']}"
    label = entry("POST", f"{key}/$meta-add", parameters(meta={"valueMeta": {"tag": [{"code": "a"}]}}))

    assert statuses(done(reader, "batch", entry("GET", f"{key}/$meta"), label)) == ["200", "403"]
    assert statuses(done(auditor, "batch", entry("GET", f"{key}/$meta"))) == ["403"]
    events = auditor.get(f"/fhir/AuditEvent?entity={key}&_sort=-date").json["entry"]
    outcomes = [(each["resource"]["action"], each["resource"]["outcome"]) for each in events]
    assert {("R", "0"), ("U", "4"), ("R", "4")} <= set(outcomes)


# ---- images


def test_what_comes_from_the_images_is_protected_in_a_transaction_too(doors: Doors, both):
    study_uid, files = new_study()
    doors.ingest(*files, name="both")
    study = both.get(f"/fhir/ImagingStudy/{study_uid}").json
    key = f"ImagingStudy/{study_uid}"

    noted = done(both, "transaction", entry("PUT", key, {**study, "note": [{"text": "seen"}]}))
    changed = post(both, "transaction", entry("PUT", key, {**study, "description": "other"}))
    gone = post(both, "transaction", entry("DELETE", key))

    assert statuses(noted) == ["200"]
    assert (changed.status_code, gone.status_code) == (409, 400)
    assert "by itself" in gone.json["issue"][0]["diagnostics"]
    assert statuses(done(both, "batch", entry("DELETE", key))) == ["204"]


def test_a_study_and_its_patient_are_announced_together(both):
    study_uid = new_study()[0]
    study = {
        "resourceType": "ImagingStudy",
        "status": "registered",
        "subject": {"reference": URN},
        "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{study_uid}"}],
    }

    found = done(
        both,
        "transaction",
        entry("POST", "ImagingStudy", study, OTHER_URN),
        entry("POST", "Patient", patient(), URN),
        entry("POST", "Observation", observation(URN, partOf=[{"reference": OTHER_URN}])),
    )

    assert found[0]["resource"]["id"] == study_uid
    assert found[2]["resource"]["partOf"] == [{"reference": f"ImagingStudy/{study_uid}"}]


# ---- orders


def order(**content: Any) -> Json:
    return {"resourceType": "Task", "status": "requested", "intent": "order", **content}


def test_a_task_in_a_transaction_is_admitted_as_it_would_be_alone(doors: Doors):
    orderer = doors.caller(Right.ORDER_PROCESSING, name="orderer")
    (mine,) = [each for each in doors.server.principals.subscribers() if each.name == "orderer"]

    found = done(orderer, "transaction", entry("POST", "Task", order()), entry("POST", "Task", order()))
    foreign = post(orderer, "transaction", entry("POST", "Task", order(requester={"reference": "Organization/1"})))
    begun = post(orderer, "transaction", entry("POST", "Task", order(status="in-progress")))

    assert {each["resource"]["requester"]["reference"] for each in found} == {mine.organization}
    assert all("authoredOn" in each["resource"] for each in found)
    assert (foreign.status_code, begun.status_code) == (403, 409)


# ---- limits


@pytest.mark.parametrize(
    "body",
    [
        {"resourceType": "Patient"},
        {"resourceType": "Bundle"},
        {"resourceType": "Bundle", "type": "collection"},
        {"resourceType": "Bundle", "type": ["batch"]},
        {"resourceType": "Bundle", "type": "batch", "entry": {}},
        [],
    ],
)
def test_what_is_no_batch_or_transaction_is_400(both, body):
    assert both.post("/fhir", body).status_code == 400


def test_a_bundle_is_bounded_in_entries_and_bytes(db):
    with opened(
        db, limits__bundle_entries="3", limits__bundle_bytes="100 KiB", limits__resource_bytes="40 KiB"
    ) as doors:
        both = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="both")
        large = patient(name=[{"text": "x" * 30_000}])
        known = made(both, large)
        larger = patient(name=[{"text": "x" * 50_000}])

        many = post(both, "batch", *[entry("GET", "Patient/1")] * 4)
        long = post(both, "batch", *[entry("POST", "Patient", patient(name=[{"text": "x" * 40_000}]))] * 3)
        resource = done(both, "batch", entry("POST", "Patient", larger))
        answers = done(both, "batch", *[entry("GET", "Patient?_count=3")] * 3)
        whole = post(both, "transaction", *[entry("GET", f"Patient?_id={known['id']}&_x=")] * 1)

        assert (many.status_code, long.status_code, whole.status_code) == (413, 413, 400)
        assert statuses(resource) == ["413"]
        assert statuses(answers) == ["200", "200", "200"]


def test_a_thousand_entries_are_done_together(both):
    number = new_number()
    people = [entry("POST", "Patient", numbered(number), f"urn:uuid:{uuid4()}") for _ in range(500)]
    notes = [entry("POST", "Observation", observation(each["fullUrl"])) for each in people]
    begun = time.monotonic()

    found = done(both, "transaction", *notes, *people, Prefer="return=minimal")

    assert statuses(found) == ["201"] * 1000
    assert count(both, number) == 500
    assert time.monotonic() - begun < 30


def test_decimals_keep_their_digits_in_a_bundle(both):
    body = orjson.dumps(bundle("transaction", entry("POST", "Observation", observation("Patient/1", note=[]))))
    body = body.replace(b'"note":[]', b'"valueQuantity":{"value":1.50}')

    response = both.call("POST", "/fhir", data=body, headers={"Content-Type": "application/fhir+json"})

    assert response.status_code == 200
    assert b'"value":1.50' in response.data
