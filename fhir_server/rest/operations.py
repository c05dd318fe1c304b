"""Operations of the FHIR door, by name: one table for the door and for the CapabilityStatement.

Each takes the values of its parameters, from the address and from a Parameters resource alike, and answers with a
resource. Who may do what is the repository's business. Source: FHIR R4 operations 3.1.1, resource-operations, valueset,
codesystem and patient operations.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fhir_server.access.audit import Access
from fhir_server.model import json
from fhir_server.model.chains import AllOf, AnyOf, Criterion
from fhir_server.model.criteria import Clause, Missing, check_id, clause
from fhir_server.model.dates import to_instant
from fhir_server.model.definitions import compartments, parameters
from fhir_server.model.outcome import Issue, outcome
from fhir_server.model.query import CURSOR, Branch, Include, Query
from fhir_server.model.resources import RESOURCES, Domain
from fhir_server.model.second_reader import objections
from fhir_server.model.terminology import Coding
from fhir_server.model.validation import findings
from fhir_server.rest import bundles
from fhir_server.rest.held import Held
from fhir_server.rest.interactions import Backing
from fhir_server.store.filters import Act
from fhir_server.store.repository import Repository
from imaging.errors import AppError, Category

Json = dict[str, Any]

CORE = "http://hl7.org/fhir/OperationDefinition/"
MODES = ("create", "update", "delete", "profile")
CARE_DATES = ("date", "started", "authored", "authored-on", "authoredon", "onset-date", "recorded-date")
GENERAL = frozenset({"_format", "_pretty"})  # what every address takes
MOST_SHOWN = 1000  # codes in one answer of $expand


@dataclass(frozen=True, slots=True)
class Call:
    """One operation as it is asked for. `values` has every value of each parameter, in order."""

    server: Backing
    repository: Repository
    type: str
    id: str
    values: Mapping[str, list[Any]]

    def one(self, name: str, default: Any = None) -> Any:
        """Return the value of a parameter that is given once at most. Raises INVALID for several."""
        found = self.values.get(name, [])
        if len(found) > 1:
            raise AppError(Category.INVALID, f"the parameter {name} is given more than once", where=name)
        return found[0] if found else default

    def number(self, name: str, default: int) -> int:
        """Return a whole number, 0 or more. Raises INVALID."""
        text = str(self.one(name, default))
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise AppError(Category.INVALID, f"{name} has to be a whole number", where=name)
        return int(text)


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation: its name, the addresses that take it, and what it does."""

    name: str
    definition: str  # canonical URL of the OperationDefinition
    perform: Callable[[Call], bytes]
    parameters: frozenset[str]
    types: frozenset[str] = frozenset()  # none: every type
    on_type: bool = False
    on_instance: bool = False
    changes: bool = False  # by POST only
    takes_resource: bool = False  # of a type by POST only
    access: Access = Access.READ

    def methods(self, *, has_id: bool) -> tuple[str, ...]:
        """Return the methods that an address of the operation takes, of a type or with the id of a resource."""
        return ("POST",) if self.changes or (self.takes_resource and not has_id) else ("GET", "POST")


# ---- what a resource says of itself


def _meta(call: Call) -> bytes:
    found = call.repository.read(call.type, call.id).json()
    return _parameters([{"name": "return", "valueMeta": found.get("meta", {})}])


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
    return _parameters([{"name": "return", "valueMeta": made.get("meta", {})}])


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


# ---- terminology


def _value_set(call: Call) -> Mapping[str, Any]:
    given, url = call.one("valueSet"), call.one("url")
    if call.id:
        found: Mapping[str, Any] = call.repository.read("ValueSet", call.id).json()
        return found
    if isinstance(given, dict):
        if issues := findings(given, "ValueSet"):
            raise AppError(Category.INVALID, f"{issues[0].expression}: {issues[0].text}", where="valueSet")
        return given
    if not url:
        raise AppError(Category.INVALID, "url or valueSet says which value set is meant", where="url")
    return Held(call.server.own).terminology().value_set(str(url))


