"""The OpenAPI document, judged by openapi-spec-validator, and beside what the server really does."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from pymongo.database import Database

from fhir_server.doors import create_app
from tests.support.doors import Doors, opened

SOME = re.compile(r"/(?:Patient|ImagingStudy|Contract|AuditEvent|metadata|_|$)")


@pytest.fixture(scope="module")
def doors(module_db: Database[dict[str, Any]]) -> Iterator[Doors]:
    with opened(module_db) as made:
        yield made


@pytest.fixture(scope="module")
def document(doors: Doors) -> dict[str, Any]:
    response = doors.stranger.get("/fhir/openapi.json")
    assert (response.status_code, response.mimetype) == (200, "application/json")
    return response.json


def test_it_is_a_valid_document(document):
    # All types are written alike; the validator takes a minute for all of them.
    document = {**document, "paths": {path: item for path, item in document["paths"].items() if SOME.match(path)}}

    errors = [
        f"{list(each.absolute_path)}: {each.message}"[:200] for each in OpenAPIV31SpecValidator(document).iter_errors()
    ]

    assert errors == []


def test_it_names_the_addresses_that_the_door_has_and_no_other(doors: Doors, document):
    rules = create_app(doors.server).url_map.bind("images.test")
    told = {(method, path) for path, item in document["paths"].items() for method in item}

    missing = [
        (method, path)
        for method, path in told
        if not rules.test(f"/fhir{re.sub(r'{[^}]+}', '1', path)}", method.upper())
    ]

    assert missing == []
    assert {("get", "/Patient"), ("patch", "/Patient/{id}"), ("post", "/Patient/_search"), ("post", "/")} <= told
    assert ("get", "/Contract") in told
    assert ("post", "/Contract") not in told


def test_it_names_the_search_parameters_of_the_statement(doors: Doors, document):
    statement = doors.stranger.get("/fhir/metadata").json["rest"][0]["resource"]

    told = {
        row["type"]: {
            each["name"] for each in document["paths"][f"/{row['type']}"]["get"]["parameters"] if "name" in each
        }
        for row in statement
    }

    assert told == {row["type"]: {each["name"] for each in row["searchParam"]} for row in statement}


def test_every_request_but_two_needs_a_token(document):
    assert document["security"] == [{"bearer": []}]
    open_to_all = [
        path for path, item in document["paths"].items() for each in item.values() if each.get("security") == []
    ]
    assert open_to_all == ["/metadata"]
