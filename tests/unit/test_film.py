"""Hard copy: layouts in millimetres, true size, lines that stay lines, text beside images, the greys of PS3.14."""

import threading
import tracemalloc
from functools import partial
from math import ceil

import numpy as np
import pytest
import segno
from PIL import Image

from imaging.errors import AppError, Category
from imaging.film import (
    Box,
    Fit,
    Magnification,
    Medium,
    Orientation,
    Picture,
    Sheets,
    Spacing,
    SpacingOrigin,
    gsdf,
    lettering,
    pages,
)
from imaging.film.layout import FILM_SIZES, boxes, sheet
from imaging.film.placing import place, resample

AREA = Box(10, 20, 300, 400)
PATIENT = SpacingOrigin.PATIENT
BARE = {"letters": False, "scale_bar": False, "margin": 0.0}


def picture(greys: np.ndarray, **more: object) -> Picture:
    return Picture(greys.astype(np.float32), **more)


def only(sheets: Sheets, *pictures: Picture):
    (page,) = pages(sheets, [lambda each=each: each for each in pictures])
    return page


class TestGrayscaleStandardDisplayFunction:
    # Source: PS3.14 table B-1.
    @pytest.mark.parametrize(
        ("jnd", "cd_per_m2"),
        [(1, 0.0500), (2, 0.0547), (3, 0.0594), (4, 0.0643), (5, 0.0696), (1022, 3967.5470), (1023, 3993.4040)],
    )
    def test_the_luminances_are_those_of_the_standard(self, jnd, cd_per_m2):
        assert gsdf.luminance(float(jnd)) == pytest.approx(cd_per_m2, rel=2e-3)

    def test_the_index_is_the_inverse(self):
        indices = np.linspace(1, 1023, 777)

        assert gsdf.index(gsdf.luminance(indices)) == pytest.approx(indices, abs=1e-3)

    def test_equal_steps_on_film_are_equal_numbers_of_just_noticeable_differences(self):
        film = gsdf.Densities(0.25, 3.1, illumination=3000, ambient=5)

        density = gsdf.densities(np.linspace(0, 1, 11), film)

        assert density[[0, -1]] == pytest.approx([3.1, 0.25])
        seen = np.diff(gsdf.index(5 + 3000 * 10**-density))
        assert seen == pytest.approx(np.full(10, seen[0]), rel=1e-3)

    def test_a_density_has_the_p_value_that_is_printed_as_it(self):
        film = gsdf.Densities(0.25, 3.1, illumination=3000, ambient=5)
        p = np.linspace(0, 1, 101)

        assert gsdf.p_values(gsdf.densities(p, film), film) == pytest.approx(p, abs=1e-3)
        assert gsdf.p_values(np.array([9.0, 0.0]), film) == pytest.approx([0, 1])

    def test_paper_runs_from_black_to_white_and_is_even_to_the_eye(self):
        greys = gsdf.paper_greys(np.linspace(0, 1, 9), black=2, white=150)

        assert greys[[0, -1]] == pytest.approx([0, 1], abs=1e-6)
        seen = np.diff(gsdf.index(2 + greys * 148))
        assert seen == pytest.approx(np.full(8, seen[0]), rel=1e-3)

    @pytest.mark.parametrize("wrong", [{"lowest": 3.0}, {"highest": 9.0}, {"illumination": 0.0}, {"ambient": -1.0}])
    def test_what_no_film_is_like_is_invalid(self, wrong):
        with pytest.raises(AppError) as caught:
            gsdf.Densities(**wrong)
        assert caught.value.category is Category.INVALID


