"""Whose images are these? Patients that turn out to be one person, and studies that turn out to be another's.

A decision is kept first, in one write (`store.reconciliations`); the Patients, the studies and the Provenance follow
from it. Who dies in between leaves it open, and the maintenance worker does the rest. The images stay as they came:
projections ask whose a study is (`projector`), also for images that come later. See ADR 0020.
"""

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from fhir_server.model import json
from fhir_server.model.criteria import Clause, Reference
from fhir_server.model.dates import to_instant
from fhir_server.projector import read_or_none
from fhir_server.store.documents import Resource
from fhir_server.store.filters import Act, Restriction, Rule
from fhir_server.store.lease import Leases
from fhir_server.store.reconciliations import Decision, Kind, Reconciled, Reconciliations
from fhir_server.store.repository import Repository
from fhir_server.studies import Studies
from fhir_server.study_elements import shows_images
from imaging.archive import Archive
from imaging.archive.decisions import DecisionLog, Holding
from imaging.errors import AppError, Category

Json = dict[str, Any]

log = logging.getLogger(__name__)

LEASE_S = 120.0
WAIT_S = 10.0
POLL_S = 0.02
AT_ONCE_S = 2.0  # of projecting in a request; the maintenance worker does the rest
MOST_STUDIES = 1_000  # of a Patient that is merged: each is looked at
OPEN_AT_A_TIME = 100
LONGEST_REASON = 500  # characters
LIFECYCLE = "http://terminology.hl7.org/CodeSystem/iso-21089-lifecycle"
_ACTIVITIES = {
    Kind.MERGE: ("merge", "Merge Record Lifecycle Event"),
    Kind.UNMERGE: ("unmerge", "Unmerge Record Lifecycle Event"),
    Kind.MOVE: ("amend", "Amend (Update) Record Lifecycle Event"),
}
_PROVENANCES = uuid.UUID("5f1c7a52-4d0e-4b7c-9a8e-3d7f0a6a2b11")


class Merged(NamedTuple):
    """What a merge made, or would make, of the target; the studies that are the target's then; whether it was so."""

    target: Json
    studies: list[str]
    was_done: bool


