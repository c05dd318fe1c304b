"""A database that tests use one after the other: emptied in between instead of made anew.

Collections and indexes of a server stay: to make them takes a mongod longer than most tests take. Where a test took
something away from them, or changed the schema's number, the database is dropped and the next test gets a new one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from pymongo import MongoClient
from pymongo.database import Database

_KEPT = "schema"  # which steps were done, for what stays


@dataclass(frozen=True)
class _Form:
    """What stays of a database: its collections by name, how many indexes they have, and which steps made them."""

    collections: dict[str, Any] = field(default_factory=dict)
    indexes: int = 0
    steps: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, database: Database[dict[str, Any]]) -> "_Form":
        collections = {each["name"]: each["info"]["uuid"] for each in database.list_collections()}
        return cls(collections, database.command("dbStats")["indexes"], list(database[_KEPT].find()))

    def is_kept_in(self, later: "_Form") -> bool:
        is_same_schema = self.steps in ([], later.steps)
        return (
            is_same_schema and self.indexes <= later.indexes and self.collections.items() <= later.collections.items()
        )


class EmptiedDatabase:
    """Lends one database at a time, without documents."""

    def __init__(self, client: MongoClient[dict[str, Any]]) -> None:
        self._client = client
        self._begin()

    @contextmanager
    def lent(self) -> Iterator[Database[dict[str, Any]]]:
        """Give the database, and empty it at the end of the block."""
        yield self._database
        left = _Form.of(self._database)
        if not self._form.is_kept_in(left):
            self.close()
            self._begin()
            return
        self._form = left
        for name in left.collections.keys() - {_KEPT}:
            self._database[name].delete_many({})

    def close(self) -> None:
        """Drop the database."""
        self._client.drop_database(self._database)

    def _begin(self) -> None:
        self._database = self._client[f"test_{uuid4().hex}"]
        self._form = _Form()
