"""PATCH at the FHIR door. Expected values: FHIR R4 http 3.1.0.6, fhirpatch, RFC 5789, RFC 6902."""

from collections.abc import Iterator
from functools import reduce
from typing import Any
from uuid import uuid4

import orjson
import pytest
from pymongo.database import Database

from fhir_server.access.contracts import Right
from tests.support.doors import FHIR, Caller, Doors, new_study, opened
from tests.unit.test_fhirpath_patch import add, delete, replace

DEEP: dict[str, Any] = reduce(lambda inner, _: {"x": inner}, range(40), {})
JSON_PATCH = {"Content-Type": "application/json-patch+json"}
DIV = '<div xmlns="http://www.w3.org/1999/xhtml">a man</div>'


@pytest.fixture(scope="module")
def doors(module_db: Database[dict[str, Any]]) -> Iterator[Doors]:
    with opened(module_db) as made:
        yield made


def made(both: Caller, **content: Any) -> str:
    """Create a Patient and return its address."""
    created = both.post("/fhir/Patient", {"resourceType": "Patient", "gender": "male", **content})
    assert created.status_code == 201, created.text
    return f"/fhir/Patient/{created.json['id']}"


def json_patch(caller: Caller, path: str, *operations: dict[str, Any], **headers: str) -> Any:
    return caller.call("PATCH", path, data=orjson.dumps(operations), headers={**JSON_PATCH, **headers})


def fhirpath_patch(caller: Caller, path: str, *operations: dict[str, Any], **headers: str) -> Any:
    return caller.patch(path, {"resourceType": "Parameters", "parameter": list(operations)}, headers=headers)


def op(kind: str, path: str, **more: Any) -> dict[str, Any]:
    return {"op": kind, "path": path, **more}


def test_a_json_patch_makes_the_next_version(both):
    address = made(both)

    response = json_patch(both, address, op("test", "/gender", value="male"), op("replace", "/gender", value="other"))

    assert (response.status_code, response.headers["ETag"]) == (200, 'W/"2"')
    assert response.headers["Location"] == f"{FHIR}{address.removeprefix('/fhir')}/_history/2"
    assert response.json["gender"] == both.get(address).json["gender"] == "other"
    entry = both.get(f"{address}/_history").json["entry"][0]
    assert entry["request"] == {"method": "PATCH", "url": address.removeprefix("/fhir/")}
    assert entry["response"]["status"] == "200"


def test_a_fhirpath_patch_makes_the_next_version(both):
    address = made(both)

    response = fhirpath_patch(both, address, replace("Patient.gender", valueCode="female"))

    assert (response.status_code, response.json["gender"]) == (200, "female")


def test_a_json_patch_is_recognised_under_the_name_of_json_as_well(both):
    address = made(both)

    response = both.patch(address, [op("remove", "/gender")], headers={"Content-Type": "application/json"})

    assert response.status_code == 200
    assert "gender" not in response.json


def test_prefer_says_what_comes_back(both):
    address = made(both)

    assert json_patch(both, address, Prefer="return=minimal").data == b""
    assert json_patch(both, address, Prefer="return=OperationOutcome").json["resourceType"] == "OperationOutcome"


# ---- concurrency


def test_a_patch_obeys_if_match(both):
    address = made(both)

    assert json_patch(both, address, op("remove", "/gender"), **{"If-Match": 'W/"2"'}).status_code == 412
    assert json_patch(both, address, op("remove", "/gender"), **{"If-Match": 'W/"1"'}).status_code == 200


def test_what_was_never_there_is_404_and_what_was_deleted_is_410(both):
    address = made(both)
    both.delete(address)

    assert json_patch(both, "/fhir/Patient/never", op("remove", "/gender")).status_code == 404
    assert json_patch(both, address, op("remove", "/gender")).status_code == 410


# ---- conditional patch


def test_a_conditional_patch_wants_one_match(both):
    number = uuid4().hex
    address = made(both, identifier=[{"value": number}])
    where = f"/fhir/Patient?identifier={number}"

    one = json_patch(both, where, op("replace", "/gender", value="other"))
    none = json_patch(both, f"{where}x", op("replace", "/gender", value="other"))
    made(both, identifier=[{"value": number}])
    several = json_patch(both, where, op("replace", "/gender", value="female"))

    assert [one.status_code, none.status_code, several.status_code] == [200, 404, 412]
    assert both.get(address).json["gender"] == "other"
    assert json_patch(both, "/fhir/Patient", op("remove", "/gender")).status_code == 400


# ---- what cannot be done


