"""What a film costs: composing it beside decoding its images and writing its pixels; how busy an agent keeps a printer.

Pixels are written in two ways: raw, the least that writing can cost, and compressed, as printers here get them.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from PIL import Image
from rich.console import Console
from rich.table import Table

from fhir_server.delivery import value
from imaging.conversion import decode_frame
from imaging.dataset import read
from imaging.dicom_json import dicom_json
from imaging.film import Page, Picture, Sheets, pages
from imaging.pictures import Look, picture_of
from imaging.transcode import Encoded, encode
from tests.benchmarks.images import ct_series
from tests.support.agents import agent, site
from tests.support.presses import SLOW_S, SPANS, printed
from tests.support.serving import serving, wait_for

SLICES = 20
ORDERS = 100
ROUNDS = 7
SHEETS = Sheets(
    film_size="14INX17IN", display_format="STANDARD\\4,5", dots_per_inch=300, banner=("Doe, Jane   4711", "CT chest"),
    code="https://images.example.org/fhir/Task/4b0f1b52-0000-4000-8000-000000000000",
)  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A slice as the archive keeps it."""

    encoded: Encoded
    file: bytes
    document: dict[str, Any]

    def pixels(self) -> Any:
        encoded = self.encoded
        codestream = encoded.frames.read(self.file, 0)
        return decode_frame(codestream, encoded.layout, encoded.transfer_syntax_uid, trusted=True).pixels

    def picture(self) -> Picture:
        return picture_of(self.pixels(), self.document, 1, Look(caption=("Se 2  Im 21  C 40 W 400",)))


def run(folder: Path, rounds: int = ROUNDS) -> None:
    """Compose 20 CT slices on a film, in turn with decoding them and writing a page, and print the ratio."""
    slices = [_stored(data) for *_, data in ct_series(SLICES, tag="film")]
    page = _compose(slices)
    spent: dict[str, list[float]] = {"decode": [], "write": [], "png": [], "compose": []}
    for _ in range(rounds):
        spent["decode"].append(_timed(lambda: [each.pixels() for each in slices]))
        spent["write"].append(_timed(lambda: _write(page, folder / "page.raw")))
        spent["png"].append(_timed(lambda: Image.fromarray(page.samples).save(folder / "page.png", compress_level=3)))
        spent["compose"].append(_timed(lambda: _compose(slices)))
    medians = {name: statistics.median(each) for name, each in spent.items()}
    table = Table(title=f"14 x 17 inch at 300 dpi of {SLICES} CT 512x512, median of {rounds} rounds")
    for column in ("what", "ms", "of decoding and writing raw", "of decoding and writing PNG"):
        table.add_column(column, justify="left" if column == "what" else "right")
    bases = [medians["decode"] + medians[way] for way in ("write", "png")]
    rows = {
        "decode its images": "decode", "write its pixels raw": "write", "write its pixels as PNG": "png",
        "compose it, images decoded": "compose",
    }  # fmt: skip
    for words, name in rows.items():
        table.add_row(words, f"{medians[name] * 1e3:.0f}", *(f"{medians[name] / base:.2f}" for base in bases))
    console = Console(width=110)
    console.print(table)
    _print_busy(console, folder)


def _print_busy(console: Console, folder: Path) -> None:
    """Have an agent print queued orders, and print which part of the time its printer was at work."""
    films = folder / "films"
    with serving(folder / "data") as served:
        at = site(served, films)
        with agent(at, "--poll", 1, kind="slow"):
            wait_for(lambda: "property" in at.device, 60)
            study = at.store(4)
            made = [at.order(study, value("layout", "valueString", "STANDARD\\2,2")) for _ in range(ORDERS)]
            wait_for(lambda: len(printed(films)) == ORDERS, 60 + 3 * ORDERS * SLOW_S)
        came_out = printed(films)
    spans = sorted(tuple(map(float, line.split())) for line in (films.parent / SPANS).read_text().splitlines())
    whole = spans[-1][1] - spans[0][0]
    busy = sum(end - start for start, end in spans)
    table = Table(title=f"an agent with {ORDERS} queued orders; the printer takes {SLOW_S:g} s for each")
    for column in ("orders", "printed once", "s from first to last", "printer at work"):
        table.add_column(column, justify="right")
    once = sum(came_out.count(each) == 1 for each in made)
    table.add_row(str(len(made)), str(once), f"{whole:.1f}", f"{busy / whole:.0%}")
    console.print(table)


def _stored(data: bytes) -> Stored:
    encoded = encode(read(data))
    file = b"".join(encoded.parts)
    return Stored(encoded, file, orjson.loads(dicom_json(read(file))))


def _compose(slices: list[Stored]) -> Page:
    (page,) = pages(SHEETS, [each.picture for each in slices])
    return page


def _write(page: Page, path: Path) -> None:
    with path.open("wb") as file:
        file.write(page.pixels.data)
        file.flush()
        os.fsync(file.fileno())


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
