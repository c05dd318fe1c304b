"""Addresses within Bundles. Expected values: FHIR R4 http 3.1.0.1.4."""

import pytest

from fhir_server.model.resources import Interaction, SystemInteraction
from fhir_server.rest.addresses import ROUTES, understood
from imaging.errors import AppError, Category

BASE = "http://images.test/fhir"


@pytest.mark.parametrize(
    ("method", "url", "interaction", "variables"),
    [
        ("GET", "Patient", Interaction.SEARCH, {"type": "Patient"}),
        ("GET", "Patient?name=a%20b&_count=1", Interaction.SEARCH, {"type": "Patient"}),
        ("HEAD", "Patient/1", Interaction.READ, {"type": "Patient", "id": "1"}),
        ("GET", f"{BASE}/Patient/1", Interaction.READ, {"type": "Patient", "id": "1"}),
        ("GET", "/Patient/1/_history/2", Interaction.VREAD, {"type": "Patient", "id": "1", "vid": "2"}),
        ("GET", "Patient/1/_history", Interaction.HISTORY, {"type": "Patient", "id": "1"}),
        ("GET", "Patient/_history", Interaction.HISTORY_TYPE, {"type": "Patient"}),
        ("GET", "_history?_since=2020", SystemInteraction.HISTORY, {}),
        ("GET", "?_type=Patient", SystemInteraction.SEARCH, {}),
        ("GET", f"{BASE}?_type=Patient", SystemInteraction.SEARCH, {}),
        ("GET", BASE, SystemInteraction.SEARCH, {}),
        ("POST", "Patient", Interaction.CREATE, {"type": "Patient"}),
        ("PUT", "Patient?identifier=1", Interaction.UPDATE, {"type": "Patient"}),
        ("PATCH", "Patient/1", Interaction.PATCH, {"type": "Patient", "id": "1"}),
        ("DELETE", "Patient/a%2Db", Interaction.DELETE, {"type": "Patient", "id": "a-b"}),
    ],
)
def test_an_address_stands_for_an_interaction(method, url, interaction, variables):
    found = understood(method, url, BASE)

    assert (found.route.interaction, dict(found.variables)) == (interaction, variables)


def test_the_parameters_of_an_address_are_decoded():
    found = understood("GET", "Patient?name=a%20b+c&identifier=http%3A%2F%2Fx%7C1&flag=", BASE)

    assert found.parameters == (("name", "a b c"), ("identifier", "http://x|1"), ("flag", ""))


@pytest.mark.parametrize(
    ("method", "url", "category"),
    [
        ("GET", "http://elsewhere.test/fhir/Patient/1", Category.INVALID),
        ("GET", f"{BASE}er/Patient/1", Category.INVALID),
        ("GET", "urn:uuid:53fefa32-fcbb-4ff8-8a92-55ee120877b7", Category.INVALID),
        ("GET", "Patient/" + "1" * 70_000, Category.INVALID),
        ("POST", "Patient/1", Category.UNSUPPORTED),
        ("OPTIONS", "Patient", Category.UNSUPPORTED),
        ("GET", "Patient//_history", Category.UNSUPPORTED),
        ("GET", "Patient/1/2/3/4", Category.UNSUPPORTED),
    ],
)
def test_what_is_not_here_is_refused(method, url, category):
    with pytest.raises(AppError) as raised:
        understood(method, url, BASE)

    assert raised.value.category is category


def test_each_address_takes_a_method_once():
    assert len({(route.method, route.template) for route in ROUTES}) == len(ROUTES)
