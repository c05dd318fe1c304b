"""The CapabilityStatement: what this server does, generated from the tables that make it do so.

Source: FHIR R4 capabilitystatement, http 3.1.0.11.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

from fhir_server.model.criteria import modifiers
from fhir_server.model.dates import to_instant
from fhir_server.model.definitions import FHIR_VERSION, Parameter, compartments_known, parameters
from fhir_server.model.resources import Interaction, ResourceType, SystemInteraction
from fhir_server.model.topics import TOPICS

Json = dict[str, Any]

SOFTWARE = "FHIR Imaging Server"
FORMATS = ("application/fhir+json", "application/fhir+xml", "json", "xml")
_WEBSOCKET = "http://hl7.org/fhir/StructureDefinition/capabilitystatement-websocket"
# Subscriptions R5 Backport 1.1.0, conformance in R4.
_BACKPORT = "http://hl7.org/fhir/uv/subscriptions-backport"
_TOPIC = f"{_BACKPORT}/StructureDefinition/capabilitystatement-subscriptiontopic-canonical"
TOPIC_SERVER = f"{_BACKPORT}/CapabilityStatement/backport-subscription-server-r4"
PATCH_FORMATS = ("application/json-patch+json", "application/fhir+json", "application/fhir+xml")


def capability_statement(
    resources: Iterable[ResourceType],
    *,
    base_url: str,
    version: str,
    date: datetime,
    security: Json | None = None,
    client_ids: bool = False,
    operations: Iterable[tuple[str, str, frozenset[str]]] = (),
    socket_url: str = "",
    formats: Iterable[str] = FORMATS,
    exports: Mapping[str, str] = MappingProxyType({}),
    instantiates: Sequence[str] = (),
) -> Json:
    """Return the CapabilityStatement of a server that serves these types at this base.

    date      when the tables last changed: the release's date, or the start of the process
    security  the `rest.security` element
    client_ids  an update of an absent id creates it, whatever a type's row says
    operations  (name, canonical URL of the definition, the types that they are for, none for all)
    socket_url  where clients are told by WebSocket what Subscriptions tell
    exports     type of an address that takes `$export`, "" for the whole -> canonical URL of the definition
    instantiates  canonical URLs of the statements that are fulfilled
    """
    rest: Json = {"mode": "server", "documentation": _SEARCH_NOTE}
    if socket_url:
        rest = {"extension": [{"url": _WEBSOCKET, "valueUri": socket_url}], **rest}
    if security:
        rest["security"] = security
    offered = tuple(operations)
    rows = sorted(resources, key=lambda row: row.name)
    pointing = _pointing([row.name for row in rows])
    rest["resource"] = [
        _resource(row, pointing[row.name], client_ids) | _operations(row, base_url, offered, exports.get(row.name, ""))
        for row in rows
    ]
    rest["interaction"] = [{"code": code.value} for code in SystemInteraction]
    if offered:
        whole = [("export", exports[""], frozenset[str]())] if "" in exports else []
        rest["operation"] = [{"name": name, "definition": url} for name, url, _ in (*offered, *whole)]
    everywhere = (parameters("Patient")[code] for code in sorted(_EVERYWHERE))
    rest["searchParam"] = [_parameter(each) for each in everywhere]
    owners = sorted(compartments_known())
    rest["compartment"] = [f"http://hl7.org/fhir/CompartmentDefinition/{name.lower()}" for name in owners]
    return {
        "resourceType": "CapabilityStatement",
        "url": f"{base_url}/metadata",
        "version": version,
        "name": "FhirImagingServer",
        "title": SOFTWARE,
        "status": "active",
        "date": to_instant(date),
        "kind": "instance",
        **({"instantiates": [*instantiates]} if instantiates else {}),
        "software": {"name": SOFTWARE, "version": version},
        "implementation": {"description": SOFTWARE, "url": base_url},
        "fhirVersion": FHIR_VERSION,
        "format": list(formats),
        "patchFormat": list(PATCH_FORMATS),
        "rest": [rest],
    }


# parameters of all types
_EVERYWHERE = frozenset({"_id", "_lastUpdated", "_profile", "_security", "_source", "_tag"})


def with_parameters(statement: Json, custom: Mapping[str, Iterable[Parameter]]) -> Json:
    """Return the statement with further search parameters, by resource type."""
    if not custom:
        return statement
    rest = statement["rest"][0]
    rows = []
    for row in rest["resource"]:
        further = [_parameter(each) for each in custom.get(row["type"], ())]
        rows.append({**row, "searchParam": [*row["searchParam"], *further]} if further else row)
    return {**statement, "rest": [{**rest, "resource": rows}]}


def normative(statement: Json) -> Json:
    """Return the part of a statement that is about what is normative in R4. Source: FHIR R4 http 3.1.0.8."""
    rest = statement["rest"][0]
    rows = [row for row in rest["resource"] if row["type"] in _NORMATIVE]
    return {**statement, "rest": [{**rest, "resource": rows}]}


# Resource types of the standards status Normative. Source: FHIR R4 resourcelist.
_NORMATIVE = frozenset(
    {
        "Binary", "Bundle", "CapabilityStatement", "CodeSystem", "Observation", "OperationDefinition",
        "OperationOutcome", "Parameters", "Patient", "StructureDefinition", "ValueSet",
    }
)  # fmt: skip
_SEARCH_NOTE = (
    "Search is strict: an unknown parameter is an error unless Prefer: handling=lenient is sent. "
    "Results come newest created first, or as _sort says: by every parameter that is no composite, up or down. "
    "Chains, _has, _list, _filter, _contained, _type and compartments are supported, and _count, _total, _summary, "
    "_elements and paging links."
)


def _resource(row: ResourceType, pointing: Sequence[str], client_ids: bool) -> Json:
    topics = [{"url": _TOPIC, "valueCanonical": url} for url in (TOPICS if row.name == "Subscription" else ())]
    made: Json = {"extension": topics} if topics else {}
    made |= {"type": row.name, "profile": f"http://hl7.org/fhir/StructureDefinition/{row.name}"}
    if row.profiles:
        made["supportedProfile"] = list(row.profiles)
    made["interaction"] = [{"code": code.value} for code in Interaction if code in row.interactions]
    made |= _versioning(row, client_ids)
    if Interaction.SEARCH in row.interactions:
        found = parameters(row.name)
        made["searchInclude"] = ["*", *(f"{row.name}:{each.code}" for each in _references(row.name))]
        made["searchRevInclude"] = sorted(pointing)
        made["searchParam"] = [_parameter(found[code]) for code in sorted(found)]
    return {name: value for name, value in made.items() if value != []}


def operation_id(resource_type: str, name: str) -> str:
    """Return the id of the OperationDefinition of an operation on a type."""
    return f"{resource_type.lower()}-{name}"


def _operations(
    row: ResourceType, base_url: str, offered: Iterable[tuple[str, str, frozenset[str]]], export: str
) -> Json:
    found = [
        {"name": name, "definition": f"{base_url}/OperationDefinition/{operation_id(row.name, name)}"}
        for name in row.operations
    ]
    found += [{"name": name, "definition": url} for name, url, types in offered if row.name in types]
    found += [{"name": "export", "definition": export}] if export else []
    return {"operation": found} if found else {}


def _versioning(row: ResourceType, client_ids: bool) -> Json:
    if row.append_only:
        made: Json = {"versioning": "no-version", "readHistory": False, "updateCreate": False}
    else:
        may_create = Interaction.UPDATE in row.interactions and (row.update_create or client_ids)
        made = {"versioning": "versioned-update", "readHistory": True, "updateCreate": may_create}
    made["conditionalCreate"] = Interaction.CREATE in row.interactions
    made["conditionalRead"] = "full-support"
    made["conditionalUpdate"] = Interaction.UPDATE in row.interactions
    made["conditionalDelete"] = "single" if Interaction.DELETE in row.interactions else "not-supported"
    return made


def _references(resource_type: str) -> list[Parameter]:
    found = parameters(resource_type)
    return [found[code] for code in sorted(found) if found[code].type == "reference"]


def _pointing(served: Sequence[str]) -> dict[str, list[str]]:
    """Return the parameters that may point to each of the types; one that names no targets may point to all."""
    found: dict[str, list[str]] = {name: [] for name in served}
    for kind in served:
        for parameter in _references(kind):
            for target in found.keys() & parameter.targets if parameter.targets else served:
                found[target].append(f"{kind}:{parameter.code}")
    return found


def _parameter(parameter: Parameter) -> Json:
    made = {"name": parameter.code, "definition": parameter.url, "type": parameter.type}
    return {**made, "documentation": _note(parameter)}


def _note(parameter: Parameter) -> str:
    offered = sorted(f":{name}" for name in modifiers(parameter) if name)
    if parameter.type == "reference":
        offered.append(":[type]")
    return f"modifiers: {', '.join(offered) or 'none'}"
