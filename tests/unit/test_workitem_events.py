"""What two versions of a Task say that happened to its work item. Expected values: PS3.4 CC.2.4."""

from datetime import UTC, datetime
from typing import Any

import pytest

from fhir_server.model.task import CANCEL_REQUEST, Status, given_back, with_extension
from fhir_server.model.task_writing import Actor, updated_by
from fhir_server.model.workitem_events import LONGEST_REQUEST, Kind, cancel_request, happened, report
from imaging.dicomweb.json_model import text
from imaging.errors import AppError, Category
from tests.support.workitems import model

TASK: dict[str, Any] = {
    "resourceType": "Task",
    "id": "1.2.3.4",
    "status": "in-progress",
    "intent": "order",
    "requester": {"reference": "Organization/clinic"},
    "owner": {"reference": "Organization/lab"},
}
NOW = datetime(2026, 1, 2, 10, 20, 30, tzinfo=UTC)
MOMENT = "2026-01-02T10:15:00.000Z"


def kinds(before: dict[str, Any] | None, after: dict[str, Any]) -> list[Kind]:
    return [kind for kind, _ in happened(before, after)]


def asked(**told: Any) -> dict[str, Any]:
    return with_extension(TASK, CANCEL_REQUEST, cancel_request(model(**told), "clinic", MOMENT))


@pytest.mark.parametrize(
    ("before", "status", "expected"),
    [
        (None, "draft", []),
        (None, "requested", [Kind.STATE]),
        ("draft", "requested", [Kind.STATE]),
        ("requested", "accepted", []),  # SCHEDULED all the same
        ("ready", "in-progress", [Kind.STATE]),
        ("in-progress", "on-hold", []),
        ("in-progress", "completed", [Kind.STATE]),
        ("in-progress", "entered-in-error", []),
    ],
)
def test_a_change_of_state_is_told(before: str | None, status: str, expected: list[Kind]) -> None:
    old = {**TASK, "status": before} if before else None

    assert kinds(old, {**TASK, "status": status}) == expected


def test_a_request_is_told_once_for_each_time_it_is_made() -> None:
    again = with_extension(TASK, CANCEL_REQUEST, cancel_request({}, "clinic", "2026-01-02T10:16:00.000Z"))

    assert kinds(TASK, asked()) == [Kind.CANCEL_REQUESTED]
    assert kinds(asked(), asked()) == []
    assert kinds(asked(), again) == [Kind.CANCEL_REQUESTED]


def test_what_others_write_into_the_extension_harms_nothing() -> None:
    written = {"url": CANCEL_REQUEST, "extension": [{"url": "request", "valueString": "{no json"}]}

    ((kind, content),) = happened(TASK, with_extension(TASK, CANCEL_REQUEST, written))

    assert (kind, text(content, "RequestingAE")) == (Kind.CANCEL_REQUESTED, "UNKNOWN")


@pytest.mark.parametrize(
    ("name", "title"),
    [("clinic", "clinic"), ("Clinique à Genève 2", "Clinique _ Gen_v"), ("a\\b", "a_b"), ("", "UNKNOWN")],
)
def test_whoever_asks_is_named_as_an_ae_title(name: str, title: str) -> None:
    task = with_extension(TASK, CANCEL_REQUEST, cancel_request({}, name, MOMENT))

    ((_, content),) = happened(TASK, task)

    assert text(content, "RequestingAE") == title


def test_a_long_request_is_refused() -> None:
    with pytest.raises(AppError) as caught:
        asked(ReasonForCancellation="x" * LONGEST_REQUEST)

    assert caught.value.category is Category.TOO_LARGE


def test_only_who_ordered_may_ask_and_may_change_no_other_extension() -> None:
    clinic, stranger = (Actor(f"Organization/{each}", lambda: {}, may_claim=True) for each in ("clinic", "stranger"))
    other = with_extension(asked(), "http://example.org/x", {"url": "http://example.org/x", "valueString": "x"})

    assert kinds(TASK, updated_by(TASK, asked(), clinic, {}, NOW)) == [Kind.CANCEL_REQUESTED]
    for actor, wanted in ((clinic, other), (stranger, asked())):
        with pytest.raises(AppError) as caught:
            updated_by(TASK, wanted, actor, {}, NOW)
        assert caught.value.category is Category.FORBIDDEN


def test_a_request_goes_with_the_claim() -> None:
    assert CANCEL_REQUEST not in str(given_back({**asked(), "status": str(Status.READY)}))


def test_a_message_id_is_a_number_of_16_bits() -> None:
    found = report(Kind.STATE, "1.2.3", 65_537, {})

    assert found["00000110"] == {"vr": "US", "Value": [1]}
