"""Operations by which Patients are merged and studies moved; `reconciliation` does them.

Source: FHIR R5 OperationDefinition Patient-merge, whose parameters hold here; the other two are this server's own.
"""

from typing import Any

from fhir_server.access.audit import Access
from fhir_server.model.criteria import Clause, Token, check_id
from fhir_server.model.outcome import Issue, outcome
from fhir_server.model.query import Query
from fhir_server.model.validation import validate
from fhir_server.reconciliation import LONGEST_REASON
from fhir_server.rest.calls import Call, Json, Operation, answer
from fhir_server.store.documents import Resource
from imaging.errors import AppError, Category

MERGE = "http://hl7.org/fhir/OperationDefinition/Patient-merge"
OWN = "urn:fhir-imaging:operation:"
MOST_IDENTIFIERS = 20


def _merge(call: Call) -> bytes:
    source, target = _patient(call, "source-patient"), _patient(call, "target-patient")
    result, preview = _result(call, target), call.flag("preview")
    call.server.studies.catch_up()
    made = call.server.reconciliation.merge(
        call.repository, source, target, result=result, reason=reason(call), preview=preview
    )
    if not preview:
        call.concerned.extend([source.key, target.key, *(f"ImagingStudy/{uid}" for uid in made.studies)])
    was = "would go" if preview else "went"
    text = f"studies that {was} from {source.key} to {target.key}: {len(made.studies)}"
    text = f"{source.key} was merged into {target.key} before" if made.was_done else text
    return answer([
        {"name": "input", "resource": _input(call)},
        {"name": "outcome", "resource": _told(text)},
        {"name": "result", "resource": made.target},
    ])  # fmt: skip


def _unmerge(call: Call) -> bytes:
    source = call.repository.read("Patient", call.id)
    call.server.studies.catch_up()
    studies = call.server.reconciliation.unmerge(call.repository, source, reason=reason(call))
    call.concerned.extend(f"ImagingStudy/{uid}" for uid in studies)
    return call.repository.read("Patient", call.id).body


def _move(call: Call) -> bytes:
    study = call.repository.read("ImagingStudy", call.id)
    patient = _named(call, call.one("patient"), "patient")
    call.server.reconciliation.move(call.repository, study, patient, reason=reason(call))
    call.concerned.append(patient.key)
    call.server.studies.refresh(call.id)
    return call.repository.read("ImagingStudy", call.id).body


# ---- parameters


def _patient(call: Call, name: str) -> Resource:
    """Return the Patient that a reference names, or identifiers, or both."""
    identifiers = [_identifier(each, f"{name}-identifier") for each in call.values.get(f"{name}-identifier", [])]
    given = call.one(name)
    if given is not None:
        found = _named(call, given, name)
        numbers = {(each.get("system"), each.get("value")) for each in found.json().get("identifier", [])}
        if any((each.get("system"), each["value"]) not in numbers for each in identifiers):
            raise AppError(
                Category.CONFLICT, "the Patient has not all of these identifiers", where=f"{name}-identifier"
            )
        return found
    if not identifiers:
        raise AppError(Category.INVALID, f"the parameter {name} or {name}-identifier is wanted", where=name)
    if len(identifiers) > MOST_IDENTIFIERS:
        raise AppError(Category.TOO_LARGE, f"at most {MOST_IDENTIFIERS} identifiers", where=f"{name}-identifier")
    clauses = [Clause("identifier", "token", "", (Token(each.get("system"), each["value"]),)) for each in identifiers]
    matches = call.repository.search(Query("Patient", tuple(clauses), count=2)).matches
    if len(matches) != 1:
        found_text = "several Patients have" if matches else "no Patient has"
        raise AppError(Category.CONFLICT, f"{found_text} these identifiers", where=f"{name}-identifier")
    return matches[0]


def _identifier(value: Any, where: str) -> Json:
    parts = (value.get("value"), value.get("system", "-")) if isinstance(value, dict) else ("", "")
    if not all(isinstance(each, str) and each for each in parts):
        raise AppError(Category.INVALID, "an Identifier with a value is wanted", where=where)
    return dict(value)


def _named(call: Call, value: Any, where: str) -> Resource:
    text = value.get("reference", "") if isinstance(value, dict) else value
    kind, _, identifier = str(text or "").removeprefix(f"{call.server.fhir_url}/").partition("/")
    if kind != "Patient" or not identifier:
        raise AppError(Category.INVALID, "a reference to a Patient of this server is wanted", where=where)
    return call.repository.read("Patient", check_id(identifier, where=where))


def _result(call: Call, target: Resource) -> Json | None:
    result = call.one("result-patient")
    if result is None:
        return None
    if not isinstance(result, dict) or result.get("resourceType") != "Patient" or result.get("id") != target.id:
        message = "the result is the target as it is to become: a Patient with its id"
        raise AppError(Category.INVALID, message, where="result-patient")
    validate(result, "Patient")
    call.server.conforms(result)
    given = [
        _identifier(each, "target-patient-identifier") for each in call.values.get("target-patient-identifier", [])
    ]
    kept = {(each.get("system"), each.get("value")) for each in result.get("identifier", [])}
    if any((each.get("system"), each["value"]) not in kept for each in given):
        message = "the result has to keep the identifiers by which the target was named"
        raise AppError(Category.INVALID, message, where="result-patient")
    return result


def reason(call: Call) -> str:
    """Return the parameter reason, "" where it is not given. Raises INVALID."""
    value = call.one("reason", "")
    if not isinstance(value, str) or len(value) > LONGEST_REASON:
        message = f"the reason is text of at most {LONGEST_REASON} characters"
        raise AppError(Category.INVALID, message, where="reason")
    return value


def _input(call: Call) -> Json:
    rows = [_row(name, value) for name, values in call.values.items() for value in values]
    return {"resourceType": "Parameters", "parameter": rows}


def _row(name: str, value: Any) -> Json:
    if name == "preview":
        return {"name": name, "valueBoolean": value == "true"}
    if name == "result-patient":
        return {"name": name, "resource": value}
    if name.endswith("identifier"):
        return {"name": name, "valueIdentifier": value}
    if name == "reason":
        return {"name": name, "valueString": value}
    return {"name": name, "valueReference": value if isinstance(value, dict) else {"reference": value}}


def _told(text: str) -> Json:
    return outcome([Issue("informational", text, severity="information")])


_NAMED = frozenset({"source-patient", "target-patient", "source-patient-identifier", "target-patient-identifier"})
OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "merge", MERGE, _merge, _NAMED | {"result-patient", "preview", "reason"},
        frozenset({"Patient"}), on_type=True, structured=_NAMED | {"result-patient"},
        changes=True, access=Access.UPDATE,
    ),
    Operation(
        "unmerge", f"{OWN}unmerge", _unmerge, frozenset({"reason"}),
        frozenset({"Patient"}), on_instance=True, changes=True, access=Access.UPDATE,
    ),
    Operation(
        "move", f"{OWN}move", _move, frozenset({"patient", "reason"}),
        frozenset({"ImagingStudy"}), on_instance=True, structured=frozenset({"patient"}),
        changes=True, access=Access.UPDATE,
    ),
)  # fmt: skip
