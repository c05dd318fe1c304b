"""The maintenance worker on a real change stream."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from fhir_server.work import maintenance
from tests.support.doors import Doors, new_study, opened


@contextmanager
def working(doors: Doors) -> Iterator[None]:
    stopping = threading.Event()
    thread = threading.Thread(target=maintenance.run, args=(doors.server, stopping))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(timeout=10)
        assert not thread.is_alive()


@pytest.fixture
def doors(db) -> Iterator[Doors]:
    with opened(db, work__projection_quiet_s="0.3", work__sweep_interval_s="600") as made:
        yield made


def eventually(claim, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if claim():
            return True
        time.sleep(0.02)
    return False


def is_shown(doors: Doors, study_uid: str) -> bool:
    doors.clock.now = datetime.now(UTC)
    return not doors.server.archive.behind(10) and bool(
        doors.server.database.resources.find_one(f"ImagingStudy/{study_uid}")
    )


def test_images_are_projected_without_anybody_asking(doors: Doors):
    with working(doors):
        time.sleep(0.5)
        study_uid, files = new_study()
        doors.ingest(*files)

        assert eventually(lambda: is_shown(doors, study_uid))


def test_what_was_behind_before_the_start_is_projected(doors: Doors):
    study_uid, files = new_study()
    doors.ingest(*files)

    with working(doors):
        assert eventually(lambda: is_shown(doors, study_uid))


def test_a_burst_becomes_few_versions(doors: Doors):
    study_uid, files = new_study(instances=20)
    with working(doors):
        for file in files:
            doors.clock.now = datetime.now(UTC)
            doors.ingest(file)

        assert eventually(lambda: is_shown(doors, study_uid))
    assert doors.server.own.read("ImagingStudy", study_uid).version <= 3


def test_a_stop_takes_about_a_second(doors: Doors):
    begun = time.monotonic()
    with working(doors):
        time.sleep(0.2)

    assert time.monotonic() - begun < 3


def test_a_broken_change_stream_is_opened_again(doors: Doors, monkeypatch):
    archive = doors.server.archive
    real, broken = archive.watch, [True]

    def watch(max_await_ms: int):
        if broken:
            broken.pop()
            raise ConnectionError("the primary stepped down")
        return real(max_await_ms)

    monkeypatch.setattr(archive, "watch", watch)
    with working(doors):
        study_uid, files = new_study()
        doors.ingest(*files)

        assert eventually(lambda: is_shown(doors, study_uid))


def test_a_failing_sweep_keeps_no_study_from_being_projected(doors: Doors, monkeypatch):
    def sweep() -> None:
        raise ConnectionError("the primary stepped down")

    monkeypatch.setattr(doors.server.archive, "sweep", sweep)
    study_uid, files = new_study()
    doors.ingest(*files)

    with working(doors):
        assert eventually(lambda: is_shown(doors, study_uid))


def test_a_study_that_never_becomes_quiet_is_projected_now_and_then(doors: Doors, monkeypatch):
    monkeypatch.setattr(maintenance, "PATIENCE_S", 0.5)
    study_uid, files = new_study(instances=30)
    with working(doors):
        for file in files:
            doors.clock.now = datetime.now(UTC)
            doors.ingest(file)
            time.sleep(0.05)
        burst_s = (datetime.now(UTC) - doors.server.own.read("ImagingStudy", study_uid).created).total_seconds()

    versions = doors.server.own.read("ImagingStudy", study_uid).version
    assert 1 <= versions <= 2 + burst_s / 0.5
