"""What an export is asked for: from the parameters of `$export` to an order, and what it means for each type.

Pure but for the look at who may read what. What is wrong or not supported is refused; with `handling=lenient` it is
left out, and the export tells so among its errors. Source: Bulk Data Access 2.0.0, kick-off request and query
parameters; OperationDefinitions export, patient-export and group-export.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qsl

from fhir_server.model import query
from fhir_server.model.criteria import ID_FORM, Limits
from fhir_server.model.dates import interval, to_instant
from fhir_server.model.definitions import compartments, elements
from fhir_server.model.outcome import Issue
from fhir_server.model.resources import RESOURCES
from fhir_server.rest.criteria import RESULT_PARAMETERS
from fhir_server.store.filters import Act
from fhir_server.store.repository import Repository
from fhir_server.store.snapshot import Wanted
from imaging.errors import AppError, Category

Json = dict[str, Any]

CODE = "export"  # of the Tasks that do it
_GUIDE = "http://hl7.org/fhir/uv/bulkdata"
BULK_DATA = f"{_GUIDE}/CapabilityStatement/bulk-data"
# resource type of the address, "" for the whole -> canonical URL of the OperationDefinition
EXPORTS: Mapping[str, str] = {
    "": f"{_GUIDE}/OperationDefinition/export",
    "Group": f"{_GUIDE}/OperationDefinition/group-export",
    "Patient": f"{_GUIDE}/OperationDefinition/patient-export",
}
NDJSON = "application/fhir+ndjson"
FORMATS = (NDJSON, "application/ndjson", "ndjson")
MOST_FILTERS = 100  # of _typeFilter
MOST_PATIENTS = 200_000  # of a Group, or named; about what one question to the database takes
# Types that are in no patient's compartment and explain what is, in an order in which most refer to later ones.
SUPPORTING = (
    "PractitionerRole", "Device", "Medication", "HealthcareService", "Location", "Endpoint", "Practitioner",
    "Organization",
)  # fmt: skip
# Its resources may belong to a patient without saying so: they are fetched one by one, at the address of an Attachment.
NEVER = frozenset({"Binary"})

_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_FILTERS = re.compile(r",(?=[A-Z][A-Za-z]*\?)")  # commas between queries, not those within one


class Level(StrEnum):
    """What is exported: everything, what belongs to patients, or to those of a group."""

    SYSTEM = "system"
    PATIENT = "patient"
    GROUP = "group"


class Associated(StrEnum):
    """Values of includeAssociatedData, the least restrictive first."""

    RELEVANT_PROVENANCE = "RelevantProvenanceResources"
    LATEST_PROVENANCE = "LatestProvenanceResources"


@dataclass(frozen=True, slots=True)
class Export:
    """An export as it is asked for.

    group       id of the Group, "" for none
    types       those asked for, None: all
    filters     (type, criteria as text) of _typeFilter; the alternatives of one type are told one after the other
    elements    of each type, under "" those of all types
    patients    references, None: all that there are
    left_out    what lenient handling left out, in words
    """

    level: Level
    request: str  # address of the request
    group: str = ""
    types: tuple[str, ...] | None = None
    since: datetime | None = None
    filters: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    elements: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    associated: Associated | None = None
    patients: tuple[str, ...] | None = None
    left_out: tuple[Issue, ...] = ()

    def plan_types(self) -> tuple[str, ...]:
        """Return the types that are looked for by themselves, in the order of the export, Provenance last."""
        known = tuple(kind for kind in RESOURCES if kind not in NEVER)
        if self.level is not Level.SYSTEM:
            known = tuple(kind for kind in known if "Patient" in compartments(kind))
        chosen = tuple(kind for kind in known if self.types is None or kind in self.types)
        has_provenance = "Provenance" in chosen or self.associated is not None
        rest = tuple(kind for kind in chosen if kind != "Provenance")
        return (*rest, "Provenance") if has_provenance else rest

    def supporting_types(self) -> tuple[str, ...]:
        """Return the types that come where the others refer to them."""
        if self.level is Level.SYSTEM:
            return ()
        return tuple(kind for kind in SUPPORTING if self.types is None or kind in self.types)

    def wanted(self, kind: str, patients: frozenset[str] | None, base_url: str, limits: Limits) -> Wanted:
        """Return which resources of a type are asked for, of these patients where it is not the whole system."""
        alternatives = tuple(
            query.parse(kind, criteria, base_url=base_url, limits=limits).clauses
            for each, criteria in self.filters
            if each == kind
        )
        found = Wanted(criteria=alternatives, since=self.since)
        if self.level is Level.SYSTEM:
            return found
        return replace(found, owners=patients, owned=True, only=None if self.patients is None else patients)

    def elements_of(self, kind: str) -> tuple[str, ...]:
        """Return the elements of a type that are asked for, () for all of them."""
        if not self.elements.keys() & {kind, ""}:
            return ()
        named = (*self.elements.get(kind, ()), *self.elements.get("", ()))
        return tuple(each for each in named if each in _elements_of(kind)) or ("id",)  # and what it must have

    def json(self) -> Json:
        """Return the export as JSON, for `of_json`."""
        since = to_instant(self.since) if self.since else None
        return {**asdict(self), "since": since, "left_out": [asdict(each) for each in self.left_out]}


def of_json(told: Mapping[str, Any]) -> Export:
    """Return the export that JSON tells."""
    return Export(
        level=Level(told["level"]),
        request=told["request"],
        group=told["group"],
        types=None if told["types"] is None else tuple(told["types"]),
        since=interval(told["since"]).low if told["since"] else None,
        filters=tuple((kind, tuple((name, value) for name, value in pairs)) for kind, pairs in told["filters"]),
        elements={kind: tuple(names) for kind, names in told["elements"].items()},
        associated=Associated(told["associated"]) if told["associated"] else None,
        patients=None if told["patients"] is None else tuple(told["patients"]),
        left_out=tuple(Issue(**each) for each in told["left_out"]),
    )


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks for what: the level with its Group, the address, and the values of the parameters."""

    level: Level
    request: str
    group: str
    values: Mapping[str, list[Any]]
    is_lenient: bool
    is_post: bool


