"""Work items for the tests of the worklist, as DICOM JSON, and clients that come with them."""

from collections.abc import Mapping
from typing import Any

import orjson
from werkzeug.test import TestResponse

from imaging.dicomweb.json_model import element
from tests.support.doors import Caller

Model = dict[str, Any]
STATION = {"code": "CAD-1", "scheme": "99LUNG", "meaning": "Lung reader"}
TRANSACTION = "1.2.3.99.777.1"


def code(value: str, scheme: str, meaning: str) -> Model:
    return element("CodeValue", value) | element("CodingSchemeDesignator", scheme) | element("CodeMeaning", meaning)


def new_item(**changes: Any) -> Model:
    """Return what it takes to create a work item; changes by keyword, None leaves one out, a list gives all values."""
    told: dict[str, Any] = {
        "ProcedureStepState": "SCHEDULED",
        "ScheduledProcedureStepPriority": "HIGH",
        "ProcedureStepLabel": "Find nodules",
        "WorklistLabel": "CAD",
        "ScheduledProcedureStepStartDateTime": "20260102101500+0000",
        "InputReadinessState": "READY",
        "ScheduledWorkitemCodeSequence": code("110004", "DCM", "Computer Aided Detection"),
        "ScheduledStationNameCodeSequence": code(STATION["code"], STATION["scheme"], STATION["meaning"]),
        "PatientID": "P-1",
        "PatientName": {"Alphabetic": "Doe^Jane"},
        "TransactionUID": [],
        **changes,
    }
    return model(**{name: value for name, value in told.items() if value is not None})


def model(**values: Any) -> Model:
    found: Model = {}
    for keyword, value in values.items():
        found |= element(keyword, *(value if isinstance(value, list) else [value]))
    return found


def images(study: str, series: str, *instances: str) -> Model:
    """Return an item of Input or Output Information."""
    references = [
        element("ReferencedSOPClassUID", "1.2.840.10008.5.1.4.1.1.2") | element("ReferencedSOPInstanceUID", each)
        for each in instances
    ]
    return model(
        TypeOfInstances="DICOM", StudyInstanceUID=study, SeriesInstanceUID=series, ReferencedSOPSequence=references
    )


def performed(*outputs: Model) -> Model:
    """Return what has to be told before a work item is completed."""
    done = model(
        PerformedStationNameCodeSequence=code(STATION["code"], STATION["scheme"], STATION["meaning"]),
        PerformedWorkitemCodeSequence=code("110004", "DCM", "Computer Aided Detection"),
        PerformedProcedureStepStartDateTime="20260102102000+0000",
        PerformedProcedureStepEndDateTime="20260102102500+0000",
        OutputInformationSequence=list(outputs),
    )
    return model(UnifiedProcedureStepPerformedProcedureSequence=done)


def state(wanted: str, transaction: str | None = TRANSACTION) -> Model:
    return model(ProcedureStepState=wanted, **({"TransactionUID": transaction} if transaction else {}))


def send(caller: Caller, method: str, path: str, body: Any = None, **headers: str) -> TestResponse:
    """Ask the worklist; `body` goes as DICOM JSON."""
    sent: Mapping[str, str] = {name.replace("_", "-"): each for name, each in headers.items()}
    if body is None:
        return caller.call(method, f"/dicom-web/workitems{path}", headers=sent)
    sent = {"Content-Type": "application/dicom+json", **sent}
    return caller.call(method, f"/dicom-web/workitems{path}", data=orjson.dumps(body), headers=sent)
