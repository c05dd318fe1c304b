"""Fixtures of the door tests: a whole server on a fresh database."""

from collections.abc import Iterator
from typing import Any

import pytest
from pymongo.database import Database

from fhir_server.access.contracts import Right
from tests.support.doors import Caller, Doors, opened


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
