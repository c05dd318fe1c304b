"""The command `fhir-imaging audit ...`: how the audit record is forwarded."""

import click

from fhir_server.cli.options import Group, configured
from fhir_server.config import Config


@click.group(cls=Group)
def audit() -> None:
    """See how the audit record is forwarded to an Audit Record Repository.

    Workers do it where the setting audit.repository names one. That the record is whole is checked by
    `fhir-imaging verify`.

    \b
    Example:
      fhir-imaging audit status
    """


@audit.command("status")
@configured()
def show_status(config: Config) -> None:
    """Show where the audit record goes, how much of it waits, and why; exit code 1 while nothing arrives.

    \b
    Example:
      fhir-imaging audit status
    """
    from fhir_server.app import open_server
    from fhir_server.model.dates import to_instant
    from fhir_server.store.trail import Trail

    if not config["audit.repository"]:
        click.echo("The audit record is not forwarded: the setting audit.repository is empty.")
        return
    with open_server(config) as server:
        state = Trail(server.database, server.clock).state()
    oldest = f", the oldest of {to_instant(state.oldest)}" if state.oldest else ""
    click.echo(f"repository    {config['audit.repository']}")
    click.echo(f"waiting       {state.waiting} entries{oldest}")
    click.echo(f"last arrived  {to_instant(state.arrived) if state.arrived else 'never'}")
    if state.failure:
        since = f" (since {to_instant(state.since)})" if state.since else ""
        click.echo(f"failing       {state.failure}{since}")
        raise SystemExit(1)
