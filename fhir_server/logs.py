"""Structured logs: one JSON object a line, with the request id, and without patient data.

Our own modules log constant sentences and put what varies into `extra`. What other packages and exceptions say may
quote a value out of a DICOM file or a request, so of a foreign record only its place and the unfilled template is
written (without arguments its text may be filled already, and is left out), of a warning only its place, and of an
exception only its type and where it was raised (`AppError` messages are ours).
"""

import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from imaging.errors import AppError

OWN_PACKAGES = ("fhir_server", "imaging")
_FRAMES = 12  # of a traceback, the innermost
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SCALARS = (str, int, float, bool, type(None))

_request_id: ContextVar[str] = ContextVar("request_id", default="")


@contextmanager
def request_id(value: str) -> Iterator[None]:
    """Put `value` on every log line that this thread of work writes meanwhile."""
    token = _request_id.set(value)
    try:
        yield
    finally:
        _request_id.reset(token)


def current_request_id() -> str:
    """Return the id of the request that is being worked on, "" outside of one."""
    return _request_id.get()


def configure(*, process: str, level: str = "info", form: str = "json", stream: TextIO | None = None) -> None:
    """Send all logs of this process to `stream` (standard error); `process` says which part of the server it is.

    Own packages log from `level` on, others only from warning on. Calling it again replaces what was set.

    form   json, text, or auto: text where somebody reads the stream on a terminal, JSON elsewhere
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    is_text = handler.stream.isatty() if form == "auto" else form == "text"
    handler.setFormatter(TextFormatter(process) if is_text else JsonFormatter(process))
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.WARNING)
    for package in OWN_PACKAGES:
        logging.getLogger(package).setLevel(level.upper())
    warnings.showwarning = _log_warning


class JsonFormatter(logging.Formatter):
    """One JSON object: time, level, process, logger, event, request id, the fields of `extra`, the error."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        return json.dumps(_document(record, self._process), ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """The same content as one line for people."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as `time level process event key=value ...`."""
        fields = _document(record, self._process)
        head = f"{fields.pop('time')} {fields.pop('level'):7} {fields.pop('process')} {fields.pop('event')}"
        fields.pop("logger")
        rest = " ".join(f"{key}={json.dumps(value, default=str)}" for key, value in fields.items())
        return f"{head} {rest}".rstrip()


def describe_error(error: BaseException, trace: TracebackType | None = None) -> dict[str, Any]:
    """Return the type, the place and the causes of an exception; its words only when they are our own."""
    frames = traceback.extract_tb(trace or error.__traceback__)[-_FRAMES:]
    described: dict[str, Any] = {
        "type": type(error).__name__,
        "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
    if isinstance(error, AppError):
        described |= {"category": str(error.category), "message": str(error)}
    if error.__cause__ is not None:
        described["cause"] = describe_error(error.__cause__)
    elif error.__context__ is not None and not error.__suppress_context__:
        described["context"] = describe_error(error.__context__)
    return described


def _document(record: logging.LogRecord, process: str) -> dict[str, Any]:
    document: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "process": process,
        "pid": os.getpid(),
        "logger": record.name,
        **(_told(record) if _is_own(record.name) else _told_by_others(record)),
    }
    if _request_id.get():
        document["request_id"] = _request_id.get()
    if record.exc_info and record.exc_info[1] is not None:
        document["error"] = describe_error(record.exc_info[1], record.exc_info[2])
    return document


def _told(record: logging.LogRecord) -> dict[str, Any]:
    told: dict[str, Any] = {"event": record.getMessage()}
    for name, value in vars(record).items():
        if name not in _STANDARD and not name.startswith("_"):
            told[name] = value if isinstance(value, (*_SCALARS, list, tuple, dict)) else str(value)
    return told


def _told_by_others(record: logging.LogRecord) -> dict[str, Any]:
    template = str(record.msg) if record.args else "a library says something"
    return {"event": template, "at": f"{record.pathname}:{record.lineno}"}


def _is_own(logger: str) -> bool:
    return logger.partition(".")[0] in OWN_PACKAGES


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Log a Python warning without its text: pydicom's quote the value that they complain about."""
    extra = {"category": category.__name__, "at": f"{filename}:{lineno}"}
    logging.getLogger("fhir_server.warnings").debug("a library warns", extra=extra)
