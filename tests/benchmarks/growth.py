"""Whether storing costs the same in a full store as in an empty one: cost of an instance as the store grows."""

import io
import time
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from rich.console import Console
from rich.table import Table

from tests.benchmarks import servers
from tests.benchmarks.client import BOUNDARY, Target, body_of

TOTAL = 100_000
WINDOW = 1_000
A_REQUEST = 100
A_STUDY = 200


def run(folder: Path, total: int = TOTAL) -> None:
    """Store `total` small MR images, 200 a study, and print the median wall time an instance in growing stores."""
    ds = dcmread(str(get_testdata_file("MR_small.dcm")))
    template = ds.pixel_array.copy()
    random = np.random.default_rng(7)
    windows: list[float] = []
    with servers.ours(folder) as target:
        connection = target.connect()
        for start in range(0, total, WINDOW):
            bodies = [_body(ds, template, random, start + n) for n in range(0, WINDOW, A_REQUEST)]
            started = time.perf_counter()
            for body in bodies:
                _post(connection, target, body)
            windows.append((time.perf_counter() - started) / WINDOW * 1e3)
    table = Table(title="Wall time of an instance as the store grows (median of the windows in each tenth)")
    for column in ("instances stored", "ms an instance", "against the first tenth"):
        table.add_column(column, justify="right")
    size = max(1, len(windows) // 10)
    tenths = [sorted(windows[n : n + size])[size // 2] for n in range(0, len(windows), size)]
    for n, each in enumerate(tenths, 1):
        table.add_row(f"{n * size * WINDOW:,}", f"{each:.2f}", f"{each / tenths[0]:.2f}")
    Console(width=110).print(table)


def _body(ds: object, template: np.ndarray, random: np.random.Generator, first: int) -> bytes:
    files = []
    for n in range(first, first + A_REQUEST):
        ds.StudyInstanceUID = generate_uid(entropy_srcs=["growth", str(n // A_STUDY)])  # type: ignore[attr-defined]
        ds.SeriesInstanceUID = generate_uid(entropy_srcs=["growth", "series", str(n // A_STUDY)])  # type: ignore[attr-defined]
        ds.SOPInstanceUID = generate_uid(entropy_srcs=["growth", "instance", str(n)])  # type: ignore[attr-defined]
        ds.PatientID = f"GROWTH{n // A_STUDY % 5000}"  # type: ignore[attr-defined]
        ds.InstanceNumber = n % A_STUDY + 1  # type: ignore[attr-defined]
        ds.PixelData = (template + random.integers(0, 4, template.shape, dtype=template.dtype)).tobytes()  # type: ignore[attr-defined]
        out = io.BytesIO()
        ds.save_as(out)  # type: ignore[attr-defined]
        files.append(out.getvalue())
    return body_of(files)


def _post(connection: object, target: Target, body: bytes) -> None:
    kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
    headers = target.headers(Content_Type=kind, Accept="application/dicom+json")
    connection.request("POST", f"{target.base}/studies", body, headers)  # type: ignore[attr-defined]
    response = connection.getresponse()  # type: ignore[attr-defined]
    answer = response.read()
    if response.status != 200:
        raise RuntimeError(f"answered {response.status}: {answer[:300]!r}")
