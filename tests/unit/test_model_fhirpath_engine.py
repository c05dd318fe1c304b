"""FHIRPath. Expected values: fhirpathpy, another implementation, and the specification."""

from typing import Any

import fhirpathpy
import pytest
from fhirpathpy.models import models
from hypothesis import given
from hypothesis import strategies as st

from fhir_server.model.definitions import load
from fhir_server.model.fhirpath_engine import compile, evaluate
from imaging.errors import AppError, Category

Json = dict[str, Any]

PATIENT: Json = {
    "resourceType": "Patient",
    "id": "p",
    "active": True,
    "birthDate": "1974-12-25",
    "_birthDate": {"extension": [{"url": "http://time", "valueDateTime": "1974-12-25T14:35:45-05:00"}]},
    "deceasedBoolean": False,
    "name": [
        {"use": "official", "family": "Chalmers", "given": ["Peter", "James"]},
        {"use": "usual", "given": ["Jim"]},
        {"use": "maiden", "family": "Windsor", "given": ["Peter", "James"], "period": {"end": "2002"}},
    ],
    "telecom": [{"system": "phone", "value": "(03) 5555", "rank": 1}, {"system": "phone", "value": "x", "rank": 2}],
    "contained": [{"resourceType": "Organization", "id": "o", "name": "ACME"}],
    "managingOrganization": {"reference": "#o"},
    "multipleBirthInteger": 2,
}
OBSERVATION: Json = {
    "resourceType": "Observation",
    "status": "final",
    "code": {"coding": [{"system": "http://loinc.org", "code": "29463-7"}]},
    "valueQuantity": {"value": 185, "unit": "lbs", "system": "http://unitsofmeasure.org", "code": "[lb_av]"},
    "component": [{"code": {"text": "a"}, "valueString": "x"}, {"code": {"text": "b"}, "valueInteger": 3}],
}

SAME = """
    Patient.name.given
    name.first().given
    name[1].given[0]
    Patient.name.where(use = 'usual').given
    name.select(given.first() & ' ' & family)
    name.given.count()
    name.given.distinct().count()
    name.exists(use = 'maiden')
    name.all(given.exists())
    name.family.empty()
    telecom.rank.first() + 1
    telecom.where(rank > 1).value
    name.given.skip(1).first()
    name.tail().given
    name.last().family
    active and deceased.not()
    active xor true
    {} or true
    {} and false
    ({} implies true)
    true implies {}
    name.given | telecom.value
    name.given.combine(name.given).count()
    name.given contains 'Jim'
    'Jim' in name.given
    birthDate > @1970-01-01
    birthDate = @1974-12-25
    birthDate < @1974
    name.period.end < @2003
    1 + 2 * 3
    (1 + 2) * 3
    7 div 2
    7 mod 2
    1 / 4
    -3 + 5
    'a' + 'b'
    2 > 1
    1 <= 1
    'abc'.substring(1, 1)
    'abc'.startsWith('ab')
    'abc'.length()
    'ABC'.lower()
    'abc'.indexOf('c')
    'a' = 'A'
    'a' ~ 'A'
    1 != 2
    name.given.first() = 'Peter'
    iif(active, 'yes', 'no')
    '5'.toInteger()
    deceased is boolean
    multipleBirth as integer
    multipleBirth.ofType(integer)
    Patient.deceased.ofType(dateTime)
    birthDate.extension('http://time').value
    name.given.isDistinct()
    name.given.subsetOf(name.given)
    contained.name
    descendants().where($this is Period).end
    name.repeat(given)
    name.given.intersect('Jim' | 'Joe')
    name.given.exclude('Jim').count()
    name.where(period.exists()).use.single()
"""


@pytest.mark.parametrize("expression", [line.strip() for line in SAME.strip().splitlines()])
def test_values_agree_with_another_implementation(expression: str) -> None:
    expected = fhirpathpy.evaluate(PATIENT, expression, {}, models["r4"])

    assert [str(value) for value in evaluate(expression, PATIENT)] == [str(value) for value in expected]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("Observation.value.ofType(Quantity).unit", ["lbs"]),
        ("Observation.value > 80 'kg'", [True]),  # 185 lb are 83.9 kg
        ("Observation.value < 84 'kg'", [True]),
        ("component.value.ofType(integer)", [3]),
        ("component.where(value is string).code.text", ["a"]),
        ("Patient.name", []),
        ("code.coding.where(system = %loinc).code", ["29463-7"]),
        ("component.aggregate($total + 1, 0)", [2]),
        ("component[0].value | component[1].value", ["x", 3]),
    ],
)
def test_choices_quantities_and_variables(expression: str, expected: list[Any]) -> None:
    assert evaluate(expression, OBSERVATION) == expected


def test_a_contained_resource_is_resolved_and_the_type_of_another_is_known() -> None:
    other = {**PATIENT, "generalPractitioner": [{"reference": "Practitioner/1"}]}

    assert evaluate("managingOrganization.resolve().name", PATIENT) == ["ACME"]
    assert evaluate("generalPractitioner.where(resolve() is Practitioner).reference", other) == ["Practitioner/1"]
    assert evaluate("generalPractitioner.where(resolve() is Organization)", other) == []


@pytest.mark.parametrize(("one", "other"), [("@2012", "@2012-03"), ("@2012-01-01T10", "@2012-01-01T10:30")])
def test_what_the_precision_leaves_open_is_empty(one: str, other: str) -> None:
    assert evaluate(f"{one} < {other}", PATIENT) == []
    assert evaluate(f"{one} = {other}", PATIENT) == []


def test_times_are_compared_across_zones() -> None:
    assert evaluate("@2012-01-01T10:00:00+01:00 = @2012-01-01T09:00:00Z", PATIENT) == [True]
    assert evaluate("@2012-01-01T00:30:00+01:00 < @2012-01-01T00:00:00Z", PATIENT) == [True]


def test_every_official_invariant_and_search_expression_is_read() -> None:
    rows = load("structure")["constraints"].values()
    expressions = [row[3] for part in rows for row in part] + [row["expression"] for row in load("parameters")]

    assert len(expressions) > 1500
    assert all(compile(each, is_trusted=True) for each in expressions)


@pytest.mark.parametrize(
    ("expression", "category"),
    [
        ("name.", Category.INVALID),
        ("name.nonsense()", Category.INVALID),
        ("name.where()", Category.INVALID),
        ("name.ofType(Nonsense)", Category.INVALID),
        ("%nonsense", Category.INVALID),
        ("'open", Category.INVALID),
        ("(" * 5000, Category.INVALID),
        ("(" * 700 + "a", Category.INVALID),
        ("name.matches('(a+)+b')", Category.UNSUPPORTED),
    ],
)
def test_what_cannot_be_read_is_refused(expression: str, category: Category) -> None:
    with pytest.raises(AppError) as raised:
        compile(expression)

    assert raised.value.category is category


def test_what_looks_at_too_much_is_stopped() -> None:
    large = {"resourceType": "Patient", "name": [{"given": [str(number) for number in range(2000)]}]}

    with pytest.raises(AppError) as raised:
        evaluate("name.given.select(%resource.descendants().where($this = 'x'))", large)

    assert raised.value.category is Category.TOO_LARGE


@given(st.text(alphabet="name.given()[]'$this%=<>|&+-*/ 012 @T:where exists and or not", max_size=40))
def test_any_text_is_an_expression_or_refused(expression: str) -> None:
    refused = None
    try:
        evaluate(expression, PATIENT)
    except AppError as error:
        refused = error.category

    assert refused in {None, Category.INVALID, Category.UNSUPPORTED, Category.TOO_LARGE}
