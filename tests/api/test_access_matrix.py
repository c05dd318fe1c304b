"""Every door with every kind of principal: who gets in where. Expected values: the meaning of the three rights."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

import orjson
import pytest

from fhir_server.access.apps import LAUNCHED, App
from fhir_server.access.contracts import Right
from fhir_server.delivery import value
from fhir_server.doors import create_app
from fhir_server.model.task import CODES
from fhir_server.model.workitem_events import WORKLIST
from fhir_server.store.answers import Asked
from fhir_server.store.exports import Page, Part, Place
from tests.support.doors import Caller, Doors, new_study, opened
from tests.support.subscribing import NEW, to_topic
from tests.support.workitems import model, new_item, send, state

REGISTER, RECEIVE, AUDIT = Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, Right.AUDIT
UNNAMED = "/dicom-web/deidentified/studies"
PATIENT = {"resourceType": "Patient", "gender": "other"}
STOW = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=X', "Accept": "application/dicom+json"}


@dataclass(frozen=True)
class Door:
    """One way in: what is sent, and which principals are let in. `{...}` are filled with what is there."""

    method: str
    path: str
    admits: frozenset[str]
    send: str = ""  # what the body is: "patient", "stow" or nothing


def door(method: str, path: str, *admits: str, send: str = "") -> Door:
    return Door(method, path, frozenset(admits), send)


VALUE_SET = {
    "resourceType": "ValueSet",
    "status": "active",
    "compose": {"include": [{"system": "http://hl7.org/fhir/administrative-gender"}]},
}
MERGED = "source-patient=Patient/{patient}&target-patient=Patient/{other}"
DOORS = [
    # FHIR: reading needs to receive
    door("GET", "/fhir/Patient", "receive", "all"),
    door("GET", "/fhir/Patient/{patient}", "receive", "all"),
    door("GET", "/fhir/Patient/{patient}/_history", "receive", "all"),
    door("GET", "/fhir/Patient/{patient}/_history/1", "receive", "all"),
    door("GET", "/fhir/Patient/_history", "receive", "all"),
    door("GET", "/fhir/_history", "receive", "audit", "all"),
    door("POST", "/fhir/Patient/_search", "receive", "all", send="form"),
    door("GET", "/fhir/ImagingStudy", "receive", "all"),
    door("GET", "/fhir/ImagingStudy/{study}", "receive", "all"),
    door("GET", "/fhir/Endpoint", "receive", "all"),
    door("GET", "/fhir/Device", "receive", "all"),
    door("GET", "/fhir/Observation", "receive", "all"),
    door("GET", "/fhir/Task", "receive", "all"),
    door("GET", "/fhir/Organization", "receive", "audit", "all"),
    door("GET", "/fhir/Contract", "receive", "audit", "all"),
    door("GET", "/fhir/AuditEvent", "audit", "all"),
    # FHIR: a hard copy is seen beforehand by who may order it, and sees the images
    door("GET", "/fhir/Task/{order}/$preview", "all"),
    # FHIR: the whole and compartments tell of the types that may be read
    door("GET", "/fhir", "receive", "audit", "all"),
    door("GET", "/fhir/", "receive", "audit", "all"),
    door("POST", "/fhir/_search", "receive", "audit", "all", send="form"),
    door("GET", "/fhir/Patient/{patient}/*", "receive", "audit", "all"),
    door("POST", "/fhir/Patient/{patient}/*/_search", "receive", "audit", "all", send="form"),
    door("GET", "/fhir/Patient/{patient}/ImagingStudy", "receive", "all"),
    door("POST", "/fhir/Patient/{patient}/ImagingStudy/_search", "receive", "all", send="form"),
    # FHIR: operations; to change labels tells what was there
    *(
        door(method, path, "receive", "all", send="" if method == "GET" else "parameters")
        for method in ("GET", "POST")
        for path in (
            "/fhir/Patient/$meta",
            "/fhir/Patient/{patient}/$meta",
            "/fhir/Patient/{patient}/$validate",
            "/fhir/Patient/{patient}/$everything",
            "/fhir/ValueSet/$expand?url=http://hl7.org/fhir/ValueSet/administrative-gender",
            "/fhir/ValueSet/{valueset}/$expand",
            "/fhir/ValueSet/$validate-code?url=http://hl7.org/fhir/ValueSet/administrative-gender&code=male",
            "/fhir/ValueSet/{valueset}/$validate-code?code=male",
            "/fhir/CodeSystem/$lookup?system=http://hl7.org/fhir/administrative-gender&code=male",
        )
    ),
    door("GET", "/fhir/$meta", "receive", "audit", "all"),
    door("POST", "/fhir/$meta", "receive", "audit", "all", send="parameters"),
    # FHIR: what one is accounted for, itself
    door("GET", "/fhir/$usage", "register", "receive", "deidentified", "audit", "all"),
    door("POST", "/fhir/$usage", "register", "receive", "deidentified", "audit", "all", send="parameters"),
    # FHIR: what a client has itself is converted for any token
    door("POST", "/fhir/$convert", "register", "receive", "deidentified", "audit", "all", send="patient"),
    door("POST", "/fhir/Patient/$validate", "register", "receive", "all", send="patient"),
    door("POST", "/fhir/Patient/{patient}/$meta-add", "all", send="meta"),
    door("POST", "/fhir/Patient/{patient}/$meta-delete", "all", send="meta"),
    # FHIR: Subscriptions are for who may receive
    door("POST", f"/fhir/Patient/$merge?{MERGED}&preview=true", "all", send="parameters"),
    door("POST", "/fhir/Patient/{patient}/$unmerge", "all", send="parameters"),
    door("POST", "/fhir/ImagingStudy/{study}/$move?patient=Patient/{patient}", "all", send="parameters"),
    door("POST", "/fhir/ImagingStudy/{study}/$correct", "all", send="correction"),
    door("POST", "/fhir/ImagingStudy/{study}/$uncorrect", "all", send="parameters"),
    door("GET", "/fhir/Subscription/$status", "receive", "all"),
    door("POST", "/fhir/Subscription/$status", "receive", "all", send="parameters"),
    door("GET", "/fhir/Subscription/{subscription}/$status", "receive", "all"),
    door("POST", "/fhir/Subscription/{subscription}/$status", "receive", "all", send="parameters"),
    door("GET", "/fhir/Subscription/{subscription}/$events", "receive", "all"),
    door("POST", "/fhir/Subscription/{subscription}/$events", "receive", "all", send="parameters"),
    door("GET", "/fhir/Subscription/$get-ws-binding-token?id={subscription}", "receive", "all"),
    door("POST", "/fhir/Subscription/$get-ws-binding-token?id={subscription}", "receive", "all", send="parameters"),
    door("GET", "/fhir/Subscription/{subscription}/$get-ws-binding-token", "receive", "all"),
    door("POST", "/fhir/Subscription/{subscription}/$get-ws-binding-token", "receive", "all", send="parameters"),
    # FHIR: a Bundle comes in with any token; its entries are asked one by one
    door("POST", "/fhir", "register", "receive", "deidentified", "audit", "all", send="bundle"),
    door("POST", "/fhir/", "register", "receive", "deidentified", "audit", "all", send="bundle"),
    # FHIR: an answer that is fetched later is for who asked
    door("GET", "/fhir/_async/{job}", "register", "receive", "deidentified", "audit", "all"),
    door("DELETE", "/fhir/_async/{job}", "register", "receive", "deidentified", "audit", "all"),
    # FHIR: exports of what may be read
    door("GET", "/fhir/$export", "receive", "audit", "all", send="later"),
    door("POST", "/fhir/$export", "receive", "audit", "all", send="later"),
    door("GET", "/fhir/Patient/$export", "receive", "audit", "all", send="later"),
    door("POST", "/fhir/Patient/$export", "receive", "audit", "all", send="later"),
    door("GET", "/fhir/Group/{group}/$export", "receive", "all", send="later"),
    door("POST", "/fhir/Group/{group}/$export", "receive", "all", send="later"),
    door("GET", "/fhir/_async/{export}/1.Patient.ndjson", "receive", "all"),
    # FHIR: writing needs to register
    door("POST", "/fhir/Patient", "register", "all", send="patient"),
    door("PUT", "/fhir/Patient/{patient}", "register", "all", send="patient"),
    door("DELETE", "/fhir/Patient/{patient}", "register", "all"),
    # FHIR: writing what a search selects needs to receive as well
    door("PUT", "/fhir/Patient?_id={patient}", "all", send="patient"),
    door("DELETE", "/fhir/Patient?_id={patient}", "all"),
    # FHIR: patching tells what was there
    door("PATCH", "/fhir/Patient/{patient}", "all", send="patch"),
    door("PATCH", "/fhir/Patient?_id={patient}", "all", send="patch"),
    # DICOMweb
    door("POST", "/dicom-web/studies", "register", "all", send="stow"),
    door("POST", "/dicom-web/studies/{study}", "register", "all", send="stow"),
    door("GET", "/dicom-web/studies", "receive", "all"),
    door("GET", "/dicom-web/series", "receive", "all"),
    door("GET", "/dicom-web/instances", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/metadata", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/pixeldata", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/bulkdata", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/rendered", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/thumbnail", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/series/{series}", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/series/{series}/metadata", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/series/{series}/pixeldata", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/series/{series}/bulkdata", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/series/{series}/rendered", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/series/{series}/thumbnail", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}/metadata", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}/pixeldata", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}/bulkdata", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}/rendered", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}/thumbnail", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/series", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/instances", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/series/{series}/instances", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}/received", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}/bulkdata/7FE00010", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}/frames/1", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}/frames/1/rendered", "receive", "all"),
    door("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}/frames/1/thumbnail", "receive", "all"),
    door(
        *("GET", "/dicom-web/wado?requestType=WADO&studyUID={study}&seriesUID={series}&objectUID={instance}"),
        *("receive", "all"),
    ),
    # What has no names is found by names of its own, of which each recipient has others.
    door("GET", UNNAMED, "deidentified", "all"),
    *(
        door("GET", f"{UNNAMED}{path}", "deidentified", "all")
        for path in (
            "/{unnamed_study}",
            "/{unnamed_study}/metadata",
            "/{unnamed_study}/series",
            "/{unnamed_study}/instances",
            "/{unnamed_study}/series/{unnamed_series}",
            "/{unnamed_study}/series/{unnamed_series}/metadata",
            "/{unnamed_study}/series/{unnamed_series}/instances",
            "/{unnamed_study}/series/{unnamed_series}/instances/{unnamed_instance}",
            "/{unnamed_study}/series/{unnamed_series}/instances/{unnamed_instance}/metadata",
            "/{unnamed_study}/rendered",
            "/{unnamed_study}/thumbnail",
            "/{unnamed_study}/pixeldata",
            "/{unnamed_study}/bulkdata",
            "/{unnamed_study}/series/{unnamed_series}/rendered",
            "/{unnamed_study}/series/{unnamed_series}/thumbnail",
            "/{unnamed_study}/series/{unnamed_series}/pixeldata",
            "/{unnamed_study}/series/{unnamed_series}/bulkdata",
            "/{unnamed_study}/series/{unnamed_series}/instances/{unnamed_instance}/rendered",
            "/{unnamed_study}/series/{unnamed_series}/instances/{unnamed_instance}/thumbnail",
            "/{unnamed_study}/series/{unnamed_series}/instances/{unnamed_instance}/pixeldata",
            "/{unnamed_study}/series/{unnamed_series}/instances/{unnamed_instance}/bulkdata",
            "/{unnamed_study}/series/{unnamed_series}/instances/{unnamed_instance}/bulkdata/7FE00010",
            "/{unnamed_study}/series/{unnamed_series}/instances/{unnamed_instance}/frames/1",
            "/{unnamed_study}/series/{unnamed_series}/instances/{unnamed_instance}/frames/1/rendered",
            "/{unnamed_study}/series/{unnamed_series}/instances/{unnamed_instance}/frames/1/thumbnail",
        )
    ),
    # The worklist: work items are Tasks, under the rights for these. To change one tells what was there.
    door("POST", "/dicom-web/workitems", "register", "all", send="item"),
    door("GET", "/dicom-web/workitems", "receive", "all"),
    door("GET", "/dicom-web/workitems/{workitem}", "receive", "all"),
    door("POST", "/dicom-web/workitems/{workitem}", "all", send="label"),
    door("PUT", "/dicom-web/workitems/{workitem}/state", "all", send="state"),
    door("POST", "/dicom-web/workitems/{workitem}/cancelrequest", "all"),
    # Whoever receives may be told; of which work items, is decided when they are told.
    door("POST", f"/dicom-web/workitems/{WORKLIST}/subscribers/ADMITTED", "receive", "all"),
    door("POST", f"/dicom-web/workitems/{WORKLIST}/subscribers/{{title}}/suspend", "receive", "all"),
    door("DELETE", f"/dicom-web/workitems/{WORKLIST}/subscribers/{{title}}", "receive", "all"),
    # Deleting is for the subscriber that registered the images.
    door("DELETE", "/dicom-web/studies/{study}", "all"),
    door("DELETE", "/dicom-web/studies/{study}/series/{series}", "all"),
    door("DELETE", "/dicom-web/studies/{study}/series/{series}/instances/{instance}", "all"),
    door("DELETE", "/fhir/ImagingStudy/{study}", "all"),
    # and takes them back
    door("POST", "/dicom-web/studies/{study}/undelete", "all"),
    door("POST", "/dicom-web/studies/{study}/series/{series}/undelete", "all"),
    door("POST", "/dicom-web/studies/{study}/series/{series}/instances/{instance}/undelete", "all"),
    # An app is launched about what the EHR may read itself.
    door("POST", "/auth/launch", "receive", "all", send="launch"),
]
OPEN = [
    *("/fhir/metadata", "/fhir/openapi.json", "/health/live", "/health/ready"),
    *("/fhir/.well-known/smart-configuration", "/.well-known/smart-configuration"),
    *("/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"),
    *("/", "/auth/jwks", "/auth/sign-in", "/auth/pages.css", "/auth/keys.js"),
]
# Where apps prove themselves otherwise and people have sessions: test_authorization and test_authorization_abuse.
SIGNING_IN = {
    *(
        ("GET", each)
        for each in (
            "/auth/",
            "/auth/authorize",
            "/auth/second-factor",
            "/auth/keys",
            "/auth/emergency",
            "/auth/alarms",
        )
    ),
    *(("POST", f"/auth/{each}") for each in ("authorize", "patient", "context", "decision", "emergency")),
    *(("POST", f"/auth/{each}") for each in ("token", "introspect", "revoke")),
    *(("POST", f"/auth/{each}") for each in ("sign-in", "code", "key", "sign-out", "sessions", "start")),
    *(("POST", f"/auth/{each}") for each in ("second-factor", "remove-code", "keys", "remove-key", "alarms")),
}
BY_URL = "/dicom-web/capability/"  # no token, but a secret in the address: test_capability_urls
OF_ORDERS = "/dicom-web/print-orders/"  # of orders that are being printed: test_print_orders
CHANNEL = "/dicom-web/subscribers/AE"  # a handshake: test_worklist_events
SOCKET = "/fhir/_socket"  # whoever binds it is asked then: tests/system/test_subscriptions.py
RESOURCES = {
    "bundle": {"resourceType": "Bundle", "type": "batch"},
    "parameters": {"resourceType": "Parameters"},
    "correction": {
        "resourceType": "Parameters",
        "parameter": [
            {
                "name": "attribute",
                "part": [{"name": "keyword", "valueCode": "StudyID"}, {"name": "value", "valueString": "7"}],
            }
        ],
    },
    "meta": {"resourceType": "Parameters", "parameter": [{"name": "meta", "valueMeta": {"tag": [{"code": "x"}]}}]},
}
ITEMS = {
    "item": new_item(ScheduledStationNameCodeSequence=None),
    "label": model(WorklistLabel="OTHER"),
    "state": state("IN PROGRESS"),
}
RIGHTS = {
    "register": [REGISTER],
    "receive": [RECEIVE],
    "deidentified": [Right.RECEIVE_DEIDENTIFIED],
    "audit": [AUDIT],
    "all": list(Right),
}


@dataclass(frozen=True)
class Scene:
    doors: Doors
    names: dict[str, str]
    file: bytes

    def come(self, caller: Caller, entrance: Door):
        names = self.names | self.own_names(entrance)
        made = {"job": self.job, "export": self.export, "subscription": self.subscription, "workitem": self.workitem}
        made["title"] = self.title
        own = {name: make(caller) for name, make in made.items() if f"{{{name}}}" in entrance.path}
        if "{unnamed_study}" in entrance.path:
            own |= unnamed(caller)
        path = entrance.path.format(**names, **own)
        if entrance.send == "patient":
            body = {**PATIENT, "id": names["patient"]} if entrance.method == "PUT" else PATIENT
            return caller.call(entrance.method, path, json=body)
        if entrance.send == "later":
            body = {"resourceType": "Parameters"} if entrance.method == "POST" else None
            return caller.call(entrance.method, path, json=body, headers={"Prefer": "respond-async"})
        if entrance.send in RESOURCES:
            return caller.call(entrance.method, path, json=RESOURCES[entrance.send])
        if entrance.send == "patch":
            return caller.call(entrance.method, path, json=[], headers={"Content-Type": "application/json-patch+json"})
        if entrance.send == "stow":
            body = b"--X\r\nContent-Type: application/dicom\r\n\r\n" + self.file + b"\r\n--X--\r\n"
            return caller.call(entrance.method, path, data=body, headers=STOW)
        if entrance.send in ITEMS:
            body = orjson.dumps(ITEMS[entrance.send])
            return caller.call(entrance.method, path, data=body, headers={"Content-Type": "application/dicom+json"})
        if entrance.send == "launch":
            launch = {"client_id": launchable(self.doors, caller), "patient": names["patient"]}
            return caller.call(entrance.method, path, json=launch)
        if entrance.send == "form":
            return caller.call(entrance.method, path, data={"_count": "1"})
        return caller.call(entrance.method, path)

    def own_names(self, entrance: Door) -> dict[str, str]:
        """Names of things that this entrance alone is about: some to be deleted, some that were."""
        if entrance.method == "DELETE":
            return self.disposable()
        if "/$move" in entrance.path or entrance.path.endswith("/$correct"):
            return names_of_new_study(self.doors)[0]
        if entrance.path.endswith("/$uncorrect"):
            names = names_of_new_study(self.doors)[0]
            path = f"/fhir/ImagingStudy/{names['study']}/$correct"
            done = self.doors.caller(*Right, name="all").post(path, RESOURCES["correction"])
            assert done.status_code == 200
            return names
        if entrance.path.endswith("/$unmerge"):
            names = {"patient": self.doors.server.own.create(PATIENT).id, "other": self.names["other"]}
            merge = f"/fhir/Patient/$merge?{MERGED.format(**names)}"
            assert self.doors.caller(*Right, name="all").post(merge, RESOURCES["parameters"]).status_code == 200
            return names
        if not entrance.path.endswith("/undelete"):
            return {}
        names = self.disposable()
        self.doors.caller(*Right, name="all").delete(f"/dicom-web/studies/{names['study']}")
        return names

    def subscription(self, caller: Caller) -> str:
        """The id of a Subscription of the caller; any id for who may have none."""
        found = caller.get("/fhir/Subscription").json.get("entry")
        if found:
            return str(found[0]["resource"]["id"])
        made = caller.post("/fhir/Subscription", to_topic(NEW, way="websocket"))
        return str(made.json.get("id", "unknown"))

    def job(self, caller: Caller) -> str:
        """The id of a request that the caller asked to be answered later; any id for who may not ask."""
        transaction = {"resourceType": "Bundle", "type": "transaction"}
        asked = caller.post("/fhir", transaction, headers={"Prefer": "respond-async"})
        return asked.headers.get("Content-Location", "unknown").rpartition("/")[2]

    def workitem(self, caller: Caller) -> str:
        """The UID of a new work item of the caller with all rights, who may change it and do it."""
        answer = send(self.doors.caller(*Right, name="all"), "POST", "", ITEMS["item"])
        return answer.headers["Location"].rpartition("/")[2]

    def title(self, caller: Caller) -> str:
        """The AE title under which the caller is subscribed to the worklist, if it may be."""
        send(caller, "POST", f"/{WORKLIST}/subscribers/ADMITTED")
        return "ADMITTED"

    def export(self, caller: Caller) -> str:
        """The id of an export that the caller's subscriber has, with a file of Patients."""
        server, id = self.doors.server, str(uuid4())
        owner = server.principals.authenticate(caller.token).subscriber if caller.token else "Organization/unknown"
        server.answers.ask(id, Asked(owner, "", b"{}"))
        server.own.create(
            {"resourceType": "Task", "status": "completed", "intent": "order", "requester": {"reference": owner}}, id=id
        )
        server.exports.begin(id, wait_s=0)
        server.exports.write(id, 0, Page(Part.OUTPUT, "Patient", 1, [b"{}"], Place()))
        server.answers.keeping(id, 200, b"{}")(None)
        return id

    def disposable(self) -> dict[str, str]:
        """Names of things that may be deleted, registered by the caller with all rights, who alone may do so."""
        return {**names_of_new_study(self.doors)[0], "patient": self.doors.server.own.create(PATIENT).id}


