"""Bad input at the FHIR door: a clear refusal, soon, with nothing stored. Expected values: FHIR R4 http 3.1.0.1.5."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from pymongo.database import Database

from tests.support.doors import Caller, Doors, opened

JSON, XML, PATCH = "application/fhir+json", "application/fhir+xml", "application/json-patch+json"
SOON_S = 10.0  # on a machine that is busy with something else as well
HEAD = b'{"resourceType":"Patient",'
BUNDLE = b'{"resourceType":"Bundle","type":"transaction","entry":['
MIB = 1 << 20


@pytest.fixture(scope="module")
def doors(module_db: Database[dict[str, Any]]) -> Iterator[Doors]:
    with opened(module_db) as made:
        yield made


BODIES = {
    "50 MiB of a resource": ("/fhir/Patient", JSON, HEAD + b'"x":"' + b"a" * (50 * MIB) + b'"}', 413),
    "50 MiB of a Bundle": ("/fhir", JSON, BUNDLE + b'{"x":"' + b"a" * (50 * MIB) + b'"}]}', 413),
    "50 MiB of XML": ("/fhir/Patient", XML, b"<" * (50 * MIB), 413),
    "a million lists": ("/fhir/Patient", JSON, b"[" * 1_000_000, 400),
    "a million objects": ("/fhir/Patient", JSON, b'{"a":' * 1_000_000, 400),
    "deep and whole": ("/fhir/Patient", JSON, HEAD + b'"x":' + b'[{"x":' * 500 + b"1" + b"}]" * 500 + b"}", 400),
    "deep XML": (
        "/fhir/Patient",
        XML,
        b'<Patient xmlns="http://hl7.org/fhir">' + b'<extension url="x">' * 100_000,
        400,
    ),
    "broken UTF-8": ("/fhir/Patient", JSON, HEAD + b'"name":[{"family":"\xff\xfe"}]}', 400),
    "an overlong form of UTF-8": ("/fhir/Patient", JSON, HEAD + b'"name":[{"family":"\xc0\xaf"}]}', 400),
    "half of a surrogate pair": ("/fhir/Patient", JSON, HEAD + b'"name":[{"family":"\\ud83d"}]}', 400),
    "UTF-16": ("/fhir/Patient", JSON, '{"resourceType":"Patient"}'.encode("utf-16"), 400),
    "a name twice": ("/fhir/Patient", JSON, HEAD + b'"active":true,"active":false}', 400),
    "NaN": ("/fhir/Patient", JSON, HEAD + b'"multipleBirthInteger":NaN}', 400),
    "infinity": ("/fhir/Patient", JSON, HEAD + b'"multipleBirthInteger":-Infinity}', 400),
    "a number beyond doubles": ("/fhir/Patient", JSON, HEAD + b'"multipleBirthInteger":1e400}', 400),
    "a number of a million digits": (
        "/fhir/Patient",
        JSON,
        HEAD + b'"multipleBirthInteger":' + b"9" * 1_000_000 + b"}",
        400,
    ),
    "a tiny number": ("/fhir/Patient", JSON, HEAD + b'"multipleBirthInteger":1e-99999999999999999999}', 400),
    "an integer with an exponent": ("/fhir/Patient", JSON, HEAD + b'"multipleBirthInteger":1e300}', 400),
    "an operator as a name": ("/fhir/Patient", JSON, HEAD + b'"$where":"1"}', 400),
    "an operator in place of a value": ("/fhir/Patient", JSON, HEAD + b'"gender":{"$gt":""}}', 400),
    "an operator in place of the type": ("/fhir/Patient", JSON, b'{"resourceType":{"$ne":null}}', 400),
    "a control character": ("/fhir/Patient", JSON, HEAD + b'"name":[{"family":"a\\u0000b"}]}', 400),
    "10,000 entries": ("/fhir", JSON, BUNDLE + b",".join([b"{}"] * 10_000) + b"]}", 413),
    "10,000 operations": (
        "/fhir/Patient/1",
        PATCH,
        b"[" + b",".join([b'{"op":"test","path":"","value":1}'] * 10_000) + b"]",
        400,
    ),
    "entities": ("/fhir/Patient", XML, b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', 400),
    "300,000 attributes": (
        "/fhir/Patient",
        XML,
        b"<Patient " + b" ".join(b'a%d="1"' % n for n in range(300_000)) + b"/>",
        400,
    ),
    "300,000 names": ("/fhir/Patient", JSON, b"{" + b",".join(b'"k%d":1' % n for n in range(300_000)) + b"}", 400),
    **{
        f"{body} at {path}": (path, JSON, body.encode(), 400)
        for body in ("null", "1", "true", '"x"', "[]", "[null]")
        for path in ("/fhir", "/fhir/Patient", "/fhir/Patient/$validate", "/fhir/ValueSet/$expand", "/fhir/Binary")
    },
    "null as a patch": ("/fhir/Patient/1", PATCH, b"null", 400),
    "zeros": ("/fhir/Patient", JSON, b"\x00" * 1000, 400),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_refused_soon_and_nothing_is_stored(doors: Doors, both: Caller, name: str):
    path, kind, body, status = BODIES[name]
    before = doors.server.database["history"].count_documents({})
    begun = time.monotonic()

    response = both.call("PATCH" if kind == PATCH else "POST", path, data=body, headers={"Content-Type": kind})

    assert response.status_code == status, response.text
    assert response.json["resourceType"] == "OperationOutcome"
    assert len(response.data) < 10_000
    assert time.monotonic() - begun < SOON_S
    assert doors.server.database["history"].count_documents({}) == before


ADDRESSES = [
    "/fhir/Patient?_count=" + "9" * 50,
    "/fhir/Patient?_count=-1",
    "/fhir/Patient?_count=1e3",
    "/fhir/Patient/_history?_count=" + "9" * 50,
    "/fhir/Patient?$where=sleep(1000)",
    "/fhir/Patient?name[$gt]=",
    "/fhir/Patient?_id[$ne]=1",
    "/fhir/Patient?_sort=$natural",
    "/fhir/Patient?_elements=$where",
    "/fhir/Patient?_id=%00",
    "/fhir/Patient?name=a%00b",
    "/fhir/Patient?_id=" + ",".join(["a"] * 10_000),
    "/fhir/Patient?" + "&".join(["name=a"] * 10_000),
    "/fhir/Patient?name=" + "a" * 100_000,
    "/fhir/Patient/%00",
    "/fhir/Patient/" + "a" * 65,
    "/fhir/Patient/a$b",
    "/fhir/Patient?birthdate=99999-01-01",
    "/fhir/Patient/_history?_at=10000",
]


@pytest.mark.parametrize("address", ADDRESSES, ids=[address[:40] for address in ADDRESSES])
def test_a_bad_address_is_refused_soon(both: Caller, address: str):
    begun = time.monotonic()

    response = both.get(address)

    assert 400 <= response.status_code < 500, response.text
    assert response.json["resourceType"] == "OperationOutcome"
    assert time.monotonic() - begun < SOON_S


REPEATED = {
    # Texts that make a pattern with repetitions within repetitions look for hours, by the type of the value.
    "valueBase64Binary": ["A" * 200_001, " " * 200_000 + "!", "AAAA " * 40_000 + "!"],
    "valueCode": ["a " * 100_000, "a  a" * 50_000],
    "valueId": ["a" * 200_000],
    "valueOid": ["urn:oid:1" + ".10" * 60_000 + "x"],
    "valueUuid": ["urn:uuid:" + "0" * 200_000],
    "valueUri": ["a" * 200_000 + " x"],
    "valueUrl": ["http://" + "a." * 100_000 + " "],
    "valueCanonical": ["http://x|" * 20_000 + "\t"],
    "valueDate": ["2020-" * 40_000],
    "valueDateTime": ["2020-01-01T00:00:00." + "0" * 200_000, "2020-01-01T" + "00:" * 60_000],
    "valueInstant": ["2020-01-01T00:00:00." + "1" * 200_000 + "X"],
    "valueTime": ["00:00:00." + "9" * 200_000 + "Z"],
    "valueString": ["a" * 200_000 + "\x01"],
    "valueMarkdown": ["\n" * 200_000 + "\x01"],
}


@pytest.mark.parametrize("name", REPEATED)
def test_a_value_that_a_pattern_could_be_lost_in_is_refused_soon(doors: Doors, both: Caller, name: str):
    before = doors.server.database["history"].count_documents({})

    for text in REPEATED[name]:
        begun = time.monotonic()
        patient = {"resourceType": "Patient", "extension": [{"url": "http://x", name: text}]}
        response = both.post("/fhir/Patient", patient)

        assert response.status_code == 400, response.text[:500]
        assert response.json["issue"][0]["expression"] == ["Patient.extension[0]." + name]
        assert len(response.data) < 10_000
        assert time.monotonic() - begun < SOON_S

    assert doors.server.database["history"].count_documents({}) == before


@pytest.mark.parametrize(
    "query",
    [
        "name:contains=(a%2B)%2B%24",
        "name:contains=" + "a*" * 500,
        "identifier:text=(.*)*x",
        '_filter=name co "(a%2B)%2B"',
    ],
)
def test_a_pattern_that_is_searched_for_is_only_a_text(both: Caller, query: str):
    both.post("/fhir/Patient", {"resourceType": "Patient", "name": [{"family": "a" * 500 + "!"}]})
    begun = time.monotonic()

    found = both.get(f"/fhir/Patient?{query}")

    assert (found.status_code, found.json["total"]) == (200, 0)
    assert time.monotonic() - begun < SOON_S


def test_a_quantity_beyond_doubles_in_base_units_is_kept_and_found(both: Caller):
    heavy = b'{"resourceType":"Observation","status":"final","code":{"text":"x"},"valueQuantity":{"value":1e308,%s}}'
    unit = b'"system":"http://unitsofmeasure.org","code":"kg"'

    made = both.call("POST", "/fhir/Observation", data=heavy % unit, headers={"Content-Type": JSON})
    found = both.get("/fhir/Observation?value-quantity=gt1e20%7Chttp://unitsofmeasure.org%7Ckg")

    assert made.status_code == 201, made.text
    assert b'"value":1e308' in made.data
    assert [each["resource"]["id"] for each in found.json["entry"]] == [made.json["id"]]


def test_operators_in_values_are_only_values(both: Caller):
    name = {"family": "$where", "given": ["$gt", "a.b", "{$ne: 1}"]}
    extension = {"url": "$set", "valueString": "$unset"}

    made = both.post("/fhir/Patient", {"resourceType": "Patient", "name": [name], "extension": [extension]})
    found = both.get("/fhir/Patient", query_string={"family:exact": "$where"}).json

    assert made.status_code == 201
    assert both.get(f"/fhir/Patient/{made.json['id']}").json["name"] == [name]
    assert [each["resource"]["id"] for each in found["entry"]] == [made.json["id"]]
