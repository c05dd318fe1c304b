"""From rights and grants to a restriction: which resource types a principal may read and write, and under what demands.

Pure. `register-images` writes and reads nothing; `receive-images` reads, and writes its own Subscriptions;
`receive-deidentified` reads no resource at all, and is asked through `behind_pseudonyms` only;
`serve-printers` reads and changes hard-copy Tasks that are addressed to it and its own Devices, and gets their images
through those Tasks alone (`web.print_orders`);
`order-processing` and `order-hard-copy` write Tasks, and read their own, what came of them (Provenance), their own
Endpoints and what can be ordered; the first also writes processing rules; `process-images` writes Tasks and may claim
open ones; `define` reads and writes what tells everybody here how to work; `audit` reads the audit record and what
explains it. What no row names is denied.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from fhir_server.access.context import BY_PATIENT, READING, of_patient, own_endpoint, patients_named
from fhir_server.access.contracts import Right, Term
from fhir_server.access.extent import extent
from fhir_server.access.grants import Grant
from fhir_server.access.principals import Principal
from fhir_server.access.scopes import ANY, Context, Permission, ResourceScope, Scopes
from fhir_server.hardcopy.devices import PRINTER_SYSTEM
from fhir_server.hardcopy.orders import CODE as HARD_COPY
from fhir_server.model.criteria import Clause, Missing, Reference, Token
from fhir_server.model.dates import LATEST
from fhir_server.model.query import Query
from fhir_server.model.resources import RESOURCES, Domain
from fhir_server.model.rule import OWNER
from fhir_server.model.task import CODES
from fhir_server.projection import imaging_study_id
from fhir_server.store.filters import ALLOW, DENY, Access, Act, Restriction, Rule, both, either
from fhir_server.store.index import ON_BEHALF_OF, SECURITY_CONTEXT
from imaging.errors import AppError, Category

WRITERS = {Domain.CARE: Right.REGISTER_IMAGES, Domain.DEFINITION: Right.DEFINE}  # nobody writes the others
ALGORITHM_SYSTEM = "urn:fhir-imaging:algorithm"  # of the identifier of a Device that is an algorithm of this server
# What an auditor needs to understand the record, and nothing clinical.
AUDITABLE = frozenset({"AuditEvent", "Contract", "Organization", "Provenance"})

WRITING = (Act.CREATE, Act.UPDATE, Act.DELETE)
# What a scope has to permit.
PERMISSIONS = {
    Act.CREATE: Permission.CREATE,
    Act.READ: Permission.READ,
    Act.UPDATE: Permission.UPDATE,
    Act.DELETE: Permission.DELETE,
    Act.SEARCH: Permission.SEARCH,
}

# Rights to place Tasks.
ORDERING = frozenset({Right.ORDER_PROCESSING, Right.ORDER_HARD_COPY})


def restriction(principal: Principal) -> Restriction:
    """Return what a principal may do with FHIR resources; made once for each grant, not for each request."""
    grant = principal.grant
    granted = None
    if grant is not None:
        granted = _Granted(grant.scopes.resources, grant.patient, bool(grant.user), grant.is_for_patient_alone)
    return _restriction(_Agreed(principal.rights, principal.limited, principal.subscriber, principal.devices), granted)


def require(principal: Principal, right: Right, act: str) -> None:
    """Raise FORBIDDEN, naming the right, unless a contract in force gives it; `act` says what was wanted."""
    if not principal.may(right):
        raise AppError(
            Category.FORBIDDEN, f"a contract in force that allows {right} is needed to {act}", where="contract"
        )


def require_images(principal: Principal, right: Right, act: Act, wanted: str) -> None:
    """Raise FORBIDDEN unless a contract gives the right and the scopes of the token allow the act on ImagingStudies."""
    require(principal, right, wanted)
    if principal.grant is not None:
        restriction(principal).require("ImagingStudy", act)


def require_scope(principal: Principal, resource_type: str, act: Act) -> None:
    """Raise FORBIDDEN unless the scopes of a token allow an act on a type; nobody's who is about one patient do.

    For what a subscriber may be told whatever its contracts say.
    """
    grant = principal.grant
    if grant is None:
        return
    granted = _Granted(grant.scopes.resources, "", bool(grant.user), grant.is_for_patient_alone)
    if _allowed(resource_type, act, granted) is not ALLOW:
        raise AppError(Category.FORBIDDEN, f"no scope of the token lets you {act.value} {resource_type}", where="scope")


def behind_pseudonyms(principal: Principal, act: Act) -> Principal:
    """Return the principal that sees, by name, what this one may have de-identified: to look for it, never to answer.

    Raises FORBIDDEN without the right; and for a token that is narrower than the contracts, since what it shows would
    tell of whom its pseudonyms are.
    """
    require(principal, Right.RECEIVE_DEIDENTIFIED, "receive de-identified images")
    seeing = as_receiver(principal, Right.RECEIVE_DEIDENTIFIED)
    if not sees_as_agreed(seeing, "ImagingStudy", act):
        message = (
            "de-identified images are given to tokens whose scopes let all ImagingStudies be seen, and to no others"
        )
        raise AppError(Category.FORBIDDEN, message, where="scope")
    return seeing


def as_receiver(principal: Principal, right: Right) -> Principal:
    """Return the principal that sees, and may do no more, as far as a right of this one goes."""
    terms = [each for each in principal.limited if each.right is right]
    limited = tuple(replace(each, right=Right.RECEIVE_IMAGES, keeps=frozenset()) for each in terms)
    rights = frozenset({Right.RECEIVE_IMAGES}) if principal.may(right) else frozenset[Right]()
    # As they are: what is seen is charged to the contract that gives the right itself.
    sources = tuple(each for each in principal.sources if each.term.right is right)
    return replace(principal, rights=rights, limited=limited, sources=sources)


def only_study(principal: Principal, study_uid: str) -> Principal:
    """Return the principal that sees of what this one sees a single study, and may do nothing else."""
    one = ("_id", imaging_study_id(study_uid))
    grant = principal.grant or Grant(principal.client_id, _EVERY_STUDY, LATEST)
    seen = [each for each in grant.scopes.resources if each.type in (ANY, "ImagingStudy")]
    scopes = tuple(
        ResourceScope(each.context, "ImagingStudy", permissions, tuple(sorted({*each.criteria, one})))
        for each in seen
        if (permissions := "".join(letter for letter in each.permissions if letter in "rs"))
    )
    return as_receiver(replace(principal, grant=replace(grant, scopes=Scopes(scopes))), Right.RECEIVE_IMAGES)


_EVERY_STUDY = Scopes.parse("system/ImagingStudy.rs")  # as far as the contracts go


def writes_about(principal: Principal) -> frozenset[str] | None:
    """Return the subscribers about whose patients a principal may write, None for everybody."""
    found = [limits.whose for limits in principal.limits(Right.REGISTER_IMAGES)]
    return None if None in found else frozenset[str]().union(*(each for each in found if each is not None))


def sees_as_agreed(principal: Principal, resource_type: str, act: Act = Act.READ) -> bool:
    """Say whether the scopes of a token let it see, or do, all of a type that the contracts let its subscriber."""
    agreed = restriction(replace(principal, grant=None))
    return restriction(principal).access(resource_type, act) == agreed.access(resource_type, act)


def check_patients(principal: Principal, query: Query, is_seen: Callable[[str], bool]) -> None:
    """Raise FORBIDDEN for a search that asks by name for a patient of whom the principal may not know anything.

    is_seen   says of `Patient/...` whether it is within the contracts; asked where those do not let all of them be seen
    Source: SMART Imaging Access 0.1.0: 403, and not an empty Bundle.
    """
    named = patients_named(query)
    if not named:
        return
    kinds = {branch.type for branch in query.asked}
    allowed = _patients_of(principal.grant, kinds) if principal.grant else None
    if allowed is not None and any(not allowed & set(candidates) for candidates in named):
        raise AppError(Category.FORBIDDEN, "the token is not for this patient", where="patient")
    reading = restriction(replace(principal, grant=None)).access("Patient", Act.READ)
    if isinstance(reading, tuple) and not all(any(map(is_seen, _local(candidates))) for candidates in named):
        raise AppError(Category.FORBIDDEN, "no contract lets you see this patient", where="patient")


def renamed(parameters: Iterable[tuple[str, str]], grant: Grant) -> list[tuple[str, str]]:
    """Return search parameters in which the patient of a token is called as here, not as its issuer calls him."""
    theirs = {grant.called, grant.called.removeprefix("Patient/")}
    return [
        (name, grant.patient if name.partition(":")[0] in BY_PATIENT and value in theirs else value)
        for name, value in parameters
    ]


def _patients_of(grant: Grant, kinds: set[str]) -> set[str] | None:
    """Return the patients that the scopes about these types are limited to, None where they are not."""
    found: set[str] = set()
    for scope in grant.scopes.resources:
        if Permission.SEARCH not in scope.permissions or not (scope.type == ANY or scope.type in kinds):
            continue
        if scope.context is Context.PATIENT or grant.is_for_patient_alone:
            found.add(grant.patient)
            continue
        criteria = [each for kind in kinds for each in scope.clauses(kind) or ()]
        own = [each for each in criteria if each.code in BY_PATIENT and each.modifier == ""]
        if not own:
            return None
        found |= {text for each in own for value in each.values for text in getattr(value, "candidates", ())}
    return found


def _local(candidates: tuple[str, ...]) -> list[str]:
    return [text for text in candidates if text.startswith("Patient/")]


class _Granted(NamedTuple):
    """What of a grant decides; equal for all tokens that may do the same."""

    scopes: tuple[ResourceScope, ...]
    patient: str
    has_user: bool
    is_for_patient_alone: bool


class _Agreed(NamedTuple):
    """What of the contracts decides."""

    rights: frozenset[Right]
    limited: tuple[Term, ...]
    subscriber: str
    devices: tuple[str, ...]

    def extent(self, resource_type: str, act: Act, right: Right) -> Access:
        """Return how far a right goes."""
        found = [term for term in self.limited if term.right is right]
        return extent(resource_type, act, found, (self.subscriber, *self.devices)) if found else ALLOW


@lru_cache(maxsize=4096)
def _restriction(agreement: _Agreed, granted: _Granted | None) -> Restriction:
    agreed = _agreed(agreement)
    if granted is None:
        return agreed
    named = {scope.type for scope in granted.scopes}
    types = RESOURCES if ANY in named else (named & RESOURCES.keys()) | {"Endpoint"}
    rules = {name: _within(agreed.rules[name], name, granted) for name in types}
    return Restriction(MappingProxyType(rules), default=Rule())


@lru_cache(maxsize=1024)
def _agreed(agreement: _Agreed) -> Restriction:
    rules = {name: _rule(name, agreement) for name in RESOURCES}
    return Restriction(MappingProxyType(rules), default=Rule())


def _within(agreed: Rule, resource_type: str, granted: _Granted) -> Rule:
    """Return what of a rule the scopes of a grant leave."""
    allowed = {act: _allowed(resource_type, act, granted) for act in Act}
    search = agreed.read if agreed.search is None else agreed.search
    return Rule(
        read=both(agreed.read, allowed[Act.READ]),
        search=both(search, allowed[Act.SEARCH]),
        create=both(agreed.create, allowed[Act.CREATE]),
        update=both(agreed.update, allowed[Act.UPDATE]),
        delete=both(agreed.delete, allowed[Act.DELETE]),
    )


def _allowed(resource_type: str, act: Act, granted: _Granted) -> Access:
    found = []
    for scope in granted.scopes:
        if scope.type in (ANY, resource_type) and PERMISSIONS[act] in scope.permissions:
            criteria = scope.clauses(resource_type)
            reach = _reach(scope.context, resource_type, act, granted)
            found.append(DENY if criteria is None else both(reach, criteria or ALLOW))
    if resource_type == "Endpoint" and act in READING and any(_shows_images(each, granted) for each in granted.scopes):
        found.append(own_endpoint())
    return either(*found)


def _reach(context: Context, resource_type: str, act: Act, granted: _Granted) -> Access:
    """Return what scopes of one context can be about. Nobody's patient is no patient: never everybody."""
    if context is Context.SYSTEM:
        return DENY if granted.has_user else ALLOW
    if context is Context.USER and not granted.has_user:
        return DENY
    if context is Context.PATIENT or granted.is_for_patient_alone:
        return of_patient(resource_type, act, granted.patient) if granted.patient else DENY
    return ALLOW