def unnamed(caller: Caller) -> dict[str, str]:
    """How a study is called for a caller without names; any UIDs for who may not know."""
    found = caller.get(f"{UNNAMED}?limit=1").json
    if not isinstance(found, list):
        return {"unnamed_study": "1.2", "unnamed_series": "1.3", "unnamed_instance": "1.4"}
    study = found[0]["0020000D"]["Value"][0]
    (row,) = caller.get(f"{UNNAMED}/{study}/instances").json
    tags = {"unnamed_study": "0020000D", "unnamed_series": "0020000E", "unnamed_instance": "00080018"}
    return {name: row[tag]["Value"][0] for name, tag in tags.items()}


def names_of_new_study(doors: Doors) -> tuple[dict[str, str], bytes]:
    study_uid, (file,) = new_study()
    (stored,) = doors.ingest(file, name="all")
    doors.server.studies.project(study_uid)
    return {"study": study_uid, "series": stored.summary.series_uid, "instance": stored.summary.sop_uid}, file


def launchable(doors: Doors, caller: Caller) -> str:
    """The client id of an app of the caller's subscriber."""
    if caller.token is None:
        return ""
    organization = doors.server.principals.authenticate(caller.token).subscriber
    given = App("", organization, "app", "none", LAUNCHED, "patient/*.rs", redirect_uris=("https://app.example.org/",))
    return doors.server.sign_on.apps.add(given)[0].client_id


