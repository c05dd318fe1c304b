"""What tokens with a grant open, at every door.

Expected values: SMART App Launch 2.2 and SMART Imaging Access 0.1.0.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from pydicom.uid import generate_uid

from fhir_server.access.contracts import Right
from fhir_server.access.grants import Grant, Role
from fhir_server.access.scopes import Scopes
from fhir_server.delivery import value
from fhir_server.model.task import CODES
from fhir_server.work.kinds import respond
from fhir_server.work.orders import CODE, order_of
from fhir_server.work.parties import requester_of
from fhir_server.work.selection import choose
from tests.support.doors import FHIR, Caller, Doors, dicom, new_study, opened

STOW = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=X', "Accept": "application/dicom+json"}
UID, MODALITIES = "0020000D", "00080061"
STUDIES = [
    ("anna-ct", "anna", "CT", "20200101"),
    ("anna-mr", "anna", "MR", "20200102"),
    ("bert-ct", "bert", "CT", "20200103"),
]
EVERY = {name for name, *_ in STUDIES}
WRITES = frozenset(Right) - {Right.AUDIT, Right.RECEIVE_BY_URL}


@dataclass
class Scene:
    """Two patients: Anna with a CT and an MR study, Bert with a CT study."""

    doors: Doors
    client: str
    studies: dict[str, str] = field(default_factory=dict)
    patients: dict[str, str] = field(default_factory=dict)

    def caller(self, scopes: str, patient: str = "", **more) -> Caller:
        given = Grant(self.client, Scopes.parse(scopes), self.doors.clock() + timedelta(minutes=5),
                      patient=self.patients.get(patient, patient), **more)  # fmt: skip
        return Caller(self.doors.flask, self.doors.server.principals.issue(given), self.doors.clock)

    def found(self, caller: Caller, path: str = "/fhir/ImagingStudy") -> set[str]:
        answer = caller.get(path)
        assert answer.status_code == 200, answer.text
        names = {uid: name for name, uid in self.studies.items()}
        return {names.get(each["resource"]["id"], each["fullUrl"].removeprefix(f"{FHIR}/"))
                for each in answer.json.get("entry", [])}  # fmt: skip

    def queried(self, caller: Caller, path: str = "/dicom-web/studies") -> list[str]:
        answer = caller.get(path, headers={"Accept": "application/dicom+json"})
        assert answer.status_code in (200, 204), answer.text
        names = {uid: name for name, uid in self.studies.items()}
        return [names[each[UID]["Value"][0]] for each in answer.json or []]


def stow(caller: Caller, *files: bytes):
    body = b"".join(b"--X\r\nContent-Type: application/dicom\r\n\r\n" + each + b"\r\n" for each in files) + b"--X--\r\n"
    return caller.post("/dicom-web/studies", data=body, headers=STOW)


@pytest.fixture(scope="module")
def scene(module_db) -> Iterator[Scene]:
    with opened(module_db) as doors:
        made = Scene(doors, doors.server.principals.add("apps", WRITES).clients[0])
        for name, patient, modality, date in STUDIES:
            made.studies[name], files = new_study(
                PatientID=patient, PatientName=patient, Modality=modality, StudyDate=date, instances=2
            )
            doors.ingest(*files, name="apps")
            doors.server.studies.project(made.studies[name])
            shown = doors.server.own.read("ImagingStudy", made.studies[name]).json()
            made.patients[patient] = shown["subject"]["reference"]
        yield made


# ---- FHIR and DICOMweb decide alike


@pytest.mark.parametrize(
    ("scopes", "patient", "seen"),
    [
        ("patient/ImagingStudy.rs", "anna", {"anna-ct", "anna-mr"}),
        ("patient/ImagingStudy.read", "bert", {"bert-ct"}),
        ("patient/*.rs", "anna", {"anna-ct", "anna-mr"}),
        ("patient/ImagingStudy.rs?modality=MR", "anna", {"anna-mr"}),
        ("patient/ImagingStudy.rs?modality=MR patient/ImagingStudy.rs?modality=CT", "anna", {"anna-ct", "anna-mr"}),
        ("system/ImagingStudy.rs", "", EVERY),
        ("system/ImagingStudy.rs?modality=CT", "", {"anna-ct", "bert-ct"}),
        ("patient/ImagingStudy.rs?modality=MR system/ImagingStudy.rs?modality=CT", "anna", EVERY),
    ],
)  # fmt: skip
def test_the_same_studies_are_seen_through_fhir_and_through_dicomweb(scene, scopes, patient, seen):
    caller = scene.caller(scopes, patient)

    assert scene.found(caller) == seen
    assert set(scene.queried(caller)) == seen
    for name, uid in scene.studies.items():
        expected = 200 if name in seen else 404
        assert caller.get(f"/fhir/ImagingStudy/{uid}").status_code == expected
        assert caller.get(f"/fhir/ImagingStudy/{uid}/_history").status_code == expected
        for path in ("", "/metadata", "/series", "/thumbnail", "/rendered"):
            accept = {"Accept": "multipart/related; type=application/dicom; transfer-syntax=*"} if not path else {}
            assert caller.get(f"/dicom-web/studies/{uid}{path}", headers=accept).status_code == expected, path


@pytest.mark.parametrize(
    ("scopes", "patient"),
    [("", "anna"), ("openid fhirUser launch/patient", "anna"), ("patient/Patient.rs", "anna"),
     ("patient/ImagingStudy.rs", ""), ("user/ImagingStudy.rs", "anna"), ("patient/ImagingStudy.cud", "anna")],
)  # fmt: skip
def test_scopes_that_do_not_cover_imaging_studies_open_neither_door(scene, scopes, patient):
    caller, uid = scene.caller(scopes, patient), scene.studies["anna-ct"]

    for path in ("/fhir/ImagingStudy", f"/fhir/ImagingStudy/{uid}", "/dicom-web/studies", "/dicom-web/instances",
                 f"/dicom-web/studies/{uid}", f"/dicom-web/studies/{uid}/metadata"):  # fmt: skip
        assert caller.get(path).status_code == 403, path


def test_reading_and_searching_are_permitted_apart(scene):
    reads, searches = (scene.caller(f"patient/ImagingStudy.{each}", "anna") for each in "rs")
    uid = scene.studies["anna-ct"]

    assert reads.get(f"/fhir/ImagingStudy/{uid}").status_code == 200
    assert reads.get(f"/dicom-web/studies/{uid}/metadata").status_code == 200
    assert reads.get("/fhir/ImagingStudy").status_code == 403
    assert reads.get("/fhir/ImagingStudy/_history").status_code == 403
    assert reads.get("/dicom-web/studies").status_code == 403
    assert reads.get(f"/dicom-web/studies/{uid}/series").status_code == 403
    assert searches.get("/fhir/ImagingStudy").status_code == 200
    assert searches.get(f"/dicom-web/studies/{uid}/series").status_code == 200
    assert searches.get(f"/fhir/ImagingStudy/{uid}").status_code == 403
    assert searches.get(f"/dicom-web/studies/{uid}/metadata").status_code == 403


@pytest.mark.parametrize("few", [0, 2_000])
def test_pages_and_counts_tell_of_permitted_studies_only(scene, few, monkeypatch):
    """Where few studies may be seen they are looked for by name, where many are, matches are judged."""
    monkeypatch.setattr("fhir_server.studies.FEW_STUDIES", few)
    caller = scene.caller("patient/ImagingStudy.rs", "anna")

    pages = [scene.queried(caller, f"/dicom-web/studies?limit=1&offset={offset}") for offset in range(3)]
    more = caller.get("/dicom-web/studies?limit=2", headers={"Accept": "application/dicom+json"}).headers.get("Warning")

    assert pages == [["anna-mr"], ["anna-ct"], []]  # newest first; Bert's is the newest of all
    assert more is None
    assert sorted(scene.queried(caller, "/dicom-web/instances")) == ["anna-ct"] * 2 + ["anna-mr"] * 2
    assert scene.queried(caller, "/dicom-web/studies?PatientID=bert") == []
    assert caller.get("/fhir/ImagingStudy?_summary=count").json["total"] == 2


# ---- patients


@pytest.mark.parametrize(
    "path",
    [
        "ImagingStudy?patient={bert}",
        "ImagingStudy?patient=Patient/unknown",
        "ImagingStudy?subject={bert}",
        "ImagingStudy?patient={anna},{bert}",
        "ImagingStudy?patient=http://elsewhere/Patient/1",
        "{bert}/ImagingStudy",
        "Observation?patient={bert}",
    ],
)
def test_a_patient_other_than_that_of_the_token_is_forbidden_and_not_empty(scene, path):
    """SMART Imaging Access, app launch: 403."""
    caller = scene.caller("patient/*.rs", "anna")

    answer = caller.get(f"/fhir/{path.format(**scene.patients)}")

    assert answer.status_code == 403, answer.text
    assert answer.json["issue"][0]["code"] == "forbidden"


def test_the_patient_of_the_token_is_found_by_every_way_of_naming_it(scene):
    caller, anna = scene.caller("patient/ImagingStudy.rs", "anna"), scene.patients["anna"]

    for named in (anna, anna.removeprefix("Patient/"), f"{FHIR}/{anna}"):
        assert scene.found(caller, f"/fhir/ImagingStudy?patient={named}") == {"anna-ct", "anna-mr"}


def test_a_backend_with_scopes_for_one_patient_gets_403_for_others(scene):
    caller = scene.caller(f"system/ImagingStudy.rs?patient={scene.patients['anna']}")

    assert scene.found(caller, f"/fhir/ImagingStudy?patient={scene.patients['anna']}") == {"anna-ct", "anna-mr"}
    assert caller.get(f"/fhir/ImagingStudy?patient={scene.patients['bert']}").status_code == 403


def test_a_backend_is_silently_left_out_what_it_may_not_see_of_a_patient(scene):
    caller = scene.caller("system/ImagingStudy.rs?modality=CT")

    assert scene.found(caller, f"/fhir/ImagingStudy?patient={scene.patients['anna']}") == {"anna-ct"}


def test_the_endpoint_of_the_images_comes_along_without_a_scope_of_its_own(scene):
    """SMART Imaging Access: `_include=ImagingStudy:endpoint` SHALL be supported; its scope is that of ImagingStudy."""
    caller = scene.caller("patient/ImagingStudy.rs", "anna")

    found = scene.found(caller, "/fhir/ImagingStudy?_include=ImagingStudy:endpoint&_include=ImagingStudy:patient")

    assert found == {"anna-ct", "anna-mr", "Endpoint/dicomweb"}
    assert caller.get("/fhir/Endpoint/dicomweb").status_code == 200
    assert caller.get(f"/fhir/{scene.patients['anna']}").status_code == 403


def test_a_patient_who_signed_in_sees_only_the_own_record_whatever_the_scopes(scene):
    anna = scene.patients["anna"]
    caller = scene.caller("user/*.cruds patient/*.cruds system/*.cruds", "anna", user=anna, role=Role.PATIENT)

    assert scene.found(caller) == {"anna-ct", "anna-mr"}
    assert scene.found(caller, "/fhir/Patient") == {anna}
    assert caller.get(f"/fhir/ImagingStudy?patient={scene.patients['bert']}").status_code == 403
    assert caller.post("/fhir/Observation", {"resourceType": "Observation"}).status_code in (400, 403, 422)
    assert caller.get("/fhir/AuditEvent").status_code == 403


@pytest.mark.parametrize(
    ("role", "sees", "defines", "audits"),
    [(Role.PRACTITIONER, 200, 403, 403), (Role.TECHNOLOGIST, 200, 403, 403), (Role.OPERATOR, 403, 201, 403)],
)
def test_a_role_bounds_what_a_user_may_do(scene, role, sees, defines, audits):
    caller = scene.caller("user/*.cruds", user="Practitioner/1", role=role)
    code_system = {"resourceType": "CodeSystem", "status": "draft", "content": "not-present"}

    assert caller.get("/fhir/ImagingStudy").status_code == sees
    assert caller.get("/dicom-web/studies").status_code == sees
    assert caller.post("/fhir/CodeSystem", code_system).status_code == defines
    assert caller.get("/fhir/AuditEvent").status_code == audits


# ---- everything else that a request can do


def test_batches_chains_and_everything_obey_the_grant(scene):
    caller, anna, bert = scene.caller("patient/*.rs", "anna"), scene.patients["anna"], scene.patients["bert"]
    asks = [
        f"ImagingStudy/{scene.studies['bert-ct']}",
        f"ImagingStudy?patient={bert}",
        f"ImagingStudy?patient={anna}",
        bert,
    ]
    entries = [{"request": {"method": "GET", "url": each}} for each in asks]

    answer = caller.post("/fhir", {"resourceType": "Bundle", "type": "batch", "entry": entries}).json

    assert [each["response"]["status"][:3] for each in answer["entry"]] == ["404", "403", "200", "404"]
    assert caller.get(f"/fhir/{bert}/$everything").status_code == 404
    assert not any("bert" in str(each) for each in [caller.get(f"/fhir/{anna}/$everything").json])
    assert scene.found(caller, "/fhir/Patient?_has:ImagingStudy:patient:modality=CT") == {anna}
    assert scene.found(caller, "/fhir/Patient?name=bert") == set()
    assert scene.found(caller, "/fhir/ImagingStudy?patient.name=bert") == set()
    assert {each.split("/")[0] for each in scene.found(caller, "/fhir?_type=Patient,ImagingStudy")} <= {
        "anna-ct",
        "anna-mr",
        "Patient",
    }
    changed = {each["fullUrl"] for each in caller.get("/fhir/_history?_count=200").json["entry"]}
    assert not changed & {f"{FHIR}/{bert}", f"{FHIR}/ImagingStudy/{scene.studies['bert-ct']}"}


def test_a_conditional_request_tells_nothing_of_what_is_out_of_reach(scene):
    caller, uid = scene.caller("patient/*.cruds", "anna"), scene.studies["bert-ct"]

    for headers in (
        {"If-None-Match": 'W/"1"'},
        {"If-Match": 'W/"1"'},
        {"If-Modified-Since": "Wed, 01 Jan 2020 00:00:00 GMT"},
    ):
        there, nowhere = (caller.get(f"/fhir/ImagingStudy/{each}", headers=headers) for each in (uid, "1.2.3"))
        assert there.status_code == nowhere.status_code == 404
        assert there.json["issue"][0]["code"] == nowhere.json["issue"][0]["code"]
        assert "ETag" not in there.headers


def test_a_write_stays_within_the_patient(scene):
    caller = scene.caller("patient/Observation.cruds", "anna")
    observation = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}}

    made = {who: caller.post("/fhir/Observation", {**observation, "subject": {"reference": scene.patients[who]}})
            for who in ("anna", "bert")}  # fmt: skip

    assert {who: each.status_code for who, each in made.items()} == {"anna": 201, "bert": 403}
    moved = {**made["anna"].json, "subject": {"reference": scene.patients["bert"]}}
    assert caller.put(f"/fhir/Observation/{moved['id']}", moved).status_code == 403


@pytest.mark.parametrize(
    ("scopes", "modality", "patient", "stored"),
    [
        ("system/ImagingStudy.c", "CT", "bert", True),
        ("system/ImagingStudy.c?modality=MR", "MR", "bert", True),
        ("system/ImagingStudy.c?modality=MR", "CT", "bert", False),
        ("patient/ImagingStudy.c", "CT", "anna", True),
        ("patient/ImagingStudy.c", "CT", "bert", False),
    ],
)
def test_images_are_registered_within_the_scopes(scene, scopes, modality, patient, stored):
    caller = scene.caller(scopes, "anna" if scopes.startswith("patient") else "")
    uid, files = new_study(PatientID=patient, Modality=modality)

    answer = stow(caller, *files)

    assert answer.status_code == (200 if stored else 409), answer.text
    reason = answer.json.get("00081198", {}).get("Value", [{}])[0].get("00081197", {}).get("Value")
    assert reason == (None if stored else [0x0124])  # Refused: not authorized, PS3.7 C.5.22
    caller_of_all = scene.caller("system/ImagingStudy.d")
    assert caller_of_all.delete(f"/dicom-web/studies/{uid}").status_code == (204 if stored else 404)


def test_nobody_gets_at_a_study_by_adding_an_image_to_it(scene):
    caller = scene.caller("patient/ImagingStudy.c patient/ImagingStudy.rs", "anna")
    uids = {"StudyInstanceUID": scene.studies["bert-ct"], "SeriesInstanceUID": generate_uid()}

    answer = stow(caller, dicom(**uids, SOPInstanceUID=generate_uid(), PatientID="anna"))

    assert answer.status_code == 409
    assert scene.found(caller) == {"anna-ct", "anna-mr"}


def test_images_are_deleted_only_with_a_scope_for_it(scene):
    uid, files = new_study(PatientID="anna")
    scene.doors.ingest(*files, name="apps")

    assert scene.caller("patient/ImagingStudy.rs", "anna").delete(f"/dicom-web/studies/{uid}").status_code == 403
    assert scene.caller("patient/ImagingStudy.d", "bert").delete(f"/dicom-web/studies/{uid}").status_code == 404
    assert scene.caller("patient/ImagingStudy.d", "anna").delete(f"/dicom-web/studies/{uid}").status_code == 204


# ---- what is done later


def order(**named):
    inputs = [value("algorithm", "valueString", "median")]
    inputs += [value(name.replace("_", "-"), kind, it) for name, (kind, it) in named.items()]
    code = {"coding": [{"system": CODES, "code": CODE}]}
    return {"resourceType": "Task", "status": "requested", "intent": "order", "code": code, "input": inputs}


def test_an_order_reaches_no_image_that_the_scopes_do_not(scene):
    caller = scene.caller("system/Task.crs system/ImagingStudy.rs?modality=MR")
    study = ("valueReference", {"reference": f"ImagingStudy/{scene.studies['bert-ct']}"})

    assert caller.post("/fhir/Task", order(imaging_study=study)).status_code == 404


def test_what_an_order_finds_later_stays_within_the_scopes_of_the_token(scene):
    caller, server = scene.caller("system/Task.crs system/ImagingStudy.rs?modality=MR"), scene.doors.server
    placed = caller.post("/fhir/Task", order(search=("valueString", "ImagingStudy?modality=CT,MR")))
    assert placed.status_code == 201, placed.text
    scene.doors.clock.forward(minutes=10)  # the token is over, the order is not

    chosen = choose(server, requester_of(server, placed.json), order_of(placed.json))

    assert {each.study_uid for each in chosen.series} == {scene.studies["anna-mr"]}


def test_a_rule_is_not_stored_with_scopes_that_see_less_than_the_contract(scene):
    caller = scene.caller("system/*.cruds system/PlanDefinition.c")
    narrow = scene.caller("system/PlanDefinition.cruds system/ImagingStudy.rs?modality=MR")
    rule = {"resourceType": "PlanDefinition", "status": "active",
            "meta": {"profile": ["urn:fhir-imaging:profile:processing-rule"]}}  # fmt: skip

    refused = narrow.post("/fhir/PlanDefinition", rule)

    assert refused.status_code == 403
    assert "scopes" in refused.json["issue"][0]["diagnostics"]
    assert "scopes" not in caller.post("/fhir/PlanDefinition", rule).text


def test_an_answer_that_is_fetched_later_was_made_with_the_grant_and_is_for_such_a_token(scene):
    caller = scene.caller("patient/ImagingStudy.rs", "anna")
    asked = caller.get("/fhir/ImagingStudy", headers={"Prefer": "respond-async"})
    assert asked.status_code == 202, asked.text
    job = asked.headers["Content-Location"].rpartition("/")[2]
    respond.run(scene.doors.server.own.read("Task", job).json(), scene.doors.server, lambda _: None)

    answer = caller.get(f"/fhir/_async/{job}")

    assert {each["resource"]["id"] for each in answer.json["entry"]} == {
        scene.studies["anna-ct"],
        scene.studies["anna-mr"],
    }
    assert scene.caller("patient/ImagingStudy.rs", "bert").get(f"/fhir/_async/{job}").status_code == 404
    assert scene.caller("system/ImagingStudy.rs").get(f"/fhir/_async/{job}").status_code == 404


def test_scopes_of_two_tokens_are_never_put_together(scene):
    first, second = scene.caller("patient/ImagingStudy.rs", "anna"), scene.caller("patient/Patient.rs", "bert")

    assert scene.found(first) == {"anna-ct", "anna-mr"}
    assert second.get("/fhir/ImagingStudy").status_code == 403
    assert first.get(f"/fhir/{scene.patients['bert']}").status_code == 403
