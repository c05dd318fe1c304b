"""Fixtures for all tests: a real mongod, started once for the run, and a fresh database for each test."""

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from fhir_server.access import passwords
from tests.support.engine import folder_in_memory, running_engine


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Let processes that tests start be interrupted, also where a shell runs the tests in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def password_cost() -> Iterator[dict[str, int]]:
    """Give what a hash of a password costs; within the tests it costs as little as can be."""
    given = dict(passwords.COST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(passwords.COST, "memory_cost", 64)
        patch.setitem(passwords.COST, "time_cost", 1)
        yield given


@pytest.fixture(scope="session")
def engine_uri() -> Iterator[str]:
    # Not pytest's own temporary directory: that keeps the last three runs, a gigabyte of operation log each.
    folder = tempfile.TemporaryDirectory(prefix="fhir-imaging-test-", dir=folder_in_memory())
    with folder as directory, running_engine(Path(directory)) as uri:
        yield uri


@pytest.fixture(scope="session")
def mongo(engine_uri: str) -> Iterator[MongoClient[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](engine_uri, tz_aware=True, serverSelectionTimeoutMS=5_000) as client:
        yield client


@pytest.fixture
def db(mongo: MongoClient[dict[str, Any]]) -> Iterator[Database[dict[str, Any]]]:
    """An empty database that is dropped after the test."""
    name = f"test_{uuid4().hex}"
    yield mongo[name]
    mongo.drop_database(name)


@pytest.fixture(scope="module")
def module_db(mongo: MongoClient[dict[str, Any]]) -> Iterator[Database[dict[str, Any]]]:
    """An empty database that the tests of one file share."""
    name = f"test_{uuid4().hex}"
    yield mongo[name]
    mongo.drop_database(name)
