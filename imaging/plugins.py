"""Registries: named tables of interchangeable things, filled by decorator or by entry points of other packages."""

import re
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from imaging.errors import AppError, Category

T = TypeVar("T")

NAME_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-]{0,49}")


class Registry(Generic[T]):
    """A table from name to thing. Refuses duplicates, loads entry points of its group on first use.

    What could not be loaded is listed in `failures` with the reason, and never hides the rest.
    """

    def __init__(self, group: str) -> None:
        self.group = group
        self.failures: dict[str, str] = {}
        self._items: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enters its object under `name`.

        Raises CONFLICT when the name is taken, INVALID when it could not be a part of an id or of a URN.
        """

        def enter(item: T) -> T:
            if not NAME_FORM.fullmatch(name):
                message = f"{name[:64]!r} is no name: up to 50 letters, digits, hyphens and points"
                raise AppError(Category.INVALID, message, where=self.group)
            if name in self._items:
                raise AppError(Category.CONFLICT, f"{name!r} is registered twice", where=self.group)
            self._items[name] = item
            return item

        return enter

    def get(self, name: str) -> T:
        """Return what is registered under `name`. Raises UNSUPPORTED, naming what there is."""
        items = self._table()
        if name not in items:
            known = ", ".join(sorted(items)) or "nothing"
            raise AppError(Category.UNSUPPORTED, f"{name!r} is unknown; available: {known}", where=self.group)
        return items[name]

    def __contains__(self, name: str) -> bool:
        return name in self._table()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._table()))

    def _table(self) -> dict[str, T]:
        if not self._loaded:
            self._loaded = True
            for entry in entry_points(group=self.group):
                try:
                    self.register(entry.name)(entry.load())
                # A foreign package may fail in any way while it is imported; the others must still work.
                except Exception as error:  # noqa: BLE001
                    self.failures[entry.name] = f"{type(error).__name__}: {error}"
        return self._items
