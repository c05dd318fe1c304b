"""Patches: a document that says what to change becomes a function from a resource to the changed one.

JSON Patch (RFC 6902) and FHIRPath Patch (`fhirpath_patch`). Pure. A patch that is wrong in itself is INVALID (400); one
that does not fit the resource as it is is a CONFLICT (409); one whose result is no valid resource is INVALID at "patch"
(422). Source: FHIR R4 http 3.1.0.6, RFC 5789 2.2.
"""

import copy
from collections.abc import Callable
from typing import Any

import jsonpatch
import jsonpointer

from fhir_server.model import json
from fhir_server.model.fhirpath_patch import operations as fhirpath_operations
from fhir_server.model.fhirpath_places import Effort
from fhir_server.model.outcome import InvalidResource
from fhir_server.model.validation import MAX_DEPTH, validate
from imaging.errors import AppError, Category

Json = dict[str, Any]
Change = Callable[[Json], Json]

JSON_PATCH = "application/json-patch+json"
MOST_OPERATIONS = 1000
WHERE = "patch"  # of what the door calls 422

_OPERATIONS = {
    # operation -> members that it needs beside `path`
    "add": {"value"},
    "remove": set[str](),
    "replace": {"value"},
    "move": {"from"},
    "copy": {"from"},
    "test": {"value"},
}


def json_patch(document: Any, *, most_bytes: int) -> Change:
    """Return what a JSON Patch does. `most_bytes` bounds what its copies make. Raises INVALID, naming the operation."""
    if not isinstance(document, list):
        raise AppError(Category.INVALID, "a JSON Patch is a list of operations", where="body")
    _check_count(document)
    for number, each in enumerate(document):
        _check_operation(each, f"operation {number}")
    return lambda resource: _applied(document, resource, most_bytes)


def fhirpath_patch(document: Any) -> Change:
    """Return what a FHIRPath Patch, a Parameters resource, does. Raises INVALID, naming the operation."""
    if isinstance(document, dict):
        _check_count(document.get("parameter", []))
    done = fhirpath_operations(document)

    def change(resource: Json) -> Json:
        changed, effort = copy.deepcopy(resource), Effort()
        for each in done:
            each(changed, effort)
        return changed

    return change


def patched(resource: Json, change: Change) -> Json:
    """Return the resource as it is after a patch: valid, of the same identity, and with no narrative that lies."""
    changed = change(resource)
    if not isinstance(changed, dict):
        raise AppError(Category.INVALID, "what the patch makes is no resource", where=WHERE)
    json.check_depth(changed, MAX_DEPTH)
    for name in ("resourceType", "id"):
        if changed.get(name) != resource.get(name):
            raise AppError(Category.INVALID, f"a patch cannot change {name}", where=WHERE)
    changed = _with_true_narrative(resource, changed)
    try:
        validate(changed, resource["resourceType"])
    except InvalidResource as error:
        raise InvalidResource(error.issues, where=WHERE) from None
    return changed


def _with_true_narrative(before: Json, after: Json) -> Json:
    """Drop a narrative that was made from data that is different now. Source: FHIR R4 http 3.1.0.6."""
    kept = before.get("text")
    is_same_text = kept is not None and after.get("text") == kept
    if not is_same_text or _content(before) == _content(after):
        return after
    status = kept.get("status") if isinstance(kept, dict) else None
    if status == "additional":
        message = "the narrative says more than the data: change it in the same patch, or send the whole resource"
        raise AppError(Category.INVALID, message, where=WHERE)
    return after if status == "empty" else {name: value for name, value in after.items() if name != "text"}


def _content(resource: Json) -> Json:
    return {name: value for name, value in resource.items() if name != "meta"}


def _check_count(operations: Any) -> None:
    if isinstance(operations, list) and len(operations) > MOST_OPERATIONS:
        message = f"{len(operations)} operations, at most {MOST_OPERATIONS} are accepted"
        raise AppError(Category.INVALID, message, where="body")


def _check_operation(operation: Any, where: str) -> None:
    kind = operation.get("op") if isinstance(operation, dict) else None
    if not isinstance(kind, str) or kind not in _OPERATIONS:
        raise AppError(Category.INVALID, f"`op` is one of {', '.join(_OPERATIONS)}", where=where)
    for name in ("path", *sorted(_OPERATIONS[kind])):
        if name not in operation:
            raise AppError(Category.INVALID, f"{kind} needs `{name}`", where=where)
    for name in ("path", "from"):
        try:
            jsonpointer.JsonPointer(operation.get(name, ""))
        except (jsonpointer.JsonPointerException, TypeError, AttributeError):
            raise AppError(Category.INVALID, f"`{name}` is no JSON Pointer", where=where) from None


def _applied(operations: list[Json], resource: Json, most_bytes: int) -> Json:
    changed: Any = copy.deepcopy(resource)
    left = most_bytes
    for number, operation in enumerate(operations):
        where = f"operation {number}"
        try:
            if operation["op"] == "copy":
                # A copy of the whole into a part of it, again and again, would grow without bounds.
                left -= len(json.dumps(jsonpointer.resolve_pointer(changed, operation["from"])))
            if left < 0:
                raise AppError(Category.TOO_LARGE, f"the copies make more than {most_bytes} bytes", where=where)
            if operation["op"] == "test":
                _check_equal(jsonpointer.resolve_pointer(changed, operation["path"]), operation["value"], where)
            else:
                changed = jsonpatch.apply_patch(changed, [operation], in_place=True)
        except (RecursionError, ValueError) as error:
            if isinstance(error, RecursionError):
                raise AppError(Category.INVALID, "what the patch makes is nested too deeply", where=where) from None
            raise AppError(Category.CONFLICT, "the place is not there in the resource as it is", where=where) from None
        except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException, TypeError, KeyError, IndexError):
            raise AppError(Category.CONFLICT, "the place is not there in the resource as it is", where=where) from None
    return changed  # type: ignore[no-any-return]


def _check_equal(found: Any, wanted: Any, where: str) -> None:
    # To Python 1 is True; to JSON it is not.
    if found != wanted or isinstance(found, bool) != isinstance(wanted, bool):
        raise AppError(Category.CONFLICT, "the test fails on the resource as it is", where=where)
