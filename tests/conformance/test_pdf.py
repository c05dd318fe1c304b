"""PDF documents as other programs see them: millimetres, greys, text, attachments, and the rules of PDF/A-3.

Poppler (pdftoppm, pdftotext, pdfinfo) renders and reads; qpdf, through pikepdf, checks the syntax. Whether a document
is PDF/A is asserted rule by rule, as no validator is packaged: sections are those of ISO 19005-2, which part 3 repeats.
"""

import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pikepdf
import pytest
from PIL import Image

from imaging.film import Fit, Medium, Orientation, Picture, Sheets, Spacing, SpacingOrigin, gsdf, pages, pdf
from imaging.film.layout import FILM_SIZES
from imaging.printer import Attachment

pytestmark = pytest.mark.skipif(shutil.which("pdftoppm") is None, reason="needs the package poppler-utils")

MADE = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
ORDER = Attachment("order.json", "application/fhir+json", b'{"resourceType": "Task"}', "the order")
BARE = {"letters": False, "scale_bar": False, "medium": Medium.PAPER, "film_size": "A4"}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(sheets: Sheets, *pictures: Picture, **more: object) -> Path:
        path = tmp_path / "film.pdf"
        with path.open("w+b") as file:
            loads = [lambda each=each: each for each in pictures]
            pdf.write(file, pages(sheets, loads), sheets, made=MADE, **more)
        return path

    return write


def rendered(path: Path, dots_per_inch: int) -> np.ndarray:
    program = ["pdftoppm", "-r", str(dots_per_inch), "-singlefile", "-png", str(path), str(path.with_suffix(""))]
    subprocess.run(program, check=True, capture_output=True)
    return np.asarray(Image.open(path.with_suffix(".png")).convert("L"))


def rendered_by_ghostscript(path: Path, dots_per_inch: int) -> np.ndarray:
    made = path.with_suffix(".gs.png")
    program = ["gs", "-q", "-dNOPAUSE", "-dBATCH", "-dSAFER", "-sDEVICE=png16m", f"-r{dots_per_inch}"]
    subprocess.run([*program, f"-sOutputFile={made}", str(path)], check=True, capture_output=True)
    return np.asarray(Image.open(made).convert("L"))


def said(*program: str) -> str:
    return subprocess.run(program, check=True, capture_output=True, text=True).stdout


def flat(value: float, shape: tuple[int, int] = (8, 8)) -> Picture:
    return Picture(np.full(shape, value, dtype=np.float32))


class TestMillimetres:
    @pytest.mark.parametrize("dots_per_inch", [150, 300, 317])
    def test_true_size_is_true_within_a_fifth_of_a_millimetre(self, written, dots_per_inch: int) -> None:
        # White lines one pixel wide, 240 pixels of 0.5 mm apart across and 160 of 0.6 mm down.
        greys = np.zeros((200, 280), dtype=np.float32)
        greys[:, [20, 260]] = 1
        greys[[15, 175], :] = 1
        spacing = Spacing(0.6, 0.5, SpacingOrigin.PATIENT)
        sheets = Sheets(fit=Fit.TRUE_SIZE, dots_per_inch=dots_per_inch, **BARE)

        seen = rendered(written(sheets, Picture(greys, spacing)), 600).astype(float)

        assert distance_mm(seen.sum(axis=0), 600) == pytest.approx(240 * 0.5, abs=0.2)
        assert distance_mm(seen.sum(axis=1), 600) == pytest.approx(160 * 0.6, abs=0.2)

    @pytest.mark.parametrize("film_size", FILM_SIZES)
    @pytest.mark.parametrize("orientation", Orientation)
    def test_a_page_is_as_large_as_the_sheet(self, written, film_size: str, orientation: Orientation) -> None:
        sheets = Sheets(film_size=film_size, orientation=orientation, dots_per_inch=72)

        information = said("pdfinfo", str(written(sheets, flat(0.5))))

        (line,) = (each for each in information.splitlines() if each.startswith("Page size"))
        sides = [float(each) / 72 * 25.4 for each in line.split(":")[1].split()[:3:2]]
        assert sides == pytest.approx(FILM_SIZES[film_size][:: -1 if orientation == "LANDSCAPE" else 1], abs=0.01)


def distance_mm(profile: np.ndarray, dots_per_inch: int) -> float:
    """Return the distance between the centres of the two lines in a profile."""
    middle = len(profile) // 2
    at = np.arange(len(profile))
    light = profile - np.median(profile)
    light[light < light.max() / 4] = 0
    first, second = (np.average(at[part], weights=light[part]) for part in (slice(middle), slice(middle, None)))
    return float(second - first) / dots_per_inch * 25.4


