"""Exports in bulk, over the doors. Expected values: Bulk Data Access 2.0.0 (kick-off, status, manifest, files)."""

import gzip
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from uuid import uuid4

import orjson
import pytest
from pymongo.database import Database

from fhir_server.access.contracts import Right
from fhir_server.access.grants import Grant
from fhir_server.access.scopes import Scopes
from fhir_server.model import task as tasks
from fhir_server.model.resources import RESOURCES
from fhir_server.model.task import Role
from fhir_server.store import exports
from fhir_server.work import exporting
from fhir_server.work.kinds import handlers
from imaging.errors import AppError
from tests.support.doors import BASE_URL, FHIR, Caller, Doors, new_study, opened
from tests.support.exporting import LATER, LENIENT, Exported, exported, fetched, kicked_off, parameters, work

Json = dict[str, Any]
CODE = {"text": "x"}


@pytest.fixture(scope="module")
def doors(module_db: Database[Json]) -> Iterator[Doors]:
    with opened(module_db, bulk__settle_s="0", bulk__exports="1000", fhir__ids="clients") as made:
        yield made


@pytest.fixture(scope="module")
def both(doors: Doors) -> Caller:
    return doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="both")


def put(caller: Caller, kind: str, id: str, **content: Any) -> Json:
    response = caller.put(f"/fhir/{kind}/{id}", {"resourceType": kind, "id": id, **content})
    assert response.status_code in (200, 201), response.text
    return response.json


def observation(caller: Caller, id: str, patient: str, **content: Any) -> Json:
    subject = {"reference": f"Patient/{patient}"}
    return put(caller, "Observation", id, **{"status": "final", "code": CODE, "subject": subject, **content})


def group(caller: Caller, id: str, *members: Json, **content: Any) -> Json:
    return put(caller, "Group", id, **{"type": "person", "actual": True, "member": list(members), **content})


def member(reference: str, **content: Any) -> Json:
    return {"entity": {"reference": reference}, **content}


@pytest.fixture(scope="module")
def ward(both: Caller) -> str:
    """A prefix of ids: patients 1 to 3 with an Observation each, and what explains these."""
    name = f"w{uuid4().hex[:8]}"
    put(both, "Practitioner", f"{name}-doctor", active=True)
    put(both, "Practitioner", f"{name}-stranger", active=True)
    for number in "123":
        put(both, "Patient", f"{name}-{number}", gender="other", birthDate="1970-01-01", active=True)
        doctor = {"reference": f"Practitioner/{name}-doctor"}
        observation(both, f"{name}-o{number}", f"{name}-{number}", performer=[doctor])
    group(both, f"{name}-g", member(f"Patient/{name}-1"), member(f"Patient/{name}-2", inactive=True))
    return name


def mine(found: Exported, ward: str, kind: str) -> list[str]:
    """The ids of a ward without its prefix."""
    return [id.removeprefix(f"{ward}-") for id in found.ids(kind) if id.startswith(ward)]


# ---- kick-off


@pytest.mark.parametrize("path", ["/fhir/$export", "/fhir/Patient/$export", "/fhir/Group/{ward}-g/$export"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_export_is_accepted_and_says_where_its_status_is(both, ward, path, method):
    body = {"resourceType": "Parameters"} if method == "POST" else None

    response = both.call(method, path.format(ward=ward), json=body, headers=LATER)

    assert (response.status_code, response.data) == (202, b"")
    assert response.headers["Content-Location"].startswith(f"{FHIR}/_async/")


def test_an_export_is_never_done_while_the_client_waits(both):
    response = both.get("/fhir/$export")

    assert (response.status_code, response.mimetype) == (400, "application/fhir+json")
    assert "respond-async" in response.json["issue"][0]["diagnostics"]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("_outputFormat=text/csv", 501),
        ("_until=2026-01-01T00:00:00Z", 400),
        ("_since=2026-01-01", 400),
        ("_since=yesterday", 400),
        ("_since=2026-01-01T00:00:00Z&_since=2026-01-02T00:00:00Z", 400),
        ("_type=Patient,Spaceship", 400),
        ("_type=Binary", 501),
        ("_type=", 400),
        ("_typeFilter=Patient", 400),
        ("_typeFilter=Patient?nonsense=1", 400),
        ("_typeFilter=Patient?gender=male%26_sort=gender", 400),
        ("_typeFilter=Patient?gender=male%26_include=Patient:link", 400),
        ("_type=Observation&_typeFilter=Patient?gender=male", 400),
        ("_elements=Patient.nonsense", 400),
        ("_elements=Patient.name.family", 400),
        ("includeAssociatedData=Everything", 501),
        ("patient=Patient/1", 400),
    ],
)
def test_what_is_wrong_or_not_supported_is_refused(both, query, status):
    response = both.get(f"/fhir/$export?{query}", headers=LATER)

    assert (response.status_code, response.mimetype) == (status, "application/fhir+json")
    assert response.json["resourceType"] == "OperationOutcome"