def _shows_images(scope: ResourceScope, granted: _Granted) -> bool:
    is_reading = bool({Permission.READ, Permission.SEARCH} & set(scope.permissions))
    is_about_images = scope.type in (ANY, "ImagingStudy")
    return is_reading and is_about_images and _reach(scope.context, "ImagingStudy", Act.READ, granted) is not DENY


def _rule(resource_type: str, agreement: _Agreed) -> Rule:
    rights, subscriber = agreement.rights, agreement.subscriber
    domain = RESOURCES[resource_type].domain
    writers = {WRITERS[domain]} if domain in WRITERS else set()
    if resource_type == "Task":
        writers |= ORDERING | {Right.PROCESS_IMAGES}  # what a Task may become, and by whom, is told by `ownership`
    write = {act: either(*(agreement.extent(resource_type, act, each) for each in writers & rights)) for act in WRITING}
    if resource_type == "Device" and Right.ORDER_HARD_COPY in rights:
        write[Act.UPDATE] = either(write[Act.UPDATE], _own_devices(subscriber))
    # A printer's agent says how its printer is, and what became of orders.
    write[Act.UPDATE] = either(write[Act.UPDATE], _to_serve(resource_type, agreement))
    if resource_type == "PlanDefinition" and Right.ORDER_PROCESSING in rights:
        # That what is written is a rule is told by `ownership`.
        write = {act: either(write[act], ALLOW if act is Act.CREATE else _own(subscriber)) for act in WRITING}
    if resource_type == "Subscription" and Right.RECEIVE_IMAGES in rights:
        # What a Subscription may ask for is told by `rest.subscriptions`.
        write = {act: ALLOW if act is Act.CREATE else _own(subscriber) for act in WRITING}
    reading = _read(resource_type, agreement)
    # The repository looks at the context when one Binary is read; among many of them it looks at none.
    search = both(reading, _WITHOUT_CONTEXT) if resource_type == "Binary" else None
    return Rule(reading, write[Act.CREATE], write[Act.UPDATE], write[Act.DELETE], search)