def hard_copy(doors: Doors, study: str, folder: str) -> str:
    """The id of a hard copy that the caller with all rights ordered, a draft."""
    doors.server.printers.add("film", "folder", {"folder": folder})
    inputs = [
        value("device", "valueReference", {"reference": "Device/printer-film"}),
        value("imaging-study", "valueReference", {"reference": f"ImagingStudy/{study}"}),
    ]
    code = {"coding": [{"system": CODES, "code": "hard-copy"}]}
    task = {"resourceType": "Task", "status": "draft", "intent": "order", "code": code, "input": inputs}
    return str(doors.caller(*Right, name="all").post("/fhir/Task", task).json["id"])


@pytest.fixture(scope="module")
def scene(module_db, tmp_path_factory) -> Iterator[Scene]:
    """One server for the whole matrix: what is tested changes nothing that others look at."""
    with opened(module_db, bulk__exports="100") as doors:
        doors.server.principals.add("all", list(Right))
        names, file = names_of_new_study(doors)
        order = hard_copy(doors, names["study"], str(tmp_path_factory.mktemp("films")))
        group = {"resourceType": "Group", "type": "person", "actual": True}
        made = {"group": doors.server.own.create(group).id, "patient": doors.server.own.create(PATIENT).id}
        made |= {"other": doors.server.own.create(PATIENT).id}
        made |= {"valueset": doors.server.own.create(VALUE_SET).id}
        yield Scene(doors, {**names, **made, "order": order}, file)


