"""Ctrl-C and SIGTERM ask a process to end in order."""

import signal
import threading
from types import FrameType


def stop_on_signals(stopping: threading.Event) -> None:
    """Set `stopping` when this process is asked to end."""

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
