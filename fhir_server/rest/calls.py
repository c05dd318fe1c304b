"""What an operation of the FHIR door is, and one as it is asked for. Source: FHIR R4 operations 3.1.1."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fhir_server.access.audit import Access
from fhir_server.access.principals import Principal
from fhir_server.model import json
from fhir_server.rest.interactions import Backing
from fhir_server.store.repository import Repository
from imaging.errors import AppError, Category

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One operation as it is asked for. `values` has every value of each parameter, in order.

    They are text, as in an address, but for those that may have a structure.

    principal   who asks
    concerned   takes the references of what else was concerned, for the audit record
    """

    server: Backing
    principal: Principal
    repository: Repository
    type: str
    id: str
    values: Mapping[str, list[Any]]
    concerned: list[str] = field(default_factory=list)

    def one(self, name: str, default: Any = None) -> Any:
        """Return the value of a parameter that is given once at most. Raises INVALID for several."""
        found = self.values.get(name, [])
        if len(found) > 1:
            raise AppError(Category.INVALID, f"the parameter {name} is given more than once", where=name)
        return found[0] if found else default

    def number(self, name: str, default: int) -> int:
        """Return a whole number, 0 or more. Raises INVALID."""
        text = self.one(name, str(default))
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise AppError(Category.INVALID, f"{name} has to be a whole number", where=name)
        return int(text)

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return a boolean, which comes as text in an address. Raises INVALID."""
        text = self.one(name, "true" if default else "false")
        if text not in ("true", "false"):
            raise AppError(Category.INVALID, f"{name} has to be true or false", where=name)
        return bool(text == "true")


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation: its name, the addresses that take it, and what it does."""

    name: str
    definition: str  # canonical URL of the OperationDefinition
    perform: Callable[[Call], bytes]
    parameters: frozenset[str]
    types: frozenset[str] = frozenset()  # none: every type
    on_system: bool = False
    on_type: bool = False
    on_instance: bool = False
    structured: frozenset[str] = frozenset()  # parameters whose values may be of a complex type, resources or parts
    body: str = "resource"  # the parameter that a body is which is no Parameters resource
    changes: bool = False  # by POST only
    takes_resource: bool = False  # of a type by POST only
    access: Access = Access.READ

    def methods(self, *, has_id: bool) -> tuple[str, ...]:
        """Return the methods that an address of the operation takes, of a type or with the id of a resource."""
        return ("POST",) if self.changes or (self.takes_resource and not has_id) else ("GET", "POST")


def answer(told: list[Json]) -> bytes:
    """Return what an operation tells as a Parameters resource."""
    return json.dumps({"resourceType": "Parameters", "parameter": told})
