"""The operation `$usage`: what a subscriber used, for itself; for operators, what all did.

It is no right of a contract to know what one is accounted for. A token with scopes needs one that lets MeasureReports
be read, and no patient is told.
"""

from datetime import date

from fhir_server import usage_report
from fhir_server.access.contracts import Right
from fhir_server.access.grants import Role
from fhir_server.access.policy import require_scope
from fhir_server.access.principals import Principal
from fhir_server.model import json
from fhir_server.rest.calls import Call, Operation
from fhir_server.store.filters import Act
from fhir_server.store.usage import Per
from imaging.errors import AppError, Category

MOST_DAYS = 366  # told apart by day in one answer
_PER = {"day": Per.DAY, "month": Per.MONTH, "": Per.ALL}


def _usage(call: Call) -> bytes:
    principal, now = call.principal, call.server.clock()
    require_scope(principal, "MeasureReport", Act.READ)
    first = _day(call, "from", now.date().replace(day=1))
    last = _day(call, "until", now.date())
    if last < first:
        raise AppError(Category.INVALID, "it lies before from", where="until")
    by, per = call.one("by", ""), call.one("per", "")
    if by not in ("", usage_report.CONTRACT):
        raise AppError(Category.INVALID, f"it is {usage_report.CONTRACT}, or left out", where="by")
    if per not in _PER:
        raise AppError(Category.INVALID, "it is day or month, or left out", where="per")
    if per == "day" and (last - first).days >= MOST_DAYS:
        raise AppError(Category.INVALID, f"at most {MOST_DAYS} days are told apart", where="per")
    wanted = call.one("subscriber", "") if is_operator(principal) else _own(call, principal)
    call.concerned.append(wanted or principal.subscriber)
    is_by_contract = bool(by)
    used = call.server.usage.between(first, last, subscriber=wanted, by_contract=is_by_contract, per=_PER[per])
    return json.dumps(usage_report.as_fhir(used, first, last, now, by_contract=is_by_contract))


def is_operator(principal: Principal) -> bool:
    """Say whether somebody is told what all subscribers used: a person who works for all of them here."""
    return principal.grant is not None and principal.grant.role is Role.OPERATOR and principal.may(Right.DEFINE)


def _own(call: Call, principal: Principal) -> str:
    if call.one("subscriber", principal.subscriber) != principal.subscriber:
        raise AppError(Category.FORBIDDEN, "you may know what your own subscriber used", where="subscriber")
    return principal.subscriber


def _day(call: Call, name: str, default: date) -> date:
    text = call.one(name)
    if text is None:
        return default
    try:
        return date.fromisoformat(str(text))
    except ValueError:
        raise AppError(Category.INVALID, "a day is written YYYY-MM-DD", where=name) from None


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "usage", "urn:fhir-imaging:operation:usage", _usage,
        frozenset({"from", "until", "by", "per", "subscriber"}), on_system=True,
    ),
)  # fmt: skip
