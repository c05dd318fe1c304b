"""The command `fhir-imaging`: reads options, builds the configuration, calls the work, and prints.

Each command imports its work when it runs, so that `--help` is quick and a short command loads no web server.
Exit codes: 0 done, 1 it failed, 2 it was asked wrongly, 130 interrupted.
"""

import functools
import logging
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import click

from fhir_server import config as settings
from fhir_server import logs
from fhir_server.cli import (
    agent,
    alarms,
    apps,
    audit,
    collect,
    dimse,
    endpoints,
    images,
    orders,
    people,
    printers,
    subscribers,
    subscriptions,
    upkeep,
    usage,
)
from fhir_server.cli.options import Group, configured
from fhir_server.config import Config
from fhir_server.signals import stop_on_signals
from imaging.errors import AppError, Category

log = logging.getLogger(__name__)

_FAILED, _ASKED_WRONGLY, _INTERRUPTED = 1, 2, 130


def main() -> None:
    """Run the command line and exit; a failure is one line on standard error, never a traceback."""
    try:
        code = cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except AppError as error:
        click.echo(f"fhir-imaging: {error}", err=True)
        code = _ASKED_WRONGLY if error.category is Category.INVALID else _FAILED
    except (click.Abort, KeyboardInterrupt):
        click.echo("fhir-imaging: interrupted", err=True)
        code = _INTERRUPTED
    except Exception as error:  # noqa: BLE001 -- the outermost door; the words of the error may quote patient data
        click.echo(f"fhir-imaging: {_told(error)}", err=True)
        code = _FAILED
    sys.exit(code if isinstance(code, int) else 0)


_SECTIONS = {
    "See it work": ("demo",),
    "Run it": ("serve", "web", "worker", "dimse", "print-agent", "ready", "config"),
    "Say who may do what": ("subscriber", "token", "app", "person", "modality", "alarm"),
    "Say where images come from and go to": ("endpoint", "collect", "sources", "printer", "subscriptions"),
    "Have images processed": ("algorithms", "order", "tasks"),
    "Look after what is stored": ("verify", "sweep", "reindex", "images", "usage", "audit"),
}


def _told(error: Exception) -> str:
    """Return an error that no command expects in words of ours: the database is away, or there is a bug."""
    from fhir_server.store.failures import unavailable

    if message := unavailable(error):
        return f"{message}; try again, or look at the server's log (database)"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{type(error).__name__} at {frame.filename}:{frame.lineno}"
    return f"internal fault: {place} (this is a bug, please report it)"


@click.group(
    cls=Group, sections=_SECTIONS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda c, p, v: _show_version(c, v),
    help="Show the version and exit.",
)
def cli() -> None:
    """A FHIR ImagingStudy server: images in and out over DICOMweb, found and ordered through FHIR.

    \b
    See it work on real images, nothing to prepare:
      fhir-imaging demo
    \b
    Run a server on this machine, with its own database:
      fhir-imaging serve
    \b
    In another terminal, let a client in:
      fhir-imaging subscriber add radiology --register-images --receive-images
      fhir-imaging token radiology
    \b
    Send a file, then find its study:
      TOKEN=$(fhir-imaging token radiology)
      curl -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/dicom' \\
        --data-binary @image.dcm http://127.0.0.1:8080/dicom-web/studies
      curl -H "Authorization: Bearer $TOKEN" http://127.0.0.1:8080/fhir/ImagingStudy
    \b
    Run it in production, on many machines, with your own MongoDB replica set:
      export MONGODB_URI='mongodb://user:password@db1,db2,db3/?replicaSet=rs0'
      fhir-imaging web
      fhir-imaging worker

    Every setting can be given in a file, in the environment or with --set; `fhir-imaging config` lists them.
    """


