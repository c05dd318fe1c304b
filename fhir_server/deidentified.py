"""Images behind pseudonyms: what a recipient sees of studies that it may have without names, and not otherwise.

A replaced Study Instance UID is led back by a row that was written when it was told. The key, and with it every
pseudonym, is the one with which orders make de-identified copies for the same recipient.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import orjson
from pydicom.dataset import Dataset

from fhir_server.access.policy import behind_pseudonyms
from fhir_server.access.principals import Principal
from fhir_server.aliases import Aliases, Members, hidden
from fhir_server.cleaned import Cleaned, Rules, Sorted
from fhir_server.store.filters import Act
from fhir_server.store.pseudonyms import PseudonymRows
from fhir_server.studies import Studies
from imaging.archive import Archive, Result
from imaging.dataset_from_json import dataset_of
from imaging.deidentify import Options, describe
from imaging.dicomweb import Level, Match, Matching, MatchKind
from imaging.errors import AppError, Category
from imaging.masks import Mask

__all__ = ["Deidentified", "View", "secret_name"]

Attributes = dict[str, Any]

STUDY, SERIES, SOP = "0020000D", "0020000E", "00080018"
MATCHED: Final[Mapping[Level, frozenset[str]]] = {
    Level.STUDIES: frozenset({STUDY, "00080061"}),  # Modalities in Study
    Level.SERIES: frozenset({STUDY, "00080060"}),  # Modality
    Level.INSTANCES: frozenset({STUDY, "00080016"}),  # SOP Class UID
}
"""What a search may ask for: what tells nobody apart."""
RETURNED: Final[Mapping[Level, frozenset[str]]] = {
    Level.STUDIES: frozenset(
        {STUDY, "00080020", "00080030", "00080056", "00080061", "00080062", "00100040", "00201206", "00201208"}
    ),
    Level.SERIES: frozenset({STUDY, SERIES, "00080056", "00080060", "00200011", "00201209"}),
    Level.INSTANCES: frozenset(
        {STUDY, SERIES, SOP, "00080016", "00080056", "00200013", "00280008", "00280010", "00280011", "00280100"}
    ),
}
"""What it tells, cleaned like everything; besides, Patient ID and Patient's Name as pseudonyms."""


class Found(NamedTuple):
    """What a search found; by which UIDs the audit record names the study of each, and the one that was searched."""

    results: list[Result]
    studies: list[str]
    within: str | None


class Deidentified:
    """Gives each recipient its view."""

    def __init__(
        self,
        archive: Archive,
        studies: Studies,
        rows: PseudonymRows,
        secret: Callable[[str], bytes],
        masks: tuple[Mask, ...],
    ) -> None:
        """Look at an archive.

        secret   gives the secret of a name, which never changes
        masks    what is burned out of the images of which devices
        """
        self._archive = archive
        self._studies = studies
        self._rows = rows
        self._secret = secret
        self._masks = masks
        self._keys: dict[str, bytes] = {}
        self._known: dict[tuple[str, str], Members] = {}
        self._sorted: dict[Any, Sorted] = {}

    def view(self, principal: Principal, act: Act) -> "View":
        """Return what a principal sees. Raises FORBIDDEN without the right, and for a token that is too narrow."""
        seeing, recipient = behind_pseudonyms(principal, act), principal.subscriber
        if recipient not in self._keys:
            self._keys[recipient] = self._secret(secret_name(recipient))
        aliases = Aliases(self._archive, recipient, self._keys[recipient], self._known)
        options = Options(**dict.fromkeys(principal.keeps, True))
        rules = Rules(options, self._masks)
        return View(self._archive, self._studies, self._rows, self._sorted, seeing, aliases, rules)


def secret_name(recipient: str) -> str:
    """Return the name of the secret that pseudonyms for a recipient, "Organization/...", are made of."""
    return f"pseudonyms {recipient}"