_WITHOUT_CONTEXT: Access = (
    Clause(SECURITY_CONTEXT.code, SECURITY_CONTEXT.type, "missing", (Missing(is_missing=True),), SECURITY_CONTEXT),
)


def _read(resource_type: str, agreement: _Agreed) -> Access:
    rights, subscriber = agreement.rights, agreement.subscriber
    if Right.AUDIT in rights and resource_type in AUDITABLE:
        return ALLOW
    if RESOURCES[resource_type].domain is Domain.DEFINITION and Right.DEFINE in rights:
        return ALLOW
    to_order = _read_to_order(resource_type, rights, subscriber) if rights & ORDERING else DENY
    to_order = either(to_order, _to_serve(resource_type, agreement))
    if Right.RECEIVE_IMAGES not in rights or resource_type == "AuditEvent":
        return to_order
    if resource_type == "Subscription":
        return _own(subscriber)  # it may hold credentials
    # What others agreed with the operator is nobody else's business.
    mine: Access = (Clause("subject", "reference", "", (Reference((subscriber,)),)),)
    received = both(
        agreement.extent(resource_type, Act.READ, Right.RECEIVE_IMAGES), mine if resource_type == "Contract" else ALLOW
    )
    if resource_type == "Task" and Right.PROCESS_IMAGES in rights:
        received = either(received, agreement.extent(resource_type, Act.READ, Right.PROCESS_IMAGES))
    return either(received, to_order)


