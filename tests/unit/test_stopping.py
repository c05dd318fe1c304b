"""Loops that sleep until they are woken end when they are told to, however that falls together with their waking up."""

import threading
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from fhir_server.agent.agent import Agent
from fhir_server.work.upkeep import Upkeep


class Late(threading.Event):
    """The worst moment: the word to stop, and the waking that goes with it, come just before the event is cleared."""

    def __init__(self, stopping: threading.Event) -> None:
        super().__init__()
        self._stopping = stopping

    def clear(self) -> None:
        self._stopping.set()
        self.set()
        super().clear()


def ends(loop: Any, *arguments: Any) -> bool:
    thread = threading.Thread(target=loop, args=arguments, daemon=True)
    thread.start()
    thread.join(5)
    return not thread.is_alive()


def test_upkeep_ends() -> None:
    stopping = threading.Event()
    queue: Any = SimpleNamespace(overdue=tuple, held_by_others=tuple)
    own: Any = None
    upkeep = Upkeep(own, queue, lambda: datetime.now(UTC), claim_s=900, most_claims=5)
    upkeep._woken = Late(stopping)

    assert ends(upkeep.run, stopping)


def test_loops_of_a_print_agent_end() -> None:
    agent: Any = Agent.__new__(Agent)
    agent._stopping = threading.Event()

    assert ends(agent._loop, lambda: 3600.0, Late(agent._stopping), "printing")
