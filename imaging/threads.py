"""Threads for work on many frames or slices at once, of code that lets go of the interpreter's lock meanwhile."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(work: Callable[[A], B], of: Iterable[A]) -> Iterator[B]:
    """Yield what `work` makes of each, in their order; one after the other where there is one processor."""
    if processors() < 2:
        yield from map(work, of)
        return
    with ThreadPoolExecutor(processors(), "each") as threads:
        yield from threads.map(work, of)


def together(work: Callable[[Sequence[A]], Iterable[B]], of: Sequence[A], size: int) -> Iterator[B]:
    """Yield what `work` makes of each, in their order, where it makes up to `size` of them at once."""
    return chain.from_iterable(each(work, [of[start : start + size] for start in range(0, len(of), size)]))
