"""Tokens of another authorization server. Expected values: RFC 7662, RFC 9068, RFC 8725, SMART Imaging Access 0.1.0."""

import hmac
import json
import threading
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from fhir_server.access.contracts import Right
from fhir_server.access.grants import Role
from imaging.errors import AppError
from tests.support.doors import FHIR, Caller, Doors, new_study, opened

EHR, SYSTEM = "https://ehr.example.org", "https://ehr.example.org/patients"
KEY, OTHER = RSAKey.generate_key(2048, {"kid": "one"}), RSAKey.generate_key(2048, {"kid": "one"})
CURVE = ECKey.generate_key("P-256", {"kid": "two"})


class Ehr:
    """An authorization server on the loopback: publishes keys, answers introspections and counts them."""

    def __init__(self) -> None:
        self.tokens: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.keys = [KEY, CURVE]
        self.status = 200
        ehr = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer({"keys": [each.as_dict(private=False) for each in ehr.keys]})

            def do_POST(self) -> None:
                body = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                ehr.asked.append(body["token"][0])
                is_known = self.headers["Authorization"] == "Basic aW1hZ2VzOnMlM0FjcmV0"  # images:s%3Acret
                self.answer(ehr.tokens.get(body["token"][0], {"active": False}) if is_known else {"active": False})

            def answer(self, told: Any) -> None:
                body = json.dumps(told).encode()
                self.send_response(ehr.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture(scope="module")
def ehr() -> Iterator[Ehr]:
    made = Ehr()
    yield made
    made.server.shutdown()
    made.server.server_close()


def filled(doors: Doors) -> dict[str, str]:
    """Let the EHR's subscriber in, store a study of two of its patients, and return them by the EHR's ids."""
    doors.server.principals.add("ehr", [Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES])
    return {patient: known_to_the_ehr(doors, patient)[0] for patient in ("E1", "E2")}


def known_to_the_ehr(doors: Doors, patient: str) -> tuple[str, str]:
    """Store a study of a patient of the EHR; return its UID and the Patient, who has the EHR's id."""
    study, files = new_study(PatientID=patient)
    doors.ingest(*files, name="ehr")
    doors.server.studies.project(study)
    subject = doors.server.own.read("ImagingStudy", study).json()["subject"]["reference"]
    shown = doors.server.own.read(*subject.split("/")).json()
    doors.server.own.update({**shown, "identifier": [*shown["identifier"], {"system": SYSTEM, "value": patient}]})
    return study, subject


SETTINGS = {"issuer__url": EHR, "issuer__subscriber": "ehr", "issuer__patient_system": SYSTEM,
            "outbound__private_networks": "127.0.0.0/8"}  # fmt: skip


@pytest.fixture(scope="module", params=["signed", "introspected"])
def scene(mongo, ehr: Ehr, request) -> Iterator[tuple[Doors, dict[str, str], str]]:
    database = mongo[f"test_{uuid4().hex}"]
    how = {
        "signed": {"issuer__jwks_url": f"{ehr.address}/jwks"},
        "introspected": {"issuer__introspection_url": f"{ehr.address}/introspect", "issuer__client_id": "images",
                         "issuer__client_secret": "s:cret"},
    }[request.param]  # fmt: skip
    with opened(database, **SETTINGS, **how) as doors:
        yield doors, filled(doors), request.param
    mongo.drop_database(database.name)


def claims_of(doors: Doors, **changes: Any) -> dict[str, Any]:
    now = doors.clock().timestamp()
    found = {"iss": EHR, "aud": FHIR, "exp": int(now) + 300, "client_id": "viewer", "patient": "E1",
             "scope": "launch patient/ImagingStudy.rs"} | changes  # fmt: skip
    return {name: it for name, it in found.items() if it is not None}


def caller_with(scene, ehr: Ehr, **changes: Any) -> Caller:
    doors, _, how = scene
    claims = claims_of(doors, **changes)
    token = jwt.encode({"alg": "RS256", "kid": "one", "typ": "at+jwt"}, claims, KEY) if how == "signed" else uuid4().hex
    ehr.tokens[token] = {"active": True, **claims}
    return Caller(doors.flask, token, doors.clock)


def found(caller: Caller, path: str = "/fhir/ImagingStudy") -> set[str]:
    answer = caller.get(path)
    assert answer.status_code == 200, answer.text
    return {each["resource"]["id"] for each in answer.json.get("entry", [])}


def test_the_patient_of_the_issuer_is_the_one_here_that_has_its_id(scene, ehr):
    _, studies, _ = scene
    caller = caller_with(scene, ehr)

    assert found(caller) == {studies["E1"]}
    for named in ("E1", "Patient/E1"):  # as the app knows the patient from its launch
        assert found(caller, f"/fhir/ImagingStudy?patient={named}") == {studies["E1"]}
    assert caller.get("/fhir/ImagingStudy?patient=E2").status_code == 403
    assert caller.get(f"/dicom-web/studies/{studies['E1']}/metadata").status_code == 200
    assert caller.get(f"/dicom-web/studies/{studies['E2']}/metadata").status_code == 404


def test_a_patient_who_was_merged_is_the_one_that_took_the_place(scene, ehr):
    doors, _, _ = scene
    (one, source), (other, target) = (known_to_the_ehr(doors, patient) for patient in ("E8", "E9"))
    owner = Caller(doors.flask, doors.server.principals.mint("ehr"), doors.clock)
    merge = f"/fhir/Patient/$merge?source-patient={source}&target-patient={target}"

    assert owner.post(merge, {"resourceType": "Parameters"}).status_code == 200

    seen = [found(caller_with(scene, ehr, patient=patient)) for patient in ("E8", "E9")]
    for each in (one, other):  # the scene is shared
        assert owner.delete(f"/dicom-web/studies/{each}").status_code < 300
    assert seen == [{one, other}, {one, other}]


@pytest.mark.parametrize("patient", ["E3", "", "../E1", None])
def test_a_patient_who_is_not_known_here_gives_nothing(scene, ehr, patient):
    assert caller_with(scene, ehr, patient=patient).get("/fhir/ImagingStudy").status_code == 403


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://evil.example.org"},
        {"iss": f"{EHR}/"},
        {"aud": "https://another.example.org/fhir"},
        {"aud": ["https://another.example.org/fhir"]},
        {"exp": 1},
        {"exp": None},
        {"exp": "never"},
        {"nbf": 32503680000},
    ],
    ids=str,
)
def test_a_token_that_is_not_for_now_and_here_is_401(scene, ehr, changes):
    assert caller_with(scene, ehr, **changes).get("/fhir/ImagingStudy").status_code == 401


