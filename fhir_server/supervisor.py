"""`serve`: the engine, the web server and the maintenance worker of one machine, kept alive together.

Hides how children are started, tied to this process, restarted when they die, and stopped in order. The listening
socket belongs to the supervisor, so a web server that restarts loses no waiting connection and never its port.
"""

import http.client
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from fhir_server.config import Config
from fhir_server.engine import Engine, LocalEngine, find_engine
from fhir_server.mongod import tied_to_parent
from fhir_server.signals import stop_on_signals
from imaging.errors import AppError, Category

log = logging.getLogger(__name__)

_POLL_S = 0.2
_READY_S = 120.0
_ASK_S = 2.0
_GRACE_S = 5.0  # beyond what a child was told it may take to stop


class Restarts:
    """When a part that died may start again: back-off that doubles, and a limit within a window of time."""

    def __init__(
        self, *, limit: int = 5, window_s: float = 60.0, first_s: float = 0.2, longest_s: float = 10.0
    ) -> None:
        self._limit = limit
        self._window_s = window_s
        self._first_s = first_s
        self._longest_s = longest_s
        self._deaths: deque[float] = deque()

    def after_death(self, now_s: float) -> float | None:
        """Return how many seconds to wait before the next start, None when it died too often to go on."""
        while self._deaths and now_s - self._deaths[0] > self._window_s:
            self._deaths.popleft()
        self._deaths.append(now_s)
        if len(self._deaths) > self._limit:
            return None
        return float(min(self._first_s * 2 ** (len(self._deaths) - 1), self._longest_s))


class Part(Protocol):
    """Something that is kept running."""

    @property
    def name(self) -> str:
        """What it is called in logs and messages."""

    def start(self) -> None:
        """Start it, again if it died."""

    def is_running(self) -> bool:
        """Return whether it runs."""

    def stop(self) -> None:
        """Stop it cleanly, by force if that takes too long. Without effect when it does not run."""


class EnginePart:
    """The engine as a part. One that somebody else runs is left alone."""

    name = "engine"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._started = False

    def start(self) -> None:
        """Start the engine; after a death at the same address, so that clients find it again."""
        if self._started and isinstance(self._engine, LocalEngine):
            self._engine.restart()
        else:
            self._engine.start()
        self._started = True

    def is_running(self) -> bool:
        """Return whether the engine's process runs."""
        return self._engine.status().running

    def stop(self) -> None:
        """Stop the engine."""
        self._engine.stop()


class ChildPart:
    """One of our own commands as a child process."""

    def __init__(self, name: str, config: Config, arguments: list[str], *, fd: int | None = None) -> None:
        self.name = name
        self._command = [sys.executable, "-P", "-m", "fhir_server.cli", name, *config.arguments(), *arguments]
        self._environment = {**os.environ, **config.secret_variables()}
        self._fds = () if fd is None else (fd,)
        self._stop_s = config["web.stop_s"] + _GRACE_S
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, tied to this one."""
        self._process = subprocess.Popen(  # noqa: S603 -- our own command line
            tied_to_parent(self._command),
            env=self._environment,
            pass_fds=self._fds,
            stdin=subprocess.DEVNULL,
            # Its own session: Ctrl-C in a terminal is for the supervisor, which stops the parts in order.
            start_new_session=True,
        )

    def is_running(self) -> bool:
        """Return whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Ask it to end, wait, then kill its whole session."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(self._stop_s)
        except subprocess.TimeoutExpired:
            log.warning("a part did not stop in time and is killed", extra={"part": self.name})
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Supervisor:
    """Starts parts in order, keeps them running, and stops them in the reverse order."""

    def __init__(self, parts: list[Part], *, restarts: Callable[[], Restarts] = Restarts) -> None:
        self._parts = parts
        self._restarts = {part.name: restarts() for part in parts}
        self._due: dict[str, float] = {}
        self._why: dict[str, str] = {}  # by name of a part: why it could not be started the last time
        self.stopping = threading.Event()

    def start(self) -> None:
        """Start every part. When one cannot, those before it are stopped and its error is raised."""
        for part in self._parts:
            if self.stopping.is_set():
                return
            try:
                part.start()
            except BaseException:
                self.stop()
                raise

    def watch(self) -> None:
        """Keep the parts running until `stopping` is set. Raises FAULT when one dies too often."""
        while not self.stopping.wait(_POLL_S):
            self.check(time.monotonic())

    def check(self, now_s: float) -> None:
        """Look at every part once: plan the restart of one that died, start one whose time has come."""
        for part in self._parts:
            if part.name in self._due:
                if now_s >= self._due[part.name]:
                    self._start_again(part)
            elif not part.is_running():
                self._plan(part, now_s)

    def stop(self) -> None:
        """Stop every part, last one first; one that fails to stop does not keep the others from stopping."""
        self.stopping.set()
        for part in reversed(self._parts):
            try:
                part.stop()
            except (AppError, OSError):
                log.exception("a part could not be stopped", extra={"part": part.name})

    def _plan(self, part: Part, now_s: float) -> None:
        delay_s = self._restarts[part.name].after_death(now_s)
        if delay_s is None:
            why = self._why.get(part.name, "its last log lines say why")
            raise AppError(Category.FAULT, f"the {part.name} ended again and again: {why}", where="serve")
        log.warning("a part ended and is started again", extra={"part": part.name, "delay_s": delay_s})
        self._due[part.name] = now_s + delay_s

    def _start_again(self, part: Part) -> None:
        del self._due[part.name]
        self._why.pop(part.name, None)
        try:
            part.start()
        except AppError as error:
            self._why[part.name] = str(error)
            log.exception("a part could not be started", extra={"part": part.name})


