"""`fhir-imaging demo`, run as a user runs it: in a folder of one's own, with the images of pydicom's wheel only."""

import hashlib
import os
import re
import shlex
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import orjson
import pydicom.data
import pytest
from PIL import Image

from imaging.algorithms import algorithms
from tests.support.serving import COMMAND, ENVIRONMENT, serving

pytestmark = pytest.mark.slow

WHEEL = Path(pydicom.data.__file__).parent / "test_files"
CELL_WIDTH, CELL_HEIGHT, MARGIN, SIDE = 208, 230, 8, 200  # pixels, of the contact sheet


@dataclass(frozen=True)
class Shown:
    """What a demo left: its exit code, its words, its folder and the store."""

    code: int
    text: str
    complaints: str
    folder: Path
    data_dir: Path

    def told(self, pattern: str) -> str:
        """The first group of a pattern that has to be in the text."""
        found = re.search(pattern, self.text)
        assert found, self.text + self.complaints
        return found[1]


@pytest.fixture(scope="module")
def demo() -> Iterator[Shown]:
    with tempfile.TemporaryDirectory(prefix="fhir-imaging-test-") as directory:
        folder, data_dir = Path(directory), Path(directory) / "store"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = ["--exit", "--data-dir", str(data_dir), "--set", f"web.port={port}", "--set", "engine.cache_gb=0.25"]
        run = subprocess.run(
            [*COMMAND, "demo", *options],
            cwd=folder,
            env={**ENVIRONMENT, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=180,
        )
        yield Shown(run.returncode, run.stdout, run.stderr, folder, data_dir)


def test_it_ends_well_and_says_nothing_on_standard_error(demo: Shown) -> None:
    assert (demo.code, demo.complaints) == (0, "")
    assert [demo.text.count(f"\n{step}. ") for step in range(2, 8)] == [1] * 6


def test_what_it_sent_is_stored_or_refused_with_a_reason(demo: Shown) -> None:
    sent = int(demo.told(r"sends (\d+) files"))
    stored = int(demo.told(r"(\d+) instances are stored"))
    refused = int(demo.told(r"(\d+) were refused"))
    reasons = [int(count) for count in re.findall(r"^ {5} *(\d+)  \S", demo.text, re.MULTILINE)]

    assert sent == len(list(WHEEL.rglob("*.dcm")))
    assert sum(reasons) == refused
    again = int(demo.told(r"(\d+) more files hold the same content"))
    assert stored + again + refused == sent
    assert stored > 30


def test_the_received_file_is_the_one_of_the_wheel(demo: Shown) -> None:
    name = demo.told(r"retrieves (\S+\.dcm) in four forms")
    told = demo.told(r"the file as it was sent: identical, SHA-256 ([0-9a-f]{16})")

    (path,) = WHEEL.rglob(name)
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith(told)


def test_imaging_conditions_are_shown_with_units(demo: Shown) -> None:
    assert re.search(r"Its imaging conditions, as a FHIR Observation:\n.*\d mm,", demo.text)


def test_an_order_is_done_and_says_what_was_applied(demo: Shown) -> None:
    assert int(demo.told(r"(\d+) algorithms are offered")) == len(list(algorithms))
    assert re.search(r"\n +[0-9a-f-]{36} +clahe\|\d+ +completed +━+ 100 %", demo.text)
    assert float(demo.told(r"([\d.]+) s from order to result")) < 120
    assert "clip_limit=" in demo.told(r"what was applied: (.*)")
    assert demo.told(r"(Provenance/[0-9a-f-]{36}) says it as well")


def test_before_and_after_are_shown_side_by_side_and_differ(demo: Shown) -> None:
    path = Path(demo.told(r"before and after: (\S+)"))

    assert path == (demo.folder / "demo-output/before-after.png").resolve()
    with Image.open(path) as image:
        sheet = np.asarray(image.convert("L")).astype(np.float64)
    before, after = sheet[:428, : sheet.shape[1] // 2], sheet[:428, sheet.shape[1] // 2 :]
    # Equalisation makes a dark picture brighter, and leaves the black around it black.
    assert before.max() > 100
    assert after[after > 20].mean() > 1.1 * before[before > 20].mean()


def test_the_contact_sheet_has_a_picture_with_a_caption_for_each_series(demo: Shown) -> None:
    series = int(demo.told(r"A contact sheet of (\d+) series"))

    path = demo.folder / "demo-output/contact-sheet.png"
    with Image.open(path) as image:
        image.load()
        kind = image.format
        sheet = np.asarray(image)

    assert kind == "PNG"
    cells = [
        sheet[top : top + CELL_HEIGHT - MARGIN, left : left + SIDE]
        for top in range(MARGIN, sheet.shape[0] - MARGIN, CELL_HEIGHT)
        for left in range(MARGIN, sheet.shape[1] - MARGIN, CELL_WIDTH)
    ]
    assert sum(len(np.unique(cell[:SIDE])) > 2 for cell in cells) == series
    assert sum(bool(cell[SIDE:].any()) for cell in cells) == series
    assert series > 10


def curl_lines(text: str) -> list[list[str]]:
    """The commands that the demo prints, as words, with the token in its place."""
    (token,) = re.findall(r"^export TOKEN=(\S+)$", text, re.MULTILINE)
    lines = re.findall(r"^curl (?:\\\n|.)+$", text, re.MULTILINE)
    return [shlex.split(line.replace("\\\n", " ").replace("$TOKEN", token)) for line in lines]


def fetched(words: list[str]) -> tuple[str, bytes]:
    """Do what curl would; return media type and body."""
    headers = dict(words[n + 1].split(": ", 1) for n, word in enumerate(words) if word == "-H")
    (url,) = [word for word in words if word.startswith("http")]
    assert {word for word in words if word.startswith("-")} <= {"-H", "-o"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
        return answer.headers.get_content_type(), answer.read()


def test_the_lines_that_it_prints_work_on_the_store_that_it_left(demo: Shown) -> None:
    port = demo.told(r"http://127\.0\.0\.1:(\d+)/fhir")
    lines = curl_lines(demo.text)

    with serving(demo.data_dir, "--port", port):
        answers = [fetched(words) for words in lines]

    assert [kind for kind, _ in answers] == [
        "application/fhir+json",
        "application/dicom+json",
        "application/dicom+json",
        "image/jpeg",
    ]
    bundle, studies, metadata = (orjson.loads(body) for _, body in answers[:3])
    assert bundle["entry"]
    assert len(studies) == 3
    assert len(metadata) == 1
    assert Image.open(BytesIO(answers[3][1])).size > (1, 1)


def test_nothing_of_it_runs_on(demo: Shown) -> None:
    running = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if os.access(path, os.R_OK) and str(demo.data_dir).encode() in read(path)
    ]

    assert running == []


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended meanwhile
        return b""
