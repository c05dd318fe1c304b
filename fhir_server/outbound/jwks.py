"""Public keys of others, fetched from the address that was registered for them.

Hides the fetch, its limits and a cache that believes an answer no longer than the other side says (Cache-Control,
RFC 9111 5.2.2) and never longer than `LONGEST_S`. Only https is taken, redirects are not followed, and the address has
to be permitted by the rules of all outgoing connections.
"""

import re
import threading
import time
from collections.abc import Callable
from typing import Any

import orjson

from fhir_server.outbound.remote import Remote, Rules, require_good
from imaging.errors import AppError, Category

MOST_BYTES = 1 << 18  # of a key set
MOST_KEYS = 100
LONGEST_S = 3600.0
DEFAULT_S = 300.0  # where the other side says nothing
SHORTEST_S = 10.0  # between two fetches of the same address, so that nobody makes this server ask all the time
_MOST_CACHED = 1000
_MAX_AGE = re.compile(r"(?:^|,)\s*max-age\s*=\s*\"?(\d{1,9})\"?\s*(?:,|$)", re.IGNORECASE)
_FORBIDS = re.compile(r"(?:^|,)\s*(?:no-store|no-cache)\s*(?:,|$|=)", re.IGNORECASE)


class KeySets:
    """Fetches key sets and remembers them for as long as it may."""

    def __init__(self, rules: Callable[[], Rules], clock_s: Callable[[], float] = time.monotonic) -> None:
        self._rules = rules
        self._clock_s = clock_s
        self._known: dict[str, tuple[dict[str, Any], float, float]] = {}  # keys, fetched, good until
        self._failed: dict[str, tuple[AppError, float]] = {}  # why not, and when
        self._lock = threading.Lock()

    def get(self, url: str, *, refresh: bool = False) -> dict[str, Any]:
        """Return the key set at `url`, `{"keys": [...]}`.

        refresh   fetch it although it is known, since a key was not in it; at most once in `SHORTEST_S`

        A failure is believed for `SHORTEST_S` too.

        Raises INVALID for an address or an answer that is none, FORBIDDEN for an address that is not permitted, BUSY
        when the other side does not answer, TOO_LARGE beyond the limits.
        """
        now = self._clock_s()
        found = self._known.get(url)
        if found and (now < found[2] if not refresh else now < found[1] + SHORTEST_S):
            return found[0]
        failure, failed = self._failed.get(url, (None, now))
        if failure and now < failed + SHORTEST_S:
            raise AppError(failure.category, failure.message, where=failure.where)
        try:
            keys, life_s = _fetched(url, self._rules())
        except AppError as error:
            self._keep(self._failed, url, (error, now))
            raise
        self._keep(self._known, url, (keys, now, now + life_s))
        return keys

    def _keep(self, kept: dict[str, Any], url: str, value: Any) -> None:
        with self._lock:
            if len(kept) >= _MOST_CACHED:
                kept.clear()
            kept[url] = value


def parsed(text: bytes | str) -> dict[str, Any]:
    """Return a key set that was written as JSON. Raises INVALID, TOO_LARGE."""
    if len(text) > MOST_BYTES:
        raise AppError(Category.TOO_LARGE, f"a key set has at most {MOST_BYTES} bytes", where="jwks")
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise AppError(Category.INVALID, "a key set is JSON: {'keys': [...]}", where="jwks") from None
    keys = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(keys, list) or not all(isinstance(each, dict) for each in keys):
        raise AppError(Category.INVALID, "a key set is JSON with a list `keys` of objects", where="jwks")
    if len(keys) > MOST_KEYS:
        raise AppError(Category.TOO_LARGE, f"a key set has at most {MOST_KEYS} keys", where="jwks")
    return {"keys": keys}


def life_s(cache_control: str) -> float:
    """Return for how many seconds an answer may be believed."""
    if _FORBIDS.search(cache_control):
        return 0.0
    age = _MAX_AGE.search(cache_control)
    return min(float(age[1]), LONGEST_S) if age else DEFAULT_S


def _fetched(url: str, rules: Rules) -> tuple[dict[str, Any], float]:
    with Remote(url, rules, name="jwks_uri") as remote:
        answer = remote.exchange("GET", "", headers={"Accept": "application/json"}, most_bytes=MOST_BYTES)
    require_good(answer.status, "jwks_uri")
    return parsed(answer.body), life_s(answer.headers.get("cache-control", ""))