class TestLayout:
    def test_standard_fills_row_by_row(self):
        found = boxes("STANDARD\\2,3", AREA, gap=10)

        assert len(found) == 6
        assert (found[0].left, found[0].top) == (10, 20)
        assert (found[1].left, found[1].top) == (10 + 145 + 10, 20)
        assert found[2].top == pytest.approx(20 + 380 / 3 + 10)
        assert found[0].width == 145

    @pytest.mark.parametrize(("text", "counts"), [("ROW\\1,3", [300, 98.6667]), ("row\\2", [149])])
    def test_rows_have_their_own_numbers(self, text, counts):
        assert sorted({round(each.width, 4) for each in boxes(text, AREA, gap=2)}, reverse=True) == counts

    def test_columns_fill_from_the_top(self):
        found = boxes("COL\\1,2", AREA, gap=0)

        assert [(each.left, each.top) for each in found] == [(10, 20), (160, 20), (160, 220)]

    def test_slides_are_36_by_24_in_mounts_of_two_inches(self):
        found = boxes("SLIDE", AREA)

        assert len(found) == 5 * 7
        assert {(each.width, each.height) for each in found} == {(36, 24)}

    @pytest.mark.parametrize(
        "text",
        ["", "STANDARD", "STANDARD\\0,1", "STANDARD\\1", "ROW\\", "COL\\a", "STANDARD\\99,99", "CUSTOM\\1", "ROW\\400"],
    )
    def test_a_format_that_is_none_is_invalid(self, text):
        with pytest.raises(AppError) as caught:
            boxes(text, AREA)
        assert (caught.value.category, caught.value.where) == (Category.INVALID, "layout")

    @pytest.mark.parametrize("format", ["STANDARD\\3,4", "ROW\\1,2,3", "COL\\4,1", "SLIDE", "SUPERSLIDE"])
    def test_boxes_lie_inside_and_apart(self, format):
        found = boxes(format, AREA, gap=1)

        Sheets(film_size="14INX17IN")  # the sheet is larger than the area
        assert all(AREA.holds(each) for each in found)
        for n, one in enumerate(found):
            for other in found[:n]:
                assert (
                    one.left >= other.left + other.width - 1e-6 or other.left >= one.left + one.width - 1e-6
                    or one.top >= other.top + other.height - 1e-6 or other.top >= one.top + one.height - 1e-6
                )  # fmt: skip

    @pytest.mark.parametrize(
        "wanted", [(Box(0, 0, 10, 10),), (Box(50, 50, 0, 10),), (Box(50, 50, 20, 20), Box(60, 60, 20, 20))]
    )
    def test_boxes_of_an_order_are_checked(self, wanted):
        with pytest.raises(AppError, match="box"):
            Sheets(film_size="A4", margin=20, custom_boxes=wanted).image_boxes()

    def test_landscape_turns_the_sheet(self):
        assert sheet("A4", Orientation.LANDSCAPE) == Box(0, 0, 297, 210)
        assert Sheets(film_size="14INX17IN", dots_per_inch=300).page_size == (4200, 5100)


class TestSize:
    def test_true_size_is_true_in_both_directions(self):
        spacing = Spacing(down=0.8, across=0.4, origin=PATIENT)

        page = only(
            Sheets(film_size="A4", medium=Medium.PAPER, fit=Fit.TRUE_SIZE, dots_per_inch=600, **BARE),
            picture(np.ones((100, 100)), spacing=spacing),
        )

        down, across = np.nonzero(page.pixels == 255)
        # The page number is text at the bottom, outside of the image's box.
        _, top, placed = page.placements[0]
        inside = down < top + placed.top + placed.height
        size_mm = [(values[inside].max() - values[inside].min() + 1) / 600 * 25.4 for values in (down, across)]
        assert size_mm == pytest.approx([80, 40], abs=25.4 / 600)

    @pytest.mark.parametrize(
        ("spacing", "words"),
        [
            (None, "no pixel spacing"),
            (Spacing(0.1, 0.1, SpacingOrigin.DETECTOR), "detector"),
            (Spacing(5.0, 5.0, PATIENT), "500.0 x 500.0 mm"),
        ],
    )
    def test_true_size_that_cannot_be_is_refused_saying_why(self, spacing, words):
        with pytest.raises(AppError, match=words):
            only(Sheets(film_size="A4", fit=Fit.TRUE_SIZE, **BARE), picture(np.ones((100, 100)), spacing=spacing))

    def test_fit_shows_all_and_crop_fills(self):
        shape, box = (100, 200), (300, 300)

        fitted = place(shape, None, box, fit=Fit.FIT, magnification=Magnification.CUBIC, pixels_per_mm=1)
        cropped = place(shape, None, box, fit=Fit.CROP, magnification=Magnification.CUBIC, pixels_per_mm=1)

        assert (fitted.width, fitted.height, fitted.left, fitted.top) == (300, 150, 0, 75)
        assert fitted.region == (0, 0, 200, 100)
        assert (cropped.width, cropped.height) == (300, 300)
        assert cropped.region == pytest.approx((50, 0, 150, 100))

    def test_pixels_that_are_not_square_keep_their_shape(self):
        tall = Spacing(down=2.0, across=1.0, origin=SpacingOrigin.DETECTOR)

        placed = place((100, 100), tall, (400, 400), fit=Fit.FIT, magnification=Magnification.CUBIC, pixels_per_mm=1)

        assert (placed.width, placed.height) == (200, 400)


