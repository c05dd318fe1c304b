"""The commands `fhir-imaging printer ...`: what hard copies come out of, and how many sheets did.

Secrets among a printer's options are read from files or standard input and never printed.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import click

from fhir_server.cli.options import Group, configured, day, pair, table
from fhir_server.config import Config
from imaging.errors import AppError, Category

_MOST_SECRET_BYTES = 1 << 16

Pairs = tuple[tuple[str, str], ...]


def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of which `options_of` makes the parameters of a kind of printers."""
    from_file = "Secret option, from a file; - is standard input."
    given = click.option("-o", "--option", "given", type=pair, multiple=True, metavar="NAME=VALUE",
                         help="Option of the kind; may be repeated.")  # fmt: skip
    secrets = click.option("--secret", "secrets", type=pair, multiple=True, metavar="NAME=FILE", help=from_file)
    return given(secrets(command))


@click.group(cls=Group)
def printer() -> None:
    """Register printers and see what they print.

    A printer is one that this server reaches itself, or one that `fhir-imaging print-agent` serves at another site.
    Subscribers see it as a FHIR Device with what it can do and how it is, and name that in their orders.

    \b
    Examples:
      fhir-imaging printer add desk pdf -o folder=/srv/films --title 'PDF on the desk'
      fhir-imaging printer list
      fhir-imaging printer test-page desk
    """


@printer.command("add")
@click.argument("name")
@click.argument("kind")
@with_options
@click.option("--title", default="", metavar="TEXT", help="What people call it, such as where it stands.")
@click.option("--agent", default="", metavar="SUBSCRIBER", help="agent: subscriber whose agent serves it.")
@click.option("--for", "subscribers", multiple=True, metavar="SUBSCRIBER",
              help="Who may order on it; may be repeated  [default: all who may order hard copies]")  # fmt: skip
@configured()
def add_printer(config: Config, name: str, kind: str, given: Pairs, secrets: Pairs, **more: Any) -> None:
    """Register the printer NAME of a KIND and ask it what it can do.

    Kinds and their options are on the page Printers of the reference; the kind `agent` has none: the printer is
    configured where the agent runs. One of the same name is replaced as a whole.

    \b
    Examples:
      fhir-imaging printer add desk pdf -o folder=/srv/films
      fhir-imaging printer add ward-3 agent --agent ward-3-site --title 'Ward 3'
    """
    from fhir_server.app import open_server

    parameters = options_of(kind, given, secrets) if kind != "agent" else {}
    with open_server(config) as server:
        server.printers.add(
            name, kind, parameters, title=more["title"], agent=more["agent"], subscribers=more["subscribers"]
        )
        device = server.printers.device(name)
    click.echo(f"{name} is Device/{device.id if device else ''}")


def options_of(kind: str, given: Pairs, secrets: Pairs) -> dict[str, Any]:
    """Return the parameters of a kind from NAME=VALUE and NAME=FILE. Raises INVALID, UNSUPPORTED for the kind."""
    from imaging.parameters import value_from_text
    from imaging.printers import printers

    known = {each.name: each for each in printers.get(kind).parameters()}
    found: dict[str, Any] = {}
    for name, text in (*given, *((name, _read(path)) for name, path in secrets)):
        if name not in known:
            raise AppError(Category.INVALID, f"{kind} has the options {', '.join(known)}", where=name)
        found[name] = value_from_text(text, known[name])
    shown = [name for name, _ in given if known[name].is_secret]
    if shown:
        raise click.UsageError(f"{shown[0]} is a secret: give it with --secret {shown[0]}=FILE")
    return found


@printer.command("list")
@configured()
def list_printers(config: Config) -> None:
    """Print every printer with its kind, its state and its title.

    \b
    Example:
      fhir-imaging printer list
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        rows = [
            (each.name, each.kind, _state(server.printers.device(each.name)), each.title)
            for each in server.printers.all()
        ]
    click.echo(table(("name", "kind", "state", "title"), rows), nl=False)


@printer.command("suspend")
@click.argument("name")
@configured()
def suspend_printer(config: Config, name: str) -> None:
    """Print nothing on NAME for the time being.

    Orders for it wait as long as they may; new ones are refused.

    \b
    Example:
      fhir-imaging printer suspend desk
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        server.printers.suspend(name)
    click.echo(f"{name} is suspended")


