"""Entries of a batch or transaction Bundle, each as the ask, or the operation, that it would be alone.

Source: FHIR R4 bundle, http 3.1.0.11.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from fhir_server.access.audit import Access
from fhir_server.model import json
from fhir_server.model.outcome import Findings, InvalidResource, Issue, issues_of
from fhir_server.model.patch import JSON_PATCH, fhirpath_patch, json_patch
from fhir_server.model.resources import Interaction
from fhir_server.rest.addresses import Address, parts_of, understood
from fhir_server.rest.asks import Answer, Ask, Conditions, Json, Preferences
from fhir_server.rest.interactions import KINDS, Interactions
from fhir_server.rest.operations import Invocation, invoked
from imaging.errors import AppError, Category

METHODS = ("DELETE", "POST", "PUT", "PATCH", "GET", "HEAD")  # those of a transaction in the order of their processing
WITH_RESOURCE = frozenset({"POST", "PUT", "PATCH"})
# element of Bundle.entry.request -> condition
_CONDITIONS: Mapping[str, str] = MappingProxyType(
    {
        "ifMatch": "if_match",
        "ifNoneMatch": "if_none_match",
        "ifModifiedSince": "if_modified_since",
        "ifNoneExist": "if_none_exist",
    }
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, understood: an interaction at an address, or an operation."""

    number: int
    method: str
    address: Address | Invocation
    full_url: str
    resource: Json | None
    conditions: Conditions

    @property
    def where(self) -> str:
        """The entry as FHIRPath."""
        return f"Bundle.entry[{self.number}]"

    @property
    def type(self) -> str:
        """The resource type of the address, "" without one."""
        return self.address.type if isinstance(self.address, Invocation) else self.address.variables.get("type", "")

    @property
    def id(self) -> str:
        """The id of the address, "" without one."""
        return self.address.id if isinstance(self.address, Invocation) else self.address.variables.get("id", "")

    @property
    def access(self) -> Access:
        """What the audit record calls it."""
        if isinstance(self.address, Invocation):
            return self.address.access
        return KINDS[self.address.route.interaction].access

    @property
    def parameters(self) -> tuple[tuple[str, str], ...]:
        """The parameters of the address."""
        return self.address.query if isinstance(self.address, Invocation) else self.address.parameters

    @property
    def is_read_only(self) -> bool:
        """Whether nothing comes of it but its answer."""
        if isinstance(self.address, Invocation):
            return not self.address.operation.changes
        return self.method not in WITH_RESOURCE and self.method != "DELETE"

    def require(self, acting: Interactions) -> None:
        """Return when it is offered and the principal may do it, with some resources at least."""
        if isinstance(self.address, Invocation):
            self.address.require(acting.repository)
        else:
            acting.require(self.address.route.interaction, self.type)

    def finished(self, answer: Answer) -> Answer:
        """Return the answer as it goes out: to HEAD without a body."""
        return replace(answer, body=b"") if self.method == "HEAD" else answer

    def asked(self, preferences: Preferences, *, most_bytes: int, resource: Json | None = None) -> Ask | Invocation:
        """Return the entry as it would be asked alone; `resource` takes the place of its own. Raises TOO_LARGE."""
        if self.resource is not None and len(json.dumps(self.resource)) > most_bytes:
            raise AppError(Category.TOO_LARGE, f"the resource is larger than {most_bytes} bytes", where="resource")
        body = self.resource if resource is None else resource
        if isinstance(self.address, Invocation):
            return replace(self.address, sent=body)
        interaction = self.address.route.interaction
        return Ask(
            interaction,
            self.type,
            self.id,
            self.address.variables.get("vid", ""),
            parameters=self.address.parameters,
            body=_patch(body, most_bytes) if interaction is Interaction.PATCH else body,
            conditions=self.conditions,
            preferences=preferences,
            compartment=self.address.variables.get("compartment", ""),
        )


class EntryError(Findings):
    """What is wrong with one entry, which is what is wrong with the whole."""

    def __init__(self, where: str, error: AppError) -> None:
        # What an entry asks and is not offered is wrong with the Bundle: the address that it came to does take Bundles.
        is_offered = error.category is not Category.UNSUPPORTED
        super().__init__(error.category if is_offered else Category.INVALID, f"{where}: {error}", where=error.where)
        self.issues = issues_in(where, error)


def issues_in(where: str, error: AppError) -> tuple[Issue, ...]:
    """Return the issues of an error in an entry, with their elements named from the Bundle down."""
    if isinstance(error, InvalidResource):
        # `Patient.name[0]` within the entry's resource
        return tuple(
            Issue(each.code, each.text, ".".join([f"{where}.resource", *each.expression.split(".")[1:]]), each.severity)
            for each in error.issues
        )
    return tuple(Issue(each.code, each.text, where, each.severity) for each in issues_of(error))


def entry_of(found: Any, number: int, base_url: str) -> Entry:
    """Return an entry. Raises INVALID for one that is not understood, UNSUPPORTED for an interaction that is not."""
    request = found.get("request") if isinstance(found, dict) else None
    if not isinstance(request, dict):
        raise AppError(Category.INVALID, "the entry has no request", where="request")
    method, url = request.get("method"), request.get("url")
    if method not in METHODS:
        raise AppError(Category.INVALID, f"the method is one of {', '.join(METHODS)}", where="request.method")
    if not isinstance(url, str):
        raise AppError(Category.INVALID, "the entry has no address", where="request.url")
    segments, parameters = parts_of(url, base_url)
    operation = invoked("GET" if method == "HEAD" else method, segments, parameters)
    resource, full_url = found.get("resource"), found.get("fullUrl", "")
    if method in WITH_RESOURCE and not isinstance(resource, dict) and (resource is not None or not operation):
        raise AppError(Category.INVALID, f"{method} needs a resource", where="resource")
    if not isinstance(full_url, str):
        raise AppError(Category.INVALID, "fullUrl is a text", where="fullUrl")
    given = {name: request[element] for element, name in _CONDITIONS.items() if element in request}
    if not all(isinstance(value, str) for value in given.values()):
        raise AppError(Category.INVALID, "conditions are texts", where="request")
    kept = resource if method in WITH_RESOURCE else None
    return Entry(number, method, operation or understood(method, url, base_url), full_url, kept, Conditions(**given))


def _patch(resource: Any, most_bytes: int) -> Any:
    """Return what a patch in an entry does: FHIRPath Patch as Parameters, JSON Patch in a Binary."""
    if not isinstance(resource, dict) or resource.get("resourceType") != "Binary":
        return fhirpath_patch(resource)
    if resource.get("contentType") != JSON_PATCH:
        raise AppError(Category.UNSUPPORTED, f"a Binary with a patch is {JSON_PATCH}", where="Content-Type")
    try:
        document = base64.b64decode(str(resource.get("data", "")), validate=True)
    except binascii.Error:
        raise AppError(Category.INVALID, "the data of the Binary is not base64", where="resource.data") from None
    return json_patch(json.loads(document), most_bytes=most_bytes)
