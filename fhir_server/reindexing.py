"""Tasks that index what is stored by search parameters that clients defined: one for each version of a SearchParameter.

Their ids follow from the version, so that whoever places one, the door at once or the sweeper after a crash, places the
same.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any
from uuid import UUID, uuid5

from fhir_server.delivery import value
from fhir_server.model.task import CODES
from fhir_server.store.documents import Resource
from fhir_server.store.parameters import SearchParameters
from fhir_server.store.repository import Repository

CODE = "reindex"
PARAMETER = "search-parameter"  # the input that names the SearchParameter and its version
_NAMESPACE = UUID("6d0b3a3e-0f0c-5a57-9d0e-3c2b8f1c7a55")


def place(own: Repository, parameters: SearchParameters) -> None:
    """Place a Task for each SearchParameter that resources are not indexed by yet; one that is there is left alone."""
    for waiting in parameters.waiting():
        task = order(waiting)
        own.together(partial(_create, task), where=f"Task/{task['id']}")


def order(parameter: Resource) -> dict[str, Any]:
    """Return the Task that indexes by this version of a SearchParameter."""
    reference = f"{parameter.key}/_history/{parameter.version}"
    return {
        "resourceType": "Task",
        "id": str(uuid5(_NAMESPACE, reference)),
        "status": "requested",
        "intent": "order",
        "code": {"coding": [{"system": CODES, "code": CODE}]},
        "focus": {"reference": parameter.key},
        "input": [value(PARAMETER, "valueReference", {"reference": reference})],
    }


def _create(task: Mapping[str, Any], repository: Repository) -> None:
    if repository.find_one("Task", "_id", str(task["id"])) is None:
        repository.create(dict(task), id=str(task["id"]))
