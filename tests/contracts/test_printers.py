"""What every printer promises; a new kind passes by subclassing `PrinterContract` with what came out of its printer."""

from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pikepdf
import pytest
from PIL import Image

from imaging.errors import AppError, Category
from imaging.film import Picture, Sheets, pages
from imaging.film.compose import page_count
from imaging.film.layout import Medium
from imaging.printer import MOST_TICKET, Attachment, Job, Outcome, Printer, Progress, State
from imaging.printers import printers
from tests.support.film_printers import (
    HAS_DCMPRSCP,
    NEEDS_DCMPRSCP,
    TITLE,
    DcmtkPrinter,
    WeakPrinter,
    dcmtk_printer,
)
from tests.support.ipp_printers import (
    HAS_IPPEVEPRINTER,
    NEEDS_IPPEVEPRINTER,
    EverywherePrinter,
    everywhere_printer,
)

SECRET = "DOE^JANE"  # of the pages, and never of a ticket


class Death(BaseException):
    """The process dies here."""


class Caller:
    """One that orders a job: keeps tickets durably, and can be made to die at the n-th thing that it is asked for."""

    def __init__(self, dies_at: int = 0) -> None:
        self.ticket = ""
        self.kept = 0
        self.steps = 0
        self.dies_at = dies_at

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.dies_at:
            raise Death

    def keep(self, ticket: str) -> None:
        self.step()  # before it is kept
        self.ticket = ticket
        self.kept += 1
        self.step()  # after

    def pictures(self, sheets: Sheets, count: int) -> list[Callable[[], Picture]]:
        def load(number: int) -> Picture:
            self.step()
            wedge = np.linspace(0, 1, 8, dtype=np.float32)[None].repeat(8, axis=0)
            return Picture(np.roll(wedge, number, axis=1), caption=(SECRET,))

        return [lambda n=n: load(n) for n in range(count)]

    def job(self, sheets: Sheets, pictures: int, **more: object) -> Job:
        return Job("order-1", sheets, self.pictures(sheets, pictures), title=SECRET, **more)


