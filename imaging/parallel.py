"""Runs a function over many items in a pool, in order, without running far ahead of whoever takes the results."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from itertools import islice
from typing import Final, TypeVar

T = TypeVar("T")
S = TypeVar("S")

_AHEAD: Final = 8
_AHEAD_BYTES: Final = 128 << 20
"""Items under way at most, and what all of them may take: bounds memory to a few frames, large ones to one."""


def in_order(function: Callable[[T], S], items: Iterable[T], pool: Executor | None, *, item_bytes: int) -> Generator[S]:
    """Yield `function` of every item, in order; in the caller's thread when there is no pool.

    item_bytes  about what one result takes in memory

    Items that were not begun are cancelled when the caller stops early.
    """
    if pool is None:
        yield from map(function, items)
        return
    rest = iter(items)
    ahead = max(1, min(_AHEAD, _AHEAD_BYTES // max(1, item_bytes)))
    waiting: deque[Future[S]] = deque(pool.submit(function, item) for item in islice(rest, ahead))
    try:
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(rest, 1))
    finally:
        for future in waiting:
            future.cancel()
