"""One job on a film printer: what is sent in which order, and what a ticket has to say before and after each step.

The ticket holds what the standard gives no way to ask: which pages the printer has taken, and whether it is being asked
to print right now. A sender that dies between that question and its answer leaves a job of which nobody knows.
Source: PS3.4 annex H.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from time import monotonic, sleep
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid

from imaging.dimse import print_requests as requests
from imaging.dimse import print_terms as terms
from imaging.dimse.print_requests import Lut, Samples, Scaling
from imaging.dimse.print_scu import Event, NoAnswer, PrintScu, Reply
from imaging.errors import AppError, Category
from imaging.film.compose import Page
from imaging.film.layout import INCH
from imaging.film.placing import Fit
from imaging.printer import MOST_TICKET, Job, Keep, State, Status, Tell

MOST_PAGES = 250  # of a job: the print jobs of all have to fit into a ticket
_POLL_S = 1.0
_PRINTER_ATTRIBUTES = ["PrinterStatus", "PrinterStatusInfo", "PrinterName", "Manufacturer", "ManufacturerModelName"]
_JOB_ATTRIBUTES = ["ExecutionStatus", "ExecutionStatusInfo"]
# What a printer may not silently put something else in place of.
_OF_SESSION = ("NumberOfCopies", "MediumType", "FilmDestination")
_OF_BOX = ("ImageDisplayFormat", "FilmSizeID", "FilmOrientation")
_OF_IMAGE = ("Polarity", "RequestedImageSize")
_JOB_EVENTS = {1: "PENDING", 2: "PRINTING", 3: "DONE", 4: "FAILURE"}  # Source: PS3.4 H.4.5.2.2
_PRINTER_EVENTS = {1: State.NORMAL, 2: State.WARNING, 3: State.FAILURE}  # Source: PS3.4 H.4.6.2.1


class Layout(StrEnum):
    """Who places images on the film."""

    PAGE = "page"  # a page is composed here and sent as one image
    BOXES = "boxes"  # images are sent one by one; the printer places them


class Scale(StrEnum):
    """How a composed page is scaled."""

    FIT = "fit"  # as the printer likes
    PIXELS = "pixels"  # one pixel of the page is one of the printer: Magnification Type NONE
    SIZE = "size"  # by Requested Image Size


class By(StrEnum):
    """What is asked to be printed."""

    FILM_BOX = "film-box"  # each page when it is there
    FILM_SESSION = "film-session"  # all pages at once, which collates copies


@dataclass(frozen=True, slots=True)
class Manner:
    """How a printer is to be talked to; `matrix` is what it can print on the job's film, (columns, rows) in pixels."""

    layout: Layout
    scale: Scale
    by: By
    lut: Lut
    matrix: tuple[int, int] | None
    magnification: str
    resolution_id: str
    annotation_format: str
    may_substitute: bool
    wait_s: float


@dataclass(frozen=True, slots=True)
class Ticket:
    """What is known of a job.

    accepted  pages that the printer has taken
    asked     pages that it is being asked to print; 0 while it is not
    jobs      print jobs of which the end is not known, of `each` pages
    lost      pages whose print job failed, and the reasons
    """

    uid: str
    of: int
    accepted: int = 0
    asked: int = 0
    jobs: tuple[str, ...] = ()
    each: int = 1
    lost: int = 0
    reasons: tuple[str, ...] = ()
    cancelled: bool = False

    def __str__(self) -> str:
        return json.dumps({name: value for name, value in asdict(self).items() if value}, separators=(",", ":"))

    @classmethod
    def read(cls, text: str) -> "Ticket":
        """Return a ticket from its text. Raises INVALID for what was never one."""
        try:
            said = json.loads(text[: MOST_TICKET + 1]).items()
            values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in said}
            ticket = cls(**values)
            numbers = (ticket.of, ticket.accepted, ticket.asked, ticket.each, ticket.lost)
            uids = (ticket.uid, *ticket.jobs)
            is_sound = all(type(each) is int and 0 <= each <= MOST_PAGES for each in numbers) and all(
                isinstance(each, str) and UID(each).is_valid for each in uids
            )
        except (ValueError, TypeError, AttributeError, RecursionError):
            is_sound = False
        if not is_sound:
            raise AppError(Category.INVALID, "no ticket of this printer", where="ticket")
        return ticket

    @property
    def printed(self) -> int:
        """Pages that are printed, as far as is known."""
        return max(0, self.accepted - self.lost - len(self.jobs) * self.each)

    def over(self, uid: str, *, reasons: tuple[str, ...] | None = None) -> "Ticket":
        """Return the ticket when a print job is over, with the reasons where it failed."""
        known = replace(self, jobs=tuple(each for each in self.jobs if each != uid))
        if reasons is None or known.jobs == self.jobs:
            return known
        return replace(known, lost=self.lost + self.each, reasons=tuple(dict.fromkeys((*self.reasons, *reasons)))[:20])


