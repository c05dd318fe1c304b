"""The commands about collection: see what would come, collect now, and see how sources stand."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from typing import Any

import click

from fhir_server.cli.options import configured, table
from fhir_server.config import Config
from imaging.errors import AppError, Category

_FAILED = 1
_LOOK_S = 0.5  # between two looks at Tasks that are followed
_MOST_SHOWN = 1_000  # studies of one source in a dry run
_REFUSALS = 20


@click.command()
@click.argument("name", required=False)
@click.option("--dry-run", is_flag=True, help="Show what would come, study by study; fetch and change nothing.")
@click.option("--anew", is_flag=True, help="Forget what was settled: look at everything as if for the first time.")
@configured()
def collect(config: Config, name: str | None, *, dry_run: bool, anew: bool) -> None:
    """Collect from the source NAME, or from every source, now.

    A source is an endpoint that was registered with `--way dicomweb` or `--way folder`. The worker looks at it by
    itself every so often; this command does not wait for that. What comes is registered as the endpoint's subscriber,
    whose contract has to let it register images. A round is a Task: Ctrl-C leaves it to the worker.

    With --anew, images that were deleted here, refused, or that lie before the latest study date seen, are asked for
    again; what is here is not.

    \b
    Examples:
      fhir-imaging collect --dry-run
      fhir-imaging collect ct
      fhir-imaging collect ct --anew
    """
    from fhir_server.app import open_server_for_work

    if dry_run and anew:
        raise click.UsageError("--dry-run changes nothing, so it does not go with --anew")
    with open_server_for_work(config) as server:
        peers = _sources(server, name)
        if not peers:
            click.echo("no source is registered; `fhir-imaging endpoint add --help` tells how", err=True)
        done = [_show_expected(server, each) for each in peers] if dry_run else list(_collect(server, peers, anew=anew))
    if not all(done):
        raise SystemExit(_FAILED)


@click.command()
@click.argument("name", required=False)
@configured()
def sources(config: Config, name: str | None) -> None:
    """Show how the collection from each source stands; with NAME, all about one of them.

    \b
    Examples:
      fhir-imaging sources
      fhir-imaging sources ct
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        peers = _sources(server, name)
        if name:
            click.echo("".join(f"{key:<20} {value}\n" for key, value in _details(server, peers[0])), nl=False)
            return
        rows = [_row(server, each) for each in peers]
    header = ("source", "subscriber", "state", "last look", "next look", "last round", "up to", "refused", "remark")
    click.echo(table(header, rows), nl=False)


def _sources(server: Any, name: str | None) -> list[Any]:
    from fhir_server.model.peer import SOURCES

    if name is None:
        return [each for each in server.peers.all() if each.way in SOURCES]
    found = server.peers.get(name)
    if found.way not in SOURCES:
        message = "images are sent to this endpoint; it is no source (dicomweb or folder)"
        raise AppError(Category.INVALID, message, where=name)
    return [found]


# ---- what would come


def _show_expected(server: Any, peer: Any) -> bool:
    """Print what would come from a source; say whether it could be asked."""
    from fhir_server.work.collection.opening import admitted, source_of

    found = []
    try:
        admitted(server, peer)
        with source_of(server, peer) as source, _spinner(f"{peer.name}: looking"):
            for item in islice(source.items(), _MOST_SHOWN):
                found += list(source.expected(item))
    except AppError as error:
        click.echo(f"{peer.name}: {error}", err=True)
        return False
    coming = sum(each.instances for each in found)
    rows = [
        (each.study_uid or "-", _day(each.date), each.modalities, str(each.instances), str(each.of), each.note)
        for each in found
    ]
    words = f"{_some(coming, 'instance')} of {_some(len(found), 'study')}" if rows else "nothing"
    click.echo(f"{peer.name}: {words}")
    if rows:
        click.echo(table(("study", "date", "modality", "to come", "there", ""), rows), nl=False)
    return True


@contextmanager
def _spinner(words: str) -> Iterator[None]:
    """Show that something is under way, on a terminal."""
    from rich.console import Console

    with Console(stderr=True).status(words):
        yield


# ---- a round now


def _collect(server: Any, peers: Sequence[Any], *, anew: bool) -> Iterator[bool]:
    """Do a round of each source and print what came; yield whether each could be done."""
    from fhir_server.background import collector, transfer_crew

    looking, orders = collector(server), {}
    for peer in peers:
        try:
            if anew:
                server.collected.forget(peer.name)
            with _spinner(f"{peer.name}: looking"):
                orders[peer.name] = looking.look_now(peer)
        except AppError as error:
            click.echo(f"{peer.name}: {error}", err=True)
            yield False
        else:
            if not orders[peer.name]:
                click.echo(f"{peer.name}: {server.collected.mark(peer.name).reason or 'nothing new'}")
    waiting = {name: task for name, task in orders.items() if task}
    if not waiting:
        return
    stopping = threading.Event()
    worker = threading.Thread(target=transfer_crew(server).run, args=(stopping,))
    worker.start()
    try:
        yield from _followed(server, waiting)
    finally:
        stopping.set()
        worker.join()


