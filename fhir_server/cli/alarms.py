"""The commands `fhir-imaging alarm ...`: emergency accesses, and what somebody thinks of them."""

import click

from fhir_server.cli.options import Group, configured, table
from fhir_server.config import Config

_VERDICTS = ("justified", "unjustified", "unclear")
_MOST = 1_000


@click.group(cls=Group)
def alarm() -> None:
    """See and review emergency accesses: who opened whose records, and why.

    Each is an alarm until somebody has reviewed it, and is kept for good. It is in the audit record as well, as are all
    accesses that were made with it.

    \b
    Examples:
      fhir-imaging alarm list
      fhir-imaging alarm show 6f1c2a...
      fhir-imaging alarm review 6f1c2a... --by 'C. Privacy' --verdict justified
    """


@alarm.command("list")
@click.option("--all", "all_of_them", is_flag=True, help="Those that were reviewed as well.")
@configured()
def list_alarms(config: Config, all_of_them: bool) -> None:
    """Show the emergency accesses that nobody has reviewed, newest first; exit code 1 when there is one.

    \b
    Examples:
      fhir-imaging alarm list
      fhir-imaging alarm list --all
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        found = server.sign_on.emergencies.listed(all_of_them=all_of_them, most=_MOST)
        names = {each.organization: each.name for each in server.principals.subscribers()}
    rows = [
        [
            each.id,
            f"{each.asked:%Y-%m-%d %H:%M}",
            each.login,
            names.get(each.organization, each.organization),
            each.patient,
            "used" if each.is_taken else "not used",
            each.verdict or "to be reviewed",
        ]
        for each in found
    ]
    click.echo(table(["alarm", "asked (UTC)", "login", "subscriber", "patient", "access", "verdict"], rows), nl=False)
    if any(not each.verdict for each in found):
        raise SystemExit(1)


@alarm.command("show")
@click.argument("identifier", metavar="ALARM")
@configured()
def show_alarm(config: Config, identifier: str) -> None:
    """Show everything about ALARM: the reason that was given, until when the access was good, the review.

    \b
    Example:
      fhir-imaging alarm show 6f1c2a...
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        found = server.sign_on.emergencies.found(identifier)
        names = {each.organization: each.name for each in server.principals.subscribers()}
    rows = [
        ["login", found.login],
        ["person", found.user],
        ["subscriber", names.get(found.organization, found.organization)],
        ["patient", found.patient],
        ["patient of", names.get(found.owner, found.owner) or "nobody"],
        ["app", found.client_id],
        ["asked (UTC)", f"{found.asked:%Y-%m-%d %H:%M:%S}"],
        ["good until (UTC)", f"{found.until:%Y-%m-%d %H:%M:%S}" if found.is_taken else "never used"],
        ["ended by an operator", f"{found.ended:%Y-%m-%d %H:%M:%S}" if found.ended else "no"],
        ["reason", found.reason],
        ["verdict", found.verdict or "to be reviewed"],
        ["reviewed by", found.reviewer],
        ["reviewed (UTC)", f"{found.reviewed:%Y-%m-%d %H:%M:%S}" if found.reviewed else ""],
        ["note", found.note],
    ]
    click.echo(table(["", ""], rows).lstrip("\n"), nl=False)


@alarm.command("review")
@click.argument("identifier", metavar="ALARM")
@click.option("--by", required=True, metavar="TEXT", help="Who reviewed it.")
@click.option("--verdict", required=True, type=click.Choice(_VERDICTS), help="What you think of the access.")
@click.option("--note", default="", metavar="TEXT", help="More about it.")
@configured()
def review_alarm(config: Config, identifier: str, by: str, verdict: str, note: str) -> None:
    """Record what you think of ALARM. This can be done once.

    \b
    Example:
      fhir-imaging alarm review 6f1c2a... --by 'C. Privacy' --verdict unjustified --note 'no patient of the ward'
    """
    from fhir_server.access.emergencies import Verdict
    from fhir_server.app import open_server

    with open_server(config) as server:
        server.sign_on.emergencies.review(identifier, Verdict(verdict), reviewer=by, note=note)
    click.echo(f"{identifier} is {verdict}")


@alarm.command("end")
@click.argument("identifier", metavar="ALARM")
@configured()
def end_alarm(config: Config, identifier: str) -> None:
    """End the access of ALARM: its token works at most for access.cache_s seconds more.

    \b
    Example:
      fhir-imaging alarm end 6f1c2a...
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        server.sign_on.emergencies.end(identifier)
    click.echo(f"{identifier} is over")
