"""One association with a printer: normalised services, with failures as errors and events wherever they come in.

Hides pynetdicom. A printer may report an event at any time, also between a request and its response; pynetdicom would
take it for the response. Source: PS3.4 annex H, PS3.7 10.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT

from imaging.dimse import answer_at_once
from imaging.dimse import print_terms as terms
from imaging.errors import AppError, Category

MOST_PDU = 1 << 20  # bytes that we take in one piece
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a printer is, and how long it may take. Application entity titles of 1 to 16 characters."""

    host: str
    port: int
    called: str
    calling: str
    connect_s: float
    answer_s: float
    implicit_only: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """A response that is no failure: its status, the instance that it names, and its attributes."""

    status: int
    uid: str
    ds: Dataset


@dataclass(frozen=True, slots=True)
class Event:
    """An event that was reported: of which instance, its type, and its attributes."""

    class_uid: str
    uid: str
    type: int
    ds: Dataset


class NoAnswer(AppError):
    """A request was sent, or may have been, and no response came: nobody knows whether it was carried out."""

    def __init__(self) -> None:
        super().__init__(Category.BUSY, "the printer did not answer", where="printer")


class PrintScu:
    """An open association."""

    def __init__(self, association: Association, meta_uid: str) -> None:
        self._association = association
        self._meta_uid = meta_uid
        self._affected_uid = ""
        self._status = 0
        self._is_lost = False
        self._message_id = 0
        self._listen()

    def accepts(self, class_uid: str) -> bool:
        """Say whether an SOP class was accepted."""
        return any(context.abstract_syntax == class_uid for context in self._association.accepted_contexts)

    def create(self, class_uid: str, uid: str, ds: Dataset) -> Reply:
        """Create an instance; the reply's UID is the one that the printer gave it, which should be ours."""
        return self._call("send_n_create", class_uid, uid, ds, class_uid, uid)

    def set(self, class_uid: str, uid: str, ds: Dataset) -> Reply:
        """Set attributes of an instance."""
        return self._call("send_n_set", class_uid, uid, ds, class_uid, uid)

    def print(self, class_uid: str, uid: str) -> Reply:
        """Print a film box or a film session. Raises NoAnswer where it may have been printed."""
        return self._call("send_n_action", class_uid, uid, None, terms.PRINT, class_uid, uid)

    def get(self, class_uid: str, uid: str, keywords: list[str]) -> Reply:
        """Return attributes of an instance."""
        return self._call("send_n_get", class_uid, uid, [Tag(keyword) for keyword in keywords], class_uid, uid)

    def delete(self, class_uid: str, uid: str) -> None:
        """Delete an instance."""
        self._call("send_n_delete", class_uid, uid, class_uid, uid)

    def _call(self, service: str, class_uid: str, uid: str, *arguments: Any) -> Reply:
        if self._is_lost:
            raise _ended()
        self._message_id = self._message_id % 65_535 + 1
        self._affected_uid = ""
        is_of_meta = class_uid not in (terms.PRINT_JOB, terms.ANNOTATION_BOX, terms.PRESENTATION_LUT)
        meta = {"meta_uid": self._meta_uid} if is_of_meta else {}
        try:
            answer = getattr(self._association, service)(*arguments, msg_id=self._message_id, **meta)
        except RuntimeError as error:  # the association is not established any more: nothing was sent
            raise _ended() from error
        status, ds = answer if isinstance(answer, tuple) else (answer, None)
        if "Status" not in status:
            self._is_lost = True
            raise NoAnswer
        # Not the status that pynetdicom returns: that becomes a failure where only the attributes cannot be read.
        if terms.is_failure(self._status):
            said, category = terms.failure(self._status)
            name = UID(class_uid).name.removesuffix(" SOP Class")
            raise AppError(category, f"the printer says of the {name}: {said} ({self._status:#06x})", where="printer")
        return Reply(self._status, self._affected_uid or uid, ds if ds is not None else Dataset())

    def _listen(self) -> None:
        """Serve requests of the printer also while a response is awaited."""
        association, taken = self._association, self._association.dimse.get_msg

        def get_msg(block: bool = False) -> tuple[Any, Any]:
            while True:
                context_id, message = taken(block)
                if block and isinstance(message, N_EVENT_REPORT) and message.is_valid_request:
                    association._serve_request(message, context_id or 0)
                    continue
                if block and message is not None:
                    self._affected_uid = str(getattr(message, "AffectedSOPInstanceUID", None) or "")
                    self._status = int(getattr(message, "Status", None) or 0)
                return context_id, message

        association.dimse.get_msg = get_msg  # type: ignore[method-assign]


@contextlib.contextmanager
def associate(
    peer: Peer, meta_uid: str, optional: tuple[str, ...] = (), *, heard: Callable[[Event], None] = lambda _: None
) -> Iterator[PrintScu]:
    """Open an association for a meta SOP class, and for optional ones where the printer has them.

    heard  is told of events, in a thread of its own

    Raises BUSY where the printer cannot be reached or has no room, FORBIDDEN where it refuses us, UNSUPPORTED where it
    lacks the meta SOP class.
    """
    syntaxes = [ImplicitVRLittleEndian] if peer.implicit_only else [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
    entity = AE(ae_title=peer.calling)
    entity.acse_timeout = entity.connection_timeout = peer.connect_s
    entity.dimse_timeout = entity.network_timeout = peer.answer_s
    for uid in (meta_uid, *optional):
        entity.add_requested_context(uid, syntaxes)

    def handle(event: evt.Event) -> tuple[int, None]:
        request: Any = event.request
        try:
            ds = event.event_information
        except Exception:  # noqa: BLE001 -- whatever a printer sends that cannot be read
            _LOG.warning("an event of the printer cannot be read")
            return 0x0110, None
        heard(Event(str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID), request.EventTypeID, ds))
        return terms.SUCCESS, None

    association = entity.associate(
        peer.host, peer.port, ae_title=peer.called, max_pdu=MOST_PDU,
        evt_handlers=[(evt.EVT_N_EVENT_REPORT, handle)],
    )  # fmt: skip
    if not association.is_established:
        raise _refused(association)
    answer_at_once(association)
    try:
        scu = PrintScu(association, meta_uid)
        if not scu.accepts(meta_uid):
            name = UID(meta_uid).name
            raise AppError(Category.UNSUPPORTED, f"the printer does not support {name}", where="printer")
        yield scu
    except BaseException:
        association.abort()
        raise
    else:
        # A printer that ends the association itself, as some do after printing, has done no harm.
        if association.is_established:
            association.release()


def _ended() -> AppError:
    return AppError(Category.BUSY, "the printer ended the association", where="printer")


def _refused(association: Association) -> AppError:
    answer = association.acceptor.primitive
    if answer is None:
        return AppError(Category.BUSY, "the printer cannot be reached", where="printer")
    if answer.result == 0:
        return AppError(Category.UNSUPPORTED, "the printer accepts none of the SOP classes", where="printer")
    # Result 1 is permanent, and source 1 the application itself, which does not know us or the title that we call. What
    # else there is, such as "congestion", may pass. Source: PS3.8 9.3.4.
    if answer.result == 1 and answer.result_source == 1:
        message = f"the printer rejects the association: {answer.reason_str}"
        return AppError(Category.FORBIDDEN, message, where="printer")
    return AppError(Category.BUSY, "the printer takes no association now", where="printer")
