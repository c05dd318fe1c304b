"""Deleting images, taking them back, and keeping them. Expected: images are there, aside, or really gone."""

import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydicom import dcmread
from pymongo.database import Database
from werkzeug.test import TestResponse

from fhir_server.access.agreements import Agreement
from fhir_server.access.contracts import Right
from tests.support.dicomweb import BOUNDARY, ct, related
from tests.support.doors import Caller, Doors, opened

STUDY = "/dicom-web/studies/1.2.3"
SERIES = f"{STUDY}/series/1.2.3.1"
INSTANCE = f"{SERIES}/instances/1.2.3.1.1"
FILES = (ct(1), ct(2), ct(1, series=2))
KIND = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


@pytest.fixture
def doors(db: Database[dict[str, Any]]) -> Iterator[Doors]:
    with opened(db, archive__undelete_h="24") as made:
        yield made


@pytest.fixture
def both(doors: Doors) -> Caller:
    caller = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="both")
    assert store(caller, *FILES).status_code == 200
    return caller


def store(caller: Caller, *files: bytes) -> TestResponse:
    return caller.post("/dicom-web/studies", data=related(*files), headers={"Content-Type": KIND})


def there(caller: Caller) -> list[str]:
    answer = caller.get("/dicom-web/studies/1.2.3/instances")
    return [each["00080018"]["Value"][0] for each in answer.json] if answer.status_code == 200 else []


@pytest.mark.parametrize(
    ("address", "left"),
    [(STUDY, []), (SERIES, ["1.2.3.2.1"]), (INSTANCE, ["1.2.3.1.2", "1.2.3.2.1"])],
)
def test_what_was_deleted_is_gone_and_comes_back(both: Caller, address: str, left: list[str]) -> None:
    assert both.delete(address).status_code == 204
    assert there(both) == left
    assert both.get(address).status_code == 404

    assert both.post(f"{address}/undelete").status_code == 204

    assert there(both) == ["1.2.3.1.1", "1.2.3.1.2", "1.2.3.2.1"]
    assert both.get(f"{INSTANCE}/received").get_data() == FILES[0]
    assert both.get("/fhir/ImagingStudy/1.2.3").json["numberOfInstances"] == 3


def test_what_lapsed_is_really_gone(doors: Doors, both: Caller) -> None:
    both.delete(STUDY)
    doors.clock.forward(hours=25)
    for _ in range(2):
        doors.server.archive.sweep()
        doors.clock.forward(hours=25)

    assert both.post(f"{STUDY}/undelete").status_code == 404
    assert doors.server.database["blobs.files"].count_documents({}) == 0
    assert doors.server.database["trash"].count_documents({}) == 0


def test_what_can_be_taken_back_keeps_its_blobs(doors: Doors, both: Caller) -> None:
    both.delete(STUDY)
    doors.clock.forward(hours=23)
    doors.server.archive.sweep()

    assert both.post(f"{STUDY}/undelete").status_code == 204
    assert list(doors.server.archive.verify()) == []


def test_what_was_stored_again_stays(doors: Doors, both: Caller) -> None:
    both.delete(STUDY)
    store(both, ct(1, PatientComments="another one"))

    assert both.post(f"{INSTANCE}/undelete").status_code == 409
    assert both.post(f"{SERIES}/undelete").status_code == 204

    ds = dcmread(io.BytesIO(both.get(f"{INSTANCE}/received").get_data()))
    assert ds.PatientComments == "another one"
    assert there(both) == ["1.2.3.1.1", "1.2.3.1.2"]


def test_only_who_registered_takes_back(doors: Doors, both: Caller) -> None:
    other = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="other")
    reader = doors.caller(Right.RECEIVE_IMAGES, name="reader")
    both.delete(STUDY)

    assert other.post(f"{STUDY}/undelete").status_code == 403
    assert reader.post(f"{STUDY}/undelete").status_code == 403
    assert doors.stranger.post(f"{STUDY}/undelete").status_code == 401
    assert both.post("/dicom-web/studies/9.9/undelete").status_code == 404


def test_the_operator_sees_what_was_deleted(doors: Doors, both: Caller) -> None:
    both.delete(SERIES)

    (found,) = doors.server.archive.aside()

    assert (found.study_uid, found.instances) == ("1.2.3", 2)
    assert found.deleted_by.startswith("Organization/")
    assert found.until - doors.clock.now == pytest.approx(timedelta(hours=24), abs=timedelta(seconds=1))


def test_both_are_on_record(doors: Doors, both: Caller) -> None:
    both.delete(STUDY)
    both.post(f"{STUDY}/undelete")

    auditor = doors.caller(Right.AUDIT, name="auditor")
    found = auditor.get("/fhir/AuditEvent?entity=ImagingStudy/1.2.3&_sort=-date&_count=4").json
    assert "D" in {each["resource"].get("action") for each in found["entry"]}
    assert "C" in {each["resource"].get("action") for each in found["entry"]}


def test_without_a_grace_period_there_is_no_way_back(db: Database[dict[str, Any]]) -> None:
    with opened(db, archive__undelete_h="0") as doors:
        caller = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="both")
        store(caller, *FILES)
        caller.delete(STUDY)

        assert caller.post(f"{STUDY}/undelete").status_code == 404


def test_images_are_kept_as_long_as_the_operator_says(db: Database[dict[str, Any]]) -> None:
    with opened(db, archive__keep_days="30") as doors:
        caller = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="both")
        store(caller, *FILES)

        early = [
            caller.delete(address).status_code for address in (STUDY, SERIES, INSTANCE, "/fhir/ImagingStudy/1.2.3")
        ]
        doors.clock.forward(days=30, seconds=1)

        assert early == [409] * 4
        assert caller.delete(STUDY).status_code == 204


def test_a_contract_may_ask_to_keep_them_longer(doors: Doors, both: Caller) -> None:
    until = datetime.now(UTC) + timedelta(days=300)
    doors.server.principals.agree("both", Agreement(keep_until=until))
    doors.clock.forward(seconds=2)

    early = both.delete(STUDY)
    # A new contract of rights does not end what was agreed on keeping.
    doors.server.principals.add("both", [Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES])
    doors.clock.forward(days=299)
    still = both.delete(STUDY).status_code
    doors.clock.forward(days=2)

    assert early.status_code == 409
    assert f"{until:%Y-%m-%d}" in early.json["issue"][0]["diagnostics"]
    assert still == 409
    assert both.delete(STUDY).status_code == 204


def test_a_crash_between_the_writes_leaves_an_instance(doors: Doors, both: Caller) -> None:
    """Put aside, and not yet taken out; and taken back, and not yet out of the trash."""
    database = doors.server.database
    both.delete(INSTANCE)
    (row,) = [each["row"] for each in database.trash.find({"row._id": "1.2.3.1.1"})]
    database.instances.insert_one(row)

    doors.clock.forward(hours=30)
    doors.server.archive.sweep()
    doors.clock.forward(hours=30)
    doors.server.archive.sweep()

    assert list(doors.server.archive.verify()) == []
    assert both.get(f"{INSTANCE}/received").get_data() == FILES[0]
