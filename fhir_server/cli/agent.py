"""The command `fhir-imaging print-agent`, which runs where a printer stands."""

import ipaddress
import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from fhir_server import logs
from fhir_server.cli.options import configured
from fhir_server.cli.printers import options_of, with_options
from fhir_server.config import Config
from fhir_server.signals import stop_on_signals
from imaging.errors import AppError, Category

log = logging.getLogger(__name__)

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_MOST_TOKEN_BYTES = 8_192
_LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


@click.command("print-agent")
@click.argument("name")
@click.argument("kind")
@click.option("--server", "address", required=True, metavar="URL", help="Address of the imaging server.")
@click.option(
    "--token", "token_file", required=True, type=_FILE, metavar="FILE", help="File with the agent's bearer token."
)
@click.option("--state", "state_dir", required=True, type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Directory of its own for orders, images and what is printed.")  # fmt: skip
@with_options
@click.option("--logo", type=_FILE, metavar="FILE", help="Image file with the institution's sign.")
@click.option("--ahead", type=click.IntRange(1, 100), metavar="N", help="Orders fetched ahead  [default: 3]")
@click.option(
    "--poll", type=click.FloatRange(0.05, 3_600), metavar="S", help="Pause between two looks for orders  [default: 5 s]"
)
@click.option("--beat", type=click.FloatRange(0.1, 86_400), metavar="S",
              help="Pause between two signs of life for an order  [default: 120 s]")  # fmt: skip
@click.option("--test-page", is_flag=True, help="Print a test page and stop; no server is asked.")
@configured()
def print_agent(config: Config, name: str, kind: str, address: str, **options: Any) -> None:
    """Print what is ordered on the printer NAME, which stands here and is of this KIND.

    The operator of the server registers it with `fhir-imaging printer add NAME agent`. The agent claims orders for it,
    fetches their images compressed, composes and prints them, and reports. It works on through outages of server and
    printer, and prints nothing twice. One agent for each printer; its state directory must not be thrown away.

    \b
    Example:
      fhir-imaging print-agent ward-3 pdf -o folder=/srv/films --server https://images.example.org \\
        --token token.txt --state /var/lib/print-agent
    """
    from fhir_server.agent.agent import Agent, Pace
    from fhir_server.agent.server import ImagingServer
    from fhir_server.agent.state import State
    from fhir_server.hardcopy.devices import device_id
    from imaging.printers import printers

    logs.configure(process="print-agent", level=config["log.level"], form=config["log.form"])
    printer = printers.get(kind).build(options_of(kind, options["given"], options["secrets"]))
    if options["test_page"]:
        _print_test_page(name, printer)
        return
    stopping = threading.Event()
    stop_on_signals(stopping)
    server = ImagingServer(
        address, f"Device/{device_id(name)}", lambda: _token(options["token_file"]), _rules(config, address),
        most_file_bytes=config["limits.instance_bytes"],
    )  # fmt: skip
    chosen = {"ahead": options["ahead"], "poll_s": options["poll"], "beat_s": options["beat"]}
    pace = replace(Pace(), **{field: value for field, value in chosen.items() if value is not None})
    pace = replace(pace, ask_s=min(pace.ask_s, pace.poll_s))
    state = State(options["state_dir"])
    try:
        click.echo(f"Waiting for orders for {server.device} of {address}. Ctrl-C stops.")
        Agent(server, printer, state, pace=pace, logo=options["logo"]).run(stopping)
    finally:
        state.close()


def _print_test_page(name: str, printer: Any) -> None:
    from datetime import UTC, datetime

    from fhir_server.hardcopy.press import try_out

    outcome = try_out(printer, datetime.now(UTC), 120)
    click.echo(f"{name}: {outcome.progress}{f', {outcome.detail}' if outcome.detail else ''}")
    if outcome.progress != "done":
        raise SystemExit(1)


def _token(file: Path) -> str:
    """Return what the file holds now: a new token needs no restart."""
    text = file.read_text()[:_MOST_TOKEN_BYTES].strip()
    if not text or not text.isascii() or not text.isprintable():
        raise AppError(Category.FORBIDDEN, "the token file holds no token", where=file.name)
    return text


def _rules(config: Config, address: str) -> Any:
    """Return what holds for connections: the operator named the server, so it may be anywhere, but not without TLS.

    Without TLS it may be on this machine, or where outbound.private_networks says.
    """
    from fhir_server.outbound.remote import Rules

    everywhere = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
    named = tuple(config["outbound.private_networks"])
    return Rules(
        private_networks=everywhere if address.startswith("https://") else (*_LOOPBACK, *named),
        ca_file=config["outbound.ca_bundle"],
        connect_s=config["outbound.connect_s"],
        silence_s=config["outbound.silence_s"],
    )
