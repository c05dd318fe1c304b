"""The command `fhir-imaging`: reads options, builds the configuration, calls the work, and prints.

Each command imports its work when it runs, so that `--help` is quick and a short command loads no web server.
Exit codes: 0 done, 1 it failed, 2 it was asked wrongly, 130 interrupted.
"""

import functools
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

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
    limits,
    orders,
    people,
    printers,
    subscriptions,
    usage,
)
from fhir_server.cli.options import Group, configured, table
from fhir_server.config import Config
from imaging.errors import AppError, Category

log = logging.getLogger(__name__)

_FAILED, _ASKED_WRONGLY, _INTERRUPTED = 1, 2, 130
_DAY = click.DateTime(["%Y-%m-%d"])


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
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} at {frame.filename}:{frame.lineno}"
        click.echo(f"fhir-imaging: internal fault: {place} (this is a bug, please report it)", err=True)
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

    Without MONGODB_URI a MongoDB of its own is started in the data directory. Ctrl-C or SIGTERM stops in order. It
    serves HTTP, and HTTPS with the setting web.tls_certificate; give it a certificate, or put a proxy with TLS before
    it, where others than this machine reach it.

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
    from fhir_server.web.server import WebServer

    _configure_logs(config, "web")
    engine.attach(config)
    WebServer(config, _make_app, fd=fd).run()


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
    from fhir_server.app import collector, forwarding, notifications, open_server, task_crew
    from fhir_server.work import maintenance, offered, printer_watch, topics

    _configure_logs(config, "worker")
    engine.attach(config)
    try:
        with open_server(config) as server:
            offered.publish(server.own)
            hardcopies.publish(server.own, server.fhir_url)
            topics.publish(server.own)
            # Until here a signal ends the process at once: a write that waits for a lost database would outlast it.
            stopping = _stop_on_signals()
            runs: dict[str, Callable[[threading.Event], None]] = {
                "tasks": task_crew(server).run,
                "collection": collector(server).run,
                "notifications": notifications(server).run,
                "printers": functools.partial(printer_watch.run, server),
            }
            if (audit := forwarding(config, server.database, server.clock)) is not None:
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