def test_a_list_of_audiences_may_name_this_server(scene, ehr):
    assert caller_with(scene, ehr, aud=["https://x.example.org", FHIR]).get("/fhir/ImagingStudy").status_code == 200


@pytest.mark.parametrize(
    ("user", "scope", "seen"),
    [
        (None, "system/ImagingStudy.rs", 2),
        (f"{EHR}/Practitioner/7", "user/ImagingStudy.rs", 2),
        (f"{EHR}/Practitioner/7", "system/ImagingStudy.rs", None),
        (f"{EHR}/Patient/E1", "user/ImagingStudy.rs", 1),
        (f"{EHR}/Device/7", "system/ImagingStudy.rs user/ImagingStudy.rs", None),
        (f"{EHR}/Device/7", "patient/ImagingStudy.rs", 1),
    ],
)
def test_a_user_of_the_issuer_has_a_role_by_what_it_is(scene, ehr, user, scope, seen):
    caller = caller_with(scene, ehr, fhirUser=user, scope=scope)

    answer = caller.get("/fhir/ImagingStudy?_total=accurate")

    assert (answer.json["total"] if answer.status_code == 200 else None) == seen


def test_what_the_contract_of_the_subscriber_does_not_give_no_scope_does(scene, ehr):
    caller = caller_with(scene, ehr, scope="system/*.cruds")

    assert caller.get("/fhir/AuditEvent").status_code == 403
    assert caller.post("/fhir/CodeSystem", {"resourceType": "CodeSystem"}).status_code == 403


def test_tokens_of_this_server_go_on_working(scene):
    doors, studies, _ = scene
    caller = Caller(doors.flask, doors.server.principals.mint("ehr"), doors.clock)

    assert found(caller) == set(studies.values())
    assert doors.stranger.get("/fhir/Patient", headers={"Authorization": "Bearer fis_unknown"}).status_code == 401


def test_the_grant_of_a_foreign_token_has_its_role_and_client(scene, ehr):
    doors = scene[0]
    grant = doors.server.principals.authenticate(caller_with(scene, ehr, fhirUser="Practitioner/7").token).grant

    assert (grant.client_id, grant.user, grant.role) == ("viewer", "Practitioner/7", Role.PRACTITIONER)
    assert grant.called == "Patient/E1"


