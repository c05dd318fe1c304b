"""Film as a user prints it: a server, a printer, an order over HTTP, and a ruler on what came out."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import generate_uid

from fhir_server.delivery import value
from tests.support.agents import Site
from tests.support.dicom_builder import instance
from tests.support.serving import fhir_imaging, serving, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("pdftoppm"), reason="pdftoppm is not installed (Debian: poppler-utils)"),
]

DPI = 600  # of the ruler
SPACING = 0.5  # mm a pixel
SQUARE = 100  # pixels, and so 50 mm


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server whose own worker prints PDF on the printer `ward`."""
    folder = tmp_path_factory.mktemp("films")
    with serving(tmp_path_factory.mktemp("film") / "data") as served:
        where = ("--data-dir", served.data_dir)
        rights = ("--order-hard-copy", "--register-images", "--receive-images")
        for command in (
            ("subscriber", "add", "clinic", *rights, *where),
            ("printer", "add", "ward", "pdf", "-o", f"folder={folder}", *where),
        ):
            done = fhir_imaging(*command)
            assert done.returncode == 0, done.stderr
        yield Site(served, fhir_imaging("token", "clinic", *where).stdout.strip(), folder)


def printed(at: Site, frames: np.ndarray, *inputs: dict[str, Any], **attributes: Any) -> Path:
    """Store an image, order it, wait, and return the document that came out."""
    study = generate_uid()
    uids = {"StudyInstanceUID": study, "SeriesInstanceUID": generate_uid(), "SOPInstanceUID": generate_uid()}
    at.call(
        "POST", "/dicom-web/studies", instance(frames, modality="OT", attributes=uids | attributes), "application/dicom"
    )
    task = at.order(study, *inputs)
    assert wait_for(lambda: at.task(task)["status"] in ("completed", "failed"), 60)
    assert at.task(task)["status"] == "completed", at.task(task)
    (document,) = at.folder.glob(f"{task}*.pdf")
    return document


def page_of(document: Path, dots_per_inch: int = DPI) -> np.ndarray:
    """Return the first page as another program renders it, grey values [rows, columns]."""
    target = document.with_suffix("")
    subprocess.run(
        ["pdftoppm", "-r", str(dots_per_inch), "-gray", "-f", "1", "-l", "1", "-singlefile", document, target],
        check=True,
    )
    Image.MAX_IMAGE_PIXELS = None
    return np.asarray(Image.open(target.with_suffix(".pgm")))


def square_image() -> np.ndarray:
    image = np.zeros((200, 200), np.uint8)
    image[50 : 50 + SQUARE, 50 : 50 + SQUARE] = 255
    return image


PLAIN = [value(name, "valueBoolean", False) for name in ("letters", "scale-bar", "captions")]


@pytest.mark.parametrize("size", ["A4", "14INX17IN"])
@pytest.mark.parametrize("way", ["REPLICATE", "CUBIC"])
def test_true_size_is_true_to_a_fifth_of_a_millimetre(at: Site, size: str, way: str) -> None:
    document = printed(
        at, square_image(), *PLAIN, value("film-size", "valueCode", size), value("fit", "valueCode", "true-size"),
        value("magnification", "valueCode", way), value("window", "valueString", "127.5,255,linear-exact"),
        PixelSpacing=[str(SPACING), str(SPACING)],
    )  # fmt: skip

    page = page_of(document)
    # Through the middle of the sheet's images there is nothing but the square.
    rows, columns = page.shape
    middle = page[rows // 4 : 3 * rows // 4, columns // 8 : 7 * columns // 8] > 127
    down, across = (np.ptp(each) + 1 for each in middle.nonzero())
    assert across / DPI * 25.4 == pytest.approx(SQUARE * SPACING, abs=0.2)
    assert down / DPI * 25.4 == pytest.approx(SQUARE * SPACING, abs=0.2)


def test_the_sheet_has_the_size_that_was_ordered(at: Site) -> None:
    document = printed(at, square_image(), value("film-size", "valueCode", "14INX17IN"))

    told = subprocess.run(["pdfinfo", document], capture_output=True, text=True, check=True).stdout

    (line,) = [each for each in told.splitlines() if each.startswith("Page size")]
    assert [float(each) for each in line.split() if each[0].isdigit()][:2] == pytest.approx([14 * 72, 17 * 72], abs=0.2)


def test_the_patient_and_the_page_are_on_it_as_text(at: Site) -> None:
    document = printed(at, square_image(), PatientName="Doe^Jane", PatientID="4711", PatientBirthDate="19700131")

    text = subprocess.run(["pdftotext", document, "-"], capture_output=True, text=True, check=True).stdout

    assert "Doe, Jane" in text
    assert "4711" in text
    assert "1970-01-31" in text
    assert "1/1" in text.replace(" ", "")


def test_a_film_of_many_images_takes_seconds(at: Site) -> None:
    study = at.store(20)
    started = time.monotonic()

    task = at.order(study, value("layout", "valueString", "STANDARD\\4,5"))

    assert wait_for(lambda: at.task(task)["status"] == "completed", 60)
    assert time.monotonic() - started < 60
