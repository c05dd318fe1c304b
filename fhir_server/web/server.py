"""The web server: gunicorn with threaded workers, set up by our settings.

Hides gunicorn's own configuration. The app is built in each worker after the fork, because a MongoClient must not
cross one; what it is built of is imported before, so that workers share it and start at once. gunicorn's access log is
off: ours is structured and holds no query strings, which name patients.
"""

import gc
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger as GunicornLogger

from fhir_server import logs
from fhir_server.config import Config
from fhir_server.web.tls import tls

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 -- for the heartbeat, which must not wait for a disk
_HEADER_BYTES = 16_380  # a signed token is longer than the default allows
_REQUEST_LINE_BYTES = 8_190  # the most that gunicorn can be told; longer searches are POSTed


class Logger(GunicornLogger):  # type: ignore[misc] # gunicorn is untyped
    """Hands gunicorn's records to our handler, which writes their templates only."""

    def setup(self, cfg: Any) -> None:
        """Route both of gunicorn's loggers to the root."""
        self.cfg = cfg
        self._access_log_enabled = False
        self.access_log.disabled = True
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)


class WebServer(BaseApplication):  # type: ignore[misc] # gunicorn is untyped
    """gunicorn for one configuration. `run` returns never: it exits the process when it was told to stop.

    `make_app` is called in each worker process after the fork; `fd` is a listening socket that was inherited. Raises
    INVALID for certificates that cannot be used.
    """

    def __init__(self, config: Config, make_app: Callable[[Config], Any], *, fd: int | None = None) -> None:
        self._config = config
        self._make_app = make_app
        self.patience_s: float = config["web.client_timeout_s"]
        self.tls = tls(config)
        self._bind = f"fd://{fd}" if fd is not None else _address(config["web.host"], config["web.port"])
        super().__init__()

    def load_config(self) -> None:
        """Translate our settings into gunicorn's."""
        for name, value in gunicorn_settings(self._config, self._bind).items():
            # Its settings differ from version to version; what a version does not know it does not need.
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def run(self) -> None:
        """Serve until told to stop."""
        # Pages that the collector of garbage does not walk through stay those of all workers.
        gc.collect()
        gc.freeze()
        super().run()

    def load(self) -> Any:
        """Build the app; called in each worker after the fork."""
        app = self._make_app(self._config)
        # What was built stays: the collector of garbage need not walk through all of it again and again.
        gc.collect()
        gc.freeze()
        return app


def gunicorn_settings(config: Config, bind: str) -> dict[str, Any]:
    """Return gunicorn's settings for ours."""
    recycle = config["web.recycle_requests"]
    return {
        "bind": bind,
        "proc_name": "fhir-imaging web",
        "worker_class": "fhir_server.web.worker.Worker",
        "workers": config["web.workers"],
        "threads": config["web.threads"],
        "timeout": config["web.timeout_s"],
        "graceful_timeout": config["web.stop_s"],
        # Longer than the proxies' own (nginx 60 s, caddy 120 s are clients here), so that they close first.
        "keepalive": 150,
        "max_requests": recycle,
        # Not all processes at once.
        "max_requests_jitter": recycle // 5,
        "limit_request_line": _REQUEST_LINE_BYTES,
        "limit_request_field_size": _HEADER_BYTES,
        "forwarded_allow_ips": config["web.trusted_proxies"],
        "worker_tmp_dir": str(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else None,
        "preload_app": False,
        # It says to gunicorn that requests come by https; our worker makes the handshakes.
        "certfile": str(config["web.tls_certificate"]) if config["web.tls_certificate"] else None,
        "accesslog": None,
        "logger_class": Logger,
        # It opens a Unix socket that nobody here uses.
        "control_socket_disable": True,
        "post_fork": _after_fork(config),
    }


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises OSError; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=2048)
    listener.set_inheritable(True)
    return listener


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _after_fork(config: Config) -> Any:
    def configure(server: Any, worker: Any) -> None:
        logs.configure(process="web", level=config["log.level"], form=config["log.form"])

    return configure
