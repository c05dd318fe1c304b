"""Modalities print through us: DCMTK's (dcmpsprt, dcmprscu), our own print SCU, and ones that behave badly."""

import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, evt

from imaging.dimse import print_scp
from imaging.dimse import print_terms as terms
from imaging.dimse.print_pixels import p_values
from imaging.dimse.print_scp import Backing, Modality, PrintScp
from imaging.dimse.print_session import Film
from imaging.errors import AppError, Category
from imaging.film import Medium, Picture, Sheets, pages
from imaging.film.gsdf import Densities
from imaging.printer import Job, Outcome, Progress, State, Status
from imaging.printers import printers
from tests.support.film_modality import HAS_DCMTK, NEEDS_DCMTK, DcmtkModality

TITLE = "FHIRPRINT"
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pynetdicom's sockets


class Desk:
    """What stands behind our printer: keeps what it accepts."""

    def __init__(self) -> None:
        self.admitted: list[Modality] = []
        self.printed: list[tuple[Modality, list[Film], str]] = []
        self.refusal: AppError | None = None
        self.queue_full = False
        self.is_broken = False
        self.progress = Outcome(Progress.DONE, 1)
        self.status = Status(State.NORMAL)

    def admit(self, modality: Modality) -> None:
        if self.refusal:
            raise self.refusal
        self.admitted.append(modality)

    def accept(self, modality: Modality, films: Sequence[Film]) -> str:
        if self.is_broken:
            raise ZeroDivisionError
        if self.queue_full:
            raise AppError(Category.BUSY, "no room")
        uid = generate_uid(None)
        self.printed.append((modality, list(films), uid))
        return uid

    def outcome(self, modality: Modality, uid: str) -> Outcome:
        if uid not in {known for _, _, known in self.printed}:
            raise AppError(Category.NOT_FOUND, "no such job")
        return self.progress

    def films(self) -> list[Film]:
        return [film for _, films, _ in self.printed for film in films]


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def scp(desk: Desk) -> Iterator[PrintScp]:
    backing = Backing(desk.admit, desk.accept, desk.outcome, lambda _: desk.status)
    scp = PrintScp(backing, title=TITLE, address=("127.0.0.1", 0), most_associations=2, idle_s=5, printer_name="ours")
    yield scp
    scp.stop()


@pytest.fixture
def port(scp: PrintScp) -> int:
    return scp.start()


def associated(port: int, *contexts: str, handlers: list | None = None, called: str = TITLE):
    entity = AE(ae_title="MODALITY")
    for uid in contexts or (terms.GREY_META, terms.PRESENTATION_LUT, terms.PRINT_JOB):
        entity.add_requested_context(uid)
    entity.dimse_timeout = 3
    return entity.associate("127.0.0.1", port, ae_title=called, evt_handlers=handlers or [])


def image_of(samples: np.ndarray) -> Dataset:
    ds = Dataset()
    ds.ImageBoxPosition = 1
    image = Dataset()
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = samples.shape
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.PixelData = samples.tobytes()
    ds.BasicGrayscaleImageSequence = [image]
    return ds


