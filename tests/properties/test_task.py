"""Laws of the Task's state machine."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhir_server.model import task as tasks
from fhir_server.model import task_writing as writing
from fhir_server.model.task import INITIAL, MOVES, TERMINAL, Kind, Parameter, Progress, Role, Status
from fhir_server.model.validation import validate
from imaging.errors import AppError, Category

NOW = datetime(2026, 1, 1, tzinfo=UTC)
US, THEM, OTHERS = "Organization/us", "Organization/them", "Organization/others"
KIND = Kind("count", inputs=(Parameter("upto", "valueInteger", least=1),), outputs=(Parameter("sum", "valueInteger"),))
KINDS = {"count": KIND}


def actor(organization: str, *, may_claim: bool = False, **devices: str) -> writing.Actor:
    """An organisation with devices: `d1="reader"` is Device/d1 of the kind `reader`."""
    types = {f"Device/{name}": frozenset({("urn:kinds", kind)}) for name, kind in devices.items()}
    return writing.Actor(organization, lambda: types, may_claim)


REQUESTING, OWNING, STRANGE = actor(US), actor(THEM), actor(OTHERS)
UPTO = {"type": {"text": "upto"}, "valueInteger": 3}


def order(status: str = "requested", **more: Any) -> dict[str, Any]:
    code = {"coding": [{"system": tasks.CODES, "code": "count"}]}
    parties = {"requester": {"reference": US}, "owner": {"reference": THEM}}
    made = {"resourceType": "Task", "status": status, "intent": "order", "code": code, "input": [UPTO], **parties}
    return made | more


statuses = st.sampled_from(list(Status))
roles = st.sampled_from(list(Role))


@given(st.sampled_from(sorted(INITIAL)), st.data())
def test_every_state_on_a_legal_path_is_terminal_or_has_a_way_to_an_end(status: Status, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(0, 20))):
        following = sorted(end for start, end in MOVES if start is status)
        if not following:
            break
        status = data.draw(st.sampled_from(following))

    assert status in TERMINAL or {end for start, end in MOVES if start is status} & TERMINAL


@given(statuses, statuses, roles)
def test_a_move_succeeds_exactly_where_the_table_lets_the_role(source: Status, to: Status, role: Role) -> None:
    allowed = MOVES.get((source, to))
    before = order(source)
    if allowed is not None and role in allowed:
        assert tasks.move(before, to, role, NOW)["status"] == to
    else:
        with pytest.raises(AppError) as caught:
            tasks.move(before, to, role, NOW)
        assert caught.value.category is (Category.CONFLICT if allowed is None else Category.FORBIDDEN)
    assert before == order(source)


@given(st.sampled_from(sorted(TERMINAL)), statuses, roles)
def test_a_terminal_state_is_final(source: Status, to: Status, role: Role) -> None:
    with pytest.raises(AppError):
        tasks.move(order(source), to, role, NOW)


@given(statuses, statuses, st.sampled_from([US, OTHERS]))
def test_nobody_but_the_owner_completes_over_rest(source: Status, to: Status, who: str) -> None:
    try:
        made = writing.updated_by(order(source), order(to), actor(who), KINDS, NOW)
    except AppError:
        return

    assert who == US
    assert source is to or made["status"] not in {"completed", "in-progress", "failed"}


@settings(deadline=None)  # the first one reads the definitions
@given(st.integers(0, 100), st.text("ab ", max_size=9).map(str.strip), st.none() | st.integers(0, 10**6))
def test_progress_is_valid_fhir_and_replaces_the_last(percent: int, step: str, estimate_s: int | None) -> None:
    started = tasks.start(order(), Role.SERVER, NOW)

    first = tasks.progress(started, Progress(1), NOW)
    second = tasks.progress(first, Progress(percent, step, estimate_s), NOW)

    validate(second, "Task")
    (extension,) = second["extension"]
    assert extension["extension"][0] == {"url": "percent", "valueUnsignedInt": percent}


def test_a_completed_task_is_valid_fhir_with_its_outputs() -> None:
    output = [{"type": {"text": "sum"}, "valueInteger": 6}]

    done = tasks.complete(tasks.start(order(), Role.SERVER, NOW), KIND, output, Role.SERVER, NOW)

    validate(done, "Task")
    assert (done["status"], done["output"]) == ("completed", output)
    assert done["executionPeriod"] == {"start": "2026-01-01T00:00:00.000Z", "end": "2026-01-01T00:00:00.000Z"}


@pytest.mark.parametrize(
    ("given_inputs", "where"),
    [
        ([{"type": {"text": "upto"}, "valueString": "3"}], "Task.input[0]"),
        ([UPTO, {"type": {"text": "size"}, "valueInteger": 1}], "Task.input[1]"),
        ([], "Task.input"),
        ([UPTO] * 2, "Task.input"),
    ],
)  # fmt: skip
def test_a_wrong_input_is_named_by_position_and_type(given_inputs: list[Any], where: str) -> None:
    with pytest.raises(AppError) as caught:
        writing.created_by(order(input=given_inputs), REQUESTING, KINDS, NOW)

    assert (caught.value.category, caught.value.where) == (Category.INVALID, where)


def test_an_order_gets_its_requester_and_cannot_be_placed_for_others() -> None:
    nameless = {name: value for name, value in order().items() if name != "requester"}

    assert writing.created_by(nameless, REQUESTING, KINDS, NOW)["requester"] == {"reference": US}
    with pytest.raises(AppError, match="not for others"):
        writing.created_by(order(), OWNING, KINDS, NOW)


def test_a_task_is_not_made_as_completed() -> None:
    with pytest.raises(AppError, match="begins as"):
        writing.created_by(order("completed"), REQUESTING, KINDS, NOW)


def test_the_requester_cancels_but_does_not_change_what_was_ordered() -> None:
    running = tasks.start(order(), Role.OWNER, NOW)

    cancelled = writing.updated_by(running, {**running, "status": "cancelled"}, REQUESTING, KINDS, NOW)

    assert cancelled["status"] == "cancelled"
    with pytest.raises(AppError, match=r"Task\.owner"):
        writing.updated_by(running, {**running, "owner": {"reference": US}}, REQUESTING, KINDS, NOW)


def test_outputs_of_the_owner_are_of_the_kind() -> None:
    running = tasks.start(order(), Role.OWNER, NOW)
    wrong = {**running, "status": "completed", "output": [{"type": {"text": "sum"}, "valueString": "6"}]}

    with pytest.raises(AppError, match="valueInteger"):
        writing.updated_by(running, wrong, OWNING, KINDS, NOW)


def test_a_task_at_work_is_not_deleted() -> None:
    writing.check_deletable(order(), REQUESTING)
    with pytest.raises(AppError, match="cancel it first"):
        writing.check_deletable(order("in-progress"), REQUESTING)
    with pytest.raises(AppError, match="requester"):
        writing.check_deletable(order(), OWNING)
