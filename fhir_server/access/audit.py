"""The audit record: one FHIR AuditEvent for each access, allowed or refused, through the append-only path.

Says who (client and subscriber, network address), what was done to which resources and studies, when, by which request,
and how it ended. Never patient names or values: of a search only the names of its parameters are kept.
Sources: FHIR R4 AuditEvent, IHE BALP 1.1 (entity types), DICOM PS3.15 A.5 (event codes), IHE RAD TF-2 (transactions).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, NamedTuple

from fhir_server import logs
from fhir_server.access.allowance import Allowance
from fhir_server.access.charging import READING, Charges
from fhir_server.access.contracts import Right
from fhir_server.access.principals import Principal
from fhir_server.access.whence import address
from fhir_server.hardcopy.orders import CODE as HARD_COPY
from fhir_server.model.dates import to_instant
from fhir_server.model.task import code_of
from fhir_server.store.chain import Chain
from fhir_server.store.repository import Repository
from fhir_server.store.usage import Usage
from imaging.errors import AppError, Category

_DCM = "http://dicom.nema.org/resources/ontology/DCM"
_INTERACTION = "http://hl7.org/fhir/restful-interaction"
_IHE = "urn:ihe:event-type-code"

_OWN = {"system": "urn:fhir-imaging:code:event"}
BREAK_GLASS = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ActReason",
    "code": "BTG",
    "display": "break the glass",
}

_REST = {"system": "http://terminology.hl7.org/CodeSystem/audit-event-type", "code": "rest"}
_OBJECT = {"system": "http://terminology.hl7.org/CodeSystem/audit-entity-type", "code": "2", "display": "System Object"}
_DOMAIN_RESOURCE = {"system": "http://terminology.hl7.org/CodeSystem/object-role", "code": "4"}
_QUERY = {"system": "http://terminology.hl7.org/CodeSystem/object-role", "code": "24", "display": "Query"}
_REQUEST_ID = {"system": "https://profiles.ihe.net/ITI/BALP/CodeSystem/BasicAuditEntityType", "code": "XrequestId"}
_SOURCE = {
    "observer": {"display": "FHIR ImagingStudy server"},
    "type": [
        {"system": "http://terminology.hl7.org/CodeSystem/security-source-type", "code": "4"}
    ],  # application server
}

SUCCESS, MINOR_FAILURE, SERIOUS_FAILURE = "0", "4", "8"  # AuditEvent.outcome
MOST_ENTITIES = 1000  # resources and studies named in one event
ANONYMOUS_PER_S = 5.0  # events about callers without a valid token; more of them only reach the access log
ANONYMOUS_BURST = 50.0


class _Kind(NamedTuple):
    action: str  # AuditEvent.action: C R U D E
    type: Mapping[str, str]
    subtype: Mapping[str, str]


def _interaction(code: str) -> dict[str, str]:
    return {"system": _INTERACTION, "code": code}


class Access(Enum):
    """What was done, and how an AuditEvent says it."""

    READ = _Kind("R", _REST, _interaction("read"))
    VREAD = _Kind("R", _REST, _interaction("vread"))
    HISTORY = _Kind("R", _REST, _interaction("history-instance"))
    HISTORY_TYPE = _Kind("R", _REST, _interaction("history-type"))
    BUNDLE = _Kind("E", _REST, _interaction("transaction"))  # batch as well: who cannot be recognised tells neither
    HISTORY_SYSTEM = _Kind("R", _REST, _interaction("history-system"))
    SEARCH = _Kind("E", _REST, _interaction("search-type"))
    CREATE = _Kind("C", _REST, _interaction("create"))
    UPDATE = _Kind("U", _REST, _interaction("update"))
    PATCH = _Kind("U", _REST, _interaction("patch"))
    DELETE = _Kind("D", _REST, _interaction("delete"))
    STORE = _Kind("C", {"system": _DCM, "code": "110104"}, {"system": _IHE, "code": "RAD-108"})  # transferred, STOW-RS
    RETRIEVE = _Kind("R", {"system": _DCM, "code": "110104"}, {"system": _IHE, "code": "RAD-107"})  # WADO-RS
    RETRIEVE_URI = _Kind("R", {"system": _DCM, "code": "110104"}, {"system": _IHE, "code": "RAD-55"})  # WADO-URI
    QUERY = _Kind("E", {"system": _DCM, "code": "110112"}, {"system": _IHE, "code": "RAD-129"})  # QIDO-RS
    # sent by this server to a receiver: begun, and what was acknowledged
    BEGIN_SENDING = _Kind("E", {"system": _DCM, "code": "110102"}, {"system": _IHE, "code": "RAD-108"})
    SEND = _Kind("R", {"system": _DCM, "code": "110104"}, {"system": _IHE, "code": "RAD-108"})
    # addresses given out that open images without a token
    GIVE_URLS = _Kind("C", _REST, _OWN | {"code": "give-capability-urls"})
    NOTIFY = _Kind("R", _REST, _OWN | {"code": "notify"})
    EXPORT = _Kind("R", {"system": _DCM, "code": "110106"}, {"system": _DCM, "code": "110106"})  # printed
    SIGN_IN = _Kind("E", {"system": _DCM, "code": "110114"}, {"system": _DCM, "code": "110122"})  # Login
    # how somebody signs in: User Security Attribute Changed
    FACTOR = _Kind("U", {"system": _DCM, "code": "110113"}, {"system": _DCM, "code": "110137"})
    # emergency access: Emergency Override Started and Stopped
    EMERGENCY = _Kind("E", {"system": _DCM, "code": "110113"}, {"system": _DCM, "code": "110127"})
    EMERGENCY_ENDED = _Kind("E", {"system": _DCM, "code": "110113"}, {"system": _DCM, "code": "110138"})
    EMERGENCY_REVIEWED = _Kind("U", {"system": _DCM, "code": "110113"}, _OWN | {"code": "emergency-reviewed"})
    # a process of this server began, or ended in order
    START = _Kind("E", {"system": _DCM, "code": "110100"}, {"system": _DCM, "code": "110120"})
    STOP = _Kind("E", {"system": _DCM, "code": "110100"}, {"system": _DCM, "code": "110121"})
    DELETE_IMAGES = _Kind("D", {"system": _DCM, "code": "110105"}, _interaction("delete"))  # study deleted


class Receiver(NamedTuple):
    """To whom the server sent something: the Organization, the name of its endpoint, and the host."""

    subscriber: str
    name: str
    host: str


# What is counted as instances that a subscriber sent or got.
_INSTANCES = {
    Access.STORE: "instances_in",
    Access.RETRIEVE: "instances_out",
    Access.RETRIEVE_URI: "instances_out",
    Access.SEND: "instances_out",
}
# By which right something is done, where whoever does it does not say.
_RIGHTS = {
    Access.STORE: (Right.REGISTER_IMAGES,),
    Access.DELETE_IMAGES: (Right.REGISTER_IMAGES,),
    Access.SEND: (Right.ORDER_PROCESSING,),
    Access.BEGIN_SENDING: (Right.ORDER_PROCESSING,),
    Access.CREATE: (Right.REGISTER_IMAGES, *READING),
    Access.UPDATE: (Right.REGISTER_IMAGES, *READING),
    Access.PATCH: (Right.REGISTER_IMAGES, *READING),
    Access.DELETE: (Right.REGISTER_IMAGES, *READING),
}
_TO_ORDER = (Right.ORDER_PROCESSING, Right.ORDER_HARD_COPY, *READING)


@dataclass(frozen=True, slots=True)
class Metered:
    """What else of an access is counted than what the record of it tells.

    right       by which it was done, None for what is usual
    charged     to whom it is counted, None for who does it
    tasks       that were ordered
    pages       that were printed
    downloads   files that were fetched as a whole: of an export, an archive of images, a document
    bytes_in, bytes_out   that went on other ways than in a request, whose bodies the door counts
    """

    right: Right | None = None
    charged: Principal | None = None
    tasks: int = 0
    pages: int = 0
    downloads: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def counts(self) -> dict[str, int]:
        """Return what is not none of it, by name."""
        found = {name: getattr(self, name) for name in ("tasks", "pages", "downloads", "bytes_in", "bytes_out")}
        return {name: count for name, count in found.items() if count}


NOTHING_MORE = Metered()


def ordered(task: Mapping[str, Any]) -> Metered:
    """Return what is counted of a Task that was placed."""
    return Metered(Right.ORDER_HARD_COPY if code_of(task) == HARD_COPY else Right.ORDER_PROCESSING, tasks=1)


# Errors that keep a principal from what was asked for; the rest is about how it was asked, or about the server.
REFUSALS = frozenset({
    Category.UNAUTHENTICATED, Category.FORBIDDEN, Category.NOT_FOUND, Category.GONE, Category.CONFLICT,
    Category.PRECONDITION,
})  # fmt: skip


class Audit:
    """Writes the record. `own` is the server's own repository; `chain` shows what was changed in it later.

    What subscribers are to be accounted for is counted here too, since each access comes by.
    """

    def __init__(self, own: Repository, clock: Callable[[], datetime], chain: Chain, usage: Usage) -> None:
        self._own = own
        self._chain = chain
        self._usage = usage
        self.charges = Charges()
        self._clock = clock
        self._gathered: ContextVar[list[dict[str, Any]] | None] = ContextVar("gathered", default=None)
        self._anonymous = Allowance(ANONYMOUS_PER_S, ANONYMOUS_BURST)

    def close(self) -> None:
        """Say where the record of this process ends."""
        self._chain.close()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Have the events of the work inside written together at its end, also where it fails."""
        events: list[dict[str, Any]] = []
        token = self._gathered.set(events)
        try:
            yield
        finally:
            self._gathered.reset(token)
            self._own.append_all(events, through=self._chain.add)

    def record(
        self,
        principal: Principal,
        access: Access,
        *,
        resources: Iterable[str] = (),
        studies: Mapping[str, int] | None = None,
        parameters: Iterable[str] = (),
        details: Mapping[str, str] | None = None,
        metered: Metered = NOTHING_MORE,
    ) -> None:
        """Record an access that was allowed.

        resources    references of the FHIR resources, "Patient/1"
        studies      Study Instance UID -> number of instances concerned (0: not counted)
        parameters   names of search parameters; give no values
        details      what else is to be known of the first resource, such as a number of pages
        metered      what else is counted
        """
        resources = list(resources)
        self._count(principal, access, studies or {}, metered)
        entities = [*_resources(resources), *_studies(studies or {}), *_query(parameters)]
        if details:
            entities[0]["detail"] = [{"type": name, "valueString": text} for name, text in details.items()]
        self._write(principal, access, SUCCESS, "", entities)

    def sent(
        self,
        principal: Principal,
        access: Access,
        studies: Mapping[str, int],
        *,
        to: Receiver,
        failure: str = "",
        metered: Metered = NOTHING_MORE,
    ) -> None:
        """Record what the server sends for a principal to a receiver, or has sent; `failure` says why not all of it."""
        self._count(principal, access, studies, metered)
        outcome = MINOR_FAILURE if failure else SUCCESS
        self._write(principal, access, outcome, failure, list(_studies(studies)), to)

    def _count(self, principal: Principal, access: Access, studies: Mapping[str, int], metered: Metered) -> None:
        customer = metered.charged or principal
        usual = _TO_ORDER if metered.tasks else _RIGHTS.get(access, READING)
        rights = (metered.right, *usual) if metered.right else usual
        counted = _INSTANCES.get(access)
        shares = self.charges.shares(customer, rights, studies) if counted else {}
        # The rest goes where the first study goes.
        contract = self.charges.contract_of(customer, rights, next(iter(studies), ""))
        for each in {*shares, contract}:
            instances = {counted: shares[each]} if counted and shares.get(each) else {}
            once = metered.counts() if each == contract else {}
            if counts := {**instances, **once}:
                self._usage.add(customer.subscriber, each, **counts)

    def signed_in(self, login: str, organization: str, failure: str = "") -> None:
        """Record that somebody signed in, or failed to.

        Of a failure nobody's login and organisation are given before the password was right: they need be nobody's.
        """
        if failure and not organization and not self._anonymous.take():
            return
        outcome = SERIOUS_FAILURE if failure else SUCCESS
        self._write(_person(login, organization), Access.SIGN_IN, outcome, failure, [])

    def factor_changed(self, login: str, organization: str, what: str) -> None:
        """Record that somebody set a second factor up or took one away."""
        self._write(_person(login, organization), Access.FACTOR, SUCCESS, what, [])

    def activity(self, access: Access, process: str) -> None:
        """Record that a process of this server began or ended: `Access.START`, `Access.STOP`."""
        self._put(access, SUCCESS, "", [{"altId": process, "requestor": False}], [])

    def refused(
        self, principal: Principal | None, access: Access, error: AppError, *, resources: Iterable[str] = ()
    ) -> None:
        """Record an access that was refused; `principal` None when nobody could be recognised.

        What cannot be found counts: guessing is seen. Other errors (`REFUSALS` has the list) leave no event.
        """
        if error.category not in REFUSALS or (principal is None and not self._anonymous.take()):
            return
        outcome = SERIOUS_FAILURE if error.category is Category.UNAUTHENTICATED else MINOR_FAILURE
        self._write(principal, access, outcome, error.message, list(_resources(resources)))

    def _write(
        self,
        principal: Principal | None,
        access: Access,
        outcome: str,
        words: str,
        entities: list[dict[str, Any]],
        receiver: Receiver | None = None,
    ) -> None:
        agents = [_agent(principal), *_user(principal), *([_destination(receiver)] if receiver else [])]
        self._put(access, outcome, words, agents, entities, _purpose(principal))

    def _put(
        self,
        access: Access,
        outcome: str,
        words: str,
        agents: list[dict[str, Any]],
        entities: list[dict[str, Any]],
        purpose: dict[str, Any] | None = None,
    ) -> None:
        kind = access.value
        event = {
            "resourceType": "AuditEvent",
            "type": kind.type,
            "subtype": [kind.subtype],
            "action": kind.action,
            "recorded": to_instant(self._clock()),
            "outcome": outcome,
            **({"outcomeDesc": words} if words else {}),
            **(purpose or {}),
            "agent": agents,
            "source": _SOURCE,
        }
        if request_id := logs.current_request_id():
            entities = [*entities, {"what": {"identifier": {"value": request_id}}, "type": _REQUEST_ID}]
        if entities:
            event["entity"] = entities
        gathered = self._gathered.get()
        if gathered is None:
            self._own.append_all([event], through=self._chain.add)
        else:
            gathered.append(event)


