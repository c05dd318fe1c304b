"""A film printer for modalities: listens, admits, and hands what they print to callables.

Hides pynetdicom; `imaging.dimse.print_session` knows the rules. SOP classes: Basic Grayscale and Basic Color Print
Management Meta, Presentation LUT, Basic Annotation Box, Print Job, Printer, Verification. Source: PS3.4 annex H, PS3.8.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import N_CREATE_RQ
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.transport import ThreadedAssociationServer

from imaging.dimse import MOST_PDU, answer_at_once, bound
from imaging.dimse import print_terms as terms
from imaging.dimse.exchange import Exchange
from imaging.dimse.print_session import Film, PrintSession, Services, job_attributes, printer_attributes
from imaging.dimse.tls import listening
from imaging.errors import AppError, Category
from imaging.printer import Outcome, Progress, State, Status
from imaging.tls import Identity

MOST_MESSAGE = 300 << 20  # bytes: an image of 14 x 17 inch at 600 dpi and 16 bits has 172 million
VERIFICATION = "1.2.840.10008.1.1"
_OPTIONAL = (terms.PRESENTATION_LUT, terms.ANNOTATION_BOX, terms.PRINT_JOB, VERIFICATION)
_SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
_PRINTER_EVENTS = {State.NORMAL: 1, State.WARNING: 2, State.FAILURE: 3, State.OFFLINE: 3}  # H.4.6.2.1
_JOB_EVENTS = {"PENDING": 1, "PRINTING": 2, "DONE": 3, "FAILURE": 4}  # H.4.5.2.1
_REJECTED, _TRANSIENT, _BY_USER = 0x01, 0x02, 0x01  # results and source of a rejection. Source: PS3.8 9.3.4
_NO_REASON, _CALLING_UNKNOWN, _CALLED_UNKNOWN = 0x01, 0x03, 0x07
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Modality:
    """Who prints: application entity titles as it gave them, and its address."""

    calling: str
    called: str
    address: str


@dataclass(frozen=True, slots=True)
class Backing:
    """What stands behind the printer. All may be called by several threads.

    admit    raises FORBIDDEN for a calling title, NOT_FOUND for a called one that is not known, BUSY for no room now
    accept   takes films to be printed together, durably; returns the UID of a print job; raises BUSY for a full queue,
             FORBIDDEN, or UNSUPPORTED for what cannot be printed
    outcome  says what became of a print job; raises NOT_FOUND
    status   says how the printer is that the modality sees
    """

    admit: Callable[[Modality], None]
    accept: Callable[[Modality, Sequence[Film]], str]
    outcome: Callable[[Modality, str], Outcome]
    status: Callable[[Modality], Status]


@dataclass(slots=True)
class _Guest:
    """An association: who it is, what it has put on film, and the print jobs of which it is told."""

    modality: Modality
    session: PrintSession
    received: int = 0
    jobs: set[str] = field(default_factory=set)


class PrintScp:
    """The listener. `start` opens the port, `stop` closes it; between them modalities print."""

    def __init__(
        self, backing: Backing, *, title: str, address: tuple[str, int], most_associations: int = 10,
        idle_s: float = 60.0, printer_name: str = "", tls: Identity | None = None,
    ) -> None:  # fmt: skip
        """Prepare; with `tls`, it listens over that alone. Raises INVALID for files that it cannot use."""
        self._tls = listening(tls, patience_s=idle_s) if tls else None
        self._backing = backing
        self._address = address
        self._printer_name = printer_name or title
        self._guests: dict[Association, _Guest] = {}
        self._lock = threading.Lock()
        self._server: ThreadedAssociationServer | None = None
        self._entity = AE(ae_title=title)
        self._entity.maximum_pdu_size = MOST_PDU
        self._entity.maximum_associations = most_associations
        self._entity.network_timeout = self._entity.dimse_timeout = self._entity.acse_timeout = idle_s
        for uid in (terms.GREY_META, terms.COLOUR_META, *_OPTIONAL):
            self._entity.add_supported_context(uid, _SYNTAXES)

    def start(self) -> int:
        """Listen; return the port, which is a free one where 0 was asked. Raises BUSY where it is taken."""
        handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_PDU_RECV, self._received),
            (evt.EVT_DIMSE_RECV, self._message),
            (evt.EVT_CONN_CLOSE, self._closed),
            (evt.EVT_C_ECHO, lambda _: terms.SUCCESS),
            (evt.EVT_N_CREATE, self._create),
            (evt.EVT_N_SET, self._set),
            (evt.EVT_N_ACTION, self._action),
            (evt.EVT_N_GET, self._get),
            (evt.EVT_N_DELETE, self._delete),
        ]
        try:
            self._server = self._entity.start_server(
                self._address, block=False, evt_handlers=handlers, ssl_context=self._tls
            )  # fmt: skip
        except OSError as error:
            message = f"port {self._address[1]} cannot be opened: {error.strerror}"
            raise AppError(Category.BUSY, message, where="print-scp") from error
        assert self._server is not None  # noqa: S101 -- it does not block
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Close the port and end associations."""
        if self._server is not None:
            self._entity.shutdown()
            self._server = None

    def report(self, status: Status) -> None:
        """Report how the printer is to every modality that is here now."""
        ds = printer_attributes(status, self._printer_name)
        del ds.PrinterStatus, ds.Manufacturer
        for association, _ in self._here():
            self._event(association, terms.PRINTER, terms.PRINTER_INSTANCE, _PRINTER_EVENTS[status.state], ds)

    def report_job(self, uid: str, outcome: Outcome) -> None:
        """Report a print job to the modality whose it is, as long as that is here."""
        ds = job_attributes(outcome, self._printer_name)
        number = _JOB_EVENTS[ds.ExecutionStatus]
        del ds.ExecutionStatus
        for association, guest in self._here():
            if uid in guest.jobs:
                self._event(association, terms.PRINT_JOB, uid, number, ds)
                if outcome.progress in (Progress.DONE, Progress.FAILED, Progress.UNKNOWN):
                    guest.jobs.discard(uid)

    # --- associations

    def _here(self) -> list[tuple[Association, _Guest]]:
        with self._lock:
            return [(association, guest) for association, guest in self._guests.items() if association.is_established]

    def _opened(self, event: evt.Event) -> None:
        answer_at_once(event.assoc)
        bound(event.assoc)
        Exchange(event.assoc)

    def _requested(self, event: evt.Event) -> None:
        association = event.assoc
        asked: Any = association.requestor.primitive
        modality = Modality(
            str(asked.calling_ae_title).strip(), str(asked.called_ae_title).strip(), str(association.requestor.address)
        )
        try:
            self._backing.admit(modality)
        except AppError as error:
            told = {"title": modality.calling, "address": modality.address, "reason": str(error)}
            _LOG.warning("a modality was not let in", extra=told)
            unknown = {Category.FORBIDDEN: _CALLING_UNKNOWN, Category.NOT_FOUND: _CALLED_UNKNOWN}
            reason = unknown.get(error.category)
            result = _REJECTED if reason else _TRANSIENT
            association.acse.send_reject(result, _BY_USER, reason or _NO_REASON)
            association.kill()
            association.is_rejected = True
            return
        services = Services(
            accept=lambda films: self._accept(association, films),
            outcome=lambda uid: self._backing.outcome(modality, uid),
            status=lambda: self._backing.status(modality),
        )
        guest = _Guest(modality, PrintSession(services, printer_name=self._printer_name))
        with self._lock:
            self._guests[association] = guest

    def _accept(self, association: Association, films: Sequence[Film]) -> str:
        guest = self._guest(association)
        uid = self._backing.accept(guest.modality, films)
        guest.jobs.add(uid)
        return uid

    def _closed(self, event: evt.Event) -> None:
        with self._lock:
            self._guests.pop(event.assoc, None)

    def _guest(self, association: Association) -> _Guest:
        with self._lock:
            return self._guests[association]

    def _received(self, event: evt.Event) -> None:
        """Count what comes in until a message is complete; pynetdicom itself would take any amount."""
        with self._lock:
            guest = self._guests.get(event.assoc)
        if guest is None:
            return
        guest.received += len(event.pdu)
        if guest.received > MOST_MESSAGE:
            _LOG.warning("a print association was ended: a message of more than %d bytes", MOST_MESSAGE)
            event.assoc.abort()

    def _message(self, event: evt.Event) -> None:
        with self._lock:
            guest = self._guests.get(event.assoc)
        if guest is not None:
            guest.received = 0
        # Where a modality leaves the UID to us, pynetdicom forgets to tell it in some answers. It is given here.
        if isinstance(event.message, N_CREATE_RQ) and not event.message.command_set.get("AffectedSOPInstanceUID"):
            event.message.command_set.AffectedSOPInstanceUID = generate_uid(None)

    def _event(self, association: Association, class_uid: str, uid: str, number: int, ds: Dataset) -> None:
        wanted = (terms.GREY_META, terms.COLOUR_META) if class_uid == terms.PRINTER else (class_uid,)
        for context in association.accepted_contexts:
            if context.abstract_syntax in wanted and context.context_id is not None:
                report = N_EVENT_REPORT()
                report.MessageID = 1
                report.AffectedSOPClassUID, report.AffectedSOPInstanceUID = UID(class_uid), UID(uid)
                report.EventTypeID = number
                syntax = context.transfer_syntax[0]
                report.EventInformation = BytesIO(encode(ds, syntax.is_implicit_VR, syntax.is_little_endian) or b"")
                # Nobody waits for the answer.
                association.dimse.send_msg(report, context.context_id)
                return

    # --- services

    def _create(self, event: evt.Event) -> tuple[int, Dataset | None]:
        request: Any = event.request
        is_colour = event.context.abstract_syntax == terms.COLOUR_META
        return self._served(
            event,
            lambda session: session.create(
                str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID), event.attribute_list,
                is_colour=is_colour,
            ),
        )  # fmt: skip

    def _set(self, event: evt.Event) -> tuple[int, Dataset | None]:
        return self._served(event, lambda session: session.set(*_requested(event), event.modification_list))

    def _action(self, event: evt.Event) -> tuple[int, Dataset | None]:
        return self._served(event, lambda session: session.action(*_requested(event), event.action_type or 0))

    def _get(self, event: evt.Event) -> tuple[int, Dataset | None]:
        keywords = [keyword_for_tag(tag) for tag in event.attribute_identifiers]
        return self._served(event, lambda session: session.get(*_requested(event), keywords))

    def _delete(self, event: evt.Event) -> int:
        return self._served(event, lambda session: (session.delete(*_requested(event)), None))[0]

    def _served(
        self, event: evt.Event, serve: Callable[[PrintSession], tuple[int, Dataset | None]]
    ) -> tuple[int, Dataset | None]:
        try:
            return serve(self._guest(event.assoc).session)
        # A door: whatever a modality sends, it gets an answer. What the error says may hold what was sent.
        except Exception as error:  # noqa: BLE001
            _LOG.error("a print request failed: %s", type(error).__name__)
            return 0x0110, None


def _requested(event: evt.Event) -> tuple[str, str]:
    request: Any = event.request
    return str(request.RequestedSOPClassUID), str(request.RequestedSOPInstanceUID)
