"""The FHIR door: /fhir, for every type in the table of resources.

Knows HTTP: from a request to an ask, from an answer to a response. What is asked is done by `rest.interactions`.
Answers are the stored bytes. Source: FHIR R4 http 3.1.0, search 3.1.1.
"""

from collections.abc import Callable
from typing import Any, Protocol

from flask import Blueprint, Response, g, request

from fhir_server.model import json
from fhir_server.model.patch import JSON_PATCH, fhirpath_patch, json_patch
from fhir_server.model.resources import RESOURCES, Interaction, SystemInteraction
from fhir_server.rest import interactions
from fhir_server.rest.asks import Answer, Ask, Preferences, conditions_of, preferences, to_http_date
from fhir_server.rest.interactions import KINDS, Interactions
from fhir_server.web.formats import JSON_TYPES, check_accept, shown
from fhir_server.web.http import check_content_type, json_body, principal_of, tries
from imaging.errors import AppError, Category

FORM = "application/x-www-form-urlencoded"
MOST_FORM_BYTES = 1 << 20
PATCH_TYPES = (JSON_PATCH, *JSON_TYPES)
# What the methods of an address stand for: of a type, its history, an instance, its history, a version.
LEVELS: tuple[dict[Interaction, str], ...] = (
    {
        Interaction.SEARCH: "GET",
        Interaction.CREATE: "POST",
        Interaction.UPDATE: "PUT",
        Interaction.PATCH: "PATCH",
        Interaction.DELETE: "DELETE",
    },
    {Interaction.HISTORY_TYPE: "GET"},
    {
        Interaction.READ: "GET",
        Interaction.UPDATE: "PUT",
        Interaction.PATCH: "PATCH",
        Interaction.DELETE: "DELETE",
    },
    {Interaction.HISTORY: "GET"},
    {Interaction.VREAD: "GET"},
)
TYPE, INSTANCE = LEVELS[0], LEVELS[2]
WITH_BODY = frozenset({Interaction.CREATE, Interaction.UPDATE, Interaction.PATCH})


class Backing(interactions.Backing, Protocol):
    """What this door needs of the server."""

    @property
    def capability_statement(self) -> dict[str, Any]:
        """What the server says of itself."""


def blueprint(server: Backing) -> Blueprint:
    """Return the door for one server."""
    door = _Door(server)
    routes = Blueprint("fhir", __name__, url_prefix="/fhir")
    kind, one = "/<resource_type>", "/<resource_type>/<resource_id>"
    for rule, method, name, answer in (
        ("/metadata", "GET", "metadata", door.metadata),
        ("/_history", "GET", "changes", door.asks(SystemInteraction.HISTORY)),
        (kind, "GET", "search", door.asks(Interaction.SEARCH)),
        (f"{kind}/_search", "POST", "search_by_post", door.search_by_post),
        (kind, "POST", "create", door.asks(Interaction.CREATE)),
        (kind, "PUT", "update_if", door.asks(Interaction.UPDATE)),
        (kind, "PATCH", "patch_if", door.asks(Interaction.PATCH)),
        (kind, "DELETE", "delete_if", door.asks(Interaction.DELETE)),
        (f"{kind}/_history", "GET", "changes_of_type", door.asks(Interaction.HISTORY_TYPE)),
        (one, "GET", "read", door.asks(Interaction.READ)),
        (one, "PUT", "update", door.asks(Interaction.UPDATE)),
        (one, "PATCH", "patch", door.asks(Interaction.PATCH)),
        (one, "DELETE", "delete", door.asks(Interaction.DELETE)),
        (f"{one}/_history", "GET", "history", door.asks(Interaction.HISTORY)),
        (f"{one}/_history/<version>", "GET", "vread", door.asks(Interaction.VREAD)),
    ):
        routes.add_url_rule(rule, name, answer, methods=[method], provide_automatic_options=False)
    return routes


class _Door:
    """From requests to asks, from answers to responses."""

    def __init__(self, server: Backing) -> None:
        self._server = server
        self._statement = json.dumps(server.capability_statement)

    def metadata(self) -> Response:
        check_accept()
        return shown(self._statement)

    def asks(self, interaction: Interaction | SystemInteraction) -> Callable[..., Response]:
        """Return the view of an interaction."""

        def view(resource_type: str = "", resource_id: str = "", version: str = "") -> Response:
            acting = self._acting(interaction, resource_type, resource_id)
            check_accept()
            ask = Ask(
                interaction,
                resource_type,
                resource_id,
                version,
                parameters=tuple(request.args.items(multi=True)),
                body=self._received(interaction) if interaction in WITH_BODY else None,
                conditions=conditions_of(dict(request.headers)),
                preferences=_preferences(),
            )
            return _answered(acting, ask)

        return view

    def search_by_post(self, resource_type: str) -> Response:
        acting = self._acting(Interaction.SEARCH, resource_type)
        check_accept()
        check_content_type(request, [FORM])
        if (request.content_length or 0) > MOST_FORM_BYTES:
            raise AppError(Category.TOO_LARGE, f"the search is larger than {MOST_FORM_BYTES} bytes", where="body")
        parameters = (*request.args.items(multi=True), *request.form.items(multi=True))
        return _answered(
            acting, Ask(Interaction.SEARCH, resource_type, parameters=parameters, preferences=_preferences())
        )

    def _acting(
        self, interaction: Interaction | SystemInteraction, resource_type: str, resource_id: str = ""
    ) -> Interactions:
        """Who asks comes first: without a principal no type is told, without a right nothing is read."""
        tries(KINDS[interaction].access)
        acting = Interactions(self._server, principal_of(request))
        row = RESOURCES.get(resource_type)
        if row is not None and isinstance(interaction, Interaction):
            level = _level(interaction, resource_id)
            g.allow = {level[offered] for offered in row.interactions if offered in level}
        acting.require(interaction, resource_type)
        if interaction is Interaction.UPDATE and resource_id:
            g.allow = g.allow - {"PUT"}  # what an absent resource can be asked instead
        return acting

    def _received(self, interaction: Interaction | SystemInteraction) -> Any:
        most_bytes = self._server.most_resource_bytes
        if interaction is Interaction.PATCH:
            check_content_type(request, PATCH_TYPES)
            document = json_body(request, most_bytes=most_bytes)
            is_list = request.mimetype == JSON_PATCH or isinstance(document, list)
            return json_patch(document, most_bytes=most_bytes) if is_list else fhirpath_patch(document)
        check_content_type(request, JSON_TYPES)
        return json_body(request, most_bytes=most_bytes)


def _answered(acting: Interactions, ask: Ask) -> Response:
    acting.prepare(ask)
    answer = acting.perform(ask)
    acting.settle()
    return _response(answer)


def _response(answer: Answer) -> Response:
    response = shown(answer.body, answer.status) if answer.body else Response(status=answer.status)
    if answer.location:
        response.headers["Location"] = answer.location
    if answer.version:
        response.headers["ETag"] = answer.version.etag
        response.headers["Last-Modified"] = to_http_date(answer.version.last_updated)
    return response


def _level(interaction: Interaction, resource_id: str) -> dict[Interaction, str]:
    if interaction in TYPE and interaction in INSTANCE:
        return INSTANCE if resource_id else TYPE
    return next(level for level in LEVELS if interaction in level)


def _preferences() -> Preferences:
    return preferences(",".join(request.headers.getlist("Prefer")))
