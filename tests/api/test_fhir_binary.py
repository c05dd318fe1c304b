"""Binary resources as content, and who may read them. Expected values: FHIR R4 Binary 2.40.1 to 2.40.3."""

import base64
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from pymongo.database import Database

from fhir_server.access.contracts import Right
from fhir_server.access.grants import Grant
from fhir_server.access.scopes import Scopes
from tests.support.doors import FHIR, Caller, Doors, opened

Json = dict[str, Any]
PICTURE = bytes(range(256)) * 40
FHIR_JSON = {"Accept": "application/fhir+json"}


@pytest.fixture(scope="module")
def doors(module_db: Database[Json]) -> Iterator[Doors]:
    with opened(module_db, limits__resource_bytes="64KiB") as made:
        yield made


@pytest.fixture(scope="module")
def both(doors: Doors) -> Caller:
    return doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="both")


def stored(caller: Caller, content: bytes = PICTURE, media: str = "image/png", **headers: str) -> str:
    """Send content, and return the address of the Binary."""
    response = caller.call("POST", "/fhir/Binary", data=content, headers={"Content-Type": media, **headers})
    assert response.status_code == 201, response.text
    return f"/fhir/Binary/{response.headers['Location'].split('/Binary/')[1].partition('/')[0]}"


def narrow(doors: Doors, scopes: str) -> Caller:
    client = doors.server.principals.add("apps", [Right.RECEIVE_IMAGES, Right.REGISTER_IMAGES]).clients[0]
    given = Grant(client, Scopes.parse(scopes), doors.clock() + timedelta(minutes=5))
    return Caller(doors.flask, doors.server.principals.issue(given), doors.clock)


def test_content_comes_in_and_goes_out_as_it_is(both):
    address = stored(both)

    plain, wanted, any_image = (
        both.get(address, headers=each) for each in ({}, {"Accept": "image/png"}, {"Accept": "image/*"})
    )

    assert [each.data for each in (plain, wanted, any_image)] == [PICTURE] * 3
    assert [each.mimetype for each in (plain, wanted, any_image)] == ["image/png"] * 3
    assert (plain.headers["ETag"], plain.headers["X-Content-Type-Options"]) == ('W/"1"', "nosniff")
    assert plain.headers["Content-Security-Policy"].startswith("sandbox")


@pytest.mark.parametrize("ask", ["application/fhir+json", "application/json", "application/fhir+xml", "_format=json"])
def test_the_resource_is_shown_to_who_asks_for_fhir(both, ask):
    address = stored(both)

    response = both.get(f"{address}?{ask}") if "=" in ask else both.get(address, headers={"Accept": ask})

    assert response.status_code == 200
    if "xml" in ask:
        assert base64.b64encode(PICTURE).decode() in response.text
    else:
        assert base64.b64decode(response.json["data"]) == PICTURE
        assert response.json["contentType"] == "image/png"


def test_another_media_type_is_not_acceptable(both):
    response = both.get(stored(both), headers={"Accept": "application/pdf"})

    assert (response.status_code, response.json["issue"][0]["code"]) == (406, "not-supported")


def test_a_resource_that_was_stored_as_fhir_goes_out_as_content(both):
    made = both.post("/fhir/Binary", {"resourceType": "Binary", "contentType": "text/plain", "data": "eMOk"}).json

    response = both.get(f"/fhir/Binary/{made['id']}")

    assert (response.data.decode(), response.mimetype) == ("xä", "text/plain")