def _to_serve(resource_type: str, agreement: _Agreed) -> Access:
    """Return what who serves printers reads and changes: orders that are addressed to it, and its own Devices."""
    if Right.SERVE_PRINTERS not in agreement.rights:
        return DENY
    mine = (Reference((agreement.subscriber, *agreement.devices)),)
    orders: Access = (
        Clause("owner", "reference", "", mine),
        Clause("code", "token", "", (Token(CODES, HARD_COPY),)),
    )
    return {"Task": orders, "Device": _own_devices(agreement.subscriber)}.get(resource_type, DENY)


def _own_devices(subscriber: str) -> Access:
    return (Clause("organization", "reference", "", (Reference((subscriber,)),)),)


def _read_to_order(resource_type: str, rights: frozenset[Right], subscriber: str) -> Access:
    """Return what who may order, and no more, reads: its own Tasks, what came of them, its own rules and Endpoints, and
    what there is to order.
    """
    own = (Reference((subscriber,)),)
    makers = {Right.ORDER_PROCESSING: ALGORITHM_SYSTEM, Right.ORDER_HARD_COPY: PRINTER_SYSTEM}
    devices = tuple(Token(system, None) for right, system in makers.items() if right in rights)
    clauses: dict[str, Access] = {
        "Task": (Clause("requester", "reference", "", own),),
        "Provenance": (Clause(ON_BEHALF_OF.code, ON_BEHALF_OF.type, "", own, ON_BEHALF_OF),),
        "Endpoint": (Clause("organization", "reference", "", own),),
        "ActivityDefinition": ALLOW if Right.ORDER_PROCESSING in rights else DENY,
        "Device": (Clause("identifier", "token", "", devices),),
        "PlanDefinition": _own(subscriber) if Right.ORDER_PROCESSING in rights else DENY,
    }
    return clauses.get(resource_type, DENY)


def _own(subscriber: str) -> tuple[Clause, ...]:
    return (Clause("_tag", "token", "", (Token(OWNER, subscriber),)),)
