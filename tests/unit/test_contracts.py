"""Contracts in time. Expected values: FHIR R4 Period (inclusive at both ends) and Contract.status."""

from datetime import UTC, datetime, timedelta

import pytest

from fhir_server.access.contracts import RIGHTS_SYSTEM, Limits, Right, Term, contract, terms_in_force
from fhir_server.model.validation import validate

NOW = datetime(2026, 6, 15, 12, tzinfo=UTC)
ME = "Organization/me"


def made(**changes):
    one = contract(ME, [Right.RECEIVE_IMAGES], issued=NOW, start=NOW - timedelta(days=1), end=NOW + timedelta(days=1))
    return {**one, **changes}


def rights(*contracts, now=NOW):
    return {term.right for term in terms_in_force(contracts, ME, now)[0]}


def test_an_executed_contract_gives_its_rights_while_it_lasts():
    assert rights(made()) == {Right.RECEIVE_IMAGES}


@pytest.mark.parametrize("status", ["terminated", "cancelled", "negotiable", "entered-in-error"])
def test_no_other_status_gives_anything(status):
    assert rights(made(status=status)) == set()


def test_rights_of_several_contracts_add_up():
    other = contract(ME, [Right.REGISTER_IMAGES], issued=NOW, start=NOW, end=None)

    assert rights(made(), other) == {Right.RECEIVE_IMAGES, Right.REGISTER_IMAGES}


def test_a_contract_of_somebody_else_gives_nothing():
    assert rights(made(subject=[{"reference": "Organization/other"}])) == set()


@pytest.mark.parametrize(
    ("period", "expected"),
    [
        ({"start": "2026-06-15", "end": "2026-06-15"}, True),  # the last day counts whole
        ({"start": "2026", "end": "2026"}, True),
        ({"end": "2026-06"}, True),
        ({"start": "2026-06-16"}, False),
        ({"end": "2026-06-14"}, False),
        ({"end": "2026-06-15T13:59:00+02:00"}, False),
        ({"end": "2026-06-15T14:01:00+02:00"}, True),
        ({"start": "soon"}, False),
        ({}, True),
    ],
)
def test_periods_are_inclusive_and_unreadable_ones_empty(period, expected):
    assert bool(rights(made(applies=period))) is expected


def test_a_term_may_be_shorter_than_its_contract():
    one = made()
    one["term"][0]["applies"] = {"end": "2026-06-14"}

    assert rights(one) == set()


def test_a_term_of_another_code_system_gives_nothing():
    one = made()
    one["term"][0]["type"]["coding"] = [{"system": "http://elsewhere.example", "code": "receive-images"}]

    assert rights(one) == set()


def test_an_unknown_right_gives_nothing():
    one = made()
    one["term"][0]["type"]["coding"] = [{"system": RIGHTS_SYSTEM, "code": "everything"}]

    assert rights(one) == set()


def test_what_was_found_is_good_until_the_next_start_or_end():
    ending = made(applies={"end": "2026-06-15T13:00:00Z"})
    coming = made(applies={"start": "2026-06-15T12:30:00Z"})

    assert terms_in_force([ending], ME, NOW)[1] == datetime(2026, 6, 15, 13, 0, 1, tzinfo=UTC)
    assert terms_in_force([ending, coming], ME, NOW)[1] == datetime(2026, 6, 15, 12, 30, tzinfo=UTC)


LIMITS = [
    Limits(),
    Limits(frozenset({ME})),
    Limits(frozenset({ME, "Organization/other"})),
    Limits(None, frozenset({"CT", "MR"})),
    Limits(frozenset({ME}), frozenset({"MG"}), frozenset({"Patient/1", "Patient/2"})),
    Limits(None, frozenset(), frozenset({"Patient/1"})),
]


@pytest.mark.parametrize("limits", LIMITS)
def test_limits_are_read_back_from_the_contract(limits):
    made = contract(ME, [Right.RECEIVE_IMAGES, Right.REGISTER_IMAGES], issued=NOW, start=NOW, end=None, limits=limits)

    terms, _ = terms_in_force([made], ME, NOW)

    assert terms == {Term(Right.RECEIVE_IMAGES, limits), Term(Right.REGISTER_IMAGES, limits)}


@pytest.mark.parametrize(
    "asset",
    [
        [{}],
        [{"scope": {"coding": [{"code": "all"}]}}],
        [{"scope": {"coding": [{"system": "urn:fhir-imaging:code:whose", "code": "everybody"}]}}],
        [
            {
                "scope": {"coding": [{"system": "urn:fhir-imaging:code:whose", "code": "all"}]},
                "subtype": [{"text": "CT"}],
            }
        ],
        [{"scope": {"coding": [{"system": "urn:fhir-imaging:code:whose", "code": "all"}]}, "context": [{}]}],
        [{"scope": {"coding": [{"system": "urn:fhir-imaging:code:whose", "code": "own"}]}}] * 2,
    ],
)
def test_a_term_whose_limits_cannot_be_read_gives_nothing(asset):
    one = made()
    one["term"][0]["asset"] = asset

    assert rights(one) == set()


def test_a_contract_with_limits_is_a_valid_resource():
    validate(contract(ME, list(Right), issued=NOW, start=NOW, end=None, limits=LIMITS[4]), "Contract")
