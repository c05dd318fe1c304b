"""What an order of processing costs beyond decoding and computing: MPR and MIP of a CT of 500 slices of 512 x 512.

Each figure is of a process of its own, so that its memory is its own as well. The bare one has all codestreams in
memory, decodes them, and calls the algorithm, on one processor. The order reads, decodes, computes, encodes, verifies
and stores, on as many as there are.
"""

import io
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pymongo import MongoClient
from rich.console import Console
from rich.table import Table

from fhir_server import config
from fhir_server.access.contracts import Right
from fhir_server.app import Server, assemble
from fhir_server.delivery import value
from fhir_server.model.task import name_of
from fhir_server.work.kinds import handlers
from imaging.algorithms import algorithms
from imaging.archive import Stored
from imaging.dataset_from_json import dataset_from_json
from imaging.geometry import Volume
from imaging.transcode import decode_frame
from imaging.volume import volume_from
from tests.benchmarks.images import ct_series
from tests.support.engine import running_engine

COUNT = 500
ROUNDS = 3
SPACING_MM = (0.8, 0.7, 0.7)
NAME = "processing"
WORK: dict[str, tuple[str, dict[str, Any]]] = {
    "coronal MPR, 0.7 mm": ("mpr", {"plane": "coronal", "spacing_mm": 0.7, "step_mm": 0.7}),
    "oblique MPR, 1 mm": (
        "mpr",
        {"plane": "oblique", "row_direction": [0.8, 0.6, 0.0], "column_direction": [0.0, 0.0, -1.0]},
    ),
    "MIP, slabs of 10 mm": ("slab", {"thickness_mm": 10, "step_mm": 10}),
}


def run(folder: Path, count: int = COUNT, rounds: int = ROUNDS) -> None:
    """Measure, and print a table."""
    table = Table(title=f"Processing of {count} CT slices of 512 x 512, median of {rounds} rounds")
    for column in ("what", "bare, CPU s", "order, CPU s", "ratio", "bare, s", "order, s", "ratio", "MB of order"):
        table.add_column(column, justify="left" if column == "what" else "right")
    with running_engine(folder) as uri, MongoClient[dict[str, Any]](uri, tz_aware=True) as client:
        server = _server(client)
        _fill(server, count)
        server.archive.close()
        for what in WORK:
            bare, order = (
                {name: float(np.median([each[name] for each in found])) for name in found[0]}
                for found in ([_measured(uri, how, what, n) for n in range(rounds)] for how in ("bare", "order"))
            )
            ratios = {name: f"{order[name] / bare[name]:.2f}" for name in ("cpu_s", "wall_s")}
            table.add_row(
                what, f"{bare['cpu_s']:.1f}", f"{order['cpu_s']:.1f}", ratios["cpu_s"],
                f"{bare['wall_s']:.1f}", f"{order['wall_s']:.1f}", ratios["wall_s"], f"{order['peak_mb']:.0f}",
            )  # fmt: skip
    Console(width=120).print(table)


def files(count: int) -> Iterator[bytes]:
    """Yield the slices of a CT, `SPACING_MM` apart."""
    for n, (_, _, _, data) in enumerate(ct_series(count)):
        ds = dcmread(io.BytesIO(data))
        ds.ImageOrientationPatient, ds.PixelSpacing = [1, 0, 0, 0, 1, 0], list(SPACING_MM[1:])
        ds.ImagePositionPatient, ds.SliceThickness = [0, 0, SPACING_MM[0] * n], SPACING_MM[0]
        ds.FrameOfReferenceUID = ds.StudyInstanceUID
        out = io.BytesIO()
        ds.save_as(out, enforce_file_format=True)
        yield out.getvalue()


def _server(client: MongoClient[dict[str, Any]]) -> Server:
    return assemble(config.load({"web.base_url": "http://bench.test"}, environment={}), client[NAME])


