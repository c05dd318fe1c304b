"""Histories at the FHIR door. Expected values: FHIR R4 http 3.1.0.12."""

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from fhir_server.access.contracts import Right
from fhir_server.store import history as store_history
from tests.support.doors import BASE_URL, Caller, Doors

PATIENT = {"resourceType": "Patient", "gender": "other"}


def created(both: Caller, resource: dict[str, Any] = PATIENT) -> dict[str, Any]:
    return both.post(f"/fhir/{resource['resourceType']}", resource).json


def versions(bundle: dict[str, Any]) -> list[str]:
    """What a history tells, latest first: ids with versions, a cross where something was deleted."""
    return [
        f"{entry['resource']['id']}/{entry['resource']['meta']['versionId']}"
        if "resource" in entry
        else f"{entry['fullUrl'].rpartition('/')[2]}/x"
        for entry in bundle.get("entry", [])
    ]


def pages(caller: Caller, path: str) -> list[list[str]]:
    found = []
    while path:
        bundle = caller.get(path).json
        found.append(versions(bundle))
        links = {link["relation"]: link["url"] for link in bundle["link"]}
        path = links.get("next", "").removeprefix(BASE_URL)
    return found


def scene(both: Caller) -> tuple[str, str]:
    """Two Patients, the first changed and deleted after the second came; return their ids."""
    first, second = created(both), created(both)
    both.put(f"/fhir/Patient/{first['id']}", {**first, "gender": "male"})
    both.delete(f"/fhir/Patient/{first['id']}")
    return first["id"], second["id"]


def test_the_history_of_a_type_tells_every_version_latest_first(both):
    first, second = scene(both)

    bundle = both.get("/fhir/Patient/_history").json

    assert bundle["type"] == "history"
    assert versions(bundle) == [f"{first}/x", f"{first}/2", f"{second}/1", f"{first}/1"]
    requests = [(entry["request"]["method"], entry["request"]["url"]) for entry in bundle["entry"]]
    assert requests == [
        ("DELETE", f"Patient/{first}"),
        ("PUT", f"Patient/{first}"),
        ("POST", "Patient"),
        ("POST", "Patient"),
    ]
    assert [entry["response"]["status"] for entry in bundle["entry"]] == ["204", "200", "201", "201"]


def test_the_history_of_a_type_tells_no_other(both):
    created(both)
    created(both, {"resourceType": "Location"})

    assert len(versions(both.get("/fhir/Location/_history").json)) == 1


def test_the_history_of_everything_is_paged_without_gaps(both):
    first, second = scene(both)
    place = created(both, {"resourceType": "Location"})["id"]

    found = pages(both, "/fhir/_history?_count=2")

    told = [each for page in found for each in page if "Organization" not in each]
    assert [len(page) for page in found[:-1]] == [2] * (len(found) - 1)
    assert told[:5] == [f"{place}/1", f"{first}/x", f"{first}/2", f"{second}/1", f"{first}/1"]
    assert len(told) == len(set(told))


def test_versions_of_the_same_moment_are_all_told_once(doors: Doors, both):
    for number in range(12):
        doors.server.own.create({**PATIENT, "id": f"p{number}"}, id=f"p{number}")
        doors.server.own.update({**PATIENT, "id": f"p{number}", "gender": "male"})

    found = [each for page in pages(both, "/fhir/Patient/_history?_count=5") for each in page]

    assert sorted(found) == sorted(f"p{number}/{version}" for number in range(12) for version in (1, 2))


def test_since_leaves_out_what_was_before(both):
    first = created(both)
    second = created(both)

    since = second["meta"]["lastUpdated"]

    for path in ("/fhir/Patient/_history", "/fhir/_history"):
        assert versions(both.get(path, query_string={"_since": since}).json) == [f"{second['id']}/1"]
    assert versions(both.get(f"/fhir/Patient/{first['id']}/_history", query_string={"_since": since}).json) == []


def test_at_gives_what_was_current_then(doors: Doors, both):
    first, second = created(both), created(both)
    doors.clock.forward(days=1)
    both.put(f"/fhir/Patient/{first['id']}", {**first, "gender": "male"})
    third = created(both)
    day = f"{doors.clock.now:%Y-%m-%d}"
    doors.clock.forward(days=1)
    both.delete(f"/fhir/Patient/{second['id']}")
    instant = third["meta"]["lastUpdated"]

    # Both versions of the first were current on that day, the second's first was, and the third's came on it.
    on_the_day = versions(both.get(f"/fhir/Patient/_history?_at={day}").json)
    at_the_end = versions(both.get("/fhir/Patient/_history", query_string={"_at": instant}).json)
    of_one = versions(both.get(f"/fhir/Patient/{first['id']}/_history", query_string={"_at": instant}).json)

    assert on_the_day == [f"{third['id']}/1", f"{first['id']}/2", f"{second['id']}/1", f"{first['id']}/1"]
    assert at_the_end == [f"{third['id']}/1", f"{first['id']}/2", f"{second['id']}/1"]
    assert of_one == [f"{first['id']}/2"]


