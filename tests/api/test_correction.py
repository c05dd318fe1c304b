"""Attributes that were wrong, corrected beside what was received. Source: PS3.3 C.12.1, C.12.1.1.9."""

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_charset_files, get_testdata_file
from pydicom.encaps import generate_frames

from fhir_server.access.contracts import Right
from fhir_server.work.maintenance import Maintenance
from imaging.correctable import CORRECTABLE, Level
from imaging.errors import AppError
from tests.support.dicomweb import files_of, parts_of
from tests.support.doors import Caller, Doors, dicom, new_study, opened

Json = dict[str, Any]
PAGE = Path(__file__).parents[2] / "docs/howto/correct-attributes.md"
EXPLICIT, IMPLICIT, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"
STORED = "1.2.840.10008.1.2.4.202"


@pytest.fixture(scope="module")
def doors(module_db) -> Iterator[Doors]:
    with opened(module_db) as made:
        yield made


@pytest.fixture(scope="module")
def both(doors: Doors) -> Caller:
    return doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="both")


def study_of(doors: Doors, *, name: str = "both", **more: Any) -> tuple[str, list[bytes]]:
    uid, files = new_study(**more)
    doors.ingest(*files, name=name)
    doors.server.studies.project(uid)
    return uid, files


def asked(values: Mapping[str, str | Sequence[str]], **more: Any) -> Json:
    rows: list[Json] = []
    for keyword, value in values.items():
        texts = [value] if isinstance(value, str) else value
        parts = [{"name": "keyword", "valueCode": keyword}, *({"name": "value", "valueString": each} for each in texts)]
        rows.append({"name": "attribute", "part": parts})
    for name, value in more.items():
        rows.append(
            {"name": name, {bool: "valueBoolean", int: "valuePositiveInt"}.get(type(value), "valueString"): value}
        )
    return {"resourceType": "Parameters", "parameter": rows}


def correct(caller: Caller, uid: str, values: Mapping[str, str | Sequence[str]], **more: Any) -> Any:
    return caller.post(f"/fhir/ImagingStudy/{uid}/$correct", asked(values, **more))


def uncorrect(caller: Caller, uid: str, **more: Any) -> Any:
    return caller.post(f"/fhir/ImagingStudy/{uid}/$uncorrect", asked({}, **more))


def of(answer: Any, name: str) -> list[Json]:
    assert answer.status_code == 200, answer.text
    return [each for each in answer.json["parameter"] if each["name"] == name]


def wado(caller: Caller, path: str, syntax: str = "*") -> Dataset:
    answer = caller.get(f"/dicom-web{path}", headers={"Accept": f"application/dicom; transfer-syntax={syntax}"})
    assert answer.status_code == 200, answer.text
    return dcmread(io.BytesIO(answer.data))


def address(file: bytes) -> str:
    ds = dcmread(io.BytesIO(file), stop_before_pixels=True)
    return f"/studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"


def metadata(caller: Caller, path: str) -> list[Json]:
    return list(caller.get(f"/dicom-web{path}/metadata", headers={"Accept": "application/dicom+json"}).json)


# ---- what is told


