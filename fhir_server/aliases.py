"""The UIDs by which one recipient knows series and instances, and the way back from them.

Replaced UIDs are digests that lead nowhere back: the UIDs of a study's own series and instances are replaced to find
which one is meant, so that the cost does not grow with the store.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from imaging.archive import Archive
from imaging.deidentify import Pseudonyms
from imaging.errors import AppError, Category

Members = Mapping[str, tuple[str, str]]  # replaced SOP Instance UID -> (Series, SOP Instance UID)

_MOST_KNOWN: Final = 16  # studies whose instances a process remembers


@dataclass(frozen=True)
class Aliases:
    """What a recipient, "Organization/...", calls things. `known` is what the process remembers."""

    archive: Archive
    recipient: str
    key: bytes
    known: dict[tuple[str, str], Members]

    def replaced(self, uid: str) -> str:
        """Return the UID that this recipient knows instead of an original one."""
        return Pseudonyms(self.key, "").uid(uid)

    def series(self, study: str, uid: str) -> str:
        """Return the original UID of a series, `study` being original. Raises NOT_FOUND."""
        for members in self._tries(study):
            for series in {series for series, _ in members.values()}:
                if self.replaced(series) == uid:
                    return series
        raise AppError(Category.NOT_FOUND, "no such series", where=uid)

    def member(self, study: str, uid: str, series_uid: str | None = None) -> tuple[str, str]:
        """Return the original UIDs of an instance and of its series, `study` being original. Raises NOT_FOUND.

        series_uid   what the recipient calls the series, where that has to fit
        """
        for members in self._tries(study):
            series, sop = members.get(uid, ("", ""))
            if series and series_uid in (None, self.replaced(series)):
                return series, sop
        raise AppError(Category.NOT_FOUND, "no such instance", where=uid)

    def _tries(self, study: str) -> Iterator[Members]:
        """Yield the instances of a study as they are remembered, and then as they are."""
        place = self.recipient, study
        if place in self.known:
            yield self.known[place]
        members = {self.replaced(sop): (series, sop) for series, sop in self.archive.contents(study).members}
        if len(self.known) >= _MOST_KNOWN:
            self.known.clear()
        self.known[place] = members
        yield members


@contextmanager
def hidden(uid: str) -> Iterator[None]:
    """Have errors name the UID that was asked for, not the one that it stands for."""
    try:
        yield
    except AppError as error:
        raise AppError(error.category, error.message, where=uid) from None
