"""What is ordered is compared with what a printer can do before anything is sent to it."""

from dataclasses import replace

import numpy as np
import pytest

from imaging.errors import AppError, Category
from imaging.film import Fit, Medium, Picture, Sheets
from imaging.film.gsdf import Densities
from imaging.printer import Attachment, Capabilities, Job, begun

FILM = Capabilities(
    film_sizes=("14INX17IN", "A4"),
    media=(Medium.BLUE_FILM,),
    dots_per_inch=(320,),
    bits=(8, 12),
    most_copies=3,
    most_pages=2,
    least_margin=5.0,
    densities=(0.2, 3.2),
    destinations=("PROCESSOR", "BIN_1"),
)
ANYTHING = Capabilities((), (), (), ())
BLANK = Picture(np.zeros((4, 4), dtype=np.float32))


def job(pictures: int = 1, sheets: Sheets | None = None, **more: object) -> Job:
    return Job("order-1", sheets or Sheets(dots_per_inch=320), [lambda: BLANK] * pictures, **more)


def test_a_job_within_the_capabilities_passes():
    FILM.check(job(2, copies=3, destination="BIN_1", densities=Densities(0.2, 3.2)))
    ANYTHING.check(job(7, Sheets(film_size="A3", fit=Fit.TRUE_SIZE, bits=16)))


@pytest.mark.parametrize(
    ("asked", "where", "words"),
    [
        (job(sheets=Sheets(dots_per_inch=300)), "resolution", "the printer has 320, not 300"),
        (job(sheets=Sheets(film_size="A3", dots_per_inch=320)), "film-size", "the printer has 14INX17IN, A4, not A3"),
        (
            job(sheets=Sheets(medium=Medium.PAPER, dots_per_inch=320)),
            "medium",
            "the printer has BLUE FILM, not PAPER",
        ),
        (job(sheets=Sheets(bits=16, dots_per_inch=320)), "bits", "the printer has 8, 12, not 16"),
        (job(sheets=Sheets(colour=True, dots_per_inch=320)), "colour", "the printer has grey, not colour"),
        (job(sheets=Sheets(margin=4, dots_per_inch=320)), "layout", "the printer does at least 5, not 4"),
        (job(copies=4), "copies", "the printer does 1 to 3, not 4"),
        (job(3), "pages", "the printer does 1 to 2, not 3"),
        (job(destination="MAGAZINE"), "destination", "the printer has PROCESSOR, BIN_1, not MAGAZINE"),
        (job(densities=Densities(0.2, 3.5)), "density", "the printer does 0.2 to 3.2, not 3.5"),
    ],
)
def test_what_a_printer_does_not_offer_is_refused_with_what_it_offers(asked: Job, where: str, words: str):
    with pytest.raises(AppError) as caught:
        FILM.check(asked)

    assert (caught.value.category, caught.value.where, caught.value.message) == (Category.UNSUPPORTED, where, words)


def test_true_size_needs_a_printer_that_keeps_millimetres():
    true_size = job(sheets=Sheets(fit=Fit.TRUE_SIZE, dots_per_inch=320))

    FILM.check(true_size)
    with pytest.raises(AppError) as caught:
        replace(FILM, does_true_size=False).check(true_size)

    assert (caught.value.where, caught.value.message) == ("fit", "the printer has fit, crop, not true-size")


@pytest.mark.parametrize("key", ["", "x" * 65, "a/b", "..", "a b", "-a", "a\n"])
def test_a_key_that_could_not_be_a_file_name_is_refused(key: str):
    with pytest.raises(AppError) as caught:
        Job(key, Sheets(), [])

    assert caught.value.where == "key"


def test_what_is_attached_is_bounded():
    document = Attachment("order.json", "application/json", bytes(8 << 20))

    with pytest.raises(AppError) as caught:
        job(attachments=(document, document, Attachment("more", "text/plain", b"x")))

    assert caught.value.category is Category.TOO_LARGE


def test_pages_begin_where_a_job_goes_on():
    three = job(3)

    pages = three.pages(first=3)

    assert [(page.number, page.of) for page in pages] == [(3, 3)]


def test_a_job_that_is_begun_has_its_first_page_at_hand_and_loads_the_rest_when_its_turn_comes():
    loaded: list[int] = []
    grey = [Picture(np.full((4, 4), n / 10, dtype=np.float32)) for n in range(10)]
    loads = [lambda n=n: loaded.append(n) or grey[n] for n in range(10)]
    sheets = Sheets(dots_per_inch=72, display_format="STANDARD\\2,2")

    made = begun(Job("order-1", sheets, loads))
    at_first = list(loaded)
    found = [load() for load in made.pictures]

    assert at_first == [0, 1, 2, 3]
    assert loaded == list(range(10))
    assert all(one is other for one, other in zip(found, grey, strict=True))


def test_pictures_that_take_more_than_is_allowed_are_not_loaded_before_their_turn():
    loaded: list[int] = []
    loads = [lambda n=n: loaded.append(n) or BLANK for n in range(10)]

    begun(Job("order-1", Sheets(dots_per_inch=72, display_format="STANDARD\\2,2"), loads), most_bytes=100)

    assert loaded == [0, 1]  # of 64 bytes each
