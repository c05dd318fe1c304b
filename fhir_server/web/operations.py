"""The addresses of the FHIR operations, `[type]/$name` and `[type]/[id]/$name`; `rest.operations` does them."""

from collections.abc import Callable

from flask import Blueprint, Response, request

from fhir_server.model.criteria import check_id
from fhir_server.model.resources import RESOURCES
from fhir_server.rest.operations import OPERATIONS, Call, Operation, require, values_of
from fhir_server.web import fhir
from fhir_server.web.formats import RESOURCE_TYPES, check_accept, check_content_type, received, shown
from fhir_server.web.http import principal_of, tries
from imaging.errors import AppError, Category

GENERAL = frozenset({"_format", "_pretty"})


def blueprint(server: fhir.Backing) -> Blueprint:
    """Return the door for one server."""
    routes = Blueprint("operations", __name__, url_prefix="/fhir")
    for operation in OPERATIONS:
        view = _view(server, operation)
        for kind in sorted(operation.types) or ["<resource_type>"]:
            for place in [""] * operation.on_type + ["/<resource_id>"] * operation.on_instance:
                is_post = operation.changes or (operation.takes_resource and not place)
                methods = ["POST"] if is_post else ["GET", "POST"]
                rule = f"/{kind}{place}/${operation.name}"
                routes.add_url_rule(rule, rule, view, methods=methods, provide_automatic_options=False)
    return routes


def _view(server: fhir.Backing, operation: Operation) -> Callable[..., Response]:
    def view(resource_type: str = "", resource_id: str = "") -> Response:
        tries(operation.access)
        principal = principal_of(request)
        kind = resource_type or next(iter(operation.types))
        if kind not in RESOURCES:
            raise AppError(Category.NOT_FOUND, "this server keeps no resources of this type", where=kind[:64])
        check_accept()
        repository = server.repository_for(principal)
        if resource_id:
            check_id(resource_id, where=f"{kind}.id")
        require(operation, Call(server, repository, kind, resource_id, {}))
        sent = None
        if request.method == "POST":
            check_content_type(request, RESOURCE_TYPES)
            sent = received(request, most_bytes=server.most_resource_bytes, more_levels=3)
        query = [pair for pair in request.args.items(multi=True) if pair[0] not in GENERAL]
        call = Call(server, repository, kind, resource_id, values_of(sent, query, operation))
        if kind == "Patient" and operation.name == "everything":
            server.studies.catch_up()
        body = operation.perform(call)
        server.audit.record(principal, operation.access, resources=[f"{kind}/{resource_id}"] if resource_id else [])
        return shown(body)

    return view
