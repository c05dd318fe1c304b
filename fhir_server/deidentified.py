"""Images behind pseudonyms: what a recipient sees of studies that it may have without names, and not otherwise.

Hides how replaced UIDs are led back: a study by a row that was written when it was told, a series or an instance by
replacing the UIDs of that study's own, so that the cost does not grow with the store. The key, and with it every
pseudonym, is the one with which orders make de-identified copies for the same recipient.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import orjson
from pydicom.dataset import Dataset

from fhir_server.access.policy import behind_pseudonyms
from fhir_server.access.principals import Principal
from fhir_server.store.filters import Act
from fhir_server.store.pseudonyms import PseudonymRows
from fhir_server.studies import Studies
from imaging.archive import Archive, Instance
from imaging.dataset_from_json import dataset_from_json
from imaging.deidentify import Options, Pseudonyms, check, deidentify, describe, described
from imaging.dicomweb import Level, Matching
from imaging.errors import AppError, Category

__all__ = ["Deidentified", "View", "secret_name"]

Attributes = dict[str, Any]
Members = Mapping[str, tuple[str, str]]  # replaced SOP Instance UID -> (Series, SOP Instance UID)

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
_LOOKED_AT: Final = ("00080016", "00280301", "0040A730", "00420011")  # by `imaging.deidentify.check`
_MOST_KNOWN: Final = 16  # studies whose instances a process remembers


class Deidentified:
    """Gives each recipient its view."""

    def __init__(self, archive: Archive, studies: Studies, rows: PseudonymRows, secret: Callable[[str], bytes]) -> None:
        """Look at an archive. `secret` gives the secret of a name, which never changes."""
        self._archive = archive
        self._studies = studies
        self._rows = rows
        self._secret = secret
        self._keys: dict[str, bytes] = {}
        self._known: dict[tuple[str, str], Members] = {}

    def view(self, principal: Principal, act: Act) -> "View":
        """Return what a principal sees. Raises FORBIDDEN without the right, and for a token that is too narrow."""
        seeing, recipient = behind_pseudonyms(principal, act), principal.subscriber
        if recipient not in self._keys:
            self._keys[recipient] = self._secret(secret_name(recipient))
        options = Options(**dict.fromkeys(principal.keeps, True))
        return View(self._archive, self._studies, self._rows, self._known, seeing, self._keys[recipient], options)


def secret_name(recipient: str) -> str:
    """Return the name of the secret that pseudonyms for a recipient, "Organization/...", are made of."""
    return f"pseudonyms {recipient}"


@dataclass(frozen=True)
class View:
    """What one recipient sees. Whatever is called original stays here.

    seeing   the principal that sees the same by name
    key      of the pseudonyms of this recipient
    options  what its contract lets the images keep
    """

    _archive: Archive
    _studies: Studies
    _rows: PseudonymRows
    _known: dict[tuple[str, str], Members]
    seeing: Principal
    key: bytes
    options: Options

    # ---- from replaced UIDs to originals

    def study(self, uid: str, act: Act = Act.READ) -> str:
        """Return the original UID of a study that is within reach. Raises NOT_FOUND, also for what was never told."""
        with hidden(uid):
            original = self._rows.originals(self.seeing.subscriber, [uid]).get(uid)
            if original is None:
                message = "no such study; here studies are known by the UIDs that a search at this address tells"
                raise AppError(Category.NOT_FOUND, message)
            self._studies.authorise(original, self.seeing, act)
            return original

    def series(self, study: str, uid: str) -> str:
        """Return the original UID of a series, `study` being original. Raises NOT_FOUND."""
        with hidden(uid):
            for members in self._tries(study):
                for series in {series for series, _ in members.values()}:
                    if self.replaced(series) == uid:
                        return series
            raise AppError(Category.NOT_FOUND, "no such series")

    def instance(self, study: str, series_uid: str, uid: str) -> Instance:
        """Return an instance that can be cleaned, `study` being original. Raises NOT_FOUND; FORBIDDEN for others."""
        with hidden(uid):
            for members in self._tries(study):
                series, sop = members.get(uid, ("", ""))
                if series and self.replaced(series) == series_uid:
                    instance, document = self._archive.described(study, series, sop)
                    if reason := self._refusal(instance, document):
                        raise AppError(Category.FORBIDDEN, f"not given without names: {reason}")
                    return instance
            raise AppError(Category.NOT_FOUND, "no such instance")

    def instances(self, study: str, series: str | None, named: str) -> tuple[list[Instance], int]:
        """Return the instances that can be cleaned, in reading order, and how many others there are.

        named  the replaced UID by which they were asked for; `study` and `series` are original
        Raises FORBIDDEN where there are others only.
        """
        with hidden(named):
            uids = self._archive.contents(study, series).sop_uids
            found = zip(self._archive.each(uids), self._archive.documents(uids), strict=True)
            kept = [instance for instance, document in found if not self._refusal(instance, document)]
            if not kept:
                message = f"none of the {len(uids)} instances can be cleaned by a program; somebody has to look at them"
                raise AppError(Category.FORBIDDEN, message)
            return kept, len(uids) - len(kept)

    def replaced(self, uid: str) -> str:
        """Return the UID that this recipient knows instead of an original one."""
        return Pseudonyms(self.key, "").uid(uid)

    def _tries(self, study: str) -> Iterator[Members]:
        """Yield the instances of a study as they are remembered, and then as they are."""
        place = self.seeing.subscriber, study
        if place in self._known:
            yield self._known[place]
        members = {self.replaced(sop): (series, sop) for series, sop in self._archive.contents(study).members}
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[place] = members
        yield members

    # ---- what is given

    def file(self, instance: Instance, form: str) -> bytes:
        """Return the cleaned file; `form` is a transfer syntax: that of the received one or Explicit VR LE."""
        with hidden(self.replaced(instance.sop_uid)):
            return deidentify(b"".join(self._archive.file(instance, form)), self.key, self.options)

    def metadata(self, instances: list[Instance]) -> Iterator[bytes]:
        """Yield the cleaned attributes of instances as DICOM JSON, without bulk data."""
        for document in self._archive.documents([each.sop_uid for each in instances]):
            yield described(document, self.key, self.options)

    def search(self, matching: Matching) -> list[Attributes]:
        """Return what matches, cleaned; what a study is called is written down first. `matching` is original."""
        found = self._studies.query(matching, self.seeing)
        originals = list(dict.fromkeys(row[STUDY]["Value"][0] for row in found))
        self._rows.note(self.seeing.subscriber, {self.replaced(uid): uid for uid in originals})
        patients = {uid: self._patient(uid) for uid in originals}
        return [self._row(row, matching.level, patients[row[STUDY]["Value"][0]]) for row in found]

    def originals(self, uids: list[str]) -> list[str]:
        """Return the original UIDs of those of these studies that the recipient was told of."""
        return list(self._rows.originals(self.seeing.subscriber, uids).values())

    def _patient(self, study: str) -> Dataset:
        """Return what identifies the patient of a study, as it is in the images."""
        ds = Dataset()
        if found := self._archive.patient_of(study):
            ds.PatientID, ds.PatientName = found.patient_id, found.patient_name
            ds.IssuerOfPatientID = found.issuer_of_patient_id
        return ds

    def _row(self, row: Attributes, level: Level, patient: Dataset) -> Attributes:
        ds = dataset_from_json(orjson.dumps({tag: value for tag, value in row.items() if tag in RETURNED[level]}))
        ds.update(patient)
        describe(ds, self.key, self.options)
        told = _json(ds)
        names = ("00100010", "00100020") if level is Level.STUDIES else ()
        return {tag: told[tag] for tag in sorted({*RETURNED[level], *names}) if tag in told}

    def _refusal(self, instance: Instance, document: bytes) -> str:
        """Return why a program cannot clean an instance, "" where it can."""
        told = orjson.loads(document)
        ds = dataset_from_json(orjson.dumps({tag: _short(told[tag]) for tag in _LOOKED_AT if tag in told}))
        try:
            check(ds, instance.received_transfer_syntax_uid, self.options, has_pixels=instance.layout is not None)
        except AppError as error:
            return error.message
        return ""


def _json(ds: Dataset) -> Attributes:
    """Return attributes as DICOM JSON; one that breaks the rules of its VR is left out."""
    told = {}
    for element in ds:
        with suppress(TypeError, ValueError):
            told[f"{element.tag:08X}"] = element.to_json_dict(None, 1024)
    return told


@contextmanager
def hidden(uid: str) -> Iterator[None]:
    """Have errors name the UID that was asked for, not the one that it stands for."""
    try:
        yield
    except AppError as error:
        raise AppError(error.category, error.message, where=uid) from None


def _short(attribute: Attributes) -> Attributes:
    """Return an attribute without what is inside: that a sequence or a document is there is enough."""
    return {"vr": attribute["vr"]} if attribute["vr"] in ("SQ", "OB") else attribute
