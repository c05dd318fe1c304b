"""Test patterns: as SMPTE and TG18 describe them, and as they come out of printers.

Values and places are those of AAPM On-line Report 03 (TG18-QC, TG18-LN8) and of SMPTE RP 133; what equal steps of a
P-Value look like on film is PS3.14's.
"""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imaging.errors import AppError, Category
from imaging.film import Magnification, Medium, Picture, Sheets, gsdf, pages, test_page
from imaging.film.patterns import LN_STEPS, PATTERNS, SIDE, Pattern, smpte, tg18_ln, tg18_qc
from imaging.printer import Job, Progress
from imaging.printers import printers
from tests.support.film_printers import HAS_DCMPRSCP, NEEDS_DCMPRSCP, TITLE, dcmtk_printer

# A pixel of a pattern is one of the page.
SHEETS = Sheets(
    film_size="14INX17IN", medium=Medium.PAPER, dots_per_inch=100, magnification=Magnification.NONE, scale_bar=False,
    letters=False,
)  # fmt: skip
FILM = gsdf.Densities(0.2, 3.0, illumination=2500, ambient=10)


def p_values(pattern: Pattern) -> np.ndarray:
    """Return a pattern in 8 bits, as TG18 writes it."""
    return np.floor(pattern * np.float32(255) + np.float32(0.5)).astype(int)