@pytest.mark.parametrize(
    ("operations", "status"),
    [
        ([op("test", "/gender", value="female")], 409),
        ([op("remove", "/birthDate")], 409),
        ([op("explode", "/gender")], 400),
        ([op("replace", "/gender", value="sometimes")], 422),
        ([op("add", "/shoeSize", value=44)], 422),
        ([op("replace", "/id", value="other")], 422),
        ([op("replace", "/resourceType", value="Practitioner")], 422),
        ([op("remove", "")], 409),
        ([op("replace", "", value=[])], 422),
        ([op("add", "/extension", value=[]), *[op("copy", "/extension/-", **{"from": ""})] * 40], 413),
        ([op("add", "/extension", value=DEEP), op("add", "/extension" + "/x" * 40, value=DEEP)], 400),
    ],
)
def test_a_patch_that_cannot_be_done_changes_nothing(both, operations, status):
    address = made(both)

    response = json_patch(both, address, *operations)

    assert response.status_code == status, response.text
    assert response.json["resourceType"] == "OperationOutcome"
    assert both.get(address).headers["ETag"] == 'W/"1"'


def test_a_result_that_is_not_valid_names_its_elements(both):
    address = made(both)

    response = fhirpath_patch(both, address, add("Patient", "birthDate", valueDate="yesterday"))

    assert response.status_code == 422
    assert response.json["issue"][0]["expression"] == ["Patient.birthDate"]


@pytest.mark.parametrize("kind", ["application/xml-patch+xml", "text/plain", "application/merge-patch+json"])
def test_another_form_of_patch_is_415(both, kind):
    response = both.call("PATCH", made(both), data=b"[]", headers={"Content-Type": kind})

    assert response.status_code == 415
    assert "application/json-patch+json" in response.headers["Accept-Patch"]


def test_the_versions_meta_is_the_servers(both):
    address = made(both)

    json_patch(both, address, op("replace", "/meta/versionId", value="9"), op("replace", "/gender", value="other"))

    assert both.get(address).json["meta"]["versionId"] == "2"


# ---- narrative


def test_a_narrative_of_what_is_different_now_is_dropped(both):
    address = made(both, text={"status": "generated", "div": DIV})

    response = json_patch(both, address, op("replace", "/gender", value="female"))

    assert "text" not in response.json


def test_a_narrative_stays_where_nothing_that_it_tells_is_changed_and_where_it_is_changed_too(both):
    address = made(both, text={"status": "generated", "div": DIV})

    tagged = json_patch(both, address, op("add", "/meta/tag", value=[{"code": "x"}]))
    both_changed = json_patch(
        both,
        address,
        op("replace", "/gender", value="female"),
        op("replace", "/text/div", value=DIV.replace("man", "woman")),
    )

    assert tagged.json["text"]["div"] == DIV
    assert "woman" in both_changed.json["text"]["div"]


def test_a_narrative_that_says_more_than_the_data_is_not_dropped_in_silence(both):
    address = made(both, text={"status": "additional", "div": DIV})

    response = json_patch(both, address, op("replace", "/gender", value="female"))

    assert response.status_code == 422
    assert both.get(address).headers["ETag"] == 'W/"1"'


# ---- whose element it is


def test_what_comes_from_the_images_cannot_be_patched(doors: Doors, both):
    study_uid, files = new_study()
    doors.ingest(*files)
    address = f"/fhir/ImagingStudy/{study_uid}"
    study = both.get(address).json

    refused = fhirpath_patch(both, address, delete("ImagingStudy.series[0].uid"))
    described = json_patch(both, address, op("add", "/description", value="other"))
    noted = fhirpath_patch(both, address, add("ImagingStudy", "note", valueAnnotation={"text": "seen"}))
    device = json_patch(
        both, f"/fhir/{study['series'][0]['performer'][0]['actor']['reference']}", op("remove", "/version")
    )

    assert refused.status_code == 422  # a series has a uid
    assert (described.status_code, noted.status_code, device.status_code) == (409, 200, 409)
    assert "ImagingStudy.description" in described.json["issue"][0]["diagnostics"]
    assert both.get(address).json["note"] == [{"text": "seen"}]


def test_who_may_not_read_may_not_patch(doors: Doors, both):
    address = made(both)
    sender = doors.caller(Right.REGISTER_IMAGES, name="sender")

    assert json_patch(sender, address).status_code == 403


def test_a_patch_is_on_record(doors: Doors, both):
    address = made(both)
    json_patch(both, address, op("remove", "/gender"))

    auditor = doors.caller(Right.AUDIT, name="auditor")
    events = auditor.get(f"/fhir/AuditEvent?entity={address.removeprefix('/fhir/')}&subtype=patch").json["entry"]
    assert [event["resource"]["action"] for event in events] == ["U"]
