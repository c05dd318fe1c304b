"""JSON Patch. Expected values: the examples of RFC 6902, appendix A, and its sections that the names tell."""

import pytest

from fhir_server.model import json
from fhir_server.model.patch import json_patch
from imaging.errors import AppError, Category

EXAMPLES = {
    "A.1 adding an object member": (
        {"foo": "bar"},
        [{"op": "add", "path": "/baz", "value": "qux"}],
        {"baz": "qux", "foo": "bar"},
    ),
    "A.2 adding an array element": (
        {"foo": ["bar", "baz"]},
        [{"op": "add", "path": "/foo/1", "value": "qux"}],
        {"foo": ["bar", "qux", "baz"]},
    ),
    "A.3 removing an object member": (
        {"baz": "qux", "foo": "bar"},
        [{"op": "remove", "path": "/baz"}],
        {"foo": "bar"},
    ),
    "A.4 removing an array element": (
        {"foo": ["bar", "qux", "baz"]},
        [{"op": "remove", "path": "/foo/1"}],
        {"foo": ["bar", "baz"]},
    ),
    "A.5 replacing a value": (
        {"baz": "qux", "foo": "bar"},
        [{"op": "replace", "path": "/baz", "value": "boo"}],
        {"baz": "boo", "foo": "bar"},
    ),
    "A.6 moving a value": (
        {"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}},
        [{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}],
        {"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}},
    ),
    "A.7 moving an array element": (
        {"foo": ["all", "grass", "cows", "eat"]},
        [{"op": "move", "from": "/foo/1", "path": "/foo/3"}],
        {"foo": ["all", "cows", "eat", "grass"]},
    ),
    "A.8 testing a value: success": (
        {"baz": "qux", "foo": ["a", 2, "c"]},
        [{"op": "test", "path": "/baz", "value": "qux"}, {"op": "test", "path": "/foo/1", "value": 2}],
        {"baz": "qux", "foo": ["a", 2, "c"]},
    ),
    "A.10 adding a nested member object": (
        {"foo": "bar"},
        [{"op": "add", "path": "/child", "value": {"grandchild": {}}}],
        {"foo": "bar", "child": {"grandchild": {}}},
    ),
    "A.11 ignoring unrecognized elements": (
        {"foo": "bar"},
        [{"op": "add", "path": "/baz", "value": "qux", "xyz": 123}],
        {"foo": "bar", "baz": "qux"},
    ),
    "A.14 ~ escape ordering": (
        {"/": 9, "~1": 10},
        [{"op": "test", "path": "/~01", "value": 10}],
        {"/": 9, "~1": 10},
    ),
    "A.16 adding an array value": (
        {"foo": ["bar"]},
        [{"op": "add", "path": "/foo/-", "value": ["abc", "def"]}],
        {"foo": ["bar", ["abc", "def"]]},
    ),
    "4.5 copy": (
        {"a": {"b": 1}},
        [{"op": "copy", "from": "/a/b", "path": "/c"}],
        {"a": {"b": 1}, "c": 1},
    ),
}
CONFLICTS = {
    "A.9 testing a value: error": ({"baz": "qux"}, [{"op": "test", "path": "/baz", "value": "bar"}]),
    "A.12 adding to a nonexistent target": ({"foo": "bar"}, [{"op": "add", "path": "/baz/bat", "value": "qux"}]),
    "A.15 comparing strings and numbers": ({"~1": 10}, [{"op": "test", "path": "/~01", "value": "10"}]),
    "4.2 removing what is not there": ({"foo": "bar"}, [{"op": "remove", "path": "/baz"}]),
    "4.3 replacing what is not there": ({"foo": "bar"}, [{"op": "replace", "path": "/baz", "value": 1}]),
    "4.4 moving into itself": ({"foo": {"a": 1}}, [{"op": "move", "from": "/foo", "path": "/foo/a"}]),
    "4.1 adding beyond the end of an array": ({"foo": []}, [{"op": "add", "path": "/foo/1", "value": 1}]),
    "RFC 6901 4: leading zeros": ({"foo": [1, 2]}, [{"op": "remove", "path": "/foo/01"}]),
    "4.6 true is not 1": ({"foo": True}, [{"op": "test", "path": "/foo", "value": 1}]),
}
INVALID = {
    "not a list": {"op": "add", "path": "/a", "value": 1},
    "not an operation": ["add"],
    "no op": [{"path": "/a", "value": 1}],
    "unknown op": [{"op": "spam", "path": "/a"}],
    "op of another type": [{"op": ["add"], "path": "/a"}],
    "no path": [{"op": "remove"}],
    "no value": [{"op": "add", "path": "/a"}],
    "no from": [{"op": "move", "path": "/a"}],
    "path without a slash": [{"op": "remove", "path": "a"}],
    "path of another type": [{"op": "remove", "path": 1}],
    "bad escape": [{"op": "remove", "path": "/~2"}],
    "too many": [{"op": "test", "path": "", "value": {}}] * 1001,
}


def refusal(act) -> Category:
    with pytest.raises(AppError) as raised:
        act()
    return raised.value.category


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_the_rfc_gives_its_result(name):
    resource, operations, expected = EXAMPLES[name]

    assert json_patch(operations, most_bytes=1000)(resource) == expected


@pytest.mark.parametrize("name", CONFLICTS)
def test_what_does_not_fit_the_resource_as_it_is_is_a_conflict(name):
    resource, operations = CONFLICTS[name]
    before = json.dumps(resource)

    assert refusal(lambda: json_patch(operations, most_bytes=1000)(resource)) is Category.CONFLICT
    assert json.dumps(resource) == before


@pytest.mark.parametrize("name", INVALID)
def test_what_is_wrong_in_itself_is_invalid(name):
    assert refusal(lambda: json_patch(INVALID[name], most_bytes=1000)) is Category.INVALID


def test_copies_that_double_and_double_end_at_the_bound():
    doubling = [{"op": "copy", "from": "", "path": f"/a{number}"} for number in range(60)]

    assert refusal(lambda: json_patch(doubling, most_bytes=100_000)({"a": 1})) in (Category.TOO_LARGE, Category.INVALID)


def test_decimals_of_the_patch_and_of_the_resource_keep_their_digits():
    operations = json.loads(b'[{"op":"copy","from":"/a","path":"/b"},{"op":"add","path":"/c","value":2.500}]')

    assert json.dumps(json_patch(operations, most_bytes=1000)(json.loads(b'{"a":1.50}'))) == (
        b'{"a":1.50,"b":1.50,"c":2.500}'
    )