class TestAsDescribed:
    def test_smpte_has_eleven_steps_of_a_tenth(self) -> None:
        made = smpte()

        patches = {value: int((np.isclose(made, value, atol=1e-6)).sum()) for value in np.arange(11) / 10}

        assert all(count >= 96 * 96 for count in patches.values())
        assert made.shape == (SIDE, SIDE)
        assert (made.min(), made.max()) == (0, 1)

    def test_smpte_has_a_twentieth_in_black_and_in_white(self) -> None:
        made = smpte()

        for value, around in ((0.05, 0.0), (0.95, 1.0)):
            rows, columns = np.nonzero(np.isclose(made, value, atol=1e-6))
            assert len(rows) == 48 * 48
            assert made[rows.min() - 1, columns.min() - 1] == made[rows.max() + 1, columns.max() + 1] == around

    def test_tg18_qc_has_sixteen_patches_with_contrasts_of_four(self) -> None:
        made = p_values(tg18_qc())

        for number in range(16):
            top, left = 204 + 102 * (number // 4), 153 + 204 * (number % 4)
            patch, value = made[top : top + 102, left : left + 102], 8 + 16 * number
            assert patch[51, 51] == value
            assert [patch[5, 5], patch[-5, -5], patch[5, -5], patch[-5, 5]] == [value + 4] * 2 + [value - 4] * 2
            assert (patch == value).sum() == 102**2 - 4 * 10**2

    def test_tg18_qc_has_thirteen_in_black_and_242_in_white(self) -> None:
        made = p_values(tg18_qc())

        for value, around in ((13, 0), (242, 255)):
            rows, columns = np.nonzero(made == value)
            assert len(rows) == 51 * 51
            assert made[rows.min() - 1, columns.min() - 1] == around

    @pytest.mark.parametrize("step", range(1, LN_STEPS + 1))
    def test_tg18_ln_has_a_tenth_of_its_area_in_a_surround_of_153(self, step: int) -> None:
        made = p_values(tg18_ln(step))

        assert made[512, 512] == round((step - 1) * 255 / 17)
        assert {made[0, 0], made[-1, -1], made[0, 512]} == {153}
        if made[512, 512] != 153:
            assert (made != 153).mean() == pytest.approx(0.1, abs=1e-3)

    @pytest.mark.parametrize("name", ["smpte", "tg18-qc"])
    def test_line_pairs_go_from_black_to_white_at_every_pixel(self, name: str) -> None:
        made = PATTERNS[name]()

        alternates = (np.abs(np.diff(made, axis=1)) == 1).reshape(SIDE, -1)
        runs = [len(run) for row in alternates for run in "".join("x" if each else " " for each in row).split()]

        assert max(runs) >= 38  # a group of one-pixel lines

    def test_a_pattern_that_there_is_not_is_not_found(self) -> None:
        with pytest.raises(AppError) as caught:
            test_page.pictures("testbild")

        assert caught.value.category is Category.NOT_FOUND
        assert len(PATTERNS) == 20


def through_folder(folder: Path, what: Job) -> np.ndarray:
    printer = printers.get("folder").build({"folder": str(folder), "dots_per_inch": 100})
    printer.send(printer.reserve(what), what, keep=lambda _: None)
    (page,) = folder.glob("[!.]*/page-0001.png")
    return np.asarray(Image.open(page))


def through_pdf(folder: Path, what: Job) -> np.ndarray:
    printer = printers.get("pdf").build({"folder": str(folder), "dots_per_inch": 100})
    printer.send(printer.reserve(what), what, keep=lambda _: None)
    (document,) = folder.glob("[!.]*.pdf")
    # Not drawn: poppler draws every image a pixel too large, and so resamples it.
    subprocess.run(["pdfimages", "-png", str(document), str(folder / "image")], check=True)
    return np.asarray(Image.open(folder / "image-000.png").convert("L"))


def through_dicom(folder: Path, what: Job) -> np.ndarray:
    with dcmtk_printer(folder / "dcmtk") as site:
        values = {"host": "127.0.0.1", "port": site.port, "called_ae": TITLE, "dots_per_inch": 100, "media": ["PAPER"]}
        printer = printers.get("dicom").build({**values, "wait_s": 1})
        tickets = [printer.reserve(what)]
        printer.send(tickets[0], what, keep=tickets.append)
        assert printer.outcome(tickets[-1]).progress is Progress.DONE
        (page,) = site.printed()
        return page


THROUGH = [
    pytest.param(through_folder, id="folder"),
    pytest.param(
        through_pdf, id="pdf",
        marks=pytest.mark.skipif(shutil.which("pdfimages") is None, reason="needs the package poppler-utils"),
    ),
    pytest.param(through_dicom, id="dicom", marks=pytest.mark.skipif(not HAS_DCMPRSCP, reason=NEEDS_DCMPRSCP)),
]  # fmt: skip


@pytest.mark.parametrize("through", THROUGH)
class TestAsPrinted:
    def placed(self, what: Job) -> tuple[int, int]:
        """Return where the picture begins on the page, row and column."""
        page = next(pages(what.sheets, what.pictures))
        left, top, placement = page.placements[0]
        assert (placement.width, placement.height) == (SIDE, SIDE)
        return top + placement.top, left + placement.left

    @pytest.mark.parametrize("name", ["smpte", "tg18-qc"])
    def test_every_pixel_comes_out(self, tmp_path: Path, through: Callable[[Path, Job], np.ndarray], name: str) -> None:
        what = Job("pattern", SHEETS, test_page.pictures(name))
        top, left = self.placed(what)

        page = through(tmp_path, what)

        np.testing.assert_array_equal(page[top : top + SIDE, left : left + SIDE], p_values(PATTERNS[name]()))

    def test_steps_of_luminance_are_equal_numbers_of_just_noticeable_differences_on_film(
        self, tmp_path: Path, through: Callable[[Path, Job], np.ndarray]
    ) -> None:
        steps = [Picture(tg18_ln(step)[482:542, 482:542]) for step in range(1, LN_STEPS + 1)]
        sheets = Sheets(
            film_size="8INX10IN", medium=Medium.PAPER, dots_per_inch=100, display_format="STANDARD\\3,6",
            scale_bar=False, letters=False,
        )  # fmt: skip
        what = Job("steps", sheets, [lambda each=each: each for each in steps])

        page = through(tmp_path, what)

        scale = sheets.pixels_per_mm
        middles = [(box.top + box.height / 2, box.left + box.width / 2) for box in sheets.image_boxes()]
        seen = np.array([page[round(down * scale), round(across * scale)] for down, across in middles]) / 255
        density = gsdf.densities(seen, FILM)
        assert density[[0, -1]] == pytest.approx([3.0, 0.2])
        jnd = gsdf.index(FILM.ambient + FILM.illumination * 10**-density)
        # 8 bits: each step is within half a value of its own, at both of its ends.
        assert np.diff(jnd) == pytest.approx((jnd[-1] - jnd[0]) / 17, abs=(jnd[-1] - jnd[0]) / 255 + 0.01)
