"""Pages as image files, one folder for each job, for whatever picks them up."""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image

from imaging.film.compose import Page
from imaging.film.icc import colour_profile, grey_profile
from imaging.film.layout import FILM_SIZES, Medium, sheet
from imaging.parameters import Says
from imaging.printer import Capabilities, Job, Keep, Outcome, Printer, Status, Tell, unheard
from imaging.printer_drop import Drop
from imaging.printers import printers

MANIFEST = "job.json"
MOST_COPIES = 99


class Format(StrEnum):
    """What a page is written as."""

    PNG = "png"
    TIFF = "tiff"


_LOSSLESS: dict[Format, dict[str, Any]] = {
    Format.PNG: {"compress_level": 3},
    Format.TIFF: {"compression": "tiff_adobe_deflate"},
}


@printers.register("folder")
@dataclass(frozen=True, slots=True)
class FolderPrinter(Printer):
    """Image files of the pages in a folder for each job, which appears with all of them at once.

    `page-0001.png` (or `.tiff`) and so on are lossless and say their resolution and what their greys mean. 12 bits are
    written as 16, the highest as the highest. `job.json` says film size, medium, copies and priority; attachments lie
    beside it. The folder's name begins with the job's key. Whoever prints the files may move it away.
    """

    title = "Folder of images"

    folder: Annotated[str, Says("folder in which jobs appear", low=1, high=4_000)]
    format: Annotated[Format, Says("file format of the pages")] = Format.PNG
    dots_per_inch: Annotated[int, Says("resolution of the pages", unit="{dot}/[in_i]", low=72, high=1_200)] = 300

    def capabilities(self) -> Capabilities:
        """Return what the files can hold."""
        return Capabilities(
            tuple(FILM_SIZES), tuple(Medium), (self.dots_per_inch, 150, 300, 600), bits=(8, 12, 16), colour=True,
            most_copies=MOST_COPIES, does_attachments=True,
        )  # fmt: skip

    def status(self) -> Status:
        """Return how the folder is."""
        return self._drop.status()

    def reserve(self, job: Job) -> str:
        """Return a ticket: the name of the job's folder."""
        self.capabilities().check(job)
        return self._drop.reserve(job.key)

    def send(self, ticket: str, job: Job, *, keep: Keep, tell: Tell = unheard) -> None:
        """Write the files and let their folder appear."""

        def fill(part: Path) -> int:
            names = [self._write(page, job, part) for page in job.pages()]
            for number, attachment in enumerate(job.attachments, 1):
                # A name from outside is no path here: only its ending is used.
                (part / f"attachment-{number}{Path(attachment.name).suffix}").write_bytes(attachment.content)
            (part / MANIFEST).write_text(json.dumps(_manifest(job, names), indent=1) + "\n")
            return len(names)

        self._drop.place(ticket, fill, keep)

    def outcome(self, ticket: str) -> Outcome:
        """Return whether the folder has appeared."""
        return self._drop.outcome(ticket)

    def cancel(self, ticket: str) -> str:
        """Remove what has not appeared."""
        self._drop.cancel(ticket)
        return ticket

    @property
    def _drop(self) -> Drop:
        return Drop(Path(self.folder))

    def _write(self, page: Page, job: Job, part: Path) -> str:
        name = f"page-{page.number:04d}.{self.format}"
        dots = float(job.sheets.dots_per_inch)
        profile = colour_profile() if page.samples.ndim == 3 else grey_profile()
        Image.fromarray(np.ascontiguousarray(page.samples)).save(
            part / name, dpi=(dots, dots), icc_profile=profile, **_LOSSLESS[self.format]
        )
        return name


def _manifest(job: Job, names: list[str]) -> dict[str, Any]:
    sheets = job.sheets
    whole = sheet(sheets.film_size, sheets.orientation)
    return {
        "key": job.key,
        "pages": names,
        "copies": job.copies,
        "priority": job.priority,
        "destination": job.destination,
        "film-size": sheets.film_size,
        "orientation": sheets.orientation,
        "medium": sheets.medium,
        "width-mm": whole.width,
        "height-mm": whole.height,
        "dots-per-inch": sheets.dots_per_inch,
        "bits": sheets.bits,
    }
