"""Projector: makes the FHIR resources of a study show its images as they are now.

Hides the order of writes and how projectors keep out of each other's way. One at a time works on a study, under a
lease; what comes meanwhile leaves the study marked behind, for the next. A crash between any two writes leaves it
marked behind too; projecting twice makes the same resources, because their ids follow from their content.
"""

import hashlib
import hmac
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import tzinfo

from fhir_server import projection
from fhir_server.model import json
from fhir_server.model.conditions_observation import observation
from fhir_server.model.criteria import Clause, Reference, Token
from fhir_server.model.query import Query
from fhir_server.projection import Resource, Surroundings
from fhir_server.storage_checks import CHECKS, still_flagged
from fhir_server.store.documents import Resource as Version
from fhir_server.store.documents import stamped
from fhir_server.store.lease import Lease, Leases
from fhir_server.store.reconciliations import Reconciliations
from fhir_server.store.repository import Repository
from fhir_server.study_elements import shows_images
from imaging.archive import Archive, SeriesFacts, StudyFacts
from imaging.dataset import InstanceSummary
from imaging.errors import AppError, Category

LEASE_S = 60.0  # longer than any single projection takes
WAIT_S = 10.0  # for a projection that another process is making
POLL_S = 0.01
_REMEMBERED_DEVICES = 10_000
_TOGETHER = 1000  # Observations of a study fetched in one search; beyond it they are looked at one by one


@dataclass(frozen=True, slots=True)
class Place:
    """Where this server stands in the world.

    dicomweb_url     base of the DICOMweb door, as clients reach it
    zone             of the place the images come from; None: a time without Timezone Offset From UTC is not told
    patient_system   identifier system of Patient IDs without issuer; "": each subscriber has its own
    patient_key      secret that hides Patient IDs in the ids of Patients made here
    """

    dicomweb_url: str
    zone: tzinfo | None
    patient_system: str
    patient_key: bytes


