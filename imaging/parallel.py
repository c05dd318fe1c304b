"""Runs a function over many items in a pool, in order, without running far ahead of whoever takes the results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import Final, TypeVar

T = TypeVar("T")
S = TypeVar("S")

_AHEAD: Final = 8
"""Items under way at most: bounds memory to a few frames."""


def in_order(function: Callable[[T], S], items: Iterable[T], pool: Executor | None) -> Iterator[S]:
    """Yield `function` of every item, in order; in the caller's thread when there is no pool.

    Items that were not begun are cancelled when the caller stops early.
    """
    if pool is None:
        yield from map(function, items)
        return
    rest = iter(items)
    waiting: deque[Future[S]] = deque(pool.submit(function, item) for item in islice(rest, _AHEAD))
    try:
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(rest, 1))
    finally:
        for future in waiting:
            future.cancel()
