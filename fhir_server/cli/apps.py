"""The commands `fhir-imaging app ...`: programs that obtain tokens by SMART App Launch or SMART Backend Services.

A client secret is printed once, when it is made; public keys are read from a file or fetched from an address.
"""

import sys
from typing import TextIO

import click

from fhir_server.cli.options import Group, configured, table
from fhir_server.config import Config

_METHODS = {"public": "none", "secret": "client_secret_basic", "keys": "private_key_jwt"}
_MOST_KEY_BYTES = 1 << 18


@click.group(cls=Group)
def app() -> None:
    """Register apps: programs that people start, and programs that work by themselves.

    An app acts for one subscriber, and people of that subscriber sign in to it. What it may do is the least of all of
    these: what it asks for, what was registered here, what the person agrees to and may do, and what the subscriber's
    contracts give.

    \b
    Examples:
      fhir-imaging app add growth-charts radiology --redirect https://growth.example.org/callback \\
        --launch https://growth.example.org/launch --scope 'launch openid fhirUser patient/*.rs'
      fhir-imaging app add night-reader radiology --backend --jwks keys.json --scope system/ImagingStudy.rs
      fhir-imaging app list
    """


@app.command("add")
@click.argument("name")
@click.argument("subscriber")
@click.option(
    "--redirect", "redirects", multiple=True, metavar="URL", help="Where people come back to; may be repeated."
)
@click.option("--launch", metavar="URL", default="", help="Where this server starts it about a patient.")
@click.option("--scope", required=True, metavar="SCOPES", help="The most it can be granted, separated by blanks.")
@click.option("--proves-by", type=click.Choice(list(_METHODS)), default="public",
              help="How it proves who it is: not at all, by a secret, by its keys  [default: public]")  # fmt: skip
@click.option("--backend", is_flag=True, help="It works by itself, without a person (implies --proves-by keys).")
@click.option("--jwks", type=click.File(), metavar="FILE", help="Its public keys, a JSON Web Key Set.")
@click.option("--jwks-url", metavar="URL", default="", help="Address of its public keys.")
@click.option("--no-refresh", is_flag=True, help="It gets no refresh tokens, whatever it asks for.")
@configured()
def add_app(
    config: Config,
    name: str,
    subscriber: str,
    redirects: tuple[str, ...],
    launch: str,
    scope: str,
    proves_by: str,
    backend: bool,
    jwks: TextIO | None,
    jwks_url: str,
    no_refresh: bool,
) -> None:
    """Register the app NAME of SUBSCRIBER; print its client id, and its secret where it has one.

    Redirects are compared character by character; https, or http on the user's own machine. Its pages may call this
    server from a browser.

    \b
    Examples:
      fhir-imaging app add viewer radiology --redirect https://viewer.example.org/ --scope 'openid fhirUser user/*.rs'
      fhir-imaging app add report-bot radiology --backend --jwks-url https://bot.example.org/jwks --scope system/*.rs
    """
    from fhir_server.access.apps import BACKEND, LAUNCHED, App
    from fhir_server.app import open_server

    keys = jwks.read(_MOST_KEY_BYTES + 1) if jwks else ""
    launched = LAUNCHED[:1] if no_refresh else LAUNCHED
    with open_server(config) as server:
        made, secret, _ = server.sign_on.apps.add(
            App(
                client_id="",
                organization=server.principals.named(subscriber),
                name=name,
                method=_METHODS["keys" if backend else proves_by],
                grant_types=BACKEND if backend else launched,
                scope=scope,
                redirect_uris=redirects,
                launch_uri=launch,
                jwks=keys,
                jwks_uri=jwks_url,
            )
        )
    click.echo(f"client_id      {made.client_id}")
    if secret:
        click.echo(f"client_secret  {secret}")
        click.echo("The secret is shown this once; keep it like a password.", file=sys.stderr)


@app.command("list")
@configured()
def list_apps(config: Config) -> None:
    """Show the apps: client id, name, subscriber, how each proves who it is, and the most it can be granted.

    \b
    Example:
      fhir-imaging app list
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        rows = [
            [each.client_id, each.name, each.organization, each.method, each.scope]
            for each in server.sign_on.apps.all()
        ]
    click.echo(table(["client id", "name", "subscriber", "proves by", "scope"], rows), nl=False)


@app.command("remove")
@click.argument("client_id")
@configured()
def remove_app(config: Config, client_id: str) -> None:
    """End the registration of an app, with every token that it holds.

    \b
    Example:
      fhir-imaging app remove app-5f0c...
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        server.sign_on.apps.remove(client_id)


@app.command("rotate-key")
@configured()
def rotate_key(config: Config) -> None:
    """Sign id tokens with a new key from now on; what was signed before stays valid until it ends.

    The server does this by itself when a key is older than smart.key_days.

    \b
    Example:
      fhir-imaging app rotate-key
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        click.echo(server.sign_on.authorization.keys.rotate().key_id)
