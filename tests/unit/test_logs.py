"""Logs are structured, carry the request id, and hold no words that could be a patient's."""

import io
import json
import logging
import warnings

import pytest

from fhir_server import logs
from imaging.errors import AppError, Category

PATIENT = "DOE^JOHN"


@pytest.fixture
def log(monkeypatch):
    stream = io.StringIO()
    root, shown = list(logging.root.handlers), warnings.showwarning
    logs.configure(process="test", level="debug", stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logging.root.handlers[:] = root
    warnings.showwarning = shown


def test_a_record_is_one_json_object_with_its_fields_and_the_request_id(log):
    with logs.request_id("r-1"):
        logging.getLogger("fhir_server.x").info("stored", extra={"instances": 3})
    logging.getLogger("fhir_server.x").info("later")

    first, second = log()
    assert (first["event"], first["instances"], first["request_id"]) == ("stored", 3, "r-1")
    assert (first["process"], first["level"]) == ("test", "info")
    assert first["time"].endswith("+00:00")
    assert "request_id" not in second


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("form", "stream", "begins"),
    [
        ("auto", io.StringIO(), '{"time": '),
        ("auto", Terminal(), "20"),
        ("json", Terminal(), '{"time": '),
        ("text", io.StringIO(), "20"),
    ],
)
def test_people_at_a_terminal_get_text_and_programs_json(log, form, stream, begins):
    logs.configure(process="test", form=form, stream=stream)

    logging.getLogger("fhir_server.x").info("stored")

    assert stream.getvalue().startswith(begins)
    assert stream.getvalue().count("\n") == 1


def test_a_line_break_cannot_forge_a_second_record(log):
    logging.getLogger("fhir_server.x").info("asked", extra={"path": 'a\n{"event": "forged"}'})

    assert len(log()) == 1


def test_other_packages_are_quoted_without_what_they_fill_in(log):
    logging.getLogger("pydicom").warning("Invalid value %s", PATIENT)

    assert [entry["event"] for entry in log()] == ["Invalid value %s"]


def test_what_other_packages_filled_in_themselves_is_left_out_and_its_place_is_told(log):
    logging.getLogger("pydicom").warning(f"Invalid value {PATIENT}")
    logging.getLogger("gunicorn.error").warning("Invalid request", extra={"client": PATIENT})

    assert [entry["event"] for entry in log()] == ["a library says something"] * 2
    assert ["test_logs.py:" in entry["at"] for entry in log()] == [True, True]
    assert PATIENT not in json.dumps(log())


def test_an_exception_is_its_type_and_place_without_its_words(log):
    try:
        int(PATIENT)
    except ValueError:
        logging.getLogger("fhir_server.x").exception("failed")

    (entry,) = log()
    assert entry["error"]["type"] == "ValueError"
    assert "test_logs.py" in entry["error"]["at"][-1]
    assert PATIENT not in json.dumps(entry)


def test_our_own_errors_keep_their_words_and_name_their_cause(log):
    try:
        try:
            int(PATIENT)
        except ValueError as cause:
            raise AppError(Category.INVALID, "not a number", where="x") from cause
    except AppError:
        logging.getLogger("fhir_server.x").exception("failed")

    (entry,) = log()
    assert entry["error"]["message"] == "not a number (x)"
    assert entry["error"]["cause"]["type"] == "ValueError"
    assert PATIENT not in json.dumps(entry)


def test_a_warning_is_its_place_without_its_words(log):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = logs._log_warning
        warnings.warn(f"value {PATIENT}", UserWarning, stacklevel=1)

    (entry,) = log()
    assert entry["category"] == "UserWarning"
    assert PATIENT not in json.dumps(entry)


def test_text_form_is_one_line_for_people():
    line = logs.TextFormatter("web").format(
        logging.makeLogRecord({"name": "fhir_server.x", "levelname": "INFO", "msg": "stored", "instances": 3})
    )

    assert "stored" in line
    assert "instances=3" in line