def _person(login: str, organization: str) -> Principal | None:
    return Principal(organization, login, "", frozenset()) if organization else None


def _is_emergency(principal: Principal | None) -> bool:
    return principal is not None and principal.grant is not None and bool(principal.grant.emergency)


def _purpose(principal: Principal | None) -> dict[str, Any]:
    return {"purposeOfEvent": [{"coding": [BREAK_GLASS]}]} if _is_emergency(principal) else {}


def _user(principal: Principal | None) -> list[dict[str, Any]]:
    """Return the person for whom a program asks, and by which emergency access. Source: IHE BALP 1.1, user."""
    grant = principal.grant if principal else None
    if grant is None or not grant.user:
        return []
    reader = {"system": "http://terminology.hl7.org/CodeSystem/v3-ParticipationType", "code": "IRCP"}
    policy = {"policy": [f"urn:fhir-imaging:emergency:{grant.emergency}"]} if grant.emergency else {}
    named = {"identifier": {"system": grant.issuer, "value": grant.user}} if grant.issuer else {"reference": grant.user}
    return [{"type": {"coding": [reader]}, "who": named, "requestor": False, **policy}]


def _agent(principal: Principal | None) -> dict[str, Any]:
    agent: dict[str, Any] = {"requestor": True}
    if principal is not None:
        # The server itself works for a subscriber without any of its clients.
        client = {"altId": principal.client_id} if principal.client_id else {}
        # As BALP has the identifier of a token.
        by = {"policy": list(principal.authorised_by)} if principal.authorised_by else {}
        agent = {"who": {"reference": principal.subscriber}, **client, **agent, **by}
    if found := address():
        agent["network"] = {"address": found, "type": "2"}  # IP address
    return agent


