"""Rules choose processing when images come: stored over REST, acting once, with their owner's rights."""

import json
import re
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fhir_server.access.contracts import Right
from fhir_server.delivery import value
from fhir_server.model import task as tasks
from fhir_server.model.peer import Peer, Way
from fhir_server.model.query import parse
from fhir_server.work import maintenance
from fhir_server.work.kinds import handlers
from fhir_server.work.triggers import Triggers, rules_of
from imaging.derive import to_part10
from tests.support.doors import Caller, Doors, opened
from tests.support.rules import DCM, THICK, URL, action, coded, described, rule, task_input
from tests.support.volumes import ct_files, slice_dataset

STUDY, SERIES = "1.2.3.4", "1.2.3.4.5"
CT = coded("series.modality", "CT", system=DCM)
RECEIVER = Peer("pacs", "", Way.STOW, "https://receiver.example/dicom-web")


@pytest.fixture
def owner(doors: Doors) -> Caller:
    return doors.caller(Right.ORDER_PROCESSING, Right.RECEIVE_IMAGES, name="owner")


def stored(caller: Caller, plan: dict[str, Any]) -> dict[str, Any]:
    response = caller.post("/fhir/PlanDefinition", plan)
    assert response.status_code == 201, response.text
    return response.json


def refusal(response: Any) -> str:
    return response.json["issue"][0]["diagnostics"]


def quiet(doors: Doors) -> None:
    """Let time pass until every study is quiet, and have the rules look."""
    doors.clock.forward(seconds=60)
    Triggers(doors.server).round(threading.Event())


def orders(doors: Doors) -> list[dict[str, Any]]:
    return [each.json() for each in doors.server.own.search(parse("Task", [])).matches]


def said(task: dict[str, Any], name: str) -> list[Any]:
    return [
        next(content for key, content in each.items() if key.startswith("value"))
        for each in task["input"]
        if tasks.name_of(each) == name
    ]


def run(doors: Doors, task: dict[str, Any]) -> dict[str, Any]:
    """Do what a worker does with a placed order, in this process; return the completed Task."""
    handler, own, now = handlers.get(tasks.code_of(task)), doors.server.own, doors.server.clock()
    done = handler.run(task, doors.server, lambda _: None)
    started = tasks.start(own.read("Task", task["id"]).json(), tasks.Role.SERVER, now)
    completed = tasks.complete(started, handler.kind, done.outputs, tasks.Role.SERVER, now)
    return own.update(completed, guard=own.creating(done.then)).json()


def mr_files() -> list[bytes]:
    files = []
    for n in range(3):
        ds = slice_dataset(
            (0, 0, 2.0 * n), n + 1, StudyInstanceUID=STUDY, SeriesInstanceUID=f"{STUDY}.6", Modality="MR",
            SOPInstanceUID=f"{STUDY}.6.{n + 1}", PatientID="P1", SeriesDescription="T2 sag", SeriesNumber=6,
        )  # fmt: skip
        ds.PixelData = np.full((4, 5), n, np.int16).tobytes()
        ds["PixelData"].VR = "OW"
        files.append(to_part10(ds))
    return files


