"""A second opinion on resources, by the models of fhir.resources: another reading of the specification than our own.

For `$validate` alone: it costs tens of milliseconds, and its models are loaded when they are first asked for. They
are of R4B, so only types that R4 defines in the same way are shown to them. What they object to is a warning: our own
walk along the definitions decides.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fhir_server.model.outcome import Issue

if TYPE_CHECKING:
    from pydantic import ValidationError

# Defined alike in R4 (4.0.1) and R4B (4.3.0); compared element by element.
SAME_IN_R4B = frozenset({
    "AuditEvent", "Binary", "Bundle", "CapabilityStatement", "Device", "DiagnosticReport", "DocumentReference",
    "Endpoint", "Group", "ImagingStudy", "Observation", "OperationOutcome", "Organization", "Patient", "Provenance",
    "ServiceRequest", "Subscription", "Task",
})  # fmt: skip
MOST_BYTES = 1 << 20
"""Larger resources are not shown to the models, which take ten times as long as our own walk."""
_MOST_TOLD = 20


def objections(resource: Any, size_bytes: int) -> list[Issue]:
    """Return what the models object to, as warnings without values; nothing for types and sizes not shown to them."""
    kind = resource.get("resourceType") if isinstance(resource, dict) else None
    if not isinstance(kind, str) or kind not in SAME_IN_R4B or size_bytes > MOST_BYTES:
        return []
    from fhir.resources.R4B import get_fhir_model_class
    from pydantic import ValidationError

    try:
        get_fhir_model_class(kind).model_validate(resource)
    except ValidationError as error:
        return list(_told(kind, error))
    except (AttributeError, LookupError, TypeError):
        pass  # the models stumble over some values of a wrong JSON type, of which our own walk tells
    return []


def _told(kind: str, error: "ValidationError") -> Iterator[Issue]:
    # The words of a finding may quote a value; its type and its place do not.
    for each in error.errors(include_url=False, include_context=False, include_input=False)[:_MOST_TOLD]:
        text = f"the models of fhir.resources (R4B) object: {each['type'].replace('_', ' ')}"
        yield Issue("invalid", text, _place(kind, each["loc"]), severity="warning")


def _place(kind: str, steps: tuple[int | str, ...]) -> str:
    return kind + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
