"""The keys by which attributes are matched: what is told of an attribute, as texts that an index compares.

A document that can be searched has three fields, with one index over all of them:

* `keys`     `{tag: text, or list of texts, or items of a sequence}`; "" where the attribute is absent or empty
* `words`    `{tag: words}` of person names, for fuzzy matching
* `moments`  `{tag: moment}` in UTC, of dates with a time and a time zone (see `imaging.dicomweb.moments`)
"""

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, Final

from imaging.archive.attributes import (
    AVAILABLE_TRANSFER_SYNTAX_UID,
    INSTANCE_AVAILABILITY,
    SERIES_INSTANCE_UID,
    SOP_INSTANCE_UID,
    SPECIFIC_CHARACTER_SET,
    STUDY_INSTANCE_UID,
    TIMEZONE_OFFSET_FROM_UTC,
    Attributes,
)
from imaging.dicomweb.moments import TIME_OF, moment_of, zone_of

FIELDS: Final = ("keys", "words", "moments")
EMPTY: Final = ""
MOST_ITEMS: Final = 64
"""Items of a sequence that are matched, at each depth; further ones cannot be found."""
MOST_CHARS: Final = 1024
"""Characters of a text that are compared; longer texts are equal when so many are."""
OWN_FIELDS: Final = frozenset({STUDY_INSTANCE_UID, SERIES_INSTANCE_UID, SOP_INSTANCE_UID, "00080016", "00200013"})
"""Attributes that a document holds in fields of their own, with indexes of their own."""
_WITHOUT_KEY: Final = OWN_FIELDS | {
    SPECIFIC_CHARACTER_SET, TIMEZONE_OFFSET_FROM_UTC, INSTANCE_AVAILABILITY, AVAILABLE_TRANSFER_SYNTAX_UID,
}  # fmt: skip
_DEEPEST: Final = 3
_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")
_NOT_MATCHED: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_SEPARATORS: Final = str.maketrans("^=-,", "    ")


def searchable(attributes: Attributes, table: Iterable[str]) -> dict[str, Any]:
    """Return the fields by which a document with these attributes is found; `table` names those that may be missing."""
    told = {**dict.fromkeys(table, EMPTY), **keys(attributes)}
    found = {tag: told[tag] for tag in sorted(told) if tag not in _WITHOUT_KEY}
    return {"keys": found, "words": _words(attributes), "moments": _moments(attributes)}


def keys(attributes: Attributes, depth: int = 0) -> dict[str, Any]:
    """Return the matching keys of attributes that have values.

    One value is a plain text, several are a list: an index over plain texts can be ranged over and sorted by at once.
    """
    found: dict[str, Any] = {}
    for tag, attribute in attributes.items():
        vr, values = attribute["vr"], attribute.get("Value", ())
        if vr == "SQ" and depth < _DEEPEST:
            items = [keys(item, depth + 1) for item in values[:MOST_ITEMS] if item]
            if any(items):
                found[tag] = [item for item in items if item]
        elif vr != "SQ" and vr not in _NOT_MATCHED:
            texts = [text for value in values if value is not None for text in normalised(vr, value)]
            if texts:
                found[tag] = texts[0] if len(texts) == 1 else texts
    return found


def normalised(vr: str, value: Any) -> list[str]:
    """Return the texts that a value is compared by; more than one for a name in several writings.

    Person names are compared without case and accents, each component group by itself (PS3.4 C.2.2.2.1 and PS3.5
    6.2.1). Dates and times lose the separators of ACR-NEMA. A shorter time compares by its prefix.
    """
    if vr == "PN":
        groups = [value.get(name, "") for name in _GROUPS] if isinstance(value, Mapping) else str(value).split("=")
        return [fold(group.rstrip("^ "))[:MOST_CHARS] for group in groups if group.strip("^ ")]
    text = str(value).strip()
    if vr == "FL":
        text = f"{float(text):.7g}" if _is_number(text) else text
    elif vr == "DA":
        text = text.replace(".", "")
    elif vr == "TM":
        text = text.replace(":", "")
    return [text[:MOST_CHARS]] if text else []


def fold(text: str) -> str:
    """Return text without case and accents."""
    decomposed = unicodedata.normalize("NFD", text.casefold())
    return "".join(char for char in decomposed if not unicodedata.combining(char))


def words_of(name: str) -> list[str]:
    """Return the words of a name, folded."""
    return fold(name).translate(_SEPARATORS).split()


def _words(attributes: Attributes) -> dict[str, list[str]]:
    found = {}
    for tag, attribute in attributes.items():
        if attribute["vr"] == "PN":
            texts = [text for value in attribute.get("Value", ()) if value for text in normalised("PN", value)]
            words = list(dict.fromkeys(word for text in texts for word in words_of(text)))
            if words:
                found[tag] = words
    return found


def _moments(attributes: Attributes) -> dict[str, str]:
    zone = zone_of(str(_first(attributes, TIMEZONE_OFFSET_FROM_UTC)))
    found = {}
    for tag, attribute in attributes.items():
        if attribute["vr"] == "DT":
            found[tag] = moment_of(str(_first(attributes, tag)), zone)
        elif tag in TIME_OF:
            day, time = (normalised(vr, _first(attributes, each)) for vr, each in (("DA", tag), ("TM", TIME_OF[tag])))
            found[tag] = moment_of(day[0] + time[0], zone) if day and time else ""
    return {tag: moment for tag, moment in found.items() if moment}


def _first(attributes: Attributes, tag: str) -> Any:
    values = attributes.get(tag, {}).get("Value") or [""]
    return "" if values[0] is None else values[0]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
