"""A projector that dies after any of its writes leaves a study that the next projection makes right."""

import time
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
from pymongo.database import Database

from fhir_server.access.contracts import Right
from fhir_server.projector import LEASE_S
from fhir_server.store.repository import Repository
from imaging.errors import AppError
from tests.support.doors import Caller, Doors, new_study, opened


class Died(BaseException):
    """The process is no more; not an Exception, so that nothing on the way can catch it."""


@pytest.fixture
def doors(db: Database[dict[str, Any]]) -> Iterator[Doors]:
    with opened(db) as made:
        yield made


@pytest.fixture
def reader(doors: Doors) -> Caller:
    return doors.caller(Right.RECEIVE_IMAGES, name="reader")


def resources(reader: Caller) -> dict[str, list[str]]:
    kinds = ("Patient", "Device", "Observation", "ImagingStudy", "Endpoint")
    bundles = {kind: reader.get(f"/fhir/{kind}").json for kind in kinds}
    return {kind: [entry["resource"]["id"] for entry in bundle.get("entry", [])] for kind, bundle in bundles.items()}


# One Patient, one Endpoint, one Device, two Observations, one ImagingStudy.
@pytest.mark.parametrize("writes", range(6))
def test_a_crash_after_any_write_is_repaired_by_the_next_reader(doors: Doors, reader, monkeypatch, writes):
    study_uid, files = new_study(series=2, ManufacturerModelName="Ring 9")
    doors.ingest(*files)
    real, done = Repository.update, []

    def update(self, *args, **options):
        if len(done) == writes:
            raise Died
        done.append(real(self, *args, **options))
        return done[-1]

    monkeypatch.setattr(Repository, "update", update)
    with pytest.raises(Died):
        doors.server.studies.project(study_uid)
    monkeypatch.setattr(Repository, "update", real)

    assert len(done) == writes
    found = resources(reader)
    assert {kind: len(ids) for kind, ids in found.items()} == {
        "Patient": 1,
        "Device": 1,
        "Observation": 2,
        "ImagingStudy": 1,
        "Endpoint": 1,
    }
    assert reader.get(f"/fhir/ImagingStudy/{study_uid}").json["numberOfInstances"] == 2


def test_a_crash_before_the_mark_is_repaired_without_a_new_version(doors: Doors, reader, monkeypatch):
    study_uid, files = new_study()
    doors.ingest(*files)

    def died(*_: Any) -> bool:
        raise Died

    monkeypatch.setattr(type(doors.server.archive), "mark_projected", died)
    with pytest.raises(Died):
        doors.server.studies.project(study_uid)
    monkeypatch.undo()

    assert doors.server.archive.is_behind(study_uid)
    assert reader.get(f"/fhir/ImagingStudy/{study_uid}").json["meta"]["versionId"] == "1"
    assert not doors.server.archive.is_behind(study_uid)


def test_a_projector_that_died_with_its_lease_is_replaced_when_that_ends(doors: Doors, reader):
    study_uid, files = new_study()
    doors.ingest(*files)
    leases = doors.server.database.leases
    until = doors.clock.now.replace(year=doors.clock.now.year + 1)
    leases.insert_one({"_id": f"project:{study_uid}", "worker": "dead", "until": until, "token": 1, "attempt": 1})

    doors.clock.now = until

    doors.server.studies.project(study_uid)
    assert not doors.server.archive.is_behind(study_uid)


def test_images_that_come_while_a_study_is_projected_are_shown_too(doors: Doors, reader, monkeypatch):
    study_uid, files = new_study(instances=2)
    doors.ingest(files[0])
    archive = doors.server.archive
    real, late = archive.summarise, [files[1]]

    def summarise(uid: str) -> Any:
        facts = real(uid)
        while late:
            doors.ingest(late.pop())
        return facts

    monkeypatch.setattr(archive, "summarise", summarise)
    doors.server.studies.project(study_uid)

    assert reader.get(f"/fhir/ImagingStudy/{study_uid}").json["numberOfInstances"] == 2
    assert not archive.is_behind(study_uid)


