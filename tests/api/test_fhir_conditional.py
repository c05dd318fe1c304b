"""Conditional interactions of the FHIR door. Expected values: FHIR R4 http, the sections that the headings name."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from pymongo.database import Database

from fhir_server.access.contracts import Right
from tests.support.doors import FHIR, Caller, Doors, opened

SYSTEM = "http://hospital.test/numbers"


@pytest.fixture(scope="module")
def doors(module_db: Database[dict[str, Any]]) -> Iterator[Doors]:
    with opened(module_db) as made:
        yield made


def patient(number: str, **more: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "identifier": [{"system": SYSTEM, "value": number}], **more}


def new_number() -> str:
    return uuid4().hex


def made(both: Caller, number: str, times: int = 1) -> list[str]:
    """Create Patients with a number and return their ids."""
    return [both.post("/fhir/Patient", patient(number)).json["id"] for _ in range(times)]


def count(both: Caller, number: str) -> int:
    return both.get(f"/fhir/Patient?identifier={number}&_total=accurate").json["total"]


def code(response: Any) -> str:
    assert response.json["resourceType"] == "OperationOutcome"
    return response.json["issue"][0]["code"]


# ---- 3.1.0.2.1 conditional read


@pytest.mark.parametrize(
    ("tag", "status"),
    [('W/"1"', 304), ('"1"', 304), ('W/"2"', 200), ('W/"9", W/"1"', 304), ("*", 304), ('W/"one"', 200)],
)
def test_if_none_match_compares_versions(both, tag, status):
    (identifier,) = made(both, new_number())

    response = both.get(f"/fhir/Patient/{identifier}", headers={"If-None-Match": tag})

    assert response.status_code == status
    assert response.headers["ETag"] == 'W/"1"'
    assert bool(response.data) == (status == 200)


def test_if_modified_since_compares_whole_seconds(both):
    (identifier,) = made(both, new_number())
    address = f"/fhir/Patient/{identifier}"
    known = both.get(address).headers["Last-Modified"]

    assert both.get(address, headers={"If-Modified-Since": known}).status_code == 304
    assert both.get(address, headers={"If-Modified-Since": "Sat, 01 Jan 2000 00:00:00 GMT"}).status_code == 200
    assert both.get(address, headers={"If-Modified-Since": "yesterday"}).status_code == 200


# ---- 3.1.0.1.8 summaries and elements of a read


def test_a_read_may_ask_for_a_part(both):
    number = new_number()
    identifier = both.post("/fhir/Patient", patient(number, gender="other", birthDate="2001-02-03")).json["id"]
    address = f"/fhir/Patient/{identifier}"

    part = both.get(f"{address}?_elements=gender").json

    assert {name for name in part if name not in ("resourceType", "id", "meta")} == {"gender"}
    assert part["meta"]["tag"][0]["code"] == "SUBSETTED"
    assert "identifier" in both.get(f"{address}?_summary=true").json
    assert "identifier" not in both.get(f"{address}?_summary=text").json
    assert "tag" not in both.get(f"{address}?_summary=false").json["meta"]
    assert both.get(f"{address}?_summary=count").status_code == 400


# ---- 3.1.0.5.1 conditional create: no match, one, several


def test_conditional_create_without_a_match_creates(both):
    number = new_number()

    response = both.post("/fhir/Patient", patient(number), headers={"If-None-Exist": f"identifier={SYSTEM}|{number}"})

    assert response.status_code == 201
    assert count(both, number) == 1


def test_conditional_create_with_a_match_gives_it_and_ignores_what_was_sent(both):
    number = new_number()
    (identifier,) = made(both, number)

    response = both.post(
        "/fhir/Patient", patient(number, gender="male"), headers={"If-None-Exist": f"identifier={number}"}
    )

    assert response.status_code == 200
    assert response.headers["Location"] == f"{FHIR}/Patient/{identifier}/_history/1"
    assert response.headers["ETag"] == 'W/"1"'
    assert "gender" not in response.json
    assert count(both, number) == 1


def test_conditional_create_with_several_matches_is_412(both):
    number = new_number()
    made(both, number, times=2)

    response = both.post("/fhir/Patient", patient(number), headers={"If-None-Exist": f"identifier={number}"})

    assert response.status_code == 412
    assert count(both, number) == 2


def test_of_conditional_creates_at_the_same_time_one_creates(both):
    number = new_number()
    headers = {"If-None-Exist": f"identifier={number}"}

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: both.post("/fhir/Patient", patient(number), headers=headers), range(8)))

    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert len({answer.json["id"] for answer in answers}) == 1
    assert count(both, number) == 1


@pytest.mark.parametrize(
    "criteria", ["", "shoe-size=44", "identifier", "identifier=", "_count=1", "Observation?identifier=1", "_sort=_id"]
)
def test_criteria_that_do_not_select_are_400_and_nothing_is_created(both, criteria):
    before = both.get("/fhir/Patient?_summary=count").json["total"]

    response = both.post(
        "/fhir/Patient",
        patient(new_number()),
        headers={"If-None-Exist": criteria, "Prefer": "handling=lenient"},
    )

    assert response.status_code == 400
    assert both.get("/fhir/Patient?_summary=count").json["total"] == before


def test_criteria_may_name_the_type(both):
    number = new_number()
    made(both, number)

    response = both.post("/fhir/Patient", patient(number), headers={"If-None-Exist": f"Patient?identifier={number}"})

    assert response.status_code == 200


# ---- 3.1.0.4.3 conditional update: no match, one, several; with and without an id


def test_conditional_update_without_a_match_creates(both):
    number = new_number()

    response = both.put(f"/fhir/Patient?identifier={number}", patient(number))

    assert response.status_code == 201
    assert response.headers["Location"].startswith(f"{FHIR}/Patient/")
    assert count(both, number) == 1


def test_conditional_update_without_a_match_but_an_id_is_an_update_that_creates(both):
    number = new_number()

    response = both.put(f"/fhir/Patient?identifier={number}", patient(number, id=f"mine-{number}"))

    assert response.status_code == 405  # this server chooses ids
    assert count(both, number) == 0


@pytest.mark.parametrize("names_its_id", [False, True])
def test_conditional_update_with_a_match_updates_it(both, names_its_id):
    number = new_number()
    (identifier,) = made(both, number)
    sent = patient(number, gender="female", **({"id": identifier} if names_its_id else {}))

    response = both.put(f"/fhir/Patient?identifier={number}", sent)

    assert (response.status_code, response.headers["ETag"]) == (200, 'W/"2"')
    assert both.get(f"/fhir/Patient/{identifier}").json["gender"] == "female"


def test_conditional_update_with_a_match_of_another_id_is_400(both):
    number = new_number()
    (identifier,) = made(both, number)

    response = both.put(f"/fhir/Patient?identifier={number}", patient(number, id="another"))

    assert response.status_code == 400
    assert both.get(f"/fhir/Patient/{identifier}").headers["ETag"] == 'W/"1"'


def test_conditional_update_with_several_matches_is_412(both):
    number = new_number()
    made(both, number, times=2)

    response = both.put(f"/fhir/Patient?identifier={number}", patient(number))

    assert response.status_code == 412


def test_conditional_update_obeys_if_match(both):
    number = new_number()
    made(both, number)
    address = f"/fhir/Patient?identifier={number}"

    assert both.put(address, patient(number), headers={"If-Match": 'W/"7"'}).status_code == 412
    assert both.put(address, patient(number), headers={"If-Match": 'W/"1"'}).status_code == 200


# ---- 3.1.0.7.1 conditional delete: no match, one, several


def test_conditional_delete_with_one_match_or_none_is_204(both):
    number = new_number()
    (identifier,) = made(both, number)
    address = f"/fhir/Patient?identifier={number}"

    assert both.delete(address).status_code == 204
    assert both.get(f"/fhir/Patient/{identifier}").status_code == 410
    assert both.delete(address).status_code == 204


def test_conditional_delete_with_several_matches_is_412_and_deletes_none(both):
    number = new_number()
    made(both, number, times=2)

    response = both.delete(f"/fhir/Patient?identifier={number}")

    assert response.status_code == 412
    assert count(both, number) == 2


@pytest.mark.parametrize("address", ["/fhir/Patient", "/fhir/Patient?_format=json", "/fhir/Patient?unknown=1"])
def test_a_delete_without_criteria_that_select_is_400(both, address):
    assert both.delete(address).status_code == 400


# ---- 3.1.0.7 delete


def test_what_was_never_there_is_deleted_as_well(both):
    response = both.delete("/fhir/Patient/never", headers={"Prefer": "return=OperationOutcome"})

    assert response.status_code == 200
    assert response.json["issue"][0]["severity"] == "information"
    assert both.delete("/fhir/Patient/never").status_code == 204
    assert both.get("/fhir/Patient/never").status_code == 404


def test_a_guessed_delete_is_on_record_as_refused(doors: Doors, both: Caller):
    both.delete("/fhir/Patient/guessed")

    events = doors.caller(Right.AUDIT, name="auditor").get("/fhir/AuditEvent?entity=Patient/guessed&action=D").json
    assert [entry["resource"]["outcome"] for entry in events["entry"]] == ["4"]


# ---- 3.1.0.4 update: If-None-Match, ids


def test_an_update_that_must_not_replace_is_412_where_something_is(both):
    (identifier,) = made(both, new_number())
    resource = both.get(f"/fhir/Patient/{identifier}").json

    response = both.put(f"/fhir/Patient/{identifier}", resource, headers={"If-None-Match": "*"})

    assert response.status_code == 412
    assert both.put(f"/fhir/Patient/{identifier}", resource, headers={"If-None-Match": 'W/"1"'}).status_code == 400
    assert both.get(f"/fhir/Patient/{identifier}").headers["ETag"] == 'W/"1"'


def test_where_clients_may_choose_ids_an_update_creates(db):
    with opened(db, fhir__ids="clients") as doors:
        both = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="both")
        statement = doors.stranger.get("/fhir/metadata").json
        rows = {row["type"]: row for row in statement["rest"][0]["resource"]}

        first = both.put("/fhir/Patient/mine", patient("1", id="mine"))
        again = both.put("/fhir/Patient/mine", patient("1", id="mine"), headers={"If-None-Match": "*"})
        both.delete("/fhir/Patient/mine")
        back = both.put("/fhir/Patient/mine", patient("1", id="mine"))
        reserved = both.put("/fhir/Endpoint/dicomweb", {**ENDPOINT, "id": "dicomweb"})

        assert rows["Patient"]["updateCreate"] is True
        assert (first.status_code, first.headers["Location"]) == (201, f"{FHIR}/Patient/mine/_history/1")
        assert again.status_code == 412
        assert (back.status_code, back.headers["ETag"]) == (201, 'W/"3"')
        assert (reserved.status_code, code(reserved)) == (409, "conflict")


ENDPOINT = {
    "resourceType": "Endpoint",
    "status": "active",
    "connectionType": {"code": "dicom-wado-rs"},
    "payloadType": [{"text": "DICOM"}],
    "address": "http://elsewhere.test",
}


# ---- nothing beyond the reach of who asks is learned


def test_criteria_find_only_what_may_be_read(doors: Doors):
    number = new_number()
    doors.server.own.create(patient(number))
    sender = doors.caller(Right.REGISTER_IMAGES, name="sender only")

    answers = [
        sender.post("/fhir/Patient", patient(number), headers={"If-None-Exist": f"identifier={each}"}).status_code
        for each in (number, new_number())
    ]

    assert answers == [403, 403]
