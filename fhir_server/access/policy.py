"""From rights to a restriction: which resource types a principal may read and write, and under which clauses.

Pure. `register-images` writes and reads nothing; `receive-images` reads and writes nothing; `order-processing` and
`order-hard-copy` write Tasks, and read their own, what came of them (Provenance), their own Endpoints and what can be
ordered; the first also writes processing rules; `process-images` writes Tasks and may claim open ones; `define` reads
and writes what tells everybody here how to work; `audit` reads the audit record and what explains it. What no
row names is denied.
"""

from functools import lru_cache
from types import MappingProxyType

from fhir_server.access.contracts import Right
from fhir_server.access.principals import Principal
from fhir_server.hardcopy.devices import PRINTER_SYSTEM
from fhir_server.model.criteria import Clause, Reference, Token
from fhir_server.model.resources import RESOURCES, Domain
from fhir_server.model.rule import OWNER
from fhir_server.store.filters import ALLOW, DENY, Access, Restriction, Rule
from fhir_server.store.index import ON_BEHALF_OF
from imaging.errors import AppError, Category

WRITERS = {Domain.CARE: Right.REGISTER_IMAGES, Domain.DEFINITION: Right.DEFINE}  # nobody writes the others
ALGORITHM_SYSTEM = "urn:fhir-imaging:algorithm"  # of the identifier of a Device that is an algorithm of this server
# What an auditor needs to understand the record, and nothing clinical.
AUDITABLE = frozenset({"AuditEvent", "Contract", "Organization", "Provenance"})

# Rights to place Tasks.
ORDERING = frozenset({Right.ORDER_PROCESSING, Right.ORDER_HARD_COPY})


def restriction(principal: Principal) -> Restriction:
    """Return what a principal may do with FHIR resources."""
    return _restriction(principal.rights, principal.subscriber)


def require(principal: Principal, right: Right, act: str) -> None:
    """Raise FORBIDDEN, naming the right, unless a contract in force gives it; `act` says what was wanted."""
    if not principal.may(right):
        raise AppError(
            Category.FORBIDDEN, f"a contract in force that allows {right} is needed to {act}", where="contract"
        )


@lru_cache(maxsize=1024)
def _restriction(rights: frozenset[Right], subscriber: str) -> Restriction:
    rules = {name: _rule(name, rights, subscriber) for name in RESOURCES}
    return Restriction(MappingProxyType(rules), default=Rule())


def _rule(resource_type: str, rights: frozenset[Right], subscriber: str) -> Rule:
    write: Access = ALLOW if WRITERS.get(RESOURCES[resource_type].domain) in rights else DENY
    if resource_type == "Task" and rights & (ORDERING | {Right.PROCESS_IMAGES}):
        write = ALLOW  # what a Task may become, and who may change it, is told by `ownership`
    update = delete = write
    if resource_type == "Device" and write is DENY and Right.ORDER_HARD_COPY in rights:
        # A printer's agent says how its printer is.
        update = (Clause("organization", "reference", "", (Reference((subscriber,)),)),)
    if resource_type == "PlanDefinition" and write is DENY and Right.ORDER_PROCESSING in rights:
        # That what is written is a rule is told by `ownership`.
        write, update, delete = ALLOW, _own_rules(subscriber), _own_rules(subscriber)
    return Rule(read=_read(resource_type, rights, subscriber), create=write, update=update, delete=delete)


def _read(resource_type: str, rights: frozenset[Right], subscriber: str) -> Access:
    if Right.AUDIT in rights and resource_type in AUDITABLE:
        return ALLOW
    if RESOURCES[resource_type].domain is Domain.DEFINITION and Right.DEFINE in rights:
        return ALLOW
    if Right.RECEIVE_IMAGES not in rights and rights & ORDERING:
        return _read_to_order(resource_type, rights, subscriber)
    if Right.RECEIVE_IMAGES not in rights or resource_type == "AuditEvent":
        return DENY
    if resource_type == "Contract":
        # What others agreed with the operator is nobody else's business.
        return (Clause("subject", "reference", "", (Reference((subscriber,)),)),)
    return ALLOW


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
        "PlanDefinition": _own_rules(subscriber) if Right.ORDER_PROCESSING in rights else DENY,
    }
    return clauses.get(resource_type, DENY)


def _own_rules(subscriber: str) -> tuple[Clause, ...]:
    return (Clause("_tag", "token", "", (Token(OWNER, subscriber),)),)
