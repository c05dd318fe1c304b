"""What is on record of a delivery when it has ended: outputs of the Task, and a Provenance that names what was got.

The outputs go receiver by receiver: `endpoint`, how many instances it has (`delivered`), the `provenance` that lists
them, and those that it refused. A Provenance names whole series where all of their instances were got, else instances.
"""

from collections.abc import Iterator, Sequence

from fhir_server import delivery
from fhir_server.delivery import value
from fhir_server.model.dates import to_instant
from fhir_server.model.peer import Peer, Way
from fhir_server.model.task import Json, Parameter
from fhir_server.projection import imaging_study_id
from fhir_server.store.peers import Delivery
from fhir_server.work.backing import Backing
from imaging.archive import Instance

MOST_RECEIVERS = 1_000  # that an Organization may manage
MOST_REFUSED = 100  # named one by one for each receiver
OUTPUTS = (
    Parameter("endpoint", "valueReference", least=1, most=MOST_RECEIVERS),
    Parameter("delivered", "valueUnsignedInt", least=1, most=MOST_RECEIVERS),
    Parameter("provenance", "valueReference", most=MOST_RECEIVERS),
    Parameter("refused", "valueString", most=MOST_RECEIVERS * MOST_REFUSED),
)
_DCM = "http://dicom.nema.org/resources/ontology/DCM"
_TRANSMITTED = {
    "system": "http://terminology.hl7.org/CodeSystem/iso-21089-lifecycle",
    "code": "transmit",
    "display": "Transmit Record Lifecycle Event",
}


def outputs(
    server: Backing, task: Json, ended: Sequence[tuple[Peer, Delivery]], instances: Sequence[Instance]
) -> list[Json]:
    """Return Task.output, having written the Provenances. Twice the same for the same."""
    told: list[Json] = []
    for peer, known in ended:
        told.append(value("endpoint", "valueReference", {"reference": peer.endpoint}))
        told.append(value("delivered", "valueUnsignedInt", len(known.had)))
        if known.had:
            reference = _provenance(server, task, peer, known, instances)
            told.append(value("provenance", "valueReference", {"reference": reference}))
        refused = sorted(known.refused.items())
        told += [value("refused", "valueString", f"{uid}: {why}") for uid, why in refused[:MOST_REFUSED]]
    return told


def _provenance(server: Backing, task: Json, peer: Peer, known: Delivery, instances: Sequence[Instance]) -> str:
    ended = known.ended or server.clock()
    identifier = delivery.following_id(task, "delivered", peer.name)
    words = f"told {peer.name} what can be fetched" if peer.way is Way.WEBHOOK else f"sent images to {peer.name}"
    resource = {
        "resourceType": "Provenance",
        "id": identifier,
        "target": list(_targets(known, instances)),
        "occurredPeriod": {"start": to_instant(known.since), "end": to_instant(ended)},
        "recorded": to_instant(ended),
        "activity": {**({} if peer.way is Way.WEBHOOK else {"coding": [dict(_TRANSMITTED)]}), "text": words},
        "agent": [
            {
                "type": {"text": "sender"},
                "who": {"display": "FHIR imaging server"},
                "onBehalfOf": {"reference": task["requester"]["reference"]},
            },
            {
                "type": {"coding": [{"system": _DCM, "code": "110152", "display": "Destination Role ID"}]},
                "who": {"reference": peer.subscriber, "display": peer.endpoint},
            },
        ],
        "entity": [{"role": "source", "what": {"reference": f"Task/{task['id']}"}}],
    }
    server.own.update(resource, create=True, if_changed=True, owner=task["requester"]["reference"])
    return f"Provenance/{identifier}"


def _targets(known: Delivery, instances: Sequence[Instance]) -> Iterator[Json]:
    """Yield the studies that the receiver has, and their series or, where it has not all of one, its instances."""
    series: dict[str, list[str]] = {}
    for each in instances:
        series.setdefault(each.series_uid, []).append(each.sop_uid)
    for study_uid in dict.fromkeys(each.study_uid for each in instances if each.sop_uid in known.had):
        yield {"reference": f"ImagingStudy/{imaging_study_id(study_uid)}"}
    left = set(known.had)
    for series_uid, uids in series.items():
        if known.had.issuperset(uids):
            yield {"identifier": _uid(series_uid)}
            left.difference_update(uids)
    for uid in sorted(left):
        yield {"identifier": _uid(uid)}


def _uid(uid: str) -> Json:
    return {"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}
