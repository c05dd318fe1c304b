"""The FHIR door as an OpenAPI 3.1 document, made of the CapabilityStatement and of the table of addresses.

For tools that know no FHIR: it names addresses, methods, parameters and status codes; what is in a resource is told by
FHIR's own definitions. Pure.
"""

import re
from collections.abc import Iterator
from typing import Any

from fhir_server.model.capability import FORMATS, PATCH_FORMATS
from fhir_server.model.definitions import compartments_known
from fhir_server.model.resources import Interaction, SystemInteraction
from fhir_server.rest.addresses import ROUTES, WITHIN, Route

Json = dict[str, Any]

_VARIABLE = re.compile(r"\[(\w+)\]")
_MEDIA = tuple(each for each in FORMATS if "/" in each)
_READS = frozenset({Interaction.READ, Interaction.VREAD})
_HISTORIES = frozenset({Interaction.HISTORY, Interaction.HISTORY_TYPE, SystemInteraction.HISTORY})
_WRITES = frozenset({Interaction.UPDATE, Interaction.PATCH, Interaction.DELETE})
# interaction -> how it ends well; all may end with an OperationOutcome
_SUCCESS: dict[Interaction | SystemInteraction, tuple[tuple[str, str], ...]] = {
    Interaction.CREATE: (("200", "a resource that meets the criteria was there already"), ("201", "created")),
    Interaction.UPDATE: (("200", "updated"), ("201", "created")),
    Interaction.PATCH: (("200", "patched"),),
    Interaction.DELETE: (("200", "deleted, with an OperationOutcome where that is preferred"), ("204", "deleted")),
    Interaction.READ: (("200", "the resource"), ("304", "the client has it")),
    Interaction.VREAD: (("200", "the version"), ("304", "the client has it")),
}
_SECTION = "https://hl7.org/fhir/R4/http.html#"
_HEADERS = {
    "IfMatch": ("If-Match", 'version that has to be the current one, such as W/"3"'),
    "IfNoneMatch": ("If-None-Match", "versions that the client has; * on an update: only where nothing is there"),
    "IfModifiedSince": ("If-Modified-Since", "time of what the client has"),
    "IfNoneExist": ("If-None-Exist", "criteria: create only where nothing meets them"),
    "Prefer": ("Prefer", "return=minimal, representation or OperationOutcome; handling=strict or lenient"),
}
_QUERY = {
    "Format": ("_format", "json, xml or a media type; goes before Accept"),
    "Pretty": ("_pretty", "true: indented, for people"),
    "Summary": ("_summary", "true, text, data or false; count for searches"),
    "Elements": ("_elements", "top elements to give, with commas between"),
    "Count": ("_count", "entries on a page"),
    "Since": ("_since", "versions made at this instant or later"),
    "At": ("_at", "versions that were current at some moment of this time"),
    "Cursor": ("_cursor", "place where the page begins, from a link"),
    "Sort": ("_sort", "keys, with commas between, - before one reverses it"),
    "Include": ("_include", "what comes with the matches, Type:parameter"),
    "RevInclude": ("_revinclude", "what refers to the matches, Type:parameter"),
    "Total": ("_total", "none, estimate or accurate"),
}


def document(statement: Json) -> Json:
    """Return the OpenAPI document of the server that a CapabilityStatement describes."""
    rest = statement["rest"][0]
    paths: dict[str, Json] = {"/metadata": {"get": _metadata()}, "/": {"post": _bundle()}}
    for row in rest["resource"]:
        for path, method, operation in _of_type(row):
            paths.setdefault(path, {})[method] = operation
    for route in ROUTES:
        if "[type]" not in route.template:
            paths.setdefault(f"/{_path(route, '')}", {})[route.method.lower()] = _operation(route, "", [])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": statement["title"],
            "version": statement["version"] or "0",
            "description": "HL7 FHIR R4 (4.0.1) RESTful API. What resources hold: https://hl7.org/fhir/R4.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": statement["implementation"]["url"]}],
        "security": [{"bearer": []}],
        "tags": [{"name": row["type"]} for row in rest["resource"]],
        "paths": paths,
        "components": _components(),
    }


def _of_type(row: Json) -> Iterator[tuple[str, str, Json]]:
    offered = {each["code"] for each in row["interaction"]}
    own = [_search_parameter(each) for each in row.get("searchParam", ())]
    for route in ROUTES:
        if route.template in WITHIN:
            if row["type"] in compartments_known():
                yield f"/{_path(route, row['type'])}", route.method.lower(), _operation(route, row["type"], [])
        elif "[type]" in route.template and route.interaction.value in offered:
            path = f"/{_path(route, row['type'])}"
            by_criteria = route.interaction in _WRITES and "[id]" not in route.template
            found = own if by_criteria or route.interaction is Interaction.SEARCH else []
            yield path, route.method.lower(), _operation(route, row["type"], found)
    if Interaction.SEARCH in offered:
        operation = _operation(Route("POST", "[type]/_search", Interaction.SEARCH), row["type"], [])
        form = {"schema": {"type": "object", "additionalProperties": {"type": "string"}}}
        operation["requestBody"] = {"content": {"application/x-www-form-urlencoded": form}}
        yield f"/{row['type']}/_search", "post", operation