class TestResampling:
    @pytest.mark.parametrize("factor", [1, 2, 3, 7])
    def test_a_line_of_one_pixel_stays_one_line_at_whole_scales(self, factor):
        image = np.zeros((50, 50), np.float32)
        image[:, 20] = image[33, :] = 1
        box = (50 * factor + factor - 1,) * 2

        placed = place((50, 50), None, box, fit=Fit.FIT, magnification=Magnification.REPLICATE, pixels_per_mm=1)
        printed = resample(image, placed, Magnification.REPLICATE)

        assert printed.shape == (50 * factor, 50 * factor)
        assert set(np.unique(printed)) == {0, 1}
        assert (printed[0] == 1).nonzero()[0].tolist() == list(range(20 * factor, 21 * factor))
        assert (printed[:, 0] == 1).nonzero()[0].tolist() == list(range(33 * factor, 34 * factor))

    @pytest.mark.parametrize("magnification", [Magnification.REPLICATE, Magnification.BILINEAR, Magnification.CUBIC])
    def test_finer_stripes_than_the_paper_has_pixels_become_grey_and_no_pattern(self, magnification):
        # Two cycles for a printed pixel: anything but grey is an alias. 0.02 of full scale is half an 8-bit step in 12.
        stripes = np.tile((np.arange(800) % 2).astype(np.float32), (800, 1))

        placed = place((800, 800), None, (200, 200), fit=Fit.FIT, magnification=magnification, pixels_per_mm=1)
        printed = resample(stripes, placed, magnification)

        assert np.abs(printed[:, 5:-5] - 0.5).max() < 0.02

    @pytest.mark.parametrize("magnification", list(Magnification))
    def test_no_grey_comes_out_that_did_not_go_in(self, magnification):
        image = np.random.default_rng(1).uniform(0.2, 0.7, (60, 80)).astype(np.float32)
        image[20:40, 20:40] = 0.9

        placed = place((60, 80), None, (333, 333), fit=Fit.FIT, magnification=magnification, pixels_per_mm=1)
        printed = resample(image, placed, magnification)

        assert image.min() <= printed.min()
        assert printed.max() <= image.max()
        assert printed.mean() == pytest.approx(image.mean(), abs=0.005)

    @pytest.mark.parametrize(("box", "fit"), [((704, 704), Fit.FIT), ((95, 700), Fit.CROP), ((40, 33), Fit.FIT)])
    @pytest.mark.parametrize(
        ("magnification", "filtering"),
        [(Magnification.CUBIC, Image.Resampling.BICUBIC), (Magnification.BILINEAR, Image.Resampling.BILINEAR)],
    )
    def test_an_image_is_resampled_as_by_pillow_in_one_piece(self, box, fit, magnification, filtering):
        image = np.random.default_rng(3).uniform(0, 255, (301, 217)).astype(np.float32)
        placed = place(image.shape, None, box, fit=fit, magnification=magnification, pixels_per_mm=1)
        left, top, right, bottom = placed.region
        cut = Image.fromarray(image[int(top) : ceil(bottom), int(left) : ceil(right)])
        within = left - int(left), top - int(top), right - int(left), bottom - int(top)
        expected = np.asarray(cut.resize((placed.width, placed.height), filtering, box=within))

        printed = resample(image, placed, magnification)

        # Of 255: Pillow's boxes are float32.
        np.testing.assert_allclose(printed, np.clip(expected, *cut.getextrema()), atol=0.02)

    def test_one_pixel_for_one_pixel_is_the_image(self):
        image = np.random.default_rng(2).uniform(0, 1, (40, 30)).astype(np.float32)

        placed = place((40, 30), None, (100, 100), fit=Fit.FIT, magnification=Magnification.NONE, pixels_per_mm=1)

        assert (resample(image, placed, Magnification.NONE) == image).all()


