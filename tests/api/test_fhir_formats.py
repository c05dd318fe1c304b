"""Forms of what comes in and goes out at the FHIR door. Expected values: FHIR R4 http 3.1.0.1.10-11, xml, json."""

import gzip
from collections.abc import Iterator
from typing import Any

import pytest
from fhir.resources.R4B.bundle import Bundle
from fhir.resources.R4B.operationoutcome import OperationOutcome
from pymongo.database import Database

from fhir_server.model.xml import from_xml
from tests.support.doors import Caller, Doors, opened

XML = "application/fhir+xml"
PATIENT = '<Patient xmlns="http://hl7.org/fhir"><name><family value="Müller"/></name><gender value="other"/></Patient>'


@pytest.fixture(scope="module")
def doors(module_db: Database[dict[str, Any]]) -> Iterator[Doors]:
    with opened(module_db) as made:
        yield made


def sent(caller: Caller, method: str, path: str, text: str, *, kind: str = XML, **headers: str) -> Any:
    return caller.call(method, path, data=text.encode(), headers={"Content-Type": kind, **headers})


def made(both: Caller) -> str:
    response = sent(both, "POST", "/fhir/Patient", PATIENT)
    assert response.status_code == 201, response.text
    return response.headers["Location"].removeprefix("http://images.test").partition("/_history")[0]


def read(response: Any) -> dict[str, Any]:
    assert response.content_type == f"{XML}; charset=utf-8"
    return from_xml(response.data, most_levels=100)


# ---- what goes out


@pytest.mark.parametrize(
    ("query", "accept", "kind"),
    [
        ("", "application/fhir+xml", XML),
        ("", "application/xml", XML),
        ("", "text/xml;q=0.9, application/fhir+json;q=0.8", XML),
        ("", "application/fhir+xml;q=0.1, application/fhir+json", "application/fhir+json"),
        ("", "application/fhir+xml;q=0, */*", "application/fhir+json"),
        ("", "application/fhir+xml; fhirVersion=4.0", XML),
        ("", "application/fhir+xml; fhirVersion=3.0, application/json", "application/fhir+json"),
        ("", "*/*", "application/fhir+json"),
        ("?_format=xml", "application/fhir+json", XML),
        ("?_format=json", "application/fhir+xml", "application/fhir+json"),
        ("?_format=application/fhir%2Bxml", "", XML),
        ("?_format=application/fhir+xml", "", XML),
        ("?_format=text/xml", "image/png", XML),
    ],
)
def test_the_form_is_negotiated(both, query, accept, kind):
    response = both.get(f"{made(both)}{query}", headers={"Accept": accept})

    assert response.status_code == 200
    assert response.content_type == f"{kind}; charset=utf-8"
    assert "Accept" in response.headers["Vary"]


@pytest.mark.parametrize(
    ("query", "accept"),
    [
        ("", "image/png"),
        ("", "text/turtle"),
        ("", "application/fhir+xml; fhirVersion=5.0"),
        ("", "application/fhir+json; fhirVersion=3.0"),
        ("?_format=ttl", "application/fhir+json"),
        ("?_format=*/*", ""),
        ("?_format=xml;fhirVersion=3.0", ""),
        ("?_format=", ""),
    ],
)
def test_what_is_not_spoken_here_is_406(both, query, accept):
    assert both.get(f"{made(both)}{query}", headers={"Accept": accept}).status_code == 406


def test_a_resource_is_the_same_in_both_forms(both):
    address = made(both)

    assert read(both.get(address, headers={"Accept": XML})) == both.get(address).json


def test_pretty_xml_is_the_same_in_lines(both):
    address = made(both)

    response = both.get(f"{address}?_format=xml&_pretty=true")

    assert b'\n  <gender value="other"/>\n' in response.data
    assert read(response) == both.get(address).json


def test_bundles_errors_and_the_statement_come_as_xml_too(both):
    address = made(both)
    accept = {"Accept": XML}

    found = both.get("/fhir/Patient?_count=1", headers=accept)
    history = both.get(f"{address}/_history", headers=accept)
    error = both.get("/fhir/Patient/unknown", headers=accept)
    unknown = both.get("/fhir/Patient?shoe-size=44", headers=accept)
    statement = both.get("/fhir/metadata?_format=xml")

    assert Bundle.model_validate_xml(found.data).type == "searchset"
    assert Bundle.model_validate_xml(history.data).type == "history"
    assert OperationOutcome.model_validate_xml(error.data).issue[0].code == "not-found"
    assert (error.status_code, unknown.status_code) == (404, 400)
    assert "application/fhir+xml" in read(statement)["format"]


def test_an_error_about_the_form_comes_as_json(both):
    response = both.get("/fhir/Patient", headers={"Accept": "text/turtle"})

    assert response.json["resourceType"] == "OperationOutcome"


# ---- what comes in


