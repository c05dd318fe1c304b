"""The links within a resource, and how to have them point elsewhere. Pure; what has no such link is returned as it is.

Links are `Reference.reference`, elements of type uri and url, and `href` and `src` in narratives; canonical addresses
name definitions and stay. Source: FHIR R4 http 3.1.0.11.2.
"""

import re
from collections.abc import Callable
from enum import Enum
from typing import Any

from fhir_server.model.properties import properties

Json = dict[str, Any]


class Kind(Enum):
    """Where a link stands, which decides what may stand there."""

    REFERENCE = "reference"
    URI = "uri"
    NARRATIVE = "narrative"


Change = Callable[[str, Kind], str]

_ADDRESS = re.compile(r"""(\b(?:href|src)\s*=\s*)(["'])(.*?)\2""", re.I | re.S)


def relinked(resource: Json, change: Change) -> Json:
    """Return the resource with every link as `change` says. It has to be of bounded depth."""
    return _object(resource, str(resource.get("resourceType", "")), change)  # type: ignore[no-any-return]


def _object(value: Any, kind: str, change: Change) -> Any:
    if not isinstance(value, dict):
        return _text(value, kind, change) if isinstance(value, str) else value
    inner = str(value.get("resourceType", kind)) if kind == "Resource" else kind
    known = properties(inner)
    changed: Json = {}
    for name, item in value.items():
        found = known.get(name)
        if found is None:
            continue
        if inner == "Reference" and name == "reference":
            new = change(item, Kind.REFERENCE) if isinstance(item, str) else item
        elif isinstance(item, list):
            new = _items(item, found.kind, change)
        else:
            new = _object(item, found.kind, change)
        if new is not item:
            changed[name] = new
    return {**value, **changed} if changed else value


def _items(items: list[Any], kind: str, change: Change) -> list[Any]:
    made = [_object(item, kind, change) for item in items]
    return made if any(new is not old for new, old in zip(made, items, strict=True)) else items


def _text(text: str, kind: str, change: Change) -> str:
    if kind in ("uri", "url"):
        return change(text, Kind.URI)
    if kind == "xhtml" and ("href" in text or "src" in text):
        return _ADDRESS.sub(lambda match: match[1] + match[2] + change(match[3], Kind.NARRATIVE) + match[2], text)
    return text
