"""What can be ordered, as FHIR resources: each algorithm is a Device (software) and an ActivityDefinition.

Hides how parameters with units, ranges and defaults are told: as parameters of a Library that the ActivityDefinition
contains, with an extension for what a ParameterDefinition has no element for. Written when a worker starts, and only
what changed. Ids follow from names; the current version of a resource is the version of the algorithm that is here.
"""

import inspect
import logging
from collections.abc import Iterator
from decimal import Decimal
from importlib import metadata
from typing import Any

from fhir_server.access.policy import ALGORITHM_SYSTEM
from fhir_server.model.criteria import Clause, Token
from fhir_server.model.query import Query
from fhir_server.model.task import CODES, Json
from fhir_server.ownership import ALGORITHM, ALGORITHM_URL
from fhir_server.store.documents import Resource
from fhir_server.store.repository import Repository
from fhir_server.work.orders import CODE, cardinality
from fhir_server.work.selection import OURS
from imaging.algorithm import Algorithm
from imaging.parameters import Parameter

log = logging.getLogger(__name__)

PARAMETER = (
    "urn:fhir-imaging:extension:parameter"  # on ParameterDefinition: unit, range, choice, default, stated-by-images
)
TAKES = "urn:fhir-imaging:extension:takes"  # on ActivityDefinition: image, images, volume or pair
PERFORMER = "urn:fhir-imaging:extension:performer"  # on ActivityDefinition: the Device that does it
UCUM = "http://unitsofmeasure.org"
_SOFTWARE = {"system": "http://snomed.info/sct", "code": "706687001", "display": "Software"}
_SCHEMES = {"DCM": "http://dicom.nema.org/resources/ontology/DCM", "SCT": "http://snomed.info/sct"}
_TYPES = {"number": "decimal", "integer": "integer", "boolean": "boolean", "choice": "code", "text": "string"}
_RETIRED = {"Device": "inactive", "ActivityDefinition": "retired"}
_MOST = 1000  # algorithms


def publish(own: Repository) -> None:
    """Write what this process can do where that changed, and retire what it cannot do any more."""
    wanted = {f"{each['resourceType']}/{each['id']}": each for each in _described()}
    for found in _published(own):
        if found.key not in wanted:
            wanted[found.key] = {**found.json(), "status": _RETIRED[found.type]}
    for resource in wanted.values():
        own.update(resource, create=True, if_changed=True)


def _described() -> Iterator[Json]:
    from imaging.algorithms import algorithms

    for name in algorithms:
        # A foreign package may declare in any way; the others must still be found.
        try:
            yield from [each(name, algorithms.get(name)) for each in (device, activity_definition)]
        except Exception:
            log.exception("an algorithm cannot be described; it is not offered", extra={"algorithm": name})


def _published(own: Repository) -> Iterator[Resource]:
    ours = Clause("identifier", "token", "", (Token(ALGORITHM_SYSTEM, None),))
    for query in (Query("Device", (ours,), count=_MOST), Query("ActivityDefinition", count=_MOST)):
        yield from (each for each in own.search(query).matches if each.id.startswith(ALGORITHM))


def device(name: str, algorithm: type[Algorithm]) -> Json:
    """Return the software that an algorithm is."""
    return {
        "resourceType": "Device",
        "id": f"{ALGORITHM}{name}",
        "identifier": [{"system": ALGORITHM_SYSTEM, "value": name}],
        "status": "active",
        "manufacturer": OURS,
        "deviceName": [
            {"name": algorithm.title, "type": "user-friendly-name"},
            {"name": name, "type": "model-name"},
        ],
        "type": {"coding": [_SOFTWARE]},
        "version": [{"value": algorithm.version}],
    }


def activity_definition(name: str, algorithm: type[Algorithm]) -> Json:
    """Return what a client has to know to order an algorithm."""
    code = algorithm.derivation
    derivation = {"code": code.value, "display": code.meaning}
    if code.scheme in _SCHEMES:
        derivation["system"] = _SCHEMES[code.scheme]
    library: Json = {
        "resourceType": "Library",
        "id": "parameters",
        "status": "active",
        "type": {
            "coding": [{"system": "http://terminology.hl7.org/CodeSystem/library-type", "code": "module-definition"}]
        },
    }
    if declared := algorithm.parameters():
        library["parameter"] = [_parameter(each) for each in declared]
    return {
        "resourceType": "ActivityDefinition",
        "id": f"{ALGORITHM}{name}",
        "contained": [library],
        "extension": [
            {"url": TAKES, "valueCode": str(algorithm.takes)},
            {"url": PERFORMER, "valueReference": {"reference": f"Device/{ALGORITHM}{name}"}},
        ],
        "url": f"{ALGORITHM_URL}{name}",
        "version": algorithm.version,
        "name": algorithm.__name__,
        "title": algorithm.title,
        "status": "active",
        "publisher": f"fhir-imaging-server {metadata.version('fhir-imaging-server')}",
        "description": inspect.cleandoc(algorithm.__doc__ or algorithm.title),
        "relatedArtifact": [{"type": "citation", "citation": algorithm.source}],
        "library": ["#parameters"],
        "kind": "Task",
        "code": {"coding": [{"system": CODES, "code": CODE}, derivation]},
        "intent": "order",
    }


def _parameter(declared: Parameter) -> Json:
    least, most = cardinality(declared)
    details = list(_details(declared))
    return {
        **({"extension": [{"url": PARAMETER, "extension": details}]} if details else {}),
        "name": declared.name,
        "use": "in",
        "min": least,
        "max": str(most),
        "documentation": declared.help,
        "type": _TYPES[declared.kind],
    }


def _details(declared: Parameter) -> Iterator[Json]:
    if declared.is_stated:
        yield {"url": "stated-by-images", "valueBoolean": True}
    if declared.unit:
        yield {"url": "unit", "valueCode": declared.unit}
    if declared.low is not None or declared.high is not None:
        ends = {"low": declared.low, "high": declared.high}
        yield {
            "url": "range",
            "valueRange": {end: _quantity(value, declared.unit) for end, value in ends.items() if value is not None},
        }
    for choice in declared.choices:
        yield {"url": "choice", "valueCode": choice}
    if not declared.is_required:
        element = f"value{_TYPES[declared.kind].capitalize()}"
        for each in declared.default if isinstance(declared.default, tuple) else (declared.default,):
            yield {"url": "default", element: _plain(each)}


def _quantity(value: float, unit: str) -> Json:
    return {"value": _plain(value), **({"unit": unit, "system": UCUM, "code": unit} if unit else {})}


def _plain(value: Any) -> Any:
    """Return a value as FHIR writes it: 10 and not 10.0, and no exponent that a reader would lose."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else Decimal(repr(value))
    return str(value) if isinstance(value, str) else value
