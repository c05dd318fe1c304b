"""Merging the conditions of instances into those of their series, and storing them."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from imaging.conditions import Condition, Range, conditions, conditions_from_document, merge
from tests.support.conditions import built


def of(**elements: Any) -> tuple[Condition, ...]:
    return conditions(built(**elements))


def merged(*groups: tuple[Condition, ...]) -> dict[str, Any]:
    return {condition.name: condition.value for condition in merge(groups)}


def test_equal_conditions_stay_and_numbers_become_their_range() -> None:
    assert merged(
        of(KVP="120", XRayTubeCurrent=200, SliceThickness="5"),
        of(KVP="120", XRayTubeCurrent=140),
        of(KVP="120", XRayTubeCurrent=170),
    ) == {"slice_thickness": 5, "kvp": 120, "x_ray_tube_current": Range(140, 200)}


def test_texts_that_differ_become_a_sorted_list() -> None:
    assert merged(of(ViewPosition="PA"), of(ViewPosition="LL"), of(ViewPosition="PA")) == {
        "view_position": ("LL", "PA")
    }


def test_lists_of_numbers_are_merged_place_by_place() -> None:
    assert merged(of(PixelSpacing=["0.5", "0.6"]), of(PixelSpacing=["0.5", "0.7"])) == {
        "pixel_spacing": (0.5, Range(0.6, 0.7))
    }


def test_no_more_than_sixteen_texts_are_kept() -> None:
    groups = [of(ViewPosition=f"V{number:02}") for number in range(30)]

    assert merged(*groups) == {"view_position": tuple(f"V{number:02}" for number in range(16))}


instances = st.builds(
    of,
    KVP=st.integers(70, 90).map(str),
    PixelSpacing=st.lists(st.integers(1, 3).map(str), min_size=1, max_size=3),
    ScanOptions=st.lists(st.sampled_from(["FS", "PFP", "SAT", "FC"]), min_size=1, max_size=3),
    FocalSpots=st.just("0.6"),
)


@given(instances, instances, instances)
def test_merging_is_associative_commutative_and_idempotent(
    a: tuple[Condition, ...], b: tuple[Condition, ...], c: tuple[Condition, ...]
) -> None:
    assert merge([a, a]) == a
    assert merge([a, b]) == merge([b, a])
    assert merge([merge([a, b]), c]) == merge([a, merge([b, c])]) == merge([a, b, c, b])


def test_stored_conditions_that_the_table_no_longer_knows_are_left_out() -> None:
    stored = [
        {"name": "kvp", "value": 120, "unit": "V"},
        {"name": "no_such", "value": 1, "unit": "1"},
        {"name": "view_position", "value": "PA"},
    ]

    assert {condition.name for condition in conditions_from_document(stored)} == {"view_position"}
