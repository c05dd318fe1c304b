"""Deliveries that follow from finished work, whoever did it: one Task for each recipient that was named.

Pure. The Task is addressed to nobody, so this server does it (`fhir_server/work/kinds/`). Ids follow from the order, so
that work which is done twice asks for one delivery.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID, uuid5

from fhir_server.model.task import CODES
from fhir_server.model.task_values import id_of, relative, values_of

_KEPT = ("basedOn", "groupIdentifier", "priority", "for", "encounter", "authoredOn", "restriction")
DELIVER_TO = "deliver-to"  # input of a Task: whom its results go to
_NAMESPACE = UUID("0f8a2f0e-5f0b-5d0e-8a55-0d2f5d0e6c11")


def following_id(task: Mapping[str, Any], *parts: str) -> str:
    """Return the id of a Task that follows from another one: the same for the same parts."""
    return str(uuid5(_NAMESPACE, "\n".join((str(task["id"]), *parts))))


def following(task: Mapping[str, Any], code: str, inputs: Sequence[Mapping[str, Any]], *parts: str) -> dict[str, Any]:
    """Return a Task of a code that is part of another one, for the same requester, under the same terms."""
    kept = {name: task[name] for name in _KEPT if name in task}
    return {
        "resourceType": "Task",
        "id": following_id(task, code, *parts),
        "status": "requested",
        "intent": "order",
        "code": {"coding": [{"system": CODES, "code": code}]},
        "partOf": [{"reference": f"Task/{task['id']}"}],
        "requester": task["requester"],
        **kept,
        "input": [dict(each) for each in inputs],
    }


def value(name: str, element: str, content: Any) -> dict[str, Any]:
    """Return an input or output of a Task."""
    return {"type": {"coding": [{"code": name}]}, element: content}


def orders(
    task: Mapping[str, Any], *, studies: Iterable[str], series: Sequence[str], recipients: Iterable[str]
) -> list[dict[str, Any]]:
    """Return the delivery Tasks of what a Task made.

    studies      references of the ImagingStudies, "ImagingStudy/..."
    series       UIDs of the series to deliver; none: all of the studies
    recipients   "Endpoint/..." or "Organization/...", which stands for the Endpoints that it manages
    """
    what = [value("imaging-study", "valueReference", {"reference": each}) for each in studies]
    what += [value("series", "valueId", uid) for uid in series]
    made = []
    for recipient in recipients:
        inputs = [*what, value("endpoint", "valueReference", {"reference": recipient})]
        made.append(_of_results(following(task, "deliver", inputs, recipient)))
    return made


def of_reported(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the delivery Tasks of what somebody outside made: of the images that it names in `Task.output`."""
    studies, series = reported_images(task)
    recipients = [relative(each) for each in values_of(task).get(DELIVER_TO, [])]
    return orders(task, studies=studies, series=series, recipients=recipients) if studies or series else []


def reported_images(task: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the studies, "ImagingStudy/...", and the UIDs of the series that the outputs of a Task name."""
    made = values_of(task, "output")
    studies = [f"ImagingStudy/{id_of(each)}" for each in made.get("imaging-study", [])]
    return studies, [str(each) for each in made.get("series", [])]


def _of_results(delivery: dict[str, Any]) -> dict[str, Any]:
    """Return a delivery that is not restricted to patients: the order was, and its results may name nobody."""
    restriction = {**delivery.pop("restriction", {})}
    kept = [each for each in restriction.pop("recipient", []) if "Patient/" not in str(each.get("reference", ""))]
    restriction |= {"recipient": kept} if kept else {}
    return {**delivery, "restriction": restriction} if restriction else delivery
