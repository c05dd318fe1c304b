"""FHIRPath Patch: operations in a Parameters resource, each of which changes one place of a resource.

Paths walk by element names, `[n]`, `where(...)`, `first()`, `last()`, `single()`, `extension('url')`, `ofType(T)` and
`as`; what stands in `where(...)` is any FHIRPath but regular expressions. A path is walked along the definitions, so
that choices (`Observation.value`) and extensions of primitives are found where JSON keeps them.
Source: FHIR R4 fhirpatch; published cases: FHIR/fhir-test-cases r4/patch.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fhir_server.model.definitions import Element, elements
from fhir_server.model.fhirpath_places import Effort, Place, places, split_last
from imaging.errors import AppError, Category

Json = dict[str, Any]
Operation = Callable[[Json, Effort], None]  # changes the resource in place

_VALUE = re.compile(r"(_?)value([A-Z][A-Za-z0-9]*)")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]{0,63}")


@dataclass(frozen=True, slots=True)
class _Value:
    """What an operation puts in: a typed value, `sibling` its id and extensions where it is primitive; or parts."""

    type: str = ""  # "" for an anonymous one
    value: Any = None
    sibling: Any = None
    parts: tuple[tuple[str, "_Value"], ...] = ()


@dataclass(frozen=True, slots=True)
class _Request:
    type: str
    path: str
    name: str
    value: _Value | None
    numbers: Mapping[str, int]
    where: str


@dataclass(frozen=True, slots=True)
class _Task:
    """One operation on one resource."""

    resource: Json
    effort: Effort
    asked: _Request


def operations(document: Any) -> list[Operation]:
    """Return the operations in order. Raises INVALID for what is no FHIRPath Patch, naming the operation."""
    if not isinstance(document, dict) or document.get("resourceType") != "Parameters":
        raise AppError(Category.INVALID, "a FHIRPath Patch is a Parameters resource", where="resourceType")
    parameters = document.get("parameter", [])
    if not isinstance(parameters, list):
        raise AppError(Category.INVALID, "`parameter` is a list", where="Parameters.parameter")
    return [_operation(each, f"Parameters.parameter[{number}]") for number, each in enumerate(parameters)]


def _operation(parameter: Any, where: str) -> Operation:
    request = _request(parameter, where)
    do = _DO[request.type]
    return lambda resource, effort: do(_Task(resource, effort, request))


def _request(parameter: Any, where: str) -> _Request:
    if not isinstance(parameter, dict) or parameter.get("name") != "operation":
        raise AppError(Category.INVALID, "each parameter is an `operation`", where=where)
    parts = _parts(parameter, where)
    kind, path = _text(parts, "type", "valueCode", where), _text(parts, "path", "valueString", where)
    if kind not in _NEEDS:
        raise AppError(Category.INVALID, f"the type is one of {', '.join(_NEEDS)}", where=where)
    needed = {"type", "path", *_NEEDS[kind]}
    if wrong := sorted(needed ^ parts.keys()):
        problem = "needs" if wrong[0] in needed else "does not take"
        raise AppError(Category.INVALID, f"{kind} {problem} `{wrong[0][:64]}`", where=where)
    name = _text(parts, "name", "valueString", where) if "name" in needed else ""
    numbers: Mapping[str, int] = {
        each: _number(parts, each, where) for each in ("index", "source", "destination") if each in needed
    }
    value = _value(parts["value"], where) if "value" in needed else None
    return _Request(kind, path, name, value, numbers, where)


# type of operation -> what it needs beside type and path
_NEEDS: Mapping[str, tuple[str, ...]] = {
    "add": ("name", "value"),
    "insert": ("value", "index"),
    "delete": (),
    "replace": ("value",),
    "move": ("source", "destination"),
}


def _parts(parameter: Json, where: str) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for part in _list(parameter.get("part"), where):
        name = part.get("name") if isinstance(part, dict) else None
        if not isinstance(name, str) or name in found:
            raise AppError(Category.INVALID, "each part has a name, and each name one part", where=where)
        found[name] = part
    return found


def _text(parts: Mapping[str, Json], name: str, key: str, where: str) -> str:
    text = parts.get(name, {}).get(key)
    if not isinstance(text, str):
        raise AppError(Category.INVALID, f"`{name}` is needed, as {key}", where=where)
    return text


def _number(parts: Mapping[str, Json], name: str, where: str) -> int:
    number = parts[name].get("valueInteger")
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise AppError(Category.INVALID, f"`{name}` is needed, as valueInteger of 0 or more", where=where)
    return number


def _value(part: Json, where: str) -> _Value:
    """Return the value of a part: `value[x]`, or parts of its own for an anonymous type."""
    found = {match[2]: key for key in part if (match := _VALUE.fullmatch(key))}
    if len(found) == 1 and "part" not in part:
        (kind,) = found
        name = kind if elements(kind) else kind[:1].lower() + kind[1:]
        return _Value(name, part.get(f"value{kind}"), part.get(f"_value{kind}"))
    if not found and "part" in part:
        inner = [each for each in _list(part["part"], where) if isinstance(each, dict)]
        named = [(each["name"], each) for each in inner if isinstance(each.get("name"), str)]
        if named and len(named) == len(part["part"]):
            return _Value(parts=tuple((name, _value(each, where)) for name, each in named))
    raise AppError(Category.INVALID, "`value` is one value[x], or parts with a name and a value each", where=where)


def _list(found: Any, where: str) -> list[Any]:
    if found is None:
        return []
    if not isinstance(found, list):
        raise AppError(Category.INVALID, "`part` is a list", where=where)
    return found


# ---- what is done


def _add(task: _Task) -> None:
    request = task.asked
    place = _only(task, grows=True)
    element = _element(place.kind, request.name, request)
    holder = place.content(request.where)
    value = _required(request)
    key = _key(element, request.name, value, request)
    if element.is_array:
        _insert(holder, key, element, value, _length(holder, key), request)
        return
    if any(_base(name, element) for name in holder):
        raise _conflict(request, "the element is there already, and occurs once")
    _set(holder, key, element, value, request)


def _insert_at(task: _Task) -> None:
    request = task.asked
    parent, name = _collection(task)
    element = _element(parent.kind, name, request)
    if not element.is_array:
        raise _conflict(request, "the path is no list")
    holder = parent.content(request.where)
    length = _length(holder, name)
    if request.numbers["index"] > length:
        raise _conflict(request, f"the list has {length} elements")
    _insert(holder, name, element, _required(request), request.numbers["index"], request)


def _delete(task: _Task) -> None:
    request = task.asked
    found = _found(task)
    if len(found) > 1:
        raise _conflict(request, f"the path leads to {len(found)} elements, one can be deleted")
    for place in found:
        if place.is_root:
            raise _conflict(request, "the resource itself cannot be deleted by a patch")
        place.remove()


def _replace(task: _Task) -> None:
    request = task.asked
    place = _only(task)
    element, value = place.element, _required(request)
    if element is None:
        raise _conflict(request, "the resource itself cannot be replaced by a patch")
    holder, key = place.holder, place.key
    if isinstance(key, int):
        made, sibling = _made(element, value, request)
        place.put(made, sibling)
        return
    # The old value may be of another type, and then lies under another name.
    holder.pop(key, None)
    holder.pop(f"_{key}", None)
    _set(holder, _key(element, element.name.removesuffix("[x]"), value, request), element, value, request)


def _move(task: _Task) -> None:
    request = task.asked
    parent, name = _collection(task)
    holder = parent.content(request.where)
    lists = [each for each in (holder.get(name), holder.get(f"_{name}")) if isinstance(each, list)]
    length = _length(holder, name)
    source, destination = request.numbers["source"], request.numbers["destination"]
    if max(source, destination) >= length:
        raise _conflict(request, f"the list has {length} elements")
    for each in lists:
        each += [None] * (length - len(each))
        each.insert(destination, each.pop(source))


_DO: Mapping[str, Callable[[_Task], None]] = {
    "add": _add,
    "insert": _insert_at,
    "delete": _delete,
    "replace": _replace,
    "move": _move,
}


def _found(task: _Task, path: str | None = None) -> list[Place]:
    try:
        return places(task.resource, task.asked.path if path is None else path, task.effort)
    except AppError as error:
        raise AppError(error.category, error.message, where=task.asked.where) from None


def _only(task: _Task, *, grows: bool = False) -> Place:
    found = _found(task)
    if not found and grows and (grown := _grown(task)):
        return grown
    if len(found) != 1:
        raise _conflict(task.asked, f"the path leads to {len(found) or 'no'} elements, one is wanted")
    return found[0]


def _grown(task: _Task) -> Place | None:
    """Return a new element behind the last one of a list, where the path names the position right behind it."""
    request = task.asked
    match = re.fullmatch(r"(.+)\[(\d{1,6})\]", request.path.strip())
    if match is None:
        return None
    before = split_last(match[1])
    parents = _found(task, before[0]) if before else []
    if before is None or len(parents) != 1:
        return None
    element = _element(parents[0].kind, before[1], request)
    holder = parents[0].content(request.where)
    length = _length(holder, before[1])
    if not element.is_array or int(match[2]) != length:
        return None
    holder.setdefault(before[1], []).append({})
    return _only(task)


def _collection(task: _Task) -> tuple[Place, str]:
    request = task.asked
    split = split_last(request.path)
    if split is None:
        raise AppError(Category.INVALID, "the path of a list ends with the name of an element", where=request.where)
    parents = _found(task, split[0])
    if len(parents) != 1:
        raise _conflict(request, f"the path leads to {len(parents) or 'no'} lists, one is wanted")
    return parents[0], split[1]


def _element(kind: str, name: str, request: _Request) -> Element:
    known = elements(kind) or elements("Element")
    found = known.get(name) or known.get(f"{name}[x]") if _NAME.fullmatch(name) else None
    if found is None:
        raise AppError(Category.INVALID, f"{kind} has no element of this name", where=request.where)
    return found


def _required(request: _Request) -> _Value:
    assert request.value is not None  # noqa: S101 -- `_NEEDS` saw to it
    return request.value


def _key(element: Element, name: str, value: _Value, request: _Request) -> str:
    """Return the JSON name: that of a choice says its type."""
    if not element.name.endswith("[x]"):
        return name
    kind = next((each for each in element.types if each.lower() == value.type.lower()), None)
    if kind is None:
        told = value.type[:64] or "group of parts"
        raise AppError(Category.INVALID, f"{name} cannot be a {told}", where=request.where)
    return name + kind[:1].upper() + kind[1:]


def _base(name: str, element: Element) -> bool:
    plain = name.removeprefix("_")
    if not element.name.endswith("[x]"):
        return plain == element.name
    base = element.name.removesuffix("[x]")
    return any(plain == base + kind[:1].upper() + kind[1:] for kind in element.types)


def _insert(holder: Json, key: str, element: Element, value: _Value, index: int, request: _Request) -> None:
    made, sibling = _made(element, value, request)
    length = _length(holder, key)
    if made is not None or f"_{key}" not in holder:
        _insert_into(holder, key, made, index, length)
    elif key in holder:
        holder[key].insert(index, None)
    if sibling is not None:
        _insert_into(holder, f"_{key}", sibling, index, length)
    elif f"_{key}" in holder and sibling is None:
        holder[f"_{key}"].insert(index, None)


def _insert_into(holder: Json, key: str, item: Any, index: int, length: int) -> None:
    items = holder.setdefault(key, [])
    items += [None] * (length - len(items))
    items.insert(index, item)


def _set(holder: Json, key: str, element: Element, value: _Value, request: _Request) -> None:
    made, sibling = _made(element, value, request)
    for name, item in ((key, made), (f"_{key}", sibling)):
        if item is not None:
            holder[name] = item


def _made(element: Element, value: _Value, request: _Request) -> tuple[Any, Any]:
    """Return the JSON of a value, and of its id and extensions. Raises INVALID for a type that is wrong here."""
    if value.parts:
        kind = next((each for each in element.types if elements(each)), "")
        return dict(_assembled(kind, value, request)), None
    is_complex = bool(elements(value.type))
    if is_complex and value.type not in element.types:
        raise AppError(Category.INVALID, f"a {value.type} is the wrong type here", where=request.where)
    return value.value, value.sibling


def _assembled(kind: str, value: _Value, request: _Request) -> Iterator[tuple[str, Any]]:
    made: Json = {}
    for name, part in value.parts:
        element = _element(kind, name, request)
        key = _key(element, name, part, request)
        if element.is_array:
            _insert(made, key, element, part, _length(made, key), request)
        elif key in made or f"_{key}" in made:
            raise AppError(Category.INVALID, f"{name} occurs once", where=request.where)
        else:
            _set(made, key, element, part, request)
    yield from made.items()


def _length(holder: Json, key: str) -> int:
    """Return how long a list is, of primitives also where only their extensions are there."""
    return max(len(holder.get(key) or ()), len(holder.get(f"_{key}") or ()))


def _conflict(request: _Request, reason: str) -> AppError:
    return AppError(Category.CONFLICT, reason, where=request.where)
