"""`ValueSet/$expand`, `ValueSet/$validate-code` and `CodeSystem/$lookup`, over what is held here (`rest.held`).

Every parameter of the standard is known but those that ask for something else than is held: the state at another
`date`, other versions of code systems, a `context`. `displayLanguage` changes nothing: a code has one display here.
Source: FHIR R4 valueset-operations, codesystem-operations.
"""

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from fhir_server.model import json
from fhir_server.model.dates import to_instant
from fhir_server.model.terminology import Coding, Concept, Terminology
from fhir_server.model.terminology_statement import EXPANSION
from fhir_server.model.validation import findings
from fhir_server.rest.calls import Call, Json, answer
from fhir_server.rest.held import Held
from imaging.errors import AppError, Category

MOST_SHOWN = 1000  # codes in one answer of $expand
_ALWAYS = frozenset({"displayLanguage"})
_CODE = _ALWAYS | {"code", "system", "coding"}
_VALUE_SET = frozenset({"url", "valueSet", "valueSetVersion"})
_FLAGS = tuple(name for name in EXPANSION if name.startswith(("active", "exclude", "include")) and "-" not in name)
EXPAND = frozenset(EXPANSION)
VALIDATE_CODE = _CODE | _VALUE_SET | {"systemVersion", "codeableConcept", "display", "abstract"}
LOOKUP = _CODE | {"version", "property"}
_GONE = frozenset({"inactive", "retired", "deprecated"})  # what concept properties say of a code that is not active


def _value_set(call: Call) -> Mapping[str, Any]:
    given, url = call.one("valueSet"), call.one("url")
    if call.id:
        found: Mapping[str, Any] = call.repository.read("ValueSet", call.id).json()
        return found
    if isinstance(given, dict):
        if issues := findings(given, "ValueSet"):
            raise AppError(Category.INVALID, f"{issues[0].expression}: {issues[0].text}", where="valueSet")
        return given
    if not url:
        raise AppError(Category.INVALID, "url or valueSet says which value set is meant", where="url")
    version = call.one("valueSetVersion")
    canonical = f"{url}|{version}" if version and "|" not in str(url) else str(url)
    return Held(call.server.own).terminology().value_set(canonical)


def expand(call: Call) -> bytes:
    """Return a value set with a part of its codes, those that have all words of `filter`.

    The list is flat whatever `excludeNested` says, and no code of it is post-coordinated.
    """
    value_set, terminology = _value_set(call), Held(call.server.own).terminology()
    offset, count = call.number("offset", 0), min(call.number("count", MOST_SHOWN), MOST_SHOWN)
    words = str(call.one("filter", "")).lower().split()
    flags = {name: call.flag(name) for name in _FLAGS}
    without = [str(each).partition("|")[0] for each in call.values.get("exclude-system", [])]
    found = [
        each
        for each in terminology.expand(value_set)
        if _has_words(each, words)
        and each.system not in without
        and not (flags["activeOnly"] and _says(terminology, each, _is_gone))
        and not (flags["excludeNotForUI"] and _says(terminology, each, _is_abstract))
    ]
    contains = [_coding(each) for each in found[offset : offset + count]]
    if flags["includeDesignations"]:
        for row in contains:
            row |= _designations(terminology, value_set, row)
    used = [{"name": name, "valueBoolean": value} for name, value in flags.items() if name in call.values]
    expansion: Json = {
        "identifier": f"urn:uuid:{uuid.uuid4()}",
        "timestamp": to_instant(call.server.clock()),
        "total": len(found),
        "offset": offset,
        **({"parameter": used} if used else {}),
        **({"contains": contains} if contains else {}),
    }
    dropped = {"expansion", "text"} | (set() if flags["includeDefinition"] else {"compose"})
    kept = {name: value for name, value in value_set.items() if name not in dropped}
    return json.dumps({"status": "active", **kept, "expansion": expansion})


def _has_words(coding: Coding, words: list[str]) -> bool:
    text = f"{coding.display} {coding.code}".lower()
    return all(word in text for word in words)


def _coding(coding: Coding) -> Json:
    return {"system": coding.system, "code": coding.code, **({"display": coding.display} if coding.display else {})}