@cli.command()
@click.option("--host", metavar="ADDRESS", help="Address to listen on  [default: 127.0.0.1]")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    metavar="PORT",
    help="Port to listen on, 0 for a free one  [default: 8080]",
)
@configured(host="web.host", port="web.port")
def serve(config: Config) -> None:
    """Run everything on this machine: engine, web server, maintenance worker.

    Without MONGODB_URI, a MongoDB of its own is started in the data directory. Ctrl-C or SIGTERM stops everything in
    order. It serves HTTP. If other machines are to reach it, have it serve HTTPS by the setting web.tls_certificate, or
    put a proxy with TLS in front of it.

    \b
    Examples:
      fhir-imaging serve
      fhir-imaging serve --port 9000 --data-dir ~/images
      fhir-imaging serve --set archive.codec=j2k --set engine.cache_gb=4
      fhir-imaging serve --host :: --port 443 --set web.base_url=https://images.example.org \\
        --set web.tls_certificate=/etc/fhir-imaging/certificate.pem --set web.tls_key=/etc/fhir-imaging/key.pem
    """
    from fhir_server import supervisor
    from fhir_server.web.tls import tls

    _configure_logs(config, "serve")
    _warn_of_unknown_variables()
    tls(config)  # raises for certificates that cannot be used, before anything is started
    with _listener(config) as listener:
        port = listener.getsockname()[1]
        supervisor.serve(config.with_port(port), listener, functools.partial(click.echo))


@cli.command()
@click.option("--host", metavar="ADDRESS", help="Address to listen on  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65_535), metavar="PORT", help="Port to listen on  [default: 8080]")
@click.option("--fd", type=int, hidden=True, help="A listening socket that was inherited.")
@configured(host="web.host", port="web.port")
def web(config: Config, fd: int | None) -> None:
    """Run the web server alone, for production, on the MongoDB of MONGODB_URI. Any number may run.

    \b
    Example:
      MONGODB_URI='mongodb://user:password@db1,db2,db3/?replicaSet=rs0' \\
        fhir-imaging web --host 0.0.0.0 --set web.base_url=https://images.example.org
    """
    from fhir_server import engine
    from fhir_server.doors import create_app_from_config
    from fhir_server.web.server import WebServer

    _configure_logs(config, "web")
    engine.attach(config)
    WebServer(config, create_app_from_config, fd=fd).run()


@cli.command()
@configured()
def worker(config: Config) -> None:
    """Run a worker alone, for production. Any number may run, on any machines.

    It does orders, notifies Subscriptions, brings ImagingStudies up to date, forwards the audit record and removes what
    crashes left; `serve` has one of its own.

    \b
    Example:
      MONGODB_URI='mongodb://user:password@db1,db2,db3/?replicaSet=rs0' fhir-imaging worker
    """
    from fhir_server import engine, hardcopies
    from fhir_server.access.audit import Access
    from fhir_server.app import open_server
    from fhir_server.background import collector, forwarding, notifications, task_crew
    from fhir_server.work import maintenance, offered, printer_watch, topics

    _configure_logs(config, "worker")
    engine.attach(config)
    try:
        with open_server(config) as server:
            offered.publish(server.own)
            hardcopies.publish(server.own, server.fhir_url)
            topics.publish(server.own)
            # Until here a signal ends the process at once: a write that waits for a lost database would outlast it.
            stopping = threading.Event()
            stop_on_signals(stopping)
            runs: dict[str, Callable[[threading.Event], None]] = {
                "tasks": task_crew(server).run,
                "collection": collector(server).run,
                "notifications": notifications(server).run,
                "printers": functools.partial(printer_watch.run, server),
            }
            if (audit := forwarding(server)) is not None:
                runs["audit"] = audit.run
            threads = [threading.Thread(target=run, args=(stopping,), name=name) for name, run in runs.items()]
            server.audit.activity(Access.START, "worker")
            for each in threads:
                each.start()
            maintenance.run(server, stopping)
            for each in threads:
                each.join()
            server.audit.activity(Access.STOP, "worker")
    except AppError:
        raise
    except Exception:
        log.exception("the worker ends by a fault")
        raise


@cli.command()
@configured()
def ready(config: Config) -> None:
    """Ask the web server of this machine whether it can work: exit code 0 if so, 1 if not.

    It is asked on the loopback, or on the address that it listens on, by HTTPS where it has a certificate. For health
    checks of containers and services.

    \b
    Example:
      fhir-imaging ready
    """
    from fhir_server.supervisor import is_ready

    if not is_ready(config, (config["web.host"], config["web.port"])):
        raise AppError(Category.BUSY, "the web server is not ready", where=f"{config['web.host']}:{config['web.port']}")
    click.echo("ready")


@cli.command("config")
@click.option("--reference", is_flag=True, help="Print the reference page (Markdown) instead.")
@configured()
def show_config(config: Config, reference: bool) -> None:
    """Print every setting with its value, where that comes from, and what it is for.

    Each of these overrides the ones before it: default, file, environment, command line. Nothing is started; secrets
    are not shown.

    \b
    Examples:
      fhir-imaging config
      fhir-imaging config | grep -A1 limits
      FHIR_IMAGING_WEB_PORT=9000 fhir-imaging config --set archive.codec=j2k
    """
    from fhir_server import settings_page

    click.echo(settings_page.reference() if reference else settings_page.listing(config), nl=False)
    _warn_of_unknown_variables()


@cli.command()
@click.option("--exit", "exit_after", is_flag=True, help="Stop when the demo is over instead of serving on.")
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
              help="Also send the DICOM files of this folder.")  # fmt: skip
