"""The commands `fhir-imaging endpoint ...`: the other ends of connections that this server makes for subscribers.

Credentials are read from files or standard input and never printed; the secret of a webhook is printed when it is made.
"""

import base64
from datetime import datetime, timedelta
from typing import Any, TextIO

import click

from fhir_server.cli.options import Group, configured, day, table
from fhir_server.config import Config
from fhir_server.model.peer import SOURCES, Form, Peer, Schedule, Way

_MOST_CREDENTIAL_BYTES = 1 << 16
_OF_SOURCES = ("every", "filters", "since", "overlap_days", "quiet", "keep_files")
_FITS = {  # option -> ways that it goes with
    "wado_address": {Way.DICOMWEB},
    "bearer": {Way.STOW, Way.WEBHOOK, Way.DICOMWEB},
    "basic": {Way.STOW, Way.WEBHOOK, Way.DICOMWEB},
    "form": {Way.STOW},
    "new_secret": {Way.WEBHOOK},
    "old_secret_hours": {Way.WEBHOOK},
    **dict.fromkeys(_OF_SOURCES, SOURCES),
    "filters": {Way.DICOMWEB},
    "since": {Way.DICOMWEB},
    "overlap_days": {Way.DICOMWEB},
    "quiet": {Way.FOLDER},
    "keep_files": {Way.FOLDER},
}


@click.group(cls=Group)
def endpoint() -> None:
    """Register where images go to and come from.

    An endpoint belongs to a subscriber. It is a receiver of images (stow) or of signed notifications (webhook), or a
    source that this server collects from (dicomweb, folder). Subscribers see it as a FHIR Endpoint, without its
    credentials, and name it in their orders: the server connects to nothing else.

    \b
    Examples:
      fhir-imaging endpoint add pacs radiology https://pacs.example.org/dicom-web --way stow
      fhir-imaging endpoint list
      fhir-imaging endpoint suspend pacs
    """


@endpoint.command("add")
@click.argument("name")
@click.argument("subscriber")
@click.argument("address")
@click.option("--way", required=True, type=click.Choice([str(each) for each in Way]), help="How it is reached.")
@click.option("--bearer", type=click.File(), metavar="FILE", help="File with a bearer token; - is standard input.")
@click.option("--basic", type=click.File(), metavar="FILE", help="File with user:password; - is standard input.")
@click.option("--form", type=click.Choice([str(each) for each in Form]), help="stow: form of images  [default: native]")
@click.option("--new-secret", is_flag=True, help="webhook: replace the secret of one that is registered already.")
@click.option("--old-secret-hours", type=click.FloatRange(0, 8_784), metavar="H",
              help="webhook: with --new-secret, how long the one before signs as well  [default: 24 h]")  # fmt: skip
@click.option("--wado-address", metavar="URL", help="dicomweb: base URL of WADO-RS, where it differs.")
@click.option(
    "--every", type=click.FloatRange(1, 604_800), metavar="S", help="Pause between two looks  [default: 300 s]"
)
@click.option(
    "--filter", "filters", multiple=True, metavar="KEYWORD=VALUE", help="dicomweb: collect only this; may be repeated."
)
@click.option("--since", type=day, metavar="DATE", help="dicomweb: first study date of interest.")
@click.option("--overlap-days", type=click.IntRange(0, 3_650), metavar="N",
              help="dicomweb: days before the latest study date seen at which a look begins  [default: 3]")  # fmt: skip
@click.option("--quiet", type=click.FloatRange(0, 86_400), metavar="S",
              help="folder: how long a file must not have changed  [default: 10 s]")  # fmt: skip
