"""Orders that somebody outside does by a code of its own: what this server has to do with them all the same.

An input `deliver-to` means what it means in a `process` Task: when the owner completes the order, the images that it
names in the outputs `imaging-study` and `series` are delivered (`fhir_server/delivery.py`). Whether they may be
delivered is asked when the order is placed, and again by the delivery. These images have to be here, and within reach
of who names them, before an order is completed: else it would look as if there were a result.
"""

from collections.abc import Mapping
from typing import Any

from fhir_server.access.policy import require
from fhir_server.access.principals import Principal, Right
from fhir_server.delivery import DELIVER_TO, reported_images
from fhir_server.model.task import WORKITEM, Kind, Status, check_inputs, name_of, status_of
from fhir_server.model.task_values import relative
from fhir_server.work import orders
from fhir_server.work.backing import Backing
from fhir_server.work.recipients import admit_recipient
from fhir_server.work.selection import MOST_INSTANCES
from imaging.errors import AppError, Category

_ASKED = Kind("", tuple(each for each in orders.INPUTS if each.name == DELIVER_TO))


def admit(server: Backing, principal: Principal, task: Mapping[str, Any]) -> None:
    """Raise what keeps the results of an order from being delivered to whom it names."""
    asked = [each for each in task.get("input", []) if name_of(each) == DELIVER_TO]
    if not asked:
        return
    require(principal, Right.ORDER_PROCESSING, "have results delivered")
    check_inputs({"input": asked}, _ASKED)
    for each in asked:
        admit_recipient(server, principal, relative(each["valueReference"]))


def check_reported(server: Backing, principal: Principal, task: Mapping[str, Any]) -> None:
    """Raise INVALID where a completed order names images as its result that whoever did it cannot have made here.

    A work item says itself where its results are kept, which may be elsewhere.
    """
    is_workitem = any(each.get("url") == WORKITEM for each in task.get("extension", []))
    if status_of(task) is not Status.COMPLETED or is_workitem:
        return
    studies, series = reported_images(task)
    found = server.archive.chosen(series=series, limit=MOST_INSTANCES) if series else []
    lacking = sorted(set(series) - {each.series_uid for each in found})
    try:
        if lacking:
            raise AppError(Category.NOT_FOUND, "no such series", where=lacking[0])
        server.studies.require_reach(found, principal)
        for each in studies:
            server.studies.authorise(each.removeprefix("ImagingStudy/"), principal)
    except AppError as error:
        if error.category not in (Category.NOT_FOUND, Category.FORBIDDEN):
            raise
        message = f"an output names images that are not here, or not yours to read: {error}; send them before"
        raise AppError(Category.INVALID, message, where="Task.output") from None