@pytest.mark.parametrize("kind", sorted(RIGHTS))
@pytest.mark.parametrize("entrance", DOORS, ids=lambda each: f"{each.method} {each.path}")
def test_a_door_admits_whom_it_should(scene: Scene, entrance: Door, kind: str):
    caller = scene.doors.caller(*RIGHTS[kind], name=kind)

    response = scene.come(caller, entrance)

    if kind in entrance.admits:
        assert response.status_code < 300, response.text
    else:
        assert response.status_code == 403, response.text
        assert response.json["issue"][0]["code"] == "forbidden"


@pytest.mark.parametrize("entrance", DOORS, ids=lambda each: f"{each.method} {each.path}")
def test_no_door_opens_without_a_token(scene: Scene, entrance: Door):
    response = scene.come(scene.doors.stranger, entrance)

    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert response.json["resourceType"] == "OperationOutcome"


def test_every_route_of_the_server_is_in_this_matrix(scene: Scene):
    urls = create_app(scene.doors.server).url_map
    routes = {(method, rule.rule) for rule in urls.iter_rules() for method in rule.methods - {"HEAD", "OPTIONS"}}
    adapter = urls.bind("images.test")
    filled = {f"unnamed_{each}": "1.2" for each in ("study", "series", "instance")}
    filled |= {"job": "1", "export": "1", "subscription": "1", "workitem": "1.2", "title": "AE"}
    asked = [(each.method, each.path.format(**scene.names, **filled)) for each in DOORS]
    asked += [("GET", path) for path in (*OPEN, SOCKET, CHANNEL)]

    bare = [(method, path.partition("?")[0]) for method, path in asked]
    covered = {(method, adapter.match(path, method, return_rule=True)[0].rule) for method, path in bare}

    elsewhere = {each for each in routes if BY_URL in each[1] or OF_ORDERS in each[1] or each[1].endswith("/$<name>")}
    assert routes - covered - SIGNING_IN - elsewhere == set()