@click.option("--keep-files", is_flag=True, help="folder: leave files there instead of moving them aside.")
@click.option("--from", "start", type=day, metavar="DATE", help="First day of its use (UTC)  [default: now]")
@click.option("--until", "end", type=day, metavar="DATE", help="Last day of its use (UTC)  [default: no end]")
@configured()
def add_endpoint(config: Config, name: str, subscriber: str, address: str, way: str, **given: Any) -> None:
    """Register the endpoint NAME of SUBSCRIBER at ADDRESS.

    ADDRESS is the base URL of a DICOMweb service (/studies is appended), the URL of a webhook, or a folder. One of the
    same name is replaced as a whole, credentials included; only a webhook keeps its secret. An address that is not
    public, or without TLS, has to lie in outbound.private_networks.

    \b
    Examples:
      fhir-imaging endpoint add pacs radiology https://pacs.example.org/dicom-web --way stow --bearer token.txt
      fhir-imaging endpoint add hook radiology https://app.example.org/images --way webhook
      fhir-imaging endpoint add ct clinic https://ct.example.org/dicom-web --way dicomweb --filter Modality=CT
      fhir-imaging endpoint add inbox clinic /srv/inbox --way folder --every 60
    """
    from fhir_server.app import open_server
    from fhir_server.endpoints import OVERLAP

    chosen = Way(way)
    _check_fit(chosen, given)
    peer = Peer(
        name=name,
        subscriber="",
        way=chosen,
        address=address if chosen is Way.FOLDER else address.rstrip("/"),
        wado_address=(given["wado_address"] or "").rstrip("/"),
        authorization=_authorization(given["bearer"], given["basic"]),
        form=Form(given["form"] or Form.NATIVE),
        schedule=_schedule(given),
        start=given["start"],
        # The last day is part of the time.
        end=given["end"] + timedelta(days=1) if given["end"] else None,
    )
    hours = given["old_secret_hours"]
    if hours is not None and not given["new_secret"]:
        raise click.UsageError("--old-secret-hours goes with --new-secret")
    overlap = OVERLAP if hours is None else timedelta(hours=hours)
    with open_server(config) as server:
        added, secret = server.endpoints.add(peer, subscriber, new_secret_wanted=given["new_secret"], overlap=overlap)
    click.echo(f"{added.name} is {added.endpoint} of {subscriber}")
    if secret:
        click.echo(f"secret of its signatures, shown this once: {secret}")


@endpoint.command("list")
@configured()
def list_endpoints(config: Config) -> None:
    """Print every endpoint with its way, its subscriber, its state and its address.

    \b
    Example:
      fhir-imaging endpoint list
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        found = server.endpoints.all()
        names = {each.organization: each.name for each in server.principals.subscribers()}
        now = server.clock()
    rows = [
        (each.name, each.way, names.get(each.subscriber, each.subscriber), _state(each, now), each.address)
        for each in found
    ]
    click.echo(table(("name", "way", "subscriber", "state", "address"), rows), nl=False)


@endpoint.command("suspend")
@click.argument("name")
@configured()
def suspend_endpoint(config: Config, name: str) -> None:
    """Connect to NAME no more for the time being.

    Orders for it wait as long as they may.

    \b
    Example:
      fhir-imaging endpoint suspend pacs
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        server.endpoints.suspend(name)
    click.echo(f"{name} is suspended")


@endpoint.command("resume")
@click.argument("name")
@configured()
def resume_endpoint(config: Config, name: str) -> None:
    """Use NAME again.

    \b
    Example:
      fhir-imaging endpoint resume pacs
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        server.endpoints.resume(name)
    click.echo(f"{name} is in use")


@endpoint.command("remove")
@click.argument("name")
@configured()
def remove_endpoint(config: Config, name: str) -> None:
    """Forget NAME, its credentials and what was collected from it.

    Orders for it that wait fail.

    \b
    Example:
      fhir-imaging endpoint remove pacs
    """
    from fhir_server.app import open_server

    with open_server(config) as server:
        server.endpoints.remove(name)
    click.echo(f"{name} is removed")


def _check_fit(way: Way, given: dict[str, Any]) -> None:
    for option, value in given.items():
        if value and way not in _FITS.get(option, set(Way)):
            word = {"filters": "filter"}.get(option, option).replace("_", "-")
            raise click.UsageError(f"--{word} does not go with --way {way}")


def _authorization(bearer: TextIO | None, basic: TextIO | None) -> str:
    """Return the value of the header Authorization."""
    if bearer and basic:
        raise click.UsageError("give one of --bearer and --basic")
    file = bearer or basic
    if file is None:
        return ""
    text = file.read(_MOST_CREDENTIAL_BYTES).strip()
    if not text or (basic and ":" not in text):
        raise click.UsageError("the file of --bearer holds a token, that of --basic user:password")
    return f"Bearer {text}" if bearer else f"Basic {base64.b64encode(text.encode()).decode()}"


def _schedule(given: dict[str, Any]) -> Schedule:
    plain = Schedule()
    return Schedule(
        every_s=_or(given["every"], plain.every_s),
        filters=tuple(given["filters"]),
        since=given["since"].strftime("%Y%m%d") if given["since"] else "",
        overlap_days=_or(given["overlap_days"], plain.overlap_days),
        quiet_s=_or(given["quiet"], plain.quiet_s),
        keeps=given["keep_files"],
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _state(peer: Peer, now: datetime) -> str:
    if peer.is_suspended:
        return "suspended"
    return "in use" if peer.in_use(now) else "not in its time"
