"""Parts of a resource: what `_summary` and `_elements` ask for, tagged SUBSETTED so that nobody takes it for the whole.

Source: FHIR R4 search 3.1.1.5.8-3.1.1.5.9. Pure; returns new resources.
"""

from typing import Any

from fhir_server.model.definitions import Element, elements

Json = dict[str, Any]

SUBSETTED = {"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "SUBSETTED"}
ALWAYS = frozenset({"resourceType", "id", "meta"})


def subset(resource: Json, *, summary: str | None = None, names: tuple[str, ...] = ()) -> Json:
    """Return the part that `summary` (true, text or data) or the element names ask for."""
    kind = resource["resourceType"]
    if summary == "true":
        part = _summary(resource, kind)
    elif summary == "text":
        part = _kept(resource, kind, frozenset({"text", "implicitRules", "language"}))
    elif summary == "data":
        part = {name: value for name, value in resource.items() if name != "text"}
    elif names:
        part = _kept(resource, kind, frozenset(names))
    else:
        return resource
    meta = part.get("meta", {})
    tags = [tag for tag in meta.get("tag", ()) if tag.get("code") != SUBSETTED["code"]]
    return {**part, "meta": {**meta, "tag": [*tags, SUBSETTED]}}


def _kept(resource: Json, kind: str, names: frozenset[str]) -> Json:
    """Return the named elements and those that a resource must have."""
    found: Json = {}
    for name, value in resource.items():
        element = _element(kind, name)
        base = element.name.removesuffix("[x]") if element else name
        if name in ALWAYS or base in names or (element is not None and element.minimum > 0):
            found[name] = value
    return found


def _summary(value: Json, path: str) -> Json:
    found: Json = {}
    for name, item in value.items():
        element = _element(path, name)
        if name in ALWAYS:
            found[name] = item
        elif element is not None and element.in_summary:
            is_backbone = len(element.types) == 1 and "." in element.types[0]
            found[name] = _summaries(item, element.types[0]) if is_backbone else item
    return found


def _summaries(item: Any, path: str) -> Any:
    return [_summary(part, path) for part in item] if isinstance(item, list) else _summary(item, path)


def _element(path: str, name: str) -> Element | None:
    """Return the definition of a JSON property: `_name` belongs to `name`, `valueQuantity` to `value[x]`."""
    known = elements(path)
    plain = name.removeprefix("_")
    if plain in known:
        return known[plain]
    for element in known.values():
        base = element.name.removesuffix("[x]")
        if base != element.name and plain.startswith(base):
            suffixes = {kind[:1].upper() + kind[1:] for kind in element.types}
            if plain.removeprefix(base) in suffixes:
                return element
    return None
