"""Paper printed by IPP: on CUPS' ippeveprinter, whose documents are compared, and on one that answers by script.

What PWG Raster says is read by CUPS' own reader (ippeveps) and drawn by Ghostscript.
"""

import json
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import sleep

import numpy as np
import pikepdf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imaging import ipp
from imaging.errors import AppError, Category
from imaging.film import Medium, Orientation, Picture, Sheets, gsdf, pages, pwg
from imaging.printer import Job, Outcome, Printer, Progress, State, Status
from imaging.printers import printers
from tests.support.ipp_printers import (
    BOOLEAN,
    ENUM,
    HAS_IPPEVEPRINTER,
    INTEGER,
    JOB,
    KEYWORD,
    MIME,
    NEEDS_IPPEVEPRINTER,
    PRINTER,
    RANGE,
    RESOLUTION,
    USUAL,
    EverywherePrinter,
    ScriptedPrinter,
    attribute,
    everywhere_printer,
    response,
)

CREATE, SEND, CANCEL, GET_JOB, GET_JOBS, GET_PRINTER = 0x05, 0x06, 0x08, 0x09, 0x0A, 0x0B
WEDGE = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(16, axis=0)
PAPER = Sheets(film_size="A4", medium=Medium.PAPER, dots_per_inch=72, border=1.0, banner=("A^B",))
READERS = shutil.which("ippeveps", path="/usr/sbin:/usr/bin") and shutil.which("gs")


def job(sheets: Sheets = PAPER, count: int = 2, **more: object) -> Job:
    return Job("order-9", sheets, [lambda: Picture(WEDGE)] * count, **more)


def send(printer: Printer, what: Job, ticket: str = "") -> str:
    """Print a job; return its last ticket also where that fails."""
    tickets = [ticket or printer.reserve(what)]
    try:
        printer.send(tickets[-1], what, keep=tickets.append)
    except AppError as error:
        error.ticket = tickets[-1]  # type: ignore[attr-defined]
        raise
    return tickets[-1]


def settled(printer: Printer, ticket: str) -> Outcome:
    for _ in range(400):
        outcome = printer.outcome(ticket)
        if outcome.progress is not Progress.PRINTING:
            return outcome
        sleep(0.02)
    return outcome


