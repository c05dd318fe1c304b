"""The grammar of SMART scopes. Expected values: SMART App Launch 2.2, scopes and launch context."""

import pytest

from fhir_server.access.scopes import LONGEST, MOST, Permission, Scopes
from imaging.errors import AppError, Category


@pytest.mark.parametrize(
    ("written", "permissions"),
    [
        ("patient/ImagingStudy.rs", "rs"),
        ("patient/ImagingStudy.read", "rs"),
        ("user/Task.write", "cud"),
        ("system/*.*", "cruds"),
        ("system/*.cruds", "cruds"),
        ("user/Observation.c", "c"),
    ],
)
def test_both_versions_are_read_and_written_as_they_came(written, permissions):
    scopes = Scopes.parse(written)

    assert [each.permissions for each in scopes.resources] == [permissions]
    assert str(scopes) == written


def test_criteria_are_decoded():
    (scope,) = Scopes.parse(
        "patient/Observation.rs?category=http%3A%2F%2Fterminology.hl7.org%2FCodeSystem%2Fobservation-category|laboratory"
    ).resources

    assert scope.criteria == (("category", "http://terminology.hl7.org/CodeSystem/observation-category|laboratory"),)


@pytest.mark.parametrize(
    "written",
    [
        "patient/ImagingStudy.sr",  # order
        "patient/ImagingStudy.",
        "patient/ImagingStudy.x",
        "patient/Unknown.rs",
        "patients/ImagingStudy.rs",
        "patient/imagingstudy.rs",
        "patient/*.rs?",
        "patient/ImagingStudy.rs?modality",
        "patient/ImagingStudy.rs?modality=",
        "patient/ImagingStudy.rs?nonsense=1",
        "patient/ImagingStudy.rs?patient.name=a",
        "patient/ImagingStudy.rs?_has:Task:focus:status=x",
        "patient/ImagingStudy.rs?modality:in=http://x",
        "patient/ImagingStudy.rs?started=never",
        "patient/*.rs?nonsense=1",
        "fhir_complete",
        "launch/Patient",
    ],
)
def test_what_is_no_scope_is_left_out_with_a_reason(written):
    scopes = Scopes.parse(f"openid {written} patient/Patient.r")

    assert [text for text, _ in scopes.refused] == [written]
    assert all(reason for _, reason in scopes.refused)
    assert str(scopes) == "openid patient/Patient.r"


@pytest.mark.parametrize("name", ["openid", "fhirUser", "profile", "launch", "launch/patient", "launch/imagingstudy",
                                  "launch/encounter", "offline_access", "online_access"])  # fmt: skip
def test_scopes_that_are_not_about_resources(name):
    assert Scopes.parse(name).has(name)


@pytest.mark.parametrize("text", ["x" * (LONGEST + 1), " ".join(f"user/Task.r?_id={n}" for n in range(MOST + 1))])
def test_there_are_bounds(text):
    with pytest.raises(AppError) as raised:
        Scopes.parse(text)

    assert raised.value.category is Category.INVALID


def test_wildcards_are_about_every_type():
    scopes = Scopes.parse("patient/*.rs user/Task.c")

    assert [str(each) for each in scopes.about("Task", Permission.READ)] == ["patient/*.rs"]
    assert [str(each) for each in scopes.about("Task", Permission.CREATE)] == ["user/Task.c"]
    assert not list(scopes.about("Patient", Permission.DELETE))


@pytest.mark.parametrize(
    ("asked", "allowed", "both"),
    [
        ("patient/ImagingStudy.rs", "patient/*.rs", "patient/ImagingStudy.rs"),
        ("patient/*.cruds", "patient/ImagingStudy.rs patient/Patient.r", "patient/ImagingStudy.rs patient/Patient.r"),
        ("patient/ImagingStudy.rs", "user/ImagingStudy.rs", ""),
        ("patient/ImagingStudy.rs", "patient/ImagingStudy.rs?modality=CT", "patient/ImagingStudy.rs?modality=CT"),
        ("user/Task.c", "user/Task.rs", ""),
        ("user/*.read", "user/*.*", "user/*.read"),
        ("openid offline_access", "openid", "openid"),
    ],
)
def test_what_is_asked_as_far_as_it_is_allowed(asked, allowed, both):
    assert str(Scopes.parse(asked) & Scopes.parse(allowed)) == both
