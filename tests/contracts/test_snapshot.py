"""Resources as they were at a moment, read while others write. The expected values are kept beside the writes."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from fhir_server.model.criteria import Clause, Token, clause
from fhir_server.model.query import parse
from fhir_server.store import snapshot
from fhir_server.store.filters import UNRESTRICTED, Act, Restriction, Rule
from fhir_server.store.repository import Repository
from fhir_server.store.schema import ensure_schema
from fhir_server.store.snapshot import Wanted, settle
from imaging.errors import AppError
from tests.support.doors import Clock

Json = dict[str, Any]
KINDS = ("Patient", "Observation")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, batches and steps of versions are passed over often."""
    monkeypatch.setattr(snapshot, "BLOCK", 4)
    monkeypatch.setattr(snapshot, "TOGETHER", 3)
    monkeypatch.setattr(snapshot, "STEP", 2)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def kept(module_db: Database[Json]) -> Database[Json]:
    """A database with its indexes, which the tests leave resources in."""
    ensure_schema(module_db)
    return module_db


@pytest.fixture
def own(kept: Database[Json], clock: Clock) -> Repository:
    for name in ("resources", "history"):
        kept[name].delete_many({})
    return Repository(kept, UNRESTRICTED, clock=clock, client_ids=True)


class Writer:
    """Writes at random, and remembers what is there: reference -> body."""

    def __init__(self, own: Repository, clock: Clock, seed: int) -> None:
        self.own, self.clock, self.random = own, clock, Random(seed)
        self.there: dict[str, bytes] = {}
        self.deleted: dict[str, Any] = {}

    def write(self, count: int) -> None:
        for _ in range(count):
            self.clock.forward(milliseconds=self.random.choice((0, 1, 7)))
            kind, id = self.random.choice(KINDS), self.random.choice(("a", "a-b", "a.b", "ab", "B", "0", "z9", "a-b-c"))
            key = f"{kind}/{id}"
            if key in self.there and self.random.random() < 0.3:
                self.deleted[key] = self.own.delete(kind, id).last_updated
                del self.there[key]
            else:
                self.there[key] = self.own.update(self.resource(kind, id)).body
                self.deleted.pop(key, None)

    def resource(self, kind: str, id: str) -> Json:
        of = {"subject": {"reference": f"Patient/{self.random.choice('ab')}"}, "code": {"text": "x"}}
        active = {"active": self.random.random() < 0.5}
        status = {"status": self.random.choice(("final", "amended"))}
        return {"resourceType": kind, "id": id, **(active if kind == "Patient" else {**of, **status})}


def read(found: Iterator[Any]) -> dict[str, bytes]:
    every = [(each.key, each.body) for each in found]
    assert [key for key, _ in every] == sorted({key for key, _ in every})
    return dict(every)


def interrupted(found: Iterator[Any], between: Callable[[], None]) -> Iterator[Any]:
    for each in found:
        between()
        yield each