def test_study_patient_metadata_and_search_say_what_is_right(doors, both):
    uid, _ = study_of(doors, PatientID="wrong-1", PatientName="Doe^Jon", StudyDescription="Hed", instances=2)
    before = both.get(f"/fhir/ImagingStudy/{uid}").json
    right = {
        "PatientID": "right-1",
        "PatientName": "Doe^John",
        "StudyDescription": "Head",
        "BodyPartExamined": "HEAD",
    }

    answer = correct(both, uid, right, reason="typed wrongly")

    (result,) = of(answer, "result")
    assert result["resource"]["description"] == "Head"
    assert "2 instances" in of(answer, "outcome")[0]["resource"]["issue"][0]["diagnostics"]
    changed = {row["part"][0]["valueCode"]: row["part"][1:] for row in of(answer, "changed")}
    assert changed["PatientName"] == [
        {"name": "before", "valueString": "Doe^Jon"}, {"name": "after", "valueString": "Doe^John"},
    ]  # fmt: skip
    subject = result["resource"]["subject"]["reference"]
    assert subject != before["subject"]["reference"]
    patient = both.get(f"/fhir/{subject}").json
    assert (patient["identifier"][0]["value"], patient["name"][0]["family"]) == ("right-1", "Doe")
    assert result["resource"]["series"][0]["bodySite"]["display"] == "Head"
    for told in metadata(both, f"/studies/{uid}"):
        assert told["00100010"]["Value"] == [{"Alphabetic": "Doe^John"}]
        (item,) = told["04000561"]["Value"]
        assert item["04000550"]["Value"][0]["00100020"]["Value"] == ["wrong-1"]
        assert item["04000565"]["Value"] == ["CORRECT"]
    found = both.get("/dicom-web/studies?PatientID=right-1&StudyDescription=Head").json
    assert [each["0020000D"]["Value"] for each in found] == [[uid]]
    assert both.get("/dicom-web/studies?PatientID=wrong-1").status_code == 204
    assert both.get("/dicom-web/series?BodyPartExamined=HEAD&PatientID=right-1").json
    assert both.get(f"/fhir/ImagingStudy?patient={subject}").json["entry"][0]["resource"]["id"] == uid


def test_one_series_or_one_instance_can_be_corrected_and_found_by_it(doors, both):
    uid, files = study_of(doors, series=2, instances=2)
    series = [dcmread(io.BytesIO(file), stop_before_pixels=True).SeriesInstanceUID for file in files]
    instance = dcmread(io.BytesIO(files[3]), stop_before_pixels=True).SOPInstanceUID

    assert correct(both, uid, {"SeriesDescription": "lateral"}, series=series[0]).status_code == 200
    assert correct(
        both, uid, {"ContentDate": "20250101"}, series=series[3], instance=instance
    ).status_code == 200  # fmt: skip

    told = both.get(f"/fhir/ImagingStudy/{uid}").json["series"]
    assert [each.get("description") == "lateral" for each in told] == [True, False]
    found = both.get(f"/dicom-web/studies/{uid}/instances?ContentDate=20250101").json
    assert [each["00080018"]["Value"] for each in found] == [[instance]]
    assert ["04000561" in each for each in metadata(both, f"/studies/{uid}")] == [True, True, False, True]


def test_a_patient_that_only_these_images_made_is_corrected_and_another_is_not(doors, both):
    alone, _ = study_of(doors, PatientID="made-1", PatientName="Rigt^A")
    shared, _ = study_of(doors, PatientID="made-2", PatientName="Rigt^B")
    study_of(doors, PatientID="made-2", PatientName="Rigt^B")
    patients = [both.get(f"/fhir/ImagingStudy/{uid}").json["subject"]["reference"] for uid in (alone, shared)]

    for uid in (alone, shared):
        assert correct(both, uid, {"PatientName": "Right^C"}).status_code == 200

    names = [both.get(f"/fhir/{each}").json["name"][0]["family"] for each in patients]
    assert names == ["Right", "Rigt"]
    assert uncorrect(both, alone).status_code == 200
    assert both.get(f"/fhir/{patients[0]}").json["name"][0]["family"] == "Rigt"


def test_it_is_on_record(doors, both):
    uid, _ = study_of(doors)
    version = both.get(f"/fhir/ImagingStudy/{uid}").json["meta"]["versionId"]

    assert correct(both, uid, {"AccessionNumber": "A-1"}, reason="wrong order", code="COERCE").status_code == 200

    (entry,) = both.get(f"/fhir/Provenance?target=ImagingStudy/{uid}").json["entry"]
    told = entry["resource"]
    assert told["reason"][0]["coding"][0]["code"] == "COERCE"
    assert told["reason"][0]["text"] == "wrong order"
    assert told["agent"][0]["who"]["reference"] == doors.server.principals.named("both")
    assert told["entity"][0]["what"]["reference"] == f"ImagingStudy/{uid}/_history/{version}"
    assert told["activity"]["text"] == "correction 1: AccessionNumber"
    auditor = doors.caller(Right.AUDIT, name="auditor")
    assert auditor.get(f"/fhir/AuditEvent?entity=ImagingStudy/{uid}&action=U").json["total"]


