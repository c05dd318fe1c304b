"""FHIRPath Patch. Expected values: FHIR R4 fhirpatch, and the cases that HL7 publishes (r4/patch), restated."""

import copy
from typing import Any

import pytest

from fhir_server.model.patch import fhirpath_patch
from imaging.errors import AppError, Category

Json = dict[str, Any]


def part(name: str, **value: Any) -> Json:
    return {"name": name, **value}


def operation(kind: str, path: str, *parts: Json) -> Json:
    return {"name": "operation", "part": [part("type", valueCode=kind), part("path", valueString=path), *parts]}


def add(path: str, name: str, *parts: Json, **value: Any) -> Json:
    given = part("value", part=list(parts)) if parts else part("value", **value)
    return operation("add", path, part("name", valueString=name), given)


def insert(path: str, index: int, **value: Any) -> Json:
    return operation("insert", path, part("index", valueInteger=index), part("value", **value))


def replace(path: str, **value: Any) -> Json:
    return operation("replace", path, part("value", **value))


def delete(path: str) -> Json:
    return operation("delete", path)


def move(path: str, source: int, destination: int) -> Json:
    return operation("move", path, part("source", valueInteger=source), part("destination", valueInteger=destination))


def patched(resource: Json, *operations: Json) -> Json:
    return fhirpath_patch({"resourceType": "Parameters", "parameter": list(operations)})(resource)


def refusal(resource: Json, *operations: Json) -> Category:
    before = copy.deepcopy(resource)
    with pytest.raises(AppError) as raised:
        patched(resource, *operations)
    assert resource == before
    assert raised.value.where.startswith("Parameters.parameter[")
    return raised.value.category


def patient(**content: Any) -> Json:
    return {"resourceType": "Patient", **content}


def numbers(*values: int) -> Json:
    """A Patient with identifiers of these values, in this order."""
    return patient(identifier=[{"system": "http://example.org", "value": f"value {each}"} for each in values])


