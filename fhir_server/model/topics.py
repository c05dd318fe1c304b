"""The topics that Subscriptions may name: what happens, to which resources, and by what it can be narrowed.

Pure. R4 has no SubscriptionTopic; the table is told as `Basic` resources with R5's elements as cross-version
extensions, and in the CapabilityStatement. Source: Subscriptions R5 Backport 1.1.0, components and conformance in R4.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fhir_server.model.definitions import parameters

Json = dict[str, Any]

URL = "urn:fhir-imaging:topic:"  # canonical URL of a topic, before its name
PREFIX = "topic-"  # how the ids of the Basic resources begin
VERSION = "1.0.0"
CREATE, UPDATE, DELETE = "create", "update", "delete"  # as R5's interaction-trigger has them

# (the version before, None where there was none; the version at hand) -> whether the topic is triggered by it
Changes = Callable[[Mapping[str, Any] | None, Mapping[str, Any]], bool]


def _always(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    return True


def _status_differs(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    return (before or {}).get("status") != now.get("status")


# The category of a Communication that tells of emergency access.
ALARM = {"system": "urn:fhir-imaging:code:alarm", "code": "emergency-access"}


def _is_alarm(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    return any(ALARM in each.get("coding", []) for each in now.get("category", []))


def _is_completed_now(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    return now.get("status") == "completed" and _status_differs(before, now)


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic.

    interactions  that trigger it
    trigger       what has to be true of the change besides, and the same in FHIRPath, "" for nothing
    """

    name: str
    title: str
    description: str
    resource: str
    interactions: tuple[str, ...]
    trigger: Changes = _always
    fhirpath: str = ""

    @property
    def url(self) -> str:
        """The canonical URL, without version."""
        return f"{URL}{self.name}"

    @property
    def filters(self) -> tuple[str, ...]:
        """The search parameters of the resource by which the topic can be narrowed."""
        return tuple(sorted(parameters(self.resource)))

    @property
    def needs_before(self) -> bool:
        """Whether the version before decides."""
        return self.trigger is not _always


_TOPICS = (
    Topic(
        "imaging-study-new",
        "A new imaging study",
        "Images of a study came for the first time, or an ImagingStudy was created.",
        "ImagingStudy",
        (CREATE,),
    ),
    Topic(
        "imaging-study-changed",
        "An imaging study changed",
        "Images came to a study or left it, its ImagingStudy was changed, or it was deleted.",
        "ImagingStudy",
        (UPDATE, DELETE),
    ),
    Topic(
        "task-status-changed",
        "The status of an order changed",
        "A Task was placed, or has another status than before.",
        "Task",
        (CREATE, UPDATE),
        _status_differs,
        "%previous.empty() or %previous.status != %current.status",
    ),
    Topic(
        "result-ready",
        "The result of an order is ready",
        "A Task is completed: its outputs name the result.",
        "Task",
        (CREATE, UPDATE),
        _is_completed_now,
        "%current.status = 'completed' and (%previous.empty() or %previous.status != 'completed')",
    ),
    Topic(
        "emergency-access",
        "Emergency access to a patient",
        "Somebody asked for emergency access to the records of a patient.",
        "Communication",
        (CREATE,),
        _is_alarm,
        "%current.category.coding.where(system = 'urn:fhir-imaging:code:alarm' and code = 'emergency-access').exists()",
    ),
)
TOPICS: Mapping[str, Topic] = MappingProxyType({each.url: each for each in _TOPICS})


_R5 = "http://hl7.org/fhir/5.0/StructureDefinition/extension-SubscriptionTopic."
_TYPE = "http://hl7.org/fhir/StructureDefinition/"


def basic(topic: Topic) -> Json:
    """Return the SubscriptionTopic as R4 can hold it."""
    trigger = [
        {"url": "description", "valueMarkdown": topic.description},
        {"url": "resource", "valueUri": f"{_TYPE}{topic.resource}"},
        *({"url": "supportedInteraction", "valueCode": each} for each in topic.interactions),
        *([{"url": "fhirPathCriteria", "valueString": topic.fhirpath}] if topic.fhirpath else []),
    ]
    return {
        "resourceType": "Basic",
        "id": f"{PREFIX}{topic.name}",
        "extension": [
            {"url": f"{_R5}url", "valueUri": topic.url},
            {"url": f"{_R5}version", "valueString": VERSION},
            {"url": f"{_R5}name", "valueString": topic.name.title().replace("-", "")},
            {"url": f"{_R5}title", "valueString": topic.title},
            {"url": f"{_R5}description", "valueMarkdown": topic.description},
            {"url": f"{_R5}resourceTrigger", "extension": trigger},
            *(_filter(topic, each) for each in topic.filters),
            {
                "url": f"{_R5}notificationShape",
                "extension": [{"url": "resource", "valueUri": f"{_TYPE}{topic.resource}"}],
            },
        ],
        "modifierExtension": [{"url": f"{_R5}status", "valueCode": "active"}],
        "code": {"coding": [{"system": "http://hl7.org/fhir/fhir-types", "code": "SubscriptionTopic"}]},
    }


def _filter(topic: Topic, parameter: str) -> Json:
    told = [
        {"url": "resource", "valueUri": topic.resource},
        {"url": "filterParameter", "valueString": parameter},
    ]
    return {"url": f"{_R5}canFilterBy", "extension": told}