class Projector:
    """Writes what shows a study. `own` is the server's own repository: unrestricted and internal."""

    def __init__(
        self, archive: Archive, own: Repository, leases: Leases, place: Place, reconciliations: Reconciliations
    ) -> None:
        self._archive = archive
        self._whose = reconciliations.whose
        self._own = own
        self._leases = leases
        self._place = place
        self._worker = str(uuid.uuid4())
        self._devices: set[str] = set()
        self._endpoint_written = threading.Event()

    def project(self, study_uid: str) -> None:
        """Have the resources show all images that were stored before the call. Raises BUSY when that takes too long.

        Waits while somebody else is at it. Costs one projection, also while more images keep coming.
        """
        deadline = time.monotonic() + WAIT_S
        while not self.project_if_free(study_uid):
            if time.monotonic() > deadline:
                raise AppError(Category.BUSY, "the study is still being brought up to date; try again", where=study_uid)
            time.sleep(POLL_S)
            if not self._archive.is_behind(study_uid):
                return

    def project_if_free(self, study_uid: str) -> bool:
        """Project a study unless somebody else is at it; say whether it was done."""
        worker = f"{self._worker}:{threading.get_ident()}"
        lease = self._leases.claim(f"project:{study_uid}", worker, LEASE_S)
        if lease is None:
            return False
        try:
            self._project_once(study_uid, lease)
        finally:
            self._leases.finish(lease)
        return True

    def _project_once(self, study_uid: str, lease: Lease) -> None:
        facts = self._archive.summarise(study_uid)
        if facts is None:
            self._remove(study_uid)
            return
        self._write(facts)
        is_latest = self._archive.mark_projected(study_uid, facts.generation)
        if not is_latest and not self._leases.holds(lease):
            # We overslept, and what we wrote may lie over the work of whoever came next.
            self._archive.mark(study_uid)

    def _write(self, facts: StudyFacts) -> None:
        """Write what the ImagingStudy refers to before the ImagingStudy itself."""
        study_uid = facts.study.study_instance_uid
        existing = self._existing(study_uid)
        assigner, patient = self._subject(facts, existing)
        shown_by = _reference(study_uid)
        subject = self._whose(shown_by, patient)
        around = Surroundings(
            subject=subject,
            assigner=assigner,
            accession_system=projection.accession_system(facts.study.issuer_of_accession_number, assigner),
            order=self._order(facts, subject),
            zone=self._place.zone,
            flags={name: CHECKS[name].message for name in still_flagged(facts.flagged, facts.patients)},
        )
        projected = projection.project(facts, around)
        self._write_endpoint()
        for device in projected.devices:
            self._write_device(device, assigner)
        self._write_conditions(facts, projected.imaging_study)
        # A study belongs to whoever brought its first image, also where somebody else described it before.
        self._own.update(projected.imaging_study, create=True, if_changed=True, owner=facts.registered_by[0])
        self._delete_conditions(_series_uids(existing) - _series_uids(projected.imaging_study))
        if self._whose(shown_by, patient) != subject:
            # Somebody decided meanwhile whose it is.
            self._archive.mark(study_uid)

    def _existing(self, study_uid: str) -> Resource | None:
        found = read_or_none(self._own, "ImagingStudy", projection.imaging_study_id(study_uid))
        return found.json() if found else None

    def _subject(self, facts: StudyFacts, existing: Resource | None) -> tuple[str, str]:
        """The subscriber whose numbers count, and the Patient of whom the images are by what they say themselves.

        Both stay what they were when others add images.
        """
        before = (existing or {}).get("subject", {}).get("reference")
        shown_by = _reference(facts.study.study_instance_uid)
        choices = []
        for assigner in facts.registered_by:
            identifier = projection.patient_identifier(facts.patient, assigner, self._place.patient_system)
            choices.append((assigner, identifier))
            for reference, patient in (self._patients(identifier) if identifier and before else {}).items():
                if before in (reference, self._whose(shown_by, reference)):
                    self._adopt(patient, assigner)
                    return assigner, reference
        assigner, identifier = choices[0]
        for reference, patient in (self._patients(identifier) if identifier else {}).items():
            self._adopt(patient, assigner)
            return assigner, reference
        return assigner, self._make_patient(facts, identifier, assigner)

    def _adopt(self, patient: Version, assigner: str) -> None:
        """Say whose a Patient is that was here before it was kept whose."""
        if not patient.stamp.owner:
            self._own.update(patient.json(), owner=assigner)

    def attributes_of(self, patient: Resource, assigner: str) -> dict[str, tuple[str, ...]]:
        """Return what images of a subscriber say of a Patient, as texts by keyword."""
        return projection.attributes_of(patient, assigner, self._place.patient_system)

    def alone(self, summary: InstanceSummary, assigner: str) -> Resource:
        """Return the ImagingStudy that an instance of a subscriber would make by itself; nothing is written."""
        series = SeriesFacts(summary.series, (summary.instance,), ())
        facts = StudyFacts(summary.patient, summary.study, (series,), 0, (assigner,))
        identifier = projection.patient_identifier(facts.patient, assigner, self._place.patient_system)
        found = list(self._patients(identifier)) if identifier else []
        shown_by = _reference(facts.study.study_instance_uid)
        patient = found[0] if found else f"Patient/{self._patient_id(facts, identifier)}"
        around = Surroundings(
            subject=self._whose(shown_by, patient),
            assigner=assigner,
            accession_system=projection.accession_system(facts.study.issuer_of_accession_number, assigner),
            zone=self._place.zone,
        )
        return projection.project(facts, around).imaging_study

    def _patients(self, identifier: Resource) -> dict[str, Version]:
        clause = Clause("identifier", "token", "", (Token(identifier["system"], identifier["value"]),))
        found = self._own.search(Query("Patient", (clause,), count=20)).matches
        return {each.key: each for each in sorted(found, key=lambda each: each.key)}

    def _make_patient(self, facts: StudyFacts, identifier: Resource | None, assigner: str) -> str:
        """Create the Patient under an id that follows from who it is, so that two projectors make one and not two."""
        resource = projection.patient_resource(facts.patient, identifier)
        made = {**resource, "id": self._patient_id(facts, identifier)}
        if read_or_none(self._own, "Patient", made["id"]) is None:
            self._own.update(made, create=True, if_changed=True, owner=assigner)
        return f"Patient/{made['id']}"

    def _patient_id(self, facts: StudyFacts, identifier: Resource | None) -> str:
        words = (identifier["system"], identifier["value"]) if identifier else ("study", facts.study.study_instance_uid)
        digest = hmac.new(self._place.patient_key, "\0".join(words).encode(), hashlib.sha256).digest()
        return str(uuid.UUID(bytes=digest[:16], version=4))

    def _order(self, facts: StudyFacts, subject: str) -> str | None:
        """The ServiceRequest of this patient with the study's accession number, if there is exactly one."""
        number = facts.study.accession_number.strip()
        if not number:
            return None
        clauses = (
            Clause("identifier", "token", "", (Token(None, number),)),
            Clause("subject", "reference", "", (Reference((subject,)),)),
        )
        found = self._own.search(Query("ServiceRequest", clauses, count=2)).matches
        return found[0].key if len(found) == 1 else None

    def _write_endpoint(self) -> None:
        if not self._endpoint_written.is_set():
            self._own.update(projection.endpoint(self._place.dicomweb_url), create=True, if_changed=True)
            self._endpoint_written.set()

    def _write_device(self, device: Resource, assigner: str) -> None:
        # A Device's id follows from its content, so one that was written once needs no second look.
        if device["id"] in self._devices:
            return
        if read_or_none(self._own, "Device", device["id"]) is None:
            self._own.update(device, create=True, if_changed=True, owner=assigner)
        else:
            self._own.update(device, create=True, if_changed=True)
        if len(self._devices) < _REMEMBERED_DEVICES:
            self._devices.add(device["id"])

    def _write_conditions(self, facts: StudyFacts, imaging_study: Resource) -> None:
        study, shown = f"ImagingStudy/{imaging_study['id']}", {entry["uid"]: entry for entry in imaging_study["series"]}
        # Fetched together: a transaction for each of hundreds of series, only to find it unchanged, takes seconds.
        part_of = Clause("part-of", "reference", "", (Reference((study,)),))
        found = self._own.search(Query("Observation", (part_of,), count=_TOGETHER)).matches
        there = {each.id: each for each in found}
        for each in facts.series:
            if not each.conditions:
                continue
            uid = each.series.series_instance_uid
            made = observation(
                uid,
                study_reference=study,
                patient_reference=imaging_study["subject"]["reference"],
                conditions=each.conditions,
                device_reference=_device_of(shown[uid]),
                started=shown[uid].get("started"),
            )
            made["id"] = projection.conditions_id(uid)
            if made["id"] not in there or not _says(there[made["id"]], made, facts.registered_by[0]):
                self._own.update(made, create=True, if_changed=True, owner=facts.registered_by[0])

    def _delete_conditions(self, series_uids: set[str]) -> None:
        for uid in series_uids:
            if read_or_none(self._own, "Observation", projection.conditions_id(uid)):
                self._own.delete("Observation", projection.conditions_id(uid))

    def _remove(self, study_uid: str) -> None:
        """Take away what showed a study that has no images any more."""
        existing = self._existing(study_uid)
        if existing is not None and shows_images(existing):
            self._own.delete("ImagingStudy", existing["id"])
            self._delete_conditions(_series_uids(existing))
        self._archive.forget(study_uid)


def read_or_none(repository: Repository, resource_type: str, id: str) -> Version | None:
    """Return the current version of a resource, None when it never was or is deleted."""
    try:
        return repository.read(resource_type, id)
    except AppError as error:
        if error.category in (Category.NOT_FOUND, Category.GONE):
            return None
        raise


def _reference(study_uid: str) -> str:
    return f"ImagingStudy/{projection.imaging_study_id(study_uid)}"


def _says(version: Version, resource: Resource, owner: str) -> bool:
    """Say whether a stored version has this very content and owner."""
    return (
        version.stamp.owner == owner
        and json.dumps(stamped(resource, version.id, version.version, version.last_updated)) == version.body
    )


def _series_uids(imaging_study: Resource | None) -> set[str]:
    return {entry["uid"] for entry in (imaging_study or {}).get("series", [])}


def _device_of(series: Resource) -> str | None:
    references = [str(each["actor"].get("reference", "")) for each in series.get("performer", [])]
    return next((reference for reference in references if reference.startswith("Device/")), None)
