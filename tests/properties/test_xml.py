"""Laws of XML: what is written and read again is the same, digits and narratives included, for every type of R4."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhir_server.model import json
from fhir_server.model.definitions import resource_types
from fhir_server.model.xml import from_xml, to_xml
from imaging.errors import AppError, Category
from tests.support.least import least
from tests.support.resources import resources

LEVELS = 100


def canonical(value):
    """Return JSON with sorted names: XML has an order of its own."""
    if isinstance(value, dict):
        return {name: canonical(value[name]) for name in sorted(value)}
    return [canonical(each) for each in value] if isinstance(value, list) else value


def same(one, other) -> bool:
    return json.dumps(canonical(one)) == json.dumps(canonical(other))


@given(st.sampled_from(sorted(resource_types())).flatmap(resources), st.booleans())
@settings(max_examples=150, deadline=None)
def test_json_to_xml_to_json_is_the_same(resource, indent):
    assert same(from_xml(to_xml(resource, indent=indent), most_levels=LEVELS), resource)


@pytest.mark.parametrize("kind", sorted(resource_types()))
def test_the_least_resource_of_a_type_is_the_same(kind):
    assert same(from_xml(to_xml(least(kind)), most_levels=LEVELS), least(kind))


def category_of(data: bytes) -> Category | None:
    """Return how a document is refused, None where it is read."""
    try:
        from_xml(data, most_levels=LEVELS)
    except AppError as error:
        return error.category
    return None


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_bytes_that_are_no_resource_are_invalid(data):
    assert category_of(data) is Category.INVALID


@given(st.sampled_from(sorted(resource_types())).flatmap(resources), st.data())
@settings(max_examples=100, deadline=None)
def test_a_damaged_document_is_read_or_invalid(resource, data):
    document = bytearray(to_xml(resource))
    for _ in range(data.draw(st.integers(1, 5))):
        document[data.draw(st.integers(0, len(document) - 1))] = data.draw(st.integers(0, 255))

    assert category_of(bytes(document)) in (None, Category.INVALID)
