"""The table of resource types that this server serves: a new type is a new row.

Search parameters, structure and compartments of every R4 type come from the official definitions; a row says which
interactions the FHIR door offers and what is special about the type.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Interaction(StrEnum):
    """What a client may do with a type. Source: FHIR R4 CapabilityStatement, TypeRestfulInteraction."""

    READ = "read"
    VREAD = "vread"
    UPDATE = "update"
    DELETE = "delete"
    HISTORY = "history-instance"
    HISTORY_TYPE = "history-type"
    CREATE = "create"
    SEARCH = "search-type"


class SystemInteraction(StrEnum):
    """What a client may do with the whole. Source: FHIR R4 CapabilityStatement, SystemRestfulInteraction."""

    HISTORY = "history-system"


READ_ONLY = frozenset(
    {Interaction.READ, Interaction.VREAD, Interaction.HISTORY, Interaction.HISTORY_TYPE, Interaction.SEARCH}
)
ALL = frozenset(Interaction)


@dataclass(frozen=True, slots=True)
class ResourceType:
    """How one resource type is served."""

    name: str
    interactions: frozenset[Interaction] = ALL
    update_create: bool = False  # an update of an absent id creates it: clients may choose ids
    append_only: bool = False  # written once, without version history: no update, no delete
    sorts: tuple[str, ...] = ()  # date parameters with an index of their own for range and order
    profiles: tuple[str, ...] = ()  # profiles that resources of this type conform to


_ROWS = (
    ResourceType("AuditEvent", frozenset({Interaction.READ, Interaction.SEARCH}), append_only=True, sorts=("date",)),
    ResourceType("Contract", READ_ONLY),  # made by the operator's commands
    ResourceType("Device"),
    ResourceType("DiagnosticReport", sorts=("date",)),
    ResourceType("Encounter"),
    ResourceType("Endpoint"),
    ResourceType("ImagingStudy", sorts=("started",)),
    ResourceType("Location"),
    ResourceType("Observation", sorts=("date",)),
    ResourceType("Organization", READ_ONLY),  # made by the operator's commands
    ResourceType("Patient", sorts=("birthdate",)),
    ResourceType("Practitioner"),
    ResourceType("PractitionerRole"),
    ResourceType("Procedure"),
    ResourceType("Provenance", sorts=("recorded",)),
    ResourceType("ServiceRequest", sorts=("authored",)),
    ResourceType("Task", sorts=("authored-on", "modified")),
)

RESOURCES: Mapping[str, ResourceType] = MappingProxyType({row.name: row for row in _ROWS})
