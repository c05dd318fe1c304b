"""How a resource lies in the database: its canonical JSON as bytes, and beside it what the database needs.

`resources` holds the current version, `history` every version. Both say by a `stamp` who brought it: that is in no
resource, and no client can write it. A deleted resource's document has no `type`, so that no
index that starts with the type contains it and no search can find it.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bson.binary import Binary

from fhir_server.model import json
from fhir_server.model.dates import to_instant

Json = dict[str, Any]
Document = Mapping[str, Any]

PACK_ABOVE = 256 * 1024  # bytes; larger bodies are compressed with zlib
BODY_FIELDS = {
    "body": 1, "packed": 1, "version": 1, "lastUpdated": 1, "method": 1, "deleted": 1, "created": 1,
    "owner": 1, "grant": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stamp:
    """Who brings a resource.

    owner   reference of the subscriber whose it is, "" for the server's own
    grant   what the token of whoever brought it was given for, None where the contracts alone limit it
    among   other subscribers about whose patients the owner may write, None for everybody: what is about a patient
            belongs to whose patient it is
    """

    owner: str = ""
    grant: Mapping[str, Any] | None = None
    among: frozenset[str] | None = frozenset()

    def after(self, before: "Stamp") -> "Stamp":
        """Return the stamp of a version that somebody makes of what has a stamp: its owner stays who it is.

        What its owner changes under a grant is under that grant from then on.
        """
        is_owners = self.grant is not None and before.owner in ("", self.owner)
        return Stamp(before.owner, self.grant if is_owners else before.grant)

    def fields(self) -> dict[str, Any]:
        """Return the fields of a document."""
        found = {"owner": self.owner, "grant": self.grant}
        return {name: value for name, value in found.items() if value}


NOBODY = Stamp()
REACH_FIELDS = {"_id": 0, "owner": 1, "compartments": 1, "tok.p": 1, "tok.c": 1}


@dataclass(frozen=True, slots=True)
class Reach:
    """What of a resource the limits of contracts go by.

    owner        subscriber that brought it, "Organization/..."; "" for the server's own
    modalities   codes of DICOM
    patients     "Patient/..." whose it is
    """

    owner: str
    modalities: frozenset[str]
    patients: frozenset[str]


def reach_of(document: Document) -> Reach:
    """Return what limits go by, of a document that has `REACH_FIELDS`."""
    modalities = frozenset(str(row.get("c", "")) for row in document.get("tok", ()) if row.get("p") == "modality")
    return Reach(document.get("owner", ""), modalities, frozenset(document.get("compartments", ())))


@dataclass(frozen=True, slots=True)
class Resource:
    """One version of a resource. `body` is its canonical JSON (empty when deleted), ready to be sent."""

    type: str
    id: str
    version: int
    last_updated: datetime
    body: bytes = field(repr=False)  # never in a log
    deleted: bool = False
    created: datetime | None = None  # when it came first, or again after a deletion
    method: str = "PUT"  # how this version came: POST, PUT or DELETE
    stamp: Stamp = NOBODY

    @property
    def etag(self) -> str:
        """The weak entity tag of this version, such as `W/"3"`."""
        return f'W/"{self.version}"'

    @property
    def is_first(self) -> bool:
        """Whether the resource came into being with this version, the first time or again after a deletion."""
        return not self.deleted and self.created == self.last_updated

    @property
    def key(self) -> str:
        """The relative reference `Type/id`."""
        return f"{self.type}/{self.id}"

    def json(self) -> Json:
        """Return the resource as a new dict."""
        parsed: Json = json.loads_trusted(self.body)
        return parsed


def stamped(resource: Json, identifier: str, version: int, moment: datetime) -> Json:
    """Return the resource with the server's id and meta first, everything else in the order it came."""
    meta = {"versionId": str(version), "lastUpdated": to_instant(moment)}
    given = {name: value for name, value in resource.get("meta", {}).items() if name not in meta}
    rest = {name: value for name, value in resource.items() if name not in {"resourceType", "id", "meta"}}
    return {"resourceType": resource["resourceType"], "id": identifier, "meta": {**meta, **given}, **rest}


def version_document(resource: Json, version: int, moment: datetime, method: str) -> Json:
    """Return the fields that the current and the historic document of a version share."""
    body = json.dumps(resource)
    packed = len(body) > PACK_ABOVE
    content = Binary(zlib.compress(body, 1) if packed else body)
    document = {"version": version, "lastUpdated": moment, "method": method, "body": content}
    return {**document, "packed": True} if packed else document


def tombstone(version: int, moment: datetime) -> Json:
    """Return the fields of a version that says: deleted."""
    return {"version": version, "lastUpdated": moment, "method": "DELETE", "deleted": True}


def resource_of(key: str, document: Document) -> Resource:
    """Return the resource version in a document; `key` is `Type/id`."""
    kind, _, identifier = key.partition("/")
    body = bytes(document.get("body", b""))
    return Resource(
        type=kind,
        id=identifier,
        version=document["version"],
        last_updated=document["lastUpdated"],
        body=zlib.decompress(body) if document.get("packed") else body,
        deleted=document.get("deleted", False),
        created=document.get("created"),
        method=document["method"],
        stamp=Stamp(document.get("owner", ""), document.get("grant")),
    )
