"""The worklist: work items over UPS-RS, and the same orders as Tasks. Expected values: PS3.18 section 11, PS3.4 CC."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from fhir_server.access.contracts import Right
from fhir_server.model import workitem_orders
from fhir_server.rest import worklist
from imaging.dicomweb.json_model import text
from imaging.dicomweb.native_model import native_model
from imaging.dicomweb.native_reader import document
from tests.support.doors import Caller, Doors, new_study, opened
from tests.support.workitems import TRANSACTION, code, images, model, new_item, performed, send, state

KIND = {"system": "urn:fhir-imaging:coding-scheme:99LUNG", "code": "CAD-1"}
BASE = "http://images.test/dicom-web"
OTHER = "1.2.3.99.777.2"


@pytest.fixture(scope="module")
def here(module_db: Any) -> Iterator[Doors]:
    with opened(module_db) as doors:
        yield doors


@pytest.fixture(scope="module")
def clinic(here: Doors) -> Caller:
    """Who orders."""
    return here.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, Right.ORDER_PROCESSING, name="clinic")


@pytest.fixture(scope="module")
def lab(here: Doors) -> Caller:
    """Who does it, with a Device of the station that is asked for."""
    caller = here.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, Right.PROCESS_IMAGES, name="lab")
    (lab,) = (each for each in here.server.principals.subscribers() if each.name == "lab")
    device = {"resourceType": "Device", "type": {"coding": [KIND]}, "owner": {"reference": lab.organization}}
    assert caller.post("/fhir/Device", device).status_code == 201
    return caller


@pytest.fixture(scope="module")
def study(here: Doors) -> tuple[str, str, list[str]]:
    """A stored study: its UID, that of its series and those of its instances."""
    study_uid, files = new_study(instances=2)
    stored = here.ingest(*files)
    here.server.studies.project(study_uid)
    return study_uid, stored[0].summary.series_uid, [each.summary.sop_uid for each in stored]


def created(clinic: Caller, **changes: Any) -> str:
    uid = generate_uid()
    answer = send(clinic, "POST", f"?{uid}", new_item(**changes))
    assert answer.status_code == 201, answer.text
    return str(uid)


def claimed(clinic: Caller, lab: Caller, **changes: Any) -> str:
    uid = created(clinic, **changes)
    answer = send(lab, "PUT", f"/{uid}/state", state("IN PROGRESS"))
    assert answer.status_code == 200, answer.text
    return uid


def state_of(caller: Caller, uid: str) -> str:
    return text(send(caller, "GET", f"/{uid}").json, "ProcedureStepState")


def warned(answer: Any) -> str:
    assert answer.headers["Warning"].startswith(f"299 {BASE}: ")
    return str(answer.headers["Warning"].removeprefix(f"299 {BASE}: "))


# ---- create and retrieve


def test_what_was_created_is_retrieved(clinic: Caller) -> None:
    uid, sent = generate_uid(), new_item(ReferencedRequestSequence=model(AccessionNumber="A-1"))

    answer = send(clinic, "POST", f"?{uid}", sent)

    assert answer.status_code == 201
    assert answer.headers["Location"] == f"{BASE}/workitems/{uid}"
    assert "Warning" not in answer.headers
    got = send(clinic, "GET", f"/{uid}")
    assert got.headers["Content-Type"] == "application/dicom+json"
    kept = {tag: each for tag, each in got.json.items() if tag in sent}
    assert kept == {tag: each for tag, each in sent.items() if tag != "00081195"}
    assert text(got.json, "SOPInstanceUID") == uid
    assert text(got.json, "SOPClassUID") == "1.2.840.10008.5.1.4.34.6.1"
    assert list(got.json) == sorted(got.json)


def test_the_uid_may_be_told_by_the_work_item_or_left_to_the_server(clinic: Caller) -> None:
    uid = generate_uid()

    told = send(clinic, "POST", "", new_item(SOPInstanceUID=uid))
    named = send(clinic, "POST", f"?workitem={generate_uid()}", [new_item()])
    left = send(clinic, "POST", "", new_item())

    assert (told.status_code, named.status_code, left.status_code) == (201, 201, 201)
    assert told.headers["Location"].endswith(f"/{uid}")
    assert "/workitems/2.25." in left.headers["Location"]
    assert clinic.get(left.headers["Location"].removeprefix("http://images.test")).status_code == 200


def test_what_the_server_fills_in_is_warned_of(clinic: Caller) -> None:
    uid = generate_uid()

    answer = send(clinic, "POST", f"?{uid}", new_item(WorklistLabel=None))

    assert warned(answer) == "The Workitem was created with modifications."
    assert text(send(clinic, "GET", f"/{uid}").json, "WorklistLabel") == "TASKS"


def test_a_uid_is_given_once(clinic: Caller) -> None:
    uid = created(clinic)

    assert send(clinic, "POST", f"?{uid}", new_item()).status_code == 409


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"ProcedureStepLabel": None}, "ProcedureStepLabel"),
        ({"ScheduledProcedureStepStartDateTime": None}, "ScheduledProcedureStepStartDateTime"),
        ({"InputReadinessState": "MAYBE"}, "InputReadinessState"),
        ({"ScheduledProcedureStepPriority": "NOW"}, "ScheduledProcedureStepPriority"),
        ({"ProcedureStepState": "IN PROGRESS"}, "ProcedureStepState"),
        ({"TransactionUID": TRANSACTION}, "TransactionUID"),
        ({"SOPInstanceUID": "1.2.3"}, "SOPInstanceUID"),
        ({"ScheduledProcedureStepExpirationDateTime": "soon"}, "ScheduledProcedureStepExpirationDateTime"),
        ({"ScheduledWorkitemCodeSequence": model(CodeMeaning="nothing")}, "CodeValue"),
    ],
    ids=str,
)
def test_what_is_missing_or_wrong_is_named(clinic: Caller, changes: dict[str, Any], where: str) -> None:
    answer = send(clinic, "POST", f"?{generate_uid()}", new_item(**changes))

    assert answer.status_code == 400
    assert where in answer.text


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/dicom+json", 400),
        (b"[]", "application/dicom+json", 400),
        (b"7", "application/dicom+json", 400),
        (b'{"PatientID": {"vr": "LO"}}', "application/dicom+json", 400),
        (b'{"00100020": {"vr": "DS"}}', "application/dicom+json", 400),
        (b'{"00100020": {"vr": "LO", "Value": [1]}}', "application/dicom+json", 400),
        (b'{"00100020": {"vr": "LO", "BulkDataURI": "http://elsewhere"}}', "application/dicom+json", 400),
        (b"<NativeDicomModel>", "application/dicom+xml", 400),
        (b"{}", "text/plain", 415),
        (b" " * (20 << 20), "application/dicom+json", 413),
    ],
)
def test_a_body_that_is_no_work_item_is_refused(clinic: Caller, body: bytes, kind: str, status: int) -> None:
    answer = clinic.call("POST", "/dicom-web/workitems", data=body, headers={"Content-Type": kind})

    assert answer.status_code == status, answer.text


def test_a_body_that_is_nested_too_deep_is_refused(clinic: Caller) -> None:
    inner = model(CodeValue="x")
    for _ in range(40):
        inner = model(ScheduledWorkitemCodeSequence=inner)

    assert send(clinic, "POST", "", new_item() | inner).status_code == 413


def test_xml_is_taken_and_given(clinic: Caller) -> None:
    uid = generate_uid()
    kind = {"Content-Type": "application/dicom+xml"}

    answer = clinic.call("POST", f"/dicom-web/workitems?{uid}", data=native_model(new_item()), headers=kind)
    got = send(clinic, "GET", f"/{uid}", Accept="application/dicom+xml")

    assert (answer.status_code, got.status_code) == (201, 200)
    assert got.headers["Content-Type"] == "application/dicom+xml"
    assert document(got.data)["00741204"] == {"vr": "LO", "Value": ["Find nodules"]}
    assert send(clinic, "GET", f"/{uid}", Accept="image/jpeg").status_code == 406


def test_pydicom_reads_a_work_item(clinic: Caller) -> None:
    uid = created(clinic)

    ds = Dataset.from_json(send(clinic, "GET", f"/{uid}").text)

    assert ds.ProcedureStepState == "SCHEDULED"
    assert ds.ScheduledWorkitemCodeSequence[0].CodeMeaning == "Computer Aided Detection"


def test_one_that_is_not_there_is_404_and_one_that_was_deleted_is_410(clinic: Caller) -> None:
    uid = created(clinic)
    assert clinic.delete(f"/fhir/Task/{uid}").status_code == 204

    assert send(clinic, "GET", f"/{generate_uid()}").status_code == 404
    assert send(clinic, "GET", f"/{uid}").status_code == 410
    assert send(clinic, "POST", f"/{uid}", model(WorklistLabel="X")).status_code == 410
    assert send(clinic, "PUT", f"/{uid}/state", state("IN PROGRESS")).status_code == 410
    assert send(clinic, "POST", f"/{generate_uid()}/cancelrequest").status_code == 404


# ---- update


def test_who_placed_it_changes_it_until_it_is_claimed(clinic: Caller, lab: Caller) -> None:
    uid = created(clinic)

    answer = send(clinic, "POST", f"/{uid}", model(ScheduledProcedureStepPriority="LOW", WorklistLabel="LATER"))

    assert answer.status_code == 200
    got = send(clinic, "GET", f"/{uid}").json
    assert (text(got, "ScheduledProcedureStepPriority"), text(got, "WorklistLabel")) == ("LOW", "LATER")
    assert text(got, "ProcedureStepLabel") == "Find nodules"
    assert clinic.get(f"/fhir/Task/{uid}").json["priority"] == "routine"
    assert send(lab, "POST", f"/{uid}", model(WorklistLabel="MINE")).status_code == 403


def test_only_who_holds_the_lock_changes_one_in_progress(clinic: Caller, lab: Caller) -> None:
    uid = claimed(clinic, lab)
    told = model(ProcedureStepProgressInformationSequence=model(ProcedureStepProgress=40))

    missing = send(lab, "POST", f"/{uid}", told)
    other = send(lab, "POST", f"/{uid}?{OTHER}", told)
    not_its_performer = send(clinic, "POST", f"/{uid}?{TRANSACTION}", told)
    right = send(lab, "POST", f"/{uid}?{TRANSACTION}", told)
    in_the_body = send(lab, "POST", f"/{uid}", told | model(TransactionUID=TRANSACTION))
    named = send(lab, "POST", f"/{uid}?transaction-uid={TRANSACTION}", told)

    assert [each.status_code for each in (missing, other, not_its_performer)] == [400, 400, 403]
    expected = "The submitted request is inconsistent with the current state of the Workitem."
    assert (warned(missing), warned(other)) == (expected, expected)
    assert [each.status_code for each in (right, in_the_body, named)] == [200, 200, 200]
    got = send(clinic, "GET", f"/{uid}").json
    assert got["00741002"]["Value"][0]["00741004"]["Value"] == [40]
    assert "00081195" not in got


def test_the_lock_is_not_told_to_who_reads_the_task(clinic: Caller, lab: Caller) -> None:
    uid = claimed(clinic, lab)

    assert TRANSACTION not in clinic.get(f"/fhir/Task/{uid}").text
    assert TRANSACTION not in clinic.get(f"/fhir/Task/{uid}/_history").text


def test_a_lock_on_what_nobody_claimed_is_a_conflict(clinic: Caller) -> None:
    answer = send(clinic, "POST", f"/{created(clinic)}?{TRANSACTION}", model(WorklistLabel="X"))

    assert answer.status_code == 409
    assert warned(answer) == "The target URI did not reference a claimed Workitem."


@pytest.mark.parametrize("keyword", ["ProcedureStepState", "SOPInstanceUID"])
def test_what_an_update_cannot_change_is_refused(clinic: Caller, keyword: str) -> None:
    value = {"ProcedureStepState": "COMPLETED", "SOPInstanceUID": "1.2.3"}[keyword]

    answer = send(clinic, "POST", f"/{created(clinic)}", model(**{keyword: value}))

    assert answer.status_code == 400


def test_an_update_may_name_the_version_that_was_read(clinic: Caller) -> None:
    uid = created(clinic)
    tag = send(clinic, "GET", f"/{uid}").headers["ETag"]

    first = send(clinic, "POST", f"/{uid}", model(WorklistLabel="A"), If_Match=tag)
    second = send(clinic, "POST", f"/{uid}", model(WorklistLabel="B"), If_Match=tag)

    assert (first.status_code, second.status_code) == (200, 412)


# ---- change of state


def test_a_work_item_is_claimed_once(clinic: Caller, lab: Caller) -> None:
    uid = claimed(clinic, lab)

    again = send(lab, "PUT", f"/{uid}/state", state("IN PROGRESS", OTHER))

    assert state_of(clinic, uid) == "IN PROGRESS"
    assert again.status_code == 409
    assert warned(again) == "The submitted request is inconsistent with the state of the UPS Instance."


def test_of_two_that_claim_at_a_time_one_is_told_so(
    clinic: Caller, lab: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid, claim, others = created(clinic), workitem_orders.claimed, []

    def claimed_beside(*args: Any) -> Any:
        if not others:
            others.append("first")
            others.append(send(lab, "PUT", f"/{uid}/state", state("IN PROGRESS", OTHER)).status_code)
        return claim(*args)

    monkeypatch.setattr(workitem_orders, "claimed", claimed_beside)
    late = send(lab, "PUT", f"/{uid}/state", state("IN PROGRESS"))

    assert (others[1], late.status_code) == (200, 409)
    assert send(lab, "POST", f"/{uid}?{OTHER}", performed()).status_code == 200
    assert send(lab, "POST", f"/{uid}?{TRANSACTION}", performed()).status_code == 400


def test_who_has_no_such_station_does_not_claim(clinic: Caller, here: Doors) -> None:
    other = here.caller(Right.RECEIVE_IMAGES, Right.PROCESS_IMAGES, name="other-lab")
    uid, open_to_all = created(clinic), created(clinic, ScheduledStationNameCodeSequence=None)

    assert send(other, "PUT", f"/{uid}/state", state("IN PROGRESS")).status_code == 403
    assert send(other, "PUT", f"/{open_to_all}/state", state("IN PROGRESS")).status_code == 200


def test_no_transaction_uid_no_change(clinic: Caller, lab: Caller) -> None:
    uid = created(clinic)

    missing = send(lab, "PUT", f"/{uid}/state", state("IN PROGRESS", None))
    unknown = send(lab, "PUT", f"/{uid}/state", state("SCHEDULED"))

    assert (missing.status_code, unknown.status_code) == (400, 400)
    assert warned(missing) == "The Transaction UID is missing."


@pytest.mark.parametrize("wanted", ["COMPLETED", "CANCELED"])
def test_what_was_not_begun_is_not_ended(clinic: Caller, lab: Caller, wanted: str) -> None:
    answer = send(lab, "PUT", f"/{created(clinic)}/state", state(wanted))

    assert answer.status_code == 409
    assert warned(answer) == "The submitted request is inconsistent with the state of the UPS Instance."


def test_another_transaction_uid_does_not_end_it(clinic: Caller, lab: Caller) -> None:
    uid = claimed(clinic, lab)

    answer = send(lab, "PUT", f"/{uid}/state", state("CANCELED", OTHER))

    assert answer.status_code == 400
    assert warned(answer) == "The Transaction UID is incorrect."
    assert state_of(clinic, uid) == "IN PROGRESS"


def test_what_is_not_told_of_the_procedure_keeps_it_from_being_completed(clinic: Caller, lab: Caller) -> None:
    uid = claimed(clinic, lab)

    early = send(lab, "PUT", f"/{uid}/state", state("COMPLETED"))
    told = send(lab, "POST", f"/{uid}?{TRANSACTION}", performed())
    done = send(lab, "PUT", f"/{uid}/state", state("COMPLETED"))
    again = send(lab, "PUT", f"/{uid}/state", state("COMPLETED"))
    late = send(lab, "POST", f"/{uid}?{TRANSACTION}", performed())

    assert early.status_code == 409
    assert warned(early) == "The submitted request is inconsistent with the state of the UPS Instance."
    assert (told.status_code, done.status_code, state_of(clinic, uid)) == (200, 200, "COMPLETED")
    assert again.status_code == 200
    assert warned(again) == "The UPS is already in the requested state of COMPLETED."
    assert late.status_code == 400
    assert send(lab, "PUT", f"/{uid}/state", state("CANCELED")).status_code == 409


def test_its_performer_gives_it_up_with_a_reason(clinic: Caller, lab: Caller) -> None:
    uid = claimed(clinic, lab)
    reason = model(ProcedureStepProgressInformationSequence=model(ReasonForCancellation="images are damaged"))
    assert send(lab, "POST", f"/{uid}?{TRANSACTION}", reason).status_code == 200

    answer = send(lab, "PUT", f"/{uid}/state", state("CANCELED"))

    assert answer.status_code == 200
    (item,) = send(clinic, "GET", f"/{uid}").json["00741002"]["Value"]
    assert text(item, "ReasonForCancellation") == "images are damaged"
    assert text(item, "ProcedureStepCancellationDateTime").endswith("+0000")
    task = clinic.get(f"/fhir/Task/{uid}").json
    assert (task["status"], task["statusReason"]["text"]) == ("failed", "images are damaged")
    again = send(lab, "PUT", f"/{uid}/state", state("CANCELED"))
    assert warned(again) == "The UPS is already in the requested state of CANCELED."


# ---- request cancellation


def test_who_placed_it_withdraws_what_nobody_has_begun(clinic: Caller, lab: Caller) -> None:
    uid = created(clinic)
    assert send(lab, "POST", f"/{uid}/cancelrequest").status_code == 403

    answer = send(clinic, "POST", f"/{uid}/cancelrequest", model(ReasonForCancellation="ordered twice"))
    again = send(clinic, "POST", f"/{uid}/cancelrequest")

    assert (answer.status_code, again.status_code) == (202, 202)
    assert warned(again) == "The UPS is already in the requested state of CANCELED."
    task = clinic.get(f"/fhir/Task/{uid}").json
    assert (task["status"], task["statusReason"]["text"]) == ("cancelled", "ordered twice")


def test_a_performer_with_a_lock_is_not_told_and_one_that_is_done_stays_done(clinic: Caller, lab: Caller) -> None:
    uid = claimed(clinic, lab)

    begun = send(clinic, "POST", f"/{uid}/cancelrequest")
    send(lab, "POST", f"/{uid}?{TRANSACTION}", performed())
    send(lab, "PUT", f"/{uid}/state", state("COMPLETED"))
    done = send(clinic, "POST", f"/{uid}/cancelrequest")

    assert (begun.status_code, done.status_code) == (409, 409)
    assert warned(begun) == "The performer cannot be contacted."
    assert warned(done) == "The UPS is already COMPLETED."


# ---- search


def found(caller: Caller, query: str) -> list[str]:
    answer = send(caller, "GET", f"?{query}")
    assert answer.status_code in (200, 204), answer.text
    return [text(each, "SOPInstanceUID") for each in answer.json] if answer.status_code == 200 else []


@pytest.fixture(scope="module")
def listed(clinic: Caller, lab: Caller) -> list[str]:
    """Work items of a list of their own: one of LOW priority and later, one claimed, one of another code."""
    of_list = {"WorklistLabel": "SEARCHED"}
    low = created(
        clinic,
        ScheduledProcedureStepPriority="LOW",
        ScheduledProcedureStepStartDateTime="20260301",
        PatientName={"Alphabetic": "Roe^Richard"},
        ReferencedRequestSequence=model(AccessionNumber="A-77"),
        **of_list,
    )
    begun = claimed(clinic, lab, **of_list)
    other = created(
        clinic,
        ScheduledWorkitemCodeSequence=code("110007", "DCM", "Report Verification"),
        ScheduledStationNameCodeSequence=code("OTHER", "99LUNG", "Other"),
        **of_list,
    )
    return [low, begun, other]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [2, 1, 0]),
        ("ProcedureStepState=SCHEDULED", [2, 0]),
        ("00741000=IN%20PROGRESS", [1]),
        ("ProcedureStepState=COMPLETED", []),
        ("ProcedureStepState=NONSENSE", []),
        ("ScheduledProcedureStepPriority=LOW", [0]),
        ("ScheduledProcedureStepPriority=HIGH", [2, 1]),
        ("ScheduledWorkitemCodeSequence.CodeValue=110007", [2]),
        ("ScheduledStationNameCodeSequence.CodeValue=CAD-1&ProcedureStepState=SCHEDULED", [0]),
        ("ScheduledProcedureStepStartDateTime=20260101-20260131", [2, 1]),
        ("ScheduledProcedureStepStartDateTime=20260102101500%2B0000", [2, 1]),
        ("ScheduledProcedureStepStartDateTime=20260201-", [0]),
        ("PatientName=roe*", [0]),
        ("PatientName=rich&fuzzymatching=true", [0]),
        ("PatientID=P-1&ProcedureStepLabel=Find*", [2, 1, 0]),
        ("ReferencedRequestSequence.AccessionNumber=A-77", [0]),
        ("limit=2", [2, 1]),
        ("limit=2&offset=2", [0]),
    ],
)
def test_work_items_are_found_by_their_attributes(
    clinic: Caller, listed: list[str], query: str, expected: list[int]
) -> None:
    assert found(clinic, f"WorklistLabel=SEARCHED&{query}") == [listed[number] for number in expected]


def test_one_is_found_by_its_uid(clinic: Caller, listed: list[str]) -> None:
    assert found(clinic, f"SOPInstanceUID={listed[0]},{listed[2]}") == [listed[2], listed[0]]


def test_more_than_a_page_is_told(clinic: Caller, listed: list[str]) -> None:
    cut = send(clinic, "GET", "?WorklistLabel=SEARCHED&limit=2")
    whole = send(clinic, "GET", "?WorklistLabel=SEARCHED&limit=3")

    assert warned(cut) == "There are additional results that can be requested"
    assert "Warning" not in whole.headers


def test_a_search_looks_at_no_more_than_it_may(
    clinic: Caller, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worklist, "PAGE", 2)
    assert len(found(clinic, "WorklistLabel=SEARCHED")) == 3
    created(clinic, WorklistLabel="LATEST")
    monkeypatch.setattr(worklist, "MOST_LOOKED_AT", 2)

    cut = send(clinic, "GET", "?WorklistLabel=LATEST")
    nothing = send(clinic, "GET", "?WorklistLabel=NOWHERE")

    assert len(cut.json) == 1
    assert warned(cut) == "There are additional results that can be requested"
    assert nothing.status_code == 204
    assert warned(nothing) == "There are additional results that can be requested"


def test_a_patient_id_is_found_by_an_index_wherever_it_stands(
    clinic: Caller, lab: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = f"P{uuid4().hex[:12]}"
    patient = {"resourceType": "Patient", "identifier": [{"system": "urn:x", "value": number}]}
    named = f"Patient/{clinic.post('/fhir/Patient', patient).json['id']}"
    task = {
        "resourceType": "Task", "status": "requested", "intent": "order", "for": {"reference": named},
        "code": {"text": "look"},
    }  # fmt: skip
    first = created(clinic, PatientID=number)
    second = clinic.post("/fhir/Task", task).json["id"]
    third = claimed(clinic, lab, PatientID=number)
    created(clinic, PatientID="other")
    monkeypatch.setattr(worklist, "MOST_LOOKED_AT", 3)

    told = send(clinic, "GET", f"?PatientID={number}")

    uids = [text(each, "SOPInstanceUID") for each in told.json]
    assert uids == [third, f"2.25.{UUID(second).int}", first]
    assert "Warning" not in told.headers
    assert send(clinic, "GET", "?PatientID=nobody").status_code == 204
    assert [text(each, "PatientID") for each in told.json] == [number] * 3


def test_one_that_is_canceled_without_a_word_tells_what_the_standard_wants(clinic: Caller, lab: Caller) -> None:
    uid = claimed(clinic, lab)

    assert send(lab, "PUT", f"/{uid}/state", state("CANCELED")).status_code == 200

    # PS3.4 table CC.2.5-3, final state X: the sequence, the time and the reason have a value
    (item,) = send(clinic, "GET", f"/{uid}").json["00741002"]["Value"]
    assert text(item, "ProcedureStepCancellationDateTime")
    (reason,) = item["0074100E"]["Value"]
    assert (text(reason, "CodeValue"), text(reason, "CodingSchemeDesignator")) == ("110513", "DCM")


def test_whom_it_is_for_cannot_change_once_it_was_begun(clinic: Caller, lab: Caller) -> None:
    uid = claimed(clinic, lab, PatientID="P-1")

    answers = [
        send(lab, "POST", f"/{uid}?transaction-uid={TRANSACTION}", model(PatientID=number)) for number in ("P-1", "P-2")
    ]

    assert [each.status_code for each in answers] == [200, 409]


def test_attributes_that_are_asked_for_come_along(clinic: Caller, listed: list[str]) -> None:
    uid = created(clinic, CommentsOnTheScheduledProcedureStep="look twice")

    (usual,) = send(clinic, "GET", f"?SOPInstanceUID={uid}").json
    (asked,) = send(clinic, "GET", f"?SOPInstanceUID={uid}&includefield=CommentsOnTheScheduledProcedureStep").json
    (every,) = send(clinic, "GET", f"?SOPInstanceUID={uid}&includefield=all").json

    assert ["00400400" in each for each in (usual, asked, every)] == [False, True, True]
    assert every == send(clinic, "GET", f"/{uid}").json


@pytest.mark.parametrize("query", ["Nonsense=1", "limit=x", "ScheduledProcedureStepStartDateTime=soon"])
def test_a_search_that_is_not_understood_is_refused(clinic: Caller, query: str) -> None:
    assert send(clinic, "GET", f"?{query}").status_code == 400


def test_results_come_as_xml(clinic: Caller, listed: list[str]) -> None:
    accept = 'multipart/related; type="application/dicom+xml"'

    answer = send(clinic, "GET", "?WorklistLabel=SEARCHED", Accept=accept)

    assert answer.headers["Content-Type"].startswith("multipart/related")
    assert answer.text.count("<NativeDicomModel") == 3


# ---- one order, two views


def test_a_work_item_is_a_task(clinic: Caller, study: tuple[str, str, list[str]]) -> None:
    study_uid, series_uid, instances = study
    uid = created(
        clinic,
        InputInformationSequence=[images(study_uid, series_uid, *instances), images("1.2.9", "1.2.9.1", "1.2.9.1.1")],
        ReferencedRequestSequence=model(AccessionNumber="A-1"),
        ScheduledProcedureStepExpirationDateTime="20300101000000+0100",
    )

    task = clinic.get(f"/fhir/Task/{uid}").json

    assert (task["status"], task["intent"], task["priority"]) == ("requested", "order", "stat")
    assert task["description"] == "Find nodules"
    dcm = "http://dicom.nema.org/resources/ontology/DCM"
    assert task["code"]["coding"] == [{"system": dcm, "code": "110004", "display": "Computer Aided Detection"}]
    assert task["performerType"] == [{"coding": [KIND | {"display": "Lung reader"}]}]
    assert task["basedOn"][0]["identifier"]["value"] == "A-1"
    assert task["restriction"]["period"]["end"] == "2029-12-31T23:00:01.000Z"
    assert [(each["type"]["coding"][0]["code"], each["valueId"]) for each in task["input"]] == [
        ("series", series_uid),
        ("instance", "1.2.9.1.1"),
    ]
    subject = clinic.get(f"/fhir/ImagingStudy/{study_uid}").json["subject"]
    told = {"type": "Patient", "identifier": {"value": "P-1"}}
    assert task["for"] == {"reference": subject["reference"], **told}
    without_images = clinic.get(f"/fhir/Task/{created(clinic)}").json
    assert without_images["for"] == told


def test_an_order_goes_from_create_to_outputs_and_is_a_task_all_the_way(
    here: Doors, clinic: Caller, lab: Caller, study: tuple[str, str, list[str]]
) -> None:
    """IHE AIW-I: the order is created, found, claimed, reported on, its result stored, and completed with outputs."""
    study_uid, series_uid, instances = study
    uid = created(clinic, WorklistLabel="AIW", InputInformationSequence=images(study_uid, series_uid, *instances))

    query = "ProcedureStepState=SCHEDULED&ScheduledStationNameCodeSequence.CodeValue=CAD-1&WorklistLabel=AIW"
    assert found(lab, query) == [uid]
    assert send(lab, "PUT", f"/{uid}/state", state("IN PROGRESS")).status_code == 200
    task = clinic.get(f"/fhir/Task/{uid}").json
    assert task["status"] == "in-progress"
    assert task["owner"]["reference"].startswith("Device/")
    (item,) = send(lab, "GET", f"/{uid}").json["00404021"]["Value"]
    files = [each["00081155"]["Value"][0] for each in item["00081199"]["Value"]]
    at = f"/dicom-web/studies/{study_uid}/series/{series_uid}/instances/{files[0]}"
    assert lab.get(at, headers={"Accept": "application/dicom"}).status_code == 200
    progress = model(ProcedureStepProgress=50, ProcedureStepProgressDescription="half")
    told = model(ProcedureStepProgressInformationSequence=progress)
    assert send(lab, "POST", f"/{uid}?{TRANSACTION}", told).status_code == 200
    assert clinic.get(f"/fhir/Task/{uid}").json["businessStatus"]["text"] == "half"
    result_study, (result,) = new_study()
    (stored,) = here.ingest(result, name="lab")
    outputs = performed(images(result_study, stored.summary.series_uid, stored.summary.sop_uid))
    assert send(lab, "POST", f"/{uid}?{TRANSACTION}", outputs).status_code == 200
    assert send(lab, "PUT", f"/{uid}/state", state("COMPLETED")).status_code == 200

    done = clinic.get(f"/fhir/Task/{uid}").json
    assert done["status"] == "completed"
    values = [each.get("valueId") or each["valueReference"]["reference"] for each in done["output"]]
    assert values == [f"ImagingStudy/{result_study}", stored.summary.series_uid]
    versions = clinic.get(f"/fhir/Task/{uid}/_history").json["entry"]
    statuses = [each["resource"]["status"] for each in versions]
    assert statuses == ["completed", "in-progress", "in-progress", "in-progress", "requested"]


def test_a_task_placed_by_fhir_is_found_claimed_and_completed_as_a_work_item(
    clinic: Caller, lab: Caller, study: tuple[str, str, list[str]]
) -> None:
    study_uid, series_uid, instances = study
    order = {
        "resourceType": "Task",
        "status": "requested",
        "intent": "order",
        "priority": "urgent",
        "code": {"coding": [{"system": "https://lung-ai.example/codes", "code": "mean-value"}], "text": "Mean value"},
        "performerType": [{"coding": [KIND]}],
        "input": [{"type": {"text": "imaging-study"}, "valueReference": {"reference": f"ImagingStudy/{study_uid}"}}],
    }
    placed = clinic.post("/fhir/Task", order).json
    uid = f"2.25.{UUID(placed['id']).int}"

    assert found(lab, "ProcedureStepLabel=Mean%20value&ProcedureStepState=SCHEDULED") == [uid]
    got = send(lab, "GET", f"/{uid}").json
    assert text(got, "ScheduledProcedureStepPriority") == "HIGH"
    (item,) = got["00404021"]["Value"]
    assert (text(item, "StudyInstanceUID"), text(item, "SeriesInstanceUID")) == (study_uid, series_uid)
    assert [each["00081155"]["Value"][0] for each in item["00081199"]["Value"]] == instances
    (retrieval,) = item["0040E025"]["Value"]
    assert text(retrieval, "RetrieveURL") == f"{BASE}/studies/{study_uid}/series/{series_uid}"
    assert text(got["00404018"]["Value"][0], "CodeValue") == "mean-value"
    assert text(got["00404025"]["Value"][0], "CodingSchemeDesignator") == "99LUNG"
    assert send(clinic, "POST", f"/{uid}", model(WorklistLabel="X")).status_code == 409
    assert send(lab, "PUT", f"/{uid}/state", state("IN PROGRESS")).status_code == 200
    assert send(lab, "POST", f"/{uid}?{TRANSACTION}", performed(images(study_uid, "1.2.7"))).status_code == 200
    assert send(lab, "PUT", f"/{uid}/state", state("COMPLETED")).status_code == 200

    task = clinic.get(f"/fhir/Task/{placed['id']}").json
    assert (task["status"], task["output"][1]["valueId"]) == ("completed", "1.2.7")
    assert text(send(clinic, "GET", f"/{uid}").json, "ProcedureStepLabel") == "Mean value"


def test_a_work_item_that_is_done_by_fhir_tells_its_outputs(
    clinic: Caller, lab: Caller, study: tuple[str, str, list[str]]
) -> None:
    study_uid, series_uid, _ = study
    uid = created(clinic)
    task = lab.get(f"/fhir/Task/{uid}").json
    (device,) = lab.get(f"/fhir/Device?type={KIND['system']}|{KIND['code']}").json["entry"]
    owner = {"reference": f"Device/{device['resource']['id']}"}

    def write(task: dict[str, Any], **changes: Any) -> dict[str, Any]:
        version = {"If-Match": f'W/"{task["meta"]["versionId"]}"'}
        answer = lab.put(f"/fhir/Task/{uid}", task | changes, headers=version)
        assert answer.status_code == 200, answer.text
        return answer.json

    begun = write(task, status="in-progress", owner=owner)
    assert state_of(clinic, uid) == "IN PROGRESS"
    assert send(lab, "POST", f"/{uid}?{TRANSACTION}", performed()).status_code == 400
    output = [{"type": {"text": "imaging-study"}, "valueReference": {"reference": f"ImagingStudy/{study_uid}"}}]
    write(begun, status="completed", output=output)

    got = send(clinic, "GET", f"/{uid}").json
    assert text(got, "ProcedureStepState") == "COMPLETED"
    (done,) = got["00741216"]["Value"]
    assert text(done["00404033"]["Value"][0], "SeriesInstanceUID") == series_uid
    assert text(done, "PerformedProcedureStepEndDateTime").endswith("+0000")


def test_whoever_does_it_by_fhir_is_stopped_by_a_request_to_cancel(clinic: Caller, lab: Caller) -> None:
    uid = created(clinic)
    task = lab.get(f"/fhir/Task/{uid}").json
    (device,) = lab.get(f"/fhir/Device?type={KIND['system']}|{KIND['code']}").json["entry"]
    owner = {"reference": f"Device/{device['resource']['id']}"}
    begun = lab.put(
        f"/fhir/Task/{uid}", task | {"status": "in-progress", "owner": owner}, headers={"If-Match": 'W/"1"'}
    )
    assert begun.status_code == 200

    assert send(clinic, "POST", f"/{uid}/cancelrequest").status_code == 202

    assert state_of(clinic, uid) == "CANCELED"


def test_a_claim_that_is_given_back_loses_its_lock(clinic: Caller, lab: Caller) -> None:
    uid = claimed(clinic, lab)
    task = lab.get(f"/fhir/Task/{uid}").json
    version = {"If-Match": f'W/"{task["meta"]["versionId"]}"'}
    assert lab.put(f"/fhir/Task/{uid}", task | {"status": "ready"}, headers=version).status_code == 200

    assert state_of(clinic, uid) == "SCHEDULED"
    assert "workitem-lock" not in clinic.get(f"/fhir/Task/{uid}").text
    assert send(lab, "PUT", f"/{uid}/state", state("IN PROGRESS", OTHER)).status_code == 200
    assert send(lab, "POST", f"/{uid}?{TRANSACTION}", performed()).status_code == 400


def test_a_task_that_is_cancelled_by_fhir_is_canceled_for_its_performer(clinic: Caller, lab: Caller) -> None:
    uid = claimed(clinic, lab)
    task = clinic.get(f"/fhir/Task/{uid}").json
    assert clinic.put(f"/fhir/Task/{uid}", task | {"status": "cancelled"}).status_code == 200

    late = send(lab, "POST", f"/{uid}?{TRANSACTION}", performed())
    ended = send(lab, "PUT", f"/{uid}/state", state("COMPLETED"))

    assert state_of(lab, uid) == "CANCELED"
    assert (late.status_code, ended.status_code) == (400, 409)


def test_who_may_claim_does_not_rewrite_what_is_ordered(clinic: Caller, lab: Caller) -> None:
    uid = created(clinic)
    task = lab.get(f"/fhir/Task/{uid}").json
    (kept,) = task["extension"]
    forged = [{**kept, "valueString": kept["valueString"].replace("Find nodules", "Find nothing")}]

    answer = lab.put(f"/fhir/Task/{uid}", task | {"extension": forged})

    assert answer.status_code == 403
    assert text(send(clinic, "GET", f"/{uid}").json, "ProcedureStepLabel") == "Find nodules"


def test_a_draft_is_no_work_item(clinic: Caller) -> None:
    draft = {"resourceType": "Task", "status": "draft", "intent": "order", "performerType": [{"coding": [KIND]}]}
    made = clinic.post("/fhir/Task", draft).json

    assert send(clinic, "GET", f"/2.25.{UUID(made['id']).int}").status_code == 404


def test_who_may_only_order_sees_its_own(here: Doors, clinic: Caller) -> None:
    orderer = here.caller(Right.ORDER_PROCESSING, name="orderer")
    mine, other = created(orderer, WorklistLabel="ORDERED"), created(clinic, WorklistLabel="ORDERED")

    assert found(orderer, "WorklistLabel=ORDERED") == [mine]
    assert send(orderer, "GET", f"/{other}").status_code == 404


def test_what_is_done_is_on_record(here: Doors, clinic: Caller, lab: Caller) -> None:
    auditor = here.caller(Right.AUDIT, name="auditor")
    uid = claimed(clinic, lab)

    events = auditor.get(f"/fhir/AuditEvent?entity=Task/{uid}").json["entry"]

    assert {each["resource"]["action"] for each in events} == {"C", "U"}
    assert b"Doe" not in orjson.dumps(events)
