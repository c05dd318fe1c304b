"""What kinds of Tasks need of the server that they work in."""

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from fhir_server.access.audit import Audit
from fhir_server.access.capability_urls import CapabilityUrls
from fhir_server.access.principals import Principal, Principals
from fhir_server.config import Config
from fhir_server.corrections import AttributeCorrections
from fhir_server.model.criteria import Limits
from fhir_server.model.task import Json
from fhir_server.outbound.remote import Rules
from fhir_server.printers import Printers
from fhir_server.reconciliation import Reconciliation
from fhir_server.rest.batch import BundleLimits
from fhir_server.store.answers import Answers
from fhir_server.store.collected import Collected
from fhir_server.store.exports import Exports
from fhir_server.store.parameters import SearchParameters
from fhir_server.store.peers import Peers
from fhir_server.store.repository import Repository
from fhir_server.store.subscriptions import Subscriptions
from fhir_server.store.usage import Usage
from fhir_server.studies import Studies
from imaging.archive import Archive


class Backing(Protocol):
    """The server as kinds of Tasks see it."""

    @property
    def config(self) -> Config:
        """The settings."""

    @property
    def archive(self) -> Archive:
        """The images."""

    @property
    def studies(self) -> Studies:
        """Where DICOM meets FHIR."""

    @property
    def reconciliation(self) -> Reconciliation:
        """Merges Patients and moves studies."""

    @property
    def corrections(self) -> AttributeCorrections:
        """Corrects attributes of images."""

    @property
    def own(self) -> Repository:
        """The server's own repository, unrestricted."""

    @property
    def repository_for(self) -> Callable[[Principal], Repository]:
        """From who asks to a repository with what they may see."""

    @property
    def principals(self) -> Principals:
        """The subscribers and their rights."""

    @property
    def audit(self) -> Audit:
        """The audit record."""

    @property
    def capability_urls(self) -> CapabilityUrls:
        """The addresses that open a study without a token."""

    @property
    def dicomweb_url(self) -> str:
        """Base of the DICOMweb door as clients reach it."""

    @property
    def usage(self) -> Usage:
        """What subscribers used."""

    @property
    def peers(self) -> Peers:
        """Other ends of connections that this server makes, and what was exchanged with them."""

    @property
    def subscriptions(self) -> Subscriptions:
        """What happened, and how far each Subscription has been told."""

    @property
    def collected(self) -> Collected:
        """What is remembered of sources."""

    @property
    def outbound(self) -> Rules:
        """What holds for all connections that are made to peers."""

    @property
    def printers(self) -> Printers:
        """The register of printers."""

    @property
    def answers(self) -> Answers:
        """Requests that are answered later."""

    @property
    def exports(self) -> Exports:
        """The files of exports."""

    @property
    def bundle_limits(self) -> BundleLimits:
        """Bounds on batches and transactions."""

    @property
    def conforms(self) -> Callable[[Json], None]:
        """Raises INVALID for a resource that does not conform to the profiles that it has to."""

    @property
    def most_resource_bytes(self) -> int:
        """Largest FHIR resource that is taken."""

    def secret(self, name: str) -> bytes:
        """Return the secret of this name, which all processes share and which never changes."""

    @property
    def clock(self) -> Callable[[], datetime]:
        """Now, aware UTC."""

    @property
    def fhir_url(self) -> str:
        """Base of the FHIR door."""

    @property
    def search_parameters(self) -> SearchParameters:
        """The search parameters in use."""

    @property
    def search_limits(self) -> Limits:
        """Bounds on FHIR searches."""
