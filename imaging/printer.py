"""What a printer is: what it can do, how it is, and printing in steps of which none is ever done twice.

A job is reserved, sent, and asked about. Between the steps a caller keeps a *ticket*: a short text that says all that a
printer needs to find the job again, and in which whatever is about to happen is written before it happens. A caller
that died, or whose printer did, asks what became of the ticket, and never sends on a guess:

    ticket = printer.reserve(job)           # nothing is printed by this
    save(ticket)
    printer.send(ticket, job, keep=save)    # calls `save` with a newer ticket before each step that cannot be undone
    ...                                     # any exception, any crash: go on here, with the ticket saved last
    outcome = printer.outcome(ticket)       # PENDING: send it (again); PRINTING: ask later; else it is over

Nothing here knows where pictures come from or who ordered them.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, ClassVar, Self

from imaging.errors import AppError, Category
from imaging.film.compose import Page, Picture, Sheets, page_count, pages
from imaging.film.gsdf import Densities
from imaging.film.layout import Medium
from imaging.parameters import Parameter, build, describe

MOST_TICKET = 40_000  # characters
MOST_KEY = 64
MOST_ATTACHED = 16 << 20  # bytes
MOST_BEGUN = 128 << 20  # bytes of pictures that are loaded before a job is printed
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")


class Priority(StrEnum):
    """Print Priority (2000,0020)."""

    HIGH = "HIGH"
    MEDIUM = "MED"
    LOW = "LOW"


@dataclass(frozen=True, slots=True)
class Attachment:
    """A document that goes with the pages where a printer can carry one, such as the order. `name` is a file name."""

    name: str
    media_type: str
    content: bytes
    description: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One order of a hard copy.

    key            names the job in files, labels and queues: letters, digits, dots, hyphens; tells nothing of a patient
    pictures       of all pages; each is loaded when its turn comes, perhaps again when a job goes on after a failure
    copies         of each page
    destination    Film Destination (2000,0040), "" for the printer's own choice
    densities      lowest and highest density and the light that the film is made for; None for the printer's own
    smoothing      Smoothing Type (2010,0080), a term of the printer's; "" for its own choice
    configuration  Configuration Information (2010,0150), in the printer's language
    title          of documents; may name the patient, and goes only where the pages themselves go
    """

    key: str
    sheets: Sheets
    pictures: Sequence[Callable[[], Picture]] = field(repr=False)
    copies: int = 1
    priority: Priority = Priority.MEDIUM
    destination: str = ""
    densities: Densities | None = None
    smoothing: str = ""
    configuration: str = ""
    title: str = field(default="", repr=False)
    attachments: tuple[Attachment, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Raise INVALID, or TOO_LARGE, for what no printer prints."""
        if len(self.key) > MOST_KEY or not _KEY.fullmatch(self.key):
            message = f"1 to {MOST_KEY} letters, digits, dots and hyphens expected"
            raise AppError(Category.INVALID, message, where="key")
        if self.copies < 1:
            raise AppError(Category.INVALID, "at least one copy expected", where="copies")
        if sum(len(each.content) for each in self.attachments) > MOST_ATTACHED:
            raise AppError(Category.TOO_LARGE, f"more than {MOST_ATTACHED >> 20} MiB attached", where="attachments")

    @property
    def page_count(self) -> int:
        """Pages of one copy. Raises INVALID for no pictures, TOO_LARGE for too many pages."""
        return page_count(self.sheets, len(self.pictures))

    def pages(self, first: int = 1) -> Iterator[Page]:
        """Yield the composed pages from number `first` on, one in memory at a time."""
        return pages(self.sheets, self.pictures, first=first)


def begun(job: Job, most_bytes: int = MOST_BEGUN) -> Job:
    """Return a job with the pictures of its first page loaded, in order, until they take more than `most_bytes`."""
    there: list[Callable[[], Picture]] = []
    size = 0
    for load in job.pictures[: len(job.sheets.image_boxes())]:
        if size > most_bytes:
            break
        picture = load()
        size += picture.greys.nbytes
        there.append(lambda picture=picture: picture)  # type: ignore[misc]
    return replace(job, pictures=[*there, *job.pictures[len(there) :]])


class Reporting(StrEnum):
    """How far a printer can say what became of a job."""

    PRINTED = "printed"  # it tells when the last page is out, or that it failed
    ACCEPTED = "accepted"  # it takes pages or refuses them, and then is silent


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a printer can print. An empty tuple of terms stands for "whatever is asked".

    film_sizes         Film Size IDs as in `imaging.film.FILM_SIZES`
    dots_per_inch      resolutions at which pages may be composed; the first is the one to choose
    bits               of a grey P-Value; the first is the one to choose
    most_copies        of a page in one job, most_pages without copies
    least_margin       mm along every edge of the sheet that cannot be printed on
    densities          lowest and highest optical density that it makes, None where that means nothing or is not known
    does_true_size     whether a millimetre of a composed page is one on the sheet
    does_annotation    whether banner and footer come out; a job that has them is refused otherwise
    does_layout        whether the page comes out as composed; else the printer places the images, and captions,
                       letters, scale bars and code are lost
    does_attachments   whether attachments reach whoever gets the pages
    destinations       Film Destinations
    """

    film_sizes: tuple[str, ...]
    media: tuple[Medium, ...]
    dots_per_inch: tuple[int, ...]
    bits: tuple[int, ...] = (8,)
    grey: bool = True
    colour: bool = False
    most_copies: int = 1
    most_pages: int = 500
    least_margin: float = 0.0
    densities: tuple[float, float] | None = None
    does_true_size: bool = True
    does_annotation: bool = True
    does_layout: bool = True
    does_attachments: bool = False
    destinations: tuple[str, ...] = ()
    reporting: Reporting = Reporting.PRINTED

    def check(self, job: Job) -> None:
        """Raise UNSUPPORTED, saying what the printer offers, for the first thing in a job that it does not."""
        sheets = job.sheets
        true_size = sheets.fit == "true-size"
        offers: tuple[tuple[str, object, Sequence[object]], ...] = (
            ("film-size", sheets.film_size, self.film_sizes),
            ("medium", sheets.medium, self.media),
            ("resolution", sheets.dots_per_inch, self.dots_per_inch),
            ("bits", sheets.bits, (8,) if sheets.colour else self.bits),
            ("colour", "colour" if sheets.colour else "grey", self._colours()),
            ("fit", sheets.fit, () if self.does_true_size or not true_size else ("fit", "crop")),
            ("destination", job.destination, ("", *self.destinations) if self.destinations else ()),
        )
        for where, asked, offered in offers:
            if offered and asked not in offered:
                there_is = ", ".join(str(each) for each in offered if each != "")
                raise AppError(Category.UNSUPPORTED, f"the printer has {there_is}, not {asked}", where=where)
        if not self.does_annotation and (sheets.banner or sheets.footer):
            message = "the printer prints no text; without it nobody knows whose images these are"
            raise AppError(Category.UNSUPPORTED, message, where="annotation")
        if not self.does_layout and (sheets.custom_boxes or sheets.code):
            raise AppError(Category.UNSUPPORTED, "the printer has no boxes and codes of an order's own", where="layout")
        bounds: tuple[tuple[str, float, float, float], ...] = (
            ("copies", job.copies, 1, self.most_copies),
            ("pages", job.page_count, 1, self.most_pages),
            ("layout", sheets.margin, self.least_margin, float("inf")),
            *self._densities(job),
        )
        for where, value, low, high in bounds:
            if not low - 1e-6 <= value <= high + 1e-6:
                limits = f"at least {low:g}" if high == float("inf") else f"{low:g} to {high:g}"
                raise AppError(Category.UNSUPPORTED, f"the printer does {limits}, not {value:g}", where=where)

    def _colours(self) -> tuple[str, ...]:
        return tuple(name for name, has in (("grey", self.grey), ("colour", self.colour)) if has)

    def _densities(self, job: Job) -> tuple[tuple[str, float, float, float], ...]:
        if not (self.densities and job.densities):
            return ()
        return tuple(
            ("density", value, *self.densities) for value in (job.densities.lowest, job.densities.highest)
        )  # fmt: skip


class State(StrEnum):
    """Printer Status (2110,0010), and OFFLINE for one that cannot be reached. Source: PS3.3 C.13.9."""

    NORMAL = "NORMAL"
    WARNING = "WARNING"  # it prints, or will by itself; somebody should look at it
    FAILURE = "FAILURE"  # it does not print before somebody has been there
    OFFLINE = "OFFLINE"


@dataclass(frozen=True, slots=True)
class Status:
    """How a printer is.

    reasons  terms of Printer Status Info (2110,0020) as in `imaging.printers.reasons`, the most serious first
    detail   what the printer says of itself in its own words, for people
    """

    state: State
    reasons: tuple[str, ...] = ()
    detail: str = ""


class Progress(StrEnum):
    """What became of a job."""

    PENDING = "pending"  # pages beyond the printed ones were not sent, or not so that they could be printed: send
    PRINTING = "printing"  # the printer has all that it needs; ask again later
    DONE = "done"
    FAILED = "failed"  # nothing more will be printed of this ticket; a new one may be reserved
    UNKNOWN = "unknown"  # something may have been printed, and the printer cannot tell: somebody has to look


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job, as far as the printer knows.

    pages       that are printed for certain, of one copy; for FAILED and UNKNOWN more may be
    reasons     terms as in Status, where the printer names some
    detail      for people: why it failed, or what cannot be known
    may_repeat  for FAILED: nothing was printed, and the reason may pass: reserve and send anew
    """

    progress: Progress
    pages: int = 0
    reasons: tuple[str, ...] = ()
    detail: str = ""
    may_repeat: bool = False


Keep = Callable[[str], None]
Tell = Callable[[Status], None]


def unheard(_: Status) -> None:
    """Take no notice of a status."""


class Printer:
    """One printer with its address and options: a frozen dataclass in a file of its own.

    Its parameters are what a configuration gives; making one opens nothing. Methods may be called from any process, in
    any order, by several threads for different tickets. They raise BUSY when the printer cannot be reached or has no
    room now, UNSUPPORTED and INVALID for what it will never print, FORBIDDEN when it refuses us.
    """

    title: ClassVar[str]

    def capabilities(self) -> Capabilities:
        """Return what can be printed; may ask the printer."""
        raise NotImplementedError

    def status(self) -> Status:
        """Return how the printer is. One that cannot be reached is OFFLINE; that is no error."""
        raise NotImplementedError

    def reserve(self, job: Job) -> str:
        """Return a ticket for a job, at most MOST_TICKET printable ASCII characters that tell nothing of a patient.

        Prints nothing, and loads no picture. A ticket that is lost leaves nothing that would be printed. Raises
        UNSUPPORTED for a job that is beyond the capabilities.
        """
        raise NotImplementedError

    def send(self, ticket: str, job: Job, *, keep: Keep, tell: Tell = unheard) -> None:
        """Hand over what is not printed yet, as `outcome` is PENDING; the job is the one that was reserved.

        keep  saves a newer ticket durably, before the step that it tells of; where it raises, that step is not done
        tell  hears how the printer is, while it is sent to, where the printer says so

        Returns when the printer has all, which may be before the first page is out. After any exception, `outcome`
        of the ticket kept last says whether to send again. Raises CONFLICT for a ticket that is not PENDING.
        """
        raise NotImplementedError

    def outcome(self, ticket: str) -> Outcome:
        """Return what became of a job. Raises BUSY where the printer cannot be asked now, INVALID for no ticket."""
        raise NotImplementedError

    def cancel(self, ticket: str) -> str:
        """Give a job up; return the ticket to keep in place of this one.

        What is not printed yet is not printed any more, as far as the printer can still stop it. The outcome of the
        returned ticket is FAILED where nothing was sent. Cancelling again is a no-op. Raises BUSY where the printer
        had to be told, and could not be.
        """
        raise NotImplementedError

    @classmethod
    def parameters(cls) -> tuple[Parameter, ...]:
        """Return what can be configured."""
        return describe(cls)

    @classmethod
    def build(cls, values: dict[str, Any]) -> Self:
        """Return the printer with these parameters. Raises INVALID, naming the parameter."""
        return build(cls, values)

    @classmethod
    def description(cls) -> str:
        """Return the first line of the docstring."""
        return (cls.__doc__ or "").strip().partition("\n")[0]
