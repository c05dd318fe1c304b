"""How many passwords are looked at at a time, and by whom others are kept waiting."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice

import pytest
from argon2 import PasswordHasher

from fhir_server.access.passwords import NICE, Passwords
from imaging.errors import AppError, Category

PASSWORD = "correct horse battery"


class Slow:
    """Hashes when it is let, and knows how many did so together and how willingly they stepped back."""

    def __init__(self) -> None:
        self.may_go = threading.Event()
        self.begun = threading.Semaphore(0)
        self.at_work = self.most_at_work = self.niceness = 0

    def hash(self, password: str) -> str:
        return f"hash of {password}"

    def verify(self, hash: str, password: str) -> bool:
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        self.niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        self.begun.release()
        assert self.may_go.wait(10)
        self.at_work -= 1
        return hash == f"hash of {password}"


@pytest.fixture
def slow() -> Iterator[Slow]:
    made = Slow()
    yield made
    made.may_go.set()


def test_one_is_hashed_others_wait_and_the_rest_is_turned_away_at_once(slow: Slow) -> None:
    passwords = Passwords(places=3, hasher=slow)
    known = passwords.hash(PASSWORD)

    with ThreadPoolExecutor(20) as callers:
        asked = [callers.submit(passwords.matches, known, PASSWORD) for _ in range(20)]
        assert slow.begun.acquire(timeout=10)
        turned_away = [each.exception() for each in islice(as_completed(asked, timeout=10), 17)]
        assert passwords.is_full()
        slow.may_go.set()
        answers = [each.result(10) for each in asked if each.exception(10) is None]

    assert [getattr(error, "category", error) for error in turned_away] == [Category.BUSY] * 17
    assert not passwords.is_full()
    assert answers == [True] * 3
    assert slow.most_at_work == 1


def test_an_operator_sets_a_password_however_many_sign_in(slow: Slow) -> None:
    passwords = Passwords(places=1, hasher=slow)

    with ThreadPoolExecutor(1) as caller:
        caller.submit(passwords.matches, "hash of x", "x")
        assert slow.begun.acquire(timeout=10)
        assert passwords.is_full()
        kept = passwords.hash(PASSWORD)
        slow.may_go.set()

    assert kept == f"hash of {PASSWORD}"


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="priorities of threads are Linux's")
def test_who_hashes_steps_back_and_nobody_else(slow: Slow) -> None:
    slow.may_go.set()
    ours = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert Passwords(places=1, hasher=slow).matches("hash of x", "x")

    assert slow.niceness == min(NICE, 19)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == ours


def test_place_is_free_again_after_each(slow: Slow) -> None:
    slow.may_go.set()
    passwords = Passwords(places=1, hasher=slow)

    assert [passwords.matches("hash of x", word) for word in ("x", "y", "x")] == [True, False, True]
    with pytest.raises(AppError, match="12 to 256"):
        passwords.hash("short")
    assert passwords.matches("hash of x", "x")


def test_hash_costs_what_the_standard_recommends(password_cost: dict[str, int]) -> None:
    kept = Passwords(places=1, hasher=PasswordHasher(**password_cost)).hash(PASSWORD)

    assert kept.startswith("$argon2id$v=19$m=65536,t=3,p=1$")  # RFC 9106 section 4, the second choice, in one lane


def test_password_of_nobody_takes_the_time_of_one_and_is_wrong() -> None:
    passwords = Passwords(places=1)

    assert not passwords.matches("", PASSWORD)
    assert not passwords.matches("", "")


def test_accents_typed_in_two_ways_are_one_password() -> None:
    passwords = Passwords(places=1)
    known = passwords.hash("caf\u00e9 cr\u00e8me br\u00fbl\u00e9e")

    assert passwords.matches(known, "cafe\u0301 cre\u0300me bru\u0302le\u0301e")
