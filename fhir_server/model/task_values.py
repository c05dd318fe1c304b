"""Inputs and outputs of Tasks as plain values. Pure."""

from collections.abc import Mapping
from typing import Any

from fhir_server.model.task import name_of


def values_of(task: Mapping[str, Any], element: str = "input") -> dict[str, list[Any]]:
    """Return the values of the inputs, or of another element of that form, by name, in order."""
    found: dict[str, list[Any]] = {}
    for entry in task.get(element, []):
        found.setdefault(name_of(entry), []).append(value_of(entry))
    return found


def value_of(entry: Mapping[str, Any]) -> Any:
    """Return the value of an input or output as JSON has it: FHIR decimals, which keep their digits, as floats."""
    return next((_plain(value) for name, value in entry.items() if name.startswith("value")), None)


def relative(reference: Any) -> str:
    """Return "Type/id" of a Reference, or of its text, which may be an address; "" where there is none."""
    return "/".join(_text(reference).split("/")[-2:])


def id_of(reference: Any) -> str:
    """Return the id that ends a Reference, or its text; "" where there is none."""
    return _text(reference).rpartition("/")[2]


def _text(reference: Any) -> str:
    return str((reference.get("reference") if isinstance(reference, Mapping) else reference) or "")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | bool | int | None) else float(value)