class PrinterContract:
    """`printer` makes a printer anew, as a restarted process would; `printed` tells what came out, in its order."""

    sheets = Sheets(
        film_size="A4", medium=Medium.PAPER, dots_per_inch=72, display_format="STANDARD\\1,2", border=1.0, letters=False
    )
    may_be_unknown = False  # where a printer cannot be asked about what was under way when the sender died

    @pytest.fixture
    def printer(self) -> Callable[[], Printer]:
        raise NotImplementedError

    @pytest.fixture
    def printed(self) -> Callable[[], list[np.ndarray]]:
        raise NotImplementedError

    def expected(self, pictures: int) -> list[np.ndarray]:
        """Return the composed pages; that they are right is the business of the tests of the composition."""
        return [page.pixels for page in pages(self.sheets, Caller().pictures(self.sheets, pictures))]

    def test_pages_come_out_once_in_their_order_as_composed(self, printer, printed) -> None:
        caller = Caller()
        job = caller.job(self.sheets, 5)

        caller.keep(printer().reserve(job))
        printer().send(caller.ticket, job, keep=caller.keep)

        outcome = settled(printer(), caller.ticket)
        assert (outcome.progress, outcome.pages) == (Progress.DONE, 3)
        assert_same_pages(printed(), self.expected(5))

    def test_a_reservation_prints_nothing_and_loads_nothing(self, printer, printed) -> None:
        caller = Caller(dies_at=1)

        ticket = printer().reserve(caller.job(self.sheets, 2))

        assert printer().outcome(ticket).progress is Progress.PENDING
        assert printed() == []

    def test_tickets_are_short_plain_and_tell_nothing_of_a_patient(self, printer) -> None:
        tickets: list[str] = []
        job = Caller().job(self.sheets, 3)

        tickets.append(printer().reserve(job))
        printer().send(tickets[0], job, keep=tickets.append)

        assert len(tickets) > 1
        for ticket in tickets:
            assert len(ticket) <= MOST_TICKET
            assert ticket.isascii()
            assert ticket.isprintable()
            assert "DOE" not in ticket

    def test_what_was_sent_is_not_sent_again(self, printer, printed) -> None:
        caller = Caller()
        job = caller.job(self.sheets, 1)
        caller.keep(printer().reserve(job))
        printer().send(caller.ticket, job, keep=caller.keep)

        with pytest.raises(AppError) as caught:
            printer().send(caller.ticket, job, keep=caller.keep)

        assert caught.value.category is Category.CONFLICT
        assert len(printed()) == 1

    def test_two_reservations_of_one_order_are_two_jobs(self, printer, printed) -> None:
        caller = Caller()
        job = caller.job(self.sheets, 1)
        printer().reserve(job)

        caller.keep(printer().reserve(job))
        printer().send(caller.ticket, job, keep=caller.keep)

        assert len(printed()) == 1

    def test_whoever_dies_at_whatever_step_each_page_comes_out_once(self, printer, printed, forget) -> None:
        alive = Caller()
        self.run(printer, alive)
        forget()

        for dies_at in range(1, alive.steps + 1):
            caller = Caller(dies_at)
            progress = self.run(printer, caller)

            if progress is Progress.UNKNOWN:
                assert self.may_be_unknown
                assert_same_pages(printed(), self.expected(5)[: len(printed())])
            else:
                assert progress is Progress.DONE, dies_at
                assert_same_pages(printed(), self.expected(5))
            forget()

    def run(self, printer: Callable[[], Printer], caller: Caller) -> Progress:
        """Do what a caller does that dies and starts again, until the job is over."""
        for _ in range(3):
            job = caller.job(self.sheets, 5)
            try:
                if not caller.ticket:
                    caller.keep(printer().reserve(job))
                if printer().outcome(caller.ticket).progress is Progress.PENDING:
                    printer().send(caller.ticket, job, keep=caller.keep)
            except Death:
                continue
            break
        return settled(printer(), caller.ticket).progress

    def test_a_job_that_was_given_up_is_not_printed(self, printer, printed) -> None:
        caller = Caller()
        job = caller.job(self.sheets, 1)
        ticket = printer().reserve(job)

        ticket = printer().cancel(printer().cancel(ticket))

        outcome = printer().outcome(ticket)
        assert (outcome.progress, outcome.may_repeat) == (Progress.FAILED, True)
        with pytest.raises(AppError) as caught:
            printer().send(ticket, job, keep=caller.keep)
        assert caught.value.category is Category.CONFLICT
        assert printed() == []

    def test_one_picture_is_in_memory_at_a_time(self, printer) -> None:
        order: list[str] = []
        caller = Caller()
        job = caller.job(self.sheets, 3)
        watched = [lambda n=n, load=load: order.append(f"load {n}") or load() for n, load in enumerate(job.pictures)]
        job = Job("order-1", self.sheets, watched)
        ticket = printer().reserve(job)

        printer().send(ticket, job, keep=lambda _: order.append("keep"))

        assert [each for each in order if each != "keep"] == ["load 0", "load 1", "load 2"]

    @pytest.mark.parametrize("ticket", ["", "x", "../../etc/passwd", "order-1_../../..", "{}", "\0", "a" * 50_000])
    def test_what_is_no_ticket_is_refused(self, printer, ticket: str) -> None:
        for action in (printer().outcome, printer().cancel):
            with pytest.raises(AppError) as caught:
                action(ticket)
            assert caught.value.category is Category.INVALID

    def test_a_job_beyond_the_capabilities_is_not_reserved(self, printer, printed) -> None:
        capable = printer().capabilities()

        with pytest.raises(AppError) as caught:
            printer().reserve(Caller().job(self.sheets, 1, copies=capable.most_copies + 1))

        assert caught.value.category is Category.UNSUPPORTED
        assert printed() == []

    def test_the_capabilities_cover_what_this_suite_prints(self, printer) -> None:
        printer().capabilities().check(Caller().job(self.sheets, 5))

    def test_a_printer_that_works_says_so(self, printer) -> None:
        assert printer().status().state in (State.NORMAL, State.WARNING)

    def test_a_printer_that_is_not_there_is_offline_and_busy(self, printer, gone) -> None:
        caller = Caller()
        job = caller.job(self.sheets, 1)
        ticket = printer().reserve(job)

        gone()

        assert printer().status().state is State.OFFLINE
        with pytest.raises(AppError) as caught:
            printer().send(ticket, job, keep=caller.keep)
        assert caught.value.category is Category.BUSY
        # Some need not ask the printer to know these.
        assert outcome_or_error(lambda: printer().outcome(ticket).progress) in (Progress.PENDING, Category.BUSY)
        assert outcome_or_error(lambda: len(printer().reserve(job)) > 0) in (True, Category.BUSY)


