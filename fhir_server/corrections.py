"""Attributes of images that are wrong: said to be otherwise, for all images of a study, and taken back.

A decision is kept first, in one write (`imaging.archive.corrections`); from then on everything that is told or given of
the study is as corrected, also images that come later, and received files stay. Provenance, Patient and ImagingStudy
follow; who dies in between leaves the decision open, and the maintenance worker does the rest. See ADR 0024.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import orjson

from fhir_server import projection
from fhir_server.model.dates import to_instant
from fhir_server.projector import read_or_none
from fhir_server.reconciliation import LIFECYCLE, Reconciliation, require_alone, require_change
from fhir_server.store.documents import Resource
from fhir_server.store.filters import Act
from fhir_server.store.repository import Repository
from fhir_server.studies import Studies
from fhir_server.study_elements import shows_images
from imaging.archive import Archive
from imaging.archive.corrections import Decided, History
from imaging.coercion import CORRECT
from imaging.correctable import Level, changes_of, keywords_of
from imaging.correction import Correction, Corrections, corrected_summary, replaced
from imaging.dataset import InstanceSummary
from imaging.errors import AppError, Category

Json = dict[str, Any]

REASONS = "urn:fhir-imaging:code:attribute-modification"
_IDENTITY = frozenset({"00100020", "00100021", "00100024"})  # by which the Patient of a study is found
_PERSON = frozenset({"00100010", "00100030", "00100040"})  # what a Patient that images made tells of a person
_PROVENANCES = uuid.UUID("0c7e2f6d-6c0b-4b0e-9a38-3f6f2b7c5d22")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be corrected: texts by keyword (see `changes_of`), of a study or of what is named, and why.

    code   COERCE or CORRECT: Reason for the Attribute Modification
    from_patient   whether what is not among `values` is to be what the Patient of the study says of itself
    """

    values: Mapping[str, Sequence[str]]
    code: str = CORRECT
    reason: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    from_patient: bool = False


@dataclass(frozen=True, slots=True)
class Effect:
    """What a correction changes: of how many instances, and each attribute's value before and after (DICOM JSON).

    before    where instances differ, that of the first that is changed
    number    of the correction, 0 where nothing was written
    """

    instances: int
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    number: int


class AttributeCorrections:
    """Corrects attributes. `own` is the server's own repository: unrestricted and internal."""

    def __init__(
        self,
        archive: Archive,
        own: Repository,
        studies: Studies,
        reconciliation: Reconciliation,
        clock: Callable[[], datetime],
    ) -> None:
        self._archive = archive
        self._own = own
        self._studies = studies
        self._reconciliation = reconciliation
        self._clock = clock

    def correct(self, repository: Repository, study: Resource, asked: Asked, *, preview: bool = False) -> Effect:
        """Say what attributes of images really are; what is right already is left alone.

        repository   of who decides; it has to be allowed to change the study, as it is and as it will be
        preview      nothing is written
        Raises FORBIDDEN, INVALID, NOT_FOUND for what is not of the study, CONFLICT, TOO_LARGE, BUSY.
        """
        _require_images(repository, study)
        level = Level.INSTANCE if asked.sop_uid else Level.SERIES if asked.series_uid else Level.STUDY
        changes = changes_of({**self._of_patient(repository, study, asked), **asked.values}, level)
        with self._reconciliation.alone():
            known = self._archive.decisions.of(study.id)
            number = len(known.decisions) + 1 if known else 1
            one = Correction(number, changes, asked.code, self._clock(), asked.series_uid, asked.sop_uid)
            effect = self._effect(study.id, one)
            self._require(repository, study, (*(known.in_force if known else ()), one), changes)
            if preview or not effect.instances:
                return replace(effect, number=0)
            self._decide(repository, study, Decided(one, 0, repository.stamp.owner, asked.reason))
        return effect

    def _of_patient(self, repository: Repository, study: Resource, asked: Asked) -> Mapping[str, Sequence[str]]:
        """Return what images say whose Patient is the study's; nothing where that was not asked."""
        if not asked.from_patient:
            return {}
        kind, _, identifier = str(study.json()["subject"].get("reference", "")).partition("/")
        if kind != "Patient":
            raise AppError(Category.CONFLICT, "the study is no Patient's of this server", where="from-patient")
        patient = repository.read("Patient", identifier).json()
        return self._studies.attributes_of(patient, study.stamp.owner)

    def take_back(self, repository: Repository, study: Resource, *, number: int = 0, reason: str = "") -> int:
        """Take back a correction, the latest that holds where no number is named; return its number.

        Raises CONFLICT where there is none; see `correct`.
        """
        _require_images(repository, study)
        with self._reconciliation.alone():
            known = self._archive.decisions.of(study.id)
            holding = known.in_force if known else ()
            chosen = [one for one in holding if number in (0, one.number)]
            if known is None or not chosen:
                message = f"correction {number} does not hold" if number else "no correction of this study holds"
                raise AppError(Category.CONFLICT, message, where=study.key)
            left = tuple(one for one in holding if one is not chosen[-1])
            self._require(repository, study, left, chosen[-1].changes)
            nothing = Correction(len(known.decisions) + 1, {}, chosen[-1].code, self._clock())
            self._decide(repository, study, Decided(nothing, chosen[-1].number, repository.stamp.owner, reason))
        return chosen[-1].number

    def finish(self) -> int:
        """Do what has still to follow from decisions; return from how many. Raises BUSY where somebody is deciding."""
        return self._reconciliation.finish_open(self._archive.decisions, self._follow)

    # ---- who may, and what it does

    def _require(self, repository: Repository, study: Resource, left: Corrections, changes: Mapping[str, Any]) -> None:
        """Return when the principal may change the study, and give it to the Patient whose it will be."""
        subject = str(study.json()["subject"].get("reference", ""))
        if _IDENTITY & changes.keys() and (first := self._archive.first(study.id)):
            alone = self._studies.alone(corrected_summary(first, left), study.stamp.owner)
            subject = str(alone["subject"]["reference"])
            patient = read_or_none(self._own, "Patient", subject.partition("/")[2])
            if patient and patient.key != study.json()["subject"].get("reference"):
                require_change(repository, patient)
        self._reconciliation.require_studies(repository, [study.id], subject)

    def _effect(self, study_uid: str, one: Correction) -> Effect:
        """Look at the instances concerned. Raises NOT_FOUND where none is."""
        instances, before = 0, dict[str, Any]()
        told = self._archive.metadata(study_uid, one.series_uid or None, one.sop_uid or None)
        for (_, series_uid, sop_uid), document in told:
            was = replaced(orjson.loads(document), (one,), series_uid, sop_uid)
            instances += bool(was)
            before = {**was, **before}
        return Effect(instances, before, {tag: one.changes[tag] for tag in before}, one.number)

    # ---- what follows

    def _decide(self, repository: Repository, study: Resource, decided: Decided) -> None:
        note = f"{study.key}/_history/{study.version}"
        self._follow(self._archive.decisions.add(study.id, replace(decided, note=note)))

    def _follow(self, history: History) -> None:
        """Write what follows from the last decision; twice the same for the same."""
        uid = history.study_uid
        self._archive.mark(uid)
        self._own.update(_provenance(history), create=True, if_changed=True, owner=history.last.by)
        self._follow_patient(history)
        self._archive.decisions.done(uid, len(history.decisions))
        # What is marked is brought up to date by the maintenance worker, or by the first reader.
        self._studies.attempt(uid)

    def _follow_patient(self, history: History) -> None:
        """Correct a Patient that only images of this study made, and that nobody has changed since."""
        first = self._archive.first(history.study_uid)
        found = read_or_none(self._own, "ImagingStudy", projection.imaging_study_id(history.study_uid))
        if first is None or found is None or not _PERSON & _changed(history).keys():
            return
        reference = str(found.json()["subject"].get("reference", ""))
        patient = read_or_none(self._own, "Patient", reference.partition("/")[2])
        if patient is None or len(self._reconciliation.studies_of(reference, limit=2)) > 1:
            return
        was, now = _before(history), history.in_force
        if _person(patient.json()) == _described(first, was) != _described(first, now):
            self._own.patch("Patient", patient.id, lambda each: _as_described(each, _described(first, now)))