@pytest.mark.parametrize("path", ["/fhir/$nothing", "/fhir/Patient/$nothing", "/fhir/Patient/{patient}/$nothing"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_is_behind_the_address_of_an_operation_that_there_is_not(scene: Scene, method: str, path: str):
    address = path.format(**scene.names)

    assert scene.doors.stranger.call(method, address).status_code == 401
    assert scene.doors.caller(*RIGHTS["all"], name="all").call(method, address).status_code == 501


@pytest.mark.parametrize("path", OPEN)
def test_the_open_doors_are_these(doors: Doors, path: str):
    assert doors.stranger.get(path).status_code == 200


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer wrong", "Bearer " + "x" * 5000])
def test_a_bad_authorization_header_is_401(doors: Doors, header: str):
    response = doors.stranger.get("/fhir/Patient", headers={"Authorization": header})

    assert response.status_code == 401


def test_an_expired_token_is_401(doors: Doors):
    caller = doors.caller(RECEIVE)
    doors.clock.forward(days=366)

    response = caller.get("/fhir/Patient")

    assert response.status_code == 401
    assert "expired" in response.json["issue"][0]["diagnostics"]


def test_a_suspension_is_felt_within_the_cache_time(doors: Doors):
    caller = doors.caller(RECEIVE, name="clinic")
    assert caller.get("/fhir/Patient").status_code == 200

    doors.server.principals.suspend("clinic")
    doors.clock.forward(seconds=1)

    assert caller.get("/fhir/Patient").status_code == 401


def test_the_end_of_a_contract_is_felt_at_once_even_within_the_cache_time(doors: Doors):
    caller = doors.caller(RECEIVE, name="clinic")
    end = doors.clock.now + timedelta(seconds=100.5)
    doors.server.principals.add("clinic", [RECEIVE], end=end)
    doors.clock.forward(seconds=100)
    assert caller.get("/fhir/Patient").status_code == 200

    doors.clock.forward(seconds=0.6)

    assert caller.get("/fhir/Patient").status_code == 403


def test_a_contract_that_has_not_begun_gives_nothing(doors: Doors):
    caller = doors.caller(RECEIVE, name="clinic")
    doors.server.principals.add("clinic", [RECEIVE], start=doors.clock.now + timedelta(days=1))

    assert caller.get("/fhir/Patient").status_code == 403
    doors.clock.forward(days=1, seconds=1)
    assert caller.get("/fhir/Patient").status_code == 200


def test_a_new_contract_takes_the_place_of_the_old(doors: Doors):
    caller = doors.caller(RECEIVE, name="clinic")
    assert caller.get("/fhir/Patient").status_code == 200

    doors.server.principals.add("clinic", [REGISTER])
    doors.clock.forward(seconds=1)

    assert caller.get("/fhir/Patient").status_code == 403
    assert caller.post("/fhir/Patient", PATIENT).status_code == 201


def test_a_subscriber_that_is_added_again_after_suspension_works_with_its_old_token(doors: Doors):
    caller = doors.caller(RECEIVE, name="clinic")
    doors.server.principals.suspend("clinic")

    doors.server.principals.add("clinic", [RECEIVE])

    assert caller.get("/fhir/Patient").status_code == 200


def test_a_subscriber_sees_only_its_own_contracts(doors: Doors):
    doors.caller(RECEIVE, name="other")
    caller = doors.caller(RECEIVE, name="clinic")

    bundle = caller.get("/fhir/Contract").json

    subjects = {entry["resource"]["subject"][0]["reference"] for entry in bundle["entry"]}
    (mine,) = [each for each in doors.server.principals.subscribers() if each.name == "clinic"]
    assert subjects == {mine.organization}


def test_a_contract_of_another_subscriber_is_not_even_known(doors: Doors):
    doors.caller(RECEIVE, name="other")
    caller = doors.caller(RECEIVE, name="clinic")
    (other,) = [each for each in doors.server.principals.subscribers() if each.name == "other"]
    foreign = doors.server.own.find_one("Contract", "subject", other.organization)

    assert caller.get(f"/fhir/Contract/{foreign.id}").status_code == 404


def test_unknown_types_are_not_told_to_strangers(doors: Doors):
    assert doors.stranger.get("/fhir/Unicorn").status_code == 401


def test_tokens_are_stored_only_as_digests(doors: Doors):
    caller = doors.caller(RECEIVE)

    stored = str(list(doors.server.database.tokens.find()))

    assert caller.token.startswith("fis_")
    assert caller.token not in stored
    assert len(caller.token) >= len("fis_") + 43  # 256 bits in base64


def test_subscribers_are_listed_with_their_rights(doors: Doors):
    doors.server.principals.add("b", [RECEIVE])
    doors.server.principals.add("a", [REGISTER, RECEIVE])
    doors.server.principals.suspend("b")

    listed = doors.server.principals.subscribers()

    assert [(each.name, each.suspended) for each in listed] == [("a", False), ("b", True)]
    assert listed[0].rights == {REGISTER, RECEIVE}


def test_a_registration_that_was_interrupted_is_completed_by_repeating_it(doors: Doors):
    doors.server.principals.add("clinic", [RECEIVE])
    doors.server.database.clients.delete_many({})

    doors.server.principals.add("clinic", [RECEIVE])

    assert doors.caller(RECEIVE, name="clinic").get("/fhir/Patient").status_code == 200


def test_a_token_of_an_organization_that_is_no_more_is_401(doors: Doors):
    caller = doors.caller(RECEIVE, name="clinic")
    (clinic,) = doors.server.principals.subscribers()
    doors.server.own.delete("Organization", clinic.organization.removeprefix("Organization/"))

    assert caller.get("/fhir/Patient").status_code == 401
