"""PDF documents, one for each job, in a folder."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from imaging.errors import AppError, Category
from imaging.film import pdf
from imaging.film.layout import FILM_SIZES, Medium
from imaging.parameters import Says
from imaging.printer import Capabilities, Job, Keep, Outcome, Printer, Status, Tell, unheard
from imaging.printer_drop import Drop
from imaging.printers import printers


@printers.register("pdf")
@dataclass(frozen=True, slots=True)
class PdfPrinter(Printer):
    """PDF/A-3u documents with lossless pages, searchable text and the order attached.

    A document appears in the folder under a name that begins with the job's key, complete, at once. Greys carry a
    profile under which P-Values look evenly spaced on paper; a printer that heeds profiles prints them so.
    """

    title = "PDF document"

    folder: Annotated[str, Says("folder in which documents appear", low=1, high=4_000)]
    dots_per_inch: Annotated[int, Says("resolution of the pages", unit="{dot}/[in_i]", low=72, high=1_200)] = 300
    black: Annotated[float, Says("luminance of the darkest print, where it is read", "cd/m2", low=0.05, high=100)] = 2.0
    white: Annotated[float, Says("luminance of the bare paper, where it is read", "cd/m2", low=1, high=3_900)] = 150.0

    def __post_init__(self) -> None:
        """Raise INVALID for paper that is no lighter than what is printed on it."""
        if self.black >= self.white:
            raise AppError(Category.INVALID, "less than that of the bare paper expected", where="black")

    def capabilities(self) -> Capabilities:
        """Return what a document can hold."""
        return Capabilities(
            tuple(FILM_SIZES), tuple(Medium), (self.dots_per_inch, 150, 300, 600), bits=(8, 12, 16), colour=True,
            does_attachments=True,
        )  # fmt: skip

    def status(self) -> Status:
        """Return how the folder is."""
        return self._drop.status()

    def reserve(self, job: Job) -> str:
        """Return a ticket: the document's name."""
        self.capabilities().check(job)
        return self._drop.reserve(job.key)

    def send(self, ticket: str, job: Job, *, keep: Keep, tell: Tell = unheard) -> None:
        """Write the document and let it appear."""

        def fill(part: Path) -> int:
            paper = pdf.Paper(self.black, self.white)
            with part.open("w+b") as file:
                return pdf.write(
                    file, job.pages(), job.sheets, made=datetime.now(UTC), title=job.title or job.key,
                    attachments=job.attachments, paper=paper,
                )  # fmt: skip

        self._drop.place(ticket, fill, keep)

    def outcome(self, ticket: str) -> Outcome:
        """Return whether the document has appeared."""
        return self._drop.outcome(ticket)

    def cancel(self, ticket: str) -> str:
        """Remove a document that has not appeared."""
        self._drop.cancel(ticket)
        return ticket

    @property
    def _drop(self) -> Drop:
        return Drop(Path(self.folder), ".pdf")
