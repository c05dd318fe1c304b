"""One association with a printer: normalised services, with failures as errors and events wherever they come in.

Hides pynetdicom. A printer may report an event at any time, also between a request and its response. Sources: PS3.4
annex H, PS3.7 10.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_ACTION, N_CREATE, N_DELETE, N_GET, N_SET
from pynetdicom.dsutils import decode, encode
from pynetdicom.presentation import PresentationContext

from imaging.dimse import MOST_PDU, answer_at_once, bound
from imaging.dimse import print_terms as terms
from imaging.dimse.exchange import Exchange
from imaging.dimse.tls import calling
from imaging.errors import AppError, Category
from imaging.tls import Identity

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a printer is, and how long it may take. Application entity titles of 1 to 16 characters.

    tls   who we are and whom we believe over TLS; None connects without
    """

    host: str
    port: int
    called: str
    calling: str
    connect_s: float
    answer_s: float
    implicit_only: bool = False
    tls: Identity | None = None


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

    def __init__(self, association: Association, meta_uid: str, answer_s: float) -> None:
        self._association = association
        self._exchange = Exchange(association)
        self._meta_uid = meta_uid
        self._answer_s = answer_s
        self._message_id = 0
        self._is_lost = False

    def accepts(self, class_uid: str) -> bool:
        """Say whether an SOP class was accepted."""
        return any(context.abstract_syntax == class_uid for context in self._association.accepted_contexts)

    def create(self, class_uid: str, uid: str, ds: Dataset) -> Reply:
        """Create an instance; the reply's UID is the one that the printer gave it, which should be ours."""
        request = N_CREATE()
        request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = UID(class_uid), UID(uid)
        return self._call(request, class_uid, uid, sent=("AttributeList", ds), received="AttributeList")

    def set(self, class_uid: str, uid: str, ds: Dataset) -> Reply:
        """Set attributes of an instance."""
        sent = ("ModificationList", ds)
        return self._call(_requested(N_SET(), class_uid, uid), class_uid, uid, sent=sent, received="AttributeList")

    def print(self, class_uid: str, uid: str) -> Reply:
        """Print a film box or a film session. Raises NoAnswer where it may have been printed."""
        request = _requested(N_ACTION(), class_uid, uid)
        request.ActionTypeID = terms.PRINT
        return self._call(request, class_uid, uid, received="ActionReply")

    def get(self, class_uid: str, uid: str, keywords: list[str]) -> Reply:
        """Return attributes of an instance; none asked for are all."""
        request = _requested(N_GET(), class_uid, uid)
        if keywords:
            request.AttributeIdentifierList = [Tag(keyword) for keyword in keywords]
        return self._call(request, class_uid, uid, received="AttributeList")

    def delete(self, class_uid: str, uid: str) -> None:
        """Delete an instance."""
        self._call(_requested(N_DELETE(), class_uid, uid), class_uid, uid)

    def _call(
        self, request: Any, class_uid: str, uid: str, *, sent: tuple[str, Dataset] | None = None, received: str = ""
    ) -> Reply:
        if self._is_lost or not self._association.is_established:
            raise AppError(Category.BUSY, "the printer ended the association", where="printer")
        context = self._context(class_uid)
        syntax = context.transfer_syntax[0]
        self._message_id = request.MessageID = self._message_id % 65_535 + 1
        if sent is not None:
            data = encode(sent[1], syntax.is_implicit_VR, syntax.is_little_endian)
            if data is None:
                raise AppError(Category.FAULT, "a request cannot be encoded", where="printer")
            setattr(request, sent[0], BytesIO(data))
        answer = self._exchange.request(request, context.context_id or 0, self._answer_s)
        if answer is None or answer.Status is None:
            self._is_lost = True
            raise NoAnswer
        if terms.is_failure(answer.Status):
            said, category = terms.failure(answer.Status)
            name = UID(class_uid).name.removesuffix(" SOP Class")
            raise AppError(category, f"the printer says of the {name}: {said} ({answer.Status:#06x})", where="printer")
        given = str(getattr(answer, "AffectedSOPInstanceUID", None) or "")
        return Reply(
            answer.Status, given or uid, _decoded(getattr(answer, received, None) if received else None, syntax)
        )

    def _context(self, class_uid: str) -> PresentationContext:
        is_of_meta = class_uid not in (terms.PRINT_JOB, terms.ANNOTATION_BOX, terms.PRESENTATION_LUT)
        wanted = self._meta_uid if is_of_meta else class_uid
        for context in self._association.accepted_contexts:
            if context.abstract_syntax == wanted:
                return context
        raise AppError(Category.UNSUPPORTED, f"the printer does not support {UID(wanted).name}", where="printer")


def _requested(request: Any, class_uid: str, uid: str) -> Any:
    request.RequestedSOPClassUID, request.RequestedSOPInstanceUID = UID(class_uid), UID(uid)
    return request


def _decoded(data: BytesIO | None, syntax: UID) -> Dataset:
    """Return attributes; none where they cannot be read, as what was asked for has been done all the same."""
    if data is None or not data.getvalue():
        return Dataset()
    try:
        ds = decode(data, syntax.is_implicit_VR, syntax.is_little_endian)
        for _ in ds.iterall():  # each value is read now, not where it is used
            pass
    # pydicom raises whatever it comes across.
    except Exception:  # noqa: BLE001
        _LOG.warning("attributes in an answer of the printer cannot be read")
        return Dataset()
    return ds


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

    context = calling(peer.tls) if peer.tls else None
    association = entity.associate(
        peer.host, peer.port, ae_title=peer.called, max_pdu=MOST_PDU,
        evt_handlers=[(evt.EVT_N_EVENT_REPORT, handle)], tls_args=(context, peer.host) if context else None,
    )  # fmt: skip
    if not association.is_established:
        if context and context.trouble:
            raise AppError(Category.FORBIDDEN, f"the printer cannot be trusted: {context.trouble}", where="printer")
        raise _refused(association)
    answer_at_once(association)
    bound(association)
    try:
        scu = PrintScu(association, meta_uid, peer.answer_s)
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
