"""The FHIR door: /fhir, for every type in the table of resources.

Knows HTTP: from a request to an ask, from an answer to a response. What is asked is done by `rest.interactions`.
Answers are the stored bytes. Source: FHIR R4 http 3.1.0, search 3.1.1.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from flask import Blueprint, Response, g, request

from fhir_server.access.audit import Access
from fhir_server.model import json
from fhir_server.model.capability import normative
from fhir_server.model.patch import JSON_PATCH, fhirpath_patch, json_patch
from fhir_server.model.resources import RESOURCES, Interaction, SystemInteraction
from fhir_server.model.terminology_statement import terminology_capabilities
from fhir_server.rest import batch, openapi
from fhir_server.rest.addresses import ROUTES, WHOLE, Route, meant, methods
from fhir_server.rest.asks import Answer, Ask, Preferences, conditions_of, preferences, to_http_date
from fhir_server.rest.interactions import KINDS, Interactions
from fhir_server.rest.later import of_bundle, of_search
from fhir_server.store.joins import shipped
from fhir_server.web import binaries, later, visitors
from fhir_server.web.formats import (
    RESOURCE_TYPES,
    check_accept,
    check_address,
    check_content_type,
    form_of,
    received,
    sent,
    shown,
)
from fhir_server.web.http import leave_to_entries, principal_of, tries
from imaging.errors import AppError, Category

MOST_FORM_BYTES = 1 << 20
PATCH_TYPES = (JSON_PATCH, *RESOURCE_TYPES)
LEVELS_OF_BUNDLE = 4  # around each resource
SEARCHES = frozenset({Interaction.SEARCH, SystemInteraction.SEARCH})
SHOWING = frozenset({Interaction.READ, Interaction.VREAD})
STORING = frozenset({Interaction.CREATE, Interaction.UPDATE})
WITH_BODY = frozenset({Interaction.CREATE, Interaction.UPDATE, Interaction.PATCH})


def _of_terminology(statement: dict[str, Any]) -> dict[str, Any]:
    whole = (each for each in shipped().resources("CodeSystem") if each.get("content") == "complete")
    return terminology_capabilities(statement, whole)


# what `mode` asks of /metadata -> from the CapabilityStatement to what is told
STATEMENTS: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "full": lambda statement: statement,
    "normative": normative,
    "terminology": _of_terminology,
}


class Backing(batch.Backing, later.Backing, Protocol):
    """What this door needs of the server."""

    @property
    def capability_statement(self) -> dict[str, Any]:
        """What the server says of itself."""


def blueprint(server: Backing) -> Blueprint:
    """Return the door for one server."""
    door = _Door(server)
    routes = Blueprint("fhir", __name__, url_prefix="/fhir")
    views = [(route.method, _rule(route.template), door.asks(route)) for route in ROUTES]
    views += [("POST", rule, door.bundle) for rule in ("", "/")]
    views += [("GET", "/metadata", door.metadata), ("GET", "/openapi.json", door.openapi)]
    views += [("GET", "", door.asks(WHOLE))]
    views += [
        ("POST", f"{_rule(route.template).rstrip('/')}/_search", door.asks(route, by_form=True))
        for route in ROUTES
        if route.interaction in SEARCHES
    ]
    for number, (method, rule, view) in enumerate(views):
        # Many clients write [base]/Patient/?name=...
        is_strict = rule != _rule("[type]")
        routes.add_url_rule(
            rule, f"view-{number}", view, methods=[method], provide_automatic_options=False, strict_slashes=is_strict
        )
    routes.before_request(check_address)
    return routes


class _Door:
    """From requests to asks, from answers to responses."""

    def __init__(self, server: Backing) -> None:
        self._server = server
        self._openapi: bytes | None = None  # made when somebody asks

    def metadata(self) -> Response:
        check_accept()
        mode = request.args.get("mode", "full")
        if mode not in STATEMENTS:
            raise AppError(Category.INVALID, f"mode is one of: {', '.join(STATEMENTS)}", where="mode")
        return shown(json.dumps(STATEMENTS[mode](self._server.capability_statement)))

    def openapi(self) -> Response:
        if self._openapi is None:
            self._openapi = json.dumps(openapi.document(self._server.capability_statement))
        return sent(self._openapi, "application/json")

    def asks(self, route: Route, *, by_form: bool = False) -> Callable[..., Response]:
        """Return the view of an address; `by_form`: what is searched comes as a form."""
        interaction = route.interaction

        def view(**found: str) -> Response:
            variables = meant(route, found)
            acting = self._acting(route, variables.get("type", ""))
            parameters = self._searched() if by_form else tuple(request.args.items(multi=True))
            is_content = variables.get("type") == "Binary" and interaction in SHOWING and binaries.is_content_wanted()
            if not is_content:
                check_accept()
            ask = Ask(
                interaction,
                variables.get("type", ""),
                variables.get("id", ""),
                variables.get("vid", ""),
                parameters=parameters,
                body=self._received(interaction, variables) if interaction in WITH_BODY else None,
                conditions=conditions_of(dict(request.headers)),
                preferences=_preferences(),
                compartment=variables.get("compartment", ""),
            )
            if ask.preferences.is_async and interaction in SEARCHES:
                return later.accepted(self._server, principal_of(request), of_search(ask))
            answer = _answer(acting, ask)
            return binaries.content(answer) if is_content else _response(answer)

        return view

    def bundle(self) -> Response:
        tries(Access.BUNDLE)
        principal = principal_of(request)
        check_accept()
        check_content_type(request, RESOURCE_TYPES)
        bundle = received(request, most_bytes=self._server.bundle_limits.bytes, more_levels=LEVELS_OF_BUNDLE)
        leave_to_entries()
        preferred = _preferences()
        if preferred.is_async and batch.is_repeatable(bundle):
            return later.accepted(self._server, principal, of_bundle(bundle, preferred))
        return _response(batch.processed(self._server, principal, bundle, _preferences()))

    def _searched(self) -> tuple[tuple[str, str], ...]:
        """Return the parameters of a search whose form was sent, those of the address first."""
        return (*request.args.items(multi=True), *form_of(request, most_bytes=MOST_FORM_BYTES))

    def _acting(self, route: Route, resource_type: str) -> Interactions:
        """Who asks comes first: without a principal no type is told, without a right nothing is read."""
        tries(KINDS[route.interaction].access)
        # Not content of a Binary, which may be a page with scripts that its author wrote.
        if resource_type != "Binary":
            visitors.welcome()
        acting = Interactions(self._server, principal_of(request))
        if row := RESOURCES.get(resource_type):
            allowed = methods(route.template, row)
            g.allow = allowed | {"HEAD"} if "GET" in allowed else allowed
        acting.require(route.interaction, resource_type)
        if route.template == "[type]/[id]" and route.method == "PUT":
            g.allow = g.allow - {"PUT"}  # what an absent resource can be asked instead
        return acting

    def _received(self, interaction: Interaction | SystemInteraction, variables: Mapping[str, str]) -> Any:
        most_bytes = self._server.most_resource_bytes
        if variables.get("type") == "Binary" and interaction in STORING and binaries.is_content():
            return binaries.received(variables.get("id", ""), most_bytes=most_bytes)
        if interaction is Interaction.PATCH:
            check_content_type(request, PATCH_TYPES)
            document = received(request, most_bytes=most_bytes)
            is_list = request.mimetype == JSON_PATCH or isinstance(document, list)
            return json_patch(document, most_bytes=most_bytes) if is_list else fhirpath_patch(document)
        check_content_type(request, RESOURCE_TYPES)
        return received(request, most_bytes=most_bytes)


def _answer(acting: Interactions, ask: Ask) -> Answer:
    acting.prepare(ask)
    answer = acting.perform(ask)
    acting.settle()
    return answer


def _response(answer: Answer) -> Response:
    response = shown(answer.body, answer.status) if answer.body else Response(status=answer.status)
    response.vary.update(("Accept-Encoding", "Accept"))  # RFC 9110 15.4.5: 304 has those of 200
    if answer.location:
        response.headers["Location"] = answer.location
    if answer.version:
        response.headers["ETag"] = answer.version.etag
        response.headers["Last-Modified"] = to_http_date(answer.version.last_updated)
    return response


def _rule(template: str) -> str:
    """Return the template of an address as Flask writes it."""
    return "/" + template.replace("[", "<").replace("]", ">")


def _preferences() -> Preferences:
    return preferences(",".join(request.headers.getlist("Prefer")))
