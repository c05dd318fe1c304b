"""What a webhook tells: a FHIR message that says which images can be fetched where, and what was done to make them.

Pure, but for what it reads, which is read as the receiver may read it. A message (Bundle of type `message`) holds the
Task, the ImagingStudies with the series in question and without their lists of instances, the Endpoint of this server,
the imaging conditions of the series as Observations, and the Provenances of processing.   Source: FHIR R4 messaging.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from fhir_server.delivery import following_id
from fhir_server.model.dates import to_instant
from fhir_server.model.peer import Peer
from fhir_server.model.task import Json, name_of
from fhir_server.projection import ENDPOINT, IMAGING_CONDITIONS, imaging_study_id
from fhir_server.store.repository import Repository
from imaging.archive import Instance
from imaging.errors import AppError, Category

EVENT = "urn:fhir-imaging:event:images-available"
CONTENT_TYPE = "application/fhir+json"
MOST_CONDITIONS = 200  # Observations in a message; further series only refer to theirs
_SUBSETTED = {"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "SUBSETTED"}
_HIDDEN = frozenset({Category.NOT_FOUND, Category.GONE, Category.FORBIDDEN})


def message(
    repository: Repository, task: Json, peer: Peer, instances: Sequence[Instance], *, fhir_url: str, now: datetime
) -> Json:
    """Return the message of a delivery; `repository` is the receiver's. Raises what keeps it from a study."""
    identifier = following_id(task, "message", peer.name)
    order = _order(repository, task)
    series = {each.series_uid for each in instances}
    studies = [
        _narrowed(repository.read("ImagingStudy", imaging_study_id(uid)).json(), series)
        for uid in dict.fromkeys(each.study_uid for each in instances)
    ]
    told = [*studies, *_first(_read(repository, _conditions(studies)), MOST_CONDITIONS)]
    told += _read(repository, [ENDPOINT, *_provenances(order)])
    header = {
        "resourceType": "MessageHeader",
        "id": identifier,
        "eventUri": EVENT,
        "destination": [{"name": peer.name, "endpoint": peer.address, "receiver": {"reference": peer.subscriber}}],
        "source": {"name": "FHIR imaging server", "endpoint": fhir_url},
        "responsible": task["requester"],
        "focus": [{"reference": f"{each['resourceType']}/{each['id']}"} for each in (order, *studies)],
    }
    return {
        "resourceType": "Bundle",
        "id": identifier,
        "type": "message",
        "timestamp": to_instant(now),
        "entry": [
            {"fullUrl": f"{fhir_url}/{each['resourceType']}/{each['id']}", "resource": each}
            for each in (header, order, *told)
        ],
    }


def _order(repository: Repository, task: Json) -> Json:
    """Return the Task that was ordered: that of which the delivery is a part, where it is one."""
    whole = next((each.get("reference", "") for each in task.get("partOf", [])), "")
    return next(_read(repository, [whole]), task) if whole.startswith("Task/") else task


def _narrowed(study: Json, series: Iterable[str]) -> Json:
    """Return an ImagingStudy with these series only, without their instances, and marked as a part."""
    wanted = set(series)
    kept = [
        {name: value for name, value in each.items() if name != "instance"}
        for each in study.get("series", [])
        if each.get("uid") in wanted
    ]
    meta = study.get("meta", {})
    return {**study, "meta": {**meta, "tag": [*meta.get("tag", []), _SUBSETTED]}, "series": kept}


def _conditions(studies: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the references of the Observations with the imaging conditions of every series."""
    for study in studies:
        for series in study["series"]:
            for extension in series.get("extension", []):
                if extension.get("url") == IMAGING_CONDITIONS:
                    yield extension["valueReference"]["reference"]


def _provenances(task: Mapping[str, Any]) -> Iterator[str]:
    for output in task.get("output", []):
        if name_of(output) == "provenance":
            yield output["valueReference"]["reference"]


def _read(repository: Repository, references: Iterable[str]) -> Iterator[Json]:
    """Yield the resources that are there and that the receiver may read."""
    for reference in references:
        try:
            yield repository.read(*reference.split("/", 1)).json()
        except AppError as error:
            if error.category not in _HIDDEN:
                raise


def _first(resources: Iterator[Json], most: int) -> list[Json]:
    return [each for _, each in zip(range(most), resources, strict=False)]
