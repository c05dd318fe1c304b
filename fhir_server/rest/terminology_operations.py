"""`ValueSet/$expand`, `ValueSet/$validate-code` and `CodeSystem/$lookup`, over what is held here (`rest.held`).

Source: FHIR R4 valueset-operations, codesystem-operations.
"""

import uuid
from collections.abc import Mapping
from typing import Any

from fhir_server.model import json
from fhir_server.model.dates import to_instant
from fhir_server.model.terminology import Coding
from fhir_server.model.validation import findings
from fhir_server.rest.calls import Call, Json, answer
from fhir_server.rest.held import Held
from imaging.errors import AppError, Category

MOST_SHOWN = 1000  # codes in one answer of $expand


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
    return Held(call.server.own).terminology().value_set(str(url))


def expand(call: Call) -> bytes:
    """Return a value set with a part of its codes, those that have all words of `filter`."""
    value_set = _value_set(call)
    offset, count = call.number("offset", 0), min(call.number("count", MOST_SHOWN), MOST_SHOWN)
    words = str(call.one("filter", "")).lower().split()
    found = [each for each in Held(call.server.own).terminology().expand(value_set) if _has_words(each, words)]
    contains = [_coding(each) for each in found[offset : offset + count]]
    expansion: Json = {
        "identifier": f"urn:uuid:{uuid.uuid4()}",
        "timestamp": to_instant(call.server.clock()),
        "total": len(found),
        "offset": offset,
        **({"contains": contains} if contains else {}),
    }
    kept = {name: value for name, value in value_set.items() if name not in ("compose", "expansion", "text")}
    return json.dumps({"status": "active", **kept, "expansion": expansion})


def _has_words(coding: Coding, words: list[str]) -> bool:
    text = f"{coding.display} {coding.code}".lower()
    return all(word in text for word in words)


def _coding(coding: Coding) -> Json:
    return {"system": coding.system, "code": coding.code, **({"display": coding.display} if coding.display else {})}


def validate_code(call: Call) -> bytes:
    """Return whether one of the codes is in a value set."""
    codings = _codings(call)
    terminology, value_set = Held(call.server.own).terminology(), _value_set(call)
    display = call.one("display")
    for system, code in codings:
        found = terminology.member(value_set, system, code)
        if found is None:
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


def lookup(call: Call) -> bytes:
    """Return the words for a code, and what lies right above and below it."""
    (system, code), *_ = _codings(call)
    if not system:
        raise AppError(Category.INVALID, "the system of the code is wanted", where="system")
    known = Held(call.server.own).terminology().code_system(system)
    concept = known.find(code)
    if concept is None:
        raise AppError(Category.NOT_FOUND, f"the code system has no such code: {code[:100]}", where="code")
    told: list[Json] = [{"name": "name", "valueString": known.name}]
    told += [{"name": "version", "valueString": known.version}] if known.version else []
    told.append({"name": "display", "valueString": concept.display or concept.code})
    told += [{"name": "definition", "valueString": concept.definition}] if concept.definition else []
    for name, codes in (("parent", known.parents), ("child", known.children)):
        for each in codes.get(known.key(code), ()):
            parts = [{"name": "code", "valueCode": name}, {"name": "value", "valueCode": each}]
            told.append({"name": "property", "part": parts})
    return answer(told)