def test_a_study_that_was_moved_has_its_header_corrected_by_a_correction_alone(doors, both):
    uid, (file,) = study_of(doors, PatientID="moved-1", PatientName="Wrong^Entry")
    other, _ = study_of(doors, PatientID="moved-2", PatientName="Right^Entry^M", PatientBirthDate="19700131")
    patient = both.get(f"/fhir/ImagingStudy/{other}").json["subject"]["reference"]
    move = {"resourceType": "Parameters", "parameter": [{"name": "patient", "valueReference": {"reference": patient}}]}

    def told() -> tuple[str, str, str, str]:
        ds, subject = wado(both, address(file)), both.get(f"/fhir/ImagingStudy/{uid}").json["subject"]["reference"]
        return subject, ds.PatientID, str(ds.PatientName), ds.PatientBirthDate

    assert both.post(f"/fhir/ImagingStudy/{uid}/$move", move).status_code == 200
    assert told() == (patient, "moved-1", "Wrong^Entry", "")
    assert correct(both, uid, {}, **{"from-patient": True}).status_code == 200
    assert told() == (patient, "moved-2", "Right^Entry^M", "19700131")
    assert len(both.get("/dicom-web/studies?PatientID=moved-2").json) == 2
    assert correct(both, uid, {"PatientID": "moved-3"}).status_code == 200
    assert told()[:2] == (patient, "moved-3")  # whose it is was decided, whatever its header says


def test_headers_after_a_merge_can_be_those_of_the_patient_that_stays(doors, both):
    uid, (file,) = study_of(doors, PatientID="gone-1", PatientName="Gone^A")
    other, _ = study_of(doors, PatientID="stays-1", PatientName="Stays^A")
    old, new = (both.get(f"/fhir/ImagingStudy/{each}").json["subject"]["reference"] for each in (uid, other))
    names = [("source-patient", old), ("target-patient", new)]
    merge = [{"name": name, "valueReference": {"reference": each}} for name, each in names]

    assert both.post("/fhir/Patient/$merge", {"resourceType": "Parameters", "parameter": merge}).status_code == 200
    assert correct(both, uid, {"PatientSex": "F"}, **{"from-patient": True}).status_code == 200

    ds = wado(both, address(file))
    assert (ds.PatientID, str(ds.PatientName), ds.PatientSex) == ("stays-1", "Stays^A", "F")
    assert ds.OriginalAttributesSequence[0].ModifiedAttributesSequence[0].PatientID == "gone-1"
    assert both.get(f"/fhir/ImagingStudy/{uid}").json["subject"]["reference"] == new


# ---- what is given


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED, STORED, "*"])
def test_files_say_what_is_right_and_what_was_with_the_same_pixels(doors, both, syntax):
    uid, (file,) = study_of(doors, PatientName="Wrong^Name", PatientID=f"given-{syntax}")
    before = wado(both, address(file), syntax)

    assert correct(both, uid, {"PatientName": "Müller^Änne", "PatientSex": []}).status_code == 200

    ds = wado(both, address(file), syntax)
    assert (str(ds.PatientName), ds.PatientSex, ds.SpecificCharacterSet) == ("Müller^Änne", "", "ISO_IR 192")
    (item,) = ds.OriginalAttributesSequence
    (was,) = item.ModifiedAttributesSequence
    assert (str(was.PatientName), was.PatientSex) == ("Wrong^Name", "O")
    assert (item.ModifyingSystem, item.ReasonForTheAttributeModification) == ("fhir-imaging-server", "CORRECT")
    assert item.AttributeModificationDateTime
    assert "SourceOfPreviousValues" in item
    assert ds.file_meta.TransferSyntaxUID == before.file_meta.TransferSyntaxUID
    assert ds.PixelData == before.PixelData
    assert {each.tag for each in ds} - {each.tag for each in before} == {0x04000561}


