"""The topics of Subscriptions as FHIR resources, written when a worker starts, and only what changed."""

from fhir_server.model.topics import TOPICS, basic
from fhir_server.store.repository import Repository


def publish(own: Repository) -> None:
    """Write what can be subscribed to."""
    for topic in TOPICS.values():
        own.update(basic(topic), create=True, if_changed=True)
