"""The operation `$export`: of the whole, of patients, of a group. It is always done later, by a Task.

Where the answer and the files are, and how far it is, is told by `web.later`. Source: Bulk Data Access 2.0.0.
"""

from collections.abc import Callable
from typing import Protocol

from flask import Blueprint, Response, request

from fhir_server.access.audit import Access
from fhir_server.access.principals import Principal
from fhir_server.model import json, task
from fhir_server.model.criteria import Clause, Limits, Reference, Token, check_id
from fhir_server.model.query import Query
from fhir_server.rest import exporting
from fhir_server.rest.asks import preferences
from fhir_server.rest.exporting import Asking, Level
from fhir_server.rest.operations import values_given
from fhir_server.rest.statuses import TooOften
from fhir_server.web import later
from fhir_server.web.formats import RESOURCE_TYPES, check_accept, check_address, check_content_type, is_empty, received
from fhir_server.web.http import principal_of, tries
from imaging.errors import AppError, Category

RETRY_S = 60  # when too many exports are under way
_ADDRESSES = {
    "/$export": Level.SYSTEM,
    "/Patient/$export": Level.PATIENT,
    "/Group/<group>/$export": Level.GROUP,
}
_UNDER_WAY = tuple(str(each) for each in task.Status if each not in task.TERMINAL)


class Backing(later.Backing, Protocol):
    """What this door needs of the server."""

    @property
    def search_limits(self) -> Limits:
        """Bounds on FHIR searches."""

    @property
    def most_resource_bytes(self) -> int:
        """Largest FHIR resource that is taken."""


def blueprint(server: Backing) -> Blueprint:
    """Return the door for one server."""
    routes = Blueprint("export", __name__, url_prefix="/fhir")
    routes.before_request(check_address)
    for rule, level in _ADDRESSES.items():
        view = _view(server, level)
        routes.add_url_rule(rule, str(level), view, methods=["GET", "POST"], provide_automatic_options=False)
    return routes


def _view(server: Backing, level: Level) -> Callable[..., Response]:
    def view(group: str = "") -> Response:
        tries(Access.EXPORT)
        principal = principal_of(request)
        check_accept()
        preferred = preferences(",".join(request.headers.getlist("Prefer")))
        if not preferred.is_async:
            raise AppError(Category.INVALID, "an export is done later: send Prefer: respond-async", where="Prefer")
        repository = server.repository_for(principal)
        if group:
            check_id(group, where="Group.id")
        asking = Asking(
            level=level,
            request=_address(server),
            group=group,
            values=values_given(_sent(server), list(request.args.items(multi=True))),
            is_lenient=preferred.is_lenient,
            is_post=request.method == "POST",
        )
        made = exporting.export(asking, repository, base_url=server.fhir_url, limits=server.search_limits)
        _check_count(server, principal)
        response = later.accepted(server, principal, json.dumps({"export": made.json()}), exporting.CODE)
        order = response.headers["Content-Location"].rpartition("/")[2]
        named = [f"Task/{order}", *([f"Group/{group}"] if group else []), *(made.patients or ())]
        server.audit.record(principal, Access.EXPORT, resources=named)
        return response

    return view


def _sent(server: Backing) -> object:
    if request.method != "POST" or is_empty(request):
        return None
    check_content_type(request, RESOURCE_TYPES)
    found = received(request, most_bytes=server.most_resource_bytes)
    if not isinstance(found, dict) or found.get("resourceType") != "Parameters":
        raise AppError(Category.INVALID, "a Parameters resource is wanted", where="body")
    return found


def _address(server: Backing) -> str:
    """Return the address of the request as the client knows it."""
    path = request.path.removeprefix("/fhir")
    query = request.query_string.decode("latin-1")
    return f"{server.fhir_url}{path}" + (f"?{query}" if query else "")


def _check_count(server: Backing, principal: Principal) -> None:
    """Raise TooOften where the subscriber has as many exports under way as it may."""
    most = server.config["bulk.exports"]
    clauses = (
        Clause("code", "token", "", (Token(task.CODES, exporting.CODE),)),
        Clause("requester", "reference", "", (Reference((principal.subscriber,)),)),
        Clause("status", "token", "", tuple(Token(None, each) for each in _UNDER_WAY)),
    )
    if len(server.own.search(Query("Task", clauses, count=most, total="none")).matches) >= most:
        message = f"{most} exports are under way: wait for one to end, or cancel one by DELETE"
        raise TooOften(message, retry_s=RETRY_S, where="bulk.exports")