@dataclass(frozen=True)
class View:
    """What one recipient sees. Whatever is called original stays here.

    seeing   the principal that sees the same by name
    aliases  what this recipient calls things
    rules    how images are cleaned for it: what its contract lets them keep, and what is burned out
    """

    _archive: Archive
    _studies: Studies
    _rows: PseudonymRows
    _sorted: dict[Any, Sorted]
    seeing: Principal
    aliases: Aliases
    rules: Rules

    def study(self, uid: str, act: Act = Act.READ) -> str:
        """Return the original UID of a study that is within reach. Raises NOT_FOUND, also for what was never told."""
        with hidden(uid):
            original = self._rows.originals(self.seeing.subscriber, [uid]).get(uid)
            if original is None:
                message = "no such study; here studies are known by the UIDs that a search at this address tells"
                raise AppError(Category.NOT_FOUND, message)
            self._studies.authorise(original, self.seeing, act)
            return original

    def images(self, uid: str) -> tuple[Cleaned, str]:
        """Return the images of a study, and its original UID: for the record. Raises as `study`."""
        study = self.study(uid)
        return Cleaned(self._archive.for_one_answer(), self.aliases, self.rules, study, uid, self._sorted), study

    def search(self, asked: Matching, study_uid: str | None, series_uid: str | None) -> Found:
        """Return what matches in all studies, or in one, cleaned.

        What a study is called is written down before it is told. Raises INVALID for what may not be searched for.
        """
        study = self.study(study_uid, Act.SEARCH) if study_uid else None
        if study and study_uid:
            with hidden(study_uid):
                self._studies.refresh(study)
        else:
            self._studies.catch_up()
        matching = self._matching(asked)
        series = self.aliases.series(study, series_uid) if study and series_uid else None
        found = self._studies.query(matching.within(study, series), self.seeing) if matching else []
        studies = [each.uids[0] for each in found]
        self._rows.note(self.seeing.subscriber, {self.aliases.replaced(uid): uid for uid in studies})
        patients = {uid: self._patient(uid) for uid in set(studies)}
        rows = [self._row(each, asked.level, patients[each.uids[0]]) for each in found]
        return Found(rows, studies, study)

    def _matching(self, asked: Matching) -> Matching | None:
        """Return what is asked, of original UIDs; None where it names studies that were never told."""
        for match in asked.matches:
            if match.tag not in MATCHED[asked.level]:
                message = "this cannot be searched for without names; StudyInstanceUID and a kind of images can"
                raise AppError(Category.INVALID, message, where=match.tag)
        matches = [self._original(each) for each in asked.matches]
        known = tuple(each for each in matches if each is not None)
        return replace(asked, matches=known, include=frozenset()) if len(known) == len(matches) else None

    def _original(self, match: Match) -> Match | None:
        """Return a condition on originals, None where no study has such a UID."""
        if match.tag != STUDY:
            return match
        if match.kind is not MatchKind.ONE_OF:
            raise AppError(Category.INVALID, "Study Instance UIDs expected", where="StudyInstanceUID")
        originals = self._rows.originals(self.seeing.subscriber, match.values)
        return replace(match, values=tuple(originals.values())) if originals else None

    def _patient(self, study: str) -> Dataset:
        """Return what identifies the patient of a study, as it is in the images."""
        ds = Dataset()
        if found := self._archive.patient_of(study):
            ds.PatientID, ds.PatientName = found.patient_id, found.patient_name
            ds.IssuerOfPatientID = found.issuer_of_patient_id
        return ds

    def _row(self, found: Result, level: Level, patient: Dataset) -> Result:
        ds = dataset_of({tag: value for tag, value in found.attributes().items() if tag in RETURNED[level]})
        ds.update(patient)
        describe(ds, self.aliases.key, self.rules.options)
        told = _json(ds)
        names = ("00100010", "00100020") if level is Level.STUDIES else ()
        row = {tag: told[tag] for tag in sorted({*RETURNED[level], *names}) if tag in told}
        uids = tuple(row[tag]["Value"][0] for tag in (STUDY, SERIES, SOP)[: len(found.uids)])
        return Result(uids, orjson.dumps(row))


def _json(ds: Dataset) -> Attributes:
    """Return attributes as DICOM JSON; one that breaks the rules of its VR is left out."""
    told = {}
    for element in ds:
        with suppress(TypeError, ValueError):
            told[f"{element.tag:08X}"] = element.to_json_dict(None, 1024)
    return told
