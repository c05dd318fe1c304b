"""Batch and transaction: many asks in one Bundle. Each goes the way that it would go alone.

A batch is done entry by entry, each with an outcome of its own. A transaction (`transaction`) is done whole or not at
all. Source: FHIR R4 http 3.1.0.11.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fhir_server.access.principals import Principal
from fhir_server.model import json
from fhir_server.model.outcome import outcome
from fhir_server.rest import bundles, interactions
from fhir_server.rest.asks import Answer, Json, Preferences
from fhir_server.rest.entries import entry_of, issues_in
from fhir_server.rest.interactions import Interactions
from fhir_server.rest.statuses import status_of
from fhir_server.rest.transaction import Transaction
from fhir_server.store.failures import unavailable
from fhir_server.store.repository import Guard
from imaging.errors import AppError, Category

Keep = Guard  # what keeps an answer within a transaction

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BundleLimits:
    """Bounds on a batch or transaction; the bytes are those of what is sent, and of what comes back."""

    entries: int
    bytes: int


class Backing(interactions.Backing, Protocol):
    """What Bundles need of the server."""

    @property
    def bundle_limits(self) -> BundleLimits:
        """Bounds on batches and transactions."""


def kind_of(bundle: Any) -> str:
    """Return `batch` or `transaction`. Raises INVALID for anything else."""
    if not isinstance(bundle, dict) or bundle.get("resourceType") != "Bundle":
        raise AppError(Category.INVALID, "a Bundle is wanted here", where="resourceType")
    kind = bundle.get("type")
    if kind not in ("batch", "transaction"):
        raise AppError(Category.INVALID, "a Bundle of type batch or transaction is wanted here", where="Bundle.type")
    return str(kind)


def processed(
    server: Backing,
    principal: Principal,
    bundle: Json,
    preferences: Preferences,
    *,
    keep: Callable[[bytes], Keep] | None = None,
) -> Answer:
    """Return the Bundle of answers. Raises for a Bundle that is wrong itself, and what keeps a transaction from it.

    keep   keeps the answer to a transaction within that transaction
    """
    kind = kind_of(bundle)
    entries = bundle.get("entry", [])
    if not isinstance(entries, list):
        raise AppError(Category.INVALID, "`entry` is a list", where="Bundle.entry")
    most = server.bundle_limits.entries
    if len(entries) > most:
        raise AppError(Category.TOO_LARGE, f"{len(entries)} entries, at most {most} are accepted", where="Bundle.entry")
    acting = Interactions(server, principal)

    def told(answers: list[Answer]) -> bytes:
        return bundles.responses(f"{kind}-response", answers, server.clock())

    if kind == "transaction":
        kept = (lambda answers: keep(told(answers))) if keep else None
        return Answer(body=told(_transacted(server, acting, entries, preferences, kept)))
    return Answer(body=told(_batched(server, acting, entries, preferences)))


def _batched(server: Backing, acting: Interactions, entries: list[Any], preferences: Preferences) -> list[Answer]:
    left = server.bundle_limits.bytes
    answers = []
    for number, found in enumerate(entries):
        # What one entry was about to put on record, and then failed, is not the next one's.
        alone = acting.within(acting.repository)
        answer = _answered(server, alone, found, number, preferences, is_full=left < 0)
        left -= len(answer.body)
        answers.append(answer)
    return answers


def _answered(
    server: Backing, acting: Interactions, found: Any, number: int, preferences: Preferences, *, is_full: bool
) -> Answer:
    entry = None
    try:
        if is_full:
            message = f"the answers before have more than {server.bundle_limits.bytes} bytes"
            raise AppError(Category.TOO_LARGE, message)
        entry = entry_of(found, number, server.fhir_url)
        entry.require(acting)
        ask = entry.asked(preferences, most_bytes=server.most_resource_bytes)
        acting.prepare(ask)
        answer = acting.perform(ask)
        acting.settle()
        return entry.finished(answer)
    except Exception as caught:  # noqa: BLE001 -- what the others do stands, and their answers are owed; it is logged
        error = _named(caught)
        if entry:
            acting.refused(entry.access, entry.type, entry.id, error)
        body = json.dumps(outcome(issues_in(f"Bundle.entry[{number}]", error)))
        return Answer(status_of(error), body, is_outcome=True)


def _transacted(
    server: Backing,
    acting: Interactions,
    entries: list[Any],
    preferences: Preferences,
    keep: Callable[[list[Answer]], Keep] | None,
) -> list[Answer]:
    transaction = Transaction(server, acting, preferences)
    answers, done = transaction.run(entries, most_bytes=server.bundle_limits.bytes, keep=keep)
    with server.audit.gathered():
        done.settle()
    return answers


def _named(error: Exception) -> AppError:
    if isinstance(error, AppError) and error.category is not Category.FAULT:
        return error
    if message := unavailable(error):
        return AppError(Category.BUSY, message)
    _log.error("fault", extra={"fault": type(error).__name__}, exc_info=error)
    return AppError(Category.FAULT, "the server could not do this; quote the request id to its operator")
