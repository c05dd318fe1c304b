"""Usage as people and programs read it: CSV, and FHIR MeasureReports in a Bundle. Pure."""

import csv
import io
from collections.abc import Iterable
from datetime import date, datetime
from typing import Any

from fhir_server.model.dates import to_instant
from fhir_server.store.usage import COUNTED, Used

MEASURE = "urn:fhir-imaging:measure:usage"
COUNTS = "urn:fhir-imaging:code:usage"
UCUM = "http://unitsofmeasure.org"


def as_csv(used: Iterable[Used], names: dict[str, str], first: date, last: date) -> str:
    """Return one line for each subscriber; `names` by reference."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["subscriber", "organization", "from", "until", *COUNTED])
    for each in used:
        counts = [each.counts[name] for name in COUNTED]
        writer.writerow([names.get(each.subscriber, ""), each.subscriber, first, last, *counts])
    return out.getvalue()


def as_fhir(used: Iterable[Used], first: date, last: date, now: datetime) -> dict[str, Any]:
    """Return a Bundle with one MeasureReport for each subscriber. Source: FHIR R4 MeasureReport."""
    return {"resourceType": "Bundle", "type": "collection", "timestamp": to_instant(now),
            "entry": [{"resource": _report(each, first, last, now)} for each in used]}  # fmt: skip


def _report(used: Used, first: date, last: date, now: datetime) -> dict[str, Any]:
    groups = [
        {
            "code": {"coding": [{"system": COUNTS, "code": name}]},
            "measureScore": {"value": used.counts[name], "unit": unit, "system": UCUM, "code": unit},
        }
        for name, unit in COUNTED.items()
    ]
    return {
        "resourceType": "MeasureReport",
        "status": "complete",
        "type": "summary",
        "measure": MEASURE,
        "date": to_instant(now),
        "reporter": {"reference": used.subscriber},
        "period": {"start": first.isoformat(), "end": last.isoformat()},
        "group": groups,
    }