class Reconciliation:
    """Merges Patients and moves studies. `own` is the server's own repository: unrestricted and internal."""

    def __init__(
        self,
        archive: Archive,
        own: Repository,
        studies: Studies,
        kept: Reconciliations,
        leases: Leases,
        clock: Callable[[], datetime],
    ) -> None:
        self._archive = archive
        self._own = own
        self._studies = studies
        self._kept = kept
        self._leases = leases
        self._clock = clock
        self._worker = str(uuid.uuid4())

    # ---- what is decided

    def merge(
        self,
        repository: Repository,
        source: Resource,
        target: Resource,
        *,
        result: Json | None = None,
        reason: str = "",
        preview: bool = False,
    ) -> Merged:
        """Say that two Patients are one person, who is called `target` from now on; the source stays, inactive.

        repository   of who decides; it has to be allowed to change both, and every study of the source
        result       what the target becomes, None: what it is, with the identifiers of the source
        preview      nothing is written
        Raises FORBIDDEN, CONFLICT where one of them was merged into another, TOO_LARGE, BUSY.
        """
        require_alone(repository)
        if source.key == target.key:
            raise AppError(Category.INVALID, "a Patient cannot be merged into itself", where="target-patient")
        with self.alone():
            for each in (source, target):
                require_change(repository, each)
            known = self._kept.of(source.key)
            was_done = known is not None and known.to == target.key
            if known and known.to and not was_done:
                message = "the source was merged into another Patient; take that back first ($unmerge)"
                raise AppError(Category.CONFLICT, message, where=source.key)
            if (other := self._kept.of(target.key)) and other.to:
                message = "the target was itself merged into another Patient; name that one"
                raise AppError(Category.CONFLICT, message, where=target.key)
            studies = self.studies_of(source.key, limit=MOST_STUDIES + 1)
            self._check(repository, studies, source.key, target.key)
            made = target.json() if was_done else merged(target.json(), source.json(), result)
            if result is not None and not repository.permits(made, Act.UPDATE):
                raise AppError(Category.FORBIDDEN, "the result would leave your reach", where="result-patient")
            if not (preview or was_done):
                self._decide(repository, source.key, Kind.MERGE, (source, target), reason, known, result)
            elif was_done and not preview and known and known.is_open:
                self._follow(known)
        shown = made if preview else self._own.read("Patient", target.id).json()
        return Merged(shown, studies, was_done)

    def unmerge(self, repository: Repository, source: Resource, *, reason: str = "") -> list[str]:
        """Take a merge back; return the studies that are looked at again. Raises CONFLICT where there was none."""
        require_alone(repository)
        with self.alone():
            known = self._kept.of(source.key)
            if known is None or not known.to:
                raise AppError(Category.CONFLICT, "this Patient was not merged into another", where=source.key)
            target = repository.read("Patient", known.to.partition("/")[2])
            for each in (source, target):
                require_change(repository, each)
            studies = self.studies_of(target.key, limit=MOST_STUDIES + 1)
            self._check(repository, studies, target.key, source.key)
            self._decide(repository, source.key, Kind.UNMERGE, (source, target), reason, known)
        return studies

    def move(self, repository: Repository, study: Resource, patient: Resource, *, reason: str = "") -> None:
        """Say whose a study is, whatever its images say. Raises FORBIDDEN, CONFLICT, BUSY."""
        require_alone(repository)
        if not shows_images(study.json()):
            message = "this ImagingStudy shows no images of this server: change its subject by an update"
            raise AppError(Category.CONFLICT, message, where=study.key)
        with self.alone():
            require_change(repository, patient)
            if (other := self._kept.of(patient.key)) and other.to:
                message = "this Patient was merged into another; name that one"
                raise AppError(Category.CONFLICT, message, where=patient.key)
            self.require_studies(repository, [study.id], patient.key)
            known = self._kept.of(study.key)
            if known and known.to == patient.key:
                self._follow(known)
                return
            self._decide(repository, study.key, Kind.MOVE, (study, patient), reason, known)

    def finish(self) -> int:
        """Do what has still to follow from decisions; return from how many. Raises BUSY where somebody is deciding."""
        return self.finish_open(self._kept, self._follow)

    def finish_open(self, kept: DecisionLog[Holding], follow: Callable[[Holding], None]) -> int:
        """Have done what has still to follow in a log; see `finish`."""
        if not kept.open(1):
            return 0
        done = 0
        with self.alone(wait_s=0):
            for each in kept.open(OPEN_AT_A_TIME):
                try:
                    follow(each)
                    done += 1
                except AppError:
                    log.exception("what follows from a decision cannot be written; it is tried again later")
        return done

    def _decide(
        self,
        repository: Repository,
        subject: str,
        kind: Kind,
        found: tuple[Resource, Resource],
        reason: str,
        known: Reconciled | None,
        result: Json | None = None,
    ) -> None:
        decision = Decision(
            kind=kind,
            to=found[1].key,
            by=repository.stamp.owner,
            at=self._clock(),
            reason=reason,
            before=tuple(f"{each.key}/_history/{each.version}" for each in found),
            was_active=found[0].json().get("active"),
            result=b"" if result is None else json.dumps(result),
        )
        self._follow(self._kept.add(subject, decision, number=len(known.decisions) if known else 0))

    # ---- who may

    def _check(self, repository: Repository, studies: list[str], from_patient: str, to_patient: str) -> None:
        if len(studies) > MOST_STUDIES:
            message = f"the Patient has more than {MOST_STUDIES} studies; move them one by one first"
            raise AppError(Category.TOO_LARGE, message, where=from_patient)
        self.require_studies(repository, studies, to_patient)

    def require_studies(self, repository: Repository, studies: list[str], patient: str) -> None:
        """Return when the principal may change these studies, as they are and as they will be. Raises FORBIDDEN."""
        repository.require("ImagingStudy", Act.UPDATE)
        may = len(repository.ids("ImagingStudy", Act.UPDATE, among=studies)) == len(studies)
        for uid in studies if may else ():
            study = self._own.read("ImagingStudy", uid).json()
            may = may and repository.permits({**study, "subject": {"reference": patient}}, Act.UPDATE)
        if not may:
            message = "there are studies concerned that you may not change, or not give to this Patient"
            raise AppError(Category.FORBIDDEN, message, where="ImagingStudy.subject")

    @contextmanager
    def alone(self, wait_s: float = WAIT_S) -> Iterator[None]:
        """One decision at a time, so that two Patients are never merged into each other. Raises BUSY."""
        deadline = time.monotonic() + wait_s
        while (lease := self._leases.claim("reconcile", f"{self._worker}:{uuid.uuid4()}", LEASE_S)) is None:
            if time.monotonic() > deadline:
                message = "another reconciliation is being made; try again"
                raise AppError(Category.BUSY, message, where="reconciliation")
            time.sleep(POLL_S)
        try:
            yield
        finally:
            self._leases.finish(lease)

    # ---- what follows

    def _follow(self, reconciled: Reconciled) -> None:
        """Write what follows from the last decision; twice the same for the same."""
        studies = _FOLLOW[reconciled.last.kind](self, reconciled)
        self._own.update(_provenance(reconciled), create=True, if_changed=True, owner=reconciled.last.by)
        # What is marked is brought up to date by the maintenance worker, or by the first reader.
        self._archive.mark(*studies)
        self._kept.done(reconciled.subject, len(reconciled.decisions))
        deadline = time.monotonic() + AT_ONCE_S
        for uid in studies:
            if time.monotonic() > deadline:
                break
            self._studies.attempt(uid)

    def _follow_merge(self, reconciled: Reconciled) -> list[str]:
        source, decision = reconciled.subject, reconciled.last
        found = self._patient(source)
        result = json.loads(decision.result) if decision.result else None
        if found:
            self._change(decision.to, lambda target: merged(target, {**found, "id": source.partition("/")[2]}, result))
        self._change(source, lambda patient: _replaced(patient, decision.to))
        return self.studies_of(source)

    def _follow_unmerge(self, reconciled: Reconciled) -> list[str]:
        source, decision = reconciled.subject, reconciled.last
        merge = next(each for each in reversed(reconciled.decisions) if each.kind is Kind.MERGE)
        of_source = _numbers((self._patient(source) or {}).get("identifier", []))
        copied = of_source - _numbers(self._version(merge.before[1]).get("identifier", []))
        self._change(decision.to, lambda target: _without(target, source, "replaces", copied))
        self._change(
            source, lambda patient: _active(_without(patient, decision.to, "replaced-by"), active=merge.was_active)
        )
        return self.studies_of(decision.to)

    def _follow_move(self, reconciled: Reconciled) -> list[str]:
        return [reconciled.subject.partition("/")[2]]

    def _change(self, key: str, change: Callable[[Json], Json]) -> None:
        """Write what a Patient becomes, where that is new; one that was deleted meanwhile stays so."""
        found = self._patient(key)
        if found is not None and change(found) != found:
            self._own.patch("Patient", key.partition("/")[2], change)

    def _patient(self, key: str) -> Json | None:
        found = read_or_none(self._own, "Patient", key.partition("/")[2])
        return found.json() if found else None

    def _version(self, reference: str) -> Json:
        kind, identifier, _, version = reference.split("/")
        return self._own.vread(kind, identifier, int(version)).json()

    def studies_of(self, patient: str, limit: int = 0) -> list[str]:
        """Return the ids of the ImagingStudies of a Patient, sorted; at most `limit`, 0 for all."""
        clause = Clause("subject", "reference", "", (Reference((patient,)),))
        theirs = Restriction(MappingProxyType({"ImagingStudy": Rule(read=(clause,))}))
        return sorted(self._own.opened_for(theirs).ids("ImagingStudy", Act.READ, limit=limit))


