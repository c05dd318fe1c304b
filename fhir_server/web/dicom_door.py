"""The DICOMweb door: where it stands, and how what is asked for is seen through it, by name or behind pseudonyms.

There is one door with two views. A visit holds the images of one study as the caller may see them; whatever answers is
made of a visit's images alone, and so knows nothing of the other view. Source: PS3.18 10.4 and 10.6, PS3.15 annex E.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from flask import Response, request

from fhir_server.access.audit import Access, Metered
from fhir_server.access.policy import require_images
from fhir_server.access.principals import Principal, Right
from fhir_server.deidentified import Deidentified, Found
from fhir_server.rest import watching
from fhir_server.store.filters import Act
from fhir_server.studies import Studies
from fhir_server.web.dicom_answers import IMMUTABLE, REVALIDATE
from fhir_server.web.http import principal_of
from imaging.archive import Archive, Contents, Instance
from imaging.blobs import Buffer
from imaging.codecs import Decoded
from imaging.dicomweb import Matching

WITHOUT_NAMES = "/deidentified"
"""Where the view behind pseudonyms is, below the address of the door."""
RECORDERS = 8  # audit records of retrievals that a process writes at a time


class Backing(watching.Backing, Protocol):
    """What this door needs of the server."""

    @property
    def archive(self) -> Archive: ...  # noqa: D102
    @property
    def studies(self) -> Studies: ...  # noqa: D102
    @property
    def deidentified(self) -> Deidentified: ...  # noqa: D102


class Images(Protocol):
    """Images that can be retrieved: those of the archive by name, or cleaned ones. See `imaging.archive.Archive`."""

    def instance(self, study_uid: str, series_uid: str, sop_uid: str) -> Instance: ...  # noqa: D102
    def with_file(self, study_uid: str, series_uid: str, sop_uid: str) -> Instance: ...  # noqa: D102
    def described(self, study_uid: str, series_uid: str, sop_uid: str) -> tuple[Instance, bytes]: ...  # noqa: D102
    def contents(self, study_uid: str, series_uid: str | None = None) -> Contents: ...  # noqa: D102
    def each(self, sop_uids: Sequence[str]) -> Iterator[Instance]: ...  # noqa: D102
    def documents(self, sop_uids: Sequence[str]) -> Iterator[bytes]: ...  # noqa: D102
    def metadata(  # noqa: D102
        self, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None
    ) -> Iterator[tuple[tuple[str, str, str], bytes]]: ...
    def files(  # noqa: D102
        self, instances: Iterable[Instance], form: str
    ) -> Iterator[tuple[Instance, Iterable[bytes]]]: ...
    def file(self, instance: Instance, form: str) -> Iterable[bytes]: ...  # noqa: D102
    def decided(self, study_uid: str) -> str: ...  # noqa: D102
    def length(self, instance: Instance, form: str) -> int | None: ...  # noqa: D102
    def frame(self, instance: Instance, number: int, transfer_syntax_uid: str) -> bytes: ...  # noqa: D102
    def pixels(self, instance: Instance, number: int, *, reduce_levels: int = 0) -> Decoded: ...  # noqa: D102
    def bulkdata(self, instance: Instance, path: str) -> Buffer: ...  # noqa: D102


class Seen(NamedTuple):
    """The images of a study: by which UID the audit record names it, and how many of those asked for are left out."""

    images: Images
    recorded_as: str
    left_out: Callable[[], int]


class View(Protocol):
    """How images are seen: who may see which, what of them, and for how long what belongs to one may be kept."""

    caching: str

    def study(self, server: Backing, principal: Principal, study_uid: str) -> Seen:
        """Return the images of a study. Raises FORBIDDEN, NOT_FOUND."""

    def search(
        self, server: Backing, principal: Principal, asked: Matching, study_uid: str | None, series_uid: str | None
    ) -> Found:
        """Return what matches, in all studies or in one. Raises FORBIDDEN, NOT_FOUND, INVALID."""


class _ByName:
    caching = IMMUTABLE

    def study(self, server: Backing, principal: Principal, study_uid: str) -> Seen:
        server.studies.authorise(study_uid, principal)
        return Seen(server.archive.for_one_answer(), study_uid, lambda: 0)

    def search(
        self, server: Backing, principal: Principal, asked: Matching, study_uid: str | None, series_uid: str | None
    ) -> Found:
        require_images(principal, Right.RECEIVE_IMAGES, Act.SEARCH, "search for images")
        if study_uid:
            server.studies.authorise(study_uid, principal, Act.SEARCH)
            server.studies.refresh(study_uid)
        else:
            server.studies.catch_up()
        found = server.studies.query(asked.within(study_uid, series_uid), principal)
        return Found(found, [each.uids[0] for each in found], study_uid)


class _BehindPseudonyms:
    caching = REVALIDATE  # another contract makes other images of the same instance

    def study(self, server: Backing, principal: Principal, study_uid: str) -> Seen:
        images, recorded_as = server.deidentified.view(principal, Act.READ).images(study_uid)
        return Seen(images, recorded_as, lambda: images.left_out)

    def search(
        self, server: Backing, principal: Principal, asked: Matching, study_uid: str | None, series_uid: str | None
    ) -> Found:
        return server.deidentified.view(principal, Act.SEARCH).search(asked, study_uid, series_uid)


@dataclass(frozen=True, slots=True)
class Door:
    """The DICOMweb door of one server, seen through one view.

    base_url   the address that the view has
    right      which lets images out here, None for what is usual
    """

    server: Backing
    base_url: str
    view: View = field(default_factory=_ByName)
    right: Right | None = None
    recorders: Executor = field(default_factory=lambda: ThreadPoolExecutor(RECORDERS, "audit"))

    @property
    def without_names(self) -> "Door":
        """The same door with the view behind pseudonyms."""
        base_url = f"{self.base_url}{WITHOUT_NAMES}"
        return replace(self, base_url=base_url, view=_BehindPseudonyms(), right=Right.RECEIVE_DEIDENTIFIED)

    def address(self, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None) -> str:
        """Return the URL of a study, series or instance."""
        parts = [self.base_url, "studies", study_uid]
        parts += ["series", series_uid] if series_uid else []
        parts += ["instances", sop_uid] if sop_uid else []
        return "/".join(parts)

    def admit(self, study_uid: str) -> "Visit":
        """Return a visit to the images of a study, after whoever asks was found to be allowed to see them."""
        principal = principal_of(request)
        return Visit(self, principal, self.view.study(self.server, principal, study_uid))


@dataclass(frozen=True, slots=True)
class Visit:
    """One caller at the images of one study."""

    door: Door
    principal: Principal
    _seen: Seen

    @property
    def images(self) -> Images:
        """The images as the caller may see them; nothing else is to be answered with."""
        return self._seen.images

    @property
    def caching(self) -> str:
        """How long an answer about one instance may be kept."""
        return self.door.view.caching

    def retrieved(self, instances: int = 1, access: Access = Access.RETRIEVE, downloads: int = 0) -> None:
        """Leave an audit record of a retrieval; called before the first byte goes out."""
        studies, metered = {self._seen.recorded_as: instances}, Metered(self.door.right, downloads=downloads)
        self.door.server.audit.record(self.principal, access, studies=studies, metered=metered)

    @contextmanager
    def retrieving(self, instances: int = 1, access: Access = Access.RETRIEVE, downloads: int = 0) -> Iterator[None]:
        """Leave an audit record of a retrieval while its first bytes are made: durable when the block is left.

        Waiting for the journal takes about as long as a frame takes to be decoded.
        """
        # In a copy of the context, which knows the request's id and where it came from.
        recorded = self.door.recorders.submit(copy_context().run, self.retrieved, instances, access, downloads)
        try:
            yield
        finally:
            recorded.result()

    def told(self, response: Response) -> Response:
        """Return the answer, with a Warning where something that was asked for is not in it."""
        if left_out := self._seen.left_out():
            words = f"{left_out} instances are left out, which cannot be cleaned by a program"
            response.headers.add("Warning", f'299 {self.door.base_url}: "{words}"')
        return response