@pytest.mark.skipif(not HAS_DCMTK, reason=NEEDS_DCMTK)
class TestDcmtk:
    @pytest.fixture
    def modality(self, tmp_path: Path, port: int) -> DcmtkModality:
        return DcmtkModality(tmp_path, port)

    def test_films_arrive_pixel_by_pixel_with_what_was_ordered(self, modality: DcmtkModality, desk: Desk) -> None:
        films = modality.render(
            2, "--layout", "2", "2", "--filmsize", "8INX10IN", "--identity", "--illumination", "2500", "--reflection",
            "15", "--trim", "--landscape", "--border", "WHITE", "--min-density", "20", "--max-density", "300",
        )  # fmt: skip

        modality.send(films, "--copies", "2", "--medium-type", "CLEAR FILM", "--priority", "HIGH", "--label", "ward 3")

        (sender, (film,), _) = desk.printed[0]
        assert (sender.calling, sender.called, sender.address) == ("MODALITY", TITLE, "127.0.0.1")
        session, box = film.session, film.box
        assert (session.NumberOfCopies, session.PrintPriority, session.MediumType) == (2, "HIGH", "CLEAR FILM")
        assert session.FilmSessionLabel == "ward 3"
        assert (box.FilmSizeID, box.FilmOrientation, box.Trim) == ("8INX10IN", "LANDSCAPE", "YES")
        assert (box.Illumination, box.ReflectedAmbientLight, box.BorderDensity) == (2500, 15, "WHITE")
        assert (box.MinDensity, box.MaxDensity) == (20, 300)
        assert film.lut.PresentationLUTShape == "IDENTITY"
        assert (film.count, list(film.images), film.is_colour) == (4, [1, 2], False)
        for image_box, hardcopy in zip(film.images.values(), modality.hardcopies(films[0]), strict=True):
            sent = hardcopy.pixel_array / (2**hardcopy.BitsStored - 1)
            np.testing.assert_allclose(p_values(image_box, film.lut, box), sent, atol=1e-6)

    @pytest.mark.parametrize("options", [(), ("--session-print",)])
    def test_each_film_is_printed_once(self, modality: DcmtkModality, desk: Desk, options: tuple[str, ...]) -> None:
        films = [*modality.render(1), *modality.render(3, "--layout", "2", "2")[1:]]

        modality.send(films, *options)

        assert sorted(len(film.images) for film in desk.films()) == [1, 3]

    def test_monochrome1_looks_the_same(self, modality: DcmtkModality, desk: Desk) -> None:
        films = modality.render(1)

        modality.send(films)
        modality.send(films, "--monochrome1")

        plain, inverted = (film.images[1] for film in desk.films())
        assert inverted.BasicGrayscaleImageSequence[0].PhotometricInterpretation == "MONOCHROME1"
        np.testing.assert_allclose(p_values(plain, None, Dataset()), p_values(inverted, None, Dataset()), atol=1 / 4095)

    def test_annotations_arrive(self, modality: DcmtkModality, desk: Desk) -> None:
        films = modality.render(
            1, "--annotation", "DOE^JANE", "--print-no-date", "--print-no-name", "--print-no-lighting"
        )

        modality.send(films)

        assert list(desk.films()[0].annotations.values()) == ["DOE^JANE"]


class TestOurOwnScu:
    def printer(self, port: int, **values: object):
        usual = {
            "host": "127.0.0.1", "port": port, "called_ae": TITLE, "dots_per_inch": 72, "film_sizes": ["8INX10IN"],
            "media": ["CLEAR FILM"], "twelve_bits": True, "colour": True, "wait_s": 3, "answer_s": 5,
        }  # fmt: skip
        return printers.get("dicom").build({**usual, **values})

    @pytest.mark.parametrize("lut", ["none", "identity", "table"])
    @pytest.mark.parametrize(("bits", "colour"), [(8, False), (12, False), (8, True)])
    def test_a_page_that_goes_out_comes_in(self, port: int, desk: Desk, bits: int, colour: bool, lut: str) -> None:
        noise = np.random.default_rng(5).random((64, 48) + ((3,) if colour else ())).astype(np.float32)
        sheets = Sheets(film_size="8INX10IN", dots_per_inch=72, bits=bits, colour=colour, medium=Medium.CLEAR_FILM)
        job = Job("order-1", sheets, [lambda: Picture(noise)] * 2, copies=3, densities=Densities(0.2, 3.1))
        printer = self.printer(port, presentation_lut=lut)
        tickets = [printer.reserve(job)]

        printer.send(tickets[0], job, keep=tickets.append)

        assert printer.outcome(tickets[-1]) == Outcome(Progress.DONE, 2)
        films = desk.films()
        assert [film.is_colour for film in films] == [colour, colour]
        for film, page in zip(films, pages(sheets, job.pictures), strict=True):
            seen = p_values(film.images[1], film.lut, film.box)
            np.testing.assert_allclose(seen, page.pixels / sheets.white, atol=1e-4)
        assert films[0].session.NumberOfCopies == 3

    def test_print_jobs_are_followed(self, port: int, desk: Desk) -> None:
        desk.progress = Outcome(Progress.FAILED, reasons=("FILM JAM",))
        job = Job(
            "o", Sheets(film_size="8INX10IN", dots_per_inch=72, medium=Medium.CLEAR_FILM), [lambda: Picture(BLANK)]
        )
        printer = self.printer(port)
        tickets = [printer.reserve(job)]

        printer.send(tickets[0], job, keep=tickets.append)

        outcome = printer.outcome(tickets[-1])
        assert (outcome.progress, outcome.reasons) == (Progress.FAILED, ("FILM JAM",))

    def test_a_full_queue_is_busy_and_nothing_is_lost(self, port: int, desk: Desk) -> None:
        desk.queue_full = True
        job = Job(
            "o", Sheets(film_size="8INX10IN", dots_per_inch=72, medium=Medium.CLEAR_FILM), [lambda: Picture(BLANK)]
        )
        printer = self.printer(port)
        tickets = [printer.reserve(job)]

        with pytest.raises(AppError) as caught:
            printer.send(tickets[0], job, keep=tickets.append)

        assert caught.value.category is Category.BUSY
        assert printer.outcome(tickets[-1]) == Outcome(Progress.PENDING)
        desk.queue_full = False
        printer.send(tickets[-1], job, keep=tickets.append)
        assert printer.outcome(tickets[-1]).progress is Progress.DONE
        assert len(desk.films()) == 1