@pytest.mark.parametrize("path", ["$export", "Patient/$export", "Group/{ward}-g/$export"])
@pytest.mark.parametrize(
    "format", ["application/fhir%2Bndjson", "application/fhir+ndjson", "application/ndjson", "ndjson"]
)
def test_every_name_of_the_format_is_taken(both, ward, path, format):
    response = both.get(f"/fhir/{path.format(ward=ward)}?_outputFormat={format}", headers=LATER)

    assert response.status_code == 202


@pytest.mark.parametrize("query", ["_type=Endpoint", "_type=Practitioner,Organization", "_type=ValueSet"])
def test_patients_are_not_exported_without_what_belongs_to_them(both, query):
    assert both.get(f"/fhir/Patient/$export?{query}", headers=LATER).status_code == 400


def test_a_body_has_to_be_parameters(both):
    assert both.post("/fhir/$export", {"resourceType": "Patient"}, headers=LATER).status_code == 400
    assert (
        both.post("/fhir/$export", {"resourceType": "Parameters", "parameter": [1]}, headers=LATER).status_code == 400
    )


def test_who_may_read_nothing_exports_nothing(doors: Doors):
    sender = doors.caller(Right.REGISTER_IMAGES, name="sender")

    assert sender.get("/fhir/$export", headers=LATER).status_code == 403
    assert sender.get("/fhir/$export?_type=Patient", headers=LATER).status_code == 403
    assert doors.stranger.get("/fhir/$export", headers=LATER).status_code == 401


def test_types_that_may_not_be_read_are_refused_by_name_and_left_out_otherwise(doors: Doors, both):
    assert both.get("/fhir/$export?_type=Patient,AuditEvent", headers=LATER).status_code == 403

    found = exported(doors, both, "/fhir/$export?_type=Patient,AuditEvent", headers=LENIENT)
    auditor = doors.caller(Right.AUDIT, name="auditor")
    seen = exported(doors, auditor, "/fhir/$export")

    assert found.types == {"Patient"}
    assert "AuditEvent" in found.errors[0]
    assert "AuditEvent" in seen.types
    assert not seen.types & {"Patient", "Observation"}


def test_lenient_handling_leaves_out_what_is_wrong_and_tells(doors: Doors, both, ward):
    query = "_type=Patient,Spaceship&_until=2026-01-01T00:00:00Z&_elements=nonsense&includeAssociatedData=Everything"

    found = exported(doors, both, f"/fhir/$export?{query}", headers=LENIENT)

    assert found.types == {"Patient"}
    assert mine(found, ward, "Patient") == ["1", "2", "3"]
    assert [each.split("(")[0].strip() for each in found.errors if "Spaceship" in each]
    assert len(found.errors) == 4
    assert "tag" not in found.of("Patient")[0]["meta"]


def test_a_subscriber_has_so_many_exports_at_a_time(db):
    with opened(db, bulk__settle_s="0", bulk__exports="1") as doors:
        one, other = (doors.caller(Right.RECEIVE_IMAGES, name=name) for name in ("one", "other"))
        address = kicked_off(one, "/fhir/$export")

        refused = one.get("/fhir/$export", headers=LATER)
        independent = other.get("/fhir/$export", headers=LATER)
        one.delete(address)
        again = one.get("/fhir/$export", headers=LATER)

    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "60")
    assert refused.json["issue"][0]["code"] == "transient"
    assert (independent.status_code, again.status_code) == (202, 202)


def test_clients_do_not_place_such_tasks_themselves(doors: Doors):
    caller = doors.caller(*Right, name="everything")
    code = {"coding": [{"system": "urn:fhir-imaging:code:task", "code": "export"}]}
    order = {"resourceType": "Task", "status": "requested", "intent": "order", "code": code}

    assert caller.post("/fhir/Task", order).status_code == 403


# ---- status


def test_the_status_tells_progress_and_when_to_ask_again(doors: Doors, both):
    address = kicked_off(both, "/fhir/$export")

    response = both.get(address)

    assert (response.status_code, response.headers["Retry-After"]) == (202, "2")
    assert response.headers["X-Progress"] == "requested"


def test_who_asks_too_often_is_told_to_wait(doors: Doors, both):
    address = kicked_off(both, "/fhir/$export")

    codes = [both.get(address).status_code for _ in range(11)]
    refused = both.get(address)
    doors.clock.forward(seconds=11)

    assert codes == [202] * 10 + [429]
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "10")
    assert both.get(address).status_code == 202


