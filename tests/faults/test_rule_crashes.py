"""A crash while rules look at a study orders everything once, whoever looks next."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fhir_server.access.contracts import Right
from fhir_server.model.query import parse
from fhir_server.store.repository import Repository
from fhir_server.work.triggers import Triggers
from imaging.archive import Archive
from imaging.errors import AppError, Category
from tests.support.doors import Doors, opened
from tests.support.rules import action, coded, rule
from tests.support.volumes import ct_files


class Crash(BaseException):
    """The process dies here: nothing catches it."""


@pytest.fixture
def doors(db) -> Iterator[Doors]:
    with opened(db) as made:
        owner = made.caller(Right.ORDER_PROCESSING, Right.RECEIVE_IMAGES, name="owner")
        actions = [action(coded("series.modality", "CT"), algorithm=each, inputs=()) for each in ("slab", "median")]
        assert owner.post("/fhir/PlanDefinition", rule(*actions)).status_code == 201
        made.ingest(*ct_files())
        made.clock.forward(seconds=60)
        yield made


def look(doors: Doors) -> None:
    Triggers(doors.server).round(threading.Event())


def orders(doors: Doors) -> int:
    return len(doors.server.own.search(parse("Task", [])).matches)


@pytest.mark.parametrize("survived", [0, 1, 2])
def test_a_crash_after_some_of_the_orders_leaves_the_others_to_who_looks_next(doors, monkeypatch, survived):
    placed: list[Any] = []
    real = Repository.create

    def create(self: Repository, resource: dict[str, Any], **more: Any) -> Any:
        if resource["resourceType"] == "Task" and len(placed) == survived:
            raise Crash
        placed.append(real(self, resource, **more))
        return placed[-1]

    with monkeypatch.context() as dying:
        dying.setattr(Repository, "create", create)
        dying.setattr(Archive, "looked_at", lambda *_: (_ for _ in ()).throw(Crash))
        with pytest.raises(Crash):
            look(doors)
    died_with = orders(doors)
    look(doors)

    assert (died_with, orders(doors)) == (survived, 2)
    assert doors.server.archive.arrivals(10) == []


def test_a_database_that_stops_leaves_the_study_to_be_looked_at(doors, monkeypatch):
    def create(*_: Any, **__: Any) -> Any:
        raise AppError(Category.BUSY, "the database does not answer")

    with monkeypatch.context() as stopped:
        stopped.setattr(Repository, "create", create)
        again_s = Triggers(doors.server).round(threading.Event())
    assert again_s is not None

    assert len(doors.server.archive.arrivals(10)) == 1
    look(doors)
    assert orders(doors) == 2


def test_two_that_look_at_the_same_moment_order_once(doors):
    threads = [threading.Thread(target=look, args=(doors,)) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)

    assert orders(doors) == 2


def test_images_that_come_while_somebody_looks_are_looked_at_again(doors, monkeypatch):
    real = Archive.looked_at

    def looked_at(self: Archive, arrival: Any) -> bool:
        monkeypatch.undo()
        doors.ingest(*ct_files(8)[6:])
        return real(self, arrival)

    monkeypatch.setattr(Archive, "looked_at", looked_at)
    look(doors)

    assert len(doors.server.archive.arrivals(10)) == 1
    doors.clock.forward(seconds=60)
    look(doors)
    assert orders(doors) == 4


def test_an_order_that_was_deleted_is_not_placed_again(doors):
    look(doors)
    (task, _) = doors.server.own.search(parse("Task", [])).matches
    doors.server.own.delete("Task", task.id)

    doors.server.archive.mark_all()
    doors.ingest(*ct_files(series="1.2.3.4.9", Modality="MR"))
    doors.clock.forward(seconds=60)
    look(doors)

    assert orders(doors) == 1


def test_images_of_a_crashed_ingest_that_the_sweeper_finds_are_looked_at(doors):
    look(doors)
    database = doors.server.database
    database.studies.update_one({"_id": "1.2.3.4"}, {"$unset": {"arrived_at": ""}})
    database.garbage.insert_one({"keys": [], "studies": ["1.2.3.4"], "at": doors.clock()})
    doors.clock.forward(minutes=3)

    doors.server.archive.sweep()

    assert [each.study_uid for each in doors.server.archive.arrivals(10)] == ["1.2.3.4"]


def test_making_projections_anew_triggers_nothing(doors):
    look(doors)

    doors.server.archive.mark_all()

    assert doors.server.archive.arrivals(10) == []
