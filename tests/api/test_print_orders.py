"""Who serves printers gets the images of the orders that it prints, while it prints them, and nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pymongo.database import Database

from fhir_server.access.contracts import Right
from fhir_server.delivery import value
from fhir_server.hardcopy.devices import properties
from imaging.printer import Capabilities, Medium
from tests.support.doors import Caller, Doors, new_study, opened

DEVICE = value("device", "valueReference", {"reference": "Device/printer-ward"})
QIDO = {"Accept": "application/dicom+json"}
FILES = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
SOP, SERIES = "00080018", "0020000E"
# What the agent's token opens nowhere else, of the very study that it prints.
ELSEWHERE = [
    *("/fhir/ImagingStudy/{study}", "/fhir/ImagingStudy", "/fhir/Patient", "/fhir/Patient/{patient}"),
    *("/fhir/Patient/{patient}/$everything", "/fhir/Observation", "/fhir/Endpoint", "/fhir/Contract"),
    *("/fhir/AuditEvent", "/dicom-web/studies/{study}/series"),
    *("/fhir/Task/{order}/$preview", "/fhir/Provenance", "/fhir/Device/printer-other", "/fhir/Subscription"),
    *("/dicom-web/studies", "/dicom-web/series", "/dicom-web/instances", "/dicom-web/studies/{study}"),
    *("/dicom-web/studies/{study}/metadata", "/dicom-web/studies/{study}/rendered"),
    *("/dicom-web/{instance}", "/dicom-web/{instance}/frames/1", "/dicom-web/{instance}/rendered"),
    *("/dicom-web/{instance}/received", "/dicom-web/{instance}/thumbnail", "/dicom-web/{instance}/metadata"),
    "/dicom-web/wado?requestType=WADO&studyUID={study}&seriesUID={series}&objectUID={sop}",
    *("/dicom-web/deidentified/studies", "/dicom-web/deidentified/studies/{study}"),
    *("/dicom-web/print-orders/{other_order}/instances", "/dicom-web/print-orders/nobody/instances"),
    "/dicom-web/print-orders/{order}/studies/{study}/metadata",
    "/dicom-web/print-orders/{order}/studies/{study}",
    "/dicom-web/print-orders/{order}/{instance}/rendered",
    "/dicom-web/print-orders/{order}/{other_instance}",
]  # fmt: skip


@dataclass
class Scene:
    """The radiology orders on two printers; each is served by the agent of a site of its own."""

    doors: Doors
    orderer: Caller
    agent: Caller
    neighbour: Caller
    study: str
    uids: list[tuple[str, str]]  # of series and instance

    def order(self, *inputs: dict[str, Any], device: dict[str, Any] = DEVICE) -> str:
        code = {"coding": [{"system": "urn:fhir-imaging:code:task", "code": "hard-copy"}]}
        task = {
            "resourceType": "Task",
            "status": "requested",
            "intent": "order",
            "code": code,
            "input": [*inputs, device],
        }
        placed = self.orderer.post("/fhir/Task", task)
        assert placed.status_code == 201, placed.text
        return str(placed.json["id"])

    def moved(self, order: str, status: str, *, by: Caller | None = None, **more: Any) -> None:
        agent = by or self.agent
        task = agent.get(f"/fhir/Task/{order}").json
        match = {"If-Match": f'W/"{task["meta"]["versionId"]}"'}
        response = agent.put(f"/fhir/Task/{order}", {**task, "status": status, **more}, headers=match)
        assert response.status_code == 200, response.text

    def seen(self, order: str, by: Caller | None = None) -> set[str]:
        found = (by or self.agent).get(f"/dicom-web/print-orders/{order}/instances", headers=QIDO)
        assert found.status_code == 200, found.text
        return {row[SOP]["Value"][0] for row in found.json}

    def status(self, path: str, by: Caller | None = None) -> int:
        response = (by or self.agent).get(path)
        response.close()
        return int(response.status_code)


@pytest.fixture(scope="module")
def scene(module_db: Database[dict[str, Any]]) -> Iterator[Scene]:
    with opened(module_db) as doors:
        orderer = doors.caller(Right.ORDER_HARD_COPY, Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="radiology")
        agents = [doors.caller(Right.SERVE_PRINTERS, name=name) for name in ("ward site", "other site")]
        study, files = new_study(series=2, instances=2)
        stored = doors.ingest(*files, name="radiology")
        for name, agent, site in zip(("ward", "other"), agents, ("ward site", "other site"), strict=True):
            doors.server.printers.add(name, "agent", {}, agent=site)
            doors.clock.forward(seconds=2)
            device = agent.get(f"/fhir/Device/printer-{name}").json
            has = Capabilities(film_sizes=("A4",), media=(Medium.PAPER,), dots_per_inch=(100,))
            told = {**{each: it for each, it in device.items() if each != "statusReason"}, "property": properties(has)}
            told = agent.put(f"/fhir/Device/printer-{name}", {**told, "status": "active"})
            assert told.status_code == 200, told.text
        uids = [(each.summary.series_uid, each.summary.sop_uid) for each in stored]
        yield Scene(doors, orderer, *agents, study, uids)


def images(uid: str) -> dict[str, Any]:
    return value("imaging-study", "valueReference", {"reference": f"ImagingStudy/{uid}"})


def test_agent_gets_the_images_of_an_order_from_its_claim_to_its_end(scene: Scene) -> None:
    order = scene.order(images(scene.study))
    listed = scene.agent.get("/fhir/Task?owner=Device/printer-ward&code=hard-copy&status=requested").json
    paths = [
        f"/dicom-web/print-orders/{order}/studies/{scene.study}/series/{series}/instances/{sop}"
        for series, sop in scene.uids
    ]

    assert [each["resource"]["id"] for each in listed["entry"]] == [order]
    assert [scene.status(path) for path in (f"/dicom-web/print-orders/{order}/instances", *paths)] == [409] * 5
    scene.moved(order, "in-progress")
    assert scene.seen(order) == {sop for _, sop in scene.uids}
    assert [scene.status(path) for path in paths] == [200] * 4
    scene.moved(order, "failed", statusReason={"text": "out of paper"})
    assert [scene.status(path) for path in (f"/dicom-web/print-orders/{order}/instances", *paths)] == [404] * 5


def test_part_of_a_study_is_that_part(scene: Scene) -> None:
    (series, first), (_, second) = scene.uids[:2]
    order = scene.order(value("instance", "valueId", first))
    scene.moved(order, "in-progress")

    base = f"/dicom-web/print-orders/{order}"
    found = scene.agent.get(f"{base}/series?SeriesInstanceUID={series}", headers=QIDO).json
    others = scene.agent.get(f"{base}/series?SeriesInstanceUID={scene.uids[2][0]}", headers=QIDO)

    assert scene.seen(order) == {first}
    assert [row[SERIES]["Value"][0] for row in found] == [series]
    assert others.status_code == 204
    assert scene.status(f"{base}/studies/{scene.study}/series/{series}/instances/{first}") == 200
    assert scene.status(f"{base}/studies/{scene.study}/series/{series}/instances/{second}") == 404
    # pages are made of what is of the order
    page = scene.agent.get(f"{base}/instances?limit=1&offset=0", headers=QIDO)
    assert len(page.json) == 1
    assert scene.agent.get(f"{base}/instances?limit=1&offset=1", headers=QIDO).status_code == 204


@pytest.mark.parametrize("path", ELSEWHERE)
def test_agent_gets_nothing_at_any_other_door(scene: Scene, claimed: dict[str, str], path: str) -> None:
    assert scene.status(path.format(**claimed)) in (403, 404)


@pytest.fixture(scope="module")
def claimed(scene: Scene) -> dict[str, str]:
    """An order that the agent prints, one that the neighbour prints, and images of each."""
    other_study, files = new_study()
    (other,) = scene.doors.ingest(*files, name="radiology")
    order = scene.order(images(scene.study))
    scene.moved(order, "in-progress")
    to_other = value("device", "valueReference", {"reference": "Device/printer-other"})
    other_order = scene.order(images(other_study), device=to_other)
    scene.moved(other_order, "in-progress", by=scene.neighbour)
    assert scene.seen(order)
    assert scene.seen(other_order, by=scene.neighbour)
    series, sop = scene.uids[0]
    patient = scene.orderer.get(f"/fhir/ImagingStudy/{scene.study}").json["subject"]["reference"].partition("/")[2]
    return {
        "study": scene.study, "series": series, "sop": sop, "patient": patient, "order": order,
        "instance": f"studies/{scene.study}/series/{series}/instances/{sop}", "other_order": other_order,
        "other_instance": f"studies/{other_study}/series/{other.summary.series_uid}/instances/{other.summary.sop_uid}",
    }  # fmt: skip


def test_nobody_else_gets_the_images_of_the_order(scene: Scene, claimed: dict[str, str]) -> None:
    path = f"/dicom-web/print-orders/{claimed['order']}/instances"

    assert scene.status(path, by=scene.neighbour) == 404
    assert scene.status(path, by=scene.orderer) == 403
    assert scene.status(path, by=scene.doors.stranger) == 401


def test_agent_orders_nothing_and_changes_no_order_of_others(scene: Scene, claimed: dict[str, str]) -> None:
    other = scene.neighbour.get(f"/fhir/Task/{claimed['other_order']}").json
    mine = scene.agent.get(f"/fhir/Task/{claimed['order']}").json

    match = {"If-Match": f'W/"{other["meta"]["versionId"]}"'}
    stolen = scene.agent.put(f"/fhir/Task/{other['id']}", {**other, "status": "failed"}, headers=match)
    assert stolen.status_code in (403, 404)
    assert scene.agent.post("/fhir/Task", {**mine, "status": "requested"}).status_code == 403
    assert scene.agent.delete(f"/fhir/Task/{mine['id']}").status_code in (403, 404)
    assert [each["resource"]["id"] for each in scene.agent.get("/fhir/Device").json["entry"]] == ["printer-ward"]


def test_images_that_the_requester_may_not_have_printed_any_more_are_not_given(scene: Scene) -> None:
    leaving = scene.doors.caller(Right.ORDER_HARD_COPY, Right.RECEIVE_IMAGES, name="leaving")
    scene.doors.server.principals.add("leaving", [Right.ORDER_HARD_COPY, Right.RECEIVE_IMAGES])
    left = Scene(scene.doors, leaving, scene.agent, scene.neighbour, scene.study, scene.uids)
    order = left.order(images(scene.study))
    scene.moved(order, "in-progress")

    scene.doors.server.principals.suspend("leaving")

    assert scene.status(f"/dicom-web/print-orders/{order}/instances") == 403


def test_what_goes_out_is_counted_and_recorded(scene: Scene, claimed: dict[str, str]) -> None:
    assert scene.status(f"/dicom-web/print-orders/{claimed['order']}/{claimed['instance']}") == 200

    server, day = scene.doors.server, scene.doors.clock().date()
    server.usage.write()
    principal = server.principals.authenticate(scene.agent.token)
    rows = server.usage.between(day, day, subscriber=principal.subscriber, by_contract=True)
    counts = {each.contract: each.counts["instances-out"] for each in rows}
    assert counts[principal.sources[0].contract] >= 1