SOME: dict[str, tuple[Wanted, Callable[[str, bytes], bool]]] = {
    "all": (Wanted(), lambda key, body: True),
    "criteria": (
        Wanted(criteria=(parse("Patient", [("active", "true")]).clauses,)), lambda key, body: b'"active":true' in body
    ),
    "a patient": (
        Wanted(owners=frozenset({"Patient/a"})), lambda key, body: key == "Patient/a" or b'"Patient/a"' in body
    ),
    "none of others": (
        Wanted(owners=frozenset({"Patient/a"}), only=frozenset({"Patient/b"})), lambda key, body: False
    ),
    "in no compartment": (Wanted(owned=False), lambda key, body: False),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", SOME)
def test_what_is_read_while_others_write_is_what_was_at_the_moment(own, clock, name, seed):
    wanted, is_wanted = SOME[name]
    kinds = ("Patient",) if name == "criteria" else KINDS
    writer = Writer(own, clock, seed)
    writer.write(40)
    then = {key: body for key, body in writer.there.items() if is_wanted(key, body)}
    seen = own.as_of(clock.now.replace(microsecond=clock.now.microsecond // 1000 * 1000))
    clock.forward(milliseconds=1)
    writer.write(10)

    found = {kind: read(interrupted(seen.resources(kind, wanted), lambda: writer.write(2))) for kind in kinds}

    assert found == {kind: {k: v for k, v in then.items() if k.startswith(f"{kind}/")} for kind in kinds}


@pytest.mark.parametrize("seed", range(2))
def test_since_has_what_was_changed_and_what_was_deleted(own, clock, seed):
    writer = Writer(own, clock, seed)
    writer.write(40)
    before, since = dict(writer.there), clock.now.replace(microsecond=clock.now.microsecond // 1000 * 1000)
    clock.forward(milliseconds=1)
    writer.deleted.clear()
    writer.write(12)
    seen = own.as_of(clock.now.replace(microsecond=clock.now.microsecond // 1000 * 1000))
    then, gone = dict(writer.there), set(writer.deleted)
    clock.forward(milliseconds=1)
    writer.write(5)

    found = {}
    deleted: list[str] = []
    for kind in KINDS:
        found |= read(interrupted(seen.resources(kind, Wanted(since=since)), lambda: writer.write(1)))
        deleted += [each.key for each in seen.deletions(kind, Wanted(since=since))]

    assert found == {key: body for key, body in then.items() if before.get(key) != body}
    assert sorted(deleted) == sorted(gone)


def test_reading_goes_on_behind_any_key(own, clock):
    writer = Writer(own, clock, 5)
    writer.write(40)
    seen = own.as_of(clock.now)
    clock.forward(milliseconds=1)
    whole = [each.key for each in seen.resources("Patient", Wanted())]
    writer.write(20)

    rest = {after: [each.key for each in seen.resources("Patient", Wanted(), after)] for after in whole}

    assert rest == {after: whole[place + 1 :] for place, after in enumerate(whole)}
    deletions = list(own.as_of(clock.now).deletions("Patient", Wanted(since=clock.now - timedelta(days=1))))
    again = [
        [
            each.key
            for each in own.as_of(clock.now).deletions(
                "Patient", Wanted(since=clock.now - timedelta(days=1)), one.place
            )
        ]
        for one in deletions
    ]
    assert again == [[each.key for each in deletions[place + 1 :]] for place in range(len(deletions))]


def test_some_are_found_by_their_keys(own, clock):
    writer = Writer(own, clock, 6)
    writer.write(60)
    then, seen = dict(writer.there), own.as_of(clock.now)
    clock.forward(milliseconds=1)
    writer.write(10)

    found = seen.these("Patient", ["Patient/a", "Patient/z9", "Patient/0", "Patient/never"], Wanted())

    assert {each.key: each.body for each in found} == {
        key: body for key, body in then.items() if key in ("Patient/a", "Patient/z9", "Patient/0")
    }


def test_the_restriction_is_that_of_the_version(own, clock):
    """What was within reach at the moment is told, though it is not any more, and the other way round."""
    may = Rule(read=(clause("Patient", "active", "true"),))
    for id, active in (("left", True), ("came", False), ("gone", True), ("never", False)):
        own.update({"resourceType": "Patient", "id": id, "active": active})
    since = clock.now - timedelta(seconds=1)
    seen = own.opened_for(Restriction({"Patient": may})).as_of(clock.now)
    clock.forward(milliseconds=1)
    own.update({"resourceType": "Patient", "id": "left", "active": False})
    own.update({"resourceType": "Patient", "id": "came", "active": True})
    for id in ("gone", "never"):
        own.delete("Patient", id)
    later = own.opened_for(Restriction({"Patient": may})).as_of(clock.now)

    assert [each.id for each in seen.resources("Patient", Wanted())] == ["gone", "left"]
    assert [each.id for each in later.resources("Patient", Wanted())] == ["came"]
    assert [each.key for each in later.deletions("Patient", Wanted(since=since))] == ["Patient/gone"]
    assert [each.key for each in seen.deletions("Patient", Wanted(since=since))] == []
    assert (seen.may(Act.SEARCH, "Patient"), seen.may(Act.READ, "Observation")) == (True, False)
    with pytest.raises(AppError):
        list(seen.resources("Observation", Wanted()))


def test_criteria_that_many_resources_decide_are_verified(own, clock, monkeypatch):
    monkeypatch.setattr("fhir_server.store.joins.FEW", 0)
    for id in ("a", "b"):
        own.update({"resourceType": "Patient", "id": id, "active": id == "a"})
        subject = {"subject": {"reference": f"Patient/{id}"}, "status": "final", "code": {"text": "x"}}
        for number in range(5):
            own.update({"resourceType": "Observation", "id": f"{id}{number}", **subject})
    wanted = Wanted(
        criteria=(
            parse("Observation", [("patient.active", "true")]).clauses,
            parse("Observation", [("_id", "b3")]).clauses,
        )
    )

    found = [each.id for each in own.as_of(clock.now).resources("Observation", wanted)]

    assert found == ["a0", "a1", "a2", "a3", "a4", "b3"]


def test_settling_waits_for_a_write_that_was_begun(mongo: MongoClient[Json], db: Database[Json]):
    db["x"].insert_one({"_id": 0})
    done = threading.Event()
    waiting = threading.Thread(target=lambda: (settle(db, wait_s=0), done.set()))
    with mongo.start_session() as session:
        session.start_transaction()
        db["x"].insert_one({"_id": 1}, session=session)
        waiting.start()
        was_early = done.wait(0.3)
        session.commit_transaction()

    assert not was_early
    assert done.wait(5)
    waiting.join()


def test_settling_does_not_wait_for_writes_that_come_later(mongo: MongoClient[Json], db: Database[Json], monkeypatch):
    db["x"].insert_one({"_id": 0})
    opened = []
    look = snapshot._open_transactions

    def begin_another(database: Database[Json]) -> Any:
        found = look(database)
        session = mongo.start_session()
        session.start_transaction()
        db["x"].insert_one({"_id": len(opened) + 1}, session=session)
        opened.append(session)
        return found

    monkeypatch.setattr(snapshot, "_open_transactions", begin_another)
    with mongo.start_session() as session:
        session.start_transaction()
        db["x"].insert_one({"_id": "first"}, session=session)
        threading.Timer(0.2, session.abort_transaction).start()
        begun = time.monotonic()
        settle(db, wait_s=0)
    elapsed_s = time.monotonic() - begun
    for each in opened:
        each.end_session()

    assert elapsed_s < 10


def test_only_clauses_that_hold_then_count(own, clock):
    """A criterion on an element that changes afterwards finds the version of the moment."""
    own.update({"resourceType": "Patient", "id": "a", "gender": "male"})
    seen = own.as_of(clock.now)
    clock.forward(milliseconds=1)
    for _ in range(7):
        clock.forward(milliseconds=1)
        own.update(
            {"resourceType": "Patient", "id": "a", "gender": "female", "active": bool(clock.now.microsecond % 2)}
        )
    male = Wanted(criteria=((Clause("gender", "token", "", (Token(None, "male"),)),),))

    assert [each.json()["gender"] for each in seen.resources("Patient", male)] == ["male"]
