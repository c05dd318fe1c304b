"""Modalities print through a running server: what they put on film is stored, ordered, printed, and told back."""

import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from PIL import Image
from pydicom import dcmread

from fhir_server.hardcopy.press import press
from fhir_server.model.task import name_of
from imaging.film import Medium, Picture, Sheets
from imaging.printer import Job, Progress
from imaging.printers import printers
from tests.support.agents import Site
from tests.support.certificates import identity
from tests.support.film_modality import HAS_DCMTK, NEEDS_DCMTK, DcmtkModality
from tests.support.film_modality import TITLE as MODALITY_TITLE
from tests.support.film_printers import HAS_DCMPRSCP, NEEDS_DCMPRSCP, DcmtkPrinter, dcmtk_printer
from tests.support.film_printers import TITLE as PRINTER_TITLE
from tests.support.serving import COMMAND, ENVIRONMENT, fhir_imaging, serving, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # pynetdicom's sockets
]


class Kept:
    """Notes of a job, in memory."""

    def __init__(self) -> None:
        self._ticket = ""

    def ticket(self) -> str:
        return self._ticket

    def keep(self, ticket: str) -> None:
        self._ticket = ticket

    def tries(self) -> int:
        return 1


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("films")
    with serving(tmp_path_factory.mktemp("desk") / "data") as served:
        where = ("--data-dir", served.data_dir)
        rights = ("--order-hard-copy", "--register-images", "--receive-images")
        for command in (
            ("subscriber", "add", "clinic", *rights, *where),
            ("printer", "add", "ward", "folder", "-o", f"folder={folder}", "-o", "dots_per_inch=150", *where),
            ("modality", "add", "CT1", "clinic", "ward", "--address", "127.0.0.1", *where),
        ):
            done = fhir_imaging(*command)
            assert done.returncode == 0, done.stderr
        yield Site(served, fhir_imaging("token", "clinic", *where).stdout.strip(), folder)


@pytest.fixture(scope="module")
def port(at: Site) -> Iterator[int]:
    with listening(at) as (found, said):
        assert "TLS" not in said
        yield found


@contextmanager
def listening(at: Site, **settings: object) -> Iterator[tuple[int, str]]:
    """Run `fhir-imaging dimse` with settings; the block gets its port and what it said."""
    command = [*COMMAND, "dimse", "--port", "0", "--data-dir", str(at.served.data_dir)]
    given = {f"FHIR_IMAGING_DIMSE_{name.upper()}": str(value) for name, value in settings.items()}
    process = subprocess.Popen(command, env=ENVIRONMENT | given, stdout=subprocess.PIPE, text=True)
    try:
        said = process.stdout.readline()
        assert "Modalities print on" in said
        yield int(re.search(r":(\d+)", said)[1]), said
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def send(port: int, title: str, *pictures: Picture, layout: str = "STANDARD\\1,2") -> Any:
    """Print as a modality does, image by image, and return what our printer says of it."""
    printer = printers.get("dicom").build(
        {
            "host": "127.0.0.1", "port": port, "called_ae": "FHIRPRINT", "calling_ae": title, "dots_per_inch": 150,
            "layout": "boxes", "wait_s": 60,
        }
    )  # fmt: skip
    sheets = Sheets(
        film_size="8INX10IN", medium=Medium.BLUE_FILM, display_format=layout, dots_per_inch=150, letters=False,
        scale_bar=False,
    )  # fmt: skip
    job = Job("test-1", sheets, [lambda each=each: each for each in pictures])
    return press(printer, lambda: job, Kept(), hear=lambda _: None)


def tasks(at: Site) -> list[dict[str, Any]]:
    found = at.call("GET", "/fhir/Task?code=hard-copy&_count=50").get("entry", [])
    return [each["resource"] for each in found]


