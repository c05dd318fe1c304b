"""Whatever comes to the FHIR door: no fault, a clear refusal, and nothing stored of what was refused.

`FHIR_DOOR_EXAMPLES=20000 pytest tests/properties/test_fhir_door.py` looks longer.
"""

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo.database import Database

from fhir_server.access.contracts import Right
from fhir_server.model import json
from fhir_server.model.definitions import parameters, resource_types
from fhir_server.model.xml import to_xml
from fhir_server.rest.operations import OPERATIONS
from tests.support.doors import Caller, Doors, opened
from tests.support.least import least
from tests.support.resources import resources

EXAMPLES = int(os.environ.get("FHIR_DOOR_EXAMPLES", "60"))
KINDS = sorted(resource_types() - {"AuditEvent", "Contract", "Parameters", "Subscription"})
LONG = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

WORDS = st.sampled_from(
    [
        "", " ", ".", "..", "$where", "$gt", "_id", "_history", "_search", "a.b", "a|b", "a,b", "a$b", "\x00", "\ufffd",
        "%", "%00", "%ff", "'", '"', "<", "{}", "[]", "null", "NaN", "-1", "0", "1", "9" * 30, "1e999", "2026-13",
        "ge2026", "urn:uuid:1", "Patient/1", "Patient?_id=1", "http://images.test/fhir/Patient/1", "W/\"1\"", "*",
        "x" * 3000, "true",
    ]
)  # fmt: skip
TEXTS = WORDS | st.text(max_size=20)
NASTY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXTS,
    st.lists(TEXTS, max_size=2),
    st.dictionaries(TEXTS, TEXTS, max_size=2),
)
KIND = st.sampled_from([*KINDS[:20], "Patient", "ImagingStudy", "Task", "Observation", "Bundle", "Binary"])
ID = st.sampled_from(["1", "known"]) | TEXTS
PARAMETER = st.sampled_from(
    [
        "_id", "_count", "_sort", "_include", "_revinclude", "_elements", "_summary", "_total", "_format", "_pretty",
        "_since", "_at", "_cursor", "_lastUpdated", "_has", "_filter", "name", "identifier", "patient", "birthdate",
        "status:not", "value-quantity", "code:text", "subject:Patient.name", "_type", "_content", "_list", "$where", "",
    ]
)  # fmt: skip
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            "If-Match",
            "If-None-Match",
            "If-Modified-Since",
            "If-None-Exist",
            "Prefer",
            "Accept",
            "Accept-Encoding",
            "X-Request-Id",
        ]
    ),
    st.sampled_from(
        [
            'W/"1"',
            "*",
            "identifier=1",
            "_id=1&name=",
            "return=minimal",
            "handling=lenient",
            "application/fhir+xml",
            "gzip",
        ]
    )
    | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
    max_size=2,
)


@pytest.fixture(scope="module")
def doors(module_db: Database[dict[str, Any]]) -> Iterator[Doors]:
    with opened(module_db) as made:
        yield made


@pytest.fixture(scope="module")
def everything(doors: Doors) -> Caller:
    doors.server.own.create({"resourceType": "Patient"}, id="known")
    return doors.caller(*Right, name="everything")


@st.composite
def damaged(draw: st.DrawFn, whole: Any) -> Any:
    """JSON with something nasty at a place or two."""
    value = orjson.loads(json.dumps(whole))
    for _ in range(draw(st.integers(0, 2))):
        holder, key = value, None
        while isinstance(holder, dict | list) and holder and (key is None or draw(st.booleans())):
            if key is not None:
                inner = holder[key]
                if not (isinstance(inner, dict | list) and inner):
                    break
                holder = inner
            keys = sorted(holder) if isinstance(holder, dict) else list(range(len(holder)))
            key = draw(st.sampled_from(keys))
        if key is not None:
            holder[key] = draw(NASTY)
    return value


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """A content type and a body: of a resource or a patch, whole or damaged, in one of the forms."""
    kind = draw(KIND)
    whole = least(kind) if draw(st.booleans()) else draw(resources(kind, depth=2))
    form = draw(st.sampled_from(["json", "json", "xml", "patch", "fhirpath", "bytes"]))
    if form == "xml":
        data = bytearray(to_xml(whole))
        for _ in range(draw(st.integers(0, 2))):
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        return "application/fhir+xml", bytes(data)
    if form == "patch":
        operation = {
            "op": draw(st.sampled_from(["add", "remove", "replace", "move", "copy", "test"])),
            "path": draw(TEXTS),
        }
        return "application/json-patch+json", orjson.dumps(
            [draw(damaged({**operation, "from": "", "value": draw(NASTY)}))]
        )
    if form == "fhirpath":
        parts = [
            {"name": "type", "valueCode": draw(st.sampled_from(["add", "insert", "delete", "replace", "move"]))},
            {
                "name": "path",
                "valueString": draw(
                    st.sampled_from(["Patient", "Patient.name", "Patient.name.where(use='x')"]) | TEXTS
                ),
            },
            {"name": draw(st.sampled_from(["name", "value", "index"])), "valueString": draw(TEXTS)},
        ]
        patch = {"resourceType": "Parameters", "parameter": [{"name": "operation", "part": parts}]}
        return "application/fhir+json", orjson.dumps(draw(damaged(patch)))
    if form == "bytes":
        return "application/fhir+json", draw(st.binary(max_size=50) | NASTY.map(orjson.dumps))
    return "application/fhir+json", orjson.dumps(draw(damaged(whole)))


