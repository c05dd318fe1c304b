"""One mongod of our own: a one-member replica set on the loopback, with a password, in a private directory.

Hides the flags, keyfile and user, the choice of the port, what a killed mongod or a crash during set-up leaves
behind, and that the process must end when this one does. Flags: docs/explanation/architecture.md, "The engine".
"""

import base64
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from fhir_server.datadir import write_private
from imaging.errors import AppError, Category

REPLICA_SET = "rs0"
USER = "fhir_imaging"
_ROLES = ("readWriteAnyDatabase", "dbAdminAnyDatabase", "clusterAdmin")

# Below the ports that systems hand out for outgoing connections (Linux 32768-60999, IANA 49152-65535), so that none of
# those is found on ours after a restart; above the well-known ones; clear of MongoDB's own 27017-27020.
_PORTS = (20_000, 26_999)
_PORT_ATTEMPTS = 5
_EXIT_PORT_TAKEN = 48
_STOP_S = 60.0
_POLL_S = 0.02
_LOG_BYTES = 16 << 20

# Becomes the program it is given: asks Linux to end it together with its parent, takes as many files as it may.
_LAUNCHER = """
import ctypes, os, resource, sys
parent, path = int(sys.argv[1]), sys.argv[2]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
except (ValueError, OSError):
    pass
os.execv(path, sys.argv[2:])
"""


def tied_to_parent(command: list[str]) -> list[str]:
    """Return a command line that runs `command` and, on Linux, ends it with SIGTERM when its parent is gone.

    Linux sends the signal when the *thread* that started the process ends: start it from one that stays.
    """
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]


