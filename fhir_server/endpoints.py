"""The register of endpoints as the operator's commands see it: peers of subscribers, each shown as a FHIR Endpoint.

Hides that a peer, with its credentials, and the Endpoint that shows it are two things. The peer is written first and
forgotten last: what a crash leaves in between is listed here, connects nobody to anything new, and is put right by
the same command.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from pydicom.datadict import tag_for_keyword

from fhir_server.access.principals import Principals
from fhir_server.model.peer import SOURCES, Peer, Schedule, Way, check_name, endpoint_of
from fhir_server.outbound.remote import Rules, refused_as_written, target_of
from fhir_server.outbound.webhook import new_secret
from fhir_server.store.peers import Peers
from fhir_server.store.repository import Repository
from imaging.errors import AppError, Category

MOST_FILTERS = 20
OVERLAP = timedelta(hours=24)  # in which a secret that was replaced signs beside the new one
LONGEST_CREDENTIAL = 8192  # characters of a header's value
_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9._~-]* [\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")  # RFC 9110 11.4: scheme, rest


class Endpoints:
    """Registers, lists and forgets peers."""

    def __init__(
        self, peers: Peers, own: Repository, principals: Principals, rules: Rules, clock: Callable[[], datetime]
    ) -> None:
        """`own` is the server's own repository."""
        self._peers, self._own, self._principals, self._rules = peers, own, principals, rules
        self._clock = clock

    def add(
        self, peer: Peer, subscriber: str, *, new_secret_wanted: bool = False, overlap: timedelta = OVERLAP
    ) -> tuple[Peer, str]:
        """Register a peer for the subscriber of this name, in place of one of the same name; return it.

        The second value is the secret that signs its webhooks where one was made: never told again. A webhook that is
        registered anew keeps its secrets unless a new one is wanted; then the one before signs as well for `overlap`,
        in which the receiver changes over. Raises INVALID, NOT_FOUND for the subscriber,
        CONFLICT for a name that another subscriber has, FORBIDDEN for an address that will never be connected to.
        """
        check_name(peer.name)
        peer = replace(peer, subscriber=self._principals.named(subscriber))
        self._check(peer)
        known = {each.name: each for each in self._peers.all()}.get(peer.name)
        if known and known.subscriber != peer.subscriber:
            message = "another subscriber has an endpoint of this name; choose another, or remove that one"
            raise AppError(Category.CONFLICT, message, where=peer.name)
        made = ""
        if peer.way is Way.WEBHOOK:
            peer, made = self._signed(peer, known, new_secret_wanted=new_secret_wanted, overlap=overlap)
        self._write(peer)
        self._peers.wake(peer.name)
        return peer, made

    def all(self) -> list[Peer]:
        """Return every peer, by name."""
        return self._peers.all()

    def suspend(self, name: str) -> None:
        """Connect to a peer no more until it is resumed; orders for it wait. Raises NOT_FOUND."""
        self._write(replace(self._peers.get(name), is_suspended=True))

    def resume(self, name: str) -> None:
        """Use a peer again. Raises NOT_FOUND."""
        self._write(replace(self._peers.get(name), is_suspended=False))
        self._peers.wake(name)

    def remove(self, name: str) -> None:
        """Forget a peer with its credentials and what is known of it; orders for it fail. Raises NOT_FOUND."""
        peer = self._peers.get(name)
        try:
            self._own.delete(*peer.endpoint.split("/", 1))
        except AppError as error:
            if error.category is not Category.NOT_FOUND:
                raise
        self._peers.remove(name)

    def _signed(
        self, peer: Peer, known: Peer | None, *, new_secret_wanted: bool, overlap: timedelta
    ) -> tuple[Peer, str]:
        """Return a webhook with its secrets, and the one that was made, "" for none."""
        if known is None or not known.secret:
            made = new_secret()
            return replace(peer, secret=made), made
        if not new_secret_wanted:
            kept = {name: getattr(known, name) for name in ("secret", "old_secret", "old_secret_until")}
            return replace(peer, **kept), ""
        made = new_secret()
        until = self._clock() + overlap
        return replace(peer, secret=made, old_secret=known.secret, old_secret_until=until), made

    def _write(self, peer: Peer) -> None:
        self._peers.put(peer)
        self._own.update(endpoint_of(peer), create=True, if_changed=True)

    def _check(self, peer: Peer) -> None:
        if peer.way is Way.FOLDER:
            if not peer.address.startswith("/"):
                raise AppError(Category.INVALID, "a folder is named by its whole path", where="address")
        else:
            for address in filter(None, (peer.address, peer.wado_address)):
                if reason := refused_as_written(target_of(address), self._rules):
                    raise AppError(Category.FORBIDDEN, reason, where="address")
        if peer.authorization and (
            len(peer.authorization) > LONGEST_CREDENTIAL or not _HEADER.fullmatch(peer.authorization)
        ):
            message = f"printable characters in one line expected, up to {LONGEST_CREDENTIAL} of them"
            raise AppError(Category.INVALID, message, where="credentials")
        if peer.end is not None and peer.end <= (peer.start or self._clock()):
            raise AppError(Category.INVALID, "the endpoint would end before it starts", where="until")
        if peer.way in SOURCES:
            _check_schedule(peer.schedule)


def _check_schedule(schedule: Schedule) -> None:
    if len(schedule.filters) > MOST_FILTERS:
        raise AppError(Category.INVALID, f"at most {MOST_FILTERS} filters are taken", where="filter")
    for key, value in _pairs(schedule.filters):
        is_attribute = _TAG.fullmatch(key) or tag_for_keyword(key) is not None
        if not is_attribute or not value or not value.isprintable() or len(value) > 200:
            message = "KEYWORD=VALUE expected, with the keyword of a DICOM attribute, such as Modality=CT"
            raise AppError(Category.INVALID, message, where="filter")


def _pairs(filters: Iterable[str]) -> Iterable[tuple[str, str]]:
    return ((key, value) for key, _, value in (each.partition("=") for each in filters))
