"""What is done for a Task of some code, and what a failure means for the order.

A handler runs in a child process and may run twice for one order: a second run makes the same objects. Each is one file
in `fhir_server/work/kinds/`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

from fhir_server.model.task import Json, Kind, Progress
from imaging.errors import Category
from imaging.plugins import Registry

Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Done:
    """What came of an order.

    outputs   Task.output
    then      Tasks that follow from it, with ids; they are made in the same transaction that ends the order
    failure   why the order failed nevertheless, "" when it did not; the outputs tell what was done of it
    """

    outputs: list[Json]
    then: list[Json] = field(default_factory=list)
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Later:
    """The order waits for something outside: it is looked at again after `seconds`, as often as its period lets it.

    reason   what it waits for, shown in Task.businessStatus
    """

    seconds: float
    reason: str


# (Task, context, report); a list is the outputs alone
Run = Callable[[Json, Any, Report], list[Json] | Done | Later]
Admit = Callable[[Any, Any, Json], Json | None]  # (server, principal, Task) -> what it becomes, None: as it is
Reported = Callable[[Any, Any, Json], None]  # (server, principal, Task)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one order may use, and how often it is tried.

    memory_bytes   address space of the child process, libraries included
    """

    cpu_s: int = 3_600
    wall_s: float = 7_200
    memory_bytes: int = 16 << 30
    attempts: int = 5


@dataclass(frozen=True, slots=True)
class Handler:
    """How Tasks of one kind are done. `run` is a function of a module, so that a child process can import it.

    admit        raises what keeps a principal from placing an order whose inputs are well formed: rights, absent images
    ends_late    it is also run when the period of the order is over, to tell what was done of it until then
    reported     hears of the end of an order that its owner, somebody outside, reports; it may hear it twice
    is_transfer  it waits for another machine more than it works: done by workers of their own, so that a slow peer
                 keeps no processing from being begun
    """

    kind: Kind
    run: Run
    limits: Limits = Limits()
    admit: Admit = lambda server, principal, task: None
    ends_late: bool = False
    reported: Reported = lambda server, principal, task: None
    is_transfer: bool = False


handlers: Registry[Handler] = Registry("fhir_server.tasks")


class Treatment(Enum):
    """What becomes of an order whose handler failed."""

    LATER = "try again later, as long as it takes"
    RETRY = "try again, up to the limit of attempts"
    FAIL = "fail at once"


TREATMENT: Mapping[Category, Treatment] = MappingProxyType(
    {
        Category.INVALID: Treatment.FAIL,
        Category.UNAUTHENTICATED: Treatment.FAIL,
        Category.FORBIDDEN: Treatment.FAIL,
        Category.NOT_FOUND: Treatment.FAIL,
        Category.GONE: Treatment.FAIL,
        Category.CONFLICT: Treatment.RETRY,
        Category.PRECONDITION: Treatment.RETRY,
        Category.UNSUPPORTED: Treatment.FAIL,
        Category.TOO_LARGE: Treatment.FAIL,
        Category.BUSY: Treatment.LATER,
        Category.FAULT: Treatment.RETRY,
    }
)
