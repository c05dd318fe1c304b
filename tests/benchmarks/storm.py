"""A storm of sign-ins while clients fetch frames: what of the images' pace is left.

Fifty clients from as many addresses try to sign in as fast as they are answered, with right passwords, wrong ones, and
as nobody: people, who wait as they are told to, and programs, who do not. Beside them a few clients fetch frames, one
after the other.
"""

import http.client
import multiprocessing
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from pydicom import dcmread
from rich.console import Console
from rich.table import Table

from tests.benchmarks import servers
from tests.benchmarks.client import Target, get, stow
from tests.benchmarks.images import write_series

SLICES = 24
READERS = 4
STRANGERS = 50
PEOPLE = 5
PASSWORD = "correct horse battery"
ROUNDS = 3
SECONDS = 8  # of each measurement
STORED = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
QUIET = "quiet"
STORMS = {"people": True, "programs": False}  # whether they wait as they are told to
OUTCOMES = {303: "signed in", 401: "wrong", 429: "too often (429)", 503: "told to try again (503)"}


def run(folder: Path, seconds: int = SECONDS) -> None:
    """Measure in turn without and with a storm, and print tables."""
    paths = write_series(folder / "ct", SLICES, tag="storm")
    with servers.ours(folder) as target:
        _register(folder)
        stow(target, paths)
        frames = [_frame(path) for path in paths]
        seen: dict[str, list[float]] = {name: [] for name in (QUIET, *STORMS)}
        answers = {name: Counter[str]() for name in STORMS}
        for _ in range(ROUNDS):
            seen[QUIET] += _fetched(target, frames, seconds)
            for name, heeds in STORMS.items():
                with _storm(target, answers[name], heeds):
                    seen[name] += _fetched(target, frames, seconds)
    console = Console(width=110)
    console.print(_table(seen, seconds * ROUNDS))
    told = Table(title=f"how {STRANGERS} clients who sign in all the time were answered, in a second")
    told.add_column("answer")
    for name in STORMS:
        told.add_column(name, justify="right")
    for answer in sorted(set().union(*answers.values())):
        told.add_row(answer, *(f"{answers[name][answer] / seconds / ROUNDS:.1f}" for name in STORMS))
    console.print(told)


def _register(folder: Path) -> None:
    secret = folder / "password"
    secret.write_text(PASSWORD)
    for number in range(PEOPLE):
        words = ["person", "add", f"person{number}", "bench", "--role", "practitioner", "--password", str(secret)]
        command = [sys.executable, "-m", "fhir_server.cli", *words, "--data-dir", str(folder / "store")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _frame(path: Path) -> str:
    ds = dcmread(path, stop_before_pixels=True)
    series = f"/studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}"
    return f"{series}/instances/{ds.SOPInstanceUID}/frames/1"


def _fetched(target: Target, frames: list[str], seconds: float) -> list[float]:
    """Return how many seconds each frame took that `READERS` clients fetched within the time."""
    context = multiprocessing.get_context("fork")
    taken = context.Queue()
    barrier = context.Barrier(READERS)

    def fetch(first: int) -> None:
        mine = []
        with closing(target.connect()) as connection:
            get(connection, target, frames[first], STORED)
            barrier.wait()
            end = time.perf_counter() + seconds
            while (begun := time.perf_counter()) < end:
                get(connection, target, frames[(first + len(mine)) % len(frames)], STORED)
                mine.append(time.perf_counter() - begun)
        taken.put(mine)

    readers = [context.Process(target=fetch, args=(number,)) for number in range(READERS)]
    for reader in readers:
        reader.start()
    found = [each for _ in readers for each in taken.get()]
    for reader in readers:
        reader.join()
    return found


@contextmanager
def _storm(target: Target, answers: Counter[str], heeds: bool) -> Iterator[None]:
    context = multiprocessing.get_context("fork")
    is_over, counted = context.Event(), context.Queue()
    storm = context.Process(target=_rage, args=(target, heeds, is_over, counted))
    storm.start()
    try:
        yield
    finally:
        is_over.set()
        answers.update(counted.get())
        storm.join()


def _rage(target: Target, heeds: bool, is_over: Any, counted: Any) -> None:
    counts: Counter[str] = Counter()
    strangers = [(target, number, heeds, is_over, counts) for number in range(STRANGERS)]
    threads = [threading.Thread(target=_stranger, args=each) for each in strangers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted.put(counts)


def _stranger(target: Target, number: int, heeds: bool, is_over: Any, counts: "Counter[str]") -> None:
    """Try to sign in until the end, from an address of one's own."""
    # The whole of 127.0.0.0/8 is the loopback of Linux.
    connection = http.client.HTTPConnection("127.0.0.1", target.port, 60, (f"127.0.1.{number + 1}", 0))
    right = {"login": f"person{number % PEOPLE}", "password": PASSWORD}
    wrong = [right, {"login": f"nobody{number}", "password": PASSWORD}, {**right, "password": "wrong by a word or two"}]
    with closing(connection):
        form, cookie = _form(connection)
        while not is_over.is_set():
            # Wrong ones mostly for nobody: a person's login is held after a few, and its password not looked at.
            given = wrong[2] if number == 0 else wrong[number % 2]
            headers = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": cookie}
            connection.request("POST", "/auth/sign-in", urlencode({**form, **given}), headers)
            response = connection.getresponse()
            response.read()
            counts[OUTCOMES.get(response.status, str(response.status))] += 1
            if heeds and response.headers["Retry-After"]:
                is_over.wait(int(response.headers["Retry-After"]))


def _form(connection: http.client.HTTPConnection) -> tuple[dict[str, str], str]:
    """Return what the form of the page holds, and the cookie that it belongs to."""
    connection.request("GET", "/auth/sign-in")
    response = connection.getresponse()
    page, cookie = response.read().decode(), response.headers["Set-Cookie"].partition(";")[0]
    found = re.search(r'name="csrf_token" value="([^"]+)"', page)
    if not found:
        raise RuntimeError("the page has no form")
    return {"csrf_token": unescape(found[1]), "next": "/auth/"}, cookie


def _table(seen: dict[str, list[float]], seconds: float) -> Table:
    table = Table(title=f"frames fetched by {READERS} clients, without and with {STRANGERS} clients who sign in")
    table.add_column("what")
    for name in seen:
        table.add_column(name, justify="right")
    for name in STORMS:
        table.add_column(f"{name} of quiet", justify="right")
    rows: dict[str, Callable[[list[float]], float]] = {
        "frames in a second": lambda each: len(each) / seconds,
        "ms, median": lambda each: _part(each, 0.5),
        "ms, 95 of 100": lambda each: _part(each, 0.95),
        "ms, 99 of 100": lambda each: _part(each, 0.99),
    }
    for what, figure in rows.items():
        found = {name: figure(each) for name, each in seen.items()}
        ratios = [f"{found[name] / found[QUIET]:.2f}" for name in STORMS]
        table.add_row(what, *(f"{each:.1f}" for each in found.values()), *ratios)
    return table


def _part(seconds: list[float], part: float) -> float:
    return sorted(seconds)[int(len(seconds) * part)] * 1e3
