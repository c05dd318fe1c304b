"""What TLS costs: the same store by HTTP and by HTTPS, in turn, so that whatever else the machine does hits both.

A second web server, over TLS, works beside the first on the same database. Ratios are of medians, the plain one first.
"""

import contextlib
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import trustme
from pydicom import dcmread
from rich.console import Console
from rich.table import Table

from tests.benchmarks import servers
from tests.benchmarks.client import Target, get, stow
from tests.benchmarks.images import write_series
from tests.support.certificates import identity

SLICES = 100
RUNS = 9
STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
NATIVE = 'multipart/related; type="application/dicom"'


def run(folder: Path, slices: int = SLICES) -> None:
    """Measure, and print a table."""
    paths = write_series(folder / "ct", slices, tag="tls")
    study = dcmread(paths[0], stop_before_pixels=True).StudyInstanceUID
    with servers.ours(folder) as plain, _over_tls(folder, plain) as secure:
        stow(plain, paths)
        table = Table(title=f"{slices} CT slices by HTTP and by HTTPS, medians of {RUNS}, in turn")
        for column in ("what", "HTTP", "HTTPS", "HTTPS / HTTP"):
            table.add_column(column, justify="left" if column == "what" else "right")
        for name, act in _acts(study, paths).items():
            seconds = _in_turn(act, plain, secure)
            table.add_row(name, *(f"{each * 1e3:.1f} ms" for each in seconds), f"{seconds[1] / seconds[0]:.2f}")
        Console(width=110).print(table)


def _acts(study: str, paths: list[Path]) -> dict[str, Callable[[Target], object]]:
    def asked(path: str, accept: str) -> Callable[[Target], object]:
        def ask(target: Target) -> None:
            with closing(target.connect()) as connection:
                get(connection, target, path, accept)

        return ask

    return {
        "the study out, as stored": asked(f"/studies/{study}", STORED),
        "the study out, decoded": asked(f"/studies/{study}", NATIVE),
        "the same study in again": lambda target: stow(target, paths),
        "a new connection and one small answer": asked(f"/studies?StudyInstanceUID={study}", "application/dicom+json"),
    }


def _in_turn(act: Callable[[Target], object], *targets: Target) -> list[float]:
    seconds: dict[str, list[float]] = {each.name: [] for each in targets}
    for _ in range(RUNS + 1):
        for target in targets:
            begun = time.perf_counter()
            act(target)
            seconds[target.name].append(time.perf_counter() - begun)
    return [statistics.median(each[1:]) for each in seconds.values()]  # the first warms up


@contextlib.contextmanager
def _over_tls(folder: Path, plain: Target) -> Iterator[Target]:
    files = identity(folder / "certificates", trustme.CA())
    context = ssl.create_default_context(cafile=str(files / "ca.pem"))
    target = replace(plain, name="over TLS", port=servers.free_port(), tls=context)
    given = {"web.tls_certificate": files / "certificate.pem", "web.tls_key": files / "key.pem"}
    words = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "fhir_server.cli", "web", "--port", str(target.port), *words]
    with (folder / "tls.log").open("wb") as log:
        server = subprocess.Popen([*command, "--data-dir", str(folder / "store")], stdout=log, stderr=log)
    try:
        servers.wait(target, "/health/ready")
        yield target
    finally:
        server.terminate()
        server.wait(60)