BLANK = np.zeros((4, 4), dtype=np.float32)


class TestAssociations:
    @pytest.mark.parametrize(
        ("category", "result", "reason"),
        [(Category.FORBIDDEN, 1, 3), (Category.NOT_FOUND, 1, 7), (Category.BUSY, 2, 1)],
    )
    def test_who_is_not_admitted_hears_why(
        self,
        port: int,
        desk: Desk,
        caplog: pytest.LogCaptureFixture,
        category: Category,
        result: int,
        reason: int,
    ) -> None:
        desk.refusal = AppError(category, "no")

        association = associated(port)

        assert association.is_rejected
        answer = association.acceptor.primitive
        assert (answer.result, answer.result_source, answer.diagnostic) == (result, 1, reason)
        (told,) = [record for record in caplog.records if record.message == "a modality was not let in"]
        assert (told.address, told.reason) == ("127.0.0.1", "no")

    def test_there_are_no_more_than_allowed(self, port: int) -> None:
        first, second, third = (associated(port) for _ in range(3))

        assert (first.is_established, second.is_established, third.is_established) == (True, True, False)
        first.release()
        second.release()

    def test_verification_is_answered(self, port: int) -> None:
        association = associated(port, "1.2.840.10008.1.1")

        assert association.send_c_echo().Status == 0x0000
        association.release()

    def test_a_port_that_is_taken_is_said_to_be(self, port: int, desk: Desk) -> None:
        backing = Backing(desk.admit, desk.accept, desk.outcome, lambda _: desk.status)

        with pytest.raises(AppError) as caught:
            PrintScp(backing, title=TITLE, address=("127.0.0.1", port)).start()

        assert caught.value.category is Category.BUSY

    def test_associations_know_nothing_of_one_another(self, port: int) -> None:
        one, other = associated(port), associated(port)
        one.send_n_create(None, terms.FILM_SESSION, "2.25.5", meta_uid=terms.GREY_META)

        status = other.send_n_delete(terms.FILM_SESSION, "2.25.5", meta_uid=terms.GREY_META)

        assert status.Status == 0x0112
        one.release()
        other.release()

    @pytest.mark.parametrize("values", [{}, {"MemoryAllocation": "10"}])
    def test_a_modality_may_leave_uids_to_us(self, port: int, values: dict[str, str]) -> None:
        seen: list[str] = []

        def heard(event: evt.Event) -> None:
            seen.append(event.message.command_set.get("AffectedSOPInstanceUID", ""))

        association = associated(port, handlers=[(evt.EVT_DIMSE_RECV, heard)])
        session = Dataset()
        for keyword, value in values.items():
            setattr(session, keyword, value)

        # pynetdicom never ends a message with a data set that is empty.
        status, _ = association.send_n_create(session or None, terms.FILM_SESSION, None, meta_uid=terms.GREY_META)

        assert status.Status == (0xB600 if values else 0x0000)
        (uid,) = seen
        assert association.send_n_delete(terms.FILM_SESSION, uid, meta_uid=terms.GREY_META).Status == 0x0000
        association.release()