def levels(seen: np.ndarray, sheets: Sheets) -> list[int]:
    """Return the greys in the middles of the boxes, of a page rendered at 75 dots per inch."""
    scale = 75 / 25.4
    middles = [(box.top + box.height / 2, box.left + box.width / 2) for box in sheets.image_boxes()]
    return [int(seen[round(down * scale), round(across * scale)]) for down, across in middles]


class TestGreys:
    @pytest.mark.skipif(shutil.which("gs") is None, reason="needs the package ghostscript")
    @pytest.mark.parametrize("bits", [8, 12, 16])
    @pytest.mark.parametrize(("black", "white"), [(2.0, 150.0), (0.5, 400.0)])
    def test_a_step_wedge_reflects_what_the_standard_display_function_asks(
        self, written, bits: int, black: float, white: float
    ) -> None:
        steps = np.linspace(0, 1, 11, dtype=np.float32)
        sheets = Sheets(dots_per_inch=75, bits=bits, display_format="COL\\11", margin=0, gap=0, **BARE)

        path = written(sheets, *(flat(step) for step in steps), paper=pdf.Paper(black, white))

        # Poppler takes no notice of profiles.
        assert levels(rendered(path, 75), sheets) == pytest.approx(255 * steps, abs=1)
        # Ghostscript does; its screen is sRGB (IEC 61966-2-1).
        p_values = np.round(steps * sheets.white) / sheets.white
        light = gsdf.paper_greys(p_values.astype(np.float64), black=black, white=white)
        expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
        assert levels(rendered_by_ghostscript(path, 75), sheets) == pytest.approx(expected, abs=1.5)

    @pytest.mark.parametrize(("bits", "colour"), [(8, False), (12, False), (16, False), (8, True)])
    def test_pixels_are_kept_exactly(self, written, tmp_path: Path, bits: int, colour: bool) -> None:
        noise = np.random.default_rng(7).random((97, 61) + ((3,) if colour else ())).astype(np.float32)
        sheets = Sheets(dots_per_inch=72, bits=bits, colour=colour, **BARE)
        (page,) = pages(sheets, [lambda: Picture(noise)])

        path = written(sheets, Picture(noise))

        # Only for 8 bits do poppler's tools give samples unaltered.
        with pikepdf.open(path) as document:
            image = document.pages[0].Resources.XObject.Page
            kept = np.frombuffer(image.read_bytes(), dtype=">u2" if bits > 8 else np.uint8)
        np.testing.assert_array_equal(kept.reshape(page.pixels.shape) >> (4 if bits == 12 else 0), page.pixels)
        if bits == 8:
            said("pdfimages", "-png", str(path), str(tmp_path / "image"))
            image = Image.open(tmp_path / "image-000.png").convert("RGB" if colour else "L")
            np.testing.assert_array_equal(np.asarray(image), page.pixels)


class TestText:
    BANNER = ("DOE^JANE  1970-01-01 F", "Żółć Müller 漢字 ½ 𝒳", "")

    def test_words_are_found_as_text_where_they_are_drawn(self, written) -> None:
        sheets = Sheets(banner=self.BANNER, footer="ward 3", dots_per_inch=150, **BARE)

        path = written(sheets, flat(0), flat(1))

        first = said("pdftotext", "-f", "1", "-l", "1", "-layout", str(path), "-")
        for words in ("DOE^JANE 1970-01-01 F", "Żółć Müller 漢字 ½ 𝒳", "ward 3", "1 / 2"):
            assert words.replace(" ", "") in first.replace(" ", "")
        box = said("pdftotext", "-f", "1", "-l", "1", "-bbox", str(path), "-")
        (doe,) = (line for line in box.splitlines() if ">DOE^JANE<" in line)
        left, top = (float(doe.split(f'{edge}="')[1].split('"')[0]) / 72 * 25.4 for edge in ("xMin", "yMin"))
        assert left == pytest.approx(sheets.margin, abs=0.2)
        assert sheets.margin - 1 < top < sheets.margin + sheets.letter_height

    def test_more_characters_than_a_font_holds_are_found_too(self, written) -> None:
        many = "".join(chr(0x4E00 + n) for n in range(600))
        lines = tuple(many[n : n + 60] for n in range(0, 600, 60))

        text = said("pdftotext", "-raw", str(written(Sheets(banner=lines, dots_per_inch=72, **BARE), flat(0))), "-")

        assert many in text.replace("\n", "").replace(" ", "")

    def test_the_text_adds_no_ink(self, written) -> None:
        sheets = Sheets(banner=("M" * 40,), dots_per_inch=75, **BARE)
        path = written(sheets, flat(0.5))
        with pikepdf.open(path, allow_overwriting_input=True) as document:
            with_text = rendered(path, 75)
            content = document.pages[0].Contents
            content.write(content.read_bytes().partition(b"BT")[0])
            document.save(path)

        np.testing.assert_array_equal(rendered(path, 75), with_text)


