"""Who may have images delivered to whom: from the recipient that an order names to peers, and what contracts allow.

* Who orders has `order-processing`, and may read the images or registered them itself (`selection`).
* Its own receivers of images (STOW-RS) may get all of these: the result of what it sent goes back to it.
* A receiver of another subscriber may get what that subscriber's own contracts let it read, and nothing else.
* A notification, which tells what can be fetched, goes to those that may fetch it.

All of this is asked when the order is placed and again whenever something is about to be sent.
"""

from collections.abc import Collection, Iterable
from datetime import datetime

from fhir_server.access.policy import require
from fhir_server.access.principals import Principal, Right
from fhir_server.model.peer import RECEIVERS, Peer, Way, name_of_endpoint
from fhir_server.work.backing import Backing
from imaging.errors import AppError, Category


def receivers(server: Backing, reference: str) -> list[Peer]:
    """Return the receivers that a recipient stands for: an Endpoint itself, an Organization all that it manages.

    Raises NOT_FOUND for what was never registered or was removed, INVALID for what receives nothing.
    """
    kind, _, identifier = reference.partition("/")
    if kind == "Organization":
        found = [each for each in server.peers.all(reference) if each.way in RECEIVERS]
        if not found:
            message = "it manages no Endpoint that was registered to receive images"
            raise AppError(Category.NOT_FOUND, message, where=reference)
        return found
    name = name_of_endpoint(identifier)
    if not name:
        message = "this Endpoint was not registered by the operator, so nothing is sent to it"
        raise AppError(Category.INVALID, message, where=reference)
    peer = server.peers.get(name)
    if peer.way not in RECEIVERS:
        raise AppError(Category.INVALID, "this Endpoint is a source of images, not a receiver", where=reference)
    return [peer]


def admit_recipient(server: Backing, principal: Principal, reference: str, studies: Iterable[str] = ()) -> None:
    """Return when a principal may order that images of these studies are delivered to a recipient.

    Raises FORBIDDEN, NOT_FOUND and what `receivers` raises; CONFLICT where the time of every receiver is over.
    """
    found = receivers(server, reference)
    now = server.clock()
    if all(is_over(each, now) for each in found):
        raise AppError(Category.CONFLICT, "the time of this receiver is over", where=reference)
    wanted = tuple(studies)
    for each in found:
        require_leave(server, principal, each, wanted)


def require_leave(server: Backing, principal: Principal, peer: Peer, studies: Iterable[str]) -> None:
    """Return when contracts in force let a principal deliver images of these studies to a peer. Raises FORBIDDEN."""
    if peer.subscriber == principal.subscriber and peer.way is Way.STOW:
        return
    recipient = server.principals.acting_for(peer.subscriber)
    require(recipient, Right.RECEIVE_IMAGES, f"have images delivered to {peer.endpoint}")
    for study_uid in studies:
        try:
            server.studies.authorise(study_uid, recipient)
        except AppError as error:
            if error.category is not Category.NOT_FOUND:
                raise
            message = f"the subscriber of {peer.endpoint} may not read this study"
            raise AppError(Category.FORBIDDEN, message, where=study_uid) from None


def require_among(organizations: Collection[str], peers: Iterable[Peer]) -> None:
    """Return when all receivers are those of organisations to which an order is restricted, if any. Raises INVALID."""
    for each in peers:
        if organizations and each.subscriber not in organizations:
            message = f"the order is restricted to other recipients than {each.endpoint}"
            raise AppError(Category.INVALID, message, where="Task.restriction.recipient")


def is_over(peer: Peer, now: datetime) -> bool:
    """Say whether the time in which the operator lets a peer be used has ended."""
    return peer.end is not None and peer.end <= now
