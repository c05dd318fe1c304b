"""Validation of resources that come from outside: three looks, each of which sees what the others miss.

1. HL7's JSON schema: element names, JSON types, forms of primitives, codes of required bindings.
2. Our own walk along the definitions: required elements, choices, nulls and empties, references and their targets.
3. fhir.resources (R4B models, identical to R4 for the types it is used for): calendar dates, ranges of numbers.
Messages name elements, never their values. Source: FHIR R4 json 2.6.2, references 2.3.0, validation.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import jsonschema_rs
import orjson
from fhir.resources.R4B import get_fhir_model_class
from pydantic import ValidationError

from fhir_server.model import json
from fhir_server.model.criteria import ID_FORM
from fhir_server.model.definitions import Element, elements, load, resource_types
from fhir_server.model.outcome import InvalidResource, Issue
from imaging.errors import AppError, Category

Json = dict[str, Any]
Place = tuple[str | int, ...]

MAX_ISSUES = 20
MAX_DEPTH = 64  # levels of nesting
MAX_STRING = 1024 * 1024  # characters. Source: FHIR R4 datatypes, string
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # "SHALL NOT contain", FHIR R4 datatypes, string
_UNBOUNDED = frozenset({"base64Binary", "xhtml"})
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:\S+")


def validate(resource: Any, resource_type: str) -> None:
    """Raise INVALID (`InvalidResource`, with every finding up to 20) unless this is a valid resource of the type."""
    if not isinstance(resource, dict):
        raise AppError(Category.INVALID, "a resource is a JSON object")
    found = resource.get("resourceType")
    if found != resource_type or resource_type not in resource_types():
        message = f"a resource of type {resource_type} is wanted here"
        raise AppError(Category.INVALID, message, where="resourceType")
    issues: dict[str, Issue] = {}
    for look in (_by_definitions, _by_schema, _by_models):
        for issue in look(resource, resource_type):
            issues.setdefault(issue.expression, issue)
            if len(issues) >= MAX_ISSUES:
                break
        if issues and look is _by_schema:
            break  # the models would only repeat it in other words
    if issues:
        raise InvalidResource(tuple(issues.values()), where=resource_type)


def _by_schema(resource: Json, resource_type: str) -> Iterator[Issue]:
    # The schema validator knows plain JSON numbers only.
    plain = orjson.loads(json.dumps(resource))
    for error in _schema(resource_type).iter_errors(plain):
        place = tuple(error.instance_path)
        if not _is_null_with_sibling(plain, place):
            yield Issue("structure", _schema_text(error), _expression(resource_type, place))
    for position, contained in enumerate(_list(resource.get("contained"))):
        kind = contained.get("resourceType") if isinstance(contained, dict) else None
        place = ("contained", position)
        if not isinstance(kind, str) or kind not in resource_types():
            yield Issue("structure", "is not a resource of a known type", _expression(resource_type, place))
        else:
            for issue in _by_schema({**contained, "contained": []} if "contained" in contained else contained, kind):
                inner = issue.expression.removeprefix(kind)
                yield Issue(issue.code, issue.text, _expression(resource_type, place) + inner)


@cache
def _schema(resource_type: str) -> jsonschema_rs.Validator:
    root = {**_open_schema(), "$ref": f"#/definitions/{resource_type}"}
    return jsonschema_rs.validator_for(root)


@cache
def _open_schema() -> Json:
    """Return the schema in which a contained resource is any object: it is looked at by its own type's schema."""
    schema = load("schema")
    definitions = {**schema["definitions"], "ResourceList": {"type": "object"}}
    return {"$schema": schema["$schema"], "definitions": definitions}


def _schema_text(error: jsonschema_rs.ValidationError) -> str:
    kind = type(error.kind).__name__.rpartition("_")[2]
    path = [str(step) for step in error.schema_path]
    if kind == "Enum":
        return "is not a code of the value set that is required here"
    if kind == "Pattern":
        return (
            f"does not have the form of a FHIR {path[1]}" if len(path) == 3 else "does not have the form required here"
        )
    if kind == "Type":
        return "has the wrong JSON type"
    if kind == "AdditionalProperties":
        names = ", ".join(name[:64] for name in getattr(error.kind, "unexpected", [])[:5])
        return f"has elements that FHIR R4 does not define: {names}"
    if kind == "Required":
        return f"lacks the element {getattr(error.kind, 'property', '')}"
    return "does not have the structure that FHIR R4 defines"


def _is_null_with_sibling(resource: Json, place: Place) -> bool:
    """Say whether this is a null in a list of primitives beside an extension, which the published schema forgets."""
    if len(place) < 2 or not isinstance(place[-1], int):
        return False
    parent: Any = resource
    for step in place[:-2]:
        parent = parent[step]
    name, position = place[-2], place[-1]
    if not isinstance(parent, dict) or not isinstance(name, str):
        return False
    siblings = _list(parent.get(f"_{name}" if not name.startswith("_") else name[1:]))
    has_sibling = position < len(siblings) and siblings[position] is not None
    return has_sibling and _list(parent[name])[position] is None


def _by_models(resource: Json, resource_type: str) -> Iterator[Issue]:
    try:
        model = get_fhir_model_class(resource_type)
    except ValueError:
        return  # a type that R4B dropped
    try:
        model.model_validate(resource)
    except ValidationError as error:
        for found in error.errors(include_url=False, include_input=False, include_context=False):
            text = _MODEL_TEXTS.get(found["type"], "does not have the form that FHIR R4 defines")
            yield Issue("structure", text, _expression(resource_type, found["loc"]))


