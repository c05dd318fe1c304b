"""Crash at every single write of deleting, taking back and letting go: no image is lost, none is half gone."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.collection import Collection
from pymongo.database import Database

from imaging.archive import Archive
from imaging.blobs.gridfs import GridFsBlobs
from tests.support.dicomweb import ct

WRITES = ("insert_one", "insert_many", "delete_one", "delete_many", "update_one", "bulk_write")
UIDS = {"1.2.3.1.1", "1.2.3.1.2"}
DAY = timedelta(days=1)


class Crash(BaseException):
    """The process is no more."""


class Power:
    """Goes off before the write that is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes_left: int | None = None
        for name in WRITES:
            monkeypatch.setattr(Collection, name, self._counted(getattr(Collection, name)))

    def _counted(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def counted(collection: Any, *arguments: Any, **options: Any) -> Any:
            if self.writes_left is not None:
                if not self.writes_left:
                    raise Crash
                self.writes_left -= 1
            return write(collection, *arguments, **options)

        return counted


@pytest.fixture
def power(monkeypatch: pytest.MonkeyPatch) -> Power:
    return Power(monkeypatch)


@pytest.fixture
def now() -> list[datetime]:
    return [datetime.now(UTC)]


@pytest.fixture
def archive(db: Database[dict[str, Any]], now: list[datetime]) -> Iterator[Archive]:
    made = Archive(db, GridFsBlobs(db), clock=lambda: now[0], encode_threads=1)
    made.ensure_indexes()
    list(made.store_all([ct(1), ct(2)], admit=lambda _: None, registered_by="Organization/1"))
    facts = made.summarise("1.2.3")
    assert facts is not None
    made.mark_projected("1.2.3", facts.generation)
    yield made
    made.close()


def delete(archive: Archive) -> None:
    archive.put_aside("1.2.3", keep_for=DAY, deleted_by="Organization/1")


def take_back(archive: Archive) -> None:
    archive.take_back("1.2.3")


@pytest.mark.parametrize("writes", range(12))
@pytest.mark.parametrize(("before", "act"), [((), delete), ((delete,), take_back)], ids=["delete", "take back"])
def test_a_crash_loses_no_image(
    archive: Archive,
    db: Database[dict[str, Any]],
    power: Power,
    now: list[datetime],
    before: tuple[Callable[[Archive], None], ...],
    act: Callable[[Archive], None],
    writes: int,
) -> None:
    for each in before:
        each(archive)
    facts = archive.summarise("1.2.3")
    archive.mark_projected("1.2.3", facts.generation if facts else db.studies.find_one({"_id": "1.2.3"})["generation"])
    here = set(db.instances.distinct("_id"))

    power.writes_left = writes
    with contextlib.suppress(Crash):
        act(archive)
    power.writes_left = None

    # Each is here or can be taken back; where anything has changed, the study is behind, at the latest after a sweep.
    assert set(db.instances.distinct("_id")) | set(db.trash.distinct("row._id")) == UIDS
    now[0] += timedelta(minutes=5)
    archive.sweep()
    if set(db.instances.distinct("_id")) != here:
        assert archive.is_behind("1.2.3")
    take_back(archive)
    assert set(db.instances.distinct("_id")) == UIDS
    now[0] += 10 * DAY
    archive.sweep()
    assert list(archive.verify()) == []


@pytest.mark.parametrize("writes", range(6))
def test_a_crash_while_letting_go_leaves_nothing_for_good(
    archive: Archive, db: Database[dict[str, Any]], power: Power, now: list[datetime], writes: int
) -> None:
    delete(archive)
    now[0] += 2 * DAY

    power.writes_left = writes
    with contextlib.suppress(Crash):
        archive.sweep()
    power.writes_left = None
    for _ in range(3):
        now[0] += DAY
        archive.sweep()

    assert db.trash.count_documents({}) == 0
    assert db["blobs.files"].count_documents({}) == 0
    assert db.garbage.count_documents({}) == 0
