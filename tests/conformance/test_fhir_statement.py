"""What the CapabilityStatement says is tried, over the doors: interactions, parameters, modifiers, orders, includes."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from pymongo.database import Database

from fhir_server.access.contracts import Right
from fhir_server.model.definitions import parameters
from fhir_server.model.query import parse, sorts
from fhir_server.model.resources import RESOURCES
from fhir_server.model.validation import validate
from fhir_server.rest.operations import OPERATIONS
from tests.support.doors import Caller, Doors, new_study, opened
from tests.support.filters import compile_query
from tests.support.least import least

# Whose searches are tried over the door; those of the others are compiled only.
CORE = [row.name for row in RESOURCES.values() if row.sorts] + ["Endpoint", "Location"]
MADE_BY_THE_SERVER = {"AuditEvent", "Contract"}  # of which there are some
VALUES = {
    "date": "ge2024-02-29",
    "number": "gt1.5",
    "quantity": "5.4|http://unitsofmeasure.org|mg",
    "reference": "urn:uuid:53fefa32-fcbb-4ff8-8a92-55ee120877b7",
    "special": "52.5|13.4|10|km",
    "string": "anna",
    "token": "http://loinc.org|1234-5",
    "uri": "http://example.org/x",
}


# A FHIRPath Patch: this language, whatever there was before.
LANGUAGE = {
    "resourceType": "Parameters",
    "parameter": [
        {
            "name": "operation",
            "part": [{"name": "type", "valueCode": "delete"}, {"name": "path", "valueString": "language"}],
        },
        {
            "name": "operation",
            "part": [
                {"name": "type", "valueCode": "add"},
                {"name": "path", "valueString": "Resource"},
                {"name": "name", "valueString": "language"},
                {"name": "value", "valueCode": "fr"},
            ],
        },
    ],
}


@pytest.fixture(scope="module")
def doors(module_db: Database[dict[str, Any]]) -> Iterator[Doors]:
    with opened(module_db) as made:
        made.ingest(*new_study()[1])
        yield made


@pytest.fixture(scope="module")
def client(doors: Doors) -> Caller:
    return doors.caller(*Right, name="everything")


@pytest.fixture(scope="module")
def statement(doors: Doors) -> dict[str, dict[str, Any]]:
    """The rows of the served statement, which needs no token, by type."""
    served = doors.stranger.get("/fhir/metadata").json
    return {row["type"]: row for row in served["rest"][0]["resource"]}


def offered(row: dict[str, Any]) -> set[str]:
    return {each["code"] for each in row["interaction"]}


def some_resource(client: Caller, kind: str) -> dict[str, Any]:
    """A resource of a type: a new one, or one that the server made."""
    if kind in MADE_BY_THE_SERVER:
        return client.get(f"/fhir/{kind}").json["entry"][0]["resource"]
    created = client.post(f"/fhir/{kind}", some(kind))
    assert created.status_code == 201, created.json
    return created.json


def some(kind: str) -> dict[str, Any]:
    return {**least(kind), "status": "draft", "intent": "order"} if kind == "Task" else least(kind)


def test_every_type_that_is_served_is_stated(statement: dict[str, dict[str, Any]]) -> None:
    assert statement.keys() == RESOURCES.keys()


def test_the_mode_says_which_statement_is_told(client: Caller, statement: dict[str, dict[str, Any]]) -> None:
    """FHIR R4 http 3.1.0.8."""
    full, part = (client.get(f"/fhir/metadata?mode={mode}").json for mode in ("full", "normative"))
    terms = client.get("/fhir/metadata?mode=terminology").json

    validate(part, "CapabilityStatement")
    validate(terms, "TerminologyCapabilities")
    assert full["rest"][0]["resource"] == client.get("/fhir/metadata").json["rest"][0]["resource"]
    told = {row["type"]: row for row in part["rest"][0]["resource"]}
    assert {"Patient", "Observation", "ValueSet"} <= told.keys() < statement.keys()
    assert "ImagingStudy" not in told
    assert told["Patient"] == statement["Patient"]
    assert client.get("/fhir/metadata?mode=nonsense").status_code == 400


def test_a_code_system_that_is_stated_can_be_looked_up_and_another_one_cannot(client: Caller) -> None:
    terms = client.get("/fhir/metadata?mode=terminology").json
    stated = {each["uri"]: each["version"][0]["code"] for each in terms["codeSystem"] if "version" in each}

    for system, code in (("http://hl7.org/fhir/administrative-gender", "male"), ("http://dicom.nema.org/x", "")):
        found = client.get(f"/fhir/CodeSystem/$lookup?system={system}&code={code}")
        rows = {each["name"]: each.get("valueString") for each in found.json.get("parameter", ())}
        assert (found.status_code == 200) is (system in stated)
        assert rows.get("version") == stated.get(system)
    (expand,) = [row for row in OPERATIONS if row.name == "expand"]
    assert {each["name"] for each in terms["expansion"]["parameter"]} == expand.parameters


@pytest.mark.parametrize("kind", sorted(RESOURCES))
def test_every_stated_interaction_of_a_type_works(client: Caller, statement: Any, kind: str) -> None:
    codes = offered(statement[kind])
    resource = some_resource(client, kind)
    address = f"/fhir/{kind}/{resource['id']}"
    tries = {
        "create": lambda: client.post(f"/fhir/{kind}", some(kind)),
        "read": lambda: client.get(address),
        "vread": lambda: client.get(f"{address}/_history/{resource['meta']['versionId']}"),
        "history-instance": lambda: client.get(f"{address}/_history"),
        "history-type": lambda: client.get(f"/fhir/{kind}/_history"),
        "search-type": lambda: client.get(f"/fhir/{kind}"),
        "update": lambda: client.put(address, {**resource, "language": "de"}),
        "patch": lambda: client.patch(address, LANGUAGE),
        "delete": lambda: client.delete(address),
    }

    answers = {code: act().status_code for code, act in tries.items() if code in codes}

    expected = {"create": 201, "delete": 204}
    assert codes <= tries.keys()
    assert answers == {code: expected.get(code, 200) for code in codes}


@pytest.mark.parametrize("kind", RESOURCES)
def test_an_interaction_that_is_not_stated_is_refused(client: Caller, statement: Any, kind: str) -> None:
    address = f"/fhir/{kind}/1"
    tries = {
        "create": lambda: client.post(f"/fhir/{kind}", {"resourceType": kind}),
        "vread": lambda: client.get(f"{address}/_history/1"),
        "history-instance": lambda: client.get(f"{address}/_history"),
        "history-type": lambda: client.get(f"/fhir/{kind}/_history"),
        "update": lambda: client.put(address, {"resourceType": kind, "id": "1"}),
        "patch": lambda: client.patch(address, LANGUAGE),
        "delete": lambda: client.delete(address),
    }

    refused = {code: act().status_code for code, act in tries.items() if code not in offered(statement[kind])}

    assert set(refused.values()) <= {405}


@pytest.mark.parametrize("kind", RESOURCES)
def test_every_stated_conditional_interaction_works(client: Caller, statement: Any, kind: str) -> None:
    row, nothing = statement[kind], f"/fhir/{kind}?_id=unknown"
    resource = some(kind)
    refused = 405

    created = client.post(f"/fhir/{kind}", resource, headers={"If-None-Exist": "_id=unknown"}).status_code
    updated = client.put(nothing, resource).status_code
    deleted = client.delete(nothing).status_code
    changed = client.patch(nothing, LANGUAGE).status_code

    assert created == (201 if row["conditionalCreate"] else refused)
    assert updated == (201 if row["conditionalUpdate"] else refused)
    assert changed == (404 if "patch" in offered(row) else refused)
    assert deleted == (204 if row["conditionalDelete"] == "single" else refused)


def test_every_stated_interaction_with_the_whole_works(doors: Doors, client: Caller) -> None:
    stated = doors.stranger.get("/fhir/metadata").json["rest"][0]["interaction"]
    tries = {
        "history-system": lambda: client.get("/fhir/_history"),
        "search-system": lambda: client.get("/fhir"),
        "batch": lambda: client.post("/fhir", {"resourceType": "Bundle", "type": "batch"}),
        "transaction": lambda: client.post("/fhir", {"resourceType": "Bundle", "type": "transaction"}),
    }

    answers = {each["code"]: tries[each["code"]]().status_code for each in stated}

    assert set(answers.values()) == {200}


OF_MODIFIERS = {
    "missing": "false",
    "identifier": "http://hospital.test/ids|7",
    "text": "anna",
    "of-type": "http://terminology.hl7.org/CodeSystem/v2-0203|MR|7",
    "in": "http://hl7.org/fhir/ValueSet/administrative-gender",
    "not-in": "http://hl7.org/fhir/ValueSet/administrative-gender",
}
AROUND = {
    "token": "http://hl7.org/fhir/administrative-gender|male",
    "reference": "http://example.org/x|1.2",
    "uri": "http://example.org/x",
}


def value_for(kind: str, name: str, modifier: str) -> str:
    parameter = parameters(kind)[name]
    if modifier in OF_MODIFIERS:
        return OF_MODIFIERS[modifier]
    if modifier in ("above", "below"):
        return AROUND[parameter.type]
    if name == "_id" or modifier in (parameter.targets or ("Patient",)):
        return "1"
    return "$".join(VALUES[part] for part in parameter.component_types or (parameter.type,))


def searches(kind: str, row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every parameter of a type alone and with every stated modifier; order and includes as well."""
    for parameter in row["searchParam"]:
        name, told = parameter["name"], parameter["documentation"].removeprefix("modifiers: ")
        targets = parameters(kind)[name].targets or ("Patient",)
        stated = [] if told == "none" else [each.removeprefix(":") for each in told.split(", ")]
        for modifier in ["", *(targets[0] if each == "[type]" else each for each in stated)]:
            yield f"{name}:{modifier}" if modifier else name, value_for(kind, name, modifier)
    yield from (("_include", value) for value in row["searchInclude"])
    yield from (("_revinclude", value) for value in row.get("searchRevInclude", ()))
    yield from (("_sort", sign + code) for code in sorted(sorts(parameters(kind).values())) for sign in ("", "-"))
    yield from (("_summary", "true"), ("_total", "accurate"), ("_elements", "id"), ("_count", "1"))


@pytest.mark.parametrize("kind", CORE)
def test_every_stated_search_works(client: Caller, statement: Any, kind: str) -> None:
    asked = list(searches(kind, statement[kind]))

    answers = [(pair, client.get(f"/fhir/{kind}", query_string=[pair])) for pair in asked]

    assert [(pair, answer.json) for pair, answer in answers if answer.status_code != 200] == []
    understood = [parse_qsl(urlsplit(answer.json["link"][0]["url"]).query) for _, answer in answers]
    assert [pair for (pair, _), query in zip(answers, understood, strict=True) if pair not in query] == []


@pytest.mark.parametrize("kind", sorted(RESOURCES.keys() - set(CORE)))
def test_every_stated_search_of_the_other_types_is_understood(statement: Any, kind: str) -> None:
    for pair in searches(kind, statement[kind]):
        assert compile_query(parse(kind, [pair]), (), datetime(2026, 1, 1, tzinfo=UTC))
