"""Searching over the FHIR door: addresses, forms, links, handling, and who may see what. FHIR R4 search 3.1.1."""

from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import pytest

from fhir_server.access.contracts import Right
from tests.support.doors import Caller, Doors


@pytest.fixture
def writer(doors: Doors) -> Caller:
    return doors.caller(Right.REGISTER_IMAGES, name="writer")


@pytest.fixture
def reader(doors: Doors) -> Caller:
    return doors.caller(Right.RECEIVE_IMAGES, name="reader")


@pytest.fixture
def stored(writer: Caller) -> dict[str, str]:
    """Keys of a patient and what is about it, by type."""
    person = {"resourceType": "Patient", "name": [{"family": "Smith"}], "gender": "male"}
    patient = _made(writer, person)
    coded = {"coding": [{"system": "http://loinc.org", "code": "1"}]}
    observation = {"resourceType": "Observation", "status": "final", "code": coded, "subject": {"reference": patient}}
    study = {"resourceType": "ImagingStudy", "status": "registered", "subject": {"reference": patient}}
    return {"Patient": patient, "Observation": _made(writer, observation), "ImagingStudy": _made(writer, study)}


def _made(writer: Caller, resource: dict[str, Any]) -> str:
    created = writer.post(f"/fhir/{resource['resourceType']}", resource)
    assert created.status_code == 201, created.json
    return f"{resource['resourceType']}/{created.json['id']}"


def _keys(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.json
    return [each["fullUrl"].removeprefix("http://images.test/fhir/") for each in answer.json.get("entry", ())]


def _self(answer: Any) -> tuple[str, list[tuple[str, str]]]:
    url = urlsplit(next(each["url"] for each in answer.json["link"] if each["relation"] == "self"))
    return url.path, parse_qsl(url.query)


def test_the_whole_is_searched_by_get_and_post(reader: Caller, stored: dict[str, str]) -> None:
    named = {"_type": "Patient,Observation", "_sort": "_id"}

    by_get = reader.get("/fhir", query_string=named)
    by_post = reader.post("/fhir/_search", data=named, headers={"Content-Type": "application/x-www-form-urlencoded"})

    assert _keys(by_get) == _keys(by_post) == [stored["Observation"], stored["Patient"]]
    assert _self(by_get) == _self(by_post) == ("/fhir", [*named.items()])
    assert stored["ImagingStudy"] in _keys(reader.get("/fhir/?_count=100"))


def test_a_compartment_is_searched_by_type_and_as_a_whole(reader: Caller, stored: dict[str, str]) -> None:
    patient = stored["Patient"]
    form = {"Content-Type": "application/x-www-form-urlencoded"}

    studies = reader.get(f"/fhir/{patient}/ImagingStudy?status=registered")
    posted = reader.post(f"/fhir/{patient}/ImagingStudy/_search", data={"status": "registered"}, headers=form)
    everything = reader.get(f"/fhir/{patient}/*")
    other = reader.get("/fhir/Patient/none/ImagingStudy")

    assert _keys(studies) == _keys(posted) == [stored["ImagingStudy"]]
    assert _self(studies) == _self(posted) == (f"/fhir/{patient}/ImagingStudy", [("status", "registered")])
    assert sorted(_keys(everything)) == sorted(stored.values())
    assert _self(everything) == (f"/fhir/{patient}/*", [])
    assert _keys(other) == []
    assert reader.get("/fhir/Group/1/ImagingStudy").status_code == 404
    assert reader.get(f"/fhir/{patient}/Nonsense").status_code == 404


def test_chains_filters_and_reverse_chains(reader: Caller, stored: dict[str, str]) -> None:
    asked = {
        "/fhir/ImagingStudy?patient.family=smi": ["ImagingStudy"],
        "/fhir/ImagingStudy?subject:Patient.gender=female": [],
        "/fhir/Patient?_has:Observation:patient:code=http://loinc.org|1": ["Patient"],
        f"/fhir/ImagingStudy?_filter={quote('patient.family sw smi and status eq registered')}": ["ImagingStudy"],
        "/fhir/Patient?_revinclude=ImagingStudy:*&_sort=-family": ["Patient", "ImagingStudy"],
    }

    found = {address: _keys(reader.get(address)) for address in asked}

    assert found == {address: [stored[kind] for kind in kinds] for address, kinds in asked.items()}


def test_paging_leads_on_by_signed_links(reader: Caller, writer: Caller, stored: dict[str, str]) -> None:
    more = [_made(writer, {"resourceType": "Patient", "gender": "female"}) for _ in range(4)]
    address, seen = "/fhir/Patient?_sort=-gender,_lastUpdated&_count=2", list[str]()

    while address:
        page = reader.get(address)
        seen += _keys(page)
        following = [each["url"] for each in page.json["link"] if each["relation"] == "next"]
        address = following[0].removeprefix("http://images.test") if following else ""
        writer.put(f"/fhir/{more[0]}", {"resourceType": "Patient", "id": more[0].partition("/")[2], "gender": "male"})

    assert seen == [stored["Patient"], *more]


def test_unknown_parameters_by_handling(reader: Caller, stored: dict[str, str]) -> None:
    address = "/fhir/Patient?nonsense=1&family=smith&patient.nothing=2"

    strict = reader.get(address)
    lenient = reader.get(address, headers={"Prefer": "handling=lenient"})

    assert strict.status_code == 400
    assert _self(lenient) == ("/fhir/Patient", [("family", "smith")])
    issues = lenient.json["entry"][-1]["resource"]["issue"]
    assert [each["diagnostics"] for each in issues] == [
        "the parameter nonsense was left out",
        "the parameter patient.nothing was left out",
    ]


def test_what_a_principal_may_not_read_decides_nothing(doors: Doors, stored: dict[str, str]) -> None:
    auditor = doors.caller(Right.AUDIT, name="auditor")

    assert auditor.get("/fhir/Provenance?target:Patient.family=smith").status_code == 403
    assert auditor.get("/fhir/Patient/1/ImagingStudy").status_code == 403
    assert _keys(auditor.get("/fhir?_type=Patient,Contract")) != []
    assert all(key.startswith("Contract/") for key in _keys(auditor.get("/fhir?_type=Patient,Contract")))
    assert auditor.get("/fhir?_type=Patient").status_code == 403


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("_filter=" + "(" * 500, "brackets"),
        ("family:contains=" + "a" * 1025, "1024 characters"),
        ("_id=" + ",".join(["x"] * 201), "200"),
        ("&".join(["gender=male"] * 101), "100"),
        ("link:Patient." * 9 + "family=x", "links"),
        ("_content=x", "does not support it"),
        ("family=%00", "control characters"),
        ("$where=1", "unknown"),
        ("identifier[$ne]=1", "unknown"),
        ("_sort=$natural", "cannot be sorted"),
    ],
)
def test_what_is_too_much_or_not_known_is_refused_with_the_bound(reader: Caller, query: str, said: str) -> None:
    answer = reader.get(f"/fhir/Patient?{query}")

    assert answer.status_code == 400
    assert said in answer.json["issue"][0]["diagnostics"]


def test_operators_of_the_database_are_plain_text(reader: Caller, stored: dict[str, str]) -> None:
    for value in ('{"$gt":""}', "$regex", ".*", "(a+)+$", "[$ne]=1"):
        for name in ("family", "family:contains", "family:exact", "gender", "identifier", "_tag", "organization.name"):
            answer = reader.get("/fhir/Patient", query_string={name: value})
            assert (answer.status_code, answer.json.get("entry")) in {(200, None), (400, None)}, (name, value)