@st.composite
def addresses(draw: st.DrawFn) -> str:
    segments = draw(st.lists(KIND | ID | st.just("_history"), min_size=1, max_size=4))
    return "/fhir/" + "/".join(quote(segment) for segment in segments)


@st.composite
def bundles(draw: st.DrawFn) -> dict[str, Any]:
    def entry() -> dict[str, Any]:
        kind = draw(KIND)
        request = {"method": draw(st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"])), "url": kind}
        if draw(st.booleans()):
            request["url"] += "/" + draw(ID)
        if draw(st.booleans()):
            request["url"] += "?" + draw(TEXTS)
        if draw(st.booleans()):
            request[draw(st.sampled_from(["ifMatch", "ifNoneExist", "ifNoneMatch"]))] = draw(TEXTS)
        return {"fullUrl": draw(TEXTS), "resource": least(kind), "request": request}

    return {
        "resourceType": "Bundle",
        "type": draw(st.sampled_from(["batch", "transaction"])),
        "entry": [entry() for _ in range(draw(st.integers(0, 3)))],
    }


MODIFIERS = st.sampled_from(
    [
        "", "", "", ":exact", ":contains", ":text", ":not", ":missing", ":above", ":below", ":in", ":not-in",
        ":identifier",
        ":of-type", ":Patient", ":iterate", ":$ne", ":", ".name", ".identifier:exact", ":Patient.name", ".nothing",
    ]
)  # fmt: skip
VALUES = (
    st.sampled_from(["eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap", "x", ""]).flatmap(
        lambda prefix: (TEXTS | st.dates().map(str) | st.floats().map(str) | st.integers().map(str)).map(prefix.__add__)
    )
    | st.tuples(TEXTS, TEXTS, TEXTS).map("|".join)
    | st.lists(TEXTS, max_size=3).map(",".join)
    | st.tuples(TEXTS, TEXTS).map("$".join)
    | st.sampled_from(
        [
            "5.4|http://unitsofmeasure.org|mg", "5|http://unitsofmeasure.org|[", "1e400||kg", "52|13|5|km", "91|0|1",
            "9999-12-31T23:59:60Z", "0000", "2020-02-30", "http://hl7.org/fhir/ValueSet/link-type", "(a+)+$", "\\",
            "a\\,b",
            "family eq \"x\" and (birthdate gt 2020 or not (gender eq male))", "((((((((((((((", "Patient/1/_history/9",
        ]
    )
)  # fmt: skip
OF_ALL = [
    "_id",
    "_lastUpdated",
    "_tag",
    "_profile",
    "_security",
    "_source",
    "_filter",
    "_has",
    "_list",
    "_sort",
    "_text",
]


@st.composite
def searches(draw: st.DrawFn) -> tuple[str, list[tuple[str, str]]]:
    """A type and criteria by parameters that it has, with modifiers and values that may fit or not."""
    kind = draw(KIND)
    names = st.sampled_from([*sorted(parameters(kind)), *OF_ALL, "_has:Observation:subject:code", "_include"])
    return kind, draw(st.lists(st.tuples(st.builds(str.__add__, names, MODIFIERS), VALUES), min_size=1, max_size=3))


CHOICE = st.sampled_from(
    [
        "valueString", "valueUri", "valueCode", "valueInteger", "valueBoolean", "valueDate", "valueMeta", "valueCoding",
        "valueCodeableConcept", "valueReference", "valueIdentifier", "value", "resource", "part",
    ]
)  # fmt: skip
COMPLEX = st.sampled_from(
    [
        {"coding": [{"code": "x"}]}, {"coding": "x"}, {"coding": [None]}, {"system": "x", "code": 1}, {"tag": [1]},
        {"reference": 1}, {"value": ""}, {"resourceType": "ValueSet", "status": "active", "compose": {"include": []}},
    ]
)  # fmt: skip
# With these, operations get further than to what is missing.
FITTING = [
    {"name": "url", "valueUri": "http://hl7.org/fhir/ValueSet/administrative-gender"},
    {"name": "system", "valueUri": "http://hl7.org/fhir/administrative-gender"},
    {"name": "code", "valueCode": "male"},
]


@st.composite
def invocations(draw: st.DrawFn) -> tuple[str, str, Any]:
    """An operation at an address, and what is sent to it."""
    operation = draw(st.sampled_from(OPERATIONS))
    kind = draw(st.sampled_from(sorted(operation.types)) if operation.types else KIND)
    place = draw(st.sampled_from([kind, f"{kind}/known", f"{kind}/{quote(draw(ID))}", ""]))
    rows: list[Any] = []
    for name in draw(st.lists(st.sampled_from([*sorted(operation.parameters), "x"]), max_size=3)):
        rows.append({"name": name, draw(CHOICE): draw(NASTY | COMPLEX | st.just(least(kind)))})
    rows += draw(st.lists(st.sampled_from(FITTING), max_size=3))
    sent = {"resourceType": "Parameters", "parameter": rows} if draw(st.booleans()) else least(kind)
    return (
        draw(st.sampled_from(["GET", "POST"])),
        f"/fhir/{place}/${operation.name}".replace("//", "/"),
        draw(damaged(sent)),
    )


def check(response: Any) -> None:
    """No fault; and every refusal is an OperationOutcome."""
    assert response.status_code < 500 or response.status_code == 501, response.text
    if response.status_code >= 400 and response.data:
        assert b"OperationOutcome" in response.get_data() or response.headers.get("Content-Encoding") == "gzip"


def stored(doors: Doors) -> int:
    return doors.server.database["history"].count_documents({})


@LONG
@given(addresses(), st.lists(st.tuples(PARAMETER, TEXTS), max_size=3), HEADERS)
def test_whatever_is_read_is_answered(everything, path, parameters, headers):
    check(everything.get(path, query_string=parameters, headers=headers))


@LONG
@given(st.sampled_from(["POST", "PUT", "PATCH", "DELETE"]), addresses(), bodies(), HEADERS)
def test_whatever_is_written_is_done_or_refused_without_a_trace(doors, everything, method, path, body, headers):
    before = stored(doors)

    response = everything.call(method, path, data=body[1], headers={**headers, "Content-Type": body[0]})

    check(response)
    assert response.status_code < 400 or stored(doors) == before


@LONG
@given(searches(), st.sampled_from(["get", "post", "compartment", "batch"]), st.booleans())
def test_whatever_is_searched_is_found_or_refused(everything, search, way, lenient):
    kind, criteria = search
    headers = {"Prefer": "handling=lenient"} if lenient else {}
    if way == "post":
        response = everything.call("POST", f"/fhir/{kind}/_search", data=dict(criteria), headers=headers)
    elif way == "batch":
        request = {"method": "GET", "url": f"{kind}?{urlencode(criteria)}"}
        whole = {"resourceType": "Bundle", "type": "batch", "entry": [{"request": request}]}
        response = everything.post("/fhir", whole, headers=headers)
        assert response.json["entry"][0]["response"]["status"][:3] != "500", response.text
    else:
        path = f"/fhir/Patient/known/{kind}" if way == "compartment" else f"/fhir/{kind}"
        response = everything.get(path, query_string=criteria, headers=headers)

    check(response)


@LONG
@given(invocations())
def test_whatever_operation_is_asked_for_is_done_or_refused(everything, invocation):
    method, path, sent = invocation

    check(everything.call(method, path, json=sent if method == "POST" else None))


@LONG
@given(bundles().flatmap(damaged))
def test_whatever_bundle_comes_is_answered(doors, everything, bundle):
    before = stored(doors)

    response = everything.call(
        "POST", "/fhir", data=orjson.dumps(bundle), headers={"Content-Type": "application/fhir+json"}
    )

    check(response)
    told = [each["response"]["status"][:3] for each in response.json.get("entry", [])]
    assert set(told) & {"500"} == set()
    assert response.status_code < 400 or stored(doors) == before
