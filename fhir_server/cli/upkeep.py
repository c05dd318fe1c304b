"""The commands that look after what is stored: `fhir-imaging verify`, `sweep` and `reindex`."""

import sys
from collections.abc import Callable

import click

from fhir_server.cli.options import configured
from fhir_server.config import Config

_FAILED = 1


@click.command()
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


@click.command()
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


@click.command()
@configured()
def reindex(config: Config) -> None:
    """Build search rows, study summaries and ImagingStudies again.

    They all follow from the stored images and resources. Use it after an upgrade that asks for it. What clients added
    to ImagingStudies stays.

    \b
    Example:
      fhir-imaging reindex
    """
    from fhir_server import app

    with app.open_server(config) as server:
        app.reindex(server, _progress("done"))


def _progress(what: str) -> Callable[[int, int], None]:
    """Return a callback that shows `done of total` on a terminal, and nothing where nobody looks."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{done} of {total} {what}", err=True, nl=done >= total)

    return show