class TestActing:
    def test_images_that_a_rule_is_meant_for_are_ordered_when_they_are_quiet(self, doors, owner):
        plan = stored(owner, rule(action(CT, priority="urgent"), version="3"))
        doors.ingest(*ct_files(), *mr_files())

        Triggers(doors.server).round(threading.Event())
        early = orders(doors)
        quiet(doors)

        assert early == []
        (task,) = orders(doors)
        assert said(task, "series") == [SERIES]
        assert said(task, "algorithm") == ["urn:fhir-imaging:algorithm:slab"]
        assert said(task, "thickness_mm") == [1000]
        assert (task["priority"], task["instantiatesCanonical"]) == ("urgent", f"{URL}|3")
        assert task["requester"]["reference"] == plan["meta"]["tag"][0]["code"]
        done = run(doors, task)
        assert done["status"] == "completed"
        assert any(tasks.name_of(each) == "series" for each in done["output"])

    def test_each_action_orders_for_its_own_series(self, doors, owner):
        stored(owner, rule(action(CT), action(described("t2*"), algorithm="median", inputs=())))
        doors.ingest(*ct_files(), *mr_files())

        quiet(doors)

        chosen = {said(each, "series")[0]: said(each, "algorithm")[0].rpartition(":")[2] for each in orders(doors)}
        assert chosen == {SERIES: "slab", f"{STUDY}.6": "median"}

    def test_looking_again_and_sending_again_order_nothing_twice(self, doors, owner):
        stored(owner, rule(action(CT)))
        files = ct_files()
        doors.ingest(*files)
        quiet(doors)

        for arrival in (files[:1], mr_files()):  # the first is known, the second another series
            doors.ingest(*arrival)
            quiet(doors)

        assert len(orders(doors)) == 1

    def test_more_images_of_a_series_are_another_content_and_are_ordered(self, doors, owner):
        stored(owner, rule(action(CT)))
        files = ct_files()
        doors.ingest(*files[:4])
        quiet(doors)

        doors.ingest(*files[4:])
        quiet(doors)

        assert len(orders(doors)) == 2

    def test_results_trigger_no_rules(self, doors, owner):
        stored(owner, rule(action()))
        doors.ingest(*ct_files())
        quiet(doors)
        (task,) = orders(doors)

        run(doors, task)
        quiet(doors)

        assert len(orders(doors)) == 1

    def test_a_changed_rule_acts_on_what_comes_and_not_on_what_was_there(self, doors, owner):
        plan = stored(owner, rule(action(CT)))
        doors.ingest(*ct_files())
        quiet(doors)
        owner.put(f"/fhir/PlanDefinition/{plan['id']}", plan | {"action": [action(CT, algorithm="median", inputs=())]})
        quiet(doors)
        before = len(orders(doors))

        doors.ingest(*mr_files())
        quiet(doors)

        assert before == 1
        assert sorted(said(each, "algorithm")[0].rpartition(":")[2] for each in orders(doors)) == ["median", "slab"]

    @pytest.mark.parametrize("more", [{"status": "draft"}, {"status": "retired"},
                                      {"effectivePeriod": {"end": "2020-01-01"}},
                                      {"effectivePeriod": {"start": "2999-01-01"}}])  # fmt: skip
    def test_a_rule_that_is_not_in_force_does_nothing(self, doors, owner, more):
        stored(owner, rule(action(CT), **more))
        doors.ingest(*ct_files())

        quiet(doors)

        assert orders(doors) == []

    def test_what_the_rule_says_of_keeping_and_delivering_is_in_the_order(self, doors, owner):
        endpoint = doors.server.endpoints.add(RECEIVER, "owner")[0].endpoint
        more = (
            THICK,
            task_input("keep", "valueCode", "before"),
            task_input("deliver-to", "valueReference", {"reference": endpoint}),
        )
        stored(owner, rule(action(CT, inputs=more)))
        doors.ingest(*ct_files())

        quiet(doors)

        (task,) = orders(doors)
        assert said(task, "keep") == ["before"]
        assert said(task, "deliver-to") == [{"reference": endpoint}]

    def test_the_worker_does_all_of_this_by_itself(self, db):
        with opened(db, work__projection_quiet_s="0.2", work__rules_quiet_s="0.5") as doors:
            stored(doors.caller(Right.ORDER_PROCESSING, Right.RECEIVE_IMAGES, name="owner"), rule(action(CT)))
            doors.ingest(*ct_files())
            stopping = threading.Event()
            thread = threading.Thread(target=maintenance.run, args=(doors.server, stopping))
            thread.start()
            try:
                end = time.monotonic() + 10
                while time.monotonic() < end and not orders(doors):
                    doors.clock.forward(seconds=0.1)
                    time.sleep(0.05)
            finally:
                stopping.set()
                thread.join(10)

            assert len(orders(doors)) == 1


