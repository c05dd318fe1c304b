"""People who look at FHIR resources in a browser, as who they signed in. Expected values: W3C Fetch Metadata."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from pymongo.database import Database
from werkzeug.test import TestResponse

from fhir_server.access.contracts import Right
from tests.support.browser import PASSWORD, Browser
from tests.support.doors import BASE_URL, Caller, Doors, opened

VISIT = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "Sec-Fetch-Mode": "navigate"}


@pytest.fixture(scope="module")
def doors(module_db: Database[dict[str, Any]]) -> Iterator[Doors]:
    with opened(module_db) as made:
        for name in ("radiology", "elsewhere"):
            made.server.principals.add(name, [Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES], is_own=True)
        yield made


@pytest.fixture(scope="module")
def patients(doors: Doors) -> dict[str, str]:
    """Of Ann and of Bob, of radiology; of somebody of elsewhere."""
    found = {}
    for family, subscriber in (("Ann", "radiology"), ("Bob", "radiology"), ("Else", "elsewhere")):
        caller = Caller(doors.flask, doors.server.principals.mint(subscriber), doors.clock)
        made = caller.post("/fhir/Patient", {"resourceType": "Patient", "name": [{"family": family}]})
        found[family] = f"/fhir/Patient/{made.json['id']}"
    organization = doors.server.principals.named("radiology")
    shared = {"organization": organization, "password": PASSWORD}
    add = doors.server.sign_on.add_person
    add("jones", name="Dr. Jones", role="practitioner", fhir_user="", **shared)
    add("ann", name="Ann", role="patient", fhir_user=found["Ann"].removeprefix("/fhir/"), **shared)
    add("watch", name="W. Watch", role="auditor", fhir_user="", **shared)
    return found


@pytest.fixture
def browser(doors: Doors) -> Browser:
    doors.clock.forward(seconds=1)
    return Browser(doors.flask.application.test_client())


@pytest.fixture
def jones(browser: Browser, patients: dict[str, str]) -> Browser:
    browser.sign_in("jones")
    return browser


def visit(browser: Browser, path: str, **changes: str) -> TestResponse:
    return browser.flask.get(path, headers={**VISIT, **changes}, base_url=BASE_URL)


def test_who_is_not_signed_in_is_led_there_and_back(browser, patients):
    refused = visit(browser, f"{patients['Ann']}?_elements=name")

    assert (refused.status_code, refused.mimetype) == (401, "text/html")
    assert "sign in to see this page" in refused.text
    (address,) = re.findall(r'href="(/auth/sign-in[^"]*)"', refused.text)
    shown = browser.submit(browser.open(address.replace("&amp;", "&")), login="jones", password=PASSWORD)
    assert shown.request.full_path == f"{patients['Ann']}?_elements=name"


def test_a_practitioner_sees_what_its_hospital_may_see_and_nothing_else(jones, patients):
    read = visit(jones, patients["Bob"])
    found = visit(jones, "/fhir/Patient")

    assert (read.status_code, read.mimetype) == (200, "text/html")
    assert "Bob" in read.text
    assert re.findall(r'href="(/auth/[^"]*)"', read.text) == ["/auth/"]
    shown = {key for key in patients if f"{patients[key]}&quot;" in found.text or f'{patients[key]}"' in found.text}
    assert shown == {"Ann", "Bob"}
    assert visit(jones, patients["Else"]).status_code == 404
    assert visit(jones, f"{patients['Bob']}/_history").status_code == 200
    assert visit(jones, f"{patients['Bob']}?_format=json").json["name"] == [{"family": "Bob"}]


def test_a_patient_sees_itself_alone(browser, patients):
    browser.sign_in("ann")

    assert visit(browser, patients["Ann"]).status_code == 200
    assert visit(browser, patients["Bob"]).status_code == 404
    assert "Bob" not in visit(browser, "/fhir/Patient").text


def test_a_role_without_images_sees_none(browser, patients):
    browser.sign_in("watch")

    assert visit(browser, patients["Ann"]).status_code == 403
    assert visit(browser, "/fhir/ImagingStudy").status_code == 403


def test_a_session_that_was_ended_opens_nothing(doors, jones, patients):
    assert visit(jones, patients["Ann"]).status_code == 200

    jones.submit(jones.open("/auth/"), "sign-out")

    assert visit(jones, patients["Ann"]).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Mode": "cors"},
        {"Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Mode": "same-origin"},
        {"Accept": "application/fhir+json"},
        {"Accept": "*/*"},
        {"Accept": "text/html;q=0, */*"},
    ],
)
def test_what_no_person_goes_to_needs_a_token(jones, patients, headers):
    assert visit(jones, patients["Ann"], **headers).status_code == 401


def test_a_token_that_is_shown_counts_alone(jones, patients):
    assert visit(jones, patients["Ann"], Authorization="Bearer wrong").status_code == 401
    assert visit(jones, patients["Ann"], Authorization="Basic am9uZXM6eA==").status_code == 401


def test_nothing_is_changed_by_a_session(jones, patients):
    ask = {"base_url": BASE_URL, "headers": {**VISIT, "Content-Type": "application/fhir+json"}}
    patient = {"resourceType": "Patient"}

    assert jones.flask.post("/fhir/Patient", json=patient, **ask).status_code == 401
    assert jones.flask.put(patients["Ann"], json=patient, **ask).status_code == 401
    assert jones.flask.patch(patients["Ann"], json=[], **ask).status_code == 401
    assert jones.flask.delete(patients["Ann"], **ask).status_code == 401
    assert jones.flask.post("/fhir", json={"resourceType": "Bundle", "type": "batch"}, **ask).status_code == 401
    assert jones.flask.post("/fhir/Patient/_search", base_url=BASE_URL, headers=VISIT).status_code == 401


@pytest.mark.parametrize("path", ["/fhir/$export", "/fhir/Patient/$everything", "/fhir/Binary/1", "/fhir/Binary"])
def test_operations_and_content_that_others_wrote_need_a_token(jones, patients, path):
    assert visit(jones, path).status_code == 401


def test_images_need_a_token(jones, patients):
    assert visit(jones, "/dicom-web/studies").status_code == 401


def test_what_was_looked_at_is_on_record_with_who_looked(doors, jones, patients):
    doors.server.principals.add("auditing", [Right.AUDIT])
    auditor = Caller(doors.flask, doors.server.principals.mint("auditing"), doors.clock)
    visit(jones, patients["Bob"])

    found = auditor.get("/fhir/AuditEvent?_count=10&subtype=read").json["entry"]

    event = next(each["resource"] for each in found if each["resource"]["agent"][0].get("altId") == "browser")
    assert event["entity"][0]["what"]["reference"] == patients["Bob"].removeprefix("/fhir/")
    subscriber, person = event["agent"]
    assert subscriber["who"]["reference"] == doors.server.principals.named("radiology")
    assert person["type"]["coding"][0]["code"] == "IRCP"
    looked = auditor.get(f"/fhir/AuditEvent?agent={person['who']['reference']}&subtype=read").json["entry"]
    assert next(each["resource"]["id"] for each in looked) == event["id"]
    assert doors.server.own.read(*person["who"]["reference"].split("/")).json()["name"][0]["text"] == "Dr. Jones"


def test_the_first_page_leads_who_is_signed_in_to_resources(browser, jones):
    page = jones.open("/")

    for path in re.findall(r'href="(/fhir/[^"]*)"', page.text):
        assert visit(jones, path).status_code == 200, path
    assert '"/fhir/ImagingStudy?_sort=-started"' in page.text
