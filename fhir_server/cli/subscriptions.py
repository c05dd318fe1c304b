"""The command `fhir-imaging subscriptions`: who is told of what, and how that goes."""

from typing import Any

import click

from fhir_server.cli.options import configured, table
from fhir_server.config import Config

_LONGEST = 60  # characters of criteria and reasons in the table


@click.command()
@click.option("--failing", is_flag=True, help="Only those with an error, or whose last try failed.")
@configured()
def subscriptions(config: Config, failing: bool) -> None:
    """Print every Subscription with its state.

    Subscribers store Subscriptions at the FHIR door. Events are counted from 1; what was told of them and what waits is
    shown. Works beside a running server.

    \b
    Examples:
      fhir-imaging subscriptions
      fhir-imaging subscriptions --failing
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        rows = _rows(server)
    kept = [row for row in rows if not failing or row[-1] or row[4] == "error"]
    header = ("subscription", "subscriber", "criteria", "channel", "status", "events", "told", "remark")
    click.echo(table(header, kept), nl=False)


def _rows(server: Any) -> list[tuple[str, ...]]:
    from dataclasses import replace

    from fhir_server.model.query import Query
    from fhir_server.model.rule import owner_of

    names = {each.organization: each.name for each in server.principals.subscribers()}
    states = server.subscriptions.states()
    rows: list[tuple[str, ...]] = []
    query: Any = Query("Subscription", count=500)
    while query is not None:
        page = server.own.search(query)
        for each in page.matches:
            resource, state = each.json(), states.get(each.id)
            owner = owner_of(resource)
            rows.append(
                (
                    each.id,
                    names.get(owner, owner),
                    _short(resource["criteria"]),
                    _channel(resource["channel"]),
                    resource["status"],
                    str(state.number if state else 0),
                    str(state.told if state else 0),
                    _short((state.reason if state else "") or resource.get("error", "")),
                )
            )
        query = replace(query, cursor=page.next_cursor) if page.next_cursor else None
    return rows


def _channel(channel: dict[str, Any]) -> str:
    """Return way and host; the whole address may be a secret."""
    from urllib.parse import urlsplit

    host = urlsplit(channel.get("endpoint", "")).hostname
    return f"{channel['type']} {host}" if host else str(channel["type"])


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
