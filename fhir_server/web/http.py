"""What every HTTP door shares: request ids, bearer tokens, the table of errors, limits on bodies, the access log.

`install` prepares a Flask application; after it, a door only raises AppError. Every error that leaves is an
OperationOutcome with the request id, whatever the door. Source: FHIR R4 http 3.1.0.1.3 and 3.1.0.1.5, RFC 6750.
"""

import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from flask import Flask, Request, Response, current_app, g, request
from werkzeug.exceptions import HTTPException
from werkzeug.wsgi import ClosingIterator

from fhir_server import logs
from fhir_server.access.audit import Access
from fhir_server.access.charging import Charged, only_contract, within
from fhir_server.access.principals import Principal
from fhir_server.access.whence import from_address
from fhir_server.model import json
from fhir_server.model.capability import PATCH_FORMATS
from fhir_server.model.criteria import ID_FORM
from fhir_server.model.outcome import outcome
from fhir_server.model.resources import RESOURCES
from fhir_server.rest.statuses import TooOften, status_of
from fhir_server.store.failures import unavailable
from fhir_server.web import visitors
from fhir_server.web.formats import shown
from fhir_server.web.pace import TooSlow
from fhir_server.web.sockets import HANDED_OVER, HandedOver
from imaging.errors import AppError, Category

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

REQUEST_ID = "X-Request-Id"
RETRY_AFTER_S = 5
HSTS_S = 365 * 86_400

# What Flask and Werkzeug raise by themselves, in our vocabulary.
CATEGORY_OF_STATUS: dict[int, tuple[Category, str | None]] = {
    401: (Category.UNAUTHENTICATED, None),
    403: (Category.FORBIDDEN, None),
    404: (Category.NOT_FOUND, None),
    405: (Category.UNSUPPORTED, "method"),
    406: (Category.UNSUPPORTED, "Accept"),
    413: (Category.TOO_LARGE, None),
    415: (Category.UNSUPPORTED, "Content-Type"),
    416: (Category.INVALID, "Range"),
    503: (Category.BUSY, None),
}
_SENTENCES = {
    404: "there is nothing at this address",
    405: "this address does not take this method",
    413: "the request is larger than this server takes",
    416: "the range lies beyond the end",
}

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,64}")
_log = logging.getLogger("fhir_server.access_log")
_faults = logging.getLogger(__name__)


class Refused(Protocol):
    """Is told of an access that failed: by whom (None: unknown), what was tried, why, and what was named."""

    def __call__(
        self, principal: Principal | None, access: Access, error: AppError, *, resources: Iterable[str] = ()
    ) -> None:
        """Take note of it."""


class Used(Protocol):
    """Is told of what a subscriber used, under which of its Contracts."""

    def __call__(self, subscriber: str, contract: str = "", **counts: int) -> None:
        """Count it."""


def install(
    app: Flask,
    authenticate: Callable[[str], Principal],
    refused: Refused,
    *,
    used: Used,
    most_bytes: int,
    trusted_proxies: str = "",
) -> None:
    """Give an application the manners of this server.

    authenticate      bearer token -> principal, raises UNAUTHENTICATED
    refused           told of every access that failed, before the answer goes out
    used              told of requests and bytes, by subscriber, when the last byte is out
    most_bytes        largest request body that any door takes
    trusted_proxies   as the setting `web.trusted_proxies`
    """
    app.config["MAX_CONTENT_LENGTH"] = most_bytes
    app.extensions["authenticate"] = authenticate
    app.extensions["refused"] = refused
    app.extensions.setdefault("signed_in", lambda: None)
    app.before_request(_remember_route)
    app.after_request(_finish)
    app.register_error_handler(AppError, error_response)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _fault)
    app.wsgi_app = RequestLog(app.wsgi_app, trusted_proxies, used)  # type: ignore[method-assign]


def tries(access: Access) -> None:
    """Say what the request at hand tries to do, before anything can go wrong with it."""
    g.access = access


def leave_to_entries() -> None:
    """Say that what the request tries is put on record entry by entry."""
    g.pop("access", None)


def principal_of(incoming: Request) -> Principal:
    """Return who asks, found once per request. Raises UNAUTHENTICATED without a valid bearer token.

    Who is signed in in a browser needs none for what `visitors` let it have.
    """
    found: Principal | None = g.get("principal")
    if found is None:
        found = current_app.extensions["signed_in"]() if visitors.is_visit() else None
        found = g.principal = found or _bearer(incoming)
        note_caller(incoming, found)
    return found


def _bearer(incoming: Request) -> Principal:
    scheme, _, token = incoming.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        people = "sign in to see this page; " if visitors.is_visit() else ""
        message = f"{people}a bearer token is needed: Authorization: Bearer <token>"
        raise AppError(Category.UNAUTHENTICATED, message, where="Authorization")
    found: Principal = current_app.extensions["authenticate"](token.strip())
    return found