for _command in (orders.algorithms, orders.order, orders.tasks, collect.collect, collect.sources):
    cli.add_command(_command)


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

    The later wins: default, file, environment, command line. Nothing is started; secrets are not shown.

    \b
    Examples:
      fhir-imaging config
      fhir-imaging config | grep -A1 limits
      FHIR_IMAGING_WEB_PORT=9000 fhir-imaging config --set archive.codec=j2k
    """
    from fhir_server import settings_page

    click.echo(settings_page.reference() if reference else settings_page.listing(config), nl=False)
    _warn_of_unknown_variables()


@cli.group(cls=Group)
def subscriber() -> None:
    """Let subscribers in, list them, shut them out.

    A subscriber is an organisation with a contract: it may register images, receive images, or read the audit record.
    Its programs show a token that `fhir-imaging token NAME` makes.

    \b
    Examples:
      fhir-imaging subscriber add ct-1 --register-images
      fhir-imaging subscriber add radiology --register-images --receive-images --until 2027-12-31
      fhir-imaging subscriber list
      fhir-imaging subscriber suspend ct-1
    """


@subscriber.command("add")
@click.argument("name")
@click.option("--register-images", is_flag=True, help="May send images and make FHIR resources.")
@click.option("--receive-images", is_flag=True, help="May search, read and retrieve.")
@click.option("--receive-by-url", is_flag=True, help="Gets addresses with searches that open images without a token.")
@click.option("--receive-deidentified", is_flag=True, help="May search and retrieve images without names, only.")
@click.option("--order-processing", is_flag=True, help="May order processing of images it may read or registered.")
@click.option("--order-hard-copy", is_flag=True, help="May order hard copies of images it may read or registered.")
@click.option("--serve-printers", is_flag=True, help="Its print agents may print orders for its printers.")
@click.option("--define", is_flag=True, help="May define profiles, search parameters and terminology for everybody.")
@click.option("--process-images", is_flag=True, help="May claim orders that are open to any device of a kind.")
@click.option("--audit", is_flag=True, help="May read the audit record.")
@click.option("--from", "start", type=_DAY, metavar="DATE", help="First day of the contract (UTC)  [default: now]")
@click.option("--until", "end", type=_DAY, metavar="DATE", help="Last day of the contract (UTC)  [default: no end]")
@limits.limited
@click.option(
    "--keep",
    type=click.Choice(["modified-dates", "patient-characteristics", "device-identity"]),
    multiple=True,
    help="What de-identified images keep: an option of the profile; may be repeated.",
)
@click.option(
    "--break-glass",
    multiple=True,
    metavar="own|all|NAME",
    help="Practitioners may open one patient's records in an emergency: of its own, and of others who agreed to it.",
)
@configured()
def add_subscriber(
    config: Config,
    name: str,
    start: datetime | None,
    end: datetime | None,
    sees: tuple[str, ...],
    modality: tuple[str, ...],
    patient: tuple[str, ...],
    keep: tuple[str, ...],
    break_glass: tuple[str, ...],
    **chosen: bool,
) -> None:
    """Let NAME in with a contract, or give it a new one.

    The new contract takes the place of the old. At least one right is needed. Works beside a running server. A new
    subscriber sees what it registered itself, and nothing of others unless --sees says so.

    \b
    Examples:
      fhir-imaging subscriber add ct-1 --register-images
      fhir-imaging subscriber add radiology --receive-images --sees all
      fhir-imaging subscriber add second-reader --receive-images --sees radiology --modality MG
      fhir-imaging subscriber add study-42 --receive-images --sees ct-1 --from 2027-01-01 --until 2027-06-30
      fhir-imaging subscriber add registry --receive-deidentified --sees all --keep modified-dates
      fhir-imaging subscriber add ward --receive-images --modality CR --break-glass own
    """
    from fhir_server.access.contracts import Right
    from fhir_server.app import open_server

    rights = [Right(option.replace("_", "-")) for option, wanted in chosen.items() if wanted]
    if not rights:
        raise click.UsageError(f"name at least one of {', '.join(f'--{right}' for right in Right)}")
    if Right.RECEIVE_IMAGES in rights and Right.RECEIVE_DEIDENTIFIED in rights:
        raise click.UsageError("--receive-deidentified is given instead of --receive-images, not with it")
    if Right.RECEIVE_BY_URL in rights and Right.RECEIVE_IMAGES not in rights:
        raise click.UsageError("--receive-by-url is given together with --receive-images")
    if keep and Right.RECEIVE_DEIDENTIFIED not in rights:
        raise click.UsageError("--keep is for --receive-deidentified")
    keeps = frozenset(each.replace("-", "_") for each in keep)
    first = start.replace(tzinfo=UTC) if start else None
    # The last day is part of the contract.
    last = end.replace(tzinfo=UTC) + timedelta(days=1) - timedelta(milliseconds=1) if end else None
    with open_server(config) as server:
        found, is_own = limits.limits_of(server.principals, name, sees, modality, patient)
        emergency = limits.emergency_limits(server.principals, break_glass)
        added = server.principals.add(
            name, rights, start=first, end=last, limits=found, is_own=is_own, keeps=keeps, emergency=emergency
        )
        names = {each.organization: each.name for each in server.principals.subscribers()}
    click.echo(f"{added.name} may {_words(added.rights)} ({added.organization})")
    if added.terms:
        click.echo(f"of: {limits.words_of(added, names)}")


@subscriber.command("list")
@configured()
def list_subscribers(config: Config) -> None:
    """Print every subscriber with its rights in force and its state.

    \b
    Example:
      fhir-imaging subscriber list
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        found = server.principals.subscribers()
    names = {each.organization: each.name for each in found}
    rows = [
        (s.name, _words(s.rights), limits.words_of(s, names), "suspended" if s.suspended else "active", s.organization)
        for s in found
    ]
    click.echo(table(("name", "may", "of", "state", "resource"), rows), nl=False)