def export(asking: Asking, repository: Repository, *, base_url: str, limits: Limits) -> Export:
    """Return the export that is asked for. Raises INVALID, NOT_FOUND, FORBIDDEN, UNSUPPORTED."""
    if asking.level is Level.GROUP:
        members(
            repository.read("Group", asking.group).json(), datetime.now(UTC), base_url
        )  # raises where it has no patients
    reader = _Reader(asking, repository, base_url, limits)
    for name in asking.values:
        if name not in _READ:
            reader.leave_out(name, f"$export has no parameter {name[:64]!r}; it has: {', '.join(sorted(_READ))}")
    for name, read in _READ.items():
        if name in asking.values:
            read(reader, name)
    return reader.finished()


class _Reader:
    """Reads one parameter after another."""

    def __init__(self, asking: Asking, repository: Repository, base_url: str, limits: Limits) -> None:
        self.asking = asking
        self.repository = repository
        self.base_url = base_url
        self.limits = limits
        self.made = Export(asking.level, asking.request, asking.group)

    def leave_out(self, name: str, message: str, category: Category = Category.INVALID) -> None:
        """Take note of what is left out. Raises where that is not wanted."""
        if not self.asking.is_lenient:
            raise AppError(category, message, where=name[:64])
        code = "not-supported" if category is Category.UNSUPPORTED else "invalid"
        issue = Issue(code, f"{message} (left out)", name[:64] if name.isidentifier() else "", severity="warning")
        self.made = replace(self.made, left_out=(*self.made.left_out, issue))

    def texts(self, name: str) -> list[str]:
        """Return the values of a parameter, which may be repeated and joined by commas."""
        found = [part.strip() for value in self.asking.values[name] for part in self._text(name, value).split(",")]
        return list(dict.fromkeys(part for part in found if part))

    def _text(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise AppError(Category.INVALID, f"{name} has to be a text", where=name)
        return value

    def one(self, name: str) -> str:
        values = self.asking.values[name]
        if len(values) != 1:
            raise AppError(Category.INVALID, f"{name} is given more than once", where=name)
        return self._text(name, values[0])

    # ---- each parameter

    def output_format(self, name: str) -> None:
        text = self.one(name).partition(";")[0].strip().replace(" ", "+").lower()  # an unescaped plus is a space
        if text not in FORMATS:
            self.leave_out(name, f"exports are made as {NDJSON}", Category.UNSUPPORTED)

    def since(self, name: str) -> None:
        text = self.one(name).replace(" ", "+")
        if _INSTANT.fullmatch(text) is None:
            self.leave_out(name, "_since has to be an instant such as 2026-01-31T08:00:00Z")
            return
        self.made = replace(self.made, since=interval(text).low)

    def types(self, name: str) -> None:
        chosen: list[str] = []
        for kind in self.texts(name):
            if wrong := self._unfit(kind):
                self.leave_out(name, wrong[1], wrong[0])
            else:
                chosen.append(kind)
        if not chosen or (
            self.asking.level is not Level.SYSTEM and not any("Patient" in compartments(each) for each in chosen)
        ):
            raise AppError(Category.INVALID, "_type names nothing that this export could have", where=name)
        self.made = replace(self.made, types=tuple(chosen))

    def _unfit(self, kind: str) -> tuple[Category, str] | None:
        """Return why a type cannot be exported; None where it can."""
        if kind not in RESOURCES:
            return Category.INVALID, f"this server keeps no {kind[:64]} resources"
        if kind in NEVER:
            return Category.UNSUPPORTED, f"{kind} resources are not exported: fetch them where an Attachment says"
        if self.asking.level is not Level.SYSTEM and "Patient" not in compartments(kind) and kind not in SUPPORTING:
            return Category.INVALID, f"{kind} resources are in no patient's compartment"
        try:
            self.repository.require(kind, Act.READ if kind in self.made.supporting_types() else Act.SEARCH)
        except AppError as error:
            return error.category, error.message
        return None

    def type_filters(self, name: str) -> None:
        texts = [text for value in self.asking.values[name] for text in _FILTERS.split(self._text(name, value))]
        if len(texts) > MOST_FILTERS:
            raise AppError(Category.INVALID, f"at most {MOST_FILTERS} queries are taken", where=name)
        found = []
        for text in texts:
            try:
                found.append(self._type_filter(text))
            except AppError as error:
                self.leave_out(name, error.message, error.category)
        self.made = replace(self.made, filters=tuple(found))

    def _type_filter(self, text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
        kind, mark, criteria = text.strip().partition("?")
        pairs = tuple(parse_qsl(criteria, keep_blank_values=True))
        if not mark or not pairs or kind not in RESOURCES:
            raise AppError(Category.INVALID, "a query such as Observation?status=final is wanted")
        if self.made.types is not None and kind not in self.made.types:
            raise AppError(Category.INVALID, f"{kind} is not among the types of _type")
        for key, _ in pairs:
            if key.partition(":")[0] in RESULT_PARAMETERS:
                raise AppError(Category.INVALID, f"{key[:64]} says how a search answers, and selects nothing")
        query.parse(kind, pairs, base_url=self.base_url, limits=self.limits)
        return kind, pairs

    def elements(self, name: str) -> None:
        found: dict[str, tuple[str, ...]] = {}
        for text in self.texts(name):
            kind, dot, element = text.rpartition(".")
            known = _elements_of(kind) if dot and kind in RESOURCES else _of_any_type()
            if (dot and kind not in RESOURCES) or element not in known:
                self.leave_out(name, f"there is no top element {text[:64]!r}")
            else:
                found[kind] = (*found.get(kind, ()), element)
        self.made = replace(self.made, elements=found)

    def associated(self, name: str) -> None:
        found = []
        for text in self.texts(name):
            try:
                found.append(Associated(text))
            except ValueError:
                known = ", ".join(each.value for each in Associated)
                self.leave_out(name, f"{text[:64]!r} is not known; known is: {known}", Category.UNSUPPORTED)
        self.made = replace(self.made, associated=next((each for each in Associated if each in found), None))

    def patients(self, name: str) -> None:
        if not self.asking.is_post or self.asking.level is Level.SYSTEM:
            self.leave_out(name, "patients are named by POST, of Patient/$export and Group/[id]/$export")
            return
        among = self._members() if self.asking.level is Level.GROUP else None
        found = []
        for value in self.asking.values[name]:
            text = value.get("reference", "") if isinstance(value, dict) else value
            key = str(text).removeprefix(f"{self.base_url}/")
            if self._is_patient(key) and (among is None or key in among):
                found.append(key)
            else:
                self.leave_out(name, "a patient is not here, or not in the group", Category.NOT_FOUND)
        if not found:
            raise AppError(Category.NOT_FOUND, "none of the patients is here", where=name)
        self.made = replace(self.made, patients=tuple(dict.fromkeys(found)))

    def _members(self) -> frozenset[str]:
        return patients_of(
            self.asking.group, lambda id: self.repository.read("Group", id).json(), datetime.now(UTC), self.base_url
        )

    def _is_patient(self, key: str) -> bool:
        kind, _, identifier = key.partition("/")
        if kind != "Patient" or not ID_FORM.fullmatch(identifier):
            return False
        try:
            self.repository.read("Patient", identifier)
        except AppError as error:
            if error.category not in (Category.NOT_FOUND, Category.GONE):
                raise
            return False
        return True

    def finished(self) -> Export:
        """Return the export. Raises FORBIDDEN where nothing of it may be read."""
        kinds = self.made.plan_types()
        if not any(self._may_search(kind) for kind in kinds):
            self.repository.require(kinds[0] if len(kinds) == 1 else "Patient", Act.SEARCH)
            raise AppError(Category.FORBIDDEN, "you may not read resources of these types", where="_type")
        return self.made

    def _may_search(self, kind: str) -> bool:
        try:
            self.repository.require(kind, Act.SEARCH)
        except AppError:
            return False
        return True


_READ: Mapping[str, Callable[[_Reader, str], None]] = {
    "_outputFormat": _Reader.output_format,
    "_since": _Reader.since,
    "_type": _Reader.types,
    "_typeFilter": _Reader.type_filters,
    "_elements": _Reader.elements,
    "includeAssociatedData": _Reader.associated,
    "patient": _Reader.patients,
}


def patients_of(group: str, find: Callable[[str], Json], now: datetime, base_url: str) -> frozenset[str]:
    """Return references of the patients of a group and of the groups in it.

    find   id of a Group -> the Group; raises NOT_FOUND, GONE or FORBIDDEN, of those within the first counts nothing
    Raises UNSUPPORTED for a group without patients by its kind, TOO_LARGE beyond 200,000.
    """
    patients, groups = members(find(group), now, base_url)
    found, seen, left = set(patients), {group}, groups
    while left:
        each = left.pop()
        if each in seen:
            continue
        seen.add(each)
        try:
            patients, further = members(find(each), now, base_url)
        except AppError:
            continue
        found |= patients
        left |= further
        if len(found) > MOST_PATIENTS:
            raise AppError(Category.TOO_LARGE, f"the group has more than {MOST_PATIENTS} patients", where="Group")
    return frozenset(found)


def members(group: Mapping[str, Any], now: datetime, base_url: str) -> tuple[set[str], set[str]]:
    """Return references of the patients and ids of the groups that are members now.

    Raises UNSUPPORTED for a group that only describes who would be in it, or that is none of persons.
    """
    if not group.get("actual") or group.get("type") != "person":
        message = "only a Group of persons that names its members (actual, type person) can be exported"
        raise AppError(Category.UNSUPPORTED, message, where="Group")
    patients, groups = set(), set()
    for each in group.get("member", ()):
        end = each.get("period", {}).get("end")
        if each.get("inactive") or (end and interval(end).high <= now):
            continue
        reference = each.get("entity", {}).get("reference", "").removeprefix(f"{base_url}/")
        kind, _, identifier = reference.partition("/_history/")[0].partition("/")
        if kind == "Patient":
            patients.add(f"Patient/{identifier}")
        elif kind == "Group":
            groups.add(identifier)
    return patients, groups


def _elements_of(kind: str) -> frozenset[str]:
    return frozenset(name.removesuffix("[x]") for name in elements(kind))


def _of_any_type() -> frozenset[str]:
    return frozenset().union(*(_elements_of(kind) for kind in RESOURCES))


def manifest(
    made: Export, *, moment: datetime, files: Iterable[tuple[str, str, str, int]], parts: Sequence[str]
) -> Json:
    """Return what a client is told of an export that is complete; `files` are part, type, address and count."""
    listed: dict[str, list[Json]] = {part: [] for part in parts}
    for part, kind, url, count in files:
        listed[part].append({"type": kind, "url": url, "count": count})
    return {
        "transactionTime": to_instant(moment),
        "request": made.request,
        "requiresAccessToken": True,
        **listed,
    }