def _require_images(repository: Repository, study: Resource) -> None:
    require_alone(repository)
    if not repository.has(study.type, study.id, Act.UPDATE):
        raise AppError(Category.FORBIDDEN, "you may not change this", where=study.key)
    if not shows_images(study.json()):
        message = "this ImagingStudy shows no images of this server: change it by an update"
        raise AppError(Category.CONFLICT, message, where=study.key)


def _changed(history: History) -> Mapping[str, Any]:
    """Return what the last decision is about."""
    last = history.last
    if not last.undoes:
        return last.correction.changes
    return history.decisions[last.undoes - 1].correction.changes


def _before(history: History) -> Corrections:
    return History(history.study_uid, history.decisions[:-1], is_open=False).in_force


_PERSON_ELEMENTS = ("name", "gender", "birthDate")


def _described(first: InstanceSummary, corrections: Corrections) -> Json:
    return _person(projection.patient_resource(corrected_summary(first, corrections).patient, None))


def _person(patient: Mapping[str, Any]) -> Json:
    return {name: patient[name] for name in _PERSON_ELEMENTS if name in patient}


def _as_described(patient: Json, person: Json) -> Json:
    return {**{name: value for name, value in patient.items() if name not in _PERSON_ELEMENTS}, **person}


def _provenance(history: History) -> Json:
    last = history.last
    display = "Amend (Update) Record Lifecycle Event"
    told = ", ".join(keywords_of(_changed(history)))
    kind = f"take back correction {last.undoes}" if last.undoes else f"correction {last.correction.number}"
    named = [each for each in (last.correction.series_uid, last.correction.sop_uid) if each]
    place = f" of {named[-1]}" if named else ""
    return {
        "resourceType": "Provenance",
        "id": str(uuid.uuid5(_PROVENANCES, f"{history.study_uid} {len(history.decisions)}")),
        "target": [{"reference": f"ImagingStudy/{projection.imaging_study_id(history.study_uid)}"}],
        "occurredDateTime": to_instant(last.correction.at),
        "recorded": to_instant(last.correction.at),
        "activity": {
            "coding": [{"system": LIFECYCLE, "code": "amend", "display": display}],
            "text": f"{kind}{place}: {told}",
        },
        "reason": [
            {
                "coding": [{"system": REASONS, "code": last.correction.code}],
                **({"text": last.reason} if last.reason else {}),
            }
        ],
        "agent": [{"type": {"text": "who decided"}, "who": {"reference": last.by}}],
        "entity": [{"role": "revision", "what": {"reference": last.note}}],
    }