def _fill(server: Server, count: int) -> None:
    server.principals.add(NAME, list(Right))
    principal = server.principals.authenticate(server.principals.mint(NAME))
    stored = [each for each in server.studies.ingest(files(count), principal) if isinstance(each, Stored)]
    assert len(stored) == count
    server.studies.refresh(stored[0].summary.study_uid)


def _measured(uri: str, how: str, what: str, number: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.processing", uri, how, what, str(number)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _bare(server: Server, algorithm: str, values: dict[str, Any]) -> tuple[float, float]:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    found = _instances(server)
    by_uid = {uid: dataset_from_json(text) for (_, _, uid), text in server.archive.metadata(found[0].study_uid)}
    datasets = [by_uid[each.sop_uid] for each in found]
    # Where everything lies in memory, before the clock starts.
    stored = [(server.archive.frame(each, 1), each.layout) for each in found]
    ready = algorithms.get(algorithm).build(values)
    affine = volume_from(datasets[:2], [np.zeros((512, 512), np.int16)] * 2).affine
    started, cpu = time.perf_counter(), time.process_time()
    array = np.empty((len(found), 512, 512), np.float32)
    for n, (each, (data, layout)) in enumerate(zip(found, stored, strict=True)):
        array[n] = decode_frame(data, layout, each.stored_transfer_syntax_uid, trusted=True).pixels
    ready(Volume(array, affine))
    return time.perf_counter() - started, time.process_time() - cpu


def _ordered(server: Server, algorithm: str, values: dict[str, Any], number: int) -> tuple[float, float]:
    inputs = [
        value("algorithm", "valueString", algorithm),
        value("series", "valueId", _instances(server)[0].series_uid),
    ]
    for name, given in values.items():
        kind = "valueCode" if isinstance(given, str) else "valueDecimal"
        inputs += [value(name, kind, each) for each in (given if isinstance(given, list) else [given])]
    organization = next(each.organization for each in server.principals.subscribers())
    task = {
        "resourceType": "Task", "id": f"{algorithm}-{number}-{abs(hash(str(values)))}", "status": "in-progress",
        "requester": {"reference": organization}, "authoredOn": "2026-01-01T00:00:00Z", "input": inputs,
    }  # fmt: skip
    one = [each for each in inputs if each["type"]["coding"][0]["code"] == "algorithm"]
    slice_ = value("instance", "valueId", _instances(server)[0].sop_uid)
    first = task | {"id": f"{task['id']}-0", "input": [*one, slice_]}
    for each in (first, task):
        server.own.update(each, create=True)
    # A child process is kept for many orders: the first one reads definitions and loads libraries.
    _drop(server, handlers.get("process").run(first, server, lambda _: None))
    started, cpu = time.perf_counter(), time.process_time()
    done = handlers.get("process").run(task, server, lambda _: None)
    took = time.perf_counter() - started, time.process_time() - cpu
    _drop(server, done)
    return took


def _drop(server: Server, done: Any) -> None:
    """Delete what an order made, so that each finds the study as the first one did."""
    study = _instances(server)[0].study_uid
    for output in done.outputs:
        if name_of(output) == "series":
            server.archive.delete(study, output["valueId"])
    server.studies.project(study)


def _instances(server: Server) -> list[Any]:
    study = server.database["studies"].find_one({}, {"_id": 1})
    assert study is not None
    return [each for each in server.archive.instances(study["_id"])][:COUNT]


def main(uri: str, how: str, what: str, number: str) -> None:
    """Print the figures of one process as JSON."""
    algorithm, values = WORK[what]
    with MongoClient[dict[str, Any]](uri, tz_aware=True) as client:
        server = _server(client)
        before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        wall, cpu = (
            _bare(server, algorithm, values) if how == "bare" else _ordered(server, algorithm, values, int(number))
        )
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        server.archive.close()
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "peak_mb": peak_mb, "idle_mb": before_mb}))


if __name__ == "__main__":
    main(*sys.argv[1:])