def test_the_received_file_and_its_digest_stay(doors, both):
    uid, (file,) = study_of(doors)
    correct(both, uid, {"PatientName": "Other^Name"})

    answer = both.get(f"/dicom-web{address(file)}/received")

    assert answer.data == file
    assert not list(doors.server.archive.verify())
    (instance,) = doors.server.archive.instances(uid)
    assert instance.sha256_received == hashlib.sha256(file).hexdigest()


@pytest.mark.parametrize("name", ["JPEG-LL.dcm", "chrH31.dcm", "rtplan.dcm", "SC_rgb_rle_16bit.dcm", "image_dfl.dcm"])
def test_files_that_are_kept_in_other_ways_are_given_corrected_too(doors, both, name):
    path = get_testdata_file(name) or get_charset_files(name)[0]
    file = Path(path).read_bytes()
    ds = dcmread(path, stop_before_pixels=True)
    if "StudyInstanceUID" not in ds:
        pytest.skip("no composite instance")
    doors.ingest(file, name="both")
    doors.server.studies.project(ds.StudyInstanceUID)

    assert correct(both, ds.StudyInstanceUID, {"PatientID": "4711"}).status_code == 200

    given = wado(both, address(file), str(ds.file_meta.TransferSyntaxUID))
    assert given.PatientID == "4711"
    was = given.OriginalAttributesSequence[-1].ModifiedAttributesSequence[0]
    assert was.get("PatientID") == ds.get("PatientID")
    assert given.get("PixelData") == dcmread(path).get("PixelData")
    assert given.PatientName == ds.PatientName


def test_a_zip_a_uri_and_a_whole_study_are_corrected(doors, both):
    uid, (file,) = study_of(doors, PatientID="ways-1")
    correct(both, uid, {"PatientID": "ways-2"})

    accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
    study = both.get(f"/dicom-web/studies/{uid}", headers={"Accept": accept}).data
    packed = both.get(f"/dicom-web/studies/{uid}", headers={"Accept": "application/zip"}).data
    _, _, _, series, _, sop = address(file).split("/")[1:]
    uri = f"/dicom-web/wado?requestType=WADO&studyUID={uid}&seriesUID={series}&objectUID={sop}"
    alone = dcmread(io.BytesIO(both.get(f"{uri}&contentType=application/dicom").data))

    assert study.count(b"ways-2") == study.count(b"ways-1") == 1  # the value, and what it was
    assert packed.startswith(b"PK")
    assert alone.PatientID == "ways-2"


def test_who_kept_a_file_hears_that_it_has_changed(doors, both):
    uid, (file,) = study_of(doors)
    headers = {"Accept": "application/dicom; transfer-syntax=*"}
    tag = both.get(f"/dicom-web{address(file)}", headers=headers).headers["ETag"]

    def status() -> int:
        return int(both.get(f"/dicom-web{address(file)}", headers={**headers, "If-None-Match": tag}).status_code)

    assert status() == 304
    correct(both, uid, {"StudyID": "7"})
    assert status() == 200


