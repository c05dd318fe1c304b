"""The commands `fhir-imaging images ...`: what was deleted, and how it comes back."""

from collections.abc import Mapping
from typing import Any

import click

from fhir_server.cli.options import Group, configured, table
from fhir_server.config import Config


@click.group(cls=Group)
def images() -> None:
    """List images that were deleted, and take them back.

    Deleted images can be taken back for archive.undelete_h hours; then they are gone.

    \b
    Examples:
      fhir-imaging images deleted
      fhir-imaging images undelete 1.2.840.113619.2.1
    """


@images.command("deleted")
@configured()
def list_deleted(config: Config) -> None:
    """Print what was deleted and can be taken back, by study.

    \b
    Example:
      fhir-imaging images deleted
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        found = server.archive.aside()
        names: Mapping[str, Any] = {each.organization: each.name for each in server.principals.subscribers()}
    rows = [
        (each.study_uid, str(each.instances), str(names.get(each.deleted_by, each.deleted_by)), f"{each.until:%F %R}")
        for each in found
    ]
    click.echo(table(("study", "images", "deleted by", "until (UTC)"), rows), nl=False)


@images.command("undelete")
@click.argument("study")
@click.argument("series", required=False)
@click.argument("instance", required=False)
@configured()
def undelete(config: Config, study: str, series: str | None, instance: str | None) -> None:
    """Take back the deleted images of STUDY, or of one SERIES or INSTANCE of it, all by their UIDs.

    \b
    Example:
      fhir-imaging images undelete 1.2.840.113619.2.1
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        back = server.studies.take_back(study, series, instance)
    click.echo(f"{back} images are back")
