"""To whom a subscriber opens its patients in an emergency: what cannot be read opens them to nobody."""

from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import pytest

from fhir_server.access.agreements import Agreement, agreed, agreement_contract
from fhir_server.access.contracts import ALL
from fhir_server.model.validation import validate

NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)
NORTH, WARD, CLINIC = "Organization/north", "Organization/ward", "Organization/clinic"


def said(opens: set[str]) -> dict[str, Any]:
    return agreement_contract(NORTH, Agreement(opens=frozenset(opens)), issued=NOW)


@pytest.mark.parametrize("opens", [{WARD}, {WARD, CLINIC}, {ALL}])
def test_what_is_agreed_is_read_again_and_is_a_contract(opens: set[str]) -> None:
    contract = said(opens)

    validate(contract, "Contract")
    assert agreed([contract], NORTH, NOW).opens == opens


def test_it_opens_to_who_is_named_and_to_nobody_else() -> None:
    found = agreed([said({WARD})], NORTH, NOW)

    assert (found.opens_to(WARD), found.opens_to(CLINIC)) == (True, False)
    assert agreed([said({ALL})], NORTH, NOW).opens_to(CLINIC)
    assert not agreed([said({WARD})], CLINIC, NOW).opens_to(WARD), "north said so, not clinic"
    assert not Agreement().opens_to(WARD)


@pytest.mark.parametrize(
    "change",
    [
        lambda contract: contract.update(status="terminated"),
        lambda contract: contract.update(applies={"end": "2027-02-28"}),
        lambda contract: contract.update(applies={"start": "2027-03-02"}),
        lambda contract: contract.update(applies={"end": "some day"}),
        lambda contract: contract["term"][0].update(applies={"end": "2027-02-28"}),
        lambda contract: contract["term"][0].pop("asset"),
        lambda contract: contract["term"][0].update(asset=contract["term"][0]["asset"] * 2),
        lambda contract: contract["term"][0]["asset"][0].pop("scope"),
        lambda contract: contract["term"][0]["asset"][0].pop("typeReference"),
        lambda contract: contract["term"][0]["asset"][0]["scope"]["coding"][0].update(code="own"),
        lambda contract: contract["term"][0]["asset"][0]["scope"]["coding"][0].update(system="urn:other"),
    ],
)
def test_what_is_over_or_cannot_be_read_opens_to_nobody(change: Any) -> None:
    contract = deepcopy(said({WARD}))
    change(contract)

    assert agreed([contract], NORTH, NOW).opens == frozenset()