def _followed(server: Any, waiting: dict[str, str]) -> Iterator[bool]:
    """Show Tasks until each has ended or waits for its source, then print what came; yield whether it was completed."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from fhir_server.model.task import Status, is_over, progress_of, status_of, waits_for

    ended: dict[str, Any] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        bars = {name: shown.add_task(name, total=100) for name in waiting}
        while len(ended) < len(waiting):
            for name in waiting.keys() - ended.keys():
                task = server.own.read("Task", waiting[name]).json()
                if done := progress_of(task):
                    shown.update(bars[name], completed=done.percent, description=f"{name}: {done.step}")
                if is_over(task) or waits_for(task):
                    shown.update(bars[name], completed=100)
                    ended[name] = task
            time.sleep(_LOOK_S if len(ended) < len(waiting) else 0)
    for name, task in sorted(ended.items()):
        click.echo(f"{name}: {_told(server.collected.mark(name).round)}")
        is_good = status_of(task) is Status.COMPLETED
        if not is_good:
            click.echo(f"{name}: {waits_for(task) or task.get('statusReason', {}).get('text', '')}", err=True)
        yield is_good


def _told(tally: Any) -> str:
    """Return what came of a round in words."""
    parts = [f"{_some(tally.stored, 'image')} of {_some(len(tally.studies), 'study')} stored"]
    parts += [f"{tally.here} here already"] if tally.here else []
    parts += [f"{tally.refused} refused"] if tally.refused else []
    parts += [f"{tally.failed} could not be fetched"] if tally.failed else []
    return ", ".join(parts)


# ---- how it stands


def _row(server: Any, peer: Any) -> tuple[str, ...]:
    from fhir_server.store import collected

    mark = server.collected.mark(peer.name)
    return (
        peer.name,
        _subscriber(server, peer),
        _state(server, peer, mark),
        _ago(server, mark.looked_at),
        _ago(server, mark.due) if mark.due and mark.due > server.clock() else "now",
        _told(mark.round) if mark.number else "none yet",
        _day(mark.latest),
        str(server.collected.count(peer.name, collected.REFUSED)),
        mark.reason,
    )


def _details(server: Any, peer: Any) -> Iterator[tuple[str, str]]:
    from fhir_server.store import collected

    names = ("source", "subscriber", "state", "last look", "next look", "last round", "up to", "refused", "remark")
    yield from zip(names, _row(server, peer), strict=True)
    mark, schedule = server.collected.mark(peer.name), peer.schedule
    yield "address", peer.address
    yield "every", f"{schedule.every_s:g} s"
    yield "filters", ", ".join(schedule.filters) or "none"
    yield "task", mark.task or "none yet"
    yield "today", f"{_some(mark.day_instances, 'image')}, {mark.day_bytes} bytes" if mark.day else "nothing"
    yield "failures in a row", str(mark.failures)
    for note in server.collected.latest(peer.name, collected.TRIED, _REFUSALS):
        if note.due:
            yield "to be tried again", f"{note.key}: {note.value} (next {_ago(server, note.due)})"
    for note in server.collected.latest(peer.name, collected.REFUSED, _REFUSALS):
        yield "refused", f"{note.key}: {note.value}"


def _state(server: Any, peer: Any, mark: Any) -> str:
    from fhir_server.work.collection.opening import admitted

    try:
        admitted(server, peer)
    except AppError:
        return "not used" if peer.in_use(server.clock()) else "suspended"
    if mark.failures:
        return "failing"
    return "collecting" if mark.task and not mark.is_done else "in order"


def _subscriber(server: Any, peer: Any) -> str:
    names = {each.organization: each.name for each in server.principals.subscribers()}
    return str(names.get(peer.subscriber, peer.subscriber))


def _ago(server: Any, moment: datetime | None) -> str:
    """Return a moment as a span from now: `5 min ago`, `in 20 s`."""
    if moment is None:
        return "never"
    seconds = round((server.clock() - moment).total_seconds())
    size, unit = next(((size, unit) for size, unit in _UNITS if abs(seconds) >= size), (1, "s"))
    span = f"{abs(seconds) // size} {unit}"
    return f"{span} ago" if seconds >= 0 else f"in {span}"


_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def _day(date: str) -> str:
    return f"{date[:4]}-{date[4:6]}-{date[6:]}" if date else "-"


def _some(number: int, what: str) -> str:
    plural = {"study": "studies"}.get(what, f"{what}s")
    return f"{number} {what if number == 1 else plural}"
