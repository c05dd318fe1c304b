"""Collections as a part of one transaction."""

from collections.abc import Callable
from typing import Any

from pymongo.client_session import ClientSession
from pymongo.collection import Collection


class InSession:
    """A collection whose every operation belongs to the transaction of a session, and comes after what waits."""

    def __init__(self, collection: Collection[Any], session: ClientSession, flush: Callable[[], None]) -> None:
        self._collection = collection
        self._session = session
        self._flush = flush

    def __getattr__(self, name: str) -> Any:
        act = getattr(self._collection, name)

        def call(*arguments: Any, **options: Any) -> Any:
            self._flush()
            return act(*arguments, **{"session": self._session, **options})

        return call