@subscriber.command("suspend")
@click.argument("name")
@configured()
def suspend_subscriber(config: Config, name: str) -> None:
    """Shut NAME out.

    Its tokens stop working within access.cache_s seconds. `subscriber add` lets it in again, with the same tokens.

    \b
    Example:
      fhir-imaging subscriber suspend ct-1
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        server.principals.suspend(name)
    click.echo(f"{name} is suspended")


@subscriber.command("agree")
@click.argument("name")
@click.option("--reject", multiple=True, metavar="CHECK", help="Refuse images that do not pass; may be repeated.")
@click.option("--flag", multiple=True, metavar="CHECK", help="Store them with a warning; may be repeated.")
@click.option("--keep-until", type=_DAY, metavar="DATE", help="Last day (UTC) on which images cannot be deleted.")
@click.option("--issuer", default="", metavar="TEXT", help="Issuer of Patient ID of images that do not tell theirs.")
@click.option(
    "--open-in-emergencies",
    "opens",
    multiple=True,
    metavar="all|NAME",
    help="Emergency access of the subscriber NAME, or of all, reaches its patients; may be repeated.",
)
@configured()
def agree(
    config: Config,
    name: str,
    reject: tuple[str, ...],
    flag: tuple[str, ...],
    keep_until: datetime | None,
    issuer: str,
    opens: tuple[str, ...],
) -> None:
    """Agree with NAME on the images that it registers, in place of what was agreed; nothing: no such agreement.

    Checks: patient-id, patient-name, study-date and accession-number (they are there), sop-class (it is one of the
    standard's), same-patient (of the study as it is here).

    \b
    Examples:
      fhir-imaging subscriber agree ct-1 --reject patient-id --flag same-patient
      fhir-imaging subscriber agree ct-1 --keep-until 2036-12-31 --issuer "St. Mary"
      fhir-imaging subscriber agree north --open-in-emergencies south
    """
    from fhir_server.access.agreements import Agreement, Verdict
    from fhir_server.app import open_server
    from fhir_server.storage_checks import checked

    checks = checked({**dict.fromkeys(flag, Verdict.FLAG), **dict.fromkeys(reject, Verdict.REJECT)})
    last = keep_until.replace(tzinfo=UTC) + timedelta(days=1) - timedelta(milliseconds=1) if keep_until else None
    with open_server(config) as server:
        opened = frozenset(each if each == limits.ALL else server.principals.named(each) for each in opens)
        server.principals.agree(name, Agreement(checks, last, issuer, opened))
    said = [f"{check}: {verdict}" for check, verdict in checks.items()]
    said += [f"kept until {keep_until:%Y-%m-%d}"] if keep_until else []
    said += [f"issuer {issuer}"] if issuer else []
    said += [f"opened in emergencies to {', '.join(sorted(set(opens)))}"] if opens else []
    click.echo(f"agreed with {name}: {'; '.join(said) or 'nothing'}")


cli.add_command(apps.app)
cli.add_command(audit.audit)
cli.add_command(people.person)
cli.add_command(alarms.alarm)
cli.add_command(usage.usage)
cli.add_command(endpoints.endpoint)
cli.add_command(images.images)
cli.add_command(subscriptions.subscriptions)
cli.add_command(printers.printer)
cli.add_command(agent.print_agent)
cli.add_command(dimse.dimse)
cli.add_command(dimse.modality)


@cli.command()
@click.argument("name")
@configured()
def token(config: Config, name: str) -> None:
    """Print a new bearer token for the subscriber NAME.

    It prints the token alone, and never again: keep it like a password. Earlier tokens go on working. Works beside a
    running server; with --data-dir it is the server of that directory.

    \b
    Examples:
      TOKEN=$(fhir-imaging token radiology)
      curl -H "Authorization: Bearer $(fhir-imaging token radiology)" http://127.0.0.1:8080/fhir/ImagingStudy
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        minted = server.principals.mint(name)
    click.echo(minted)


@cli.command()
@configured()
def verify(config: Config) -> None:
    """Read every stored image and the audit record again and report what is wrong.

    All digests are checked, all pixels decoded, all received files rebuilt, and the chains of the audit record walked;
    nothing is changed. One line for each finding; exit code 1 if there is any. Works beside a running server.

    \b
    Examples:
      fhir-imaging verify
      fhir-imaging verify > findings.txt || mail -s "damaged images" admin < findings.txt
    """
    from fhir_server.app import open_server, verify_record

    findings = 0
    with open_server(config) as server:
        for finding in server.archive.verify(_progress("checked")):
            findings += 1
            click.echo(str(finding))
        for problem in verify_record(server, _progress("of the audit record checked")):
            findings += 1
            click.echo(problem)
    click.echo(f"{findings} findings", err=True)
    if findings:
        raise SystemExit(_FAILED)


@cli.command()
@configured()
def sweep(config: Config) -> None:
    """Remove what interrupted ingests and deletions left behind.

    The worker does this regularly by itself. What is younger than an hour is left alone: it may belong to a running
    ingest.

    \b
    Example:
      fhir-imaging sweep
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        swept = server.archive.sweep()
    click.echo(f"{swept.studies_marked} studies to bring up to date, {swept.blobs_deleted} orphaned files deleted")


@cli.command()
@configured()
def reindex(config: Config) -> None:
    """Build search rows, study summaries and ImagingStudies again.

    They all follow from the stored images and resources. For use after an upgrade that says so; what clients added to
    ImagingStudies stays.

    \b
    Example:
      fhir-imaging reindex
    """
    from fhir_server import app

    with app.open_server(config) as server:
        app.reindex(server, _progress("done"))


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


def _show_version(context: click.Context, wanted: bool) -> None:
    """Show the version and exit."""
    if wanted:
        click.echo(f"fhir-imaging {metadata.version('fhir-imaging-server')}")
        context.exit()


def _make_app(config: Config) -> Any:
    from fhir_server.app import create_app_from_config

    return create_app_from_config(config)


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


def _stop_on_signals() -> threading.Event:
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return stopping


def _progress(what: str) -> Callable[[int, int], None]:
    """Return a callback that shows `done of total` on a terminal, and nothing where nobody looks."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{done} of {total} {what}", err=True, nl=done >= total)

    return show


def _words(rights: Iterable[Any]) -> str:
    return " and ".join(str(right).replace("-", " ") for right in sorted(rights)) or "nothing now"
