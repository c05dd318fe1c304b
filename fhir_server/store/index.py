"""A resource becomes typed search rows: what the database matches against.

Array rows `{p: parameter code, ...}` by kind: `tok` (s system, c code), `ref` (r reference), `str` (v folded, e exact),
`dat` and `num` (l low, h high), `qty` (l, h, s, c, u unit; in UCUM base units once more), `uri` (u), `com` (a, b, c: a
row per component). Beside them `sort` holds the interval of every date that occurs once at most, `compartments` their
names, `near` the place of a Location, and `inside` the rows of each contained resource (t its type, i its id).
Pure. A value that does not fit its type gives no row: resources from outside were validated before.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from itertools import islice, product
from typing import Any

from fhir_server.model import dates, fhirpath, ucum
from fhir_server.model.criteria import Number, Table
from fhir_server.model.definitions import Parameter, compartments, parameters, resource_types
from fhir_server.model.query import OWN_FIELDS, is_scalar_date
from imaging.errors import AppError

Row = dict[str, Any]

ARRAYS = {
    "token": "tok",
    "reference": "ref",
    "string": "str",
    "date": "dat",
    "number": "num",
    "quantity": "qty",
    "uri": "uri",
    "composite": "com",
}
PARTS = "abc"  # names of the components in a composite row
MAX_TEXT = 512  # characters of a string that are kept for search
MAX_COMBINATIONS = 100  # composite rows of one element
RESTRICTION_PERIOD = "restriction-period"
# For whom something was done. The code is none that a SearchParameter of a client can have: access hangs on it.
ON_BEHALF_OF = Parameter("_on-behalf-of", "reference", "", "Provenance.agent.onBehalfOf")
# Whose readers alone may read a Binary.
SECURITY_CONTEXT = Parameter("_security-context", "reference", "", "Binary.securityContext")
# Rows by which no client searches, only this server itself.
HIDDEN = {
    "Task": (Parameter(RESTRICTION_PERIOD, "date", "", "Task.restriction.period"),),
    "Provenance": (ON_BEHALF_OF,),
    "Binary": (SECURITY_CONTEXT,),
}
MAX_CONTAINED = 100  # contained resources that can be found
CANONICAL = "ucum"  # marks rows of quantities in base units: in the place of the system, or after the parameter's code
PHONETIC = "phonetic"  # the string parameter that compares sounds


def rows(resource: dict[str, Any], *, base_url: str = "", table: Table = parameters) -> dict[str, Any]:
    """Return the search fields of a resource's document; kinds without rows are left out.

    base_url    this server's FHIR base: absolute references to it count as relative ones
    table       the search parameters of each type
    """
    fields = _rows(resource, base_url, table)
    names = _compartments(resource, fields.get("ref", []))
    if names:
        fields["compartments"] = names
    inside = [
        {"t": item["resourceType"], "i": str(item.get("id", "")), **_rows(item, base_url, table)}
        for item in islice(resource.get("contained", ()), MAX_CONTAINED)
        if isinstance(item, dict) and item.get("resourceType") in resource_types()
    ]
    return {**fields, "inside": inside} if inside else fields


def _rows(resource: dict[str, Any], base_url: str, table: Table) -> dict[str, Any]:
    kind = resource["resourceType"]
    found: dict[str, dict[tuple[Any, ...], Row]] = {}
    scalars: Row = {}
    for parameter in (*table(kind).values(), *HIDDEN.get(kind, ())):
        if parameter.type not in ARRAYS or parameter.code in OWN_FIELDS:
            continue
        for array, row in _parameter_rows(parameter, kind, resource, base_url):
            # The same value often occurs in every series or instance: one row is enough.
            found.setdefault(array, {}).setdefault(_key(row), row)
            if array == "dat" and is_scalar_date(kind, parameter.code):
                scalars[parameter.code] = {"l": row["l"], "h": row["h"]}
    fields: dict[str, Any] = {array: list(kept.values()) for array, kept in found.items()}
    if scalars:
        fields["sort"] = scalars
    return {**fields, **_place(resource)}


def _place(resource: dict[str, Any]) -> dict[str, Any]:
    """Return the point of a Location that has a position on the earth."""
    position = resource.get("position") if resource["resourceType"] == "Location" else None
    if not isinstance(position, dict):
        return {}
    if position.get("longitude") is None or position.get("latitude") is None:
        return {}
    east, north = float(position["longitude"]), float(position["latitude"])
    return {"near": {"type": "Point", "coordinates": [east, north]}} if abs(east) <= 180 and abs(north) <= 90 else {}


def fold(text: str) -> str:
    """Return text as string search compares it: without case, accents and runs of white space."""
    decomposed = unicodedata.normalize("NFKD", text[:MAX_TEXT])
    plain = "".join(character for character in decomposed if not unicodedata.combining(character))
    return " ".join(plain.casefold().split())


def sound(word: str) -> str:
    """Return how a word sounds, by Soundex: `Robert` and `Rupert` are R163. Letters beyond A to Z are left out."""
    letters = [letter for letter in fold(word) if "a" <= letter <= "z"]
    if not letters:
        return ""
    digits, last = [], _SOUNDS.get(letters[0], "")
    for letter in letters[1:]:
        digit = _SOUNDS.get(letter, "")
        if digit and digit != last:
            digits.append(digit)
        if letter not in "hw":
            last = digit
    return (letters[0].upper() + "".join(digits) + "000")[:4]


_GROUPS = {"1": "bfpv", "2": "cgjkqsxz", "3": "dt", "4": "l", "5": "mn", "6": "r"}
_SOUNDS = {letter: digit for digit, letters in _GROUPS.items() for letter in letters}


def _parameter_rows(parameter: Parameter, kind: str, resource: Row, base_url: str) -> Iterator[tuple[str, Row]]:
    for value_type, value in fhirpath.compile(parameter.expression, kind)(resource):
        if parameter.type == "composite":
            made: Iterable[Row] = _composite_rows(parameter, value_type, value, base_url)
        else:
            made = _value_rows(parameter.type, value_type, value, base_url)
        if parameter.code == PHONETIC:
            made = [{"v": sound(word), "e": word} for row in made for word in row["e"].split() if sound(word)]
        for row in made:
            if parameter.type == "quantity" and row.get("s") == CANONICAL:
                base = {name: item for name, item in row.items() if name != "s"}
                yield "qty", {"p": f"{parameter.code}:{CANONICAL}", **base}
            else:
                yield ARRAYS[parameter.type], {"p": parameter.code, **row}
        yield from _side_rows(parameter, value)


def _value_rows(search_type: str, value_type: str, value: Any, base_url: str) -> Iterator[Row]:
    if search_type == "reference":
        return _reference_rows(value, base_url)
    return _ROWS[search_type](value)


def _side_rows(parameter: Parameter, value: Any) -> Iterator[tuple[str, Row]]:
    """Rows for the modifiers `:text` and `:of-type` of tokens and `:identifier` of references."""
    if parameter.type == "token" and isinstance(value, dict):
        for text in _display_texts(value):
            yield "str", {"p": f"{parameter.code}:text", **_string_row(text)}
        for coding in _type_codings(value):
            typed = {"s": coding["system"], "c": f"{coding['code']}|{value['value']}"}
            yield "tok", {"p": f"{parameter.code}:of-type", **typed}
    if parameter.type == "reference" and isinstance(value, dict) and isinstance(value.get("identifier"), dict):
        for row in _token_rows(value["identifier"]):
            yield "tok", {"p": f"{parameter.code}:identifier", **row}


def _type_codings(value: Row) -> list[Row]:
    kind = value.get("type")
    if not isinstance(kind, dict) or not isinstance(value.get("value"), str):
        return []
    return [each for each in kind.get("coding", ()) if each.get("system") and each.get("code")]


def _composite_rows(parameter: Parameter, context: str, value: Row, base_url: str) -> Iterator[Row]:
    columns: list[list[Row]] = []
    for (_, expression), kind in zip(parameter.components, parameter.component_types, strict=True):
        parts = fhirpath.compile(expression, context)(value)
        columns.append([row for part_type, part in parts for row in _value_rows(kind, part_type, part, base_url)])
    for combination in islice(product(*columns), MAX_COMBINATIONS):
        yield dict(zip(PARTS, combination, strict=False))


def _token_rows(value: Any) -> Iterator[Row]:
    if isinstance(value, bool):
        yield {"c": str(value).lower()}
    elif isinstance(value, str):
        yield {"c": value}
    elif isinstance(value, dict):
        if "coding" in value:
            for coding in value["coding"]:
                yield from _token_rows(coding)
        # Identifier and ContactPoint have a value, Coding has a code; the system of a ContactPoint is not a namespace.
        is_contact = "value" in value and value.get("system") in _CONTACT_SYSTEMS
        code, system = value.get("code", value.get("value")), value.get("system")
        if isinstance(code, str):
            yield {"c": code} if system is None or is_contact else {"s": system, "c": code}
        elif isinstance(system, str) and not is_contact:
            yield {"s": system}


_CONTACT_SYSTEMS = frozenset({"phone", "fax", "email", "pager", "url", "sms", "other"})


def _reference_rows(value: Any, base_url: str) -> Iterator[Row]:
    text = value.get("reference") if isinstance(value, dict) else value
    if not isinstance(text, str) or text.startswith("#"):
        return
    if base_url:
        text = text.removeprefix(base_url.rstrip("/") + "/")
    yield {"r": text}
    if "/_history/" in text:  # a reference to a version is one to the resource, too
        yield {"r": text.partition("/_history/")[0]}
    if isinstance(value, str) and "|" in text:  # a canonical is found with and without its version
        yield {"r": text.partition("|")[0]}


def _date_rows(value: Any) -> Iterator[Row]:
    low, high = _interval(value)
    if low is not None and high is not None:
        yield {"l": low, "h": high}


def _interval(value: Any) -> tuple[Any, Any]:
    """Return low and high of a date, Period or Timing; (None, None) when it is neither or has no date."""
    try:
        if isinstance(value, str):
            return dates.interval(value)
        if not isinstance(value, dict):
            return None, None
        if "event" in value or "repeat" in value:
            events = [dates.interval(event) for event in value.get("event", ())]
            bounds = value.get("repeat", {}).get("boundsPeriod")
            ends = [*events, *([_interval(bounds)] if bounds else [])]
            return (min(end[0] for end in ends), max(end[1] for end in ends)) if ends else (None, None)
        if "start" not in value and "end" not in value:
            return None, None
        low = dates.interval(value["start"]).low if "start" in value else dates.EARLIEST
        return low, dates.interval(value["end"]).high if "end" in value else dates.LATEST
    except AppError:
        return None, None


def _string_rows(value: Any) -> Iterator[Row]:
    if isinstance(value, str):
        yield _string_row(value)
    elif isinstance(value, dict):
        for name in _TEXT_PARTS:
            parts = value.get(name, ())
            for part in parts if isinstance(parts, list) else [parts]:
                if isinstance(part, str):
                    yield _string_row(part)
        for coding in value.get("coding", ()):
            yield from _string_rows(coding)


# of HumanName, Address, CodeableConcept and Coding
_TEXT_PARTS = [
    "family",
    "given",
    "prefix",
    "suffix",
    "text",
    "line",
    "city",
    "district",
    "state",
    "postalCode",
    "country",
    "display",
]


def _string_row(text: str) -> Row:
    return {"v": fold(text), "e": text[:MAX_TEXT]}


def _display_texts(value: Row) -> Iterator[str]:
    for name in ("text", "display"):
        if isinstance(value.get(name), str):
            yield value[name]
    for coding in value.get("coding", ()):
        yield from _display_texts(coding)
    if isinstance(value.get("type"), dict):
        yield from _display_texts(value["type"])


def _number_rows(value: Any) -> Iterator[Row]:
    if isinstance(value, dict):  # a Range
        for row in _quantity_rows(value):
            if row.get("s") != CANONICAL:
                yield {name: row[name] for name in "lh" if name in row}
    elif isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        yield {"l": float(value), "h": float(value)}


def _quantity_rows(value: Any) -> Iterator[Row]:
    if not isinstance(value, dict):
        return
    if "low" in value or "high" in value:
        sides = [value.get("low") or {}, value.get("high") or {}]
        low, high = (side.get("value") for side in sides)
        unit = sides[0] or sides[1]
        span = (float("-inf") if low is None else float(low), float("inf") if high is None else float(high))
    elif value.get("value") is None:
        return
    else:
        unit, span = value, (float(value["value"]), float(value["value"]))
    if "currency" in value:
        unit = {"system": "urn:iso:std:iso:4217", "code": value["currency"]}
    row = {"l": span[0], "h": span[1], "s": unit.get("system"), "c": unit.get("code"), "u": unit.get("unit")}
    yield from _ends({name: item for name, item in row.items() if item is not None})
    base = base_units(unit.get("system"), unit.get("code"))
    if base is not None:
        low, high = (base.measured(end) for end in span)
        yield from _ends({"l": low, "h": high, "s": CANONICAL, "c": base.dimension})


def base_units(system: str | None, code: str | None) -> ucum.Unit | None:
    """Return the UCUM unit of a quantity, None for one of another system or one that is not known."""
    if system != ucum.SYSTEM or not code:
        return None
    try:
        return ucum.parse(code)
    except AppError:
        return None


def canonical(number: Number, unit: ucum.Unit) -> Number:
    """Return a number in base units."""
    value, low, high = (unit.measured(end) for end in number[1:])
    return Number(number.prefix, value, low, high)


def _ends(row: Row) -> Iterator[Row]:
    yield row
    if row["l"] != row["h"]:  # see `filters`: the high end of a range, where "greater than" can find it
        yield {name: row["h"] if name == "l" else item for name, item in row.items() if name != "h"}


def _uri_rows(value: Any) -> Iterator[Row]:
    if isinstance(value, str):
        yield {"u": value}


def _compartments(resource: Row, references: list[Row]) -> list[str]:
    kind = resource["resourceType"]
    found: dict[str, None] = {}
    for compartment, codes in compartments(kind).items():
        if compartment == kind and "id" in resource:
            found[f"{kind}/{resource['id']}"] = None
        for row in references:
            if row["p"] in codes and row["r"].startswith(f"{compartment}/"):
                found[row["r"]] = None
    return list(found)


def _key(row: Row) -> tuple[Any, ...]:
    return tuple((name, _key(item) if isinstance(item, dict) else item) for name, item in row.items())


_ROWS: dict[str, Callable[[Any], Iterator[Row]]] = {
    "token": _token_rows,
    "date": _date_rows,
    "string": _string_rows,
    "number": _number_rows,
    "quantity": _quantity_rows,
    "uri": _uri_rows,
    # a component of a composite: inside one resource only literal references matter
    "reference": lambda value: _reference_rows(value, ""),
}