def test_the_manifest_is_complete(doors: Doors, both, ward):
    path = f"/fhir/Patient/$export?_type=Patient,Observation&_typeFilter=Patient%3F_id={ward}-1"
    address = kicked_off(both, path)
    before = doors.clock.now
    work(doors, address)

    response = both.get(address, headers={"Accept": "application/json"})

    manifest = response.json
    assert (response.status_code, response.mimetype) == (200, "application/json")
    assert manifest["request"] == f"{BASE_URL}{path}"
    assert manifest["requiresAccessToken"] is True
    assert datetime.fromisoformat(manifest["transactionTime"]) == before.replace(
        microsecond=before.microsecond // 1000 * 1000
    )
    assert {each["type"] for each in manifest["output"]} == {"Patient", "Observation"}
    assert all(each["url"].startswith(f"{FHIR}/_async/") for each in manifest["output"])
    assert (manifest["error"], manifest["deleted"]) == ([], [])
    assert parsedate_to_datetime(response.headers["Expires"]) > datetime.now(UTC)


def test_of_a_post_the_manifest_names_the_address(doors: Doors, both, ward):
    found = exported(doors, both, "/fhir/Patient/$export", parameters(_type="Patient", patient=f"Patient/{ward}-1"))

    assert found.manifest["request"] == f"{FHIR}/Patient/$export"


def test_an_empty_export_has_no_files(doors: Doors, both):
    found = exported(doors, both, "/fhir/$export?_type=Basic")

    assert (found.manifest["output"], found.manifest["error"]) == ([], [])


def test_an_export_that_failed_says_so(doors: Doors, both, ward):
    group(both, f"{ward}-gone", member(f"Patient/{ward}-1"))
    address = kicked_off(both, f"/fhir/Group/{ward}-gone/$export")
    both.delete(f"/fhir/Group/{ward}-gone")
    doors.clock.forward(seconds=1)
    order = doors.server.own.read("Task", address.rpartition("/")[2]).json()

    with pytest.raises(AppError, match="group is not there") as raised:
        handlers.get("export").run(order, doors.server, lambda _: None)
    doors.server.own.update(tasks.fail(order, str(raised.value), Role.SERVER, doors.clock.now))

    response = both.get(address)
    assert (response.status_code, response.mimetype) == (500, "application/fhir+json")
    assert response.json["resourceType"] == "OperationOutcome"
    assert "group is not there" in response.json["issue"][0]["diagnostics"]


def test_nobody_else_learns_of_an_export(doors: Doors, both, ward):
    found = exported(doors, both, "/fhir/$export?_type=Patient")
    file = found.manifest["output"][0]["url"].removeprefix(BASE_URL)
    other = doors.caller(*Right, name="another")

    assert [other.get(path).status_code for path in (found.address, file)] == [404, 404]
    assert [doors.stranger.get(path).status_code for path in (found.address, file)] == [401, 401]
    assert other.delete(found.address).status_code == 404
    assert both.get(file).status_code == 200


# ---- giving up, and the end


def test_an_export_that_is_given_up_leaves_nothing(doors: Doors, both):
    address = kicked_off(both, "/fhir/$export?_type=Patient")

    response = both.delete(address)

    after = both.get(address)
    assert response.status_code == 202
    assert (after.status_code, after.json["resourceType"]) == (404, "OperationOutcome")
    assert both.delete(address).status_code == 404
    assert doors.server.own.read("Task", address.rpartition("/")[2]).json()["status"] == "cancelled"


def test_files_go_with_an_export_that_is_deleted(doors: Doors, both, ward):
    found = exported(doors, both, "/fhir/$export?_type=Patient")
    file = found.manifest["output"][0]["url"].removeprefix(BASE_URL)

    both.delete(found.address)

    assert [both.get(path).status_code for path in (found.address, file)] == [404, 404]
    assert doors.server.exports.files(found.address.rpartition("/")[2]) == ()


def test_files_are_swept_up_a_day_later_but_not_while_somebody_fetches_them(db):
    with opened(db, bulk__settle_s="0") as doors:
        client = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="both")
        client.post("/fhir/Patient", {"resourceType": "Patient"})
        found = exported(doors, client, "/fhir/$export?_type=Patient")
        id, server = found.address.rpartition("/")[2], doors.server
        assert server.exports.sweep(server.answers.is_kept) == 0
        server.answers.forget(id)  # as the database does after a day

        being_read = server.exports.sweep(server.answers.is_kept)
        doors.clock.forward(minutes=61)
        later = server.exports.sweep(server.answers.is_kept)

        assert (being_read, later) == (0, 1)
        assert server.exports.files(id) == ()
        assert server.database["exports"].count_documents({}) == 0


