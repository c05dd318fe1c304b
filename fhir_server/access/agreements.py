"""What is agreed with a subscriber about the images that it registers: checks, how long they are kept, whose numbers,
and to whom they are opened in an emergency.

Such an agreement is a FHIR Contract beside the one that gives rights; its terms are duties. Unlike a right, a duty that
cannot be read is no mistake that lets anybody in: it is left out. What opens patients to others is read as strictly as
a right.
Source: FHIR R4 Contract (term.type, term.subType, term.text, term.applies, term.asset).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from fhir_server.access.contracts import ALL, NAMED, RIGHTS_SYSTEM, WHOSE_SYSTEM, bounds
from fhir_server.model.criteria import Clause, Reference
from fhir_server.model.dates import LATEST, interval, to_instant
from fhir_server.model.query import Query
from fhir_server.store.repository import Repository
from imaging.errors import AppError

DUTY_SYSTEM = "urn:fhir-imaging:code:duty"  # code system of Contract.term.type
VERDICT_SYSTEM = "urn:fhir-imaging:code:verdict"  # code system of Contract.term.subType
KEEP, ISSUER, CHECK = "keep-images", "issuer-of-patient-id", "check-"
OPEN = "open-in-emergencies"
LONGEST_ISSUER = 64  # characters, VR LO
_MOST_CONTRACTS = 500
_MOST_CACHED = 1_000


class Verdict(StrEnum):
    """What becomes of an instance that does not pass a check."""

    FLAG = "flag"  # it is stored, with a warning
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class Agreement:
    """What holds for a subscriber now.

    checks      name of a check -> what becomes of what does not pass; others are not made
    keep_until  images are not deleted before; None: no such duty
    issuer      Issuer of Patient ID of images that do not tell theirs, "" for none
    opens       subscribers, "Organization/...", whose emergency access reaches its patients; `ALL` for everybody's
    """

    checks: Mapping[str, Verdict] = field(default_factory=dict)
    keep_until: datetime | None = None
    issuer: str = ""
    opens: frozenset[str] = frozenset()

    def opens_to(self, organization: str) -> bool:
        """Say whether emergency access of a subscriber reaches the patients of this one."""
        return bool(self.opens & {ALL, organization})


class Agreements:
    """Reads agreements; what was read is believed for `cache_s` seconds."""

    def __init__(self, own: Repository, clock: Callable[[], datetime], *, cache_s: float) -> None:
        self._own = own
        self._clock = clock
        self._cache_for = timedelta(seconds=cache_s)
        self._cache: dict[str, tuple[Agreement, datetime]] = {}

    def of(self, organization: str) -> Agreement:
        """Return what is agreed with a subscriber, "Organization/..."."""
        held, now = self._cache.get(organization), self._clock()
        if held and now < held[1]:
            return held[0]
        clause = Clause("subject", "reference", "", (Reference((organization,)),))
        found = self._own.search(Query("Contract", (clause,), count=_MOST_CONTRACTS)).matches
        agreement = agreed((each.json() for each in found), organization, now)
        if len(self._cache) >= _MOST_CACHED:
            self._cache.clear()
        self._cache[organization] = agreement, now + self._cache_for
        return agreement


def agreement_contract(organization: str, agreement: Agreement, *, issued: datetime) -> dict[str, Any]:
    """Return the Contract that says this."""
    terms = [_term(CHECK + name, f"Images are checked: {name}", verdict) for name, verdict in agreement.checks.items()]
    if agreement.keep_until:
        kept = _term(KEEP, "Images are not deleted before the end of the period")
        terms.append({**kept, "applies": {"end": to_instant(agreement.keep_until)}})
    if agreement.issuer:
        terms.append({**_term(ISSUER, "Patient IDs without issuer are of this one"), "text": agreement.issuer})
    if agreement.opens:
        terms.append({**_term(OPEN, "Emergency access of others reaches its patients"), "asset": [_asset(agreement)]})
    return {
        "resourceType": "Contract",
        "status": "executed",
        "issued": to_instant(issued),
        "subject": [{"reference": organization}],
        "term": terms,
    }


def is_agreement(contract: Mapping[str, Any]) -> bool:
    """Say whether a Contract has duties and gives no right."""
    systems = {coding.get("system") for term in contract.get("term", []) for coding in _codings(term, "type")}
    return DUTY_SYSTEM in systems and RIGHTS_SYSTEM not in systems


def agreed(contracts: Iterable[Mapping[str, Any]], organization: str, now: datetime) -> Agreement:
    """Return what contracts say together: the strictest verdict, the latest end."""
    checks: dict[str, Verdict] = {}
    keep_until: datetime | None = None
    issuer, opens = "", frozenset[str]()
    for contract in contracts:
        subjects = {subject.get("reference") for subject in contract.get("subject", [])}
        if contract.get("status") != "executed" or organization not in subjects:
            continue
        for term in contract.get("term", []):
            duty = next((each["code"] for each in _codings(term, "type") if each.get("system") == DUTY_SYSTEM), "")
            if duty == KEEP and (end := _end(term)) > now:
                keep_until = max(keep_until or end, end)
            elif duty == ISSUER:
                issuer = str(term.get("text", ""))
            elif duty == OPEN and all(low <= now < high for low, high in _periods(contract, term)):
                opens |= _opened_to(term)
            elif duty.startswith(CHECK) and (verdict := _verdict(term)):
                name = duty.removeprefix(CHECK)
                checks[name] = Verdict.REJECT if Verdict.REJECT in (verdict, checks.get(name)) else verdict
    return Agreement(checks, keep_until, issuer, opens)


def _term(duty: str, text: str, verdict: Verdict | None = None) -> dict[str, Any]:
    coded = {"subType": {"coding": [{"system": VERDICT_SYSTEM, "code": verdict.value}]}} if verdict else {}
    # Contract.term.offer is mandatory in R4.
    return {"type": {"coding": [{"system": DUTY_SYSTEM, "code": duty}]}, **coded, "offer": {"text": text}}


def _asset(agreement: Agreement) -> dict[str, Any]:
    named = [{"reference": each} for each in sorted(agreement.opens - {ALL})]
    coding = {"system": WHOSE_SYSTEM, "code": ALL if ALL in agreement.opens else NAMED}
    return {"scope": {"coding": [coding]}, **({"typeReference": named} if named else {})}


def _opened_to(term: Mapping[str, Any]) -> frozenset[str]:
    """Return to whom a term opens patients in an emergency; to nobody where that cannot be read."""
    try:
        (asset,) = term["asset"]
        (coding,) = asset["scope"]["coding"]
        named = frozenset(str(each["reference"]) for each in asset.get("typeReference", []))
    except (KeyError, TypeError, ValueError):
        return frozenset()
    if coding.get("system") != WHOSE_SYSTEM:
        return frozenset()
    return {ALL: frozenset({ALL}), NAMED: named}.get(coding.get("code"), frozenset())


def _codings(term: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return [each for each in term.get(name, {}).get("coding", []) if each.get("code")]


def _verdict(term: Mapping[str, Any]) -> Verdict | None:
    codes = (each["code"] for each in _codings(term, "subType") if each.get("system") == VERDICT_SYSTEM)
    return next((Verdict(code) for code in codes if code in Verdict.__members__.values()), None)


def _periods(*holders: Mapping[str, Any]) -> list[tuple[datetime, datetime]]:
    return [bounds(each.get("applies")) for each in holders]


def _end(term: Mapping[str, Any]) -> datetime:
    """First moment after the period. A duty to keep whose end cannot be read has none: nothing is lost by that."""
    try:
        return interval(term["applies"]["end"]).high
    except (KeyError, TypeError, AppError):
        return LATEST
