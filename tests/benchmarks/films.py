"""What a film costs: composing it beside decoding its images and writing its pixels; how busy an agent keeps a printer.

Pixels are written in two ways: raw, the least that writing can cost, and compressed, as printers here get them.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

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
)  # fmt: skip


@dataclass(frozen=True)
class Spent:
    """Seconds that passed, and seconds of processor time in all threads."""

    elapsed: float
    cpu: float


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
    works: dict[str, Callable[[], object]] = {
        "decode its images": lambda: [each.pixels() for each in slices],
        "write its pixels raw": lambda: _write(page, folder / "page.raw"),
        "write its pixels as PNG": lambda: Image.fromarray(page.samples).save(folder / "page.png", compress_level=3),
        "compose it, images decoded": lambda: _compose(slices),
    }
    spent: dict[str, list[Spent]] = {words: [] for words in works}
    for _ in range(rounds):
        for words, work in works.items():
            spent[words].append(_spent(work))
    medians = {
        words: Spent(statistics.median(each.elapsed for each in all_), statistics.median(each.cpu for each in all_))
        for words, all_ in spent.items()
    }
    console = Console(width=110)
    console.print(_ratios(medians, rounds))
    _print_busy(console, folder)


def _ratios(medians: dict[str, Spent], rounds: int) -> Table:
    table = Table(title=f"14 x 17 inch at 300 dpi of {SLICES} CT 512x512, median of {rounds} rounds")
    for column in ("what", "elapsed ms", "of decode + raw", "of decode + PNG", "CPU ms", "of decode + raw", "of + PNG"):
        table.add_column(column, justify="left" if column == "what" else "right")
    decode, raw, png, _ = medians.values()
    for words, each in medians.items():
        elapsed = [f"{each.elapsed / (decode.elapsed + base.elapsed):.2f}" for base in (raw, png)]
        cpu = [f"{each.cpu / (decode.cpu + base.cpu):.2f}" for base in (raw, png)]
        table.add_row(words, f"{each.elapsed * 1e3:.0f}", *elapsed, f"{each.cpu * 1e3:.0f}", *cpu)
    return table


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
    # Each film is of an order of its own, with a code that was not drawn before.
    sheets = replace(SHEETS, code=f"https://images.example.org/fhir/Task/{uuid4()}")
    (page,) = pages(sheets, [each.picture for each in slices])
    return page


def _write(page: Page, path: Path) -> None:
    with path.open("wb") as file:
        file.write(page.pixels.data)
        file.flush()
        os.fsync(file.fileno())


def _spent(work: Callable[[], object]) -> Spent:
    elapsed, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - elapsed, time.process_time() - cpu)
