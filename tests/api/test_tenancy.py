"""Several subscribers on one server: nobody sees another's patients unless a contract says so.

Expected values: what the contracts of the scene say.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from pydicom.uid import generate_uid

from fhir_server.access.contracts import Limits, Right
from fhir_server.delivery import value
from fhir_server.model.task import CODES
from fhir_server.work.orders import CODE
from tests.api.test_grants_at_doors import UID, stow
from tests.support.doors import FHIR, Caller, Doors, dicom, new_study, opened

BOTH = [Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, Right.ORDER_PROCESSING]


@dataclass
class Scene:
    """North and South each have a patient with a CT and an MR study; both write of the same Patient ID."""

    doors: Doors
    callers: dict[str, Caller] = field(default_factory=dict)
    studies: dict[str, str] = field(default_factory=dict)
    patients: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, *, whose: tuple[str, ...] = (), is_own: bool = True, rights=BOTH, **limits) -> Caller:
        principals = self.doors.server.principals
        named = frozenset(principals.named(each) for each in whose) if is_own else None
        principals.add(name, rights, limits=Limits(named, **limits), is_own=is_own)
        self.doors.clock.forward(seconds=2)
        return Caller(self.doors.flask, principals.mint(name), self.doors.clock)

    def seen(self, caller: Caller) -> set[str]:
        """Return the studies that are seen, which have to be the same at both doors, searched for and by address."""
        names = {uid: name for name, uid in self.studies.items()}
        bundle = caller.get("/fhir/ImagingStudy?_count=500&_total=accurate")
        assert bundle.status_code == 200, bundle.text
        found = {
            names[each["resource"]["id"]] for each in bundle.json.get("entry", []) if each["resource"]["id"] in names
        }
        queried = caller.get("/dicom-web/studies?limit=500", headers={"Accept": "application/dicom+json"}).json or []
        assert {names[each[UID]["Value"][0]] for each in queried if each[UID]["Value"][0] in names} == found
        for name, uid in self.studies.items():
            status = 200 if name in found else 404
            assert caller.get(f"/fhir/ImagingStudy/{uid}").status_code == status
            assert caller.get(f"/dicom-web/studies/{uid}/metadata").status_code == status
        return found


@pytest.fixture(scope="module")
def scene(module_db) -> Iterator[Scene]:
    with opened(module_db) as doors:
        made = Scene(doors)
        for side in ("north", "south"):
            made.callers[side] = made.add(side)
            for modality in ("CT", "MR"):
                uid, files = new_study(PatientID="4711", PatientName=f"{side}^patient", Modality=modality)
                made.studies[f"{side}-{modality.lower()}"] = uid
                assert stow(made.callers[side], *files).status_code == 200
                doors.server.studies.project(uid)
                subject = doors.server.own.read("ImagingStudy", uid).json()["subject"]
            made.patients[side] = subject["reference"]
        yield made


NORTH, SOUTH = {"north-ct", "north-mr"}, {"south-ct", "south-mr"}


def test_a_subscriber_sees_its_own_images_and_patients(scene):
    assert scene.seen(scene.callers["north"]) == NORTH
    assert scene.seen(scene.callers["south"]) == SOUTH
    for side in ("north", "south"):
        entries = scene.callers[side].get("/fhir/Patient").json["entry"]
        assert {each["fullUrl"] for each in entries} == {f"{FHIR}/{scene.patients[side]}"}


@pytest.mark.parametrize(
    ("limits", "seen"),
    [
        ({}, set()),
        ({"whose": ("north",)}, NORTH),
        ({"whose": ("north", "south")}, NORTH | SOUTH),
        ({"is_own": False}, NORTH | SOUTH),
        ({"is_own": False, "modalities": frozenset({"CT"})}, {"north-ct", "south-ct"}),
        ({"whose": ("south",), "modalities": frozenset({"MR", "MG"})}, {"south-mr"}),
    ],
    ids=["nobody's", "one", "two", "all", "all by modality", "one by modalities"],
)
def test_a_receiver_sees_what_its_contract_names(scene, limits, seen):
    receiver = scene.add("receiver", rights=[Right.RECEIVE_IMAGES], **limits)

    assert scene.seen(receiver) == seen


def test_a_contract_for_one_patient_shows_no_other(scene):
    receiver = scene.add("of-one", rights=[Right.RECEIVE_IMAGES], is_own=False,
                         patients=frozenset({scene.patients["south"]}))  # fmt: skip

    assert scene.seen(receiver) == SOUTH
    assert receiver.get(f"/fhir/{scene.patients['north']}").status_code == 404
    assert receiver.get(f"/fhir/ImagingStudy?patient={scene.patients['north']}").status_code == 403


def test_a_search_for_a_patient_of_another_subscriber_is_forbidden_like_one_for_nobody(scene):
    """SMART Imaging Access, backend: a patient outside the authorised access is 403."""
    answers = [scene.callers["north"].get(f"/fhir/ImagingStudy?patient={each}")
               for each in (scene.patients["south"], "Patient/nobody")]  # fmt: skip

    assert [each.status_code for each in answers] == [403, 403]
    assert answers[0].json["issue"][0]["diagnostics"] == answers[1].json["issue"][0]["diagnostics"]


def test_a_change_of_the_contract_is_felt_within_the_time_of_the_cache(scene):
    receiver = scene.add("changing", whose=("north",), rights=[Right.RECEIVE_IMAGES])
    assert scene.seen(receiver) == NORTH

    scene.add("changing", whose=("south",), rights=[Right.RECEIVE_IMAGES])

    assert scene.seen(receiver) == SOUTH


ASKED = [
    "Observation", "Device", "Task", "Provenance", "Organization", "Contract",
    "Patient?_revinclude=ImagingStudy:patient",
    "ImagingStudy?_include=*", "Patient?_has:ImagingStudy:patient:modality=CT", "ImagingStudy?patient.name=south",
    "Patient/_history", "ImagingStudy/_history", "_history", "", "Patient?identifier=4711", "Patient?name=south",
]  # fmt: skip


@pytest.mark.parametrize("asked", ASKED)
def test_nothing_of_a_neighbour_comes_along(scene, asked):
    answer = scene.callers["north"].get(f"/fhir/{asked}")

    assert answer.status_code == 200, answer.text
    named = [scene.patients["south"], *(scene.studies[each] for each in SOUTH), "south"]
    assert not [
        each for each in named if each in answer.text.replace("patient.name=south", "").replace("name=south", "")
    ]


def test_nobody_gets_at_a_study_of_a_neighbour_by_adding_an_image_to_it(scene):
    """Not even by saying that it is of the same patient."""
    uids = {"StudyInstanceUID": scene.studies["south-ct"], "SeriesInstanceUID": generate_uid()}

    answer = stow(scene.callers["north"], dicom(**uids, SOPInstanceUID=generate_uid(), PatientID="4711"))

    assert answer.status_code == 409
    assert answer.json["00081198"]["Value"][0]["00081197"]["Value"] == [0x0124]  # not authorized, PS3.7 C.5.22
    assert scene.seen(scene.callers["north"]) == NORTH


def test_images_of_a_neighbour_are_not_there_to_be_deleted(scene):
    uid = scene.studies["south-ct"]

    answers = [scene.callers["north"].delete(f"/dicom-web/studies/{each}") for each in (uid, "1.2.3.4")]

    assert [each.status_code for each in answers] == [404, 404]
    assert scene.callers["north"].delete(f"/fhir/ImagingStudy/{uid}").status_code == 204  # as what is not there
    assert scene.seen(scene.callers["south"]) == SOUTH


@pytest.mark.parametrize("method", ["put", "delete", "patch"])
def test_what_a_neighbour_wrote_cannot_be_changed(scene, method):
    patient = scene.patients["south"]
    body = {"resourceType": "Patient", "id": patient.removeprefix("Patient/"), "gender": "other"}
    send = {"put": {"json": body}, "delete": {},
            "patch": {"json": [], "headers": {"Content-Type": "application/json-patch+json"}}}[method]  # fmt: skip

    answer = scene.callers["north"].call(method.upper(), f"/fhir/{patient}", **send)

    assert answer.status_code == (204 if method == "delete" else 404)  # what is not there is deleted as well
    assert scene.callers["south"].get(f"/fhir/{patient}").status_code == 200


@pytest.mark.parametrize("about", ["patient", "study", "new patient in a transaction"])
def test_what_others_may_write_about_a_patient_belongs_to_whose_patient_it_is(scene, about):
    reader = scene.add("reader", rights=BOTH, whose=("north",))
    observation = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}}
    named = {"patient": {"subject": {"reference": scene.patients["north"]}},
             "study": {"partOf": [{"reference": f"ImagingStudy/{scene.studies['north-ct']}"}]}}  # fmt: skip
    if about in named:
        made = reader.post("/fhir/Observation", observation | named[about])
        assert made.status_code == 201, made.text
        key, seen = f"Observation/{made.json['id']}", True
    else:
        entries = [
            {"fullUrl": "urn:uuid:8a8f9d0e-0000-4000-8000-000000000001", "resource": {"resourceType": "Patient"},
             "request": {"method": "POST", "url": "Patient"}},
            {"resource": observation | {"subject": {"reference": "urn:uuid:8a8f9d0e-0000-4000-8000-000000000001"}},
             "request": {"method": "POST", "url": "Observation"}},
        ]  # fmt: skip
        done = reader.post("/fhir", {"resourceType": "Bundle", "type": "transaction", "entry": entries})
        assert done.status_code == 200, done.text
        key, seen = (
            done.json["entry"][1]["response"]["location"].removeprefix(f"{FHIR}/").partition("/_history")[0],
            False,
        )

    assert reader.get(f"/fhir/{key}").status_code == 200
    assert scene.callers["north"].get(f"/fhir/{key}").status_code == (200 if seen else 404)
    assert scene.callers["south"].get(f"/fhir/{key}").status_code == 404
    assert reader.delete(f"/fhir/{key}").status_code == 204


def test_who_writes_cannot_say_whose_it_is(scene):
    made = scene.callers["north"].post("/fhir/Patient", {"resourceType": "Patient", "gender": "female"}).json
    south = scene.doors.server.principals.named("south")

    changed = scene.callers["north"].put(
        f"/fhir/Patient/{made['id']}", {**made, "managingOrganization": {"reference": south}}
    )

    assert changed.status_code == 200
    assert scene.callers["south"].get(f"/fhir/Patient/{made['id']}").status_code == 404
    assert scene.callers["north"].delete(f"/fhir/Patient/{made['id']}").status_code == 204


def test_images_of_other_modalities_than_the_contract_has_are_refused_with_the_reason(scene):
    sender = scene.add("ct-only", rights=[Right.REGISTER_IMAGES], modalities=frozenset({"CT"}))
    (_, (ct,)), (_, (mr,)) = new_study(), new_study(Modality="MR")

    answer = stow(sender, ct, mr)

    assert answer.status_code == 202  # some were stored, PS3.18 10.5.3.1
    assert len(answer.json["00081199"]["Value"]) == 1
    (failed,) = answer.json["00081198"]["Value"]
    assert failed["00081197"]["Value"] == [0x0124]


@pytest.mark.parametrize("study", ["north-ct", "south-ct"])
def test_an_order_is_placed_for_images_that_are_seen(scene, study):
    reference = {"reference": f"ImagingStudy/{scene.studies[study]}"}
    inputs = [value("algorithm", "valueString", "median"), value("imaging-study", "valueReference", reference)]
    task = {"resourceType": "Task", "status": "draft", "intent": "order",
            "code": {"coding": [{"system": CODES, "code": CODE}]}, "input": inputs}  # fmt: skip

    answer = scene.callers["north"].post("/fhir/Task", task)

    assert answer.status_code == (201 if study == "north-ct" else 404), answer.text
    if study == "north-ct":
        identifier = answer.json["id"]
        assert scene.callers["north"].get(f"/fhir/Task/{identifier}").status_code == 200
        assert scene.callers["south"].get(f"/fhir/Task/{identifier}").status_code == 404
        assert scene.callers["south"].put(f"/fhir/Task/{identifier}", answer.json).status_code == 404


def test_what_is_for_everybody_stays_so(scene):
    for path in ("Endpoint/dicomweb", "ValueSet", "ActivityDefinition", "StructureDefinition"):
        assert scene.callers["north"].get(f"/fhir/{path}").status_code == 200


def test_an_older_contract_goes_as_far_as_it_went(scene):
    """A contract without limits is about everybody's images, and ones that came before it was kept whose they are."""
    database = scene.doors.server.database
    receiver = Caller(scene.doors.flask, _token_of_unlimited(scene), scene.doors.clock)
    assert scene.seen(receiver) == NORTH | SOUTH
    key = f"ImagingStudy/{scene.studies['south-mr']}"
    owner = database["resources"].find_one({"_id": key})["owner"]
    database["resources"].update_one({"_id": key}, {"$unset": {"owner": ""}})
    scene.doors.clock.forward(seconds=2)

    assert scene.seen(receiver) == NORTH | SOUTH
    assert scene.callers["south"].get(f"/fhir/{key}").status_code == 404
    scene.doors.server.archive.mark(scene.studies["south-mr"])  # as `fhir-imaging reindex` does
    scene.doors.server.studies.project(scene.studies["south-mr"])
    assert database["resources"].find_one({"_id": key})["owner"] == owner
    assert scene.callers["south"].get(f"/fhir/{key}").status_code == 200


def _token_of_unlimited(scene) -> str:
    scene.doors.server.principals.add("older", [Right.RECEIVE_IMAGES])
    return scene.doors.server.principals.mint("older")