def test_the_day_begins_when_the_export_is_complete(doors: Doors, both):
    address = kicked_off(both, "/fhir/$export?_type=Patient")
    doors.clock.forward(hours=30)
    work(doors, address)

    expires = parsedate_to_datetime(both.get(address).headers["Expires"])

    assert 86_390 < (expires - doors.clock.now).total_seconds() <= 86_400


# ---- files


def test_lines_are_the_stored_bytes(doors: Doors, both):
    decimal = (
        b'{"resourceType":"Observation","status":"final","code":{"text":"d\xc3\xa9"},"valueQuantity":{"value":1.50}}'
    )
    made = both.call("POST", "/fhir/Observation", data=decimal, headers={"Content-Type": "application/fhir+json"})
    found = kicked_off(both, f"/fhir/$export?_typeFilter=Observation%3F_id={made.json['id']}&_type=Observation")
    work(doors, found)
    (file,) = both.get(found).json["output"]

    sent = both.get(file["url"].removeprefix(BASE_URL))

    assert sent.data == both.get(f"/fhir/Observation/{made.json['id']}").data + b"\n"
    assert b"1.50" in sent.data


def test_files_are_ndjson_compressed_for_who_takes_that(doors: Doors, both, ward):
    found = exported(doors, both, "/fhir/$export?_type=Patient")
    path = found.manifest["output"][0]["url"].removeprefix(BASE_URL)

    plain = both.get(path, headers={"Accept": "application/fhir+ndjson"})
    packed = both.get(path, headers={"Accept-Encoding": "gzip"})

    assert plain.mimetype == packed.mimetype == "application/fhir+ndjson"
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.data) == plain.data
    assert len(plain.data) == int(plain.headers["Content-Length"])
    assert plain.data.endswith(b"}\n")
    assert "Accept-Encoding" in plain.headers["Vary"]


def test_files_that_are_not_there(both, doors, ward):
    address = exported(doors, both, "/fhir/$export?_type=Patient").address

    for name in ("2.Patient.ndjson", "1.Observation.ndjson", "1", "x.ndjson", "1.Patient.ndjson.gz"):
        assert both.get(f"{address}/{name}").status_code == 404


def test_files_of_an_export_that_is_not_complete_are_not_there(doors: Doors, both, ward, monkeypatch):
    monkeypatch.setattr("fhir_server.work.kinds.export.TURN_S", 0.0)
    address = kicked_off(both, "/fhir/$export?_type=Observation,Patient")
    order = doors.server.own.read("Task", address.rpartition("/")[2]).json()

    handlers.get("export").run(order, doors.server, lambda _: None)

    assert doors.server.exports.files(order["id"])
    assert both.get(f"{address}/1.Observation.ndjson").status_code == 404
    assert both.get(address).status_code == 202


def test_files_have_one_type_and_a_size(db, monkeypatch):
    monkeypatch.setattr(exporting, "PAGE_LINES", 3)
    with opened(db, bulk__settle_s="0", bulk__file_bytes="1024") as doors:
        client = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="both")
        for _ in range(12):
            client.post("/fhir/Patient", {"resourceType": "Patient"})
            client.post("/fhir/Basic", {"resourceType": "Basic", "code": CODE})

        found = exported(doors, client, "/fhir/$export?_type=Patient,Basic")

        sizes = [each.bytes for each in doors.server.exports.files(found.address.rpartition("/")[2])]
        assert max(sizes) <= 1024
        assert len(found.manifest["output"]) > 2
        assert {each["resourceType"] for each in found.of("Patient")} == {"Patient"}
        assert len(found.ids("Patient")) == len(set(found.ids("Patient"))) == 12
        assert len(set(found.ids("Basic"))) == 12


def test_an_export_of_too_many_files_fails(db, monkeypatch):
    monkeypatch.setattr(exporting, "PAGE_LINES", 1)
    with opened(db, bulk__settle_s="0", bulk__file_bytes="1024", bulk__files="1") as doors:
        client = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="both")
        for _ in range(12):
            client.post("/fhir/Patient", {"resourceType": "Patient"})

        with pytest.raises(AppError, match="more than 1 files"):
            work(doors, kicked_off(client, "/fhir/$export?_type=Patient"))


def test_who_may_not_read_a_type_any_more_cannot_fetch_its_file(doors: Doors):
    caller = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="clinic")
    found = exported(doors, caller, "/fhir/$export?_type=Patient")
    doors.server.principals.add("clinic", [Right.REGISTER_IMAGES])
    doors.clock.forward(seconds=5)

    assert caller.get(found.manifest["output"][0]["url"].removeprefix(BASE_URL)).status_code == 403


