"""Paper printers that speak IPP. Sources: RFC 8011, PWG 5100.14 (IPP Everywhere), PWG 5101.1 (names of media)."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from tempfile import TemporaryFile
from typing import Annotated, Any, BinaryIO
from uuid import UUID, uuid4

from imaging.errors import AppError, Category
from imaging.film import pdf, pwg
from imaging.film.layout import FILM_SIZES, INCH, Medium
from imaging.ipp import Attributes, Client, Group, NoAnswer, Operation, Range, Resolution, Tag, Typed
from imaging.parameters import Says
from imaging.printer import (
    MOST_TICKET,
    Capabilities,
    Job,
    Keep,
    Outcome,
    Printer,
    Progress,
    State,
    Status,
    Tell,
    unheard,
)
from imaging.printers import printers

MOST_COPIES = 99
_PDF, _PWG = "application/pdf", "image/pwg-raster"
_SIZE = re.compile(r".*_(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)(in|mm)")
_NEAR = 1.0  # mm by which a medium may differ from a film size
_STOPPED = 5  # printer-state
_CANCELED, _ABORTED, _COMPLETED = 7, 8, 9  # job-state
_HIGH = 5  # print-quality
_WAITS_FOR_DATA = {"job-incoming", "job-data-insufficient"}

# printer-state-reasons -> Printer Status Info. Source: RFC 8011, 5.4.12; PS3.3 C.13.9.1.
_REASONS: Mapping[str, str] = {
    "media-empty": "SUPPLY EMPTY",
    "media-low": "SUPPLY LOW",
    "media-needed": "REQ MED NOT INST",
    "media-jam": "FILM JAM",
    "cover-open": "COVER OPEN",
    "door-open": "COVER OPEN",
    "interlock-open": "COVER OPEN",
    "input-tray-missing": "NO SUPPLY MGZ",
    "output-tray-missing": "NO RECEIVE MGZ",
    "output-area-full": "RECEIVER FULL",
    "output-area-almost-full": "RECEIVER FULL",
    "spool-area-full": "PRINT BUFF FULL",
    "paused": "PRINTER OFFLINE",
    "moving-to-paused": "PRINTER OFFLINE",
    "offline": "PRINTER OFFLINE",
    "shutdown": "PRINTER DOWN",
    "timed-out": "PRINTER DOWN",
    "connecting-to-device": "PRINTER INIT",
    "other": "UNKNOWN",
}
_ATTENTION = "CHECK PRINTER"  # for what the standard of films has no word, such as toner


class Format(StrEnum):
    """What pages are sent as."""

    AUTO = "auto"
    PDF = "pdf"
    PWG_RASTER = "pwg-raster"


@dataclass(frozen=True, slots=True)
class _Ticket:
    """What is known of a job: its number at the printer, 0 before it has one, and whether its document was sent."""

    uid: str
    of: int
    job: int = 0
    sent: bool = False
    cancelled: bool = False

    def __str__(self) -> str:
        return json.dumps({name: value for name, value in asdict(self).items() if value}, separators=(",", ":"))

    @classmethod
    def read(cls, text: str) -> "_Ticket":
        try:
            values: dict[str, Any] = dict(json.loads(text[: MOST_TICKET + 1]).items())
            ticket = cls(**values)
            numbers = (ticket.of, ticket.job)
            is_sound = bool(UUID(ticket.uid)) and all(type(each) is int and 0 <= each < 2**31 for each in numbers)
        except (ValueError, TypeError, AttributeError, RecursionError):
            is_sound = False
        if not is_sound:
            raise AppError(Category.INVALID, "no ticket of this printer", where="ticket")
        return ticket


@printers.register("ipp")
@dataclass(frozen=True, slots=True)
class IppPrinter(Printer):
    """Printers on the network that speak IPP, such as all of IPP Everywhere, and queues of CUPS.

    The printer is asked for its paper sizes, resolutions, margins and copies. Pages go as PDF, whose profile says what
    greys mean, or as PWG Raster, whose greys are made for paper here; not scaled either way. Each job has a number at
    the printer before its document is sent, so that the printer can be asked whatever happens.
    """

    title = "IPP printer"

    uri: Annotated[str, Says("address, as `ipp://host:631/ipp/print`; `ipps:` for TLS", low=1, high=1_000)]
    format: Annotated[Format, Says("what pages are sent as; PDF where the printer takes it")] = Format.AUTO
    dots_per_inch: Annotated[
        int, Says("resolution of PDF pages; of PWG Raster, the printer's", "{dot}/[in_i]", 72, 1_200)
    ] = 300
    media: Annotated[tuple[Medium, ...], Says("Medium Types that it is loaded with")] = (Medium.PAPER,)
    media_type: Annotated[str, Says("its keyword for that medium, as `stationery` or `transparency`", high=255)] = ""
    user: Annotated[str, Says("user's name that jobs are sent under", high=255)] = ""
    password: Annotated[str, Says("password, where it asks for one", high=255, is_secret=True)] = ""
    ca_file: Annotated[
        str, Says("file of the certificates that its own is signed by; the system's without", high=4_000)
    ] = ""
    black: Annotated[float, Says("luminance of the darkest print, where it is read", "cd/m2", 0.05, 100)] = 2.0
    white: Annotated[float, Says("luminance of the bare paper, where it is read", "cd/m2", 1, 3_900)] = 150.0
    connect_s: Annotated[float, Says("how long to wait for a connection", "s", 1, 300)] = 10.0
    answer_s: Annotated[float, Says("how long to wait for an answer", "s", 1, 3_600)] = 60.0

    def __post_init__(self) -> None:
        """Raise INVALID for what is no address, or no paper."""
        _ = self._client
        checks = (
            (bool(self.media), "at least one Medium Type expected", "media"),
            (self.black < self.white, "less than that of the bare paper expected", "black"),
        )
        for holds, message, where in checks:
            if not holds:
                raise AppError(Category.INVALID, message, where=where)

    def capabilities(self) -> Capabilities:
        """Ask the printer."""
        return self._capabilities(self._ask())

    def status(self) -> Status:
        """Ask the printer how it is."""
        try:
            return _status(self._ask())
        except AppError as error:
            return Status(State.OFFLINE, detail=error.message)

    def reserve(self, job: Job) -> str:
        """Return a ticket for a job that has no number at the printer yet."""
        self.capabilities().check(job)
        return str(_Ticket(uuid4().hex, job.page_count))

    def send(self, ticket: str, job: Job, *, keep: Keep, tell: Tell = unheard) -> None:
        """Compose the document, have the printer make a job, and send it."""
        known = _Ticket.read(ticket)
        if self.outcome(ticket).progress is not Progress.PENDING:
            raise AppError(Category.CONFLICT, "this job was sent or given up before", where="ticket")
        has = self._ask()
        tell(_status(has))
        if known.job:
            self._withdraw(known.job)
        self._withdraw_unkept(known)
        document_format = self._format(has)
        with TemporaryFile() as file:
            self._compose(file, job, document_format, has)
            file.seek(0)
            known = replace(known, job=self._create(job, known, has, document_format), sent=False)
            keep(str(known))
            keep(str(replace(known, sent=True)))
            try:
                self._client.ask(
                    Operation.SEND_DOCUMENT,
                    [
                        Typed("job-id", Tag.INTEGER, [known.job]),
                        Typed("document-format", Tag.MIME, [document_format]),
                        Typed("last-document", Tag.BOOLEAN, [True]),
                    ],
                    document=file,
                )
            except NoAnswer:
                raise
            except AppError:  # it was refused, or did not get there
                keep(str(known))
                raise

    def outcome(self, ticket: str) -> Outcome:
        """Ask the printer for the job, where its document was sent."""
        known = _Ticket.read(ticket)
        if known.cancelled:
            return Outcome(Progress.FAILED, detail="it was given up", may_repeat=True)
        if not known.sent:
            return Outcome(Progress.PENDING)
        try:
            answer = self._client.ask(Operation.GET_JOB_ATTRIBUTES, [Typed("job-id", Tag.INTEGER, [known.job])])
        except AppError as error:
            if error.category is Category.NOT_FOUND:
                return Outcome(Progress.UNKNOWN, detail="the printer does not know the job any more")
            raise
        return _outcome(answer.group(Group.JOB), known)

    def cancel(self, ticket: str) -> str:
        """Have the printer cancel the job; what is printed stays printed."""
        known = _Ticket.read(ticket)
        if known.sent:
            with suppress(AppError):  # it may be over
                self._withdraw(known.job)
            return ticket
        if known.job:
            with suppress(AppError):  # it holds no document
                self._withdraw(known.job)
        return str(replace(known, cancelled=True))

    # --- the printer

    @property
    def _client(self) -> Client:
        return Client(self.uri, self.user, self.password, self.ca_file, self.connect_s, self.answer_s)

    def _ask(self) -> Attributes:
        return self._client.ask(Operation.GET_PRINTER_ATTRIBUTES).group(Group.PRINTER)

    def _withdraw(self, job: int) -> None:
        """Cancel a job at the printer. Raises where it is not certain that nothing of it will be printed."""
        asked = [Typed("job-id", Tag.INTEGER, [job])]
        try:
            self._client.ask(Operation.CANCEL_JOB, asked)
        except AppError as error:
            if error.category is Category.NOT_FOUND:
                return
            state = _number(self._client.ask(Operation.GET_JOB_ATTRIBUTES, asked).group(Group.JOB), "job-state")
            if state not in (_CANCELED, _ABORTED):
                raise

    def _capabilities(self, has: Attributes) -> Capabilities:
        is_raster = self._format(has) == _PWG
        copies = (has.get("copies-supported") or [Range(1, 1)])[0]
        colours = has.get("pwg-raster-document-type-supported" if is_raster else "color-supported") or []
        return Capabilities(
            film_sizes=tuple(_media(has)),
            media=self.media,
            dots_per_inch=_resolutions(has) if is_raster else (self.dots_per_inch,),
            bits=(8,) if is_raster else (8, 12, 16),
            colour="srgb_8" in colours or True in colours,
            most_copies=min(MOST_COPIES, copies.high) if isinstance(copies, Range) else 1,
            least_margin=_least_margin(has),
            does_true_size=is_raster or "none" in (has.get("print-scaling-supported") or []),
        )

    def _format(self, has: Attributes) -> str:
        takes = has.get("document-format-supported") or []
        wanted = {Format.AUTO: (_PDF, _PWG), Format.PDF: (_PDF,), Format.PWG_RASTER: (_PWG,)}[self.format]
        for each in wanted:
            if each in takes:
                return each
        raise AppError(Category.UNSUPPORTED, f"the printer does not take {' or '.join(wanted)}", where="format")

    def _compose(self, file: BinaryIO, job: Job, document_format: str, has: Attributes) -> None:
        if document_format == _PWG:
            media = _media(has)[job.sheets.film_size]
            pwg.write(file, job.pages(), job.sheets, media=media, black=self.black, white=self.white)
            return
        paper = pdf.Paper(self.black, self.white)
        pdf.write(file, job.pages(), job.sheets, made=datetime.now(UTC), title=job.key, paper=paper)

    def _withdraw_unkept(self, known: _Ticket) -> None:
        """Cancel a job that a sender made who died before it could keep its number; some printers have room for one."""
        with suppress(AppError):  # not all tell; then it is over when the printer has waited long enough
            named = Typed("requested-attributes", Tag.KEYWORD, ["job-id", "job-name"])
            waiting = self._client.ask(Operation.GET_JOBS, [named, Typed("my-jobs", Tag.BOOLEAN, [True])])
            for each in waiting.groups.get(Group.JOB, ()):
                if known.uid in str((each.get("job-name") or [""])[0]):
                    self._withdraw(_number(each, "job-id"))

    def _create(self, job: Job, known: _Ticket, has: Attributes, document_format: str) -> int:
        made = self._client.ask(
            Operation.CREATE_JOB,
            [
                Typed("job-name", Tag.NAME, [f"{job.key} {known.uid}"]),
                # What the printer cannot do it is to refuse, not to pass over.
                Typed("ipp-attribute-fidelity", Tag.BOOLEAN, [True]),
            ],
            self._template(job, has, document_format),
        )
        return _number(made.group(Group.JOB), "job-id")

    def _template(self, job: Job, has: Attributes, document_format: str) -> list[Typed]:
        """Return the attributes of a job, as far as the printer has them."""
        sheets = job.sheets
        kinds = [str(each) for each in has.get("media-type-supported") or []]
        if self.media_type and self.media_type not in kinds:
            message = f"the printer has {', '.join(kinds) or 'no kinds of media'}, not {self.media_type}"
            raise AppError(Category.UNSUPPORTED, message, where="media_type")
        name = _media(has)[sheets.film_size]
        width, height = (round(side * 100) for side in FILM_SIZES[sheets.film_size])
        size = [Typed("x-dimension", Tag.INTEGER, [width]), Typed("y-dimension", Tag.INTEGER, [height])]
        collection = [
            Typed("media-size", Tag.BEGIN_COLLECTION, [size]),
            Typed("media-type", Tag.KEYWORD, [self.media_type]),
        ]
        dots = Resolution(sheets.dots_per_inch, sheets.dots_per_inch)
        wanted = (
            (Typed("copies", Tag.INTEGER, [job.copies]), job.copies > 1),
            (Typed("media-col", Tag.BEGIN_COLLECTION, [collection]), bool(self.media_type)),
            (Typed("media", Tag.KEYWORD, [name]), not self.media_type),
            (Typed("sides", Tag.KEYWORD, ["one-sided"]), "one-sided" in (has.get("sides-supported") or [])),
            (Typed("print-scaling", Tag.KEYWORD, ["none"]), "none" in (has.get("print-scaling-supported") or [])),
            (Typed("print-quality", Tag.ENUM, [_HIGH]), _HIGH in (has.get("print-quality-supported") or [])),
            (
                Typed("print-color-mode", Tag.KEYWORD, ["color" if sheets.colour else "monochrome"]),
                ("color" if sheets.colour else "monochrome") in (has.get("print-color-mode-supported") or []),
            ),
            (
                Typed("printer-resolution", Tag.RESOLUTION, [dots]),
                document_format == _PWG and dots in (has.get("printer-resolution-supported") or []),
            ),
        )
        return [attribute for attribute, is_wanted in wanted if is_wanted]


def _outcome(has: Attributes, known: _Ticket) -> Outcome:
    state = _number(has, "job-state")
    reasons = [str(each) for each in has.get("job-state-reasons") or []]
    counted = has.get("job-impressions-completed") or has.get("job-media-sheets-completed")
    pages = min(known.of, counted[0]) if counted and isinstance(counted[0], int) else 0
    if state == _COMPLETED:
        return Outcome(Progress.DONE, known.of)
    detail = ", ".join(reasons) or "the printer does not say why"
    if state == _ABORTED:
        return Outcome(Progress.FAILED, pages, detail=detail, may_repeat=counted == [0])
    if state == _CANCELED:
        return Outcome(Progress.FAILED, pages, detail=detail)
    if _WAITS_FOR_DATA.intersection(reasons):
        # The document did not get there whole. It is withdrawn before another is sent.
        return Outcome(Progress.PENDING)
    return Outcome(Progress.PRINTING, pages)


def _status(has: Attributes) -> Status:
    """Return how a printer is; reasons that are only reports do not count."""
    said = [str(each) for each in has.get("printer-state-reasons") or []]
    serious = [each for each in said if each != "none" and not each.endswith("-report")]
    reasons = [_REASONS.get(re.sub(r"-(error|warning)$", "", each), _ATTENTION) for each in serious]
    state = State.WARNING if reasons else State.NORMAL
    if _number(has, "printer-state") == _STOPPED or any(each.endswith("-error") for each in serious):
        state = State.FAILURE
    if (has.get("printer-is-accepting-jobs") or [True])[0] is False:
        state, reasons = State.FAILURE, [*reasons, "PRINTER BUSY"]
    name = str((has.get("printer-make-and-model") or [""])[0])[:100]
    return Status(state, tuple(dict.fromkeys(reasons)), ", ".join(each for each in (name, *serious) if each))


def _number(has: Attributes, name: str) -> int:
    value, *_ = has.get(name) or [""]
    if not isinstance(value, int):
        raise AppError(Category.FAULT, f"the printer does not answer with {name}", where="printer")
    return value


def _media(has: Attributes) -> dict[str, str]:
    """Return the printer's names of media by film size."""
    found: dict[str, str] = {}
    for name in has.get("media-supported") or []:
        match = _SIZE.fullmatch(str(name))
        if match is None:
            continue
        scale = INCH if match[3] == "in" else 1.0
        width, height = float(match[1]) * scale, float(match[2]) * scale
        for size, (across, down) in FILM_SIZES.items():
            if abs(across - width) <= _NEAR and abs(down - height) <= _NEAR:
                found.setdefault(size, str(name))
    return found


def _resolutions(has: Attributes) -> tuple[int, ...]:
    said = has.get("pwg-raster-document-resolution-supported") or []
    dots = sorted(each.across for each in said if isinstance(each, Resolution) and each.across == each.along)
    if not dots:
        raise AppError(Category.UNSUPPORTED, "the printer names no resolution for PWG Raster", where="resolution")
    # What is near 300 serves most; more only takes longer.
    return tuple(sorted(dots, key=lambda each: (each < 300, each)))


def _least_margin(has: Attributes) -> float:
    """Return the widest of the least margins of the four edges, in mm."""
    edges = (has.get(f"media-{edge}-margin-supported") or [0] for edge in ("left", "right", "top", "bottom"))
    return max(min(each for each in edge if isinstance(each, int)) / 100 for edge in edges)
