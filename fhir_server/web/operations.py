"""The addresses of the FHIR operations, `[type]/$name` and `[type]/[id]/$name`; `rest.operations` does them."""

from collections.abc import Callable
from dataclasses import replace

from flask import Blueprint, Response, g, request

from fhir_server.rest.calls import Operation
from fhir_server.rest.interactions import Interactions
from fhir_server.rest.operations import NO_OPERATION, OPERATIONS, Invocation, operation_at
from fhir_server.web import fhir
from fhir_server.web.formats import (
    RESOURCE_TYPES,
    check_accept,
    check_address,
    check_content_type,
    is_empty,
    received,
    shown,
)
from fhir_server.web.http import principal_of, tries
from imaging.errors import AppError, Category


def blueprint(server: fhir.Backing) -> Blueprint:
    """Return the door for one server."""
    routes = Blueprint("operations", __name__, url_prefix="/fhir")
    for operation in OPERATIONS:
        view = _view(server, operation)
        if operation.on_system:
            methods = list(operation.methods(has_id=False))
            rule = f"/${operation.name}"
            routes.add_url_rule(rule, rule, view, methods=methods, provide_automatic_options=False)
        for kind in sorted(operation.types) or ["<resource_type>"]:
            for place in [""] * operation.on_type + ["/<resource_id>"] * operation.on_instance:
                methods = list(operation.methods(has_id=bool(place)))
                rule = f"/{kind}{place}/${operation.name}"
                routes.add_url_rule(rule, rule, view, methods=methods, provide_automatic_options=False)
    routes.before_request(check_address)
    for rule in ("/$<name>", "/<resource_type>/$<name>", "/<resource_type>/<resource_id>/$<name>"):
        routes.add_url_rule(rule, rule, _unknown, methods=["GET", "POST"], provide_automatic_options=False)
    return routes


def _unknown(name: str, resource_type: str = "", resource_id: str = "") -> Response:
    """Say of an operation that is not at this address, or not by this method, what there is instead."""
    principal_of(request)
    segments = [each for each in (resource_type, resource_id, f"${name}") if each]
    operation = operation_at(segments)
    if operation is None:
        raise AppError(Category.UNSUPPORTED, NO_OPERATION, where="url")
    g.allow = set(operation.methods(has_id=bool(resource_id)))
    raise AppError(Category.UNSUPPORTED, f"${name} is invoked by {' or '.join(sorted(g.allow))} here", where="method")


def _view(server: fhir.Backing, operation: Operation) -> Callable[..., Response]:
    def view(resource_type: str = "", resource_id: str = "") -> Response:
        tries(operation.access)
        principal = principal_of(request)
        kind = resource_type or next(iter(operation.types), "")
        invocation = Invocation(operation, kind, resource_id, tuple(request.args.items(multi=True)))
        check_accept()
        acting = Interactions(server, principal)
        invocation.require(acting.repository)
        if request.method == "POST" and not is_empty(request):
            check_content_type(request, RESOURCE_TYPES)
            sent = received(request, most_bytes=server.most_resource_bytes, more_levels=3)
            invocation = replace(invocation, sent=sent)
        acting.prepare(invocation)
        answer = acting.perform(invocation)
        acting.settle()
        return shown(answer.body)

    return view
