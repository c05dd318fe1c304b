"""Peers: the other ends of connections that this server makes for a subscriber, as an operator registered them.

Pure. A peer is shown to subscribers as a FHIR Endpoint, which never holds its credentials, nor a path of this machine.
What the server connects to is the peer, not the Endpoint.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from fhir_server.model.dates import to_instant
from imaging.errors import AppError, Category

ENDPOINT_PREFIX = "peer-"  # how the id of a peer's Endpoint begins
COLLECTION = "urn:fhir-imaging:extension:collection"  # on Endpoint: how often and what is collected from it
_CONNECTION = "http://terminology.hl7.org/CodeSystem/endpoint-connection-type"
_OWN_CONNECTION = "urn:fhir-imaging:code:connection-type"  # for what FHIR has no code
_PAYLOAD = {"system": "http://terminology.hl7.org/CodeSystem/endpoint-payload-type", "code": "any", "display": "Any"}
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,48}[a-z0-9])?")


class Way(StrEnum):
    """How a peer is spoken to."""

    STOW = "stow"
    WEBHOOK = "webhook"
    DICOMWEB = "dicomweb"
    FOLDER = "folder"


RECEIVERS = frozenset({Way.STOW, Way.WEBHOOK})
SOURCES = frozenset({Way.DICOMWEB, Way.FOLDER})

_CODINGS: Mapping[Way, Mapping[str, str]] = {
    Way.STOW: {"system": _CONNECTION, "code": "dicom-stow-rs", "display": "DICOM STOW-RS"},
    Way.WEBHOOK: {"system": _CONNECTION, "code": "hl7-fhir-rest", "display": "HL7 FHIR"},
    Way.DICOMWEB: {"system": _CONNECTION, "code": "dicom-qido-rs", "display": "DICOM QIDO-RS"},
    Way.FOLDER: {"system": _OWN_CONNECTION, "code": "folder", "display": "Watched folder"},
}


class Form(StrEnum):
    """In which form a receiver gets images."""

    NATIVE = "native"  # uncompressed where this server compressed them: what every receiver reads
    STORED = "stored"  # as they lie in the archive, native where the receiver does not take that
    RECEIVED = "received"  # the very files that came in


@dataclass(frozen=True, slots=True)
class Schedule:
    """What is collected from a source, and when.

    every_s       pause after a look that found nothing new
    filters       QIDO-RS keys, "Modality=CT"; each narrows what is collected
    since         first study date of interest, YYYYMMDD; "" for any
    overlap_days  how far before the latest study date seen a look begins, for studies that come late
    quiet_s       how long a file of a folder must not have changed before it is taken
    keeps         files of a folder stay where they are, instead of moving to done/ and refused/
    """

    every_s: float = 300.0
    filters: tuple[str, ...] = ()
    since: str = ""
    overlap_days: int = 3
    quiet_s: float = 10.0
    keeps: bool = False


@dataclass(frozen=True, slots=True)
class Peer:
    """One connection of a subscriber, "Organization/...".

    address         base URL, to which /studies is appended (STOW-RS, QIDO-RS), or of a webhook; or a folder
    wado_address    base URL of WADO-RS where it is not `address`
    authorization   value of the header Authorization, "" for none
    secret          that signs webhooks; beside it `old_secret`, which it replaced, until `old_secret_until`
    start, end      of the time in which it is used; None: no bound
    """

    name: str
    subscriber: str
    way: Way
    address: str
    wado_address: str = ""
    authorization: str = field(default="", repr=False)
    secret: str = field(default="", repr=False)
    old_secret: str = field(default="", repr=False)
    old_secret_until: datetime | None = None
    form: Form = Form.NATIVE
    schedule: Schedule = Schedule()
    start: datetime | None = None
    end: datetime | None = None
    is_suspended: bool = False

    @property
    def endpoint(self) -> str:
        """The reference of the Endpoint that shows it."""
        return f"Endpoint/{ENDPOINT_PREFIX}{self.name}"

    def secrets(self, now: datetime) -> tuple[str, ...]:
        """Return what signs webhooks at this moment, the newest first."""
        is_overlap = self.old_secret_until is not None and now < self.old_secret_until
        return (self.secret, self.old_secret) if self.old_secret and is_overlap else (self.secret,)

    def in_use(self, now: datetime) -> bool:
        """Say whether the operator lets it be used at this moment."""
        started = self.start is None or self.start <= now
        return started and not self.is_suspended and (self.end is None or now < self.end)


def check_name(name: str) -> None:
    """Return for a name of which an id can be made. Raises INVALID."""
    if not _NAME.fullmatch(name):
        message = "1 to 50 small letters, digits and dashes are wanted, not beginning or ending with a dash"
        raise AppError(Category.INVALID, message, where="endpoint name")


def name_of_endpoint(reference: str) -> str:
    """Return the name of the peer that an Endpoint shows, "" when it shows none."""
    identifier = reference.rpartition("/")[2]
    return identifier.removeprefix(ENDPOINT_PREFIX) if identifier.startswith(ENDPOINT_PREFIX) else ""


def to_document(peer: Peer) -> dict[str, Any]:
    """Return a peer as the database keeps it, credentials included."""
    document = asdict(peer)
    document["schedule"]["filters"] = list(peer.schedule.filters)
    return {"_id": document.pop("name"), **document, "way": str(peer.way), "form": str(peer.form)}


def from_document(document: Mapping[str, Any]) -> Peer:
    """Return what `to_document` wrote."""
    rest = {name: value for name, value in document.items() if name not in ("_id", "way", "form", "schedule")}
    schedule = Schedule(**{**document["schedule"], "filters": tuple(document["schedule"]["filters"])})
    peer = Peer(name=document["_id"], way=Way(document["way"]), form=Form(document["form"]), schedule=schedule, **rest)
    until = _aware(peer.old_secret_until)
    return replace(peer, start=_aware(peer.start), end=_aware(peer.end), old_secret_until=until)


def endpoint_of(peer: Peer) -> dict[str, Any]:
    """Return the Endpoint that shows a peer."""
    period = {name: to_instant(at) for name, at in (("start", peer.start), ("end", peer.end)) if at}
    resource: dict[str, Any] = {
        "resourceType": "Endpoint",
        "id": peer.endpoint.partition("/")[2],
        "status": "suspended" if peer.is_suspended else "active",
        "connectionType": dict(_CODINGS[peer.way]),
        "name": peer.name,
        "managingOrganization": {"reference": peer.subscriber},
        **({"period": period} if period else {}),
        "payloadType": [{"coding": [_PAYLOAD]}],
        "payloadMimeType": ["application/fhir+json" if peer.way is Way.WEBHOOK else "application/dicom"],
        "address": _shown(peer),
    }
    if peer.way in SOURCES:
        resource["extension"] = [{"url": COLLECTION, "extension": list(_schedule(peer.schedule))}]
    return resource


def _shown(peer: Peer) -> str:
    """Return the address for others: no path of this machine, nor of a webhook, whose path may be its secret."""
    if peer.way is Way.FOLDER:
        return f"urn:fhir-imaging:folder:{peer.name}"
    return "/".join(peer.address.split("/", 3)[:3]) if peer.way is Way.WEBHOOK else peer.address


def _schedule(schedule: Schedule) -> list[dict[str, Any]]:
    every = {"value": schedule.every_s, "unit": "s", "system": "http://unitsofmeasure.org", "code": "s"}
    return [
        {"url": "every", "valueDuration": every},
        *({"url": "filter", "valueString": each} for each in schedule.filters),
    ]


def _aware(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment
