"""Leases, shared secrets and the schema, on a real database."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.client_session import ClientSession
from pymongo.database import Database

from fhir_server.model.resources import RESOURCES
from fhir_server.store.lease import Lease, Leases
from fhir_server.store.schema import COLLECTIONS, MIGRATIONS, ensure_schema, resource_indexes
from fhir_server.store.secrets import secret
from imaging.errors import AppError, Category

Json = dict[str, Any]
Data = Database[Json]


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(db: Data, clock: Clock) -> Leases:
    return Leases(db, clock)


def test_a_lease_is_held_by_one(leases: Leases) -> None:
    held = leases.claim("study", "a", 60)

    assert held is not None
    assert leases.claim("study", "b", 60) is None
    assert leases.claim("study", "a", 60) is None
    assert leases.claim("other", "b", 60) is not None


def test_a_lease_that_is_over_goes_to_the_next_with_a_higher_token(leases: Leases, clock: Clock) -> None:
    first = leases.claim("study", "a", 60)
    assert first is not None
    clock.move(60)

    second = leases.claim("study", "b", 60)

    assert second is not None
    assert (second.token > first.token, first.attempt, second.attempt) == (True, 1, 2)
    assert (leases.holds(first), leases.holds(second)) == (False, True)
    assert leases.renew(first, 60) is None
    assert leases.finish(first) is False


def test_a_renewed_lease_lasts_longer(leases: Leases, clock: Clock) -> None:
    held = leases.claim("study", "a", 60)
    assert held is not None
    clock.move(59)

    renewed = leases.renew(held, 60)

    assert renewed is not None
    clock.move(59)
    assert leases.claim("study", "b", 60) is None
    assert leases.holds(renewed)


def test_what_was_finished_begins_at_the_first_attempt(leases: Leases) -> None:
    held = leases.claim("study", "a", 60)
    assert held is not None

    assert leases.finish(held)

    again = leases.claim("study", "b", 60)
    assert again is not None
    assert (again.attempt, again.token > held.token) == (1, True)


def test_what_was_given_back_counts_as_tried(leases: Leases) -> None:
    held = leases.claim("study", "a", 60)
    assert held is not None

    assert leases.give_back(held)

    again = leases.claim("study", "b", 60)
    assert again is not None
    assert again.attempt == 2
    assert leases.renew(held, 60) is None


def test_tokens_grow_even_when_the_database_forgot_the_lease(leases: Leases, db: Data, clock: Clock) -> None:
    held = leases.claim("study", "a", 60)
    assert held is not None
    db["leases"].delete_many({})
    clock.move(1)

    again = leases.claim("study", "a", 60)

    assert again is not None
    assert again.token > held.token


def test_of_many_at_once_one_gets_the_lease(leases: Leases) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: leases.claim("study", f"w{number}", 60), range(16)))

    assert sum(one is not None for one in found) == 1


def test_a_secret_is_made_once_whoever_asks(db: Data) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: secret(db, "cursor"), range(16)))

    assert len(found) == 1
    assert len(found.pop()) == 32
    assert secret(db, "other") != secret(db, "cursor")


def test_several_processes_may_bring_up_the_schema_at_once(db: Data) -> None:
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda _: ensure_schema(db), range(4)))

    assert numbers == [MIGRATIONS[-1][0]] * 4
    assert set(COLLECTIONS) <= set(db.list_collection_names())
    named = {index.document["name"] for index in resource_indexes()}
    assert named == set(db["resources"].index_information()) - {"_id_"}


def test_every_sort_of_the_table_has_its_indexes() -> None:
    named = {index.document["name"] for index in resource_indexes()}

    wanted = {f"{row.name}.{code}" for row in RESOURCES.values() for code in row.sorts}
    assert wanted <= named
    assert len(named) < 60  # MongoDB allows 64 in a collection


def test_the_steps_of_others_run_under_the_same_lease(db: Data) -> None:
    ran: list[str] = []
    steps: list[Callable[[Data], None]] = [lambda database: ran.append(database.name)]

    ensure_schema(db, others=steps)
    ensure_schema(db, others=steps)

    assert ran == [db.name, db.name]


def test_a_database_of_a_later_version_is_left_alone(db: Data) -> None:
    ensure_schema(db)
    db["schema"].update_one({"_id": "version"}, {"$set": {"number": 999}})

    with pytest.raises(AppError) as raised:
        ensure_schema(db)

    assert raised.value.category is Category.CONFLICT


def test_an_index_of_another_shape_is_told(db: Data) -> None:
    db["resources"].create_index([("other", 1)], name="newest")

    with pytest.raises(AppError, match="newest") as raised:
        ensure_schema(db)

    assert raised.value.category is Category.CONFLICT


def test_a_lost_lease_undoes_the_transaction_it_guards(db: Data, leases: Leases, clock: Clock) -> None:
    db.create_collection("results")
    slow = leases.claim("order", "slow", 10)
    assert slow is not None
    clock.move(11)
    quick = leases.claim("order", "quick", 10)
    assert quick is not None

    def publish(lease: Lease) -> None:
        def attempt(session: ClientSession) -> None:
            db.results.insert_one({"by": lease.worker}, session=session)
            leases.finishing(lease)(session)

        with db.client.start_session() as session:
            session.with_transaction(attempt)

    with pytest.raises(AppError) as caught:
        publish(slow)
    publish(quick)

    assert caught.value.category is Category.CONFLICT
    assert [row["by"] for row in db.results.find()] == ["quick"]
    assert leases.claim("order", "next", 10) is not None


def test_a_postponed_lease_waits_and_counts_what_it_is_told(leases: Leases, clock: Clock) -> None:
    held = leases.claim("order", "a", 60)
    assert held is not None

    leases.postpone(held, 30, 0)

    assert leases.claim("order", "b", 60) is None
    clock.move(31)
    again = leases.claim("order", "b", 60)
    assert again is not None
    assert again.attempt == 1


def test_a_lease_that_somebody_died_with_in_a_transaction_keeps_nobody_waiting(db: Data, leases: Leases) -> None:
    held = leases.claim("order", "dead", 10)
    assert held is not None
    leases.postpone(held, 0, 0)

    with db.client.start_session() as session, session.start_transaction():
        db["leases"].update_one({"_id": "order"}, {"$set": {"worker": "dead"}}, session=session)
        started = time.monotonic()
        found = leases.claim("order", "next", 10)
        session.abort_transaction()

    assert found is None
    assert time.monotonic() - started < 10
    assert leases.claim("order", "next", 10) is not None