def _path(route: Route, kind: str) -> str:
    return _VARIABLE.sub(lambda match: kind if match[1] == "type" else f"{{{match[1]}}}", route.template)


def _operation(route: Route, kind: str, own: list[Json]) -> Json:
    interaction = route.interaction
    variables = [name for name in _VARIABLE.findall(route.template) if name != "type"]
    by_criteria = " by criteria" if interaction in _WRITES and "[id]" not in route.template else ""
    made: Json = {
        "operationId": "-".join(filter(None, (interaction.value, kind, route.method.lower(), *variables))),
        "summary": f"{interaction.value}{by_criteria}" + (f" of {kind}" if kind else ""),
        "externalDocs": {"url": _SECTION + interaction.value.partition("-")[0]},
        "parameters": [*map(_variable, variables), *_common(interaction), *own],
        "responses": _responses(interaction),
    }
    if kind:
        made["tags"] = [kind]
    if interaction in (Interaction.CREATE, Interaction.UPDATE, Interaction.PATCH):
        media = PATCH_FORMATS if interaction is Interaction.PATCH else _MEDIA
        made["requestBody"] = {"required": True, "content": {each: _body(each, kind) for each in media}}
    return made


def _body(media: str, kind: str) -> Json:
    if media == "application/json-patch+json":
        return {"schema": {"type": "array", "items": {"type": "object"}}}
    return {"schema": {"$ref": "#/components/schemas/Resource"}} if media.endswith("json") and kind else {}


def _common(interaction: Interaction | SystemInteraction) -> list[Json]:
    names = ["Format", "Pretty"]
    if interaction in _READS:
        names += ["Summary", "Elements", "IfNoneMatch", "IfModifiedSince"]
    elif interaction in _HISTORIES:
        names += ["Count", "Since", "At", "Cursor"]
    elif interaction in (Interaction.SEARCH, SystemInteraction.SEARCH):
        names += ["Count", "Sort", "Include", "RevInclude", "Total", "Summary", "Elements", "Cursor", "Prefer"]
    elif interaction is Interaction.CREATE:
        names += ["IfNoneExist", "Prefer"]
    elif interaction in _WRITES:
        names += ["IfMatch", "Prefer", *(["IfNoneMatch"] if interaction is Interaction.UPDATE else [])]
    return [{"$ref": f"#/components/parameters/{name}"} for name in names]


def _responses(interaction: Interaction | SystemInteraction) -> Json:
    content = {"$ref": "#/components/responses/Resource"}
    made: Json = {}
    for status, text in _SUCCESS.get(interaction, (("200", "a Bundle"),)):
        made[status] = {"description": text} if status in ("204", "304") else content
    return {**made, "default": {"$ref": "#/components/responses/OperationOutcome"}}


def _search_parameter(found: Json) -> Json:
    # A name may come with a modifier (`name:exact`), which OpenAPI cannot say, and more than once.
    schema = {"type": "array", "items": {"type": "string"}}
    described = f"{found['type']}; {found.get('documentation', '')}".rstrip("; ")
    return {"name": found["name"], "in": "query", "description": described, "schema": schema}


def _variable(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "maxLength": 64}}


def _metadata() -> Json:
    return {
        "operationId": "capabilities",
        "summary": "what the server does, as a CapabilityStatement; open to all",
        "security": [],
        "parameters": _common(Interaction.CREATE)[:2],
        "responses": {"200": {"$ref": "#/components/responses/Resource"}},
    }


def _bundle() -> Json:
    return {
        "operationId": "batch-transaction",
        "summary": "batch or transaction",
        "externalDocs": {"url": f"{_SECTION}transaction"},
        "parameters": [*_common(Interaction.CREATE)[:2], {"$ref": "#/components/parameters/Prefer"}],
        "requestBody": {"required": True, "content": {each: _body(each, "Bundle") for each in _MEDIA}},
        "responses": {
            "200": {"$ref": "#/components/responses/Resource"},
            "default": {"$ref": "#/components/responses/OperationOutcome"},
        },
    }


def _components() -> Json:
    resource = {"application/fhir+json": {"schema": {"$ref": "#/components/schemas/Resource"}}}
    told = {**resource, "application/fhir+xml": {}}
    versioned = {name: {"schema": {"type": "string"}} for name in ("ETag", "Last-Modified", "Location", "X-Request-Id")}
    parameters = {
        **{key: _parameter(name, "header", text) for key, (name, text) in _HEADERS.items()},
        **{key: _parameter(name, "query", text) for key, (name, text) in _QUERY.items()},
    }
    return {
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        "schemas": {
            "Resource": {
                "type": "object",
                "required": ["resourceType"],
                "properties": {"resourceType": {"type": "string"}, "id": {"type": "string"}},
                "externalDocs": {"url": "https://hl7.org/fhir/R4/fhir.schema.json.zip"},
            }
        },
        "parameters": parameters,
        "responses": {
            "Resource": {"description": "a resource", "headers": versioned, "content": told},
            "OperationOutcome": {"description": "what went wrong, as an OperationOutcome", "content": told},
        },
    }


def _parameter(name: str, place: str, text: str) -> Json:
    return {"name": name, "in": place, "description": text, "schema": {"type": "string"}}