def test_the_rights_are_those_at_the_time_of_the_work(doors: Doors, both, ward):
    caller = doors.caller(Right.RECEIVE_IMAGES, Right.AUDIT, name="moved")
    address = kicked_off(caller, "/fhir/$export?_type=Patient,AuditEvent")
    doors.server.principals.add("moved", [Right.AUDIT])
    doors.clock.forward(seconds=5)
    work(doors, address)

    found = fetched(caller, address)

    assert found.types == {"AuditEvent"}
    assert "Patient resources are left out" in found.errors[0]


@pytest.mark.parametrize(
    ("scopes", "patient", "patients", "observations"),
    [
        ("system/*.rs", "", ["1", "2", "3"], ["o1", "o2", "o3"]),
        ("system/Patient.rs", "", ["1", "2", "3"], []),
        ("system/Patient.r", "", None, None),  # one whose id is known, and not all that there are
        ("patient/*.rs", "2", ["2"], ["o2"]),
        ("system/Patient.rs system/Observation.rs?status=amended", "", ["1", "2", "3"], []),
    ],
)
def test_an_export_reaches_no_further_than_the_token(doors: Doors, both, ward, scopes, patient, patients, observations):
    client = doors.server.principals.add("apps", [Right.RECEIVE_IMAGES]).clients[0]
    named = f"Patient/{ward}-{patient}" if patient else ""
    given = Grant(client, Scopes.parse(scopes), doors.clock() + timedelta(minutes=5), patient=named)
    caller = Caller(doors.flask, doors.server.principals.issue(given), doors.clock)

    if patients is None:
        assert caller.get("/fhir/$export", headers=LATER).status_code == 403
        return
    found = exported(doors, caller, "/fhir/$export")

    assert (mine(found, ward, "Patient"), mine(found, ward, "Observation")) == (patients, observations)
    assert both.get(found.address).status_code == 404


# ---- what is exported


def test_repeated_parameters_are_as_if_they_were_joined(doors: Doors, both, ward):
    found = exported(doors, both, "/fhir/$export?_type=Patient&_type=Observation,Practitioner")

    assert found.types == {"Patient", "Observation", "Practitioner"}


def test_since_has_what_was_changed_later_and_what_was_deleted(doors: Doors, both):
    name = f"s{uuid4().hex[:8]}"
    kept, old, gone = (put(both, "Patient", f"{name}-{each}", gender="other") for each in ("kept", "old", "gone"))
    first = exported(doors, both, "/fhir/$export?_type=Patient").manifest["transactionTime"]
    put(both, "Patient", f"{name}-kept", gender="male")
    put(both, "Patient", f"{name}-new", gender="male")
    put(both, "Patient", f"{name}-brief", gender="male")
    for each in ("gone", "brief"):
        both.delete(f"/fhir/Patient/{name}-{each}")

    found = exported(doors, both, f"/fhir/$export?_type=Patient&_since={first}")

    assert mine(found, name, "Patient") == ["kept", "new"]
    assert {each for each in found.deleted if name in each} == {f"Patient/{name}-gone", f"Patient/{name}-brief"}
    assert not found.deleted & {f"Patient/{id}" for id in found.ids("Patient")}
    assert {kept["id"], old["id"], gone["id"]} == {f"{name}-kept", f"{name}-old", f"{name}-gone"}
    bundles = found.lines["deleted", "Bundle"]
    assert {each["type"] for each in bundles} == {"transaction"}
    assert {entry["request"]["method"] for each in bundles for entry in each["entry"]} == {"DELETE"}


@pytest.mark.parametrize("path", ["$export", "Patient/$export", "Group/{ward}-g/$export"])
def test_since_is_taken_at_every_level(doors: Doors, both, ward, path):
    since = exported(doors, both, "/fhir/$export?_type=Basic").manifest["transactionTime"]
    name = f"t{uuid4().hex[:8]}"
    observation(both, name, f"{ward}-1")

    found = exported(doors, both, f"/fhir/{path.format(ward=ward)}?_since={since}&_type=Patient,Observation")

    assert (found.ids("Observation"), found.ids("Patient")) == ([name], [])


def test_without_types_everything_that_may_be_read_is_exported(doors: Doors, both, ward):
    found = exported(doors, both, "/fhir/$export")

    kinds = [kind for kind in RESOURCES if kind not in ("AuditEvent", "Binary")]
    there = {kind: both.get(f"/fhir/{kind}?_summary=count").json["total"] for kind in kinds}
    counts = dict.fromkeys(there, 0) | {each["type"]: each["count"] for each in found.manifest["output"]}
    assert counts == there