@configured(data_dir="a temporary one, which is thrown away at the end")
def demo(config: Config, exit_after: bool, images: Path | None) -> None:
    """Show it all on real images: send, find, get back.

    A server is started, two subscribers are let in, studies are sent, found and retrieved in four forms, one image is
    processed, and pictures are written to demo-output/. Then the server stays up until Ctrl-C, for a browser and for
    the curl lines that are printed.

    \b
    Examples:
      fhir-imaging demo
      fhir-imaging demo --exit --images ~/my-dicom-files
    """
    from fhir_server import demo as demonstration

    demonstration.run(config, images=images, exit_after=exit_after)


for _command in (
    subscribers.subscriber,
    subscribers.token,
    people.person,
    apps.app,
    alarms.alarm,
    audit.audit,
    usage.usage,
    upkeep.verify,
    upkeep.sweep,
    upkeep.reindex,
    images.images,
    orders.algorithms,
    orders.order,
    orders.tasks,
    endpoints.endpoint,
    collect.collect,
    collect.sources,
    subscriptions.subscriptions,
    printers.printer,
    agent.print_agent,
    dimse.dimse,
    dimse.modality,
):
    cli.add_command(_command)


def _show_version(context: click.Context, wanted: bool) -> None:
    """Show the version and exit."""
    if wanted:
        click.echo(f"fhir-imaging {metadata.version('fhir-imaging-server')}")
        context.exit()


def _configure_logs(config: Config, process: str) -> None:
    logs.configure(process=process, level=config["log.level"], form=config["log.form"])


def _warn_of_unknown_variables() -> None:
    for name in settings.unknown_variables(os.environ):
        click.echo(f"fhir-imaging: the environment variable {name} is no setting and is not used", err=True)


def _listener(config: Config) -> socket.socket:
    from fhir_server.datadir import DataDirectory
    from fhir_server.web.server import listen

    host, port = config["web.host"], config["web.port"]
    try:
        return listen(host, port)
    except OSError as error:
        running = DataDirectory(config["data.dir"]).connection()
        who = f" (process {running.pid} serves {config['data.dir']})" if running else ""
        reason = os.strerror(error.errno) if error.errno else "no such address"
        message = f"cannot listen: {reason}{who}; choose another with --host or --port"
        raise AppError(Category.CONFLICT, message, where=f"{host}:{port}") from None
