"""What the archive promises, on a real database, with real images."""

import hashlib
import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pymongo.database import Database

import imaging.archive.contents
import imaging.archive.frames
from imaging.archive import RECEIVED, STORED, Archive, Refused, Stored
from imaging.blobs.gridfs import GridFsBlobs
from imaging.dataset import InstanceSummary
from imaging.dicomweb import Level, parse_query
from imaging.errors import AppError, Category
from tests.support.doors import new_study

EXPLICIT_LE = "1.2.840.10008.1.2.1"
IMPLICIT_LE = "1.2.840.10008.1.2"
HTJ2K_RPCL = "1.2.840.10008.1.2.4.202"
SOMEBODY = "Organization/somebody"


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def archive(db: Database[dict[str, Any]], clock: Clock) -> Iterator[Archive]:
    made = Archive(db, GridFsBlobs(db), clock=clock)
    made.ensure_indexes()
    yield made
    made.close()


def file_of(name: str, **changes: Any) -> bytes:
    ds = dcmread(str(get_testdata_file(name)))
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    if "SOPInstanceUID" in changes:
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    out = io.BytesIO()
    ds.save_as(out)
    return out.getvalue()


def as_it_is(name: str) -> bytes:
    with open(str(get_testdata_file(name)), "rb") as file:  # noqa: PTH123
        return file.read()


def admit_all(_: InstanceSummary) -> None:
    pass


def store(archive: Archive, *files: bytes) -> list[Stored | Refused]:
    return list(archive.store_all(files, admit=admit_all, registered_by=SOMEBODY))


def only(archive: Archive, data: bytes) -> Any:
    ds = dcmread(io.BytesIO(data), stop_before_pixels=True, force=True)
    return archive.instance(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)


def test_what_was_received_comes_back_byte_for_byte(archive: Archive) -> None:
    data = as_it_is("CT_small.dcm")

    (stored,) = store(archive, data)

    assert isinstance(stored, Stored)
    assert stored.created
    assert b"".join(archive.file(only(archive, data), RECEIVED)) == data


def test_the_stored_form_is_a_dicom_file_in_htj2k_with_the_same_pixels(archive: Archive) -> None:
    data = as_it_is("CT_small.dcm")
    store(archive, data)

    ds = dcmread(io.BytesIO(b"".join(archive.file(only(archive, data), STORED))))

    assert ds.file_meta.TransferSyntaxUID == HTJ2K_RPCL
    frame = archive.pixels(only(archive, data), 1).pixels
    assert np.array_equal(frame, dcmread(io.BytesIO(data)).pixel_array)


def test_asking_for_the_received_syntax_gives_the_received_file(archive: Archive) -> None:
    data = as_it_is("CT_small.dcm")
    store(archive, data)

    assert b"".join(archive.file(only(archive, data), EXPLICIT_LE)) == data


def test_another_syntax_is_made_on_the_way_out(archive: Archive) -> None:
    data = as_it_is("MR_small_implicit.dcm")
    store(archive, data)

    ds = dcmread(io.BytesIO(b"".join(archive.file(only(archive, data), EXPLICIT_LE))))

    assert ds.file_meta.TransferSyntaxUID == EXPLICIT_LE
    assert np.array_equal(ds.pixel_array, dcmread(io.BytesIO(data)).pixel_array)


def test_the_same_file_again_is_a_success_and_stores_nothing(archive: Archive, db: Database[dict[str, Any]]) -> None:
    data = as_it_is("CT_small.dcm")
    store(archive, data)

    (again,) = store(archive, data)

    assert isinstance(again, Stored)
    assert not again.created
    assert db.instances.count_documents({}) == 1
    assert db["blobs.files"].count_documents({}) == 1


def test_the_same_content_in_another_syntax_is_a_success(archive: Archive) -> None:
    ds = dcmread(str(get_testdata_file("CT_small.dcm")))
    out = io.BytesIO()
    ds.file_meta.TransferSyntaxUID = IMPLICIT_LE
    ds.save_as(out, implicit_vr=True, little_endian=True)
    store(archive, file_of("CT_small.dcm"))

    (again,) = store(archive, out.getvalue())

    assert isinstance(again, Stored)
    assert not again.created