def status_of(scu: PrintScu) -> Status:
    """Ask the printer how it is."""
    try:
        ds = scu.get(terms.PRINTER, terms.PRINTER_INSTANCE, _PRINTER_ATTRIBUTES).ds
    except NoAnswer:
        raise
    except AppError:  # some give all attributes or nothing
        ds = scu.get(terms.PRINTER, terms.PRINTER_INSTANCE, []).ds
    said = str(ds.get("PrinterStatus") or State.NORMAL).strip()
    state = State(said) if said in ("NORMAL", "WARNING", "FAILURE") else State.WARNING
    names = (str(ds.get(keyword) or "") for keyword in ("Manufacturer", "ManufacturerModelName", "PrinterName"))
    return Status(state, _reasons(ds.get("PrinterStatusInfo")), " ".join(each for each in names if each)[:200])


def follow(scu: PrintScu, ticket: Ticket) -> Ticket:
    """Return the ticket with what the printer now says of its print jobs."""
    if not scu.accepts(terms.PRINT_JOB):
        return replace(ticket, jobs=())
    for uid in ticket.jobs:
        try:
            ds = scu.get(terms.PRINT_JOB, uid, _JOB_ATTRIBUTES).ds
        except NoAnswer:
            raise
        except AppError as error:
            # A print job is deleted when it is over; then there is nothing to follow any more. Source: PS3.4 H.4.5.
            if error.category not in (Category.NOT_FOUND, Category.UNSUPPORTED):
                raise
            ticket = ticket.over(uid)
            continue
        ticket = _after(ticket, uid, str(ds.get("ExecutionStatus") or ""), ds)
    return ticket


def _after(ticket: Ticket, uid: str, execution: str, ds: Dataset) -> Ticket:
    if execution == "FAILURE":
        return ticket.over(uid, reasons=_reasons(ds.get("ExecutionStatusInfo")))
    return ticket.over(uid) if execution == "DONE" else ticket


def _reasons(info: object) -> tuple[str, ...]:
    term = str(info or "").strip()[:64]
    return () if term in ("", "NORMAL") else (term,)


