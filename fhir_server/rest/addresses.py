"""Addresses below the FHIR base and what their methods stand for: one table for the door and for entries of Bundles.

Source: FHIR R4 http 3.1.0.1.4 (summary of interactions).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from fhir_server.model.criteria import check_id
from fhir_server.model.definitions import compartments_known
from fhir_server.model.resources import Interaction, ResourceType, SystemInteraction
from imaging.errors import AppError, Category

LONGEST = 64 << 10  # characters of an address within a Bundle
_VARIABLE = re.compile(r"\[(\w+)\]")


class Route(NamedTuple):
    """What a method of an address stands for. `template` has `[type]`, `[id]`, `[vid]` and so on where it varies."""

    method: str
    template: str
    interaction: Interaction | SystemInteraction


# Addresses within a compartment, whose owner is [type]/[id].
WITHIN = frozenset({"[type]/[id]/*", "[type]/[id]/[within]"})
WHOLE = Route("GET", "", SystemInteraction.SEARCH)
ROUTES: tuple[Route, ...] = (
    WHOLE,
    Route("GET", "_history", SystemInteraction.HISTORY),
    Route("GET", "[type]", Interaction.SEARCH),
    Route("POST", "[type]", Interaction.CREATE),
    Route("PUT", "[type]", Interaction.UPDATE),
    Route("PATCH", "[type]", Interaction.PATCH),
    Route("DELETE", "[type]", Interaction.DELETE),
    Route("GET", "[type]/_history", Interaction.HISTORY_TYPE),
    Route("GET", "[type]/[id]", Interaction.READ),
    Route("PUT", "[type]/[id]", Interaction.UPDATE),
    Route("PATCH", "[type]/[id]", Interaction.PATCH),
    Route("DELETE", "[type]/[id]", Interaction.DELETE),
    Route("GET", "[type]/[id]/_history", Interaction.HISTORY),
    Route("GET", "[type]/[id]/_history/[vid]", Interaction.VREAD),
    Route("GET", "[type]/[id]/*", SystemInteraction.SEARCH),
    Route("GET", "[type]/[id]/[within]", Interaction.SEARCH),
)


@dataclass(frozen=True, slots=True)
class Address:
    """An address with a method, understood. `variables` are what stands at `[type]`, `[id]` and so on (`meant`)."""

    route: Route
    variables: Mapping[str, str]
    parameters: tuple[tuple[str, str], ...]


def meant(route: Route, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of an address; within a compartment, `compartment` and the type of what is searched there.

    Raises NOT_FOUND for a compartment that there is none of, INVALID for a wrong id.
    """
    if route.template not in WITHIN:
        return dict(variables)
    owner, within = variables["type"], variables.get("within", "")
    if owner not in compartments_known():
        raise AppError(Category.NOT_FOUND, "there is no such compartment", where=owner[:64])
    return {"type": within, "compartment": f"{owner}/{check_id(variables['id'], where=f'{owner}.id')}"}


def methods(template: str, row: ResourceType) -> set[str]:
    """Return the methods that an address takes for a resource type."""
    return {route.method for route in ROUTES if route.template == template and route.interaction in row.interactions}


def parts_of(url: str, base_url: str) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """Return the segments and the parameters of an address below the base, absolute or relative to it.

    Raises INVALID for an address that is elsewhere.
    """
    if len(url) > LONGEST:
        raise AppError(Category.INVALID, f"the address is longer than {LONGEST} characters", where="url")
    local = url.removeprefix(base_url).removeprefix("/") if _is_below(url, base_url) else url
    if re.match(r"[A-Za-z][A-Za-z0-9+.\-]*:", local.partition("?")[0]):
        raise AppError(Category.INVALID, "the address is not one of this server", where="url")
    path, _, query = local.partition("?")
    segments = [unquote(segment) for segment in path.strip("/").split("/")]
    return segments, tuple(parse_qsl(query, keep_blank_values=True))


def _is_below(url: str, base_url: str) -> bool:
    return url.startswith(base_url) and url[len(base_url) : len(base_url) + 1] in ("", "/", "?")


def understood(method: str, url: str, base_url: str) -> Address:
    """Return what a method and an address below the base, absolute or relative to it, stand for.

    Raises INVALID for an address that is elsewhere, UNSUPPORTED for one that is not here.
    """
    segments, parameters = parts_of(url, base_url)
    wanted = "GET" if method == "HEAD" else method
    # Words of the interface go before what may stand in their place.
    fitting = sorted((route for route in ROUTES if route.method == wanted), key=lambda route: route.template.count("["))
    for route in fitting:
        variables = _variables(route.template.split("/"), segments)
        if variables is not None:
            return Address(route, MappingProxyType(meant(route, variables)), parameters)
    raise AppError(Category.UNSUPPORTED, "there is no such interaction at this address", where="url")


def _variables(pattern: list[str], segments: list[str]) -> dict[str, str] | None:
    if len(pattern) != len(segments):
        return None
    found = {}
    for wanted, given in zip(pattern, segments, strict=True):
        variable = _VARIABLE.fullmatch(wanted)
        if variable and given:
            found[variable[1]] = given
        elif wanted != given:
            return None
    return found
