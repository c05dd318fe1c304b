"""What the HTTP doors share. Expected values: RFC 9110, FHIR R4 http 3.1.0, RFC 6750."""

import json as stdlib_json

import pytest

from fhir_server.model.json import loads
from fhir_server.rest.bundles import pretty
from fhir_server.rest.statuses import STATUS, status_of
from imaging.errors import AppError, Category


@pytest.mark.parametrize("category", list(Category))
def test_every_category_has_an_http_status(category):
    assert STATUS[category] >= 400


@pytest.mark.parametrize(
    ("where", "status"), [("Accept", 406), ("Content-Type", 415), ("method", 405), ("anything", 501), (None, 501)]
)
def test_where_something_is_not_supported_decides_the_status(where, status):
    assert status_of(AppError(Category.UNSUPPORTED, "x", where=where)) == status


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, {"b": []}, {}], "c": 'q"uo\\te, [x]: {', "d": {}, "e": [[], [1, 2]], "f": None, "g": True},
        {},
        {"text": "ü \u2028 \\u0041"},
    ],
)
def test_pretty_json_is_the_same_json(value):
    body = stdlib_json.dumps(value).encode()

    assert loads(pretty(body)) == value


def test_pretty_json_keeps_the_digits_and_indents_like_everyone():
    value = {"a": [1, {"b": 2}], "c": {}}

    assert pretty(b'{"v":1.50}') == b'{\n  "v": 1.50\n}\n'
    assert pretty(stdlib_json.dumps(value).encode()).decode().rstrip("\n") == stdlib_json.dumps(value, indent=2)
