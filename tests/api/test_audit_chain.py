"""The seal of the audit record: whatever is done to it in the database is told by `verify`."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymongo.database import Database

from fhir_server import config
from fhir_server.access.contracts import Right
from fhir_server.app import assemble, verify_record
from imaging.errors import AppError
from tests.support.doors import Doors, opened

Change = Callable[[Any, list[Any]], None]


@pytest.fixture
def doors(db: Database[dict[str, Any]]) -> Iterator[Doors]:
    with opened(db) as made:
        reader = made.caller(Right.RECEIVE_IMAGES)
        for _ in range(5):
            reader.get("/fhir/Patient")
        made.server.audit.close()
        yield made


def problems(doors: Doors) -> list[str]:
    return list(verify_record(doors.server, lambda done, total: None))


def entries(doors: Doors) -> list[Any]:
    return list(doors.server.database["resources"].find({"chain.n": {"$exists": True}}).sort("chain.n"))


def test_record_as_it_was_written_is_whole(doors: Doors) -> None:
    assert len(entries(doors)) >= 5
    assert problems(doors) == []


CHANGES: dict[str, tuple[Change, str]] = {
    "another text": (
        lambda found, all: found.update_one({"_id": all[2]["_id"]}, {"$set": {"body": all[3]["body"]}}),
        "was changed",
    ),
    "taken out": (lambda found, all: found.delete_one({"_id": all[2]["_id"]}), "entry 3 is missing"),
    "the end taken out": (lambda found, all: found.delete_one({"_id": all[-1]["_id"]}), "is missing"),
    "all taken out": (lambda found, all: found.delete_many({"chain.n": {"$exists": True}}), "all of its entries"),
    "taken out of the chain": (
        lambda found, all: found.update_one({"_id": all[1]["_id"]}, {"$unset": {"chain": 1}}),
        "entry 2 is missing",
    ),
    "slipped in": (
        lambda found, all: found.insert_one({**all[2], "_id": "AuditEvent/forged"}),
        "there twice",
    ),
    "another name": (
        lambda found, all: (
            found.delete_one({"_id": all[2]["_id"]}),
            found.insert_one({**all[2], "_id": "AuditEvent/renamed"}),
        ),
        "was changed",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_done_to_the_record_is_told(doors: Doors, name: str) -> None:
    change, words = CHANGES[name]
    change(doors.server.database["resources"], entries(doors))

    found = problems(doors)

    assert any(words in each for each in found), found


def test_chain_made_anew_without_the_key_is_told(doors: Doors) -> None:
    other = assemble(config.load({"audit.key": "k" * 32}, environment={}), doors.server.database, clock=doors.clock)

    found = list(verify_record(other, lambda done, total: None))

    assert len(found) >= 5
    other.archive.close()


def test_short_key_is_refused(db: Database[dict[str, Any]]) -> None:
    with pytest.raises(AppError, match="at least 32 characters"), opened(db, audit__key="short"):
        pass


def test_entries_of_many_at_once_are_in_the_chain(doors: Doors) -> None:
    before = len(entries(doors))
    with doors.server.audit.gathered():
        for number in range(3):
            doors.server.audit.signed_in(f"login-{number}", "Organization/1")
    doors.server.audit.close()

    assert len(entries(doors)) == before + 3
    assert problems(doors) == []
