"""Search parameters that clients define: a SearchParameter resource becomes parameters as the official ones are.

What cannot be indexed is refused with the reason. Pure. Source: FHIR R4 searchparameter.
"""

import re
from collections.abc import Mapping
from typing import Any

from fhir_server.model import fhirpath
from fhir_server.model.definitions import NOT_DOMAIN_RESOURCES, Parameter, parameters
from fhir_server.model.resources import RESOURCES
from imaging.errors import AppError, Category

Json = Mapping[str, Any]

MOST_BASES = 200  # resource types that one is for
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9\-]{0,63}")
# data types that give rows, by type of parameter
_INDEXED: Mapping[str, frozenset[str]] = {
    "token": frozenset(
        {"code", "Coding", "CodeableConcept", "Identifier", "ContactPoint", "boolean", "string", "id", "uri"}
    ),
    "reference": frozenset({"Reference", "canonical", "uri"}),
    "string": frozenset({"string", "markdown", "HumanName", "Address", "CodeableConcept", "Coding", "code", "id"}),
    "date": frozenset({"date", "dateTime", "instant", "Period", "Timing"}),
    "number": frozenset({"integer", "decimal", "positiveInt", "unsignedInt", "Range"}),
    "quantity": frozenset({"Quantity", "Range", "Money", "Age", "Duration", "Count", "Distance", "SimpleQuantity"}),
    "uri": frozenset({"uri", "url", "canonical", "oid", "uuid"}),
}


def is_active(resource: Json) -> bool:
    """Say whether a SearchParameter is in use."""
    return resource.get("status") == "active"


def parameters_of(resource: Json) -> dict[str, Parameter]:
    """Return the parameter that a SearchParameter defines, by resource type. Raises INVALID with the reason."""
    code, kind = str(resource.get("code", "")), str(resource.get("type", ""))
    if not _CODE.fullmatch(code):
        raise _refused("code", "a code begins with a letter and has up to 64 letters, digits and hyphens")
    if kind not in _INDEXED:
        known = ", ".join(sorted(_INDEXED))
        raise _refused("type", f"parameters of this type cannot be added here; those that can: {known}")
    expression = str(resource.get("expression", ""))
    if not expression:
        raise _refused("expression", "without an expression nothing can be indexed")
    found = {}
    for name in _bases(resource):
        if code in parameters(name):
            raise _refused("code", f"{name} has a parameter of this code already")
        found[name] = _parameter(resource, name, code, kind, expression)
    return found


def _bases(resource: Json) -> list[str]:
    found: dict[str, None] = {}
    for name in resource.get("base", ()):
        if name in {"Resource", "DomainResource"}:
            found |= dict.fromkeys(each for each in RESOURCES if name == "Resource" or each not in NOT_DOMAIN_RESOURCES)
        elif name in RESOURCES:
            found[name] = None
        else:
            raise _refused("base", f"this server keeps no {str(name)[:64]} resources")
    if not found or len(found) > MOST_BASES:
        raise _refused("base", "the resource types that it is for are wanted")
    return list(found)


def _parameter(resource: Json, name: str, code: str, kind: str, expression: str) -> Parameter:
    made = Parameter(code, kind, str(resource.get("url", "")), expression, tuple(resource.get("target", ())))
    try:
        fhirpath.compile(expression, name)({"resourceType": name})
    except AppError as error:
        raise _refused("expression", f"for {name}: {error.message}") from error
    types = fhirpath.leaf_types(expression, name)
    if types and not types & _INDEXED[kind]:
        told = ", ".join(sorted(types))
        raise _refused("expression", f"it gives {told} of a {name}, which a parameter of type {kind} cannot index")
    if not fhirpath.may_give(expression, name):
        raise _refused("expression", f"a {name} has no such element")
    return made


def _refused(name: str, reason: str) -> AppError:
    where = f"SearchParameter.{name}"
    return AppError(Category.INVALID, f"{where}: {reason}", where=where)