def serve(config: Config, listener: socket.socket, announce: Callable[[str], None]) -> None:
    """Run the whole server on one machine until SIGTERM or SIGINT; `announce` gets the ready message.

    Raises what the engine raises at its start, and FAULT when a part dies again and again.
    """
    fd = listener.fileno()
    supervisor = Supervisor(
        [
            EnginePart(find_engine(config)),
            ChildPart("web", config, ["--fd", str(fd)], fd=fd),
            ChildPart("worker", config, []),
        ]
    )
    stop_on_signals(supervisor.stopping)
    supervisor.start()
    try:
        if _wait_until_ready(supervisor, config, listener):
            announce(ready_message(config))
            log.info("ready", extra={"address": config["web.base_url"]})
            supervisor.watch()
    finally:
        log.info("stopping")
        supervisor.stop()
        listener.close()
    log.info("stopped")


def ready_message(config: Config) -> str:
    """Return what a person needs to know when the server is ready: addresses, place of the data, what to do next."""
    base = config["web.base_url"]
    data = config["data.dir"] if not config["mongodb.uri"] else "MongoDB as set by mongodb.uri"
    option = "" if config.source("data.dir") == "default" else f" --data-dir {config['data.dir']}"
    return (
        f"The FHIR imaging server is ready.\n"
        f"  Pages     {base}/\n"
        f"  FHIR      {base}/fhir\n"
        f"  DICOMweb  {base}/dicom-web\n"
        f"  Health    {base}/health/ready\n"
        f"  Data      {data}\n"
        f"Let a client in, in another terminal:\n"
        f"  fhir-imaging subscriber add NAME --register-images --receive-images{option}\n"
        f"  fhir-imaging token NAME{option}\n"
        f"Ctrl-C stops the server."
    )


def _wait_until_ready(supervisor: Supervisor, config: Config, listener: socket.socket) -> bool:
    """Wait until the web server says it is ready; False when told to stop meanwhile. Raises FAULT after two minutes."""
    deadline = time.monotonic() + _READY_S
    while not supervisor.stopping.is_set():
        if is_ready(config, listener.getsockname()[:2]):
            return True
        if time.monotonic() > deadline:
            message = f"the web server is not ready after {_READY_S:g} s; its log lines say why"
            raise AppError(Category.FAULT, message, where="serve")
        supervisor.check(time.monotonic())
        supervisor.stopping.wait(_POLL_S)
    return False


def is_ready(config: Config, address: tuple[str, int]) -> bool:
    """Ask `/health/ready` of the web server that listens on this address of this machine.

    Where clients have to show a certificate, which nobody here has, it is asked for one: that has to do.
    """
    host, port = address
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- compared, not bound
    connection = (
        http.client.HTTPSConnection(reachable, port, timeout=_ASK_S, context=_unverified())
        if config["web.tls_certificate"]
        else http.client.HTTPConnection(reachable, port, timeout=_ASK_S)
    )
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except ssl.SSLError as error:
        return bool(config["web.tls_clients"]) and not isinstance(error, ssl.SSLEOFError)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _unverified() -> ssl.SSLContext:
    """Return a context for asking ourselves: our certificate names us as others know us. Nothing secret is said."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
