"""Subscriptions to work items and their Event Reports. Expected values: PS3.18 11.10 to 11.13, PS3.4 CC.2.3, CC.2.4."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydicom.uid import generate_uid

from fhir_server.access.contracts import Limits, Right
from fhir_server.store.watchers import id_of
from fhir_server.web.event_channel import Channel
from imaging.dicomweb.json_model import Model, items, tag_of, text
from imaging.errors import AppError, Category
from tests.support.doors import Caller, Doors, opened
from tests.support.subscribing import Work
from tests.support.workitems import TRANSACTION, code, model, new_item, performed, send, state

WORKLIST, FILTERED = "1.2.840.10008.5.1.4.34.5", "1.2.840.10008.5.1.4.34.5.1"
STATE, CANCEL_REQUESTED, PROGRESS, SCP_STATUS, ASSIGNED = 1, 2, 3, 4, 5
KIND = {"system": "urn:fhir-imaging:coding-scheme:99LUNG", "code": "CAD-1"}
MOST_TITLES = 8  # titles that a subscriber may have here


@dataclass
class Line:
    """The far end of a channel."""

    said: list[Model] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.said.append(json.loads(text))

    def end(self, code: int, reason: str) -> None:
        self.ended.append(code)


@dataclass
class Scene:
    doors: Doors
    work: Work

    def told(self, caller: Caller, title: str) -> list[Model]:
        """What a channel tells that is opened now, until there is no more."""
        self.work.dispatch()
        line = Line()
        talk = self.channel(caller, title, line)
        while talk.turn() == 0.0:
            pass
        return line.said

    def channel(self, caller: Caller, title: str, line: Line) -> Channel:
        server = self.doors.server
        principal = server.principals.authenticate(caller.token)
        return Channel(server, line, principal, id_of(principal.subscriber, title))


@pytest.fixture(scope="module")
def scene(module_db: Any) -> Iterator[Scene]:
    with opened(module_db, subscriptions__most=str(MOST_TITLES)) as doors:
        yield Scene(doors, Work(doors))


@pytest.fixture(scope="module")
def clinic(scene: Scene) -> Caller:
    """Who orders."""
    return scene.doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, Right.ORDER_PROCESSING, name="clinic")


@pytest.fixture(scope="module")
def lab(scene: Scene) -> Caller:
    """Who does it."""
    caller = scene.doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, Right.PROCESS_IMAGES, name="lab")
    (lab,) = (each for each in scene.doors.server.principals.subscribers() if each.name == "lab")
    device = {"resourceType": "Device", "type": {"coding": [KIND]}, "owner": {"reference": lab.organization}}
    assert caller.post("/fhir/Device", device).status_code == 201
    return caller


@pytest.fixture(autouse=True)
def nobody_is_subscribed(scene: Scene) -> Iterator[None]:
    yield
    for each in scene.doors.server.watchers.all():
        scene.doors.server.watchers.change(each.id, lambda _: None)
    scene.work.dispatch()


def ids(scene: Scene, caller: Caller, title: str) -> str:
    return id_of(scene.doors.server.principals.authenticate(caller.token).subscriber, title)


def created(caller: Caller, **changes: Any) -> str:
    uid = generate_uid()
    answer = send(caller, "POST", f"?{uid}", new_item(**changes))
    assert answer.status_code == 201, answer.text
    return uid


def subscribe(caller: Caller, uid: str, title: str = "VIEWER", query: str = "") -> Any:
    answer = send(caller, "POST", f"/{uid}/subscribers/{title}{query}")
    assert answer.status_code == 201, answer.text
    return answer


def claim(lab: Caller, uid: str) -> None:
    assert send(lab, "PUT", f"/{uid}/state", state("IN PROGRESS")).status_code == 200


def kinds(reports: list[Model], uid: str = "") -> list[int]:
    return [
        int(text(each, "EventTypeID")) for each in reports if text(each, "AffectedSOPInstanceUID") == uid or not uid
    ]


# ---- who is subscribed to what


def test_who_subscribes_to_a_work_item_is_told_its_state_first(scene: Scene, clinic: Caller) -> None:
    uid, other = created(clinic), created(clinic)

    answer = subscribe(clinic, uid)

    (report,) = scene.told(clinic, "VIEWER")
    assert answer.headers["Content-Location"] == "ws://images.test/dicom-web/subscribers/VIEWER"
    assert text(report, "AffectedSOPClassUID") == "1.2.840.10008.5.1.4.34.6.1"
    assert text(report, "AffectedSOPInstanceUID") == uid != other
    assert report["00001002"] == {"vr": "US", "Value": [STATE]}
    assert report["00741000"] == {"vr": "CS", "Value": ["SCHEDULED"]}
    assert report["00404041"] == {"vr": "CS", "Value": ["READY"]}


def test_an_order_is_told_from_create_to_complete(scene: Scene, clinic: Caller, lab: Caller) -> None:
    subscribe(clinic, WORKLIST)
    uid = created(clinic)
    claim(lab, uid)
    step = model(ProcedureStepProgress="40", ProcedureStepProgressDescription="reading")
    send(lab, "POST", f"/{uid}?{TRANSACTION}", model(ProcedureStepProgressInformationSequence=step))
    send(lab, "POST", f"/{uid}?{TRANSACTION}", performed())
    send(lab, "PUT", f"/{uid}/state", state("COMPLETED"))

    told = scene.told(clinic, "VIEWER")

    assert kinds(told, uid)[:4] == [STATE, ASSIGNED, STATE, PROGRESS]
    assert [text(each, "ProcedureStepState") for each in told if kinds([each]) == [STATE]] == [
        *("SCHEDULED", "IN PROGRESS", "COMPLETED")
    ]
    (station,) = items(told[1], "ScheduledStationNameCodeSequence")
    (progress,) = items(told[3], "ProcedureStepProgressInformationSequence")
    assert (text(station, "CodeValue"), text(progress, "ProcedureStepProgress")) == ("CAD-1", "40")
    assert len({text(each, "MessageID") for each in told}) > 3
    assert scene.told(clinic, "VIEWER") == []


def test_a_performer_that_gives_up_is_told_with_its_reason(scene: Scene, clinic: Caller, lab: Caller) -> None:
    uid = created(clinic)
    claim(lab, uid)
    subscribe(clinic, uid)
    why = model(ReasonForCancellation="no contrast")
    send(lab, "POST", f"/{uid}?{TRANSACTION}", model(ProcedureStepProgressInformationSequence=why))
    send(lab, "PUT", f"/{uid}/state", state("CANCELED"))

    states = [each for each in scene.told(clinic, "VIEWER") if kinds([each]) == [STATE]]

    assert [text(each, "ProcedureStepState") for each in states] == ["IN PROGRESS", "CANCELED"]
    assert text(states[-1], "ReasonForCancellation") == "no contrast"


def test_another_station_is_told_as_assigned(scene: Scene, clinic: Caller) -> None:
    uid = created(clinic)
    subscribe(clinic, uid)
    scene.told(clinic, "VIEWER")
    other = code("CAD-2", "99LUNG", "Other reader")
    assert send(clinic, "POST", f"/{uid}", model(ScheduledStationNameCodeSequence=other)).status_code == 200

    (report,) = scene.told(clinic, "VIEWER")

    assert kinds([report]) == [ASSIGNED]
    assert text(items(report, "ScheduledStationNameCodeSequence")[0], "CodeValue") == "CAD-2"


def test_the_whole_worklist_is_told_at_once_to_who_asks_for_a_lock(scene: Scene, clinic: Caller) -> None:
    uids = {created(clinic) for _ in range(2)}

    without = subscribe(clinic, WORKLIST, "PLAIN", "?deletionlock=false")
    with_lock = subscribe(clinic, WORKLIST, "LOCKED", "?deletionlock=true")

    assert "Warning" not in without.headers
    assert with_lock.headers["Warning"] == "299 http://images.test/dicom-web: Deletion Lock not granted."
    assert scene.told(clinic, "PLAIN") == []
    told = scene.told(clinic, "LOCKED")
    assert uids <= {text(each, "AffectedSOPInstanceUID") for each in told}
    assert set(kinds(told)) == {STATE}


def test_the_filtered_worklist_has_what_matches(scene: Scene, clinic: Caller) -> None:
    subscribe(clinic, FILTERED, query="?filter=WorklistLabel=MAMMO,PatientID=P-1")

    wanted = created(clinic, WorklistLabel="MAMMO")
    created(clinic, WorklistLabel="CAD")
    created(clinic, WorklistLabel="MAMMO", PatientID="P-2")

    assert {text(each, "AffectedSOPInstanceUID") for each in scene.told(clinic, "VIEWER")} == {wanted}


def test_what_is_suspended_takes_in_nothing_new(scene: Scene, clinic: Caller, lab: Caller) -> None:
    subscribe(clinic, WORKLIST)
    before = created(clinic)

    answer = send(clinic, "POST", f"/{WORKLIST}/subscribers/VIEWER/suspend")

    after = created(clinic)
    claim(lab, before)
    claim(lab, after)
    assert answer.status_code == 200
    told = scene.told(clinic, "VIEWER")
    assert kinds(told, before) == [STATE, ASSIGNED, STATE]
    assert kinds(told, after) == []


def test_who_unsubscribes_hears_no_more(scene: Scene, clinic: Caller, lab: Caller) -> None:
    one, other = created(clinic), created(clinic)
    subscribe(clinic, WORKLIST)
    assert send(clinic, "DELETE", f"/{one}/subscribers/VIEWER").status_code == 200
    claim(lab, one)
    claim(lab, other)

    taken_off = scene.told(clinic, "VIEWER")
    everything = send(clinic, "DELETE", f"/{WORKLIST}/subscribers/VIEWER")
    send(lab, "PUT", f"/{other}/state", state("CANCELED"))

    assert {text(each, "AffectedSOPInstanceUID") for each in taken_off} == {other}
    assert everything.status_code == 200
    assert scene.told(clinic, "VIEWER") == []
    assert send(clinic, "DELETE", f"/{WORKLIST}/subscribers/VIEWER").status_code == 404


# ---- to whom it is told


def test_a_title_belongs_to_its_subscriber(scene: Scene, clinic: Caller, lab: Caller) -> None:
    uid = created(clinic)
    subscribe(clinic, uid, "SAME")

    assert send(lab, "DELETE", f"/{uid}/subscribers/SAME").status_code == 404
    assert scene.told(lab, "SAME") == []
    assert kinds(scene.told(clinic, "SAME")) == [STATE]


def test_what_may_not_be_read_is_not_told(scene: Scene, clinic: Caller) -> None:
    stranger = scene.doors.caller(Right.RECEIVE_IMAGES, name="stranger")
    uid = created(clinic)
    subscribe(stranger, WORKLIST, query="?deletionlock=true")
    subscribe(stranger, uid)
    scene.doors.server.principals.add("stranger", [Right.RECEIVE_IMAGES], limits=Limits(frozenset()), is_own=True)
    scene.doors.clock.forward(seconds=2)

    assert send(stranger, "POST", f"/{uid}/subscribers/VIEWER").status_code in (403, 404)
    assert scene.told(stranger, "VIEWER") == []


def test_a_channel_ends_when_the_subscriber_is_suspended(scene: Scene) -> None:
    leaver = scene.doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="leaver")
    uid = created(leaver, ScheduledStationNameCodeSequence=None)
    subscribe(leaver, uid)
    talk = scene.channel(leaver, "VIEWER", Line())
    scene.doors.server.principals.suspend("leaver")

    with pytest.raises(AppError) as caught:
        talk.turn()

    assert caught.value.category is Category.FORBIDDEN


def test_a_channel_is_closed_after_an_hour(scene: Scene, clinic: Caller) -> None:
    line = Line()
    talk = scene.channel(clinic, "VIEWER", line)
    assert talk.turn() > 0

    scene.doors.clock.forward(hours=1)
    talk.turn()

    assert line.ended == [1008]


def test_a_server_that_stops_says_so(scene: Scene, clinic: Caller) -> None:
    line = Line()

    scene.channel(clinic, "VIEWER", line).leaving()

    (report,) = line.said
    assert (kinds([report]), text(report, "AffectedSOPInstanceUID")) == ([SCP_STATUS], WORKLIST)
    assert [text(report, each) for each in ("SCPStatus", "SubscriptionListStatus")] == ["GOING DOWN", "WARM START"]


def test_a_title_whose_work_items_cannot_be_looked_up_holds_up_no_other(
    scene: Scene, clinic: Caller, lab: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribe(clinic, WORKLIST, "GOOD")
    subscribe(lab, WORKLIST, "BAD")
    own, bad = scene.doors.server.own, ids(scene, lab, "BAD")

    def selected(versions: Any, selections: dict[str, Any]) -> Any:
        if bad in selections:
            raise AppError(Category.INVALID, "tried")
        return type(own).selected_by(own, versions, selections)

    monkeypatch.setattr(own, "selected_by", selected)
    uid = created(clinic)

    assert kinds(scene.told(clinic, "GOOD"), uid) == [STATE, ASSIGNED]
    assert scene.told(lab, "BAD") == []


# ---- a performer is asked to cancel


def test_a_performer_that_is_subscribed_is_asked_to_cancel(scene: Scene, clinic: Caller, lab: Caller) -> None:
    uid = created(clinic)
    claim(lab, uid)
    subscribe(lab, uid, "CAD")
    scene.told(lab, "CAD")
    asked = model(ReasonForCancellation="ordered twice", ContactDisplayName="Dr. Who")

    answers = [send(clinic, "POST", f"/{uid}/cancelrequest", asked) for _ in range(2)]

    assert [each.status_code for each in answers] == [202, 202]
    told = scene.told(lab, "CAD")
    assert kinds(told) == [CANCEL_REQUESTED, CANCEL_REQUESTED]
    assert [text(told[0], each) for each in ("RequestingAE", "ReasonForCancellation", "ContactDisplayName")] == [
        *("clinic", "ordered twice", "Dr. Who")
    ]
    assert tag_of("ContactURI") not in told[0]
    assert send(lab, "PUT", f"/{uid}/state", state("CANCELED")).status_code == 200


def test_a_performer_is_not_contacted_by_way_of_others(scene: Scene, clinic: Caller, lab: Caller) -> None:
    uid = created(clinic)
    claim(lab, uid)
    subscribe(clinic, uid)

    answer = send(clinic, "POST", f"/{uid}/cancelrequest")

    assert answer.status_code == 409
    assert "The performer cannot be contacted." in answer.headers["Warning"]


def test_a_stranger_to_the_order_asks_for_nothing(scene: Scene, clinic: Caller, lab: Caller) -> None:
    other = scene.doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="other")
    uid = created(clinic)
    claim(lab, uid)
    subscribe(lab, uid, "CAD")

    assert send(other, "POST", f"/{uid}/cancelrequest").status_code == 403


# ---- what is refused


@pytest.mark.parametrize(
    ("path", "status", "where"),
    [
        (f"{WORKLIST}/subscribers/SEVENTEEN-LETTERS", 400, "AETitle"),
        (f"{WORKLIST}/subscribers/%20", 400, "AETitle"),
        (f"{WORKLIST}/subscribers/A%5CB", 400, "AETitle"),
        (f"{WORKLIST}/subscribers/AE?deletionlock=maybe", 400, "deletionlock"),
        (f"{WORKLIST}/subscribers/AE?filter=PatientID=1", 400, "filter"),
        (f"{FILTERED}/subscribers/AE", 400, "filter"),
        (f"{FILTERED}/subscribers/AE?filter=Nonsense=1", 400, "Nonsense"),
        (f"{FILTERED}/subscribers/AE?filter={'x' * 2001}", 413, "filter"),
        ("1.2.3.4.5/subscribers/AE", 404, ""),
        ("1.2.3.4.5/subscribers/AE/suspend", 400, "Workitem"),
        (f"{WORKLIST}/subscribers/AE/suspend", 404, "subscribers"),
    ],
)
def test_what_cannot_be_subscribed_to_is_refused(clinic: Caller, path: str, status: int, where: str) -> None:
    answer = send(clinic, "POST", f"/{path}")

    assert answer.status_code == status, answer.text
    assert where in answer.text


def test_a_subscriber_has_so_many_titles(clinic: Caller) -> None:
    for number in range(MOST_TITLES):
        subscribe(clinic, WORKLIST, f"AE{number}")

    assert send(clinic, "POST", f"/{WORKLIST}/subscribers/ONEMORE").status_code == 413


def test_a_channel_is_opened_by_a_handshake_of_who_may_receive(scene: Scene, clinic: Caller) -> None:
    nobody = scene.doors.caller(Right.REGISTER_IMAGES, name="nobody")

    answers = [each.get("/dicom-web/subscribers/AE") for each in (clinic, nobody, scene.doors.stranger)]

    assert [each.status_code for each in answers] == [400, 403, 401]
