"""Where the time of an ingest goes: CPU milliseconds an instance in each stage, alone, on one thread."""

import hashlib
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from rich.console import Console
from rich.table import Table

from imaging.conditions import conditions
from imaging.dataset import read
from imaging.dicom_json import dicom_json
from imaging.transcode import decode_frame, encode
from tests.benchmarks.images import ct_series

COUNT = 50


def run(folder: Path, count: int = COUNT) -> None:
    """Measure, and print a table."""
    files = [data for *_, data in ct_series(count)]
    received = [read(data) for data in files]
    encoded = [encode(each) for each in received]
    frames = [(each, b"".join(each.parts)[slice(*_span(each))]) for each in encoded]
    rows = {
        "parse and check (ours)": lambda: [read(data) for data in files],
        "parse (pydicom dcmread, for comparison)": lambda: [dcmread(DicomBytesIO(data)) for data in files],
        "SHA-256 of the file": lambda: [hashlib.sha256(data) for data in files],
        "DICOM JSON (ours)": lambda: [dicom_json(each) for each in received],
        "DICOM JSON (pydicom to_json_dict, for comparison)": lambda: [each.ds.to_json_dict() for each in received],
        "imaging conditions": lambda: [conditions(each.ds) for each in received],
        "compress the metadata": lambda: [zlib.compress(dicom_json(each), 1) for each in received],
        "encode, decode and compare, build the file": lambda: [encode(each) for each in received],
        "of which decode": lambda: [decode_frame(data, e.layout, e.transfer_syntax_uid) for e, data in frames],
    }
    table = Table(title=f"CPU time of {count} CT slices of {len(files[0]) / 1e3:.0f} kB, one thread")
    for column in ("stage", "ms an instance", "MB/s of received bytes"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, action in rows.items():
        seconds = _cpu(action) / count
        table.add_row(name, f"{seconds * 1e3:.2f}", f"{len(files[0]) / 1e6 / seconds:.0f}")
    Console(width=110).print(table)


def _span(encoded: object) -> tuple[int, int]:
    start, length = encoded.frames.ranges(0)[0]  # type: ignore[attr-defined]
    return start, start + length


def _cpu(action: Callable[[], object]) -> float:
    action()
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        action()
        best = min(best, time.process_time() - started)
    return best
