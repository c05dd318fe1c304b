"""Answers that are fetched later: from a request with `Prefer: respond-async` to an address that is asked for it.

The work is a Task (`work/kinds/respond.py`); whoever asked sees how far it is at the address, and as a Task.
Source: FHIR R4 async (status request, cancellation).
"""

import uuid
from collections.abc import Callable
from datetime import datetime
from http import HTTPStatus
from typing import Protocol

from flask import Blueprint, Response, request

from fhir_server.access.audit import Access
from fhir_server.access.principals import Principal
from fhir_server.model import json, task
from fhir_server.model.criteria import ID_FORM
from fhir_server.model.dates import to_instant
from fhir_server.model.outcome import Issue, outcome
from fhir_server.rest.later import CODE
from fhir_server.store.answers import Answers, Asked
from fhir_server.store.repository import Repository
from fhir_server.web.formats import shown
from fhir_server.web.http import principal_of, tries
from imaging.errors import AppError, Category

RETRY_S = 2


class Backing(Protocol):
    """What this needs of the server."""

    @property
    def own(self) -> Repository:
        """The server's own repository, unrestricted."""

    @property
    def answers(self) -> Answers:
        """Requests that are answered later."""

    @property
    def fhir_url(self) -> str:
        """Base of the FHIR door."""

    @property
    def clock(self) -> Callable[[], datetime]:
        """Now, aware UTC."""


def accepted(server: Backing, principal: Principal, kept: bytes) -> Response:
    """Have a request done later; return 202 with the address of its answer."""
    identifier = str(uuid.uuid4())
    # The request goes first: a Task without one could not be done; a request without a Task is forgotten.
    server.answers.ask(identifier, Asked(principal.subscriber, principal.client_id, kept, grant=principal.granted()))
    order = {
        "resourceType": "Task",
        "status": "requested",
        "intent": "order",
        "code": {"coding": [{"system": task.CODES, "code": CODE}]},
        "requester": {"reference": principal.subscriber},
        "authoredOn": to_instant(server.clock()),
    }
    server.own.create(order, id=identifier)
    response = Response(status=HTTPStatus.ACCEPTED)
    response.headers["Content-Location"] = f"{server.fhir_url}/_async/{identifier}"
    response.headers["Retry-After"] = str(RETRY_S)
    return response


def blueprint(server: Backing) -> Blueprint:
    """Return the address of answers."""
    routes = Blueprint("later", __name__, url_prefix="/fhir/_async")

    def mine(identifier: str) -> tuple[Asked, dict[str, object]]:
        """Nobody but the subscriber that asked, with such a token, is told that there is a request."""
        principal = principal_of(request)
        found = server.answers.find(identifier) if ID_FORM.fullmatch(identifier) else None
        if found is None or (found.owner, found.grant) != (principal.subscriber, principal.granted()):
            raise AppError(Category.NOT_FOUND, "there is no such request, or it was a day ago", where="request")
        return found, server.own.read("Task", identifier).json()

    def status(identifier: str) -> Response:
        tries(Access.READ)
        asked, order = mine(identifier)
        if asked.status:
            return shown(asked.answer, asked.status)
        if task.is_over(order):
            # Cancelled or failed: there will be no answer.
            reason = str(order.get("statusReason", {}).get("text", "")) or f"the request is {order['status']}"  # type: ignore[attr-defined]
            cancelled = task.status_of(order) is task.Status.CANCELLED
            code = HTTPStatus.NOT_FOUND if cancelled else HTTPStatus.INTERNAL_SERVER_ERROR
            return shown(json.dumps(outcome([Issue("incomplete", reason)])), code)
        response = Response(status=HTTPStatus.ACCEPTED)
        response.headers["X-Progress"] = str(order["status"])
        response.headers["Retry-After"] = str(RETRY_S)
        return response

    def cancel(identifier: str) -> Response:
        tries(Access.DELETE)
        asked, order = mine(identifier)
        if not asked.status and not task.is_over(order):
            cancelled = task.cancel(order, "whoever asked wants no answer", task.Role.REQUESTER, server.clock())
            server.own.update(cancelled, if_match=int(order["meta"]["versionId"]))  # type: ignore[index]
        server.answers.forget(identifier)
        return Response(status=HTTPStatus.ACCEPTED)

    routes.add_url_rule("/<identifier>", "status", status, methods=["GET"], provide_automatic_options=False)
    routes.add_url_rule("/<identifier>", "cancel", cancel, methods=["DELETE"], provide_automatic_options=False)
    return routes
