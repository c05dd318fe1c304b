"""What a grant is. Expected values: SMART App Launch 2.2, launch context."""

from datetime import UTC, datetime

import pytest

from fhir_server.access.grants import ContextItem, Grant, Role, context_items, grant_from_document
from fhir_server.access.scopes import Scopes
from imaging.errors import AppError, Category

END = datetime(2030, 1, 1, tzinfo=UTC)


def grant(**changes) -> Grant:
    values = {"client_id": "c", "scopes": Scopes.parse("patient/ImagingStudy.rs"), "expires": END}
    return Grant(**{**values, "patient": "Patient/1", **changes})


def test_the_launch_context_is_written_as_a_token_response_has_it():
    given = grant(encounter="Encounter/2", context=(ContextItem("ImagingStudy/3", type="ImagingStudy"),))

    assert given.launch_context() == {
        "patient": "1",
        "encounter": "2",
        "fhirContext": [{"reference": "ImagingStudy/3", "type": "ImagingStudy"}],
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"client_id": ""},
        {"patient": "1"},
        {"patient": "Practitioner/1"},
        {"encounter": "Patient/1"},
        {"user": "Device/1", "role": Role.PRACTITIONER},
        {"user": "Practitioner/1"},
        {"role": Role.OPERATOR},
        {"user": "Patient/1", "role": Role.PATIENT, "patient": ""},
        {"subscriber": "clinic"},
        {"expires": END.replace(tzinfo=None)},
    ],
)
def test_what_does_not_go_together_is_no_grant(changes):
    with pytest.raises(AppError) as raised:
        grant(**changes)

    assert raised.value.category is Category.INVALID


@pytest.mark.parametrize("entries", [{}, [1], [{}], [{"reference": 1}], [{"identifier": "x"}], [{"role": "x"}],
                                     [{"reference": "x" * 2000}], [{"reference": "x"}] * 51])  # fmt: skip
def test_what_is_no_fhir_context_is_refused(entries):
    with pytest.raises(AppError) as raised:
        context_items(entries)

    assert raised.value.category is Category.INVALID


def test_what_is_kept_is_read_back():
    given = grant(user="Patient/1", role=Role.PATIENT, subscriber="Organization/x", family="f")

    assert grant_from_document(given.document(), client_id="c", expires=given.expires, family="f") == given
