"""When images may be deleted, and how long they can be taken back after that."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from fhir_server.access.agreements import Agreement
from imaging.errors import AppError, Category


@dataclass(frozen=True, slots=True)
class Deletion:
    """The operator's rules.

    keep_for       how long images are kept at least, from when they were stored
    undelete_for   how long deleted ones can be taken back; zero: not at all
    """

    keep_for: timedelta
    undelete_for: timedelta
    clock: Callable[[], datetime]

    def check(self, agreement: Agreement, stored_at: datetime | None, study_uid: str) -> None:
        """Return when images of which the youngest came at `stored_at` may be deleted. Raises CONFLICT, saying when."""
        ends = [agreement.keep_until] if agreement.keep_until else []
        if stored_at and self.keep_for:
            ends.append(stored_at + self.keep_for)
        if ends and max(ends) > self.clock():
            message = f"these images are kept until {max(ends):%Y-%m-%d %H:%M} UTC, and cannot be deleted before"
            raise AppError(Category.CONFLICT, message, where=study_uid)