def note_caller(incoming: Request, principal: Principal) -> None:
    """Say for the log, and for what is counted, who asks."""
    incoming.environ["fhir_imaging.client"] = principal.client_id
    incoming.environ["fhir_imaging.subscriber"] = principal.subscriber
    incoming.environ["fhir_imaging.contract"] = only_contract(principal)


def reader_of(incoming: Request) -> Callable[[int], bytes]:
    """Return what reads the body piece by piece. Raises RequestEntityTooLarge for one that is announced too large."""
    stream = incoming.stream
    # It copies each piece twice more to count what comes, which an announced length has settled.
    announced = incoming.content_length is not None
    return incoming.environ["wsgi.input"].read if announced else stream.read


def error_response(error: AppError) -> Response:
    """Return the OperationOutcome of an error with its HTTP status; the reason of a FAULT stays in the log."""
    if error.category is Category.FAULT:
        _faults.error("fault", extra={"fault": describe(error)}, exc_info=error)
        error = AppError(Category.FAULT, "the server could not do this; quote the request id to its operator")
    principal = g.get("principal")
    if "access" in g and (principal or error.category is Category.UNAUTHENTICATED):
        current_app.extensions["refused"](principal, g.access, error, resources=_addressed())
    status = status_of(error)
    response = shown(json.dumps(outcome(error)), status)
    if status == HTTPStatus.UNAUTHORIZED:
        # RFC 6750 3: no error code when no token was sent, `invalid_token` when a bad one was.
        sent = "Authorization" in request.headers
        response.headers["WWW-Authenticate"] = 'Bearer realm="fhir"' + (', error="invalid_token"' if sent else "")
    elif status == HTTPStatus.METHOD_NOT_ALLOWED and "allow" in g:
        response.headers["Allow"] = ", ".join(sorted(g.allow))
    elif status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE and request.method == "PATCH":
        response.headers["Accept-Patch"] = ", ".join(PATCH_FORMATS)  # RFC 5789 2.2
    elif isinstance(error, TooOften):
        response.headers["Retry-After"] = str(error.retry_s)
    elif status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def describe(error: AppError) -> str:
    """Return an error as the log has it."""
    return f"{error.category}: {error}"


class RequestLog:
    """WSGI layer: gives each request its id and writes one line when the last byte of its answer is out.

    The line has the route's template, never the path or the query, which may hold patient data.
    """

    def __init__(self, inner: "WSGIApplication", trusted_proxies: str, used: Used) -> None:
        self._inner = inner
        self._used = used
        self._proxies = [each.strip() for each in trusted_proxies.split(",") if each.strip()]

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer one request."""
        given = environ.get("HTTP_X_REQUEST_ID", "")
        environ["fhir_imaging.request_id"] = given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        environ["fhir_imaging.address"] = client_address(environ, self._proxies)
        charged = environ["fhir_imaging.charged"] = Charged()
        body = Body(environ["wsgi.input"], environ.get("CONTENT_LENGTH", ""))
        environ["wsgi.input"] = body
        sent = [0]
        begun = time.perf_counter()
        status = ["000"]

        def start(line: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            status[0] = line[:3]
            return start_response(line, headers, exc_info)

        def finish() -> None:
            line = _line(environ, status[0], begun)
            with _known_as(environ):
                _log.log(_level_of(line), "request", extra=line)
                if subscriber := environ.get("fhir_imaging.subscriber"):
                    contract = charged.contract or environ["fhir_imaging.contract"]
                    self._used(subscriber, contract, requests=1, bytes_in=body.taken, bytes_out=sent[0])

        with _known_as(environ):
            answer = self._inner(environ, start)
        if environ.get(HANDED_OVER):
            finish()
            raise HandedOver
        return ClosingIterator(_pieces(environ, answer, sent), [*_closers(answer), finish])


class Body:
    """A request's body as it arrives; what breaks off or is chunked wrongly is the sender's mistake, not a fault.

    announced   the Content-Length, "" without one. A body that ends before it is not taken for a whole one
    """

    def __init__(self, arriving: Any, announced: str = "") -> None:
        self._arriving = arriving
        self._missing = int(announced) if announced.isdecimal() else 0
        self.taken = 0  # bytes that came

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, all for -1. Raises INVALID, also where the end is that comes too early."""
        data = self._tried(self._arriving.read, size)
        self._missing -= len(data)
        # Not before the end is read: what came until then may hold whole images.
        if not data and size and self._missing > 0:
            raise AppError(Category.INVALID, "the body ends before its Content-Length", where="body")
        return data

    def readline(self, size: int = -1) -> bytes:
        """Return the next line. Raises INVALID."""
        return self._tried(self._arriving.readline, size)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def _tried(self, read: Callable[[int], bytes], size: int) -> bytes:
        try:
            data = read(size)
            self.taken += len(data)
            return data
        except TooSlow as error:
            raise AppError(Category.INVALID, "the body did not come in time", where="slow body") from error
        # Each web server has errors of its own for this.
        except Exception as error:
            raise AppError(Category.INVALID, "the body cannot be read to its end", where="body") from error


