"""The command `fhir-imaging usage`: what each subscriber used."""

from datetime import UTC, datetime

import click

from fhir_server.cli.options import configured, table
from fhir_server.config import Config

_DAY = click.DateTime(["%Y-%m-%d"])


@click.command()
@click.option("--from", "start", type=_DAY, metavar="DATE", help="First day (UTC)  [default: the first of this month]")
@click.option("--until", "end", type=_DAY, metavar="DATE", help="Last day (UTC)  [default: today]")
@click.option("--form", type=click.Choice(["table", "csv", "fhir"]), default="table",
              help="A table for people, CSV, or FHIR MeasureReports  [default: table]")  # fmt: skip
@configured()
def usage(config: Config, start: datetime | None, end: datetime | None, form: str) -> None:
    """Show what each subscriber used: requests, instances and bytes in and out, tasks, printed pages.

    Counts are by the day (UTC) and a few seconds behind. Bytes are those of bodies of requests and answers over HTTP.

    \b
    Examples:
      fhir-imaging usage
      fhir-imaging usage --from 2027-01-01 --until 2027-01-31 --form csv > january.csv
    """
    from fhir_server import usage_report
    from fhir_server.app import open_server
    from fhir_server.model import json
    from fhir_server.store.usage import COUNTED

    today = datetime.now(UTC).date()
    first, last = start.date() if start else today.replace(day=1), end.date() if end else today
    if last < first:
        raise click.BadParameter("it lies before --from", param_hint="--until")
    with open_server(config) as server:
        used = server.usage.between(first, last)
        names = {each.organization: each.name for each in server.principals.subscribers()}
    if form == "csv":
        click.echo(usage_report.as_csv(used, names, first, last), nl=False)
    elif form == "fhir":
        click.echo(json.dumps(usage_report.as_fhir(used, first, last, datetime.now(UTC))))
    else:
        rows = [[names.get(each.subscriber, each.subscriber), *(str(each.counts[n]) for n in COUNTED)] for each in used]
        click.echo(table(["subscriber", *COUNTED], rows), nl=False)
