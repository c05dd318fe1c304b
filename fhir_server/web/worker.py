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

from gunicorn.http import get_parser
from gunicorn.http.errors import ParseException
from gunicorn.util import write_nonblock
from gunicorn.workers.gthread import ThreadWorker

from fhir_server.model import json
from fhir_server.model.outcome import Issue, outcome
from fhir_server.web.arrivals import Arrivals, is_decrypted
from fhir_server.web.pace import PacedSocket
from fhir_server.web.sockets import HandedOver, Sockets

log = logging.getLogger(__name__)

STEP_ASIDE_S = 0.001  # much longer than an idle process takes to accept
MOST_STEPS = 4
STOPPING_S = 2.0  # after the order to stop, for clients that connected to ask
SOCKETS_S = 3.0  # for clients of sockets to answer that these are closed


class Refusal(NamedTuple):
    """The answer to a request that cannot be read."""

    status: HTTPStatus
    code: str  # of the value set issue-type
    text: str


TOO_SLOW = Refusal(HTTPStatus.REQUEST_TIMEOUT, "timeout", "the request did not come in time")
UNREADABLE = Refusal(HTTPStatus.BAD_REQUEST, "invalid", "the request is not well-formed HTTP/1.1")
NOT_TLS = Refusal(
    HTTPStatus.BAD_REQUEST, "not-supported", "this port speaks TLS: the address has to begin with https://"
)
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

    arrivals: Arrivals

    def accept(self, listener: Any) -> None:
        """Accept a connection after a moment for each request at work here: a process with less to do comes first.

        Without it, of four long uploads three are often taken by one of two processes, and share its interpreter.
        """
        busy = self.nr_conns - len(self.keepalived_conns) - len(self.pending_conns) - len(self.arrivals)
        if busy > 0:
            time.sleep(STEP_ASIDE_S * min(busy, MOST_STEPS))
        super().accept(listener)

    def enqueue_req(self, conn: Any) -> None:
        """Have a thread serve a connection on which something was asked; wait for that on a new one."""
        if isinstance(conn.sock, PacedSocket):
            super().enqueue_req(conn)
        else:
            self.arrivals.add(conn)

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Keep the connection or close it; go on at once where the next request has been decrypted already."""
        super().finish_request(conn, fs)
        if self.keepalived_conns and self.keepalived_conns[-1] is conn and is_decrypted(conn.sock):
            self.on_client_socket_readable(conn, conn.sock)

    def murder_pending(self) -> None:
        """Let connections go that asked for nothing in time."""
        super().murder_pending()
        self.arrivals.expire(within_s=None if self.alive else STOPPING_S)

    def notify(self) -> None:
        """Show that this process lives; now and then it looks whether there is a new certificate."""
        super().notify()
        if self.app.tls is not None:
            self.app.tls.refresh()

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Answer a request; a connection that was handed over meanwhile is not this server's any more."""
        try:
            return super().handle_request(req, conn)
        except HandedOver:
            conn.sock = PacedSocket.gone()
            raise

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
        self.arrivals = Arrivals(
            self.poller,
            self.app.tls,
            patience_s=self.app.patience_s,
            refusal=lambda: answer(NOT_TLS, str(uuid.uuid4())),
            ready=self._asked,
            gone=self._gone,
        )
        super().run()
        self._sockets(lambda sockets: sockets.close(SOCKETS_S))

    def _asked(self, conn: Any) -> None:
        conn.data_ready = True
        if conn.parser is None:  # or gunicorn would make a handshake of its own
            conn.parser = get_parser(self.cfg, conn.sock, conn.client)
        super().enqueue_req(conn)

    def _gone(self, conn: Any) -> None:
        self.nr_conns -= 1
        conn.close()

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
