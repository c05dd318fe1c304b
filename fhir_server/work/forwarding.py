"""Forwards the audit record to an Audit Record Repository (IHE ATNA, ITI-20): in order, at least once.

One process at a time does it, however many workers there are. What cannot be delivered waits in the record, and is
tried again after pauses that double.
"""

import logging
import socket
import threading
import uuid
from typing import Any

from fhir_server.access import audit_message
from fhir_server.config import Config
from fhir_server.model import json
from fhir_server.outbound.syslog import NOTICE, WARNING, Collector, message
from fhir_server.store.lease import Lease, Leases
from fhir_server.store.trail import Entry, Trail
from imaging.errors import AppError
from imaging.tls import Identity

log = logging.getLogger(__name__)

LEASE, LEASE_S = "audit-forwarding", 120.0
LOOK_S = 2.0  # between two looks when nothing waits
AT_A_TIME = 200  # entries of one chain
LONGEST_PAUSE_S = 300.0


def collector(config: Config) -> Collector | None:
    """Return the repository of the settings, None for none. Raises INVALID, naming the setting, for files."""
    if not config["audit.repository"]:
        return None
    identity = Identity(config["audit.tls_certificate"], config["audit.tls_key"], config["audit.ca_bundle"])
    found = Collector(config["audit.repository"], identity, config["audit.timeout_s"])
    found.check()
    return found


class Forwarding:
    """The forwarder of one process. `config` names who reports."""

    def __init__(self, trail: Trail, leases: Leases, collector: Collector, config: Config) -> None:
        self._trail, self._leases, self._collector = trail, leases, collector
        self._host = socket.gethostname()
        name = config["audit.source"] or self._host
        self._source = audit_message.Source(name, config["audit.site"], config["web.base_url"])
        self._worker = uuid.uuid4().hex
        self._lease: Lease | None = None
        self._failures = 0

    def run(self, stopping: threading.Event) -> None:
        """Forward until `stopping` is set."""
        while not stopping.wait(self._pause_s()):
            # The outermost door of this thread: whatever went wrong (a failover, say), the next round tries again.
            try:
                self.round(stopping)
            except AppError as error:
                self._failures += 1
                self._tell(error)
            except Exception:
                self._failures += 1
                log.exception("the audit record could not be forwarded; it is tried again")
        self._give_up_turn()

    def round(self, stopping: threading.Event) -> None:
        """Forward everything that waits, where no other process does. Raises BUSY when it cannot be delivered.

        Then another process may try: what is between this one and the repository need not be between that one and it.
        """
        try:
            self._forward(stopping)
        except AppError:
            self._give_up_turn()
            raise

    def _forward(self, stopping: threading.Event) -> None:
        while not stopping.is_set() and self._has_turn():
            entries = self._trail.next(AT_A_TIME)
            if not entries:
                self._failures = 0
                return
            self._collector.send([each for entry in entries for each in self._messages(entry)])
            self._trail.arrived(entries)
            self._failures = 0

    def _has_turn(self) -> bool:
        if self._lease is not None:
            self._lease = self._leases.renew(self._lease, LEASE_S)
        if self._lease is None:
            self._lease = self._leases.claim(LEASE, self._worker, LEASE_S)
        return self._lease is not None

    def _give_up_turn(self) -> None:
        if self._lease is not None:
            self._leases.finish(self._lease)
            self._lease = None

    def _messages(self, entry: Entry) -> list[bytes]:
        event: dict[str, Any] = json.loads(entry.body)
        severity = NOTICE if event["outcome"] == audit_message.SUCCESS else WARNING
        bodies = audit_message.messages(event, self._source)
        return [message(body, at=event["recorded"], severity=severity, host=self._host) for body in bodies]

    def _pause_s(self) -> float:
        return min(LOOK_S * 2.0**self._failures, LONGEST_PAUSE_S) if self._failures < 10 else LONGEST_PAUSE_S

    def _tell(self, error: AppError) -> None:
        log.warning("the audit record is not forwarded; it is tried again", extra={"reason": str(error)})
        try:
            self._trail.failed(error.message)
        except AppError as other:
            log.warning("that was not written down either", extra={"reason": str(other)})