class TestPages:
    @pytest.mark.parametrize("bits", [8, 12, 16])
    def test_a_wedge_keeps_all_its_steps(self, bits):
        wedge = np.repeat(np.linspace(0, 1, 256), 2)[None, :].repeat(64, axis=0)

        page = only(Sheets(film_size="8INX10IN", bits=bits, magnification=Magnification.NONE, **BARE), picture(wedge))

        left, top, placed = page.placements[0]
        row = page.pixels[top + placed.top + 10, left + placed.left : left + placed.left + 512]
        white = (1 << bits) - 1
        assert (row[::2] == np.round(np.linspace(0, 1, 256) * white)).all()
        assert page.pixels.dtype == (np.uint8 if bits == 8 else np.uint16)

    def test_reversed_polarity_turns_the_image_and_not_the_border(self):
        page = only(Sheets(film_size="A4", border=0.0, reversed=True, **BARE), picture(np.zeros((50, 50))))

        left, top, placed = page.placements[0]
        assert page.pixels[top + placed.top + 5, left + placed.left + 5] == 255
        assert page.pixels[0, 0] == 0

    def test_pages_follow_and_carry_the_banner_and_their_number(self):
        sheets = Sheets(film_size="A4", display_format="STANDARD\\2,2", banner=("Identity",), dots_per_inch=150)
        blank = Sheets(film_size="A4", display_format="STANDARD\\2,2", dots_per_inch=150)
        image = picture(np.zeros((10, 10)))

        made = list(pages(sheets, [lambda: image] * 9))

        assert [(page.number, page.of) for page in made] == [(1, 3), (2, 3), (3, 3)]
        assert [len(page.placements) for page in made] == [4, 4, 1]
        without = next(iter(pages(blank, [lambda: image] * 9)))
        band = slice(0, round((6 + 4) * 150 / 25.4))
        assert all((page.pixels[band] > 128).any() for page in made)
        assert not (without.pixels[band] > 128).any()

    def test_text_never_lies_on_an_image_unless_asked(self):
        grey = picture(
            np.full((200, 300), 0.5),
            spacing=Spacing(0.5, 0.5, PATIENT), caption=("Series 1", "Image 2"), letters=("A", "L", "P", "R"),
        )  # fmt: skip
        order = {
            "film_size": "A4", "display_format": "STANDARD\\2,2", "banner": ("Name", "Study"), "footer": "Order",
            "code": "urn:uuid:1", "dots_per_inch": 150,
        }  # fmt: skip

        beside, over = only(Sheets(**order), *[grey] * 4), only(Sheets(**order, over_images=True), *[grey] * 4)

        def is_untouched(page):
            spots = [
                page.pixels[
                    top + each.top : top + each.top + each.height, left + each.left : left + each.left + each.width
                ]
                for left, top, each in page.placements
            ]
            return all((spot == 128).all() for spot in spots)

        assert is_untouched(beside)
        assert not is_untouched(over)

    def test_the_scale_bar_measures_what_it_says(self):
        spacing = Spacing(0.5, 0.5, PATIENT)
        sheets = Sheets(film_size="A4", dots_per_inch=300, letters=False, fit=Fit.TRUE_SIZE)

        page = only(sheets, picture(np.full((200, 240), 0.5), spacing=spacing))

        left, top, placed = page.placements[0]
        below = page.pixels[top + placed.top + placed.height :, left + placed.left :]
        rows = below[: round(6 * 300 / 25.4)] == 255
        # The longest run of white, in pixels: between two changes of a row with black at its ends.
        edges = np.diff(np.pad(rows, ((0, 0), (1, 1))).astype(int), axis=1)
        longest = max((np.nonzero(row < 0)[0] - np.nonzero(row > 0)[0]).max(initial=0) for row in edges)
        assert longest / 300 * 25.4 == pytest.approx(50, abs=0.1)

    def test_the_code_is_one_that_readers_read(self):
        content = "https://imaging.example/fhir/Task/8f2c"

        drawn = lettering.qr(content, side=212)

        factor = drawn.shape[0] // (segno.make_qr(content, error="m").symbol_size(border=4)[0])
        modules = drawn[factor // 2 :: factor, factor // 2 :: factor]
        expected = np.array([list(row) for row in segno.make_qr(content, error="m").matrix_iter(border=4)])
        assert (modules == expected).all()

    def test_colour_stays_colour_on_a_colour_device_and_is_refused_on_another(self):
        red = np.zeros((20, 20, 3))
        red[..., 0] = 1

        page = only(Sheets(film_size="A4", medium=Medium.PAPER, colour=True, **BARE), picture(red))

        left, top, placed = page.placements[0]
        assert page.pixels[top + placed.top + 5, left + placed.left + 5].tolist() == [255, 0, 0]
        with pytest.raises(AppError, match="colour device"):
            only(Sheets(film_size="A4", **BARE), picture(red))

    def test_memory_is_that_of_one_page_and_one_image(self):
        sheets = Sheets(film_size="14INX17IN", dots_per_inch=150, **BARE)
        page_bytes = np.prod(sheets.page_size)
        tracemalloc.start()
        for _ in pages(sheets, [lambda: picture(np.full((256, 256), 0.5))] * 12):
            pass
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert peak < 11 * page_bytes  # the image as large as the page in float32, a copy of it, and two pages

    @pytest.mark.parametrize(
        ("wrong", "where"),
        [
            ({"film_size": "B7"}, "film-size"), ({"dots_per_inch": 5}, "resolution"), ({"bits": 9}, "bits"),
            ({"border": 2.0}, "border"), ({"margin": -1.0}, "layout"), ({"letter_height": 0.0}, "annotation"),
            ({"banner": ("x",) * 50}, "banner"), ({"code": "x" * 5000}, "code"),
            ({"margin": 100.0, "film_size": "8INX10IN", "display_format": "STANDARD\\3,1"}, "layout"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_printed_is_refused_naming_the_part(self, wrong, where):
        with pytest.raises(AppError) as caught:
            only(Sheets(**{"film_size": "A4"} | wrong), picture(np.zeros((5, 5))))
        assert (caught.value.category, caught.value.where) == (Category.INVALID, where)

    def test_a_picture_that_cannot_be_loaded_fails_at_its_turn(self):
        def broken():
            raise AppError(Category.GONE, "no longer here", where="image")

        image = picture(np.full((20, 20), 0.5))
        made = pages(Sheets(film_size="A4", **BARE), [lambda: image, broken, lambda: image])

        assert next(made).number == 1
        with pytest.raises(AppError, match="no longer here"):
            next(made)

    def test_a_page_loads_its_own_pictures_in_order_and_no_others(self):
        loaded = []

        def load(n):
            loaded.append(n)
            return picture(np.full((20, 20), 0.5))

        sheets = Sheets(film_size="A4", display_format="STANDARD\\1,4", **BARE)
        made = pages(sheets, [partial(load, n) for n in range(10)], first=2)
        next(made)

        assert loaded == [4, 5, 6, 7]

    def test_a_picture_is_loaded_while_the_one_before_it_is_drawn(self):
        begun = threading.Event()

        class Waiting(tuple):
            def __iter__(self):  # when the marks are drawn
                assert begun.wait(10)
                return super().__iter__()

        def first():
            return picture(np.full((20, 20), 0.5), marks=Waiting())

        def second():
            begun.set()
            return picture(np.full((20, 20), 0.5))

        sheets = Sheets(film_size="A4", display_format="STANDARD\\1,2", **BARE)

        (page,) = pages(sheets, [first, second])

        assert len(page.placements) == 2

    def test_nothing_and_too_much_are_refused(self):
        with pytest.raises(AppError, match="nothing to print"):
            list(pages(Sheets(), []))
        with pytest.raises(AppError) as caught:
            next(pages(Sheets(), [lambda: picture(np.zeros((5, 5)))] * 501))
        assert caught.value.category is Category.TOO_LARGE

    def test_text_is_cut_where_it_would_run_over_and_controls_are_no_text(self):
        long, short = (lettering.text("W" * n, height=40, width=300) for n in (500, 3))

        assert long.shape == short.shape == (40, 300)
        assert long[:, -1].max() < 0.5
        assert (lettering.text("a\x00b", height=40, width=300) == lettering.text("a b", height=40, width=300)).all()


@pytest.mark.parametrize(
    ("cosines", "letters"),
    [
        ((1, 0, 0, 0, 1, 0), ("A", "L", "P", "R")),  # axial
        ((0, 1, 0, 0, 0, -1), ("H", "P", "F", "A")),  # sagittal
        ((1, 0, 0, 0, 0, -1), ("H", "L", "F", "R")),  # coronal
        ((0.8, 0.6, 0, 0, 0, -1), ("H", "LP", "F", "RA")),
        ((1, 0.05, 0, 0, 1, 0), ("A", "L", "P", "R")),
    ],
)
def test_letters_say_where_the_patient_lies(cosines, letters):
    assert lettering.orientation_letters(cosines) == letters


def test_every_film_size_of_the_standard_is_there():
    # Source: PS3.3 C.13.3, Film Size ID.
    defined = (
        "8INX10IN 8_5INX11IN 10INX12IN 10INX14IN 11INX14IN 11INX17IN 14INX14IN 14INX17IN 24CMX24CM 24CMX30CM A4 A3"
    )
    assert set(defined.split()) <= set(FILM_SIZES)


class TestLogo:
    def test_it_stands_at_the_left_of_the_code_as_high_as_that(self):
        logo = np.tile(np.linspace(0, 1, 40, dtype=np.float32), (20, 1))
        sheets = Sheets(film_size="A4", code="https://x", logo=logo, margin=10, gap=2, border=0.0, code_side=18)

        page = only(sheets, picture(np.zeros((4, 4))))

        mm = sheets.pixels_per_mm
        left, top = round((210 - 10 - 18 - 2 - 36) * mm), round(10 * mm)
        part = page.pixels[top : top + round(18 * mm), left : left + round(36 * mm)].astype(float) / 255
        across = part.mean(axis=0)
        assert across == pytest.approx(np.linspace(0, 1, len(across)), abs=0.03)
        assert sheets.image_boxes()[0].top >= 10 + 18