_FOLLOW: dict[Kind, Callable[[Reconciliation, Reconciled], list[str]]] = {
    Kind.MERGE: Reconciliation._follow_merge,
    Kind.UNMERGE: Reconciliation._follow_unmerge,
    Kind.MOVE: Reconciliation._follow_move,
}


def merged(target: Json, source: Json, result: Json | None) -> Json:
    """Return what a target becomes that takes a source's place; what has it already stays as it is.

    result   what it is to become, None: what it is, with the source's identifiers, which are `old` from now on.
    Source: FHIR R5 Patient-merge, result-patient.
    """
    link = {"other": {"reference": f"Patient/{source['id']}"}, "type": "replaces"}
    if _has_link(target, link):
        return target
    made = dict(target) if result is None else {**{"meta": target.get("meta", {})}, **result, "id": target["id"]}
    if result is None:
        known = _numbers(target.get("identifier", []))
        more = [{**each, "use": "old"} for each in source.get("identifier", []) if _number(each) not in known]
        if more:
            made["identifier"] = [*target.get("identifier", []), *more]
    return made if _has_link(made, link) else {**made, "link": [*made.get("link", []), link]}


def _replaced(patient: Json, by: str) -> Json:
    link = {"other": {"reference": by}, "type": "replaced-by"}
    links = patient.get("link", [])
    return {**patient, "active": False, "link": links if _has_link(patient, link) else [*links, link]}