NAMED = {"text": "a name"}
CONTACT = {"name": NAMED, "gender": "male"}
THIRD = {"system": "http://example.org", "value": "value 3"}
PUBLISHED = {
    "no difference": (patient(birthDate="1920-01-01"), [], patient(birthDate="1920-01-01")),
    "replace primitive": (
        patient(birthDate="1920-01-01"),
        [replace("Patient.birthDate", valueDate="1930-01-01")],
        patient(birthDate="1930-01-01"),
    ),
    "delete primitive": (patient(birthDate="1920-01-01"), [delete("Patient.birthDate")], patient()),
    "add primitive": (
        patient(),
        [add("Patient", "birthDate", valueDate="1930-01-01")],
        patient(birthDate="1930-01-01"),
    ),
    "replace nested primitive 1": (
        patient(contact=[CONTACT]),
        [replace("Patient.contact[0].gender", valueCode="female")],
        patient(contact=[{**CONTACT, "gender": "female"}]),
    ),
    "replace nested primitive 2": (
        patient(contact=[CONTACT]),
        [replace("Patient.contact[0].name.text", valueString="the name")],
        patient(contact=[{**CONTACT, "name": {"text": "the name"}}]),
    ),
    "delete nested primitive 1": (
        patient(contact=[CONTACT]),
        [delete("Patient.contact[0].gender")],
        patient(contact=[{"name": NAMED}]),
    ),
    "delete nested primitive 2, which takes its parent along": (
        patient(contact=[CONTACT]),
        [delete("Patient.contact[0].name.text")],
        patient(contact=[{"gender": "male"}]),
    ),
    "add nested primitive": (
        patient(contact=[{"name": NAMED}]),
        [add("Patient.contact[0]", "gender", valueCode="male")],
        patient(contact=[CONTACT]),
    ),
    "add complex": (
        patient(),
        [add("Patient", "maritalStatus", valueCodeableConcept={"text": "married"})],
        patient(maritalStatus={"text": "married"}),
    ),
    "replace complex": (
        patient(maritalStatus={"id": "1", "text": "married"}),
        [replace("Patient.maritalStatus", valueCodeableConcept={"id": "2", "text": "not married"})],
        patient(maritalStatus={"id": "2", "text": "not married"}),
    ),
    "delete complex": (patient(maritalStatus={"text": "married"}), [delete("Patient.maritalStatus")], patient()),
    "add anonymous type": (
        patient(),
        [add("Patient", "contact", part("name", valueHumanName=NAMED))],
        patient(contact=[{"name": NAMED}]),
    ),
    "delete anonymous type": (patient(contact=[{"name": NAMED}]), [delete("Patient.contact[0]")], patient()),
    "list unchanged": (numbers(1, 2), [], numbers(1, 2)),
    "list unchanged, contents changed": (
        numbers(1, 2),
        [
            replace("Patient.identifier[0].value", valueString="value 2"),
            replace("Patient.identifier[1].value", valueString="value 1"),
        ],
        numbers(2, 1),
    ),
    "add to list": (numbers(1, 2), [insert("Patient.identifier", 2, valueIdentifier=THIRD)], numbers(1, 2, 3)),
    "add to list, by its name": (
        numbers(1, 2),
        [add("Patient", "identifier", valueIdentifier=THIRD)],
        numbers(1, 2, 3),
    ),
    "insert in list 1": (numbers(1, 2), [insert("Patient.identifier", 1, valueIdentifier=THIRD)], numbers(1, 3, 2)),
    "insert in list 2": (numbers(1, 2), [insert("Patient.identifier", 0, valueIdentifier=THIRD)], numbers(3, 1, 2)),
    "delete from list 1": (numbers(1, 2, 3), [delete("Patient.identifier[0]")], numbers(2, 3)),
    "delete from list 2": (numbers(1, 2, 3), [delete("Patient.identifier[1]")], numbers(1, 3)),
    "delete from list 3": (numbers(1, 2, 3), [delete("Patient.identifier[2]")], numbers(1, 2)),
    "reorder list 1": (numbers(1, 2, 3, 4), [move("Patient.identifier", 3, 1)], numbers(1, 4, 2, 3)),
    "reorder list 2": (numbers(1, 2, 3, 4), [move("Patient.identifier", 3, 0)], numbers(4, 1, 2, 3)),
    "reorder list 3": (numbers(1, 2, 3, 4), [move("Patient.identifier", 3, 2)], numbers(1, 2, 4, 3)),
    "reorder list 4": (numbers(1, 2, 3, 4), [move("Patient.identifier", 0, 3)], numbers(2, 3, 4, 1)),
    "reorder list 5": (
        numbers(1, 2, 3, 4),
        [move("Patient.identifier", 1, 0), move("Patient.identifier", 2, 1)],
        numbers(2, 3, 1, 4),
    ),
    "reorder list 6": (
        numbers(1, 2, 3, 4),
        [move("Patient.identifier", 3, destination) for destination in (0, 1, 2)],
        numbers(4, 3, 2, 1),
    ),
    "operation on missing element 2": (
        patient(),
        [add("Patient", "identifier", valueIdentifier=THIRD)],
        numbers(3),
    ),
    "full resource": (
        patient(text={"status": "generated", "div": "<div>x</div>"}, name=[{"family": "A", "given": ["B"]}]),
        [replace("Patient.text.div", valueString="<div>y</div>"), replace("Patient.name[0].family", valueString="C")],
        patient(text={"status": "generated", "div": "<div>y</div>"}, name=[{"family": "C", "given": ["B"]}]),
    ),
    "consecutive operations": (
        patient(contact=[{"name": NAMED}]),
        [
            add("Patient.contact[0]", "gender", valueCode="male"),
            add("Patient.contact[1]", "gender", valueCode="male"),
        ],
        patient(contact=[{"name": NAMED, "gender": "male"}, {"gender": "male"}]),
    ),
    "consecutive operations, by name": (
        patient(contact=[{"name": NAMED}]),
        [
            add("Patient.contact[0]", "gender", valueCode="male"),
            add("Patient", "contact", part("gender", valueCode="male")),
        ],
        patient(contact=[{"name": NAMED, "gender": "male"}, {"gender": "male"}]),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_case_gives_its_result(name):
    resource, operations, expected = PUBLISHED[name]

    assert patched(resource, *operations) == expected


def test_the_published_case_of_an_operation_on_a_missing_element_is_refused():
    resource = patient(identifier=[{"use": "official", "value": "123"}])
    path = "Patient.identifier.where(use = 'official').period"

    assert refusal(resource, add(path, "end", valueDate="2021-12-01")) is Category.CONFLICT


# ---- paths


@pytest.mark.parametrize(
    "path",
    [
        "Patient.identifier[1].value",
        "identifier[1].value",
        "Patient.identifier.where(value = 'value 2').value",
        "Patient.identifier.where(system = 'http://example.org' and value = 'value 2').value",
        "Patient.identifier.where(value.endsWith('2')).value",
        "Patient.identifier.where(value.startsWith('value') and value != 'value 1').value",
        "Patient.identifier.last().value",
        "Patient.identifier.where(value = 'value 2').single().value",
        "Patient.identifier.where(value.exists($this = 'value 2') and extension.where(url = 'x').empty()).value",
        "Patient.identifier.where((value | system).count() = 2 and value.contains('2')).value",
        "(Patient.identifier[1]).`value`",
        "Patient . identifier [ 1 ] . value",
        "Patient.identifier.ofType(Identifier)[1].value",
    ],
)
def test_a_path_may_be_written_in_many_ways(path):
    assert patched(numbers(1, 2), replace(path, valueString="value 9")) == numbers(1, 9)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "Patient.",
        "Patient.shoeSize",
        "Patient.identifier[",
        "Patient.identifier[-1]",
        "Patient.identifier.where(",
        "Patient.identifier.where(%%%)",
        "Patient.managingOrganization.resolve().name",
        "Patient.identifier.repeat(extension)",
        "Patient.identifier + 1",
        "Patient.identifier.first(1)",
        "Patient" + ".identifier" * 100,
    ],
)
def test_a_path_that_is_not_understood_is_invalid(path):
    assert refusal(numbers(1), replace(path, valueString="x")) is Category.INVALID


