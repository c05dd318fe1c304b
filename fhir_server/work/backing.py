"""What kinds of Tasks need of the server that they work in."""

from typing import Protocol

from fhir_server import hardcopies
from fhir_server.outbound.remote import Rules
from fhir_server.rest import batch
from fhir_server.store.answers import Answers
from fhir_server.store.collected import Collected
from fhir_server.store.exports import Exports
from fhir_server.store.peers import Peers


class Backing(batch.Backing, hardcopies.Backing, Protocol):
    """The server as kinds of Tasks see it."""

    @property
    def peers(self) -> Peers:
        """Other ends of connections that this server makes, and what was exchanged with them."""

    @property
    def collected(self) -> Collected:
        """What is remembered of sources."""

    @property
    def outbound(self) -> Rules:
        """What holds for all connections that are made to peers."""

    @property
    def answers(self) -> Answers:
        """Requests that are answered later."""

    @property
    def exports(self) -> Exports:
        """The files of exports."""

    def secret(self, name: str) -> bytes:
        """Return the secret of this name, which all processes share and which never changes."""
