"""The entries of `fhirContext`. Source: SMART App Launch 2.2, launch context."""

import pytest

from fhir_server.access.grants import context_items
from imaging.errors import AppError


@pytest.mark.parametrize(
    "entry",
    [
        {"reference": "ImagingStudy/1"},
        {"canonical": "http://example.org/Questionnaire/1|2"},
        {"identifier": {"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}, "type": "ImagingStudy"},
        {"reference": "Patient/1", "role": "https://example.org/roles#other-parent"},
    ],
)
def test_entries_come_back_as_they_went_in(entry: dict[str, object]) -> None:
    assert [each.document() for each in context_items([entry])] == [entry]


@pytest.mark.parametrize("entry", [{}, {"type": "ImagingStudy"}, {"role": "launch"}])
def test_an_entry_names_something(entry: dict[str, object]) -> None:
    with pytest.raises(AppError, match="a reference, a canonical or an identifier"):
        context_items([entry])


def test_a_role_of_ones_own_is_an_absolute_address() -> None:
    with pytest.raises(AppError, match="absolute address"):
        context_items([{"reference": "ImagingStudy/1", "role": "favourite"}])


@pytest.mark.parametrize("reference", ["Patient/1", "https://ehr.example.org/fhir/Encounter/2"])
def test_patient_and_encounter_of_the_launch_are_no_entries(reference: str) -> None:
    with pytest.raises(AppError, match="a parameter of its own"):
        context_items([{"reference": reference}])


@pytest.mark.parametrize("entries", [{}, "x", [1], [{"reference": 1}], [{"reference": "x" * 2000}], [{}] * 51])
def test_what_is_no_context_is_refused(entries: object) -> None:
    with pytest.raises(AppError, match="fhirContext"):
        context_items(entries)
