"""The commands about processing: which algorithms there are, ordering one, and seeing how orders stand."""

import inspect
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from fhir_server.cli.options import configured, pair
from fhir_server.config import Config
from imaging.errors import AppError, Category

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_LOOK_S = 0.5  # between two looks at orders that are watched
_FAILED = 1


@click.command()
@click.argument("name", required=False)
def algorithms(name: str | None) -> None:
    """Print what can be ordered; with NAME, its parameters with units, ranges and defaults.

    \b
    Examples:
      fhir-imaging algorithms
      fhir-imaging algorithms slab
    """
    from fhir_server.order_table import plain_table
    from fhir_server.work.orders import algorithm_named
    from imaging.algorithms import algorithms as known

    console = _console()
    if name is None:
        table = plain_table("algorithm", "version", "works on", "what it does")
        for each in known:
            found = known.get(each)
            table.add_row(each, found.version, found.takes, found.description())
        console.print(table)
        for each, reason in known.failures.items():
            click.echo(f"fhir-imaging: {each} could not be loaded: {reason}", err=True)
        return
    plain, _, version = name.partition("|")
    found = algorithm_named(plain, version)
    console.print(f"{found.title} ({plain}, version {found.version})\n", style="bold")
    for paragraph in inspect.cleandoc(found.__doc__ or "").split("\n\n"):
        console.print(f"{' '.join(paragraph.split())}\n")
    console.print(f"Works on: {found.takes}\nSource: {found.source}\n")
    console.print(_parameter_table(found.parameters()))


def _parameter_table(declared: Iterable[Any]) -> "Table":
    from fhir_server.order_table import plain_table

    table = plain_table("parameter", "type", "unit", "range", "default", "meaning")
    for each in declared:
        several = f" x {each.length}" if each.length else ""
        limits = "\n".join(each.choices) or each.range_in_words()
        default = "the images'" if each.is_stated else each.default_in_words().strip("[]") or "required"
        table.add_row(each.name, each.kind + several, each.unit, limits, default, each.help)
    return table