def _destination(receiver: Receiver) -> dict[str, Any]:
    return {
        "type": {"coding": [{"system": _DCM, "code": "110152", "display": "Destination Role ID"}]},
        "who": {"reference": receiver.subscriber},
        "name": receiver.name,
        "requestor": False,
        "network": {"address": receiver.host, "type": "1"},  # machine name
    }


def _resources(references: Iterable[str]) -> Iterator[dict[str, Any]]:
    for _, reference in zip(range(MOST_ENTITIES), references, strict=False):
        yield {"what": {"reference": reference}, "type": _OBJECT, "role": _DOMAIN_RESOURCE}


def _studies(studies: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    for _, (study_uid, instances) in zip(range(MOST_ENTITIES), studies.items(), strict=False):
        identifier = {"system": "urn:dicom:uid", "value": f"urn:oid:{study_uid}"}
        entity = {"what": {"reference": f"ImagingStudy/{study_uid}", "identifier": identifier}, "type": _OBJECT}
        if instances:
            entity["detail"] = [{"type": "instances", "valueString": str(instances)}]
        yield entity


def _query(parameters: Iterable[str]) -> Iterator[dict[str, Any]]:
    names = sorted(set(parameters))
    if names:
        yield {
            "role": _QUERY,
            "type": _OBJECT,
            "detail": [{"type": "parameter", "valueString": name} for name in names],
        }
