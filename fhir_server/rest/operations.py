"""Operations of the FHIR door, by name: one table for the door and for the CapabilityStatement.

Each takes the values of its parameters, from the address and from a Parameters resource alike, and answers with a
resource. Who may do what is the repository's business. Source: FHIR R4 operations 3.1.1, resource-operations, valueset,
codesystem and patient operations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fhir_server.access.audit import Access
from fhir_server.access.principals import Principal
from fhir_server.model import json
from fhir_server.model.criteria import check_id
from fhir_server.model.definitions import resource_types
from fhir_server.model.outcome import InvalidResource, Issue, outcome
from fhir_server.model.query import CURSOR
from fhir_server.model.resources import RESOURCES
from fhir_server.model.second_reader import objections
from fhir_server.model.validation import findings, validate
from fhir_server.rest.calls import Call, Json, Operation, answer
from fhir_server.rest.correcting import OPERATIONS as CORRECTING
from fhir_server.rest.everything import PARAMETERS, everything
from fhir_server.rest.held import Held
from fhir_server.rest.interactions import Backing
from fhir_server.rest.reconciling import OPERATIONS as RECONCILING
from fhir_server.rest.subscription_operations import OPERATIONS as OF_SUBSCRIPTIONS
from fhir_server.rest.terminology_operations import EXPAND, LOOKUP, VALIDATE_CODE, expand, lookup, validate_code
from fhir_server.rest.usage_operation import OPERATIONS as OF_USAGE
from fhir_server.store.filters import Act
from fhir_server.store.repository import Repository
from imaging.errors import AppError, Category

CORE = "http://hl7.org/fhir/OperationDefinition/"
MODES = ("create", "update", "delete", "profile")
NO_OPERATION = "there is no such operation at this address; those that there are stand in [base]/metadata"
GENERAL = frozenset({"_format", "_pretty"})  # what every address takes


# ---- what a resource says of itself


def _meta(call: Call) -> bytes:
    """Return what a resource says of itself, or which labels are in use, of a type or of all that may be looked for."""
    if call.id:
        meta = call.repository.read(call.type, call.id).json().get("meta", {})
    else:
        meta = call.repository.labels([call.type] if call.type else [*RESOURCES])
    return answer([{"name": "return", "valueMeta": meta}])


def _meta_add(call: Call) -> bytes:
    given = _given_meta(call)

    def change(resource: Json) -> Json:
        meta = dict(resource.get("meta", {}))
        for name in _LABELS:
            known = meta.get(name, [])
            added = [each for each in given.get(name, []) if not any(_is_label(each, other) for other in known)]
            if known or added:
                meta[name] = [*known, *added]
        return {**resource, "meta": meta}

    return _changed(call, change)


def _meta_delete(call: Call) -> bytes:
    given = _given_meta(call)

    def change(resource: Json) -> Json:
        meta = dict(resource.get("meta", {}))
        for name in _LABELS:
            gone = given.get(name, [])
            left = [each for each in meta.pop(name, []) if not any(_is_label(each, other) for other in gone)]
            if left:
                meta[name] = left
        return {**resource, "meta": meta}

    return _changed(call, change)


_LABELS = ("profile", "security", "tag")


def _given_meta(call: Call) -> Json:
    meta = call.one("meta")
    if not isinstance(meta, dict) or not set(_LABELS) & meta.keys():
        raise AppError(
            Category.INVALID, "the parameter meta with profiles, tags or security labels is wanted", where="meta"
        )
    issues = findings({"resourceType": "Basic", "code": {"text": "meta"}, "meta": meta}, "Basic")
    if issues:
        raise AppError(Category.INVALID, f"meta: {issues[0].text}", where="meta")
    return meta


def _is_label(one: Any, other: Any) -> bool:
    """Say whether two labels are the same: profiles by URL, codings by system and code."""
    if isinstance(one, dict) and isinstance(other, dict):
        return (one.get("system"), one.get("code")) == (other.get("system"), other.get("code"))
    return bool(one == other)


def _changed(call: Call, change: Callable[[Json], Json]) -> bytes:
    def labelled(resource: Json) -> Json:
        changed = change(resource)
        call.server.conforms(changed)
        return changed

    made = call.repository.patch(call.type, call.id, labelled).json()
    return answer([{"name": "return", "valueMeta": made.get("meta", {})}])


# ---- another form


def _convert(call: Call) -> bytes:
    """Return the resource as it came: the door gives it the form that is asked for."""
    resource = call.one("input")
    if not isinstance(resource, dict) or "resourceType" not in resource:
        raise AppError(Category.INVALID, "the resource to convert is wanted, as body or parameter input", where="input")
    kind = resource["resourceType"]
    if not isinstance(kind, str) or kind not in resource_types():
        raise AppError(Category.INVALID, "this is no resource type of FHIR R4", where="resourceType")
    validate(resource, kind)
    return json.dumps(resource)


# ---- validation


def _validate(call: Call) -> bytes:
    mode, resource = call.one("mode", ""), call.one("resource")
    if mode and mode not in MODES:
        raise AppError(Category.INVALID, f"mode is one of: {', '.join(MODES)}", where="mode")
    if resource is None and call.id:
        resource = call.repository.read(call.type, call.id).json()
    if mode == "delete":
        return _told([Issue("informational", "it may be deleted, as far as validation tells", severity="information")])
    if resource is None:
        raise AppError(Category.INVALID, "the parameter resource is wanted", where="resource")
    issues = findings(resource, call.type, with_advice=True)
    if mode == "update" and call.id and resource.get("id") != call.id:
        issues.append(Issue("invalid", "is not the id of the address", f"{call.type}.id"))
    if not any(issue.severity == "error" for issue in issues):
        urls = [str(each) for each in call.values.get("profile", [])]
        held = Held(call.server.own)
        issues += [*held.check(resource, urls), *held.declared(resource, besides=urls)]
    issues += objections(resource, len(json.dumps(resource)))
    return _told(issues or [Issue("informational", "the resource is valid", severity="information")])


# ---- the table


def _told(issues: list[Issue]) -> bytes:
    return json.dumps(outcome(issues))


_LABELLED = frozenset({"meta"})
OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "meta", f"{CORE}Resource-meta", _meta, frozenset(), on_system=True, on_type=True, on_instance=True,
    ),
    Operation(
        "meta-add", f"{CORE}Resource-meta-add", _meta_add, _LABELLED,
        on_instance=True, structured=_LABELLED, changes=True, access=Access.UPDATE,
    ),
    Operation(
        "meta-delete", f"{CORE}Resource-meta-delete", _meta_delete, _LABELLED,
        on_instance=True, structured=_LABELLED, changes=True, access=Access.UPDATE,
    ),
    Operation(
        "convert", f"{CORE}Resource-convert", _convert, frozenset({"input"}),
        on_system=True, structured=frozenset({"input"}), body="input", takes_resource=True,
    ),
    Operation(
        "validate", f"{CORE}Resource-validate", _validate, frozenset({"resource", "mode", "profile"}),
        on_type=True, on_instance=True, structured=frozenset({"resource"}), takes_resource=True,
    ),
    Operation(
        "everything", f"{CORE}Patient-everything", everything, frozenset({*PARAMETERS, CURSOR}),
        frozenset({"Patient"}), on_instance=True, access=Access.SEARCH,
    ),
    Operation(
        "expand", f"{CORE}ValueSet-expand", expand, EXPAND, frozenset({"ValueSet"}), on_type=True, on_instance=True,
        structured=frozenset({"valueSet"}),
    ),
    Operation(
        "validate-code", f"{CORE}ValueSet-validate-code", validate_code, VALIDATE_CODE,
        frozenset({"ValueSet"}), on_type=True, on_instance=True,
        structured=frozenset({"valueSet", "coding", "codeableConcept"}),
    ),
    Operation(
        "lookup", f"{CORE}CodeSystem-lookup", lookup, LOOKUP, frozenset({"CodeSystem"}),
        on_type=True, structured=frozenset({"coding"}),
    ),
    *RECONCILING,
    *CORRECTING,
    *OF_SUBSCRIPTIONS,
    *OF_USAGE,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Invocation:
    """An operation as an address names it, `[type]/$name` or `[type]/[id]/$name`, with what was sent to it."""

    operation: Operation
    type: str
    id: str = ""
    query: tuple[tuple[str, str], ...] = ()
    sent: Any = None
    concerned: list[str] = field(default_factory=list, compare=False)  # what else was, for the audit record

    @property
    def access(self) -> Access:
        """What the audit record calls it."""
        return self.operation.access

    @property
    def key(self) -> str:
        """The relative reference `Type/id`, "" where no resource is named."""
        return f"{self.type}/{self.id}" if self.id else ""

    def require(self, repository: Repository) -> None:
        """Return when the type is known, the id may be one, and the principal may ask this of some resources."""
        if not self.type:
            return  # each type is asked for by itself, or nothing is read
        if self.type not in RESOURCES:
            raise AppError(Category.NOT_FOUND, "this server keeps no resources of this type", where=self.type[:64])
        if self.id:
            check_id(self.id, where=f"{self.type}.id")
        require(self.operation, repository, self.type, self.id)

    def prepare(self, server: Backing) -> None:
        """Do what has to be done before, and not within, a transaction: have new images shown."""
        if self.operation.name == "everything":
            server.studies.catch_up()
        if self.type == "ImagingStudy" and self.id:
            server.studies.refresh(self.id)

    def perform(self, server: Backing, principal: Principal, repository: Repository) -> bytes:
        """Do it and return the resource that answers."""
        values = values_of(self.sent, [*self.query], self.operation)
        return self.operation.perform(Call(server, principal, repository, self.type, self.id, values, self.concerned))


def invoked(method: str, segments: Sequence[str], query: tuple[tuple[str, str], ...]) -> Invocation | None:
    """Return what is invoked at an address, None where it names no operation. Raises UNSUPPORTED for an unknown one."""
    if len(segments) not in (1, 2, 3) or not segments[-1].startswith("$"):
        return None
    kind, identifier = (*segments[:-1], "", "")[:2]
    operation = operation_at(segments)
    if operation is None or method not in operation.methods(has_id=bool(identifier)):
        raise AppError(Category.UNSUPPORTED, NO_OPERATION, where="url")
    return Invocation(operation, kind, identifier, query)


def operation_at(segments: Sequence[str]) -> Operation | None:
    """Return the operation that an address names, by whatever method it is invoked; None where there is none."""
    kind, identifier = (*segments[:-1], "", "")[:2]
    for operation in OPERATIONS:
        is_named = f"${operation.name}" == segments[-1] and kind in (operation.types or (kind,))
        is_there = operation.on_instance if identifier else operation.on_type if kind else operation.on_system
        if is_named and is_there:
            return operation
    return None


def values_of(resource: Any, query: list[tuple[str, str]], operation: Operation) -> dict[str, list[Any]]:
    """Return the values of the parameters, of the address and of what was sent. Raises INVALID for unknown ones.

    What is no Parameters resource is the value of the one parameter that is a resource, as the specification allows.
    """
    found = values_given(resource, query, body=operation.body)
    unknown = sorted(found.keys() - operation.parameters)
    if unknown:
        known = ", ".join(sorted(operation.parameters)) or "none"
        message = f"${operation.name} has no parameter {unknown[0][:64]!r}; it has: {known}"
        raise AppError(Category.INVALID, message, where=unknown[0][:64])
    plain = found.keys() - operation.structured
    return {name: [_text(name, each) for each in values] if name in plain else values for name, values in found.items()}


def _text(name: str, value: Any) -> str:
    """Return a simple value as it would stand in an address. Raises INVALID."""
    if value is None or isinstance(value, dict | list):
        raise AppError(Category.INVALID, f"the parameter {name} has a simple value, and has to have one", where=name)
    return str(value).lower() if isinstance(value, bool) else str(value)


def values_given(resource: Any, query: list[tuple[str, str]], *, body: str = "resource") -> dict[str, list[Any]]:
    """Return the values of parameters, of the address and of what was sent, whatever their names. Raises INVALID."""
    found: dict[str, list[Any]] = {}
    for name, text in query:
        if name not in GENERAL:
            found.setdefault(name, []).append(text)
    if isinstance(resource, dict) and resource.get("resourceType") == "Parameters":
        rows = resource.get("parameter", [])
        issues = findings(_outline(resource), "Parameters") if rows != [] else []
        if issues:
            raise InvalidResource(tuple(issues), where="Parameters")
        for each in rows:
            value = next((item for name, item in each.items() if name.startswith("value")), each.get("part"))
            value = each.get("resource", value)
            found.setdefault(str(each.get("name", "")), []).append(value)
    elif resource is not None:
        found.setdefault(body, []).append(resource)
    return found


def _outline(holder: Any) -> Any:
    """Return Parameters, or a part of them, with a valid resource in place of each: the operation judges those."""
    if isinstance(holder, list):
        return [_outline(each) for each in holder]
    if not isinstance(holder, dict):
        return holder
    made = {name: _outline(value) if name in ("parameter", "part") else value for name, value in holder.items()}
    return {**made, "resource": _STAND_IN} if isinstance(made.get("resource"), dict) else made


_STAND_IN = {"resourceType": "Basic", "code": {"text": "a resource"}}


def require(operation: Operation, repository: Repository, kind: str, identifier: str) -> None:
    """Return when the principal may do something with resources of the type at all. Raises FORBIDDEN."""
    if operation.name == "validate" and not identifier:
        try:
            repository.require(kind, Act.CREATE)
            return
        except AppError:
            pass  # who may read may ask as well
    if operation.changes:
        repository.require(kind, Act.UPDATE)
    repository.require(kind, Act.READ)  # what is changed is told as well