def _expand(call: Call) -> bytes:
    value_set = _value_set(call)
    offset, count = call.number("offset", 0), min(call.number("count", MOST_SHOWN), MOST_SHOWN)
    words = str(call.one("filter", "")).lower().split()
    found = [each for each in Held(call.server.own).terminology().expand(value_set) if _has_words(each, words)]
    contains = [_coding(each) for each in found[offset : offset + count]]
    expansion: Json = {
        "identifier": f"urn:uuid:{uuid.uuid4()}",
        "timestamp": to_instant(call.server.clock()),
        "total": len(found),
        "offset": offset,
        **({"contains": contains} if contains else {}),
    }
    kept = {name: value for name, value in value_set.items() if name not in ("compose", "expansion", "text")}
    return json.dumps({"status": "active", **kept, "expansion": expansion})


def _has_words(coding: Coding, words: list[str]) -> bool:
    text = f"{coding.display} {coding.code}".lower()
    return all(word in text for word in words)


def _coding(coding: Coding) -> Json:
    return {"system": coding.system, "code": coding.code, **({"display": coding.display} if coding.display else {})}


def _validate_code(call: Call) -> bytes:
    codings = _codings(call)
    terminology, value_set = Held(call.server.own).terminology(), _value_set(call)
    display = call.one("display")
    for system, code in codings:
        found = terminology.member(value_set, system, code)
        if found is None:
            continue
        is_right = not display or not found.display or display.lower() == found.display.lower()
        told = [{"name": "result", "valueBoolean": is_right}]
        if not is_right:
            told.append({"name": "message", "valueString": "the display is not that of the code"})
        return _parameters(told + ([{"name": "display", "valueString": found.display}] if found.display else []))
    message = {"name": "message", "valueString": "the code is not in the value set"}
    return _parameters([{"name": "result", "valueBoolean": False}, message])


def _codings(call: Call) -> list[tuple[str | None, str]]:
    coding, concept, code = call.one("coding"), call.one("codeableConcept"), call.one("code")
    if isinstance(concept, dict):
        given = concept.get("coding", [])
    else:
        given = [coding] if isinstance(coding, dict) else [{"code": code, "system": call.one("system")}]
    found = [(each.get("system"), str(each["code"])) for each in given if each.get("code")]
    if not found:
        raise AppError(Category.INVALID, "code, coding or codeableConcept says which code is meant", where="code")
    return found


def _lookup(call: Call) -> bytes:
    (system, code), *_ = _codings(call)
    if not system:
        raise AppError(Category.INVALID, "the system of the code is wanted", where="system")
    known = Held(call.server.own).terminology().code_system(system)
    concept = known.find(code)
    if concept is None:
        raise AppError(Category.NOT_FOUND, f"the code system has no such code: {code[:100]}", where="code")
    told: list[Json] = [{"name": "name", "valueString": known.name}]
    told += [{"name": "version", "valueString": known.version}] if known.version else []
    told.append({"name": "display", "valueString": concept.display or concept.code})
    told += [{"name": "definition", "valueString": concept.definition}] if concept.definition else []
    for name, codes in (("parent", known.parents), ("child", known.children)):
        for each in codes.get(known.key(code), ()):
            parts = [{"name": "code", "valueCode": name}, {"name": "value", "valueCode": each}]
            told.append({"name": "property", "part": parts})
    return _parameters(told)


# ---- everything about a patient


