"""Messages of one association in both directions at once.

pynetdicom stops reading while it waits for a response, and takes whatever comes next for it, be it a request of the
peer. Here its reading thread goes on: it serves requests, and hands responses to whoever waits for them. Sending is
locked, so that messages of several threads go out one after the other.
"""

import queue
import threading
from time import monotonic
from typing import Any

from pynetdicom.association import Association

_LOOK_S = 0.1  # between looks whether the association is still there


class Exchange:
    """The sending and receiving of an association, in place of pynetdicom's `send_*`."""

    def __init__(self, association: Association) -> None:
        self._association = association
        self._lock = threading.Lock()
        self._awaited: int | None = None
        self._answers: queue.Queue[Any] = queue.Queue()
        self._send = association.dimse.send_msg
        self._take = association.dimse.get_msg
        association.dimse.send_msg = self.send  # type: ignore[method-assign, assignment]
        association.dimse.get_msg = self._read  # type: ignore[method-assign]

    def send(self, message: Any, context_id: int) -> None:
        """Send a message whole."""
        with self._lock:
            self._send(message, context_id)

    def request(self, message: Any, context_id: int, timeout_s: float) -> Any:
        """Send a request and return the response, None where none comes in time or the association ends."""
        self._awaited = message.MessageID
        self.send(message, context_id)
        end = monotonic() + timeout_s
        try:
            while monotonic() < end:
                try:
                    return self._answers.get(timeout=_LOOK_S)
                except queue.Empty:
                    if not self._association.is_established:
                        # The answer may have come just before the end.
                        return None if self._answers.empty() else self._answers.get()
            return None
        finally:
            self._awaited = None

    def _read(self, block: bool = False) -> tuple[Any, Any]:
        """Return the next request of the peer to pynetdicom; called by the association's own thread."""
        context_id, message = self._take(block)
        if message is None or message.is_valid_request:
            return context_id, message
        # A response that nobody waits for, or not any more, is dropped.
        if self._awaited is not None and getattr(message, "MessageIDBeingRespondedTo", None) == self._awaited:
            self._answers.put(message)
        return None, None