def test_the_record_names_the_user_as_one_of_the_issuer(scene, ehr):
    """No resource here has this name, or another person has."""
    doors = scene[0]
    caller = caller_with(scene, ehr, fhirUser="Practitioner/7", scope="user/*.rs")
    found(caller)

    bodies = doors.server.database["resources"].find({"_id": {"$regex": "^AuditEvent/"}}, {"body": 1})
    people = [each for row in bodies for each in json.loads(row["body"])["agent"] if "type" in each]

    assert people
    assert all(each["who"]["identifier"]["system"] == EHR for each in people)
    assert {"system": EHR, "value": "Practitioner/7"} in [each["who"]["identifier"] for each in people]


def test_a_token_is_believed_for_the_time_of_the_cache_and_not_beyond_its_end(scene, ehr):
    doors, _, how = scene
    if how == "signed":
        pytest.skip("nobody is asked about a signed token")
    caller = caller_with(scene, ehr)
    for _ in range(3):
        assert caller.get("/fhir/ImagingStudy").status_code == 200
    assert ehr.asked.count(caller.token) == 1

    ehr.tokens[caller.token] = {"active": False}
    doors.clock.forward(seconds=1)

    assert caller.get("/fhir/ImagingStudy").status_code == 401


def test_an_issuer_that_does_not_answer_is_a_passing_trouble(scene, ehr):
    if scene[2] == "signed":
        pytest.skip("nobody is asked about a signed token")
    ehr.status = 500

    answer = caller_with(scene, ehr).get("/fhir/ImagingStudy")

    ehr.status = 200
    assert answer.status_code == 503
    assert "Retry-After" in answer.headers


def signed(header: dict[str, Any], claims: dict[str, Any], key: Any) -> str:
    return jwt.encode(header, claims, key, algorithms=[header["alg"]])


def test_only_signatures_of_the_issuers_keys_are_taken(scene, ehr):
    """RFC 8725: no other key, no `none`, no MAC with a public key, no key of the token's own."""
    doors, _, how = scene
    if how != "signed":
        pytest.skip("about signed tokens")
    claims = claims_of(doors)
    unsigned = signed({"alg": "RS256", "kid": "one"}, claims, KEY).split(".")
    forged = {
        "another key": signed({"alg": "RS256", "kid": "one"}, claims, OTHER),
        "its own key": signed({"alg": "RS256", "kid": "one", "jwk": OTHER.as_dict(private=False)}, claims, OTHER),
        "a MAC": maced(unsigned[1]),
        "none": f"eyJhbGciOiJub25lIn0.{unsigned[1]}.",
        "no signature": ".".join([*unsigned[:2], ""]),
        "nonsense": "a.b.c",
    }

    answers = {name: Caller(doors.flask, token, doors.clock).get("/fhir/ImagingStudy").status_code
               for name, token in forged.items()}  # fmt: skip

    assert set(answers.values()) == {401}, answers
    curve = Caller(doors.flask, signed({"alg": "ES256", "kid": "two"}, claims, CURVE), doors.clock)
    assert curve.get("/fhir/ImagingStudy").status_code == 200


def maced(claims: str) -> str:
    """Return a token whose MAC is made with the published key as the secret."""
    header = urlsafe_b64encode(b'{"alg":"HS256","kid":"one"}').decode().rstrip("=")
    mac = hmac.digest(KEY.as_pem(private=False), f"{header}.{claims}".encode(), "sha256")
    return f"{header}.{claims}.{urlsafe_b64encode(mac).decode().rstrip('=')}"


@pytest.mark.parametrize("settings", [{"issuer__url": EHR}, {"issuer__url": EHR, "issuer__subscriber": "x"},
                                      {"issuer__url": EHR, "issuer__jwks_url": "https://x/jwks"}])  # fmt: skip
def test_an_issuer_that_is_half_set_is_refused_at_the_start(db, settings):
    with pytest.raises(AppError, match="issuer"), opened(db, **settings):
        pass


def test_without_an_issuer_no_foreign_token_is_looked_at(db):
    with opened(db) as doors:
        assert doors.stranger.get("/fhir/Patient", headers={"Authorization": "Bearer a.b.c"}).status_code == 401