def test_a_criterion_runs_no_regular_expressions():
    path = "Patient.identifier.where(value.matches('(a+)+$'))"

    assert refusal(numbers(1), replace(path, valueString="x")) is Category.UNSUPPORTED


def test_a_choice_is_found_by_its_name_and_replaced_by_another_type():
    observation = {"resourceType": "Observation", "status": "final", "valueString": "x"}

    replaced = patched(observation, replace("Observation.value", valueQuantity={"value": 1}))

    assert replaced == {"resourceType": "Observation", "status": "final", "valueQuantity": {"value": 1}}
    assert patched(observation, replace("Observation.value.ofType(string)", valueString="y"))["valueString"] == "y"
    assert patched(observation, delete("(Observation.value as string)")) == {
        name: value for name, value in observation.items() if name != "valueString"
    }
    added = patched({"resourceType": "Observation"}, add("Observation", "value", valueBoolean=True))
    assert added == {"resourceType": "Observation", "valueBoolean": True}


def test_extensions_of_a_primitive_are_found_where_json_keeps_them():
    extension = {"url": "http://e.test/time", "valueString": "noon"}
    resource = patient(birthDate="1920-01-01", _birthDate={"extension": [extension]})

    changed = patched(resource, replace("Patient.birthDate.extension('http://e.test/time').value", valueString="night"))
    without = patched(resource, delete("Patient.birthDate.extension('http://e.test/time')"))
    added = patched(patient(birthDate="1920-01-01"), add("Patient.birthDate", "extension", valueExtension=extension))

    assert changed["_birthDate"]["extension"][0]["valueString"] == "night"
    assert without == patient(birthDate="1920-01-01")
    assert added == resource