def test_without_names_the_right_patient_id_makes_the_pseudonym(doors, both):
    wrong, _ = study_of(doors, PatientID="alias-1", PatientName="Aliased^Wrongly")
    study_of(doors, PatientID="alias-2", PatientName="Aliased^Rightly")
    recipient = doors.caller(Right.RECEIVE_DEIDENTIFIED, name="registry")

    def values(tag: str) -> set[str]:
        headers = {"Accept": "application/dicom+json"}
        found = recipient.get("/dicom-web/deidentified/studies?limit=100", headers=headers).json
        return {each[tag]["Value"][0] for each in found}

    before = len(values("00100020"))
    assert correct(both, wrong, {"PatientID": "alias-2", "PatientName": "Aliased^Rightly"}).status_code == 200

    assert len(values("00100020")) == before - 1
    accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
    raw = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
    compared = 0
    for uid in values("0020000D"):
        answer = recipient.get(f"/dicom-web/deidentified/studies/{uid}", headers={"Accept": accept})
        assert not [name for name in (b"Aliased", b"alias-1", b"alias-2") if name in answer.data]
        if answer.status_code == 403:
            continue  # another test's, which no program can clean
        whole = [each for each in files_of(answer) if "PixelData" in each]
        if not whole:
            continue
        compared += 1
        frames = parts_of(recipient.get(f"/dicom-web/deidentified/studies/{uid}/pixeldata", headers={"Accept": raw}))
        files = [next(generate_frames(each.PixelData, number_of_frames=1)) for each in whole]
        assert [each.rstrip(b"\0") for each in files] == [body.rstrip(b"\0") for _, body in frames]
    assert compared >= 2


# ---- what comes later


def test_new_images_are_corrected_and_the_sender_is_told(doors, both):
    uid, (first,) = study_of(doors, PatientID="later-1", instances=1)
    correct(both, uid, {"PatientID": "later-2", "PatientName": "Later^Too"})
    more = dicom(StudyInstanceUID=uid, SeriesInstanceUID="1.2.3.9.1", SOPInstanceUID="1.2.3.9.2", PatientID="later-1")
    right = dicom(
        StudyInstanceUID=uid, SeriesInstanceUID="1.2.3.9.1", SOPInstanceUID="1.2.3.9.3",
        PatientID="later-2", PatientName="Later^Too",
    )  # fmt: skip

    answers = []
    for file in (more, right):
        body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n--b--"
        kind = 'multipart/related; type="application/dicom"; boundary=b'
        headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
        answers.append(both.call("POST", "/dicom-web/studies", data=body, headers=headers))

    assert [each.status_code for each in answers] == [202, 200]
    (told,) = answers[0].json["00081199"]["Value"]
    assert told["00081196"]["Value"] == [0xB000]  # coercion of data elements, PS3.18 table I.2-1
    assert told["04000561"]["Value"][0]["04000550"]["Value"][0]["00100020"]["Value"] == ["later-1"]
    study = both.get(f"/fhir/ImagingStudy/{uid}").json
    assert study["numberOfInstances"] == 3
    assert both.get(f"/fhir/{study['subject']['reference']}").json["identifier"][0]["value"] == "later-2"
    assert wado(both, address(more)).PatientID == "later-2"
    assert "OriginalAttributesSequence" not in wado(both, address(right))
    assert address(first)


# ---- taking back


def test_corrections_lie_upon_one_another_and_each_can_be_taken_back(doors, both):
    uid, (file,) = study_of(doors, StudyDescription="one", StudyID="1")
    correct(both, uid, {"StudyDescription": "two", "StudyID": "2"})
    correct(both, uid, {"StudyDescription": "three"})

    items = wado(both, address(file)).OriginalAttributesSequence
    assert [each.ModifiedAttributesSequence[0].StudyDescription for each in items] == ["one", "two"]
    assert uncorrect(both, uid, correction=1).json["description"] == "three"
    ds = wado(both, address(file))
    assert (ds.StudyID, ds.StudyDescription, len(ds.OriginalAttributesSequence)) == ("1", "three", 1)
    assert uncorrect(both, uid, reason="right after all").json["description"] == "one"

    assert wado(both, address(file), EXPLICIT) == dcmread(io.BytesIO(file))
    assert both.get(f"/dicom-web/studies?StudyInstanceUID={uid}&StudyID=1").json
    assert uncorrect(both, uid).status_code == 409
    assert uncorrect(both, uid, correction=1).status_code == 409
    assert both.get(f"/fhir/Provenance?target=ImagingStudy/{uid}&_summary=count").json["total"] == 4


