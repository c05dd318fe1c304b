"""Fixtures of the door tests: a whole server on an empty database."""

from collections.abc import Iterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from fhir_server.access.contracts import Right
from tests.support.doors import Caller, Doors, opened
from tests.support.emptied import EmptiedDatabase


@pytest.fixture(scope="session")
def emptied(mongo: MongoClient[dict[str, Any]]) -> Iterator[EmptiedDatabase]:
    made = EmptiedDatabase(mongo)
    yield made
    made.close()


@pytest.fixture
def db(emptied: EmptiedDatabase) -> Iterator[Database[dict[str, Any]]]:
    """A database without documents, where the collections and indexes of a server may be already."""
    with emptied.lent() as database:
        yield database


@pytest.fixture
def doors(db: Database[dict[str, Any]]) -> Iterator[Doors]:
    with opened(db) as made:
        yield made


@pytest.fixture
def both(doors: Doors) -> Caller:
    """A client that may register and receive."""
    return doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="both")


@pytest.fixture
def auditor(doors: Doors) -> Caller:
    return doors.caller(Right.AUDIT, name="auditor")