@pytest.mark.parametrize("kind", [XML, "application/xml", "text/xml", f"{XML}; charset=utf-8; fhirVersion=4.0"])
def test_xml_is_taken(both, kind):
    response = sent(both, "POST", "/fhir/Patient", PATIENT, kind=kind)

    assert (response.status_code, response.json["name"][0]["family"]) == (201, "Müller")


def test_what_came_as_xml_goes_as_xml(both):
    address = made(both)
    identifier = address.rpartition("/")[2]
    changed = PATIENT.replace("<name>", f'<id value="{identifier}"/><name>').replace("other", "female")

    response = sent(both, "PUT", address, changed, Accept=XML)

    assert (response.status_code, read(response)["gender"]) == (200, "female")


def test_digits_survive_both_forms(both):
    text = (
        '<Observation xmlns="http://hl7.org/fhir"><status value="final"/><code><text value="x"/></code>'
        '<valueQuantity><value value="1.50"/></valueQuantity></Observation>'
    )

    response = sent(both, "POST", "/fhir/Observation", text)

    assert b'"value":1.50' in response.data
    address = response.headers["Location"].removeprefix("http://images.test")
    assert b'<value value="1.50"/>' in both.get(address, headers={"Accept": XML}).data


def test_patches_and_transactions_come_as_xml(both):
    address = made(both)
    patch = (
        '<Parameters xmlns="http://hl7.org/fhir"><parameter><name value="operation"/>'
        '<part><name value="type"/><valueCode value="delete"/></part>'
        '<part><name value="path"/><valueString value="Patient.gender"/></part></parameter></Parameters>'
    )
    transaction = (
        '<Bundle xmlns="http://hl7.org/fhir"><type value="transaction"/><entry><resource>'
        f"{PATIENT.replace(' xmlns=', ' xmlns:x=')}</resource>"
        '<request><method value="POST"/><url value="Patient"/></request></entry></Bundle>'
    )

    patched = sent(both, "PATCH", address, patch)
    done = sent(both, "POST", "/fhir", transaction, Accept=XML)

    assert (patched.status_code, "gender" in patched.json) == (200, False)
    assert read(done)["entry"][0]["response"]["status"] == "201 Created"


@pytest.mark.parametrize(
    ("text", "kind", "status"),
    [
        (PATIENT, "application/fhir+json", 400),
        ("{}", XML, 400),
        (PATIENT, "text/plain", 415),
        (PATIENT, f"{XML}; charset=iso-8859-1", 415),
        (PATIENT, f"{XML}; fhirVersion=3.0", 415),
        (PATIENT.replace("other", "sometimes"), XML, 400),
        (PATIENT.replace("Patient", "Observation"), XML, 400),
        (f"<!DOCTYPE Patient>{PATIENT}", XML, 400),
        ('<?xml version="1.0" encoding="iso-8859-1"?>' + PATIENT, XML, 201),
    ],
)
def test_the_content_type_says_what_comes(both, text, kind, status):
    response = sent(both, "POST", "/fhir/Patient", text, kind=kind)

    assert response.status_code == status, response.text


def test_bytes_that_are_not_utf_8_are_refused(both):
    response = both.call(
        "POST", "/fhir/Patient", data=PATIENT.encode("latin-1"), headers={"Content-Type": "application/fhir+xml"}
    )

    assert response.status_code == 400


@pytest.mark.parametrize("div", ["<div>x</div>", '<div xmlns="http://www.w3.org/1999/xhtml"><script>x</script></div>'])
def test_a_narrative_with_active_content_is_refused(both, div):
    response = both.post("/fhir/Patient", {"resourceType": "Patient", "text": {"status": "generated", "div": div}})

    assert response.status_code == 400
    assert response.json["issue"][0]["expression"] == ["Patient.text.div"]


# ---- compression


def test_large_answers_are_compressed_for_who_takes_that(both):
    text = "abc " * 10_000
    address = both.post("/fhir/Patient", {"resourceType": "Patient", "name": [{"text": text}]}).headers["Location"]
    path = address.removeprefix("http://images.test")

    plain = both.get(path)
    packed = both.get(path, headers={"Accept-Encoding": "br, gzip"})
    refused = both.get(path, headers={"Accept-Encoding": "gzip;q=0"})
    small = both.get(made(both), headers={"Accept-Encoding": "gzip"})

    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.data) == plain.data
    assert len(packed.data) < len(plain.data) / 10
    assert int(packed.headers["Content-Length"]) == len(packed.data)
    assert "Accept-Encoding" in packed.headers["Vary"]
    assert "Content-Encoding" not in refused.headers
    assert "Content-Encoding" not in small.headers


def test_a_compressed_body_is_415(both):
    response = sent(both, "POST", "/fhir/Patient", PATIENT, **{"Content-Encoding": "gzip"})

    assert response.status_code == 415
