"""Film printers that speak DICOM print management. Sources: PS3.4 annex H (services), PS3.3 C.13 (attributes)."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydicom.uid import generate_uid

from imaging.dimse import print_terms as terms
from imaging.dimse.print_job import MOST_PAGES, By, Layout, Manner, Scale, Sending, Ticket, follow, status_of
from imaging.dimse.print_requests import Lut
from imaging.dimse.print_scu import Peer, associate
from imaging.errors import AppError, Category
from imaging.film.layout import FILM_SIZES, INCH, Medium
from imaging.parameters import Says
from imaging.printer import (
    Capabilities,
    Job,
    Keep,
    Outcome,
    Printer,
    Progress,
    Reporting,
    State,
    Status,
    Tell,
    unheard,
)
from imaging.printer_reasons import meaning
from imaging.printers import printers
from imaging.tls import Identity

_MATRIX = re.compile(r"(\w+) (\d{2,5})x(\d{2,5})")


@printers.register("dicom")
@dataclass(frozen=True, slots=True)
class DicomPrinter(Printer):
    r"""Basic Grayscale and Basic Color Print Management, with Presentation LUT, Annotation Box and Print Job.

    Pages are composed here and sent as one image on `STANDARD\1,1`, or the printer places the images itself (`layout`
    `boxes`; banner and footer then go into annotation boxes, and captions, letters and scale bars are lost). Greys are
    P-Values under a presentation LUT where the printer has it; else what a grey becomes is the printer's own matter.
    True size needs `scale` `size`, or `pixels` with the printer's own `dots_per_inch` and `matrix`.

    A printer that answers that it would take another film, medium, layout or size than ordered is not let print, unless
    it `may_substitute`. What a printer does between the request to print a page and its answer, it cannot be asked: a
    sender that dies there leaves a job of unknown outcome.
    """

    title = "DICOM film printer"

    host: Annotated[str, Says("name or address", low=1, high=255)]
    called_ae: Annotated[str, Says("the printer's application entity title", low=1, high=16)]
    dots_per_inch: Annotated[int, Says("resolution of the printer", "{dot}/[in_i]", 72, 1_200)]
    port: Annotated[int, Says("TCP port", low=1, high=65_535)] = 104
    calling_ae: Annotated[str, Says("our application entity title", low=1, high=16)] = "FHIR-IMAGING"
    film_sizes: Annotated[tuple[str, ...], Says("Film Size IDs")] = ("8INX10IN", "11INX14IN", "14INX14IN", "14INX17IN")
    media: Annotated[tuple[Medium, ...], Says("Medium Types")] = (Medium.BLUE_FILM, Medium.CLEAR_FILM)
    destinations: Annotated[tuple[str, ...], Says("Film Destinations that may be ordered")] = ()
    matrix: Annotated[
        tuple[str, ...], Says("printable pixels of a film, as `14INX17IN 4256x5174`; what is beyond is cut off evenly")
    ] = ()
    grey: Annotated[bool, Says("whether it prints grey")] = True
    colour: Annotated[bool, Says("whether it prints colour")] = False
    twelve_bits: Annotated[bool, Says("whether greys may have 12 bits")] = False
    densities: Annotated[tuple[float, ...], Says("lowest and highest optical density, where known", "1", 0, 5)] = ()
    most_copies: Annotated[int, Says("copies that it makes of a film", low=1, high=99)] = 20
    layout: Annotated[Layout, Says("who places images: we, on a `page`, or the printer, in `boxes`")] = Layout.PAGE
    scale: Annotated[Scale, Says("of a page: `fit` the film, keep `pixels`, or ask for its `size` in mm")] = Scale.FIT
    print_by: Annotated[By, Says("what is asked to be printed; a `film-session` collates copies")] = By.FILM_BOX
    presentation_lut: Annotated[Lut, Says("how the printer is told that pixels are P-Values")] = Lut.IDENTITY
    magnification: Annotated[str, Says("Magnification Type of a page, unless `scale` is `pixels`", high=16)] = ""
    resolution_id: Annotated[str, Says("Requested Resolution ID", high=16)] = ""
    annotation_format: Annotated[str, Says("Annotation Display Format ID, for `layout` `boxes`", high=16)] = ""
    print_jobs: Annotated[bool, Says("whether to follow print jobs, where the printer has them")] = True
    may_substitute: Annotated[bool, Says("whether it may put something else in place of what is ordered")] = False
    implicit_only: Annotated[bool, Says("whether it understands Implicit VR Little Endian only")] = False
    tls: Annotated[bool, Says("whether it is reached over TLS; its certificate names its `host`")] = False
    ca_file: Annotated[
        str, Says("over TLS, PEM file of the authorities that signed its certificate; the system's without", high=4_000)
    ] = ""
    tls_certificate: Annotated[
        str, Says("over TLS, PEM file of our own certificate, where it asks for one", high=4_000)
    ] = ""
    tls_key: Annotated[str, Says("PEM file of the key to it, unless that is in the same", high=4_000)] = ""
    wait_s: Annotated[float, Says("how long print jobs are waited for after the last page", "s", 0, 3_600)] = 30.0
    connect_s: Annotated[float, Says("how long to wait for an association", "s", 1, 300)] = 10.0
    answer_s: Annotated[float, Says("how long to wait for an answer", "s", 1, 3_600)] = 120.0

    def __post_init__(self) -> None:
        """Raise INVALID for parameters that do not fit together."""
        sizes = ", ".join(FILM_SIZES)
        checks = (
            (set(self.film_sizes) <= set(FILM_SIZES), f"unknown; there are {sizes}", "film_sizes"),
            (self.grey or self.colour, "grey or colour expected", "grey"),
            (len(self.densities) in (0, 2), "two densities, or none, expected", "densities"),
            (self.tls or not (self.ca_file or self.tls_certificate), "only over TLS; say `tls` as well", "tls"),
            (len(self._matrices()) == len(self.matrix), "film sizes with pixels as `14INX17IN 4256x5174`", "matrix"),
        )
        for holds, message, where in checks:
            if not holds:
                raise AppError(Category.INVALID, message, where=where)

    def capabilities(self) -> Capabilities:
        """Return what the parameters say: there is no common way to ask a printer."""
        composes = self.layout is Layout.PAGE
        return Capabilities(
            film_sizes=self.film_sizes,
            media=self.media,
            dots_per_inch=(self.dots_per_inch,),
            bits=(8, 12) if self.twelve_bits else (8,),
            grey=self.grey,
            colour=self.colour,
            most_copies=self.most_copies,
            most_pages=MOST_PAGES,
            least_margin=self._least_margin() if composes else 0.0,
            densities=(self.densities[0], self.densities[1]) if self.densities else None,
            does_true_size=not composes or self.scale is not Scale.FIT,
            does_annotation=composes or bool(self.annotation_format),
            does_layout=composes,
            destinations=self.destinations,
            reporting=Reporting.PRINTED if self.print_jobs else Reporting.ACCEPTED,
        )

    def status(self) -> Status:
        """Ask the printer how it is."""
        try:
            with associate(self._peer, terms.GREY_META if self.grey else terms.COLOUR_META) as scu:
                return status_of(scu)
        except AppError as error:
            return Status(State.OFFLINE, detail=error.message)

    def reserve(self, job: Job) -> str:
        """Return a ticket with the UID of the film session to come; the printer hears nothing of it yet."""
        self.capabilities().check(job)
        return str(Ticket(generate_uid(None), job.page_count))

    def send(self, ticket: str, job: Job, *, keep: Keep, tell: Tell = unheard) -> None:
        """Send pages; return when print jobs are over, or have been waited for."""
        known = Ticket.read(ticket)
        if known.cancelled or known.asked or known.accepted == known.of:
            raise AppError(Category.CONFLICT, "this job was sent or given up before", where="ticket")
        colour = job.sheets.colour
        wanted = (
            (terms.PRESENTATION_LUT, self.presentation_lut is not Lut.NONE and not colour),
            (terms.ANNOTATION_BOX, bool(self.annotation_format)),
            (terms.PRINT_JOB, self.print_jobs),
        )
        sending = Sending(self._manner(job), job, known, keep, tell)
        meta_uid = terms.COLOUR_META if colour else terms.GREY_META
        optional = tuple(uid for uid, is_wanted in wanted if is_wanted)
        with associate(self._peer, meta_uid, optional, heard=sending.heard) as scu:
            sending.run(scu)

    def outcome(self, ticket: str) -> Outcome:
        """Return what the ticket says, and ask for print jobs whose end it does not know."""
        known = Ticket.read(ticket)
        if known.asked:
            if known.jobs:
                with suppress(AppError):
                    known = self._followed(known)
            detail = "the printer was asked to print, and nobody heard its answer"
            return Outcome(Progress.UNKNOWN, known.printed, detail=detail)
        if known.cancelled:
            return Outcome(Progress.FAILED, known.printed, detail="it was given up", may_repeat=not known.accepted)
        if known.accepted < known.of:
            return Outcome(Progress.PENDING, known.printed)
        if known.jobs:
            known = self._followed(known)
        if known.jobs:
            return Outcome(Progress.PRINTING, known.printed)
        if known.lost:
            detail = "; ".join(map(meaning, known.reasons)) or "the printer does not say why"
            return Outcome(Progress.FAILED, known.printed, known.reasons, detail)
        return Outcome(Progress.DONE, known.printed)

    def cancel(self, ticket: str) -> str:
        """Give up what is not sent; what a printer has taken, it prints."""
        known = Ticket.read(ticket)
        return ticket if known.accepted == known.of else str(replace(known, cancelled=True))

    def _followed(self, known: Ticket) -> Ticket:
        with associate(self._peer, terms.GREY_META if self.grey else terms.COLOUR_META, (terms.PRINT_JOB,)) as scu:
            return follow(scu, known)

    @property
    def _peer(self) -> Peer:
        return Peer(
            self.host, self.port, self.called_ae, self.calling_ae, self.connect_s, self.answer_s, self.implicit_only,
            Identity(_file(self.tls_certificate), _file(self.tls_key), _file(self.ca_file)) if self.tls else None,
        )  # fmt: skip

    def _manner(self, job: Job) -> Manner:
        across, down = self._matrices().get(job.sheets.film_size, (0, 0))
        is_turned = job.sheets.orientation == "LANDSCAPE"
        return Manner(
            layout=self.layout,
            scale=self.scale,
            by=self.print_by,
            lut=self.presentation_lut,
            matrix=((down, across) if is_turned else (across, down)) if across else None,
            magnification=self.magnification,
            resolution_id=self.resolution_id,
            annotation_format=self.annotation_format,
            may_substitute=self.may_substitute,
            wait_s=self.wait_s,
        )

    def _matrices(self) -> Mapping[str, tuple[int, int]]:
        found = (_MATRIX.fullmatch(each) for each in self.matrix)
        return {each[1]: (int(each[2]), int(each[3])) for each in found if each and each[1] in FILM_SIZES}

    def _least_margin(self) -> float:
        """Return how far from an edge of any film the printable pixels begin, in mm."""
        lost = [0.0]
        for size, pixels in self._matrices().items():
            sides = zip(FILM_SIZES[size], pixels, strict=True)
            lost.extend((side - count / self.dots_per_inch * INCH) / 2 for side, count in sides)
        return round(max(lost), 3)


def _file(path: str) -> Path | None:
    return Path(path) if path else None