def _everything(call: Call) -> bytes:
    """Return a page of what is in the patient's compartment, the patient first, with everything that it refers to."""
    patient = call.repository.read("Patient", call.id)
    named = [kind for value in call.values.get("_type", []) for kind in str(value).split(",")]
    unknown = [kind for kind in named if kind not in RESOURCES]
    if unknown:
        raise AppError(Category.INVALID, f"this server keeps no {unknown[0][:64]} resources", where="_type")
    limits = call.server.search_limits
    # Who looked at it is not a part of the record, and would grow while it is read.
    within = [kind for kind, row in RESOURCES.items() if row.domain is Domain.CARE and kind != "Patient"]
    within = [kind for kind in within if "Patient" in compartments(kind)]
    kinds = [kind for kind in within if not named or kind in named]
    branches = tuple(Branch(kind, _when(call, kind)) for kind in kinds)
    query = Query(
        "",
        include=tuple(Include(kind, "*", "", False) for kind in kinds),
        count=max(1, min(call.number("_count", limits.default_count), limits.count)),
        branches=branches,
        compartment=patient.key,
        cursor=call.one(CURSOR),
        max_includes=limits.includes,
        address=f"{patient.key}/$everything",
        used=tuple((name, str(value)) for name in _WHEN for value in call.values.get(name, [])),
    )
    is_first = query.cursor is None and (not named or "Patient" in named)
    try:
        page = call.repository.search(query) if branches else None
    except AppError as error:
        if error.category is not Category.FORBIDDEN:
            raise
        page = None  # nothing but the patient may be read
    if page is None:
        return bundles.searchset(call.server.fhir_url, query, _alone(patient, is_first), None, call.server.clock())
    page = replace(
        page,
        matches=[*([patient] if is_first else []), *page.matches],
        includes=[each for each in page.includes if each.key != patient.key],
        total=None if page.total is None else page.total + is_first,
    )
    return bundles.searchset(call.server.fhir_url, query, page, None, call.server.clock())


_WHEN = ("start", "end", "_since", "_type", "_count")


def _alone(patient: Any, is_first: bool) -> Any:
    from fhir_server.store.search import Page

    return Page(int(is_first), [patient] if is_first else [])


def _when(call: Call, kind: str) -> tuple[Criterion, ...]:
    """Return the criteria of the time of care, for types that have one, and of the latest change."""
    found: list[Criterion] = []
    since = call.one("_since")
    if since:
        found.append(clause(kind, "_lastUpdated", f"ge{since}"))
    code = next((each for each in CARE_DATES if each in parameters(kind)), None)
    for name, prefix in (("start", "ge"), ("end", "le")):
        value = call.one(name)
        if value and code:
            without = Clause(code, "date", "missing", (Missing(True),))
            found.append(AnyOf((clause(kind, code, f"{prefix}{value}"), without)))
    return (AllOf(tuple(found)),) if found else ()


# ---- the table


def _parameters(told: list[Json]) -> bytes:
    return json.dumps({"resourceType": "Parameters", "parameter": told})


def _told(issues: list[Issue]) -> bytes:
    return json.dumps(outcome(issues))