@pytest.mark.parametrize("change", [{"PatientComments": "other"}, {"PixelData": bytes(128 * 128 * 2)}])
def test_same_uid_with_other_content_is_a_conflict(archive: Archive, change: dict[str, Any]) -> None:
    first, second = file_of("CT_small.dcm"), file_of("CT_small.dcm", **change)
    store(archive, first)

    (refused,) = store(archive, second)

    assert isinstance(refused, Refused)
    assert refused.error.category is Category.CONFLICT
    assert b"".join(archive.file(only(archive, first), RECEIVED)) == first


def test_twice_in_one_request_is_stored_once(archive: Archive) -> None:
    data = as_it_is("CT_small.dcm")

    outcomes = store(archive, data, data)

    assert [isinstance(each, Stored) and each.created for each in outcomes] == [True, False]


def test_outcomes_come_in_the_order_of_the_parts(archive: Archive) -> None:
    files = [file_of("CT_small.dcm", SOPInstanceUID=f"1.2.3.{n}") for n in range(1, 130)]
    files[40] = b"this is no DICOM file" * 20

    outcomes = store(archive, *files)

    uids = [each.summary.sop_uid if isinstance(each, Stored) else None for each in outcomes]
    assert uids == [f"1.2.3.{n}" if n != 41 else None for n in range(1, 130)]


def test_who_is_not_admitted_leaves_nothing(archive: Archive, db: Database[dict[str, Any]]) -> None:
    def refuse(_: InstanceSummary) -> None:
        raise AppError(Category.FORBIDDEN, "not under this contract")

    (refused,) = archive.store_all([as_it_is("CT_small.dcm")], admit=refuse, registered_by=SOMEBODY)

    assert isinstance(refused, Refused)
    assert refused.error.category is Category.FORBIDDEN
    assert db.instances.count_documents({}) == db["blobs.files"].count_documents({}) == 0


def test_frames_of_a_multi_frame_image_are_its_frames(archive: Archive) -> None:
    data = as_it_is("emri_small.dcm")
    store(archive, data)
    instance = only(archive, data)

    numbers = range(1, instance.number_of_frames + 1)
    frames = [archive.pixels(instance, n).pixels for n in numbers]
    together = [each.pixels for each in archive.pixels_of([(instance, n) for n in numbers])]

    assert np.array_equal(np.stack(frames), dcmread(io.BytesIO(data)).pixel_array)
    assert np.array_equal(np.stack(together), np.stack(frames))


def test_frames_of_many_images_are_read_in_portions_and_in_order(archive: Archive, monkeypatch) -> None:
    monkeypatch.setattr(imaging.archive.frames, "_READ_BYTES", 20_000)
    data = [file_of("CT_small.dcm", SOPInstanceUID=f"1.2.3.{n}", InstanceNumber=n) for n in range(1, 6)]
    data.append(as_it_is("emri_small.dcm"))
    store(archive, *data)
    *alone, multi = [only(archive, each) for each in data]
    asked = [(multi, 3), *((each, 1) for each in alone[::-1]), (multi, 1), (multi, 2)]

    found = [each.pixels for each in archive.pixels_of(asked)]

    for (instance, number), pixels in zip(asked, found, strict=True):
        assert np.array_equal(pixels, archive.pixels(instance, number).pixels)


def test_a_damaged_frame_among_many_is_told(archive: Archive, db: Database[dict[str, Any]]) -> None:
    data = [file_of("CT_small.dcm", SOPInstanceUID=f"1.2.3.{n}", InstanceNumber=n) for n in (1, 2)]
    store(archive, *data)
    first, second = (only(archive, each) for each in data)
    chunk = db["blobs.chunks"].find_one({"files_id": second.sha256_stored})
    assert chunk is not None
    turned = bytes(255 - each for each in chunk["data"])
    db["blobs.chunks"].update_one({"_id": chunk["_id"]}, {"$set": {"data": turned}})
    found = archive.pixels_of([(first, 1), (second, 1)])

    next(found)
    with pytest.raises(AppError) as caught:
        next(found)

    assert (caught.value.category, caught.value.where) == (Category.FAULT, second.sop_uid)


@pytest.mark.parametrize("number", [0, 2, 10**9])
def test_a_frame_that_is_not_there_is_not_found(archive: Archive, number: int) -> None:
    data = as_it_is("CT_small.dcm")
    store(archive, data)

    with pytest.raises(AppError) as caught:
        archive.frame(only(archive, data), number)

    assert caught.value.category is Category.NOT_FOUND


