"""Search parameters that clients define: posted, indexed by a Task with progress, then searched by."""

from typing import Any

import pytest

from fhir_server import reindexing
from fhir_server.access.contracts import Right
from fhir_server.model.task import Progress
from fhir_server.store.parameters import SearchParameters
from fhir_server.work.kinds import handlers
from tests.support.doors import Caller, Doors

Json = dict[str, Any]


@pytest.fixture
def everybody(doors: Doors) -> Caller:
    return doors.caller(*Right, name="everybody")


def _parameter(**changes: Any) -> Json:
    return {
        "resourceType": "SearchParameter",
        "url": "http://example.org/SearchParameter/body",
        "name": "Body",
        "status": "active",
        "description": "region of a series",
        "code": "region",
        "base": ["ImagingStudy"],
        "type": "token",
        "expression": "ImagingStudy.series.bodySite",
        **changes,
    }


def _study(doors: Doors, caller: Caller, code: str) -> str:
    site = {"system": "http://snomed.info/sct", "code": code}
    series = [{"uid": "1.2", "modality": {"code": "CT"}, "bodySite": site}]
    study = {"resourceType": "ImagingStudy", "status": "registered", "subject": {"reference": "Patient/1"}}
    return str(caller.post("/fhir/ImagingStudy", {**study, "series": series}).json["id"])


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes hear of changes at once."""
    monkeypatch.setattr("fhir_server.store.parameters.SETTLE_S", 0.0)


def _run(doors: Doors, task: Json) -> list[Progress]:
    told: list[Progress] = []
    handlers.get("reindex").run(task, doors.server, told.append)
    return told


def _found(caller: Caller, query: str) -> Any:
    answer = caller.get(f"/fhir/ImagingStudy?{query}")
    return [each["resource"]["id"] for each in answer.json.get("entry", ())] if answer.status_code == 200 else answer


def _fresh(doors: Doors) -> None:
    """Let this process believe nothing that it read before."""
    doors.server.search_parameters._read()


def test_a_posted_parameter_is_indexed_by_a_task_and_then_known(
    doors: Doors, everybody: Caller, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors.server.search_parameters, "_refresh_s", 0.0)
    before = _study(doors, everybody, "51185008")

    created = everybody.post("/fhir/SearchParameter", _parameter())
    unknown = _found(everybody, "region=51185008")
    tasks = everybody.get("/fhir/Task?code=reindex").json["entry"]
    between = _study(doors, everybody, "51185008")
    told = _run(doors, tasks[0]["resource"])

    assert created.status_code == 201, created.json
    assert unknown.status_code == 400
    assert [each["resource"]["status"] for each in tasks] == ["requested"]
    assert told[-1].percent == 100
    assert _found(everybody, "region=51185008") == [between, before]
    found = _found(everybody, "region=http://snomed.info/sct|51185008&_sort=region&region:not=1")
    assert sorted(found) == sorted([between, before])
    assert _found(everybody, "region=1") == []
    stated = next(
        row for row in everybody.get("/fhir/metadata").json["rest"][0]["resource"] if row["type"] == "ImagingStudy"
    )
    assert "region" in {each["name"] for each in stated["searchParam"]}


def test_a_change_is_indexed_anew_and_a_retired_one_is_forgotten(
    doors: Doors, everybody: Caller, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors.server.search_parameters, "_refresh_s", 0.0)
    study = _study(doors, everybody, "51185008")
    made = everybody.post("/fhir/SearchParameter", _parameter()).json
    _run(doors, everybody.get("/fhir/Task?code=reindex").json["entry"][0]["resource"])
    assert _found(everybody, "region=51185008") == [study]

    changed = {**made, "expression": "ImagingStudy.series.modality"}
    everybody.put(f"/fhir/SearchParameter/{made['id']}", changed)
    assert _found(everybody, "region=CT").status_code == 400
    tasks = [each["resource"] for each in everybody.get("/fhir/Task?code=reindex").json["entry"]]
    _run(doors, tasks[0])

    assert len(tasks) == 2
    assert _found(everybody, "region=CT") == [study]
    assert _found(everybody, "region=51185008") == []
    everybody.put(f"/fhir/SearchParameter/{made['id']}", {**changed, "status": "retired"})
    assert _found(everybody, "region=CT").status_code == 400


def test_a_task_that_a_crash_prevented_is_placed_by_the_sweeper_once(doors: Doors, everybody: Caller) -> None:
    doors.server.own.create({**_parameter(), "id": "x"}, id="x")  # nobody places a Task

    for _ in range(2):
        reindexing.place(doors.server.own, doors.server.search_parameters)

    assert len(everybody.get("/fhir/Task?code=reindex").json["entry"]) == 1


def test_rows_are_written_by_what_another_process_defined(doors: Doors, everybody: Caller) -> None:
    everybody.get("/fhir/ImagingStudy")
    other = SearchParameters(doors.server.database, refresh_s=0.0)

    everybody.post("/fhir/SearchParameter", _parameter())

    assert "region" in other.indexed("ImagingStudy")
    assert "region" not in other.searched("ImagingStudy")
    assert "region" not in other.indexed("Patient")


@pytest.mark.parametrize(
    ("changes", "where", "said"),
    [
        ({"code": "status"}, "code", "already"),
        ({"code": "_id"}, "code", "letter"),
        ({"code": "a.b"}, "code", "letter"),
        (
            {"type": "composite", "component": [{"definition": "http://x", "expression": "x"}]},
            "type",
            "cannot be added",
        ),
        ({"type": "special"}, "type", "cannot be added"),
        ({"base": ["Nonsense"]}, "base", ""),
        ({"expression": "ImagingStudy.series."}, "expression", "cannot be read"),
        ({"expression": "ImagingStudy.series.nonsense()"}, "expression", "not known"),
        ({"expression": "ImagingStudy.series.description.matches('(a+)+')"}, "expression", "never end"),
        ({"expression": "ImagingStudy.series.started"}, "expression", "cannot index"),
        ({"expression": "Patient.name"}, "expression", "no such element"),
        ({"expression": "ImagingStudy.nothing"}, "expression", "no such element"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(
    everybody: Caller, changes: Json, where: str, said: str
) -> None:
    answer = everybody.post("/fhir/SearchParameter", _parameter(**changes))

    assert answer.status_code == 400
    assert f"SearchParameter.{where}" in str(answer.json["issue"])
    assert said in str(answer.json["issue"])


def test_a_draft_may_be_anything(everybody: Caller) -> None:
    assert everybody.post("/fhir/SearchParameter", _parameter(status="draft", code="status")).status_code == 201


def test_one_code_has_one_meaning(everybody: Caller) -> None:
    everybody.post("/fhir/SearchParameter", _parameter())

    assert everybody.post("/fhir/SearchParameter", _parameter(url="http://other")).status_code == 409


def test_only_who_defines_may(doors: Doors) -> None:
    writer = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="writer")
    orderer = doors.caller(Right.ORDER_PROCESSING, name="orderer")

    assert writer.post("/fhir/SearchParameter", _parameter()).status_code == 403
    task = {"resourceType": "Task", "status": "requested", "intent": "order"}
    reference = {
        "type": {"coding": [{"code": "search-parameter"}]},
        "valueReference": {"reference": "SearchParameter/x"},
    }
    code = {"coding": [{"system": "urn:fhir-imaging:code:task", "code": "reindex"}]}
    assert orderer.post("/fhir/Task", {**task, "code": code, "input": [reference]}).status_code == 403


@pytest.mark.parametrize(
    ("expression", "kind", "value"),
    [
        ("ImagingStudy.extension('http://x').value", "string", "abc"),
        ("ImagingStudy.extension.where(url = 'http://x').value as string", "string", "abc"),
        ("ImagingStudy.series.performer.actor.where(resolve() is Practitioner)", "reference", "Practitioner/7"),
        ("ImagingStudy.numberOfSeries", "number", "1"),
        ("ImagingStudy.series.count()", "number", "1"),
    ],
)
def test_expressions_of_many_kinds(
    doors: Doors,
    everybody: Caller,
    at_once: None,
    monkeypatch: pytest.MonkeyPatch,
    expression: str,
    kind: str,
    value: str,
) -> None:
    monkeypatch.setattr(doors.server.search_parameters, "_refresh_s", 0.0)
    performer = [{"actor": {"reference": "Practitioner/7"}}]
    series = [{"uid": "1.2", "modality": {"code": "CT"}, "performer": performer}]
    extension = [{"url": "http://x", "valueString": "Abcd"}]
    study = {"resourceType": "ImagingStudy", "status": "registered", "subject": {"reference": "Patient/1"}}
    study |= {"series": series, "extension": extension, "numberOfSeries": 1}
    identifier = everybody.post("/fhir/ImagingStudy", study).json["id"]

    made = everybody.post("/fhir/SearchParameter", _parameter(expression=expression, type=kind, code="own"))
    assert made.status_code == 201, made.json
    _run(doors, everybody.get("/fhir/Task?code=reindex").json["entry"][0]["resource"])

    assert _found(everybody, f"own={value}") == [identifier]
