"""Processing orders over REST: what may be ordered, what comes of it, and what is told about it."""

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from fhir_server.access.contracts import Right
from fhir_server.delivery import value
from fhir_server.model import task as tasks
from fhir_server.model.peer import Peer, Way
from fhir_server.work.kinds import handlers
from imaging.archive import RECEIVED
from imaging.derive import to_part10
from imaging.errors import AppError
from tests.support.doors import Caller, Doors
from tests.support.volumes import ct_files, slice_dataset

STUDY, SERIES = "1.2.3.4", "1.2.3.4.5"
UCUM = "http://unitsofmeasure.org"
RECEIVER = Peer("pacs", "", Way.STOW, "https://receiver.example/dicom-web")
ORDERER = (Right.ORDER_PROCESSING, Right.RECEIVE_IMAGES)


def order(*inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    code = {"coding": [{"system": "urn:fhir-imaging:code:task", "code": "process"}]}
    return {
        "resourceType": "Task",
        "status": "requested",
        "intent": "order",
        "code": code,
        "input": list(inputs),
    } | more


def mip(*more: dict[str, Any], study: bool = True) -> list[dict[str, Any]]:
    images = [value("imaging-study", "valueReference", {"reference": f"ImagingStudy/{STUDY}"})] if study else []
    return [value("algorithm", "valueString", "slab|1"), value("thickness_mm", "valueDecimal", 1000), *images, *more]


def run(doors: Doors, task: dict[str, Any]) -> dict[str, Any]:
    """Do what a worker does with a placed order, in this process; return the completed Task."""
    handler = handlers.get(tasks.code_of(task))
    done = handler.run(task, doors.server, lambda _: None)
    now = doors.server.clock()
    own = doors.server.own
    started = tasks.start(own.read("Task", task["id"]).json(), tasks.Role.SERVER, now)
    completed = tasks.complete(started, handler.kind, done.outputs, tasks.Role.SERVER, now)
    return own.update(completed, guard=own.creating(done.then)).json()


def outputs(task: dict[str, Any], name: str) -> list[Any]:
    found = [each for each in task["output"] if tasks.name_of(each) == name]
    return [next(content for key, content in each.items() if key.startswith("value")) for each in found]


def placed(caller: Caller, *inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    response = caller.post("/fhir/Task", order(*inputs, **more))
    assert response.status_code == 201, response.text
    return response.json


@pytest.fixture
def orderer(doors: Doors) -> Caller:
    return doors.caller(*ORDERER, name="orderer")


def refusal(response: Any) -> str:
    return response.json["issue"][0]["diagnostics"]


def series_of(doors: Doors, uid: str) -> Sequence[Any]:
    found = doors.server.archive.chosen(series=[uid], limit=1000)
    return [dcmread(BytesIO(b"".join(doors.server.archive.file(each, RECEIVED)))) for each in found]


class TestResult:
    def test_a_mip_of_a_study_is_a_new_series_of_it_with_the_known_values(self, doors, orderer):
        doors.ingest(*ct_files())

        done = run(doors, placed(orderer, *mip()))

        (uid,) = outputs(done, "series")
        (projected,) = series_of(doors, uid)
        assert projected.StudyInstanceUID == STUDY
        assert (projected.pixel_array * projected.RescaleSlope + projected.RescaleIntercept == -900).all()
        study = orderer.get(f"/fhir/ImagingStudy/{STUDY}").json
        assert {each["uid"] for each in study["series"]} == {SERIES, uid}
        assert orderer.get(f"/dicom-web/studies/{STUDY}/series/{uid}").status_code == 200

    def test_it_is_told_what_was_applied_to_what_with_version_and_parameters(self, doors, orderer):
        doors.ingest(*ct_files())

        done = run(doors, placed(orderer, *mip()))

        assert outputs(done, "performed")[0].startswith("Slab projection (MIP, MinIP, mean) (slab 1: ")
        (reference,) = outputs(done, "provenance")
        told = orderer.get(f"/fhir/{reference['reference']}").json
        extension = {each["url"]: each.get("valueString") for each in told["extension"][0]["extension"]}
        assert (extension["algorithm"], extension["version"]) == ("slab", "1")
        assert {"code": "113078", "system": "http://dicom.nema.org/resources/ontology/DCM"}.items() <= told["activity"][
            "coding"
        ][0].items()
        assert told["target"][0]["reference"] == f"ImagingStudy/{STUDY}"
        assert told["entity"][0]["what"]["identifier"]["value"] == f"urn:oid:{SERIES}"

    def test_work_that_is_done_twice_makes_one_result(self, doors, orderer):
        doors.ingest(*ct_files())
        task = placed(orderer, *mip())

        handlers.get("process").run(task, doors.server, lambda _: None)
        first = doors.server.archive.count()
        done = run(doors, task)

        assert doors.server.archive.count() == first == 7
        assert len(orderer.get(f"/fhir/Provenance?target=ImagingStudy/{STUDY}").json["entry"]) == 1
        assert len(outputs(done, "series")) == 1

    def test_images_one_by_one_make_one_series(self, doors, orderer):
        doors.ingest(*ct_files())
        smoothed = [value("algorithm", "valueString", "median"), value("series", "valueId", SERIES)]

        done = run(doors, placed(orderer, *smoothed))

        (uid,) = outputs(done, "series")
        assert len(series_of(doors, uid)) == 6

    def test_a_modality_lut_that_is_a_table_is_applied_however_large_it_is(self, doors, orderer):
        """Slice n, from 0, holds 10 n; entry k of the table is 3 k."""
        table = Dataset()
        table.LUTDescriptor, table.ModalityLUTType = [2048, 0, 16], "US"
        table.add_new("LUTData", "OW", (3 * np.arange(2048, dtype="<u2")).tobytes())
        files = [dcmread(BytesIO(each)) for each in ct_files(PixelRepresentation=0, ModalityLUTSequence=[table])]
        for each in files:
            del each.RescaleSlope, each.RescaleIntercept
        doors.ingest(*map(to_part10, files))

        done = run(doors, placed(orderer, *mip()))

        (projected,) = series_of(doors, outputs(done, "series")[0])
        assert (projected.pixel_array * projected.RescaleSlope + projected.RescaleIntercept == 150).all()
        assert "ModalityLUTSequence" not in projected

    def test_each_image_has_its_own_table(self, doors, orderer):
        """Tables that lie aside look alike in what is told of the images; entry k of that of slice n is n k."""
        files = [dcmread(BytesIO(each)) for each in ct_files(PixelRepresentation=0)]
        for n, each in enumerate(files):
            table = Dataset()
            table.LUTDescriptor, table.ModalityLUTType = [2048, 0, 16], "US"
            table.add_new("LUTData", "OW", (n * np.arange(2048, dtype="<u2")).tobytes())
            each.ModalityLUTSequence = [table]
            del each.RescaleSlope, each.RescaleIntercept
        doors.ingest(*map(to_part10, files))

        done = run(doors, placed(orderer, *mip()))

        (projected,) = series_of(doors, outputs(done, "series")[0])
        assert (projected.pixel_array * projected.RescaleSlope + projected.RescaleIntercept == 250).all()

    def test_a_part_is_instances_frames_and_a_region(self, doors, orderer):
        doors.ingest(*ct_files())
        part = [
            value("algorithm", "valueString", "median"), value("region", "valueString", "1,0,3,2"),
            value("instance", "valueId", f"{SERIES}.2"), value("instance", "valueId", f"{SERIES}.3"),
            value("frames", "valueString", "1"),
        ]  # fmt: skip

        done = run(doors, placed(orderer, *part))

        made = series_of(doors, outputs(done, "series")[0])
        assert [(ds.Rows, ds.Columns) for ds in made] == [(2, 3), (2, 3)]
        assert [float(each) for each in made[0].ImagePositionPatient] == [0.25, 0.0, 2.0]

    def test_frames_are_taken_as_they_are_written(self, doors, orderer):
        ds = slice_dataset(
            (0, 0, 0), 1, SOPClassUID="1.2.840.10008.5.1.4.1.1.12.1", Modality="XA", StudyInstanceUID=STUDY,
            SeriesInstanceUID=SERIES, NumberOfFrames=5, RescaleSlope=1, RescaleIntercept=0,
        )  # fmt: skip
        del ds.ImagePositionPatient, ds.ImageOrientationPatient
        ds.PixelData = np.repeat(np.arange(1, 6, dtype=np.int16) * 10, 20).tobytes()
        ds["PixelData"].VR = "OW"
        doors.ingest(to_part10(ds))
        part = [value("algorithm", "valueString", "median"), value("frames", "valueString", "4,1-2")]

        done = run(doors, placed(orderer, *part, value("series", "valueId", SERIES)))

        made = series_of(doors, outputs(done, "series")[0])
        assert [float(each.pixel_array.mean()) for each in made] == [40, 10, 20]
        assert [each.SourceImageSequence[0].ReferencedFrameNumber for each in made] == [4, 1, 2]

    def test_the_focus_of_a_task_is_a_study_to_process(self, doors, orderer):
        doors.ingest(*ct_files())

        task = placed(orderer, *mip(study=False), focus={"reference": f"ImagingStudy/{STUDY}"})

        assert len(outputs(run(doors, task), "series")) == 1

    def test_everything_that_a_search_finds_is_processed(self, doors, orderer):
        doors.ingest(*ct_files(), *ct_files(4, "1.2.3.9", "1.2.3.9.1"))

        done = run(
            doors, placed(orderer, *mip(value("search", "valueString", "ImagingStudy?modality=CT"), study=False))
        )

        assert len(outputs(done, "series")) == 2
        assert len(outputs(done, "imaging-study")) == 2

    def test_results_of_processing_are_not_processed_again_with_their_study(self, doors, orderer):
        doors.ingest(*ct_files())
        run(doors, placed(orderer, *mip()))

        done = run(doors, placed(orderer, *mip()))

        assert len(outputs(done, "series")) == 1

    def test_a_series_of_a_study_that_cannot_be_processed_is_told_and_stops_nobody(self, doors, orderer):
        doors.ingest(*ct_files(), *ct_files(1, series="1.2.3.4.6", ImagePositionPatient=None))

        done = run(doors, placed(orderer, *mip()))

        assert len(outputs(done, "series")) == 1
        (told,) = outputs(done, "refused")
        assert "1.2.3.4.6" in told

    def test_a_segmentation_and_its_measurements_are_stored(self, doors, orderer):
        doors.ingest(*ct_files())
        region = [value("center_mm", "valueDecimal", each) for each in (0.5, 0.75, 4)]
        half = [value("half_size_mm", "valueDecimal", each) for each in (0.6, 0.8, 2.5)]
        images = [value("algorithm", "valueString", "roi-measure"), value("series", "valueId", SERIES)]

        done = run(doors, placed(orderer, *images, *region, *half))

        kinds = {str(ds.Modality) for uid in outputs(done, "series") for ds in series_of(doors, uid)}
        assert kinds == {"SEG", "SR"}

    def test_parameters_that_the_images_state_need_not_be_ordered(self, doors, orderer):
        tracer = Dataset()
        tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = 7e6, 6586.2
        doors.ingest(
            *ct_files(
                SOPClassUID="1.2.840.10008.5.1.4.1.1.128",
                Modality="PT",
                Units="BQML",
                DecayCorrection="ADMIN",
                PatientWeight=70,
                RescaleSlope=1,
                RescaleIntercept=0,
                RadiopharmaceuticalInformationSequence=[tracer],
            )
        )
        suv = [value("algorithm", "valueString", "suv"), value("series", "valueId", SERIES)]

        done = run(doors, placed(orderer, *suv))

        # 10 n Bq/ml in slice n; 70,000 g / 7 MBq.
        made = series_of(doors, outputs(done, "series")[0])
        values = [float((ds.pixel_array * ds.RescaleSlope + ds.RescaleIntercept).mean()) for ds in made]
        assert values == pytest.approx([0.1 * n for n in range(6)], abs=1e-4)
        assert "weight_kg=70.0" in outputs(done, "performed")[0]

    def test_what_images_do_not_state_has_to_be_ordered(self, doors, orderer):
        doors.ingest(*ct_files())
        suv = [value("algorithm", "valueString", "suv"), value("series", "valueId", SERIES)]

        with pytest.raises(AppError, match=r"is required: weight of the patient \(weight_kg\)"):
            run(doors, placed(orderer, *suv))

    def test_two_registered_series_give_images_and_a_registration(self, doors, orderer):
        rng = np.random.default_rng(1)
        pixels = rng.integers(0, 1000, (12, 16, 16)).astype(np.int16)
        files = []
        for series in ("1.2.3.4.7", "1.2.3.4.8"):
            for n, plane in enumerate(pixels):
                ds = slice_dataset(
                    (0, 0, 2.0 * n), n + 1, StudyInstanceUID=STUDY, SeriesInstanceUID=series, PixelSpacing=[2, 2],
                    SOPInstanceUID=f"{series}.{n + 1}", Rows=16, Columns=16, SliceThickness=2,
                )  # fmt: skip
                ds.PixelData = plane.tobytes()
                ds["PixelData"].VR = "OW"
                files.append(to_part10(ds))
        doors.ingest(*files)
        both = [value("series", "valueId", uid) for uid in ("1.2.3.4.8", "1.2.3.4.7")]

        done = run(doors, placed(orderer, value("algorithm", "valueString", "rigid-registration"), *both))

        kinds = sorted({str(ds.Modality) for uid in outputs(done, "series") for ds in series_of(doors, uid)})
        assert kinds == ["CT", "REG"]


class TestRestriction:
    OTHER = "1.2.3.9"

    @pytest.fixture
    def patients(self, doors) -> list[str]:
        """Two studies of two patients, whose references are returned."""
        doors.ingest(*ct_files(), *ct_files(4, self.OTHER, f"{self.OTHER}.1", PatientID="P2"))
        doors.server.studies.catch_up()
        own = doors.server.own
        return [own.read("ImagingStudy", uid).json()["subject"]["reference"] for uid in (STUDY, self.OTHER)]

    def test_of_what_a_search_finds_the_images_of_the_patients_are_processed(self, doors, orderer, patients):
        search = value("search", "valueString", "ImagingStudy?modality=CT")
        restriction = {"recipient": [{"reference": patients[1]}]}

        done = run(doors, placed(orderer, *mip(search, study=False), restriction=restriction))

        assert outputs(done, "imaging-study") == [{"reference": f"ImagingStudy/{self.OTHER}"}]

    def test_images_of_another_patient_are_refused(self, doors, orderer, patients):
        restriction = {"recipient": [{"reference": patients[1]}]}

        response = orderer.post("/fhir/Task", order(*mip(), restriction=restriction))

        assert response.status_code == 400
        assert "other patients than this study's" in refusal(response)

    def test_an_order_for_a_patient_gets_no_images_of_another(self, doors, orderer, patients):
        about = [{"for": {"reference": each}} for each in (patients[1], f"https://here.example/fhir/{patients[0]}")]
        search = mip(value("search", "valueString", "ImagingStudy?modality=CT"), study=False)

        wrong, right = (orderer.post("/fhir/Task", order(*mip(), **each)) for each in about)
        found = run(doors, placed(orderer, *search, **about[0]))

        assert (wrong.status_code, right.status_code) == (400, 201)
        assert "other patients than this study's" in refusal(wrong)
        assert outputs(found, "imaging-study") == [{"reference": f"ImagingStudy/{self.OTHER}"}]

    def test_an_order_is_not_for_another_patient_than_it_is_restricted_to(self, orderer, patients):
        restriction = {"recipient": [{"reference": patients[1]}]}
        about = {"reference": patients[0]}

        response = orderer.post("/fhir/Task", order(*mip(), restriction=restriction, **{"for": about}))

        assert response.status_code == 400
        assert "another Patient than it is restricted to" in refusal(response)

    def test_a_study_of_which_nothing_is_named_is_not_left_out_in_silence(self, orderer, patients):
        other = value("imaging-study", "valueReference", {"reference": f"ImagingStudy/{self.OTHER}"})

        response = orderer.post("/fhir/Task", order(*mip(other, value("series", "valueId", SERIES))))

        assert response.status_code == 400
        assert f"names no series or instance; leave it out, or name a part of it ({self.OTHER})" in refusal(response)

    def test_a_result_goes_to_no_other_organisation_than_those_of_the_restriction(self, doors, patients):
        owner = doors.caller(*Right, name="owner")
        (subscriber,) = [each for each in doors.server.principals.subscribers() if each.name == "owner"]
        endpoint = doors.server.endpoints.add(RECEIVER, "owner")[0].endpoint
        inputs = mip(value("deliver-to", "valueReference", {"reference": endpoint}))
        wanted, other = (
            {"recipient": [{"reference": each}]} for each in (subscriber.organization, "Organization/other")
        )

        assert owner.post("/fhir/Task", order(*inputs, restriction=wanted)).status_code == 201
        response = owner.post("/fhir/Task", order(*inputs, restriction=other))

        assert response.status_code == 400
        assert "restricted to other recipients" in refusal(response)

    @pytest.mark.parametrize(
        ("restriction", "words"),
        [
            ({"recipient": [{"reference": "Practitioner/1"}]}, "restricted to a Patient"),
            ({"repetitions": 2}, "an order is done once"),
        ],
    )
    def test_what_is_not_understood_is_refused(self, doors, orderer, patients, restriction, words):
        response = orderer.post("/fhir/Task", order(*mip(), restriction=restriction))

        assert response.status_code == 400
        assert words in refusal(response)


WHO = {"PatientID": "P1", "PatientName": "Smith^Anna", "AccessionNumber": "A4711"}


def test_progress_is_told_stage_by_stage_and_only_grows(doors, orderer):
    doors.ingest(*ct_files(), *ct_files(series="1.2.3.4.6"))
    told: list[tasks.Progress] = []

    handlers.get("process").run(placed(orderer, *mip()), doors.server, told.append)

    assert [each.percent for each in told] == sorted(each.percent for each in told)
    assert (told[0].percent, told[0].step) == (0, "series 1 of 2: reading and computing")
    assert "series 2 of 2: 1 results stored" in [each.step for each in told]
    assert max(each.percent for each in told) < 100


class TestDeIdentification:
    """Copies in which nobody is named, in studies of their own."""

    @staticmethod
    def wanted(*more: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            value("algorithm", "valueString", "de-identify"),
            value("imaging-study", "valueReference", {"reference": f"ImagingStudy/{STUDY}"}),
            *more,
        ]

    def test_a_copy_of_the_study_names_nobody_and_has_uids_of_its_own(self, doors, orderer):
        doors.ingest(*ct_files(**WHO), *ct_files(2, series="1.2.3.4.6", **WHO))

        done = run(doors, placed(orderer, *self.wanted()))

        (study,) = outputs(done, "imaging-study")
        copies = [ds for uid in outputs(done, "series") for ds in series_of(doors, uid)]
        assert len(outputs(done, "series")) == 2
        assert len(copies) == 8
        assert {f"ImagingStudy/{ds.StudyInstanceUID}" for ds in copies} == {study["reference"]} != {STUDY}
        assert {ds.PatientIdentityRemoved for ds in copies} == {"YES"}
        said = "".join(str(ds) for ds in copies)
        assert not any(told in said for told in ("Smith", "A4711", STUDY, SERIES))
        assert np.array_equal(copies[1].pixel_array, np.full((4, 5), 10))  # pixels stay

    def test_nothing_but_the_order_leads_from_the_copy_to_what_it_was_made_of(self, doors, orderer):
        doors.ingest(*ct_files(**WHO))

        done = run(doors, placed(orderer, *self.wanted()))

        (provenance,) = outputs(done, "provenance")
        (study,) = outputs(done, "imaging-study")
        shown = [orderer.get(f"/fhir/{each['reference']}").json for each in (provenance, study)]
        subject = orderer.get(f"/fhir/{shown[1]['subject']['reference']}").json
        text = "".join(map(str, [*shown, subject]))
        assert "113100" in text
        assert not any(told in text for told in ("Smith", "A4711", f"'{STUDY}'", f"oid:{STUDY}", f"oid:{SERIES}"))
        assert subject["identifier"][0]["value"] != "P1"

    def test_orders_for_one_recipient_give_one_copy_and_for_another_one_another(self, doors):
        owner = doors.caller(*Right, name="owner")
        doors.caller(Right.RECEIVE_IMAGES, name="clinic")
        doors.ingest(*ct_files(**WHO), name="owner")
        mine, theirs = (
            doors.server.endpoints.add(replace(RECEIVER, name=name), subscriber)[0].endpoint
            for name, subscriber in (("mine", "owner"), ("theirs", "clinic"))
        )
        recipients = [[value("deliver-to", "valueReference", {"reference": each})] for each in (mine, mine, theirs)]

        done = [run(doors, placed(owner, *self.wanted(*to))) for to in ([], *recipients)]

        studies = [outputs(each, "imaging-study")[0]["reference"] for each in done]
        assert studies[0] == studies[1] == studies[2] != studies[3]
        assert doors.server.archive.count() == 3 * 6

    def test_of_a_series_that_cannot_be_cleaned_nothing_is_stored(self, doors, orderer):
        files = ct_files(3, **WHO)
        files[2] = ct_files(3, BurnedInAnnotation="YES", **WHO)[2]
        doors.ingest(*files)

        ordered = [value("algorithm", "valueString", "de-identify"), value("series", "valueId", SERIES)]
        with pytest.raises(AppError, match="text is burned in"):
            run(doors, placed(orderer, *ordered))

        assert doors.server.archive.count() == 3

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ([value("region", "valueString", "0,0,2,2")], "does not go with frames or a region"),
            ([value("rectangle", "valueString", "0,0,2,2")], "with clean_pixels only"),
            (
                [value("deliver-to", "valueReference", {"reference": f"Endpoint/peer-{name}"}) for name in "ab"],
                "an order for each",
            ),
        ],
    )
    def test_what_does_not_fit_is_told_when_it_is_ordered(self, doors, orderer, more, words):
        doors.ingest(*ct_files())

        response = orderer.post("/fhir/Task", order(*self.wanted(*more)))

        assert (response.status_code, words in refusal(response)) == (400, True), response.text


