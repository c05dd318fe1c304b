"""The commands `fhir-imaging subscriber ...` and `fhir-imaging token`: who is let in, with which contract."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import click

from fhir_server.cli import limits
from fhir_server.cli.options import Group, configured, day, table
from fhir_server.config import Config


@click.group(cls=Group)
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
@click.option("--receive-deidentified", is_flag=True, help="May search and retrieve, but only images without names.")
@click.option("--order-processing", is_flag=True, help="May order processing of images it may read or registered.")
@click.option("--order-hard-copy", is_flag=True, help="May order hard copies of images it may read or registered.")
@click.option("--serve-printers", is_flag=True, help="Its print agents may print orders for its printers.")
@click.option("--define", is_flag=True, help="May define profiles, search parameters and terminology for everybody.")
@click.option("--process-images", is_flag=True, help="May claim orders that are open to any device of a kind.")
@click.option("--audit", is_flag=True, help="May read the audit record.")
@click.option("--from", "start", type=day, metavar="DATE", help="First day of the contract (UTC)  [default: now]")
@click.option("--until", "end", type=day, metavar="DATE", help="Last day of the contract (UTC)  [default: no end]")
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
    with open_server(config) as server:
        found, is_own = limits.limits_of(server.principals, name, sees, modality, patient)
        emergency = limits.emergency_limits(server.principals, break_glass)
        added = server.principals.add(
            name, rights, start=start, end=_end_of(end), limits=found, is_own=is_own, keeps=keeps, emergency=emergency
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
@click.option("--keep-until", type=day, metavar="DATE", help="Last day (UTC) on which images cannot be deleted.")
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
    """Agree with NAME on the images that it registers, in place of what was agreed; without options, on nothing.

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
    with open_server(config) as server:
        opened = frozenset(each if each == limits.ALL else server.principals.named(each) for each in opens)
        server.principals.agree(name, Agreement(checks, _end_of(keep_until), issuer, opened))
    said = [f"{check}: {verdict}" for check, verdict in checks.items()]
    said += [f"kept until {keep_until:%Y-%m-%d}"] if keep_until else []
    said += [f"issuer {issuer}"] if issuer else []
    said += [f"opened in emergencies to {', '.join(sorted(set(opens)))}"] if opens else []
    click.echo(f"agreed with {name}: {'; '.join(said) or 'nothing'}")


@click.command()
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


def _end_of(day: datetime | None) -> datetime | None:
    """Return the last moment of a day (UTC), which is part of it."""
    return day + timedelta(days=1) - timedelta(milliseconds=1) if day else None


def _words(rights: Iterable[Any]) -> str:
    return " and ".join(str(right).replace("-", " ") for right in sorted(rights)) or "nothing now"