def test_the_same_again_and_a_preview_write_nothing(doors, both):
    uid, _ = study_of(doors)
    assert not of(correct(both, uid, {"StudyID": "5"}, preview=True), "correction")
    assert both.get(f"/fhir/Provenance?target=ImagingStudy/{uid}&_summary=count").json["total"] == 0

    assert of(correct(both, uid, {"StudyID": "5"}), "correction")[0]["valuePositiveInt"] == 1

    again = correct(both, uid, {"StudyID": "5"})
    assert not of(again, "correction")
    assert "nothing to correct" in of(again, "outcome")[0]["resource"]["issue"][0]["diagnostics"]


# ---- what is refused


@pytest.mark.parametrize(
    ("values", "more", "status"),
    [
        ({}, {}, 400),
        ({"StudyInstanceUID": "1.2.3"}, {}, 400),
        ({"SOPInstanceUID": "1.2.3"}, {}, 400),
        ({"Rows": "7"}, {}, 400),
        ({"PixelSpacing": ["1", "1"]}, {}, 400),
        ({"ImageOrientationPatient": ["1"]}, {}, 400),
        ({"NoSuchKeyword": "1"}, {}, 400),
        ({"PatientBirthDate": "1970-01-01"}, {}, 400),
        ({"PatientSex": "X"}, {}, 400),
        ({"AccessionNumber": "x" * 17}, {}, 400),
        ({"StudyID": ["1", "2"]}, {}, 400),
        ({"StudyDescription": "a\\b"}, {}, 400),
        ({"StudyDescription": "a\x07"}, {}, 400),
        ({"StudyID": "1"}, {"code": "BECAUSE"}, 400),
        ({"StudyID": "1"}, {"reason": "x" * 501}, 400),
        ({"StudyID": "1"}, {"series": "1.2.3"}, 400),
        ({"SeriesDescription": "1"}, {"series": "1.2.3"}, 404),
        ({"SeriesDescription": "1"}, {"series": "no uid"}, 400),
        ({"ContentDate": "20250101"}, {"instance": "1.2.3"}, 400),
        ({"StudyID": "1"}, {"colour": "red"}, 400),
    ],
)
def test_bad_input_is_refused_and_no_value_is_told(doors, both, values, more, status):
    uid, _ = REFUSED.get("study") or REFUSED.setdefault("study", study_of(doors))

    answer = correct(both, uid, values, **more)

    assert answer.status_code == status, answer.text
    assert "1970-01-01" not in answer.text
    assert doors.server.archive.decisions.of(uid) is None


def test_who_may_not_change_the_study_or_give_it_to_that_patient_is_refused(doors, both):
    uid, _ = study_of(doors, PatientID="mine-1")
    reader = doors.caller(Right.RECEIVE_IMAGES, name="reader")
    stranger = doors.caller(Right.REGISTER_IMAGES, name="stranger")

    assert correct(reader, uid, {"StudyID": "1"}).status_code == 403
    assert correct(stranger, uid, {"StudyID": "1"}).status_code in (403, 404)
    assert correct(doors.stranger, uid, {"StudyID": "1"}).status_code == 401
    assert both.get(f"/fhir/ImagingStudy/{uid}/$correct").status_code in (404, 405)


def test_a_study_without_images_is_changed_by_an_update(both):
    study = {"resourceType": "ImagingStudy", "status": "available", "subject": {"display": "somebody"}}
    made = both.post("/fhir/ImagingStudy", study).json

    assert correct(both, made["id"], {"StudyID": "1"}).status_code == 409


REFUSED: dict[str, Any] = {}


# ---- crashes and races


