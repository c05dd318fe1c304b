"""gunicorn's threaded worker with our manners for what never reaches the application.

A request that cannot be read as HTTP is answered by an OperationOutcome as everything else is, and the log says what
kind of mistake it was: gunicorn's own words quote the address that was asked, which may hold patient data.
"""

import logging
import time
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, NamedTuple

from gunicorn.http.errors import ParseException
from gunicorn.util import write_nonblock
from gunicorn.workers.gthread import ThreadWorker

from fhir_server.model import json
from fhir_server.model.outcome import Issue, outcome
from fhir_server.web.pace import PacedSocket
from fhir_server.web.sockets import Sockets

log = logging.getLogger(__name__)

STEP_ASIDE_S = 0.001  # much longer than an idle process takes to accept
MOST_STEPS = 4
SOCKETS_S = 3.0  # for clients of sockets to answer that these are closed


class Refusal(NamedTuple):
    """The answer to a request that cannot be read."""

    status: HTTPStatus
    code: str  # of the value set issue-type
    text: str


TOO_SLOW = Refusal(HTTPStatus.REQUEST_TIMEOUT, "timeout", "the request did not come in time")
UNREADABLE = Refusal(HTTPStatus.BAD_REQUEST, "invalid", "the request is not well-formed HTTP/1.1")
FAULT = Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "exception", "the server could not do this")
# gunicorn's error -> answer; any other error of reading is UNREADABLE, any other at all FAULT
REFUSALS = {
    "TooSlow": TOO_SLOW,
    "LimitRequestLine": Refusal(
        HTTPStatus.REQUEST_URI_TOO_LONG, "too-long", "the address is too long; POST a long search to _search"
    ),
    "LimitRequestHeaders": Refusal(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too-long", "the header fields are too many or too long"
    ),
    "UnsupportedTransferCoding": Refusal(
        HTTPStatus.NOT_IMPLEMENTED, "not-supported", "the only transfer coding that is supported is chunked"
    ),
    "ExpectationFailed": Refusal(
        HTTPStatus.EXPECTATION_FAILED, "not-supported", "the only expectation that is supported is 100-continue"
    ),
    "InvalidResponseHeader": FAULT,
    "InvalidResponseHeaderName": FAULT,
}


class Worker(ThreadWorker):  # type: ignore[misc] # gunicorn is untyped
    """The worker of the web server."""

    def accept(self, listener: Any) -> None:
        """Accept a connection after a moment for each request at work here: a process with less to do comes first.

        Without it, of four long uploads three are often taken by one of two processes, and share its interpreter.
        """
        busy = self.nr_conns - len(self.keepalived_conns) - len(self.pending_conns)
        if busy > 0:
            time.sleep(STEP_ASIDE_S * min(busy, MOST_STEPS))
        super().accept(listener)

    def enqueue_req(self, conn: Any) -> None:
        """Have a thread serve a connection, which is given up when its client is too slow."""
        if not isinstance(conn.sock, PacedSocket):
            conn.sock = PacedSocket.adopt(conn.sock, self.app.patience_s)
        super().enqueue_req(conn)

    def handle(self, conn: Any) -> Any:
        """Serve a request; whether the connection stays open. One that does not is closed here.

        gunicorn lingers for two seconds over a connection that it closes, in the thread that accepts all others.
        """
        stays = super().handle(conn)
        if stays is False:
            conn.close(graceful=True)
        return stays

    def handle_exit(self, sig: Any, frame: Any) -> None:
        """Begin to stop; clients of sockets are told at once, so that they find another server."""
        super().handle_exit(sig, frame)
        self._sockets(lambda sockets: sockets.stop())

    def run(self) -> None:
        """Serve until told to stop, and then close what was handed over."""
        super().run()
        self._sockets(lambda sockets: sockets.close(SOCKETS_S))

    def _sockets(self, act: Callable[[Sockets], None]) -> None:
        found = getattr(self.wsgi, "extensions", {}).get("sockets")
        if found is not None:
            act(found)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer a request that failed outside of the application."""
        refusal = refusal_of(exc)
        told: dict[str, Any] = {"request_id": str(uuid.uuid4()), "status": int(refusal.status)}
        if refusal is FAULT:
            log.error("a request failed outside of the application", extra=told, exc_info=exc)
        else:
            log.warning("a request could not be read", extra={**told, "kind": type(exc).__name__})
        try:
            write_nonblock(client, answer(refusal, told["request_id"]))
        except OSError as error:
            log.debug("the sender is gone", extra={**told, "kind": type(error).__name__})


def refusal_of(error: BaseException) -> Refusal:
    """Return the answer to what went wrong while a request was read."""
    other = UNREADABLE if isinstance(error, ParseException | OSError) else FAULT
    return REFUSALS.get(type(error).__name__, other)


def answer(refusal: Refusal, request_id: str) -> bytes:
    """Return the whole HTTP response of a refusal."""
    body = json.dumps(outcome([Issue(refusal.code, refusal.text)]))
    head = (
        f"HTTP/1.1 {refusal.status.value} {refusal.status.phrase}",
        "Connection: close",
        "Content-Type: application/fhir+json; charset=utf-8",
        f"Content-Length: {len(body)}",
        f"X-Request-Id: {request_id}",
        "X-Content-Type-Options: nosniff",
        "Cache-Control: no-store",
    )
    return "\r\n".join((*head, "", "")).encode() + body
