"""Charging: to which of a subscriber's Contracts an act is counted.

It is the one that allowed it. Where several give the right, one without limits comes before those with limits; of
these, the first issued whose limits the study lies within. That is found where access is decided (`Charges.decided`),
from what is read there anyway, and remembered until the act is counted.

A request is charged as a whole to the Contract of the first act in it that is counted; `Charged` is where that is
noted.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from fhir_server.access.contracts import UNLIMITED, Limits, Right, Source
from fhir_server.access.principals import Principal
from fhir_server.store.documents import Reach

MOST_REMEMBERED = 10_000  # decisions
# As which rights resources may be read, in the order in which they are looked for.
READING = (
    Right.RECEIVE_IMAGES, Right.RECEIVE_BY_URL, Right.RECEIVE_DEIDENTIFIED, Right.ORDER_PROCESSING,
    Right.ORDER_HARD_COPY, Right.SERVE_PRINTERS, Right.PROCESS_IMAGES, Right.DEFINE, Right.AUDIT, Right.REGISTER_IMAGES,
)  # fmt: skip


@dataclass(slots=True)
class Charged:
    """What a request is charged to: "Contract/...", "" before anything in it was counted."""

    contract: str = ""


_charged: ContextVar[Charged | None] = ContextVar("charged", default=None)


@contextmanager
def within(charged: Charged) -> Iterator[None]:
    """Have what is counted inside noted in a request."""
    token = _charged.set(charged)
    try:
        yield
    finally:
        _charged.reset(token)


def is_request() -> bool:
    """Say whether this is done within a request, whose bytes are counted by the door."""
    return _charged.get() is not None


def only_contract(principal: Principal) -> str:
    """Return the one Contract of a subscriber that is in force, "" for several."""
    found = {each.contract for each in principal.sources}
    return found.pop() if len(found) == 1 else ""


class Charges:
    """Tells which Contract allowed what, and remembers what was decided; shared by all threads of a process."""

    def __init__(self) -> None:
        self._decided: dict[tuple[str, Right, str], str] = {}
        self._lock = threading.Lock()

    def is_open(self, principal: Principal, rights: Iterable[Right], study_uid: str) -> bool:
        """Say whether it depends on a study which Contract allows something about it, and is not remembered."""
        found = _sources(principal, rights)
        depends = len({each.contract for each in found}) > 1 and found[0].term.limits != UNLIMITED
        return depends and (principal.subscriber, found[0].term.right, study_uid) not in self._decided

    def decided(self, principal: Principal, rights: Iterable[Right], study_uid: str, reach: Reach) -> None:
        """Remember which Contract allowed something about a study."""
        found = [each for each in _sources(principal, rights) if _covers(each.term.limits, reach)]
        if not found:
            return
        key = principal.subscriber, found[0].term.right, study_uid
        with self._lock:
            self._decided.pop(key, None)
            if len(self._decided) >= MOST_REMEMBERED:
                del self._decided[next(iter(self._decided))]  # the oldest
            self._decided[key] = found[0].contract

    def contract_of(self, principal: Principal, rights: Iterable[Right], study_uid: str = "") -> str:
        """Return the Contract that allows something, "" where none does; note it in the request at hand."""
        found = _sources(principal, rights)
        if not found:
            return ""
        known = self._decided.get((principal.subscriber, found[0].term.right, study_uid)) if study_uid else None
        contract = known if known in {each.contract for each in found} else found[0].contract
        charged = _charged.get()
        if charged is not None and not charged.contract:
            charged.contract = contract
        return contract

    def shares(self, principal: Principal, rights: tuple[Right, ...], studies: Mapping[str, int]) -> Mapping[str, int]:
        """Return of how many instances each Contract allowed; those of `studies` by Study Instance UID."""
        found: dict[str, int] = {}
        for study_uid, instances in studies.items():
            contract = self.contract_of(principal, rights, study_uid)
            found[contract] = found.get(contract, 0) + instances
        return found


def _sources(principal: Principal, rights: Iterable[Right]) -> list[Source]:
    """Return the terms that give the first of these rights that is given at all."""
    for right in rights:
        found = [each for each in principal.sources if each.term.right is right]
        if found:
            return found
    return []


def _covers(limits: Limits, reach: Reach) -> bool:
    return (
        (limits.whose is None or reach.owner in limits.whose)
        and (not limits.modalities or not limits.modalities.isdisjoint(reach.modalities))
        and (not limits.patients or not limits.patients.isdisjoint(reach.patients))
    )
