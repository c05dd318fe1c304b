"""The command `fhir-imaging usage`: what each subscriber used."""

from datetime import UTC, datetime

import click

from fhir_server.cli.options import configured, day, table
from fhir_server.config import Config


@click.command()
@click.option("--from", "start", type=day, metavar="DATE", help="First day (UTC)  [default: the first of this month]")
@click.option("--until", "end", type=day, metavar="DATE", help="Last day (UTC)  [default: today]")
@click.option("--form", type=click.Choice(["table", "csv", "fhir"]), default="table",
              help="A table for people, CSV, or FHIR MeasureReports  [default: table]")  # fmt: skip
@click.option("--by", type=click.Choice(["subscriber", "contract"]), default="subscriber",
              help="What counts are told apart by  [default: subscriber]")  # fmt: skip
@click.option("--per", type=click.Choice(["day", "month"]), help="A line for each day or month  [default: one for all]")
@click.option("--subscriber", metavar="NAME", help="Of one subscriber only.")
@configured()
def usage(
    config: Config,
    start: datetime | None,
    end: datetime | None,
    form: str,
    by: str,
    per: str | None,
    subscriber: str | None,
) -> None:
    """Show what each subscriber used: requests, instances, bytes, tasks, printed pages, downloads.

    Counts are by the day (UTC) and a few seconds behind. By contract, each count stands with the Contract that allowed
    it. Bytes are those of bodies of requests and answers over HTTP, and of files that came or went another way.

    \b
    Examples:
      fhir-imaging usage
      fhir-imaging usage --from 2027-01-01 --until 2027-12-31 --per month --by contract --form csv > 2027.csv
    """
    from fhir_server import usage_report
    from fhir_server.app import open_server
    from fhir_server.model import json
    from fhir_server.store.usage import COUNTED, Per

    today = datetime.now(UTC).date()
    first, last = start.date() if start else today.replace(day=1), end.date() if end else today
    if last < first:
        raise click.BadParameter("it lies before --from", param_hint="--until")
    by_contract = by == "contract"
    with open_server(config) as server:
        wanted = server.principals.named(subscriber) if subscriber else ""
        each_for = Per[per.upper()] if per else Per.ALL
        used = server.usage.between(first, last, subscriber=wanted, by_contract=by_contract, per=each_for)
        names = {each.organization: each.name for each in server.principals.subscribers()}
    if form == "csv":
        click.echo(usage_report.as_csv(used, names, first, last, by_contract=by_contract), nl=False)
    elif form == "fhir":
        found = usage_report.as_fhir(used, first, last, datetime.now(UTC), by_contract=by_contract)
        click.echo(json.dumps(found))
    else:
        heads = [*(["period"] if per else []), "subscriber", *(["contract"] if by_contract else [])]
        rows = [
            [
                *([each.period] if per else []),
                names.get(each.subscriber, each.subscriber),
                *([each.contract or "-"] if by_contract else []),
                *(str(each.counts[name]) for name in COUNTED),
            ]
            for each in used
        ]
        click.echo(table([*heads, *COUNTED], rows), nl=False)
