"""Results on their way out of an order: of work that others did, under restrictions, and without the images it had."""

from collections.abc import Iterator
from typing import Any

import pytest

from fhir_server.access.contracts import Limits, Right
from fhir_server.delivery import value
from fhir_server.model.query import parse
from fhir_server.model.task import CODES
from fhir_server.work.kinds import handlers
from imaging.derive import to_part10
from tests.support.deliveries import LOOPBACK, ORDERER, SERIES, STUDY, done, order, outputs, placed, register
from tests.support.doors import Caller, Doors, opened
from tests.support.receivers import Receiver, receiving
from tests.support.volumes import ct_files, slice_dataset

RESULT = "1.2.3.4.6"
READER = {"coding": [{"system": "urn:kinds", "code": "reader"}]}
FOREIGN = {"coding": [{"system": "urn:reader:codes", "code": "segment-nodules"}]}
PROCESS = {"coding": [{"system": CODES, "code": "process"}]}
WHOLE = value("imaging-study", "valueReference", {"reference": f"ImagingStudy/{STUDY}"})
MIP = (value("algorithm", "valueString", "slab"), value("thickness_mm", "valueDecimal", 1000), WHOLE)


@pytest.fixture
def doors(db: Any) -> Iterator[Doors]:
    with opened(db, **LOOPBACK) as made:
        made.ingest(*ct_files())
        yield made


@pytest.fixture
def orderer(doors: Doors) -> Caller:
    return doors.caller(*ORDERER, name="orderer")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def reader(doors: Doors) -> Caller:
    """Somebody outside who does orders."""
    rights = (Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, Right.PROCESS_IMAGES)
    return doors.caller(*rights, name="reader")


def deliver_to(reference: str) -> dict[str, Any]:
    return value("deliver-to", "valueReference", {"reference": reference})


def task_of(code: dict[str, Any], *inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Task",
        "status": "requested",
        "intent": "order",
        "code": code,
        "input": list(inputs),
    } | more


def write(caller: Caller, task: dict[str, Any], **changes: Any) -> Any:
    version = f'W/"{task["meta"]["versionId"]}"'
    return caller.put(f"/fhir/Task/{task['id']}", task | changes, headers={"If-Match": version})


def parts(doors: Doors, task: dict[str, Any]) -> list[dict[str, Any]]:
    found = doors.server.own.search(parse("Task", [("part-of", f"Task/{task['id']}")])).matches
    return [each.json() for each in found]


def run(doors: Doors, task: dict[str, Any]) -> Any:
    return handlers.get("process").run(task, doors.server, lambda _: None)


