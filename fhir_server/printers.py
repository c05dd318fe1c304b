"""The register of printers as the operator's commands and the worker see it: each is shown as a FHIR Device.

Hides that a printer, with its parameters and credentials, and the Device that shows it are two things. The printer is
written first and forgotten last. The Device changes only when what it says does, so a printer that is asked again and
again makes no versions.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from fhir_server.access.principals import Principals
from fhir_server.hardcopy.devices import device_id, device_of, status_of_device
from fhir_server.model.peer import check_name
from fhir_server.store.documents import Resource
from fhir_server.store.printers import AGENT, Modality, PrinterStore, Registered
from fhir_server.store.repository import Repository
from imaging.errors import AppError, Category

if TYPE_CHECKING:
    from imaging.printer import Capabilities, Printer, Status

log = logging.getLogger(__name__)

LONGEST_TITLE = 200
_TITLE = re.compile(r"[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?")  # PS3.5 6.2, VR AE


class Printers:
    """Registers, lists, asks and forgets printers."""

    def __init__(
        self, store: PrinterStore, own: Repository, principals: Principals, clock: Callable[[], datetime]
    ) -> None:
        """`own` is the server's own repository."""
        self._store, self._own, self._principals, self._clock = store, own, principals, clock

    @property
    def jobs(self) -> PrinterStore:
        """What is kept of the jobs."""
        return self._store

    def add(
        self, name: str, kind: str, parameters: Mapping[str, Any], *, title: str = "", agent: str = "",
        subscribers: Sequence[str] = (),
    ) -> Registered:  # fmt: skip
        """Register a printer, in place of one of the same name, and ask it what it can do; return it.

        agent        name of the subscriber whose agent serves it, for the kind AGENT
        subscribers  names of those that may order on it; none: every one that may order hard copies
        Raises INVALID for a name or parameters that are none, NOT_FOUND for a subscriber.
        """
        check_name(name)
        if len(title) > LONGEST_TITLE:
            raise AppError(Category.INVALID, f"a title of at most {LONGEST_TITLE} characters expected", where="title")
        if (kind == AGENT) != bool(agent):
            raise AppError(Category.INVALID, "the kind 'agent', and only that, needs a subscriber", where="agent")
        made = Registered(
            name=name,
            kind=kind,
            title=title,
            owner=self._principals.named(agent) if agent else "",
            subscribers=tuple(self._principals.named(each) for each in subscribers),
            parameters=dict(parameters),
        )
        if kind != AGENT:
            build(made)
        elif parameters:
            raise AppError(Category.INVALID, "an agent has the printer's parameters itself", where="option")
        self._store.put(made)
        self.refresh(made)
        return made

    def get(self, name: str) -> Registered:
        """Return a printer. Raises NOT_FOUND."""
        return self._store.get(name)

    def all(self) -> list[Registered]:
        """Return every printer, by name."""
        return self._store.all()

    def suspend(self, name: str, *, is_suspended: bool = True) -> None:
        """Print nothing on a printer until it is resumed; orders for it wait. Raises NOT_FOUND."""
        changed = replace(self._store.get(name), is_suspended=is_suspended)
        self._store.put(changed)
        self.refresh(changed)

    def remove(self, name: str) -> None:
        """Forget a printer with its credentials; orders for it fail. Raises NOT_FOUND."""
        self._store.get(name)
        device = device_id(name)
        if self.device(name) is not None:
            self._own.delete("Device", device)
        self._store.remove(name)

    def add_modality(self, title: str, subscriber: str, printer: str, *, address: str = "") -> Modality:
        """Let a modality print through us on a printer, for the subscriber of this name; return it.

        Raises INVALID for a title that is none, NOT_FOUND for the printer or the subscriber.
        """
        if not _TITLE.fullmatch(title):
            message = "1 to 16 printable ASCII characters without a backslash expected, no blanks around them"
            raise AppError(Category.INVALID, message, where="AE title")
        if address:
            try:
                address = str(ip_address(address))
            except ValueError:
                raise AppError(Category.INVALID, "an IP address expected", where="address") from None
        self._store.get(printer)
        made = Modality(title, self._principals.named(subscriber), printer, address)
        self._store.put_modality(made)
        return made

    def modality(self, title: str) -> Modality | None:
        """Return a modality that may print through us, None for one that is not registered."""
        return self._store.modality(title)

    def modalities(self) -> list[Modality]:
        """Return every modality that may print through us, by title."""
        return self._store.modalities()

    def remove_modality(self, title: str) -> None:
        """Let a modality print no more. Raises NOT_FOUND."""
        if not self._store.remove_modality(title):
            raise AppError(Category.NOT_FOUND, "no modality of this title prints through us", where=title[:16])

    def device(self, name: str) -> Resource | None:
        """Return the Device that shows a printer, None where there is none (yet)."""
        try:
            return self._own.read("Device", device_id(name))
        except AppError as error:
            if error.category in (Category.NOT_FOUND, Category.GONE):
                return None
            raise

    def refresh(self, printer: Registered) -> None:
        """Ask a printer what it can do and how it is, and have its Device say so. One that is served elsewhere is not
        asked: its Device keeps what its agent said."""
        capabilities, status = self._asked(printer)
        shown = device_of(
            printer.name, title=printer.title, owner=printer.owner, capabilities=capabilities, status=status,
            is_suspended=printer.is_suspended,
        )  # fmt: skip
        current = self.device(printer.name)
        kept = {} if current is None else current.json()
        if printer.is_elsewhere and not printer.is_suspended and kept.get("status") != "inactive":
            shown |= {name: kept[name] for name in ("status", "statusReason") if name in kept}
        if capabilities is None and "property" in kept:
            shown["property"] = kept["property"]
        self._own.update(shown, create=True, if_changed=True)

    def made(self, name: str) -> "Printer":
        """Return a printer that this server reaches. Raises NOT_FOUND, UNSUPPORTED for one that an agent serves."""
        found = self.get(name)
        if found.is_elsewhere:
            message = "an agent serves this printer; print the page there"
            raise AppError(Category.UNSUPPORTED, message, where=name)
        return build(found)

    def hear(self, name: str, status: "Status") -> None:
        """Have the Device of a printer say how it is. Without effect for one that has no Device."""
        current = self.device(name)
        if current is not None and not self.get(name).is_suspended:
            told = {each: value for each, value in current.json().items() if each != "statusReason"}
            self._own.update(told | status_of_device(status, is_suspended=False), if_changed=True)

    def _asked(self, printer: Registered) -> tuple["Capabilities | None", "Status | None"]:
        if printer.is_elsewhere or printer.is_suspended:
            return None, None
        from imaging.printer import State, Status

        made = build(printer)
        try:
            return made.capabilities(), made.status()
        except AppError as error:
            if error.category is not Category.BUSY:
                log.warning("a printer cannot be asked", extra={"printer": printer.name, "reason": str(error)})
            return None, Status(State.OFFLINE, (), error.message)


def build(printer: Registered) -> "Printer":
    """Return a registered printer. Raises UNSUPPORTED for a kind that is not there, INVALID for its parameters."""
    from imaging.printers import printers  # takes a while, and most processes never print

    return printers.get(printer.kind).build(dict(printer.parameters))
