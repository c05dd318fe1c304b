"""Removal of what an order said not to keep, once everybody has got what it made: `discard` Tasks.

They follow from `process` Tasks and are not placed by clients; whoever ordered may cancel one, which keeps the images.
Where a delivery failed nothing is removed: the images here may be the only ones.
"""

from typing import Any

from fhir_server.delivery import value
from fhir_server.model.criteria import Clause, Reference
from fhir_server.model.query import Query
from fhir_server.model.task import Json, Kind, Parameter, Status, code_of, is_over, name_of, status_of
from fhir_server.work.backing import Backing
from fhir_server.work.handlers import Done, Handler, Report, handlers
from fhir_server.work.orders import MOST_NAMED
from fhir_server.work.parties import requester_of
from fhir_server.work.selection import MOST_INSTANCES
from imaging.errors import AppError, Category

CODE = "discard"
INPUTS = (
    Parameter("series", "valueId", most=MOST_NAMED),
    Parameter("instance", "valueId", most=MOST_INSTANCES),
)
OUTPUTS = (Parameter("removed", "valueUnsignedInt", least=1), Parameter("kept", "valueString"))
_SIBLINGS = 100


def admit(server: Backing, principal: Any, task: Json) -> None:
    """Refuse: clients delete images at the DICOMweb door."""
    raise AppError(Category.FORBIDDEN, "the server places these Tasks itself", where="Task.code")


def run(task: Json, context: Any, report: Report) -> Done:
    """Remove the images, unless a delivery of them failed. Raises BUSY while one is under way."""
    server: Backing = context
    whole = task["partOf"][0]["reference"]
    clause = Clause("part-of", "reference", "", (Reference((whole,)),))
    siblings = [each.json() for each in server.own.search(Query("Task", (clause,), count=_SIBLINGS)).matches]
    deliveries = [each for each in siblings if code_of(each) == "deliver"]
    if not all(is_over(each) for each in deliveries):
        raise AppError(Category.BUSY, "deliveries of these images are under way", where=whole)
    if any(status_of(each) is not Status.COMPLETED for each in deliveries):
        reason = "a delivery of these images failed; nothing was removed"
        return Done([value("removed", "valueUnsignedInt", 0), value("kept", "valueString", reason)])
    found = server.archive.chosen(
        series=_given(task, "series"), instances=_given(task, "instance"), limit=MOST_INSTANCES
    )
    principal = requester_of(server, task)
    return Done([value("removed", "valueUnsignedInt", server.studies.discard(found, principal))])


def _given(task: Json, name: str) -> list[str]:
    return [each["valueId"] for each in task.get("input", []) if name_of(each) == name]


handlers.register(CODE)(Handler(Kind(CODE, INPUTS, OUTPUTS), run, admit=admit))
