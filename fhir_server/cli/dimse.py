"""The commands `fhir-imaging dimse` and `fhir-imaging modality ...`: old modalities that print through this server."""

import logging
import threading
from typing import TYPE_CHECKING

import click

from fhir_server import logs
from fhir_server.cli.options import Group, configured, table
from fhir_server.config import Config
from fhir_server.signals import stop_on_signals
from imaging.errors import AppError

if TYPE_CHECKING:
    from imaging.tls import Identity

log = logging.getLogger(__name__)

_REPORT_S = 2.0  # between two looks at what became of print jobs


@click.command()
@click.option("--host", metavar="ADDRESS", help="Address to listen on  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65_535), metavar="PORT", help="Port to listen on  [default: 11112]")
@configured(host="dimse.host", port="dimse.port")
def dimse(config: Config) -> None:
    """Be a DICOM film printer for modalities, whose films are stored and ordered as hard copies.

    Only modalities that `fhir-imaging modality add` registered may print. Works beside a running server, which prints.
    Without the setting `dimse.tls_certificate` what comes is not encrypted: keep it within a network that is trusted.

    \b
    Example:
      fhir-imaging dimse --host 0.0.0.0 --port 11112
    """
    from fhir_server.app import open_server
    from fhir_server.film_desk import FilmDesk
    from imaging.dimse.print_scp import Backing, PrintScp

    logs.configure(process="dimse", level=config["log.level"], form=config["log.form"])
    stopping = threading.Event()
    stop_on_signals(stopping)
    with open_server(config) as server:
        desk = FilmDesk(server)
        scp = PrintScp(
            Backing(desk.admit, desk.accept, desk.outcome, desk.status), title=config["dimse.title"],
            address=(config["dimse.host"], config["dimse.port"]), most_associations=config["dimse.associations"],
            idle_s=config["dimse.idle_s"], tls=_identity(config),
        )  # fmt: skip
        port = scp.start()
        how = " over TLS" if config["dimse.tls_certificate"] else ""
        click.echo(f"Modalities print on {config['dimse.title']} at {config['dimse.host']}:{port}{how}. Ctrl-C stops.")
        try:
            while not stopping.wait(_REPORT_S):
                # The outermost door of this loop: what could not be asked now is asked again.
                try:
                    for uid, outcome in desk.news():
                        scp.report_job(uid, outcome)
                except AppError as error:
                    log.warning("print jobs could not be looked at", extra={"reason": str(error)})
        finally:
            scp.stop()


def _identity(config: Config) -> "Identity | None":
    """Return what the listener shows and whom it believes, None for no TLS."""
    from imaging.tls import Identity

    certificate, key, clients = (config[f"dimse.{name}"] for name in ("tls_certificate", "tls_key", "tls_clients"))
    return Identity(certificate, key, clients) if certificate else None


@click.group(cls=Group)
def modality() -> None:
    """Register modalities that print through this server.

    A modality is known by its application entity title. It prints for a subscriber, with the rights of its contract to
    register images and to order hard copies, on one printer.

    \b
    Examples:
      fhir-imaging modality add CT1 radiology film
      fhir-imaging modality list
      fhir-imaging modality remove CT1
    """


@modality.command("add")
@click.argument("name", metavar="TITLE")
@click.argument("subscriber")
@click.argument("printer")
@click.option("--address", default="", metavar="IP", help="The only address from which it may come.")
@configured()
def add_modality(config: Config, name: str, subscriber: str, printer: str, address: str) -> None:
    """Let the modality TITLE print for SUBSCRIBER on PRINTER. One of the same title is replaced.

    \b
    Example:
      fhir-imaging modality add CT1 radiology film --address 10.1.2.3
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        made = server.printers.add_modality(name, subscriber, printer, address=address)
    click.echo(f"{made.title} prints on {made.printer} for {subscriber}")


@modality.command("list")
@configured()
def list_modalities(config: Config) -> None:
    """Print every modality that may print, for whom, on which printer, and from where.

    \b
    Example:
      fhir-imaging modality list
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        names = {each.organization: each.name for each in server.principals.subscribers()}
        found = server.printers.modalities()
    rows = [(each.title, names.get(each.subscriber, each.subscriber), each.printer, each.address) for each in found]
    click.echo(table(("title", "subscriber", "printer", "address"), rows), nl=False)


@modality.command("remove")
@click.argument("name", metavar="TITLE")
@configured()
def remove_modality(config: Config, name: str) -> None:
    """Let the modality TITLE print no more. What it has printed, and what is ordered, stays.

    \b
    Example:
      fhir-imaging modality remove CT1
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        server.printers.remove_modality(name)
    click.echo(f"{name} prints no more")
