"""Hard-copy orders over REST: what may be ordered on which printer, and what comes out."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pikepdf
import pytest
from PIL import Image
from pydicom import Dataset, Sequence
from pydicom.uid import generate_uid

from fhir_server.access.contracts import Right
from fhir_server.delivery import value
from fhir_server.hardcopies import copying, publish
from fhir_server.model import task as tasks
from fhir_server.printers import build
from fhir_server.work import printer_watch
from fhir_server.work.handlers import Done, Later
from fhir_server.work.kinds import handlers
from imaging.derive import to_part10
from tests.support.dicom_builder import instance
from tests.support.doors import Caller, Doors, new_study

ORDERER = (Right.ORDER_HARD_COPY, Right.RECEIVE_IMAGES)
DEVICE = value("device", "valueReference", {"reference": "Device/printer-film"})


def order(*inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    code = {"coding": [{"system": "urn:fhir-imaging:code:task", "code": "hard-copy"}]}
    base = {"resourceType": "Task", "status": "requested", "intent": "order", "code": code, "input": list(inputs)}
    return base | more


def placed(caller: Caller, *inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    response = caller.post("/fhir/Task", order(*inputs, **more))
    assert response.status_code == 201, response.text
    return response.json


def refusal(caller: Caller, *inputs: dict[str, Any], status: int = 400, **more: Any) -> str:
    response = caller.post("/fhir/Task", order(*inputs, **more))
    assert response.status_code == status, response.text
    return response.json["issue"][0]["diagnostics"]


def done(doors: Doors, task: dict[str, Any]) -> dict[str, Any]:
    """Do what a worker does with a placed order, in this process; return the Task at its end."""
    handler = handlers.get(tasks.code_of(task))
    outcome = handler.run(task, doors.server, lambda _: None)
    assert isinstance(outcome, Done), outcome
    own, now = doors.server.own, doors.server.clock()
    started = tasks.start(own.read("Task", task["id"]).json(), tasks.Role.SERVER, now)
    completed = tasks.complete(started, handler.kind, outcome.outputs, tasks.Role.SERVER, now)
    return own.update(tasks.as_failed(completed, outcome.failure) if outcome.failure else completed).json()


def outputs(task: dict[str, Any]) -> dict[str, Any]:
    return {
        tasks.name_of(each): next(content for key, content in each.items() if key.startswith("value"))
        for each in task["output"]
    }


def ct(count: int = 1, **more: Any) -> tuple[str, str, list[bytes]]:
    """Return study and series UID and the files of CT slices."""
    study, files = new_study(instances=count, **more)
    return study, "", files


@pytest.fixture
def folder(tmp_path: Path, doors: Doors) -> Path:
    """The folder of a printer that is registered as `film`."""
    doors.server.printers.add("film", "folder", {"folder": str(tmp_path), "dots_per_inch": 100})
    return tmp_path


@pytest.fixture
def orderer(doors: Doors) -> Caller:
    return doors.caller(*ORDERER, name="orderer")


def study_input(uid: str) -> dict[str, Any]:
    return value("imaging-study", "valueReference", {"reference": f"ImagingStudy/{uid}"})


def text(name: str, content: str) -> dict[str, Any]:
    return value(name, "valueString", content)


def code(name: str, content: str) -> dict[str, Any]:
    return value(name, "valueCode", content)


def pages_in(folder: Path) -> list[Path]:
    return sorted(each for each in folder.glob("*/page-*.png"))


class TestPrinted:
    def test_a_study_comes_out_with_counts_and_its_owner_can_read_them(self, doors, folder, orderer):
        study, files = new_study(instances=5)
        doors.ingest(*files)

        task = done(
            doors, placed(orderer, study_input(study), DEVICE, text("layout", "STANDARD\\2,2"), code("film-size", "A4"))
        )

        assert task["status"] == "completed"
        assert outputs(task) == {"pages": 2, "sheets": 2, "device": {"reference": "Device/printer-film"}}
        first, _ = pages_in(folder)
        with Image.open(first) as page:
            assert page.size == (827, 1169)  # A4 at 100 dots per inch

    def test_copies_are_counted_as_sheets(self, doors, folder, orderer):
        study, files = new_study()
        doors.ingest(*files)

        task = done(doors, placed(orderer, study_input(study), DEVICE, value("copies", "valuePositiveInt", 3)))

        assert (outputs(task)["pages"], outputs(task)["sheets"]) == (1, 3)
        manifest = json.loads(next(folder.glob("*/job.json")).read_text())
        assert manifest["copies"] == 3

    def test_work_that_is_done_twice_prints_once(self, doors, folder, orderer):
        study, files = new_study()
        doors.ingest(*files)
        task = placed(orderer, study_input(study), DEVICE)

        handlers.get("hard-copy").run(task, doors.server, lambda _: None)
        done(doors, task)

        assert len(list(folder.glob("*/job.json"))) == 1

    def test_the_order_goes_along_where_the_printer_takes_it(self, doors, folder, orderer):
        study, files = new_study()
        doors.ingest(*files)

        task = done(doors, placed(orderer, study_input(study), DEVICE))

        (attached,) = folder.glob("*/attachment-1.json")
        assert json.loads(attached.read_text())["id"] == task["id"]

    def test_pixels_are_those_of_the_window_of_the_order(self, doors, folder, orderer):
        """A ramp of 256 values under a window over all of them, one printed pixel for one pixel."""
        ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
        doors.ingest(instance(ramp, modality="OT"))
        inputs = [value("series", "valueId", "1.2.826.0.1.3680043.10.1498.1.1"), DEVICE]
        plain = [value(each, "valueBoolean", False) for each in ("letters", "scale-bar", "captions")]

        done(
            doors,
            placed(orderer, *inputs, *plain, code("magnification", "NONE"), text("window", "127.5,255,linear-exact")),
        )

        (path,) = pages_in(folder)
        page = np.asarray(Image.open(path))
        found = [
            n for n in range(page.shape[0]) if any((page[n, c : c + 256] == ramp[0]).all() for c in _starts(page[n]))
        ]
        assert len(found) == 256

    def test_reverse_polarity_and_empty_boxes_of_a_density(self, doors, folder, orderer):
        doors.ingest(instance(np.zeros((64, 64), np.uint8), modality="OT"))
        inputs = [
            value("series", "valueId", "1.2.826.0.1.3680043.10.1498.1.1"),
            DEVICE,
            text("layout", "STANDARD\\1,2"),
        ]
        densities = [value("density-min", "valueDecimal", 0.2), value("density-max", "valueDecimal", 3.0)]

        done(
            doors,
            placed(
                orderer,
                *inputs,
                *densities,
                code("polarity", "REVERSE"),
                code("empty", "0.2"),
                text("window", "127.5,255"),
            ),
        )

        page = np.asarray(Image.open(pages_in(folder)[0]))
        height, width = page.shape
        assert page[height // 3, width // 2] == 255  # a black image, reversed
        assert page[3 * height // 4, width // 2] == 255  # the empty box in the lowest density


def _starts(row: np.ndarray) -> list[int]:
    return [c for c in range(len(row) - 255) if row[c] == 0 and row[c + 1] == 1]


class TestRefused:
    def test_without_the_right_nothing_is_ordered(self, doors, folder):
        study, files = new_study()
        doors.ingest(*files)
        other = doors.caller(Right.ORDER_PROCESSING, Right.RECEIVE_IMAGES, name="other")

        assert "order-hard-copy" in refusal(other, study_input(study), DEVICE, status=403)

    def test_images_out_of_reach_are_not_found(self, doors, folder):
        study, files = new_study()
        doors.ingest(*files)
        blind = doors.caller(Right.ORDER_HARD_COPY, name="blind")

        response = blind.post("/fhir/Task", order(study_input(study), DEVICE))

        assert response.status_code in (403, 404)

    def test_own_images_may_be_printed_without_reading_others(self, doors, folder):
        study, files = new_study()
        owner = doors.caller(Right.ORDER_HARD_COPY, Right.REGISTER_IMAGES, name="owner")
        doors.ingest(*files, name="owner")
        doors.server.principals.add("owner", [Right.ORDER_HARD_COPY, Right.REGISTER_IMAGES])

        task = done(doors, placed(owner, study_input(study), DEVICE))

        assert task["status"] == "completed"

    def test_the_right_is_asked_again_when_it_is_printed(self, doors, folder, orderer):
        study, files = new_study()
        doors.ingest(*files)
        task = placed(orderer, study_input(study), DEVICE)
        doors.server.principals.add("orderer", [Right.RECEIVE_IMAGES])

        with pytest.raises(Exception, match="order-hard-copy"):
            handlers.get("hard-copy").run(task, doors.server, lambda _: None)
        assert pages_in(folder) == []

    def test_what_is_wrong_with_an_order_names_the_input(self, doors, folder, orderer):
        doors.ingest(instance(np.zeros((8, 8), np.uint8), modality="OT"))
        images = value("series", "valueId", "1.2.826.0.1.3680043.10.1498.1.1")

        assert "name images" in refusal(orderer, DEVICE)
        assert "input 'film-size': one of 8INX10IN" in refusal(orderer, DEVICE, images, code("film-size", "B5"))
        assert "input 'fit': the image says no pixel" in refusal(orderer, DEVICE, images, code("fit", "true-size"))
        resolution = value("resolution", "valuePositiveInt", 333)
        assert "input 'resolution': the printer has 100" in refusal(orderer, DEVICE, images, resolution)

    def test_a_printer_that_is_none_is_named(self, doors, folder, orderer):
        study, files = new_study()
        doors.ingest(*files)
        nowhere = value("device", "valueReference", {"reference": "Device/printer-nowhere"})

        assert "no such printer" in refusal(orderer, study_input(study), nowhere, status=404)

    def test_a_printer_of_others_is_not_for_ones_orders(self, doors, orderer, tmp_path):
        study, files = new_study()
        doors.ingest(*files)
        doors.server.principals.add("theirs", [Right.ORDER_HARD_COPY])
        doors.server.printers.add("film", "folder", {"folder": str(tmp_path)}, subscribers=["theirs"])

        assert "not for your orders" in refusal(orderer, study_input(study), DEVICE, status=403)

    def test_two_patients_are_never_on_one_order(self, doors, folder, orderer):
        doors.ingest(instance(np.zeros((8, 8), np.uint8), study=1), instance(np.zeros((8, 8), np.uint8), study=2))
        both = [value("series", "valueId", f"1.2.826.0.1.3680043.10.1498.{n}.1") for n in (1, 2)]

        assert "not all of one patient" in refusal(orderer, *both, DEVICE)


class TestNamed:
    """Images named one by one, by key objects, by presentation states."""

    SERIES = "1.2.826.0.1.3680043.10.1498.1.1"

    def images(self, doors: Doors, count: int = 3) -> list[str]:
        files = [instance(np.full((8, 8), 50 * n, np.uint8), number=n, modality="OT") for n in range(1, count + 1)]
        doors.ingest(*files)
        return [f"{self.SERIES}.{n}" for n in range(1, count + 1)]

    def greys(self, folder: Path) -> list[int]:
        """The grey in the middle of every box of one page of a column."""
        (path,) = pages_in(folder)
        page = np.asarray(Image.open(path))
        values = [int(each) for each in page[:, page.shape[1] // 2]]
        return [v for v, before in zip(values[1:], values, strict=False) if v != before and v in (50, 100, 150, 200)]

    def test_images_come_in_the_order_of_the_inputs(self, doors, folder, orderer):
        first, second, third = self.images(doors)
        every = [
            text("image", third),
            text("image", f"{first}?window=127.5,255,linear-exact"),
            value("instance", "valueId", second),
        ]
        more = [
            text("layout", "STANDARD\\1,3"),
            text("window", "127.5,255,linear-exact"),
            value("captions", "valueBoolean", False),
        ]

        done(doors, placed(orderer, DEVICE, *every, *more, code("magnification", "REPLICATE")))

        assert self.greys(folder) == [150, 50, 100]

    def test_a_key_object_selection_is_printed_in_its_order(self, doors, folder, orderer):
        first, _, third = self.images(doors)
        doors.ingest(key_objects(self.SERIES, [third, first]))
        more = [
            text("layout", "STANDARD\\1,3"),
            text("window", "127.5,255,linear-exact"),
            value("captions", "valueBoolean", False),
        ]

        done(
            doors,
            placed(
                orderer, DEVICE, value("key-object", "valueId", "1.2.3.77"), *more, code("magnification", "REPLICATE")
            ),
        )

        assert self.greys(folder) == [150, 50]

    def test_a_presentation_state_prints_what_it_refers_to_as_it_says(self, doors, folder, orderer):
        first, *_ = self.images(doors)
        doors.ingest(presentation_state(self.SERIES, first, PresentationLUTShape="INVERSE"))

        done(
            doors,
            placed(
                orderer, DEVICE, value("presentation-state", "valueId", "1.2.3.88"),
                value("captions", "valueBoolean", False), code("magnification", "REPLICATE"),
            ),
        )  # fmt: skip

        (path,) = pages_in(folder)
        assert 205 in np.unique(np.asarray(Image.open(path)))

    def test_what_is_no_presentation_state_is_told(self, doors, folder, orderer):
        first, *_ = self.images(doors)

        words = refusal(orderer, DEVICE, value("presentation-state", "valueId", first), status=400)

        assert "not a grayscale softcopy presentation state" in words


def key_objects(series: str, picked: list[str]) -> bytes:
    items = []
    for uid in picked:
        named = Dataset()
        named.ReferencedSOPClassUID, named.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", uid
        image = Dataset()
        image.ValueType, image.ReferencedSOPSequence = "IMAGE", Sequence([named])
        items.append(image)
    return document("1.2.840.10008.5.1.4.1.1.88.59", "1.2.3.77", "KO", ContentSequence=Sequence(items))


def presentation_state(series: str, uid: str, **more: Any) -> bytes:
    image, of_series = Dataset(), Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", uid
    of_series.SeriesInstanceUID, of_series.ReferencedImageSequence = series, Sequence([image])
    changes = {"PresentationLUTShape": "IDENTITY", "ReferencedSeriesSequence": Sequence([of_series])} | more
    return document("1.2.840.10008.5.1.4.1.1.11.1", "1.2.3.88", "PR", **changes)


def document(sop_class: str, uid: str, modality: str, **attributes: Any) -> bytes:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = sop_class, uid, modality
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.826.0.1.3680043.10.1498.1", generate_uid()
    ds.PatientID, ds.PatientName, ds.StudyDate = "P1", "Test^Person", "20240102"
    for keyword, content in attributes.items():
        setattr(ds, keyword, content)
    return to_part10(ds)


class TestPrinterOutside:
    def test_one_that_is_suspended_is_waited_for(self, doors, folder, orderer):
        study, files = new_study()
        doors.ingest(*files)
        task = placed(orderer, study_input(study), DEVICE)
        doors.server.printers.suspend("film")

        waits = handlers.get("hard-copy").run(task, doors.server, lambda _: None)

        assert isinstance(waits, Later)
        assert waits.reason == "the printer is suspended"
        doors.server.printers.suspend("film", is_suspended=False)
        assert done(doors, task)["status"] == "completed"

    def test_what_was_cancelled_is_given_up_at_the_printer_and_accounted_for(self, doors, folder, orderer):
        study, files = new_study()
        doors.ingest(*files)
        task = placed(orderer, study_input(study), DEVICE)
        printer, jobs = doors.server.printers.get("film"), doors.server.printers.jobs
        jobs.concerns(task["id"], "film", {study: 1})
        with jobs.job(task["id"]) as notes:
            copy = copying(doors.server, acting(doors, task), task, doors.server.printers.device("film").json())
            notes.keep(build(printer).reserve(copy.job()))
        orderer.put(f"/fhir/Task/{task['id']}", task | {"status": "cancelled"})

        printer_watch.look(doors.server, 30)

        assert jobs.open(10) == {}
        assert list(folder.glob("[!.]*")) == []
        assert metered(doors) == [(0, 0)]

    def test_a_job_that_came_out_before_its_order_was_deleted_is_counted(self, doors, folder, orderer):
        study, files = new_study()
        doors.ingest(*files)
        task = placed(orderer, study_input(study), DEVICE)
        handlers.get("hard-copy").run(task, doors.server, lambda _: None)
        doors.server.database["print_jobs"].update_one({"_id": task["id"]}, {"$unset": {"metered": ""}})
        doors.server.own.delete("Task", task["id"])

        printer_watch.look(doors.server, 30)

        assert metered(doors) == [(1, 1)]


def acting(doors: Doors, task: dict[str, Any]) -> Any:
    return doors.server.principals.acting_for(task["requester"]["reference"])


def metered(doors: Doors) -> list[tuple[int, int]]:
    now = doors.server.clock()
    rows = doors.server.printers.jobs.metered(now.replace(year=now.year - 1), now.replace(year=now.year + 1))
    return [(row["pages"], row["sheets"]) for row in rows]


class TestDevice:
    def test_it_says_what_the_printer_can_do_and_how_it_is(self, doors, folder, orderer):
        device = orderer.get("/fhir/Device/printer-film").json

        assert device["status"] == "active"
        assert device["statusReason"][0]["coding"][0]["code"] == "online"
        told = {each["type"]["coding"][0]["code"]: each for each in device["property"]}
        assert "A4" in [each["coding"][0]["code"] for each in told["film-size"]["valueCode"]]
        assert [each["value"] for each in told["resolution"]["valueQuantity"]] == [100, 150, 300, 600]

    def test_asking_again_makes_no_version(self, doors, folder, orderer):
        before = orderer.get("/fhir/Device/printer-film").json["meta"]["versionId"]

        for _ in range(3):
            doors.server.printers.refresh(doors.server.printers.get("film"))

        assert orderer.get("/fhir/Device/printer-film").json["meta"]["versionId"] == before

    def test_who_may_only_order_sees_printers_and_no_other_device(self, doors, folder):
        only = doors.caller(Right.ORDER_HARD_COPY, name="only")
        doors.ingest(*new_study(Manufacturer="Maker", DeviceSerialNumber="7")[1])

        found = only.get("/fhir/Device").json

        assert [each["resource"]["id"] for each in found["entry"]] == ["printer-film"]

    def test_clients_do_not_change_or_delete_it(self, doors, folder):
        both = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="both")
        device = both.get("/fhir/Device/printer-film").json

        changed = both.put("/fhir/Device/printer-film", device | {"type": {"text": "toaster"}})

        assert changed.status_code == 409
        assert both.delete("/fhir/Device/printer-film").status_code == 409

    def test_a_folder_that_is_gone_shows(self, doors, tmp_path, orderer):
        place = tmp_path / "inbox"
        place.mkdir()
        doors.server.printers.add("film", "folder", {"folder": str(place)})
        place.rmdir()

        doors.server.printers.refresh(doors.server.printers.get("film"))

        device = orderer.get("/fhir/Device/printer-film").json
        assert device["statusReason"][0]["coding"][0]["code"] in ("offline", "not-ready")


class TestRecord:
    def test_the_meter_counts_sheets_by_subscriber_and_printer(self, doors, folder, orderer):
        study, files = new_study(instances=3)
        doors.ingest(*files)
        for _ in range(2):
            done(doors, placed(orderer, study_input(study), DEVICE, value("copies", "valuePositiveInt", 2)))

        now = doors.server.clock()
        (row,) = doors.server.printers.jobs.metered(now.replace(year=now.year - 1), now.replace(year=now.year + 1))

        assert (row["orders"], row["pages"], row["sheets"]) == (2, 6, 12)
        assert row["device"] == "Device/printer-film"

    def test_pages_are_counted_under_the_contract_that_lets_them_be_ordered(self, doors, folder, orderer):
        study, files = new_study(instances=3)
        doors.ingest(*files)
        done(doors, placed(orderer, study_input(study), DEVICE))

        server, day = doors.server, doors.clock().date()
        server.usage.write()
        principal = server.principals.authenticate(orderer.token)
        (used,) = [
            each
            for each in server.usage.between(day, day, subscriber=principal.subscriber, by_contract=True)
            if each.counts["pages"]
        ]
        assert used.contract == principal.sources[0].contract
        assert (used.counts["tasks"], used.counts["pages"]) == (1, 3)

    def test_an_audit_event_says_who_printed_how_much_of_what(self, doors, folder, orderer, auditor):
        study, files = new_study()
        doors.ingest(*files)
        task = done(doors, placed(orderer, study_input(study), DEVICE))

        found = auditor.get("/fhir/AuditEvent?type=http://dicom.nema.org/resources/ontology/DCM|110106").json

        (event,) = [each["resource"] for each in found["entry"]]
        entities = {each["what"]["reference"]: each for each in event["entity"] if "reference" in each["what"]}
        assert {"type": "sheets", "valueString": "1"} in entities[f"Task/{task['id']}"]["detail"]
        assert f"ImagingStudy/{study}" in entities


class TestPreview:
    @pytest.fixture
    def draft(self, doors, folder, orderer) -> dict[str, Any]:
        study, files = new_study(instances=3)
        doors.ingest(*files)
        return placed(orderer, study_input(study), DEVICE, text("layout", "STANDARD\\1,2"), status="draft")

    def test_a_draft_is_shown_page_by_page_and_then_released(self, doors, folder, orderer, draft):
        first = orderer.get(f"/fhir/Task/{draft['id']}/$preview?page=1")
        second = orderer.get(f"/fhir/Task/{draft['id']}/$preview?page=2", headers={"Accept": "image/png"})
        assert pages_in(folder) == []
        released = orderer.put(f"/fhir/Task/{draft['id']}", draft | {"status": "requested"}).json
        task = done(doors, released)

        assert (first.status_code, first.mimetype, second.mimetype) == (200, "image/png", "image/png")
        assert 'page=2>; rel="next"' in first.headers["Link"]
        assert "next" not in second.headers["Link"]
        assert first.data != second.data
        assert outputs(task)["pages"] == 2

    def test_it_is_what_is_printed(self, doors, folder, orderer, draft):
        shown = orderer.get(f"/fhir/Task/{draft['id']}/$preview?resolution=300")
        done(doors, orderer.put(f"/fhir/Task/{draft['id']}", draft | {"status": "requested"}).json)

        preview = np.asarray(Image.open(io.BytesIO(shown.data)))  # not finer than the printer, which has 100 dpi
        assert (preview == np.asarray(Image.open(pages_in(folder)[0]))).all()

    def test_pdf_has_all_pages_or_one(self, orderer, draft):
        whole = orderer.get(f"/fhir/Task/{draft['id']}/$preview", headers={"Accept": "application/pdf"})
        one = orderer.get(f"/fhir/Task/{draft['id']}/$preview?_format=pdf&page=2")

        assert whole.mimetype == one.mimetype == "application/pdf"
        with pikepdf.open(io.BytesIO(whole.data)) as many, pikepdf.open(io.BytesIO(one.data)) as single:
            assert (len(many.pages), len(single.pages)) == (2, 1)

    def test_fhir_gets_a_binary(self, orderer, draft):
        found = orderer.get(f"/fhir/Task/{draft['id']}/$preview", headers={"Accept": "application/fhir+json"}).json

        assert (found["resourceType"], found["contentType"]) == ("Binary", "image/png")
        assert base64.b64decode(found["data"])[:4] == b"\x89PNG"

    def test_what_there_is_not_is_told(self, orderer, draft):
        asked = {"page=3": 404, "page=x": 400, "resolution=9999": 400, "zoom=2": 400, "_format=image/gif": 406}

        found = {query: orderer.get(f"/fhir/Task/{draft['id']}/$preview?{query}").status_code for query in asked}

        assert found == asked

    def test_it_needs_the_right_and_reach(self, doors, orderer, draft):
        reader = doors.caller(Right.RECEIVE_IMAGES, name="reader")
        blind = doors.caller(Right.ORDER_HARD_COPY, name="blind")

        assert reader.get(f"/fhir/Task/{draft['id']}/$preview").status_code == 403
        assert blind.get(f"/fhir/Task/{draft['id']}/$preview").status_code == 404
        assert doors.stranger.get(f"/fhir/Task/{draft['id']}/$preview").status_code == 401

    def test_other_tasks_have_none(self, doors, orderer):
        other = doors.caller(Right.ORDER_PROCESSING, Right.ORDER_HARD_COPY, Right.RECEIVE_IMAGES, name="other")
        task = other.post(
            "/fhir/Task",
            {"resourceType": "Task", "status": "draft", "intent": "order", "code": {"coding": [{"code": "walk"}]}},
        ).json

        assert other.get(f"/fhir/Task/{task['id']}/$preview").status_code == 400

    def test_a_page_of_too_many_pixels_is_not_made_in_a_request(self, orderer, draft, monkeypatch):
        monkeypatch.setattr("fhir_server.hardcopies.MOST_SOURCE_PIXELS", 128 * 128)

        assert orderer.get(f"/fhir/Task/{draft['id']}/$preview").status_code == 413

    def test_the_operation_is_defined_where_the_statement_says(self, doors, orderer):
        publish(doors.server.own, doors.server.fhir_url)
        rows = orderer.get("/fhir/metadata").json["rest"][0]["resource"]
        (operation,) = next(row["operation"] for row in rows if row["type"] == "Task")

        definition = orderer.get(operation["definition"].removeprefix("http://images.test"))

        assert (operation["name"], definition.json["code"]) == ("preview", "preview")
        assert definition.json["url"] == operation["definition"]
