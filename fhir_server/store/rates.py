"""How often something was asked in the minute at hand, counted for all processes together in MongoDB.

`limits` counts; its storage uses our client instead of one of its own.

* `rates`  `_id` what is counted; how often; when the minute is over
"""

import time
from typing import Any

from limits import RateLimitItemPerMinute
from limits.storage import MongoDBStorage
from limits.strategies import FixedWindowRateLimiter
from pymongo import MongoClient
from pymongo.database import Database


class Rates:
    """Says who asks too often."""

    def __init__(self, database: Database[Any], *, per_minute: int) -> None:
        self._limiter = FixedWindowRateLimiter(_Storage(database))
        self._limit = RateLimitItemPerMinute(per_minute)

    def wait_s(self, *names: str) -> int:
        """Count one more request of these names; return 0, or after how many seconds there is room again."""
        if self._limiter.hit(self._limit, *names):
            return 0
        end = self._limiter.get_window_stats(self._limit, *names).reset_time
        return max(1, int(end - time.time()) + 1)


class _Storage(MongoDBStorage):
    STORAGE_SCHEME = ["mongodb+ours"]  # noqa: RUF012 -- as its parent has it; nobody asks for this one by address

    def __init__(self, database: Database[Any]) -> None:
        self._ours = database.client
        super().__init__("", database.name, counter_collection_name="rates", window_collection_name="rate_windows")

    def _init_mongo_client(self, uri: str | None, **options: int | str | bool) -> MongoClient[Any]:
        return self._ours

    def __del__(self) -> None:
        """Leave the client open, which the parent would close: everybody uses it."""
