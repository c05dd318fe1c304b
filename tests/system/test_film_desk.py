"""Modalities print through a running server: what they put on film is stored, ordered, printed, and told back."""

import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fhir_server.hardcopy.press import press
from fhir_server.model.task import name_of
from imaging.film import Medium, Picture, Sheets
from imaging.printer import Job, Progress
from imaging.printers import printers
from tests.support.agents import Site
from tests.support.serving import COMMAND, ENVIRONMENT, fhir_imaging, serving

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
    command = [*COMMAND, "dimse", "--port", "0", "--data-dir", str(at.served.data_dir)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    try:
        said = process.stdout.readline()
        assert "Modalities print on" in said
        yield int(said.split(":")[1].split(".")[0])
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