@pytest.mark.skipif(not HAS_IPPEVEPRINTER, reason=NEEDS_IPPEVEPRINTER)
class TestOnAnEverywherePrinter:
    @pytest.fixture(params=["application/pdf,image/pwg-raster", "image/pwg-raster"], ids=["pdf", "raster-only"])
    def site(self, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[EverywherePrinter]:
        with everywhere_printer(tmp_path / "ipp", request.param) as site:
            yield site

    def test_it_receives_what_was_composed_as_it_was_ordered(self, site: EverywherePrinter) -> None:
        printer = printers.get("ipp").build({"uri": site.uri})
        capable = printer.capabilities()
        sheets = replace(PAPER, dots_per_inch=capable.dots_per_inch[0], bits=capable.bits[0])
        copies = min(3, capable.most_copies)  # this printer makes copies of PDF only
        ordered = job(sheets, copies=copies)

        ticket = send(printer, ordered)

        assert settled(printer, ticket) == Outcome(Progress.DONE, 2)
        (document,) = site.documents()
        asked = site.asked()
        assert asked.get("IPP_COPIES", "1") == str(copies)
        assert (asked["IPP_MEDIA"], asked["IPP_SIDES"]) == ("iso_a4_210x297mm", "one-sided")
        assert asked["IPP_JOB_NAME"].startswith("order-9 ")
        composed = [page.pixels for page in pages(sheets, ordered.pictures)]
        if document.suffix == ".pdf":
            with pikepdf.open(document) as pdf:
                images = [pikepdf.PdfImage(page.Resources.XObject.Page).as_pil_image() for page in pdf.pages]
                for image, pixels in zip(images, composed, strict=True):
                    np.testing.assert_array_equal(np.asarray(image.convert("L")), pixels)
        else:
            made = document.with_name("expected")
            with made.open("wb") as file:
                pwg.write(file, pages(sheets, ordered.pictures), sheets, media="iso_a4_210x297mm")
            assert document.read_bytes() == made.read_bytes()

    def test_its_capabilities_are_asked_for(self, site: EverywherePrinter) -> None:
        capable = printers.get("ipp").build({"uri": site.uri, "media": ["PAPER", "CLEAR FILM"]}).capabilities()

        assert {"A4", "LETTER"} <= set(capable.film_sizes)
        assert capable.media == (Medium.PAPER, Medium.CLEAR_FILM)
        assert capable.dots_per_inch[0] == 300
        assert capable.least_margin == pytest.approx(3.4)
        assert capable.most_copies in (1, 99)
        assert not capable.colour

    def test_a_kind_of_medium_is_asked_for(self, site: EverywherePrinter) -> None:
        printer = printers.get("ipp").build({"uri": site.uri, "media": ["CLEAR FILM"], "media_type": "transparency"})
        sheets = replace(PAPER, dots_per_inch=300, medium=Medium.CLEAR_FILM)

        ticket = send(printer, job(sheets, 1))

        assert settled(printer, ticket).progress is Progress.DONE
        assert "transparency" in site.asked()["IPP_MEDIA_COL"]
        assert "x-dimension=21000" in site.asked()["IPP_MEDIA_COL"]

    def test_a_medium_that_it_has_not_is_refused_not_replaced(self, site: EverywherePrinter) -> None:
        printer = printers.get("ipp").build({"uri": site.uri, "media_type": "papyrus"})

        with pytest.raises(AppError) as caught:
            send(printer, job(replace(PAPER, dots_per_inch=300), 1))

        assert caught.value.category is Category.UNSUPPORTED
        assert "transparency" in caught.value.message
        assert printer.outcome(caught.value.ticket).progress is Progress.PENDING
        assert site.documents() == []


@pytest.mark.skipif(not READERS, reason="needs the packages cups-ipp-utils (ippeveps) and ghostscript")
class TestPwgRaster:
    def drawn(self, folder: Path, sheets: Sheets, picture: Picture, **more: float) -> np.ndarray:
        """Return what CUPS' reader and Ghostscript make of a page, [rows, columns, 3]."""
        raster, drawing = folder / "page.pwg", folder / "page.png"
        with raster.open("wb") as file:
            pwg.write(file, pages(sheets, [lambda: picture]), sheets, media="iso_a4_210x297mm", **more)
        program = shutil.which("ippeveps", path="/usr/sbin:/usr/bin")
        environment = {"CONTENT_TYPE": "image/pwg-raster", "IPP_MEDIA": "iso_a4_210x297mm", "PATH": "/usr/bin:/bin"}
        script = subprocess.run([program, str(raster)], env=environment, capture_output=True, check=True).stdout
        command = ["gs", "-q", "-dNOPAUSE", "-dBATCH", "-dSAFER", "-sDEVICE=png16m", f"-r{sheets.dots_per_inch}"]
        subprocess.run([*command, f"-sOutputFile={drawing}", "-"], input=script, capture_output=True, check=True)
        return np.asarray(Image.open(drawing).convert("RGB"))

    @pytest.mark.parametrize("bits", [8])
    def test_greys_are_those_that_paper_has_to_show(self, tmp_path: Path, bits: int) -> None:
        steps = np.linspace(0, 1, 8, dtype=np.float32)[:, None].repeat(8, axis=1)
        sheets = Sheets(
            film_size="A4", medium=Medium.PAPER, dots_per_inch=72, bits=bits, scale_bar=False, letters=False
        )

        seen = self.drawn(tmp_path, sheets, Picture(steps), black=1.0, white=200.0)

        page = next(pages(sheets, [lambda: Picture(steps)])).pixels
        light = gsdf.paper_greys(page / 255.0, black=1.0, white=200.0)
        expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
        assert seen.shape[:2] == page.shape
        assert np.abs(seen[:, :, 0] - expected).max() <= 1

    def test_colour_and_noise_are_exact(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(2).random((400, 300, 3)).astype(np.float32)
        sheets = Sheets(film_size="A4", medium=Medium.PAPER, dots_per_inch=72, colour=True, scale_bar=False)

        seen = self.drawn(tmp_path, sheets, Picture(noise))

        page = next(pages(sheets, [lambda: Picture(noise)])).pixels
        assert np.abs(seen.astype(int) - page).max() <= 1

    def test_landscape_is_turned_upright(self, tmp_path: Path) -> None:
        sheets = Sheets(film_size="A4", medium=Medium.PAPER, dots_per_inch=72, orientation=Orientation.LANDSCAPE)

        seen = self.drawn(tmp_path, sheets, Picture(WEDGE))

        page = next(pages(sheets, [lambda: Picture(WEDGE)])).pixels
        assert seen.shape[:2] == page.shape[::-1]
        assert np.count_nonzero(seen[:, :, 0] == 0) == np.count_nonzero(page == 0)


class TestStates:
    @pytest.fixture
    def site(self) -> Iterator[ScriptedPrinter]:
        with ScriptedPrinter().running() as site:
            yield site

    def printer(self, site: ScriptedPrinter, **values: object) -> Printer:
        usual = {"uri": site.uri, "dots_per_inch": 72, "connect_s": 2, "answer_s": 2}
        return printers.get("ipp").build({**usual, **values})

    @pytest.mark.parametrize(
        ("printer_state", "reasons", "accepts", "state", "told"),
        [
            (3, ["none"], True, State.NORMAL, ()),
            (4, ["media-low-report"], True, State.NORMAL, ()),
            (3, ["media-low-warning"], True, State.WARNING, ("SUPPLY LOW",)),
            (3, ["toner-low"], True, State.WARNING, ("CHECK PRINTER",)),
            (5, ["media-empty-error"], True, State.FAILURE, ("SUPPLY EMPTY",)),
            (5, ["media-jam", "cover-open"], True, State.FAILURE, ("FILM JAM", "COVER OPEN")),
            (5, ["paused"], True, State.FAILURE, ("PRINTER OFFLINE",)),
            (4, ["output-area-full-error"], True, State.FAILURE, ("RECEIVER FULL",)),
            (3, ["none"], False, State.FAILURE, ("PRINTER BUSY",)),
        ],
    )
    def test_reasons_become_those_of_the_standard(
        self, site, printer_state: int, reasons: list[str], accepts: bool, state: State, told: tuple[str, ...]
    ) -> None:
        said = (
            attribute(ENUM, "printer-state", printer_state)
            + attribute(KEYWORD, "printer-state-reasons", *reasons)
            + attribute(BOOLEAN, "printer-is-accepting-jobs", bytes((accepts,)))
        )
        site.answers[GET_PRINTER] = response(0, PRINTER + said)

        status = self.printer(site).status()

        assert (status.state, status.reasons) == (state, told)

    @pytest.mark.parametrize(
        ("answer", "outcome"),
        [
            ((3, ["none"], 0), Outcome(Progress.PRINTING)),
            ((5, ["job-printing"], 1), Outcome(Progress.PRINTING, 1)),
            ((6, ["printer-stopped"], 1), Outcome(Progress.PRINTING, 1)),
            ((4, ["job-incoming"], 0), Outcome(Progress.PENDING)),
            ((9, ["job-completed-successfully"], 2), Outcome(Progress.DONE, 2)),
            ((8, ["aborted-by-system"], 0), Outcome(Progress.FAILED, 0, (), "aborted-by-system", True)),
            ((8, ["aborted-by-system"], 1), Outcome(Progress.FAILED, 1, (), "aborted-by-system", False)),
            ((8, ["aborted-by-system"], None), Outcome(Progress.FAILED, 0, (), "aborted-by-system", False)),
            ((7, ["job-canceled-at-device"], 0), Outcome(Progress.FAILED, 0, (), "job-canceled-at-device", False)),
        ],
    )
    def test_states_of_jobs_are_outcomes(self, site, answer, outcome: Outcome) -> None:
        state, reasons, impressions = answer
        said = attribute(ENUM, "job-state", state) + attribute(KEYWORD, "job-state-reasons", *reasons)
        if impressions is not None:
            said += attribute(INTEGER, "job-impressions-completed", impressions)
        site.answers[GET_JOB] = response(0, JOB + said)

        assert self.printer(site).outcome(SENT) == outcome

    def test_a_job_that_the_printer_forgot_is_unknown(self, site) -> None:
        site.answers[GET_JOB] = response(0x0406)

        assert self.printer(site).outcome(SENT).progress is Progress.UNKNOWN

    @pytest.mark.parametrize(
        ("answer", "category"),
        [
            (response(0x0403), Category.FORBIDDEN), (response(0x0408), Category.TOO_LARGE),
            (response(0x040B), Category.UNSUPPORTED), (response(0x0507), Category.BUSY),
            (response(0x0500), Category.FAULT), (b"garbage", Category.FAULT), (b"", Category.FAULT),
            (401, Category.FORBIDDEN), (404, Category.NOT_FOUND), (503, Category.BUSY), (426, Category.FAULT),
            (bytes(ipp.MOST_ANSWER + 1), Category.TOO_LARGE), (None, Category.BUSY),
        ],
        ids=lambda value: value if isinstance(value, Category) else "",
    )  # fmt: skip
    def test_failures_have_their_categories(self, site, answer, category: Category) -> None:
        site.answers[GET_PRINTER] = answer

        with pytest.raises(AppError) as caught:
            self.printer(site).capabilities()

        assert caught.value.category is category
        assert self.printer(site).status().state is State.OFFLINE

    def test_a_printer_without_what_is_needed_is_unsupported(self, site) -> None:
        site.answers[GET_PRINTER] = response(0, PRINTER + attribute(MIME, "document-format-supported", "text/plain"))

        with pytest.raises(AppError) as caught:
            self.printer(site).capabilities()

        assert (caught.value.category, caught.value.where) == (Category.UNSUPPORTED, "format")

    @pytest.mark.parametrize(
        ("values", "where"),
        [
            ({"uri": "http://host/"}, "uri"), ({"uri": "ipp://"}, "uri"), ({"uri": "ipp://h:99999/x"}, "uri"),
            ({"uri": "ipp://h/a b"}, "uri"), ({"media": []}, "media"), ({"black": 100, "white": 50}, "black"),
            ({"format": "urf"}, "format"),
        ],
    )  # fmt: skip
    def test_parameters_that_do_not_fit_are_refused(self, site, values: dict[str, object], where: str) -> None:
        with pytest.raises(AppError) as caught:
            self.printer(site, **values)

        assert (caught.value.category, caught.value.where) == (Category.INVALID, where)


SENT = json.dumps({"uid": "0" * 32, "of": 2, "job": 7, "sent": True})
MADE = response(0, JOB + attribute(INTEGER, "job-id", 7) + attribute(ENUM, "job-state", 4))


def of_job(state: int, *reasons: str) -> bytes:
    return response(0, JOB + attribute(ENUM, "job-state", state) + attribute(KEYWORD, "job-state-reasons", *reasons))


class TestDeaths:
    @pytest.fixture
    def site(self) -> Iterator[ScriptedPrinter]:
        with ScriptedPrinter({CREATE: MADE, GET_JOBS: response(0), SEND: response(0)}).running() as site:
            yield site

    printer = TestStates.printer

    def test_the_number_is_kept_before_the_document_is_sent(self, site) -> None:
        kept: list[tuple[int, str]] = []
        printer = self.printer(site)
        what = job()

        printer.send(printer.reserve(what), what, keep=lambda ticket: kept.append((len(site.asked), ticket)))

        assert [json.loads(ticket).get("job") for _, ticket in kept] == [7, 7]
        assert site.asked[kept[-1][0] :] == [SEND]
        assert json.loads(kept[-1][1])["sent"] is True

    @pytest.mark.parametrize("operation", [GET_PRINTER, CREATE])
    def test_dying_before_the_document_leaves_the_job_pending(self, site, operation: int) -> None:
        printer, what = self.printer(site), job()
        ticket = printer.reserve(what)
        usual = site.answers.get(operation)
        site.answers[operation] = None

        with pytest.raises(AppError) as caught:
            send(printer, what, ticket)

        assert caught.value.category is Category.BUSY
        assert printer.outcome(caught.value.ticket).progress is Progress.PENDING
        assert SEND not in site.asked
        site.answers[operation] = usual if usual is not None else response(0, PRINTER + USUAL)
        send(printer, what, caught.value.ticket)
        assert site.asked.count(SEND) == 1

    @pytest.mark.parametrize(
        ("now", "progress"),
        [((9, "job-completed-successfully"), Progress.DONE), ((5, "job-printing"), Progress.PRINTING)],
    )
    def test_a_document_without_an_answer_is_asked_about_and_not_sent_again(
        self, site, now: tuple[int, str], progress: Progress
    ) -> None:
        printer, what = self.printer(site), job()
        site.answers[SEND] = None
        site.answers[GET_JOB] = of_job(*now)

        with pytest.raises(AppError) as caught:
            send(printer, what)

        assert printer.outcome(caught.value.ticket).progress is progress
        with pytest.raises(AppError) as again:
            send(printer, what, caught.value.ticket)
        assert again.value.category is Category.CONFLICT
        assert site.asked.count(SEND) == 1

    def test_a_document_that_did_not_get_there_whole_is_withdrawn_before_another_is_sent(self, site) -> None:
        printer, what = self.printer(site), job()
        site.answers[SEND] = None
        site.answers[GET_JOB] = of_job(4, "job-incoming")
        with pytest.raises(AppError) as caught:
            send(printer, what)
        site.answers[SEND] = response(0)
        site.answers[CANCEL] = response(0)
        before = len(site.asked)

        send(printer, what, caught.value.ticket)

        since = site.asked[before:]
        assert since.index(CANCEL) < since.index(CREATE) < since.index(SEND)

    def test_what_cannot_be_withdrawn_is_not_sent_again(self, site) -> None:
        printer, what = self.printer(site), job()
        site.answers[SEND] = None
        site.answers[GET_JOB] = of_job(4, "job-incoming")
        with pytest.raises(AppError) as caught:
            send(printer, what)
        site.answers[CANCEL] = response(0x0404)

        with pytest.raises(AppError):
            send(printer, what, caught.value.ticket)

        assert site.asked.count(SEND) == 1

    def test_a_document_that_is_refused_can_be_sent_again(self, site) -> None:
        printer, what = self.printer(site), job()
        site.answers[SEND] = response(0x0507)
        site.answers[CANCEL] = response(0)

        with pytest.raises(AppError) as caught:
            send(printer, what)

        assert caught.value.category is Category.BUSY
        assert printer.outcome(caught.value.ticket).progress is Progress.PENDING
        site.answers[SEND] = response(0)
        assert json.loads(send(printer, what, caught.value.ticket))["sent"]

    def test_a_stopped_printer_is_told(self, site) -> None:
        said = attribute(ENUM, "printer-state", 5) + attribute(KEYWORD, "printer-state-reasons", "media-empty")
        site.answers[GET_PRINTER] = response(0, PRINTER + said + USUAL[len(attribute(ENUM, "printer-state", 3)) :])
        heard: list[Status] = []
        printer, what = self.printer(site), job()

        printer.send(printer.reserve(what), what, keep=lambda _: None, tell=heard.append)

        assert heard


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the package openssl")
class TestTls:
    @pytest.fixture
    def certificate(self, tmp_path: Path) -> tuple[Path, Path]:
        made, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(made)]
        subprocess.run(command, check=True, capture_output=True)
        return made, key

    def test_a_certificate_that_is_trusted_is_needed(self, certificate: tuple[Path, Path]) -> None:
        with ScriptedPrinter(certificate=certificate).running() as site:
            trusting = printers.get("ipp").build({"uri": site.uri, "ca_file": str(certificate[0])})
            doubting = printers.get("ipp").build({"uri": site.uri})

            assert trusting.status().state is State.NORMAL
            with pytest.raises(AppError) as caught:
                doubting.capabilities()

        assert (caught.value.category, caught.value.where) == (Category.FORBIDDEN, "ca_file")

    def test_a_password_is_sent_as_asked_for(self, certificate: tuple[Path, Path]) -> None:
        described = {each.name: each.is_secret for each in printers.get("ipp").parameters()}

        assert described["password"]
        assert not described["user"]


class TestEncoding:
    @given(st.binary(max_size=300))
    def test_whatever_comes_is_read_or_refused(self, data: bytes) -> None:
        with suppress(AppError):
            assert ipp.decode(data).status >= 0

    @given(st.integers(0, 400))
    def test_an_answer_that_ends_too_early_is_refused(self, length: int) -> None:
        whole = response(0, PRINTER + USUAL)

        with pytest.raises(AppError):
            ipp.decode(whole[: min(length, len(whole) - 1)])

    def test_values_of_all_types_are_read(self) -> None:
        collection = (
            struct.pack(">BH", 0x34, 3) + b"col" + struct.pack(">H", 0)
            + attribute(0x4A, "", "x-dimension") + attribute(INTEGER, "", 21000)
            + attribute(0x4A, "", "inner") + struct.pack(">BHH", 0x34, 0, 0)
            + attribute(0x4A, "", "deep") + attribute(KEYWORD, "", "yes") + struct.pack(">BHH", 0x37, 0, 0)
            + struct.pack(">BHH", 0x37, 0, 0)
        )  # fmt: skip
        said = (
            collection
            + attribute(RESOLUTION, "dots", struct.pack(">iib", 300, 600, 3), struct.pack(">iib", 100, 100, 4))
            + attribute(RANGE, "copies", struct.pack(">ii", 1, 99))
            + attribute(BOOLEAN, "is", b"\x01", b"\x00")
            + attribute(0x35, "text", struct.pack(">H", 2) + b"en" + struct.pack(">H", 2) + b"hi")
            + attribute(0x13, "nothing", b"")
        )

        has = ipp.decode(response(0, PRINTER + said)).group(ipp.Group.PRINTER)

        assert has["col"] == [{"x-dimension": [21000], "inner": [{"deep": ["yes"]}]}]
        assert has["dots"] == [ipp.Resolution(300, 600), ipp.Resolution(254, 254)]
        assert has["copies"] == [ipp.Range(1, 99)]
        assert has["is"] == [True, False]
        assert has["text"] == ["hi"]

    def test_collections_are_not_nested_without_end(self) -> None:
        deep = b"".join(struct.pack(">BHH", 0x34, 0, 0) for _ in range(100))

        with pytest.raises(AppError) as caught:
            ipp.decode(response(0, PRINTER + struct.pack(">BH", 0x34, 1) + b"c" + struct.pack(">H", 0) + deep))

        assert caught.value.category is Category.FAULT
