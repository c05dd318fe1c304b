"""Tokens with a grant: kept, found again, withdrawn. Expected values: SMART App Launch 2.2, RFC 7009."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from fhir_server.access.contracts import Right
from fhir_server.access.grants import ContextItem, Grant, Role, new_family
from fhir_server.access.scopes import Scopes
from imaging.errors import AppError, Category
from tests.support.doors import Caller, Doors, opened


@pytest.fixture(scope="module")
def doors(module_db) -> Iterator[Doors]:
    with opened(module_db) as made:
        yield made


@pytest.fixture
def client_id(doors: Doors) -> str:
    return doors.server.principals.add("clinic", [Right.RECEIVE_IMAGES]).clients[0]


def grant(doors: Doors, client_id: str, **changes) -> Grant:
    values = {"client_id": client_id, "scopes": Scopes.parse("patient/ImagingStudy.rs"),
              "expires": doors.clock() + timedelta(minutes=5), "patient": "Patient/1"}  # fmt: skip
    return Grant(**{**values, **changes})


def test_a_grant_is_found_again_with_its_token(doors, client_id):
    given = grant(
        doors,
        client_id,
        scopes=Scopes.parse("openid launch patient/ImagingStudy.rs?modality=CT"),
        encounter="Encounter/2",
        context=(
            ContextItem("ImagingStudy/3", role="urn:example:prior"),
            ContextItem(identifier=("urn:dicom:uid", "urn:oid:1.2")),
        ),
        user="Practitioner/4",
        role=Role.PRACTITIONER,
        family=new_family(),
        expires=doors.clock().replace(microsecond=0) + timedelta(minutes=5),
    )

    found = doors.server.principals.authenticate(doors.server.principals.issue(given)).grant

    assert found == given


def test_a_token_of_the_commands_has_no_grant(doors, client_id):
    token = doors.server.principals.mint("clinic")

    assert doors.server.principals.authenticate(token).grant is None
    assert doors.server.principals.grant_of(token) is None


def test_a_withdrawn_token_opens_nothing(doors, client_id):
    principals = doors.server.principals
    token, other = principals.issue(grant(doors, client_id)), principals.issue(grant(doors, client_id))
    principals.authenticate(token)

    principals.revoke(token)

    assert principals.grant_of(token) is None
    assert principals.grant_of(other) is not None


def test_the_tokens_of_one_authorisation_end_together(doors, client_id):
    principals, family = doors.server.principals, new_family()
    tokens = [principals.issue(grant(doors, client_id, family=family)) for _ in range(2)]
    other = principals.issue(grant(doors, client_id, family=new_family()))
    without = principals.issue(grant(doors, client_id))
    assert all(principals.grant_of(each) for each in tokens)

    principals.revoke_family(family)
    principals.revoke_family("")

    assert [principals.grant_of(each) for each in tokens] == [None, None]
    assert principals.grant_of(other)
    assert principals.grant_of(without)


def test_a_token_ends_when_its_grant_does(doors, client_id):
    token = doors.server.principals.issue(grant(doors, client_id))

    doors.clock.forward(minutes=5)

    assert doors.server.principals.grant_of(token) is None


def test_no_token_is_issued_for_what_is_over_or_for_an_unknown_client(doors, client_id):
    with pytest.raises(AppError) as over:
        doors.server.principals.issue(grant(doors, client_id, expires=doors.clock()))
    with pytest.raises(AppError) as unknown:
        doors.server.principals.issue(grant(doors, "nobody"))

    assert (over.value.category, unknown.value.category) == (Category.INVALID, Category.NOT_FOUND)


def test_what_cannot_be_read_as_a_grant_opens_nothing(doors, client_id):
    token = doors.server.principals.issue(grant(doors, client_id))
    doors.server.database["tokens"].update_many({}, {"$set": {"grant": {"scopes": "x", "role": "king"}}})

    assert Caller(doors.flask, token, doors.clock).get("/fhir/Patient").status_code == 401
