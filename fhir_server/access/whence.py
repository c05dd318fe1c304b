"""From which network address the work at hand was asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_address: ContextVar[str] = ContextVar("address", default="")


@contextmanager
def from_address(address: str) -> Iterator[None]:
    """Say for the work inside from which network address it was asked; "" when that is not known."""
    token = _address.set(address)
    try:
        yield
    finally:
        _address.reset(token)


def address() -> str:
    """Return from which network address the work at hand was asked for, "" when that is not known."""
    return _address.get()
