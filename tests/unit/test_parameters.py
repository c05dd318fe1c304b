"""Declared parameters are described, built from named values, and refused by name."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import pytest

from imaging.errors import AppError, Category
from imaging.parameters import Says, build, describe


class Mode(StrEnum):
    FAST = "fast"
    EXACT = "exact"


@dataclass(frozen=True)
class Example:
    width: Annotated[float, Says("width of it", unit="mm", low=1, high=10)]
    count: Annotated[int, Says("how many", low=1)] = 3
    mode: Annotated[Mode, Says("how")] = Mode.FAST
    shift: Annotated[tuple[float, float], Says("where to", unit="mm", high=5)] = (0.0, 0.0)
    both: Annotated[bool, Says("whether both")] = False


def test_parameters_are_described_in_their_order():
    width, count, mode, shift, both = describe(Example)

    assert (width.name, width.kind, width.unit, width.low, width.high, width.is_required) == (
        "width", "number", "mm", 1, 10, True,
    )  # fmt: skip
    assert (count.kind, count.default, count.high) == ("integer", 3, None)
    assert (mode.kind, mode.choices, mode.unit) == ("choice", ("fast", "exact"), "")
    assert (shift.kind, shift.length) == ("number", 2)
    assert (both.kind, both.is_required) == ("boolean", False)


def test_values_as_json_has_them_become_typed():
    built = build(Example, {"width": 2, "count": 4.0, "mode": "exact", "shift": [1, 2.5], "both": True})

    assert built == Example(2.0, 4, Mode.EXACT, (1.0, 2.5), True)
    assert isinstance(built.width, float)
    assert isinstance(built.count, int)


@pytest.mark.parametrize(
    ("values", "where", "words"),
    [
        ({}, "width", "is required: width of it"),
        ({"width": 11}, "width", "a value from 1 to 10 mm expected"),
        ({"width": "2"}, "width", "a finite number expected"),
        ({"width": float("nan")}, "width", "a finite number expected"),
        ({"width": True}, "width", "a finite number expected"),
        ({"width": 10**400}, "width", "a finite number expected"),
        ({"width": 2, "count": 0}, "count", "a value at least 1 expected"),
        ({"width": 2, "count": 1.5}, "count", "a whole number expected"),
        ({"width": 2, "mode": "slow"}, "mode", "one of fast, exact expected"),
        ({"width": 2, "mode": []}, "mode", "one of fast, exact expected"),
        ({"width": 2, "shift": [1]}, "shift", "2 values expected"),
        ({"width": 2, "shift": [1, 6]}, "shift", "a value at most 5 mm expected"),
        ({"width": 2, "both": 1}, "both", "true or false expected"),
        ({"width": 2, "depth": 1}, "depth", "there is no such parameter; known: width, count, mode, shift, both"),
    ],
)
def test_an_error_names_the_parameter(values: dict[str, Any], where: str, words: str):
    with pytest.raises(AppError) as caught:
        build(Example, values)

    assert (caught.value.category, caught.value.where, caught.value.message) == (Category.INVALID, where, words)