@printer.command("resume")
@click.argument("name")
@configured()
def resume_printer(config: Config, name: str) -> None:
    """Print on NAME again.

    \b
    Example:
      fhir-imaging printer resume desk
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        server.printers.suspend(name, is_suspended=False)
    click.echo(f"{name} is in use")


@printer.command("remove")
@click.argument("name")
@configured()
def remove_printer(config: Config, name: str) -> None:
    """Forget NAME and its credentials.

    Orders for it that wait fail. What was printed on it stays in the counts.

    \b
    Example:
      fhir-imaging printer remove desk
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        server.printers.remove(name)
    click.echo(f"{name} is removed")


@printer.command("test-page")
@click.argument("name")
@click.option("--wait", "wait_s", type=click.FloatRange(0, 86_400), default=120.0, metavar="S",
              help="Longest wait for the page to come out  [default: 120 s]")  # fmt: skip
@click.option("--pattern", default="", metavar="NAME",
              help="A test pattern in place of the page: smpte, tg18-qc, tg18-ln1 ... tg18-ln18")  # fmt: skip
@configured()
def test_page(config: Config, name: str, wait_s: float, pattern: str) -> None:
    """Print a page on NAME that shows its greys, lines and millimetres.

    Steps from black to white, each with a patch that is just lighter, line pairs, a grid of 10 mm and a bar of 100 mm.

    \b
    Examples:
      fhir-imaging printer test-page desk
      fhir-imaging printer test-page desk --pattern tg18-qc
    """
    from fhir_server.app import open_server
    from fhir_server.hardcopy.press import try_out

    with open_server(config) as server:
        outcome = try_out(server.printers.made(name), server.clock(), wait_s, pattern)
    click.echo(f"{name}: {outcome.progress}{f', {outcome.detail}' if outcome.detail else ''}")
    if outcome.progress != "done":
        raise SystemExit(1)


@printer.command("pages")
@click.option("--from", "start", type=day, metavar="DATE", help="First day (UTC)  [default: the first of this month]")
@click.option("--until", "end", type=day, metavar="DATE", help="Last day (UTC)  [default: today]")
@configured()
def count_pages(config: Config, start: datetime | None, end: datetime | None) -> None:
    """Print how many sheets came out, by subscriber, printer, medium and size.

    A page is counted once for each order, a sheet for each copy.

    \b
    Example:
      fhir-imaging printer pages --from 2027-01-01 --until 2027-01-31
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        now = server.clock()
        first = start or now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        last = (end or now) + timedelta(days=1)
        found = server.printers.jobs.metered(first, last)
        names = {each.organization: each.name for each in server.principals.subscribers()}
    rows = [
        (
            names.get(each["subscriber"], each["subscriber"]), each["device"].partition("/")[2].partition("-")[2],
            each["medium"], each["film_size"], *(str(each[count]) for count in ("orders", "pages", "sheets")),
        )
        for each in found
    ]  # fmt: skip
    click.echo(table(("subscriber", "printer", "medium", "size", "orders", "pages", "sheets"), rows), nl=False)


def _read(path: str) -> str:
    try:
        with click.open_file(path) as file:
            return str(file.read(_MOST_SECRET_BYTES)).strip()
    except OSError as error:
        raise click.UsageError(f"--secret: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise click.UsageError(f"--secret: {path} is no text") from None


def _state(device: Any) -> str:
    if device is None:
        return "unknown"
    shown = device.json()
    if shown["status"] == "inactive":
        return "suspended"
    reason: dict[str, Any] = next(iter(shown.get("statusReason", [])), {})
    code = next((each["code"] for each in reason.get("coding", [])), shown["status"])
    return f"{code}: {reason['text']}" if "text" in reason else str(code)
