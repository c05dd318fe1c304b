"""Answers that are fetched later: from a request with `Prefer: respond-async` to an address that is asked for it.

The work is a Task (`work/kinds/respond.py`, `work/kinds/export.py`); whoever asked sees how far it is at the address,
and as a Task. Nobody else is told that there is a request.
Source: FHIR R4 async (status request, cancellation), Bulk Data Access 2.0.0 (status, delete and output file requests).
"""

import re
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Protocol

from flask import Blueprint, Response, request

from fhir_server.access import backing
from fhir_server.access.audit import Access, Metered
from fhir_server.access.principals import Principal
from fhir_server.model import json, task
from fhir_server.model.criteria import ID_FORM
from fhir_server.model.dates import to_instant
from fhir_server.model.outcome import Issue, outcome
from fhir_server.rest import exporting, later
from fhir_server.rest.asks import to_http_date
from fhir_server.rest.statuses import TooOften
from fhir_server.store.answers import Answers, Asked
from fhir_server.store.exports import Exports, unpacked
from fhir_server.store.filters import Act
from fhir_server.store.schema import ANSWERS_KEPT_S
from fhir_server.web.formats import sent, shown
from fhir_server.web.http import principal_of, tries
from imaging.errors import AppError, Category

RETRY_S = 2
MOST_POLLS, POLLS_S = 10, 10  # looks at what is not ready, within so many seconds
MOST_PROGRESS = 99  # characters of X-Progress
_FILE = re.compile(r"([1-9]\d{0,8})\.([A-Za-z]{1,64})\.ndjson", re.ASCII)


class Backing(backing.Backing, Protocol):
    """What this needs of the server."""

    @property
    def answers(self) -> Answers:
        """Requests that are answered later."""

    @property
    def exports(self) -> Exports:
        """The files of exports."""


def accepted(server: Backing, principal: Principal, kept: bytes, code: str = later.CODE) -> Response:
    """Have a request done later, by a Task of this code; return 202 with the address of its answer."""
    identifier, grant = str(uuid.uuid4()), principal.lasting()
    # The request goes first: a Task without one could not be done; a request without a Task is forgotten.
    server.answers.ask(identifier, Asked(principal.subscriber, principal.client_id, kept, grant=grant))
    order = {
        "resourceType": "Task",
        "status": "requested",
        "intent": "order",
        "code": {"coding": [{"system": task.CODES, "code": code}]},
        "requester": {"reference": principal.subscriber},
        "authoredOn": to_instant(server.clock()),
    }
    server.own.create(order, id=identifier)
    response = Response(status=HTTPStatus.ACCEPTED)
    response.headers["Content-Location"] = f"{server.fhir_url}/_async/{identifier}"
    response.headers["Retry-After"] = str(RETRY_S)
    return response


def blueprint(server: Backing) -> Blueprint:
    """Return the addresses of answers and of the files of exports."""
    door = _Door(server)
    routes = Blueprint("later", __name__, url_prefix="/fhir/_async")
    for rule, view, method in (
        ("/<identifier>", door.status, "GET"),
        ("/<identifier>", door.cancel, "DELETE"),
        ("/<identifier>/<name>", door.file, "GET"),
    ):
        routes.add_url_rule(rule, view.__name__, view, methods=[method], provide_automatic_options=False)
    return routes


