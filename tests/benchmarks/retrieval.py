"""Retrieving: the first byte of a large study, many clients at once, pictures of large images.

The large study has small images, since only their number matters for its first byte. Rates are of the bytes sent, over
all clients; the limit of the machine is the best rate of fewer ones.
"""

import multiprocessing
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.data import get_testdata_file
from rich.console import Console
from rich.table import Table

from tests.benchmarks import servers
from tests.benchmarks.client import Target, get, stow, stow_together, timed
from tests.benchmarks.images import write_series

COUNT = 5_000
SLICES = 120  # of the series that clients retrieve
CLIENTS = (1, 2, 4, 8)
STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
NATIVE = 'multipart/related; type="application/dicom"'
LARGE = (3072, 2614)


def run(folder: Path, count: int = COUNT) -> None:
    """Measure, and print tables."""
    console = Console(width=110)
    with servers.ours(folder) as target:
        console.print(_first_bytes(folder, target, count))
        console.print(_rates(folder, target))
        console.print(_pictures(folder, target))


def _first_bytes(folder: Path, target: Target, count: int) -> Table:
    study = "1.2.826.0.1.3680043.8.498.5000"
    stow_together(target, _small(folder / "small", study, count), 2)
    _settle(target, study, count)
    table = Table(title=f"time to the first byte of a study of {count} instances, median of 15")
    table.add_column("what")
    table.add_column("ms", justify="right")
    for name, accept in (
        ("as stored", STORED),
        ("native", NATIVE),
        ("ZIP, as stored", "application/zip; transfer-syntax=*"),
    ):
        table.add_row(
            name, f"{timed(lambda accept=accept: _first_byte(target, f'/studies/{study}', accept), 15) * 1e3:.1f}"
        )
    return table


def _small(folder: Path, study: str, count: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    ds = dcmread(str(get_testdata_file("CT_small.dcm")))
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, f"{study}.1"
    paths = []
    for number in range(1, count + 1):
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{study}.1.{number}"
        ds.InstanceNumber = number
        paths.append(folder / f"{number:06d}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


def _settle(target: Target, study: str, count: int) -> None:
    """Wait until the study's summary tells of all its instances, as it does soon after the last has come."""
    wanted = f'"00201208":{{"vr":"IS","Value":[{count}]}}'.encode()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with closing(target.connect()) as connection:
            path = f"{target.base}/studies?StudyInstanceUID={study}"
            connection.request("GET", path, headers=target.headers(Accept="application/dicom+json"))
            if wanted in connection.getresponse().read().replace(b" ", b""):
                return
        time.sleep(0.5)


def _first_byte(target: Target, path: str, accept: str) -> None:
    with closing(target.connect()) as connection:
        connection.request("GET", f"{target.base}{path}", headers=target.headers(Accept=accept))
        response = connection.getresponse()
        if response.status != 200 or not response.read(1):
            raise RuntimeError(f"{target.name} answered {response.status}")


def _rates(folder: Path, target: Target) -> Table:
    paths = write_series(folder / "ct", SLICES, tag="retrieval")
    stow(target, paths)
    study = dcmread(paths[0], stop_before_pixels=True).StudyInstanceUID
    table = Table(title=f"a study of {SLICES} CT slices retrieved by clients at once, MB/s of all together")
    for column in (
        "as",
        *(f"{clients} client{'s' if clients > 1 else ''}" for clients in CLIENTS),
        "8 of the best of fewer",
    ):
        table.add_column(column, justify="left" if column == "as" else "right")
    for name, accept in (("stored", STORED), ("native", NATIVE)):
        rates = [_rate(target, f"/studies/{study}", accept, clients) for clients in CLIENTS]
        part = rates[-1] / max(rates[:-1])
        table.add_row(name, *(f"{rate / 1e6:.0f}" for rate in rates), f"{part:.0%}")
    return table


def _rate(target: Target, path: str, accept: str, clients: int, rounds: int = 4) -> float:
    context = multiprocessing.get_context("fork")
    sizes = context.Queue()
    barrier = context.Barrier(clients + 1)

    def fetch() -> None:
        with closing(target.connect()) as connection:
            get(connection, target, path, accept)  # warms up
            barrier.wait()
            sizes.put(sum(get(connection, target, path, accept) for _ in range(rounds)))

    processes = [context.Process(target=fetch) for _ in range(clients)]
    for process in processes:
        process.start()
    barrier.wait()
    started = time.perf_counter()
    total = sum(sizes.get() for _ in processes)
    seconds = time.perf_counter() - started
    for process in processes:
        process.join()
    return total / seconds


def _pictures(folder: Path, target: Target) -> Table:
    """Time pictures of a large image: a thumbnail decodes a part of it only."""
    path = folder / "large.dcm"
    ds = dcmread(str(get_testdata_file("CT_small.dcm")))
    random = np.random.default_rng(20260101)
    ramp = np.add.outer(np.arange(LARGE[0]), np.arange(LARGE[1])) % 3000
    ds.Rows, ds.Columns, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = *LARGE, 12, 11, 0
    ds.PixelData = (ramp + random.integers(0, 64, LARGE)).astype("<u2").tobytes()
    ds.StudyInstanceUID = ds.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.3072"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.3072.1"
    ds.save_as(path, enforce_file_format=True)
    stow(target, [path])
    address = f"/studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"
    with closing(target.connect()) as connection:

        def ask(more: str, accept: str) -> Callable[[], int]:
            return lambda: get(connection, target, address + more, accept)

        rows = {
            "decoded whole (one frame, native)": ask("/frames/1", "application/octet-stream"),
            "rendered whole, JPEG": ask("/rendered", "image/jpeg"),
            "rendered to 1024 x 1024": ask("/rendered?viewport=1024,1024", "image/jpeg"),
            "thumbnail": ask("/thumbnail", "image/jpeg"),
        }
        seconds = {name: timed(action, 15) for name, action in rows.items()}
    table = Table(title=f"pictures of an image of {LARGE[0]} x {LARGE[1]} pixels, 12 bit; medians")
    for column in ("what", "ms", "faster than decoding all of it"):
        table.add_column(column, justify="left" if column == "what" else "right")
    whole = next(iter(seconds.values()))
    for name, each in seconds.items():
        table.add_row(name, f"{each * 1e3:.1f}", f"{whole / each:.1f}x")
    return table
