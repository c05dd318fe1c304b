"""Passwords: how they are kept and checked, so that a storm of sign-ins leaves images their processors and threads.

Argon2id (RFC 9106). A hash needs much memory and time on purpose. So one is made at a time in a process, by a thread
that steps back where others want the processors; some more callers wait, and who comes when all places are taken is
told at once to try again. A password for nobody costs as much time as one of somebody.
"""

import os
import secrets
import sys
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from imaging.errors import AppError, Category

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

SHORTEST, LONGEST = 12, 256  # characters; NIST SP 800-63B 5.1.1.2 asks for at least 8
# 64 MiB (in KiB), 3 passes: the second recommendation of RFC 9106, but one lane instead of four. A hash is as hard to
# guess, and takes one processor from others while it is made.
COST = {"memory_cost": 64 * 1024, "time_cost": 3, "parallelism": 1}
AT_ONCE = 1  # hashes in a process, each of which takes 64 MiB
PATIENCE_S = 5.0
NICE = 5  # of the thread that hashes: it gets a third of what another thread gets where all want the processors


class Hasher(Protocol):
    """What makes hashes, as `argon2.PasswordHasher`."""

    def hash(self, password: str) -> str: ...  # noqa: D102
    def verify(self, hash: str, password: str) -> bool: ...  # noqa: D102


class Passwords:
    """Hashes and compares.

    places   of callers, who wait for their hash with a thread of the server: the one that is served included
    """

    def __init__(self, places: int, hasher: Hasher | None = None) -> None:
        passes, kibibytes, lanes = (COST[each] for each in ("time_cost", "memory_cost", "parallelism"))
        self._hasher = hasher or PasswordHasher(passes, kibibytes, lanes)
        self._places = threading.BoundedSemaphore(places)
        self._pool = ThreadPoolExecutor(AT_ONCE, "passwords", initializer=_step_back)
        self._decoy = ""

    def is_full(self) -> bool:
        """Say whether who came now would be turned away."""
        if not self._places.acquire(blocking=False):
            return True
        self._places.release()
        return False

    def hash(self, password: str) -> str:
        """Return what is kept of a password that an operator's command sets; it waits for nobody. Raises INVALID."""
        plain = _plain(password)
        if not SHORTEST <= len(plain) <= LONGEST:
            raise AppError(Category.INVALID, f"a password has {SHORTEST} to {LONGEST} characters", where="password")
        return self._hasher.hash(plain)

    def matches(self, known: str, password: str) -> bool:
        """Say whether a password is the one of which `known` was kept; "" is kept of nobody's. Raises BUSY."""
        plain = _plain(password)
        return self._in_turn(lambda: self._verify(known, plain))

    def _verify(self, known: str, plain: str) -> bool:
        if not known:
            self._decoy = self._decoy or self._hasher.hash(secrets.token_urlsafe())
        try:
            return self._hasher.verify(known or self._decoy, plain)
        except (Argon2Error, InvalidHashError):
            return False

    def _in_turn(self, work: "Callable[[], T]") -> T:
        if not self._places.acquire(blocking=False):
            raise _busy()
        try:
            waited_for = self._pool.submit(work)
            try:
                return waited_for.result(PATIENCE_S)
            except TimeoutError:
                waited_for.cancel()
                raise _busy() from None
        finally:
            self._places.release()


def _busy() -> AppError:
    return AppError(Category.BUSY, "too many people sign in at this moment; try again", where="sign-in")


def _step_back() -> None:
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def _plain(password: str) -> str:
    # The same password typed on another keyboard has to be the same: NIST SP 800-63B 5.1.1.2, RFC 8265 4.2.
    return unicodedata.normalize("NFC", password)