class _Door:
    """What whoever asked can do with a request."""

    def __init__(self, server: Backing) -> None:
        self._server = server

    def status(self, identifier: str) -> Response:
        """Answer, or tell how far it is."""
        tries(Access.READ)
        asked, order = self._mine(identifier)
        if asked.status:
            return _ANSWERED.get(task.code_of(order), _resource)(asked)
        if task.is_over(order):
            # Cancelled or failed: there will be no answer.
            reason = str(order.get("statusReason", {}).get("text", "")) or f"the request is {order['status']}"
            cancelled = task.status_of(order) is task.Status.CANCELLED
            code = HTTPStatus.NOT_FOUND if cancelled else HTTPStatus.INTERNAL_SERVER_ERROR
            return shown(json.dumps(outcome([Issue("incomplete", reason)])), code)
        if self._server.answers.polled(identifier, POLLS_S) > MOST_POLLS:
            message = f"ask at most {MOST_POLLS} times in {POLLS_S} s, better as Retry-After says"
            raise TooOften(message, retry_s=POLLS_S, where="request")
        response = Response(status=HTTPStatus.ACCEPTED)
        response.headers["X-Progress"] = _progress(order)
        response.headers["Retry-After"] = str(RETRY_S)
        return response

    def cancel(self, identifier: str) -> Response:
        """Forget a request, its answer and its files."""
        tries(Access.DELETE)
        asked, order = self._mine(identifier)
        if not asked.status and not task.is_over(order):
            cancelled = task.cancel(order, "whoever asked wants no answer", task.Role.REQUESTER, self._server.clock())
            self._server.own.update(cancelled, if_match=int(order["meta"]["versionId"]))
        self._server.answers.forget(identifier)
        # What a crash leaves of these is swept up.
        self._server.exports.forget(identifier)
        return Response(status=HTTPStatus.ACCEPTED)

    def file(self, identifier: str, name: str) -> Response:
        """Send a file of an export as long as its type may be read, compressed for who takes that."""
        tries(Access.EXPORT)
        asked, _ = self._mine(identifier)
        known = {
            f"{each.number}.{each.type}.ndjson": each for each in self._server.exports.files(identifier) if asked.status
        }
        found = known.get(name) if _FILE.fullmatch(name) else None
        if found is None:
            raise AppError(Category.NOT_FOUND, "there is no such file, or it is not kept any more", where="file")
        principal = principal_of(request)
        if found.type not in _OF_EXPORTS:
            self._server.repository_for(principal).require(found.type, Act.READ)
        pages = self._server.exports.read(identifier, found.number)
        self._server.audit.record(
            principal,
            Access.EXPORT,
            resources=[f"Task/{identifier}"],
            details={"file": name},
            metered=Metered(downloads=1),
        )
        is_packed = request.accept_encodings["gzip"] > 0
        response = Response(pages if is_packed else unpacked(pages), content_type=exporting.NDJSON)
        if is_packed:
            response.content_encoding = "gzip"
        else:
            response.content_length = found.bytes
        response.vary.add("Accept-Encoding")
        return response

    def _mine(self, identifier: str) -> tuple[Asked, dict[str, Any]]:
        """Nobody but the subscriber that asked, with such a token, is told that there is a request."""
        principal = principal_of(request)
        found = self._server.answers.find(identifier) if ID_FORM.fullmatch(identifier) else None
        if found is None or (found.owner, found.grant) != (principal.subscriber, principal.granted()):
            raise AppError(Category.NOT_FOUND, "there is no such request, or it was a day ago", where="request")
        return found, self._server.own.read("Task", identifier).json()


_OF_EXPORTS = frozenset({"Bundle", "OperationOutcome"})  # what was deleted, and what went wrong


def _progress(order: Mapping[str, Any]) -> str:
    done = task.progress_of(order)
    text = str(order.get("businessStatus", {}).get("text", "")) or str(order["status"])
    return (f"{done.percent} %, {text}" if done else text)[:MOST_PROGRESS]


def _resource(asked: Asked) -> Response:
    return shown(asked.answer, asked.status)


def _manifest(asked: Asked) -> Response:
    response = sent(asked.answer, "application/json", asked.status)
    if asked.at:
        response.headers["Expires"] = to_http_date(asked.at + timedelta(seconds=ANSWERS_KEPT_S))
    return response


# how the answer to a request goes out, by the code of its Task
_ANSWERED: Mapping[str, Callable[[Asked], Response]] = {exporting.CODE: _manifest}