@pytest.mark.parametrize("step", ["mark", "update", "patch", "done", "attempt"])
def test_what_was_cut_off_is_finished(doors, both, monkeypatch, step):
    uid, (file,) = study_of(doors, PatientID=f"crash-{step}", PatientName="Rong^Name")
    server = doors.server
    place = {"mark": server.archive, "done": type(server.archive.decisions), "attempt": server.studies}
    owner = place.get(step, server.own)

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(owner) if owner is server.own else owner, step, die)
        with pytest.raises(KeyboardInterrupt):
            correct(both, uid, {"PatientName": "Wrong^Name"})
    assert wado(both, address(file)).PatientName == "Wrong^Name"  # decided, hence true

    Maintenance(server)._finish_decisions()

    study = both.get(f"/fhir/ImagingStudy/{uid}").json
    assert both.get(f"/fhir/{study['subject']['reference']}").json["name"][0]["family"] == "Wrong"
    assert both.get(f"/fhir/Provenance?target=ImagingStudy/{uid}&_summary=count").json["total"] == 1
    assert both.get(f"/dicom-web/studies?StudyInstanceUID={uid}&PatientName=Wrong*").json
    assert not server.archive.decisions.open(1)


def test_who_decides_second_at_the_same_moment_hears_of_it(doors, both):
    uid, _ = study_of(doors)
    correct(both, uid, {"StudyID": "1"})
    decisions = doors.server.archive.decisions
    (first,) = decisions.of(uid).decisions

    with pytest.raises(AppError, match="somebody else decided first"):
        decisions.add(uid, first)
    assert len(decisions.of(uid).decisions) == 1


def test_the_examples_of_the_page_do_what_it_says_and_its_table_is_the_codes(doors, both):
    text = PAGE.read_text()
    uid, (file,) = study_of(doors, PatientID="page", StudyDescription="before")
    first, second, third = (json.loads(each) for each in re.findall(r"```json\n(.*?)```", text, re.S))

    assert re.findall(r"^POST /fhir/ImagingStudy/1.2.840.1/\$(\w+)$", text, re.M) == ["correct", "uncorrect"]
    assert both.post(f"/fhir/ImagingStudy/{uid}/$correct", first).status_code == 200
    ds = wado(both, address(file))
    assert (str(ds.PatientName), ds.PatientBirthDate, ds.StudyDescription) == ("Müller^Änne", "19700131", "")
    assert both.post(f"/fhir/ImagingStudy/{uid}/$uncorrect", second).status_code == 200
    assert wado(both, address(file)).StudyDescription == "before"
    assert not of(both.post(f"/fhir/ImagingStudy/{uid}/$correct", third), "correction")  # it is as its Patient says
    rows = dict(re.findall(r"^\| (study|series|instance) \| (.*) \|$", text, re.M))
    assert rows == {
        str(level): ", ".join(name for name, row in CORRECTABLE.items() if row.level is level) for level in Level
    }


def test_a_study_that_is_sent_again_is_corrected_as_before(doors, both):
    uid, (file,) = study_of(doors, PatientID="again-1")
    correct(both, uid, {"PatientID": "again-2"})

    assert both.delete(f"/dicom-web/studies/{uid}").status_code == 204
    doors.server.archive.delete(uid)
    assert both.get(f"/fhir/ImagingStudy/{uid}").status_code == 410
    doors.ingest(file, name="both")

    assert both.get("/dicom-web/studies?PatientID=again-2").json
    assert wado(both, address(file)).PatientID == "again-2"


def test_what_was_cut_off_ends_also_when_the_images_are_gone(doors, both, monkeypatch):
    uid, _ = study_of(doors)
    with monkeypatch.context() as patched:
        patched.setattr(doors.server.archive, "mark", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            correct(both, uid, {"StudyID": "9"})
    doors.server.archive.delete(uid)
    doors.server.studies.project(uid)

    Maintenance(doors.server)._finish_decisions()

    assert not doors.server.archive.decisions.open(1)


def test_while_somebody_else_decides_the_worker_leaves_it_for_later(doors, both):
    leases, corrections = doors.server.reconciliation._leases, doors.server.corrections
    uid, _ = study_of(doors)
    correct(both, uid, {"StudyID": "9"})
    doors.server.database["corrections"].update_one({"_id": uid}, {"$set": {"open": True}})
    held = leases.claim("reconcile", "somebody else", 60)

    with pytest.raises(AppError, match="another reconciliation"):
        corrections.finish()
    leases.finish(held)

    assert corrections.finish() == 1