def settled(printer: Printer, ticket: str) -> Outcome:
    """Return what became of a job when it is over; a printer may take its time after it has all pages."""
    end = monotonic() + 30
    while (outcome := printer.outcome(ticket)).progress is Progress.PRINTING and monotonic() < end:
        sleep(0.05)
    return outcome


def outcome_or_error(action: Callable[[], object]) -> object:
    try:
        return action()
    except AppError as error:
        return error.category


def assert_same_pages(printed: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(printed) == len(expected)
    for out, composed in zip(printed, expected, strict=True):
        np.testing.assert_array_equal(out, composed)


def pages_of(file: Path) -> list[np.ndarray]:
    """Return the pixels of the pages of a PDF."""
    with pikepdf.open(file) as document:
        images = [pikepdf.PdfImage(page.Resources.XObject.Page) for page in document.pages]
        return [np.asarray(image.as_pil_image().convert("L")) for image in images]


class FilesContract(PrinterContract):
    """Printers whose jobs appear in a folder."""

    @pytest.fixture
    def forget(self, place: Path) -> Callable[[], None]:
        def forget() -> None:
            for entry in place.iterdir():
                if entry.is_dir():
                    for file in entry.iterdir():
                        file.unlink()
                    entry.rmdir()
                else:
                    entry.unlink()

        return forget

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        folder = tmp_path / "drop"
        folder.mkdir()
        return folder

    @pytest.fixture
    def gone(self, place: Path) -> Callable[[], None]:
        return lambda: place.rename(place.with_name("elsewhere")) and None

    def test_what_was_fetched_from_the_folder_is_done(self, printer, place: Path, forget) -> None:
        caller = Caller()
        job = caller.job(self.sheets, 3)
        caller.keep(printer().reserve(job))
        printer().send(caller.ticket, job, keep=caller.keep)

        forget()

        outcome = printer().outcome(caller.ticket)
        assert (outcome.progress, outcome.pages) == (Progress.DONE, 2)

    def test_a_reservation_that_somebody_removed_may_be_repeated(self, printer, forget) -> None:
        ticket = printer().reserve(Caller().job(self.sheets, 1))

        forget()

        outcome = printer().outcome(ticket)
        assert (outcome.progress, outcome.may_repeat) == (Progress.FAILED, True)

    def test_what_is_not_complete_is_hidden(self, printer, place: Path) -> None:
        caller = Caller(dies_at=3)
        job = caller.job(self.sheets, 5)
        ticket = printer().reserve(job)

        with pytest.raises(Death):
            printer().send(ticket, job, keep=caller.keep)

        assert [each.name for each in place.iterdir() if not each.name.startswith(".")] == []

    def test_a_folder_that_cannot_be_written_to_is_a_failure(self, printer, place: Path, monkeypatch) -> None:
        monkeypatch.setattr("imaging.printer_drop.os.access", lambda *_: False)  # root may write anywhere

        assert printer().status().state is State.FAILURE
        with pytest.raises(AppError) as caught:
            printer().reserve(Caller().job(self.sheets, 1))
        assert caught.value.category is Category.BUSY


@pytest.mark.parametrize("format", ["png", "tiff"])
class TestFolderPrinter(FilesContract):
    @pytest.fixture
    def printer(self, place: Path, format: str) -> Callable[[], Printer]:
        values = {"folder": str(place), "format": format, "dots_per_inch": 72}
        return lambda: printers.get("folder").build(values)

    @pytest.fixture
    def printed(self, place: Path, format: str) -> Callable[[], list[np.ndarray]]:
        return lambda: [np.asarray(Image.open(file)) for file in sorted(place.glob(f"[!.]*/*.{format}"))]


class TestPdfPrinter(FilesContract):
    @pytest.fixture
    def printer(self, place: Path) -> Callable[[], Printer]:
        return lambda: printers.get("pdf").build({"folder": str(place), "dots_per_inch": 72})

    @pytest.fixture
    def printed(self, place: Path) -> Callable[[], list[np.ndarray]]:
        return lambda: [page for file in sorted(place.glob("[!.]*.pdf")) for page in pages_of(file)]

    def test_the_order_is_attached(self, printer, place: Path) -> None:
        job = Caller().job(self.sheets, 1, attachments=(Attachment("order.json", "application/json", b"{}"),))
        ticket = printer().reserve(job)

        printer().send(ticket, job, keep=lambda _: None)

        (file,) = place.glob("[!.]*.pdf")
        with pikepdf.open(file) as document:
            assert document.attachments["order.json"].get_file().read_bytes() == b"{}"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pynetdicom closes sockets late
class FilmPrinterContract(PrinterContract):
    """Film printers: they cannot be asked about a page that was being printed when the sender died."""

    may_be_unknown = True

    @pytest.fixture
    def printed(self, site: DcmtkPrinter | WeakPrinter) -> Callable[[], list[np.ndarray]]:
        return site.printed

    @pytest.fixture
    def forget(self, site: DcmtkPrinter | WeakPrinter) -> Callable[[], None]:
        return site.forget

    @pytest.fixture
    def printer(self, site: DcmtkPrinter | WeakPrinter) -> Callable[[], Printer]:
        values = {
            "host": "127.0.0.1", "port": site.port, "called_ae": TITLE, "dots_per_inch": 72, "film_sizes": ["A4"],
            "media": ["PAPER"], "wait_s": 5, "connect_s": 2, "answer_s": 5,
        }  # fmt: skip
        return lambda: printers.get("dicom").build(values)


@pytest.mark.skipif(not HAS_DCMPRSCP, reason=NEEDS_DCMPRSCP)
class TestDicomPrinterWithDcmtk(FilmPrinterContract):
    @pytest.fixture
    def site(self, tmp_path: Path) -> Iterator[DcmtkPrinter]:
        with dcmtk_printer(tmp_path / "dcmtk") as printer:
            yield printer

    @pytest.fixture
    def gone(self, site: DcmtkPrinter) -> Callable[[], None]:
        return site.stop


class TestDicomPrinter(FilmPrinterContract):
    @pytest.fixture
    def site(self) -> Iterator[WeakPrinter]:
        with WeakPrinter().running() as printer:
            yield printer

    @pytest.fixture
    def gone(self, site: WeakPrinter) -> Callable[[], None]:
        return site.stop


@pytest.mark.skipif(not HAS_IPPEVEPRINTER, reason=NEEDS_IPPEVEPRINTER)
class TestIppPrinter(PrinterContract):
    @pytest.fixture
    def site(self, tmp_path: Path) -> Iterator[EverywherePrinter]:
        with everywhere_printer(tmp_path / "ipp") as printer:
            yield printer

    @pytest.fixture
    def printer(self, site: EverywherePrinter) -> Callable[[], Printer]:
        values = {"uri": site.uri, "dots_per_inch": 72, "connect_s": 2, "answer_s": 5}
        return lambda: printers.get("ipp").build(values)

    @pytest.fixture
    def printed(self, site: EverywherePrinter) -> Callable[[], list[np.ndarray]]:
        return lambda: [page for file in site.documents() for page in pages_of(file)]

    @pytest.fixture
    def forget(self, site: EverywherePrinter) -> Callable[[], None]:
        return site.forget

    @pytest.fixture
    def gone(self, site: EverywherePrinter) -> Callable[[], None]:
        return site.stop


def test_the_suite_covers_every_kind() -> None:
    tested = {
        name.removeprefix("Test").removesuffix("Printer").lower() for name in globals() if name.endswith("Printer")
    }

    ours = {name for name in printers if printers.get(name).__module__.startswith("imaging.printers.")}
    assert ours <= tested
    assert page_count(PrinterContract.sheets, 5) == 3
