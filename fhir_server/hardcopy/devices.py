"""Printers as FHIR Devices: what one can print, as properties, and how it is, as status. Pure.

Who orders reads the Device, and so does this server when it checks an order; the Device of a printer at another site is
kept by the agent there. What a Device does not say is not offered.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fhir_server.model.task import Json
from imaging.errors import AppError, Category
from imaging.film import FILM_SIZES, Medium
from imaging.printer import Capabilities, Reporting, State, Status

PREFIX = "printer-"  # how the id of a printer's Device begins
PRINTER_SYSTEM = "urn:fhir-imaging:printer"  # identifier system: the name by which commands know a printer
PROPERTY = "urn:fhir-imaging:code:printer-property"
REASON = "urn:fhir-imaging:code:printer-status"  # Printer Status Info (2110,0020)
_KIND = "urn:fhir-imaging:code:device-type"
PRINTER = {"system": _KIND, "code": "printer", "display": "Hard-copy printer"}
_STATUS_REASON = "http://terminology.hl7.org/CodeSystem/device-status-reason"
_UCUM = "http://unitsofmeasure.org"
MOST_DETAIL = 200  # characters that a printer says of itself

# state -> Device.status, code of Device.statusReason (FHIR R4 device-status, device-status-reason)
_STATES = {
    State.NORMAL: ("active", "online"),
    State.WARNING: ("active", "online"),
    State.FAILURE: ("active", "not-ready"),
    State.OFFLINE: ("active", "offline"),
}


@dataclass(frozen=True, slots=True)
class _Property:
    """One property: from capabilities to values, and back.

    unit   UCUM; "" for codes
    """

    name: str
    field: str
    unit: str = ""
    read: Callable[[list[Any]], Any] = tuple
    is_several: bool = True


def _first(values: list[Any]) -> Any:
    return values[0]


def _yes(values: list[Any]) -> bool:
    return bool(values[0] == "yes")


def _whole(values: list[Any]) -> tuple[int, ...]:
    return tuple(int(each) for each in values)


def _pair(values: list[Any]) -> tuple[float, float]:
    low, high = values
    return float(low), float(high)


_PROPERTIES = (
    _Property("film-size", "film_sizes"),
    _Property("medium", "media", read=lambda values: tuple(Medium(each) for each in values)),
    _Property("resolution", "dots_per_inch", "/[in_i]", _whole),
    _Property("bits", "bits", "1", _whole),
    _Property("grey", "grey", read=_yes, is_several=False),
    _Property("colour", "colour", read=_yes, is_several=False),
    _Property("most-copies", "most_copies", "1", lambda values: int(values[0]), is_several=False),
    _Property("most-pages", "most_pages", "1", lambda values: int(values[0]), is_several=False),
    _Property("least-margin", "least_margin", "mm", lambda values: float(values[0]), is_several=False),
    _Property("density", "densities", "1", _pair),
    _Property("true-size", "does_true_size", read=_yes, is_several=False),
    _Property("annotation", "does_annotation", read=_yes, is_several=False),
    _Property("attachment", "does_attachments", read=_yes, is_several=False),
    _Property("destination", "destinations"),
    _Property("reporting", "reporting", read=lambda values: Reporting(values[0]), is_several=False),
)


def device_id(name: str) -> str:
    """Return the id of the Device that shows the printer of a name."""
    return f"{PREFIX}{name}"


def is_printer(identifier: str) -> bool:
    """Say whether an id is that of a printer's Device."""
    return identifier.startswith(PREFIX)


def device_of(
    name: str, *, title: str, owner: str, capabilities: Capabilities | None, status: Status | None, is_suspended: bool
) -> Json:
    """Return the Device of a printer.

    title    for people, such as where it stands
    owner    "Organization/..." that runs it, "" for whoever runs this server
    """
    resource: Json = {
        "resourceType": "Device",
        "id": device_id(name),
        "identifier": [{"system": PRINTER_SYSTEM, "value": name}],
        **status_of_device(status, is_suspended=is_suspended),
        "deviceName": [{"name": title or name, "type": "user-friendly-name"}],
        "type": {"coding": [dict(PRINTER)], "text": "Hard-copy printer"},
    }
    if owner:
        resource["owner"] = {"reference": owner}
    if capabilities:
        resource["property"] = properties(capabilities)
    return resource


