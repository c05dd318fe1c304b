"""Collections as a part of one transaction."""

from functools import partial
from typing import Any

from pymongo.client_session import ClientSession
from pymongo.collection import Collection


class InSession:
    """A collection whose every operation belongs to the transaction of a session."""

    def __init__(self, collection: Collection[Any], session: ClientSession) -> None:
        self._collection = collection
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return partial(getattr(self._collection, name), session=self._session)
