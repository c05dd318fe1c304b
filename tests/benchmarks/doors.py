"""The doors: the same requests to this server and to Orthanc, as received and with JPEG 2000; medians and ratios."""

import http.client
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks import servers
from tests.benchmarks.client import Target, get, stow_together, timed
from tests.benchmarks.images import ct_series, write_series

COUNT = 500
CLIENTS = (1, 4)
ATTEMPTS = 2  # the peer has been seen to crash under concurrent transcoding; a fresh one gets a second chance
NATIVE = "1.2.840.10008.1.2.1"
JSON = "application/dicom+json"
FAILED = (OSError, RuntimeError, http.client.HTTPException)

Paths = dict[int, list[Path]]  # files by the number of clients that send them


@dataclass
class Figures:
    """Seconds (wall) by name of what was done, and what went wrong."""

    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def time(self, name: str, action: Callable[[], object], runs: int = 5) -> None:
        try:
            self.seconds[name] = timed(action, runs)
        except FAILED as error:
            self.notes.append(f"{name}: {type(error).__name__}: {error}")


def run(folder: Path, count: int = COUNT) -> None:
    """Measure, and print a table: how many times faster this server is than the peer."""
    paths = {clients: write_series(folder / f"ct{clients}", count, tag=f"clients-{clients}") for clients in CLIENTS}
    megabytes = sum(path.stat().st_size for path in paths[1]) / 1e6
    mine = Figures()
    with servers.ours(folder) as target:
        for clients in CLIENTS:
            mine.seconds[_ingest_label(clients)] = stow_together(target, paths[clients], clients)
        _ask(target, count, mine)
    peers = [_peer(folder, paths, count, transcode=transcode) for transcode in (False, True)]
    _print(mine, peers, megabytes, count)


def _peer(folder: Path, paths: Paths, count: int, *, transcode: bool) -> Figures:
    figures = Figures()
    if not servers.orthanc_program():
        figures.notes.append("Orthanc is not installed")
        return figures
    for clients, files in paths.items():
        for attempt in range(1, ATTEMPTS + 1):
            place = folder / f"peer-{clients}-{transcode}-{attempt}"
            try:
                with servers.orthanc(place, transcode=transcode) as target:
                    figures.seconds[_ingest_label(clients)] = stow_together(target, files, clients)
                    if clients == 1:
                        _ask(target, count, figures)
                break
            except FAILED as error:
                figures.notes.append(f"{_ingest_label(clients)}: {error} (attempt {attempt})")
    return figures


def _ingest_label(clients: int) -> str:
    return f"ingest, {clients} client{'s' if clients > 1 else ''}"


def _ask(target: Target, count: int, figures: Figures) -> None:
    """Time the requests. Those for one image ask for another one each time, as a viewer does, so no cache helps."""
    instances = [(study, series, sop) for study, series, sop, _ in ct_series(count, tag="clients-1")]
    study, series, _ = instances[0]
    of_study, of_series = f"/studies/{study}", f"/studies/{study}/series/{series}"
    connection = target.connect()

    def ask(path: str, accept: str) -> Callable[[], int]:
        return lambda: get(connection, target, path, accept)

    def ask_each(path: str, accept: str) -> Callable[[], int]:
        sops = itertools.cycle(sop for *_, sop in instances)
        return lambda: get(connection, target, f"{of_series}/instances/{next(sops)}{path}", accept)

    found = json.loads(_body(target, f"{of_series}/instances?limit={count}", JSON))
    if len(found) != count:
        raise RuntimeError(f"{target.name} found {len(found)} of {count} instances")
    figures.time("series metadata", ask(f"{of_series}/metadata", JSON))
    figures.time("instance QIDO", ask(f"{of_series}/instances?limit={count}", JSON))
    figures.time("one frame, stored", ask_each("/frames/1", _related("application/octet-stream", "*")), 200)
    figures.time("one frame, native", ask_each("/frames/1", _related("application/octet-stream", NATIVE)), 100)
    figures.time("one instance, native", ask_each("", _related("application/dicom", NATIVE)), 100)
    figures.time("rendered", ask_each("/rendered", "image/jpeg"), 100)
    figures.time("study out, stored", ask(of_study, _related("application/dicom", "*")), 3)
    figures.time("study out, native", ask(of_study, _related("application/dicom", NATIVE)), 3)


def _related(kind: str, transfer_syntax: str) -> str:
    return f'multipart/related; type="{kind}"; transfer-syntax={transfer_syntax}'


def _body(target: Target, path: str, accept: str) -> bytes:
    connection = target.connect()
    connection.request("GET", f"{target.base}{path}", headers=target.headers(Accept=accept))
    return connection.getresponse().read()


def _print(mine: Figures, peers: list[Figures], megabytes: float, count: int) -> None:
    title = f"{count} CT 512x512x16, {megabytes:.0f} MB as received; wall times, medians; rates in received MB"
    table = Table(title=title)
    for column in ("what", "this server", "peer, as received", "ratio", "peer, JPEG 2000", "ratio"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, seconds in mine.seconds.items():
        row = [name, _shown(name, seconds, megabytes)]
        for peer in peers:
            theirs = peer.seconds.get(name)
            row += [_shown(name, theirs, megabytes), f"{theirs / seconds:.1f}x"] if theirs else ["-", "-"]
        table.add_row(*row)
    console = Console(width=110)
    console.print(table)
    for who, figures in zip(("this server", "peer, as received", "peer, JPEG 2000"), (mine, *peers), strict=True):
        for note in figures.notes:
            console.print(f"{who}: {note}")


def _shown(name: str, seconds: float, megabytes: float) -> str:
    if "ingest" in name or "study out" in name:
        return f"{megabytes / seconds:.1f} MB/s"
    return f"{seconds * 1e3:.1f} ms"