_MODEL_TEXTS: Mapping[str, str] = {
    "missing": "is required",
    "extra_forbidden": "is not defined by FHIR R4",
    "greater_than": "is too small",
    "greater_than_equal": "is too small",
    "less_than": "is too large",
    "less_than_equal": "is too large",
    "date_from_datetime_parsing": "is not a date of the calendar",
}


def _by_definitions(resource: Json, resource_type: str) -> Iterator[Issue]:
    """The walk stays silent about unknown elements, of which the schema speaks."""
    contained = [item.get("id") for item in _list(resource.get("contained")) if isinstance(item, dict)]
    yield from _object(
        resource, resource_type, (resource_type,), frozenset(one for one in contained if isinstance(one, str))
    )


def _object(value: Json, kind: str, place: Place, contained: frozenset[str]) -> Iterator[Issue]:
    if len(place) > MAX_DEPTH:
        yield Issue("too-long", f"is nested deeper than {MAX_DEPTH} levels", _expression("", place[:3]))
        return
    known = elements(kind)
    yield from _required(value, known, place)
    if kind == "Reference":
        yield from _reference(value, place, contained)
    for name, item in value.items():
        found = _typed(known, name)
        if found is None:
            if item is None:
                yield Issue("structure", "is null; leave the element out instead", _expression("", (*place, name)))
            continue
        element, item_kind = found
        yield from _value(item, element, item_kind, (*place, name), contained)


def _value(item: Any, element: Element, kind: str, place: Place, contained: frozenset[str]) -> Iterator[Issue]:
    if item is None or item in ("", [], {}):
        text = "is null" if item is None else "is empty"
        yield Issue("structure", f"{text}; leave the element out instead", _expression("", place))
        return
    for position, one in enumerate(_list(item)):
        where = (*place, position) if isinstance(item, list) else place
        if not isinstance(one, dict):
            yield from _text(one, kind, where)
        elif not one:
            yield Issue("structure", "is empty; leave the element out instead", _expression("", where))
        elif kind == "Resource":
            inner = one.get("resourceType")
            if isinstance(inner, str) and inner in resource_types():
                yield from _object(one, inner, where, contained)
        else:
            yield from _object(one, kind, where, contained)
            if kind == "Reference":
                yield from _target(one, element, where)


def _text(one: Any, kind: str, place: Place) -> Iterator[Issue]:
    if not isinstance(one, str):
        return
    if one == "":
        yield Issue("structure", "is empty", _expression("", place))
    elif _CONTROL.search(one):
        yield Issue("value", "holds control characters", _expression("", place))
    elif len(one) > MAX_STRING and kind not in _UNBOUNDED:
        yield Issue("too-long", f"is longer than {MAX_STRING} characters", _expression("", place))


def _required(value: Json, known: Mapping[str, Element], place: Place) -> Iterator[Issue]:
    for element in known.values():
        if element.name.endswith("[x]"):
            present = {key.removeprefix("_") for key, _ in _choices(element) if key in value or f"_{key}" in value}
            if len(present) > 1:
                text = f"has several values: {', '.join(sorted(present))}"
                yield Issue("structure", text, _expression("", (*place, element.name.removesuffix("[x]"))))
        else:
            present = {element.name} & {key.removeprefix("_") for key in value}
        if element.minimum and not present:
            yield Issue("required", "is required", _expression("", (*place, element.name.removesuffix("[x]"))))


def _reference(value: Json, place: Place, contained: frozenset[str]) -> Iterator[Issue]:
    text = value.get("reference")
    where = _expression("", (*place, "reference"))
    if text is None:
        if not {"identifier", "display", "extension", "_reference"} & value.keys():
            yield Issue("structure", "has neither reference nor identifier nor display", _expression("", place))
    elif not isinstance(text, str):
        return  # the schema says so
    elif text.startswith("#"):
        if text != "#" and text[1:] not in contained:
            yield Issue("not-found", "points to a contained resource that is not there", where)
    elif not _ABSOLUTE.fullmatch(text) and _relative_type(text) is None:
        yield Issue("value", "is neither Type/id nor an absolute URL nor #id", where)


def _target(value: Json, element: Element, place: Place) -> Iterator[Issue]:
    text = value.get("reference")
    found = _relative_type(text) if isinstance(text, str) else None
    if found and element.targets and found not in element.targets and "Resource" not in element.targets:
        wanted = ", ".join(element.targets)
        yield Issue("value", f"refers to a {found}; allowed: {wanted}", _expression("", (*place, "reference")))


def _relative_type(text: str) -> str | None:
    """Return the type of a relative reference, None when it is not one."""
    kind, _, rest = text.partition("/")
    identifier, _, version = rest.partition("/_history/")
    is_reference = kind in resource_types() and ID_FORM.fullmatch(identifier)
    return kind if is_reference and (not version or ID_FORM.fullmatch(version)) else None


def _typed(known: Mapping[str, Element], name: str) -> tuple[Element, str] | None:
    """Return element and data type of a JSON property; those of `_name` are an Element's."""
    plain = name.removeprefix("_")
    if plain in known:
        element = known[plain]
        return element, "Element" if plain != name else element.types[0]
    for element in known.values():
        if element.name.endswith("[x]"):
            for key, kind in _choices(element):
                if key == plain:
                    return element, "Element" if plain != name else kind
    return None


@cache
def _choices(element: Element) -> tuple[tuple[str, str], ...]:
    """Return (JSON name, data type) of each choice of a `[x]` element."""
    base = element.name.removesuffix("[x]")
    return tuple((base + kind[:1].upper() + kind[1:], kind) for kind in element.types)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _expression(resource_type: str, place: Place) -> str:
    """Return a place as FHIRPath, such as `ImagingStudy.series[0].uid`."""
    text = resource_type
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step[:64]}"
    return text.lstrip(".")