class TestOfWorkOutside:
    @pytest.fixture
    def owner(self, doors: Doors, reader: Caller) -> dict[str, str]:
        return {"reference": doors.server.principals.named("reader")}

    @pytest.mark.parametrize(
        ("code", "inputs", "told"),
        [(FOREIGN, [WHOLE], []), (PROCESS, list(MIP), [value("performed", "valueString", "a MIP of another maker")])],
        ids=["by a code of theirs", "by a code of ours"],
    )
    def test_what_an_owner_outside_names_is_delivered_once(
        self, doors, orderer, reader, receiver, owner, code, inputs, told
    ):
        endpoint = register(doors, receiver)
        task = placed(orderer, task_of(code, *inputs, deliver_to(endpoint), owner=owner))
        doors.ingest(*ct_files(2, series=RESULT), name="reader")
        started = write(reader, task, status="in-progress").json
        output = [*told, WHOLE, value("series", "valueId", RESULT)]

        before = parts(doors, task)
        completed = write(reader, started, status="completed", output=output)
        again = write(reader, started, status="completed", output=output)
        (delivery,) = parts(doors, task)
        ended = done(doors, delivery)

        assert before == []
        assert (completed.status_code, again.status_code) == (200, 412)
        assert delivery["requester"] == task["requester"]
        assert outputs(ended, "delivered") == [2]
        assert {uid.rpartition(".")[0] for uid in receiver.kept} == {RESULT}

    def test_one_that_claims_an_open_order_delivers_as_well(self, doors, orderer, reader, receiver, owner):
        endpoint = register(doors, receiver)
        device = reader.post("/fhir/Device", {"resourceType": "Device", "type": READER, "owner": owner}).json
        task = placed(orderer, task_of(FOREIGN, WHOLE, deliver_to(endpoint), performerType=[READER]))

        claimed = write(reader, task, status="in-progress", owner={"reference": f"Device/{device['id']}"}).json
        patch = [
            {"op": "add", "path": "/output", "value": [value("series", "valueId", SERIES)]},
            {"op": "replace", "path": "/status", "value": "completed"},
        ]
        version = f'W/"{claimed["meta"]["versionId"]}"'
        headers = {"Content-Type": "application/json-patch+json", "If-Match": version}
        answer = reader.call("PATCH", f"/fhir/Task/{task['id']}", json=patch, headers=headers)

        assert answer.status_code == 200, answer.text
        assert [outputs(done(doors, each), "delivered") for each in parts(doors, task)] == [[6]]

    @pytest.mark.parametrize("status", ["failed", "completed"])
    def test_where_nothing_was_made_nothing_is_delivered(self, doors, orderer, reader, receiver, owner, status):
        task = placed(orderer, task_of(FOREIGN, WHOLE, deliver_to(register(doors, receiver)), owner=owner))
        started = write(reader, task, status="in-progress").json

        answer = write(reader, started, status=status)

        assert (answer.status_code, parts(doors, task)) == (200, [])

    @pytest.mark.parametrize(
        "named",
        [
            value("series", "valueId", "1.2.3.4.404"),
            value("imaging-study", "valueReference", {"reference": "ImagingStudy/1.2.3.404"}),
        ],
        ids=["series", "study"],
    )
    def test_a_result_that_is_not_here_completes_no_order(self, doors, orderer, reader, owner, named):
        task = placed(orderer, task_of(FOREIGN, WHOLE, owner=owner))
        started = write(reader, task, status="in-progress").json

        early = write(reader, started, status="completed", output=[named])

        assert early.status_code == 400
        assert "an output names images that are not here, or not yours to read" in early.text
        assert write(reader, started, status="failed", output=[named]).status_code == 200

    def test_a_result_that_its_owner_may_not_read_completes_no_order(self, doors, orderer):
        doors.ingest(*ct_files(2, "1.2.3.77", "1.2.3.77.1"), name="somebody")
        principals = doors.server.principals
        sees = Limits(frozenset({principals.named("orderer")}))
        principals.add("narrow", [Right.RECEIVE_IMAGES, Right.PROCESS_IMAGES], limits=sees)
        narrow = Caller(doors.flask, principals.mint("narrow"), doors.clock)
        task = placed(orderer, task_of(FOREIGN, WHOLE, owner={"reference": principals.named("narrow")}))
        started = write(narrow, task, status="in-progress").json

        answer = write(narrow, started, status="completed", output=[value("series", "valueId", "1.2.3.77.1")])

        assert answer.status_code == 400, answer.text
        assert "not yours to read" in answer.text

    def test_a_transaction_that_fails_delivers_nothing(self, doors, orderer, reader, receiver, owner):
        task = placed(orderer, task_of(FOREIGN, WHOLE, deliver_to(register(doors, receiver)), owner=owner))
        started = write(reader, task, status="in-progress").json
        ended = started | {"status": "completed", "output": [value("series", "valueId", SERIES)]}
        version = f'W/"{started["meta"]["versionId"]}"'

        def bundle(*more: dict[str, Any]) -> dict[str, Any]:
            put = {"method": "PUT", "url": f"Task/{task['id']}", "ifMatch": version}
            entries = [{"resource": ended, "request": put}, *more]
            return {"resourceType": "Bundle", "type": "transaction", "entry": entries}

        gone = {"resource": {"resourceType": "Patient", "id": "no"}, "request": {"method": "PUT", "url": "Patient/no"}}
        refused = reader.post("/fhir", bundle(gone))
        none = parts(doors, task)
        taken = reader.post("/fhir", bundle())

        assert (refused.status_code, taken.status_code) == (400, 200), refused.text + taken.text
        assert (none, len(parts(doors, task))) == ([], 1)

    def test_whom_it_may_not_go_to_is_told_when_it_is_ordered(self, doors, orderer, receiver, owner):
        doors.server.principals.add("sealed", [Right.REGISTER_IMAGES])
        theirs = register(doors, receiver, "theirs", "sealed")
        plain = doors.caller(Right.RECEIVE_IMAGES, Right.REGISTER_IMAGES, Right.PROCESS_IMAGES, name="plain")

        unknown = orderer.post("/fhir/Task", task_of(FOREIGN, deliver_to("Endpoint/peer-none"), owner=owner))
        sealed = orderer.post("/fhir/Task", task_of(FOREIGN, deliver_to(theirs), owner=owner))
        wrong = orderer.post("/fhir/Task", task_of(FOREIGN, value("deliver-to", "valueString", "pacs"), owner=owner))
        without_right = plain.post("/fhir/Task", task_of(FOREIGN, deliver_to(theirs), owner=owner))

        codes = [each.status_code for each in (unknown, sealed, wrong, without_right)]
        assert codes == [404, 403, 400, 403]

    def test_what_is_not_to_be_kept_is_ordered_of_this_server_alone(self, orderer, owner):
        kept = value("keep", "valueCode", "after")

        answers = [
            orderer.post("/fhir/Task", task_of(PROCESS, *MIP, kept, **more))
            for more in ({"owner": owner}, {"performerType": [READER]})
        ]

        assert [each.status_code for each in answers] == [400, 400]