class Sending:
    """A job that is being sent over one association."""

    def __init__(self, manner: Manner, job: Job, ticket: Ticket, keep: Keep, tell: Tell) -> None:
        self._manner, self._job = manner, job
        self._ticket = ticket
        self._keep, self._tell = keep, tell
        self._ended: dict[str, Event] = {}  # print jobs by their last event, in whichever order it and the reply come
        self._session_uid, self._lut_uid = ticket.uid, ""

    def heard(self, event: Event) -> None:
        """Take note of an event of the printer; called by another thread."""
        if event.class_uid == terms.PRINTER and event.type in _PRINTER_EVENTS:
            self._tell(Status(_PRINTER_EVENTS[event.type], _reasons(event.ds.get("PrinterStatusInfo"))))
        elif event.class_uid == terms.PRINT_JOB and event.type in (3, 4):
            self._ended[event.uid] = event

    def run(self, scu: PrintScu) -> None:
        """Send all pages that the printer has not taken, and wait for its print jobs."""
        status = status_of(scu)
        self._tell(status)
        if status.state is State.FAILURE:
            raise AppError(Category.BUSY, f"the printer does not print: {', '.join(status.reasons)}", where="printer")
        self._open(scu)
        collects = self._manner.by is By.FILM_SESSION
        for number in range(self._ticket.accepted + 1, self._ticket.of + 1):
            box = self._film_box(scu, number)
            if not collects:
                self._print(scu, terms.FILM_BOX, box, 1)
                with suppress(AppError):  # not all allow it, and it goes with the session anyway
                    scu.delete(terms.FILM_BOX, box)
        if collects:
            self._print(scu, terms.FILM_SESSION, self._session_uid, self._ticket.of)
        self._wait(scu)
        with suppress(AppError):
            scu.delete(terms.FILM_SESSION, self._session_uid)

    # --- what is asked

    def _open(self, scu: PrintScu) -> None:
        asked = requests.film_session(self._job)
        reply = scu.create(terms.FILM_SESSION, self._session_uid, asked)
        self._refuse_substitutes(asked, reply, _OF_SESSION)
        self._session_uid = reply.uid
        if scu.accepts(terms.PRESENTATION_LUT):
            lut = requests.presentation_lut(self._manner.lut, self._job.sheets.bits)
            self._lut_uid = scu.create(terms.PRESENTATION_LUT, generate_uid(None), lut).uid

    def _film_box(self, scu: PrintScu, number: int) -> str:
        """Send a page up to where it can be printed; return the UID of its film box."""
        sheets, manner = self._job.sheets, self._manner
        composes = manner.layout is Layout.PAGE
        asked = requests.film_box(
            self._job, session_uid=self._session_uid, lut_uid=self._lut_uid,
            display_format="STANDARD\\1,1" if composes else sheets.display_format,
            magnification=self._magnification(), resolution_id=manner.resolution_id,
            annotation_format=manner.annotation_format, trim=sheets.trim and not composes,
        )  # fmt: skip
        reply = scu.create(terms.FILM_BOX, generate_uid(None), asked)
        self._refuse_substitutes(asked, reply, _OF_BOX)
        boxes = [str(each.ReferencedSOPInstanceUID) for each in reply.ds.get("ReferencedImageBoxSequence") or ()]
        image_class = terms.COLOUR_IMAGE_BOX if sheets.colour else terms.GREY_IMAGE_BOX
        reversed_by_printer = sheets.reversed and not composes
        for position, (samples, scaling) in enumerate(self._images(number), 1):
            if position > len(boxes):
                message = f"the printer has {len(boxes)} image boxes for {asked.ImageDisplayFormat}"
                raise AppError(Category.UNSUPPORTED, message, where="layout")
            image = requests.image_box(
                position, samples, sheets.bits, scaling, is_reversed=reversed_by_printer, smoothing=self._job.smoothing
            )
            taken = scu.set(image_class, boxes[position - 1], image)
            self._refuse_substitutes(image, taken, _OF_IMAGE)
            self._refuse_other_size(taken, scaling)
        self._annotate(scu, reply, number)
        return reply.uid

    def _images(self, number: int) -> Iterator[tuple[Samples, Scaling]]:
        """Yield what goes into the image boxes of a page, one in memory at a time."""
        job = self._job
        if self._manner.layout is Layout.PAGE:
            page = next(job.pages(number))
            samples = self._within_matrix(page)
            yield samples, self._page_scaling(samples)
            return
        count = len(job.sheets.image_boxes())
        for load in job.pictures[(number - 1) * count : number * count]:
            picture = load()
            yield requests.samples_of(picture, job.sheets), requests.scaling_of(picture, job.sheets)

    def _annotate(self, scu: PrintScu, film_box: Reply, number: int) -> None:
        sheets = self._job.sheets
        if self._manner.layout is Layout.PAGE or not (sheets.banner or sheets.footer):
            return
        texts = [*sheets.banner, f"{sheets.footer}  {number} / {self._ticket.of}".strip()]
        boxes = [
            each.ReferencedSOPInstanceUID for each in film_box.ds.get("ReferencedBasicAnnotationBoxSequence") or ()
        ]
        if len(boxes) < len(texts):
            message = f"the printer has {len(boxes)} annotation boxes for {len(texts)} lines"
            raise AppError(Category.UNSUPPORTED, message, where="annotation")
        for position, (uid, text) in enumerate(zip(boxes, texts, strict=False), 1):
            scu.set(terms.ANNOTATION_BOX, str(uid), requests.annotation(position, text))

    # --- what is printed

    def _print(self, scu: PrintScu, class_uid: str, uid: str, pages: int) -> None:
        before = self._ticket
        self._save(replace(before, asked=pages))
        try:
            reply = scu.print(class_uid, uid)
        except NoAnswer:
            raise
        except AppError:  # it was refused, or could not be asked
            self._save(before)
            raise
        jobs = [str(each.ReferencedSOPInstanceUID) for each in reply.ds.get("ReferencedPrintJobSequence") or ()]
        # Some printers have no print jobs, or do not name them.
        followed = jobs[:1] if scu.accepts(terms.PRINT_JOB) else []
        self._save(replace(before, accepted=before.accepted + pages, jobs=(*before.jobs, *followed), each=pages))

    def _wait(self, scu: PrintScu) -> None:
        """Wait for print jobs, as long as that may take; the rest can be asked for later."""
        until = monotonic() + self._manner.wait_s
        known = self._ticket
        while True:
            for uid, event in list(self._ended.items()):
                known = _after(known, uid, _JOB_EVENTS[event.type], event.ds)
            if not known.jobs or monotonic() > until:
                break
            try:
                known = follow(scu, known)
            except AppError:  # the association has ended
                break
            if known.jobs:
                sleep(min(_POLL_S, self._manner.wait_s))
        if known != self._ticket:
            self._save(known)

    def _save(self, ticket: Ticket) -> None:
        self._keep(str(ticket))
        self._ticket = ticket

    # --- what may not be otherwise

    def _refuse_substitutes(self, asked: Dataset, reply: Reply, keywords: tuple[str, ...]) -> None:
        other = "" if self._manner.may_substitute else requests.substituted(asked, reply.ds, keywords)
        if other:
            raise AppError(Category.UNSUPPORTED, f"the printer would take {other}", where="printer")

    def _refuse_other_size(self, reply: Reply, scaling: Scaling) -> None:
        """Refuse what the printer says that it resizes, and in true size whatever it does not take as it is."""
        if reply.status in terms.RESIZED and (scaling.is_true or scaling.width_mm or scaling.magnification == "NONE"):
            why = terms.RESIZED[reply.status]
        elif reply.status != terms.SUCCESS and scaling.is_true:
            why = f"a warning of the printer ({reply.status:#06x})"
        else:
            return
        raise AppError(Category.UNSUPPORTED, f"the image would not be in true size: {why}", where="fit")

    # --- the composed page

    def _magnification(self) -> str:
        if self._manner.layout is Layout.BOXES:
            return str(self._job.sheets.magnification)
        return "NONE" if self._manner.scale is Scale.PIXELS else self._manner.magnification

    def _within_matrix(self, page: Page) -> Samples:
        if self._manner.matrix is None:
            return page.pixels
        rows, columns = page.pixels.shape[:2]
        across, down = self._manner.matrix
        top, left = max(0, (rows - down) // 2), max(0, (columns - across) // 2)
        return page.pixels[top : top + down, left : left + across]

    def _page_scaling(self, samples: Samples) -> Scaling:
        is_true = self._job.sheets.fit is Fit.TRUE_SIZE
        if self._manner.scale is Scale.FIT:
            return Scaling(is_true=is_true)
        if self._manner.scale is Scale.PIXELS:
            return Scaling(magnification="NONE", is_true=is_true)
        return Scaling(samples.shape[1] / self._job.sheets.dots_per_inch * INCH, "FAIL", is_true=is_true)