def test_a_film_of_a_modality_is_stored_ordered_and_printed(at: Site, port: int) -> None:
    grey = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (200, 1))

    outcome = send(port, "CT1", Picture(grey), Picture(1 - grey))

    assert outcome.progress is Progress.DONE
    (task,) = tasks(at)
    assert task["status"] == "completed"
    given = {name_of(each): next(v for k, v in each.items() if k.startswith("value")) for each in task["input"]}
    assert (given["film-size"], given["medium"]) == ("8INX10IN", "BLUE FILM")
    assert len(at.call("GET", "/fhir/ImagingStudy")["entry"]) == 1
    (page,) = at.folder.glob("*/page-*.png")
    levels = np.unique(np.asarray(Image.open(page)))
    assert (levels.min(), levels.max()) == (0, 255)


def test_a_modality_that_nobody_registered_is_not_let_in(at: Site, port: int) -> None:
    before = len(tasks(at))

    with pytest.raises(Exception, match=r"(?i)reject|refus|associat|calling|recogni"):
        send(port, "STRANGER", Picture(np.zeros((8, 8), np.float32)))

    assert len(tasks(at)) == before


@pytest.mark.skipif(not (HAS_DCMTK and HAS_DCMPRSCP), reason=f"{NEEDS_DCMTK}; {NEEDS_DCMPRSCP}")
class TestDcmtk:
    """dcmpsprt and dcmprscu print through us on dcmprscp: none of what we wrote stands at either end."""

    @pytest.fixture
    def press(self, tmp_path_factory: pytest.TempPathFactory, at: Site) -> Iterator[DcmtkPrinter]:
        where = ("--data-dir", at.served.data_dir)
        with dcmtk_printer(tmp_path_factory.mktemp("press")) as press:
            options = {
                "host": "127.0.0.1", "port": press.port, "called_ae": PRINTER_TITLE, "dots_per_inch": 300,
                "twelve_bits": "true", "media": "CLEAR FILM",
            }  # fmt: skip
            given = [word for name, each in options.items() for word in ("-o", f"{name}={each}")]
            for command in (
                ("printer", "add", "press", "dicom", *given, *where),
                ("modality", "add", MODALITY_TITLE, "clinic", "press", *where),
            ):
                done = fhir_imaging(*command)
                assert done.returncode == 0, done.stderr
            yield press

    def test_what_is_printed_through_us_comes_out_of_the_printer_pixel_by_pixel(
        self, at: Site, port: int, press: DcmtkPrinter, tmp_path: Path
    ) -> None:
        modality = DcmtkModality(tmp_path / "modality", port)
        before = {task["id"] for task in tasks(at)}
        films = modality.render(
            2, "--layout", "2", "2", "--filmsize", "8INX10IN", "--magnification", "REPLICATE", "--identity", "--trim",
            "--landscape", "--border", "WHITE", images=("CT_small.dcm", "MR_small.dcm"),
        )  # fmt: skip

        modality.send(films, "--medium-type", "CLEAR FILM", "--priority", "HIGH", "--label", "ward 3")

        wait_for(lambda: [task for task in tasks(at) if task["id"] not in before and task["status"] == "completed"], 60)
        (task,) = (task for task in tasks(at) if task["id"] not in before)
        assert task["priority"] == "urgent"
        said = [(name_of(each), next(v for k, v in each.items() if k.startswith("value"))) for each in task["input"]]
        assert {
            ("device", ("reference", "Device/printer-press")), ("layout", "STANDARD\\2,2"), ("film-size", "8INX10IN"),
            ("orientation", "LANDSCAPE"), ("magnification", "REPLICATE"), ("medium", "CLEAR FILM"), ("trim", True),
            ("border", "WHITE"), ("banner", "ward 3"), ("bits", 12),
        } <= {(name, *v.items()) if isinstance(v, dict) else (name, v) for name, v in said}  # fmt: skip
        sent = [hardcopy.pixel_array for hardcopy in modality.hardcopies(films[0])]
        stored = [self.stored(at, uid) for name, uid in said if name == "instance"]
        assert [np.array_equal(*each) for each in zip(stored, sent, strict=True)] == [True] * 2
        (page,) = press.printed()
        assert page.shape == (8 * 300, 10 * 300)
        (_, top, left), (_, other_top, right) = (found_on(page, image) for image in sent)
        assert abs(top - other_top) < 300 * 4  # in one row of the layout, the second at the right of the first
        assert left < 300 * 5 < right

    def stored(self, at: Site, uid: str) -> np.ndarray:
        (found,) = at.call("GET", f"/dicom-web/instances?SOPInstanceUID={uid}")
        study, series = found["0020000D"]["Value"][0], found["0020000E"]["Value"][0]
        path = f"/dicom-web/studies/{study}/series/{series}/instances/{uid}"
        request = urllib.request.Request(f"{at.served.base_url}{path}")
        request.add_header("Authorization", f"Bearer {at.token}")
        request.add_header("Accept", "application/dicom; transfer-syntax=1.2.840.10008.1.2.1")
        with urllib.request.urlopen(request, timeout=60) as response:
            ds = dcmread(BytesIO(response.read()))
        assert (ds.SOPClassUID, ds.BitsStored) == ("1.2.840.10008.5.1.4.1.1.7", 12)
        return ds.pixel_array