def test_the_copies_of_a_patient_to_whom_an_order_is_restricted_are_delivered_without_his_name(
    doors: Doors, orderer: Caller, receiver: Receiver
) -> None:
    doors.server.studies.project(STUDY)
    patient = doors.server.own.read("ImagingStudy", STUDY).json()["subject"]
    inputs = [value("algorithm", "valueString", "de-identify"), WHOLE, deliver_to(register(doors, receiver))]
    end = (doors.clock.now.replace(year=2099)).isoformat()
    restriction = {"recipient": [patient], "period": {"end": end}}
    task = placed(orderer, task_of(PROCESS, *inputs, restriction=restriction))

    made = run(doors, task)
    own = doors.server.own
    own.update({**task, "output": made.outputs}, guard=own.creating(made.then))
    (delivery,) = parts(doors, task)
    ended = done(doors, delivery)

    assert (ended["failure"], outputs(ended, "delivered")) == ("", [6])
    assert delivery["restriction"] == {"period": {"end": end}}


def test_a_delivery_may_name_its_study_as_what_it_is_about(doors: Doors, orderer: Caller, receiver: Receiver) -> None:
    task = order(register(doors, receiver), focus={"reference": f"ImagingStudy/{STUDY}"})
    task["input"] = task["input"][1:]

    ended = done(doors, placed(orderer, task))

    assert outputs(ended, "delivered") == [6]


class TestWithoutPixels:
    @pytest.fixture
    def report(self, doors: Doors) -> str:
        """A series of the study without pixels."""
        uid = "1.2.3.4.9"
        ds = slice_dataset((0, 0, 0), StudyInstanceUID=STUDY, SeriesInstanceUID=uid, SOPInstanceUID=f"{uid}.1")
        ds.SOPClassUID, ds.Modality = "1.2.840.10008.5.1.4.1.1.88.22", "SR"
        for keyword in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit"):
            delattr(ds, keyword)
        doors.ingest(to_part10(ds))
        return uid

    def test_what_is_left_out_of_an_order_is_told(self, doors, orderer, report):
        made = run(doors, placed(orderer, task_of(PROCESS, *MIP)))

        (told,) = outputs({"output": made.outputs}, "refused")
        assert told == f"series {report}: 1 instances without pixels were left out"
        assert len(outputs({"output": made.outputs}, "series")) == 1

    def test_also_of_series_that_are_named(self, doors, orderer, report):
        named = [value("series", "valueId", uid) for uid in (SERIES, report)]

        made = run(doors, placed(orderer, task_of(PROCESS, *MIP[:2], *named)))

        assert report in outputs({"output": made.outputs}, "refused")[0]

    def test_an_order_of_nothing_else_is_refused(self, orderer, report):
        answer = orderer.post("/fhir/Task", task_of(PROCESS, *MIP[:2], value("series", "valueId", report)))

        assert answer.status_code == 400
        assert "none of the chosen instances has pixels" in answer.text
