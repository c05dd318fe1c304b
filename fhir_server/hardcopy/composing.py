"""From an order and its images to the job that a printer gets; the same for worker, preview and agent.

The pictures of a job are loaded one by one when their turn comes. `check` says before anything is printed what would be
wrong with any of them, without decoding a pixel.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

import numpy as np

from fhir_server.hardcopy import labels
from fhir_server.hardcopy.images import Chosen, Shot
from fhir_server.hardcopy.inputs import INPUTS
from fhir_server.hardcopy.orders import Order
from imaging.display import FrameSource
from imaging.errors import AppError, Category
from imaging.film import Fit, Medium, Picture, Sheets, gsdf, page_count, placed
from imaging.film.gsdf import Densities
from imaging.film.layout import INCH
from imaging.film.lettering import qr_side
from imaging.film.placing import Greys
from imaging.pictures import Look, outline_of, picture_of
from imaging.presentation import Presentation, presentation_of
from imaging.printer import Attachment, Capabilities, Job

DEFAULT_MARGIN = 6.0  # mm
CODE_SIDE = 18.0  # mm, of the code on every page; more where the device is coarse
DEFAULT_SIZE = "14INX17IN"
DEFAULT_RESOLUTION = 300
_FILM = (0.2, 3.0)  # optical densities of a film of which nothing is known
_STEPS = 1024  # of the table from linear density to P-Values


@dataclass(frozen=True, slots=True)
class Plan:
    """How many pages an order needs, and how many pixels each of its images has."""

    pages: int
    source_pixels: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Copying:
    """An order, its images, and what the device can do.

    key     of the job: the Task's id
    address of the Task, for the code on every page
    logo    P-Values of the institution's sign, None for none
    """

    order: Order
    chosen: Chosen
    capabilities: Capabilities
    key: str
    address: str
    logo: Greys | None = None

    def job(self, attachments: Sequence[Attachment] = ()) -> Job:
        """Return what to print. Raises UNSUPPORTED and INVALID for what the device cannot do."""
        order = self.order
        first = self.chosen.document(self.chosen.shots[0].found)
        who = labels.banner(first)
        job = Job(
            key=self.key,
            sheets=self._sheets(who),
            pictures=[partial(self._picture, shot) for shot in self.chosen.shots],
            copies=order.copies,
            priority=order.priority,
            destination=order.destination,
            densities=self._densities() if order.lowest is not None else None,
            title=who[0],
            attachments=tuple(attachments) if self.capabilities.does_attachments else (),
        )
        self.capabilities.check(job)
        return job

    def check(self) -> Plan:
        """Return what is printed. Raises what would keep any of them from being printed, naming the input."""
        with of_inputs():
            return self._check()

    def _check(self) -> Plan:
        job = self.job()
        places = job.sheets.image_boxes()
        patients, sizes = {}, []
        for number, shot in enumerate(self.chosen.shots):
            document = self.chosen.document(shot.found)
            patients[shot.found.sop_uid] = {tag: document.get(tag, {}) for tag in labels.IDENTITY}
            outline = outline_of(document, shot.frame, self._look(shot))
            sizes.append(outline.shape[0] * outline.shape[1])
            if (outline.fit or job.sheets.fit) is Fit.TRUE_SIZE and not self.capabilities.does_true_size:
                raise AppError(Category.UNSUPPORTED, "the printer does not keep millimetres", where="fit")
            try:
                placed(job.sheets, places[number % len(places)], outline)
            except AppError as error:
                message = f"{error.message} (image {number + 1}, {shot.found.sop_uid})"
                raise AppError(error.category, message, where=error.where) from None
        labels.require_one_patient(patients)
        return Plan(page_count(job.sheets, len(job.pictures)), tuple(sizes))

    # --- the sheet

    @property
    def _is_coloured(self) -> bool:
        """Whether the pages are in colour: as ordered, else only where the device has nothing else."""
        return not self.capabilities.grey if self.order.is_coloured is None else self.order.is_coloured

    def _sheets(self, who: tuple[str, ...]) -> Sheets:
        order, has = self.order, self.capabilities
        is_coloured = self._is_coloured
        resolution = order.resolution or next(iter(has.dots_per_inch), DEFAULT_RESOLUTION)
        margin = order.margin if order.margin is not None else max(DEFAULT_MARGIN, has.least_margin)
        return Sheets(
            film_size=order.film_size or next(iter(has.film_sizes), DEFAULT_SIZE),
            orientation=order.orientation,
            medium=order.medium or next(iter(has.media), Medium.BLUE_FILM),
            display_format=order.layout,
            custom_boxes=order.boxes,
            dots_per_inch=resolution,
            bits=order.bits or (8 if is_coloured else next(iter(has.bits), 8)),
            fit=order.fit or Fit.FIT,
            magnification=order.magnification,
            reversed=order.is_reversed,
            border=self._p_value(order.border, "border"),
            empty=self._p_value(order.empty, "empty"),
            trim=order.trim,
            colour=is_coloured,
            margin=margin,
            gap=order.gap,
            letter_height=order.letter_height,
            banner=(*who, *order.banner),
            footer=self.key,
            code=self.address,
            code_side=max(CODE_SIDE, (qr_side(self.address) + 1) / resolution * INCH),
            letters=order.letters,
            scale_bar=order.scale_bar,
            over_images=order.over_images,
            logo=self.logo if order.logo else None,
        )

    def _densities(self) -> Densities:
        """Return the densities that greys mean: those of the order, else of the device, else of a usual film."""
        order = self.order
        lowest, highest = self.capabilities.densities or _FILM
        if order.lowest is not None and order.highest is not None:
            lowest, highest = order.lowest, order.highest
        return Densities(
            lowest,
            highest,
            gsdf.LIGHT_BOX if order.illumination is None else order.illumination,
            gsdf.ROOM if order.ambient is None else order.ambient,
        )

    def _p_value(self, text: str, name: str) -> float:
        if text in ("BLACK", "WHITE"):
            return float(text == "WHITE")
        film = self._densities()
        if not film.lowest <= float(text) <= film.highest:
            message = f"a density of {film.lowest:g} to {film.highest:g} expected"
            raise AppError(Category.INVALID, message, where=name)
        return float(gsdf.p_values(np.array(float(text)), film))

    # --- a picture

    def _picture(self, shot: Shot) -> Picture:
        images = self.chosen.images
        document = self.chosen.document(shot.found)
        pixels, photometric = images.pixels(shot.found, shot.frame)
        return picture_of(
            pixels, document, shot.frame, self._look(shot), photometric=photometric,
            bulkdata=lambda uri: images.bulkdata(shot.found, uri),
        )  # fmt: skip

    def _look(self, shot: Shot) -> Look:
        order, document = self.order, self.chosen.document(shot.found)
        window = shot.window or order.window
        presentation = self._presentation(shot)
        shown = window or (presentation.window if presentation else labels.window_of(document, shot.frame))
        has_caption = labels.caption(document, shot.frame, shown, shot.found.number_of_frames)
        return Look(
            window=window,
            presentation=presentation,
            is_coloured=self._is_coloured,
            tone=self._tone() if order.is_linear_in_density else None,
            fit=order.fit,
            caption=has_caption if order.captions else (),
        )

    def _presentation(self, shot: Shot) -> Presentation | None:
        if shot.state is None:
            return None
        state, images = shot.state, self.chosen.images
        shown = FrameSource(
            self.chosen.document(shot.found), shot.frame, lambda uri: images.bulkdata(shot.found, uri)
        )  # fmt: skip
        return presentation_of(
            self.chosen.document(state), shot.found.sop_uid, shot.frame,
            bulkdata=lambda uri: images.bulkdata(state, uri), image=shown,
        )  # fmt: skip

    def _tone(self) -> Callable[[Greys], Greys]:
        """Return what makes P-Values of greys that are evenly spaced in density, black being the highest."""
        film = self._densities()
        steps = np.linspace(0, 1, _STEPS)
        table = gsdf.p_values(film.highest - steps * (film.highest - film.lowest), film)
        return lambda greys: np.interp(greys, steps, table).astype(np.float32)


@contextmanager
def of_inputs() -> Iterator[None]:
    """Have errors of the block name the input of the Task that they are about; what a device has not is INVALID."""
    try:
        yield
    except AppError as error:
        if error.category not in (Category.INVALID, Category.UNSUPPORTED):
            raise
        message = f"input {error.where!r}: {error.message}" if error.where in _NAMES else error.message
        raise AppError(Category.INVALID, message, where=error.where) from None


_NAMES = frozenset(each.name for each in INPUTS)


def for_screen(job: Job, dots_per_inch: int) -> Job:
    """Return a job with coarser pages of 8 bits, but not so coarse that the code on them could not be read.

    Everything else, in millimetres, is as it will be printed.
    """
    sheets = job.sheets
    least = ceil((qr_side(sheets.code) + 1) / sheets.code_side * INCH) if sheets.code else 0
    coarse = min(max(dots_per_inch, least), sheets.dots_per_inch)
    return replace(job, sheets=replace(sheets, dots_per_inch=coarse, bits=8))