def test_an_instance_of_another_study_is_not_found(archive: Archive) -> None:
    data = as_it_is("CT_small.dcm")
    store(archive, data)
    instance = only(archive, data)

    with pytest.raises(AppError) as caught:
        archive.instance("1.2.3", instance.series_uid, instance.sop_uid)

    assert caught.value.category is Category.NOT_FOUND


def test_large_headers_are_kept_aside(archive: Archive, db: Database[dict[str, Any]]) -> None:
    data = file_of("CT_small.dcm", TextValue=np.random.default_rng(1).bytes(600_000).hex())

    store(archive, data)

    instance = only(archive, data)
    assert db.instances.find_one({}, {"aside": 1})["aside"]
    assert b"".join(archive.file(instance, RECEIVED)) == data
    ((_, json),) = archive.metadata(instance.study_uid)
    assert b'"0040A160"' in json
    assert list(archive.verify()) == []


# ---- summaries


def test_a_stored_study_is_behind_until_it_is_projected(archive: Archive) -> None:
    store(archive, as_it_is("CT_small.dcm"))
    (study_uid,) = archive.behind(10)

    facts = archive.summarise(study_uid)

    assert facts is not None
    assert [len(series.instances) for series in facts.series] == [1]
    assert archive.mark_projected(study_uid, facts.generation)
    assert archive.behind(10) == []


def test_a_study_that_grew_meanwhile_stays_behind(archive: Archive) -> None:
    store(archive, file_of("CT_small.dcm", SOPInstanceUID="1.2.3.1"))
    (study_uid,) = archive.behind(10)
    facts = archive.summarise(study_uid)
    store(archive, file_of("CT_small.dcm", SOPInstanceUID="1.2.3.2"))

    assert facts is not None
    assert not archive.mark_projected(study_uid, facts.generation)
    assert archive.behind(10) == [study_uid]


# ---- search


def search(archive: Archive, level: Level, *parameters: tuple[str, str]) -> list[dict[str, Any]]:
    for study_uid in archive.behind(100):
        archive.summarise(study_uid)
    return [found.attributes() for found in archive.query(parse_query(level, parameters))]


def values(found: list[dict[str, Any]], tag: str) -> list[Any]:
    return [each[tag]["Value"][0] for each in found]


@pytest.fixture
def three_studies(archive: Archive) -> Archive:
    files = [
        file_of(
            "CT_small.dcm",
            StudyInstanceUID=f"1.2.3.{n}",
            SeriesInstanceUID=f"1.2.3.{n}.1",
            SOPInstanceUID=f"1.2.3.{n}.1.{k}",
            StudyDate=f"202401{n:02d}",
            PatientName=["Müller^Änne", "Muller^Bob", "Smith^Carol"][n - 1],
            PatientID=f"P{n}",
            InstanceNumber=k,
        )
        for n in (1, 2, 3)
        for k in (1, 2)
    ]
    for data in files:
        ds = dcmread(io.BytesIO(data))
        ds.SpecificCharacterSet = "ISO_IR 192"
    store(archive, *files)
    return archive


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ([], ["1.2.3.3", "1.2.3.2", "1.2.3.1"]),
        ([("PatientID", "P2")], ["1.2.3.2"]),
        ([("00100020", "P2")], ["1.2.3.2"]),
        ([("PatientID", "P*")], ["1.2.3.3", "1.2.3.2", "1.2.3.1"]),
        ([("PatientID", "?2")], ["1.2.3.2"]),
        ([("PatientID", "P.*")], []),
        ([("StudyDate", "20240102-")], ["1.2.3.3", "1.2.3.2"]),
        ([("StudyDate", "-20240102")], ["1.2.3.2", "1.2.3.1"]),
        ([("StudyDate", "20240102-20240102")], ["1.2.3.2"]),
        ([("PatientName", "smith^carol")], ["1.2.3.3"]),
        ([("PatientName", "SMI*")], ["1.2.3.3"]),
        ([("PatientName", "caro"), ("fuzzymatching", "true")], ["1.2.3.3"]),
        ([("ModalitiesInStudy", "CT"), ("StudyDate", "20240101")], ["1.2.3.1"]),
        ([("ModalitiesInStudy", "MR")], []),
        ([("StudyInstanceUID", "1.2.3.1,1.2.3.3")], ["1.2.3.3", "1.2.3.1"]),
        ([("limit", "1"), ("offset", "1")], ["1.2.3.2"]),
        ([("limit", "0")], []),
    ],
)
def test_studies_are_found(three_studies: Archive, parameters: list[tuple[str, str]], expected: list[str]) -> None:
    assert values(search(three_studies, Level.STUDIES, *parameters), "0020000D") == expected