class TestWhatIsKept:
    def test_after_removes_the_originals_once_the_result_is_there(self, doors):
        owner = doors.caller(*Right, name="owner")
        doors.ingest(*ct_files(), name="owner")

        done = run(doors, placed(owner, *mip(value("keep", "valueCode", "after"))))
        (discard,) = doors.server.own.search(_part_of(done)).matches
        assert doors.server.archive.count() == 7
        removed = run(doors, discard.json())

        assert outputs(removed, "removed") == [6]
        assert [each["uid"] for each in owner.get(f"/fhir/ImagingStudy/{STUDY}").json["series"]] == outputs(
            done, "series"
        )

    def test_before_removes_the_result_only_after_its_delivery(self, doors):
        owner = doors.caller(*Right, name="owner")
        doors.ingest(*ct_files(), name="owner")
        endpoint = doors.server.endpoints.add(RECEIVER, "owner")[0].endpoint
        inputs = mip(
            value("keep", "valueCode", "before"), value("deliver-to", "valueReference", {"reference": endpoint})
        )

        done = run(doors, placed(owner, *inputs))

        follow = {tasks.code_of(each.json()): each.json() for each in doors.server.own.search(_part_of(done)).matches}
        assert set(follow) == {"deliver", "discard"}
        with pytest.raises(Exception, match="under way"):
            handlers.get("discard").run(follow["discard"], doors.server, lambda _: None)
        doors.server.own.update(follow["deliver"] | {"status": "completed"})
        removed = run(doors, follow["discard"])
        assert outputs(removed, "removed") == [1]
        assert doors.server.archive.count() == 6

    def test_nothing_is_removed_when_a_delivery_failed(self, doors):
        owner = doors.caller(*Right, name="owner")
        doors.ingest(*ct_files(), name="owner")
        endpoint = doors.server.endpoints.add(RECEIVER, "owner")[0].endpoint
        inputs = mip(
            value("keep", "valueCode", "after"), value("deliver-to", "valueReference", {"reference": endpoint})
        )
        done = run(doors, placed(owner, *inputs))
        follow = {tasks.code_of(each.json()): each.json() for each in doors.server.own.search(_part_of(done)).matches}

        doors.server.own.update(follow["deliver"] | {"status": "failed"})
        kept = run(doors, follow["discard"])

        assert outputs(kept, "removed") == [0]
        assert doors.server.archive.count() == 7

    def test_nobody_has_images_of_others_removed(self, doors):
        doors.ingest(*ct_files())
        other = doors.caller(*Right, name="other")

        response = other.post("/fhir/Task", order(*mip(value("keep", "valueCode", "after"))))

        assert response.status_code == 403
        assert "registered all of them" in refusal(response)