@pytest.mark.parametrize(
    "parameter",
    [
        "_since=yesterday",
        "_at=2020-13",
        "_count=many",
        "_sort=_id",
        "_cursor=x",
        "_count=1&_count=2",
        "_cursor=" + "9" * 15,
    ],
)
@pytest.mark.parametrize("path", ["/fhir/Patient/_history", "/fhir/_history"])
def test_a_parameter_that_is_wrong_is_400(both, path, parameter):
    response = both.get(f"{path}?{parameter}")

    assert response.status_code == 400
    assert response.json["issue"][0]["code"] == "invalid"


def test_the_self_link_says_what_was_used(both):
    created(both)

    bundle = both.get("/fhir/Patient/_history?_since=2020&_count=100000").json

    used = parse_qs(urlsplit(bundle["link"][0]["url"]).query)
    assert used == {"_since": ["2020"], "_count": ["1000"]}


# ---- who sees what


def test_the_history_of_everything_holds_only_types_that_may_be_read(doors: Doors, both):
    created(both)
    auditor = doors.caller(Right.AUDIT, name="auditor")

    bundle = auditor.get("/fhir/_history").json

    kinds = {entry["resource"]["resourceType"] for entry in bundle["entry"]}
    assert kinds <= {"Contract", "Organization", "Provenance"}
    assert auditor.get("/fhir/Patient/_history").status_code == 403
    assert doors.caller(Right.REGISTER_IMAGES, name="sender").get("/fhir/_history").status_code == 403


def test_histories_hold_only_contracts_of_who_asks(doors: Doors):
    doors.caller(Right.RECEIVE_IMAGES, name="other")
    caller = doors.caller(Right.RECEIVE_IMAGES, name="clinic")
    (mine,) = [each for each in doors.server.principals.subscribers() if each.name == "clinic"]

    for path in ("/fhir/Contract/_history", "/fhir/_history"):
        entries = caller.get(path).json["entry"]
        contracts = [entry["resource"] for entry in entries if entry["resource"]["resourceType"] == "Contract"]
        assert {each["subject"][0]["reference"] for each in contracts} == {mine.organization}


def test_a_search_among_very_many_foreign_versions_goes_on_page_by_page(doors: Doors, monkeypatch):
    monkeypatch.setattr(store_history, "MOST_SCANNED", 4)
    monkeypatch.setattr(store_history, "BATCH", 2)
    caller = doors.caller(Right.RECEIVE_IMAGES, name="clinic")
    for number in range(8):
        doors.clock.forward(milliseconds=1)
        doors.server.principals.add(f"other {number}", [Right.RECEIVE_IMAGES])

    found = pages(caller, "/fhir/Contract/_history")

    assert [len(page) for page in found if page] == [1]
    assert len(found) > 1


def test_a_history_is_on_record_with_what_it_told(doors: Doors, both, auditor):
    identifier = created(both)["id"]

    both.get("/fhir/Patient/_history")

    events = auditor.get(f"/fhir/AuditEvent?entity=Patient/{identifier}&subtype=history-type").json["entry"]
    assert len(events) == 1


def listed(both: Caller, *references: str, **more: Any) -> str:
    entries = [{"item": {"reference": each}} for each in references]
    gone = [{"item": {"reference": each}, "deleted": True} for each in more.get("deleted", ())]
    resource = {"resourceType": "List", "status": "current", "mode": "changes", "entry": [*entries, *gone]}
    return created(both, resource)["id"]


def test_a_list_says_which_versions_are_told(both):
    first, second = scene(both)
    third = created(both)["id"]
    some = listed(
        both, f"Patient/{first}/_history/2", f"{BASE_URL}/fhir/Patient/{second}", deleted=[f"Patient/{third}"]
    )
    every = listed(both, f"Patient/{first}")

    assert versions(both.get(f"/fhir/Patient/_history?_list={some}").json) == [f"{first}/2", f"{second}/1"]
    assert versions(both.get(f"/fhir/_history?_list=List/{some}").json) == [f"{first}/2", f"{second}/1"]
    assert versions(both.get(f"/fhir/Observation/_history?_list={some}").json) == []
    assert versions(both.get(f"/fhir/Patient/{first}/_history?_list={some}").json) == [f"{first}/2"]
    assert versions(both.get(f"/fhir/Patient/{third}/_history?_list={some}").json) == []
    assert versions(both.get(f"/fhir/Patient/_history?_list={every}").json) == [
        f"{first}/x",
        f"{first}/2",
        f"{first}/1",
    ]
    paged = pages(both, f"/fhir/Patient/{first}/_history?_list={every}&_count=1")
    assert paged == pages(both, f"/fhir/Patient/_history?_list={every}&_count=1")
    assert [each for page in paged for each in page] == [f"{first}/x", f"{first}/2", f"{first}/1"]


def test_a_list_has_to_be_there_and_not_too_long(both, monkeypatch):
    first, second = scene(both)
    long = listed(both, f"Patient/{first}", f"Patient/{second}")
    monkeypatch.setattr(store_history, "MOST_SCANNED", 3)

    codes = [
        both.get(f"/fhir/Patient/_history?_list={each}").status_code for each in ("unknown", "$current", "a/b/c", long)
    ]

    assert codes == [404, 400, 400, 413]
