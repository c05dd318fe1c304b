"""The commands `fhir-imaging person ...`: people who sign in. Passwords come from a file or are made."""

from typing import TYPE_CHECKING, TextIO

import click

from fhir_server.cli.options import Group, configured, table
from fhir_server.config import Config

if TYPE_CHECKING:
    from fhir_server.access.people import Person

_ROLES = ("patient", "practitioner", "technologist", "operator", "auditor")


@click.group(cls=Group)
def person() -> None:
    """Register people who sign in to apps and pages of this server.

    A person belongs to a subscriber and has one role. A FHIR resource represents the person: what an app learns as
    fhirUser.

    \b
    Examples:
      fhir-imaging person add dr.jones radiology --role practitioner --name 'Dr. Ada Jones'
      fhir-imaging person add ann radiology --role patient --fhir-user Patient/123
      fhir-imaging person password ann
    """


@person.command("add")
@click.argument("login")
@click.argument("subscriber")
@click.option("--role", required=True, type=click.Choice(_ROLES), help="What the person is here for.")
@click.option("--name", default="", metavar="TEXT", help="What the person is called  [default: the login]")
@click.option("--fhir-user", default="", metavar="TYPE/ID",
              help="Resource that represents the person  [default: a new Practitioner]")  # fmt: skip
@click.option("--password", type=click.File(), metavar="FILE", help="File with the password; - is standard input.")
@configured()
def add_person(
    config: Config, login: str, subscriber: str, role: str, name: str, fhir_user: str, password: TextIO | None
) -> None:
    """Register the person LOGIN of SUBSCRIBER; without --password one is made and printed, once.

    \b
    Examples:
      fhir-imaging person add dr.jones radiology --role practitioner --name 'Dr. Ada Jones'
      fhir-imaging person add ann radiology --role patient --fhir-user Patient/123 --password - < secret.txt
    """
    from fhir_server.app import open_server

    given, is_made = _password(password)
    with open_server(config) as server:
        server.sign_on.add_person(
            login,
            organization=server.principals.named(subscriber),
            name=name,
            role=role,
            fhir_user=fhir_user,
            password=given,
        )
    if is_made:
        click.echo(given)


@person.command("password")
@click.argument("login")
@click.option("--password", type=click.File(), metavar="FILE", help="File with the password; - is standard input.")
@configured()
def set_password(config: Config, login: str, password: TextIO | None) -> None:
    """Give LOGIN another password; sessions and what apps have for the person end; signing in is possible at once.

    \b
    Examples:
      fhir-imaging person password ann
      fhir-imaging person password ann --password - < secret.txt
    """
    from fhir_server.app import open_server

    given, is_made = _password(password)
    with open_server(config) as server:
        server.sign_on.set_password(login, given)
    if is_made:
        click.echo(given)


@person.command("forget-second-factor")
@click.argument("login")
@click.option("--key", default="", metavar="NAME", help="Only the security key of this name; the rest stays.")
@configured()
def forget_second_factor(config: Config, login: str, key: str) -> None:
    """Let LOGIN in with the password alone until another second factor is set up: phone or key is lost.

    \b
    Examples:
      fhir-imaging person forget-second-factor ann
      fhir-imaging person forget-second-factor ann --key 'Blue key'
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        people = server.sign_on.people
        changed = people.remove_key_named(login, key) if key else people.forget_second_factor(login)
        server.audit.factor_changed(changed.login, changed.organization, "removed by an operator")


@person.command("keys")
@click.argument("login")
@configured()
def list_keys(config: Config, login: str) -> None:
    """Show the security keys and passkeys of LOGIN: name, when it was added, when it was used last, its counter.

    \b
    Example:
      fhir-imaging person keys ann
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        rows = [
            [each.name, f"{each.added:%Y-%m-%d %H:%M}", f"{each.used:%Y-%m-%d %H:%M}" if each.used else "never",
             str(each.counter)]
            for each in server.sign_on.people.named(login).keys
        ]  # fmt: skip
    click.echo(table(["name", "added (UTC)", "last used (UTC)", "counter"], rows), nl=False)


@person.command("list")
@configured()
def list_people(config: Config) -> None:
    """Show everybody: login, name, subscriber, role, resource, second factors, and whether signing in is possible.

    \b
    Example:
      fhir-imaging person list
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        rows = [
            [each.login, each.name, each.organization, each.role, each.fhir_user, _factors(each),
             "no" if each.is_disabled else "yes"]
            for each in server.sign_on.people.all()
        ]  # fmt: skip
    heads = ["login", "name", "subscriber", "role", "resource", "second factors", "may sign in"]
    click.echo(table(heads, rows), nl=False)


@person.command("disable")
@click.argument("login")
@configured()
def disable_person(config: Config, login: str) -> None:
    """Shut LOGIN out: sessions end at once, and so do the tokens that apps have for the person.

    \b
    Example:
      fhir-imaging person disable ann
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        server.sign_on.shut_out(login)


@person.command("enable")
@click.argument("login")
@configured()
def enable_person(config: Config, login: str) -> None:
    """Let LOGIN sign in again.

    \b
    Example:
      fhir-imaging person enable ann
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        server.sign_on.people.disable(login, is_disabled=False)


def _factors(person: "Person") -> str:
    keys = [f"{len(person.keys)} keys"] if person.keys else []
    return ", ".join([*(["codes"] if person.totp_secret else []), *keys])


def _password(file: TextIO | None) -> tuple[str, bool]:
    from fhir_server.access.passwords import LONGEST
    from fhir_server.access.people import new_password

    return (file.read(4 * LONGEST).rstrip("\r\n"), False) if file else (new_password(), True)
