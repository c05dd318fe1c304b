"""JSON properties of a type: which element each is of, and which data type it holds, choices and `_name` included."""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from fhir_server.model.definitions import Element, elements
from fhir_server.model.primitives import is_primitive


class Property(NamedTuple):
    """What a JSON property holds."""

    element: Element
    kind: str  # data type


@cache
def properties(kind: str) -> Mapping[str, Property]:
    """Return what each JSON property of a type holds, in the order of the elements; that of `_name` is an Element."""
    found: dict[str, Property] = {}
    for element in elements(kind).values():
        for key, one in choices(element):
            found[key] = Property(element, one)
            if is_primitive(one):
                beside = Element(element.name, ("Element",), element.is_array, False, (), 0)
                found[f"_{key}"] = Property(beside, "Element")
    return found


@cache
def choices(element: Element) -> tuple[tuple[str, str], ...]:
    """Return (JSON name, data type) of each type that an element may have."""
    base = element.name.removesuffix("[x]")
    if base == element.name:
        return ((base, element.types[0]),)
    return tuple((base + kind[:1].upper() + kind[1:], kind) for kind in element.types)
