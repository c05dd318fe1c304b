"""How often something may be done: so many per second, with a burst. In one process."""

import threading
import time
from collections.abc import Callable


class Allowance:
    """So many per second, with a burst; whoever comes when it is used up is turned away."""

    def __init__(self, per_s: float, burst: float, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst = per_s, burst
        self._clock_s = clock_s
        self._left, self._at = burst, clock_s()
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Take one; say whether there was one left."""
        with self._lock:
            self._fill()
            if self._left < 1:
                return False
            self._left -= 1
            return True

    def give_back(self) -> None:
        """Give back one that was taken and should not count."""
        with self._lock:
            self._left = min(self._burst, self._left + 1)

    def _fill(self) -> None:
        now = self._clock_s()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
