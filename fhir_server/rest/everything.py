"""`Patient/$everything`: what is in a patient's compartment, page by page.

Source: FHIR R4 patient-operation-everything.
"""

from dataclasses import replace
from typing import Any

from fhir_server.model.chains import AllOf, AnyOf, Criterion
from fhir_server.model.criteria import Clause, Missing, clause
from fhir_server.model.definitions import compartments, parameters
from fhir_server.model.query import CURSOR, Branch, Include, Query
from fhir_server.model.resources import RESOURCES, Domain
from fhir_server.rest import bundles
from fhir_server.rest.calls import Call
from fhir_server.store.search import Page
from imaging.errors import AppError, Category

PARAMETERS = ("start", "end", "_since", "_type", "_count")
CARE_DATES = ("date", "started", "authored", "authored-on", "authoredon", "onset-date", "recorded-date")


def everything(call: Call) -> bytes:
    """Return a page of what is in the patient's compartment, the patient first, with everything that it refers to."""
    patient = call.repository.read("Patient", call.id)
    named = [kind for value in call.values.get("_type", []) for kind in str(value).split(",")]
    unknown = [kind for kind in named if kind not in RESOURCES]
    if unknown:
        raise AppError(Category.INVALID, f"this server keeps no {unknown[0][:64]} resources", where="_type")
    limits = call.server.search_limits
    # Who looked at it is not a part of the record, and would grow while it is read.
    within = [kind for kind, row in RESOURCES.items() if row.domain is Domain.CARE and kind != "Patient"]
    within = [kind for kind in within if "Patient" in compartments(kind)]
    kinds = [kind for kind in within if not named or kind in named]
    branches = tuple(Branch(kind, _when(call, kind)) for kind in kinds)
    query = Query(
        "",
        include=tuple(Include(kind, "*", "", False) for kind in kinds),
        count=max(1, min(call.number("_count", limits.default_count), limits.count)),
        branches=branches,
        compartment=patient.key,
        cursor=call.one(CURSOR),
        max_includes=limits.includes,
        address=f"{patient.key}/$everything",
        used=tuple((name, str(value)) for name in PARAMETERS for value in call.values.get(name, [])),
    )
    is_first = query.cursor is None and (not named or "Patient" in named)
    try:
        page = call.repository.search(query) if branches else None
    except AppError as error:
        if error.category is not Category.FORBIDDEN:
            raise
        page = None  # nothing but the patient may be read
    if page is None:
        return bundles.searchset(call.server.fhir_url, query, _alone(patient, is_first), None, call.server.clock())
    page = replace(
        page,
        matches=[*([patient] if is_first else []), *page.matches],
        includes=[each for each in page.includes if each.key != patient.key],
        total=None if page.total is None else page.total + is_first,
    )
    return bundles.searchset(call.server.fhir_url, query, page, None, call.server.clock())


def _alone(patient: Any, is_first: bool) -> Any:
    return Page(int(is_first), [patient] if is_first else [])


def _when(call: Call, kind: str) -> tuple[Criterion, ...]:
    """Return the criteria of the time of care, for types that have one, and of the latest change."""
    found: list[Criterion] = []
    since = call.one("_since")
    if since:
        found.append(clause(kind, "_lastUpdated", f"ge{since}"))
    code = next((each for each in CARE_DATES if each in parameters(kind)), None)
    for name, prefix in (("start", "ge"), ("end", "le")):
        value = call.one(name)
        if value and code:
            without = Clause(code, "date", "missing", (Missing(True),))
            found.append(AnyOf((clause(kind, code, f"{prefix}{value}"), without)))
    return (AllOf(tuple(found)),) if found else ()