def test_what_came_back_after_it_was_deleted_is_not_deleted(doors: Doors, both):
    id = f"s{uuid4().hex[:8]}"
    put(both, "Patient", id)
    since = exported(doors, both, "/fhir/$export?_type=Patient").manifest["transactionTime"]
    both.delete(f"/fhir/Patient/{id}")
    put(both, "Patient", id)

    found = exported(doors, both, f"/fhir/$export?_type=Patient&_since={since}")

    assert (id in found.ids("Patient"), f"Patient/{id}" in found.deleted) == (True, False)


def test_type_filters_are_alternatives_of_their_type(doors: Doors, both, ward):
    name = f"f{uuid4().hex[:8]}"
    for id, status, code in (("1", "final", "a,b"), ("2", "amended", "x"), ("3", "final", "x")):
        observation(both, f"{name}-{id}", f"{ward}-1", status=status, code={"coding": [{"code": code}]})
    one, other = (
        f"Observation?status=final&code=a\\,b&_id={name}-1,{name}-3",
        f"Observation?status=amended&_id={name}-2",
    )
    path = "/fhir/$export?_type=Patient,Observation"

    both_queries = exported(doors, both, path + f"&_typeFilter={quoted(one)},{quoted(other)}")
    repeated = exported(doors, both, path + f"&_typeFilter={quoted(one)}&_typeFilter={quoted(other)}")

    for found in (both_queries, repeated):
        assert mine(found, name, "Observation") == ["1", "2"]
        assert mine(found, ward, "Patient") == ["1", "2", "3"]


def test_type_filters_may_lead_to_other_resources(doors: Doors, both, ward):
    name = f"c{uuid4().hex[:8]}"
    put(both, "Patient", f"{name}-p", active=False)
    observation(both, f"{name}-o", f"{name}-p")

    found = exported(
        doors,
        both,
        f"/fhir/$export?_type=Observation&_typeFilter={quoted(f'Observation?patient.active=false&patient._id={name}-p')}",
    )

    assert found.ids("Observation") == [f"{name}-o"]


def quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


def test_elements_leave_the_rest_out_and_say_so(doors: Doors, both, ward):
    found = exported(
        doors, both, "/fhir/$export?_type=Patient,Observation,Practitioner&_elements=Patient.gender,status"
    )

    patient = next(each for each in found.of("Patient") if each["id"] == f"{ward}-1")
    measured = next(each for each in found.of("Observation") if each["id"] == f"{ward}-o1")
    doctor = next(each for each in found.of("Practitioner") if each["id"] == f"{ward}-doctor")
    assert patient.keys() == {"resourceType", "id", "meta", "gender"}
    assert measured.keys() == {"resourceType", "id", "meta", "status", "code"}  # a code it must have
    assert doctor.keys() == {"resourceType", "id", "meta"}
    assert [each["meta"]["tag"][-1]["code"] for each in (patient, measured, doctor)] == ["SUBSETTED"] * 3


def test_elements_of_one_type_leave_other_types_whole(doors: Doors, both, ward):
    found = exported(doors, both, "/fhir/$export?_type=Patient,Practitioner&_elements=Practitioner.name")

    assert next(each for each in found.of("Patient") if each["id"] == f"{ward}-1")["gender"] == "other"


def test_patients_come_with_what_belongs_to_them_and_what_explains_it(doors: Doors, both, ward):
    found = exported(doors, both, "/fhir/Patient/$export")

    assert mine(found, ward, "Patient") == ["1", "2", "3"]
    assert mine(found, ward, "Observation") == ["o1", "o2", "o3"]
    assert mine(found, ward, "Practitioner") == ["doctor"]
    assert "Contract" not in found.types


def test_images_come_with_where_they_are_and_what_made_them(doors: Doors, both):
    study, files = new_study(PatientID=uuid4().hex)
    doors.ingest(*files, name="both")

    found = exported(
        doors, both, f"/fhir/Patient/$export?_since={quoted(doors.clock.now.isoformat(timespec='seconds'))}"
    )

    shown = next(each for each in found.of("ImagingStudy") if study in str(each["identifier"]))
    explained = {f"{kind}/{id}" for kind in ("Endpoint", "Device", "Patient") for id in found.ids(kind)}
    assert shown["endpoint"][0]["reference"] in explained
    assert shown["subject"]["reference"] in explained
    assert shown["series"][0]["performer"][0]["actor"]["reference"] in explained


def test_named_patients_alone(doors: Doors, both, ward):
    name = f"n{uuid4().hex[:8]}"
    put(both, "Patient", f"{name}-4")
    people = [{"actor": {"reference": f"Patient/{each}"}, "status": "accepted"} for each in (f"{ward}-1", f"{name}-4")]
    put(both, "Appointment", f"{name}-with-others", status="proposed", participant=people)
    put(both, "Appointment", f"{name}-alone", status="proposed", participant=people[:1])
    asked = parameters(patient=[f"Patient/{ward}-1", f"{FHIR}/Patient/{ward}-2"])

    found = exported(doors, both, "/fhir/Patient/$export", asked)

    assert found.ids("Patient") == [f"{ward}-1", f"{ward}-2"]
    assert mine(found, ward, "Observation") == ["o1", "o2"]
    assert mine(found, name, "Appointment") == ["alone"]


