"""The data directory of one server: who may look into it, who owns it now, and how to reach its engine.

Hides permissions (0700, files 0600), the lock that keeps two servers apart, and the connection file by which
commands find the engine of a running server. The lock is an `flock`, so it ends with its process, however that dies.
"""

import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from imaging.errors import AppError, Category

_LOCK = "server.lock"
_CONNECTION = "connection.json"
_OURS = {_LOCK, _CONNECTION, "engine", "fhir-imaging.toml", "demo-server.log", "lost+found"}
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach the engine of a running server. `uri` holds the password."""

    pid: int
    uri: str
    address: str


class DataDirectory:
    """One data directory. `own` takes it for this process, `publish` tells other commands how to connect."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_fd: int | None = None

    def prepare(self) -> None:
        """Make the directory, private to its owner. Raises CONFLICT when it holds files of something else.

        One open to others is made private only if it is empty or ours: `--data-dir /tmp` must not close /tmp.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self.path.stat().st_mode & 0o077:
                return
            names = {entry.name for entry in self.path.iterdir()}
            if names and not names & _OURS:
                message = "holds other files and is open to others; name a new or a private directory (chmod 700)"
                raise AppError(Category.CONFLICT, message, where=str(self.path))
            self.path.chmod(0o700)
        except OSError as error:
            message = f"cannot be used as data directory: {error.strerror}"
            raise AppError(Category.FORBIDDEN, message, where=str(self.path)) from None

    def own(self, *, wait_s: float = 20.0) -> None:
        """Take the directory for this process. Raises CONFLICT when a server runs on it.

        A short command (`fhir-imaging token`) owns the directory for seconds and publishes nothing: that is waited for.
        """
        deadline = time.monotonic() + wait_s
        while not self.try_own():
            running = self.connection()
            if running is not None or time.monotonic() > deadline:
                pid = running.pid if running else self._holder()
                raise AppError(
                    Category.CONFLICT,
                    f"process {pid} already serves this directory; stop it (kill {pid}) or choose another --data-dir",
                    where=str(self.path),
                )
            time.sleep(_POLL_S)

    def try_own(self) -> bool:
        """Take the directory if nobody has it; a connection file that a killed server left is removed then."""
        if self._lock_fd is not None:
            return True
        fd = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._lock_fd = fd
        self._connection_path.unlink(missing_ok=True)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        return True

    def release(self) -> None:
        """Give the directory back; without effect when this process does not own it."""
        if self._lock_fd is None:
            return
        self._connection_path.unlink(missing_ok=True)
        os.close(self._lock_fd)
        self._lock_fd = None

    def publish(self, uri: str, address: str) -> None:
        """Write the connection file, readable by the owner alone; `address` is for messages and holds no secret."""
        document = {"pid": os.getpid(), "uri": uri, "address": address}
        write_private(self._connection_path, json.dumps(document).encode())

    def connection(self) -> Connection | None:
        """Return how to reach the server that runs on this directory, or None when there is none."""
        try:
            document = json.loads(self._connection_path.read_bytes())
            found = Connection(int(document["pid"]), str(document["uri"]), str(document["address"]))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError:
            raise AppError(Category.FORBIDDEN, "belongs to another user", where=str(self.path)) from None
        except (ValueError, KeyError, TypeError):
            return None
        # Without the lock's owner behind it, the file is what a killed server left.
        return found if self._is_owned_by(found.pid) else None

    @property
    def _connection_path(self) -> Path:
        return self.path / _CONNECTION

    def _is_owned_by(self, pid: int) -> bool:
        if self._lock_fd is not None:
            return pid == os.getpid()
        try:
            fd = os.open(self.path / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._holder() == str(pid)
        finally:
            os.close(fd)
        return False

    def _holder(self) -> str:
        try:
            return (self.path / _LOCK).read_text() or "unknown"
        except OSError:
            return "unknown"


def write_private(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 so that a reader, or a crash, sees either all of it or the file before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
