"""Requests that are not HTTP. Statuses: RFC 9110 15.5, RFC 6585."""

import logging
import socket

import pytest
from gunicorn.http import errors

from fhir_server.model.json import loads
from fhir_server.web import worker as web_worker
from fhir_server.web.worker import Worker, answer, refusal_of


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidRequestLine("GET /Patient?name=Doe"), 400),
        (errors.InvalidHeaderName("X-Doe"), 400),
        (errors.LimitRequestLine(9000, 8190), 414),
        (errors.LimitRequestHeaders("Doe"), 431),
        (ConnectionError("Doe"), 400),
        (ValueError("Doe"), 500),
    ],
)
def test_every_error_has_its_status_and_an_operation_outcome_without_its_words(error, status):
    head, _, body = answer(refusal_of(error), "r-1").partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Content-Length: %d" % len(body) in head
    assert loads(body)["resourceType"] == "OperationOutcome"
    assert b"Doe" not in head + body


def test_the_log_tells_the_kind_of_error_alone(caplog):
    gone = socket.socket()
    gone.close()

    with caplog.at_level(logging.DEBUG, logger="fhir_server"):
        Worker.handle_error(None, None, gone, ("127.0.0.1", 1), errors.InvalidRequestLine("GET /?name=Doe"))

    assert "InvalidRequestLine" in {vars(record).get("kind") for record in caplog.records}
    assert "Doe" not in str([vars(record) for record in caplog.records])


@pytest.mark.parametrize(("connections", "resting", "steps"), [(0, 0, 0), (3, 3, 0), (3, 1, 2), (50, 1, 4)])
def test_a_process_steps_aside_for_one_with_less_to_do(monkeypatch, connections, resting, steps):
    slept, accepted = [], []
    monkeypatch.setattr(web_worker.time, "sleep", slept.append)
    monkeypatch.setattr(web_worker.ThreadWorker, "accept", lambda _, listener: accepted.append(listener))
    worker = Worker.__new__(Worker)
    worker.nr_conns, worker.keepalived_conns, worker.pending_conns = connections, [None] * resting, []
    worker.arrivals = []

    worker.accept("listener")

    assert accepted == ["listener"]
    assert sum(slept) == pytest.approx(steps * web_worker.STEP_ASIDE_S)