class TestPdfA:
    @pytest.fixture(params=[False, True], ids=["grey", "colour"])
    def document(self, written, request: pytest.FixtureRequest) -> pikepdf.Pdf:
        sheets = Sheets(banner=("DOE^JANE",), dots_per_inch=72, colour=request.param, **BARE)
        path = written(sheets, flat(0), flat(1), title="Film of Jane Döe", attachments=(ORDER,))
        with pikepdf.open(path) as document:
            yield document

    def test_the_syntax_is_sound(self, document) -> None:
        assert document.check_pdf_syntax() == []
        assert document.pdf_version == "1.7"
        assert not document.is_encrypted  # 6.1.3
        assert len(document.trailer.ID) == 2  # 6.1.3

    def test_it_says_what_it_is_and_the_metadata_agree(self, document) -> None:
        with document.open_metadata() as metadata:
            assert (metadata["pdfaid:part"], metadata["pdfaid:conformance"]) == ("3", "U")  # 6.6.4
            assert metadata["dc:title"] == str(document.docinfo.Title) == "Film of Jane Döe"
            assert metadata["pdf:Producer"] == str(document.docinfo.Producer)
            assert metadata["xmp:CreateDate"] == "2026-03-04T05:06:07+00:00"
        assert str(document.docinfo.CreationDate) == "D:20260304050607+00'00"

    def test_colours_do_not_depend_on_a_device(self, document) -> None:
        (intent,) = document.Root.OutputIntents  # 6.2.3
        assert (intent.S, intent.Type) == ("/GTS_PDFA1", "/OutputIntent")
        profile = intent.DestOutputProfile.read_bytes()
        assert profile[36:40] == b"acsp"
        assert profile[12:16] == b"mntr"
        assert profile[8] <= 4
        assert {b"GRAY": 1, b"RGB ": 3}[profile[16:20]] == intent.DestOutputProfile.N
        for page in document.pages:
            space = page.Resources.XObject.Page.ColorSpace
            assert space[0] == "/ICCBased"  # 6.2.4
            assert space[1].read_bytes() == profile
            assert page.Resources.XObject.Page.Interpolate is False  # 6.2.8

    def test_fonts_are_in_the_document_and_all_text_has_unicode(self, document) -> None:
        for page in document.pages:
            for font in page.Resources.Font.values():
                assert font.Subtype == "/Type3"
                codes = range(font.FirstChar, font.LastChar + 1)
                assert len(font.Widths) == len(font.CharProcs) == len(codes)  # 6.2.11.5
                assert font.ToUnicode.read_bytes().count(b"\n<") == len(codes) + 1  # 6.2.11.7.2

    def test_only_what_is_allowed_is_used(self, document) -> None:
        filters = {str(each.get("/Filter", "/none")) for each in document.objects if isinstance(each, pikepdf.Stream)}
        names = {name for each in document.objects if isinstance(each, pikepdf.Dictionary) for name in dict(each)}

        assert filters <= {"/FlateDecode", "/none"}  # 6.1.7
        assert not names & {"/AA", "/JavaScript", "/OPI", "/PS", "/TR", "/Encrypt", "/XFA"}

    def test_the_order_is_an_associated_file(self, document) -> None:
        (associated,) = document.Root.AF  # ISO 19005-3, 6.8
        assert associated.objgen == document.attachments["order.json"].obj.objgen
        assert associated.AFRelationship == "/Source"
        assert str(associated.F) == str(associated.UF) == "order.json"
        assert str(associated.Desc) == "the order"
        file = associated.EF.F
        assert file.Subtype == "/application/fhir+json"
        assert file.read_bytes() == ORDER.content
        assert str(file.Params.ModDate) == "D:20260304050607+00'00"


def test_the_same_pages_make_the_same_document(written) -> None:
    sheets = Sheets(dots_per_inch=72, **BARE)

    assert written(sheets, flat(0.3)).read_bytes() == written(sheets, flat(0.3)).read_bytes()
