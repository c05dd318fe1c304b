"""Contracts: FHIR Contract resources that say what a subscriber may do, and from when to when.

Pure. A Contract counts when its status is `executed` and its period holds the moment asked about; each of its terms
gives one right, for the term's own period where it has one, and within the limits of its asset where it has one: whose
images and resources, of which modalities, of which patients. FHIR periods are inclusive: an end of 2027-12-31 lasts
through that day (UTC where no zone is written).   Source: FHIR R4 Contract, Period.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from fhir_server.model.dates import EARLIEST, LATEST, interval, to_instant
from imaging.deidentify import CODES
from imaging.errors import AppError

RIGHTS_SYSTEM = "urn:fhir-imaging:code:right"  # code system of Contract.term.type
WHOSE_SYSTEM = "urn:fhir-imaging:code:whose"  # code system of Contract.term.asset.scope: own, named, all
DCM = "http://dicom.nema.org/resources/ontology/DCM"  # code system of Contract.term.asset.subtype, term.subType
OWN, NAMED, ALL = "own", "named", "all"
# Options of de-identification that a contract may give, each with its code of CID 7050 in Contract.term.subType.
KEEPS = ("modified_dates", "patient_characteristics", "device_identity")
MOST_NAMED = 200  # subscribers, modalities or patients in one term


class Right(StrEnum):
    """What a contract can allow; the value is the code of a contract's term."""

    REGISTER_IMAGES = "register-images"
    RECEIVE_IMAGES = "receive-images"
    RECEIVE_BY_URL = "receive-by-url"
    RECEIVE_DEIDENTIFIED = "receive-deidentified"
    ORDER_PROCESSING = "order-processing"
    ORDER_HARD_COPY = "order-hard-copy"
    SERVE_PRINTERS = "serve-printers"
    DEFINE = "define"
    PROCESS_IMAGES = "process-images"
    AUDIT = "audit"
    BREAK_GLASS = "break-glass"


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a right goes. What is empty or None does not limit.

    whose        subscribers, "Organization/...", whose images and resources are meant; None: everybody's
    modalities   codes of DICOM; of studies that have a series of one of them
    patients     "Patient/..."
    """

    whose: frozenset[str] | None = None
    modalities: frozenset[str] = frozenset()
    patients: frozenset[str] = frozenset()


UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class Term:
    """A right and how far it goes.

    keeps   of the right to receive de-identified images: the options of `KEEPS` that the images are given with
    """

    right: Right
    limits: Limits = UNLIMITED
    keeps: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Source:
    """A term that is in force, and the Contract, "Contract/...", that has it."""

    term: Term
    contract: str


TERMS = {
    Right.REGISTER_IMAGES: "Register images and their FHIR resources with this server",
    Right.RECEIVE_IMAGES: "Search, read and retrieve images and FHIR resources of this server",
    Right.RECEIVE_BY_URL: "Be given addresses that open images without a token, for a short while, with searches",
    Right.RECEIVE_DEIDENTIFIED: "Search and retrieve images of this server de-identified by DICOM PS3.15 annex E",
    Right.ORDER_PROCESSING: "Order processing of images that the subscriber may read or has registered",
    Right.ORDER_HARD_COPY: "Order hard copies of images that the subscriber may read or has registered",
    Right.SERVE_PRINTERS: "Print the orders of others for the subscriber's printers, and receive the images of those",
    Right.DEFINE: "Define profiles, search parameters and terminology for all subscribers of this server",
    Right.PROCESS_IMAGES: "Do orders of others that are open to any device of a kind that the subscriber has",
    Right.AUDIT: "Read the audit record of this server",
    Right.BREAK_GLASS: "Open the records of one patient in an emergency, for a short while, with a reason and an alarm",
}


def contract(
    organization: str,
    rights: Iterable[Right],
    *,
    issued: datetime,
    start: datetime,
    end: datetime | None,
    limits: Limits = UNLIMITED,
    keeps: frozenset[str] = frozenset(),
    emergency: Limits | None = None,
) -> dict[str, Any]:
    """Return the Contract that gives a subscriber its rights, in force from `start` to `end` (None: without end).

    keeps       with what options of `KEEPS` images are de-identified, where the contract lets them be received so
    emergency   how far emergency access goes; None: there is none
    """
    period = {"start": to_instant(start), **({"end": to_instant(end)} if end else {})}
    return {
        "resourceType": "Contract",
        "status": "executed",
        "issued": to_instant(issued),
        "applies": period,
        "subject": [{"reference": organization}],
        "term": [
            _term(Term(right, limits, keeps if right is Right.RECEIVE_DEIDENTIFIED else frozenset()), organization)
            for right in sorted(rights)
        ]
        + ([_term(Term(Right.BREAK_GLASS, emergency), organization)] if emergency else []),
    }


def terms_in_force(
    contracts: Iterable[Mapping[str, Any]], organization: str, now: datetime
) -> tuple[frozenset[Term], datetime]:
    """Return the terms of `sources_in_force`, whatever Contracts have them."""
    sources, until = sources_in_force(contracts, organization, now)
    return frozenset(source.term for source in sources), until


def sources_in_force(
    contracts: Iterable[Mapping[str, Any]], organization: str, now: datetime
) -> tuple[tuple[Source, ...], datetime]:
    """Return the terms that contracts give a subscriber now, and the moment until which that cannot change by itself.

    Those without limits come first, then those of Contracts that were issued earlier. What cannot be read, a period or
    a limit, gives nothing: a mistake in a contract closes a door and never opens one.
    """
    sources: list[Source] = []
    until = LATEST
    for each in sorted(contracts, key=lambda known: (str(known.get("issued", "")), str(known.get("id", "")))):
        if each.get("status") != "executed" or not _names(each, organization):
            continue
        for term in each.get("term", []):
            right = _right(term)
            periods = [bounds(holder.get("applies")) for holder in (each, term)]
            start, end = max(low for low, _ in periods), min(high for _, high in periods)
            limits = _limits(term, organization)
            if right is not None and limits is not None and start <= now < end:
                keeps = _keeps(term) if right is Right.RECEIVE_DEIDENTIFIED else frozenset[str]()
                sources.append(Source(Term(right, limits, keeps), f"Contract/{each.get('id', '')}"))
            until = min([until, *(moment for moment in (start, end) if moment > now)])
    return tuple(sorted(sources, key=lambda source: source.term.limits != UNLIMITED)), until


def _term(term: Term, organization: str) -> dict[str, Any]:
    # Contract.term.offer is mandatory in R4.
    coding = [{"system": RIGHTS_SYSTEM, "code": term.right.value}]
    told: dict[str, Any] = {"type": {"coding": coding}, "offer": {"text": TERMS[term.right]}}
    if term.keeps:
        codes = [CODES[each] for each in sorted(term.keeps)]
        told["subType"] = {"coding": [{"system": DCM, "code": each.value, "display": each.meaning} for each in codes]}
    return told if term.limits == UNLIMITED else {**told, "asset": [_asset(term.limits, organization)]}


def _keeps(term: Mapping[str, Any]) -> frozenset[str]:
    """Return the options of de-identification that a term gives; what is unknown keeps nothing."""
    named = {
        each.get("code") for each in term.get("subType", {}).get("coding", []) if each.get("system") == DCM
    }  # fmt: skip
    return frozenset(option for option in KEEPS if CODES[option].value in named)


def _asset(limits: Limits, organization: str) -> dict[str, Any]:
    others = sorted((limits.whose or frozenset()) - {organization})
    whose = ALL if limits.whose is None else NAMED if others else OWN
    asset = {
        "scope": {"coding": [{"system": WHOSE_SYSTEM, "code": whose}]},
        "typeReference": [{"reference": each} for each in others],
        "subtype": [{"coding": [{"system": DCM, "code": each}]} for each in sorted(limits.modalities)],
        "context": [{"reference": {"reference": each}} for each in sorted(limits.patients)],
    }
    return {name: item for name, item in asset.items() if item}


def _limits(term: Mapping[str, Any], organization: str) -> Limits | None:
    """Return how far a term goes, None where that cannot be read. The own images are always meant."""
    assets = term.get("asset", [])
    if not assets:
        return UNLIMITED
    try:
        (asset,) = assets
        (coding,) = asset["scope"]["coding"]
        named = {str(each["reference"]) for each in asset.get("typeReference", [])}
        modalities = {str(each["coding"][0]["code"]) for each in asset.get("subtype", [])}
        patients = {str(each["reference"]["reference"]) for each in asset.get("context", [])}
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    if coding.get("system") != WHOSE_SYSTEM or coding.get("code") not in (OWN, NAMED, ALL):
        return None
    whose = None if coding["code"] == ALL else frozenset({organization, *(named if coding["code"] == NAMED else ())})
    return Limits(whose, frozenset(modalities), frozenset(patients))


def _names(contract: Mapping[str, Any], organization: str) -> bool:
    return any(subject.get("reference") == organization for subject in contract.get("subject", []))


def _right(term: Mapping[str, Any]) -> Right | None:
    for coding in term.get("type", {}).get("coding", []):
        if coding.get("system") == RIGHTS_SYSTEM and coding.get("code") in Right.__members__.values():
            return Right(coding["code"])
    return None


def bounds(period: Mapping[str, Any] | None) -> tuple[datetime, datetime]:
    """Return the first moment of a period and the first moment after it; an unreadable one is empty."""
    if period is None:
        return EARLIEST, LATEST
    try:
        start = interval(period["start"]).low if "start" in period else EARLIEST
        end = interval(period["end"]).high if "end" in period else LATEST
    except AppError:
        return LATEST, EARLIEST
    return start, end