def test_content_is_replaced_as_a_version_and_the_old_one_stays(both):
    address = stored(both, b"one", "text/plain; charset=utf-8")

    changed = both.call("PUT", address, data=b"two", headers={"Content-Type": "text/plain", "If-Match": 'W/"1"'})
    refused = both.call("PUT", address, data=b"three", headers={"Content-Type": "text/plain", "If-Match": 'W/"1"'})

    assert (changed.status_code, refused.status_code) == (200, 412)
    assert [both.get(path).data for path in (address, f"{address}/_history/1")] == [b"two", b"one"]
    assert both.get(f"{address}/_history/1").headers["Content-Type"] == "text/plain; charset=utf-8"
    assert both.get(address, headers={"If-None-Match": 'W/"2"'}).status_code == 304


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"", {"Content-Type": "image/png"}, 400),
        (b"x", {"Content-Type": "no media type"}, 415),
        (b"x", {"Content-Type": "image/png", "Content-Encoding": "gzip"}, 415),
        (b"x" * 50_000, {"Content-Type": "image/png"}, 413),
        (b"x", {"Content-Type": "image/png", "X-Security-Context": "not a reference\x7f"}, 400),
        (b"x", {"Content-Type": "application/fhir+json"}, 400),
        (b"x", {}, 415),
    ],
)
def test_what_cannot_be_stored(both, content, headers, status):
    response = both.call("POST", "/fhir/Binary", data=content, headers=headers)

    assert (response.status_code, response.json["resourceType"]) == (status, "OperationOutcome")


def test_a_media_type_that_would_break_the_answer_goes_out_as_octets(doors: Doors, both):
    made = doors.server.own.create({"resourceType": "Binary", "contentType": "text/html\r\nX-Evil: 1", "data": "eA=="})

    response = both.get(f"/fhir/Binary/{made.id}")

    assert (response.mimetype, response.data) == ("application/octet-stream", b"x")
    assert "X-Evil" not in response.headers


def test_only_who_may_read_its_context_reads_a_binary(doors: Doors, both):
    patient = both.post("/fhir/Patient", {"resourceType": "Patient"}).json["id"]
    address = stored(both, **{"X-Security-Context": f"Patient/{patient}"})
    free = stored(both)
    binaries = narrow(doors, "system/Binary.cruds")
    patients = narrow(doors, "system/Binary.cruds system/Patient.r")

    assert both.get(address).headers["X-Security-Context"] == f"Patient/{patient}"
    assert both.get(address, headers=FHIR_JSON).json["securityContext"] == {"reference": f"Patient/{patient}"}
    for path in (address, f"{address}/_history/1", f"{address}/_history", f"{address}/$meta"):
        assert (
            binaries.get(path, headers=FHIR_JSON).status_code,
            patients.get(path, headers=FHIR_JSON).status_code,
        ) == (404, 200)
    assert binaries.get(address).status_code == 404
    assert binaries.call("PUT", address, data=b"x", headers={"Content-Type": "text/plain"}).status_code == 404
    assert binaries.get(free).status_code == 200
    assert both.delete(f"/fhir/Patient/{patient}").status_code == 204
    assert [caller.get(address).status_code for caller in (both, patients)] == [404, 404]


def test_a_deleted_binary_is_not_told_of_either(doors: Doors, both):
    patient = both.post("/fhir/Patient", {"resourceType": "Patient"}).json["id"]
    address = stored(both, **{"X-Security-Context": f"{FHIR}/Patient/{patient}"})
    both.delete(address)

    assert [each.get(address).status_code for each in (both, narrow(doors, "system/Binary.rs"))] == [410, 404]


@pytest.mark.parametrize("context", ["Binary/1", "http://elsewhere.test/Patient/1", "Patient/unknown"])
def test_a_context_that_cannot_be_looked_at_opens_to_nobody(both, context):
    address = stored(both, **{"X-Security-Context": context})

    assert both.get(address).status_code == 404


def test_searches_and_histories_find_what_has_no_context(both):
    patient = both.post("/fhir/Patient", {"resourceType": "Patient"}).json["id"]
    hidden = stored(both, **{"X-Security-Context": f"Patient/{patient}"}).removeprefix("/fhir/")
    free = stored(both).removeprefix("/fhir/")

    for path in ("/fhir/Binary?_count=1000", "/fhir/Binary/_history?_count=1000", "/fhir/_history?_count=1000"):
        found = {each["fullUrl"].removeprefix(f"{FHIR}/") for each in both.get(path).json["entry"]}
        assert (hidden in found, free in found) == (False, True)


def test_browsers_get_the_page(both):
    response = both.get(
        stored(both), headers={"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
    )

    assert response.mimetype == "text/html"