class TestEvents:
    def test_the_state_of_the_printer_is_reported_while_a_modality_works(self, scp: PrintScp, port: int) -> None:
        heard: list[tuple[str, int, str]] = []

        def report(event: evt.Event) -> tuple[int, None]:
            heard.append(
                (event.request.AffectedSOPClassUID, event.event_type, event.event_information.PrinterStatusInfo)
            )
            return 0x0000, None

        association = associated(port, handlers=[(evt.EVT_N_EVENT_REPORT, report)])
        for status in (Status(State.WARNING, ("SUPPLY LOW",)), Status(State.OFFLINE), Status(State.NORMAL)):
            scp.report(status)
            time.sleep(0.2)

        assert heard == [
            (terms.PRINTER, 2, "SUPPLY LOW"), (terms.PRINTER, 3, "PRINTER OFFLINE"), (terms.PRINTER, 1, "NORMAL"),
        ]  # fmt: skip
        answered, _ = association.send_n_get([], terms.PRINTER, terms.PRINTER_INSTANCE, meta_uid=terms.GREY_META)
        assert answered.Status == 0x0000
        association.release()

    def test_a_print_job_is_reported_to_the_modality_whose_it_is(self, scp: PrintScp, port: int, desk: Desk) -> None:
        heard: dict[str, list[tuple[int, str]]] = {"own": [], "other": []}

        def report(who: str) -> Callable[[evt.Event], tuple[int, None]]:
            def handle(event: evt.Event) -> tuple[int, None]:
                heard[who].append((event.event_type, event.event_information.ExecutionStatusInfo))
                return 0x0000, None

            return handle

        own = associated(port, handlers=[(evt.EVT_N_EVENT_REPORT, report("own"))])
        other = associated(port, handlers=[(evt.EVT_N_EVENT_REPORT, report("other"))])
        print_one(own)
        uid = desk.printed[0][2]
        for outcome in (Outcome(Progress.PRINTING), Outcome(Progress.DONE, 1), Outcome(Progress.DONE, 1)):
            scp.report_job(uid, outcome)
            time.sleep(0.2)

        assert heard == {"own": [(2, "NORMAL"), (3, "NORMAL")], "other": []}
        own.release()
        other.release()

    def test_our_own_scu_hears_them_in_the_midst_of_printing(self, scp: PrintScp, port: int, desk: Desk) -> None:
        heard: list[Status] = []
        job = Job(
            "o", Sheets(film_size="8INX10IN", dots_per_inch=72, medium=Medium.CLEAR_FILM), [lambda: Picture(BLANK)] * 9
        )
        printer = TestOurOwnScu().printer(port)
        tickets = [printer.reserve(job)]

        def keep(ticket: str) -> None:
            tickets.append(ticket)
            scp.report(Status(State.WARNING, ("SUPPLY LOW",)))

        printer.send(tickets[0], job, keep=keep, tell=heard.append)

        assert printer.outcome(tickets[-1]) == Outcome(Progress.DONE, 9)
        assert Status(State.WARNING, ("SUPPLY LOW",)) in heard


def print_one(association) -> None:
    """Print a film with an image, as a modality does."""
    meta = {"meta_uid": terms.GREY_META}
    association.send_n_create(None, terms.FILM_SESSION, "2.25.1", **meta)
    box = Dataset()
    box.ImageDisplayFormat = "STANDARD\\1,1"
    _, answer = association.send_n_create(box, terms.FILM_BOX, "2.25.2", **meta)
    uid = answer.ReferencedImageBoxSequence[0].ReferencedSOPInstanceUID
    samples = np.zeros((4, 4), dtype=np.uint8)
    assert association.send_n_set(image_of(samples), terms.GREY_IMAGE_BOX, uid, **meta)[0].Status == 0x0000
    assert association.send_n_action(None, 1, terms.FILM_BOX, "2.25.2", **meta)[0].Status == 0x0000


class TestBadManners:
    def test_a_piece_larger_than_agreed_on_is_cut_off_before_memory_is_taken(self, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(struct.pack(">BBL", 0x04, 0, 0xFFFFFF00) + bytes(64))
            raw.settimeout(5)
            with suppress(ConnectionResetError):
                assert raw.recv(100) == b""

        association = associated(port)
        assert association.is_established
        association.release()

    def test_a_message_beyond_the_limit_ends_the_association(self, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(print_scp, "MOST_MESSAGE", 500_000)
        association = associated(port)
        association.send_n_create(None, terms.FILM_SESSION, "2.25.1", meta_uid=terms.GREY_META)

        status, _ = association.send_n_set(
            image_of(np.zeros((1000, 1000), dtype=np.uint8)), terms.GREY_IMAGE_BOX, "2.25.9", meta_uid=terms.GREY_META
        )

        assert "Status" not in status
        assert wait_for(lambda: association.is_aborted)

    def test_what_goes_wrong_behind_it_is_a_failure_and_the_next_is_served(self, port: int, desk: Desk) -> None:
        association = associated(port)
        print_one(association)
        desk.is_broken = True

        status, _ = association.send_n_action(None, 1, terms.FILM_BOX, "2.25.2", meta_uid=terms.GREY_META)

        assert status.Status == 0x0110
        desk.is_broken = False
        status, _ = association.send_n_action(None, 1, terms.FILM_BOX, "2.25.2", meta_uid=terms.GREY_META)
        assert (status.Status, len(desk.films())) == (0x0000, 2)
        association.release()

    def test_an_idle_modality_is_let_go(self, desk: Desk) -> None:
        backing = Backing(desk.admit, desk.accept, desk.outcome, lambda _: desk.status)
        scp = PrintScp(backing, title=TITLE, address=("127.0.0.1", 0), idle_s=0.5)
        port = scp.start()
        try:
            association = associated(port)

            assert wait_for(lambda: association.is_aborted or association.is_released)
        finally:
            scp.stop()


def wait_for(claim: Callable[[], bool], seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if claim():
            return True
        time.sleep(0.02)
    return False
