"""Films printed by DICOM: on DCMTK's printer, whose stored prints are compared, and on one with many a weakness."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import sleep

import numpy as np
import pytest
from pydicom.dataset import Dataset

from imaging.dimse import print_terms as terms
from imaging.errors import AppError, Category
from imaging.film import Fit, Magnification, Medium, Orientation, Picture, Sheets, Spacing, SpacingOrigin, pages
from imaging.film.gsdf import Densities
from imaging.printer import Job, Outcome, Printer, Priority, Progress, State, Status
from imaging.printers import printers
from tests.support.film_printers import (
    HAS_DCMPRSCP,
    NEEDS_DCMPRSCP,
    TITLE,
    DcmtkPrinter,
    WeakPrinter,
    dcmtk_printer,
)

# The printers that die here do so in a thread of pynetdicom's; and it leaves sockets to be closed by the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PATIENT = Spacing(0.5, 0.5, SpacingOrigin.PATIENT)
RAMP = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
FILM = Sheets(film_size="8INX10IN", dots_per_inch=72, medium=Medium.CLEAR_FILM)

# Every step of a job of two pages on a printer that has all, in their order.
STEPS = (
    "get printer", "create film session", "create presentation lut", "create film box", "set image box",
    "print film box", "delete film box", "create film box", "set image box", "print film box", "delete film box",
    "get print job", "get print job", "delete film session",
)  # fmt: skip


def printer(site: DcmtkPrinter | WeakPrinter, **values: object) -> Printer:
    usual = {
        "host": "127.0.0.1", "port": site.port, "called_ae": TITLE, "dots_per_inch": 72, "wait_s": 1, "answer_s": 5,
        "film_sizes": ["8INX10IN", "14INX17IN"], "media": ["CLEAR FILM", "BLUE FILM", "PAPER"], "twelve_bits": True,
    }  # fmt: skip
    return printers.get("dicom").build({**usual, **values})


def job(sheets: Sheets = FILM, count: int = 1, picture: Picture | None = None, **more: object) -> Job:
    shown = picture or Picture(RAMP, PATIENT)
    return Job("order-7", sheets, [lambda: shown] * count, **more)


def send(where: Printer, what: Job, ticket: str = "", tell: Callable[[Status], None] = lambda _: None) -> str:
    """Print a job; return its last ticket also where that fails."""
    tickets = [ticket or where.reserve(what)]
    try:
        where.send(tickets[-1], what, keep=tickets.append, tell=tell)
    except AppError as error:
        error.ticket = tickets[-1]  # type: ignore[attr-defined]
        raise
    return tickets[-1]


def outcome(where: Printer, what: Job) -> Outcome:
    return where.outcome(send(where, what))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DcmtkPrinter]:
    folder: Path = tmp_path_factory.mktemp("dcmtk")
    with dcmtk_printer(folder / "printer") as site:
        yield site


@pytest.fixture
def weak() -> Iterator[WeakPrinter]:
    with WeakPrinter().running() as site:
        yield site


@pytest.mark.skipif(not HAS_DCMPRSCP, reason=NEEDS_DCMPRSCP)
class TestOnTheDcmtkPrinter:
    @pytest.fixture
    def dcmtk(self, running: DcmtkPrinter) -> DcmtkPrinter:
        running.forget()
        return running

    @pytest.mark.parametrize("bits", [8, 12])
    @pytest.mark.parametrize("orientation", Orientation)
    def test_a_page_arrives_pixel_by_pixel(self, dcmtk, bits: int, orientation: Orientation) -> None:
        sheets = Sheets(film_size="8INX10IN", dots_per_inch=72, bits=bits, orientation=orientation, banner=("A^B",))

        result = outcome(printer(dcmtk), job(sheets))

        assert (result.progress, result.pages) == (Progress.DONE, 1)
        (image,) = dcmtk.images()
        (page,) = pages(sheets, job().pictures)
        np.testing.assert_array_equal(image.pixel_array, page.pixels)
        assert (image.BitsStored, image.PhotometricInterpretation) == (bits, "MONOCHROME2")
        assert dcmtk.films()[0].FilmBoxContentSequence[0].FilmOrientation == orientation

    def test_what_is_beyond_the_printable_pixels_is_cut_off_evenly(self, dcmtk) -> None:
        sheets = Sheets(film_size="8INX10IN", dots_per_inch=72, margin=8, orientation=Orientation.LANDSCAPE)
        where = printer(dcmtk, matrix=["8INX10IN 560x700"], scale="pixels")

        send(where, job(sheets))

        (page,) = pages(sheets, job().pictures)
        (image,) = dcmtk.images()
        np.testing.assert_array_equal(image.pixel_array, page.pixels[8:-8, 10:-10])
        assert dcmtk.films()[0].FilmBoxContentSequence[0].MagnificationType == "NONE"
        assert where.capabilities().least_margin == pytest.approx(10 / 72 * 25.4, abs=1e-3)

    def test_the_film_box_is_as_ordered(self, dcmtk) -> None:
        sheets = Sheets(
            film_size="14INX17IN", dots_per_inch=72, border=1.0, empty=1.0, trim=True, medium=Medium.BLUE_FILM
        )
        ordered = job(sheets, densities=Densities(0.2, 3.2, 2500, 15), smoothing="NONE", configuration="A=1")

        send(printer(dcmtk, magnification="CUBIC", resolution_id="HIGH"), ordered)

        (film,) = dcmtk.films()
        box = film.FilmBoxContentSequence[0]
        assert (box.FilmSizeID, box.ImageDisplayFormat) == ("14INX17IN", "STANDARD\\1,1")
        assert (box.BorderDensity, box.EmptyImageDensity) == ("WHITE", "WHITE")
        assert (box.MinDensity, box.MaxDensity) == (20, 320)
        assert (box.Illumination, box.ReflectedAmbientLight) == (2500, 15)
        assert (box.MagnificationType, box.SmoothingType) == ("CUBIC", "NONE")
        assert (box.RequestedResolutionID, box.ConfigurationInformation) == ("HIGH", "A=1")
        assert box.Trim == "NO"  # it is drawn on the page
        assert film.PresentationLUTContentSequence[0].PresentationLUTShape == "IDENTITY"

    @pytest.mark.parametrize(("bits", "entries"), [(8, 256), (12, 4096)])
    def test_a_table_maps_every_value_to_itself(self, dcmtk, bits: int, entries: int) -> None:
        sheets = Sheets(film_size="8INX10IN", dots_per_inch=72, bits=bits)

        send(printer(dcmtk, presentation_lut="table"), job(sheets))

        (lut,) = dcmtk.films()[0].PresentationLUTContentSequence[0].PresentationLUTSequence
        assert list(lut.LUTDescriptor) == [entries, 0, 16]
        table = np.asarray(lut.LUTData if not isinstance(lut.LUTData, bytes) else np.frombuffer(lut.LUTData, "<u2"))
        np.testing.assert_allclose(table, np.linspace(0, 65535, entries), atol=0.5)

    def test_images_go_into_boxes_that_the_printer_places(self, dcmtk) -> None:
        sheets = Sheets(
            film_size="8INX10IN", dots_per_inch=72, bits=12, display_format="STANDARD\\2,2", reversed=True, trim=True,
            magnification=Magnification.BILINEAR,
        )  # fmt: skip
        steps = [Picture(np.full((16, 24), n / 8, dtype=np.float32)) for n in range(6)]
        ordered = Job("order-7", sheets, [lambda each=each: each for each in steps])

        result = outcome(printer(dcmtk, layout="boxes"), ordered)

        assert (result.progress, result.pages) == (Progress.DONE, 2)
        assert [int(image.pixel_array[0, 0]) for image in dcmtk.images()] == [round(n / 8 * 4095) for n in range(6)]
        first, second = dcmtk.films()
        assert [len(film.ImageBoxContentSequence) for film in (first, second)] == [4, 2]
        assert {box.Polarity for box in first.ImageBoxContentSequence} == {"REVERSE"}
        box = first.FilmBoxContentSequence[0]
        assert (box.ImageDisplayFormat, box.Trim, box.MagnificationType) == ("STANDARD\\2,2", "YES", "BILINEAR")

    def test_true_size_is_asked_for_in_millimetres(self, dcmtk) -> None:
        sheets = Sheets(film_size="8INX10IN", dots_per_inch=72, fit=Fit.TRUE_SIZE)

        send(printer(dcmtk, layout="boxes"), job(sheets))
        send(printer(dcmtk, scale="size"), job(sheets))

        boxed, composed = (film.ImageBoxContentSequence[0] for film in dcmtk.films())
        assert boxed.RequestedImageSize == 64 * 0.5
        assert composed.RequestedImageSize == pytest.approx(8 * 25.4, abs=25.4 / 72)

    def test_a_film_session_prints_all_pages_at_once(self, dcmtk) -> None:
        result = outcome(printer(dcmtk, print_by="film-session"), job(count=3))

        assert (result.progress, result.pages) == (Progress.DONE, 3)
        assert len(dcmtk.films()) == 3

    def test_the_printer_says_how_it_is(self, dcmtk) -> None:
        assert printer(dcmtk).status().state is State.NORMAL


class TestDeaths:
    @pytest.mark.parametrize("number", range(len(STEPS)))
    @pytest.mark.parametrize("when", ["dies_at", "dies_before"])
    def test_a_printer_that_dies_at_a_step_prints_each_page_once(self, weak, number: int, when: str) -> None:
        where, what = printer(weak), job(count=2)
        step = STEPS[number]
        seen = STEPS[: number + 1].count(step)
        ticket = where.reserve(what)

        tickets = [ticket]
        skip = seen - 1
        original = weak._begin

        def begin(event, name, ds):  # the weakness begins at the n-th step of that name
            nonlocal skip
            if name == step:
                if skip == 0:
                    setattr(weak, when, step)
                skip -= 1
            original(event, name, ds)

        weak._begin = begin
        for _ in range(2):
            with suppress(AppError):
                if where.outcome(tickets[-1]).progress is Progress.PENDING:
                    where.send(tickets[-1], what, keep=tickets.append)

        result = where.outcome(tickets[-1])
        asked_to_print = step == "print film box"
        assert result.progress is (Progress.UNKNOWN if asked_to_print else Progress.DONE)
        if not asked_to_print:
            assert (result.pages, len(weak.films)) == (2, 2)
        else:
            assert result.pages == seen - 1
            assert len(weak.films) == seen - (1 if when == "dies_before" else 0)

    def test_a_printer_that_does_not_answer_is_given_up(self, weak) -> None:
        original = weak._end

        def end(event, step, ds):
            if step == "set image box":
                sleep(2)
            return original(event, step, ds)

        weak._end = end
        where = printer(weak, answer_s=1)

        with pytest.raises(AppError) as caught:
            send(where, job())

        assert caught.value.category is Category.BUSY
        assert where.outcome(caught.value.ticket).progress is Progress.PENDING
        assert weak.films == []

    def test_the_steps_are_those_that_are_tested(self, weak) -> None:
        send(printer(weak), job(count=2))

        assert tuple(weak.steps) == STEPS


class TestQuirks:
    @pytest.mark.parametrize("has", [(), (terms.PRESENTATION_LUT,), (terms.PRINT_JOB,), (terms.ANNOTATION_BOX,)])
    def test_optional_sop_classes_may_be_missing(self, has: tuple[str, ...]) -> None:
        with WeakPrinter(has=has).running() as site:
            result = outcome(printer(site), job(count=2))

            assert (result.progress, result.pages, len(site.films)) == (Progress.DONE, 2, 2)
            refers = ["ReferencedPresentationLUTSequence" in ds for ds in site.asked("create film box")]
            assert refers == [terms.PRESENTATION_LUT in has] * 2

    @pytest.mark.parametrize(
        "weakness",
        [{"names_jobs": False}, {"own_uids": True}, {"tells_events": True}, {"annotation_boxes": 3}, {"boxes": 4}],
        ids=lambda weakness: next(iter(weakness)),
    )
    def test_a_weakness_is_tolerated(self, weakness: dict[str, object]) -> None:
        with WeakPrinter(**weakness).running() as site:
            result = outcome(printer(site), job(count=2))

            assert (result.progress, result.pages, len(site.films)) == (Progress.DONE, 2, 2)

    def test_events_between_request_and_response_are_heard(self) -> None:
        heard: list[Status] = []
        with WeakPrinter(tells_events=True).running() as site:
            send(printer(site), job(), tell=heard.append)

        assert Status(State.WARNING, ("SUPPLY LOW",)) in heard

    @pytest.mark.parametrize(
        ("step", "status"),
        [
            ("create film session", 0xB600), ("create film session", 0x0107), ("create film box", 0x0116),
            ("create film box", 0xB605), ("set image box", 0xB604), ("set image box", 0xB609),
            ("set image box", 0xB60A), ("set image box", 0x0107), ("print film box", 0xB603),
            ("create presentation lut", 0xB605), ("delete film box", 0x0112), ("delete film session", 0x0211),
            ("get print job", 0x0112),
        ],
    )  # fmt: skip
    def test_warnings_are_tolerated_and_so_is_a_print_job_that_is_gone(self, weak, step: str, status: int) -> None:
        weak.statuses[step] = status

        result = outcome(printer(weak), job())

        assert (result.progress, result.pages, len(weak.films)) == (Progress.DONE, 1, 1)

    @pytest.mark.parametrize(
        ("step", "status", "category"),
        [
            ("create film session", 0x0213, Category.BUSY), ("create film session", 0x0124, Category.FORBIDDEN),
            ("create film box", 0x0106, Category.UNSUPPORTED), ("create film box", 0xC616, Category.CONFLICT),
            ("create presentation lut", 0x0110, Category.FAULT), ("set image box", 0xC603, Category.UNSUPPORTED),
            ("set image box", 0xC605, Category.BUSY), ("print film box", 0xC602, Category.BUSY),
            ("print film box", 0x0110, Category.FAULT), ("print film box", 0xC123, Category.FAULT),
        ],
    )  # fmt: skip
    def test_a_failure_is_told_and_can_be_tried_again(self, weak, step: str, status: int, category: Category) -> None:
        where, what = printer(weak), job(count=2)
        weak.statuses[step] = status

        with pytest.raises(AppError) as caught:
            send(where, what)

        assert caught.value.category is category
        assert f"{status:#06x}" in caught.value.message
        assert where.outcome(caught.value.ticket) == Outcome(Progress.PENDING)
        weak.statuses.clear()
        assert where.outcome(send(where, what, caught.value.ticket)).pages == 2
        assert len(weak.films) == 2

    @pytest.mark.parametrize("values", [{"called_ae": "NOBODY"}, {"colour": True}])
    def test_an_association_that_is_not_accepted_says_why(self, weak, values: dict[str, object]) -> None:
        sheets = Sheets(film_size="8INX10IN", dots_per_inch=72, colour="colour" in values)

        with pytest.raises(AppError) as caught:
            send(printer(weak, **values), job(sheets))

        wanted = Category.UNSUPPORTED if "colour" in values else Category.FORBIDDEN
        assert caught.value.category is wanted

    def test_too_few_image_boxes_are_refused(self) -> None:
        with WeakPrinter(boxes=1).running() as site, pytest.raises(AppError) as caught:
            send(printer(site, layout="boxes"), job(Sheets(**DOUBLE), 2))

        assert caught.value.category is Category.UNSUPPORTED
        assert site.films == []


DOUBLE = {"film_size": "8INX10IN", "dots_per_inch": 72, "display_format": "STANDARD\\1,2"}


class TestSubstitutes:
    @pytest.mark.parametrize(
        ("step", "answer"),
        [
            ("create film session", {"MediumType": "PAPER"}), ("create film session", {"NumberOfCopies": "1"}),
            ("create film box", {"FilmSizeID": "10INX12IN"}), ("create film box", {"FilmOrientation": "LANDSCAPE"}),
            ("set image box", {"Polarity": "REVERSE"}),
        ],
    )  # fmt: skip
    def test_something_else_than_ordered_is_not_printed_unasked(self, weak, step: str, answer: dict[str, str]) -> None:
        weak.answers[step] = answer
        weak.statuses[step] = 0x0116
        what = job(copies=2)

        with pytest.raises(AppError) as caught:
            send(printer(weak), what)

        (keyword, value) = next(iter(answer.items()))
        assert caught.value.category is Category.UNSUPPORTED
        assert value in caught.value.message
        assert keyword in caught.value.message
        assert weak.films == []
        assert outcome(printer(weak, may_substitute=True), what).progress is Progress.DONE

    def test_what_is_ordered_may_be_repeated(self, weak) -> None:
        weak.answers["create film session"] = {"MediumType": "CLEAR FILM", "NumberOfCopies": "2", "FilmDestination": ""}

        assert outcome(printer(weak), job(copies=2)).progress is Progress.DONE

    @pytest.mark.parametrize("status", [0xB604, 0xB609, 0xB60A, 0x0107, 0x0116])
    @pytest.mark.parametrize("values", [{"scale": "size"}, {"scale": "pixels"}, {"layout": "boxes"}])
    def test_a_true_size_that_would_not_be_true_is_not_printed(self, weak, status: int, values: dict[str, str]) -> None:
        weak.statuses["set image box"] = status

        with pytest.raises(AppError) as caught:
            send(printer(weak, **values), job(Sheets(film_size="8INX10IN", dots_per_inch=72, fit=Fit.TRUE_SIZE)))

        assert (caught.value.category, caught.value.where) == (Category.UNSUPPORTED, "fit")
        assert weak.films == []


class TestReporting:
    def test_a_printer_that_does_not_print_is_sent_nothing(self, weak) -> None:
        weak.status = ("FAILURE", "SUPPLY EMPTY")
        heard: list[Status] = []

        with pytest.raises(AppError) as caught:
            send(printer(weak), job(), tell=heard.append)

        assert caught.value.category is Category.BUSY
        assert "SUPPLY EMPTY" in caught.value.message
        assert heard == [Status(State.FAILURE, ("SUPPLY EMPTY",), "Weak Printers W1")]
        assert weak.steps == ["get printer"]

    @pytest.mark.parametrize(
        ("said", "state", "reasons"),
        [
            (("NORMAL", "NORMAL"), State.NORMAL, ()),
            (("WARNING", "SUPPLY LOW"), State.WARNING, ("SUPPLY LOW",)),
            (("FAILURE", "FILM JAM"), State.FAILURE, ("FILM JAM",)),
            (("SLEEPY", ""), State.WARNING, ()),
            (("", ""), State.NORMAL, ()),
        ],
    )
    def test_the_status_is_the_printer_s(self, weak, said: tuple[str, str], state: State, reasons: tuple) -> None:
        weak.status = said

        assert printer(weak).status() == Status(state, reasons, "Weak Printers W1")

    def test_a_print_job_that_failed_is_a_failure_with_its_reason(self, weak) -> None:
        weak.executions[:] = [("DONE", "NORMAL"), ("FAILURE", "FILM JAM")]

        result = outcome(printer(weak), job(count=2))

        assert (result.progress, result.pages, result.reasons) == (Progress.FAILED, 1, ("FILM JAM",))
        assert result.detail == "a film or sheet is jammed"
        assert not result.may_repeat

    def test_a_print_job_that_takes_long_is_asked_about_later(self, weak) -> None:
        weak.executions[:] = [("PENDING", "QUEUED")]
        where = printer(weak, wait_s=0)

        ticket = send(where, job(count=2))

        assert where.outcome(ticket) == Outcome(Progress.PRINTING)
        weak.executions[:] = [("DONE", "NORMAL"), ("PRINTING", "NORMAL")]
        assert where.outcome(ticket) == Outcome(Progress.PRINTING, 1)
        weak.executions[:] = [("DONE", "NORMAL")]
        assert where.outcome(ticket) == Outcome(Progress.DONE, 2)


class TestRequests:
    def test_the_film_session_is_as_ordered(self, weak) -> None:
        ordered = job(copies=3, priority=Priority.HIGH, destination="PROCESSOR")

        send(printer(weak, destinations=["PROCESSOR"]), ordered)

        (session,) = weak.asked("create film session")
        assert (session.NumberOfCopies, session.PrintPriority) == (3, "HIGH")
        assert (session.MediumType, session.FilmDestination) == ("CLEAR FILM", "PROCESSOR")
        assert session.FilmSessionLabel == "order-7"

    def test_identity_goes_into_annotation_boxes_where_the_printer_places_images(self) -> None:
        sheets = Sheets(film_size="8INX10IN", dots_per_inch=72, banner=("DÖE^JANE", "x" * 80), footer="ward 3")
        with WeakPrinter(annotation_boxes=3).running() as site:
            send(printer(site, layout="boxes", annotation_format="BOTTOM"), job(sheets, 2))

            texts = [(ds.AnnotationPosition, ds.TextString) for ds in site.asked("set annotation box")]
            assert texts[:3] == [(1, "DÖE^JANE"), (2, "x" * 64), (3, "ward 3  1 / 2")]
            assert site.asked("set annotation box")[0].SpecificCharacterSet == "ISO_IR 192"
            assert site.asked("create film box")[0].AnnotationDisplayFormatID == "BOTTOM"

    @pytest.mark.parametrize("boxes", [0, 2])
    def test_identity_that_finds_no_box_is_not_left_out(self, boxes: int) -> None:
        sheets = Sheets(film_size="8INX10IN", dots_per_inch=72, banner=("DOE^JANE", "1970-01-01"))
        with WeakPrinter(annotation_boxes=boxes).running() as site:
            with pytest.raises(AppError) as caught:
                send(printer(site, layout="boxes", annotation_format="BOTTOM"), job(sheets))
            with pytest.raises(AppError) as without:
                send(printer(site, layout="boxes"), job(sheets))

        assert (caught.value.where, without.value.where) == ("annotation", "annotation")
        assert site.films == []

    def test_colour_is_sent_by_plane(self) -> None:
        rgb = np.random.default_rng(3).random((8, 6, 3)).astype(np.float32)
        sheets = Sheets(film_size="8INX10IN", dots_per_inch=72, colour=True, medium=Medium.PAPER)
        with WeakPrinter(colour=True).running() as site:
            where = printer(site, colour=True, layout="boxes")

            assert outcome(where, job(sheets, picture=Picture(rgb))).progress is Progress.DONE

            (box,) = site.asked("set image box")
            (image,) = box.BasicColorImageSequence
            assert (image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration) == (3, "RGB", 1)
            np.testing.assert_array_equal(site.printed()[0], np.round(rgb * 255))
            assert site.asked("create presentation lut") == []

    def test_pixels_that_are_not_square_are_said_to_be_so(self, weak) -> None:
        picture = Picture(RAMP, Spacing(down=0.5, across=1.0, origin=SpacingOrigin.PATIENT))

        send(printer(weak, layout="boxes"), job(picture=picture))

        (image,) = weak.asked("set image box")[0].BasicGrayscaleImageSequence
        down, across = image.PixelAspectRatio
        assert int(down) / int(across) == 0.5

    def test_nothing_is_sent_without_a_value(self, weak) -> None:
        send(printer(weak), job())

        def empty(ds: Dataset) -> list[str]:
            return [element.keyword for element in ds.iterall() if element.value in (None, "")]

        assert [empty(ds) for _, ds in weak.requests if empty(ds)] == []

    @pytest.mark.parametrize(
        ("values", "where"),
        [
            ({"film_sizes": ["9INX9IN"]}, "film_sizes"), ({"grey": False}, "grey"), ({"densities": [1]}, "densities"),
            ({"matrix": ["14INX17IN 10"]}, "matrix"), ({"matrix": ["14INX17IN 400x500", "HUGE 400x500"]}, "matrix"),
            ({"called_ae": "x" * 17}, "called_ae"), ({"port": 0}, "port"), ({"layout": "mine"}, "layout"),
        ],
    )  # fmt: skip
    def test_parameters_that_do_not_fit_are_refused(self, weak, values: dict[str, object], where: str) -> None:
        with pytest.raises(AppError) as caught:
            printer(weak, **values)

        assert (caught.value.category, caught.value.where) == (Category.INVALID, where)
