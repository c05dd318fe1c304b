"""Usage as people and programs read it: CSV, and FHIR MeasureReports in a Bundle. Pure."""

import csv
import io
from calendar import monthrange
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from itertools import groupby
from typing import Any

from fhir_server.model.dates import to_instant
from fhir_server.store.usage import COUNTED, Used

MEASURE = "urn:fhir-imaging:measure:usage"
COUNTS = "urn:fhir-imaging:code:usage"
STRATA = "urn:fhir-imaging:code:usage-stratifier"
CONTRACT = "contract"
UCUM = "http://unitsofmeasure.org"


def as_csv(used: Iterable[Used], names: Mapping[str, str], first: date, last: date, *, by_contract: bool) -> str:
    """Return one line for each subscriber and period, by Contract if wanted; `names` by reference."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    who = ["subscriber", "organization", *([CONTRACT] if by_contract else [])]
    writer.writerow([*who, "from", "until", *COUNTED])
    for each in used:
        named = [names.get(each.subscriber, ""), each.subscriber, *([each.contract] if by_contract else [])]
        writer.writerow([*named, *_bounds(each.period, first, last), *(each.counts[name] for name in COUNTED)])
    return out.getvalue()


def as_fhir(used: Iterable[Used], first: date, last: date, now: datetime, *, by_contract: bool) -> dict[str, Any]:
    """Return a Bundle of a MeasureReport for each subscriber and period, with a stratum for each Contract if wanted.

    Source: FHIR R4 MeasureReport.
    """
    reports = []
    for (period, subscriber), rows in groupby(used, key=lambda each: (each.period, each.subscriber)):
        bounds = _bounds(period, first, last)
        reports.append(_report(subscriber, list(rows), bounds, now, by_contract))
    return {
        "resourceType": "Bundle",
        "type": "collection",
        "timestamp": to_instant(now),
        **({"entry": [{"resource": each} for each in reports]} if reports else {}),
    }


def _report(
    subscriber: str, rows: Sequence[Used], bounds: tuple[date, date], now: datetime, by_contract: bool
) -> dict[str, Any]:
    return {
        "resourceType": "MeasureReport",
        "status": "complete",
        "type": "summary",
        "measure": MEASURE,
        "date": to_instant(now),
        "reporter": {"reference": subscriber},
        "period": {"start": bounds[0].isoformat(), "end": bounds[1].isoformat()},
        "group": [_group(name, rows, by_contract) for name in COUNTED],
    }


def _group(name: str, rows: Sequence[Used], by_contract: bool) -> dict[str, Any]:
    group: dict[str, Any] = {
        "code": {"coding": [{"system": COUNTS, "code": name}]},
        "measureScore": _score(name, sum(each.counts[name] for each in rows)),
    }
    strata = [
        {"value": {"text": each.contract or "none"}, "measureScore": _score(name, each.counts[name])}
        for each in rows
        if each.counts[name]
    ]
    if by_contract and strata:
        group["stratifier"] = [{"code": [{"coding": [{"system": STRATA, "code": CONTRACT}]}], "stratum": strata}]
    return group


def _score(name: str, count: int) -> dict[str, Any]:
    return {"value": count, "unit": COUNTED[name], "system": UCUM, "code": COUNTED[name]}


def _bounds(period: str, first: date, last: date) -> tuple[date, date]:
    """Return the first and the last day of a day, a month or "", the whole time, as far as it was asked about."""
    if not period:
        return first, last
    if len(period) == len("2027-01-31"):
        return date.fromisoformat(period), date.fromisoformat(period)
    year, month = map(int, period.split("-"))
    return max(first, date(year, month, 1)), min(last, date(year, month, monthrange(year, month)[1]))
