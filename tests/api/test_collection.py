"""Collection from a second instance of this server, polled over HTTP."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydicom.uid import generate_uid
from pymongo.database import Database

from fhir_server.access.contracts import Right
from fhir_server.background import collector
from fhir_server.model.peer import Peer
from fhir_server.model.task import Progress, Role, code_of, start, waiting_for
from fhir_server.store import collected
from fhir_server.work.handlers import Done, Later
from fhir_server.work.kinds import collect
from fhir_server.work.triggers import Triggers
from imaging.errors import AppError, Category
from tests.support.doors import Doors, dicom, new_study, opened
from tests.support.rules import action, rule
from tests.support.sources import LOOPBACK, Polled, Response, gone, peer_of, polled
from tests.support.volumes import ct_files


@pytest.fixture(scope="module")
def serving(module_db: Database[dict[str, Any]]) -> Iterator[Polled]:
    with polled(module_db) as made:
        yield made


@pytest.fixture
def source(serving: Polled) -> Polled:
    serving.forget()
    return serving


@pytest.fixture
def doors(db: Any) -> Iterator[Doors]:
    with opened(db, outbound__private_networks=LOOPBACK, outbound__silence_s="2") as made:
        yield made


@pytest.fixture
def peer(doors: Doors, source: Polled) -> Peer:
    return peer_of(doors, "ct", source.address, authorization=source.authorization)


def look(doors: Doors, peer: Peer) -> str:
    return collector(doors.server).look(peer)


def run(doors: Doors, task: str) -> Done | Later:
    return collect.run(doors.server.own.read("Task", task).json(), doors.server, lambda _: None)


def collect_now(doors: Doors, peer: Peer) -> dict[str, int]:
    """Look, and do the round that was ordered, if any; return what came of it."""
    task = look(doors, peer)
    if not task:
        return {}
    done = run(doors, task)
    assert isinstance(done, Done), done
    return numbers(done)


def numbers(done: Done) -> dict[str, int]:
    return {
        each["type"]["coding"][0]["code"]: each["valueUnsignedInt"]
        for each in done.outputs
        if "valueUnsignedInt" in each
    }


def tasks(doors: Doors) -> list[dict[str, Any]]:
    bodies = doors.server.database.resources.find({"type": "Task"}, {"_id": 1}).sort("created")
    return [doors.server.own.read(*each["_id"].split("/")).json() for each in bodies]


def digests(doors: Doors) -> set[str]:
    return {each["received"]["sha256"] for each in doors.server.database.instances.find({}, {"received": 1})}


def test_what_is_new_comes_as_the_subscribers_and_is_shown(doors: Doors, source: Polled, peer: Peer) -> None:
    study_uid, files = new_study(instances=3, series=2)
    source.store(*files)

    found = collect_now(doors, peer)

    assert found == {"stored": 6, "here": 0, "refused": 0, "failed": 0}
    assert {each.registered_by for each in doors.server.archive.instances(study_uid)} == {peer.subscriber}
    doors.server.studies.catch_up()
    shown = doors.server.own.read("ImagingStudy", study_uid).json()
    assert (shown["numberOfSeries"], shown["numberOfInstances"]) == (2, 6)


def test_a_series_comes_in_one_request_in_the_form_in_which_it_is_stored(
    doors: Doors, source: Polled, peer: Peer
) -> None:
    source.store(*new_study(instances=5)[1])

    collect_now(doors, peer)

    fetched = [
        each for each in source.asked if "/series/" in each and "/instances" not in each and "?limit" not in each
    ]
    assert len(fetched) == 1
    # The transfer syntax in which the source keeps it: nothing was decoded on the way.
    assert {each.stored_transfer_syntax_uid for each in _all(doors)} == {"1.2.840.10008.1.2.4.202"}


def _all(doors: Doors) -> list[Any]:
    uids = doors.server.database.instances.distinct("study")
    return [each for uid in uids for each in doors.server.archive.instances(uid)]


def test_a_look_where_nothing_changed_is_one_request_and_makes_no_task(
    doors: Doors, source: Polled, peer: Peer
) -> None:
    source.store(*new_study(instances=2)[1])
    collect_now(doors, peer)
    made = len(tasks(doors))
    source.asked.clear()

    for _ in range(3):
        doors.clock.forward(seconds=400)
        assert look(doors, peer) == ""

    assert len(source.asked) == 3
    assert len(tasks(doors)) == made
    mark = doors.server.collected.mark("ct")
    assert mark.due == doors.clock.now.replace(microsecond=mark.due.microsecond) + timedelta(
        seconds=peer.schedule.every_s
    )


def test_a_study_that_grows_is_completed_and_nothing_is_fetched_twice(doors: Doors, source: Polled, peer: Peer) -> None:
    _, files = new_study(instances=6)
    source.store(*files[:4])
    collect_now(doors, peer)
    source.asked.clear()
    source.store(*files[4:])

    found = collect_now(doors, peer)

    assert found["stored"] == 2
    assert found["here"] == 0  # fetched one by one, being the smaller part of the series
    assert doors.server.archive.count() == 6


def test_a_study_that_comes_late_is_found_within_the_overlap_and_an_older_one_anew(
    doors: Doors, source: Polled, peer: Peer
) -> None:
    source.store(*new_study(StudyDate="20260110")[1])
    collect_now(doors, peer)
    source.store(*new_study(StudyDate="20260107")[1], *new_study(StudyDate="20260106")[1])

    assert collect_now(doors, peer)["stored"] == 1
    doors.server.collected.forget("ct")
    assert collect_now(doors, peer)["stored"] == 1
    assert doors.server.archive.count() == 3


def test_an_image_that_was_deleted_here_does_not_come_back_when_its_study_grows(
    doors: Doors, source: Polled, peer: Peer
) -> None:
    study_uid, files = new_study(instances=3)
    source.store(*files[:2])
    collect_now(doors, peer)
    doors.server.archive.delete(study_uid)
    source.store(files[2])

    found = collect_now(doors, peer)

    assert found["stored"] == 1
    assert doors.server.archive.count() == 1


def test_what_is_here_already_is_not_fetched(doors: Doors, source: Polled, peer: Peer) -> None:
    _, files = new_study(instances=3)
    source.store(*files)
    doors.ingest(*files, name="scanner")

    assert collect_now(doors, peer) == {}
    source.asked.clear()
    assert collect_now(doors, peer) == {}

    assert len(source.asked) == 1  # it was noted that nothing of the study is to come


def test_filters_narrow_what_is_collected_also_where_the_source_ignores_them(doors: Doors, source: Polled) -> None:
    peer = peer_of(
        doors, "ct", source.address, authorization=source.authorization, filters=("Modality=CT", "PatientID=4711")
    )
    wanted, files = new_study(PatientID="4711")
    source.store(
        *files,
        dicom(
            StudyInstanceUID=wanted,
            SeriesInstanceUID=generate_uid(),
            SOPInstanceUID=generate_uid(),
            PatientID="4711",
            Modality="SR",
        ),
        *new_study(PatientID="4712")[1],
        *new_study(PatientID="4711", Modality="MR")[1],
    )

    def ignore_filters(environment: dict[str, Any], start: Any) -> None:
        pairs = environment["QUERY_STRING"].split("&")
        environment["QUERY_STRING"] = "&".join(
            each for each in pairs if each.split("=")[0] in ("limit", "offset", "includefield")
        )

    assert collect_now(doors, peer)["stored"] == 1
    doors.server.collected.forget("ct")
    doors.server.archive.delete(wanted)
    source.spoil = ignore_filters
    assert collect_now(doors, peer)["stored"] == 1


def test_only_studies_of_interest_are_asked_for(doors: Doors, source: Polled) -> None:
    peer = peer_of(doors, "ct", source.address, authorization=source.authorization, since="20260101")
    source.store(*new_study(StudyDate="20251231")[1], *new_study(StudyDate="20260101")[1])

    assert collect_now(doors, peer)["stored"] == 1


@pytest.mark.parametrize("state", ["suspended subscriber", "no right", "contract over", "suspended endpoint"])
def test_without_contract_or_endpoint_in_force_nothing_is_asked_or_collected_and_that_is_said(
    doors: Doors, source: Polled, peer: Peer, state: str
) -> None:
    source.store(*new_study()[1])
    principals = doors.server.principals
    if state == "suspended subscriber":
        principals.suspend("collected-for")
    elif state == "no right":
        principals.add("collected-for", [Right.RECEIVE_IMAGES])
    elif state == "contract over":
        principals.add("collected-for", [Right.REGISTER_IMAGES], end=datetime.now(UTC) + timedelta(seconds=60))
        doors.clock.forward(seconds=120)
    else:
        doors.server.endpoints.suspend("ct")
    peer = doors.server.peers.get("ct")

    for _ in range(2):
        with pytest.raises(AppError) as refused:
            look(doors, peer)

    assert refused.value.category is Category.FORBIDDEN
    assert source.asked == []
    assert doors.server.collected.mark("ct").reason == str(refused.value)
    told = [each["statusReason"]["text"] for each in tasks(doors)]
    assert told == ([] if state == "suspended endpoint" else [str(refused.value)])


def test_a_contract_that_ends_in_the_middle_ends_the_round(doors: Doors, source: Polled, peer: Peer) -> None:
    source.store(*new_study(StudyDate="20260101")[1], *new_study(StudyDate="20260102")[1])
    task = look(doors, peer)

    def suspend(environment: dict[str, Any], start: Any) -> None:
        if "/instances/" in environment["PATH_INFO"]:
            doors.server.principals.suspend("collected-for")

    source.spoil = suspend
    said = run(doors, task)

    assert isinstance(said, Later)
    assert "suspended" in said.reason
    assert doors.server.archive.count() == 1


def test_a_source_that_does_not_answer_is_left_alone_for_a_while_that_doubles_and_one_task_tells_of_it(
    doors: Doors, source: Polled, peer: Peer
) -> None:
    source.spoil = gone
    pauses = []

    for _ in range(5):
        with pytest.raises(AppError):
            look(doors, peer)
        pauses.append((doors.server.collected.mark("ct").due - doors.clock.now).total_seconds())
        doors.clock.forward(hours=1)

    assert [round(each) for each in pauses] == [600, 1200, 2400, 3600, 3600]
    assert [each["status"] for each in tasks(doors)] == ["failed"]
    assert "HTTP 503" in tasks(doors)[0]["statusReason"]["text"]
    source.spoil = lambda environment, start: None
    source.store(*new_study()[1])
    assert collect_now(doors, peer)["stored"] == 1
    assert doors.server.collected.mark("ct").failures == 0


def test_an_instance_that_breaks_its_transfer_costs_the_others_nothing_and_is_tried_again_later(
    doors: Doors, source: Polled, peer: Peer
) -> None:
    _, files = new_study(instances=5)
    source.store(*files)
    uids = sorted(each.sop_uid for each in _all(source.doors))
    bad = uids[2]
    source.spoil = _failing_for(source, bad)

    found = collect_now(doors, peer)

    assert found == {"stored": 4, "here": 0, "refused": 0, "failed": 1}
    assert {each.sop_uid for each in _all(doors)} == set(uids) - {bad}
    source.asked.clear()
    assert collect_now(doors, peer) == {}  # it rests
    assert source.asked_for(bad) == 0
    source.spoil = lambda environment, start: None
    doors.clock.forward(minutes=6)
    assert collect_now(doors, peer)["stored"] == 1


def _failing_for(source: Polled, sop_uid: str) -> Any:
    """Break series off before they begin, and one instance always."""

    def spoil(environment: dict[str, Any], start: Any) -> Any:
        path = environment["PATH_INFO"]
        is_series = "/series/" in path and "/instances" not in path
        return Response("", 500)(environment, start) if is_series or path.endswith(sop_uid) else None

    return spoil


def test_an_instance_that_can_never_be_fetched_is_given_up(doors: Doors, source: Polled, peer: Peer) -> None:
    source.store(*new_study()[1])
    sop_uid = _all(source.doors)[0].sop_uid
    source.spoil = _failing_for(source, sop_uid)

    found = [collect_now(doors, peer)]
    for _ in range(14):
        doors.clock.forward(days=2)
        found.append(collect_now(doors, peer))

    tried = [each for each in found if each]
    assert [each["failed"] for each in tried] == [1] * 9 + [0]
    assert tried[-1]["refused"] == 1
    assert doors.server.collected.count("ct", collected.REFUSED) == 1


def test_a_damaged_instance_is_refused_with_the_reason_and_not_fetched_again(
    doors: Doors, source: Polled, peer: Peer
) -> None:
    source.store(*new_study(instances=3)[1])
    damaged = _all(source.doors)[1].sop_uid

    def damage(environment: dict[str, Any], start: Any) -> Any:
        path = environment["PATH_INFO"]
        if "/series/" in path and "/instances" not in path:
            return Response("", 500)(environment, start)
        if not path.endswith(damaged):
            return None
        kind = 'multipart/related; type="application/dicom"; boundary=X'
        body = b"--X\r\nContent-Type: application/dicom\r\n\r\n" + bytes(128) + b"DICM and nothing\r\n--X--"
        return Response(body, 200, content_type=kind)(environment, start)

    source.spoil = damage
    found = collect_now(doors, peer)

    assert (found["stored"], found["refused"]) == (2, 1)
    notes = doors.server.collected.latest("ct", collected.REFUSED, 10)
    assert [each.key for each in notes] == [damaged]
    refusal = next(each["valueString"] for each in _outputs(doors) if "valueString" in each)
    assert refusal == f"{damaged}: {notes[0].value}"
    source.asked.clear()
    assert collect_now(doors, peer) == {}
    assert len(source.asked) == 1


def _outputs(doors: Doors) -> list[dict[str, Any]]:
    done = run(doors, doors.server.collected.mark("ct").task)
    assert isinstance(done, Done)
    return done.outputs


def test_an_instance_beyond_the_limit_is_refused_and_the_others_come(db: Any, source: Polled) -> None:
    with opened(db, outbound__private_networks=LOOPBACK, limits__instance_bytes="30 KiB") as doors:
        peer = peer_of(doors, "ct", source.address, authorization=source.authorization)
        study_uid, files = new_study(instances=2)
        large = dicom(StudyInstanceUID=study_uid, SOPInstanceUID=generate_uid(), ImageComments="x" * 10_000)
        source.store(*files, large)

        assert collect_now(doors, peer) == {"stored": 2, "here": 0, "refused": 1, "failed": 0}


def test_a_round_keeps_to_its_quota_and_the_next_goes_on_at_once(db: Any, source: Polled) -> None:
    with opened(db, outbound__private_networks=LOOPBACK, collect__round_instances="4") as doors:
        peer = peer_of(doors, "ct", source.address, authorization=source.authorization)
        for day in range(1, 4):
            source.store(*new_study(instances=3, StudyDate=f"2026010{day}")[1])

        rounds = []
        while found := collect_now(doors, peer):
            mark = doors.server.collected.mark("ct")
            rounds.append((found["stored"] + found["here"], mark.latest, mark.due <= doors.clock.now))

        # What lacks most of a series is fetched whole, so one instance of two series comes a second time.
        assert rounds == [(4, "20260101", True), (4, "20260102", True), (3, "20260103", False)]
        assert doors.server.archive.count() == 9


def test_the_quota_of_a_day_holds_until_midnight(db: Any, source: Polled) -> None:
    with opened(db, outbound__private_networks=LOOPBACK, collect__day_instances="2") as doors:
        doors.clock.now = datetime(2026, 6, 1, 20, tzinfo=UTC)
        peer = peer_of(doors, "ct", source.address, authorization=source.authorization)
        source.store(*new_study(instances=3)[1])

        assert collect_now(doors, peer)["stored"] == 2
        assert doors.server.collected.mark("ct").due == datetime(2026, 6, 2, tzinfo=UTC)
        assert look(doors, peer) == ""
        doors.clock.forward(hours=5)
        assert collect_now(doors, peer)["stored"] == 1


def test_the_task_is_the_record_of_the_round(doors: Doors, source: Polled, peer: Peer) -> None:
    study_uid, files = new_study(instances=2)
    source.store(*files)

    task = look(doors, peer)
    done = run(doors, task)

    ordered = doors.server.own.read("Task", task).json()
    assert ordered["focus"]["reference"] == "Endpoint/peer-ct"
    assert ordered["requester"]["reference"] == peer.subscriber
    studies = [each["valueReference"]["reference"] for each in done.outputs if "valueReference" in each]
    assert studies == [f"ImagingStudy/{study_uid}"]
    received = next(each["valueQuantity"] for each in done.outputs if "valueQuantity" in each)
    assert (received["value"] > 0, received["code"]) == (True, "By")


def test_a_client_cannot_place_such_a_task(doors: Doors) -> None:
    client = doors.caller(Right.ORDER_PROCESSING, Right.RECEIVE_IMAGES)
    coded = {"coding": [{"system": "urn:fhir-imaging:code:task", "code": "collect"}]}
    order = {"resourceType": "Task", "status": "requested", "intent": "order", "code": coded}

    answer = client.post("/fhir/Task", {**order, "focus": {"reference": "Endpoint/peer-ct"}})

    assert answer.status_code == 403


def test_while_a_task_collects_nobody_orders_another_and_a_cancelled_one_makes_a_pause(
    doors: Doors, source: Polled, peer: Peer
) -> None:
    source.store(*new_study()[1])
    task = look(doors, peer)

    assert look(doors, peer) == task
    own = doors.server.own
    own.update(own.read("Task", task).json() | {"status": "cancelled"})
    with pytest.raises(AppError):
        look(doors, peer)

    mark = doors.server.collected.mark("ct")
    assert mark.is_done
    assert mark.due > doors.clock.now
    assert len(tasks(doors)) == 1


def test_a_task_that_waits_gives_way_to_a_look_that_somebody_asks_for_or_a_changed_endpoint(
    doors: Doors, source: Polled, peer: Peer
) -> None:
    source.store(*new_study()[1])
    task = look(doors, peer)
    source.spoil = gone
    said = run(doors, task)
    assert isinstance(said, Later)
    own, now = doors.server.own, doors.clock.now
    started = start(own.read("Task", task).json(), Role.SERVER, now)
    own.update(waiting_for(started, said.reason, now))
    source.spoil = lambda environment, start: None

    assert look(doors, peer) == task  # it waits its time
    second = collector(doors.server).look_now(peer)
    own.update(waiting_for(start(own.read("Task", second).json(), Role.SERVER, now), "a reason", now))
    third = look(doors, peer_of(doors, "ct", source.address, authorization=source.authorization))

    assert len({task, second, third}) == 3
    assert [own.read("Task", each).json()["status"] for each in (task, second)] == ["cancelled", "cancelled"]
    assert isinstance(run(doors, third), Done)


def test_a_crash_between_the_mark_and_its_task_delays_nothing(doors: Doors, source: Polled, peer: Peer) -> None:
    source.store(*new_study()[1])
    doors.server.collected.begin("ct", 0, "of-a-process-that-died", doors.clock.now, begun=doors.clock.now)

    assert collect_now(doors, peer)["stored"] == 1


def test_a_round_that_was_done_when_the_process_died_is_told_and_not_done_again(
    doors: Doors, source: Polled, peer: Peer
) -> None:
    source.store(*new_study(instances=2)[1])
    task = look(doors, peer)
    first = run(doors, task)
    source.asked.clear()

    second = run(doors, task)

    assert isinstance(second, Done)
    assert second.outputs == first.outputs
    assert source.asked == []


def test_a_source_that_was_put_right_is_looked_at_at_once(doors: Doors, source: Polled, peer: Peer) -> None:
    source.spoil = gone
    with pytest.raises(AppError):
        look(doors, peer)
    assert doors.server.collected.mark("ct").due > doors.clock.now

    peer_of(doors, "ct", source.address, authorization=source.authorization)

    assert doors.server.collected.mark("ct").due is None


def test_an_endpoint_that_is_removed_is_forgotten_and_its_task_fails(doors: Doors, source: Polled, peer: Peer) -> None:
    source.store(*new_study()[1])
    task = look(doors, peer)
    doors.server.endpoints.remove("ct")

    with pytest.raises(AppError) as refused:
        run(doors, task)

    assert refused.value.category is Category.NOT_FOUND
    assert doors.server.collected.marks() == {}


def test_a_source_without_counts_is_looked_into_each_time_and_makes_no_task_for_nothing(
    doors: Doors, source: Polled, peer: Peer
) -> None:
    source.store(*new_study(instances=2)[1])
    source.spoil = _without(source, "00201208", "00201209")
    collect_now(doors, peer)
    made = len(tasks(doors))

    assert look(doors, peer) == ""

    assert len(tasks(doors)) == made


def _without(source: Polled, *tags: str) -> Any:
    """Answer searches without some elements."""
    app = source.doors.flask.application

    def spoil(environment: dict[str, Any], start: Any) -> Any:
        import orjson

        if not environment["PATH_INFO"].endswith(("/studies", "/series", "/instances")):
            return None
        answer = app.test_client().get(
            environment["PATH_INFO"],
            query_string=environment["QUERY_STRING"],
            headers={"Authorization": environment["HTTP_AUTHORIZATION"]},
        )
        found = [{tag: each[tag] for tag in each if tag not in tags} for each in orjson.loads(answer.data or b"[]")]
        return Response(orjson.dumps(found), 200, content_type="application/dicom+json")(environment, start)

    return spoil


def test_what_is_listed_late_is_asked_for_again(doors: Doors, source: Polled, peer: Peer) -> None:
    source.store(*new_study(instances=3)[1])
    source.spoil = _first_only(source)

    assert collect_now(doors, peer)["stored"] == 1
    source.spoil = lambda environment, start: None
    assert collect_now(doors, peer) == {}
    doors.clock.forward(minutes=6)

    assert collect_now(doors, peer)["stored"] == 2


def _first_only(source: Polled) -> Any:
    """List but the first instance of a series, as an index does that lags behind."""

    def spoil(environment: dict[str, Any], start: Any) -> None:
        if environment["PATH_INFO"].endswith("/instances"):
            environment["QUERY_STRING"] += "&InstanceNumber=1"

    return spoil


def test_what_was_collected_triggers_the_rules_of_its_subscriber(doors: Doors, source: Polled, peer: Peer) -> None:
    owner = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, Right.ORDER_PROCESSING, name="collected-for")
    assert owner.post("/fhir/PlanDefinition", rule(action())).status_code == 201
    source.store(*ct_files())

    collect_now(doors, peer)
    doors.clock.forward(seconds=60)
    Triggers(doors.server).round(threading.Event())

    ordered = [each for each in tasks(doors) if code_of(each) == "process"]
    assert [each["requester"]["reference"] for each in ordered] == [peer.subscriber]


def test_progress_counts_instances(doors: Doors, source: Polled, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "REPORT_S", 0.0)
    source.store(*new_study(instances=3, StudyDate="20260101")[1], *new_study(StudyDate="20260102")[1])
    told: list[Progress] = []

    collect.run(doors.server.own.read("Task", look(doors, peer)).json(), doors.server, told.append)

    assert [each.percent for each in told] == [25, 50, 75, 99]
    assert told[-1].step == "2 of 2, 4 images stored"
