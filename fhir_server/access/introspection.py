"""Asking the issuer of tokens about them, so that whoever shows nonsense here makes this server no nuisance there.

What the issuer says no to is not asked again for a while. Of tokens that it has not said yes to yet, few are asked at a
time, and each network address has an allowance that only refusals use up; beyond it they are turned away unasked. A
token that was good before is always asked about. All of this is counted in each process by itself.   Source: RFC 7662.
"""

import threading
import time
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode

import orjson

from fhir_server.access.allowance import Allowance
from fhir_server.access.whence import address
from fhir_server.outbound.remote import Remote, Rules
from fhir_server.store.credentials import digest
from imaging.errors import AppError, Category

MOST_BYTES = 65_536  # of an answer
WITHIN_S = 10.0  # of asking
REFUSED_S = 30.0  # for which a no is believed
KNOWN_S = 3_600.0  # for which a token that was good is asked about without counting
AT_A_TIME = 4  # unknown tokens that a process asks about
WAIT_S = 2.0  # for one of these places
PER_S, BURST = 0.5, 30.0  # unknown tokens that are refused, of one network address
ALL_PER_S, ALL_BURST = 10.0, 100.0  # of all together
MOST = 10_000  # tokens and addresses remembered
WHERE = "introspection"

Claims = Mapping[str, Any]


class Introspection:
    """Asks one issuer, as `client_id` with `client_secret`."""

    def __init__(
        self,
        url: str,
        client_id: str,
        client_secret: str,
        rules: Callable[[], Rules],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        # RFC 6749 2.3.1: both are form-encoded before they are joined.
        pair = f"{quote(client_id, safe='')}:{quote(client_secret, safe='')}"
        self._authorization = f"Basic {b64encode(pair.encode()).decode()}"
        self._rules = rules
        self._clock_s = clock_s
        self._refused, self._known = _Remembered(clock_s), _Remembered(clock_s)
        self._places = threading.BoundedSemaphore(AT_A_TIME)
        self._all = Allowance(ALL_PER_S, ALL_BURST, clock_s)
        self._by_address: OrderedDict[str, Allowance] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def claims(self, token: str) -> Iterator[Claims]:
        """Give what the issuer says of an active token, to be checked inside of the block.

        Raises UNAUTHENTICATED for one that is not active. What the block raises as UNAUTHENTICATED is remembered like a
        no. Raises BUSY where the issuer is silent or too many unknown tokens are shown.
        """
        key = digest(token)
        if self._refused.has(key):
            raise _inactive()
        try:
            with self._place(is_known=self._known.has(key)):
                yield self._asked(token)
        except AppError as error:
            if error.category is Category.UNAUTHENTICATED:
                self._known.forget(key)
                self._refused.add(key, REFUSED_S)
            raise
        self._known.add(key, KNOWN_S)

    @contextmanager
    def _place(self, *, is_known: bool) -> Iterator[None]:
        """Let the block ask; only what it raises as UNAUTHENTICATED uses something up."""
        if is_known:
            yield
            return
        allowances = (self._of(address()), self._all)
        taken = [each for each in allowances if each.take()]
        is_refused = False
        try:
            if len(taken) < len(allowances):
                message = "too many bearer tokens that are not good were shown; wait before the next unknown one"
                raise AppError(Category.BUSY, message, where=WHERE)
            if not self._places.acquire(timeout=WAIT_S):
                raise AppError(Category.BUSY, "too many unknown bearer tokens are asked about", where=WHERE)
            try:
                yield
            except AppError as error:
                is_refused = error.category is Category.UNAUTHENTICATED
                raise
            finally:
                self._places.release()
        finally:
            for each in taken:
                if not is_refused:
                    each.give_back()

    def _of(self, network_address: str) -> Allowance:
        with self._lock:
            found = self._by_address.pop(network_address, None) or Allowance(PER_S, BURST, self._clock_s)
            self._by_address[network_address] = found
            if len(self._by_address) > MOST:
                self._by_address.popitem(last=False)
            return found

    def _asked(self, token: str) -> Claims:
        body = urlencode({"token": token, "token_type_hint": "access_token"}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        with Remote(self._url, self._rules(), name=WHERE, authorization=self._authorization) as remote:
            answer = remote.exchange("POST", "", headers=headers, body=body, most_bytes=MOST_BYTES, within_s=WITHIN_S)
        if answer.status != 200:
            raise AppError(Category.BUSY, "the issuer of the token cannot be asked about it", where=WHERE)
        try:
            claims = orjson.loads(answer.body)
        except orjson.JSONDecodeError:
            claims = None
        if not isinstance(claims, dict) or claims.get("active") is not True:
            raise _inactive()
        return claims


class _Remembered:
    """Digests that are remembered for a while; the oldest go first when there are too many."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._until: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def has(self, key: str) -> bool:
        return self._clock_s() < self._until.get(key, 0.0)

    def add(self, key: str, life_s: float) -> None:
        with self._lock:
            self._until.pop(key, None)
            self._until[key] = self._clock_s() + life_s
            if len(self._until) > MOST:
                self._until.popitem(last=False)

    def forget(self, key: str) -> None:
        with self._lock:
            self._until.pop(key, None)


def _inactive() -> AppError:
    return refused("it is not active")


def refused(why: str) -> AppError:
    """Return the error for a bearer token that is not good."""
    return AppError(Category.UNAUTHENTICATED, f"the bearer token is not good here: {why}", where="Authorization")
