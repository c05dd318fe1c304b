"""The SMART FHIR client of PyPI, fhirclient, over a live socket: resources, and launches with PKCE (version 4.4)."""

import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from fhirclient.client import FHIRClient
from fhirclient.models.humanname import HumanName
from fhirclient.models.imagingstudy import ImagingStudy
from fhirclient.models.patient import Patient
from fhirclient.server import FHIRNotFoundException, FHIRPermissionDeniedException, FHIRUnauthorizedException
from werkzeug.serving import make_server

from fhir_server.access.contracts import Right
from tests.support.browser import CALLBACK, PASSWORD, Browser, TestApp, registered
from tests.support.doors import Caller, Doors, new_study, opened

SCOPE = "launch launch/patient openid fhirUser offline_access patient/*.rs"


@pytest.fixture(scope="module")
def doors(module_db) -> Iterator[Doors]:
    listener = make_server("127.0.0.1", 0, lambda *_: [], threaded=True)
    with opened(module_db, web__base_url=f"http://127.0.0.1:{listener.server_port}") as made:
        listener.app = made.flask.application
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        yield made
        listener.shutdown()
        thread.join()
        listener.server_close()


@pytest.fixture(scope="module")
def hospital(doors: Doors) -> Caller:
    """A subscriber with somebody who signs in."""
    doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="radiology")
    organization = doors.server.principals.named("radiology")
    shared = {"organization": organization, "password": PASSWORD, "fhir_user": ""}
    doors.server.sign_on.add_person("jones", name="Dr. Jones", role="practitioner", **shared)
    return Caller(doors.flask, doors.server.principals.mint("radiology"), doors.clock)


@pytest.fixture(scope="module")
def patient(doors: Doors, hospital: Caller) -> str:
    """The id of a patient with a study."""
    study, files = new_study(PatientName="Roe^Ann", PatientID="fhirclient")
    doors.ingest(*files, name="radiology")
    doors.server.studies.project(study)
    shown = doors.server.own.read("ImagingStudy", study).json()
    return str(shown["subject"]["reference"].removeprefix("Patient/"))


def client_of(doors: Doors, app: TestApp, **settings: Any) -> FHIRClient:
    given = {"app_id": app.client_id, "api_base": doors.server.fhir_url, "redirect_uri": CALLBACK, "scope": SCOPE}
    if app.secret:
        given["app_secret"] = app.secret
    return FHIRClient(settings={**given, **settings})


def agreed(doors: Doors, address: str, patient: str = "") -> str:
    """Walk somebody's browser through the pages to which the client leads; return where it is sent in the end."""
    asked = urlsplit(address)
    browser = Browser(doors.flask.application.test_client())
    page = browser.open(f"{asked.path}?{asked.query}")
    page = browser.submit(page, login="jones", password=PASSWORD)
    if patient:
        page = browser.submit(page, "/auth/patient", patient=patient)
    left = browser.submit(page, "/auth/decision", decision="allow")
    return str(left.location)


def test_resources_are_created_found_changed_and_deleted(doors: Doors):
    token = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="fhirclient").token
    client = FHIRClient(settings={"app_id": "test", "api_base": f"{doors.server.fhir_url}/"})
    client.server.session.headers["Authorization"] = f"Bearer {token}"
    patient = Patient({"name": [HumanName({"family": "Example"}).as_json()]})
    identifier = patient.create(client.server)["id"]

    found = Patient.read(identifier, client.server)
    found.gender = "female"
    changed = found.update(client.server)
    (searched,) = Patient.where({"family": "Example"}).perform_resources(client.server)
    searched.delete(client.server)

    assert (changed["meta"]["versionId"], searched.gender) == ("2", "female")
    with pytest.raises(Exception, match=r"410|GONE|Gone"):
        Patient.read(identifier, client.server)
    with pytest.raises(FHIRNotFoundException):
        Patient.read("unknown", client.server)


@pytest.mark.parametrize("method", ["none", "client_secret_basic"])
@pytest.mark.parametrize("end", ["", "/"])
def test_app_is_started_by_itself(doors: Doors, patient: str, method: str, end: str):
    app = registered(doors, "radiology", SCOPE, method=method)
    client = client_of(doors, app, api_base=f"{doors.server.fhir_url}{end}", scope="openid fhirUser patient/*.rs")

    assert not client.ready
    assert client.prepare() is False
    asked = {name: value[0] for name, value in parse_qs(urlsplit(client.authorize_url).query).items()}
    client.handle_callback(agreed(doors, client.authorize_url, patient))

    assert asked["code_challenge_method"] == "S256"
    assert client.ready
    assert client.patient_id == patient
    assert client.patient.name[0].family == "Roe"
    (study,) = ImagingStudy.where({"patient": patient}).perform_resources(client.server)
    assert study.subject.reference == f"Patient/{patient}"
    with pytest.raises(FHIRPermissionDeniedException):
        ImagingStudy.where({"patient": "another"}).perform_resources(client.server)


def test_app_that_is_started_from_an_ehr_goes_on_with_its_refresh_token(doors: Doors, hospital: Caller, patient: str):
    app = registered(doors, "radiology", SCOPE, launch_uri="https://app.example.org/launch")
    launch = hospital.post("/auth/launch", {"client_id": app.client_id, "patient": patient}).json["launch"]
    saved: list[dict[str, Any]] = []
    client = client_of(doors, app, launch_token=launch, scope="offline_access patient/*.rs")
    client._save_func = saved.append
    client.prepare()
    client.handle_callback(agreed(doors, client.authorize_url))
    assert client.launch_context["patient"] == patient

    doors.clock.forward(hours=2)
    with pytest.raises(FHIRUnauthorizedException):
        Patient.read(patient, client.server)
    again = FHIRClient(state=saved[-1])
    again.reauthorize()

    assert again.patient.id == patient


def test_code_of_somebody_else_is_of_no_use(doors: Doors, patient: str):
    """PKCE: the same app in another browser has another verifier."""
    app = registered(doors, "radiology", SCOPE)
    mine, other = (client_of(doors, app, scope="patient/*.rs") for _ in range(2))
    mine.prepare(), other.prepare()
    stolen = agreed(doors, mine.authorize_url, patient)
    assert other.authorize_url
    other.server.auth.auth_state = mine.server.auth.auth_state

    with pytest.raises(Exception, match="400"):
        other.handle_callback(stolen)