class TestRefusals:
    def test_a_plan_is_not_done_before_it_is_an_order(self, doors, orderer):
        doors.ingest(*ct_files())
        draft = orderer.post("/fhir/Task", order(*mip(), intent="plan", status="draft")).json
        address, version = f"/fhir/Task/{draft['id']}", {"If-Match": f'W/"{draft["meta"]["versionId"]}"'}

        placed_plan = orderer.post("/fhir/Task", order(*mip(), intent="plan"))
        as_plan = orderer.put(address, draft | {"status": "requested"}, headers=version)
        as_order = orderer.put(address, draft | {"status": "requested", "intent": "order"}, headers=version)

        assert (placed_plan.status_code, as_plan.status_code, as_order.status_code) == (400, 400, 200)
        assert "the intent plan is not to be done" in refusal(placed_plan)

    @pytest.mark.parametrize(
        ("inputs", "words"),
        [
            ([value("keep", "valueCode", "both")], "name one algorithm"),
            ([value("algorithm", "valueString", "slab")], "name images"),
            ([value("algorithm", "valueString", "magic")], "there are: bilateral"),
            ([value("algorithm", "valueString", "slab|99")], "version 1 only"),
            ([value("algorithm", "valueInteger", 1)], "valueString or a valueUri"),
            (mip(value("thicknes", "valueDecimal", 1)), "'thicknes' is not known"),
            (mip(value("step_mm", "valueDecimal", -5)), "step_mm"),
            (mip(value("step_mm", "valueString", "5")), "valueDecimal or a valueInteger or a valueQuantity"),
            (
                mip(value("step_mm", "valueQuantity", {"value": 5, "system": UCUM, "code": "cm"})),
                "the unit has to be mm",
            ),
            (
                mip(value("step_mm", "valueQuantity", {"value": 5, "system": UCUM, "code": "mm", "comparator": "<"})),
                "one value expected, without comparator",
            ),
            (mip(value("projection", "valueCode", "median")), "maximum, minimum, mean"),
            (
                [
                    *(value("algorithm", "valueString", "threshold"), *mip()[2:]),
                    *(value("low", "valueDecimal", 5), value("high", "valueDecimal", 1)),
                ],
                "is above the highest value (low)",
            ),
            (mip(value("search", "valueString", "ImagingStudy?colour=1"), study=False), "unknown for ImagingStudy"),
            (mip(value("keep", "valueCode", "none")), "before, after, both"),
            (mip(value("keep", "valueCode", "before")), "deliver-to"),
            (mip(value("frames", "valueString", "3-1")), "frame numbers"),
            (mip(value("region", "valueString", "1,2,3")), "left,top,width,height"),
            (mip(value("search", "valueString", "ImagingStudy?modality=CT")), "a search goes alone"),
            (mip(value("search", "valueString", "Patient?name=x")), "a search such as"),
            (mip(value("series", "valueId", "no-uid")), "a UID expected"),
            (mip(value("imaging-study", "valueReference", {"reference": "Patient/1"})), "ImagingStudy expected"),
            (
                mip(value("keep", "valueCode", "after"), value("frames", "valueString", "1")),
                "does not go with frames or a region",
            ),
        ],
    )
    def test_a_wrong_input_is_named_when_the_order_is_placed(self, doors, orderer, inputs, words):
        doors.ingest(*ct_files())

        response = orderer.post("/fhir/Task", order(*inputs))

        assert response.status_code == 400, response.text
        assert words in refusal(response)

    @pytest.mark.parametrize(
        "images",
        [
            value("imaging-study", "valueReference", {"reference": "ImagingStudy/9.9"}),
            value("series", "valueId", "9.9.9"),
            value("instance", "valueId", "9.9.9.9"),
        ],
    )
    def test_images_that_are_not_here_are_not_found(self, doors, orderer, images):
        response = orderer.post("/fhir/Task", order(value("algorithm", "valueString", "median"), images))

        assert response.status_code == 404

    def test_a_quantity_in_its_own_unit_is_welcome(self, doors, orderer):
        doors.ingest(*ct_files())

        placed(orderer, *mip(value("step_mm", "valueQuantity", {"value": 5, "system": UCUM, "code": "mm"})))

    def test_what_an_algorithm_cannot_do_fails_the_order_with_the_reason(self, doors, orderer):
        uneven = ct_files()
        doors.ingest(*[each for n, each in enumerate(uneven) if n != 3])
        task = placed(orderer, *mip(value("series", "valueId", SERIES), study=False))

        with pytest.raises(Exception, match="1 of 6 slices are missing"):
            handlers.get("process").run(task, doors.server, lambda _: None)

    def test_without_the_right_nothing_is_ordered(self, doors):
        doors.ingest(*ct_files())
        sender = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="no orders")

        response = sender.post("/fhir/Task", order(*mip()))

        assert response.status_code == 403
        assert "order-processing" in refusal(response)

    def test_who_only_orders_reaches_its_own_images_and_no_others(self, doors):
        doors.ingest(*ct_files(), name="sender")
        rights = (Right.REGISTER_IMAGES, Right.ORDER_PROCESSING)
        mine, others = doors.caller(*rights, name="sender"), doors.caller(*rights, name="stranger")

        assert mine.post("/fhir/Task", order(*mip())).status_code == 201
        response = others.post("/fhir/Task", order(*mip()))

        assert response.status_code in (403, 404)

    def test_who_only_orders_reads_what_was_made_for_it_and_nothing_else(self, doors, orderer):
        doors.ingest(*ct_files(), name="sender")
        rights = (Right.REGISTER_IMAGES, Right.ORDER_PROCESSING)
        mine, stranger = doors.caller(*rights, name="sender"), doors.caller(*rights, name="stranger")
        ((own,), (others,)) = (outputs(run(doors, placed(each, *mip())), "provenance") for each in (mine, orderer))

        assert mine.get(f"/fhir/{own['reference']}").json["agent"][0]["onBehalfOf"]["reference"]
        found = mine.get("/fhir/Provenance").json["entry"]
        assert [each["resource"]["id"] for each in found] == [own["reference"].removeprefix("Provenance/")]
        assert mine.get(f"/fhir/{others['reference']}").status_code == 404
        assert stranger.get(f"/fhir/{own['reference']}").status_code == 404
        assert "entry" not in stranger.get(f"/fhir/Provenance?target=ImagingStudy/{STUDY}").json
        assert mine.get(f"/fhir/ImagingStudy/{STUDY}").status_code == 403

    def test_an_order_of_a_subscriber_that_was_suspended_is_not_done(self, doors, orderer):
        doors.ingest(*ct_files())
        task = placed(orderer, *mip())
        doors.server.principals.suspend("orderer")

        with pytest.raises(Exception, match="suspended"):
            handlers.get("process").run(task, doors.server, lambda _: None)

    def test_clients_place_no_removals(self, doors):
        everything = doors.caller(*Right, name="all")
        task = order(value("series", "valueId", SERIES)) | {"code": {"coding": [{"code": "discard"}]}}

        assert everything.post("/fhir/Task", task).status_code == 403


def _part_of(task: dict[str, Any]) -> Any:
    from fhir_server.model.query import parse

    return parse("Task", [("part-of", f"Task/{task['id']}")])