def test_patients_who_are_not_here_are_refused_or_left_out(doors: Doors, both, ward):
    asked = parameters(patient=[f"Patient/{ward}-1", "Patient/unknown", "Practitioner/x"], _type="Patient")

    refused = both.post("/fhir/Patient/$export", asked, headers=LATER)
    found = exported(doors, both, "/fhir/Patient/$export", asked, headers=LENIENT)

    assert (refused.status_code, refused.json["issue"][0]["code"]) == (404, "not-found")
    assert (found.ids("Patient"), len(found.errors)) == ([f"{ward}-1"], 2)
    none = both.post("/fhir/Patient/$export", parameters(patient="Patient/unknown"), headers=LENIENT)
    assert none.status_code == 404


# ---- groups


def test_a_group_has_its_members_of_today(doors: Doors, both, ward):
    past, future = {"end": "2020-01-01"}, {"end": "2999-01-01"}
    group(
        both, f"{ward}-members", member(f"Patient/{ward}-1", period=future), member(f"Patient/{ward}-2", period=past),
        member(f"{FHIR}/Patient/{ward}-3"), member(f"Patient/{ward}-2", inactive=True), member("Practitioner/x"),
    )  # fmt: skip

    found = exported(doors, both, f"/fhir/Group/{ward}-members/$export")

    assert mine(found, ward, "Patient") == ["1", "3"]
    assert mine(found, ward, "Observation") == ["o1", "o3"]


def test_groups_within_a_group_count(doors: Doors, both, ward):
    group(both, f"{ward}-inner", member(f"Patient/{ward}-2"), member(f"Group/{ward}-outer"))
    group(both, f"{ward}-outer", member(f"Patient/{ward}-1"), member(f"Group/{ward}-inner"), member("Group/unknown"))

    found = exported(doors, both, f"/fhir/Group/{ward}-outer/$export?_type=Patient")

    assert found.ids("Patient") == [f"{ward}-1", f"{ward}-2"]


def test_of_a_group_only_members_can_be_named(doors: Doors, both, ward):
    path = f"/fhir/Group/{ward}-g/$export"

    found = exported(doors, both, path, parameters(patient=f"Patient/{ward}-1", _type="Patient"))
    refused = both.post(path, parameters(patient=f"Patient/{ward}-3"), headers=LATER)

    assert found.ids("Patient") == [f"{ward}-1"]
    assert refused.status_code == 404


def test_groups_that_name_no_patients_are_refused(doors: Doors, both, ward):
    some = {"code": CODE, "exclude": False, "valueBoolean": True}
    group(both, f"{ward}-devices", member("Device/x"), type="device")
    put(both, "Group", f"{ward}-idea", type="person", actual=False, characteristic=[some])

    codes = [
        both.get(f"/fhir/Group/{id}/$export", headers=LATER).status_code
        for id in (f"{ward}-devices", f"{ward}-idea", "unknown")
    ]

    assert codes == [501, 501, 404]


# ---- provenance


@pytest.fixture(scope="module")
def told(both: Caller, ward: str) -> str:
    """Provenance of Observation 1 (twice), of Patient 2, of a Practitioner."""
    name = f"v{uuid4().hex[:8]}"
    for id, target, recorded in (
        ("older", f"Observation/{ward}-o1", "2025-01-01T00:00:00+02:00"),
        ("newer", f"Observation/{ward}-o1/_history/1", "2025-01-01T00:00:00Z"),
        ("patient", f"Patient/{ward}-2", "2025-01-01T00:00:00Z"),
        ("stranger", f"Practitioner/{ward}-stranger", "2025-01-01T00:00:00Z"),
    ):
        agent = [{"who": {"display": "x"}}]
        put(both, "Provenance", f"{name}-{id}", target=[{"reference": target}], recorded=recorded, agent=agent)
    return name


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("$export?_type=Observation,Provenance", ["newer", "older", "patient", "stranger"]),
        ("$export?_type=Observation", []),
        ("$export?_type=Observation&includeAssociatedData=RelevantProvenanceResources", ["newer", "older"]),
        ("$export?_type=Observation&includeAssociatedData=LatestProvenanceResources", ["newer"]),
        (
            "$export?_type=Observation&includeAssociatedData=LatestProvenanceResources,RelevantProvenanceResources",
            ["newer", "older"],
        ),
        ("Patient/$export?_type=Patient,Provenance", ["newer", "older", "patient"]),
        ("Patient/$export?_type=Patient&includeAssociatedData=RelevantProvenanceResources", ["patient"]),
        ("Patient/$export", ["newer", "older", "patient"]),
        ("Group/{ward}-g/$export?_type=Observation,Provenance", ["newer", "older"]),
    ],
)
def test_provenance(doors: Doors, both, ward, told, path, expected):
    found = exported(doors, both, f"/fhir/{path.format(ward=ward)}")

    assert mine(found, told, "Provenance") == expected


