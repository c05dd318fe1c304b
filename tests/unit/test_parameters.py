"""Declared parameters are described, built from named values, and refused by name."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import pytest

from imaging.errors import AppError, Category
from imaging.parameters import Says, build, check, describe


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
    name: Annotated[str, Says("what it is called", low=1, high=5)] = "x"
    word: Annotated[str, Says("how to get in", is_secret=True)] = ""
    modes: Annotated[tuple[Mode, ...], Says("all of them")] = ()


def test_parameters_are_described_in_their_order():
    width, count, mode, shift, both, name, word, modes = describe(Example)

    assert (width.name, width.kind, width.unit, width.low, width.high, width.is_required) == (
        "width", "number", "mm", 1, 10, True,
    )  # fmt: skip
    assert (count.kind, count.default, count.high) == ("integer", 3, None)
    assert (mode.kind, mode.choices, mode.unit) == ("choice", ("fast", "exact"), "")
    assert (shift.kind, shift.length) == ("number", 2)
    assert (both.kind, both.is_required) == ("boolean", False)
    assert (name.kind, name.low, name.high, name.unit, name.is_secret) == ("text", 1, 5, "", False)
    assert (word.is_secret, word.length) == (True, None)
    assert (modes.kind, modes.choices, modes.length) == ("choice", ("fast", "exact"), 0)


@dataclass(frozen=True)
class Stated:
    weight_kg: Annotated[float, Says("weight", unit="kg", low=1, is_stated=True)]
    height_m: Annotated[float, Says("height", unit="m")]

    def __post_init__(self) -> None:
        if self.weight_kg < 20 * self.height_m:
            raise AppError(Category.INVALID, "too light", where="weight_kg")


def test_what_images_may_state_may_lack_in_an_order_and_has_to_be_there_in_the_end():
    check(Stated, {"height_m": 2})
    with pytest.raises(AppError, match=r"is required: weight \(weight_kg\)"):
        build(Stated, {"height_m": 2})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "is required: height"),
        ({"height_m": 2, "weight_kg": 0}, "at least 1 kg"),
        ({"height_m": 2, "weight_kg": 30}, "too light"),
        ({"height_m": 2, "width": 1}, "no such parameter"),
    ],
)
def test_what_is_wrong_with_an_order_is_found_before_the_images_are_read(values: dict[str, Any], words: str):
    with pytest.raises(AppError, match=words):
        check(Stated, values)


def test_values_as_json_has_them_become_typed():
    values = {"width": 2, "count": 4.0, "mode": "exact", "shift": [1, 2.5], "both": True}

    built = build(Example, {**values, "name": "a b", "modes": ["exact", "fast"]})

    assert built == Example(2.0, 4, Mode.EXACT, (1.0, 2.5), True, "a b", "", (Mode.EXACT, Mode.FAST))
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
        ({"width": 2, "name": ""}, "name", "a line of 1 to 5 characters expected"),
        ({"width": 2, "name": "abcdef"}, "name", "a line of 1 to 5 characters expected"),
        ({"width": 2, "name": "a\n"}, "name", "a line of 1 to 5 characters expected"),
        ({"width": 2, "name": 1}, "name", "a line of 1 to 5 characters expected"),
        ({"width": 2, "word": "x" * 1001}, "word", "a line of 0 to 1000 characters expected"),
        ({"width": 2, "modes": "fast"}, "modes", "a list of at most 100 values expected"),
        ({"width": 2, "modes": ["fast"] * 101}, "modes", "a list of at most 100 values expected"),
        ({"width": 2, "modes": ["slow"]}, "modes", "one of fast, exact expected"),
        (
            {"width": 2, "depth": 1},
            "depth",
            "there is no such parameter; known: width, count, mode, shift, both, name, word, modes",
        ),
    ],
)
def test_an_error_names_the_parameter(values: dict[str, Any], where: str, words: str):
    with pytest.raises(AppError) as caught:
        build(Example, values)

    assert (caught.value.category, caught.value.where, caught.value.message) == (Category.INVALID, where, words)