def test_counts_and_modalities_are_computed(three_studies: Archive) -> None:
    (study,) = search(three_studies, Level.STUDIES, ("PatientID", "P1"))

    assert study["00201208"]["Value"] == [2]
    assert study["00201206"]["Value"] == [1]
    assert study["00080061"]["Value"] == ["CT"]


def test_instances_are_found_by_attributes_of_their_study(three_studies: Archive) -> None:
    found = search(three_studies, Level.INSTANCES, ("PatientID", "P2"), ("InstanceNumber", "2"))

    assert values(found, "00080018") == ["1.2.3.2.1.2"]
    assert values(found, "00100020") == ["P2"]


def test_included_fields_come_from_the_metadata(three_studies: Archive) -> None:
    query = [("StudyInstanceUID", "1.2.3.1"), ("includefield", "KVP"), ("limit", "1")]

    (found,) = search(three_studies, Level.INSTANCES, *query)

    assert found["00180060"]["Value"] == [120]
    assert list(found) == sorted(found)


def test_an_attribute_that_cannot_be_matched_is_refused(three_studies: Archive) -> None:
    with pytest.raises(AppError) as caught:
        search(three_studies, Level.STUDIES, ("KVP", "120"))

    assert caught.value.category is Category.INVALID
    assert "00180060" in caught.value.message


def test_studies_that_may_not_be_seen_do_not_count(three_studies: Archive) -> None:
    search(three_studies, Level.STUDIES)

    found = three_studies.query(
        parse_query(Level.STUDIES, [("limit", "1"), ("offset", "1")]), lambda uids: set(uids) - {"1.2.3.2"}
    )
    named = three_studies.query(parse_query(Level.SERIES, []), studies=["1.2.3.1"])

    assert [each.uids for each in found] == [("1.2.3.1",)]
    assert {each.uids[0] for each in named} == {"1.2.3.1"}


# ---- deleting, sweeping, verifying


def test_deleted_instances_are_gone_at_once_and_their_blobs_with_the_sweep(
    archive: Archive, db: Database[dict[str, Any]], clock: Clock
) -> None:
    data = as_it_is("CT_small.dcm")
    store(archive, data)
    study_uid = archive.behind(1)[0]

    assert archive.delete(study_uid) == 1
    with pytest.raises(AppError):
        archive.instances(study_uid)
    clock.now += timedelta(hours=3)
    archive.sweep()

    assert db["blobs.files"].count_documents({}) == db["blobs.chunks"].count_documents({}) == 0
    assert db.garbage.count_documents({}) == 0


def test_a_deleted_instance_can_be_stored_again_before_the_sweep(archive: Archive, clock: Clock) -> None:
    data = as_it_is("CT_small.dcm")
    store(archive, data)
    archive.delete(archive.behind(1)[0])

    store(archive, data)
    clock.now += timedelta(hours=3)
    archive.sweep()

    assert b"".join(archive.file(only(archive, data), RECEIVED)) == data
    assert list(archive.verify()) == []


def test_verify_finds_nothing_in_a_sound_archive(three_studies: Archive) -> None:
    seen: list[tuple[int, int]] = []

    assert list(three_studies.verify(lambda done, total: seen.append((done, total)))) == []
    assert seen == [(n, 6) for n in range(1, 7)]