def _without(patient: Json, other: str, kind: str, numbers: Iterable[tuple[Any, Any]] = ()) -> Json:
    """Return a Patient without a link and without these identifiers."""
    link, gone = {"other": {"reference": other}, "type": kind}, set(numbers)
    left = {
        "link": [each for each in patient.get("link", []) if not _is_link(each, link)],
        "identifier": [each for each in patient.get("identifier", []) if _number(each) not in gone],
    }
    rest = {name: value for name, value in patient.items() if name not in left}
    return {**rest, **{name: value for name, value in left.items() if value}}


def _active(patient: Json, *, active: bool | None) -> Json:
    rest = {name: value for name, value in patient.items() if name != "active"}
    return rest if active is None else {**rest, "active": active}


def _has_link(patient: Json, link: Json) -> bool:
    return any(_is_link(each, link) for each in patient.get("link", []))


def _is_link(one: Json, other: Json) -> bool:
    return (one.get("type"), one.get("other", {}).get("reference")) == (other["type"], other["other"]["reference"])


def _numbers(identifiers: Iterable[Json]) -> set[tuple[Any, Any]]:
    return {_number(each) for each in identifiers}


def _number(identifier: Json) -> tuple[Any, Any]:
    return identifier.get("system"), identifier.get("value")


def require_alone(repository: Repository) -> None:
    """Return when the repository is not a part of a transaction. Raises UNSUPPORTED."""
    if repository.is_shared:
        message = "this cannot be done within a transaction: ask for it by itself, or in a batch"
        raise AppError(Category.UNSUPPORTED, message, where="transaction")


def require_change(repository: Repository, found: Resource) -> None:
    """Return when the principal may change a resource. Raises FORBIDDEN."""
    if not repository.has(found.type, found.id, Act.UPDATE):
        raise AppError(Category.FORBIDDEN, "you may not change this", where=found.key)


def _provenance(reconciled: Reconciled) -> Json:
    decision = reconciled.last
    code, display = _ACTIVITIES[decision.kind]
    targets = [reconciled.subject] if decision.kind is Kind.MOVE else [reconciled.subject, decision.to]
    resource: Json = {
        "resourceType": "Provenance",
        "id": str(uuid.uuid5(_PROVENANCES, f"{reconciled.subject} {len(reconciled.decisions)}")),
        "target": [{"reference": each} for each in targets],
        "occurredDateTime": to_instant(decision.at),
        "recorded": to_instant(decision.at),
        "activity": {"coding": [{"system": LIFECYCLE, "code": code, "display": display}], "text": decision.kind.value},
        "agent": [{"type": {"text": "who decided"}, "who": {"reference": decision.by}}],
        "entity": [{"role": "revision", "what": {"reference": each}} for each in decision.before],
    }
    return {**resource, "reason": [{"text": decision.reason}]} if decision.reason else resource
