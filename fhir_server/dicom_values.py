"""DICOM text values as FHIR data types: dates, times with their zones, person names, identifier systems.

Pure. What a standard form cannot say is left out rather than invented: a malformed date gives None, a time without a
known zone gives the date alone. Sources: PS3.5 6.2 (value representations), PS3.3 C.12.1.1.8 (Timezone Offset From
UTC), FHIR R4 datatypes.
"""

import re
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from typing import Any

V2_0203 = "http://terminology.hl7.org/CodeSystem/v2-0203"  # identifier types
NAME_REPRESENTATION = "http://hl7.org/fhir/StructureDefinition/iso21090-EN-representation"

_DATE = re.compile(r"(\d{4})(?:(\d{2})(\d{2})|[.\-/](\d{2})[.\-/](\d{2}))")  # DA, and the dotted form of ACR-NEMA 2
_TIME = re.compile(r"(\d{2})(?::?(\d{2})(?::?(\d{2})(?:\.(\d{1,6}))?)?)?")  # TM, and the form with colons
_OFFSET = re.compile(r"([+-])(\d{2})(\d{2})")
_OID = re.compile(r"[0-2](?:\.(?:0|[1-9]\d*))+")
_URI = re.compile(r"(?:https?://|urn:)[^\s]+", re.IGNORECASE)
_NAMESPACE = uuid.UUID("9a3f5d5e-3a0b-5c1e-8a55-2f6c1d0e7b41")  # of the identifier systems that this server makes
_GROUPS = ("ABC", "IDE", "SYL")  # component groups of PN in order: PS3.5 6.2.1.1; codes of iso21090
_DIVIDERS = re.compile(r"[\^=\\]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


def clean(text: str) -> str:
    """Return `text` with control characters and surrounding space gone, as a FHIR string needs it."""
    return _CONTROL.sub(" ", text).strip()


def fhir_date(da: str) -> str | None:
    """Return the FHIR date of a DA value, or None when it names no day of the calendar."""
    day = _day(da)
    return day.isoformat() if day else None


def fhir_datetime(da: str, tm: str, offset: str, zone: tzinfo | None) -> str | None:
    """Return the FHIR dateTime of a date, a time and the zone they were written in.

    offset   Timezone Offset From UTC as received ("+0100"), "" when absent
    zone     zone of the place the images come from, used when there is no offset; None when it is not known

    The date alone is returned when the time is absent, malformed or given to the hour only, or when no zone is known,
    because FHIR asks a zone of every time. A leap second is written as the second before it.
    """
    day = _day(da)
    if day is None:
        return None
    match = _TIME.fullmatch(tm.strip())
    when_zone = _zone(offset) or zone
    if match is None or match[2] is None or when_zone is None:
        return day.isoformat()
    hour, minute, second = int(match[1]), int(match[2]), min(int(match[3] or 0), 59)
    if hour > 23 or minute > 59 or int(match[3] or 0) > 60:
        return day.isoformat()
    when = datetime(day.year, day.month, day.day, hour, minute, second, int((match[4] or "0").ljust(6, "0")), when_zone)
    return when.isoformat(timespec="microseconds" if when.microsecond else "seconds")


def instant_from_datetime(value: str) -> datetime | None:
    """Return the aware UTC moment of a FHIR dateTime that has a time, None for a date alone."""
    if "T" not in value:
        return None
    return datetime.fromisoformat(value).astimezone(UTC)


def human_names(pn: str) -> list[dict[str, Any]]:
    """Return the FHIR HumanName of each component group of a PN value that is not empty.

    With more than one group, or when the only one is not alphabetic, each carries its representation (alphabetic,
    ideographic, phonetic) in the standard extension.   Source: PS3.5 6.2.1.1.
    """
    groups = [(code, group) for code, group in zip(_GROUPS, pn.split("="), strict=False) if group.strip(" ^")]
    plain = len(groups) == 1 and groups[0][0] == "ABC"
    names = []
    for code, group in groups:
        name = _human_name(group)
        if not plain:
            name["extension"] = [{"url": NAME_REPRESENTATION, "valueCode": code}]
        names.append(name)
    return names


def pn_of(names: list[dict[str, Any]]) -> str:
    """Return a PN value of FHIR HumanNames: the other way round from `human_names`.

    The first name counts, and of those that carry their representation the first of each. What has no family or given
    name is written as its text. Characters that divide a PN become spaces. Source: PS3.5 6.2.1.1.
    """
    groups: dict[str, str] = {}
    for name in names:
        codes = [each.get("valueCode") for each in name.get("extension", []) if each.get("url") == NAME_REPRESENTATION]
        groups.setdefault(next((code for code in codes if code in _GROUPS), _GROUPS[0]), _pn_group(name))
    return "=".join(groups.get(code, "") for code in _GROUPS).rstrip("=")


def _pn_group(name: dict[str, Any]) -> str:
    given = [str(each) for each in name.get("given", [])]
    prefix, suffix = (" ".join(name.get(part, [])) for part in ("prefix", "suffix"))
    parts = [str(name.get("family", "")), *given[:1], *[""] * (not given), " ".join(given[1:]), prefix, suffix]
    written = [clean(_DIVIDERS.sub(" ", part)) for part in parts]
    return "^".join(written).rstrip("^") or clean(_DIVIDERS.sub(" ", str(name.get("text", ""))))


def display_name(pn: str) -> str:
    """Return a PN value as people write it ("Dr Ada King"), "" when it is empty."""
    names = human_names(pn)
    return str(names[0]["text"]) if names else ""


def universal_system(issuer: str) -> str | None:
    """Return the identifier system that an issuer names for the whole world, None for a merely local name.

    An OID, a UUID or a URI is universal; "HIS" is not, because another hospital may use the same word.
    """
    text = issuer.strip()
    if _OID.fullmatch(text) and len(text) <= 64:
        return f"urn:oid:{text}"
    if _URI.fullmatch(text):
        return text
    try:
        return f"urn:uuid:{uuid.UUID(text)}"
    except ValueError:
        return None


def local_system(kind: str, assigner: str, issuer: str = "") -> str:
    """Return the identifier system for numbers that only mean something within one subscriber.

    kind       what is numbered: "patient" or "accession"
    assigner   reference of the subscriber that registered the images
    issuer     local name of the assigning authority, "" when absent

    Two subscribers never share one, so that equal numbers of two hospitals stay apart.
    """
    return f"urn:uuid:{uuid.uuid5(_NAMESPACE, chr(0).join((kind, assigner, issuer.strip())))}"


def identifier_type(code: str) -> dict[str, Any]:
    """Return the CodeableConcept of an identifier type of HL7 v2 table 0203, such as MR or ACSN."""
    return {"coding": [{"system": V2_0203, "code": code}]}


def unsigned(number: int | None) -> int | None:
    """Return `number` when FHIR's unsignedInt can hold it, else None."""
    return number if number is not None and 0 <= number <= 2_147_483_647 else None


def _day(da: str) -> date | None:
    match = _DATE.fullmatch(da.strip())
    if match is None:
        return None
    try:
        return date(int(match[1]), int(match[2] or match[4]), int(match[3] or match[5]))
    except ValueError:
        return None


def _zone(offset: str) -> timezone | None:
    match = _OFFSET.fullmatch(offset.strip())
    if match is None:
        return None
    minutes = int(match[2]) * 60 + int(match[3])
    signed = -minutes if match[1] == "-" else minutes
    # PS3.3 C.12.1.1.8: -1200 to +1400.
    if int(match[3]) > 59 or not -720 <= signed <= 840:
        return None
    return timezone(timedelta(minutes=signed))


def _human_name(group: str) -> dict[str, Any]:
    family, given, middle, prefix, suffix = (clean(part) for part in (*group.split("^"), *[""] * 5)[:5])
    parts = _present({"family": family, "given": [given, middle], "prefix": [prefix], "suffix": [suffix]})
    written = [part for part in (prefix, given, middle, family, suffix) if part]
    return {"text": " ".join(written), **dict(parts)}


def _present(parts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in parts.items():
        kept = [part for part in value if part] if isinstance(value, list) else value
        if kept:
            yield name, kept
