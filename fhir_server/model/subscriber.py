"""Which Organizations are subscribers: those that the operator let in, and no others. Pure.

Clients keep Organizations of their own, of hospitals and practices; the identifier that makes a subscriber is none that
they can give.
"""

from collections.abc import Mapping
from typing import Any

SUBSCRIBER_SYSTEM = "urn:fhir-imaging:subscriber"  # identifier system: the name by which commands know a subscriber


def is_subscriber(organization: Mapping[str, Any]) -> bool:
    """Say whether an Organization is one that the operator let in."""
    return any(each.get("system") == SUBSCRIBER_SYSTEM for each in organization.get("identifier", ()))
