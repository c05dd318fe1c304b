"""What whoever acts for a principal needs of the server; doors and kinds of work add what they need besides."""

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from fhir_server.access.audit import Audit
from fhir_server.access.principals import Principal, Principals
from fhir_server.config import Config
from fhir_server.store.repository import Repository


class Backing(Protocol):
    """The server as those who act for a principal see it."""

    @property
    def config(self) -> Config:
        """The settings."""

    @property
    def own(self) -> Repository:
        """The server's own repository, unrestricted."""

    @property
    def repository_for(self) -> Callable[[Principal], Repository]:
        """From who asks to a repository with what they may see and change."""

    @property
    def principals(self) -> Principals:
        """The subscribers and their rights."""

    @property
    def audit(self) -> Audit:
        """The audit record."""

    @property
    def clock(self) -> Callable[[], datetime]:
        """Now, aware UTC."""

    @property
    def fhir_url(self) -> str:
        """Base of the FHIR door."""

    @property
    def dicomweb_url(self) -> str:
        """Base of the DICOMweb door."""
