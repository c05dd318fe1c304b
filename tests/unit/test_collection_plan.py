"""Filters, keys and quotas of collection."""

from datetime import UTC, date, datetime

import pytest

from fhir_server import config
from fhir_server.store.collected import Mark
from fhir_server.work.collection import plan
from fhir_server.work.collection.plan import Window
from imaging.errors import AppError, Category

NOW = datetime(2026, 6, 15, 23, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("window", "key"),  # PS3.4 C.2.2.2.5: a range has a hyphen, an open one on one side only
    [
        (Window(), ""),
        (Window(date(2026, 1, 2)), "20260102-"),
        (Window(None, date(2026, 1, 2)), "-20260102"),
        (Window(date(2026, 1, 2), date(2026, 1, 2)), "20260102"),
        (Window(date(2026, 1, 2), date(2026, 2, 3)), "20260102-20260203"),
    ],
)
def test_a_window_is_a_key_of_range_matching(window: Window, key: str) -> None:
    assert window.key == key


def test_a_filter_goes_to_the_level_that_knows_it_and_modality_narrows_studies_too() -> None:
    filters = plan.filters_of(["Modality=CT", "PatientID=4711", "00081030=CHEST*"])

    assert filters.of_series == [("Modality", "CT")]
    assert filters.of_studies == [
        ("PatientID", "4711"),
        ("StudyDescription", "CHEST*"),
        ("ModalitiesInStudy", "CT"),
    ]


@pytest.mark.parametrize("text", ["Modality", "Modality=", "StudyDate=20260101-", "limit=3"])
def test_a_filter_that_a_look_cannot_use_is_refused(text: str) -> None:
    with pytest.raises(AppError) as refused:
        plan.filters_of([text])

    assert refused.value.category is Category.INVALID


@pytest.mark.parametrize(
    ("values", "wanted", "agrees"),
    [
        (["CT"], "CT", True),
        (["MR", "CT"], "CT", True),
        (["MR"], "CT", False),
        (["Chest routine"], "CHEST*", True),
        (["Chest routine"], "CHEST?ROUTINE", True),
        (["Head"], "CHEST*", False),
        (["CT[1]"], "ct[1]", True),
        ([], "CT", True),  # what is not told is taken on trust
        (["20260105"], "20260101-20260131", True),
    ],
)
def test_an_answer_that_does_not_fit_what_was_asked_is_not_collected(
    values: list[str], wanted: str, agrees: bool
) -> None:
    match = {"00080060": {"vr": "CS", "Value": values}}

    assert plan.agrees(match, [("Modality", wanted)]) is agrees


@pytest.mark.parametrize("text", ["2026.01.02", "20261301", "2026012", "", "２０２６０１０２"])
def test_what_is_no_date_is_none(text: str) -> None:
    assert plan.day_of(text) is None


def test_quotas_count_the_day_in_utc() -> None:
    settings = config.load({"collect.day_instances": "100", "collect.day_bytes": "0"}, environment={})
    mark = Mark(day="20260615", day_instances=99, day_bytes=1 << 40)

    left, _ = plan.left_today(settings, mark, NOW)

    assert left == 1
    assert not plan.is_used_up(settings, mark, NOW)
    assert plan.is_used_up(settings, Mark(day="20260615", day_instances=100), NOW)
    assert not plan.is_used_up(settings, Mark(day="20260614", day_instances=100), NOW)
    assert plan.next_day(NOW) == datetime(2026, 6, 16, tzinfo=UTC)