def test_a_projector_that_overslept_its_lease_does_not_hide_the_work_of_the_next(doors: Doors, reader, monkeypatch):
    study_uid, files = new_study(instances=2)
    doors.ingest(files[0])
    archive = doors.server.archive
    real, slept = archive.summarise, []

    def summarise(uid: str) -> Any:
        facts = real(uid)
        if not slept:
            slept.append(uid)
            doors.clock.forward(seconds=LEASE_S + 1)
            doors.ingest(files[1])
            doors.server.studies.project(uid)
        return facts

    monkeypatch.setattr(archive, "summarise", summarise)
    doors.server.studies.project(study_uid)

    assert reader.get(f"/fhir/ImagingStudy/{study_uid}").json["numberOfInstances"] == 2


def test_a_projection_ends_although_images_keep_coming(doors: Doors, monkeypatch):
    study_uid, files = new_study(instances=5)
    doors.ingest(files.pop())
    archive = doors.server.archive
    real = archive.summarise

    def summarise(uid: str) -> Any:
        facts = real(uid)
        doors.ingest(files.pop())
        return facts

    monkeypatch.setattr(archive, "summarise", summarise)
    doors.server.studies.project(study_uid)

    assert len(files) == 3
    assert archive.is_behind(study_uid)


def test_an_order_that_comes_while_its_study_is_projected_is_referred_to(doors: Doors, reader, monkeypatch):
    study_uid, files = new_study(AccessionNumber="A-77")
    doors.ingest(*files)
    subject = reader.get(f"/fhir/ImagingStudy/{study_uid}").json["subject"]
    order = {"resourceType": "ServiceRequest", "status": "active", "intent": "order", "subject": subject}
    order["identifier"] = [{"value": "A-77"}]
    clinic = doors.caller(Right.REGISTER_IMAGES, name="clinic")
    archive = doors.server.archive
    archive.mark(study_uid)
    real, ordering = archive.mark_projected, []

    def mark_projected(uid: str, generation: int) -> bool:
        if not ordering:
            ordering.append(Thread(target=clinic.post, args=("/fhir/ServiceRequest", order)))
            ordering[0].start()
            deadline = time.monotonic() + 5
            while doors.server.database.studies.find_one({"_id": uid, "generation": generation}):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        return real(uid, generation)

    monkeypatch.setattr(archive, "mark_projected", mark_projected)
    doors.server.studies.project(study_uid)
    ordering[0].join()

    assert len(reader.get(f"/fhir/ImagingStudy/{study_uid}").json["basedOn"]) == 1


def test_many_projectors_at_once_make_one_of_each(doors: Doors, reader):
    studies = [new_study(PatientID="P-1", IssuerOfPatientID="1.2.3") for _ in range(4)]
    doors.ingest(*(file for _, files in studies for file in files))
    failures: list[BaseException] = []

    def project(uid: str) -> None:
        try:
            doors.server.studies.project(uid)
        except AppError as error:
            failures.append(error)

    threads = [Thread(target=project, args=(uid,)) for uid, _ in studies for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    found = resources(reader)
    assert (len(found["Patient"]), len(found["ImagingStudy"])) == (1, 4)


def test_a_study_that_cannot_be_projected_stops_no_search(doors: Doors, reader, monkeypatch):
    bad, bad_files = new_study()
    good, good_files = new_study()
    doors.ingest(*bad_files, *good_files)
    archive = doors.server.archive
    real = archive.summarise

    def summarise(uid: str) -> Any:
        if uid == bad:
            raise ValueError("something nobody thought of")
        return real(uid)

    monkeypatch.setattr(archive, "summarise", summarise)

    found = reader.get("/fhir/ImagingStudy").json["entry"]
    assert [entry["resource"]["id"] for entry in found] == [good]