_CODE = frozenset({"code", "system", "version", "coding", "codeableConcept", "display"})
OPERATIONS: tuple[Operation, ...] = (
    Operation("meta", f"{CORE}Resource-meta", _meta, frozenset(), on_instance=True),
    Operation(
        "meta-add", f"{CORE}Resource-meta-add", _meta_add, frozenset({"meta"}),
        on_instance=True, changes=True, access=Access.UPDATE,
    ),
    Operation(
        "meta-delete", f"{CORE}Resource-meta-delete", _meta_delete, frozenset({"meta"}),
        on_instance=True, changes=True, access=Access.UPDATE,
    ),
    Operation(
        "validate", f"{CORE}Resource-validate", _validate, frozenset({"resource", "mode", "profile"}),
        on_type=True, on_instance=True, takes_resource=True,
    ),
    Operation(
        "everything", f"{CORE}Patient-everything", _everything, frozenset({*_WHEN, CURSOR}),
        frozenset({"Patient"}), on_instance=True, access=Access.SEARCH,
    ),
    Operation(
        "expand", f"{CORE}ValueSet-expand", _expand, frozenset({"url", "valueSet", "filter", "offset", "count"}),
        frozenset({"ValueSet"}), on_type=True, on_instance=True,
    ),
    Operation(
        "validate-code", f"{CORE}ValueSet-validate-code", _validate_code, _CODE | {"url", "valueSet"},
        frozenset({"ValueSet"}), on_type=True, on_instance=True,
    ),
    Operation("lookup", f"{CORE}CodeSystem-lookup", _lookup, _CODE, frozenset({"CodeSystem"}), on_type=True),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Invocation:
    """An operation as an address names it, `[type]/$name` or `[type]/[id]/$name`, with what was sent to it."""

    operation: Operation
    type: str
    id: str = ""
    query: tuple[tuple[str, str], ...] = ()
    sent: Any = None

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
        if self.type not in RESOURCES:
            raise AppError(Category.NOT_FOUND, "this server keeps no resources of this type", where=self.type[:64])
        if self.id:
            check_id(self.id, where=f"{self.type}.id")
        require(self.operation, repository, self.type, self.id)

    def prepare(self, server: Backing) -> None:
        """Do what has to be done before, and not within, a transaction: have new images shown."""
        if self.operation.name == "everything":
            server.studies.catch_up()

    def perform(self, server: Backing, repository: Repository) -> bytes:
        """Do it and return the resource that answers."""
        values = values_of(self.sent, [*self.query], self.operation)
        return self.operation.perform(Call(server, repository, self.type, self.id, values))


def invoked(method: str, segments: Sequence[str], query: tuple[tuple[str, str], ...]) -> Invocation | None:
    """Return what is invoked at an address, None where it names no operation. Raises UNSUPPORTED for an unknown one."""
    if len(segments) not in (2, 3) or not segments[-1].startswith("$"):
        return None
    kind, identifier = segments[0], segments[1] if len(segments) == 3 else ""
    for operation in OPERATIONS:
        is_named = f"${operation.name}" == segments[-1] and kind in (operation.types or (kind,))
        is_there = operation.on_instance if identifier else operation.on_type
        if is_named and is_there and method in operation.methods(has_id=bool(identifier)):
            return Invocation(operation, kind, identifier, query)
    raise AppError(Category.UNSUPPORTED, "there is no such operation at this address", where="url")


def values_of(resource: Any, query: list[tuple[str, str]], operation: Operation) -> dict[str, list[Any]]:
    """Return the values of the parameters, of the address and of what was sent. Raises INVALID for unknown ones.

    What is no Parameters resource is the value of the parameter `resource`, as the specification allows.
    """
    found = values_given(resource, query)
    unknown = sorted(found.keys() - operation.parameters)
    if unknown:
        known = ", ".join(sorted(operation.parameters)) or "none"
        message = f"${operation.name} has no parameter {unknown[0][:64]!r}; it has: {known}"
        raise AppError(Category.INVALID, message, where=unknown[0][:64])
    return found


def values_given(resource: Any, query: list[tuple[str, str]]) -> dict[str, list[Any]]:
    """Return the values of parameters, of the address and of what was sent, whatever their names. Raises INVALID."""
    found: dict[str, list[Any]] = {}
    for name, text in query:
        if name not in GENERAL:
            found.setdefault(name, []).append(text)
    if isinstance(resource, dict) and resource.get("resourceType") == "Parameters":
        rows = resource.get("parameter", [])
        if not isinstance(rows, list) or not all(isinstance(each, dict) for each in rows):
            raise AppError(Category.INVALID, "parameters are a list of JSON objects", where="Parameters.parameter")
        for each in rows:
            value = each.get("resource", next((item for name, item in each.items() if name.startswith("value")), None))
            found.setdefault(str(each.get("name", "")), []).append(value)
    elif resource is not None:
        found.setdefault("resource", []).append(resource)
    return found


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