@contextmanager
def _known_as(environ: "WSGIEnvironment") -> Iterator[None]:
    """Put the request's id on the log lines, its id and address on the audit events of the work inside.

    What is counted inside is charged with the request.
    """
    known = logs.request_id(environ["fhir_imaging.request_id"]), from_address(environ["fhir_imaging.address"])
    with known[0], known[1], within(environ["fhir_imaging.charged"]):
        yield


def client_address(environ: "WSGIEnvironment", proxies: Iterable[str]) -> str:
    """Return the network address of who asks: the last one on the way that is not one of our proxies.

    proxies   addresses and networks; `*`: whoever connects to us is a proxy, but what it forwards from is none
    """
    address = str(environ.get("REMOTE_ADDR", ""))
    hops = [hop.strip() for hop in environ.get("HTTP_X_FORWARDED_FOR", "").split(",")]
    if "*" in proxies:
        return hops[-1] if _is_within(hops[-1], ["0.0.0.0/0", "::/0"]) else address
    while hops and _is_within(hops[-1], ["0.0.0.0/0", "::/0"]) and _is_within(address, proxies):
        address = hops.pop()
    return address


def _is_within(address: str, networks: Iterable[str]) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in ipaddress.ip_network(network, strict=False) for network in networks)


def _pieces(environ: "WSGIEnvironment", answer: Iterable[bytes], sent: list[int]) -> Iterator[bytes]:
    """The answer's bytes, counted in `sent`; what makes them while they are sent is known as the request too."""
    pieces = iter(answer)
    while True:
        with _known_as(environ):
            try:
                piece = next(pieces)
            except StopIteration:
                return
        yield piece
        sent[0] += len(piece)


def _closers(answer: Iterable[bytes]) -> list[Callable[[], None]]:
    close = getattr(answer, "close", None)
    return [close] if close else []


def _level_of(line: dict[str, Any]) -> int:
    """That all is well, asked every few seconds by whoever watches, would hide what happens."""
    return logging.DEBUG if line["route"].startswith("/health/") and line["status"] == HTTPStatus.OK else logging.INFO


def _line(environ: "WSGIEnvironment", status: str, begun: float) -> dict[str, Any]:
    method = environ.get("REQUEST_METHOD", "")
    return {
        # Any word can be sent as a method.
        "method": method if method in _METHODS else "other",
        "route": environ.get("fhir_imaging.route", ""),
        "status": int(status),
        "ms": round((time.perf_counter() - begun) * 1000, 1),
        "client": environ.get("fhir_imaging.client", ""),
    }


def _remember_route() -> None:
    rule = request.url_rule
    request.environ["fhir_imaging.route"] = rule.rule if rule else ""


def _finish(response: Response) -> Response:
    if not response.is_streamed and not any(response.response):
        response.headers.pop("Content-Type", None)  # Flask's default for nothing would be text/html
    response.headers[REQUEST_ID] = request.environ["fhir_imaging.request_id"]
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Cache-Control", "no-store")
    if current_app.config.get("FHIR_URL", "").startswith("https://"):
        # Who has come by TLS once never comes without it again. Source: RFC 6797 6.1.
        response.headers["Strict-Transport-Security"] = f"max-age={HSTS_S}; includeSubDomains"
    return response


def _http_error(error: HTTPException) -> Response:
    code = error.code or 500
    if code < 400:
        return error.get_response()  # type: ignore[return-value]
    category, where = CATEGORY_OF_STATUS.get(code, (Category.FAULT if code >= 500 else Category.INVALID, None))
    sentence = _SENTENCES.get(code, error.name.lower() if error.name else "the request is not acceptable")
    response = error_response(AppError(category, sentence, where=where))
    if (length := getattr(error, "length", None)) is not None:
        response.headers["Content-Range"] = f"bytes */{length}"  # RFC 9110 14.4
    if allowed := getattr(error, "valid_methods", None):
        response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


def _fault(error: Exception) -> Response:
    if message := unavailable(error):
        _faults.warning("the database is not available", extra={"kind": type(error).__name__})
        return error_response(AppError(Category.BUSY, message))
    fault = AppError(Category.FAULT, type(error).__name__)
    fault.__cause__ = error
    return error_response(fault)


def _addressed() -> list[str]:
    """The resource or the study that the address names, for the audit record; no text that is not a reference."""
    named = request.view_args or {}
    if "study_uid" in named:
        return [f"ImagingStudy/{named['study_uid']}"]
    kind = named.get("type", named.get("resource_type", ""))
    identifier = named.get("id", named.get("resource_id", ""))
    return [f"{kind}/{identifier}"] if kind in RESOURCES and ID_FORM.fullmatch(identifier) else []
