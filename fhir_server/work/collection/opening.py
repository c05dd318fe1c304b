"""Opens the source of a peer for this server, under the contract of its subscriber."""

from typing import Any

from fhir_server.access.policy import require
from fhir_server.access.principals import Principal, Right
from fhir_server.model.peer import Peer, Way
from fhir_server.work.backing import Backing
from fhir_server.work.collection.dicomweb import DicomwebSource
from fhir_server.work.collection.folder import FolderSource
from imaging.errors import AppError, Category


def admitted(server: Backing, peer: Peer) -> Principal:
    """Return as whom images of a peer are registered. Raises FORBIDDEN where nothing is to be collected now."""
    if not peer.in_use(server.clock()):
        raise AppError(Category.FORBIDDEN, "the endpoint is suspended, or its time is over", where=peer.name)
    principal = server.principals.acting_for(peer.subscriber)
    require(principal, Right.REGISTER_IMAGES, "have images collected")
    return principal


def source_of(server: Backing, peer: Peer, *, is_careful: bool = False) -> Any:
    """Return the source of a peer, a context manager. Raises what tells that it cannot be one."""
    most_bytes = server.config["limits.instance_bytes"]
    if peer.way is Way.FOLDER:
        return FolderSource(peer, server.collected, clock=server.clock, most_bytes=most_bytes, is_careful=is_careful)
    return DicomwebSource(
        peer,
        server.outbound,
        server.collected,
        server.archive.present,
        clock=server.clock,
        most_bytes=most_bytes,
        is_careful=is_careful,
    )
