"""Operations by which attributes of images are corrected; `corrections` does it. They are this server's own."""

from collections.abc import Mapping
from typing import Any

from fhir_server.access.audit import Access
from fhir_server.corrections import Asked, Effect
from fhir_server.model import json
from fhir_server.model.outcome import Issue, outcome
from fhir_server.reconciliation import LONGEST_REASON
from fhir_server.rest.calls import Call, Json, Operation, answer
from fhir_server.rest.reconciling import OWN, reason
from imaging.coercion import COERCE, CORRECT
from imaging.correctable import CORRECTABLE, keywords_of
from imaging.dataset import check_uid
from imaging.errors import AppError, Category

MOST_VALUES = 32  # of one attribute
_NAME_PARTS = ("Alphabetic", "Ideographic", "Phonetic")


def _correct(call: Call) -> bytes:
    study = call.repository.read("ImagingStudy", call.id)
    asked, preview = _asked(call), call.flag("preview")
    effect = call.server.corrections.correct(call.repository, study, asked, preview=preview)
    if effect.number:
        call.server.studies.refresh(call.id)
    told = _told(effect, preview=preview)
    number = [{"name": "correction", "valuePositiveInt": effect.number}] if effect.number else []
    changed = [_changed(tag, effect) for tag in effect.after]
    result = {"name": "result", "resource": call.repository.read("ImagingStudy", call.id).json()}
    return answer([{"name": "outcome", "resource": told}, *number, *changed, result])


def _uncorrect(call: Call) -> bytes:
    study = call.repository.read("ImagingStudy", call.id)
    number = call.number("correction", 0)
    call.server.corrections.take_back(call.repository, study, number=number, reason=reason(call))
    call.server.studies.refresh(call.id)
    return call.repository.read("ImagingStudy", call.id).body


def _asked(call: Call) -> Asked:
    given, from_patient = call.values.get("attribute", []), call.flag("from-patient")
    if not (given or from_patient) or len(given) > len(CORRECTABLE):
        message = f"1 to {len(CORRECTABLE)} parameters attribute, with the parts keyword and value, or from-patient"
        raise AppError(Category.INVALID, message, where="attribute")
    values: dict[str, tuple[str, ...]] = {}
    for parts in given:
        keyword, texts = _attribute(parts)
        if keyword in values:
            raise AppError(Category.INVALID, "this attribute is given more than once", where=keyword)
        values[keyword] = texts
    code = call.one("code", CORRECT)
    if code not in (CORRECT, COERCE):
        message = f"the code is {CORRECT} or {COERCE}: Reason for the Attribute Modification (0400,0565)"
        raise AppError(Category.INVALID, message, where="code")
    uids = {name: call.one(name, "") for name in ("series", "instance")}
    for name, uid in uids.items():
        if uid != "":
            check_uid(uid if isinstance(uid, str) else "?", f"the parameter {name}")
    if uids["instance"] and not uids["series"]:
        raise AppError(Category.INVALID, "name the series of the instance as well", where="series")
    return Asked(values, code, reason(call), uids["series"], uids["instance"], from_patient)


def _attribute(parts: Any) -> tuple[str, tuple[str, ...]]:
    """Return keyword and values of one attribute. Raises INVALID."""
    rows = [each for each in parts if isinstance(each, dict)] if isinstance(parts, list) else []
    keywords = [_text(each) for each in rows if each.get("name") == "keyword"]
    if len(keywords) != 1 or len(rows) != len(parts) or {each.get("name") for each in rows} - {"keyword", "value"}:
        message = "an attribute has the part keyword, and a part value for each value; none empties it"
        raise AppError(Category.INVALID, message, where="attribute")
    texts = tuple(_text(each) for each in rows if each.get("name") == "value")
    if len(texts) > MOST_VALUES:
        raise AppError(Category.TOO_LARGE, f"at most {MOST_VALUES} values", where=keywords[0][:64])
    return keywords[0], texts


def _text(part: Mapping[str, Any]) -> str:
    value = next((item for name, item in part.items() if name.startswith("value")), None)
    if not isinstance(value, str):
        message = "keyword and value are text, as valueString: a date is YYYYMMDD, a name Family^Given (PS3.5 6.2)"
        raise AppError(Category.INVALID, message, where="attribute")
    return value


def _told(effect: Effect, *, preview: bool) -> Json:
    if not effect.instances:
        text = "nothing to correct: all images of it have these values"
    else:
        was = "would be" if preview else "are"
        names = ", ".join(keywords_of(effect.after))
        text = f"{effect.instances} instances {was} corrected: {names}; received files stay as they came"
    return outcome([Issue("informational", text, severity="information")])


def _changed(tag: str, effect: Effect) -> Json:
    before, after = effect.before[tag], effect.after[tag]
    keyword = next(iter(keywords_of([tag])), tag)
    return {
        "name": "changed",
        "part": [
            {"name": "keyword", "valueCode": keyword},
            *({"name": "before", "valueString": text} for text in _texts(before)),
            *({"name": "after", "valueString": text} for text in _texts(after)),
        ],
    }


def _texts(element: Mapping[str, Any]) -> list[str]:
    found = []
    for value in element.get("Value", ()):
        if isinstance(value, dict):
            told = "=".join(str(value.get(part, "")) for part in _NAME_PARTS).rstrip("=")
            found.append(told or json.dumps(value).decode()[:LONGEST_REASON])
        elif value is not None:
            found.append(str(value))
    return [text for text in found if text]


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "correct", f"{OWN}correct", _correct,
        frozenset({"attribute", "from-patient", "series", "instance", "code", "reason", "preview"}),
        frozenset({"ImagingStudy"}), on_instance=True, structured=frozenset({"attribute"}),
        changes=True, access=Access.UPDATE,
    ),
    Operation(
        "uncorrect", f"{OWN}uncorrect", _uncorrect, frozenset({"correction", "reason"}),
        frozenset({"ImagingStudy"}), on_instance=True, changes=True, access=Access.UPDATE,
    ),
)  # fmt: skip
