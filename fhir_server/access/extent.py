"""How far a right of a contract goes: from its limits to demands on the resources of each type.

Pure. Definitions are for everybody. Of what takes part in care, such as Practitioners, what is nobody's is for
everybody too. All else belongs to the subscriber that brought it, a study to the one that brought its first image.
"""

from collections.abc import Callable, Iterable, Mapping

from fhir_server.access.context import READING, is_about_nobody, of_patient, own_endpoint
from fhir_server.access.contracts import UNLIMITED, Right, Term
from fhir_server.model.criteria import Clause, Reference, Token
from fhir_server.model.resources import RESOURCES, Domain
from fhir_server.store.filters import ALLOW, DENY, Access, Act, Owned, both, either
from fhir_server.store.index import ON_BEHALF_OF

EVERYWHERE = frozenset({Right.AUDIT, Right.DEFINE})  # the record is one, and definitions are for everybody

Parties = tuple[str, ...]  # references of a subscriber and, behind it, of its Devices


def extent(resource_type: str, act: Act, terms: Iterable[Term], own: Parties) -> Access:
    """Return what terms of a subscriber allow at most of an act on a type; they are alternatives."""
    return either(*(_within(resource_type, act, each, own) for each in terms))


def _within(resource_type: str, act: Act, term: Term, own: Parties) -> Access:
    limits = term.limits
    if limits == UNLIMITED or term.right in EVERYWHERE:
        return ALLOW
    if resource_type == "Task" and limits.whose is not None and term.right is Right.PROCESS_IMAGES:
        return _tasks_for(tuple(sorted(limits.whose)), own)
    return both(
        _of_owners(resource_type, act, limits.whose, own),
        _of_modalities(resource_type, act, limits.modalities, own),
        _of_patients(resource_type, act, limits.patients),
    )


def _of_owners(resource_type: str, act: Act, whose: frozenset[str] | None, own: Parties) -> Access:
    if whose is None or RESOURCES[resource_type].domain is Domain.DEFINITION:
        return ALLOW
    owners = tuple(sorted(whose))
    theirs: Access = (Owned(owners),)
    if resource_type == "Task":
        return _tasks_for(own[:1], own)
    if act not in READING:
        return theirs
    if resource_type in _SPECIAL:
        return either(theirs, *_SPECIAL[resource_type](owners, own[0]))
    if is_about_nobody(resource_type) or resource_type == "Device":
        return (Owned(owners, or_nobodys=True),)
    return theirs


def _tasks_for(requesters: tuple[str, ...], own: Parties) -> Access:
    """Whose images somebody sees does not tell whose orders: those that they place, or do, or do for others."""
    return either((Owned(requesters),), _refers("requester", *requesters), _refers("owner", *own))


def _of_modalities(resource_type: str, act: Act, modalities: frozenset[str], own: Parties) -> Access:
    if not modalities:
        return ALLOW
    if resource_type == "ImagingStudy":
        codes = tuple(Token(None, each) for each in sorted(modalities))
        return (Clause("modality", "token", "", codes),)
    if act not in READING:
        return ALLOW  # what is written besides images has no modality
    if resource_type == "Task":
        return _tasks_for(own[:1], own)
    return ALLOW if is_about_nobody(resource_type) or resource_type in ("Contract", "Device") else DENY


def _of_patients(resource_type: str, act: Act, patients: frozenset[str]) -> Access:
    if not patients:
        return ALLOW
    if resource_type == "Contract":
        return ALLOW  # its own, as `policy` says
    return either(*(of_patient(resource_type, act, each) for each in sorted(patients)))


def _refers(code: str, *references: str) -> Access:
    return (Clause(code, "reference", "", (Reference(references),)),)


def _organizations(owners: tuple[str, ...], _: str) -> list[Access]:
    ids = tuple(Token(None, each.removeprefix("Organization/")) for each in owners)
    return [(Clause("_id", "token", "", ids),)]


def _contracts(_: tuple[str, ...], __: str) -> list[Access]:
    return [ALLOW]  # its own, as `policy` says


def _endpoints(owners: tuple[str, ...], _: str) -> list[Access]:
    return [_refers("organization", *owners), own_endpoint()]


def _provenances(_: tuple[str, ...], subscriber: str) -> list[Access]:
    own = (Reference((subscriber,)),)
    return [(Clause(ON_BEHALF_OF.code, ON_BEHALF_OF.type, "", own, ON_BEHALF_OF),)]


# What else may be read than what the owners brought: (owners, subscriber) -> alternatives
_SPECIAL: Mapping[str, Callable[[tuple[str, ...], str], list[Access]]] = {
    "Organization": _organizations,
    "Contract": _contracts,
    "Endpoint": _endpoints,
    "Provenance": _provenances,
}