def _says(terminology: Terminology, coding: Coding, claim: Callable[[Concept], bool]) -> bool:
    """Say whether a code's system is held and its concept is as claimed."""
    concept = _concept(terminology, coding.system, coding.code)
    return concept is not None and claim(concept)


def _concept(terminology: Terminology, system: str, code: str) -> Concept | None:
    try:
        return terminology.code_system(system).find(code)
    except AppError:
        return None  # codes may be listed of a system that is not held


def _is_gone(concept: Concept) -> bool:
    """Source: FHIR R4 codesystem 4.8.10, defined concept properties `inactive` and `status`."""
    return any(
        (name == "inactive" and value is True) or (name == "status" and value in _GONE)
        for name, value in concept.properties
    )


def _is_abstract(concept: Concept) -> bool:
    return ("notSelectable", True) in concept.properties


def _designations(terminology: Terminology, value_set: Mapping[str, Any], row: Json) -> Json:
    """Return other words for a code: those of the value set, then those of the code system."""
    found = [
        designation
        for include in value_set.get("compose", {}).get("include", ())
        if include.get("system") == row["system"]
        for each in include.get("concept", ())
        if each.get("code") == row["code"]
        for designation in each.get("designation", ())
    ]
    concept = _concept(terminology, row["system"], row["code"])
    found += concept.designations if concept else ()
    return {"designation": found} if found else {}


def validate_code(call: Call) -> bytes:
    """Return whether one of the codes is in a value set."""
    codings = _codings(call)
    terminology, value_set = Held(call.server.own).terminology(), _value_set(call)
    display = call.one("display")
    version = call.one("systemVersion")
    for system, code in codings:
        if version and system:
            terminology.code_system(f"{system}|{version}")
        found = terminology.member(value_set, system, code)
        if found is None or (not call.flag("abstract", default=True) and _says(terminology, found, _is_abstract)):
            continue
        is_right = not display or not found.display or display.lower() == found.display.lower()
        told = [{"name": "result", "valueBoolean": is_right}]
        if not is_right:
            told.append({"name": "message", "valueString": "the display is not that of the code"})
        return answer(told + ([{"name": "display", "valueString": found.display}] if found.display else []))
    message = {"name": "message", "valueString": "the code is not in the value set"}
    return answer([{"name": "result", "valueBoolean": False}, message])


def _codings(call: Call) -> list[tuple[str | None, str]]:
    coding, concept, code = call.one("coding"), call.one("codeableConcept"), call.one("code")
    if isinstance(concept, dict):
        given = concept.get("coding", [])
    else:
        given = [coding] if isinstance(coding, dict) else [{"code": code, "system": call.one("system")}]
    found = [(each.get("system"), str(each["code"])) for each in given if each.get("code")]
    if not found:
        raise AppError(Category.INVALID, "code, coding or codeableConcept says which code is meant", where="code")
    return found


_VALUES = {"language": "valueCode", "use": "valueCoding", "value": "valueString"}  # parts of a designation


def lookup(call: Call) -> bytes:
    """Return the words for a code, and what lies right above and below it."""
    (system, code), *_ = _codings(call)
    if not system:
        raise AppError(Category.INVALID, "the system of the code is wanted", where="system")
    version = call.one("version")
    known = Held(call.server.own).terminology().code_system(f"{system}|{version}" if version else system)
    concept = known.find(code)
    if concept is None:
        raise AppError(Category.NOT_FOUND, f"the code system has no such code: {code[:100]}", where="code")
    told: list[Json] = [{"name": "name", "valueString": known.name}]
    told += [{"name": "version", "valueString": known.version}] if known.version else []
    told.append({"name": "display", "valueString": concept.display or concept.code})
    wanted = set(map(str, call.values.get("property", ("definition", "designation", "parent", "child"))))
    if concept.definition and "definition" in wanted:
        told.append({"name": "definition", "valueString": concept.definition})
    for words in concept.designations if "designation" in wanted else ():
        parts = [{"name": name, _VALUES[name]: words[name]} for name in _VALUES if name in words]
        told.append({"name": "designation", "part": parts})
    for name, codes in (("parent", known.parents), ("child", known.children)):
        for each in codes.get(known.key(code), ()) if name in wanted else ():
            parts = [{"name": "code", "valueCode": name}, {"name": "value", "valueCode": each}]
            told.append({"name": "property", "part": parts})
    return answer(told)
