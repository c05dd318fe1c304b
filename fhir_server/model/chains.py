"""Criteria that lead to other resources: chains (`patient.name=x`), `_has`, `_list`, and what `_filter` joins them to.

Pure. A criterion on a referenced resource is never negated as a whole: with a narrower view of what is referenced, more
would be found. Source: FHIR R4 search 3.1.1.4.7 (chained), 3.1.1.4.8 (reverse chained), 3.1.1.5.4 (lists).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from fhir_server.model.criteria import Clause, Limits, Table, check_id, clause
from fhir_server.model.definitions import Parameter, resource_types
from fhir_server.model.fhirpath import leaf_types
from imaging.errors import AppError, Category


@dataclass(frozen=True, slots=True)
class Chain:
    """What `code` refers to has to be of one of the types and to meet the type's criterion."""

    code: str
    targets: "tuple[tuple[str, Criterion], ...]"
    is_canonical: bool = False  # the reference is by URL


@dataclass(frozen=True, slots=True)
class Has:
    """A resource of the type `source` has to meet the criterion and to refer here by `code`."""

    source: str
    code: str
    inner: "Criterion"
    is_canonical: bool = False  # the reference is by URL


@dataclass(frozen=True, slots=True)
class Listed:
    """The resource has to be named by a List."""

    id: str


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every one has to be met."""

    parts: "tuple[Criterion, ...]"


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One at least has to be met."""

    parts: "tuple[Criterion, ...]"


@dataclass(frozen=True, slots=True)
class Not:
    """It must not be met. Holds no criterion that leads to other resources."""

    part: "Criterion"


Criterion = Clause | Chain | Has | Listed | AllOf | AnyOf | Not


@dataclass(frozen=True, slots=True)
class Reading:
    """What criteria are read with."""

    base_url: str = ""
    limits: Limits = field(default_factory=Limits)
    depth: int = 0

    @property
    def table(self) -> Table:
        """Which parameters each type has."""
        return self.limits.table

    def deeper(self, name: str) -> "Reading":
        """Return the same one link further. Raises INVALID beyond the bound."""
        if self.depth >= self.limits.depth:
            raise refused(name, f"a chain has at most {self.limits.depth} links")
        return replace(self, depth=self.depth + 1)


def criterion(resource_type: str, name: str, value: str, reading: Reading) -> Criterion:
    """Parse one criterion of any kind. Raises INVALID, naming the parameter."""
    try:
        found = _criterion(resource_type, name, value, reading)
    except AppError as error:
        if error.where == name:
            raise
        raise refused(name, error.message.removeprefix("search parameter ")) from error
    if size(found) > reading.limits.branches:
        raise refused(name, "it may lead to too many types: name those that you mean, as in subject:Patient.name")
    return found


def _criterion(resource_type: str, name: str, value: str, reading: Reading) -> Criterion:
    if name.startswith("_has:"):
        return _has(resource_type, name, value, reading)
    if name == "_list":
        if value.startswith("$"):
            raise refused(name, "functional lists such as $current-problems are not kept here; name a List by its id")
        return Listed(check_id(value.removeprefix("List/"), where=name))
    head, dot, rest = name.partition(".")
    if dot:
        return _chain(resource_type, head, rest, value, reading.deeper(name))
    return simple(resource_type, name, value, reading)


def simple(resource_type: str, name: str, value: str, reading: Reading) -> Clause:
    """Parse a criterion on the resource itself. Raises INVALID, naming the parameter."""
    return clause(resource_type, name, value, base_url=reading.base_url, limits=reading.limits)


def _chain(resource_type: str, head: str, rest: str, value: str, reading: Reading) -> Chain:
    code, _, modifier = head.partition(":")
    return chain(resource_type, code, modifier, reading, lambda kind: _criterion(kind, rest, value, reading))


def chain(resource_type: str, code: str, wanted: str, reading: Reading, inner: "Callable[[str], Criterion]") -> Chain:
    """Return the chain along a reference; `inner` gives the criterion for a type, and may refuse types.

    wanted   the only type that is meant, "" for all that the parameter may refer to
    """
    parameter = reference(resource_type, code, reading)
    targets = parameter.targets or tuple(sorted(resource_types()))
    if wanted:
        if wanted not in targets:
            raise refused(code, f"it never refers to a {wanted[:64]}")
        targets = (wanted,)
    found: list[tuple[str, Criterion]] = []
    first: AppError | None = None
    for target in targets:
        try:
            found.append((target, inner(target)))
        except AppError as error:
            first = first or error
        if sum(size(part) for _, part in found) > reading.limits.branches:
            raise refused(code, "it may lead to too many types: name those that you mean, as in subject:Patient.name")
    if not found:
        raise first or refused(code, "it refers to nothing")
    return Chain(code, tuple(found), is_canonical(parameter, resource_type))


def _has(resource_type: str, name: str, value: str, reading: Reading) -> Has:
    parts = name.split(":", 3)
    if len(parts) != 4 or parts[1] not in resource_types():
        raise refused(name, "it is written _has:Type:reference:parameter")
    _, source, code, rest = parts
    inner = reading.deeper(name)
    parameter = reference(source, code, inner)
    if parameter.targets and resource_type not in parameter.targets:
        raise refused(name, f"{source} never refers to {resource_type} by {code}")
    return Has(source, code, _criterion(source, rest, value, inner), is_canonical(parameter, source))


def reference(resource_type: str, code: str, reading: Reading) -> Parameter:
    """Return a reference parameter. Raises INVALID for any other."""
    parameter = reading.table(resource_type).get(code)
    if parameter is None or parameter.type != "reference":
        raise refused(code, f"{resource_type} has no reference parameter of this name, so nothing can follow it")
    return parameter


def is_canonical(parameter: Parameter, resource_type: str) -> bool:
    """Say whether a reference parameter names what it refers to by canonical URL."""
    types = leaf_types(parameter.expression, resource_type)
    return bool(types) and types <= {"canonical", "uri"}


def size(criterion: Criterion) -> int:
    """Return how many clauses a criterion comes to."""
    return 1 + sum(size(part) for part in parts(criterion))


def parts(criterion: Criterion) -> "Iterator[Criterion]":
    """Yield what a criterion directly consists of."""
    if isinstance(criterion, Chain):
        yield from (inner for _, inner in criterion.targets)
    elif isinstance(criterion, Has):
        yield criterion.inner
    elif isinstance(criterion, AllOf | AnyOf):
        yield from criterion.parts
    elif isinstance(criterion, Not):
        yield criterion.part


def leads_elsewhere(criterion: Criterion) -> bool:
    """Say whether other resources decide whether a criterion is met."""
    return isinstance(criterion, Chain | Has | Listed) or any(leads_elsewhere(part) for part in parts(criterion))


def refused(name: str, reason: str) -> AppError:
    """Return the error of a search parameter."""
    return AppError(Category.INVALID, f"search parameter {name[:64]}: {reason}", where=name[:64])
