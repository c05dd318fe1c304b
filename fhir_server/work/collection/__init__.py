"""Collection of images from sources that subscribers have registered: a DICOMweb server that is polled, or a folder.

`plan` says what to ask and when; a Source looks for what is new and takes it, item by item; `collector` looks when one
is due and orders the taking, a `collect` Task (`fhir_server/work/kinds/collect.py`).
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from fhir_server.store.collected import Tally
from imaging.archive import Outcome
from imaging.blobs import Buffer
from imaging.errors import AppError, Category

Ingest = Callable[[Iterable[Buffer], str | None], Iterator[Outcome]]  # (files, the only study that is welcome)

# A refusal for one of these says that the instance is never going to be taken; for others it is tried again.
FINAL = frozenset({Category.INVALID, Category.UNSUPPORTED, Category.TOO_LARGE, Category.CONFLICT})


@dataclass(frozen=True, slots=True)
class Expected:
    """What would come of a look: instances of one study, `of` how many that the source has of it."""

    study_uid: str
    date: str
    modalities: str
    instances: int
    of: int
    note: str = ""


@dataclass(slots=True)
class Budget:
    """What a round may still fetch, and until when (monotonic seconds)."""

    instances: int
    bytes: int
    until: float

    @property
    def is_spent(self) -> bool:
        """Say whether nothing more is to be asked for."""
        return self.instances <= 0 or self.bytes <= 0 or self.left_s <= 0

    @property
    def left_s(self) -> float:
        """How much time is left."""
        return self.until - time.monotonic()

    def spend(self, size: int) -> None:
        """Take one instance of so many bytes off."""
        self.instances -= 1
        self.bytes -= size


class Item(Protocol):
    """One thing at a source that is new or has changed: a study, or a few files."""

    @property
    def date(self) -> str:
        """The study date that the mark may go to when all items before are done, "" for none."""

    @property
    def size(self) -> int:
        """About how many instances it has, at least 1."""


T = TypeVar("T", bound=Item)


class Source(Protocol[T]):
    """Where images are collected from, opened for a look or a round."""

    def items(self) -> Iterator[T]:
        """Yield what is new or has changed, oldest first; nothing is fetched. Raises why the source cannot be asked."""

    def dates(self) -> Iterable[str]:
        """Return the study dates that `items` has passed so far, whether there was something new or not."""

    def is_news(self, item: T) -> bool:
        """Say whether something of an item would be fetched; where not, that is noted, and it is not told again."""

    def expected(self, item: T) -> Iterator[Expected]:
        """Yield what would come of an item."""

    def take(self, item: T, ingest: Ingest, budget: Budget, told: Callable[[Tally], None]) -> bool:
        """Fetch and store what is new of an item; say whether all of it was done before the budget was spent.

        `told` is called with what was collected since the last call. Raises AppError where the source as a whole fails.
        """


def is_final(error: AppError) -> bool:
    """Say whether a refused instance is not to be fetched again."""
    return error.category in FINAL