class TestTheHowTo:
    PAGE = Path(__file__).parents[2] / "docs/howto/processing-rules.md"

    def blocks(self) -> list[dict[str, Any]]:
        return [json.loads(each) for each in re.findall(r"```json\n(.*?)```", self.PAGE.read_text(), re.DOTALL)]

    def test_its_rule_acts_on_what_it_says_and_on_nothing_else(self, doors, owner):
        stored(owner, self.blocks()[0])
        meant = {"BodyPartExamined": "CHEST", "SeriesDescription": "Thorax 1.0 B30f"}
        doors.ingest(
            *ct_files(**meant),
            *ct_files(2, series=f"{STUDY}.7", **meant | {"SeriesDescription": "Scout"}),
            *ct_files(2, series=f"{STUDY}.8", **meant | {"BodyPartExamined": "HEAD"}),
            *ct_files(2, series=f"{STUDY}.9", **meant | {"Modality": "MR"}),
        )

        quiet(doors)

        (task,) = orders(doors)
        assert (said(task, "series"), said(task, "thickness_mm")) == ([SERIES], [20])
        assert run(doors, task)["status"] == "completed"

    def test_its_order_leaves_the_choice_to_the_rule(self, doors, owner):
        plan, order = self.blocks()
        doors.ingest(*ct_files(BodyPartExamined="CHEST", SeriesDescription="lung"))
        stored(owner, plan)

        whole = run(doors, owner.post("/fhir/Task", order).json)

        (part,) = [each for each in orders(doors) if "partOf" in each]
        assert part["partOf"][0]["reference"] == f"Task/{whole['id']}"


class TestRights:
    def test_a_rule_of_who_only_orders_acts_on_its_own_images_and_no_others(self, doors):
        for name in ("sender", "stranger"):
            orderer = doors.caller(Right.REGISTER_IMAGES, Right.ORDER_PROCESSING, name=name)
            stored(orderer, rule(action(CT)))
        doors.ingest(*ct_files(), name="sender")

        quiet(doors)

        (task,) = orders(doors)
        (sender,) = [each for each in doors.server.principals.subscribers() if each.name == "sender"]
        assert task["requester"]["reference"] == sender.organization

    def test_a_rule_of_a_suspended_subscriber_or_of_one_without_the_right_does_nothing(self, doors):
        for name in ("suspended", "demoted"):
            caller = doors.caller(Right.ORDER_PROCESSING, Right.RECEIVE_IMAGES, name=name)
            stored(caller, rule(action(CT)))
        doors.server.principals.suspend("suspended")
        doors.server.principals.add("demoted", [Right.RECEIVE_IMAGES])
        doors.ingest(*ct_files())

        quiet(doors)

        assert orders(doors) == []
        assert doors.server.archive.arrivals(10) == []

    def test_who_may_not_order_stores_no_rule_and_who_may_not_define_no_other_plan(self, doors, owner):
        definer = doors.caller(Right.DEFINE, name="definer")
        other = rule(action(CT)) | {"meta": {"profile": ["http://example.org/other"]}}

        assert definer.post("/fhir/PlanDefinition", rule(action(CT))).status_code == 403
        assert definer.post("/fhir/PlanDefinition", other).status_code == 201
        assert owner.post("/fhir/PlanDefinition", other).status_code == 403
        assert doors.caller(Right.RECEIVE_IMAGES).post("/fhir/PlanDefinition", rule(action(CT))).status_code == 403

    def test_a_plan_that_is_no_rule_never_acts_though_it_claims_an_owner(self, doors, owner):
        (subscriber,) = [each for each in doors.server.principals.subscribers() if each.name == "owner"]
        tag = {"system": "urn:fhir-imaging:owner", "code": subscriber.organization}
        definer = doors.caller(Right.DEFINE, name="definer")
        definer.post("/fhir/PlanDefinition", rule(action(CT)) | {"meta": {"tag": [tag]}})
        doors.ingest(*ct_files())

        quiet(doors)

        assert orders(doors) == []

    def test_rules_are_changed_and_deleted_by_their_owner_alone(self, doors, owner):
        plan = stored(owner, rule(action(CT)))
        address = f"/fhir/PlanDefinition/{plan['id']}"
        everything = doors.caller(*Right, name="everything")
        orderer = doors.caller(Right.ORDER_PROCESSING, name="orderer")

        assert [everything.put(address, plan).status_code, everything.delete(address).status_code] == [403, 403]
        assert [orderer.get(address).status_code, orderer.put(address, plan).status_code] == [404, 404]
        assert "entry" not in orderer.get("/fhir/PlanDefinition").json
        assert owner.put(address, plan | {"title": "MIP"}).status_code == 200
        assert owner.delete(address).status_code == 204

    def test_a_forged_owner_is_replaced(self, doors, owner):
        forged = rule(action(CT))
        forged["meta"] = {**forged["meta"], "tag": [{"system": "urn:fhir-imaging:owner", "code": "Organization/x"}]}

        plan = stored(owner, forged)

        assert "Organization/x" not in str(plan["meta"])

    def test_a_subscriber_has_so_many_rules_and_no_more(self, doors, owner, monkeypatch):
        monkeypatch.setattr("fhir_server.work.triggers.MOST_RULES", 2)
        plans = [stored(owner, rule(action(CT))) for _ in range(2)]

        response = owner.post("/fhir/PlanDefinition", rule(action(CT)))

        assert response.status_code == 413
        assert owner.put(f"/fhir/PlanDefinition/{plans[0]['id']}", plans[0] | {"title": "x"}).status_code == 200