def _console(*, stderr: bool = False) -> "Console":
    """Return the terminal; words of others are printed as they are, not taken for markup."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False)


@click.command()
@click.argument("algorithm")
@click.option("--as", "requester", required=True, metavar="NAME", help="Subscriber that orders, and gets the result.")
@click.option("--study", multiple=True, metavar="UID", help="Study to process; may be repeated, as may the next two.")
@click.option("--series", multiple=True, metavar="UID", help="Series to process, in the order in which they count.")
@click.option("--instance", multiple=True, metavar="UID", help="Instance to process.")
@click.option("--search", metavar="QUERY", help="Process what a search finds: 'ImagingStudy?modality=CT'.")
@click.option("--frames", metavar="LIST", help="Frames of each instance, such as 1,3-5  [default: all]")
@click.option("--region", metavar="L,T,W,H", help="Part of each frame: left, top, width, height in pixels.")
@click.option(
    "-p", "--parameter", "given", type=pair, multiple=True, metavar="NAME=VALUE", help="Parameter of the algorithm."
)
@click.option("--keep", type=click.Choice(["before", "after", "both"]), help="What stays stored  [default: both]")
@click.option(
    "--deliver-to",
    multiple=True,
    metavar="REF",
    help="Endpoint/ID or Organization/ID that gets the result; may be repeated.",
)
@click.option("--priority", type=click.Choice(["routine", "urgent", "asap", "stat"]), default="routine",
              help="How soon a worker takes it  [default: routine]")  # fmt: skip
@click.option("--wait", is_flag=True, help="Wait for the end, showing progress; exit code 1 unless it is completed.")
@configured()
def order(config: Config, algorithm: str, requester: str, given: tuple[tuple[str, str], ...], **chosen: Any) -> None:
    """Order ALGORITHM for stored images, as a subscriber; print the id of the Task. A running server does it.

    \b
    Examples:
      fhir-imaging order slab --as radiology --study 1.2.840.1 -p thickness_mm=20 --wait
      fhir-imaging order mpr --as radiology --series 1.2.840.1.1 -p plane=coronal -p spacing_mm=1
      fhir-imaging order median --as radiology --search 'ImagingStudy?modality=CT' --deliver-to Endpoint/archive-2
    """
    from fhir_server.access.audit import Access, ordered
    from fhir_server.app import open_server
    from fhir_server.work.orders import task_of

    parameters = {name: text.strip() for name, text in given}
    task = task_of(algorithm, parameters, list(_inputs(chosen)), priority=chosen["priority"])
    with open_server(config) as server:
        principal = server.principals.acting_for(server.principals.named(requester))
        made = server.repository_for(principal).create(task)
        server.audit.record(principal, Access.CREATE, resources=[made.key], metered=ordered(task))
        click.echo(made.id)
        if chosen["wait"] and not _watched(server, made.id):
            raise SystemExit(_FAILED)


def _inputs(chosen: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    from fhir_server.delivery import value

    for uid in chosen["study"]:
        yield value("imaging-study", "valueReference", {"reference": f"ImagingStudy/{uid}"})
    for name in ("series", "instance"):
        for uid in chosen[name]:
            yield value(name, "valueId", uid)
    for name in ("search", "frames", "region"):
        if chosen[name]:
            yield value(name, "valueString", chosen[name])
    if chosen["keep"]:
        yield value("keep", "valueCode", chosen["keep"])
    for reference in chosen["deliver_to"]:
        yield value("deliver-to", "valueReference", {"reference": reference})


def _watched(server: Any, identifier: str) -> bool:
    """Show an order until it has ended; say whether it was completed."""
    from rich.live import Live

    from fhir_server.model.task import Status, is_over, name_of, status_of
    from fhir_server.order_table import order_table, text_of_entry

    console = _console(stderr=True)
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while not is_over(task := server.own.read("Task", identifier).json()):
            live.update(order_table([task]))
            time.sleep(_LOOK_S)
    console.print(order_table([task]))
    if status_of(task) is not Status.COMPLETED:
        click.echo(task.get("statusReason", {}).get("text", ""), err=True)
        return False
    for each in task.get("output", []):
        click.echo(f"{name_of(each)}: {text_of_entry(each)}")
    return True


@click.command()
@click.argument("identifier", metavar="[ID]", required=False)
@click.option("--status", help="Only orders with this status, such as in-progress or failed.")
@click.option(
    "--limit", type=click.IntRange(1, 500), default=20, show_default=True, help="At most so many, latest first."
)
@click.option("--watch", is_flag=True, help="Go on showing them, with progress, until Ctrl-C.")
@configured()
def tasks(config: Config, identifier: str | None, status: str | None, limit: int, watch: bool) -> None:
    """Show orders and how far they are; with ID, one of them with all that came of it.

    \b
    Examples:
      fhir-imaging tasks --watch
      fhir-imaging tasks --status failed
      fhir-imaging tasks 0b7c2f4e-5a0e-4e55-9f0e-0d2f5d0e6c11
    """
    from rich.live import Live

    from fhir_server.app import open_server
    from fhir_server.order_table import order_table

    with open_server(config) as server:
        if identifier:
            _show(server.own.read("Task", identifier).json())
            return
        if not watch:
            _console().print(order_table(_latest(server, status, limit)))
            return
        # Ctrl-C is how one stops looking, and no failure.
        with suppress(KeyboardInterrupt), Live(console=_console(), refresh_per_second=4) as live:
            while True:
                live.update(order_table(_latest(server, status, limit)))
                time.sleep(_LOOK_S)


def _latest(server: Any, status: str | None, limit: int) -> list[dict[str, Any]]:
    from fhir_server.model.query import parse
    from fhir_server.model.task import Status

    if status and status not in set(Status):
        raise AppError(Category.INVALID, f"one of {', '.join(Status)} expected", where="--status")
    params = [("_sort", "-_lastUpdated"), ("_count", str(limit)), *([("status", status)] if status else [])]
    return [each.json() for each in server.own.search(parse("Task", params)).matches]


def _show(task: Mapping[str, Any]) -> None:
    from fhir_server.model.task import name_of
    from fhir_server.order_table import order_table, text_of_entry

    _console().print(order_table([task]))
    for kind in ("input", "output"):
        for each in task.get(kind, []):
            click.echo(f"{kind} {name_of(each)}: {text_of_entry(each)}")
