"""Terminology. Expected values: the published R4 code systems and value sets, and DICOM PS3.16."""

from typing import Any

import pytest

from fhir_server.model.definitions import load
from fhir_server.model.terminology import Coding, Terminology
from imaging.errors import AppError, Category

Json = dict[str, Any]
ACT = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
GENDER = "http://hl7.org/fhir/administrative-gender"
DCM = "http://dicom.nema.org/resources/ontology/DCM"


@pytest.fixture(scope="module")
def shipped() -> Terminology:
    return Terminology(load("terminology"))


def test_a_code_system_says_what_a_code_means(shipped: Terminology) -> None:
    dicom = shipped.code_system(DCM)

    found = dicom.find("CT")
    assert found is not None
    assert found.display == "Computed Tomography"
    assert dicom.find("nonsense") is None


def test_a_value_set_of_a_whole_system(shipped: Terminology) -> None:
    found = shipped.expand("http://hl7.org/fhir/ValueSet/administrative-gender")

    assert [each.code for each in found] == ["male", "female", "other", "unknown"]
    assert {each.system for each in found} == {GENDER}


def test_is_a_follows_the_tree(shipped: Terminology) -> None:
    # Source: value set v3-ActEncounterCode, which is _ActEncounterCode and what lies below
    codes = {each.code for each in shipped.expand("http://terminology.hl7.org/ValueSet/v3-ActEncounterCode")}

    assert {"AMB", "EMER", "IMP", "ACUTE", "VR"} <= codes
    assert "ALLERGYCASE" not in codes
    assert shipped.member("http://terminology.hl7.org/ValueSet/v3-ActEncounterCode", ACT, "ACUTE") is not None
    assert shipped.member("http://terminology.hl7.org/ValueSet/v3-ActEncounterCode", ACT, "nonsense") is None


def test_above_and_below_contain_the_code(shipped: Terminology) -> None:
    act = shipped.code_system(ACT)

    assert {"IMP", "ACUTE", "NONAC"} <= set(act.below("IMP"))
    assert {"ACUTE", "IMP"} <= set(act.above("ACUTE"))


def _set(*include: Json, **more: Any) -> Json:
    return {"resourceType": "ValueSet", "url": "http://v", "compose": {"include": list(include), **more}}


SYSTEM: Json = {
    "resourceType": "CodeSystem",
    "url": "http://s",
    "content": "complete",
    "caseSensitive": False,
    "valueSet": "http://all-of-s",
    "concept": [
        {"code": "A", "display": "a", "concept": [{"code": "A1"}, {"code": "A2", "concept": [{"code": "A21"}]}]},
        {"code": "B", "property": [{"code": "colour", "valueString": "red"}]},
    ],
}


@pytest.mark.parametrize(
    ("include", "more", "expected"),
    [
        ({"system": "http://s"}, {}, "A A1 A2 A21 B"),
        ({"system": "http://s", "concept": [{"code": "A1"}, {"code": "B"}]}, {}, "A1 B"),
        ({"system": "http://s"}, {"exclude": [{"system": "http://s", "concept": [{"code": "A"}]}]}, "A1 A2 A21 B"),
        ({"system": "http://s", "filter": [{"property": "concept", "op": "is-a", "value": "a2"}]}, {}, "A2 A21"),
        (
            {"system": "http://s", "filter": [{"property": "concept", "op": "descendent-of", "value": "a"}]},
            {},
            "A1 A2 A21",
        ),
        ({"system": "http://s", "filter": [{"property": "concept", "op": "is-not-a", "value": "a"}]}, {}, "B"),
        (
            {"system": "http://s", "filter": [{"property": "concept", "op": "generalizes", "value": "a21"}]},
            {},
            "A A2 A21",
        ),
        ({"system": "http://s", "filter": [{"property": "colour", "op": "=", "value": "red"}]}, {}, "B"),
        ({"system": "http://s", "valueSet": ["http://two"]}, {}, "A B"),
        ({"valueSet": ["http://two", "http://one"]}, {}, "B"),
        ({"valueSet": ["http://all-of-s"]}, {}, "A A1 A2 A21 B"),
    ],
)
def test_composition(include: Json, more: Json, expected: str) -> None:
    two = {**_set({"system": "http://s", "concept": [{"code": "A"}, {"code": "B"}]}), "url": "http://two"}
    one = {**_set({"system": "http://s", "concept": [{"code": "B"}]}), "url": "http://one"}
    terminology = Terminology([SYSTEM, two, one])
    value_set = _set(include, **more)

    found = terminology.expand(value_set)

    assert [each.code for each in found] == expected.split()
    for code in ["A", "A1", "A2", "A21", "B"]:
        assert (terminology.member(value_set, "http://s", code) is not None) == (code in expected.split())


def test_case_counts_only_where_the_system_says_so() -> None:
    terminology = Terminology([SYSTEM])

    assert terminology.member(_set({"system": "http://s"}), None, "a21") == Coding("http://s", "A21", "")
    assert terminology.code_system("http://s").find("a21") is not None


def test_what_was_uploaded_is_found_by_its_address() -> None:
    terminology = Terminology([]).using(lambda kind, url: SYSTEM if (kind, url) == ("CodeSystem", "http://s") else None)

    assert len(terminology.expand(_set({"system": "http://s"}))) == 5


@pytest.mark.parametrize(
    ("value_set", "category"),
    [
        ("http://unknown", Category.NOT_FOUND),
        (_set({"system": "http://snomed.info/sct"}), Category.UNSUPPORTED),
        (
            _set({"system": "http://s", "filter": [{"property": "code", "op": "regex", "value": "(a+)+"}]}),
            Category.UNSUPPORTED,
        ),
        (_set({}), Category.INVALID),
        ({"resourceType": "ValueSet", "url": "http://v"}, Category.INVALID),
    ],
)
def test_what_cannot_be_told_is_refused(value_set: Any, category: Category) -> None:
    with pytest.raises(AppError) as raised:
        Terminology([SYSTEM]).expand(value_set)

    assert raised.value.category is category


def test_value_sets_that_hold_one_another_end() -> None:
    loop = {**_set({"valueSet": ["http://loop"]}), "url": "http://loop"}

    with pytest.raises(AppError) as raised:
        Terminology([loop]).expand("http://loop")

    assert raised.value.category is Category.INVALID


def test_an_expansion_is_bounded(shipped: Terminology) -> None:
    with pytest.raises(AppError) as raised:
        shipped.expand(_set({"system": DCM}), limit=100)

    assert raised.value.category is Category.TOO_LARGE
