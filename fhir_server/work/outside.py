"""Orders that somebody outside does by a code of its own: what this server has to do with them all the same.

An input `deliver-to` means what it means in a `process` Task: when the owner completes the order, the images that it
names in the outputs `imaging-study` and `series` are delivered (`fhir_server/delivery.py`). Whether they may be
delivered is asked when the order is placed, and again by the delivery.
"""

from collections.abc import Mapping
from typing import Any

from fhir_server.access.policy import require
from fhir_server.access.principals import Principal, Right
from fhir_server.delivery import DELIVER_TO
from fhir_server.model.task import Kind, check_inputs, name_of
from fhir_server.model.task_values import relative
from fhir_server.work import orders
from fhir_server.work.backing import Backing
from fhir_server.work.recipients import admit_recipient

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
