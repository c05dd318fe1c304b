"""An interaction as a value: what is asked, what is answered. Pure; knows no socket and no database.

A request to the FHIR door and an entry of a batch or transaction become the same `Ask`, so that both go the same way.
Source: FHIR R4 http 3.1.0.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from enum import Enum
from http import HTTPStatus
from typing import Any

from fhir_server.model.resources import Interaction, SystemInteraction
from fhir_server.store.documents import Resource
from imaging.errors import AppError, Category

Json = dict[str, Any]
Parameters = tuple[tuple[str, str], ...]


class Return(Enum):
    """What a client wants back after a write. Source: FHIR R4 http 3.1.0.1.8."""

    MINIMAL = "minimal"
    REPRESENTATION = "representation"
    OUTCOME = "operationoutcome"


@dataclass(frozen=True, slots=True)
class Preferences:
    """What the header `Prefer` says, of what this server takes notice of. Source: RFC 7240, FHIR R4 http 3.1.0.1.8."""

    back: Return = Return.REPRESENTATION
    is_lenient: bool = False
    is_async: bool = False


@dataclass(frozen=True, slots=True)
class Conditions:
    """Headers on which an interaction depends, as they came; None: not given."""

    if_match: str | None = None
    if_none_match: str | None = None
    if_modified_since: str | None = None
    if_none_exist: str | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """One interaction as it is asked for.

    id     "" where the server chooses it or a search selects the resource; of a create: that which was chosen
    body   the resource as parsed; of a patch, what it does (`model.patch.Change`)
    """

    interaction: Interaction | SystemInteraction
    type: str = ""
    id: str = ""
    version: str = ""
    parameters: Parameters = ()
    body: Any = None
    conditions: Conditions = Conditions()
    preferences: Preferences = Preferences()
    compartment: str = ""  # within which is searched, such as `Patient/1`

    @property
    def searches(self) -> bool:
        """Whether a search is done: for its own sake, or to find what is meant."""
        by_criteria = (Interaction.UPDATE, Interaction.PATCH, Interaction.DELETE)
        is_conditional = self.interaction in by_criteria and not self.id
        is_search = self.interaction in (Interaction.SEARCH, SystemInteraction.SEARCH)
        return is_conditional or is_search or self.conditions.if_none_exist is not None

    @property
    def key(self) -> str:
        """The relative reference `Type/id`, "" where no resource is named."""
        return f"{self.type}/{self.id}" if self.id else ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes back: `body` is canonical JSON, ready to be sent.

    version      the resource version that it is about: its entity tag and its time go along
    location     address of what was written, absolute
    is_outcome   the body is an OperationOutcome that was asked for instead of the resource
    """

    status: HTTPStatus = HTTPStatus.OK
    body: bytes = field(default=b"", repr=False)
    version: Resource | None = None
    location: str = ""
    is_outcome: bool = False


_ETAG = re.compile(r'(?:W/)?"(\d{1,18})"', re.ASCII)


def preferences(header: str) -> Preferences:
    """Return what a Prefer header says; what is not known in it is ignored, as RFC 7240 demands."""
    given = {"".join(each.split()).lower() for each in re.split(r"[,;]", header)}
    back = next((each for each in Return if f"return={each.value}" in given), Return.REPRESENTATION)
    return Preferences(back, "handling=lenient" in given, "respond-async" in given)


def version_of(tag: str) -> int | None:
    """Return the version that an entity tag names, None where it is not one of this server's."""
    match = _ETAG.fullmatch(tag.strip())
    return int(match[1]) if match else None


def version_wanted(if_match: str | None) -> int | None:
    """Return the version that the resource has to be at, None for any. Raises INVALID."""
    if if_match is None:
        return None
    version = version_of(if_match)
    if version is None:
        raise AppError(Category.INVALID, 'If-Match has to be one version such as W/"3"', where="If-Match")
    return version


def is_known(version: Resource, conditions: Conditions) -> bool:
    """Say whether the client has this version already. Source: FHIR R4 http 3.1.0.2.1, RFC 9110 13.2.2."""
    if conditions.if_none_match is not None:
        tags = [tag.strip() for tag in conditions.if_none_match.split(",")]
        return "*" in tags or any(version_of(tag) == version.version for tag in tags)
    since = http_date(conditions.if_modified_since or "")
    return since is not None and version.last_updated.replace(microsecond=0) <= since


def http_date(text: str) -> datetime | None:
    """Return the moment of an HTTP date, or of a FHIR instant, which Bundle entries have; None for anything else."""
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            moment = read(text)
        except (TypeError, ValueError, OverflowError):
            continue
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return None


def to_http_date(moment: datetime) -> str:
    """Return a moment as an HTTP date, which knows whole seconds."""
    return format_datetime(moment.astimezone(UTC), usegmt=True)


def conditions_of(headers: Mapping[str, str]) -> Conditions:
    """Return the conditions in HTTP headers."""
    return Conditions(
        if_match=headers.get("If-Match"),
        if_none_match=headers.get("If-None-Match"),
        if_modified_since=headers.get("If-Modified-Since"),
        if_none_exist=headers.get("If-None-Exist"),
    )
