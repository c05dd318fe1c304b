"""A work item and a Task are one order. Expected values: PS3.4 CC.1.1, PS3.5 B.2, PS3.18 F.2, PS3.4 C.2.2.2."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhir_server.model import workitem, workitem_orders
from fhir_server.model.task import Progress, Role, Status, given_back, lapsed, move, progress, with_extension
from fhir_server.model.task_writing import Actor
from fhir_server.model.validation import validate
from fhir_server.model.workitem import State, dataset_of, state_of, task_id_of, uid_of
from imaging.dicomweb import Level, parse_query
from imaging.dicomweb.holds import holds
from imaging.dicomweb.json_model import checked, element, items, text
from imaging.errors import AppError, Category
from tests.support.workitems import TRANSACTION, code, images, model, new_item, performed

NOW = datetime(2026, 1, 2, 10, 20, 30, tzinfo=UTC)
UID = "1.2.826.0.1.3680043.8.498.5"
ACTOR = Actor("Organization/lab", lambda: {"Device/cad": frozenset({("s", "c")})}, may_claim=True)


class Nothing:
    """Sees no images and no patients."""

    def studies(self, parameter: str, value: str) -> list[dict[str, Any]]:
        return []

    def patient(self, reference: str) -> dict[str, Any] | None:
        return None

    def address(self, study_uid: str, series_uid: str) -> str:
        return ""


def placed(**changes: Any) -> dict[str, Any]:
    return workitem_orders.placed(new_item(**changes), UID, Nothing())


def begun(**changes: Any) -> dict[str, Any]:
    claimed = workitem_orders.claimed(placed(**changes), TRANSACTION, ACTOR)
    return {**claimed, "executionPeriod": {"start": "2026-01-02T10:20:00.000Z"}}


# ---- identity and state


@given(st.uuids())
def test_a_task_with_a_uuid_is_the_work_item_with_the_uid_made_of_it(id: UUID) -> None:
    uid = uid_of(str(id))

    assert uid == f"2.25.{id.int}"
    assert task_id_of(uid) == str(id)


@given(st.from_regex(r"[0-2](\.(0|[1-9][0-9]{0,9})){1,5}", fullmatch=True))
def test_every_uid_is_that_of_one_task(uid: str) -> None:
    assert uid_of(task_id_of(uid)) == uid


@pytest.mark.parametrize("id", ["order-7", "1.02.3", "1", "2.25.5", "1..2", "UPPER-1.2", "1.2.", "².³"])
def test_a_task_whose_id_cannot_be_a_uid_is_no_work_item(id: str) -> None:
    assert uid_of(id) is None


def test_every_status_has_a_state_but_those_of_what_was_never_ordered() -> None:
    states = {status: state_of({"status": str(status)}) for status in Status}

    assert {status for status, state in states.items() if state is None} == {Status.DRAFT, Status.ENTERED_IN_ERROR}
    assert states[Status.REQUESTED] is State.SCHEDULED
    assert states[Status.IN_PROGRESS] is State.IN_PROGRESS
    assert states[Status.COMPLETED] is State.COMPLETED
    assert {states[each] for each in (Status.FAILED, Status.CANCELLED, Status.REJECTED)} == {State.CANCELED}


# ---- from work item to Task and back


@pytest.mark.parametrize("changes", [{}, {"ScheduledStationNameCodeSequence": None}, {"PatientID": None}])
def test_what_is_placed_is_a_valid_task(changes: dict[str, Any]) -> None:
    validate(placed(**changes), "Task")


def test_what_was_placed_is_given_back() -> None:
    sent = new_item(InputInformationSequence=images("1.2.3", "1.2.3.1", "1.2.3.1.1"), StudyInstanceUID="1.2.3")

    back = dataset_of(placed(InputInformationSequence=sent["00404021"]["Value"], StudyInstanceUID="1.2.3"), Nothing())

    assert {tag: each for tag, each in back.items() if tag in sent} == {
        tag: each for tag, each in sent.items() if tag != "00081195"
    }


def test_codes_go_to_fhir_and_back() -> None:
    sequence = [code("RPID1", "99X", "Ours"), code("LOINC-1", "LN", "Theirs")]
    concept = {"coding": [{"system": "https://a.example", "code": "x" * 20, "display": "Long"}]}

    task = placed(ScheduledWorkitemCodeSequence=sequence)

    assert [each["system"] for each in task["code"]["coding"]] == [
        "urn:fhir-imaging:coding-scheme:99X",
        "http://loinc.org",
    ]
    assert workitem.concept_items(task["code"]) == [dict(sorted(each.items())) for each in sequence]
    (item,) = workitem.concept_items(concept)
    assert (text(item, "LongCodeValue"), text(item, "CodingSchemeURL")) == ("x" * 20, "https://a.example")


def test_who_may_do_it_is_the_station_else_the_class_else_anybody() -> None:
    station = placed()
    of_class = placed(ScheduledStationNameCodeSequence=None, ScheduledStationClassCodeSequence=code("CT", "99X", "CT"))
    anybody = placed(ScheduledStationNameCodeSequence=None)

    codes = [each["performerType"][0]["coding"][0]["code"] for each in (station, of_class, anybody)]
    assert codes == ["CAD-1", "CT", "any"]
    assert "00404025" not in dataset_of(anybody, Nothing())


def test_the_lock_opens_with_its_transaction_uid_only() -> None:
    task = begun()

    assert workitem_orders.is_locked_by(task, TRANSACTION)
    assert not workitem_orders.is_locked_by(task, f"{TRANSACTION}1")
    assert not workitem_orders.is_locked(lapsed(task, NOW, most=3))
    assert not workitem_orders.is_locked(given_back(move(task, Status.READY, Role.OWNER, NOW)))
    assert TRANSACTION not in str(task)


def test_progress_is_one_in_both_views() -> None:
    item = model(ProcedureStepProgress="40", ProcedureStepProgressDescription="reading")

    task = workitem_orders.reported(begun(), model(ProcedureStepProgressInformationSequence=item), NOW)
    later = progress(task, Progress(70, "writing"), NOW)

    assert task["businessStatus"] == {"text": "reading"}
    (told,) = items(dataset_of(later, Nothing()), "ProcedureStepProgressInformationSequence")
    assert (text(told, "ProcedureStepProgress"), text(told, "ProcedureStepProgressDescription")) == ("70", "writing")


@pytest.mark.parametrize("percent", ["101", "-1", "many", "NaN", "Infinity"])
def test_progress_beyond_all_bounds_is_refused(percent: str) -> None:
    item = model(ProcedureStepProgress=percent)

    with pytest.raises(AppError, match="from 0 to 100"):
        workitem_orders.reported(begun(), model(ProcedureStepProgressInformationSequence=item), NOW)


@pytest.mark.parametrize("missing", [*workitem_orders.PERFORMED, "OutputInformationSequence"])
def test_what_has_to_be_told_before_completion_is_named(missing: str) -> None:
    done = performed()
    done["00741216"]["Value"][0].pop(next(iter(element(missing))))

    with pytest.raises(AppError, match=missing) as refused:
        workitem_orders.completed(workitem_orders.reported(begun(), done, NOW))

    assert refused.value.category is Category.CONFLICT


def test_outputs_become_outputs_once() -> None:
    told = performed(images("1.2.3", "1.2.3.9"), images("1.2.3", "1.2.3.10"))

    done = workitem_orders.completed(workitem_orders.reported(begun(), told, NOW))

    assert [each.get("valueId") or each["valueReference"]["reference"] for each in done["output"]] == [
        "ImagingStudy/1.2.3",
        "1.2.3.9",
        "1.2.3.10",
    ]


def test_a_kept_data_set_that_is_damaged_is_none() -> None:
    for content in ("{", "[]", "", "7", '{"00741204": 5}', '{"00741002": {"vr": "SQ", "Value": ["x"]}}'):
        task = with_extension(placed(), workitem.WORKITEM, {"url": workitem.WORKITEM, "valueString": content})
        assert workitem.kept(task) == {}
        assert text(dataset_of(task, Nothing()), "ProcedureStepLabel") == "Find nodules"


def test_one_that_is_too_large_is_refused() -> None:
    with pytest.raises(AppError) as refused:
        placed(CommentsOnTheScheduledProcedureStep="x" * 1_000_001)

    assert refused.value.category is Category.TOO_LARGE


# ---- data sets that clients send


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        {"1": {"vr": "LO"}},
        {"00100020": []},
        {"00100020": {"Value": ["x"]}},
        {"00100020": {"vr": "XX"}},
        {"00100020": {"vr": "PN"}},
        {"00100020": {"vr": "LO", "Value": "x"}},
        {"00100020": {"vr": "LO", "Value": [{}]}},
        {"00100010": {"vr": "PN", "Value": ["Doe^Jane"]}},
        {"00100010": {"vr": "PN", "Value": [{"Given": "Jane"}]}},
        {"00081195": {"vr": "UI", "Value": ["a.b"]}},
        {"00404018": {"vr": "SQ", "Value": ["x"]}},
        {"00404018": {"vr": "SQ", "Value": [{"00080100": {"vr": "SH", "Value": [1]}}]}},
        {"0040a160": {"vr": "UT"}, "0040A160": {"vr": "UT"}},
        {"00020010": {"vr": "UI", "InlineBinary": "AAAA"}},
        {"00741004": {"vr": "DS", "Value": [True]}},
    ],
    ids=str,
)
def test_what_is_no_dicom_json_is_refused(wrong: Any) -> None:
    with pytest.raises(AppError) as refused:
        checked(wrong)

    assert refused.value.category is Category.INVALID


def test_what_is_dicom_json_is_taken_as_it_is() -> None:
    given = new_item(ProcedureStepProgressInformationSequence=model(ProcedureStepProgress=[1, 2.5, "3"])) | {
        "00091001": {"vr": "LO", "Value": ["private", None]},
        "00091002": {"vr": "UN", "InlineBinary": "AAAA"},
    }

    assert checked(given) == given


def test_numbers_that_xml_has_as_text_become_numbers() -> None:
    given = {"00280010": {"vr": "US", "Value": ["512"]}, "00189087": {"vr": "FD", "Value": ["-1.5e3", 2]}}

    assert checked(given) == {
        "00280010": {"vr": "US", "Value": [512]},
        "00189087": {"vr": "FD", "Value": [-1500.0, 2]},
    }
    for text_of_none in ("many", "9" * 30, "1e999", "NaN", "²"):
        with pytest.raises(AppError):
            checked({"00280010": {"vr": "US", "Value": [text_of_none]}})


# ---- matching

DOCUMENT = new_item(
    ScheduledProcedureStepStartDateTime="20260102101500+0100",
    ExpectedCompletionDateTime="202601021200",
    ProcedureStepProgressInformationSequence=model(ProcedureStepProgress=40),
)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"ProcedureStepLabel": "Find nodules"}, True),
        ({"ProcedureStepLabel": "find nodules"}, False),
        ({"ProcedureStepLabel": "F*d*n?dules"}, True),
        ({"ProcedureStepLabel": "F*d?"}, False),
        ({"ProcedureStepLabel": "*****************?*" + "*a" * 3}, False),
        ({"PatientName": "doe^JANE"}, True),
        ({"PatientName": "DOE*"}, True),
        ({"PatientName": "jan", "fuzzymatching": "true"}, True),
        ({"PatientName": "an", "fuzzymatching": "true"}, False),
        ({"ScheduledProcedureStepStartDateTime": "20260102091500+0000"}, True),
        ({"ScheduledProcedureStepStartDateTime": "20260102"}, True),
        ({"ScheduledProcedureStepStartDateTime": "20260102100000+0000-"}, False),
        ({"ExpectedCompletionDateTime": "2026010212"}, True),
        ({"ExpectedCompletionDateTime": "-20260102"}, True),
        ({"ExpectedCompletionDateTime": "20260103-"}, False),
        ({"ScheduledWorkitemCodeSequence.CodeValue": "110004"}, True),
        ({"ScheduledWorkitemCodeSequence.CodeValue": "110005"}, False),
        ({"ProcedureStepProgressInformationSequence.ProcedureStepProgress": "40.0"}, True),
        ({"AccessionNumber": '""', "emptyvaluematching": "true"}, True),
        ({"PatientID": '""', "emptyvaluematching": "true"}, False),
        ({"AccessionNumber": "A"}, False),
    ],
    ids=str,
)
def test_conditions_hold_of_a_data_set(query: dict[str, str], expected: bool) -> None:
    asked = parse_query(Level.INSTANCES, query.items())

    assert all(holds(each, DOCUMENT, fuzzy=asked.fuzzy) for each in asked.matches) is expected