def test_verify_finds_a_flipped_bit(archive: Archive, db: Database[dict[str, Any]]) -> None:
    data = as_it_is("CT_small.dcm")
    store(archive, data)
    chunk = db["blobs.chunks"].find_one({})
    damaged = bytearray(chunk["data"])
    damaged[len(damaged) // 2] ^= 1
    db["blobs.chunks"].update_one({"_id": chunk["_id"]}, {"$set": {"data": bytes(damaged)}})

    problems = [finding.problem for finding in archive.verify()]

    assert any(problem.startswith("stored: ") for problem in problems)
    with pytest.raises(AppError):
        archive.file(only(archive, data), RECEIVED)


def test_verify_finds_a_missing_blob(archive: Archive, db: Database[dict[str, Any]]) -> None:
    data = as_it_is("CT_small.dcm")
    store(archive, data)
    db["blobs.chunks"].delete_many({})
    db["blobs.files"].delete_many({})

    assert [finding.sop_uid for finding in archive.verify()]


def test_the_key_of_a_stored_file_is_its_digest(archive: Archive) -> None:
    data = as_it_is("CT_small.dcm")
    store(archive, data)
    instance = only(archive, data)

    stored = b"".join(archive.file(instance, STORED))

    assert hashlib.sha256(stored).hexdigest() == instance.sha256_stored
    assert len(stored) == instance.size_stored


def test_metadata_go_on_where_the_database_has_given_the_reader_up(
    archive: Archive, db: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study_uid, files = new_study(instances=7, series=2)
    store(archive, *files)
    expected = list(archive.metadata(study_uid))
    monkeypatch.setattr(imaging.archive.contents, "_TOGETHER", 2)

    found = archive.metadata(study_uid)
    taken = [next(found) for _ in range(3)]
    mine = {"$match": {"ns": f"{db.name}.instances", "type": "idleCursor"}}
    open_cursors = list(db.client.admin.aggregate([{"$currentOp": {"idleCursors": True}}, mine]))
    db.command({"killCursors": "instances", "cursors": [each["cursor"]["cursorId"] for each in open_cursors]})
    taken += found

    assert len(open_cursors) == 1
    assert taken == expected
    assert [uids[2] for uids, _ in taken] == [each.sop_uid for each in archive.instances(study_uid)]


def test_metadata_are_those_of_the_received_data_set(archive: Archive) -> None:
    data = as_it_is("CT_small.dcm")
    store(archive, data)
    instance = only(archive, data)

    ((uids, json),) = archive.metadata(instance.study_uid, instance.series_uid)

    assert uids == (instance.study_uid, instance.series_uid, instance.sop_uid)
    found = Dataset.from_json(json.decode(), lambda *_: None)
    assert found.KVP == dcmread(io.BytesIO(data)).KVP


def test_a_document_without_pixels_in_another_syntax_is_the_same(archive: Archive) -> None:
    ds = dcmread(str(get_testdata_file("reportsi.dcm")))
    out = io.BytesIO()
    ds.file_meta.TransferSyntaxUID = IMPLICIT_LE
    ds.save_as(out, implicit_vr=True, little_endian=True)
    store(archive, as_it_is("reportsi.dcm"))

    (again,) = store(archive, out.getvalue())

    assert isinstance(again, Stored)
    assert not again.created


def test_series_are_found_in_reading_order_with_included_fields(archive: Archive) -> None:
    numbers = {"1.2.3.1": 10, "1.2.3.2": 9}
    files = [
        file_of("CT_small.dcm", SeriesInstanceUID=uid, SOPInstanceUID=f"{uid}.1", SeriesNumber=number)
        for uid, number in numbers.items()
    ]
    store(archive, *files)

    found = search(archive, Level.SERIES, ("includefield", "KVP"))

    assert values(found, "00200011") == [9, 10]
    assert values(found, "00180060") == [120, 120]


def test_a_series_whose_instances_disagree_on_its_number_stays_one(archive: Archive) -> None:
    files = [
        file_of("CT_small.dcm", SOPInstanceUID=f"1.2.3.{n}", SeriesNumber=n % 2, InstanceNumber=n) for n in range(4)
    ]
    store(archive, *files)

    facts = archive.summarise(archive.behind(1)[0])

    assert facts is not None
    assert [len(series.instances) for series in facts.series] == [4]


def test_who_registered_first_is_named_first(archive: Archive, clock: Clock) -> None:
    for name in ("Organization/z", "Organization/a"):
        data = file_of("CT_small.dcm", SOPInstanceUID="1.2.3.1" if name.endswith("z") else "1.2.3.2")
        list(archive.store_all([data], admit=admit_all, registered_by=name))
        clock.now += timedelta(seconds=1)

    facts = archive.summarise(archive.behind(1)[0])

    assert facts is not None
    assert facts.registered_by == ("Organization/z", "Organization/a")