def test_provenance_of_what_was_changed_comes_however_old_it_is(doors: Doors, both, ward, told):
    since = exported(doors, both, "/fhir/$export?_type=Basic").manifest["transactionTime"]
    put(both, "Patient", f"{ward}-2", gender="other", birthDate="1970-01-02", active=True)

    path = f"/fhir/$export?_type=Patient&_since={since}"
    plain = exported(doors, both, path.replace("=Patient", "=Patient,Provenance"))
    found = exported(doors, both, f"{path}&includeAssociatedData=RelevantProvenanceResources")

    assert mine(plain, told, "Provenance") == []
    assert mine(found, told, "Provenance") == ["patient"]


# ---- attachments


def test_attachments_kept_here_have_absolute_addresses(doors: Doors, both, ward):
    binary = both.post("/fhir/Binary", {"resourceType": "Binary", "contentType": "text/plain", "data": "eA=="}).json
    attachment = {"contentType": "text/plain", "url": f"Binary/{binary['id']}", "title": '"url":"Binary/x"'}
    made = put(
        both, "DocumentReference", f"{ward}-d", status="current", content=[{"attachment": attachment}],
        subject={"reference": f"Patient/{ward}-1"},
    )  # fmt: skip

    found = exported(doors, both, "/fhir/$export?_type=DocumentReference")

    sent = next(each for each in found.of("DocumentReference") if each["id"] == made["id"])["content"][0]["attachment"]
    assert sent == {**attachment, "url": f"{FHIR}/Binary/{binary['id']}"}
    assert both.get(sent["url"].removeprefix(BASE_URL)).status_code == 200
    assert "Binary" not in exported(doors, both, "/fhir/$export").types


# ---- what is said of it


def test_the_statement_names_the_operations(doors: Doors):
    statement = doors.stranger.get("/fhir/metadata").json

    rest = statement["rest"][0]
    told = {
        row["type"]: {each["name"]: each["definition"] for each in row.get("operation", ())} for row in rest["resource"]
    }
    guide = "http://hl7.org/fhir/uv/bulkdata"
    assert f"{guide}/CapabilityStatement/bulk-data" in statement["instantiates"]
    assert {"name": "export", "definition": f"{guide}/OperationDefinition/export"} in rest["operation"]
    assert told["Patient"]["export"] == f"{guide}/OperationDefinition/patient-export"
    assert told["Group"]["export"] == f"{guide}/OperationDefinition/group-export"


def test_who_exported_what_is_on_record(doors: Doors, both, ward):
    found = exported(doors, both, f"/fhir/Group/{ward}-g/$export?_type=Patient")
    order = f"Task/{found.address.rpartition('/')[2]}"
    auditor = doors.caller(Right.AUDIT, name="auditor")

    events = [each["resource"] for each in auditor.get(f"/fhir/AuditEvent?entity={order}&type=110106").json["entry"]]

    named = [[entity["what"].get("reference") for entity in each["entity"]] for each in events]
    assert [order, f"Group/{ward}-g"] in [[each for each in row if each] for row in named]
    files = [
        detail["valueString"] for each in events for entity in each["entity"] for detail in entity.get("detail", ())
    ]
    assert files == ["1.Patient.ndjson"]


def test_a_page_that_is_there_is_not_written_again(doors: Doors):
    page = exports.Page(exports.Part.OUTPUT, "Patient", 1, [b"{}"], exports.Place(1, "x"))
    doors.server.exports.write("some", 0, page)

    with pytest.raises(AppError, match="another writer was first"):
        doors.server.exports.write("some", 0, page)

    assert (
        b"".join(exports.unpacked([doors.server.database["export_pages"].find_one({"export": "some"})["data"]]))
        == b"{}\n"
    )


def test_large_exports_are_read_in_index_order_alone(doors: Doors, both, ward):
    found = exported(doors, both, "/fhir/$export?_type=Patient")
    pages = doors.server.database["export_pages"]
    fields = {"_id": 0, "kind": 1, "type": 1, "file": 1, "count": 1, "bytes": 1}

    plan = orjson.dumps(
        pages.find({"export": found.address.rpartition("/")[2]}, fields).hint("listing").explain(), default=str
    )

    assert b'"totalDocsExamined":0' in plan
