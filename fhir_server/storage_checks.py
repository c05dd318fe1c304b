"""Checks of images that come in: a row for each, with what it says and which code tells it.

Which of them are made for a subscriber, and whether what does not pass is flagged or rejected, is agreed with it
(`access.agreements`). Pure, but for what a check asks of the study. Source: PS3.18 tables I.2-1 and I.2-2, PS3.3 C.7.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydicom.uid import UID

from fhir_server.access.agreements import Agreement, Verdict
from imaging.archive import Remark
from imaging.attributes import InstanceSummary, Patient
from imaging.coercion import COERCED
from imaging.errors import AppError, Category

NOT_OF_THE_CLASS = 0xA900
"""Failure Reason: data set does not match the SOP class."""
CLASS_NOT_SUPPORTED = 0x0122
OTHER_PATIENT = 0xC40A
"""Ours: cannot be understood as of the patient whose study it is."""
FLAGGED = 0xB007
"""Warning Reason: data set does not match the SOP class, which wants these attributes."""

ISSUER_OF_PATIENT_ID = "00100021"

PatientOf = Callable[[str], Patient | None]
"""Study Instance UID -> the patient of what is here of the study, None for nothing."""


class RejectedError(AppError):
    """An instance that an agreement does not let in; `reason` is its Failure Reason."""

    def __init__(self, message: str, reason: int, where: str) -> None:
        super().__init__(Category.CONFLICT, message, where=where)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Check:
    """What a check asks: `fails` says whether an instance does not pass. The codes are those of the answer."""

    title: str
    message: str
    fails: Callable[[InstanceSummary, PatientOf], bool]
    failure_reason: int
    warning_reason: int = FLAGGED


def _is_of_another(summary: InstanceSummary, patient_of: PatientOf) -> bool:
    known = patient_of(summary.study_uid)
    return known is not None and _identity(known) != _identity(summary.patient)


def _identity(patient: Patient) -> tuple[str, ...]:
    name = patient.patient_name.partition("=")[0].rstrip("^ ").casefold()
    return patient.patient_id, patient.issuer_of_patient_id, name, patient.patient_birth_date, patient.patient_sex


def _is_unknown(summary: InstanceSummary, _: PatientOf) -> bool:
    uid = UID(summary.instance.sop_class_uid)
    return uid.is_private or uid.type != "SOP Class" or "Storage" not in uid.name


CHECKS: Mapping[str, Check] = {
    "patient-id": Check(
        "the Patient ID is there", "Patient ID (0010,0020) is missing",
        lambda summary, _: not summary.patient.patient_id, NOT_OF_THE_CLASS,
    ),
    "patient-name": Check(
        "the Patient's Name is there", "Patient's Name (0010,0010) is missing",
        lambda summary, _: not summary.patient.patient_name.strip("^= "), NOT_OF_THE_CLASS,
    ),
    "study-date": Check(
        "the Study Date is there", "Study Date (0008,0020) is missing",
        lambda summary, _: not summary.study.study_date, NOT_OF_THE_CLASS,
    ),
    "accession-number": Check(
        "the Accession Number is there", "Accession Number (0008,0050) is missing",
        lambda summary, _: not summary.study.accession_number, NOT_OF_THE_CLASS,
    ),
    "sop-class": Check(
        "the SOP Class is one of the standard's for storage", "the SOP Class is not one of the standard's for storage",
        _is_unknown, CLASS_NOT_SUPPORTED,
    ),
    "same-patient": Check(
        "number, issuer, name, birth date and sex are those of the study's patient",
        "the patient is not the one of the study as it is here", _is_of_another, OTHER_PATIENT,
    ),
}  # fmt: skip


def checked(checks: Mapping[str, Verdict]) -> Mapping[str, Verdict]:
    """Return checks whose names are all known. Raises INVALID."""
    unknown = sorted(set(checks) - set(CHECKS))
    if unknown:
        message = f"there is no check {unknown[0][:64]!r}; there are {', '.join(CHECKS)}"
        raise AppError(Category.INVALID, message, where="check")
    return checks


def remarks(summary: InstanceSummary, agreement: Agreement, patient_of: PatientOf) -> Iterator[Remark]:
    """Yield what is to be said of an instance that is stored all the same. Raises RejectedError."""
    patient = summary.patient
    if agreement.issuer and patient.patient_id and not patient.issuer_of_patient_id:
        changes = {ISSUER_OF_PATIENT_ID: {"vr": "LO", "Value": [agreement.issuer]}}
        yield Remark(COERCED, "Issuer of Patient ID is the one agreed on", changes=changes)
    for name, verdict in agreement.checks.items():
        check = CHECKS.get(name)
        if check is None or not check.fails(summary, patient_of):
            continue
        if verdict is Verdict.REJECT:
            raise RejectedError(check.message, check.failure_reason, where=name)
        yield Remark(check.warning_reason, check.message, flag=name)


def still_flagged(
    flagged: Iterable[tuple[InstanceSummary, Iterable[str]]], patients: Sequence[Patient]
) -> Iterator[str]:
    """Yield the names of checks, sorted, that instances did not pass when they came, and do not pass as they are now.

    flagged    those instances as corrected, each with the names
    patients   of whom the instances of their study are
    """
    names = {
        name
        for summary, told in flagged
        for name in told
        if name in CHECKS and any(CHECKS[name].fails(summary, _always(who)) for who in patients)
    }
    yield from sorted(names)


def _always(patient: Patient) -> PatientOf:
    return lambda _: patient