def found_on(page: np.ndarray, image: np.ndarray) -> tuple[int, int, int]:
    """Return by which whole factor an image is enlarged on a page, and at which row and column it begins."""
    raw = page.tobytes()
    for factor in range(1, page.shape[0] // image.shape[0] + 1):
        expected = np.repeat(np.repeat(image, factor, axis=0), factor, axis=1).astype(page.dtype)
        height, width = expected.shape
        row, column = divmod(raw.find(expected[height // 2].tobytes()) // page.itemsize, page.shape[1])
        # The row that was found is the first that is equal to the middle one.
        for top in range(max(0, row - height), row + 1):
            if np.array_equal(page[top : top + height, column : column + width], expected):
                return factor, top, column
    raise AssertionError("the image is not on the page")


@pytest.mark.skipif(not (HAS_DCMTK and shutil.which("openssl")), reason=f"{NEEDS_DCMTK}, and openssl")
def test_over_tls_only_who_shows_a_certificate_is_answered(at: Site, tmp_path: Path) -> None:
    ours = identity(tmp_path / "ours", trustme.CA())
    files = {"tls_certificate": "certificate.pem", "tls_key": "key.pem", "tls_clients": "ca.pem"}
    who = ["-aet", "CT1", "-aec", "FHIRPRINT", "+cf", ours / "ca.pem", "-to", "20"]
    shown = ["+tls", ours / "key.pem", ours / "certificate.pem"]

    with listening(at, **{name: ours / file for name, file in files.items()}) as (port, said):
        done = [
            subprocess.run(
                ["echoscu", *how, *who, "127.0.0.1", str(port)],
                capture_output=True, timeout=60, check=False,
            ).returncode
            for how in (shown, ["+tla"])
        ]  # fmt: skip

    assert "over TLS" in said
    assert done[0] == 0
    assert done[1] != 0


def test_half_of_what_tls_needs_is_refused(at: Site, tmp_path: Path) -> None:
    environment = ENVIRONMENT | {"FHIR_IMAGING_DIMSE_TLS_CLIENTS": str(tmp_path / "ca.pem")}

    done = subprocess.run(
        [*COMMAND, "dimse", "--port", "0", "--data-dir", str(at.served.data_dir)],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert done.returncode != 0
    assert "needs a certificate" in done.stderr


def test_the_register_lists_and_forgets(at: Site) -> None:
    where = ("--data-dir", at.served.data_dir)

    listed = fhir_imaging("modality", "list", *where).stdout
    added = fhir_imaging("modality", "add", "MR1", "clinic", "ward", *where)
    removed = fhir_imaging("modality", "remove", "MR1", *where)
    again = fhir_imaging("modality", "remove", "MR1", *where)
    wrong = fhir_imaging("modality", "add", "TOO-LONG-FOR-A-TITLE", "clinic", "ward", *where)

    assert "CT1" in listed
    assert "127.0.0.1" in listed
    assert (added.returncode, removed.returncode) == (0, 0)
    assert again.returncode == 1
    assert wrong.returncode == 2
    assert "16 printable" in wrong.stderr