class Mongod:
    """A mongod in `directory`. `start` may be called again after the process died: the port stays the same."""

    def __init__(
        self, directory: Path, binary: Path, *, cache_gb: float, oplog_mb: int, start_timeout_s: float
    ) -> None:
        self._directory = directory
        self._binary = binary
        self._cache_gb = cache_gb
        self._oplog_mb = oplog_mb
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def pid(self) -> int | None:
        """Process id while it runs, else None."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def address(self) -> str:
        """`127.0.0.1:port`, for messages; holds no secret."""
        return f"127.0.0.1:{self.port}"

    @property
    def uri(self) -> str:
        """Connection string with the password."""
        login = f"{USER}:{quote_plus(self._password)}"
        return f"mongodb://{login}@{self.address}/?replicaSet={REPLICA_SET}&authSource=admin"

    def start(self) -> str:
        """Start it, wait until it takes writes, and return the connection string.

        Stops a mongod that a killed server left on this directory. Raises FAULT with the engine's own reason.
        """
        self._make_files()
        self._stop_leftover()
        self._set_aside_half_made()
        for attempt in range(_PORT_ATTEMPTS):
            self.port = self._choose_port(remembered=attempt == 0)
            if self._launch():
                break
        else:
            raise self._failure("found no free port")
        try:
            self._make_ready()
        except BaseException:
            self.stop()
            raise
        write_private(self._directory / "port", str(self.port).encode())
        return self.uri

    def stop(self) -> None:
        """End it cleanly; after a minute without success, by force. Without effect when it does not run."""
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    # --- files

    @property
    def _db(self) -> Path:
        return self._directory / "db"

    @property
    def _ready_mark(self) -> Path:
        return self._db / "fhir-imaging-ready"

    @property
    def _password(self) -> str:
        return (self._directory / "password").read_text().strip()

    @property
    def _log(self) -> Path:
        return self._directory / "mongod.log"

    def _make_files(self) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        for name, make in (("keyfile", _new_keyfile), ("password", _new_password)):
            if not (self._directory / name).exists():
                write_private(self._directory / name, make())
        if self._log.exists() and self._log.stat().st_size > _LOG_BYTES:
            self._log.replace(self._log.with_suffix(".log.1"))

    def _set_aside_half_made(self) -> None:
        """Begin anew when a crash ended the very first start before the mark was set: nothing was stored yet.

        Set aside, not deleted, in case somebody copied a database directory here without its mark.
        """
        if self._db.exists() and not self._ready_mark.exists() and any(self._db.iterdir()):
            self._db.replace(self._directory / f"db.unfinished-{time.time_ns()}")
        self._db.mkdir(mode=0o700, exist_ok=True)

    def _stop_leftover(self) -> None:
        """End a mongod that outlived a killed server: its lock file names it, its command line proves it is ours."""
        try:
            pid = int((self._db / "mongod.lock").read_text().strip() or 0)
        except (FileNotFoundError, ValueError):
            return
        for number, patience_s in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, _STOP_S)):
            if not pid or not self._is_ours(pid):
                return
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            _wait_until(lambda: not self._is_ours(pid), patience_s)
        if self._is_ours(pid):
            raise AppError(Category.CONFLICT, f"mongod {pid} of an earlier run does not end", where=str(self._db))

    def _is_ours(self, pid: int) -> bool:
        words = _command_line(pid)
        return str(self._db) in words and any("mongod" in word for word in words[:1])

    # --- process

    def _choose_port(self, *, remembered: bool) -> int:
        candidates = [self.port] if remembered and self.port else []
        with suppress(FileNotFoundError, ValueError):
            candidates += [int((self._directory / "port").read_text())] if remembered else []
        candidates += random.sample(range(*_PORTS), 200)
        for port in candidates:
            if _is_free(port):
                return port
        raise AppError(Category.FAULT, f"no free port from {_PORTS[0]} to {_PORTS[1]} on 127.0.0.1", where="engine")

    def _launch(self) -> bool:
        """Start the process and wait until it answers; False when the port was taken meanwhile."""
        started = threading.Event()
        # The thread stays as long as the process, see `tied_to_parent`.
        threading.Thread(target=self._keep, args=(started,), name="mongod", daemon=True).start()
        started.wait()
        process = self._process
        if process is None:
            raise self._failure(f"{self._binary} could not be run")
        deadline = time.monotonic() + self._start_timeout_s
        while process.returncode is None:
            if self._answers():
                return True
            if time.monotonic() > deadline:
                self.stop()
                raise self._failure(f"gave no answer for {self._start_timeout_s:g} s (engine.start_timeout_s)")
            time.sleep(_POLL_S)
        if process.returncode == _EXIT_PORT_TAKEN:
            return False
        raise self._failure(f"ended with code {process.returncode}")

    def _keep(self, started: threading.Event) -> None:
        self._process = None
        try:
            self._process = subprocess.Popen(  # noqa: S603 -- our own command line
                tied_to_parent([str(self._binary), *self._flags()]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Its own session: Ctrl-C in a terminal is for the server, which stops its parts in order.
                start_new_session=True,
            )
        finally:
            started.set()
        self._process.wait()

    def _flags(self) -> list[str]:
        parameters = {
            "diagnosticDataCollectionEnabled": "false",
            # Space of deleted blobs is reusable at once: 63 MB instead of 1.8 GB after 40 rounds of write and delete.
            "minSnapshotHistoryWindowInSeconds": "0",
        }
        flags = {
            "--dbpath": str(self._db),
            "--logpath": str(self._log),
            "--bind_ip": "127.0.0.1",
            "--port": str(self.port),
            "--replSet": REPLICA_SET,
            "--keyFile": str(self._directory / "keyfile"),
            # No zlib: CVE-2025-14847.
            "--networkMessageCompressors": "snappy,zstd",
            "--oplogSize": str(self._oplog_mb),
            "--wiredTigerCacheSizeGB": f"{self._cache_gb:g}",
            # Slow operations would be logged with their filters, and those hold names of patients.
            "--slowOpSampleRate": "0",
        }
        words = [word for pair in flags.items() for word in pair]
        words += [word for pair in parameters.items() for word in ("--setParameter", "=".join(pair))]
        return [*words, "--nounixsocket", "--noscripting", "--logappend", "--quiet"]

    def _failure(self, what: str) -> AppError:
        reason = _first_error(self._log)
        hint = f": {reason}; see {self._log}" if reason else f"; see {self._log}"
        return AppError(Category.FAULT, f"the embedded engine {what}{hint}", where=str(self._directory))

    # --- replica set and user

    def _client(self, **options: Any) -> MongoClient[dict[str, Any]]:
        return MongoClient("127.0.0.1", self.port, directConnection=True, serverSelectionTimeoutMS=2_000, **options)

    def _answers(self) -> bool:
        # A plain connection first: a client that fails to connect costs half a second of its own waiting.
        if _is_free(self.port):
            return False
        with suppress(PyMongoError), self._client() as client:
            client.admin.command("hello")
            return True
        return False

    def _make_ready(self) -> None:
        if not self._ready_mark.exists():
            self._set_up()
            self._ready_mark.touch(mode=0o600)
            return
        with self._client(username=USER, password=self._password, authSource="admin") as client:
            try:
                config = client.admin.command("replSetGetConfig")["config"]
            except OperationFailure as error:
                raise self._failure(
                    f"refuses its own password ({error.details and error.details['codeName']})"
                ) from None
            if config["members"][0]["host"] != self.address:
                config["members"][0]["host"] = self.address
                config["version"] += 1
                client.admin.command("replSetReconfig", config, force=True)
            self._wait_for_primary(client)

    def _set_up(self) -> None:
        """First start: the localhost exception lets us in until the first user exists."""
        with self._client() as client:
            members = [{"_id": 0, "host": self.address}]
            client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": members})
            self._wait_for_primary(client)
            roles = [{"role": role, "db": "admin"} for role in _ROLES]
            client.admin.command("createUser", USER, pwd=self._password, roles=roles)

    def _wait_for_primary(self, client: MongoClient[dict[str, Any]]) -> None:
        def is_primary() -> bool:
            with suppress(PyMongoError):
                return bool(client.admin.command("hello").get("isWritablePrimary"))
            return False

        if not _wait_until(is_primary, self._start_timeout_s):
            raise self._failure("did not become ready for writing")


def _new_keyfile() -> bytes:
    return base64.b64encode(secrets.token_bytes(512))


def _new_password() -> bytes:
    return secrets.token_urlsafe(32).encode()


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _command_line(pid: int) -> list[str]:
    """Return the words of a process' command line, [] when there is no such process."""
    if Path("/proc/self").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return []
    listing = subprocess.run(  # noqa: S603
        ["ps", "-ww", "-o", "command=", "-p", str(pid)],  # noqa: S607 -- macOS has no /proc
        capture_output=True,
        text=True,
        check=False,
    )
    return listing.stdout.split()


def _first_error(log: Path) -> str:
    """Return what went wrong first in the last run that a log tells of: the text and the error it names, no values."""
    found = ""
    with suppress(OSError):
        for line in reversed(log.read_bytes()[-200_000:].splitlines()):
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                if "SERVER RESTARTED" in entry["msg"]:
                    break
                if entry["s"] in ("E", "F"):
                    found = f"{entry['msg']} {_reason(entry.get('attr', {}))}".strip()[:400]
    return found


def _reason(attributes: dict[str, Any]) -> str:
    for name in ("error", "reason", "message"):
        value = attributes.get(name, "")
        # WiredTiger gives a number as `error`, and its words as `error_str` of `message`.
        words = [value.get(key, "") for key in ("errmsg", "error_str", "msg")] if isinstance(value, dict) else [value]
        for text in words:
            if text and isinstance(text, str):
                return text
    return ""


def _wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
