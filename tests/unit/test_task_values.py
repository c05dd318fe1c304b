"""Inputs and outputs of Tasks as plain values. Expected values: FHIR R4 Task.input.value[x], which has any type."""

from fhir_server.model import json
from fhir_server.model.task_values import id_of, relative, values_of

TASK = json.loads(
    b"""{"input": [
      {"type": {"coding": [{"code": "spacing"}]}, "valueDecimal": 1.50},
      {"type": {"text": "dose"}, "valueDosage": {"sequence": 1, "doseAndRate": [{"doseQuantity": {"value": 2.5}}]}},
      {"type": {"coding": [{"code": "spacing"}]}, "valueInteger": 2},
      {"type": {"coding": [{"code": "flag"}]}, "valueBoolean": true},
      {"type": {"coding": [{"code": "nothing"}]}}]}"""
)


def test_values_of_any_type_are_plain_and_by_name_in_order() -> None:
    assert values_of(TASK) == {
        "spacing": [1.5, 2],
        "dose": [{"sequence": 1, "doseAndRate": [{"doseQuantity": {"value": 2.5}}]}],
        "flag": [True],
        "nothing": [None],
    }
    assert values_of(TASK, "output") == {}


def test_a_reference_may_be_an_address_its_text_or_nothing() -> None:
    address = "https://images.test/fhir/ImagingStudy/1.2.3"

    assert {relative(each) for each in ({"reference": address}, address)} == {"ImagingStudy/1.2.3"}
    assert [id_of(each) for each in ({"reference": "Patient/7"}, "1.2.3", {"display": "x"})] == ["7", "1.2.3", ""]
    assert {relative(each) for each in ({}, {"reference": ""}, None)} == {""}
