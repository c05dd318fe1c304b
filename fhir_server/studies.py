"""Where DICOM meets FHIR: images come in under a contract, and their study appears as FHIR resources.

Hides how an archive of instances and a repository of resources are kept in step: who reads before a study's resources
show its images has them brought up to date (`projector`). Pixels obey the ImagingStudy: who may not read it sees none.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from fhir_server import projection
from fhir_server.access.agreements import Agreements
from fhir_server.access.audit import Access, Audit, Metered
from fhir_server.access.charging import READING, is_request
from fhir_server.access.policy import require, require_images, restriction, sees_as_agreed
from fhir_server.access.principals import Principal, Right
from fhir_server.admission import Admission
from fhir_server.deletion import Deletion
from fhir_server.model.criteria import Clause, Reference, Token
from fhir_server.model.query import Query
from fhir_server.projection import Resource
from fhir_server.projector import Place, Projector, read_or_none
from fhir_server.storage_checks import remarks
from fhir_server.store.documents import Reach
from fhir_server.store.filters import ALLOW, Act
from fhir_server.store.lease import Leases
from fhir_server.store.reconciliations import Reconciliations
from fhir_server.store.repository import Repository
from fhir_server.study_elements import shows_images
from imaging.archive import Archive, Incoming, Instance, Outcome, Remark, Result, Stored
from imaging.dataset import InstanceSummary, Patient
from imaging.dicomweb import Matching
from imaging.errors import AppError, Category

__all__ = ["Place", "Studies"]

log = logging.getLogger(__name__)

CATCH_UP_S = 1.0  # of projecting on behalf of one search; the maintenance worker does the rest
BELIEVED_S = 1.0
_MOST_SEEN = 10_000  # authorisations remembered
REST_S = 30.0  # before a study that could not be projected is tried again by the same process
FEW_STUDIES = 2_000  # that a principal may search, which are looked for by name
_LINKED = 20  # studies that may wait for one order


class Studies:
    """The studies of this server, between the archive and the repository."""

    def __init__(
        self,
        archive: Archive,
        own: Repository,
        repository_for: Callable[[Principal], Repository],
        leases: Leases,
        audit: Audit,
        place: Place,
        agreements: Agreements,
        deletion: Deletion,
        reconciliations: Reconciliations,
    ) -> None:
        """Join the two. `own` is the server's own repository: unrestricted and internal."""
        self._agreements = agreements
        self._deletion = deletion
        self._archive = archive
        self._own = own
        self._repository_for = repository_for
        self._audit = audit
        self._projector = Projector(archive, own, leases, place, reconciliations)
        self._seen: dict[tuple[Principal, str, Act], float] = {}  # until when an authorisation is believed, monotonic s
        self._resting: dict[str, float] = {}  # Study Instance UID -> when it may be tried again, monotonic s

    # ---- in

    def ingest(
        self, parts: Iterable[Incoming], principal: Principal, *, study_uid: str | None = None, brought_by: str = ""
    ) -> Iterator[Outcome]:
        """Yield one outcome for each received file, in order; Stored ones are durable, verified and visible to reads.

        study_uid   the only study that is welcome, None for any
        brought_by  "Task/..." that fetched the files, "" where they were sent
        Raises FORBIDDEN before anything is read unless a contract allows to register images.
        """
        require_images(principal, Right.REGISTER_IMAGES, Act.CREATE, "store images")
        return self._ingest(parts, principal, study_uid, self._admission(principal), brought_by, Right.REGISTER_IMAGES)

    def register_results(self, parts: Iterable[Incoming], principal: Principal) -> Iterator[Outcome]:
        """Store what processing made for a subscriber, as its own; see `ingest`. Raises FORBIDDEN."""
        require(principal, Right.ORDER_PROCESSING, "have images processed")
        # What an order makes belongs to what it was allowed to work on.
        return self._ingest(parts, principal, None, lambda _: None, "", Right.ORDER_PROCESSING)

    def _ingest(
        self,
        parts: Iterable[Incoming],
        principal: Principal,
        study_uid: str | None,
        check: Callable[[InstanceSummary], None],
        brought_by: str,
        right: Right,
    ) -> Iterator[Outcome]:
        agreement = self._agreements.of(principal.subscriber)
        patients: dict[str, Patient] = {}
        as_corrected = self._archive.corrector()

        def patient_of(uid: str) -> Patient | None:
            if uid not in patients and (found := self._archive.patient_of(uid)):
                patients[uid] = found
            return patients.get(uid)

        def admit(summary: InstanceSummary) -> list[Remark]:
            if study_uid and summary.study_uid != study_uid:
                raise AppError(Category.CONFLICT, "the instance is of another study than the address", where=study_uid)
            summary = as_corrected(summary)
            check(summary)
            said = [*remarks(summary, agreement, patient_of)]
            patients.setdefault(summary.study_uid, summary.patient)
            return said

        touched: dict[str, int] = {}
        size = 0
        origin = {"registered_by": principal.subscriber, "brought_by": brought_by}
        try:
            for outcome in self._archive.store_all(parts, admit=admit, **origin):
                if isinstance(outcome, Stored):
                    touched[outcome.summary.study_uid] = touched.get(outcome.summary.study_uid, 0) + 1
                    size += outcome.size_received
                yield outcome
        finally:
            # Also when the sender went away in the middle: what is stored stays stored.
            metered = Metered(right, bytes_in=0 if is_request() else size)
            self._audit.record(principal, Access.STORE, studies=touched, metered=metered)

    def _admission(self, principal: Principal) -> Callable[[InstanceSummary], None]:
        """Return what raises FORBIDDEN for an instance that the principal may not register."""
        if restriction(principal).access("ImagingStudy", Act.CREATE) is ALLOW:
            return lambda _: None
        decided = partial(self._audit.charges.decided, principal, (Right.REGISTER_IMAGES,))
        repository = self._repository_for(principal)
        return Admission(repository, self._projector, principal.subscriber, self._is_known, decided).check

    def _is_known(self, study_uid: str) -> bool:
        known = projection.imaging_study_id(study_uid)
        return read_or_none(self._own, "ImagingStudy", known) is not None or self._is_new(study_uid)

    # ---- who may see

    def authorise(self, study_uid: str, principal: Principal, act: Act = Act.READ) -> None:
        """Return when the principal may read the study's ImagingStudy, and hence its images; or find it, as `act` says.

        What was found is believed for a second, for viewers that fetch a study frame by frame. Raises FORBIDDEN without
        the right, NOT_FOUND when there is no such study within the principal's reach.
        """
        now, key = time.monotonic(), (principal, study_uid, act)
        charges = self._audit.charges
        is_open = charges.is_open(principal, READING, study_uid)
        if now < self._seen.get(key, 0.0) and not is_open:
            return
        repository = self._repository_for(principal)
        known = projection.imaging_study_id(study_uid)
        look = partial(repository.reach if is_open else repository.has, "ImagingStudy", known, act)
        found = look() or (self._is_new(study_uid) and look())
        if not found:
            raise AppError(Category.NOT_FOUND, "no such study", where=study_uid)
        if isinstance(found, Reach):
            charges.decided(principal, READING, study_uid, found)
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        self._seen[key] = now + BELIEVED_S

    def _is_new(self, study_uid: str) -> bool:
        """Project a study that nobody has projected yet; say whether that was so."""
        if not self._archive.is_behind(study_uid):
            return False
        self.project(study_uid)
        return True

    def query(self, matching: Matching, principal: Principal) -> list[Result]:
        """Return what a QIDO-RS query finds for a principal among the studies that it may search.

        Where those are few, only they are looked at; otherwise matches are judged together, in their order.
        """
        if restriction(principal).access("ImagingStudy", Act.SEARCH) is ALLOW:
            return self._archive.query(matching)
        repository = self._repository_for(principal)
        few = repository.ids("ImagingStudy", Act.SEARCH, limit=FEW_STUDIES + 1)
        if len(few) <= FEW_STUDIES:
            return self._archive.query(matching, studies=few)
        return self._archive.query(matching, lambda uids: repository.ids("ImagingStudy", Act.SEARCH, among=uids))

    def require_reach(self, instances: Iterable[Instance], principal: Principal) -> None:
        """Return when a principal may have these images worked on: it may read them, or registered them itself.

        Raises FORBIDDEN, or NOT_FOUND as for what is not there.
        """
        # Under a grant it does not count who registered them: the scopes say what may be seen.
        own = "" if principal.grant else principal.subscriber
        others = {each.study_uid for each in instances if each.registered_by != own}
        for study_uid in sorted(others):
            self.authorise(study_uid, principal)

    # ---- projection

    def catch_up(self, limit: int = 100) -> int:
        """Project studies that are behind, longest waiting first, for about a second; return how many were done.

        Costs one indexed query when nothing is behind. A study that cannot be projected stops nobody.
        """
        deadline = time.monotonic() + CATCH_UP_S
        done = 0
        for study_uid in self._archive.behind(limit):
            done += self.attempt(study_uid)
            if time.monotonic() > deadline:
                break
        return done

    def show_all(self, within_s: float) -> None:
        """Project all studies that are behind, for work that may wait so long for images that were acknowledged."""
        end = time.monotonic() + within_s
        while self.catch_up() and time.monotonic() < end:
            continue

    def attempt(self, study_uid: str) -> bool:
        """Project a study; say whether that was done. One that failed is left alone for half a minute."""
        if time.monotonic() < self._resting.get(study_uid, 0.0):
            return False
        try:
            self._projector.project(study_uid)
        # Whatever is wrong with one study, searches for the others have to go on.
        except Exception as error:
            if isinstance(error, AppError) and error.category is Category.BUSY:
                return False  # somebody else is at it, and takes long
            log.exception("a study cannot be projected; it is tried again later", extra={"study_uid": study_uid})
            self._resting[study_uid] = time.monotonic() + REST_S
            return False
        self._resting.pop(study_uid, None)
        return True

    def refresh(self, study_uid: str) -> None:
        """Bring one study up to date if it is behind: one indexed query when it is not."""
        if self._archive.is_behind(study_uid):
            self.project(study_uid)

    def project(self, study_uid: str) -> None:
        """Make the FHIR resources of a study show all images stored before the call. Raises BUSY."""
        self._projector.project(study_uid)

    def attributes_of(self, patient: Resource, assigner: str) -> dict[str, tuple[str, ...]]:
        """Return what images of a subscriber say of a Patient, as texts by keyword."""
        return self._projector.attributes_of(patient, assigner)

    def alone(self, summary: InstanceSummary, assigner: str) -> Resource:
        """Return the ImagingStudy that an instance of a subscriber would make by itself; nothing is written."""
        return self._projector.alone(summary, assigner)

    def link_order(self, order: Resource) -> None:
        """Have studies whose images came before their ServiceRequest refer to it."""
        numbers = tuple(Token(None, each["value"]) for each in order.get("identifier", []) if each.get("value"))
        subject = order["subject"].get("reference", "")
        if not numbers or not subject:
            return
        clauses = (
            Clause("identifier", "token", "", numbers),
            Clause("subject", "reference", "", (Reference((subject,)),)),
        )
        for found in self._own.search(Query("ImagingStudy", clauses, count=_LINKED)).matches:
            if shows_images(found.json()):
                # A projection that is under way may have looked for orders already: it has to be made anew.
                self._archive.mark(found.id)
                self.project(found.id)

    # ---- out

    def delete(
        self,
        study_uid: str,
        principal: Principal,
        *,
        series_uid: str | None = None,
        sop_uid: str | None = None,
    ) -> int:
        """Delete the images of a study, a series or one instance, and what shows them; return how many there were.

        Only the subscriber that registered every one of them may; for a while it can take them back. Raises FORBIDDEN,
        NOT_FOUND for none, and CONFLICT for what has to be kept.
        """
        require_images(principal, Right.REGISTER_IMAGES, Act.DELETE, "delete images")
        if restriction(principal).access("ImagingStudy", Act.DELETE) is not ALLOW:
            self.authorise(study_uid, principal, Act.DELETE)
        found = self._archive.instances(study_uid, series_uid, sop_uid)
        if any(instance.registered_by != principal.subscriber for instance in found):
            message = "only the subscriber that registered all of these images may delete them"
            raise AppError(Category.FORBIDDEN, message, where=study_uid)
        named = (study_uid, series_uid, sop_uid)
        self._deletion.check(self._agreements.of(principal.subscriber), self._archive.stored_at(*named), study_uid)
        if self._deletion.undelete_for:
            by = principal.subscriber
            deleted = self._archive.put_aside(*named, keep_for=self._deletion.undelete_for, deleted_by=by)
        else:
            deleted = self._archive.delete(*named)
        self._audit.record(principal, Access.DELETE_IMAGES, studies={study_uid: deleted})
        self.project(study_uid)
        return deleted

    def undelete(
        self, study_uid: str, principal: Principal, *, series_uid: str | None = None, sop_uid: str | None = None
    ) -> int:
        """Take back images that were deleted; return how many came back.

        Only the subscriber that registered every one of them may. Raises FORBIDDEN; NOT_FOUND where nothing can be
        taken back, CONFLICT where all of it has been stored again meanwhile.
        """
        require_images(principal, Right.REGISTER_IMAGES, Act.CREATE, "take back images")
        named = (study_uid, series_uid, sop_uid)
        if not sees_as_agreed(principal, "ImagingStudy", Act.CREATE):
            # What is put aside has no ImagingStudy by which the scopes could be judged.
            message = "these scopes do not let you register all images, so that nothing can be taken back with them"
            raise AppError(Category.FORBIDDEN, message, where=study_uid)
        owners = self._archive.put_aside_by(*named)
        is_hidden = restriction(principal).access("ImagingStudy", Act.CREATE) is not ALLOW
        if not owners or (is_hidden and principal.subscriber not in owners):
            raise AppError(Category.NOT_FOUND, "nothing was deleted here that could be taken back", where=study_uid)
        if owners != {principal.subscriber}:
            message = "only the subscriber that registered all of these images may take them back"
            raise AppError(Category.FORBIDDEN, message, where=study_uid)
        back = self.take_back(*named)
        self._audit.record(principal, Access.STORE, studies={study_uid: back})
        return back

    def take_back(self, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None) -> int:
        """Take back images on the operator's word; see `undelete`."""
        back, taken = self._archive.take_back(study_uid, series_uid, sop_uid)
        if not back and taken:
            message = "all of these images have been stored again meanwhile; those stay"
            raise AppError(Category.CONFLICT, message, where=study_uid)
        if not back:
            raise AppError(Category.NOT_FOUND, "nothing was deleted here that could be taken back", where=study_uid)
        self.project(study_uid)
        return back

    def discard(self, instances: Iterable[Instance], principal: Principal) -> int:
        """Delete images that an order of the subscriber said not to keep; return how many there were.

        What others registered stays: it is not the subscriber's to give away.
        """
        studies: dict[str, int] = {}
        for each in instances:
            if each.registered_by == principal.subscriber:
                gone = self._archive.delete(each.study_uid, each.series_uid, each.sop_uid)
                studies[each.study_uid] = studies.get(each.study_uid, 0) + gone
        for study_uid in studies:
            self.project(study_uid)
        if studies:
            self._audit.record(principal, Access.DELETE_IMAGES, studies=studies)
        return sum(studies.values())

    def delete_resource(
        self,
        resource_type: str,
        id: str,
        principal: Principal,
        repository: Repository,
        *,
        if_match: int | None = None,
    ) -> None:
        """Delete a FHIR resource as a client asks; an ImagingStudy with images takes its images along.

        repository   the principal's; where it is a part of a transaction, images cannot go along: UNSUPPORTED
        Raises CONFLICT for a Patient whose images are here, besides what the repository raises.
        """
        if not repository.has(resource_type, id, Act.DELETE):
            # What is out of reach is told from what is not there neither by its images nor by its version.
            repository.delete(resource_type, id, if_match=if_match)
            return
        if resource_type == "ImagingStudy":
            self.refresh(id)
            found = read_or_none(self._own, "ImagingStudy", id)
            existing = found.json() if found else None
            if existing is not None and shows_images(existing):
                _check_version(existing, if_match)
                if repository.is_shared:
                    message = "an ImagingStudy with images cannot be deleted within a transaction: delete it by itself"
                    raise AppError(Category.UNSUPPORTED, message, where=f"ImagingStudy/{id}")
                if self._delete_images(id, principal):
                    return
        if resource_type == "Patient":
            self._refuse_with_images(id)
        repository.delete(resource_type, id, if_match=if_match)

    def _delete_images(self, study_uid: str, principal: Principal) -> bool:
        try:
            self.delete(study_uid, principal)
        except AppError as error:
            # A client may have written our Endpoint into a study whose images never came.
            if error.category is Category.NOT_FOUND:
                return False
            raise
        return True

    def _refuse_with_images(self, patient_id: str) -> None:
        clause = Clause("subject", "reference", "", (Reference((f"Patient/{patient_id}",)),))
        if self._own.search(Query("ImagingStudy", (clause,), count=0)).total:
            message = "there are ImagingStudies of this Patient; delete them first"
            raise AppError(Category.CONFLICT, message, where=f"Patient/{patient_id}")


def _check_version(resource: Resource, if_match: int | None) -> None:
    version = int(resource["meta"]["versionId"])
    if if_match is not None and version != if_match:
        message = f"ImagingStudy/{resource['id']} is at version {version}, not at version {if_match}"
        raise AppError(Category.PRECONDITION, message, where="If-Match")