def test_lists_of_primitives_keep_their_extensions_beside_them():
    noted = {"extension": [{"url": "http://e.test/x", "valueString": "2"}]}
    resource = patient(name=[{"given": ["A", "B", "C"], "_given": [None, noted, None]}])

    moved = patched(resource, move("Patient.name[0].given", 1, 0))["name"][0]
    inserted = patched(resource, insert("Patient.name[0].given", 0, valueString="Z"))["name"][0]
    deleted = patched(resource, delete("Patient.name[0].given[1]"))["name"][0]

    assert moved == {"given": ["B", "A", "C"], "_given": [noted, None, None]}
    assert inserted == {"given": ["Z", "A", "B", "C"], "_given": [None, None, noted, None]}
    assert deleted == {"given": ["A", "C"]}


def test_contained_resources_have_their_own_elements():
    resource = patient(contained=[{"resourceType": "Organization", "id": "o", "name": "old"}])

    changed = patched(resource, replace("Patient.contained.where(id = 'o').name", valueString="new"))

    assert changed["contained"][0]["name"] == "new"


# ---- what is refused


@pytest.mark.parametrize(
    ("resource", "asked"),
    [
        (patient(birthDate="1920"), add("Patient", "birthDate", valueDate="1930")),
        (numbers(1, 2), delete("Patient.identifier")),
        (numbers(1, 2), replace("Patient.identifier", valueIdentifier=THIRD)),
        (patient(), replace("Patient.birthDate", valueDate="1930")),
        (numbers(1), insert("Patient.identifier", 2, valueIdentifier=THIRD)),
        (numbers(1), move("Patient.identifier", 0, 1)),
        (patient(), move("Patient.identifier", 0, 0)),
        (patient(), insert("Patient.maritalStatus", 0, valueCodeableConcept={"text": "x"})),
        (patient(), delete("Patient")),
        (numbers(1), add("Patient.identifier[5]", "value", valueString="x")),
        (numbers(1, 2), delete("Patient.identifier.single()")),
    ],
)
def test_what_does_not_fit_the_resource_as_it_is_is_a_conflict(resource, asked):
    assert refusal(resource, asked) is Category.CONFLICT


def test_deleting_what_is_not_there_changes_nothing():
    assert patched(patient(), delete("Patient.birthDate")) == patient()


@pytest.mark.parametrize(
    "asked",
    [
        add("Patient", "shoeSize", valueString="44"),
        add("Patient", "$where", valueString="1"),
        add("Patient", "maritalStatus", valueHumanName=NAMED),
        add("Patient", "contact", part("shoeSize", valueString="44")),
        {"name": "operation", "part": [part("type", valueCode="explode"), part("path", valueString="Patient")]},
        {"name": "operation", "part": [part("path", valueString="Patient")]},
        {"name": "operation", "part": [part("type", valueCode="delete")]},
        {"name": "operation", "part": "type"},
        {"name": "operations"},
        "operation",
        operation("add", "Patient", part("name", valueString="active")),
        operation("delete", "Patient.active", part("value", valueString="x")),
        operation("insert", "Patient.name", part("index", valueInteger=-1), part("value", valueHumanName=NAMED)),
        operation("insert", "Patient.name", part("index", valueString="1"), part("value", valueHumanName=NAMED)),
        operation("add", "Patient", part("name", valueString="active"), part("value")),
        operation("add", "Patient", part("name", valueString="active"), part("value", valueCode="a", valueString="b")),
    ],
)
def test_an_operation_that_is_wrong_in_itself_is_invalid(asked):
    assert refusal(patient(), asked) is Category.INVALID


def test_criteria_look_at_a_bounded_number_of_elements():
    resource = numbers(*range(500))
    asked = [delete("Patient.identifier.where(value.startsWith('no'))")] * 100

    assert refusal(resource, *asked) is Category.TOO_LARGE