def status_of_device(status: Status | None, *, is_suspended: bool) -> Json:
    """Return the elements of a Device that say how a printer is; None for one that was not asked yet."""
    if is_suspended:
        return {"status": "inactive", "statusReason": [_reason(_STATUS_REASON, "off", "suspended by the operator")]}
    if status is None:
        return {"status": "unknown"}
    state, reason = _STATES[status.state]
    detail = status.detail[:MOST_DETAIL]
    reasons = [_reason(_STATUS_REASON, reason, detail)]
    reasons += [_reason(REASON, each) for each in status.reasons]
    return {"status": state, "statusReason": reasons}


def status_from_device(device: Mapping[str, Any]) -> Status:
    """Return how a printer is, as its Device says; one that is suspended, or has no Device, prints nothing."""
    told = device.get("statusReason", [])
    code = next((found for each in told if (found := _code(each, _STATUS_REASON))), "")
    detail = next((str(each["text"]) for each in told if "text" in each), "")
    reasons = tuple(found for each in told if (found := _code(each, REASON)))
    if code == "online":
        return Status(State.WARNING if reasons else State.NORMAL, reasons, detail)
    return Status(State.OFFLINE if code == "offline" else State.FAILURE, reasons, detail)


def properties(capabilities: Capabilities) -> list[Json]:
    """Return capabilities as Device.property; what is empty is left out, and means whatever is asked."""
    made = []
    for each in _PROPERTIES:
        value = getattr(capabilities, each.field)
        values = list(value) if each.is_several and value is not None else [value]
        if values and values != [None]:
            made.append({"type": {"coding": [{"system": PROPERTY, "code": each.name}]}, **_values(each, values)})
    return made


def capabilities_of(device: Mapping[str, Any]) -> Capabilities:
    """Return what a Device says that it can print. Raises UNSUPPORTED where it says nothing, INVALID for nonsense."""
    told: dict[str, list[Any]] = {}
    for each in device.get("property", []):
        told[_code(each.get("type", {}), PROPERTY)] = _plain(each)
    if not told:
        message = "the device has not said yet what it can print"
        raise AppError(Category.UNSUPPORTED, message, where="device")
    found: dict[str, Any] = {"film_sizes": (), "media": (), "dots_per_inch": ()}
    for known in _PROPERTIES:
        if values := told.get(known.name):
            try:
                found[known.field] = known.read(values)
            except (ValueError, TypeError, IndexError):
                message = f"the device's property {known.name!r} cannot be read"
                raise AppError(Category.INVALID, message, where="device") from None
    sizes = tuple(each for each in found["film_sizes"] if each in FILM_SIZES)
    return Capabilities(**{**found, "film_sizes": sizes})


def availability(device: Mapping[str, Any]) -> str:
    """Return "" for a Device that takes orders, else why it does not. One that is out of film takes them and waits."""
    if _code({"coding": device.get("type", {}).get("coding", [])}, _KIND) != "printer":
        return "this Device is no printer"
    if device.get("status") == "inactive":
        return "the printer is suspended"
    return "" if device.get("status") in ("active", "unknown") else "the printer is not in use"


def _reason(system: str, code: str, text: str = "") -> Json:
    return {"coding": [{"system": system, "code": code}], **({"text": text} if text else {})}


def _values(each: _Property, values: Iterable[Any]) -> Json:
    if each.unit:
        return {"valueQuantity": [_quantity(value, each.unit) for value in values]}
    words = ("yes" if value is True else "no" if value is False else str(value) for value in values)
    return {"valueCode": [{"coding": [{"system": PROPERTY, "code": word}]} for word in words]}


def _quantity(value: float, unit: str) -> Json:
    return {"value": value, "system": _UCUM, "code": unit} if unit != "1" else {"value": value}


def _plain(entry: Mapping[str, Any]) -> list[Any]:
    quantities = [float(each["value"]) for each in entry.get("valueQuantity", []) if "value" in each]
    return quantities + [_code(each, PROPERTY) for each in entry.get("valueCode", [])]


def _code(concept: Mapping[str, Any], system: str) -> str:
    return next((str(each.get("code", "")) for each in concept.get("coding", []) if each.get("system") == system), "")