class TestRefusals:
    @pytest.mark.parametrize(
        ("plan", "words"),
        [
            (rule(action(CT, algorithm="magic")), "action[0]: 'magic' is not known; there are: bilateral"),
            (rule(action(CT), action(CT, algorithm="slab|9")), "action[1]: slab is here in version 1 only"),
            (rule(action(CT, inputs=(task_input("thick", "valueDecimal", 1),))), "'thick' is not known"),
            (rule(action(CT, inputs=(task_input("step_mm", "valueDecimal", -1),))), "step_mm"),
            (rule(action(CT, inputs=(task_input("keep", "valueCode", "before"),))), "deliver-to"),
            (rule(action(CT, inputs=(task_input("series", "valueId", "1.2"),))), "the trigger chooses the images"),
            (rule(action(CT, inputs=(task_input("algorithm", "valueString", "slab"),))), "'algorithm' comes 2 times"),
            (rule(action(CT, algorithm="rigid-registration", inputs=())), "takes two series"),
            (rule(action(coded("modality", "CT"))), "the path has to be one of series.modality"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_said_when_the_rule_is_stored(self, doors, owner, plan, words):
        response = owner.post("/fhir/PlanDefinition", plan)

        assert response.status_code == 400, response.text
        assert words in refusal(response)

    def test_an_endpoint_that_is_not_there_is_found_out_when_the_rule_is_stored(self, doors, owner):
        reference = task_input("deliver-to", "valueReference", {"reference": "Endpoint/none"})

        response = owner.post("/fhir/PlanDefinition", rule(action(CT, inputs=(THICK, reference))))

        assert response.status_code == 400
        assert "was not registered by the operator" in refusal(response)

    def test_a_receiver_whose_time_is_over_stops_no_other_rule(self, doors, owner):
        doors.server.endpoints.add(replace(RECEIVER, end=doors.clock() + timedelta(seconds=30)), "owner")
        reference = task_input("deliver-to", "valueReference", {"reference": doors.server.peers.get("pacs").endpoint})
        stored(owner, rule(action(CT, inputs=(THICK, reference)), action(CT, algorithm="median", inputs=())))
        doors.ingest(*ct_files())

        quiet(doors)

        assert [said(each, "algorithm")[0].rpartition(":")[2] for each in orders(doors)] == ["median"]
        assert doors.server.archive.arrivals(10) == []

    def test_a_rule_that_is_not_understood_any_more_stops_no_other(self, doors, owner):
        broken = stored(owner, rule(action(CT)))
        doors.server.own.update(broken | {"action": [{"title": "from another version"}]})
        stored(owner, rule(action(CT)))
        doors.ingest(*ct_files())

        quiet(doors)

        assert len(orders(doors)) == 1
        assert len(list(rules_of(doors.server))) == 1


class TestChosenByARule:
    def order(self, *images: dict[str, Any], **more: Any) -> dict[str, Any]:
        code = {"coding": [{"system": "urn:fhir-imaging:code:task", "code": "process"}]}
        plain = {"resourceType": "Task", "status": "requested", "intent": "order", "code": code}
        return {**plain, "instantiatesCanonical": URL, "input": list(images), **more}

    def study(self) -> dict[str, Any]:
        return value("imaging-study", "valueReference", {"reference": f"ImagingStudy/{STUDY}"})

    def test_an_order_that_names_a_rule_becomes_the_orders_of_its_actions(self, doors, owner):
        doors.ingest(*ct_files(), *mr_files())
        stored(owner, rule(action(CT), action(described("t2*"), algorithm="median", inputs=(), priority="asap")))

        placed = owner.post("/fhir/Task", self.order(self.study()))
        whole = run(doors, placed.json)

        parts = [each for each in orders(doors) if "partOf" in each]
        assert {said(each, "series")[0]: said(each, "algorithm")[0].rpartition(":")[2] for each in parts} == {
            SERIES: "slab",
            f"{STUDY}.6": "median",
        }
        assert {each["partOf"][0]["reference"] for each in parts} == {f"Task/{whole['id']}"}
        told = {each["valueReference"]["reference"] for each in whole["output"] if tasks.name_of(each) == "task"}
        assert told == {f"Task/{each['id']}" for each in parts}
        assert [run(doors, each)["status"] for each in parts] == ["completed", "completed"]

    def test_work_that_is_done_twice_makes_the_same_parts(self, doors, owner):
        doors.ingest(*ct_files())
        stored(owner, rule(action(CT)))
        task = owner.post("/fhir/Task", self.order(self.study())).json

        first, second = (handlers.get("process").run(task, doors.server, lambda _: None) for _ in range(2))

        assert [each["id"] for each in first.then] == [each["id"] for each in second.then]

    def test_a_part_of_a_series_stays_a_part(self, doors, owner):
        doors.ingest(*ct_files())
        stored(owner, rule(action(CT)))
        two = [value("instance", "valueId", f"{SERIES}.{n}") for n in (1, 2)]

        run(doors, owner.post("/fhir/Task", self.order(*two)).json)

        (part,) = [each for each in orders(doors) if "partOf" in each]
        assert said(part, "instance") == [f"{SERIES}.1", f"{SERIES}.2"]

    def test_a_rule_that_is_none_of_the_requesters_is_refused(self, doors, owner):
        doors.ingest(*ct_files())
        other = doors.caller(Right.ORDER_PROCESSING, Right.RECEIVE_IMAGES, name="other")
        stored(other, rule(action(CT)))

        response = owner.post("/fhir/Task", self.order(self.study()))

        assert response.status_code == 400
        assert "you have no such active rule" in refusal(response)

    def test_of_several_rules_of_a_url_the_version_is_named(self, doors, owner):
        doors.ingest(*ct_files())
        for version in ("1", "2"):
            stored(owner, rule(action(CT), version=version))

        vague = owner.post("/fhir/Task", self.order(self.study()))
        exact = owner.post("/fhir/Task", self.order(self.study(), instantiatesCanonical=f"{URL}|2"))

        assert (vague.status_code, exact.status_code) == (400, 201)
        assert "name the version" in refusal(vague)

    def test_what_the_rule_says_cannot_be_said_by_the_order(self, doors, owner):
        doors.ingest(*ct_files())
        stored(owner, rule(action(CT)))

        answers = [
            owner.post("/fhir/Task", self.order(self.study(), more))
            for more in (value("keep", "valueCode", "after"), value("thickness_mm", "valueDecimal", 3))
        ]

        assert [each.status_code for each in answers] == [400, 400]
        assert "leave out keep" in refusal(answers[0])

    def test_a_rule_that_acts_on_none_of_the_images_fails_the_order(self, doors, owner):
        doors.ingest(*ct_files())
        stored(owner, rule(action(coded("series.modality", "MR"))))
        task = owner.post("/fhir/Task", self.order(self.study())).json

        with pytest.raises(Exception, match="acts on none of the chosen series"):
            handlers.get("process").run(task, doors.server, lambda _: None)
